"""Checksums: against known values, and against a loop too simple to be wrong."""

import random

import pytest

from esker import crc32c as module
from esker.crc32c import crc32c


def simple(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_known_values(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected
    assert module._extend_in_python(0, data) == expected


@pytest.mark.parametrize("length", [1, 95, 706, 707, 708, 1413, 5634, 5635, 5636, 45059, 45060, 50000])
def test_lengths_at_which_pieces_begin_and_end(length: int) -> None:
    data = random.Random(length).randbytes(length)

    assert module._extend_in_python(0, data) == simple(data)


def test_pieces_of_all_lengths_one_after_the_other() -> None:
    data = random.Random(7).randbytes(400_000)
    whole = 0
    for begin, end in ((0, 1), (1, 9_000), (9_000, 9_000), (9_000, 370_000), (370_000, 400_000)):
        whole = module._extend_in_python(whole, memoryview(data)[begin:end])

    assert whole == module._extend_in_python(0, data)
    assert whole == module._loop(0xFFFFFFFF, data) ^ 0xFFFFFFFF
