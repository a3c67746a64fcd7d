"""Nothing that one run raises touches another: twelve kinds of exception in every callback, and every watcher that misbehaves."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from executus.actors import (
    Done,
    ExecutusError,
    Factory,
    Failed,
    Phase,
    RestartPolicy,
    Run,
    RunCancelled,
    RunCrashed,
    RunFailed,
    RunStatus,
    Wait,
)
from executus.actors.events import (
    Event,
    RunExited,
    RunRestarting,
    RunSettled,
    RunStarted,
    RuntimeClosed,
    StoreActorRestarted,
)
from executus.stores import MemoryStore
from tests.doubles import (
    ERRORS,
    NEVER,
    SOON,
    TWELVE,
    AsyncFailableRun,
    Do,
    FailableRun,
    Rig,
    Told,
    Unprintable,
    World,
    rigged,
)
from tests.waiting import wait_until

BOTH = pytest.mark.parametrize("double", [FailableRun, AsyncFailableRun], ids=["sync", "async"])
EACH_ERROR = pytest.mark.parametrize("error", TWELVE)


class Bystanders:
    """Two runs that live beside the one that misbehaves; unharmed means: they do all their steps in one attempt."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._handles = [
            rig.runtime.start(FailableRun, Told(("wait", "ok", "ok")), run_id="bystander"),
            rig.runtime.start(AsyncFailableRun, Told(("wait", "ok", "ok")), run_id="async bystander"),
        ]
        for handle in self._handles:
            wait_until(lambda handle=handle: handle.status().waiting)

    def assert_unharmed(self) -> None:
        for handle in self._handles:
            handle.tell(Do("go"))
            assert handle.result(10) == 3
            assert handle.status().attempt == 1
            assert not self._rig.seen.of(RunExited, handle.run_id)


def name_of(error: str, *, sync: bool) -> set[str]:
    """How the exit names it. Python turns a StopIteration that leaves a coroutine into a RuntimeError."""
    if error == "StopIteration" and not sync:
        return {"RuntimeError"}
    kind = type(ERRORS[error]())
    return {kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"}


@BOTH
@EACH_ERROR
@pytest.mark.parametrize("where", ["begin", "step"])
def test_what_begin_or_step_raises_ends_that_attempt_alone_and_the_next_one_completes(
    double: Any, error: str, where: str
) -> None:
    told = Told(begin=f"raise:{error}@1") if where == "begin" else Told(("ok", f"raise:{error}@1"))
    with rigged() as rig:
        bystanders = Bystanders(rig)
        handle = rig.runtime.start(double, told, run_id="r")
        assert handle.result(10) == len(told.steps)
        (exited,) = rig.seen.of(RunExited, "r")
        assert (exited.phase, exited.attempt) == (Phase(where), 1)
        assert exited.error.type in name_of(error, sync=double is FailableRun)
        (settled,) = rig.seen.of(RunSettled, "r")
        assert settled.status is RunStatus.COMPLETED
        assert handle.status().attempt == 2
        bystanders.assert_unharmed()


@BOTH
@EACH_ERROR
def test_what_receive_raises_loses_that_message_tells_its_asker_and_the_run_goes_on(double: Any, error: str) -> None:
    with rigged() as rig:
        bystanders = Bystanders(rig)
        handle = rig.runtime.start(double, Told(("wait",)), run_id="r")
        wait_until(lambda: handle.status().waiting)
        with pytest.raises(RunCrashed):
            handle.ask(Do(f"raise:{error}"), 10)
        handle.tell(Do("done"))
        assert handle.result(10) == 1
        (exited,) = rig.seen.of(RunExited, "r")
        assert exited.phase is Phase.RECEIVE
        assert len(rig.seen.of(RunSettled, "r")) == 1
        bystanders.assert_unharmed()


@BOTH
@EACH_ERROR
def test_what_query_raises_goes_to_the_asker_and_the_run_never_notices(double: Any, error: str) -> None:
    with rigged() as rig:
        bystanders = Bystanders(rig)
        handle = rig.runtime.start(double, Told(("wait",), query=f"raise:{error}"), run_id="r")
        wait_until(lambda: handle.status().waiting)
        raised = type(ERRORS[error]())
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the next line says which
            handle.query("heard", 10)
        causes = {type(caught.value), type(caught.value.__cause__)}
        assert raised in causes or (error == "StopIteration" and RuntimeError in causes)
        assert handle.query("at", 10) == 1
        handle.tell(Do("done"))
        assert handle.result(10) == 1
        assert not rig.seen.of(RunExited, "r")
        bystanders.assert_unharmed()


@BOTH
@EACH_ERROR
def test_what_stopping_raises_does_not_change_how_the_run_ends(double: Any, error: str) -> None:
    with rigged() as rig:
        bystanders = Bystanders(rig)
        handle = rig.runtime.start(double, Told(("wait",), stopping=f"raise:{error}"), run_id="r")
        wait_until(lambda: handle.status().waiting)
        handle.cancel("enough", timeout_s=10)
        with pytest.raises(RunCancelled):
            handle.result(10)
        (settled,) = rig.seen.of(RunSettled, "r")
        assert settled.status is RunStatus.CANCELLED
        bystanders.assert_unharmed()


@BOTH
@EACH_ERROR
def test_what_a_constructor_raises_counts_as_a_crash_while_starting(double: Any, error: str) -> None:
    with rigged() as rig:
        bystanders = Bystanders(rig)
        rig.world.construct = f"raise:{error}"
        handle = rig.runtime.start(double, Told(), run_id="r")
        outcome = handle.outcome(10)
        assert isinstance(outcome, Failed)
        assert (outcome.phase, outcome.restarts) == (Phase.STARTING, 3)
        assert len(rig.seen.of(RunExited, "r")) == 4
        assert len(rig.seen.of(RunSettled, "r")) == 1
        rig.world.construct = "ok"
        bystanders.assert_unharmed()


class Old(FailableRun):
    run_type = "Upgraded"


class Upgraded(FailableRun):
    run_type = "Upgraded"
    schema_version = 2

    def upgrade(self, version: int, raw: Any) -> Any:
        self._perform(self.world.calls[0][1])


@EACH_ERROR
def test_what_upgrade_raises_parks_that_run_and_the_others_start(error: str) -> None:
    store, world = MemoryStore(), World()
    with rigged(store, Factory(Old, world)) as rig:
        for handle in [
            rig.runtime.start(Old, Told(("wait",)), run_id="r"),
            rig.runtime.start(FailableRun, Told(("wait",)), run_id="other"),
        ]:
            wait_until(lambda handle=handle: handle.status().waiting)
    world.note("upgrade", f"raise:{error}")
    with rigged(store, Factory(Upgraded, world)) as rig:
        bystanders = Bystanders(rig)
        settled = rig.seen.wait_for(RunSettled, "r")
        assert settled.status is RunStatus.PARKED
        assert not rig.seen.of(RunExited, "r")
        other = rig.runtime.get(FailableRun, "other")
        other.tell(Do("done"))
        assert other.result(10) == 1
        bystanders.assert_unharmed()


class Endless(Run[int, int, int]):
    """Really recurses, really exhausts memory."""

    def begin(self, depth: int) -> int:
        return depth

    def step(self, state: int) -> int | Done[int]:
        if self.context.attempt == 1:
            return self.step(state)
        if self.context.attempt == 2:
            bytearray(1 << 60)
        return Done(state)


def test_a_real_recursion_and_a_real_memory_error_are_crashes_like_any_other() -> None:
    with rigged(None, Endless) as rig:
        assert rig.runtime.start(Endless, 7, run_id="r").result(10) == 7
        assert [exited.error.type for exited in rig.seen.of(RunExited, "r")] == ["RecursionError", "MemoryError"]


class Parent(Run[Told, int, int]):
    """Waits for its child and counts what it was told of it."""

    def begin(self, told: Told) -> Wait[int]:
        self.context.spawn(FailableRun, told, key="child")
        return Wait(0)

    def step(self, state: int) -> int:
        return state

    def receive(self, state: int, message: Any) -> Done[int]:
        assert isinstance(message.outcome, Failed)
        return Done(message.outcome.restarts)


def test_a_crash_in_a_child_is_the_childs_and_comes_to_the_parent_as_a_message() -> None:
    with rigged(None, Parent) as rig:
        bystanders = Bystanders(rig)
        parent = rig.runtime.start(Parent, Told(("raise:SystemExit",)), run_id="parent")
        assert parent.result(10) == 3
        assert not rig.seen.of(RunExited, "parent")
        assert len(rig.seen.of(RunExited, "parent/child")) == 4
        bystanders.assert_unharmed()


class Breaking(MemoryStore):
    """A store with a defect: its commits raise what no store may raise, as often as it is told."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error
        self.breaks = 0
        self.lock = threading.Lock()

    def commit(self, operations: Any, flushing: Any = None) -> Any:
        with self.lock:
            if self.breaks:
                self.breaks -= 1
                raise self.error("a defect of the store")
        return super().commit(operations, flushing)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt, MemoryError])
def test_a_store_actor_that_crashes_comes_back_alone_and_no_run_notices(error: type[BaseException]) -> None:
    store = Breaking(error)
    with rigged(store) as rig:
        bystanders = Bystanders(rig)
        handle = rig.runtime.start(FailableRun, Told(("wait",)), run_id="r")
        wait_until(lambda: handle.status().waiting)
        handle.durable(10)
        store.breaks = 2
        handle.tell(Do("ok"))
        wait_until(lambda: handle.status().seq == 3)
        assert handle.durable(10) == 3
        assert store.breaks == 0
        assert len(rig.seen.of(StoreActorRestarted)) == 2
        handle.tell(Do("done"))
        assert handle.result(10) == 1
        assert not rig.seen.of(RunExited)
        bystanders.assert_unharmed()
        assert rig.runtime.health().ok
    assert not [closed for closed in rig.seen.of(RuntimeClosed) if closed.escalated]


@EACH_ERROR
def test_an_event_subscriber_that_raises_harms_no_run_and_no_other_subscriber(error: str) -> None:
    def raising(_event: Event) -> None:
        raise ERRORS[error]()

    with rigged() as rig:
        rig.runtime.events.subscribe(raising)
        rig.runtime.events.subscribe(after := rig.seen.__class__())
        handle = rig.runtime.start(FailableRun, Told(("ok", "raise:ValueError@1", "ok")), run_id="r")
        assert handle.result(10) == 3
        wait_until(lambda: after.of(RunSettled, "r"))
        assert rig.runtime.health().event_failures > 0


@EACH_ERROR
def test_a_log_sink_that_raises_harms_no_run(error: str) -> None:
    class Sink:
        def __getattr__(self, level: str) -> Any:
            def write(*_: Any, **__: Any) -> None:
                raise ERRORS[error]()

            return write

    with rigged(logger=Sink()) as rig:
        assert rig.runtime.start(FailableRun, Told(("ok", "raise:ValueError@1", "ok")), run_id="r").result(10) == 3
        assert rig.runtime.health().event_failures > 0


def test_a_logging_handler_that_raises_harms_no_run() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise SystemExit(record.levelname)

    log, broken = logging.getLogger("executus"), Broken()
    log.addHandler(broken)
    try:
        with rigged(logger=None) as rig:
            assert rig.runtime.start(FailableRun, Told(("ok", "raise:ValueError@1", "ok")), run_id="r").result(10) == 3
    finally:
        log.removeHandler(broken)


def test_a_done_callback_of_a_monitor_that_raises_harms_nobody() -> None:
    ended: list[Any] = []

    def raising(_: Any) -> None:
        raise SystemExit

    with rigged() as rig:
        bystanders = Bystanders(rig)
        handle = rig.waiting()
        handle.monitor(raising)
        handle.monitor(ended.append)
        handle.tell(Do("done"))
        assert handle.result(10) == 1
        wait_until(lambda: len(ended) == 1)
        bystanders.assert_unharmed()


def test_an_error_whose_text_cannot_be_had_is_reported_with_a_safe_one() -> None:
    with rigged(restart_policy=NEVER) as rig:
        handle = rig.runtime.start(FailableRun, Told(("raise:Unprintable",)), run_id="r")
        with pytest.raises(RunFailed, match="__str__ raised ValueError"):
            handle.result(10)
        assert rig.seen.of(RunExited, "r")[0].error.type == f"{Unprintable.__module__}.Unprintable"


def test_a_crash_of_the_run_supervisor_closes_the_runtime_and_no_waiter_hangs() -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        handle = rig.runtime.start(FailableRun, Told(("ok", "wait")), run_id="r")
        wait_until(lambda: handle.status().waiting)
        handle.durable(10)
        supervisor = rig.runtime._core.tree.runs
        assert supervisor is not None
        supervisor.tell(object())
        with pytest.raises(ExecutusError, match="supervisor crashed"):
            handle.result(10)
        closed = rig.seen.wait_for(RuntimeClosed)
        assert closed.escalated is not None
        with pytest.raises(ExecutusError):
            rig.runtime.start(FailableRun, Told())
    with rigged(store) as rig:
        handle = rig.runtime.get(FailableRun, "r")
        handle.tell(Do("done"))
        assert handle.result(10) == 2


def test_orders_that_a_crashing_supervisor_had_not_handled_yet_are_answered_with_an_error() -> None:
    go_on, held = threading.Event(), threading.Event()

    def hold(event: Event) -> None:
        if isinstance(event, RunStarted):
            held.set()
            go_on.wait(10)

    with rigged() as rig:
        rig.runtime.events.subscribe(hold)
        answered: list[str] = []

        def order(run_id: str) -> None:
            try:
                rig.runtime.start(FailableRun, Told(("wait",)), run_id=run_id)
            except ExecutusError as error:
                answered.append(f"{run_id} {type(error).__name__}")

        threads = [threading.Thread(target=order, args=(name,), daemon=True) for name in "abc"]
        threads[0].start()
        assert held.wait(10)
        supervisor = rig.runtime._core.tree.runs
        assert supervisor is not None
        supervisor.tell(object())
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: supervisor.queued() >= 3)
        go_on.set()
        for thread in threads:
            thread.join(5)
        assert [thread.is_alive() for thread in threads] == [False] * 3
        assert {"b RuntimeNotOpen", "c RuntimeNotOpen"} <= set(answered)


def test_a_crash_loop_backs_off_then_fails() -> None:
    policy = RestartPolicy(max_restarts=5, within_s=60, backoff=SOON)
    with rigged(restart_policy=policy) as rig:
        outcome = rig.runtime.start(FailableRun, Told(("raise:ValueError",)), run_id="r").outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.restarts == 5
        assert len(rig.seen.of(RunRestarting, "r")) == 5
        assert len(rig.seen.of(RunExited, "r")) == 6
