"""Reading the bytes of many segments.

``POST /v1/restore`` answers with frames: length of the head (u32, little endian), head, bytes. The last head has ``end``;
an answer without it was cut off, and the rest is asked for again. Every segment is checked against its length and
checksum before it is given out.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
import time
from typing import Any, AsyncGenerator, Mapping, Optional, Protocol, Sequence

from ._http import Response
from .crc32c import Buffer, crc_text, extend
from .errors import ApiError, BadAnswer, ChecksumMismatch, ConnectionLost, EskerError, refusal
from .state import Restored, StateEntry

#: Segments that are asked for with one request, below the daemon's `limits.segments-per-request-max`.
_SEGMENTS_MAX = 1000
_HEAD_BYTES_MAX = 64 << 10
_PAUSE_SECONDS_MIN = 0.05
_PAUSE_SECONDS_MAX = 5.0
#: If less than this part of a segment is wanted, and it is no small one, its range alone is read.
_RANGE_PART = 0.5
_RANGE_BYTES_MIN = 1 << 20


class Caller(Protocol):
    """What is needed of a client."""

    patience: float

    async def open(
        self, method: str, path: str, *, headers: Mapping[str, str], body: Sequence[Buffer]
    ) -> Response:
        """Sends a request; returns once the head of a good answer is there."""

    async def get_range(self, segment: str, start: int, end: int) -> bytes:
        """Some bytes of a segment."""


async def read_segments(caller: Caller, segments: Sequence[str]) -> AsyncGenerator[tuple[str, bytes], None]:
    """The bytes of segments, in the order asked."""
    at, pause, deadline = 0, _PAUSE_SECONDS_MIN, None
    while at < len(segments):
        wanted = segments[at : at + _SEGMENTS_MAX]
        answer: Optional[_Answer] = None
        try:
            body = [json.dumps({"segments": list(wanted)}).encode()]
            headers = {"content-type": "application/json"}
            answer = _Answer(await caller.open("POST", "/v1/restore", headers=headers, body=body))
            for segment in wanted:
                data = await answer.segment(segment)
                # Something has arrived: patience begins anew.
                at, pause, deadline = at + 1, _PAUSE_SECONDS_MIN, None
                yield segment, data
            await answer.end()
        except EskerError as error:
            if not error.transient:
                raise
            told = error.retry_after if isinstance(error, ApiError) else None
            wait = max(told or 0.0, pause * random.uniform(0.5, 1.0))
            deadline = deadline or time.monotonic() + caller.patience
            if time.monotonic() + wait > deadline:
                raise
            await asyncio.sleep(wait)
            pause = min(pause * 2, _PAUSE_SECONDS_MAX)
        finally:
            if answer is not None:
                answer.close()


async def read_entries(caller: Caller, entries: Sequence[StateEntry]) -> AsyncGenerator[Restored, None]:
    """The states behind entries, in their order, with their bytes."""
    # A segment may hold several states; it is read once, and kept until the last of them is given out.
    last_use = {entry.segment: n for n, entry in enumerate(entries) if _is_read_whole(entry)}
    ordered = list(dict.fromkeys(entry.segment for entry in entries if _is_read_whole(entry)))
    arriving = read_segments(caller, ordered)
    kept: dict[str, bytes] = {}
    try:
        for n, entry in enumerate(entries):
            start, end = entry.span
            if start == end:
                yield _cut(entry, b"", 0)
            elif _is_read_whole(entry):
                while entry.segment not in kept:
                    segment, data = await arriving.__anext__()
                    kept[segment] = data
                if len(kept[entry.segment]) != entry.len:
                    raise BadAnswer(f"segment {entry.segment}: has {len(kept[entry.segment])} bytes, not {entry.len}")
                data = kept[entry.segment]
                if last_use[entry.segment] == n:
                    del kept[entry.segment]
                yield _cut(entry, data, 0)
            else:
                yield _cut(entry, await caller.get_range(entry.segment, start, end), start)
    finally:
        await arriving.aclose()


def _is_read_whole(entry: StateEntry) -> bool:
    start, end = entry.span
    wanted = end - start
    return wanted > 0 and (entry.len < _RANGE_BYTES_MIN or wanted >= entry.len * _RANGE_PART)


def _cut(entry: StateEntry, data: bytes, start: int) -> Restored:
    return Restored(entry, tuple(data[begin - start : end - start] for begin, end in entry.ranges))


class _Answer:
    """The frames of one answer."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._arrived = b""
        #: How far what arrived was looked at.
        self._at = 0

    async def segment(self, wanted: str) -> bytes:
        """The bytes of the segment that was asked for next."""
        head = await self._head()
        if head.get("segment") != wanted:
            raise BadAnswer(f"POST /v1/restore: segment {head.get('segment')} came instead of {wanted}")
        length, announced = head.get("len"), head.get("crc32c")
        if not isinstance(length, int) or not isinstance(announced, str):
            raise BadAnswer(f"segment {wanted}: came without its length and checksum")
        data = await self._exactly(length)
        actual = crc_text(await asyncio.to_thread(extend, 0, data) if length >= 1 << 18 else extend(0, data))
        if actual != announced:
            raise ChecksumMismatch(wanted, announced, actual)
        return data

    async def end(self) -> None:
        """Reads the last frame."""
        head = await self._head()
        if "end" not in head:
            raise BadAnswer("POST /v1/restore: more segments came than were asked for")
        # The rest is the end of the body, after which the connection can be used again.
        if self._at < len(self._arrived) or await self._response.piece():
            raise BadAnswer("POST /v1/restore: bytes came behind the end")

    async def _head(self) -> Mapping[str, Any]:
        (length,) = struct.unpack("<I", await self._exactly(4))
        if not 1 <= length <= _HEAD_BYTES_MAX:
            raise BadAnswer(f"POST /v1/restore: a head of {length} bytes")
        try:
            head = json.loads(await self._exactly(length))
        except ValueError as error:
            raise BadAnswer(f"POST /v1/restore: a head is no JSON: {error}") from None
        if not isinstance(head, dict):
            raise BadAnswer("POST /v1/restore: a head is no JSON object")
        if "broken" in head:
            # The rest cannot be sent now. What is gone or damaged stays so; the daemon's own word decides.
            detail = head.get("error") or {}
            status = {"not_found": 404, "corrupt": 500, "conflict": 409, "invalid": 400}.get(str(detail.get("kind")), 503)
            raise refusal("POST /v1/restore", status, {}, json.dumps({"error": detail}).encode())
        return head

    async def _exactly(self, length: int) -> bytes:
        parts, left = [], length
        while left:
            if self._at == len(self._arrived):
                self._arrived, self._at = await self._response.piece(), 0
                if not self._arrived:
                    raise ConnectionLost("POST /v1/restore: the answer ended too early")
            part = self._arrived[self._at : self._at + left]
            self._at += len(part)
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Gives up what was not read."""
        self._response.close()
