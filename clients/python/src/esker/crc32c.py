"""CRC-32C, with which Esker checks every segment.

The standard library has no CRC-32C, and a loop over bytes makes 10 MB a second. A CRC is linear, so a piece is folded
instead: seven eighths of it, carried over to the last eighth by ``bytes.translate``, are added to that, until a few
bytes are left for the loop. That makes 50 to 100 MB a second. If ``google_crc32c`` is installed, it is used.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Callable, Union

Buffer = Union[bytes, bytearray, memoryview]

_POLYNOMIAL = 0x82F63B78
#: Of so many parts of a piece the last one is left by a fold. More save work at the ints, and take more tables.
_FOLDS = 8
#: Lengths of the pieces that are folded, longest first. A fold leaves the next length, so that few tables do for all data;
#: what is left of the shortest one, and data that is shorter, is for the loop.
_PIECES_BYTES = (360451, 45059, 5635, 707)


def _table() -> list[int]:
    entries = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        entries.append(value)
    return entries


_TABLE = _table()


def _loop(register: int, data: bytes) -> int:
    for byte in data:
        register = _TABLE[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register


@lru_cache(maxsize=None)
def _carry_tables(distance: int) -> tuple[bytes, ...]:
    """What a byte becomes that is carried over ``distance`` zero bytes: the four bytes of the register, lowest first."""
    # A register that is carried over n bytes, for each of its 32 bits, by squaring: over 1 byte, 2, 4, ..
    matrix = [_loop(1 << bit, b"\0") for bit in range(32)]
    total = [1 << bit for bit in range(32)]
    left = distance
    while left:
        if left & 1:
            total = [_apply(matrix, column) for column in total]
        matrix = [_apply(matrix, column) for column in matrix]
        left >>= 1
    values = [0] * 256
    for value in range(1, 256):
        lowest = value & -value
        values[value] = values[value ^ lowest] ^ total[lowest.bit_length() - 1]
    return tuple(bytes((value >> shift) & 0xFF for value in values) for shift in (0, 8, 16, 24))


def _apply(matrix: list[int], vector: int) -> int:
    result = 0
    while vector:
        lowest = vector & -vector
        result ^= matrix[lowest.bit_length() - 1]
        vector ^= lowest
    return result


def _fold(data: bytes) -> bytes:
    """A shorter piece with the same remainder: all but the last eighth is carried over to that eighth."""
    # A byte that is carried on counts as if its register began there: its four bytes fall on it and the next three.
    step = (len(data) - 3) // _FOLDS
    rest = data[step * (_FOLDS - 1) :]
    folded = int.from_bytes(rest, "little")
    for block in range(_FOLDS - 1):
        head = data[step * block : step * (block + 1)]
        for shift, table in enumerate(_carry_tables(step * (_FOLDS - 1 - block))):
            folded ^= int.from_bytes(head.translate(table), "little") << (8 * shift)
    return folded.to_bytes(len(rest), "little")


def _extend_in_python(crc: int, data: Buffer) -> int:
    register = crc ^ 0xFFFFFFFF
    at = 0
    with memoryview(data).cast("B") as view:
        for length in _PIECES_BYTES:
            while len(view) - at >= length:
                piece = bytes(view[at : at + length])
                at += length
                # What came before this piece is added to its first four bytes.
                piece = (int.from_bytes(piece[:4], "little") ^ register).to_bytes(4, "little") + piece[4:]
                while len(piece) >= _PIECES_BYTES[-1]:
                    piece = _fold(piece)
                register = _loop(0, piece)
        return _loop(register, bytes(view[at:])) ^ 0xFFFFFFFF


def _fastest() -> Callable[[int, Buffer], int]:
    if os.environ.get("ESKER_PURE_PYTHON_CRC"):
        return _extend_in_python
    try:
        import google_crc32c
    except ImportError:
        return _extend_in_python

    def extend(crc: int, data: Buffer) -> int:
        return int(google_crc32c.extend(crc, bytes(data)))

    return extend


#: ``extend(crc, data)``: the checksum of what ``crc`` is the checksum of, followed by ``data``.
extend = _fastest()


def crc32c(data: Buffer) -> int:
    """The checksum of ``data``."""
    return extend(0, data)


def crc_text(crc: int) -> str:
    """A checksum as the API has it: 8 hex digits."""
    return f"{crc:08x}"
