"""The runtime's own tree: a store actor that always comes back, a run supervisor whose crash closes, an end in order."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executus.actors import ErrorInfo, ExecutusError, Runtime, RuntimeNotOpen, SavePolicy
from executus.actors.admission import Admission
from executus.actors.core import Core
from executus.actors.events import Event, RunStarted, RuntimeClosed, StoreActorRestarted
from executus.actors.incarnation import tell_if_alive
from executus.actors.nursery import Nursery
from executus.actors.runtime_tree import RuntimeTree
from executus.actors.tree_ref import SupervisorRef
from executus.stores import LmdbStore, MemoryStore, StoreLocked, StoreUnavailable
from tests.doubles import Do, FailableRun, Told, rigged
from tests.waiting import wait_until


class Defect(Exception):
    """What no store may raise."""


class Moody(MemoryStore):
    """A store whose commits and openings do what the test says, once each."""

    def __init__(self) -> None:
        super().__init__()
        self.at_commit: list[Callable[[], object]] = []
        self.at_open: list[Callable[[], object]] = []
        self.opened = 0
        self.closed = 0

    def open(self) -> None:
        if self.at_open:
            self.at_open.pop(0)()
        super().open()
        self.opened += 1

    def close(self) -> None:
        super().close()
        self.closed += 1

    def commit(self, operations: Any, flushing: Any = None) -> Any:
        if self.at_commit:
            self.at_commit.pop(0)()
        return super().commit(operations, flushing)


def defect() -> None:
    raise Defect("a defect of the store")


def top(runtime: Runtime) -> SupervisorRef:
    found = runtime._core.tree._top
    assert found is not None
    return found


def names(tree: SupervisorRef) -> dict[str, Any]:
    return {info.id: info for info in tree.which_children().get(timeout=10)}


# --- its shape --------------------------------------------------------------------------------------------------------


def test_the_tree_is_a_store_that_is_supervised_apart_and_the_run_supervisor_behind_it() -> None:
    with rigged() as rig:
        rows = names(top(rig.runtime))
        assert [(row.id, str(row.state), row.kind) for row in rows.values()] == [
            ("store", "running", "supervisor"),
            ("runs", "running", "worker"),
        ]
        assert rows["runs"].ref is rig.runtime._core.tree.runs
        assert names(rows["store"].ref)["actor"].ref is rig.runtime._core.tree.store


# --- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StoreUnavailable("no disk"), Defect("broken"), SystemExit(3)], ids=repr)
def test_what_opening_the_store_raises_is_raised_as_it_is_and_nothing_stays(error: BaseException) -> None:
    def fail() -> None:
        raise error

    store = Moody()
    store.at_open = [fail]
    runtime = Runtime(store, runs=[FailableRun], logger=False)
    with pytest.raises(type(error)) as caught:
        runtime.open()
    assert caught.value is error
    with pytest.raises(RuntimeNotOpen, match="closed"):
        runtime.start(FailableRun, Told())
    assert store.opened == 0


def test_a_run_supervisor_that_crashes_in_its_recovery_fails_the_opening_and_lets_the_store_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def recover(_self: Admission, _then: Any) -> None:
        raise Defect("in the recovery")

    monkeypatch.setattr(Admission, "recover", recover)
    store = Moody()
    with pytest.raises(Defect, match="in the recovery"):
        Runtime(store, runs=[FailableRun], logger=False).open()
    assert store.opened == store.closed == 1


def test_a_crash_between_being_ready_and_being_open_fails_the_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Core._opened

    def opened(self: Core) -> None:
        assert self.tree.runs is not None
        self.tree.runs.tell(object())
        wait_until(lambda: self._closed_by is not None)
        original(self)

    monkeypatch.setattr(Core, "_opened", opened)
    store = Moody()
    with pytest.raises(RuntimeNotOpen, match="does not know object"):
        Runtime(store, runs=[FailableRun], logger=False).open()
    assert store.closed == 1


def test_a_store_that_cannot_be_opened_is_told_once_and_not_logged_by_the_tree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Runtime(tmp_path / "runs", runs=[FailableRun], logger=False):
        caplog.clear()
        with pytest.raises(StoreLocked):
            Runtime(tmp_path / "runs", runs=[FailableRun], logger=False).open()
        assert caplog.records == []


# --- the store actor --------------------------------------------------------------------------------------------------


def test_a_store_that_crashes_and_cannot_be_opened_at_first_comes_back_and_misses_nothing() -> None:
    store = Moody()
    with rigged(store) as rig:
        handle = rig.waiting()
        handle.durable(10)
        store.at_open = [defect] * 5
        store.at_commit = [defect]
        handle.tell(Do("ok"))
        wait_until(lambda: len(rig.seen.of(StoreActorRestarted)) == 3)
        health = rig.runtime.health()
        assert not health.ok
        assert health.store_error is not None
        assert "a defect of the store" in health.store_error
        assert handle.durable(10) == handle.status().seq
        assert len(rig.seen.of(StoreActorRestarted)) == 6, "the crash, and each opening that failed"
        wait_until(lambda: rig.runtime.health().ok)
        assert rig.runtime._core.tree.store is not None
        handle.tell(Do("done"))
        assert handle.result(10) == 1
    assert store.opened == 2


def test_the_waits_of_a_store_that_goes_on_crashing_grow() -> None:
    store, moments = Moody(), []

    def noted() -> None:
        moments.append(time.monotonic())
        defect()

    with rigged(store) as rig:
        handle = rig.waiting()
        handle.durable(10)
        store.at_open = [noted] * 4
        store.at_commit = [noted]
        handle.tell(Do("ok"))
        handle.durable(10)
    waits_s = [after - before for before, after in itertools.pairwise(moments)]
    assert all(wait_s >= least_s for wait_s, least_s in zip(waits_s, (0.05, 0.1, 0.2, 0.4), strict=True))


def test_a_store_that_crashes_at_its_stop_is_no_restart_and_holds_up_no_close() -> None:
    store = Moody()
    with rigged(store, save_policy=SavePolicy(every_s=60)) as rig:
        handle = rig.waiting()
        handle.durable(10)
        original, store.close = store.close, defect  # type: ignore[method-assign]
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 2.0
    assert rig.seen.of(StoreActorRestarted) == []
    assert [closed.escalated for closed in rig.seen.of(RuntimeClosed)] == [None]
    original()


def test_a_subscriber_that_blocks_the_run_supervisor_keeps_no_store_from_coming_back() -> None:
    go_on, held = threading.Event(), threading.Event()
    store = Moody()

    def hold(event: Event) -> None:
        if isinstance(event, RunStarted) and event.run_id == "held":
            held.set()
            go_on.wait(10)

    with rigged(store) as rig:
        rig.waiting()
        rig.runtime.events.subscribe(hold)
        starter = threading.Thread(target=lambda: rig.runtime.start(FailableRun, Told(), run_id="held"))
        starter.start()
        assert held.wait(10)
        former = rig.runtime._core.tree.store
        assert former is not None
        former.tell(object())
        wait_until(lambda: rig.runtime._core.tree.store is not former and store.opened == 2)
        go_on.set()
        starter.join(10)


# --- closing ----------------------------------------------------------------------------------------------------------


def test_commits_told_before_the_close_go_in() -> None:
    store = MemoryStore()
    with rigged(store, save_policy=SavePolicy(every_s=60)) as rig:
        seqs = [rig.waiting(run_id=f"r{n}").status().seq for n in range(50)]
    with rigged(store) as rig:
        for n, seq in enumerate(seqs):
            handle = rig.runtime.get(f"r{n}")
            wait_until(lambda: handle.status().waiting)
            assert handle.status().seq == seq


def test_a_run_supervisor_that_hangs_at_the_close_keeps_no_store_open(tmp_path: Path) -> None:
    go_on, held = threading.Event(), threading.Event()

    def hold(event: Event) -> None:
        if isinstance(event, RunStarted):
            held.set()
            go_on.wait(20)

    with rigged(tmp_path / "runs", drain_timeout_s=0.1) as rig:
        rig.runtime.events.subscribe(hold)

        def start() -> None:
            with pytest.raises(ExecutusError):
                rig.runtime.start(FailableRun, Told(("wait",)), run_id="r")

        starter = threading.Thread(target=start)
        starter.start()
        assert held.wait(10)
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 5.0
    starter.join(10)
    assert not starter.is_alive()
    assert top(rig.runtime).unstopped == ("runs",)
    with rigged(tmp_path / "runs"):  # the lock is free, though the former supervisor's thread still hangs
        go_on.set()


def test_a_store_that_hangs_at_the_close_is_given_up_on_and_closed_when_it_comes_back(tmp_path: Path) -> None:
    go_on, held = threading.Event(), threading.Event()

    class Hanging(LmdbStore):
        def commit(self, operations: Any, *more: Any) -> Any:
            if armed.is_set():
                held.set()
                go_on.wait(30)
            return super().commit(operations, *more)

    armed = threading.Event()
    with rigged(Hanging(tmp_path / "runs"), drain_timeout_s=0.1) as rig:
        handle = rig.waiting()
        handle.durable(10)
        armed.set()
        handle.tell(Do("ok"))
        assert held.wait(10)
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 6.0
    assert rig.runtime._core.tree.store_hangs
    assert top(rig.runtime).unstopped == ("store/actor",)
    with pytest.raises(StoreLocked):
        Runtime(tmp_path / "runs", runs=[FailableRun], logger=False).open()
    go_on.set()

    def opens() -> bool:
        try:
            with rigged(tmp_path / "runs") as again:
                again.runtime.get("r")
        except StoreLocked:
            return False
        return True

    wait_until(opens, 10)


# --- crashes ----------------------------------------------------------------------------------------------------------


def test_a_crash_of_the_run_supervisor_lets_the_store_commit_what_it_was_told() -> None:
    store = Moody()
    go_on, held = threading.Event(), threading.Event()

    def slow() -> None:
        held.set()
        go_on.wait(10)

    with rigged(store, save_policy=SavePolicy(durability="sync")) as rig:
        handle = rig.waiting()
        before = handle.status().seq
        store.at_commit = [slow]
        handle.tell(Do("ok"))
        assert held.wait(10)
        runs = rig.runtime._core.tree.runs
        assert runs is not None
        runs.tell(object())
        with pytest.raises(ExecutusError, match="supervisor crashed"):  # at once, though the store is still at work
            handle.result(5)
        assert store.closed == 0
        go_on.set()
        rig.seen.wait_for(RuntimeClosed)
        assert store.closed == 1
    with rigged(store) as rig:
        handle = rig.runtime.get("r")
        wait_until(lambda: handle.status().waiting)
        assert handle.status().seq == before + 1


def test_a_crash_of_a_supervisor_of_the_tree_itself_closes_the_runtime_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = Moody()
    with rigged(disk) as rig:
        handle = rig.waiting()
        store = names(top(rig.runtime))["store"].ref

        def broken(_self: Nursery) -> Any:
            raise Defect("in the tree")

        monkeypatch.setattr(Nursery, "counts", broken)
        store.count_children()
        with pytest.raises(ExecutusError, match="in the tree"):
            handle.result(10)
        closed = rig.seen.wait_for(RuntimeClosed)
        assert isinstance(closed.escalated, ErrorInfo)
        assert rig.runtime._core.closed.result(10) == closed.escalated
        assert disk.closed == 1


def test_a_crash_during_the_drain_of_a_close_ends_it_at_once() -> None:
    with rigged(drain_timeout_s=30) as rig:
        handle = rig.runtime.start(FailableRun, Told(("hang",)), run_id="r")
        core = rig.runtime._core
        wait_until(lambda: handle.status().phase is not None and rig.world.release is not None)
        closer = threading.Thread(target=rig.runtime.close)
        began_s = time.monotonic()
        closer.start()
        wait_until(lambda: core._state == "closing")
        assert core.tree.runs is not None
        core.tree.runs.tell(object())
        closer.join(15)
        assert not closer.is_alive()
        assert time.monotonic() - began_s < 10
        with pytest.raises(ExecutusError):
            handle.result(5)


def test_no_runtime_is_closed_twice_by_a_crash_and_a_close_at_the_same_time() -> None:
    for _ in range(30):
        with rigged(drain_timeout_s=1) as rig:
            runs = rig.runtime._core.tree.runs
            assert runs is not None
            barrier = threading.Barrier(2)

            def crash(runs: Any = runs, barrier: threading.Barrier = barrier) -> None:
                barrier.wait(10)
                tell_if_alive(runs, object())

            crasher = threading.Thread(target=crash)
            crasher.start()
            barrier.wait(10)
            rig.runtime.close()
            crasher.join(10)
            rig.seen.wait_for(RuntimeClosed)
        assert len(rig.seen.of(RuntimeClosed)) == 1


def test_the_tree_names_its_parts_as_its_docstring_draws_them() -> None:
    drawn = RuntimeTree.__doc__ or ""
    for name in ("store", "actor", "runs"):
        assert f"─ {name} " in drawn
