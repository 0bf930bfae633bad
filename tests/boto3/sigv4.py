"""AWS Signature Version 4, written from its specification.

boto3 signs most requests of this suite. This signer is for what boto3 cannot be made to send: the signed chunks of
the JVM clients, clocks that are wrong, and requests that are changed after they were signed.
"""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime, timezone
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def uri_encode(text, safe=""):
    return quote(text, safe="-_.~" + safe)


def canonical_query(query):
    """`query` is a list of pairs; a flag such as `?delete` is the pair `("delete", "")`."""
    encoded = sorted((uri_encode(name), uri_encode(value)) for name, value in query)
    return "&".join(f"{name}={value}" for name, value in encoded)


def _hmac(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def _sha256(data):
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Credentials:
    access_key: str
    secret_key: str
    region: str = "us-east-1"


class Signer:
    """Signs one request, and the chunks of its body if it has any, at one moment."""

    def __init__(self, credentials, when=None):
        self.credentials = credentials
        when = when or datetime.now(timezone.utc)
        self.timestamp = when.strftime("%Y%m%dT%H%M%SZ")
        day = self.timestamp[:8]
        self.scope = f"{day}/{credentials.region}/s3/aws4_request"
        key = f"AWS4{credentials.secret_key}".encode()
        for step in (day, credentials.region, "s3", "aws4_request"):
            key = _hmac(key, step)
        self._key = key
        self.last_signature = None

    def sign(self, method, path, query, headers, payload_hash):
        """The hex signature. `path` is encoded already; every header of `headers` is signed."""
        names = sorted(name.lower() for name in headers)
        values = {name.lower(): " ".join(str(value).split()) for name, value in headers.items()}
        canonical = "\n".join([
            method,
            path,
            canonical_query(query),
            *(f"{name}:{values[name]}" for name in names),
            "",
            ";".join(names),
            payload_hash,
        ])
        return self._sign_text(ALGORITHM, _sha256(canonical.encode()))

    def authorization(self, method, path, query, headers, payload_hash):
        """The Authorization header's value."""
        signature = self.sign(method, path, query, headers, payload_hash)
        names = ";".join(sorted(name.lower() for name in headers))
        credential = f"{self.credentials.access_key}/{self.scope}"
        return f"{ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}"

    def sign_chunk(self, data):
        """The signature of the next chunk of a streamed body; it chains onto the one before it."""
        return self._sign_text(f"{ALGORITHM}-PAYLOAD", self.last_signature, EMPTY_SHA256, _sha256(data))

    def sign_trailer(self, trailer):
        """The signature of `trailer`, a `name:value` line with its newline."""
        return self._sign_text(f"{ALGORITHM}-TRAILER", self.last_signature, _sha256(trailer.encode()))

    def _sign_text(self, algorithm, *lines):
        text = "\n".join([algorithm, self.timestamp, self.scope, *lines])
        self.last_signature = _hmac(self._key, text).hex()
        return self.last_signature
