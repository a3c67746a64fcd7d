"""What is there after a test and was not before: threads, open files, event loops."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

SHARED_THREAD_PREFIXES: Final = ("executus-default", "AnyIO worker thread")
"""Threads that belong to the process and not to a test: those of the default dispatcher that `MyActor.start()` makes
on first use, and FastAPI's pool for sync endpoints."""


class OpenLoops:
    """Every asyncio loop made while they are watched, by weak reference."""

    def __init__(self) -> None:
        self._loops: weakref.WeakSet[asyncio.BaseEventLoop] = weakref.WeakSet()

    @contextmanager
    def watched(self) -> Generator[None, None, None]:
        """Within this block asyncio's loops are noted when they are made."""
        original = asyncio.BaseEventLoop.__init__
        loops = self._loops

        @functools.wraps(original)
        def noted(loop: asyncio.BaseEventLoop, *args: Any, **kwargs: Any) -> None:
            original(loop, *args, **kwargs)
            loops.add(loop)

        asyncio.BaseEventLoop.__init__ = noted  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            asyncio.BaseEventLoop.__init__ = original  # type: ignore[method-assign]

    def now(self) -> set[asyncio.BaseEventLoop]:
        """Those that are not closed."""
        return {loop for loop in list(self._loops) if not loop.is_closed()}


def live_threads(shared: tuple[str, ...] = SHARED_THREAD_PREFIXES) -> set[threading.Thread]:
    """The threads of the process, but for those whose names begin so."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith(shared)}


def open_files() -> Counter[str]:
    """What the process has open, counted by target; empty where the system does not tell."""
    if sys.platform != "linux":
        return Counter()
    targets: list[str] = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            targets.append(str(entry.readlink()))
        except FileNotFoundError:  # the one that listed them
            continue
    return Counter(targets)


class Leaks:
    """What is there now and was not there when this was made, a line each. `allowed`: 'threads', 'files', 'loops'."""

    def __init__(
        self, loops: OpenLoops, allowed: Collection[str], shared: tuple[str, ...] = SHARED_THREAD_PREFIXES
    ) -> None:
        self._shared = shared
        self._loops = loops
        self._allowed = allowed
        self._threads_before = live_threads(shared)
        self._files_before = open_files()
        self._loops_before = loops.now()

    def found(self) -> list[str]:
        """Right now."""
        lines: list[str] = []
        if "threads" not in self._allowed:
            lines += [f"thread {thread.name!r}" for thread in live_threads(self._shared) - self._threads_before]
        if "loops" not in self._allowed:
            lines += [f"event loop {loop!r}" for loop in self._loops.now() - self._loops_before]
        if "files" not in self._allowed:
            files = open_files()
            if files.total() > self._files_before.total():
                lines += [f"open file {target} ({n})" for target, n in (files - self._files_before).items()]
        return sorted(lines)

    def found_after(self, timeout_s: float) -> list[str]:
        """What is still there when it got so long to go."""
        _wait_until(lambda: not self.found(), timeout_s)
        return self.found()


def _wait_until(fact: Callable[[], bool], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    pause_s = 0.0005
    while not fact() and time.monotonic() < deadline_s:
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.02)
