"""Runs that wait for long rest in the store alone, and nobody who wants something of them notices."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from executus.actors import (
    AsyncRuntime,
    ChildEnded,
    Done,
    NotResumable,
    Reply,
    RestartPolicy,
    Run,
    RunEnded,
    RunExists,
    RunHandle,
    RunInterrupted,
    RunKilled,
    RunStatus,
    Runtime,
    SavePolicy,
    StopPolicy,
    Wait,
    WaitExpired,
)
from executus.actors.clock import SystemClock
from executus.actors.events import RunActivated, RunPassivated
from executus.stores import Accepted, Append, LmdbReader, LmdbStore, MemoryStore
from tests.doubles import SOON, Recorder
from tests.waiting import await_until, wait_until

SLEEPY = SavePolicy(passivate_after_s=0.03)


class Add(msgspec.Struct, frozen=True, tag=True):
    """Add this much, and wait on."""

    number: int


class Finish(msgspec.Struct, frozen=True, tag=True):
    """Be done."""


class Sum(msgspec.Struct, frozen=True):
    """What was added, and what it waits for."""

    total: int = 0
    timeout_s: float | None = None
    until_s: float | None = None


class Adder(Run[Sum, Sum, int]):
    """Waits for numbers to add."""

    save_policy = SLEEPY
    stopped: ClassVar[list[str]] = []

    def begin(self, first: Sum) -> Wait[Sum]:
        return Wait(first, timeout_s=first.timeout_s, until=first.until_s)

    def step(self, state: Sum) -> Done[int]:
        return Done(state.total)

    def receive(self, state: Sum, message: Add | Finish | WaitExpired) -> Any:
        match message:
            case Add(number):
                after = Sum(state.total + number)
                return Reply(after.total, Wait(after))
            case Finish():
                return Reply(state.total, Done(state.total))
            case WaitExpired():
                return Done(-1)

    def query(self, state: Sum, question: str) -> int:
        return state.total

    def stopping(self, state: Sum, reason: str) -> None:
        type(self).stopped.append(reason)


class AsyncAdder(Adder):
    async def receive(self, state: Sum, message: Add | Finish | WaitExpired) -> Any:
        await asyncio.sleep(0)
        return super().receive(state, message)


class Family(Run[int, tuple[int, ...], tuple[int, ...]]):
    """A parent that waits for the ends of so many adders."""

    save_policy = SLEEPY
    until = 2

    def begin(self, children: int) -> Wait[tuple[int, ...]]:
        for n in range(children):
            self.context.spawn(Adder, Sum(n), key=f"k{n}")
        return Wait(())

    def step(self, ended: tuple[int, ...]) -> Done[tuple[int, ...]]:
        return Done(ended)

    def receive(self, ended: tuple[int, ...], message: ChildEnded | Finish) -> Any:
        if isinstance(message, Finish):
            return Done(ended)
        ended = (*ended, message.outcome.result)  # type: ignore[union-attr]
        return Wait(ended) if len(ended) < type(self).until else Done(ended)


RUNS: list[Any] = [Adder, AsyncAdder, Family]


def opened(store: Any = None, **options: Any) -> Runtime:
    return Runtime(store, runs=RUNS, logger=False, **options)


def asleep(runtime: Runtime, *run_ids: str) -> None:
    """Return when these rest in the store, and nothing of them is in the table."""
    for run_id in run_ids:
        wait_until(lambda run_id=run_id: status_of(runtime, run_id) is RunStatus.PASSIVATED, 10, f"{run_id} rests")
        assert run_id not in runtime._core.table


def status_of(runtime: Runtime, run_id: str) -> RunStatus | None:
    stored = runtime._core.store.load(run_id)
    return None if stored is None or run_id in runtime._core.table else stored.claim.status


@pytest.fixture(params=[Adder, AsyncAdder])
def kind(request: pytest.FixtureRequest) -> type[Adder]:
    chosen: type[Adder] = request.param
    chosen.stopped = []
    return chosen


# --- what wakes it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["tell", "ask", "send", "query", "durable"])
def test_whoever_wants_something_of_a_passivated_run_gets_it(kind: type[Adder], verb: str) -> None:
    with opened() as runtime:
        handle = runtime.start(kind, Sum(1), run_id="r")
        asleep(runtime, "r")
        match verb:
            case "tell":
                handle.tell(Add(4))
                wait_until(lambda: handle.status().seq == 2)
            case "ask":
                assert handle.ask(Add(4), 10) == 5
            case "send":
                handle.send(Add(4), message_id="m1")
                handle.send(Add(4), message_id="m1")
                wait_until(lambda: handle.status().seq == 2)
            case "query":
                assert handle.query("", 10) == 1
            case _:
                assert handle.durable(10) == 1
        asleep(runtime, "r")
        assert handle.ask(Finish(), 10) == handle.result(10) == (1 if verb in {"query", "durable"} else 5)


def test_a_passivated_run_comes_back_when_its_time_out_is_over(kind: type[Adder]) -> None:
    with opened() as runtime:
        handle = runtime.start(kind, Sum(1, timeout_s=0.4), run_id="r")
        asleep(runtime, "r")
        assert handle.result(10) == -1


def test_a_passivated_run_comes_back_when_the_wall_clock_shows_its_moment() -> None:
    with opened() as runtime:
        handle = runtime.start(Adder, Sum(1, until_s=SystemClock().wall_s() + 0.5), run_id="r")
        asleep(runtime, "r")
        assert handle.result(10) == -1


class Jumping(SystemClock):
    jump_s = 0.0

    def wall_s(self) -> float:
        return super().wall_s() + self.jump_s


def test_clock_jumps_move_no_relative_timer_of_a_passivated_run_and_bring_its_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("executus.actors.clock.WALL_LOOK_S", 0.02)
    clock = Jumping()
    runtime = opened(stop_policy=StopPolicy(run_timeout_s=7200))
    runtime._core._clock = clock
    with runtime:
        relative = runtime.start(Adder, Sum(1, timeout_s=3600), run_id="relative")
        moment = runtime.start(Adder, Sum(1, until_s=clock.wall_s() + 3600), run_id="moment")
        asleep(runtime, "relative", "moment")
        clock.jump_s = 86_400.0
        assert moment.result(10) == -1
        assert relative.status().status is RunStatus.PASSIVATED
        assert relative.query("", 10) == 1  # loaded, it waits for what is left of its hour
        asleep(runtime, "relative")
        clock.jump_s = -86_400.0
        assert relative.ask(Add(1), 10) == 2


def test_a_passivated_run_that_exceeds_its_run_timeout_is_timed_out() -> None:
    Adder.stopped = []
    with opened() as runtime:
        handle = runtime.start(Adder, Sum(1), run_id="r", stop_policy=StopPolicy(run_timeout_s=0.5))
        asleep(runtime, "r")
        assert type(handle.outcome(10)).__name__ == "TimedOut"
        assert Adder.stopped == ["timeout"]


# --- who waits --------------------------------------------------------------------------------------------------------


def test_waiters_and_monitors_of_a_passivated_run_hear_of_its_end_whether_they_hold_a_handle_or_not() -> None:
    with opened() as runtime:
        told: list[RunStatus] = []
        results: list[int] = []
        first = runtime.start(Adder, Sum(1), run_id="r")
        first.monitor(lambda ending: told.append(ending.status))
        waiter = threading.Thread(target=lambda: results.append(runtime.get(Adder, "r").result()))
        waiter.start()
        asleep(runtime, "r")
        runtime.get("r").monitor(lambda ending: told.append(ending.status))
        del first
        gc.collect()
        runtime.get("r").tell(Finish())
        waiter.join(10)
        wait_until(lambda: told == [RunStatus.COMPLETED] * 2)
        assert results == [1]


def test_a_coroutine_that_only_its_promise_knows_is_woken() -> None:
    async def main() -> None:
        async with AsyncRuntime(None, runs=RUNS, logger=False) as runtime:
            done: list[int] = []

            async def wait_for(handle: Any) -> None:
                done.append(await handle)

            await runtime.start(Adder, Sum(7), run_id="r")
            task = weakref.ref(asyncio.create_task(wait_for(await runtime.get(Adder, "r"))))
            await await_until(lambda: _rests(runtime))
            gc.collect()
            assert task() is not None
            (await runtime.get("r")).tell(Finish())
            await await_until(lambda: done)
            assert done == [7]

    def _rests(runtime: AsyncRuntime) -> bool:
        stored = runtime._core.store.load("r")
        return stored is not None and stored.claim.status is RunStatus.PASSIVATED and not runtime._core.table

    asyncio.run(main())


def test_without_a_handle_nothing_of_a_passivated_run_is_in_memory() -> None:
    with opened() as runtime:
        handle = runtime.start(Adder, Sum(1), run_id="r")
        asleep(runtime, "r")
        gone = weakref.ref(handle._inc)
        del handle
        gc.collect()
        assert gone() is None
        assert runtime._core.dormitory.all() == []
        assert runtime.get(Adder, "r").ask(Add(1), 10) == 2


def test_two_who_look_for_a_passivated_run_hold_the_same_one() -> None:
    with opened() as runtime:
        runtime.start(Adder, Sum(1), run_id="r")
        asleep(runtime, "r")
        one, other = runtime.get("r"), runtime.get("r")
        assert one._inc is other._inc
        one.tell(Finish())
        assert other.result(10) == 1


def test_who_waits_for_a_passivated_run_is_told_when_the_runtime_closes() -> None:
    store = MemoryStore()
    errors: list[BaseException] = []

    def wait(handle: RunHandle[int]) -> None:
        with pytest.raises(RunInterrupted) as raised:
            handle.result(30)
        errors.append(raised.value)

    with opened(store) as runtime:
        handle = runtime.start(Adder, Sum(1), run_id="r")
        asleep(runtime, "r")
        waiter = threading.Thread(target=wait, args=(handle,))
        waiter.start()
    waiter.join(10)
    assert [type(error) for error in errors] == [RunInterrupted]
    with opened(store) as runtime:
        assert runtime.get(Adder, "r").ask(Finish(), 10) == 1


# --- ending it --------------------------------------------------------------------------------------------------------


def test_a_passivated_run_is_killed_in_the_store_alone() -> None:
    with opened() as runtime:
        seen = Recorder()
        runtime.events.subscribe(seen)
        handle = runtime.start(Adder, Sum(1), run_id="r")
        asleep(runtime, "r")
        handle.kill("enough", timeout_s=10)
        with pytest.raises(RunKilled):
            handle.result(10)
        with pytest.raises(RunEnded):
            handle.tell(Add(1))
        assert seen.of(RunActivated) == []


@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_a_passivated_run_that_is_cancelled_or_stopped_has_its_last_words(kind: type[Adder], how: str) -> None:
    with opened() as runtime:
        handle = runtime.start(kind, Sum(1), run_id="r")
        asleep(runtime, "r")
        handle.cancel(timeout_s=10) if how == "cancel" else handle.stop(10)
        assert handle.status().status is (RunStatus.CANCELLED if how == "cancel" else RunStatus.STOPPED)
        assert kind.stopped == [how]
        if how == "stop":
            assert runtime.resume("r").ask(Finish(), 10) == 1


@pytest.mark.parametrize("held", [True, False], ids=["held", "not held"])
def test_a_start_finds_a_passivated_run_as_it_finds_a_live_one(held: bool) -> None:
    with opened() as runtime:
        handle: RunHandle[int] | None = runtime.start(Adder, Sum(1), run_id="r")
        asleep(runtime, "r")
        if not held:
            handle = None
            gc.collect()
        with pytest.raises(RunExists, match="passivated"):
            runtime.start(Adder, Sum(2), run_id="r")
        assert runtime.start(Adder, Sum(2), run_id="r", if_exists="return").query("", 10) == 1
        asleep(runtime, "r")
        again = runtime.start(Adder, Sum(2), run_id="r", if_exists="replace")
        assert again.query("", 10) == 2
        if handle is not None:
            with pytest.raises(RunKilled):
                handle.result(10)


def test_resuming_a_passivated_run_by_hand_gives_its_handle_as_for_a_live_one() -> None:
    with opened() as runtime:
        runtime.start(Adder, Sum(1), run_id="r")
        asleep(runtime, "r")
        again = runtime.resume("r")
        again.tell(Finish())
        assert again.result(10) == 1
        with pytest.raises(NotResumable):
            runtime.resume("r")


# --- kin --------------------------------------------------------------------------------------------------------------


def test_a_passivated_parent_hears_of_the_ends_of_its_children() -> None:
    with opened() as runtime:
        parent = runtime.start(Family, 2, run_id="p")
        asleep(runtime, "p", "p/k0", "p/k1")
        runtime.get("p/k1").tell(Finish())
        wait_until(lambda: parent.status().seq == 2)
        asleep(runtime, "p")
        runtime.get("p/k0").tell(Finish())
        assert parent.result(10) == (1, 0)


def test_passivated_children_end_with_their_parent() -> None:
    with opened() as runtime:
        parent = runtime.start(Family, 2, run_id="p")
        asleep(runtime, "p", "p/k0", "p/k1")
        parent.tell(Finish())
        assert parent.result(10) == ()
        for child in ("p/k0", "p/k1"):
            wait_until(lambda child=child: status_of(runtime, child) is RunStatus.CANCELLED)


def test_passivated_children_end_with_a_parent_that_is_killed_at_rest() -> None:
    with opened() as runtime:
        parent = runtime.start(Family, 2, run_id="p")
        asleep(runtime, "p", "p/k0", "p/k1")
        parent.kill(timeout_s=10)
        for child in ("p/k0", "p/k1"):
            wait_until(lambda child=child: status_of(runtime, child) is RunStatus.CANCELLED)


# --- boots ------------------------------------------------------------------------------------------------------------


def test_a_boot_loads_no_passivated_run_but_those_whose_time_has_come(store_path: Path) -> None:
    clock = Jumping()
    with opened(store_path) as runtime:
        runtime.start(Adder, Sum(1, timeout_s=3600), run_id="timed")
        runtime.start(Adder, Sum(2), run_id="patient")
        asleep(runtime, "timed", "patient")
    clock.jump_s = 3601.0
    runtime = opened(store_path)
    runtime._core._clock = clock
    seen = Recorder()
    runtime.events.subscribe(seen)
    with runtime:
        wait_until(lambda: status_of(runtime, "timed") is RunStatus.COMPLETED)
        assert [event.run_id for event in seen.of(RunActivated)] == ["timed"]
        patient = runtime.get(Adder, "patient")
        assert (patient.status().seq, patient.status().strikes) == (1, 0)
        assert patient.ask(Finish(), 10) == 2


def test_a_message_that_was_committed_just_before_the_process_died_wakes_the_run_at_the_next_boot(
    store_path: Path,
) -> None:
    with opened(store_path) as runtime:
        incarnation = runtime.start(Adder, Sum(1), run_id="r").status().epoch
        asleep(runtime, "r")
    store = LmdbStore(store_path)
    store.open()
    message = Append(
        run_id="r",
        incarnation=incarnation,
        message_id="m",
        body=msgspec.msgpack.encode(Finish()),
        sent_at_s=1.0,
        limit=10,
    )
    assert store.commit([message]) == [Accepted(1)]
    store.close()
    with opened(store_path) as runtime:
        wait_until(lambda: status_of(runtime, "r") is RunStatus.COMPLETED)


def test_a_passivated_run_of_a_type_that_is_not_registered_is_parked_when_its_time_comes(store_path: Path) -> None:
    with opened(store_path) as runtime:
        runtime.start(Adder, Sum(1, timeout_s=0.3), run_id="r")
        asleep(runtime, "r")
    with Runtime(store_path, runs=[Family], logger=False) as runtime:
        wait_until(lambda: status_of(runtime, "r") is RunStatus.PARKED)
    with opened(store_path) as runtime:
        assert runtime.get(Adder, "r").result(10) == -1


# --- when it is not passivated ----------------------------------------------------------------------------------------


def test_a_run_is_not_passivated_unless_it_is_told_to_be() -> None:
    assert SavePolicy().passivate_after_s is None
    with opened() as runtime:
        seen = Recorder()
        runtime.events.subscribe(seen)
        stays = runtime.start(Adder, Sum(1), run_id="stays", save_policy=SavePolicy())
        runtime.start(Adder, Sum(1), run_id="goes")
        asleep(runtime, "goes")
        assert stays.status().status is RunStatus.RUNNING
        assert [event.run_id for event in seen.of(RunPassivated)] == ["goes"]


@pytest.mark.parametrize("passivate_after_s", [0, -1.0, float("nan")])
def test_a_time_that_is_none_is_refused(passivate_after_s: float) -> None:
    with pytest.raises(ValueError, match="passivate_after_s"):
        SavePolicy(passivate_after_s=passivate_after_s)


def test_what_is_never_stored_cannot_be_passivated() -> None:
    with pytest.raises(ValueError, match="passivate_after_s"):
        SavePolicy(durability="none", passivate_after_s=1.0)


@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
def test_a_run_is_saved_before_it_leaves_memory(durability: Any) -> None:
    policy = SavePolicy(durability=durability, passivate_after_s=0.03)
    with opened() as runtime:
        handle = runtime.start(Adder, Sum(1), run_id="r", save_policy=policy)
        assert handle.ask(Add(1), 10) == 2
        asleep(runtime, "r")
        assert handle.status().durable_seq == handle.status().seq == 2
        assert handle.ask(Finish(), 10) == 2


class Clumsy(Adder):
    """Crashes at each number."""

    def receive(self, state: Sum, message: Add | Finish | WaitExpired) -> Any:
        if isinstance(message, Add):
            raise ValueError(message.number)
        return super().receive(state, message)


def test_a_restart_that_counts_against_its_budget_keeps_a_run_in_memory() -> None:
    policy = RestartPolicy(max_restarts=2, within_s=60, backoff=SOON)
    with Runtime(None, runs=[Clumsy], restart_policy=policy, logger=False) as runtime:
        handle = runtime.start(Clumsy, Sum(1), run_id="r")
        asleep(runtime, "r")
        for attempt in (3, 4):
            handle.tell(Add(1))
            wait_until(lambda attempt=attempt: handle.status().attempt == attempt and handle.status().waiting)
        handle.tell(Add(1))
        assert type(handle.outcome(10)).__name__ == "Failed"


# --- seen from outside ------------------------------------------------------------------------------------------------


def test_a_passivated_run_is_shown_as_one(store_path: Path) -> None:
    with opened(store_path) as runtime:
        handle = runtime.start(Adder, Sum(1, timeout_s=3600), run_id="r")
        asleep(runtime, "r")
        assert (handle.status().status, handle.status().waiting) == (RunStatus.PASSIVATED, True)
        (view,) = runtime.runs(status="passivated")
        assert (view.run_id, view.waiting) == ("r", True)
        assert runtime.health().live_runs == 0
    reader = LmdbReader(store_path)
    reader.open()
    stored = reader.load("r")
    reader.close()
    assert stored is not None
    assert stored.claim.status is RunStatus.PASSIVATED


@pytest.mark.parametrize("verb", ["query", "durable"])
def test_a_run_that_was_loaded_and_laid_down_again_still_has_its_deadline(verb: str) -> None:
    with opened() as runtime:
        handle = runtime.start(Adder, Sum(1, timeout_s=2.0), run_id="r")
        asleep(runtime, "r")
        assert (handle.query("", 10) if verb == "query" else handle.durable(10)) == 1
        asleep(runtime, "r")
        assert handle.result(10) == -1
