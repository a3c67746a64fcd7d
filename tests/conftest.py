"""What holds for every test: nothing stays behind, and examples are the same on every machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.waiting import wait_until

LEAK_TIMEOUT_S = 5.0
"""How long threads and files may take to go after a test; a bound against hangs, usually they are gone at once."""

SHARED_THREAD_PREFIXES = ("executus-default", "AnyIO worker thread")
"""Threads that belong to the process and not to a test: those of the default dispatcher that `MyActor.start()` makes
on first use, and FastAPI's pool for sync endpoints."""

# `ci` is the default: the same examples every time, so that a red test is red for everyone. `explore` looks further.
hypothesis.settings.register_profile("ci", derandomize=True, max_examples=60, deadline=None, print_blob=True)
hypothesis.settings.register_profile("explore", derandomize=False, max_examples=2000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


class OpenLoops:
    """Every asyncio loop made while the tests run, by weak reference."""

    def __init__(self) -> None:
        self._loops: weakref.WeakSet[asyncio.BaseEventLoop] = weakref.WeakSet()

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        original = asyncio.BaseEventLoop.__init__
        loops = self._loops

        def remembered(loop: asyncio.BaseEventLoop, *args: Any, **kwargs: Any) -> None:
            original(loop, *args, **kwargs)
            loops.add(loop)

        patch.setattr(asyncio.BaseEventLoop, "__init__", remembered)

    def now(self) -> set[asyncio.BaseEventLoop]:
        return {loop for loop in list(self._loops) if not loop.is_closed()}


@pytest.fixture(scope="session")
def open_loops() -> Iterator[OpenLoops]:
    loops = OpenLoops()
    with pytest.MonkeyPatch.context() as patch:
        loops.watch(patch)
        yield loops


def live_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.name.startswith(SHARED_THREAD_PREFIXES)}


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
    """What is there now and was not there when this was made, a line each."""

    def __init__(self, loops: OpenLoops, allowed: frozenset[str]) -> None:
        self._loops = loops
        self._allowed = allowed
        self._threads_before = live_threads()
        self._files_before = open_files()
        self._loops_before = loops.now()

    def found(self) -> list[str]:
        lines: list[str] = []
        if "threads" not in self._allowed:
            lines += [f"thread {thread.name!r}" for thread in live_threads() - self._threads_before]
        if "loops" not in self._allowed:
            lines += [f"event loop {loop!r}" for loop in self._loops.now() - self._loops_before]
        if "files" not in self._allowed:
            files = open_files()
            if files.total() > self._files_before.total():
                lines += [f"open file {target} ({n})" for target, n in (files - self._files_before).items()]
        return sorted(lines)


@pytest.fixture(autouse=True)
def nothing_stays_behind(request: pytest.FixtureRequest, open_loops: OpenLoops) -> Iterator[None]:
    """Fail a test that leaves a thread, an open file or an event loop."""
    allowed = frozenset(kind for marker in request.node.iter_markers("may_leave") for kind in marker.args)
    leaks = Leaks(open_loops, allowed)
    yield
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not leaks.found(), LEAK_TIMEOUT_S)
    if left := leaks.found():
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Where a test's store may be; nothing is there yet."""
    return tmp_path / "runs.store"
