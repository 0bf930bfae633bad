"""Fixtures: the server under test, boto3 clients for it, and a place of its own for every test."""

import os
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import boto3
import pytest
from botocore.config import Config

from expect import check_boto3_response
from rawhttp import RawClient

REGION = "us-east-1"
# One attempt, so that tests see every answer, and patience for a server in a debug build.
SINGLE_ATTEMPT = {"total_max_attempts": 1, "mode": "standard"}
TIMEOUTS = {"connect_timeout": 5, "read_timeout": 30}


@dataclass(frozen=True)
class Server:
    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    api: str | None

    def client(self, *, access_key=None, secret_key=None, **config):
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=access_key or self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            config=Config(**TIMEOUTS, **config),
        )
        client.meta.events.register_first("before-parse.s3", check_boto3_response)
        return client


def pytest_collection_modifyitems(items):
    if "ESKER_API" in os.environ:
        return
    for item in items:
        if item.get_closest_marker("esker"):
            item.add_marker(pytest.mark.skip(reason="Esker's own contract"))


@pytest.fixture(scope="session")
def server():
    return Server(
        endpoint=os.environ["ESKER_S3_ENDPOINT"],
        access_key=os.environ["ESKER_S3_ACCESS"],
        secret_key=os.environ["ESKER_S3_SECRET"],
        bucket=os.environ["ESKER_S3_BUCKET"],
        api=os.environ.get("ESKER_API"),
    )


@pytest.fixture(scope="session")
def s3(server):
    return server.client(retries=SINGLE_ATTEMPT, max_pool_connections=32, signature_version="s3v4")


@pytest.fixture(scope="session")
def stock_s3(server):
    """boto3 as it comes, retries included; only the pool is large enough for the tests' threads."""
    return server.client(max_pool_connections=64)


@pytest.fixture(scope="session")
def raw(server):
    return RawClient(server.endpoint, server.access_key, server.secret_key, REGION)


@pytest.fixture(scope="session")
def bucket(server, s3):
    existing = [entry["Name"] for entry in s3.list_buckets()["Buckets"]]
    if server.bucket not in existing:
        s3.create_bucket(Bucket=server.bucket)
    return server.bucket


@pytest.fixture
def prefix(request):
    """A directory that no other test uses. What it holds stays, for `esker verify` to read."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    return f"conformance/{name}-{uuid.uuid4().hex[:12]}/"


@pytest.fixture
def key(prefix):
    return prefix + "object"


def bucket_name():
    return f"esker-conformance-{uuid.uuid4().hex[:16]}"


@pytest.fixture
def new_bucket(s3):
    """An empty bucket that is removed after the test with all it holds."""
    name = bucket_name()
    s3.create_bucket(Bucket=name)
    yield name
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=name):
        for entry in page.get("Contents", []):
            s3.delete_object(Bucket=name, Key=entry["Key"])
    s3.delete_bucket(Bucket=name)


@pytest.fixture
def multipart(s3, bucket, key):
    """The id of a multipart upload to `key`, aborted after the test if it is still there."""
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    yield upload
    left = s3.list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", [])
    if upload in [entry["UploadId"] for entry in left]:
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)


def in_threads(count, work, items):
    """`work(item)` for every item, at most `count` at a time, results in the order of the items."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, items))
