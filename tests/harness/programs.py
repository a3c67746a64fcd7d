"""Which programs there are. A new one is a module here with `run(count, seed)`, and a line in this table."""

from __future__ import annotations

import importlib
from typing import Final, NamedTuple, Protocol

from tests.harness.report import Report


class Program(NamedTuple):
    """A program's usual count, and what it asks."""

    count: int
    question: str


class Run(Protocol):
    """What each module offers."""

    def __call__(self, count: int, seed: int) -> Report: ...


PROGRAMS: Final[dict[str, Program]] = {
    "power_loss": Program(4000, "What does a loss of power leave of the store, in each profile?"),
    "nth_failure": Program(0, "What if the Nth write, flush or rename fails, for every N? (0: every one)"),
    "corruption": Program(3000, "What does a damaged file do?"),
    "decode_fuzz": Program(20_000, "What do hostile records do?"),
    "limits": Program(1, "What if disk, address space, threads or descriptors run out? (count: rounds)"),
    "sigkill": Program(100, "What does kill -9 lose, at any moment? (count: kills)"),
    "agents": Program(100, "What do agents do twice, or never, after kill -9 at any moment? (count: kills)"),
    "ownership": Program(200, "Who owns a store after kill -9, and who is refused?"),
    "leaks": Program(10_000, "Do starts, stops, crashes, opens and closes leave anything behind?"),
    "drains": Program(100, "Does a drain return in time, whatever runs do?"),
    "embedding": Program(100, "Does a host end as it would by itself, in time and with its own exit code?"),
}


def load(name: str) -> Run:
    """The function that runs a program."""
    run: Run = importlib.import_module(f"tests.harness.{name}").run
    return run
