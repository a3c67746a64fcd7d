"""Asks how fast runs step and save, and what an idle one weighs.

1,000 runs with states of about 1 KB. Throttled: trivial steps, saved every second. Synchronous: every step is committed
and waited for. Beside them, in the same round, a plain loop of `pwrite` and `fdatasync` on the same disk: what one
durable write costs.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import interleaved, report, resident_bytes
from executus.actors import Run, Runtime, RunView, SavePolicy, Wait
from executus.actors.events import Event, SnapshotSaved

RUNS = 1_000
IDLE_RUNS = 20_000
IDLE_CHUNK = 500
EVERY_S = 1.0

Figures = Mapping[str, tuple[float, str]]


class Page(msgspec.Struct, frozen=True):
    """About 1 KB."""

    turned: int
    text: str


class Turn(Run[int, Page, int]):
    """Trivial steps for ever."""

    save_policy = SavePolicy(every_s=EVERY_S)

    def begin(self, size: int) -> Page:
        return Page(0, "x" * size)

    def step(self, page: Page) -> Page:
        return Page(page.turned + 1, page.text)


class TurnDurably(Turn):
    """The same, every step committed and waited for."""

    save_policy = SavePolicy(durability="sync")


class Idle(Run[int, int, int]):
    """Waits for a message that never comes."""

    def begin(self, number: int) -> Wait[int]:
        return Wait(number)

    def step(self, number: int) -> Wait[int]:
        return Wait(number)


@contextmanager
def folder(root: str | None) -> Iterator[Path]:
    """A folder on the disk in question, gone afterwards."""
    made = tempfile.mkdtemp(prefix="executus-benchmark-", dir=root)
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


class Gaps:
    """The longest time between two acknowledged saves of one run, from its events."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.longest_s = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, SnapshotSaved):
            now_s = time.monotonic()
            before_s = self.last.get(event.run_id)
            if before_s is not None and now_s - before_s > self.longest_s:
                self.longest_s = now_s - before_s
            self.last[event.run_id] = now_s


def _total(views: list[RunView]) -> tuple[int, int]:
    return sum(view.seq for view in views), sum(view.durable_seq for view in views)


def stepping(run_class: type[Turn], seconds: float, root: str | None) -> tuple[float, float, float, int]:
    """Steps a second, durable steps a second, the longest gap between saves, threads."""
    with folder(root) as where, Runtime(where / "store", runs=[run_class], logger=False) as runtime:
        handles = runtime.start_many(run_class, {f"run-{i:04}": 1_000 for i in range(RUNS)})
        time.sleep(EVERY_S)  # the first saves, of all at once, are behind us
        gaps = Gaps()
        runtime.events.subscribe(gaps)
        began_s, before = time.perf_counter(), _total([h.status() for h in handles])
        time.sleep(seconds)
        took_s, after = time.perf_counter() - began_s, _total([h.status() for h in handles])
        threads = runtime.health().worker_threads
    return (after[0] - before[0]) / took_s, (after[1] - before[1]) / took_s, gaps.longest_s, threads


def throttled(seconds: float, root: str | None) -> Figures:
    """Trivial steps, saved every second."""
    steps, _, gap_s, threads = stepping(Turn, seconds, root)
    return {
        "throttled: steps": (steps, "steps/s"),
        "throttled: latest save after every_s": (max(0.0, gap_s - EVERY_S) * 1_000, "ms"),
        "throttled: worker threads": (threads, "threads"),
    }


def synchronous(seconds: float, root: str | None) -> Figures:
    """Every step committed and waited for."""
    _, durable, _, threads = stepping(TurnDurably, seconds, root)
    return {"sync: durable steps": (durable, "steps/s"), "sync: worker threads": (threads, "threads")}


def plain_fdatasync(seconds: float, root: str | None) -> Figures:
    """One durable write after the other, without any of ours: 1 KB, then fdatasync."""
    data, count = b"x" * 1_024, 0
    with folder(root) as where:
        fd = os.open(where / "plain", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            until_s = time.perf_counter() + min(seconds, 1.0)
            while time.perf_counter() < until_s:
                os.pwrite(fd, data, (count % 1_024) * 1_024)
                os.fdatasync(fd)
                count += 1
        finally:
            os.close(fd)
    return {"plain loop: 1 KB and fdatasync": (count / min(seconds, 1.0), "writes/s")}


def weigh_idle(root: str | None) -> None:
    """In a process of its own: start many waiting runs, some hundred at a time; print what each holds and takes."""
    handles: list[Any] = []
    with folder(root) as where, Runtime(where / "store", runs=[Idle], logger=False) as runtime:
        runtime.start(Idle, -1).durable()
        gc.collect()
        before, began_s = resident_bytes(), time.perf_counter()
        for first in range(0, IDLE_RUNS, IDLE_CHUNK):
            handles += runtime.start_many(Idle, {f"idle-{first + i:05}": i for i in range(IDLE_CHUNK)})
            while not all(handle.status().waiting for handle in handles[-IDLE_CHUNK:]):
                time.sleep(0.001)
        took_s = time.perf_counter() - began_s
        gc.collect()
        print((resident_bytes() - before) / IDLE_RUNS, IDLE_RUNS / took_s)


def idle(_seconds: float, root: str | None) -> Figures:
    """Resident memory of waiting runs, and what starting them costs."""
    program = f"from benchmarks.runs import weigh_idle; weigh_idle({root!r})"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    weight, started = map(float, done.stdout.split())
    return {"waiting run: resident, handle included": (weight, "bytes"), "runs started durably": (started, "runs/s")}


def main(options: Any) -> int:
    """Ask all of it, `options.rounds` times."""
    questions: dict[str, Callable[[], Figures]] = {
        name: (lambda ask=ask: ask(options.seconds, options.folder))
        for name, ask in {
            "throttled": throttled,
            "sync": synchronous,
            "fdatasync": plain_fdatasync,
            "idle": idle,
        }.items()
    }
    measured = interleaved(questions, options.rounds)
    notes = [
        f"{RUNS} runs, states of about 1 KB, {options.seconds:g} s a round, unpinned.",
        "Throttled steps are bound by the interpreter, durable steps by encoding and the commit's share of the GIL,",
        "not by the disk: a commit takes all steps that are ready, so its flush is shared by hundreds.",
        "The weight is anonymous memory, in a fresh process; the store's own pages are the file's and can be dropped.",
        "Wanted: at least 150,000 throttled steps/s with no save later than 100 ms after every_s, 25,000 durable",
        "steps/s, at most 4 KB a waiting run.",
    ]
    report("runs", measured, notes=notes, as_json=options.json, save=options.save)
    return 0
