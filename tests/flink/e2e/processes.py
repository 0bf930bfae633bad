"""Child processes, and waiting for what they do."""

import ctypes
import random
import signal
import socket
import subprocess
import time


class Failed(Exception):
    """The test failed. The message says what was expected."""


class Process:
    """A child process that writes to a log of its own."""

    def __init__(self, name, command, log, env=None):
        self.name = name
        self.log = log
        with open(log, "ab") as output:
            self.child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                preexec_fn=_die_with_parent,
            )

    def alive(self):
        return self.child.poll() is None

    def kill(self):
        """Ends it as a crash would."""
        self.child.kill()
        self.child.wait()

    def stop(self, seconds):
        """Asks it to end. Returns its exit status, or fails after `seconds`."""
        self.child.terminate()
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} was asked to stop and still runs after {seconds} s") from None


class Processes:
    """All child processes of one run. None outlives it."""

    def __init__(self, folder):
        self.folder = folder
        self.folder.mkdir()
        self.started = []
        self.expected_alive = []
        # What ends processes that others have started.
        self.at_end = []

    def start(self, name, command, env=None):
        process = Process(name, command, self.folder / f"{name}.log", env)
        self.started.append(process)
        self.expected_alive.append(process)
        return process

    def kill(self, process):
        self.expected_alive.remove(process)
        process.kill()

    def stop(self, process, seconds):
        self.expected_alive.remove(process)
        return process.stop(seconds)

    def check(self):
        """Fails if a process ended that nobody ended."""
        for process in self.expected_alive:
            if not process.alive():
                raise Failed(f"{process.name} ended by itself, with status {process.child.returncode}")

    def until(self, what, seconds, probe, every=0.2):
        """Waits until `probe` returns something true, and returns that."""
        deadline = time.monotonic() + seconds
        while True:
            self.check()
            if found := probe():
                return found
            if time.monotonic() > deadline:
                raise Failed(f"waited {seconds} s in vain for {what}")
            time.sleep(every)

    def kill_all(self):
        for process in self.started:
            process.kill()
        self.expected_alive.clear()
        while self.at_end:
            self.at_end.pop()()

    def tails(self, lines=25):
        """The last lines of every log."""
        for log in sorted(self.folder.glob("*.log")):
            text = log.read_text(errors="replace").splitlines()[-lines:]
            yield "\n".join([f"--- the end of {log}", *text])


def free_port():
    """A port nobody listens on.

    It lies below the range out of which the kernel picks ports for outgoing connections. Otherwise
    a connection could take it while the server that owns it is down, and that server could not come
    back.
    """
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def _die_with_parent():
    """Has the kernel end the child when this process dies without having cleaned up (Linux only)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
