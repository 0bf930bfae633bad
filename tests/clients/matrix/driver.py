"""A driver: one process a client. It reads a question, a line of JSON, and answers with a line of JSON:

    {"ok": {..}}                 it did that; what it tells about it
    {"not offered": "reason"}    the client has nothing for that
    {"error": "missing", ..}     the client says: no such object
    {"error": "precondition", ..}
    {"error": "other", "message": ".."}

All other lines that it prints are for the log.
"""

import json
import os
import queue
import subprocess
import threading

from .door import die_with_parent

ANSWER_SECONDS = 240
ANSWER = "=> "


class NotOffered(Exception):
    """The client has nothing for what it was asked."""


class Refusal(Exception):
    """The client reports an error; `kind` is "missing", "precondition" or "other"."""

    def __init__(self, kind, message):
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Driver:
    def __init__(self, command, door, folder, log):
        env = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
        env |= {
            "MATRIX_ENDPOINT": door.endpoint,
            "MATRIX_ACCESS_KEY": door.access_key, "MATRIX_SECRET_KEY": door.secret_key,
            # Nothing of the machine's own AWS or client configuration counts.
            "AWS_ACCESS_KEY_ID": door.access_key, "AWS_SECRET_ACCESS_KEY": door.secret_key, "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8", "NO_PROXY": "*",
        }
        self._log = open(log, "a", buffering=1)
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=env, cwd=folder,
            preexec_fn=die_with_parent)
        self._answers = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, operation, **question):
        """What the client tells, as a dictionary."""
        asked = json.dumps({"op": operation, **question})
        self._log.write(f"{asked}\n")
        try:
            self._child.stdin.write(f"{asked}\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise Refusal("other", "the driver has ended, see its log") from None
        try:
            answer = self._answers.get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            raise Refusal("other", f"no answer to {operation} within {ANSWER_SECONDS} s") from None
        if answer is None:
            raise Refusal("other", f"the driver ended when it was asked for {operation}, see its log")
        if "ok" in answer:
            return answer["ok"]
        if "not offered" in answer:
            raise NotOffered(answer["not offered"])
        raise Refusal(answer["error"], answer["message"])

    def close(self):
        self._child.kill()
        self._child.wait()

    def _read(self):
        for line in self._child.stdout:
            self._log.write(line)
            if line.startswith(ANSWER):
                self._answers.put(json.loads(line.removeprefix(ANSWER)))
        self._answers.put(None)
