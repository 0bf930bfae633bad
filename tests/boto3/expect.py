"""What tests expect of answers."""

import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager

import pytest
from botocore.exceptions import ClientError


def check_error_body(body):
    """Every S3 error is XML that says what went wrong and which request it was."""
    try:
        error = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        pytest.fail(f"the error is not XML: {body[:200]!r}")
    assert error.tag == "Error", body
    for name in ("Code", "Message", "RequestId"):
        assert error.findtext(name), f"the error has no {name}: {body!r}"


def check_boto3_response(operation_model, response_dict, **_):
    """A hook on every boto3 client of this suite: no internal errors, and well-formed ones otherwise."""
    status = response_dict["status_code"]
    assert status != 500, f"{operation_model.name} answered 500: {response_dict['body']!r}"
    if status >= 400 and operation_model.http["method"] != "HEAD":
        check_error_body(response_dict["body"])


@contextmanager
def refused(status, *codes):
    """The body is answered with this status and one of these codes (a HEAD has no code to look at).

    CompleteMultipartUpload may put its error inside a 200, which botocore reports as a 500 with the error's own code.
    """
    __tracebackhide__ = True
    expected = f"{status} {' or '.join(codes)}".strip()
    try:
        yield
    except ClientError as error:
        got = error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = error.response["Error"]["Code"]
        inside_200 = got == 500 and error.operation_name == "CompleteMultipartUpload"
        head = error.operation_name.startswith("Head")
        if (got != status and not inside_200) or (code not in codes and not head):
            raise AssertionError(f"expected {expected}, got {got} {error}") from None
    else:
        raise AssertionError(f"expected {expected}, got success")


def missing(s3, bucket, key):
    """Whether there is no such object, by name and in listings."""
    with refused(404):
        s3.head_object(Bucket=bucket, Key=key)
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=key).get("Contents", [])
    return key not in [entry["Key"] for entry in listed]


def body_of(s3, bucket, key, **options):
    return s3.get_object(Bucket=bucket, Key=key, **options)["Body"].read()
