"""What all tests have: the fake daemon, and a way to await."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, Callable, Coroutine, Iterator

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake import Fake  # noqa: E402

#: A test that waits longer has found that something hangs.
SECONDS_MAX = 60


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake() as running:
        yield running


@pytest.fixture
def rust_example() -> Callable[[str], str]:
    """Finds programs of clients/rust/examples that make one job with those in Python."""

    def program(name: str) -> str:
        folder = os.environ.get("ESKER_RUST_EXAMPLES")
        if folder is None:
            pytest.skip("ESKER_RUST_EXAMPLES names no folder: tests/python/run does")
        return str(Path(folder) / name)

    return program


@pytest.fixture
def go() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    async def watched(work: Coroutine[Any, Any, Any]) -> Any:
        working = asyncio.ensure_future(work)
        await asyncio.wait({working}, timeout=SECONDS_MAX)
        if not working.done():
            for task in asyncio.all_tasks():
                task.print_stack(file=sys.stderr)
            working.cancel()
            raise AssertionError(f"the test hangs: it has not ended after {SECONDS_MAX} s")
        return working.result()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(watched(work))

    return run
