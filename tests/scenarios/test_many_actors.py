"""The smaller part of `many_actors`, and threads that computing and blocking turns take and give back."""

from __future__ import annotations

import threading
import time

import pytest

from executus.actors import worker_pool
from executus.actors.actor import Actor
from executus.actors.worker_pool import WorkerPool
from tests.scenarios.many_actors import asks_racing_with_stops, idle_actors_that_answer
from tests.waiting import in_time, wait_until


def test_of_the_asks_that_race_with_stops_none_stays_unanswered():
    answers = asks_racing_with_stops(20_000)
    assert answers.unanswered == 0
    assert answers.replied > 0
    assert answers.refused > 0


def test_twenty_thousand_idle_actors_all_answer():
    assert idle_actors_that_answer(20_000) == 20_000


class Computes(Actor):
    """Takes so much time of a processor."""

    def on_receive(self, seconds: float) -> None:
        until_s = time.thread_time() + seconds
        while time.thread_time() < until_s:
            pass
        DONE.append(None)


DONE: list[None] = []


def threads_for_a_thousand_turns_that_compute() -> int:
    DONE.clear()
    pool = WorkerPool()
    try:
        for n in range(1000):
            # some long enough to be taken out of the others' way
            Computes.start_on(pool).tell(0.03 if n % 100 == 0 else 0.0005)
        most = 0
        while len(DONE) < 1000:
            most = max(most, pool.threads())
            threading.Event().wait(0.002)
        wait_until(lambda: pool.threads() <= 1, 20)
    finally:
        assert pool.close()
    return most


def test_a_thousand_turns_that_compute_take_two_threads_beside_the_leader_and_give_them_back(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(worker_pool, "IDLE_S", 0.1)
    # The leader, two, and one that was on its way when the lane turned out to be full. Where others use the machine so
    # much that a turn seems to wait, a few more: one of three tries must do without.
    in_time(threads_for_a_thousand_turns_that_compute, 4)
