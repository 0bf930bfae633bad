"""An S3 client of ours, over http.client alone. It looks beside each client at what the client has done."""

import datetime
import hashlib
import hmac
import http.client
import re
import urllib.parse
import xml.etree.ElementTree as ElementTree

REGION = "us-east-1"
TIMEOUT_SECONDS = 60


class Refused(Exception):
    def __init__(self, status, body):
        code = re.search(rb"<Code>(\w+)</Code>", body)
        self.status, self.code = status, code[1].decode() if code else ""
        super().__init__(f"{status} {body[:300]!r}")


class Referee:
    """Not for several threads at once: it has one connection."""

    def __init__(self, endpoint, access_key, secret_key):
        self.host = urllib.parse.urlsplit(endpoint).netloc
        self.access_key, self.secret_key = access_key, secret_key
        self._connection = None

    def make_bucket(self, bucket):
        self._send("PUT", f"/{bucket}")

    def put(self, bucket, key, body):
        _, headers = self._send("PUT", _path(bucket, key), body=body)
        return headers["etag"].strip('"')

    def get(self, bucket, key):
        """The object's bytes and entity tag; `None` if it is not there."""
        try:
            body, headers = self._send("GET", _path(bucket, key))
        except Refused as refused:
            if refused.status == 404:
                return None
            raise
        return body, headers["etag"].strip('"')

    def keys(self, bucket, prefix=""):
        keys, query = [], {"list-type": "2", "prefix": prefix, "encoding-type": "url"}
        while True:
            page = ElementTree.fromstring(self._send("GET", f"/{bucket}", query)[0])
            keys += [urllib.parse.unquote_plus(entry.findtext("{*}Key")) for entry in page.iterfind("{*}Contents")]
            token = page.findtext("{*}NextContinuationToken")
            if not token:
                return keys
            query["continuation-token"] = token

    def begin_upload(self, bucket, key, part):
        """Begins a multipart upload, with one part, that nobody goes on with."""
        begun = ElementTree.fromstring(self._send("POST", _path(bucket, key), {"uploads": ""})[0])
        upload = begun.findtext("{*}UploadId")
        self._send("PUT", _path(bucket, key), {"partNumber": "1", "uploadId": upload}, part)
        return upload

    def uploads(self, bucket):
        """Key and id of each multipart upload that was begun and neither completed nor aborted."""
        page = ElementTree.fromstring(self._send("GET", f"/{bucket}", {"uploads": ""})[0])
        return [(entry.findtext("{*}Key"), entry.findtext("{*}UploadId")) for entry in page.iterfind("{*}Upload")]

    def abort_all(self, bucket):
        for key, upload in self.uploads(bucket):
            self._send("DELETE", _path(bucket, key), {"uploadId": upload})

    def _send(self, method, path, query=None, body=b""):
        encoded = urllib.parse.urlencode(sorted((query or {}).items()), quote_via=urllib.parse.quote, safe="-_.~")
        headers = self._signed(method, path, encoded, hashlib.sha256(body).hexdigest())
        for attempt in range(2):
            try:
                connection = self._connection or http.client.HTTPConnection(self.host, timeout=TIMEOUT_SECONDS)
                self._connection = None
                connection.request(method, f"{path}?{encoded}", body, headers)
                response = connection.getresponse()
                answer = response.read()
                break
            except (ConnectionError, http.client.HTTPException):
                # The door closes a connection that idled while a client was at work.
                if attempt:
                    raise
        self._connection = connection
        if response.status >= 300:
            raise Refused(response.status, answer)
        return answer, {name.lower(): value for name, value in response.getheaders()}

    def _signed(self, method, path, query, payload):
        """The headers of a request with an AWS Signature Version 4."""
        time = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        headers = {"host": self.host, "x-amz-content-sha256": payload, "x-amz-date": time}
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        request = "\n".join([method, path, query, lines, ";".join(headers), payload])
        scope = f"{time[:8]}/{REGION}/s3/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        key = f"AWS4{self.secret_key}".encode()
        for part in [*scope.split("/"), f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}"]:
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        headers["Authorization"] = (f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, "
                                    f"SignedHeaders={';'.join(headers)}, Signature={key.hex()}")
        del headers["host"]  # http.client sends it.
        return headers


def _path(bucket, key):
    return f"/{bucket}/{urllib.parse.quote(key, safe='/-_.~')}"
