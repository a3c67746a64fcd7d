"""What holds for every dispatcher with threads; one thread, an event loop, and standing aside for a commit."""

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

from executus.actors.dispatcher import Dispatcher, LoopDispatcher, StandAside, ThreadDispatcher, refuse_all
from executus.actors.errors import DispatcherClosed, RuntimeForked
from executus.actors.worker_pool import WorkerPool
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


def test_closing_a_thread_dispatcher_is_bounded_and_refuses_what_did_not_run():
    dispatcher = ThreadDispatcher()
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
from executus.actors.dispatcher import ThreadDispatcher
from executus.actors.worker_pool import WorkerPool
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


# --- standing aside ---------------------------------------------------------------------------------------------------


def test_workers_wait_between_turns_while_a_commit_stands_them_aside(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(StandAside, "LONGEST_S", 30.0)
    pool = WorkerPool()
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


def test_one_turn_that_cannot_be_refused_does_not_keep_the_others_from_being_told():
    class Bad(Turn):
        def turn_refused(self, error: BaseException) -> None:
            raise SystemExit("against its contract")

    good = Turn()
    refuse_all([Bad(), good], DispatcherClosed("closed"))
    assert len(good.refusals) == 1


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
        while not (own.ran_on and foreign.ran_on):  # turns know no asyncio
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
