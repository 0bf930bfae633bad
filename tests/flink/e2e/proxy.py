"""Stands between Flink and Esker, and holds a request at the moment at which the test wants to kill. Or stands before an S3
server on this machine, and holds each request for as long as it takes to one that is farther away.

It passes HTTP/1.1 on as it is and looks at request lines alone. What it saw of multipart uploads is in its
journal, one line a request: after a failure that says what was asked for and how it was answered.
"""

import itertools
import json
import re
import select
import socket
import threading
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .processes import free_port

CHUNK = 256 * 1024
HELD = "-- held:"


@dataclass(frozen=True)
class Moment:
    """When to hold a request: `sent` to Esker, `lost` (answered, not passed on) or `answered` (passed on)."""

    operation: str
    when: str
    # The folder of the object.
    folder: str

    def __str__(self):
        return f"{self.operation} {self.when} in {self.folder}"


class Trap:
    """Waits for a moment. From then on nothing reaches Esker until `release`."""

    def __init__(self, moment):
        self.moment = moment
        self.sprung, self.released = threading.Event(), threading.Event()

    def release(self):
        self.released.set()


class Proxy:
    """Listens on a port of its own for as long as this process lives."""

    def __init__(self, upstream, journal, delay_seconds=0):
        host, port = upstream.rsplit(":", 1)
        self.upstream = host, int(port)
        self.delay_seconds = delay_seconds
        self.journal = open(journal, "w", buffering=1)
        # What `note_passed` writes to, if anything.
        self.passed = None
        # How requests of uploads were answered.
        self.answers = Counter()
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._armed = None
        # While a trap is sprung, it holds all that is to be sent to Esker.
        self._gate = None
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, moment):
        with self._lock:
            self._armed = Trap(moment)
            return self._armed

    def history(self, keys, lines=20):
        """The journal of each of these objects, from its beginning, with what was held meanwhile."""
        journal = Path(self.journal.name).read_text().splitlines()
        for key in sorted(keys):
            of_key = itertools.dropwhile(lambda line: f"{key}?" not in line, journal)
            of_key = (line for line in of_key if f"{key}?" in line or HELD in line)
            yield from [f"--- {key}", *itertools.islice(of_key, lines)]

    def note_passed(self, request, began, status):
        """Lines for those who want to know of every request, with the time of day at its begin and its end."""
        if self.passed:
            length = re.search(rb"(?i)\r\n(?:x-amz-decoded-)?content-length: *(\d+)", request.head)
            self.passed.write(json.dumps({
                "began": began, "ended": time.time(), "method": request.method, "target": request.target,
                "length": int(length[1]) if length else 0, "status": status}) + "\n")

    def note_answer(self, request, status):
        self.note(f"{request.operation:8} {status} {request.method} {request.target}")
        with self._lock:
            self.answers[f"{request.operation} {status}"] += 1

    def note(self, text):
        self.journal.write(f"{time.monotonic() - self._began:8.3f} {text}\n")

    def _accept(self):
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client:
            try:
                upstream = socket.create_connection(self.upstream, timeout=300)
            except OSError:
                return  # Esker is down. The client sees a connection that ends before its answer.
            with upstream:
                try:
                    connection = _Connection(self, client, upstream)
                    while connection.exchange():
                        pass
                except (OSError, _Ended):
                    return

    def pass_gate(self):
        """Waits for what is between the two, and while a trap holds what is sent to Esker."""
        time.sleep(self.delay_seconds)
        if gate := self._gate:
            gate.released.wait()

    def spring(self, request, when):
        """The trap that waits for this moment, if one does; nothing reaches Esker any more."""
        with self._lock:
            trap = self._armed
            if not trap or not request.is_at(trap.moment, when):
                return None
            self._armed, self._gate = None, trap
            return trap

    def hold(self, trap, request):
        """Has the test act, and waits for it."""
        self.note(f"{HELD} {trap.moment}: {request.target}")
        trap.sprung.set()
        trap.released.wait()
        self._gate = None


class _Connection:
    def __init__(self, proxy, client, upstream):
        self.proxy = proxy
        for end in (client, upstream):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client, self.upstream = _End(client), _End(upstream)

    def exchange(self):
        """Passes on one request and its answer. Returns whether another may follow."""
        if not self._await_request():
            return False
        request, began = Request(self.client.head()), time.time()
        status = "not answered"
        try:
            status = self._pass_on(request)
        finally:
            self.proxy.note_passed(request, began, status)
            if request.operation:
                self.proxy.note_answer(request, status)
        return isinstance(status, int)

    def _await_request(self):
        """Waits for a request, or for either side to leave: a client has to see that Esker is gone."""
        if self.client.buffer:
            return True
        readable, _, _ = select.select([self.client.socket, self.upstream.socket], [], [])
        return self.upstream.socket not in readable

    def _pass_on(self, request):
        """Returns the status of the answer, or what became of it instead."""
        self.proxy.pass_gate()
        self.upstream.send(request.head)
        head = None
        if request.expects:
            head = self.upstream.head()
            if _status(head) == 100:
                self.client.send(head)
                head = None
        if head is None:
            for piece in self.client.body(request.head):
                self.upstream.send(piece)
            if trap := self.proxy.spring(request, "sent"):
                self.proxy.hold(trap, request)
                return "sent, not answered"
        head = head or self.upstream.head()
        bodiless = request.method == "HEAD" or _status(head) in (204, 304)
        body = iter(()) if bodiless else self.upstream.body(head)
        return self._answer(request, head, body)

    def _answer(self, request, head, body):
        status = _status(head)
        if status < 300 and request.operation:
            body = list(body)  # A few bytes: the answer is complete before anything happens to it.
            if trap := self.proxy.spring(request, "lost"):
                self.proxy.hold(trap, request)
                return f"{status}, answer lost"
            trap = self.proxy.spring(request, "answered")
        else:
            trap = None
        self.client.send(head)
        for piece in body:
            self.client.send(piece)
        if trap:
            self.proxy.hold(trap, request)
        return status


class Request:
    """What a request line says."""

    def __init__(self, head):
        self.head = head
        self.method, self.target = head.split(b" ", 2)[:2]
        self.method, self.target = self.method.decode("latin-1"), self.target.decode("latin-1")
        self.expects = bool(re.search(rb"(?i)\r\nexpect: *100-continue", head))
        path, _, query = self.target.partition("?")
        # Without the bucket.
        self.key = urllib.parse.unquote(path).lstrip("/").partition("/")[2]
        self.operation = self._operation(set(urllib.parse.parse_qs(query, keep_blank_values=True)))

    def _operation(self, query):
        match self.method:
            case "POST" if "uploads" in query:
                return "create"
            case "POST" if "uploadId" in query:
                return "complete"
            case "PUT" if "partNumber" in query:
                return "part"
            case "DELETE" if "uploadId" in query:
                return "abort"
            case "PUT" if "_tmp_" in self.key:
                return "tail"
        return None

    def is_at(self, moment, when):
        return (when == moment.when and self.operation == moment.operation
                and self.key.startswith(f"{moment.folder}/"))


class _Ended(Exception):
    """A side closed its connection."""


class _End:
    """One end of a connection, with what it sent and nobody has read yet."""

    def __init__(self, connection):
        self.socket, self.buffer = connection, b""

    def send(self, data):
        self.socket.sendall(data)

    def head(self):
        return self._through(b"\r\n\r\n")

    def body(self, head):
        """The body that follows this head, piece by piece, as it is on the wire."""
        if re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
            return self._chunks()
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        return self._pieces(int(length[1]) if length else 0)

    def _chunks(self):
        while True:
            line = self._through(b"\r\n")
            yield line
            if size := int(line.split(b";")[0], 16):
                yield from self._pieces(size + 2)
                continue
            while line != b"\r\n":
                line = self._through(b"\r\n")
                yield line
            return

    def _pieces(self, length):
        while length:
            if not self.buffer:
                self._more()
            piece = self._take(min(length, len(self.buffer)))
            length -= len(piece)
            yield piece

    def _through(self, mark):
        while (at := self.buffer.find(mark)) < 0:
            self._more()
        return self._take(at + len(mark))

    def _take(self, length):
        taken, self.buffer = self.buffer[:length], self.buffer[length:]
        return taken

    def _more(self):
        data = self.socket.recv(CHUNK)
        if not data:
            raise _Ended
        self.buffer += data


def _status(head):
    return int(head.split(b" ", 2)[1])
