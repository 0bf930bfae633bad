"""The daemon under test: `esker dev` on a folder and ports of its own."""

import ctypes
import json
import signal
import subprocess
import time

# Programs start at once; the limits allow for a machine that is busy with other things.
START_SECONDS = 60
STOP_SECONDS = 60
VERIFY_SECONDS = 600


class Failed(Exception):
    """The run failed. The message says what was expected."""


def die_with_parent():
    """Has the kernel end a child when the thread that started it is gone without having cleaned up (Linux only)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Door:
    def __init__(self, program, folder):
        self.program, self.data, self.log = program, folder / "data", folder / "esker.log"
        ready_file = folder / "ready.json"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [program, "dev", "--data-dir", self.data, "--s3", "127.0.0.1:0", "--api", "127.0.0.1:0",
                 "--ready-file", ready_file], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent)
        ready = self._await_ready(ready_file)
        self.endpoint, self.access_key, self.secret_key = ready["s3"], ready["access_key"], ready["secret_key"]

    def _await_ready(self, ready_file):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                return json.loads(ready_file.read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                time.sleep(0.05)
        self.kill()
        raise Failed(f"esker was not ready within {START_SECONDS} s:\n{self.tail()}")

    def stop_and_verify(self):
        """Stops the daemon and has all that it stored read back."""
        if self.process.poll() is not None:
            raise Failed(f"esker ended while the clients ran, with status {self.process.returncode}:\n{self.tail()}")
        self.process.terminate()
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"esker was asked to stop and still runs after {STOP_SECONDS} s") from None
        if status != 0:
            raise Failed(f"esker was asked to stop and ended with status {status}:\n{self.tail()}")
        done = subprocess.run(
            [self.program, "verify", "--data-dir", self.data, "--read-data", "100"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=VERIFY_SECONDS)
        if done.returncode != 0:
            raise Failed(f"`esker verify` ended with status {done.returncode}:\n{done.stdout[-3000:]}")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def tail(self, lines=25):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
