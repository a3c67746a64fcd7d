"""Passivated runs at odds with the moment: failing stores, ids that are being started, parents gone, clocks set back."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from executus.actors import (
    Keep,
    RetentionPolicy,
    RunExists,
    RunInterrupted,
    RunKilled,
    RunStatus,
    Runtime,
    StopPolicy,
)
from executus.actors.console.main import main
from executus.actors.events import RunActivated, RunsPruned
from executus.stores import Accepted, Append, Claim, DueRun, MemoryStore, Operation, Settle, StoreFull, Verdict
from executus.stores.rows import Table
from tests.actors.test_passivation import Add, Adder, Family, Finish, Jumping, Sum, asleep, opened, status_of
from tests.doubles import Recorder
from tests.stores.disks import MemoryDisk, damage
from tests.waiting import wait_until


class Doubtful(MemoryStore):
    """Refuses the commits that it is told to, holds some back, and lets one thread wait for what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses: Callable[[Operation], bool] = lambda _: False
        self.holds: Callable[[Operation], bool] = lambda _: False
        self.refused = 0
        self.held, self.go_on = threading.Event(), threading.Event()
        self.reader: threading.Thread | None = None
        self.reading, self.read_on = threading.Event(), threading.Event()
        self.looks = 0

    def commit(self, operations: Sequence[Operation], flushing: Any = None) -> list[Verdict]:
        if any(map(self.refuses, operations)):
            self.refused += 1
            raise StoreFull("told to be full")
        if any(map(self.holds, operations)):
            self.held.set()
            assert self.go_on.wait(30)
        return super().commit(operations, flushing)

    def due(self, *, by_wall: bool, after: Any = None, limit: int = 1000) -> list[DueRun]:
        self.looks += 1
        return super().due(by_wall=by_wall, after=after, limit=limit)

    def load_snapshot(self, run_id: str) -> Any:
        loaded = super().load_snapshot(run_id)
        if threading.current_thread() is self.reader:
            self.reading.set()
            assert self.read_on.wait(30)
        return loaded


def lays_down(operation: Operation) -> bool:
    return isinstance(operation, Settle) and operation.status is RunStatus.PASSIVATED


def let_go_of(runtime: Runtime, run_id: str) -> None:
    """Return when nothing of it is in memory."""

    def gone() -> bool:
        gc.collect()
        return runtime._core.dormitory.asleep(run_id) is None

    wait_until(gone)


# --- a failing store --------------------------------------------------------------------------------------------------


def test_a_store_that_refuses_to_lay_a_run_down_leaves_it_in_memory_where_it_answers() -> None:
    store = Doubtful()
    store.refuses = lays_down
    with opened(store) as runtime:
        handle = runtime.start(Adder, Sum(1), run_id="r")
        wait_until(lambda: store.refused)
        assert handle.ask(Add(2), 10) == 3
        assert "r" in runtime._core.table
        store.refuses = lambda _: False
        asleep(runtime, "r")
        assert handle.ask(Finish(), 10) == handle.result(10) == 3


def test_a_message_that_comes_while_the_store_cannot_activate_is_heard_when_it_can() -> None:
    store = Doubtful()
    with opened(store) as runtime:
        handle = runtime.start(Adder, Sum(1), run_id="r")
        asleep(runtime, "r")
        store.refuses = lambda _: True
        handle.tell(Add(2))
        wait_until(lambda: store.refused >= 2)
        assert runtime.health().store_error is not None
        store.refuses = lambda _: False
        wait_until(lambda: handle.status().seq == 2)
        assert handle.query("", 10) == 3


def test_a_passivated_run_is_not_called_dead_before_its_tombstone_is_stored() -> None:
    store = Doubtful()
    with opened(store, stop_policy=StopPolicy(grace_s=0.05)) as runtime:
        seen = Recorder()
        runtime.events.subscribe(seen)
        handle = runtime.start(Adder, Sum(1, timeout_s=0.6), run_id="r")
        asleep(runtime, "r")
        store.refuses = lambda _: True
        with pytest.raises(TimeoutError):
            handle.kill("enough", timeout_s=1.0)  # longer than the grace, and than its time
        store.refuses = lambda _: False
        with pytest.raises(RunKilled):
            handle.result(10)
        assert status_of(runtime, "r") is RunStatus.KILLED
        assert seen.of(RunActivated) == []


def test_a_kill_that_meets_a_run_being_laid_down_stands() -> None:
    store = Doubtful()
    with opened(store) as runtime:
        seen = Recorder()
        runtime.events.subscribe(seen)
        store.holds = lays_down
        handle = runtime.start(Adder, Sum(1), run_id="r")
        assert store.held.wait(10)
        killer = threading.Thread(target=lambda: handle.kill("enough", timeout_s=20))
        killer.start()
        wait_until(lambda: handle._inc.killed_by is not None)
        store.holds = lambda _: False
        store.go_on.set()
        killer.join(20)
        with pytest.raises(RunKilled):
            handle.result(10)
        assert (status_of(runtime, "r"), seen.of(RunActivated)) == (RunStatus.KILLED, [])


@pytest.mark.parametrize("verb", ["tell", "query", "durable", "stop", "send"])
def test_who_wants_something_of_a_run_that_is_being_laid_down_gets_it(verb: str) -> None:
    store = Doubtful()
    Adder.stopped = []
    with opened(store) as runtime:
        store.holds = lays_down
        handle = runtime.start(Adder, Sum(1), run_id="r")
        assert store.held.wait(10)
        got: list[Any] = []
        wanted = {
            "tell": lambda: handle.tell(Add(2)),
            "query": lambda: got.append(handle.query("", 20)),
            "durable": lambda: got.append(handle.durable(20)),
            "stop": lambda: handle.stop(20),
            "send": lambda: handle.send(Add(2), message_id="m"),
        }[verb]
        thread = threading.Thread(target=wanted)
        thread.start()
        if verb == "tell":
            thread.join(10)
        elif verb == "stop":
            wait_until(lambda: handle._inc.causes)
        store.holds = lambda _: False
        store.go_on.set()
        thread.join(20)
        assert not thread.is_alive()
        match verb:
            case "tell" | "send":
                wait_until(lambda: handle.status().seq == 2)
                assert handle.query("", 10) == 3
            case "stop":
                assert (handle.status().status, Adder.stopped) == (RunStatus.STOPPED, ["stop"])
            case _:
                assert got == [1]


# --- an id that is being started --------------------------------------------------------------------------------------


@contextmanager
def started_while_it_is_looked_up(runtime: Runtime, store: Doubtful) -> Iterator[tuple[Any, list[Any]]]:
    """A handle of the passivated "r", made while a start holds its id whose commit is under way; and what it gives."""
    handles: list[Any] = []
    started: list[Any] = []
    store.reader = threading.Thread(target=lambda: handles.append(runtime.get(Adder, "r")))
    store.reader.start()
    assert store.reading.wait(10)
    store.holds = lambda op: isinstance(op, Claim) and op.record is not None
    start = threading.Thread(
        target=lambda: started.append(runtime.start(Adder, Sum(9), run_id="r", if_exists="return"))
    )
    start.start()
    assert store.held.wait(10)
    store.read_on.set()
    store.reader.join(10)
    yield handles[0], started
    store.holds = lambda _: False
    store.go_on.set()
    start.join(10)


def test_a_message_is_heard_that_wakes_a_run_whose_id_is_held_by_a_start() -> None:
    store = Doubtful()
    with opened(store) as runtime:
        runtime.start(Adder, Sum(1), run_id="r")
        asleep(runtime, "r")
        let_go_of(runtime, "r")
        with started_while_it_is_looked_up(runtime, store) as (handle, started):
            handle.tell(Add(2))
        wait_until(lambda: handle.status().seq == 2)
        assert started[0].query("", 10) == 3
        assert started[0]._inc is handle._inc


def test_a_run_whose_id_is_held_by_a_start_has_its_last_words_when_it_is_stopped() -> None:
    store = Doubtful()
    Adder.stopped = []
    with opened(store) as runtime:
        runtime.start(Adder, Sum(1), run_id="r")
        asleep(runtime, "r")
        let_go_of(runtime, "r")
        with started_while_it_is_looked_up(runtime, store) as (handle, _):
            stopper = threading.Thread(target=lambda: handle.stop(20))
            stopper.start()
        stopper.join(20)
        assert (handle.status().status, Adder.stopped) == (RunStatus.STOPPED, ["stop"])


def test_a_run_whose_time_comes_while_a_start_in_vain_holds_its_id_is_woken() -> None:
    store = Doubtful()
    with opened(store) as runtime:
        runtime.start(Adder, Sum(1, timeout_s=1.5), run_id="r")
        asleep(runtime, "r")
        let_go_of(runtime, "r")
        store.holds = lambda op: isinstance(op, Claim) and op.record is not None
        refusals: list[BaseException] = []

        def start() -> None:
            with pytest.raises(RunExists) as raised:
                runtime.start(Adder, Sum(9), run_id="r")
            refusals.append(raised.value)

        starter = threading.Thread(target=start)
        starter.start()
        assert store.held.wait(10)
        looks = store.looks
        wait_until(lambda: store.looks > looks, 10, "its time")
        store.go_on.set()
        starter.join(10)
        assert len(refusals) == 1
        wait_until(lambda: status_of(runtime, "r") is RunStatus.COMPLETED)


# --- kin --------------------------------------------------------------------------------------------------------------


def test_the_passivated_children_of_a_parent_that_was_replaced_at_rest_end_and_end_once() -> None:
    with opened() as runtime:
        seen = Recorder()
        runtime.events.subscribe(seen)
        runtime.start(Family, 2, run_id="p")
        asleep(runtime, "p", "p/k0", "p/k1")
        runtime.get("p").stop(10)
        runtime.start(Family, 0, run_id="p", if_exists="replace")
        for child in ("p/k0", "p/k1"):
            wait_until(lambda child=child: status_of(runtime, child) is RunStatus.CANCELLED)
            assert len(seen.of(RunActivated, child)) == 1


def test_a_child_of_a_parent_that_cannot_be_read_goes_on() -> None:
    disk = MemoryDisk()
    with opened(disk.store()) as runtime:
        runtime.start(Family, 1, run_id="p")
        asleep(runtime, "p", "p/k0")
        damage(disk, Table.CLAIMS, "p")
        assert runtime.get(Adder, "p/k0").ask(Add(4), 10) == 4


def test_a_passivated_child_of_a_type_that_is_not_registered_does_not_park_its_parent() -> None:
    store = MemoryStore()
    with opened(store) as runtime:
        runtime.start(Family, 1, run_id="p")
        asleep(runtime, "p", "p/k0")
    with Runtime(store, runs=[Family], logger=False) as runtime:
        parent = runtime.get(Family, "p")
        parent.tell(Finish())
        assert parent.result(10) == ()
        wait_until(lambda: status_of(runtime, "p/k0") is RunStatus.PARKED)  # roused, and nobody here knows it


def test_an_id_that_was_parked_and_begun_anew_can_be_woken() -> None:
    store = MemoryStore()
    with opened(store) as runtime:
        incarnation = runtime.start(Adder, Sum(1), run_id="r").status().epoch
        asleep(runtime, "r")
    store.open()
    body = msgspec.msgpack.encode(Finish())
    message = Append(run_id="r", incarnation=incarnation, message_id="m", body=body, sent_at_s=1.0, limit=10)
    assert store.commit([message]) == [Accepted(1)]
    store.close()
    with Runtime(store, runs=[Family], logger=False) as runtime:
        wait_until(lambda: status_of(runtime, "r") is RunStatus.PARKED)
        runtime.start(Family, 0, run_id="r", if_exists="replace")
        asleep(runtime, "r")
        runtime.get("r").send(Finish())
        wait_until(lambda: status_of(runtime, "r") is RunStatus.COMPLETED)


# --- shutdowns and boots ----------------------------------------------------------------------------------------------


def test_a_handle_of_a_passivated_run_made_after_a_drain_interrupts_its_waiter_at_once() -> None:
    with opened() as runtime:
        runtime.start(Adder, Sum(1), run_id="r")
        asleep(runtime, "r")
        let_go_of(runtime, "r")
        runtime.drain(10)
        handle = runtime.get(Adder, "r")
        with pytest.raises(RunInterrupted):
            handle.result(10)
        assert handle.status().status is RunStatus.PASSIVATED


def test_a_kill_after_a_drain_reaches_a_passivated_run() -> None:
    store = MemoryStore()
    with opened(store) as runtime:
        runtime.start(Adder, Sum(1), run_id="r")
        asleep(runtime, "r")
        handle = runtime.get(Adder, "r")
        runtime.drain(10)
        handle.kill(timeout_s=10)
        assert status_of(runtime, "r") is RunStatus.KILLED


@pytest.mark.parametrize("when", ["before the boot", "while it runs"])
def test_a_clock_that_was_set_back_by_a_day_does_not_let_a_time_out_last_longer_than_it_had_left(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    store, clock = MemoryStore(), Jumping()
    runtime = opened(store)
    runtime._core._clock = clock
    with runtime:
        if when == "while it runs":
            clock.jump_s = -86_400.0
        runtime.start(Adder, Sum(1, timeout_s=3600), run_id="r")
        asleep(runtime, "r")
    clock.jump_s = -86_400.0
    runtime = opened(store)
    runtime._core._clock = clock
    with runtime:

        def left_s() -> float:
            stored = store.load("r")
            assert stored is not None
            dues = stored.claim.due_times
            return dues[0].at_s - runtime._core.env.steady_s() if dues else 0.0

        wait_until(lambda: 3500 < left_s() <= 3600, 10, f"it has its hour: {left_s()}")
        asleep(runtime, "r")  # it was woken for that, and leaves memory once that is stored


def test_a_backup_of_a_store_with_passivated_runs_wakes_them(tmp_path: Path) -> None:
    with opened(tmp_path / "runs.store") as runtime:
        runtime.start(Adder, Sum(3, timeout_s=1.0), run_id="timed")
        runtime.start(Adder, Sum(5), run_id="patient")
        asleep(runtime, "timed", "patient")
    assert main(["backup", str(tmp_path / "runs.store"), str(tmp_path / "copy")]) == 0
    assert main(["restore", str(tmp_path / "copy"), str(tmp_path / "back")]) == 0
    with opened(tmp_path / "back") as runtime:
        assert runtime.get(Adder, "timed").result(10) == -1
        assert runtime.get(Adder, "patient").ask(Finish(), 10) == 5


# --- retention --------------------------------------------------------------------------------------------------------


def test_retention_deletes_no_passivated_run() -> None:
    nothing = Keep(0, 0)
    policy = RetentionPolicy(
        completed=nothing, failed=nothing, killed=nothing, cancelled=nothing, timed_out=nothing, every_s=0.05
    )
    with opened(retention_policy=policy) as runtime:
        seen = Recorder()
        runtime.events.subscribe(seen)
        runtime.start(Adder, Sum(1), run_id="r")
        asleep(runtime, "r")
        for number in (1, 2):
            runtime.start(Adder, Sum(1), run_id=f"ends {number}").ask(Finish(), 10)
            seen.wait_for(RunsPruned, count=number)
        assert runtime.get(Adder, "r").ask(Finish(), 10) == 1
