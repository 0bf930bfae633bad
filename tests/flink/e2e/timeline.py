"""Space over time: what Esker holds for what lives, while the story goes on."""

import json
import re
import threading
import time
import urllib.request


class Watch:
    """Looks at a storage from a thread of its own until it is left; `_watch` fills `rows` while `_over` is not set."""

    def __init__(self, storage):
        self.storage, self.rows = storage, []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


class Timeline(Watch):
    """Asks a running Esker every few seconds; while it is down there is nothing to ask."""

    EVERY_SECONDS = 5

    def __init__(self, storage):
        super().__init__(storage)
        self._counted = Counted()
        self._began = time.monotonic()

    def _watch(self):
        while not self._over.wait(self.EVERY_SECONDS):
            try:
                self.rows.append(self._ask())
            except (OSError, ValueError):
                continue  # It was killed, and is started again before long.

    def _ask(self):
        space = space_of(self.storage)
        with urllib.request.urlopen(f"{self.storage.api}/metrics", timeout=5) as response:
            metrics = response.read().decode()
        # What was never counted is not there.
        counters = dict(re.findall(r'^esker_reclaim_bytes_total\{kind="(\w+)"\} (\S+)$', metrics, re.MULTILINE))
        reclaimed = {kind: self._counted.total(kind, float(counters.get(kind, 0))) for kind in ("freed", "written")}
        return {
            "seconds": round(time.monotonic() - self._began),
            "segments": space["segments"],
            "files": space["files"],
            "live_bytes": space["live_bytes"],
            "physical_bytes": space["physical_bytes"] + space["inline_bytes"],
            "waiting_bytes": space["forgotten_bytes"],
            "amplification": space["amplification"],
            "freed_bytes": round(reclaimed["freed"]),
            "copied_bytes": round(reclaimed["written"]),
        }


def space_of(storage):
    """What Esker says that it holds."""
    with urllib.request.urlopen(f"{storage.api}/v1/space", timeout=5) as response:
        return json.load(response)["total"]


class Counted:
    """Counters that begin again whenever their process does."""

    def __init__(self):
        self.last, self.before = {}, {}

    def total(self, name, value):
        if value < self.last.get(name, 0):
            self.before[name] = self.before.get(name, 0) + self.last[name]
        self.last[name] = value
        return self.before.get(name, 0) + value
