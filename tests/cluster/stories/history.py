"""Clients that write, delete and read, and what each of them may read.

A key is changed by one client, one change after the other, each with a number. Once a change was answered, nobody who asks afterwards may read
what was before it; and what somebody has read, nobody who asks afterwards may read older. A change whose outcome nobody knows may still
happen, at any time; so nothing more is written under such a key.
"""

import http.client
import itertools
import random
import threading
import time
from collections import Counter

from e2e import s3
from e2e.processes import Failed

# Longer than a member holds a request.
PATIENCE = 20
# A connection goes to one member; the next one to another.
REQUESTS_PER_CONNECTION = 6
PAUSE = 0.01
KEYS_PER_WRITER = 4


class Key:
    """A key, and what is known of it."""

    def __init__(self, name):
        self.name = name
        self.lock = threading.Lock()
        # By number: whether the change leaves an object there. 0: it was never there.
        self.leaves = [False]
        # Nobody may read what is older than this.
        self.floor = 0
        # The last change has no known outcome.
        self.is_given_up = False

    def begin(self, leaves):
        with self.lock:
            self.leaves.append(leaves)
            return len(self.leaves) - 1

    def answered(self, number):
        with self.lock:
            self.floor = max(self.floor, number)

    def known(self):
        with self.lock:
            return self.floor

    def check(self, floor, seen, who):
        """`seen` was read by somebody who asked when `floor` was known: the number of a change, or None for nothing there."""
        with self.lock:
            possible = range(floor, len(self.leaves))
            if seen is None:
                fitting = [number for number in possible if not self.leaves[number]]
            else:
                fitting = [number for number in possible if number == seen and self.leaves[number]]
            if not fitting:
                raise Failed(f"{who} read {'nothing' if seen is None else f'change {seen}'} under {self.name}, where change {floor} "
                             f"was known and {len(self.leaves) - 1} was the last one that was begun")
            self.floor = max(self.floor, fitting[0])


class Connection:
    """Signed requests, on one connection for some of them."""

    def __init__(self, client, bucket):
        self.client, self.bucket = client, bucket
        self.http, self.left = None, 0

    def ask(self, method, key, body=b""):
        """Status and body of the answer; OSError or HTTPException if there is none."""
        if self.left == 0:
            self.close()
            host, port = self.client.endpoint.removeprefix("http://").split(":")
            self.http, self.left = http.client.HTTPConnection(host, int(port), timeout=PATIENCE), REQUESTS_PER_CONNECTION
        self.left -= 1
        path = f"/{self.bucket}/{key}"
        try:
            self.http.request(method, path, body, self.client.signed(method, path))
            answer = self.http.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self.left = 0
            raise

    def close(self):
        if self.http:
            self.http.close()


class Clients:
    """Writers and readers, until they are ended."""

    def __init__(self, endpoint, access, secret, bucket, writers, readers, seed):
        self.client, self.bucket = s3.Client(endpoint, access, secret), bucket
        self.keys, self.number = [], itertools.count()
        self.counts, self.longest, self.failed = Counter(), 0.0, None
        self.ending, self.lock = threading.Event(), threading.Lock()
        self.threads = [threading.Thread(target=self._run, args=(self._write, random.Random(f"{seed}-w{n}"), n), daemon=True)
                        for n in range(writers)]
        self.threads += [threading.Thread(target=self._run, args=(self._read, random.Random(f"{seed}-r{n}"), n), daemon=True)
                         for n in range(readers)]
        for thread in self.threads:
            thread.start()

    def check(self):
        if self.failed:
            raise self.failed

    def end(self):
        self.ending.set()
        for thread in self.threads:
            thread.join(2 * PATIENCE)
        self.check()

    def read_everything(self, endpoint, who):
        """Each key is what it may be, at one daemon."""
        connection = Connection(s3.Client(endpoint, self.client.access_key, self.client.secret_key), self.bucket)
        for key in self.keys:
            self._read_one(connection, key, who)
        connection.close()

    def _run(self, work, draw, n):
        try:
            work(Connection(self.client, self.bucket), draw, n)
        except Exception as error:
            self.failed = self.failed or error

    def _write(self, connection, draw, n):
        own = []
        while not self.ending.is_set():
            own = [key for key in own if not key.is_given_up]
            while len(own) < KEYS_PER_WRITER:
                # Jobs of several names, so that they are in several shards.
                own.append(Key(f"job-{n}-{next(self.number)}/state"))
                with self.lock:
                    self.keys.append(own[-1])
            self._change(connection, draw.choice(own), draw)
            time.sleep(PAUSE)

    def _change(self, connection, key, draw):
        leaves = key.leaves[-1] is False or draw.random() < 0.8
        number = key.begin(leaves)
        began = time.monotonic()
        try:
            if leaves:
                status, body = connection.ask("PUT", key.name, f"{number} ".encode() * draw.choice([1, 100, 5000]))
            else:
                status, body = connection.ask("DELETE", key.name)
        except (OSError, http.client.HTTPException):
            status, body = 0, b""
        self._took(began)
        if status in (200, 204):
            key.answered(number)
            self.counts["changes answered"] += 1
        elif status in (0, 503):
            key.is_given_up = True
            self.counts["changes without an answer" if status == 0 else "changes answered 503"] += 1
        else:
            raise Failed(f"{'PUT' if leaves else 'DELETE'} {key.name} was answered {status}: {body[:300]!r}")

    def _read(self, connection, draw, _):
        while not self.ending.is_set():
            with self.lock:
                key = draw.choice(self.keys[-200:]) if self.keys else None
            if key:
                self._read_one(connection, key, "a client")
            time.sleep(PAUSE)

    def _read_one(self, connection, key, who):
        floor, began = key.known(), time.monotonic()
        try:
            status, body = connection.ask("GET", key.name)
        except (OSError, http.client.HTTPException):
            self.counts["reads without an answer"] += 1
            return
        finally:
            self._took(began)
        if status == 503:
            self.counts["reads answered 503"] += 1
        elif status == 404:
            key.check(floor, None, who)
            self.counts["reads"] += 1
        elif status == 200:
            numbers = set(body.split())
            if len(numbers) != 1:
                raise Failed(f"{who} read a mixture under {key.name}: {numbers}")
            key.check(floor, int(numbers.pop()), who)
            self.counts["reads"] += 1
        else:
            raise Failed(f"GET {key.name} was answered {status}: {body[:300]!r}")

    def _took(self, began):
        self.longest = max(self.longest, time.monotonic() - began)
