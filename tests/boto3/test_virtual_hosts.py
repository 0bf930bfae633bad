"""Buckets in host names, behind a wildcard certificate, as a client's default addressing has it."""

import contextlib
import os
import shutil
import socket
import subprocess
import urllib.request
import ssl
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config

from conftest import REGION, TIMEOUTS
from test_restart import Daemon

DOMAIN = "s3.esker.test"


@pytest.fixture
def virtual(tmp_path, monkeypatch):
    """A client that puts buckets into host names, the file that it trusts, and a bucket."""
    if "ESKER_BIN" not in os.environ:
        pytest.skip("ESKER_BIN names no daemon to start")
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes the certificate, is missing")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", key, "-out", cert, "-days", "2", "-subj", f"/CN={DOMAIN}",
                    "-addext", f"subjectAltName=DNS:{DOMAIN},DNS:*.{DOMAIN}"], check=True, capture_output=True)
    daemon = Daemon(tmp_path, {"ESKER__TLS__CERT": str(cert), "ESKER__TLS__KEY": str(key),
                               "ESKER__SERVER__VIRTUAL_HOST_DOMAINS": DOMAIN})
    server = daemon.start_server()
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **options: resolve(
        "127.0.0.1" if str(host).endswith(DOMAIN) else host, *more, **options))
    client = boto3.client(
        "s3", endpoint_url=f"https://{DOMAIN}:{urlsplit(server.endpoint).port}", region_name=REGION, verify=str(cert),
        aws_access_key_id=server.access_key, aws_secret_access_key=server.secret_key,
        config=Config(**TIMEOUTS, signature_version="s3v4", s3={"addressing_style": "virtual"}))
    hosts = []
    client.meta.events.register("before-send.s3", lambda request, **_: hosts.append(urlsplit(request.url).hostname))
    yield client, cert, server.bucket, hosts
    with contextlib.suppress(ProcessLookupError):
        daemon.stop(kill=True)


@pytest.mark.esker
def test_everything_works_with_the_bucket_in_the_host(virtual):
    s3, cert, bucket, hosts = virtual
    s3.put_object(Bucket=bucket, Key="a//b c+d", Body=b"data")
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "a//b c+d"})
    s3.create_bucket(Bucket="another-bucket")

    assert s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == b"data"
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["a//b c+d", "copy"]
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "copy"}, ExpiresIn=60)
    trusting = ssl.create_default_context(cafile=cert)
    with urllib.request.urlopen(url, context=trusting, timeout=30) as answer:
        assert answer.read() == b"data"
    upload = s3.create_multipart_upload(Bucket=bucket, Key="large")["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key="large", UploadId=upload, PartNumber=1, Body=b"x" * 1000)
    s3.complete_multipart_upload(Bucket=bucket, Key="large", UploadId=upload,
                                 MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in ("a//b c+d", "copy", "large")]})
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    assert {f"{bucket}.{DOMAIN}", f"another-bucket.{DOMAIN}"} <= set(hosts)
