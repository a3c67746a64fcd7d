"""Two programs that a failing disk must not end: `python -m tests.harness.enduring store|daemon FOLDER SEED`.

`store` plays a seeded life on a store and, in memory, on its twin; whenever a commit fails it reads everything back:
it must be what was there before, or what the commit makes of it. `daemon` is a runtime with runs that are told numbers,
add them up and wait. Both say what they were about to do, what was acknowledged and what failed, a line each, and what
a view of the store must then be equal to. An error that is not a typed one, or that does not pass, ends them.
"""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from executus.actors import Completed, Done, Reply, Run, Runtime, SavePolicy, Wait
from executus.actors.events import Event, StoreDegraded, StoreRecovered
from executus.stores import LmdbStore, MemoryStore, Operation, StoreError, StoreUnavailable, Verdict
from tests.harness.workload import RETRIES, View, is_noise, play, view_of

COMMITS: Final = 9
RUNS: Final = 2
NUMBERS: Final = 3
TIMEOUT_S: Final = 20.0
"""A bound against hangs."""


T = TypeVar("T")


def say(what: str, number: int = 0, digest: int = 0) -> None:
    os.write(1, f"{what} {number} {digest}\n".encode())


def digest_of(view: View) -> int:
    """Equal for equal views, in every process."""
    return zlib.crc32(msgspec.json.encode(view, order="deterministic"))


def again_and_again(what: str, act: Callable[[], T], tries: int = RETRIES) -> T:
    """As whoever runs a daemon would, or its store actor: the same once more, while the error is one that may pass."""
    for left in reversed(range(tries)):
        try:
            return act()
        except StoreUnavailable as error:
            say(what, errno_of(error))
            if not left:
                raise
    raise AssertionError


def errno_of(error: StoreUnavailable) -> int:
    cause = error.__cause__
    return (cause.errno if isinstance(cause, OSError) else getattr(cause, "code", 0)) or 0


class Twins(LmdbStore):
    """A store on a disk that is compared with one in memory."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._twin = MemoryStore()
        self._twin.open()
        self._number = 0
        self._before: View = {}
        self._last: Sequence[Operation] = ()

    def open(self) -> None:
        again_and_again("refused", super().open)

    def commit(self, operations: Sequence[Operation], flushing: Callable[[], None] | None = None) -> list[Verdict]:
        if is_noise(operations):
            return super().commit(operations, flushing)
        if operations is not self._last:  # and not the same once more
            self._number += 1
            self._before = view_of(self._twin)
            self._twin.commit(operations)
            self._last = operations
        after = view_of(self._twin)
        say("about", self._number, digest_of(after))
        try:
            verdicts = super().commit(operations, flushing)
        except StoreUnavailable:
            say("failed", self._number)
            found = self._readable()
            assert found in (self._before, after), f"neither what was there before nor after: {found}"
            raise
        assert view_of(self) == after
        say("done", self._number, digest_of(after))
        return verdicts

    def _readable(self) -> View:
        try:
            return view_of(self)
        except StoreError as error:
            raise AssertionError(f"unreadable after a commit that failed: {error}") from error


TOLD: Final = frozenset({"opened", "closed"})


def play_store(folder: str, seed: int) -> None:
    play(Twins(folder), seed, COMMITS, lambda said: say(said.what, said.number) if said.what in TOLD else None)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Add(msgspec.Struct, frozen=True, tag=True):
    """Add a number; 0 ends it."""

    number: int


class Sum(Run[int, int, int]):
    """Adds up what it is told."""

    save_policy = SavePolicy(every_s=0.01)

    def begin(self, first: int) -> Any:
        return Wait(first)

    def step(self, state: int) -> Any:
        return Wait(state)

    def receive(self, state: int, message: Add) -> Any:
        total = state + message.number
        return Reply(total, Wait(total)) if message.number else Done(state)


def play_daemon(folder: str) -> None:
    """Two boots: runs that are ended in the first, and runs that go on in the second."""
    sums: dict[str, int] = {}
    for boot in (1, 2):
        try:
            runtime = again_and_again("refused", lambda: opened(folder), 2)
        except StoreUnavailable:
            # Each opening is on a thread of its own, and strace counts the calls of each thread for itself.
            return
        say("opened", boot)
        for number in range(RUNS):
            run_id = f"sum-{boot}-{number}"
            sums[run_id] = 0
            again_and_again("failed", lambda run_id=run_id: runtime.start(Sum, 0, run_id=run_id, if_exists="return"))
        for run_id in list(sums):
            handle: Any = runtime.get(run_id)
            for number in range(1, NUMBERS + 1):
                sums[run_id] += number
                # Asked, not told: durable() goes ahead of messages, and what was told lives in memory only.
                assert handle.ask(Add(number), TIMEOUT_S) == sums[run_id]
                seq = again_and_again("failed", lambda handle=handle: handle.durable(TIMEOUT_S))
                say(f"durable:{run_id}", seq)
        if boot == 2:
            for run_id, expected in sums.items():
                handle = runtime.get(run_id)
                handle.tell(Add(0))
                outcome = handle.outcome(TIMEOUT_S)
                assert outcome == Completed(expected, durable=True), (run_id, outcome, expected)
                say(f"ended:{run_id}")
        wait_until_healthy(runtime)
        say("closing")
        runtime.close()
        say("closed", boot)


def opened(folder: str) -> Runtime:
    runtime = Runtime(LmdbStore(folder), runs=[Sum], logger=False)
    runtime.events.subscribe(report)
    runtime.open()
    return runtime


def report(event: Event) -> None:
    if isinstance(event, StoreDegraded):
        say("degraded")
    elif isinstance(event, StoreRecovered):
        say("recovered")


def wait_until_healthy(runtime: Runtime) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while runtime.health().store_error is not None:
        assert time.monotonic() < deadline_s, runtime.health()
        time.sleep(0.005)


def main(way: str, folder: str, seed: str) -> None:
    files = open_files()
    if way == "store":
        play_store(folder, int(seed))
    else:
        play_daemon(folder)
    assert open_files() == files, (files, open_files())


if __name__ == "__main__":
    main(*sys.argv[1:])
