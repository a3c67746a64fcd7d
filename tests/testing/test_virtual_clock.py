"""Time passes when it is told: waits, throttled saves, backoffs, time-outs and sleeps follow the virtual clock."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest

from executus.actors import (
    Backoff,
    Done,
    Killed,
    Reply,
    RestartPolicy,
    Run,
    RunInterrupted,
    RunStatus,
    RunTimedOut,
    SavePolicy,
    StopPolicy,
    Wait,
    WaitExpired,
    WaitTimeout,
)
from executus.actors.testing import TimeStandsStill, VirtualClock
from executus.actors.testing.plugin import Runtimes
from executus.stores import MemoryStore
from tests.doing import driven

FOREVER = RestartPolicy(max_restarts=1000, within_s=1e6, backoff=Backoff(initial_s=10, factor=1, max_s=10, jitter=0))


class Count(msgspec.Struct, frozen=True):
    n: int = 0


class Ticks(Run[float, Count, int]):
    """One more each minute."""

    def begin(self, every_s: float) -> Wait[Count]:
        return Wait(Count(), timeout_s=every_s)

    def step(self, state: Count) -> Wait[Count]:
        return Wait(state, timeout_s=60)

    def receive(self, state: Count, message: WaitExpired | str) -> Any:
        if isinstance(message, WaitExpired):
            return Wait(Count(state.n + 1), timeout_s=60)
        return Done(state.n) if message == "end" else Reply(state.n)

    def query(self, state: Count, question: str) -> int:
        return state.n


class Sleeper(Run[float, Count, int]):
    def begin(self, seconds: float) -> Count:
        return Count(int(seconds))

    def step(self, state: Count) -> Done[int]:
        self.context.sleep(state.n)
        return Done(state.n)


class AsyncSleeper(Sleeper):
    async def step(self, state: Count) -> Done[int]:  # type: ignore[override]
        await asyncio.sleep(state.n / 2)
        await self.context.sleep(state.n / 2)
        return Done(state.n)


class Stepper(Run[int, Count, int]):
    def begin(self, steps: int) -> Count:
        return Count(steps)

    def step(self, state: Count) -> Count | Done[int]:
        self.context.sleep(0.1)
        return Count(state.n - 1) if state.n else Done(0)


class Stumbler(Run[int, Count, int]):
    restart_policy = FOREVER

    def begin(self, times: int) -> Count:
        return Count(times)

    def step(self, state: Count) -> Done[int]:
        if self.context.attempt <= state.n:
            raise ValueError("stumbled")
        return Done(self.context.attempt)


def test_a_wait_expires_when_its_time_has_come_and_not_before(virtual_clock: VirtualClock, runtime: Runtimes) -> None:
    run = runtime(runs=[Ticks], may_leave={"runs"}).start(Ticks, 60, run_id="r")
    virtual_clock.advance(59.9)
    assert run.query("n") == 0
    virtual_clock.advance(0.1)
    assert run.query("n") == 1
    assert virtual_clock.now_s() == pytest.approx(60)


def test_whatever_is_due_in_between_happens_at_its_own_time(virtual_clock: VirtualClock, runtime: Runtimes) -> None:
    run = runtime(runs=[Ticks], may_leave={"runs"}).start(Ticks, 60, run_id="r")
    virtual_clock.advance(24 * 3600)
    assert run.query("n") == 24 * 60


def test_between_two_calls_nothing_happens(virtual_clock: VirtualClock, runtime: Runtimes) -> None:
    opened = runtime(runs=[Ticks])
    run = opened.start(Ticks, 60, run_id="r")
    assert run.status().waiting, "what could happen at once has happened when start came back"
    before = run.status()
    run.tell("end")
    assert run.status() == msgspec.structs.replace(before, messages=1)
    assert run.result() == 0


@pytest.mark.parametrize("kind", [Sleeper, AsyncSleeper])
def test_sleeps_in_callbacks_follow_the_clock(
    kind: type[Sleeper], virtual_clock: VirtualClock, runtime: Runtimes
) -> None:
    opened = runtime(runs=[kind])
    runs = [opened.start(kind, 10.0 * n, run_id=str(n)) for n in range(1, 6)]
    for n in range(1, 6):
        virtual_clock.advance(10)
        assert [run.status().status for run in runs] == [RunStatus.COMPLETED] * n + [RunStatus.RUNNING] * (5 - n)
    assert [run.result() for run in runs] == [10, 20, 30, 40, 50]


def test_a_sleep_ends_early_when_the_run_is_asked_to_end(virtual_clock: VirtualClock, runtime: Runtimes) -> None:
    run = runtime(runs=[Sleeper]).start(Sleeper, 1000, run_id="r")
    run.cancel("enough")
    assert virtual_clock.now_s() == 0


def test_throttled_saves_follow_the_clock(virtual_clock: VirtualClock, runtime: Runtimes) -> None:
    opened = runtime(runs=[Stepper], save_policy=SavePolicy(every_s=2), may_leave={"runs"})
    run = opened.start(Stepper, 1000, run_id="r")
    virtual_clock.advance(1.55)
    assert (run.status().seq, run.status().durable_seq) == (16, 1)
    virtual_clock.advance(0.5)
    assert run.status().durable_seq == run.status().seq - 1 == 20


def test_backoffs_follow_the_clock(virtual_clock: VirtualClock, runtime: Runtimes) -> None:
    run = runtime(runs=[Stumbler]).start(Stumbler, 3, run_id="r")
    virtual_clock.advance(29)
    assert run.status().status is RunStatus.RUNNING
    virtual_clock.advance(1)
    assert run.result() == 4


def test_a_run_time_out_follows_the_clock(virtual_clock: VirtualClock, runtime: Runtimes) -> None:
    run = runtime(runs=[Ticks], stop_policy=StopPolicy(run_timeout_s=90)).start(Ticks, 60, run_id="r")
    virtual_clock.advance(91)
    with pytest.raises(RunTimedOut):
        run.result()


def test_a_deadline_goes_on_over_a_restart_on_the_same_store(virtual_clock: VirtualClock, runtime: Runtimes) -> None:
    store = MemoryStore()
    first = runtime(store, runs=[Ticks])
    handle = first.start(Ticks, 60, run_id="r")
    virtual_clock.advance(30)
    first.close()
    with pytest.raises(RunInterrupted):
        handle.result()
    virtual_clock.advance(20)
    run = runtime(store, runs=[Ticks], may_leave={"runs"}).get(Ticks, "r")
    virtual_clock.advance(9)
    assert run.query("n") == 0
    virtual_clock.advance(1)
    assert run.query("n") == 1


def test_waiting_for_what_only_time_can_bring_says_so(virtual_clock: VirtualClock, runtime: Runtimes) -> None:
    run = runtime(runs=[Ticks, Sleeper], may_leave={"runs"}).start(Ticks, 60, run_id="r")
    with pytest.raises(TimeStandsStill, match=r"the next thing is due in \d+ s.*advance\(\)"):
        run.result()
    with pytest.raises(WaitTimeout, match=r"the next thing is due in \d+ s"):
        run.result(timeout_s=5)


def test_within_running_time_passes_by_itself(virtual_clock: VirtualClock, runtime: Runtimes) -> None:
    opened = runtime(runs=[Sleeper])
    with virtual_clock.running():
        assert opened.start(Sleeper, 3600, run_id="r").result() == 3600
    assert virtual_clock.now_s() == pytest.approx(3600)


def test_a_callback_may_wait_for_another_run(virtual_clock: VirtualClock, runtime: Runtimes) -> None:
    class Boss(Run[int, Count, int]):
        def begin(self, n: int) -> Count:
            return Count(n)

        def step(self, state: Count) -> Done[int]:
            return Done(sum(opened.start(Sleeper, 10, run_id=f"s{n}").result() for n in range(state.n)))

    opened = runtime(runs=[Boss, Sleeper])
    boss = opened.start(Boss, 3, run_id="boss")
    virtual_clock.advance(30)
    assert boss.result() == 30


def test_hundred_runs_that_sleep_and_poll_do_not_hinder_each_other(
    virtual_clock: VirtualClock, runtime: Runtimes
) -> None:
    class Poller(Run[int, Count, str]):
        def begin(self, n: int) -> Count:
            return Count(n)

        def step(self, state: Count) -> Done[str]:
            while not self.context.cancelled:
                self.context.sleep(1 + state.n / 100)
            return Done("polled")

    opened = runtime(runs=[Poller])
    runs = [opened.start(Poller, n, run_id=str(n)) for n in range(100)]
    virtual_clock.advance(10)
    for run in runs:
        run.cancel()
    assert {run.status().status for run in runs} == {RunStatus.COMPLETED}


def test_its_threads_end_with_it() -> None:
    before = threading.active_count()
    clock = VirtualClock()
    with clock.taken():
        opened = clock.runtime(runs=[Sleeper]).open()
        opened.start(Sleeper, 10, run_id="r")
        assert threading.active_count() > before
    assert threading.active_count() == before


class Hooked(Run[int, Count, Any]):
    """Uses what a context has for steps with effects, and tells what came of it."""

    def begin(self, n: int) -> Count:
        return Count(n)

    def step(self, state: Count) -> Any:
        return driven(self.used(state))

    async def used(self, state: Count) -> Any:
        seq = await self.context.durable()
        doubled = await self.context.run_sync(lambda n: (self.context.sleep(30), 2 * n)[1], state.n)
        if state.n < 0:
            self.context.kill("below zero")
        return Done([seq, doubled])


class AsyncHooked(Hooked):
    async def step(self, state: Count) -> Any:  # type: ignore[override]
        return await self.used(state)


@pytest.mark.parametrize("kind", [Hooked, AsyncHooked])
def test_saves_that_are_waited_for_and_functions_on_workers_take_the_clocks_time(
    kind: type[Hooked], virtual_clock: VirtualClock, runtime: Runtimes
) -> None:
    run = runtime(runs=[kind], save_policy=SavePolicy(durability="exit")).start(kind, 7, run_id="r")
    virtual_clock.advance(29.9)
    assert not run._inc.ending.done()
    virtual_clock.advance(0.1)
    assert run.result() == [1, 14]


@pytest.mark.parametrize("kind", [Hooked, AsyncHooked])
def test_a_run_that_kills_itself_is_killed(kind: type[Hooked], virtual_clock: VirtualClock, runtime: Runtimes) -> None:
    run = runtime(runs=[kind]).start(kind, -1, run_id="r")
    with virtual_clock.running():
        assert run.outcome() == Killed("itself", "below zero")
