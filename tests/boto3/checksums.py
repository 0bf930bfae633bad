"""The checksums S3 knows, as the base64 text that its headers carry."""

import base64
import hashlib
import zlib

CRC32C_POLYNOMIAL = 0x82F63B78
CRC64NVME_POLYNOMIAL = 0x9A6C9329AC4BC9B5


def _table(polynomial):
    """The 256 remainders of a reflected CRC."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (polynomial if value & 1 else 0)
        table.append(value)
    return table


_CRC32C_TABLE = _table(CRC32C_POLYNOMIAL)
_CRC64NVME_TABLE = _table(CRC64NVME_POLYNOMIAL)


def _crc(table, ones, data):
    crc = ones
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ ones


_DIGESTS = {
    "CRC32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "CRC32C": lambda data: _crc(_CRC32C_TABLE, 0xFFFF_FFFF, data).to_bytes(4, "big"),
    "CRC64NVME": lambda data: _crc(_CRC64NVME_TABLE, 0xFFFF_FFFF_FFFF_FFFF, data).to_bytes(8, "big"),
    "SHA1": lambda data: hashlib.sha1(data).digest(),
    "SHA256": lambda data: hashlib.sha256(data).digest(),
}

ALGORITHMS = tuple(_DIGESTS)


def checksum(algorithm, data):
    """The value of `x-amz-checksum-<algorithm>` for `data`. The CRCs C and NVME are plain Python: keep `data` small."""
    return base64.b64encode(_DIGESTS[algorithm](data)).decode()


def composite_checksum(algorithm, parts):
    """The COMPOSITE checksum of a multipart object: the checksum of its parts' checksums, and their number."""
    raw = b"".join(_DIGESTS[algorithm](part) for part in parts)
    return f"{checksum(algorithm, raw)}-{len(parts)}"


def header_name(algorithm):
    return f"x-amz-checksum-{algorithm.lower()}"


def content_md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def etag(data):
    """The quoted ETag of an object stored by one PUT."""
    return f'"{hashlib.md5(data).hexdigest()}"'


def multipart_etag(parts):
    """The quoted ETag of an object completed from `parts`: the MD5 of their MD5s, and their number."""
    md5s = b"".join(hashlib.md5(part).digest() for part in parts)
    return f'"{hashlib.md5(md5s).hexdigest()}-{len(parts)}"'
