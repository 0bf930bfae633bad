"""How a refusal looks, what is politely answered, and what is clearly not implemented."""

import random
import xml.etree.ElementTree as ElementTree

import pytest

from checksums import content_md5
from expect import body_of, missing, refused

GARBAGE = {
    "random bytes": random.Random(17).randbytes(300),
    "empty": b"",
    "text": b"delete everything, please",
    "cut off": b"<Delete><Object><Key>a</Key></Obj",
    "wrong root": b"<Insert><Object><Key>a</Key></Object></Insert>",
    "entity bomb": b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'
                   b"<Delete><Object><Key>&b;</Key></Object></Delete>",
    "deep": b"<a>" * 5000,
    "invalid UTF-8": b"<Delete><Object><Key>\xff\xfe</Key></Object></Delete>",
}
# An empty body is also missing, which is as good a reason.
EMPTY_BODY_CODES = ("MissingRequestBodyError", "InvalidRequest")


def test_an_error_is_xml_with_code_message_and_request_id(raw, bucket, key):
    response = raw.send(raw.signed("GET", bucket, key))

    assert response.status == 404
    assert "xml" in response.headers["content-type"]
    error = ElementTree.fromstring(response.body)
    assert error.tag == "Error"
    assert error.findtext("Code") == "NoSuchKey"
    assert error.findtext("Message")
    assert error.findtext("RequestId") == response.headers["x-amz-request-id"]


def test_every_answer_has_a_request_id_of_its_own(raw, bucket, key):
    answers = [raw.send(raw.signed(method, bucket, key)) for method in ("PUT", "HEAD", "GET", "DELETE", "HEAD")]

    ids = {answer.headers["x-amz-request-id"] for answer in answers}
    assert len(ids) == len(answers)


def test_a_refused_head_has_no_body(raw, bucket, key):
    response = raw.send(raw.signed("HEAD", bucket, key))

    assert (response.status, response.body) == (404, b"")


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_batch_delete_that_is_no_xml_is_refused(raw, bucket, body):
    response = raw.send(raw.signed("POST", bucket, query=[("delete", "")], body=body,
                                   headers={"Content-MD5": content_md5(body)}))

    assert response.status == 400
    assert response.error_code() in ("MalformedXML", *(EMPTY_BODY_CODES if not body else []))


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_completion_that_is_no_xml_is_refused(s3, raw, bucket, key, multipart, body):
    s3.upload_part(Bucket=bucket, Key=key, UploadId=multipart, PartNumber=1, Body=b"x")

    response = raw.send(raw.signed("POST", bucket, key, query=[("uploadId", multipart)], body=body))

    assert response.status == 400
    assert response.error_code() in ("MalformedXML", *(EMPTY_BODY_CODES if not body else []))
    assert missing(s3, bucket, key)


@pytest.mark.parametrize("method, key, query", [
    ("PATCH", "k", []),
    ("TRACE", "k", []),
    ("POST", "k", []),
    ("POST", None, []),
    ("BREW", None, []),
], ids=["PATCH", "TRACE", "POST object", "POST bucket", "BREW"])
def test_a_method_that_means_nothing_is_refused(raw, bucket, method, key, query):
    response = raw.send(raw.signed(method, bucket, key, query=query))

    assert response.status in (400, 403, 405, 411, 412, 501)


POLITE = {
    "get_public_access_block": "NoSuchPublicAccessBlockConfiguration",
    "get_bucket_encryption": "ServerSideEncryptionConfigurationNotFoundError",
    "get_bucket_policy": "NoSuchBucketPolicy",
    "get_bucket_tagging": "NoSuchTagSet",
    "get_bucket_lifecycle_configuration": "NoSuchLifecycleConfiguration",
}


def test_versioning_was_never_enabled(s3, bucket):
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)


def test_the_owner_has_full_control(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x", ACL="private", StorageClass="STANDARD")

    for acl in (s3.get_bucket_acl(Bucket=bucket), s3.get_object_acl(Bucket=bucket, Key=key)):
        assert [grant["Permission"] for grant in acl["Grants"]] == ["FULL_CONTROL"]
        assert acl["Owner"]["ID"] == acl["Grants"][0]["Grantee"]["ID"]


@pytest.mark.parametrize("operation", POLITE)
def test_a_configuration_that_was_never_set_is_not_there(s3, new_bucket, operation):
    with refused(404, POLITE[operation]):
        getattr(s3, operation)(Bucket=new_bucket)


NEVER_SET = ["delete_bucket_cors", "delete_bucket_encryption", "delete_bucket_lifecycle",
             "delete_bucket_ownership_controls", "delete_bucket_policy", "delete_bucket_replication",
             "delete_bucket_tagging", "delete_bucket_website", "delete_public_access_block"]


@pytest.mark.parametrize("operation", NEVER_SET)
def test_deleting_what_was_never_set_is_done(s3, new_bucket, operation):
    answer = getattr(s3, operation)(Bucket=new_bucket)

    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
    s3.head_bucket(Bucket=new_bucket)
    with refused(404, "NoSuchBucket"):
        getattr(s3, operation)(Bucket=new_bucket + "-absent")


def test_deleting_tags_that_an_object_does_not_have_is_done(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    assert s3.delete_object_tagging(Bucket=bucket, Key=key)["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert body_of(s3, bucket, key) == b"x"


def test_the_owner_pays(s3, bucket):
    assert s3.get_bucket_request_payment(Bucket=bucket)["Payer"] == "BucketOwner"


@pytest.mark.parametrize("operation", ["get_object_retention", "get_object_legal_hold"])
def test_nothing_is_locked(s3, bucket, key, operation):
    with refused(404, "NoSuchKey"):
        getattr(s3, operation)(Bucket=bucket, Key=key)
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    with refused(400, "InvalidRequest"):
        getattr(s3, operation)(Bucket=bucket, Key=key)


def test_an_object_has_no_tags(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    assert s3.get_object_tagging(Bucket=bucket, Key=key)["TagSet"] == []


RULE = {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}
REPLICATION = {"Role": "arn:aws:iam::1:role/r", "Rules": [
    {"Status": "Enabled", "Priority": 1, "Filter": {}, "DeleteMarkerReplication": {"Status": "Disabled"},
     "Destination": {"Bucket": "arn:aws:s3:::b"}}]}
NOT_IMPLEMENTED = {
    "put_bucket_versioning": {"VersioningConfiguration": {"Status": "Enabled"}},
    "put_bucket_policy": {"Policy": '{"Version": "2012-10-17", "Statement": []}'},
    "put_bucket_lifecycle_configuration": {"LifecycleConfiguration": {"Rules": [RULE]}},
    "put_object_lock_configuration": {"ObjectLockConfiguration": {"ObjectLockEnabled": "Enabled"}},
    "put_bucket_acl": {"ACL": "public-read"},
    "put_bucket_website": {"WebsiteConfiguration": {"IndexDocument": {"Suffix": "index.html"}}},
    "put_bucket_replication": {"ReplicationConfiguration": REPLICATION},
    "put_object_acl": {"Key": "k", "ACL": "public-read"},
    "put_object_retention": {"Key": "k", "Retention": {"Mode": "GOVERNANCE", "RetainUntilDate": "2040-01-01"}},
    "put_object_legal_hold": {"Key": "k", "LegalHold": {"Status": "ON"}},
    "select_object_content": {
        "Key": "k", "Expression": "select * from s3object", "ExpressionType": "SQL",
        "InputSerialization": {"CSV": {}}, "OutputSerialization": {"CSV": {}}},
}


@pytest.mark.esker
@pytest.mark.parametrize("operation", NOT_IMPLEMENTED)
def test_what_is_not_implemented_says_so(s3, bucket, operation):
    with refused(501, "NotImplemented"):
        getattr(s3, operation)(Bucket=bucket, **NOT_IMPLEMENTED[operation])


ENCRYPTION = {
    "customer key": {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32},
    "KMS": {"ServerSideEncryption": "aws:kms"},
}


@pytest.mark.esker
@pytest.mark.parametrize("options", ENCRYPTION.values(), ids=ENCRYPTION.keys())
def test_encryption_that_would_not_happen_is_refused(s3, bucket, key, options):
    with refused(501, "NotImplemented"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x", **options)
    with refused(501, "NotImplemented"):
        s3.create_multipart_upload(Bucket=bucket, Key=key, **options)

    assert missing(s3, bucket, key)


@pytest.mark.esker
def test_a_browser_form_upload_is_refused(raw, bucket):
    body = b'--x\r\nContent-Disposition: form-data; name="key"\r\n\r\nk\r\n--x--\r\n'

    response = raw.send(raw.signed("POST", bucket, body=body,
                                   headers={"Content-Type": "multipart/form-data; boundary=x"}))

    assert (response.status, response.error_code()) == (501, "NotImplemented")


class TestClientQuirks:
    """Headers and parameters that real clients send and that change nothing."""

    @pytest.mark.parametrize("headers, query", [
        ({}, [("x-id", "PutObject")]),
        ({"x-amz-api-version": "2006-03-01"}, []),
        ({"x-amz-acl": "private", "x-amz-storage-class": "STANDARD"}, []),
        ({"Referer": "https://audit.example.org/hadoop/1/op_create/?op=op_create&p1=a"}, []),
        ({"User-Agent": ""}, []),
    ], ids=["x-id", "api version", "acl and storage class", "audit referer", "no user agent"])
    def test_put(self, s3, raw, bucket, key, headers, query):
        response = raw.send(raw.signed("PUT", bucket, key, headers=headers, query=query, body=b"x"))

        assert response.status == 200
        assert body_of(s3, bucket, key) == b"x"

    @pytest.mark.parametrize("headers, query", [
        ({}, [("x-id", "ListObjectsV2"), ("list-type", "2")]),
        ({"x-amz-optional-object-attributes": "RestoreStatus"}, [("list-type", "2"), ("delimiter", "")]),
        ({}, [("list-type", "2"), ("fetch-owner", "false"), ("delimiter", "/"), ("max-keys", "2")]),
        ({}, [("delimiter", "/"), ("max-keys", "1"), ("encoding-type", "url")]),
        ({}, [("delimiter", ""), ("max-keys", "1000"), ("encoding-type", "url"), ("prefix", "")]),
    ], ids=["x-id", "optional attributes", "S3A", "presto", "minio"])
    def test_list(self, raw, bucket, headers, query):
        response = raw.send(raw.signed("GET", bucket, headers=headers, query=query))

        assert response.status == 200
        assert b"<ListBucketResult" in response.body

    def test_batch_delete_with_content_md5_and_no_checksum(self, s3, raw, bucket, key):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
        body = (f'<?xml version="1.0" encoding="UTF-8"?><Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                f"<Quiet>true</Quiet><Object><Key>{key}</Key></Object></Delete>").encode()

        response = raw.send(raw.signed("POST", bucket, query=[("delete", "")], body=body,
                                       headers={"Content-MD5": content_md5(body), "Content-Type": "application/xml"}))

        assert response.status == 200
        assert missing(s3, bucket, key)

    def test_a_bucket_named_with_a_slash_behind_it(self, raw, bucket):
        assert raw.send(raw.signed("GET", bucket, "", query=[("list-type", "2")])).status == 200
        assert raw.send(raw.signed("HEAD", bucket, "")).status == 200
