"""A daemon is killed again and again while messages are sent and heard: each is in the final state once, and in order."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.scenarios.durable_daemon import KINDS, SENDERS
from tests.scenarios.harness import Daemon
from tests.waiting import elapse

ROUNDS = 8
COUNT = 400


@pytest.mark.parametrize("seed", [1])
def test_every_accepted_message_is_in_the_final_state_once_whenever_the_daemon_is_killed(
    store_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    accepted: dict[tuple[str, int], int] = dict.fromkeys(
        [(kind, sender) for kind in KINDS for sender in range(SENDERS)], 0
    )
    heard: list[list[object]] = []

    def daemon() -> Daemon:
        starts = [str(accepted[kind, sender]) for kind in KINDS for sender in range(SENDERS)]
        return Daemon(store_path, str(COUNT), *starts, module="durable_daemon").opened()

    def read(killed: Daemon) -> None:
        for run_id, sender, number in killed.said("accepted"):
            # What was under way when it died is sent again, and accepted under the same id.
            assert number == accepted[run_id, sender]
            accepted[run_id, sender] += 1
        heard.extend(killed.said("heard"))

    for _ in range(ROUNDS):
        with daemon() as running:
            elapse(rng.random() * 0.15)
        read(running)
    assert 0 < sum(accepted.values()) < COUNT * len(accepted), "killed before the first message, or after the last"
    with daemon() as running:
        running.wait_for(lambda: len(running.said("result")) == len(KINDS), "results", 60)
        running.ended()
    read(running)
    for run_id, pairs in running.said("result"):
        assert pairs[0] == [-1, 0], "the first message comes first, and once"
        for sender in range(SENDERS):
            numbers = [number for who, number in pairs if who == sender]
            assert numbers == list(range(COUNT)), f"{run_id}, sender {sender}"
    again = len(heard) - len({tuple(one) for one in heard})
    assert again > 0, "nothing was heard twice: the kills met nothing"
