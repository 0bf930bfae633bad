"""Which requests of Flink each write to the S3 server answered, and when in the checkpoint.

Esker's access log has what Flink asked for, the proxy before the S3 server what Esker did. Esker answers as soon as the last
write that an answer waits for is over, so a request belongs to the write that ended last before its answer.
"""

import bisect
import json
import re
import statistics
from collections import Counter
from datetime import datetime

# Esker's answer may be written down a little before the proxy has noted the end of the write.
SLACK_SECONDS = 0.004
WRITING = {"PutObject", "CopyObject", "CompleteMultipartUpload", "DeleteObject", "DeleteObjects", "UploadPart",
           "CreateMultipartUpload"}


class Trace:
    """The time between the beginnings of two checkpoints of a job."""

    def __init__(self, server, access_log, checkpoints):
        self.checkpoints = checkpoints
        self.began, self.ended = (checkpoints[at]["trigger_timestamp"] / 1000 for at in (0, -1))
        passed = map(json.loads, server.passed_log.read_text().splitlines())
        self.writes = sorted(
            (line for line in passed if line["method"] in ("PUT", "POST") and not line["target"].endswith("delete")
             and self.began <= line["began"] < self.ended), key=lambda line: line["ended"])
        self.requests = list(filter(self._is_ours, map(_request, access_log.read_text().splitlines())))
        self._assign()

    def _is_ours(self, request):
        return self.began <= request["began"] < self.ended and request["operation"] in WRITING

    def _assign(self):
        ends = [write["ended"] for write in self.writes]
        for write in self.writes:
            write["answers"] = Counter()
        self.early = Counter()
        for request in self.requests:
            at = bisect.bisect_right(ends, request["ended"] + SLACK_SECONDS) - 1
            waited = at >= 0 and self.writes[at]["ended"] >= request["began"]
            (self.writes[at]["answers"] if waited else self.early)[_what(request)] += 1

    def lines(self, checkpoints):
        """A line for each write of the first of them."""
        starts = [checkpoint["trigger_timestamp"] / 1000 for checkpoint in self.checkpoints]
        for number, start, end in zip(range(checkpoints), starts, starts[1:]):
            checkpoint = self.checkpoints[number]
            yield f"checkpoint {checkpoint['id']}, {checkpoint['end_to_end_duration']} ms as Flink sees it"
            for write in self.writes:
                if start <= write["began"] < end:
                    answers = ", ".join(f"{count} {what}" for what, count in sorted(write["answers"].items()))
                    yield (f"  {1000 * (write['began'] - start):5.0f} +{1000 * (write['ended'] - write['began']):3.0f} ms "
                           f"{_kind(write):8} {write['length']:7} B  {answers or '-'}")

    def summary(self):
        """What kinds of writes there are, and how long Flink waits, per checkpoint."""
        number = len(self.checkpoints) - 1
        kinds = Counter(f"{_kind(write)}: {_group(write['answers'])}" for write in self.writes)
        yield f"{len(self.writes) / number:.1f} writes per checkpoint, of {number}:"
        for kind, count in kinds.most_common():
            yield f"  {count / number:5.1f}  {kind}"
        yield "requests per checkpoint, with the median and the 95th percentile of their milliseconds:"
        for what in sorted({_what(request) for request in self.requests}):
            took = sorted(1000 * (it["ended"] - it["began"]) for it in self.requests if _what(it) == what)
            yield (f"  {len(took) / number:5.1f}  {what:32} {statistics.median(took):6.0f} {took[int(len(took) * .95)]:6.0f}  "
                   f"without a write: {self.early[what] / number:.1f}")
        took = sorted(checkpoint["end_to_end_duration"] for checkpoint in self.checkpoints)
        yield f"checkpoints took {statistics.median(took):.0f} ms, at most {took[-1]}"


def _request(line):
    line = json.loads(line)
    began = datetime.fromisoformat(line["time"].replace("Z", "+00:00")).timestamp()
    return {"began": began, "ended": began + line["micros"] / 1e6, "operation": line.get("operation"),
            "key": line.get("key", "")}


def _what(request):
    key = request["key"]
    place = next((place for place, pattern in PLACES if re.search(pattern, key)), "other")
    return f"{request['operation']} {place}"


PLACES = [("_metadata", r"/_metadata$"), ("chk/ marker", r"/chk-\d+/$"), ("chk", r"/chk-\d+/"),
          ("shared", r"/shared/"), ("taskowned", r"/taskowned/")]


def _kind(write):
    path = write["target"].partition("?")[0]
    found = re.search(r"/(wal|manifest|compactions|compacted)/", path)
    return {"wal": "commit", None: "data"}.get(found and found[1], found and found[1])


def _group(answers):
    """What a write was about."""
    deletes = sum(count for what, count in answers.items() if what.startswith("Delete"))
    others = sum(answers.values()) - deletes
    if not answers:
        return "nobody waits"
    return "deletes alone" if not others else "deletes and others" if deletes else "others"
