"""The state of a task: what it gives to a checkpoint, and what it gets back at a restore.

A state has a *kind*, which says who gets it if the job starts again with another parallelism: ``keyed`` (each task the key
groups that are its own then), ``split`` (elements are dealt out evenly), ``union`` (each task gets all elements of all
tasks), ``broadcast`` (all tasks have the same), ``channel`` (records in flight; never at another parallelism).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Iterable, Iterator, Mapping, Optional, Sequence, Union

from .crc32c import Buffer
from .errors import BadAnswer

KINDS = ("keyed", "split", "union", "broadcast", "channel")
SCOPES = ("exclusive", "shared")
#: How a segment holds elements that have no bytes at all: the API stores no empty segment.
_PAD = b"\0"


@dataclass(frozen=True)
class KeyGroups:
    """A half-open range of key groups."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"key_groups: {self.start} to {self.end} is no range")

    def __contains__(self, group: int) -> bool:
        return self.start <= group < self.end

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    @staticmethod
    def of(value: Optional[Mapping[str, int]]) -> "Optional[KeyGroups]":
        """Reads what the API has for it."""
        return None if value is None else KeyGroups(value["start"], value["end"])


@dataclass(frozen=True)
class Segment:
    """A stored segment."""

    segment: str
    #: Enough to read the bytes with any S3 client while the daemon is down.
    handle: str
    len: int
    crc32c: str
    file: Optional[str] = None
    offset: int = 0

    @staticmethod
    def of(answer: Mapping[str, Any]) -> "Segment":
        """Reads what the API has for it."""
        try:
            return Segment(
                answer["segment"], answer["handle"], answer["len"], answer["crc32c"], answer.get("file"), answer["offset"]
            )
        except (KeyError, TypeError) as error:
            raise BadAnswer(f"a segment without {error}") from None


@dataclass(frozen=True)
class State:
    """A state that a task gives to a checkpoint: bytes to store, or a segment that is stored.

    Make one with :meth:`split`, :meth:`keyed`, :meth:`union`, :meth:`broadcast`, :meth:`channel`. What
    :attr:`Acknowledged.state` has are states that are stored; those of scope ``shared`` may be given to later checkpoints
    once the one they were stored for has completed, if its trigger says ``incremental``.
    """

    kind: str
    name: str
    offsets: Sequence[int]
    data: Sequence[Buffer] = ()
    segment: Optional[str] = None
    end: Optional[int] = None
    key_groups: Optional[KeyGroups] = None
    scope: str = "exclusive"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} is none of {', '.join(KINDS)}")
        if self.scope not in SCOPES:
            raise ValueError(f"scope: {self.scope!r} is none of {', '.join(SCOPES)}")
        if (self.kind == "keyed") != (self.key_groups is not None):
            raise ValueError(f"key_groups: a state of kind {self.kind} has {'some' if self.kind == 'keyed' else 'none'}")

    @staticmethod
    def split(elements: "Elements", name: str = "", scope: str = "exclusive") -> "State":
        """Elements that are dealt out evenly at another parallelism: positions in partitions, for example."""
        return _of_elements("split", elements, name, scope)

    @staticmethod
    def union(elements: "Elements", name: str = "", scope: str = "exclusive") -> "State":
        """Elements of which each task gets those of all tasks."""
        return _of_elements("union", elements, name, scope)

    @staticmethod
    def broadcast(elements: "Elements", name: str = "", scope: str = "exclusive") -> "State":
        """Elements that are the same in all tasks."""
        return _of_elements("broadcast", elements, name, scope)

    @staticmethod
    def channel(elements: "Elements", name: str = "", scope: str = "exclusive") -> "State":
        """Records in flight, of an unaligned checkpoint."""
        return _of_elements("channel", elements, name, scope)

    @staticmethod
    def keyed(
        groups: Mapping[int, Buffer], key_groups: KeyGroups, name: str = "", scope: str = "exclusive"
    ) -> "State":
        """The bytes of each key group of the task; those that are left out have none."""
        foreign = [group for group in groups if group not in key_groups]
        if foreign:
            raise ValueError(f"groups: {foreign[0]} is not in {key_groups.start} to {key_groups.end}")
        parts = [groups.get(group, b"") for group in range(key_groups.start, key_groups.end)]
        return _of_elements("keyed", parts if any(parts) else [], name, scope, key_groups)

    @property
    def len(self) -> int:
        """Bytes to store."""
        return sum(memoryview(part).nbytes for part in self.data)

    def stored_as(self, segment: str) -> "State":
        """The same, stored in a segment."""
        return replace(self, data=(), segment=segment)

    def entry(self, part: Optional[int] = None) -> dict[str, Any]:
        """What the API has for it; ``part`` counts the segments that go with the acknowledgement."""
        entry: dict[str, Any] = {"kind": self.kind, "name": self.name, "offsets": list(self.offsets)}
        if self.end is not None:
            entry["end"] = self.end
        if self.key_groups is not None:
            entry["key_groups"] = {"start": self.key_groups.start, "end": self.key_groups.end}
        if part is None:
            entry["segment"] = self.segment
        else:
            entry["part"] = part
        return entry


#: One element, or several.
Elements = Union[bytes, bytearray, memoryview, Iterable[Buffer]]
#: What a task may give to a checkpoint: bytes, which are one element of kind ``split``, or states.
Snapshot = Union[bytes, bytearray, memoryview, State, Iterable[State]]


def _of_elements(
    kind: str, elements: Elements, name: str, scope: str, key_groups: Optional[KeyGroups] = None
) -> State:
    parts = [elements] if isinstance(elements, (bytes, bytearray, memoryview)) else list(elements)
    offsets, end = [], 0
    for part in parts:
        if not isinstance(part, (bytes, bytearray, memoryview)):
            raise TypeError(f"elements: bytes are wanted, not {type(part).__name__}")
        offsets.append(end)
        end += memoryview(part).nbytes
    padded = bool(parts) and end == 0
    data = [_PAD] if padded else [part for part in parts if memoryview(part).nbytes]
    return State(kind, name, offsets, data, end=0 if padded else None, key_groups=key_groups, scope=scope)


def states_of(snapshot: Snapshot) -> list[State]:
    """What a task gives to a checkpoint, as states; those without elements are left out."""
    if isinstance(snapshot, (bytes, bytearray, memoryview)):
        snapshot = State.split(snapshot)
    states = [snapshot] if isinstance(snapshot, State) else list(snapshot)
    for state in states:
        if not isinstance(state, State):
            raise TypeError(f"state: bytes or states are wanted, not {type(state).__name__}")
    return [state for state in states if state.segment is not None or state.data]


@dataclass(frozen=True)
class StateEntry:
    """Where a part of what a task starts from is stored."""

    kind: str
    name: str
    segment: str
    handle: str
    #: Of the whole segment.
    len: int
    scope: str
    #: The one that wrote it.
    subtask: int
    key_groups: Optional[KeyGroups]
    #: Half-open, one for each element.
    ranges: tuple[tuple[int, int], ...]

    @staticmethod
    def of(answer: Mapping[str, Any]) -> "StateEntry":
        """Reads what the API has for it."""
        try:
            ranges = tuple((int(start), int(end)) for start, end in answer["ranges"])
            entry = StateEntry(
                answer["kind"],
                answer["name"],
                answer["segment"],
                answer["handle"],
                answer["len"],
                answer["scope"],
                answer["subtask"],
                KeyGroups.of(answer.get("key_groups")),
                ranges,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadAnswer(f"an entry of a state cannot be read: {error}") from None
        if any(not 0 <= start <= end <= entry.len for start, end in ranges):
            raise BadAnswer(f"segment {entry.segment}: a range is not within its {entry.len} bytes")
        return entry

    @property
    def span(self) -> tuple[int, int]:
        """From the first byte that is wanted to the last."""
        wanted = [pair for pair in self.ranges if pair[0] < pair[1]]
        if not wanted:
            return (0, 0)
        return (min(start for start, _ in wanted), max(end for _, end in wanted))


@dataclass(frozen=True)
class TaskState:
    """What a task starts from."""

    job: str
    attempt: int
    #: The job whose checkpoint it is.
    from_job: str
    #: ``None``: it starts from nothing.
    checkpoint: Optional[int]
    operator: str
    subtask: int
    parallelism: int
    max_parallelism: int
    key_groups: KeyGroups
    #: The task was finished: it does nothing more but end.
    finished: bool
    state: tuple[StateEntry, ...]
    #: The first attempt of the job: with another one it is another job of the same name.
    first_attempt: int = 0

    @staticmethod
    def all_of(answer: Mapping[str, Any]) -> "list[TaskState]":
        """Reads the answer of ``GET ../state``."""
        try:
            checkpoint = answer["checkpoint"]
            return [
                TaskState(
                    answer["job"],
                    answer["attempt"],
                    answer.get("from") or answer["job"],
                    checkpoint,
                    task["operator"],
                    task["subtask"],
                    task["parallelism"],
                    task["max_parallelism"],
                    KeyGroups(task["key_groups"]["start"], task["key_groups"]["end"]),
                    bool(task.get("finished")),
                    tuple(StateEntry.of(entry) for entry in task.get("state") or ()),
                    int(answer.get("first_attempt") or 0),
                )
                for task in answer["tasks"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise BadAnswer(f"the state of a task cannot be read: {error}") from None


@dataclass(frozen=True)
class Restored:
    """A part of what a task starts from, with its bytes."""

    entry: StateEntry
    #: In the order in which they were written.
    elements: tuple[bytes, ...]

    @property
    def kind(self) -> str:
        """The kind of the state."""
        return self.entry.kind

    @property
    def name(self) -> str:
        """The name of the state."""
        return self.entry.name

    def groups(self) -> dict[int, bytes]:
        """The bytes of each key group of this part that has some.

        Raises:
            ValueError: it is not keyed, or was written without offsets: its only element is the whole segment then.
        """
        of = self.entry.key_groups
        if of is None or len(of) != len(self.elements):
            raise ValueError(f"state {self.name!r}: it has no element for each key group")
        return {of.start + n: element for n, element in enumerate(self.elements) if element}
