"""Who may come in: signatures, keys, clocks."""

import urllib.error
import urllib.request
from datetime import datetime, timedelta, timezone

import pytest
from botocore import UNSIGNED

from checksums import content_md5
from expect import body_of, missing, refused
from sigv4 import Credentials


def ago(**amount):
    return datetime.now(timezone.utc) - timedelta(**amount)


def test_a_wrong_secret_is_refused(server, bucket, key):
    stranger = server.client(secret_key="not the secret")

    with refused(403, "SignatureDoesNotMatch"):
        stranger.list_objects_v2(Bucket=bucket)
    with refused(403, "SignatureDoesNotMatch"):
        stranger.put_object(Bucket=bucket, Key=key, Body=b"x")
    with refused(403):
        stranger.head_bucket(Bucket=bucket)


def test_an_unknown_access_key_is_refused(server, bucket, key):
    stranger = server.client(access_key="AKIAUNKNOWNUNKNOWN00")

    with refused(403, "InvalidAccessKeyId"):
        stranger.list_buckets()
    with refused(403, "InvalidAccessKeyId"):
        stranger.get_object(Bucket=bucket, Key=key)


def test_an_anonymous_request_is_refused(server, s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"private")
    nobody = server.client(signature_version=UNSIGNED)

    with refused(403, "AccessDenied"):
        nobody.get_object(Bucket=bucket, Key=key)
    with refused(403, "AccessDenied"):
        nobody.put_object(Bucket=bucket, Key=key, Body=b"public")
    with refused(403, "AccessDenied"):
        nobody.delete_object(Bucket=bucket, Key=key)
    with refused(403, "AccessDenied"):
        nobody.list_objects_v2(Bucket=bucket)
    with refused(403, "AccessDenied"):
        nobody.list_buckets()
    # Before its body is read, which is no XML.
    asked = urllib.request.Request(f"{server.endpoint}/{bucket}?delete", data=b"<Nope", method="POST")
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(asked)
    assert answer.value.code == 403 and b"AccessDenied" in answer.value.read()
    assert body_of(s3, bucket, key) == b"private"


def test_a_refused_stranger_does_not_learn_what_exists(server, s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    stranger = server.client(secret_key="not the secret")

    for name in (key, key + "-absent"):
        with refused(403):
            stranger.head_object(Bucket=bucket, Key=name)


@pytest.mark.parametrize("minutes", [20, -20, 60 * 24 * 400], ids=["late", "early", "years late"])
def test_a_wrong_clock_is_refused(raw, bucket, minutes):
    response = raw.send(raw.signed("GET", bucket, when=ago(minutes=minutes)))

    assert (response.status, response.error_code()) == (403, "RequestTimeTooSkewed")


@pytest.mark.parametrize("minutes", [10, -10], ids=["late", "early"])
def test_a_clock_within_a_quarter_of_an_hour_is_accepted(raw, bucket, minutes):
    assert raw.send(raw.signed("GET", bucket, when=ago(minutes=minutes))).status == 200


TAMPERING = {
    "method": lambda request: setattr(request, "method", "DELETE"),
    "key": lambda request: setattr(request, "target", request.target + "2"),
    "query": lambda request: setattr(request, "target", request.target + "?tagging="),
    "signed header": lambda request: request.headers.update({"x-amz-meta-job": "other"}),
    "date": lambda request: request.headers.update({"x-amz-date": ago(minutes=1).strftime("%Y%m%dT%H%M%SZ")}),
    "signature": lambda request: request.headers.update(
        {"Authorization": request.headers["Authorization"][:-4] + "0000"}),
}


@pytest.mark.parametrize("tamper", TAMPERING.values(), ids=TAMPERING.keys())
def test_a_request_changed_after_signing_is_refused(s3, raw, bucket, key, tamper):
    request = raw.signed("PUT", bucket, key, body=b"x", headers={"x-amz-meta-job": "orders"})
    tamper(request)

    response = raw.send(request)

    assert (response.status, response.error_code()) == (403, "SignatureDoesNotMatch")
    assert missing(s3, bucket, key)


def test_an_unsigned_header_does_not_matter(raw, bucket):
    request = raw.signed("GET", bucket)
    request.headers["X-Unsigned"] = "anything"

    assert raw.send(request).status == 200


MALFORMED = ["", "Basic dXNlcjpwYXNz", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=", "AWS4-HMAC-SHA256 a=b,c=d",
             "AWS4-HMAC-SHA256 Credential=K/20260101/us-east-1/s3/aws4_request", "AWS K:c2lnbmF0dXJl", "x" * 5000,
             "Bearer e30.e30.e30"]


@pytest.mark.parametrize("value", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_authorization_is_refused(raw, bucket, value):
    request = raw.signed("GET", bucket)
    request.headers["Authorization"] = value

    response = raw.send(request)

    assert response.status in (400, 401, 403)


def test_a_request_without_a_date_is_refused(raw, bucket):
    request = raw.signed("GET", bucket)
    del request.headers["x-amz-date"]

    assert raw.send(request).status in (400, 403)


@pytest.mark.esker
@pytest.mark.parametrize("region", ["external", "eu-central-1", "auto"])
def test_any_region_is_accepted(raw, server, bucket, region):
    credentials = Credentials(server.access_key, server.secret_key, region)

    assert raw.send(raw.signed("GET", bucket, credentials=credentials)).status == 200


UNSIGNED_HEADERS = {"x-amz-copy-source": "/{bucket}/{secret}", "x-amz-meta-job": "other", "x-amz-acl": "public-read"}


@pytest.mark.esker
@pytest.mark.parametrize("name", UNSIGNED_HEADERS)
def test_an_unsigned_amazon_header_is_refused(s3, raw, bucket, key, prefix, name):
    secret = prefix + "secret"
    s3.put_object(Bucket=bucket, Key=secret, Body=b"secret")
    value = UNSIGNED_HEADERS[name].format(bucket=bucket, secret=secret)
    signed = raw.signed("PUT", bucket, key)
    signed.headers[name] = value
    presigned = raw.unsigned("PUT", raw.presign("PUT", bucket, key, expires_seconds=60), headers={name: value})

    for request in (signed, presigned):
        response = raw.send(request)
        assert (response.status, response.error_code()) == (403, "AccessDenied")
    assert missing(s3, bucket, key)


@pytest.mark.esker
def test_headers_of_proxies_and_sdks_need_no_signature(raw, bucket):
    request = raw.signed("GET", bucket)
    request.headers |= {"X-Amzn-Trace-Id": "Root=1-67891233-abcdef012345678912345678", "amz-sdk-invocation-id": "1"}

    assert raw.send(request).status == 200


def replaced(old, new):
    return lambda value: value.replace(old, new)


AUTHORIZATIONS = {
    "version 2": (lambda _: "AWS K:c2lnbmF0dXJl", 400, "InvalidRequest"),
    "another algorithm": (replaced("AWS4-HMAC-SHA256", "AWS2-HMAC-SHA1"), 400, "InvalidRequest"),
    "asymmetric": (replaced("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), 400, "InvalidRequest"),
    "host unsigned": (replaced("SignedHeaders=content-length;host;", "SignedHeaders=content-length;"), 403,
                      "AccessDenied"),
    "a header that is not there": (replaced("=content-length;", "=accept;content-length;"), 403, "AccessDenied"),
    "date of the scope": (replaced("/20", "/19"), 400, "AuthorizationHeaderMalformed"),
    "service of the scope": (replaced("/s3/", "/sts/"), 400, "AuthorizationHeaderMalformed"),
    "end of the scope": (replaced("aws4_request", "aws2_request"), 400, "AuthorizationHeaderMalformed"),
}


@pytest.mark.esker
@pytest.mark.parametrize("change, status, code", AUTHORIZATIONS.values(), ids=AUTHORIZATIONS.keys())
def test_a_signature_says_and_covers_what_it_must(raw, bucket, change, status, code):
    request = raw.signed("GET", bucket)
    request.headers["Authorization"] = change(request.headers["Authorization"])

    response = raw.send(request)

    assert (response.status, response.error_code()) == (status, code)


@pytest.mark.esker
def test_a_header_and_a_query_that_both_sign_are_refused(raw, bucket, key):
    request = raw.signed("GET", bucket, key)
    request.target = raw.presign("GET", bucket, key, expires_seconds=60)

    assert raw.send(request).error_code() == "InvalidArgument"


HASHED = {
    "get": ("GET", True, [], b""),
    "get with a body": ("GET", True, [], b"a body"),
    "list": ("GET", False, [("list-type", "2")], b""),
    "uploads": ("GET", False, [("uploads", "")], b""),
    "delete": ("DELETE", True, [], b""),
    "put": ("PUT", True, [], b"data"),
    "put nothing": ("PUT", True, [], b""),
    "begin an upload": ("POST", True, [("uploads", "")], b""),
    "begin an upload with a body": ("POST", True, [("uploads", "")], b"a body"),
    "complete an upload": ("POST", True, [("uploadId", "x")],
                           b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part>"
                           b"</CompleteMultipartUpload>"),
    "batch delete": ("POST", False, [("delete", "")], b"<Delete><Object><Key>k</Key></Object></Delete>"),
    "create a bucket": ("PUT", False, [], b'<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>'),
    "create a bucket, no body": ("PUT", False, [], b""),
}


@pytest.mark.esker
@pytest.mark.parametrize("method, of_object, query, body", HASHED.values(), ids=HASHED.keys())
def test_a_payload_unlike_its_hash_is_told_apart(s3, raw, bucket, key, method, of_object, query, body):
    s3.put_object(Bucket=bucket, Key=key, Body=b"before")

    response = raw.send(raw.signed(method, bucket, key if of_object else None, query=query, body=body,
                                   payload_hash="0" * 64))

    assert (response.status, response.error_code()) == (400, "XAmzContentSHA256Mismatch")
    assert body_of(s3, bucket, key) == b"before"


@pytest.mark.esker
def test_a_payload_hash_that_is_none_is_malformed(raw, bucket):
    response = raw.send(raw.signed("GET", bucket, payload_hash="nonsense"))

    assert (response.status, response.error_code()) == (400, "InvalidArgument")


def test_a_batch_delete_signed_by_a_stranger_deletes_nothing(s3, raw, server, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    body = f"<Delete><Object><Key>{key}</Key></Object></Delete>".encode()
    stranger = Credentials(server.access_key, "not the secret")

    response = raw.send(raw.signed("POST", bucket, query=[("delete", "")], body=body, credentials=stranger,
                                   headers={"Content-MD5": content_md5(body)}))

    assert (response.status, response.error_code()) == (403, "SignatureDoesNotMatch")
    assert body_of(s3, bucket, key) == b"x"
