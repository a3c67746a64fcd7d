"""Tries to refute the worker pool: threads that schedule, submit, abandon and close it while threads fail to start."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from executus.actors import worker_pool
from executus.actors.errors import DispatcherClosed
from executus.actors.future import Promise
from executus.actors.worker_pool import WorkerPool
from tests.waiting import wait_until

KINDS = ("short", "naps", "spins", "mixed")


class Hit:
    """A turn that counts what becomes of it."""

    def __init__(self, kind: str, do: Callable[[], object]) -> None:
        self.kind = kind
        self.do = do
        self.began = threading.Event()
        self.runs = 0
        self.refusals = 0
        self.raised = 0

    def run_turn(self) -> None:
        self.runs += 1
        self.began.set()
        self.do()

    def turn_refused(self, error: BaseException) -> None:
        self.refusals += 1

    def fates(self) -> int:
        return self.runs + self.refusals + self.raised


class Nap:
    """Blocks its thread for a while, as a turn does that waits for a disk."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> None:
        time.sleep(self.seconds)


def spin(seconds: float) -> None:
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


def what_to_do(rng: random.Random, kind: str) -> Callable[[], object]:
    seconds = rng.choice([0.0005, 0.001, 0.003, 0.012])
    never: Promise[None] = Promise()
    naps: list[Callable[[], object]] = [Nap(seconds), lambda: never.wait(seconds)]
    match kind:
        case "short":
            return lambda: None
        case "naps":
            return rng.choice(naps)
        case "spins":
            return lambda: spin(seconds / 2)
        case _:
            return rng.choice([*naps, lambda: spin(seconds / 4), lambda: None])


def counts_are_right(pool: WorkerPool) -> None:
    """Every worker is exactly one thing, and the lanes' counters are the truth."""
    with pool._lock:
        lanes = [worker.lane for worker in pool._workers if worker.lane is not None]
        assert pool._blocking.serving == lanes.count(pool._blocking)
        assert pool._computing.serving == lanes.count(pool._computing)
        assert len(pool._workers) <= pool._max
        assert pool._resting or pool._leader is not None
        for worker in pool._workers:
            roles = [pool._leader is worker, worker.lane is not None, worker in pool._idle]
            assert sum(roles) <= 1, (roles, worker.lane and worker.lane.name)


def hammer(pool: WorkerPool, rng: random.Random, hits: list[Hit], until_s: float) -> None:
    while time.monotonic() < until_s:
        kind = rng.choice(KINDS)
        hit = Hit(kind, what_to_do(rng, kind))
        hits.append(hit)
        try:
            if rng.random() < 0.2:
                pool.submit(hit.run_turn).add_done_callback(
                    lambda job, hit=hit: hit.turn_refused(job.error()) if job.error() is not None else None
                )
            else:
                pool.schedule(hit)
        except DispatcherClosed:
            hit.raised += 1
        if rng.random() < 0.05 and hit.began.wait(0.01):
            pool.abandoned(hit)
        if rng.random() < 0.3:
            Nap(rng.choice([0, 0.0002, 0.002]))()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("closes", [True, False], ids=["closes", "drains"])
def test_every_turn_is_run_exactly_once_or_refused_whatever_races(
    seed: int, closes: bool, monkeypatch: pytest.MonkeyPatch
):
    rng = random.Random(seed)
    # Tiny budgets, so that everything that is rare happens all the time.
    monkeypatch.setattr(worker_pool, "IDLE_S", rng.choice([0.001, 0.005]))
    monkeypatch.setattr(worker_pool, "COMPUTING_S", 0.004)
    monkeypatch.setattr("executus.actors.pool_monitor.TICK_S", rng.choice([0.0005, 0.002]))
    monkeypatch.setattr("executus.actors.pool_monitor.QUIET_TICKS", 2)
    start: Any = threading.Thread.start
    failing = random.Random(seed + 1)

    def may_fail(thread: threading.Thread) -> None:
        if thread.name.startswith("hammered") and failing.random() < 0.1:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", may_fail)
    pool = WorkerPool(max_threads=rng.choice([4, 5, 12]), name="hammered")
    hits: list[list[Hit]] = [[] for _ in range(3)]
    until_s = time.monotonic() + 0.3
    threads = [
        threading.Thread(target=hammer, args=(pool, random.Random(seed * 10 + n), hits[n], until_s)) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    while time.monotonic() < until_s - 0.1:
        counts_are_right(pool)
        Nap(0.003)()
    if closes:
        pool.close(rng.choice([0.0, 0.01, 30]))
    for thread in threads:
        thread.join()
    everything = [hit for part in hits for hit in part]
    wait_until(lambda: all(hit.fates() for hit in everything), 60, "every turn has its fate")
    if not closes:  # still alive, and nothing of it has leaked
        wait_until(lambda: not pool.leaked(), 30)
        wait_until(lambda: not pool._blocking.serving and not pool._computing.serving, 30)
        counts_are_right(pool)
        last = [Hit("late", lambda: None) for _ in range(20)]
        for hit in last:
            pool.schedule(hit)
        everything += last
        wait_until(lambda: all(hit.fates() for hit in last), 30)
    wait_until(lambda: pool.close(5), 60)
    assert {hit.fates() for hit in everything} == {1}
    assert pool.queued() == 0
