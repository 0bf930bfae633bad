"""What daemons ask of storage when nobody asks them for anything: one by itself, and three as one."""

import time

from e2e.daemons import ACCESS, BUCKET, SECRET, Daemons
from e2e.processes import Failed
from e2e.report import aligned

from .history import Clients

# Until what clients have left is written, flushed, compacted and deleted.
SETTLE_SECONDS = 150
WRITING = {"PutObject", "CopyObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "DeleteObject", "DeleteObjects"}


class Alone(Daemons):
    """The first of them by itself."""

    names = ("a",)
    is_cluster = False


def run(frame, options, versitygw):
    seen = {}
    cases = [("one daemon by itself", Alone, 1), ("three daemons, 1 shard", Daemons, 1), ("three daemons, 16 shards", Daemons, 16)]
    for number, (label, kind, shards) in enumerate(cases):
        folder = frame.folder / str(number)
        folder.mkdir()
        cluster = kind(frame.processes, folder, options.esker, versitygw, options.delay / 1000, shards)
        clients = Clients(cluster.proxy, ACCESS, SECRET, BUCKET, 2, 1, options.seed)
        time.sleep(5)
        clients.end()
        frame.say(f"{label}: {sum(clients.counts.values())} requests were answered; settling for {SETTLE_SECONDS} s")
        time.sleep(SETTLE_SECONDS)
        before = cluster.server.traffic()
        time.sleep(60 * options.minutes)
        seen[label] = cluster.server.traffic().since(before).requests
        cluster.close()
        cluster.server.stop()
        frame.say(f"{label}: {dict(seen[label])}")
    names = sorted({name for requests in seen.values() for name in requests})
    hours = options.minutes / 60
    rows = [[label, *(f"{requests[name] / hours:.0f}" for name in names), f"{sum(requests.values()) / hours:.0f}"]
            for label, requests in seen.items()]
    print("\nrequests an hour\n")
    print(aligned([["", *names, "all"], *rows]))
    wrote = {label: sum(requests[name] for name in WRITING) for label, requests in seen.items()}
    if any(wrote.values()):
        raise Failed(f"idle daemons wrote to storage: {wrote}")
