"""Signed S3 requests over a plain socket, open to changes between signing and sending."""

import hashlib
import http.client
import socket
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from expect import check_error_body
from sigv4 import UNSIGNED_PAYLOAD, Credentials, Signer, canonical_query, uri_encode

TIMEOUT_SECONDS = 20
SIGNED_CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_CHUNKS_AND_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_CHUNKS_AND_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


@dataclass
class Request:
    method: str
    target: str
    headers: dict
    body: bytes = b""

    def head(self):
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{n}: {v}" for n, v in self.headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass
class Response:
    status: int
    headers: dict = field(repr=False)
    body: bytes

    def error_code(self):
        return ElementTree.fromstring(self.body).findtext("Code")


class RawClient:
    def __init__(self, endpoint, access_key, secret_key, region="us-east-1"):
        parts = urlsplit(endpoint)
        self.host, self.port = parts.hostname, parts.port or 80
        self.credentials = Credentials(access_key, secret_key, region)

    def signed(self, method, bucket="", key=None, *, query=(), headers=None, body=b"", payload_hash=None,
               when=None, credentials=None):
        """A signed request, body in one piece. `payload_hash` defaults to the body's SHA-256."""
        payload_hash = payload_hash or hashlib.sha256(body).hexdigest()
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        signer = Signer(credentials or self.credentials, when)
        return self._sign(signer, method, bucket, key, query, headers, body, payload_hash)

    def put_in_chunks(self, bucket, key, data, *, trailer=None, headers=None, chunk_bytes=64 * 1024, query=(),
                      http_chunked=False, signed=True):
        """A PUT with an aws-chunked body, as the JVM SDKs (signed) and aws-sdk-cpp (unsigned) send it.

        `trailer` is a pair (header name, value) that follows the data.
        """
        payload_hash = _streaming_payload_hash(signed, trailer)
        chunks = [data[at:at + chunk_bytes] for at in range(0, len(data), chunk_bytes)] + [b""]
        headers = {
            "Content-Encoding": "aws-chunked",
            "x-amz-decoded-content-length": str(len(data)),
            **({"x-amz-trailer": trailer[0]} if trailer else {}),
            **(headers or {}),
        }
        length = _encoded_length(chunks, signed, trailer)
        headers |= {"Transfer-Encoding": "chunked"} if http_chunked else {"Content-Length": str(length)}
        signer = Signer(self.credentials)
        request = self._sign(signer, "PUT", bucket, key, query, headers, b"", payload_hash)
        body = _encode_chunks(chunks, signer if signed else None, trailer)
        assert len(body) == length
        request.body = _http_chunks(body) if http_chunked else body
        return request

    def presign(self, method, bucket, key, *, expires_seconds, when=None, query=()):
        """The target (path and query) of a presigned URL."""
        signer = Signer(self.credentials, when)
        path = _path(bucket, key)
        query = [
            *query,
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Credential", f"{self.credentials.access_key}/{signer.scope}"),
            ("X-Amz-Date", signer.timestamp),
            ("X-Amz-Expires", str(expires_seconds)),
            ("X-Amz-SignedHeaders", "host"),
        ]
        signature = signer.sign(method, path, query, {"Host": self._host_header()}, UNSIGNED_PAYLOAD)
        return f"{path}?{canonical_query(query)}&X-Amz-Signature={signature}"

    def unsigned(self, method, target, headers=None, body=b""):
        headers = {"Host": self._host_header(), "Content-Length": str(len(body)), **(headers or {}),
                   "Connection": "close"}
        return Request(method, target, headers, body)

    def send(self, request):
        with closing(self.connect()) as connection:
            try:
                connection.sendall(request.head() + request.body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # The server answered before it had the whole body.
            return self.receive(connection, request.method)

    def receive(self, connection, method):
        """The final response; interim ones are skipped."""
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        body = response.read()
        if response.status >= 400 and method != "HEAD":
            check_error_body(body)
        return Response(response.status, {n.lower(): v for n, v in response.getheaders()}, body)

    def send_and_break_off(self, request, body_bytes):
        """Sends the head and the first `body_bytes` of the body, hangs up, and waits until the server has noticed."""
        with closing(self.connect()) as connection:
            connection.sendall(request.head() + request.body[:body_bytes])
            connection.shutdown(socket.SHUT_WR)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass

    def connect(self):
        return socket.create_connection((self.host, self.port), timeout=TIMEOUT_SECONDS)

    def _host_header(self):
        return f"{self.host}:{self.port}"

    def _sign(self, signer, method, bucket, key, query, headers, body, payload_hash):
        path = _path(bucket, key)
        headers = {"Host": self._host_header(), **headers, "x-amz-date": signer.timestamp,
                   "x-amz-content-sha256": payload_hash}
        headers["Authorization"] = signer.authorization(method, path, query, headers, payload_hash)
        headers["Connection"] = "close"
        target = f"{path}?{canonical_query(query)}" if query else path
        return Request(method, target, headers, body)


def _path(bucket, key):
    path = f"/{bucket}" if bucket else "/"
    return path if key is None else f"{path}/{uri_encode(key, safe='/')}"


def _streaming_payload_hash(signed, trailer):
    if not signed:
        return UNSIGNED_CHUNKS_AND_TRAILER
    return SIGNED_CHUNKS_AND_TRAILER if trailer else SIGNED_CHUNKS


def _encode_chunks(chunks, signer, trailer):
    """`chunks` ends with an empty one, which is followed by the trailer instead of data."""
    encoded = bytearray()
    for chunk in chunks:
        extension = f";chunk-signature={signer.sign_chunk(chunk)}" if signer else ""
        encoded += f"{len(chunk):x}{extension}\r\n".encode()
        if chunk:
            encoded += chunk + b"\r\n"
    if trailer:
        name, value = trailer
        encoded += f"{name}:{value}\r\n".encode()
        if signer:
            signature = signer.sign_trailer(f"{name}:{value}\n")
            encoded += f"x-amz-trailer-signature:{signature}\r\n".encode()
    return bytes(encoded + b"\r\n")


def _encoded_length(chunks, signed, trailer):
    """Known before anything is signed, because Content-Length is itself signed."""
    stand_in = Signer(Credentials("", ""))
    stand_in.last_signature = ""
    return len(_encode_chunks(chunks, stand_in if signed else None, trailer))


def _http_chunks(body):
    return f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
