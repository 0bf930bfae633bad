"""Tags of objects: kept, told, and nothing else."""

import urllib.request

import pytest

from expect import body_of, refused

TAGS = [{"Key": "team", "Value": "a b"}, {"Key": "ü", "Value": "/=+"}]
SENT = "team=a%20b&%C3%BC=%2F%3D%2B"


def tags_of(s3, bucket, key):
    return s3.get_object_tagging(Bucket=bucket, Key=key)["TagSet"]


def count_of(s3, bucket, key):
    headers = s3.head_object(Bucket=bucket, Key=key)["ResponseMetadata"]["HTTPHeaders"]
    got = s3.get_object(Bucket=bucket, Key=key)
    assert got.get("TagCount", 0) == int(headers.get("x-amz-tagging-count", 0))
    return got.get("TagCount", 0)


def test_tags_are_set_told_and_deleted(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x", Metadata={"a": "b"}, StorageClass="STANDARD_IA")
    before = s3.head_object(Bucket=bucket, Key=key)
    assert (tags_of(s3, bucket, key), count_of(s3, bucket, key)) == ([], 0)

    s3.put_object_tagging(Bucket=bucket, Key=key, Tagging={"TagSet": TAGS})

    assert (tags_of(s3, bucket, key), count_of(s3, bucket, key)) == (TAGS, 2)
    assert body_of(s3, bucket, key) == b"x"
    after = s3.head_object(Bucket=bucket, Key=key)
    for what in ("ETag", "LastModified", "Metadata", "StorageClass", "ContentLength"):
        assert after[what] == before[what], what

    s3.put_object_tagging(Bucket=bucket, Key=key, Tagging={"TagSet": TAGS[1:]})
    assert tags_of(s3, bucket, key) == TAGS[1:], "all of them are replaced"
    assert s3.delete_object_tagging(Bucket=bucket, Key=key)["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert (tags_of(s3, bucket, key), count_of(s3, bucket, key)) == ([], 0)
    assert s3.delete_object_tagging(Bucket=bucket, Key=key)["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert body_of(s3, bucket, key) == b"x"


def test_tags_are_set_with_every_kind_of_write(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x", Tagging=SENT)
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key + "-parts", Tagging=SENT)["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key=key + "-parts", UploadId=upload, PartNumber=1, Body=b"y")
    s3.complete_multipart_upload(Bucket=bucket, Key=key + "-parts", UploadId=upload,
                                 MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    address = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": key + "-url", "Tagging": SENT})
    signed = urllib.request.Request(address, data=b"z", headers={"x-amz-tagging": SENT}, method="PUT")
    assert urllib.request.urlopen(signed, timeout=10).status == 200

    for name in (key, key + "-parts", key + "-url"):
        assert tags_of(s3, bucket, name) == TAGS, name
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    assert tags_of(s3, bucket, key) == [], "they were the other object's"


def test_a_copy_has_the_tags_unless_others_are_sent(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x", Tagging=SENT, Metadata={"a": "b"})
    source = {"Bucket": bucket, "Key": key}

    s3.copy_object(Bucket=bucket, Key=key + "-1", CopySource=source)
    s3.copy_object(Bucket=bucket, Key=key + "-2", CopySource=source, MetadataDirective="REPLACE", Metadata={"c": "d"})
    s3.copy_object(Bucket=bucket, Key=key + "-3", CopySource=source, TaggingDirective="REPLACE", Tagging="c=d")
    s3.copy_object(Bucket=bucket, Key=key + "-4", CopySource=source, TaggingDirective="COPY", Tagging="c=d")
    s3.copy_object(Bucket=bucket, Key=key + "-5", CopySource=source, TaggingDirective="REPLACE")

    other = [{"Key": "c", "Value": "d"}]
    assert [tags_of(s3, bucket, f"{key}-{n}") for n in range(1, 6)] == [TAGS, TAGS, other, TAGS, []]
    assert s3.head_object(Bucket=bucket, Key=key + "-3")["Metadata"] == {"a": "b"}
    s3.copy_object(Bucket=bucket, Key=key, CopySource=source, TaggingDirective="REPLACE", Tagging="c=d")
    assert tags_of(s3, bucket, key) == other, "onto itself"


@pytest.mark.parametrize("tags, code", [
    ([{"Key": f"k{n}", "Value": "v"} for n in range(11)], "BadRequest"),
    ([{"Key": "k" * 129, "Value": "v"}], "InvalidTag"),
    ([{"Key": "k", "Value": "v" * 257}], "InvalidTag"),
    ([{"Key": "k", "Value": "1"}, {"Key": "k", "Value": "2"}], "InvalidTag"),
    ([{"Key": "aws:k", "Value": "v"}], "InvalidTag"),
    ([{"Key": "k", "Value": "a&b"}], "InvalidTag"),
], ids=["many", "long key", "long value", "twice", "reserved", "character"])
def test_tags_that_an_object_may_not_have_are_refused(s3, bucket, key, tags, code):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x", Tagging="old=1")

    with refused(400, code):
        s3.put_object_tagging(Bucket=bucket, Key=key, Tagging={"TagSet": tags})

    assert tags_of(s3, bucket, key) == [{"Key": "old", "Value": "1"}]


def test_tags_of_what_is_not_there_are_refused(s3, bucket, key):
    for call in (s3.get_object_tagging, s3.delete_object_tagging):
        with refused(404, "NoSuchKey"):
            call(Bucket=bucket, Key=key)
    with refused(404, "NoSuchKey"):
        s3.put_object_tagging(Bucket=bucket, Key=key, Tagging={"TagSet": TAGS})
    with refused(404, "NoSuchBucket"):
        s3.put_object_tagging(Bucket=bucket + "-absent", Key=key, Tagging={"TagSet": TAGS})


@pytest.mark.parametrize("header, value, code", [
    ("Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA==", "BadDigest"),
    ("Content-MD5", "zzz", "InvalidDigest"),
    ("x-amz-checksum-crc32", "AAAAAA==", "BadDigest"),
    ("x-amz-checksum-sha256", "A" * 43 + "=", "BadDigest"),
])
def test_tags_that_differ_from_their_checksum_are_not_set(raw, s3, bucket, key, header, value, code):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    body = b"<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"

    response = raw.send(raw.signed("PUT", bucket, key, query=[("tagging", "")], headers={header: value}, body=body))

    assert response.status == 400 and code.encode() in response.body, response.body
    assert tags_of(s3, bucket, key) == []


def test_the_body_of_tags_is_read_as_xml(s3, raw, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    body = (b'<?xml version="1.0"?><t:Tagging xmlns:t="http://s3.amazonaws.com/doc/2006-03-01/"><t:TagSet>'
            b"<t:Tag><t:Key>a<![CDATA[-b]]></t:Key><t:Value/></t:Tag></t:TagSet></t:Tagging>")

    response = raw.send(raw.signed("PUT", bucket, key, query=[("tagging", "")], body=body))

    assert response.status == 200, response.body
    assert tags_of(s3, bucket, key) == [{"Key": "a-b", "Value": ""}]
