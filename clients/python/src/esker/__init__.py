"""Client of Esker: checkpoints for stream workers, coordinated or by hand, and the state in them.

- :class:`Worker`, :class:`Checkpoint`: a task of a coordinated job.
- :class:`State`, :class:`Restored`: what it gives to a checkpoint, and what it gets back.
- :class:`Client`: every request of the API.
- ``esker.sync``: the same for threads.
- :mod:`esker.errors`: what can go wrong, as types.

The names that are exported here and in ``esker.sync`` are the interface; modules and names that begin with ``_`` are not.
"""

from .checkpoint import Acknowledged, Checkpoint, Event
from .client import Client
from .errors import (
    AddressError,
    ApiError,
    AttemptOver,
    BadAnswer,
    CheckpointOver,
    ChecksumMismatch,
    Conflict,
    ConnectionLost,
    EskerError,
    InvalidRequest,
    JobEnded,
    NotFound,
    RequestFailed,
    Restart,
    StateRefused,
    Unauthorized,
    Unavailable,
)
from .events import Aborted, Completed, Ended, Stopped, Subsumed, Trigger
from .state import KeyGroups, Restored, Segment, State, StateEntry, TaskState
from .worker import Worker

__version__ = "0.1.0"

__all__ = [
    "Aborted",
    "Acknowledged",
    "AddressError",
    "ApiError",
    "AttemptOver",
    "BadAnswer",
    "Checkpoint",
    "CheckpointOver",
    "ChecksumMismatch",
    "Client",
    "Completed",
    "Conflict",
    "ConnectionLost",
    "Ended",
    "EskerError",
    "Event",
    "InvalidRequest",
    "JobEnded",
    "KeyGroups",
    "NotFound",
    "RequestFailed",
    "Restart",
    "Restored",
    "Segment",
    "State",
    "StateEntry",
    "StateRefused",
    "Stopped",
    "Subsumed",
    "TaskState",
    "Trigger",
    "Unauthorized",
    "Unavailable",
    "Worker",
]
