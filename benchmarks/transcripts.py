"""Asks what saving a transcript costs as it grows: a message of about 1 KB a step, each step committed and waited for.

A `Journal` in the state, and beside it a tuple, which is saved whole. Each figure is of steps behind so many messages.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from benchmarks.harness import interleaved, report
from benchmarks.runs import Figures, folder
from executus.actors import Journal, Run, Runtime, SavePolicy, Wait
from executus.stores import LmdbStore, Operation, Save, Verdict

LENGTHS = (10, 1_000, 10_000)
STEPS = 64
"""So many steps are measured at each length: twice as many as the small rows that are gathered into one."""
MESSAGE_BYTES = 1_000


class Message(msgspec.Struct, frozen=True):
    """About 1 KB."""

    role: str
    text: str


class InJournal(msgspec.Struct, frozen=True):
    """A transcript of which a save writes what is new."""

    goal: int
    messages: Journal[Message]


class InTuple(msgspec.Struct, frozen=True):
    """A transcript that is saved whole."""

    goal: int
    messages: tuple[Message, ...]


def message(number: int) -> Message:
    """About 1 KB."""
    return Message("user", f"{number:08} {'x' * MESSAGE_BYTES}")


class GrowJournal(Run[int, InJournal, int]):
    """Begins with a length and grows by STEPS."""

    save_policy = SavePolicy(durability="sync")

    def begin(self, length: int) -> InJournal:
        return InJournal(length + STEPS, Journal(message(number) for number in range(length)))

    def step(self, state: InJournal) -> InJournal | Wait[InJournal]:
        if len(state.messages) == state.goal:
            return Wait(state)
        return InJournal(state.goal, state.messages.append(message(len(state.messages))))


class GrowTuple(Run[int, InTuple, int]):
    """The same."""

    save_policy = SavePolicy(durability="sync")

    def begin(self, length: int) -> InTuple:
        return InTuple(length + STEPS, tuple(message(number) for number in range(length)))

    def step(self, state: InTuple) -> InTuple | Wait[InTuple]:
        if len(state.messages) == state.goal:
            return Wait(state)
        return InTuple(state.goal, (*state.messages, message(len(state.messages))))


class CountingStore(LmdbStore):
    """Counts what it is handed of states and journals, and when."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.saves: list[tuple[int, float]] = []

    def commit(self, operations: Sequence[Operation], flushing: Callable[[], None] | None = None) -> list[Verdict]:
        verdicts = super().commit(operations, flushing)
        self.saves += [
            (len(op.snapshot.state) + sum(len(chunk.items) for chunk in op.chunks), time.perf_counter())
            for op in operations
            if isinstance(op, Save)
        ]
        return verdicts


def growing(kind: Any, length: int, root: str | None) -> Figures:
    """Bytes and time of each step behind `length` messages."""
    with folder(root) as where:
        store = CountingStore(where / "store")
        with Runtime(store, runs=[kind], logger=False) as runtime:
            handle = runtime.start(kind, length, run_id="r")
            while not handle.status().waiting or len(store.saves) < STEPS + 2:
                time.sleep(0.01)
        first, *steps = store.saves[: STEPS + 1]
        name = f"{'journal' if kind is GrowJournal else 'tuple  '} of {length:6,}"
        return {
            f"{name}: handed to the store a step": (sum(size for size, _ in steps) / STEPS / 1000, "KB"),
            f"{name}: a step": ((steps[-1][1] - first[1]) / STEPS * 1000, "ms"),
        }


def reading(root: str | None) -> Figures:
    """The next boot of a run with the longest journal, until it answers."""
    with folder(root) as where:
        with Runtime(LmdbStore(where / "store"), runs=[Read], logger=False) as runtime:
            runtime.start(Read, LENGTHS[-1], run_id="r").durable(60)
        began_s = time.perf_counter()
        with Runtime(LmdbStore(where / "store"), runs=[Read], logger=False) as runtime:
            assert runtime.get(Read, "r").query(None) == LENGTHS[-1]
            return {
                f"journal of {LENGTHS[-1]:6,}: opened, read back, a query answered": (
                    (time.perf_counter() - began_s) * 1000,
                    "ms",
                )
            }


class Read(GrowJournal):
    """Is saved once and asked after a restart."""

    save_policy = SavePolicy()

    def step(self, state: InJournal) -> Wait[InJournal]:
        return Wait(state)

    def query(self, state: InJournal, question: object) -> int:  # noqa: ARG002
        return len(state.messages)


def main(options: argparse.Namespace) -> int:
    """Measure, and report."""
    questions: dict[str, Callable[[], Figures]] = {
        f"{kind.__name__} {length}": lambda kind=kind, length=length: growing(kind, length, options.folder)  # type: ignore[misc]
        for kind in (GrowJournal, GrowTuple)
        for length in LENGTHS
    } | {"reading": lambda: reading(options.folder)}
    measured = interleaved(questions, options.rounds)
    report(
        "transcripts",
        measured,
        notes=[
            f"Messages of {MESSAGE_BYTES} bytes, one a step, durability='sync', power profile, means of {STEPS} steps.",
            "A journal's bytes are written twice: as they come, and once more when 32 small rows become one.",
            "A journal's step is bound by the disk's flush, a tuple's by encoding it and writing all of it.",
        ],
        as_json=options.json,
        save=options.save,
    )
    return 0
