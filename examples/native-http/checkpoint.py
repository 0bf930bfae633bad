#!/usr/bin/env python3
"""A worker of its own that keeps its state in Esker, over plain HTTP: Python's standard library alone.

Two subtasks store their state for a checkpoint, the checkpoint completes, the next one uses a part of it again, and a
restore reads everything back. Endpoints and fields: clients/openapi.json.

    python3 examples/native-http/checkpoint.py [http://127.0.0.1:9001]

ESKER_TOKEN is sent as the bearer token, if the daemon has `auth.tokens`.
"""

import json
import os
import struct
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

API = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:9001"
SUBTASKS = 2
TRIES = 5


def call(method, path, body=None, headers=None):
    """Returns the body of the answer. Repeats what the daemon asks to repeat."""
    headers = dict(headers or {})
    if token := os.environ.get("ESKER_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    for attempt in range(1, TRIES + 1):
        request = urllib.request.Request(API + path, data=body, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            # 503 is the only status that a repeat may cure; it says after how many seconds.
            if error.code != 503 or attempt == TRIES:
                raise SystemExit(f"{method} {path}: {error.code} {error.read().decode()}") from None
            time.sleep(float(error.headers.get("Retry-After", 1)))


def post(path, content=None):
    body = b"" if content is None else json.dumps(content).encode()
    answer = call("POST", path, body, {"Content-Type": "application/json"})
    return json.loads(answer) if answer else None


class Job:
    def __init__(self, name):
        # A job's name may have slashes; in a path they are escaped.
        self.name, self.path = name, f"/v1/jobs/{urllib.parse.quote(name, safe='')}"
        post("/v1/jobs", {"job": name})

    def put(self, checkpoint, subtask, name, data, scope):
        """Stores one state file; returns once it is durable. The idempotency key makes a repeat harmless."""
        query = urllib.parse.urlencode({
            "checkpoint": checkpoint, "scope": scope, "name": name, "task_manager": "tm-0",
            "operator": "counter", "subtask": subtask, "parallelism": SUBTASKS})
        headers = {"Content-Type": "application/octet-stream",
                   "Idempotency-Key": f"{checkpoint}-{subtask}-{name}"}
        return json.loads(call("POST", f"{self.path}/segments?{query}", data, headers))

    def complete(self, checkpoint):
        post(f"{self.path}/checkpoints/{checkpoint}/complete")

    def subsume(self, checkpoint):
        """Nobody goes back to checkpoints up to this one."""
        post(f"{self.path}/checkpoints/{checkpoint}/subsume")

    def reuse(self, checkpoint, segments):
        """Returns the segments that may not be used again: their state has to be stored anew."""
        return post(f"{self.path}/checkpoints/{checkpoint}/reuse", {"segments": segments})["refused"]

    def restore(self, checkpoint):
        """All segments of a completed checkpoint: pairs of what is known of one, and its bytes."""
        stream = call("POST", "/v1/restore", json.dumps({"job": self.name, "checkpoint": checkpoint}).encode())
        at, segments = 0, []
        while True:
            (head_len,) = struct.unpack_from("<I", stream, at)
            head = json.loads(stream[at + 4:at + 4 + head_len])
            at += 4 + head_len
            if "end" in head:  # Without it, the answer is not whole.
                return segments
            segments.append((head, stream[at:at + head["len"]]))
            at += head["len"]


def main():
    job = Job(f"examples/word-count-{int(time.time())}")

    base = [job.put(1, subtask, "base.sst", b"b" * 100_000, "shared") for subtask in range(SUBTASKS)]
    for subtask in range(SUBTASKS):
        job.put(1, subtask, "timers", b"t" * 30_000, "exclusive")
    job.complete(1)
    print("checkpoint 1 is complete; a handle:", base[0]["handle"])

    refused = job.reuse(2, [segment["segment"] for segment in base])
    assert not refused, refused
    for subtask in range(SUBTASKS):
        job.put(2, subtask, "delta.sst", b"d" * 50_000, "shared")
    job.complete(2)
    job.subsume(1)
    print("checkpoint 2 is complete: it uses base.sst again, and checkpoint 1 is given up")

    for head, data in job.restore(2):
        print(f"restored {head['name']} of {head['subtask']}: {len(data)} bytes in {head['file'] or 'the catalog'}")

    space = json.loads(call("GET", "/v1/space?by=job"))
    print("space of all jobs:", json.dumps(space["total"]))


if __name__ == "__main__":
    main()
