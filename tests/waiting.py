"""Wait for facts, never for time to pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


def wait_until(predicate: Callable[[], object], timeout_s: float = 5.0, what: str = "") -> None:
    """Return as soon as `predicate()` is true; raise AssertionError that names `what` when it is not within `timeout_s`.

    The limit is a bound against hangs and no measurement: make it generous, passing tests do not pay for it.
    """
    deadline_s = time.monotonic() + timeout_s
    pause_s = 0.0005
    while not predicate():
        if time.monotonic() >= deadline_s:
            fact = what or getattr(predicate, "__name__", repr(predicate))
            raise AssertionError(f"still not true after {timeout_s:g} s: {fact}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.02)


async def await_until(predicate: Callable[[], object], timeout_s: float = 5.0, what: str = "") -> None:
    """As wait_until, for coroutines: the event loop goes on meanwhile."""
    deadline_s = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"still not true after {timeout_s:g} s: {what or repr(predicate)}")
        await asyncio.sleep(0.001)


def in_time(measure: Callable[[], float], bound: float) -> None:
    """One of three measurements must be within the bound: the machine is shared, and what is too slow is so each time."""
    seen: list[float] = []
    while not seen or seen[-1] > bound:
        assert len(seen) < 3, f"not once within {bound:g}: {seen}"
        seen.append(measure())


def elapse(seconds: float) -> None:
    """Let time pass where the moment itself is the test, as that of a kill; never to wait for something."""
    time.sleep(seconds)


async def ticks(seconds: float) -> None:
    """A tick of a coroutine that measures how late the loop is; never to wait for something."""
    await asyncio.sleep(seconds)
