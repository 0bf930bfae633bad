"""What all tests have: the fake daemon, and a way to await."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, Callable, Coroutine, Iterator

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake import Fake  # noqa: E402

#: A test that waits longer has found that something hangs.
SECONDS_MAX = 30


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake() as running:
        yield running


@pytest.fixture
def go() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(asyncio.wait_for(work, SECONDS_MAX))

    return run
