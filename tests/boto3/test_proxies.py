"""Behind nginx: signatures hold where it passes requests on as they are, and the refusal says what it changed where not."""

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from conftest import SINGLE_ATTEMPT

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
START_SECONDS = 30
AS_IT_IS = "proxy_pass http://{upstream}; proxy_set_header Host $http_host;"
HTTP11 = 'proxy_http_version 1.1; proxy_set_header Connection "";'
GOOD = {
    "plain": AS_IT_IS + HTTP11,
    "unbuffered": AS_IT_IS + HTTP11 + "proxy_buffering off; proxy_request_buffering off;",
    "http 1.0": AS_IT_IS,
}
# nginx puts the upstream's name into Host, and passes a path on as it reads it when proxy_pass has one.
HOST = "proxy_pass http://{upstream};" + HTTP11
HOST_TOLD = HOST + "proxy_set_header X-Forwarded-Host $http_host;"
PORT = "proxy_pass http://{upstream}; proxy_set_header Host $host; proxy_set_header X-Forwarded-Port $server_port;" + HTTP11
PATH = "proxy_pass http://{upstream}/; proxy_set_header Host $http_host;" + HTTP11
ALL = {**GOOD, "host": HOST, "host told": HOST_TOLD, "port": PORT, "path": PATH}
KEYS = ["plain", "a//b", "a b+c", "%2F/ü", "dir/", "a%20b", "q?x=y&z"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def proxies(server, tmp_path_factory):
    """The endpoint of each proxy, by its name in `ALL`."""
    if NGINX is None:
        pytest.skip("nginx is missing (Debian: apt-get install nginx-light)")
    folder = tmp_path_factory.mktemp("nginx")
    ports = {name: free_port() for name in ALL}
    servers = "".join(
        f"server {{ listen 127.0.0.1:{ports[name]}; client_max_body_size 0; location / {{"
        + text.format(upstream=urlsplit(server.endpoint).netloc) + "} }\n"
        for name, text in ALL.items())
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in
                        ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = folder / "nginx.conf"
    config.write_text(f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n"
                      f"events {{ }}\nhttp {{ access_log off; {temporary}\n{servers} }}\n")
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(config)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + START_SECONDS
    for port in ports.values():
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"nginx did not start: {process.stderr.read().decode()}")
            time.sleep(0.05)
    yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    process.terminate()
    process.wait(START_SECONDS)


def client(server, endpoint):
    through = dataclasses.replace(server, endpoint=endpoint)
    return through.client(retries=SINGLE_ATTEMPT, signature_version="s3v4")


@pytest.mark.parametrize("how", GOOD)
def test_signatures_hold_where_requests_pass_as_they_are(server, proxies, bucket, prefix, how):
    s3 = client(server, proxies[how])
    for name in KEYS:
        s3.put_object(Bucket=bucket, Key=prefix + name, Body=name.encode(), Metadata={"k": "v 1"})
    for name in KEYS:
        assert s3.get_object(Bucket=bucket, Key=prefix + name)["Body"].read() == name.encode()
        url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": prefix + name}, ExpiresIn=60)
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.read() == name.encode()

    listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    assert [entry["Key"] for entry in listed] == sorted(prefix + name for name in KEYS)
    s3.copy_object(Bucket=bucket, Key=prefix + "copy", CopySource={"Bucket": bucket, "Key": prefix + "a b+c"})
    gone = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": prefix + name} for name in KEYS]})
    assert len(gone["Deleted"]) == len(KEYS) and "Errors" not in gone


@pytest.mark.parametrize("how", GOOD)
def test_large_bodies_pass_both_ways(server, proxies, bucket, key, how):
    s3 = client(server, proxies[how])
    body = os.urandom(1 << 20) * 12
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    parts = [{"PartNumber": number, "ETag": s3.upload_part(
        Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body[at:at + (6 << 20)])["ETag"]}
        for number, at in ((1, 0), (2, 6 << 20))]
    s3.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})

    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body
    assert s3.get_object(Bucket=bucket, Key=key, Range="bytes=5000000-5000009")["Body"].read() == body[5000000:5000010]


def mismatch(call, **options):
    with pytest.raises(ClientError) as refused:
        call(**options)
    error = refused.value.response["Error"]
    assert error["Code"] == "SignatureDoesNotMatch"
    return error["Message"]


@pytest.mark.esker
def test_a_changed_host_is_named(server, proxies, bucket, key):
    for how in ("host told", "port"):
        told = mismatch(client(server, proxies[how]).put_object, Bucket=bucket, Key=key, Body=b"x")
        assert f'the signature is for the host "{urlsplit(proxies[how]).netloc}"' in told, told
        assert "proxy_set_header Host $http_host" in told
    # Nobody says which host it was.
    told = mismatch(client(server, proxies["host"]).put_object, Bucket=bucket, Key=key, Body=b"x")
    assert "host or path were changed on the way" in told and urlsplit(server.endpoint).netloc in told, told


@pytest.mark.esker
def test_a_changed_path_is_named(server, proxies, bucket, prefix):
    s3 = client(server, proxies["path"])
    s3.put_object(Bucket=bucket, Key=prefix + "plain", Body=b"x")
    told = mismatch(s3.put_object, Bucket=bucket, Key=prefix + "a//b", Body=b"x")

    assert f'the signature is for the path "/{bucket}/{prefix}a//b"' in told, told
    assert "merge_slashes off" in told
