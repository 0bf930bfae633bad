"""Clients that are commands: runs them, and keeps what they say."""

import subprocess
import sys


class CommandFailed(Exception):
    def __init__(self, command, done):
        self.status, self.said = done.returncode, done.stderr.decode(errors="replace")
        super().__init__(f"{' '.join(command)[:200]}: {done.returncode} {self.said[-500:]}")


def run(command, stdin=None, env=None):
    """What the command writes, as bytes."""
    done = subprocess.run(command, stdin=stdin or subprocess.DEVNULL, capture_output=True, timeout=200, env=env)
    said = done.stderr.decode(errors="replace")[-2000:]
    print(f"$ {' '.join(command)[:300]}: {done.returncode} {said}", file=sys.stderr)
    if done.returncode != 0:
        raise CommandFailed(command, done)
    return done.stdout
