"""The counting job of examples/python, on a fake daemon that restarts; test_daemon.py runs it on the real one."""

import subprocess
import sys
import threading
import time
from pathlib import Path

from fake import Fake

COUNT = Path(__file__).resolve().parents[3] / "examples" / "python" / "count.py"


def test_five_processes_count_exactly_once_while_they_are_killed():
    with Fake(heartbeat_ms=300, heartbeat_timeout_ms=5_000, interval_s=0.2) as fake:
        command = [sys.executable, str(COUNT), "--api", fake.address, "--words", "3000", "--kills", "3", "--seed", "3"]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        ender = threading.Timer(120, running.kill)
        ender.start()
        try:
            for _ in range(2):
                while not fake.jobs or len(next(iter(fake.jobs.values())).completed) < 3:
                    time.sleep(0.1)
                fake.restart(0.3)
                time.sleep(1.0)
            output, _ = running.communicate()
        finally:
            ender.cancel()
            running.kill()
            running.wait()

        assert running.returncode == 0, output
        (job,) = fake.jobs.values()
        assert job.ended == "FINISHED" and job.attempt > 1 and job.completed
        assert "20 of 20 exactly right" in output
        assert output.count("killed worker") >= 2
