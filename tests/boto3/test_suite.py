"""The suite's own signer and checksums against published examples, so that a refusal is the server's doing."""

from datetime import datetime, timezone

import pytest

from checksums import checksum
from sigv4 import Credentials, Signer

# From the S3 documentation, "Signature Calculations for the Authorization Header: Transferring Payload in Multiple
# Chunks".
EXAMPLE = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
EXAMPLE_TIME = datetime(2013, 5, 24, tzinfo=timezone.utc)
CHUNK_BYTES = 65_536
TAIL_BYTES = 1024


def test_signed_chunks_match_the_published_example():
    signer = Signer(EXAMPLE, EXAMPLE_TIME)
    headers = {
        "Host": "s3.amazonaws.com",
        "x-amz-date": "20130524T000000Z",
        "x-amz-storage-class": "REDUCED_REDUNDANCY",
        "x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        "Content-Encoding": "aws-chunked",
        "x-amz-decoded-content-length": "66560",
        "Content-Length": "66824",
    }

    seed = signer.sign("PUT", "/examplebucket/chunkObject.txt", [], headers, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
    chunks = [signer.sign_chunk(b"a" * size) for size in (CHUNK_BYTES, TAIL_BYTES, 0)]

    assert seed == "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
    assert chunks == [
        "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
    ]


@pytest.mark.parametrize("algorithm, value", [
    ("CRC32", "y/Q5Jg=="), ("CRC32C", "4waSgw=="), ("CRC64NVME", "rosUhgp5mIg="),
    ("SHA1", "98O8HYCOBHMq32eZZczDTKeuNEE="), ("SHA256", "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
])
def test_checksums_of_the_nine_digits(algorithm, value):
    assert checksum(algorithm, b"123456789") == value
