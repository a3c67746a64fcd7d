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
}


def load(name: str) -> Run:
    """The function that runs a program."""
    run: Run = importlib.import_module(f"tests.harness.{name}").run
    return run
