"""Do starts, stops, crashes, opens and closes leave anything behind? Threads, descriptors, memory, objects.

Each part does its thing in batches, in a process of its own, and is measured after each batch. The first one warms
caches and pools up; from there on everything has to stay flat.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from executus.actors import Actor, RestartPolicy, RunStatus, Runtime
from executus.actors.worker_pool import IDLE_S
from executus.stores import LmdbStore
from tests.doubles import SOON, AsyncFailableRun, FailableRun, Told
from tests.harness.forks import side_by_side
from tests.harness.report import Report
from tests.waiting import wait_until

BATCHES: Final = (3, 2)
"""The first warms up: where many threads come and go, the allocator makes its arenas for a while."""
SLACK_BYTES: Final = 8 * 1024**2
"""Of the allocator, which gives back what it has in pieces of its own."""
SLACK_OBJECTS: Final = 500

Act = Callable[[int], None]


class Reading(NamedTuple):
    """What the process has."""

    threads: int
    descriptors: int
    memory_bytes: int
    objects: int


def read() -> Reading:
    """After what is garbage has gone. Anonymous memory: pages of the store's file belong to the file."""
    for _ in range(3):
        gc.collect()
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    anonymous = next(line for line in lines if line.startswith("RssAnon"))
    return Reading(
        threads=threading.active_count(),
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        memory_bytes=int(anonymous.split()[1]) * 1024,
        objects=len(gc.get_objects()),
    )


# --- the parts --------------------------------------------------------------------------------------------------------


class Idle(Actor):
    """Is started and stopped."""


class Dies(Actor):
    """Is told so."""

    crash_log_level = logging.DEBUG

    def on_receive(self, message: Any) -> Any:
        raise ValueError(message)


@contextmanager
def actors_started_and_stopped(_: Path) -> Iterator[Act]:
    def act(count: int) -> None:
        refs = [Idle.start() for _ in range(count)]
        for ref in refs:
            ref.stop()

    yield act


@contextmanager
def actors_crashed(_: Path) -> Iterator[Act]:
    def act(count: int) -> None:
        refs = [Dies.start() for _ in range(count)]
        for ref in refs:
            ref.tell("die")
        wait_until(lambda: not any(ref.is_alive() for ref in refs), 30)

    yield act


@contextmanager
def _runtime(folder: Path, **options: Any) -> Iterator[Runtime]:
    store = LmdbStore(folder / "runs.store", profile="process")
    with Runtime(store, runs=[FailableRun, AsyncFailableRun], logger=False, **options) as runtime:
        yield runtime


@contextmanager
def runs_started_and_done(folder: Path) -> Iterator[Act]:
    with _runtime(folder) as runtime:

        def act(count: int) -> None:
            inputs = {f"r{n}": Told(("ok",)) for n in range(count)}
            for double in (FailableRun, AsyncFailableRun):
                handles = runtime.start_many(double, inputs, if_exists="replace")
                for handle in handles:
                    handle.result(60)

        yield act


@contextmanager
def runs_started_and_stopped(folder: Path) -> Iterator[Act]:
    with _runtime(folder) as runtime:

        def act(count: int) -> None:
            for double in (FailableRun, AsyncFailableRun):
                inputs = {f"r{n}": Told(("wait",)) for n in range(count)}
                handles = runtime.start_many(double, inputs, if_exists="replace")
                for handle in handles:
                    handle.cancel("enough", timeout_s=60)

        yield act


@contextmanager
def runs_crashed(folder: Path) -> Iterator[Act]:
    """Each crashes, is restarted, crashes again, and has failed."""
    once = RestartPolicy(max_restarts=1, backoff=SOON)
    with _runtime(folder, restart_policy=once) as runtime:

        def act(count: int) -> None:
            for double in (FailableRun, AsyncFailableRun):
                inputs = {f"r{n}": Told(("raise:ValueError",)) for n in range(count)}
                handles = runtime.start_many(double, inputs, if_exists="replace")
                for handle in handles:
                    handle.outcome(60)
                assert {view.status for view in runtime.runs()} == {RunStatus.FAILED}

        yield act


@contextmanager
def runtimes_opened_and_closed(folder: Path) -> Iterator[Act]:
    def act(count: int) -> None:
        for _ in range(count):
            with _runtime(folder) as runtime:
                for double in (FailableRun, AsyncFailableRun):
                    runtime.start(double, Told(("ok",)), run_id=double.run_type, if_exists="replace").result(60)
            with Runtime(None, runs=[FailableRun], logger=False) as runtime:
                runtime.start(FailableRun, Told(("wait",)))

    yield act


class Part(NamedTuple):
    """What is done, of the count one in how many, and in each batch no fewer than this."""

    make: Callable[[Path], Any]
    one_in: int
    least: int = 1


PARTS: Final = {
    "actors started and stopped": Part(actors_started_and_stopped, 1),
    "actors crashed": Part(actors_crashed, 10),
    "runs started and done": Part(runs_started_and_done, 1),
    "runs started and stopped": Part(runs_started_and_stopped, 1),
    "runs crashed": Part(runs_crashed, 10),
    "runtimes opened and closed": Part(runtimes_opened_and_closed, 100, least=20),
}


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(make: Callable[[Path], Any], each: int) -> list[Reading]:
    """A reading after each batch."""
    readings: list[Reading] = []
    with TemporaryDirectory(prefix="executus-leaks-") as folder, make(Path(folder)) as act:
        for times in BATCHES:
            for _ in range(times):
                act(each)
            readings.append(_settled())
    return readings


def _settled() -> Reading:
    """Once workers with nothing to do have ended, and with them what their last turn left on their stacks."""
    threads, same_since_s = threading.active_count(), time.monotonic()
    while time.monotonic() - same_since_s < IDLE_S + 0.2:
        time.sleep(0.05)
        if threading.active_count() != threads:
            threads, same_since_s = threading.active_count(), time.monotonic()
    return read()


def judge(readings: list[Reading]) -> list[str]:
    """What grew after the first batch, which warms caches and pools up."""
    before, after = Reading(*readings[0]), Reading(*readings[-1])
    slacks = {"threads": 0, "descriptors": 0, "memory_bytes": SLACK_BYTES, "objects": SLACK_OBJECTS}
    return [
        f"{name} grew from {getattr(before, name)} to {getattr(after, name)}"
        for name, slack in slacks.items()
        if getattr(after, name) > getattr(before, name) + slack
    ]


def run(count: int, seed: int) -> Report:
    """`count` starts and stops, a tenth of it crashes, a hundredth opens and closes."""
    del seed  # there is no chance in it
    began_s = time.monotonic()
    failures: list[str] = []
    figures: dict[str, float | int | str] = {}
    done = 0
    each_of = {name: max(part.least, count // part.one_in // sum(BATCHES)) for name, part in PARTS.items()}
    # All at once: for most of the time a part waits until its threads have ended.
    acts = [partial(measure, part.make, each_of[name]) for name, part in PARTS.items()]
    for (name, each), trial in zip(each_of.items(), side_by_side(acts, 600, len(acts)), strict=True):
        if trial.answer is None:
            failures.append(f"{name}: {trial.death}")
            continue
        failures += [f"{name}: {complaint}" for complaint in judge(trial.answer)]
        first, last = Reading(*trial.answer[0]), Reading(*trial.answer[-1])
        times = each * sum(BATCHES)
        done += times
        figures[f"{name}, {times}: threads"] = f"{first.threads} -> {last.threads}"
        figures[f"{name}, {times}: descriptors"] = f"{first.descriptors} -> {last.descriptors}"
        figures[f"{name}, {times}: KB"] = f"{first.memory_bytes // 1024} -> {last.memory_bytes // 1024}"
        figures[f"{name}, {times}: objects"] = f"{first.objects} -> {last.objects}"
    return Report(
        name="leaks",
        promise=(18,),
        count=done,
        failures=tuple(failures),
        figures=figures,
        took_s=time.monotonic() - began_s,
    )
