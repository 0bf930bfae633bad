"""Acknowledging: small states go with the acknowledgement, large ones are stored before it."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Awaitable, Mapping

from .client import Client
from .errors import CheckpointOver, Conflict
from .events import Trigger
from .state import State, TaskState

#: Bytes that go with an acknowledgement, all together.
_WITH_ACKNOWLEDGEMENT_BYTES = 4 << 20
#: Offsets that go with an acknowledgement that has bytes: its head is bounded.
_WITH_ACKNOWLEDGEMENT_OFFSETS = 4000
#: States that are stored at once.
_PUTS_AT_ONCE = 4


async def acknowledge(
    client: Client,
    task: TaskState,
    worker: str,
    trigger: Trigger,
    states: list[State],
    finished: bool,
    figures: Mapping[str, int],
) -> tuple[State, ...]:
    """Stores states, and acknowledges. Returns them as they are stored; as they were given if their segment was not told.

    Raises:
        CheckpointOver, AttemptOver, StateRefused: as the client does.
    """
    states = await _store_large(client, task, worker, trigger, states)
    answer = await client.acknowledge(
        task.job,
        trigger.checkpoint,
        task.operator,
        task.subtask,
        trigger.attempt,
        states,
        finished=finished,
        task_manager=worker,
        figures=figures,
    )
    arrived = iter(answer.get("segments") or ())
    stored = []
    for state in states:
        segment = next(arrived, None) if state.segment is None else None
        stored.append(state if segment is None else state.stored_as(segment["segment"]))
    return tuple(stored)


async def _store_large(client: Client, task: TaskState, worker: str, trigger: Trigger, states: list[State]) -> list[State]:
    """Stores what does not go with the acknowledgement. The smallest ones do."""
    left_bytes, left_offsets = _WITH_ACKNOWLEDGEMENT_BYTES, _WITH_ACKNOWLEDGEMENT_OFFSETS
    large = []
    offsets = sum(len(state.offsets) for state in states)
    for n, state in sorted(enumerate(states), key=lambda pair: pair[1].len):
        if state.segment is not None:
            continue
        left_bytes -= state.len
        if left_bytes < 0 or offsets > left_offsets:
            large.append(n)
    if not large:
        return states
    stored = list(states)
    slots = asyncio.Semaphore(_PUTS_AT_ONCE)

    async def store(n: int) -> None:
        async with slots:
            stored[n] = states[n].stored_as(await _put(client, task, worker, trigger, n, states[n]))

    try:
        await _all_or_none([store(n) for n in large])
    except CheckpointOver:
        raise
    except Conflict as error:
        # A put tells of a checkpoint that is over without the field.
        over = CheckpointOver(error.request, 409, error.kind, error.message, "checkpoint", error.request_id)
        raise over from None
    return stored


async def _put(client: Client, task: TaskState, worker: str, trigger: Trigger, n: int, state: State) -> str:
    data = state.data[0] if len(state.data) == 1 else b"".join(bytes(part) for part in state.data)
    # The same for a repeat, also by another call; another one for other bytes.
    of = (task.job, trigger.checkpoint, task.attempt, task.operator, task.subtask, n, state.name, len(data))
    key = hashlib.sha256(repr((*of, hashlib.sha256(data).hexdigest())).encode()).hexdigest()
    segment = await client.put(
        task.job,
        data,
        checkpoint=trigger.checkpoint,
        operator=task.operator,
        subtask=task.subtask,
        parallelism=task.parallelism,
        scope=state.scope,
        name=state.name or None,
        task_manager=worker,
        idempotency_key=key,
    )
    return segment.segment


async def _all_or_none(works: "list[Awaitable[None]]") -> None:
    """Does all of it at once. The first that fails ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
