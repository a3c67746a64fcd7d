"""A daemon whose runs are passivated is killed again and again: no timer, no message and no end of a child is lost."""

from __future__ import annotations

import random
from pathlib import Path

from tests.scenarios.harness import Daemon
from tests.scenarios.passivating_daemon import LISTENERS, SLEEPERS
from tests.waiting import elapse

ROUNDS = 10
COUNT = 60


def test_passivated_runs_come_to_their_ends_whenever_the_daemon_is_killed(store_path: Path) -> None:
    rng = random.Random(1)
    accepted = [0] * LISTENERS
    passivated = activated = 0

    def read(killed: Daemon) -> None:
        nonlocal passivated, activated
        for n, number in killed.said("accepted"):
            assert number == accepted[n]  # what was under way when it died is sent again, under the same id
            accepted[n] += 1
        passivated += len(killed.said("RunPassivated"))
        activated += len(killed.said("RunActivated"))

    def daemon() -> Daemon:
        return Daemon(store_path, str(COUNT), *map(str, accepted), module="passivating_daemon").opened()

    for _ in range(ROUNDS):
        with daemon() as running:
            elapse(rng.random() * 0.3)
        read(running)
    with daemon() as running:
        running.wait_for(lambda: len(running.said("slept")) == SLEEPERS, "everybody's end", 60)
        running.ended()
    read(running)
    assert [numbers for _, numbers in running.said("result")] == [list(range(COUNT))] * LISTENERS
    assert [left for _, left in running.said("slept")] == [0] * SLEEPERS
    assert min(passivated, activated) > SLEEPERS + LISTENERS
