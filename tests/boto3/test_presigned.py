"""Presigned URLs: made by boto3, or by our own signer where the clock or the signature must be wrong."""

import urllib.error
import urllib.request
from datetime import datetime, timedelta, timezone

import pytest

from expect import body_of, check_error_body, missing
from rawhttp import TIMEOUT_SECONDS

DATA = b"shared with whoever has the link"


@pytest.fixture
def stored(s3, bucket, key):
    s3.put_object(Bucket=bucket, Key=key, Body=DATA, ContentType="text/plain")
    return key


def fetch(url, method="GET", body=None, headers=None):
    """Status, headers and body, as any HTTP client gets them that knows nothing of S3."""
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_presigned_get(s3, bucket, stored):
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": stored}, ExpiresIn=60)

    status, headers, body = fetch(url)

    assert (status, body) == (200, DATA)
    assert headers["Content-Type"] == "text/plain"


def test_presigned_get_of_an_odd_key_with_a_range(s3, bucket, prefix):
    key = prefix + "a b+ü?&=%2F"
    s3.put_object(Bucket=bucket, Key=key, Body=DATA)
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})

    status, _, body = fetch(url, headers={"Range": "bytes=7-10"})

    assert (status, body) == (206, DATA[7:11])


def test_presigned_get_with_response_headers(s3, bucket, stored):
    url = s3.generate_presigned_url("get_object", Params={
        "Bucket": bucket, "Key": stored, "ResponseContentType": "text/csv",
        "ResponseContentDisposition": 'attachment; filename="a b.csv"'})

    status, headers, _ = fetch(url)

    assert status == 200
    assert headers["Content-Type"] == "text/csv"
    assert headers["Content-Disposition"] == 'attachment; filename="a b.csv"'


def test_presigned_put_head_and_delete(s3, bucket, key):
    where = {"Bucket": bucket, "Key": key}

    assert fetch(s3.generate_presigned_url("put_object", Params=where), "PUT", DATA)[0] == 200
    assert body_of(s3, bucket, key) == DATA
    status, headers, _ = fetch(s3.generate_presigned_url("head_object", Params=where), "HEAD")
    assert (status, headers["Content-Length"]) == (200, str(len(DATA)))
    assert fetch(s3.generate_presigned_url("delete_object", Params=where), "DELETE")[0] == 204
    assert missing(s3, bucket, key)


def test_a_presigned_url_is_for_its_method_only(s3, bucket, stored):
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": stored})

    status, _, body = fetch(url, "PUT", b"overwritten")

    assert status == 403
    check_error_body(body)
    assert body_of(s3, bucket, stored) == DATA


def test_a_presigned_url_is_for_its_key_only(s3, bucket, stored):
    s3.put_object(Bucket=bucket, Key=stored + "2", Body=DATA)
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": stored})

    status, _, body = fetch(url.replace("?", "2?", 1))

    assert status == 403
    assert b"<Code>SignatureDoesNotMatch</Code>" in body


def test_a_presigned_url_works_until_it_expires(raw, bucket, stored):
    started = datetime.now(timezone.utc) - timedelta(hours=2)
    valid = raw.presign("GET", bucket, stored, expires_seconds=3 * 3600, when=started)
    expired = raw.presign("GET", bucket, stored, expires_seconds=3600, when=started)

    assert raw.send(raw.unsigned("GET", valid)).body == DATA
    response = raw.send(raw.unsigned("GET", expired))
    assert (response.status, response.error_code()) == (403, "AccessDenied")


def test_a_presigned_url_lives_a_week_at_most(raw, bucket, stored):
    too_long = raw.presign("GET", bucket, stored, expires_seconds=604_801)

    response = raw.send(raw.unsigned("GET", too_long))

    assert (response.status, response.error_code()) == (400, "AuthorizationQueryParametersError")


def test_a_tampered_presigned_url_is_refused(raw, bucket, stored):
    target = raw.presign("GET", bucket, stored, expires_seconds=60)

    longer = raw.send(raw.unsigned("GET", target.replace("Expires=60", "Expires=6000")))
    more = raw.send(raw.unsigned("GET", target + "&response-content-type=text/html"))

    assert (longer.status, longer.error_code()) == (403, "SignatureDoesNotMatch")
    assert (more.status, more.error_code()) == (403, "SignatureDoesNotMatch")


PRESIGNED = {
    "another algorithm": ("AWS4-HMAC-SHA256", "AWS2-HMAC-SHA1", "InvalidRequest"),
    "host unsigned": ("SignedHeaders=host", "SignedHeaders=accept-encoding", "AccessDenied"),
    "a header that is not there": ("SignedHeaders=host", "SignedHeaders=host%3Bx-amz-acl", "AccessDenied"),
    "date of the scope": ("%2F20", "%2F19", "AuthorizationQueryParametersError"),
    "service of the scope": ("%2Fs3%2F", "%2Fsts%2F", "AuthorizationQueryParametersError"),
    "date": ("X-Amz-Date=20", "X-Amz-Date=x20", "AuthorizationQueryParametersError"),
    "no life": ("X-Amz-Expires=60", "X-Amz-Expires=0", "AuthorizationQueryParametersError"),
    "no date": ("X-Amz-Date=", "X-Amz-Dat=", "AuthorizationQueryParametersError"),
    "twice": ("X-Amz-Expires=60", "X-Amz-Expires=60&%58-Amz-Expires=60", "AuthorizationQueryParametersError"),
}


@pytest.mark.esker
@pytest.mark.parametrize("old, new, code", PRESIGNED.values(), ids=PRESIGNED.keys())
def test_a_presigned_url_says_and_covers_what_it_must(raw, bucket, stored, old, new, code):
    target = raw.presign("GET", bucket, stored, expires_seconds=60)
    assert old in target

    response = raw.send(raw.unsigned("GET", target.replace(old, new)))

    assert (response.status, response.error_code()) == (403 if code == "AccessDenied" else 400, code)


@pytest.mark.esker
def test_the_signature_version_2_that_boto3_presigns_by_default_is_refused_clearly(stock_s3, bucket, stored):
    url = stock_s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": stored})

    status, _, body = fetch(url)

    assert status == 400
    assert b"AWS4-HMAC-SHA256" in body
    check_error_body(body)
