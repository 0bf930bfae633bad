"""The frame around a run: a folder and processes of its own, what is told of a failure and kept of it, and the exit status.

0 is success, 1 a failure, 3 that something has to be installed first.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from .processes import Failed, Processes
from .tools import Missing


class Frame:
    """What a run has. `counts` may be set to a function that says how much passed and failed."""

    def __init__(self, name):
        self.began = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix=f"esker-{name}-"))
        self.processes = Processes(self.folder / "logs")
        self.counts = None

    def seconds(self):
        return time.monotonic() - self.began

    def say(self, text):
        print(f"{self.seconds():6.1f} s  {text}", flush=True)


def framed(name, run, keep=False, missing=Missing):
    """Calls `run` with a frame, and ends this process. Its folder stays after a failure, or with `keep`."""
    # Whoever shares this machine should notice little of it.
    os.nice(max(0, 10 - os.nice(0)))
    # A polite end goes through `finally` as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    frame, status = Frame(name), 1
    try:
        run(frame)
        status = 0
    except missing as what:
        print(f"{name}: cannot be tried: {what}", file=sys.stderr)
        status = 3
    except Exception as failure:
        tell(failure, frame.processes)
    finally:
        frame.processes.kill_all()
        if status == 1 or keep:
            print(f"logs and data are kept in {frame.folder}", file=sys.stderr)
        else:
            shutil.rmtree(frame.folder, ignore_errors=True)
    if status != 3:
        counts = frame.counts or (lambda: f"{int(status == 0)} passed, {int(status != 0)} failed")
        print(f"{name}: {counts()}")
    sys.exit(status)


def tell(failure, processes):
    """Prints why something failed, after the ends of all logs."""
    reason = failure if isinstance(failure, Failed) else traceback.format_exc()
    print("\n".join([*processes.tails(), f"\nFAILED: {reason}"]), file=sys.stderr)
