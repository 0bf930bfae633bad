"""Just enough of an S3 client to make a bucket, to list one, to read objects, and to sign other requests."""

import datetime
import hashlib
import hmac
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

REGION = "us-east-1"
_EMPTY = hashlib.sha256(b"").hexdigest()


@dataclass
class Client:
    endpoint: str
    access_key: str
    secret_key: str

    def make_bucket(self, bucket):
        self._send("PUT", f"/{bucket}", {})

    def sizes(self, bucket, prefix=""):
        """The size of every object, by key."""
        found = {}
        query = {"list-type": "2", "prefix": prefix}
        while True:
            page = ElementTree.fromstring(self._send("GET", f"/{bucket}", query))
            for entry in page.iterfind("{*}Contents"):
                found[entry.findtext("{*}Key")] = int(entry.findtext("{*}Size"))
            token = page.findtext("{*}NextContinuationToken")
            if not token:
                return found
            query["continuation-token"] = token

    def read(self, bucket, key):
        return self._send("GET", f"/{bucket}/{urllib.parse.quote(key, safe='/-_.~')}", {})

    def uploads(self, bucket, prefix=""):
        """The keys of multipart uploads that were begun and neither completed nor aborted: a thousand at most."""
        page = ElementTree.fromstring(self._send("GET", f"/{bucket}", {"uploads": "", "prefix": prefix}))
        return [entry.findtext("{*}Key") for entry in page.iterfind("{*}Upload")]

    def signed(self, method, path, query="", payload="UNSIGNED-PAYLOAD"):
        """The headers of a request, of a body that is not signed unless its hash is given."""
        host = urllib.parse.urlsplit(self.endpoint).netloc
        time = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        headers = {"host": host, "x-amz-content-sha256": payload, "x-amz-date": time}
        headers["Authorization"] = self._authorization(method, path, query, headers, time)
        return headers

    def _send(self, method, path, query):
        encoded = urllib.parse.urlencode(sorted(query.items()), quote_via=urllib.parse.quote, safe="-_.~")
        headers = self.signed(method, path, encoded, _EMPTY)
        request = urllib.request.Request(f"{self.endpoint}{path}?{encoded}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read()

    def _authorization(self, method, path, query, headers, time):
        """An AWS Signature Version 4 over all headers."""
        names = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        request = "\n".join([method, path, query, lines, names, headers["x-amz-content-sha256"]])
        scope = f"{time[:8]}/{REGION}/s3/aws4_request"
        digest = hashlib.sha256(request.encode()).hexdigest()
        key = f"AWS4{self.secret_key}".encode()
        for part in [*scope.split("/"), f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}"]:
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return (f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, "
                f"SignedHeaders={names}, Signature={key.hex()}")
