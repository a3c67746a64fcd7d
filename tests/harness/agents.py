"""What do agents do twice, or never, when their process is killed at any moment?

A conversation, a pipeline in both resume modes and an agent that delegates are played side by side, saved at each step,
now and then or hardly ever. The process is killed twice at random moments and then left to come to its end; what each
run did to the world, asked its model and ended with is compared with one that nobody interrupted.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.harness.report import Report
from tests.scenarios.agent_books import Reference, Tour, judged
from tests.scenarios.agent_stories import STORIES
from tests.waiting import elapse

EACH: Final = 4
PAUSE_S: Final = 0.01
"""What a request or a call takes."""
LIFE_S: Final = 0.5
KILLS: Final = 2
"""In the life of each run. A third death without progress would quarantine it, and rightly so."""
EVERY_S: Final = (None, 0.05, 3600.0)


class Killer:
    """Plays generations of runs and kills each of them twice."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.kills = self.boots = self.runs = 0
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._folder = folder
        undisturbed = Tour(folder / "undisturbed", {story: story for story in STORIES}, None)
        undisturbed.live(announces=True)
        self._references = {story: Reference(undisturbed, story) for story in STORIES}

    def play(self) -> None:
        """One generation."""
        stories = {f"{story}-{number}": story for story in STORIES for number in range(EACH)}
        every_s = self.rng.choice(EVERY_S)
        tour = Tour(self._folder / f"generation-{self.boots}", stories, every_s, PAUSE_S)
        for _ in range(KILLS):
            daemon = tour.opened()
            try:
                daemon.opened()
                elapse(self.rng.uniform(0, LIFE_S))
            finally:
                daemon.kill()
                tour.enter(daemon)
            self.kills += 1
        tour.live()
        self.boots += KILLS + 1
        self.runs += len(stories)
        self.failures += [
            f"saved every {every_s} s, after {self.kills} kills: {one}" for one in judged(tour, self._references)
        ]
        deeds = Counter((one.run_id, one.tool, one.what) for one in tour.effects())
        self.counts["effects"] += sum(deeds.values())
        self.counts["effects repeated"] += sum(deeds.values()) - len(deeds)
        self.counts["outcomes unknown"] += len(tour.books.unknown)
        self.counts["children"] += len({one for one in tour.books.asked if "/" in one})


def run(count: int, seed: int) -> Report:
    """Kill `count` times. The moments depend on the machine, too: a seed makes the same choices, not the same crash."""
    began_s = time.monotonic()
    with TemporaryDirectory(prefix="executus-agents-") as folder:
        killer = Killer(Path(folder), seed)
        try:
            while killer.kills < count and not killer.failures:
                killer.play()
        except AssertionError as error:
            killer.failures.append(f"after {killer.kills} kills: {error!s:.2000}")
    return Report(
        name="agents",
        promise=(2, 8, 17),
        count=killer.kills,
        failures=tuple(killer.failures[:20]),
        figures={"boots": killer.boots, "runs": killer.runs, **dict(sorted(killer.counts.items()))},
        took_s=time.monotonic() - began_s,
    )
