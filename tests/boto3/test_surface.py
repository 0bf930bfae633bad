"""What is in no row of the table of the S3 API (src/api/s3/surface.rs) changes nothing and is refused."""

import pytest

from expect import body_of, refused


@pytest.mark.parametrize(
    ("method", "query"),
    [("PUT", "renameObject"), ("PUT", "encryption"), ("PUT", "append"), ("DELETE", "acl"), ("GET", "annotation")],
)
def test_an_unknown_parameter_of_an_object_is_refused(s3, raw, bucket, key, method, query):
    s3.put_object(Bucket=bucket, Key=key, Body=b"kept")

    answer = raw.send(raw.signed(method, bucket, key, query=[(query, "")], body=b"new" if method == "PUT" else b""))

    assert (answer.status, answer.error_code()) == (501, "NotImplemented")
    assert query in answer.body.decode()
    assert body_of(s3, bucket, key) == b"kept"


def test_a_read_ignores_what_caches_add_to_its_address(s3, raw, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"kept")

    answer = raw.send(raw.signed("GET", bucket, key, query=[("v", "1")]))

    assert (answer.status, answer.body) == (200, b"kept")


def test_an_unknown_parameter_of_a_bucket_does_not_delete_it(s3, raw, new_bucket):
    for query in ("accelerate", "logging", "metadataConfiguration"):
        answer = raw.send(raw.signed("DELETE", new_bucket, query=[(query, "")]))
        assert (answer.status, answer.error_code()) == (501, "NotImplemented"), query
    s3.head_bucket(Bucket=new_bucket)


def test_an_unknown_amazon_header_is_refused(s3, raw, bucket, key):
    answer = raw.send(raw.signed("PUT", bucket, key, headers={"x-amz-of-next-year": "1"}, body=b"x"))

    assert (answer.status, answer.error_code()) == (501, "NotImplemented")
    assert "x-amz-of-next-year" in answer.body.decode()


def test_a_clients_own_parameters_are_let_through(s3, raw, bucket, key):
    assert raw.send(raw.signed("PUT", bucket, key, query=[("x-job", "1")], body=b"x")).status == 200
    assert raw.send(raw.signed("GET", bucket, key, query=[("x-id", "GetObject")])).body == b"x"


def test_the_owner_of_a_bucket_is_who_is_expected(s3, bucket, key):
    owner = s3.list_buckets()["Owner"]["ID"]

    s3.put_object(Bucket=bucket, Key=key, Body=b"x", ExpectedBucketOwner=owner)
    with refused(403, "AccessDenied"):
        s3.delete_object(Bucket=bucket, Key=key, ExpectedBucketOwner="123456789012")
    with refused(403, "AccessDenied"):
        s3.copy_object(Bucket=bucket, Key=key + "2", CopySource={"Bucket": bucket, "Key": key},
                       ExpectedSourceBucketOwner="123456789012")

    assert body_of(s3, bucket, key) == b"x"


def test_the_announced_size_of_a_completed_upload_is_compared(s3, bucket, key, multipart):
    where = {"Bucket": bucket, "Key": key, "UploadId": multipart}
    part = s3.upload_part(**where, PartNumber=1, Body=b"abc")["ETag"]
    parts = {"Parts": [{"ETag": part, "PartNumber": 1}]}

    with refused(400, "InvalidRequest"):
        s3.complete_multipart_upload(**where, MultipartUpload=parts, MpuObjectSize=4)
    s3.complete_multipart_upload(**where, MultipartUpload=parts, MpuObjectSize=3)


def test_a_read_may_ask_for_what_is_not_newer(s3, raw, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    for date, status in [("Sat, 28 Nov 2020 10:00:00 GMT", 412), ("Sat, 28 Nov 2099 10:00:00 GMT", 200)]:
        answer = raw.send(raw.signed("GET", bucket, key, headers={"If-Unmodified-Since": date}))
        assert answer.status == status
