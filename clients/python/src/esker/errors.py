"""What can go wrong, as types: each says what the caller does next.

``EskerError``
    ``AddressError``: the address of the daemon, or its certificate, is none.
    ``ConnectionLost``: no answer, or half of one; whether the request was carried out is not known.
    ``BadAnswer``: an answer that is not what the API says. ``ChecksumMismatch``: bytes that are not those that were stored.
    ``ApiError``: the daemon refuses, and says why. ``InvalidRequest``, ``Unauthorized``, ``NotFound``, ``Conflict``
    (``CheckpointOver``, ``AttemptOver``, ``StateRefused``), ``Unavailable``.
    ``Restart``: the job begins a new attempt; no failure of the worker.
    ``JobEnded``: the job has ended while a task waited for its next attempt.
    ``RequestFailed``: a checkpoint or savepoint that was asked for has failed.
"""

from __future__ import annotations

import json
from typing import Mapping, Optional

#: Longest wait that a daemon, or somebody before it, may ask for, in seconds.
_RETRY_AFTER_MAX = 60.0


class EskerError(Exception):
    """Whatever this package raises by itself."""

    #: Whether the same request may succeed a moment later.
    transient = False


class AddressError(EskerError, ValueError):
    """The address of a daemon that nobody can connect to."""


class ConnectionLost(EskerError):
    """There is no connection, or it broke, or nothing was heard for too long."""

    transient = True


class Silence(ConnectionLost):
    """Nothing was heard for too long."""


class BadAnswer(EskerError):
    """The answer is not what the API promises: another program listens there, or another version."""


class ChecksumMismatch(EskerError):
    """Bytes are not those that were stored."""

    transient = True

    def __init__(self, segment: str, announced: str, actual: str) -> None:
        super().__init__(f"segment {segment}: its bytes have CRC-32C {actual}, {announced} was announced")
        self.segment = segment
        self.announced = announced
        self.actual = actual


class ApiError(EskerError):
    """The daemon refuses a request."""

    def __init__(
        self,
        request: str,
        status: int,
        kind: str,
        message: str,
        field: Optional[str] = None,
        request_id: Optional[str] = None,
        retry_after: Optional[float] = None,
    ) -> None:
        where = f", field {field}" if field else ""
        super().__init__(f"{request}: {status} {kind}{where}: {message}")
        #: Method and path.
        self.request = request
        self.status = status
        #: The API's word for what to do: ``invalid``, ``not_found``, ``conflict``, ``overloaded``, ..
        self.kind = kind
        self.message = message
        #: The field of the request that is wrong.
        self.field = field
        #: Names the request in the daemon's log, too.
        self.request_id = request_id
        #: Seconds to wait before the request is sent again, if the daemon says so.
        self.retry_after = retry_after


class InvalidRequest(ApiError):
    """400, 411, 413, ..: a repeat would be refused, too."""


class Unauthorized(ApiError):
    """401, 403: a token is missing, or does not suffice."""


class NotFound(ApiError):
    """404: there is none."""


class Conflict(ApiError):
    """409: things have changed; look again."""


class CheckpointOver(Conflict):
    """The checkpoint was aborted, or subsumed, or never triggered; what was stored for it is freed."""


class AttemptOver(Conflict):
    """The job has restarted: get the state of the new attempt."""


class StateRefused(Conflict):
    """Segments may not be used again; the message names them. Store them again, and acknowledge again."""


class Unavailable(ApiError):
    """503, 421, 502, 504, 429: not now. The daemon starts, ends, is full, or another one is asked next."""

    transient = True


class Restart(EskerError):
    """All tasks of the job stop, and start again from the state of a new attempt."""

    def __init__(
        self, job: str, attempt: Optional[int], checkpoint: Optional[int], cause: str, message: Optional[str] = None
    ) -> None:
        told = f": {message}" if message else ""
        super().__init__(f"job {job} restarts ({cause}){told}")
        self.job = job
        #: The new attempt, if it was told.
        self.attempt = attempt
        #: The checkpoint that it starts from, if it was told.
        self.checkpoint = checkpoint
        #: ``TASK_FAILURE``, ``TASK_LOST``, ``CHECKPOINT_FAILURES``, ``RESTORE``; ``ATTEMPT`` if only the attempt was told.
        self.cause = cause
        self.message = message


class JobEnded(EskerError):
    """The job has ended, and no attempt of it follows."""

    def __init__(self, job: str, state: Optional[str]) -> None:
        super().__init__(f"job {job} has ended: {state or 'nothing is known of it any more'}")
        self.job = job
        #: ``FINISHED``, ``CANCELED``, ``FAILED`` or ``SUSPENDED``; ``None`` if that was missed.
        self.state = state


class RequestFailed(EskerError):
    """A checkpoint or savepoint that was asked for by hand has failed."""

    def __init__(self, what: str, reason: Optional[str], message: Optional[str]) -> None:
        told = f": {message}" if message else ""
        super().__init__(f"{what} failed: {reason or 'no reason given'}{told}")
        #: One of Flink's reasons.
        self.reason = reason
        self.message = message


_OF_A_CONFLICT = {"checkpoint": CheckpointOver, "attempt": AttemptOver, "state": StateRefused}
# 421: a member of a cluster that was asked for what another one has; a proxy asks the right one next. 429, 502 and 504 are
# what proxies say while a daemon restarts. 408: the daemon was too slow to get all of the body.
_TRANSIENT = {408, 421, 425, 429, 502, 503, 504}


def refusal(request: str, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """The error that an answer stands for, whoever gave it: the daemon, or a proxy before it."""
    detail = _detail(body)
    kind = _text(detail.get("kind")) or f"status {status}"
    message = _text(detail.get("message")) or body[:200].decode("utf-8", "replace").strip() or "no reason given"
    field = _text(detail.get("field"))
    request_id = _text(detail.get("request_id")) or headers.get("x-request-id")
    error = _type_of(status, field)
    return error(request, status, kind, message, field, request_id, _retry_after(headers))


def _type_of(status: int, field: Optional[str]) -> type[ApiError]:
    if status in _TRANSIENT:
        return Unavailable
    if status in (401, 403):
        return Unauthorized
    if status == 404:
        return NotFound
    if status == 409:
        return _OF_A_CONFLICT.get(field or "", Conflict)
    return InvalidRequest if 400 <= status < 500 else ApiError


def _detail(body: bytes) -> Mapping[str, object]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    detail = answer.get("error") if isinstance(answer, dict) else None
    return detail if isinstance(detail, dict) else {}


def _text(value: object) -> Optional[str]:
    return value if isinstance(value, str) else None


def _retry_after(headers: Mapping[str, str]) -> Optional[float]:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(max(seconds, 0.0), _RETRY_AFTER_MAX) if seconds == seconds else None
