"""Asks what 100,000 passivated runs cost: memory, disk, the next boot, and an answer of one of them.

Memory is anonymous and resident, of the very process; pages of the store's file, which the system may drop, are not
in it. Beside it the same process without any run.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import interleaved, report, resident_bytes
from benchmarks.runs import Figures, folder
from executus.actors import Reply, Run, Runtime, SavePolicy, Wait, WaitExpired
from executus.stores import LmdbStore, RunStatus

COUNT = 100_000
WAVE = 1_000
"""So many are live at a time; those of a wave have left memory before the next one comes."""
WARM_WAVES = 20
"""After so many waves the process has the memory that its work needs."""
ASKED = 200
SOON = 500
"""So many have their time at once."""


class Waiter(Run[float, int, int]):
    """Waits for a question, or for so many seconds."""

    save_policy = SavePolicy(passivate_after_s=0.02)

    def begin(self, timeout_s: float) -> Wait[int]:
        return Wait(0, timeout_s=timeout_s or None)

    def step(self, state: int) -> Wait[int]:
        return Wait(state)

    def receive(self, state: int, message: Question | WaitExpired) -> Reply[int, Any] | Wait[int]:
        return Reply(state + 1, Wait(state + 1)) if isinstance(message, Question) else Wait(-1)


class Question(msgspec.Struct, frozen=True, tag=True):
    """How often it was asked."""


def resting(runtime: Runtime) -> int:
    """How many runs the store says are passivated."""
    return runtime._core.store.count_ended()[RunStatus.PASSIVATED]  # noqa: SLF001


def until(predicate: Callable[[], bool]) -> None:
    """Wait for a fact."""
    while not predicate():
        time.sleep(0.001)


def fill(store: Path) -> Figures:
    """Have them all started and passivated, wave by wave."""
    with Runtime(LmdbStore(store, profile="process"), runs=[Waiter], logger=False) as runtime:
        began_s, warm_bytes = time.perf_counter(), 0
        for wave in range(COUNT // WAVE):
            runtime.start_many(Waiter, {f"r{wave:03}-{n:03}": 0.0 if n % 2 else 86_400.0 for n in range(WAVE)})
            until(lambda wave=wave: resting(runtime) == (wave + 1) * WAVE and not runtime._core.table)  # type: ignore[misc]  # noqa: SLF001
            if wave + 1 == WARM_WAVES:
                gc.collect()
                warm_bytes = resident_bytes()
        took_s = time.perf_counter() - began_s
        gc.collect()
        grown = resident_bytes() - warm_bytes
    used = sum(file.stat().st_blocks * 512 for file in store.iterdir())
    return {
        "memory of one where it was passivated": (grown / (COUNT - WARM_WAVES * WAVE), "bytes"),
        "disk of one": (used / COUNT / 1000, "KB"),
        "started, saved and passivated": (COUNT / took_s, "runs/s"),
    }


def boot(store: Path, name: str, count: int) -> Figures:
    """The next boot, in a process of its own; with runs there, also what answers cost."""
    program = [sys.executable, "-m", "benchmarks.passivated", str(store), str(count)]
    done = subprocess.run(program, check=True, capture_output=True)
    facts = msgspec.json.decode(done.stdout, type=dict[str, tuple[float, str]])
    return {f"{name}: {title}": figure for title, figure in facts.items()}


def booted(store: str, count: int) -> Figures:
    """In the process of its own."""
    began_s = time.perf_counter()
    with Runtime(LmdbStore(store, profile="process"), runs=[Waiter], logger=False) as runtime:
        opened_s = time.perf_counter() - began_s
        figures: Figures = {
            "opening": (opened_s * 1000, "ms"),
            "memory after opening": (resident_bytes() / 1e6, "MB"),
        }
        if count:
            took: list[float] = []
            for n in range(ASKED):
                asked_s = time.perf_counter()
                runtime.get(Waiter, f"r{n % (count // WAVE):03}-{n:03}").ask(Question(), 60)
                took.append(time.perf_counter() - asked_s)
            figures["an ask of a passivated run"] = (statistics.median(took) * 1000, "ms")
            until(lambda: resting(runtime) == count and not runtime._core.table)  # noqa: SLF001
            began_s = time.perf_counter()
            handles = runtime.start_many(Waiter, {f"soon-{n}": 2.0 for n in range(SOON)})
            until(lambda: all(handle.status().seq == 2 for handle in handles))
            figures[f"{SOON} that are due at once, after their time"] = (
                (time.perf_counter() - began_s - 2.0) * 1000,
                "ms",
            )
        return figures


def asked(root: str | None) -> Figures:
    """One round."""
    with folder(root) as where:
        return (
            boot(where / "empty", "without runs", 0)
            | fill(where / "full")
            | boot(where / "full", f"{COUNT:,} passivated", COUNT)
        )


def main(options: argparse.Namespace) -> int:
    """Measure, and report."""
    measured = interleaved({"passivated": lambda: asked(options.folder)}, options.rounds)
    report(
        "passivated",
        measured,
        notes=[
            f"{COUNT:,} runs in waves of {WAVE:,}, every other one with a deadline in a day; passivate_after_s=0.02.",
            f"Memory of one is the growth from wave {WARM_WAVES} to the last, a run. Profile 'process'.",
            "An ask of a passivated run is one commit (its claim) and a read; in the power profile, a flush as well.",
        ],
        as_json=options.json,
        save=options.save,
    )
    return 0


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(booted(sys.argv[1], int(sys.argv[2]))).decode())
