"""What does kill -9 lose, at any moment?

A daemon says every step before it does it and every save once it is acknowledged, through a pipe. It is killed over and
over: at random moments, by itself right where it says something (a labelled point), and after it was stopped for a
while by SIGSTOP, during which nobody else gets its store. Every time it is started again; in the end everything it ever
started has its right result.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec
import pytest

from executus.stores import LmdbStore, StoreLocked
from tests.harness.report import Report
from tests.scenarios.harness import Daemon
from tests.scenarios.loop_daemon import CHILDREN, EACH, EVERY_S, PARENTS, STEPS, Line
from tests.waiting import elapse

LONG_LIFE_S: Final = 0.8
"""Every tenth life is so long, for the check of due saves: within the others hardly any save is surely due."""
SLACK_S: Final = 0.5
"""What a commit may take on a shared machine."""
SQUARES: Final = sum(n * n for n in range(STEPS))
LABELS: Final = {"comes back": 1, "attempt": 20, "restored": 10, "step": 300, "saved": 60, "settled completed": 6}
"""Where a daemon may kill itself, and at most the how manyth time it comes by."""


class Books:
    """What is known of every run, from what the daemons said."""

    def __init__(self) -> None:
        self.saved: dict[str, int] = {}
        self.due: dict[str, int] = {}
        self.attempts: dict[str, int] = {}
        self.keys: dict[tuple[str, int], str] = {}
        self.counts: Counter[str] = Counter()
        self.results: dict[str, int] = {}

    def enter(self, lines: list[Line], boots: int, killed_at_s: float | None) -> bool:
        """Check one life's lines against all before. True when the generation is done."""
        due: dict[str, int] = {}
        finished = False
        for line in lines:
            run_id, number = line.run_id, line.number
            self.counts[line.kind] += 1
            match line.kind:
                case "attempt":
                    assert self.attempts.get(run_id, 0) < number <= boots, (
                        f"{run_id}: attempt {number} in boot {boots}, before {self.attempts.get(run_id)}"
                    )
                    self.attempts[run_id] = number
                case "restored":
                    assert number >= self.saved.get(run_id, 0), (
                        f"{run_id} resumed from {number}, {self.saved[run_id]} was acknowledged"
                    )
                    assert number >= self.due.get(run_id, 0), (
                        f"{run_id} resumed from {number}, {self.due[run_id]} was due"
                    )
                case "saved":
                    assert number > self.saved.get(run_id, 0), f"{run_id} saved {number} after {self.saved[run_id]}"
                    self.saved[run_id] = number
                case "step":
                    key = self.keys.setdefault((run_id, number), line.key)
                    assert key == line.key, f"{run_id} did step {number} under another key"
                    if killed_at_s is not None and line.at_s < killed_at_s - EVERY_S - SLACK_S:
                        due[run_id] = number  # the state before this step is seq number + 1: begin made seq 1
                case "ended completed":
                    self.results[run_id] = number
                case "all done":
                    finished = True
                case _:
                    assert not line.kind.startswith("ended "), line
        self.due.update({run_id: seq + 1 for run_id, seq in due.items()})
        return finished


def all_got_on(lines: list[list[Any]]) -> bool:
    """Whether every run that this life brings back or starts has come and has saved or ended since."""
    expected, came, got_on = 0, dict[str, int](), set[str]()
    for kind, run_id, number, *_ in list(lines):
        match kind:
            case "comes back":
                expected = number
            case "attempt":
                came[run_id] = number
            case "saved" | "settled completed":
                got_on.add(run_id)
            case _:
                pass
    return sum(attempt > 1 for attempt in came.values()) >= expected and came.keys() <= got_on


def expected_results(generations: int) -> dict[str, int]:
    """What every run ever started has to end with."""
    expected: dict[str, int] = {}
    for gen in range(generations):
        for kind in ("Squares", "AsyncSquares", "WaitingSquares", "JournalSquares"):
            expected.update({f"{gen}-{kind}-{n}": SQUARES for n in range(EACH)})
        for n in range(PARENTS):
            expected[f"{gen}-parent-{n}"] = SQUARES * CHILDREN
            expected.update({f"{gen}-parent-{n}/{child}": SQUARES for child in range(CHILDREN)})
    return expected


class Killer:
    """Starts the daemon over and over, and ends its lives."""

    def __init__(self, store: Path, seed: int) -> None:
        self.store = store
        self.rng = random.Random(seed)
        self.books = Books()
        self.kills = self.boots = self.generation = 0

    def kill_often(self, count: int) -> None:
        """Kill so many daemons, then let one come to its end."""
        while self.kills < count:
            # Three deaths before any durable progress quarantine a run, and rightly so. Here nobody is to blame: so
            # every third life lasts until each run that came back has saved or ended, and only then for its while.
            how = self._progress if self.kills % 3 == 0 else self.rng.choice((self._random, self._random, self._label))
            self._live(self._stopped if self.kills % 20 == 13 else how)
        while self._live(self._to_the_end):
            pass

    def _live(self, how: Any) -> bool:
        """One life. Whether it was killed."""
        self.boots += 1
        label = self._chosen_label() if how == self._label else ""
        daemon = Daemon(self.store, str(self.generation), label, module="loop_daemon")
        try:
            killed_at_s: float | None = how(daemon)
        finally:
            daemon.kill()
        lines = [msgspec.convert(line, Line) for line in daemon.lines]
        finished = self.books.enter(lines, self.boots, killed_at_s)
        self.generation += finished
        self.kills += killed_at_s is not None
        if killed_at_s is not None:
            self.books.counts[f"killed: {how.__name__.strip('_')}"] += 1
        return not finished or killed_at_s is not None

    def _opened(self, daemon: Daemon) -> None:
        daemon.wait_for(lambda: any(line[0] == "open" for line in daemon.lines), "open", 30)

    def _random(self, daemon: Daemon) -> float:
        """At any moment from its opening on."""
        self._opened(daemon)
        elapse(LONG_LIFE_S if self.kills % 10 == 9 else self.rng.uniform(0, 0.3))
        return time.monotonic()

    def _progress(self, daemon: Daemon) -> float:
        """The same, once every run got on."""
        self._opened(daemon)
        daemon.wait_for(partial(all_got_on, daemon.lines), "progress of all", 30)
        return self._random(daemon)

    def _stopped(self, daemon: Daemon) -> float:
        """Stopped for a while: nobody else gets the store, and it goes on afterwards."""
        self._opened(daemon)
        daemon.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, daemon.process.pid, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(StoreLocked) as refused:
            LmdbStore(self.store).open()
        assert refused.value.owner_pid == daemon.process.pid
        elapse(self.rng.uniform(0.2, 1.0))
        before = len(daemon.lines)
        daemon.process.send_signal(signal.SIGCONT)
        daemon.wait_for(lambda: len(daemon.lines) > before, "it goes on after SIGCONT", 30)
        return self._progress(daemon)

    def _label(self, daemon: Daemon) -> float | None:
        """By itself, right where it says something; or it was done before."""
        daemon.ended()
        lines = [msgspec.convert(line, Line) for line in daemon.lines]
        return None if lines[-1].kind == "all done" else max(line.at_s for line in lines)

    def _chosen_label(self) -> str:
        label = self.rng.choice(sorted(LABELS))
        return f"{label}:{self.rng.randint(1, LABELS[label])}"

    def _to_the_end(self, daemon: Daemon) -> None:
        daemon.wait_for(lambda: any(line[0] == "all done" for line in daemon.lines), "all done", 60)


def judge(killer: Killer) -> list[str]:
    """What the books say in the end."""
    books, wrong = killer.books, list[str]()
    if books.results != expected_results(killer.generation):
        wrong.append(f"results {books.results} instead of {expected_results(killer.generation)}")
    if books.counts["settled quarantined"]:
        wrong.append(f"{books.counts['settled quarantined']} runs were quarantined")
    by_run: dict[str, set[str]] = {}
    for (run_id, _), key in books.keys.items():
        by_run.setdefault(run_id, set()).add(key)
    if sum(map(len, by_run.values())) != len(books.keys):
        wrong.append("two actions share an idempotency key")
    return wrong


def run(count: int, seed: int) -> Report:
    """Kill `count` times. The moments depend on the machine, too: a seed makes the same choices, not the same crash."""
    began_s = time.monotonic()
    failures: list[str] = []
    with TemporaryDirectory(prefix="executus-sigkill-") as folder:
        killer = Killer(Path(folder) / "runs.store", seed)
        try:
            killer.kill_often(count)
        except AssertionError as error:
            failures.append(f"after {killer.kills} kills: {error!s:.20000}")
        else:
            failures += judge(killer)
    books = killer.books
    figures: dict[str, float | int | str] = {
        "boots": killer.boots,
        "runs": len(books.results),
        "saves acknowledged": books.counts["saved"],
        "resumed from a save": books.counts["restored"],
        "steps": books.counts["step"],
        "steps done again": books.counts["step"] - len(books.keys),
        "most attempts of a run": max(books.attempts.values(), default=0),
    }
    figures |= {kind: number for kind, number in sorted(books.counts.items()) if kind.startswith("killed: ")}
    return Report(
        name="sigkill",
        promise=(1, 2, 5, 8, 17),
        count=killer.kills,
        failures=tuple(failures),
        figures=figures,
        took_s=time.monotonic() - began_s,
    )
