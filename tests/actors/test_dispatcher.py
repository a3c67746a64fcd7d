"""Dispatchers: pools that grow and shrink, one thread, an event loop; and standing aside for a commit."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from executus.actors.dispatcher import (
    Dispatcher,
    LoopDispatcher,
    StandAside,
    ThreadDispatcher,
    TurnBudget,
    WorkerPool,
    _Look,
    _Worker,
)
from executus.actors.errors import DispatcherClosed, RuntimeForked
from tests.waiting import wait_until

ERRORS = [ValueError("x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(), MemoryError()]


class Turn:
    """A turn that is told what to do and remembers."""

    def __init__(self, do: Callable[[], object] = lambda: None) -> None:
        self.do = do
        self.ran_on: list[str] = []
        self.refusals: list[BaseException] = []

    def run_turn(self) -> None:
        self.ran_on.append(threading.current_thread().name)
        self.do()

    def turn_refused(self, error: BaseException) -> None:
        self.refusals.append(error)


class Nap:
    """A turn that blocks for a tenth of a second."""

    def __call__(self) -> None:
        time.sleep(0.1)


class Gate:
    """Turns that block here until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.inside = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.inside += 1
        assert self.opened.wait(30)


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool()
    yield pool
    assert pool.close()


@pytest.fixture
def thread() -> Iterator[ThreadDispatcher]:
    thread = ThreadDispatcher()
    yield thread
    assert thread.close()


@pytest.fixture(params=["pool", "thread"])
def dispatcher(request: pytest.FixtureRequest) -> Dispatcher:
    dispatcher: Dispatcher = request.getfixturevalue(request.param)
    return dispatcher


# --- what holds for every dispatcher with threads ---------------------------------------------------------------------


def test_every_turn_runs_once_also_those_scheduled_from_many_threads_and_from_turns(dispatcher: Dispatcher):
    inner = [Turn() for _ in range(100)]
    outer = [Turn(lambda turn=turn: dispatcher.schedule(turn)) for turn in inner]  # type: ignore[misc]
    threads = [
        threading.Thread(target=lambda part=part: [dispatcher.schedule(turn) for turn in part])  # type: ignore[misc]
        for part in (outer[:30], outer[30:60], outer[60:])
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    wait_until(lambda: all(turn.ran_on for turn in inner))
    assert [len(turn.ran_on) for turn in outer + inner] == [1] * 200


def test_submit_gives_the_value_or_the_error_whatever_it_is(dispatcher: Dispatcher):
    assert dispatcher.submit(lambda: 42).result(5) == 42
    for error in ERRORS:

        def fail(error: BaseException = error) -> None:
            raise error

        job = dispatcher.submit(fail)
        assert job.wait(5)
        assert job.error() is error
    assert dispatcher.submit(lambda: "alive").result(5) == "alive"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_turn_that_raises_against_its_contract_costs_no_worker(dispatcher: Dispatcher, error: BaseException):
    def fail() -> None:
        raise error

    for _ in range(5):
        dispatcher.schedule(Turn(fail))
    assert dispatcher.submit(lambda: "alive").result(5) == "alive"


def test_a_dispatcher_lets_go_of_a_turn_that_has_run(dispatcher: Dispatcher):
    turn = Turn()
    gone = weakref.ref(turn)
    ran_on = turn.ran_on
    dispatcher.schedule(turn)
    wait_until(lambda: ran_on)
    del turn

    def is_gone() -> bool:
        gc.collect()
        return gone() is None

    wait_until(is_gone)


def test_all_threads_are_daemons(dispatcher: Dispatcher):
    assert dispatcher.submit(lambda: threading.current_thread().daemon).result(5)


@pytest.mark.parametrize("make", [WorkerPool, ThreadDispatcher])
def test_a_closed_dispatcher_takes_nothing(make: Callable[[], Any]):
    for used in (False, True):
        dispatcher = make()
        if used:
            dispatcher.submit(lambda: None).result(5)
        assert dispatcher.close()
        with pytest.raises(DispatcherClosed):
            dispatcher.schedule(Turn())
        with pytest.raises(DispatcherClosed):
            dispatcher.submit(lambda: None)
        assert dispatcher.close()


@pytest.mark.parametrize("make", [lambda: WorkerPool(max_threads=1, min_threads=1), ThreadDispatcher])
def test_close_is_bounded_and_refuses_what_did_not_run(make: Callable[[], Any]):
    dispatcher = make()
    gate = Gate()
    dispatcher.schedule(Turn(gate))
    wait_until(lambda: gate.inside)
    waiting = [Turn() for _ in range(3)]
    for turn in waiting:
        dispatcher.schedule(turn)
    job = dispatcher.submit(lambda: 1)
    before_s = time.monotonic()
    assert not dispatcher.close(0.05)
    assert time.monotonic() - before_s < 5
    assert [len(turn.refusals) for turn in waiting] == [1, 1, 1]
    assert isinstance(waiting[0].refusals[0], DispatcherClosed)
    with pytest.raises(DispatcherClosed):
        job.result(5)
    gate.opened.set()
    wait_until(dispatcher.close)


def test_closing_from_inside_a_turn_does_not_wait_for_itself():
    for make in (WorkerPool, ThreadDispatcher):
        dispatcher: Any = make()
        assert dispatcher.submit(dispatcher.close).result(5)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_instead_of_waiting(dispatcher: Dispatcher):
    dispatcher.submit(lambda: None).result(5)
    pid = os.fork()
    if pid == 0:
        try:
            dispatcher.schedule(Turn())
        except RuntimeForked:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.parametrize(
    "work", ["threading.Event().wait()", "[0 for _ in iter(int, 1)]", "time.sleep(3600)"], ids=["wait", "spin", "sleep"]
)
@pytest.mark.parametrize("make", ["WorkerPool()", "ThreadDispatcher()"])
def test_the_interpreter_exits_while_turns_hang(make: str, work: str):
    program = f"""
import threading, time
from executus.actors.dispatcher import ThreadDispatcher, WorkerPool
dispatcher = {make}
started = threading.Event()
def turn():
    started.set()
    {work}
for _ in range(3):
    dispatcher.submit(turn)
assert started.wait(20)
print("leaving")
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")


# --- the pool ---------------------------------------------------------------------------------------------------------


def test_a_pool_starts_no_thread_before_it_has_work():
    before = threading.active_count()
    pool = WorkerPool()
    assert (threading.active_count(), pool.threads()) == (before, 0)
    pool.submit(lambda: None).result(5)
    assert 1 <= pool.threads() <= 2
    assert pool.close()
    wait_until(lambda: threading.active_count() == before)


def test_short_turns_do_not_breed_threads(pool: WorkerPool):
    for _ in range(20):
        jobs = [pool.submit(lambda: None) for _ in range(500)]
        for job in jobs:
            job.result(5)
    assert pool.threads() <= 4


def test_turns_that_block_are_given_more_threads_until_all_run(pool: WorkerPool):
    gate = Gate()
    for _ in range(200):
        pool.schedule(Turn(gate))
    wait_until(lambda: gate.inside == 200, 20)
    assert pool.threads() >= 200
    assert pool.queued() == 0
    gate.opened.set()


def test_turns_that_come_together_wake_a_worker_each(pool: WorkerPool):
    # One wake-up at a time: the worker that wakes must wake the next, or the second turn waits for the first to end.
    for _ in range(100):
        gate = Gate()
        for _ in range(2):
            pool.schedule(Turn(gate))
        wait_until(lambda gate=gate: gate.inside == 2)  # type: ignore[misc]
        gate.opened.set()
        wait_until(lambda: len(pool._idle) == 2)
    assert pool.threads() == 2


def test_a_worker_woken_while_its_idle_time_runs_out_takes_the_wake_up():
    pool = WorkerPool()
    worker = _Worker()
    pool._workers.add(worker)
    pool._waking = True
    worker.parked.release()  # popped from the idle list and released, just when its waiting timed out
    assert not pool._ends_idle(worker)
    assert not pool._waking


def test_a_thousand_turns_that_block_a_tenth_of_a_second_do_not_queue_up_behind_each_other(pool: WorkerPool):
    jobs = [pool.submit(Nap()) for _ in range(1000)]
    before_s = time.monotonic()
    for job in jobs:
        job.result(60)
    assert pool.threads() > 100  # measured 0.25 s with 870 threads; two threads would take 50 s
    assert time.monotonic() - before_s < 10


def test_growth_stops_at_max_threads_and_the_rest_waits():
    pool = WorkerPool(min_threads=1, max_threads=8)
    gate = Gate()
    turns = [Turn(gate) for _ in range(20)]
    for turn in turns:
        pool.schedule(turn)
    wait_until(lambda: gate.inside == 8)
    assert (pool.threads(), pool.queued()) == (8, 12)
    gate.opened.set()
    wait_until(lambda: gate.inside == 20)
    assert pool.close()


def test_threads_above_the_minimum_end_when_they_are_idle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(WorkerPool, "IDLE_S", 0.05)
    pool = WorkerPool(min_threads=2)
    gate = Gate()
    for _ in range(50):
        pool.schedule(Turn(gate))
    wait_until(lambda: gate.inside == 50)
    gate.opened.set()
    wait_until(lambda: pool.threads() == 2)
    assert pool.submit(lambda: 1).result(5) == 1
    assert pool.close()


def test_a_trickle_of_work_does_not_keep_a_crowd_of_threads_alive(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(WorkerPool, "IDLE_S", 0.2)
    pool = WorkerPool(min_threads=2)
    gate = Gate()
    for _ in range(50):
        pool.schedule(Turn(gate))
    wait_until(lambda: gate.inside == 50)
    gate.opened.set()

    def still_many() -> bool:
        pool.submit(lambda: None).result(5)
        return pool.threads() > 4

    wait_until(lambda: not still_many(), 20)
    assert pool.close()


def test_turns_that_compute_do_not_breed_threads_but_never_shut_the_others_out():
    pool = WorkerPool(min_threads=2)
    stop = False

    def spin() -> None:
        while not stop:
            pass

    for _ in range(6):  # more than the minimum of threads
        pool.schedule(Turn(spin))
    assert pool.submit(lambda: "had its turn").result(60) == "had its turn"
    stop = True
    assert pool.close(30)


@pytest.mark.parametrize("computing", [True, False])
def test_the_workers_cpu_clocks_decide_whether_threads_are_doubled_or_added_one_by_one(
    monkeypatch: pytest.MonkeyPatch, computing: bool
):
    # The clocks are doubles: on a busy machine real ones show less than a turn would use on an idle one.
    monkeypatch.setattr(_Look, "cpu_s_since", lambda *_: float("inf") if computing else 0.0)
    pool = WorkerPool(min_threads=2)
    grown: list[int] = []
    grow = pool._grow

    def remembered(by: int) -> None:
        grown.append(by)
        grow(by)

    monkeypatch.setattr(pool, "_grow", remembered)
    gate = Gate()
    for _ in range(6):
        pool.schedule(Turn(gate))
    wait_until(lambda: gate.inside == 6, 20)
    gate.opened.set()
    assert pool.close()
    assert (set(grown) == {1}) if computing else (grown[0] == 2)


def test_the_cpu_clock_of_a_worker_shows_what_it_computes():
    if not hasattr(time, "pthread_getcpuclockid"):
        pytest.skip("the system does not tell the CPU time of another thread")
    pool = WorkerPool(min_threads=1)

    def burn() -> None:
        until_s = time.thread_time() + 0.05
        while time.thread_time() < until_s:
            pass

    pool.submit(lambda: None).result(5)
    workers = list(pool._workers)
    before = _Look(0, workers)
    pool.submit(burn).result(60)
    assert 0.05 <= _Look(0, workers).cpu_s_since(before) < 1
    assert _Look(0, None).cpu_s_since(before) == 0
    assert pool.close()


def test_a_thread_that_cannot_be_started_costs_no_work(monkeypatch: pytest.MonkeyPatch):
    told: list[BaseException] = []

    def tell(error: BaseException) -> None:
        told.append(error)
        raise SystemExit("the report fails as well")

    pool = WorkerPool(min_threads=4, on_start_error=tell)
    gate = Gate()
    pool.schedule(Turn(gate))
    wait_until(lambda: gate.inside == 1)
    start = threading.Thread.start

    def exhausted(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", exhausted)
    turns = [Turn() for _ in range(5)]
    for turn in turns:
        pool.schedule(turn)
    wait_until(lambda: pool.start_errors > 3)  # the monitor goes on trying
    assert pool.queued() == 5
    monkeypatch.setattr(threading.Thread, "start", start)
    wait_until(lambda: all(turn.ran_on for turn in turns))
    assert isinstance(told[0], RuntimeError)
    gate.opened.set()
    assert pool.close()


def test_a_pool_that_could_not_start_even_its_first_thread_recovers(monkeypatch: pytest.MonkeyPatch):
    pool = WorkerPool()
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start")))
    first = pool.submit(lambda: 1)
    assert not first.done()
    monkeypatch.setattr(threading.Thread, "start", start)
    assert pool.submit(lambda: 2).result(5) == 2
    assert first.result(5) == 1
    gate = Gate()
    for _ in range(8):
        pool.schedule(Turn(gate))
    wait_until(lambda: gate.inside == 8)  # the monitor, too
    gate.opened.set()
    assert pool.close()


def test_an_abandoned_turn_is_counted_as_leaked_and_its_thread_replaced():
    pool = WorkerPool(min_threads=1, max_threads=1)
    gate = Gate()
    stuck = Turn(gate)
    pool.schedule(stuck)
    wait_until(lambda: gate.inside == 1)
    next_turn = Turn()
    pool.schedule(next_turn)
    pool.abandoned(stuck)
    wait_until(lambda: next_turn.ran_on)
    assert (pool.leaked(), pool.threads()) == (1, 1)
    pool.abandoned(stuck)
    assert pool.leaked() == 1
    gate.opened.set()
    wait_until(lambda: pool.leaked() == 0)
    assert pool.threads() == 1
    assert pool.close()


def test_abandoning_a_turn_that_is_not_running_changes_nothing(pool: WorkerPool):
    turn = Turn()
    pool.schedule(turn)
    wait_until(lambda: turn.ran_on)
    pool.abandoned(turn)
    pool.abandoned(Turn())
    assert pool.leaked() == 0
    assert pool.submit(lambda: 1).result(5) == 1


def test_the_monitor_sleeps_when_there_is_nothing_to_do_and_wakes_with_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(WorkerPool, "QUIET_TICKS", 2)
    pool = WorkerPool(min_threads=1)
    sleeps = 0
    sleep = pool._sleep_until_work

    def counted() -> None:
        nonlocal sleeps
        sleeps += 1
        sleep()

    monkeypatch.setattr(pool, "_sleep_until_work", counted)
    for n in range(1, 4):
        pool.submit(lambda: None).result(5)
        wait_until(lambda n=n: sleeps >= n and pool._monitor_asleep)  # type: ignore[misc]
        gate = Gate()
        for _ in range(8):
            pool.schedule(Turn(gate))
        wait_until(lambda gate=gate: gate.inside == 8)  # type: ignore[misc]
        gate.opened.set()
    assert pool.close()


def test_a_monitor_that_stumbles_goes_on(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch):
    grow = pool._grow
    stumbled = threading.Event()

    def stumble(by: int) -> None:
        if not stumbled.is_set():
            stumbled.set()
            raise SystemExit("the monitor must not die")
        grow(by)

    monkeypatch.setattr(pool, "_grow", stumble)
    gate = Gate()
    for _ in range(20):
        pool.schedule(Turn(gate))
    wait_until(lambda: gate.inside == 20)
    assert stumbled.is_set()
    gate.opened.set()


def test_impossible_sizes_are_refused():
    for sizes in ((0, 5), (5, 4)):
        with pytest.raises(ValueError, match="min_threads"):
            WorkerPool(min_threads=sizes[0], max_threads=sizes[1])


def test_the_budgets_keep_a_flooded_actor_from_starving_others():
    assert WorkerPool.budget == TurnBudget(64, 0.001)
    assert TurnBudget().seconds is None  # a simulated dispatcher reads no clock


# --- standing aside ---------------------------------------------------------------------------------------------------


def test_workers_wait_between_turns_while_a_commit_stands_them_aside(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(StandAside, "LONGEST_S", 30.0)
    pool = WorkerPool(min_threads=2)
    pool.submit(lambda: None).result(5)
    with pool.stand_aside():
        jobs = [pool.submit(lambda: None) for _ in range(3)]
        breathing = threading.Thread(target=pool.breathe)
        breathing.start()
        assert not any(job.wait(0.05) for job in jobs)
        assert breathing.is_alive()
    for job in jobs:
        job.result(5)
    breathing.join(5)
    assert not breathing.is_alive()
    pool.breathe()
    assert pool.close()


def test_a_commit_that_hangs_does_not_hang_the_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(StandAside, "LONGEST_S", 0.01)
    pool = WorkerPool()
    with pool.stand_aside():
        for n in range(20):
            assert pool.submit(lambda n=n: n).result(5) == n  # type: ignore[misc]
        assert pool._gate is None  # after the first wait nobody waits for this commit again
    assert pool.close()


def test_standing_aside_ends_also_when_the_commit_raises():
    aside = StandAside()
    with pytest.raises(OSError, match="disk"), aside.stand_aside():
        raise OSError("disk")
    aside.breathe()
    assert aside._gate is None


# --- one thread -------------------------------------------------------------------------------------------------------


def test_a_thread_dispatcher_runs_everything_on_one_thread_in_order(thread: ThreadDispatcher):
    order: list[int] = []
    turns = [Turn(lambda n=n: order.append(n)) for n in range(50)]  # type: ignore[misc]
    for turn in turns:
        thread.schedule(turn)
    name = thread.submit(lambda: threading.current_thread().name).result(5)
    assert order == list(range(50))
    assert {turn.ran_on[0] for turn in turns} == {name}


def test_closing_a_thread_dispatcher_runs_first_what_is_scheduled():
    thread = ThreadDispatcher()
    turns = [Turn() for _ in range(20)]
    for turn in turns:
        thread.schedule(turn)
    assert thread.close()
    assert all(turn.ran_on for turn in turns)


# --- an event loop ----------------------------------------------------------------------------------------------------


def test_turns_run_on_the_loop_s_thread_from_wherever_they_are_scheduled(pool: WorkerPool):
    async def main() -> None:
        dispatcher = LoopDispatcher(asyncio.get_running_loop(), pool)
        here = threading.current_thread().name
        own, foreign = Turn(), Turn()
        dispatcher.schedule(own)
        assert own.ran_on == []
        await asyncio.to_thread(dispatcher.schedule, foreign)
        while not (own.ran_on and foreign.ran_on):  # noqa: ASYNC110  # turns know no asyncio
            await asyncio.sleep(0)
        assert own.ran_on + foreign.ran_on == [here, here]
        assert await dispatcher.submit(lambda: threading.current_thread().name) != here

    asyncio.run(main())


def test_a_burst_calls_into_the_loop_once(pool: WorkerPool):
    loop = asyncio.new_event_loop()
    dispatcher = LoopDispatcher(loop, pool)
    calls = 0
    original = loop.call_soon_threadsafe

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
    turns = [Turn() for _ in range(100)]
    for turn in turns:
        dispatcher.schedule(turn)
    loop.run_until_complete(asyncio.sleep(0))  # one round of the loop: the burst, however many turns it has
    assert turns[0].ran_on
    while not turns[-1].ran_on:  # a slow machine may have needed another burst
        loop.run_until_complete(asyncio.sleep(0))
    assert [len(turn.ran_on) for turn in turns] == [1] * 100
    assert calls == 1
    loop.close()


def test_turns_without_end_leave_the_loop_to_others(pool: WorkerPool):
    async def main() -> None:
        dispatcher = LoopDispatcher(asyncio.get_running_loop(), pool)
        turn = Turn()
        stop = False

        def again() -> None:
            if not stop:
                dispatcher.schedule(turn)

        turn.do = again
        dispatcher.schedule(turn)
        for _ in range(20):
            await asyncio.sleep(0)  # would never come back
        stop = True
        assert len(turn.ran_on) > 20

    asyncio.run(main())


def test_a_closed_loop_is_a_closed_dispatcher_and_refuses_what_waits(pool: WorkerPool):
    loop = asyncio.new_event_loop()
    dispatcher = LoopDispatcher(loop, pool)
    waiting = Turn()
    dispatcher.schedule(waiting)
    loop.close()
    wait_until(lambda: waiting.refusals)  # at once, without another schedule: closing dropped the burst
    late = Turn()
    with pytest.raises(DispatcherClosed):
        dispatcher.schedule(late)
    assert (waiting.ran_on, late.refusals) == ([], [])


def test_a_loop_that_keeps_what_it_will_never_run_is_found_closed_by_the_next_scheduler(pool: WorkerPool):
    loop = asyncio.new_event_loop()
    kept: list[Any] = []
    loop.call_soon_threadsafe = lambda fn, *_: kept.append(fn)  # type: ignore[method-assign,assignment]
    dispatcher = LoopDispatcher(loop, pool)
    waiting = Turn()
    dispatcher.schedule(waiting)
    loop.close()
    del loop.call_soon_threadsafe  # type: ignore[method-assign]
    with pytest.raises(DispatcherClosed):
        dispatcher.schedule(Turn())
    assert len(waiting.refusals) == 1
    kept.clear()
    assert len(waiting.refusals) == 1


def test_a_loop_closed_while_idle_refuses_the_next_turn(pool: WorkerPool):
    loop = asyncio.new_event_loop()
    dispatcher = LoopDispatcher(loop, pool)
    loop.close()
    turn = Turn()
    for _ in range(2):
        with pytest.raises(DispatcherClosed):
            dispatcher.schedule(turn)
    assert turn.refusals == []  # it raised; nobody is told twice


def test_closing_a_loop_dispatcher_refuses_what_waits_and_leaves_the_loop_alone(pool: WorkerPool):
    async def main() -> None:
        dispatcher = LoopDispatcher(asyncio.get_running_loop(), pool)
        turn = Turn()
        dispatcher.schedule(turn)
        dispatcher.close()
        assert len(turn.refusals) == 1
        await asyncio.sleep(0)
        assert turn.ran_on == []
        with pytest.raises(DispatcherClosed):
            dispatcher.schedule(turn)

    asyncio.run(main())
