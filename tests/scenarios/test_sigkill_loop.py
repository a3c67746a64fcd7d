"""The SIGKILL loop: a daemon killed a hundred times at random moments finishes everything it ever started, and lost nothing it was told is saved."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.scenarios.harness import Daemon
from tests.scenarios.loop_daemon import CHILDREN, EACH, EVERY_S, PARENTS, STEPS, Line

# Three deaths before any durable progress quarantine a run, and rightly so. Here nobody is to blame but the test; so every
# third life lasts until each run that came back has saved or ended, and only then for its random while. The others are cut at
# random from the moment the daemon says that it is open.
from tests.waiting import elapse

KILLS = int(os.environ.get("EXECUTUS_KILLS", "100"))
SEED = int(os.environ.get("EXECUTUS_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
LONG_LIFE_S = 0.8
"""Every tenth life is so long, for the check of due saves: within the others hardly any save is surely due."""
SLACK_S = 0.5
"""What a commit may take on a shared machine."""
SQUARES = sum(n * n for n in range(STEPS))


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


@pytest.mark.timeout(600)  # a hundred processes are opened one after the other
def test_a_daemon_killed_a_hundred_times_loses_no_acknowledged_save_and_ends_with_every_result_right(
    store_path: Path,
) -> None:
    print(f"seed {SEED}: EXECUTUS_SEED={SEED} kills at the same moments")
    rng = random.Random(SEED)
    books = Books()
    kills = boots = generation = 0
    while True:
        boots += 1
        daemon = Daemon(store_path, str(generation), module="loop_daemon")
        try:
            daemon.wait_for(lambda daemon=daemon: any(line[0] == "open" for line in daemon.lines), "open", 30)  # type: ignore[misc]
            killed_at_s: float | None = None
            if kills < KILLS:
                if kills % 3 == 0:
                    daemon.wait_for(lambda daemon=daemon: all_got_on(daemon.lines), "progress of all", 30)  # type: ignore[misc]
                life_s = LONG_LIFE_S if kills % 10 == 9 else rng.uniform(0, 0.3)
                elapse(life_s)
                killed_at_s = time.monotonic()
            else:
                daemon.wait_for(
                    lambda daemon=daemon: any(line[0] == "all done" for line in daemon.lines), "all done", 60
                )  # type: ignore[misc]
        finally:
            daemon.kill()
        kills += killed_at_s is not None
        lines = [msgspec.convert(line, Line) for line in daemon.lines]
        if books.enter(lines, boots, killed_at_s):
            generation += 1
            if killed_at_s is None:
                break
    expected = {
        f"{gen}-{kind}-{n}": SQUARES
        for gen in range(generation)
        for kind in ("Squares", "AsyncSquares", "WaitingSquares")
        for n in range(EACH)
    }
    for gen in range(generation):
        for n in range(PARENTS):
            expected[f"{gen}-parent-{n}"] = SQUARES * CHILDREN
            expected.update({f"{gen}-parent-{n}/{child}": SQUARES for child in range(CHILDREN)})
    print(f"{kills} kills, {boots} boots, {generation} generations, {len(expected)} runs, {dict(books.counts)}")
    assert books.results == expected
    assert kills >= KILLS
    assert books.counts["settled quarantined"] == 0
    assert books.counts["restored"] > KILLS
    by_run: dict[str, set[str]] = {}
    for (run_id, _), key in books.keys.items():
        by_run.setdefault(run_id, set()).add(key)
    assert sum(map(len, by_run.values())) == len(books.keys)  # no two actions share a key
    assert max(books.attempts.values()) > 2
