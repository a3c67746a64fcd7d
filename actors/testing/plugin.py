"""Fixtures for pytest, loaded on request: `pytest_plugins = ["executus.actors.testing.plugin"]` in a conftest.py."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

import pytest

from executus.actors.core import Store
from executus.actors.incarnation import RunView
from executus.actors.runtime import Registrable, Runtime
from executus.actors.testing.crash_report import CrashReport
from executus.actors.testing.crashes import crash_everywhere as crash_everywhere_
from executus.actors.testing.leftovers import SHARED_THREAD_PREFIXES, Leaks, OpenLoops
from executus.actors.testing.stacks import STACK_NAME
from executus.actors.testing.virtual_runtime import VirtualClock

LEFT_AFTER_S: Final = 2.0
"""How long threads and files may take to go; a bound against hangs, usually they are gone at once."""


class Runtimes:
    """Makes a test's runtimes: `runtime(runs=[MyRun])` is an open one, closed when the test ends.

    Where the test has `virtual_clock`, they follow it.
    """

    def __init__(self, clock: VirtualClock | None) -> None:
        self.may_leave: set[str] = set()
        self._clock = clock
        self._opened: list[Runtime] = []

    def __call__(
        self, store: Store = None, *, runs: Iterable[Registrable], may_leave: Collection[str] = (), **options: Any
    ) -> Runtime:
        """Open one; options as for Runtime. `may_leave` has 'runs', 'threads', 'files' or 'loops' left on purpose."""
        self.may_leave.update(may_leave)
        options.setdefault("logger", False)
        if self._clock is not None:
            runtime: Runtime = self._clock.runtime(store, runs=runs, **options)
        else:
            runtime = Runtime(store, runs=runs, **options)
        runtime.open()
        self._opened.append(runtime)
        return runtime

    def close(self) -> list[str]:
        """Close them. What still lived in them, a line each."""
        lines: list[str] = []
        for runtime in self._opened:
            if "runs" not in self.may_leave:
                lines += [_in_words(view) for view in live_runs(runtime)]
            runtime.close()
        return lines


def live_runs(runtime: Runtime) -> list[RunView]:
    """The runs that live in a runtime; none in one that is closed."""
    core = runtime._core  # noqa: SLF001 - the store may be closed already
    return [inc.view() for inc in list(core.table.values()) if not inc.ending.done()]


def _in_words(view: RunView) -> str:
    what = "waits for a message" if view.waiting else f"is in {view.phase or view.stage}"
    return f"run {view.run_id!r} ({view.run_type}) {what}, at seq {view.seq}"


@pytest.fixture
def crash_everywhere() -> Callable[..., CrashReport]:
    """`executus.actors.testing.crash_everywhere`."""
    return crash_everywhere_


@pytest.fixture
def virtual_clock() -> Iterator[VirtualClock]:
    """A clock that stands still until `virtual_clock.advance(60)`. Runtimes of `runtime(…)` follow it."""
    clock = VirtualClock()
    with clock.taken():
        yield clock


@pytest.fixture
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtimes]:
    """Makes runtimes, and fails the test that leaves anything alive: runs, threads, open files, event loops."""
    clock = request.getfixturevalue("virtual_clock") if "virtual_clock" in request.fixturenames else None
    loops = OpenLoops()
    with loops.watched():
        runtimes = Runtimes(clock)
        leaks = Leaks(loops, runtimes.may_leave, (*SHARED_THREAD_PREFIXES, STACK_NAME))  # the clock's end with it
        yield runtimes
        left = [*runtimes.close(), *leaks.found_after(LEFT_AFTER_S)]
    if left:
        kinds = "may_leave={'runs', 'threads', 'files', 'loops'}"
        pytest.fail(
            "the test left alive (end it, or make the runtime with what of "
            + kinds
            + " is meant):\n  "
            + "\n  ".join(left),
            pytrace=False,
        )
