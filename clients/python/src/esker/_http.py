"""HTTP/1.1 over asyncio's streams, as much of it as the API needs.

A request is sent while its answer is awaited, because a daemon that refuses answers before it has read the body. An
answer's body arrives in pieces. A connection is kept if its answer was read to the end; all others are closed.

Nothing is repeated here but one thing: a request on a kept connection of which not one byte of an answer came is sent
again on a new one, as the daemon closes connections that were idle. So every request that is made here can be repeated
without harm.

Cancelling what waits closes its connection.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import Any, AsyncIterator, Awaitable, Coroutine, Optional, Sequence, TypeVar
from urllib.parse import urlsplit

from .crc32c import Buffer
from .errors import AddressError, BadAnswer, ConnectionLost, Silence

T = TypeVar("T")

#: Bytes that are read and written at once.
_PIECE_BYTES = 1 << 18
_HEAD_BYTES_MAX = 64 << 10
#: Kept connections, and for how many seconds: less than daemons and proxies keep them.
_KEPT_MAX = 8
_KEPT_SECONDS = 15.0
#: How long the answer of a daemon is awaited that has stopped reading the request, in seconds.
_LAST_WORDS_SECONDS = 2.0


@dataclass(frozen=True)
class Address:
    """Where a daemon listens: ``http://HOST:PORT``, ``https://HOST:PORT`` or ``unix:PATH``."""

    scheme: str
    host: str
    port: int
    path: str

    @staticmethod
    def parse(text: str) -> "Address":
        """Reads an address.

        Raises:
            AddressError: it is none.
        """
        if text.startswith("unix:") and len(text) > len("unix:"):
            return Address("unix", "esker", 0, text[len("unix:") :])
        wrong = AddressError(f"address: {text!r} is not http://HOST:PORT, https://HOST:PORT or unix:PATH")
        if not text.isascii() or any(char <= " " for char in text):
            raise wrong
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise wrong from None
        more = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
        if parts.scheme not in ("http", "https") or not parts.hostname or more:
            raise wrong
        return Address(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), "")

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.path}"
        return f"{self.scheme}://{self.host_header}"

    @property
    def host_header(self) -> str:
        """The host as a request names it."""
        if self.scheme == "unix":
            return self.host
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.kept_at = 0.0
        #: Whether it had an answer before.
        self.reused = False
        #: Whether it was closed because nothing moved.
        self.silent = False

    async def within(self, waiting: Awaitable[T], seconds: float, address: str) -> T:
        """Waits for bytes to move. Whoever waits too long finds the connection closed.

        ``asyncio.wait_for`` would not do: before Python 3.12 it loses a cancellation that comes together with the bytes.
        """
        watch = asyncio.get_running_loop().call_later(seconds, self._fell_silent)
        try:
            result = await waiting
        except asyncio.IncompleteReadError:
            if not self.silent:
                raise
        except OSError as error:
            if not self.silent:
                raise ConnectionLost(f"{address}: the connection broke: {error}") from error
        else:
            if not self.silent:
                return result
        finally:
            watch.cancel()
        raise Silence(f"{address}: nothing was heard for {seconds:g} s")

    def _fell_silent(self) -> None:
        self.silent = True
        self.close()

    def close(self) -> None:
        # What was not sent is not wanted any more; an orderly end would wait for it.
        self.writer.transport.abort()


class Response:
    """The answer to a request: its head; :meth:`piece` brings the body."""

    def __init__(self, http: "Http", connection: _Connection, status: int, headers: dict[str, str], timeout: float) -> None:
        self.status = status
        #: Names are lower case.
        self.headers = headers
        self._http = http
        self._connection: Optional[_Connection] = connection
        #: Seconds in which not a byte moves.
        self.timeout = timeout
        self._left: Optional[int] = None
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self._at_chunk_end = False
        if status in (204, 304):
            self._left, self._chunked = 0, False
        elif self._chunked:
            self._left = 0
        elif "content-length" in headers:
            self._left = _length(headers["content-length"])
        if self._left == 0 and not self._chunked:
            self._end()

    async def piece(self) -> bytes:
        """The next bytes of the body; none when it is whole.

        Raises:
            ConnectionLost: the body ended too early, or nothing came for the timeout.
        """
        if self._connection is None:
            return b""
        try:
            return await self._piece(self._connection)
        except BaseException:
            self.close()
            raise

    async def _piece(self, connection: _Connection) -> bytes:
        if self._chunked and self._left == 0:
            self._left = await self._chunk_head(connection)
            if self._left == 0:
                while await self._line(connection):
                    pass  # Trailers are of no use here.
                self._end()
                return b""
        most = _PIECE_BYTES if self._left is None else min(self._left, _PIECE_BYTES)
        data = await connection.within(connection.reader.read(most), self.timeout, str(self._http.address))
        if self._left is None:
            if not data:
                self._end()
            return data
        if not data:
            raise ConnectionLost(f"{self._http.address}: the answer ended too early")
        self._left -= len(data)
        if self._left == 0:
            if self._chunked:
                self._at_chunk_end = True
            else:
                self._end()
        return data

    async def _chunk_head(self, connection: _Connection) -> int:
        if self._at_chunk_end:
            await self._line(connection)
            self._at_chunk_end = False
        line = await self._line(connection)
        return _length(line.split(";")[0].strip(), 16)

    async def _line(self, connection: _Connection) -> str:
        try:
            line = await connection.within(connection.reader.readuntil(b"\n"), self.timeout, str(self._http.address))
        except asyncio.IncompleteReadError:
            raise ConnectionLost(f"{self._http.address}: the answer ended too early") from None
        except asyncio.LimitOverrunError:
            raise BadAnswer(f"{self._http.address}: a line of a chunked answer is too long") from None
        return line.decode("latin-1").strip()

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of the body, piece by piece."""
        while data := await self.piece():
            yield data

    async def read(self) -> bytes:
        """All of the body."""
        pieces = []
        while data := await self.piece():
            pieces.append(data)
        return b"".join(pieces)

    def close(self) -> None:
        """Gives up the rest of the body, and the connection with it. Nothing happens if it was read to the end."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        whole = self._left is not None or self._chunked
        if whole and self.headers.get("connection", "").lower() != "close" and self.headers.get(":version") != "HTTP/1.0":
            self._http.keep(connection)
        else:
            connection.close()


class Http:
    """Connections to one daemon, of one event loop."""

    def __init__(
        self,
        address: Address,
        *,
        tls: Optional[ssl.SSLContext] = None,
        connect_timeout: float = 10.0,
        timeout: float = 60.0,
    ) -> None:
        self.address = address
        self._tls = tls
        if address.scheme == "https" and tls is None:
            self._tls = ssl.create_default_context()
        self._connect_timeout = connect_timeout
        #: Seconds in which not a byte moves, if a request says nothing else.
        self.timeout_default = timeout
        self._kept: list[_Connection] = []
        self._closed = False

    async def send(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]] = (),
        body: Sequence[Buffer] = (),
        timeout: Optional[float] = None,
    ) -> Response:
        """Sends a request. Returns once the head of its answer is there.

        ``timeout``: seconds in which not a byte moves.

        Raises:
            ConnectionLost: there is no answer.
            BadAnswer: the answer is not HTTP.
        """
        head = self._head(method, target, headers, body)
        silence = self.timeout_default if timeout is None else timeout
        while True:
            connection = self._take_kept()
            if connection is None:
                connection = await self._connect()
            try:
                return await self._exchange(connection, head, body, silence)
            except _NoAnswer as error:
                connection.close()
                if not connection.reused:
                    raise ConnectionLost(f"{self.address}: no answer to {method} {target}: {error}") from error.__cause__
            except BaseException:
                connection.close()
                raise

    def _head(self, method: str, target: str, headers: Sequence[tuple[str, str]], body: Sequence[Buffer]) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", f"host: {self.address.host_header}"]
        for name, value in headers:
            if any(char in value for char in "\r\n\0"):
                raise ValueError(f"header {name}: has a line break")
            lines.append(f"{name}: {value}")
        length = sum(memoryview(part).nbytes for part in body)
        if length or method != "GET":
            lines.append(f"content-length: {length}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")

    async def _exchange(self, connection: _Connection, head: bytes, body: Sequence[Buffer], silence: float) -> Response:
        sending = asyncio.ensure_future(self._write(connection, head, body, silence))
        try:
            reading = self._read_head(connection, sending, silence)
            status, headers = await reading
            while 100 <= status < 200:
                status, headers = await self._read_head(connection, sending, silence)
            if not sending.done():
                # It was refused before all of it was sent: what is left of it must not be taken for the next request.
                headers["connection"] = "close"
            return Response(self, connection, status, headers, silence)
        finally:
            # An answer counts for more than the end of the connection after it: that error is taken note of, and dropped.
            sending.add_done_callback(lambda over: over.cancelled() or over.exception())
            sending.cancel()

    async def _write(self, connection: _Connection, head: bytes, body: Sequence[Buffer], silence: float) -> None:
        writer = connection.writer
        writer.write(head)
        for part in body:
            with memoryview(part).cast("B") as view:
                for begin in range(0, len(view), _PIECE_BYTES):
                    writer.write(bytes(view[begin : begin + _PIECE_BYTES]))
                    await connection.within(writer.drain(), silence, str(self.address))
        await connection.within(writer.drain(), silence, str(self.address))

    async def _read_head(
        self, connection: _Connection, sending: "asyncio.Future[None]", silence: float
    ) -> tuple[int, dict[str, str]]:
        reading = asyncio.ensure_future(connection.reader.readuntil(b"\r\n\r\n"))
        try:
            both: set[asyncio.Future[Any]] = {reading, sending}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            # While bytes leave, the daemon is not silent; after that it has so long for its answer.
            ended_badly = sending.done() and sending.exception() is not None
            await asyncio.wait({reading}, timeout=_LAST_WORDS_SECONDS if ended_badly else silence)
            if not reading.done():
                cause = sending.exception() if sending.done() else None
                if cause is None:
                    # The daemon has the request, and may be at work on it: another connection is not the cure.
                    raise Silence(f"{self.address}: nothing was heard for {silence:g} s")
                raise _NoAnswer(str(cause)) from cause
            text = reading.result()
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise ConnectionLost(f"{self.address}: the head of the answer ended too early") from None
            raise _NoAnswer("the connection was closed") from None
        except asyncio.LimitOverrunError:
            raise BadAnswer(f"{self.address}: the head of the answer is too long") from None
        except OSError as error:
            raise _NoAnswer(str(error)) from error
        finally:
            reading.cancel()
        return _parse_head(text, str(self.address))

    def _take_kept(self) -> Optional[_Connection]:
        while self._kept:
            connection = self._kept.pop()
            fresh = time.monotonic() - connection.kept_at < _KEPT_SECONDS
            if fresh and not connection.reader.at_eof() and not connection.writer.is_closing():
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        if self._closed:
            raise RuntimeError("this client is closed")
        try:
            return await at_most(self._open(), self._connect_timeout)
        except (asyncio.TimeoutError, TimeoutError):
            raise ConnectionLost(f"{self.address}: no connection within {self._connect_timeout:g} s") from None
        except ssl.SSLCertVerificationError as error:
            # Nothing that a repeat would cure.
            raise AddressError(f"{self.address}: its certificate is not trusted: {error.verify_message}") from error
        except OSError as error:
            raise ConnectionLost(f"{self.address}: no connection: {error}") from error

    async def _open(self) -> _Connection:
        if self.address.scheme == "unix":
            return _Connection(*await asyncio.open_unix_connection(self.address.path, limit=_PIECE_BYTES))
        host, port = self.address.host, self.address.port
        return _Connection(*await asyncio.open_connection(host, port, limit=_PIECE_BYTES, ssl=self._tls))

    def keep(self, connection: _Connection) -> None:
        """Takes back a connection whose answer was read to the end."""
        if self._closed or len(self._kept) >= _KEPT_MAX:
            connection.close()
            return
        connection.kept_at = time.monotonic()
        connection.reused = True
        self._kept.append(connection)

    def close(self) -> None:
        """Closes what is kept; what is in use closes when it is over."""
        self._closed = True
        while self._kept:
            self._kept.pop().close()


class _NoAnswer(Exception):
    """Not one byte of an answer came."""


async def at_most(waiting: Coroutine[Any, Any, T], seconds: Optional[float]) -> T:
    """Waits for so long; what is not done then is cancelled. Keeps a cancellation, as ``asyncio.wait_for`` does not before
    Python 3.12.

    Raises:
        asyncio.TimeoutError: it took longer.
    """
    task = asyncio.ensure_future(waiting)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
        raise asyncio.TimeoutError
    finally:
        # What goes wrong with it after somebody has lost interest is of no interest either.
        task.add_done_callback(lambda over: over.cancelled() or over.exception())
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def _parse_head(text: bytes, address: str) -> tuple[int, dict[str, str]]:
    if len(text) > _HEAD_BYTES_MAX:
        raise BadAnswer(f"{address}: the head of the answer is too long")
    lines = text.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not code.isdigit():
        raise BadAnswer(f"{address}: the answer is not HTTP: {lines[0][:80]!r}")
    headers = {":version": version}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return int(code), headers


def _length(text: str, base: int = 10) -> int:
    try:
        length = int(text, base)
    except ValueError:
        length = -1
    if length < 0:
        raise BadAnswer(f"the length of a body is {text[:40]!r}")
    return length
