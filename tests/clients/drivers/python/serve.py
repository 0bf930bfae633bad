"""What the drivers in Python share: questions in, answers out; see ../../matrix/driver.py."""

import json
import os
import sys
import traceback

ENDPOINT, ACCESS_KEY, SECRET_KEY = (os.environ[f"MATRIX_{name}"] for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY"))
HOST = ENDPOINT.removeprefix("http://")
REGION = "us-east-1"
MIB = 1024 * 1024

_answers = os.fdopen(os.dup(1), "w")
# What a client prints goes to the log.
os.dup2(2, 1)


class NoMoreData(Exception):
    """Raised by the source of an upload that is to be given up."""


class Pipe:
    """A file of unknown length that cannot be read twice."""

    def __init__(self, path, fail_after=None):
        self._file, self._left = open(path, "rb"), fail_after

    def read(self, size=-1):
        content = self._file.read(size)
        if self._left is not None:
            self._left -= len(content)
            if self._left <= 0:
                raise NoMoreData("the source failed")
        return content

    def pieces(self):
        while piece := self.read(64 * 1024):
            yield piece


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, content):
    with open(path, "wb") as file:
        file.write(content)


# What few clients do.
RARE = {"sync_up": "it copies objects, not trees", "copy_if_absent": "copies have no condition on what they replace"}


def serve(client, kind_of):
    """`kind_of` says of an exception: "missing", "precondition", or nothing.

    `client.NOT_OFFERED` has the reason for each question that the client has no answer to.
    """
    for line in sys.stdin:
        question = json.loads(line)
        _answers.write("=> " + json.dumps(_answer(client, kind_of, question)) + "\n")
        _answers.flush()


def _answer(client, kind_of, question):
    operation = question.pop("op")
    if reason := client.NOT_OFFERED.get(operation) or (None if hasattr(client, operation) else RARE.get(operation)):
        return {"not offered": reason}
    try:
        return {"ok": getattr(client, operation)(**question) or {}}
    except Exception as error:
        traceback.print_exc()
        return {"error": kind_of(error) or "other", "message": f"{type(error).__name__}: {error}"[:1000]}


def kind_of_botocore(error):
    """The kind of botocore's ClientError."""
    code = getattr(error, "response", {}).get("Error", {}).get("Code")
    return {"404": "missing", "NoSuchKey": "missing", "PreconditionFailed": "precondition"}.get(code)


def kind_by_name(**kinds):
    """By the name of the exception's class."""
    return lambda error: kinds.get(type(error).__name__)
