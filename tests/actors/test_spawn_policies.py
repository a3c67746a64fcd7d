"""Policies that a parent gives to a child, and children of which no store knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from executus.actors import (
    Cancelled,
    ChildEnded,
    ChildRef,
    Completed,
    Done,
    Failed,
    Killed,
    NotDurable,
    RestartPolicy,
    Run,
    RunInterrupted,
    RunNotFound,
    RunStatus,
    Runtime,
    SavePolicy,
    StopPolicy,
    Wait,
)
from executus.actors.events import RunExited, RunStarted
from executus.actors.testing import context
from tests.doing import BOTH, STORES, moody
from tests.doubles import NEVER, SOON, Do, FailableRun, Told, rigged
from tests.waiting import wait_until

UNSAVED = SavePolicy(durability="none")


class Order(msgspec.Struct, frozen=True):
    """What the parent is to spawn, and with what; `crashes` after the spawn, once."""

    child: Told
    policies: dict[str, Any] = {}
    crash: str = ""


class Kept(msgspec.Struct, frozen=True):
    order: Order
    spawned: bool = False
    outcomes: tuple[str, ...] = ()


class Parent(Run[Order, Kept, Any]):
    restart_policy = RestartPolicy(backoff=SOON)

    def begin(self, order: Order) -> Kept:
        return Kept(order)

    def _spawn(self, order: Order) -> ChildRef:
        kinds: dict[str, Any] = {
            "restart_policy": RestartPolicy, "save_policy": SavePolicy, "stop_policy": StopPolicy,
        }  # fmt: skip
        given = {name: msgspec.convert(value, kinds[name]) for name, value in order.policies.items() if name in kinds}
        fate: Any = order.policies.get("on_parent_end", "cancel")
        return self.context.spawn(FailableRun, order.child, key="c", on_parent_end=fate, **given)

    def step(self, state: Kept) -> Any:
        if not state.spawned:
            self._spawn(state.order)
        return Wait(msgspec.structs.replace(state, spawned=True))

    def receive(self, state: Kept, message: ChildEnded | Do) -> Any:
        if isinstance(message, Do):
            match message.action:
                case "done":
                    return Done(list(state.outcomes))
                case "again":
                    return msgspec.structs.replace(state, spawned=False)
                case "crash":
                    raise ValueError("told to")
                case _:
                    raise AssertionError(message.action)
        return Wait(msgspec.structs.replace(state, outcomes=(*state.outcomes, type(message.outcome).__name__)))

    def query(self, state: Kept, question: str) -> Any:
        return state.outcomes


class AsyncParent(Parent):
    async def step(self, state: Kept) -> Any:
        return super().step(state)


def parent_class(is_async: bool) -> type[Parent]:
    return AsyncParent if is_async else Parent


GIVEN = {
    "restart_policy": {"kind": "temporary"},
    "save_policy": {"durability": "sync"},
    "stop_policy": {"grace_s": 1.5, "run_timeout_s": 3600.0},
}


@STORES
@BOTH
def test_a_child_has_the_policies_that_it_was_spawned_with_also_after_a_boot(
    is_async: bool, kind: str, store_path: Path
) -> None:
    store, _ = moody(kind, store_path)
    run_class = parent_class(is_async)

    def policies(runtime: Runtime) -> Any:
        return runtime.get("p/c")._inc.policies

    with rigged(store, run_class) as rig:
        rig.runtime.start(run_class, Order(Told(("wait", "raise:ValueError")), GIVEN), run_id="p")
        wait_until(lambda: len(rig.runtime.runs()) == 2 and rig.runtime.get("p/c").status().waiting)
        before = policies(rig.runtime)
        assert (before.restart.kind, before.save.durability, before.stop.grace_s) == ("temporary", "sync", 1.5)
    with rigged(store, run_class) as rig:
        child, parent = rig.runtime.get(FailableRun, "p/c"), rig.runtime.get(run_class, "p")
        wait_until(lambda: child.status().waiting)
        assert policies(rig.runtime) == before
        child.tell(Do("raise:ValueError"))
        assert isinstance(child.outcome(10), Failed), "temporary: no second try"
        wait_until(lambda: parent.query("", 10) == ("Failed",))


def test_without_any_it_has_those_of_its_type() -> None:
    with rigged(None, Parent) as rig:
        rig.runtime.start(Parent, Order(Told(("wait",))), run_id="p")
        wait_until(lambda: len(rig.runtime.runs()) == 2)
        inc = rig.runtime.get("p/c")._inc
        assert inc.policies == inc.definition.policies


# --- a parent of which nothing is stored ------------------------------------------------------------------------------


@STORES
@BOTH
def test_a_child_of_a_parent_without_a_record_has_none_either(is_async: bool, kind: str, store_path: Path) -> None:
    store, switch = moody(kind, store_path)
    run_class = parent_class(is_async)
    with rigged(store, run_class) as rig:
        before = switch.tries
        parent = rig.runtime.start(run_class, Order(Told(("ok", "wait"))), run_id="p", save_policy=UNSAVED)
        wait_until(lambda: len(rig.runtime.runs()) == 2 and rig.runtime.get("p/c").status().waiting)
        child = rig.runtime.get(FailableRun, "p/c")
        assert child._inc.policies.save == UNSAVED
        child.tell(Do("done"))
        assert child.result(10) == 2
        wait_until(lambda: parent.query("", 10) == ("Completed",))
        parent.tell(Do("done"))
        assert parent.result(10) == ["Completed"]
        assert switch.tries == before, "nothing of it went to the store"
    with rigged(store, run_class) as rig:
        assert rig.runtime.runs() == []
        with pytest.raises(RunNotFound):
            rig.runtime.get("p/c")


@BOTH
@pytest.mark.parametrize(("fate", "outcome"), [("cancel", Cancelled), ("kill", Killed)])
def test_it_ends_with_its_parent(fate: str, outcome: Any, is_async: bool) -> None:
    run_class = parent_class(is_async)
    with rigged(None, run_class) as rig:
        parent = rig.runtime.start(
            run_class, Order(Told(("wait",)), {"on_parent_end": fate}), run_id="p", save_policy=UNSAVED
        )
        wait_until(lambda: len(rig.runtime.runs()) == 2 and parent.status().waiting)
        child = rig.runtime.get("p/c")
        parent.tell(Do("done"))
        assert parent.result(10) == []
        assert child.outcome(10) == outcome("parent 'p'", "its parent ended")


@STORES
def test_a_drain_leaves_nothing_of_the_two(kind: str, store_path: Path) -> None:
    store, _ = moody(kind, store_path)
    with rigged(store, Parent) as rig:
        parent = rig.runtime.start(Parent, Order(Told(("wait",))), run_id="p", save_policy=UNSAVED)
        wait_until(lambda: len(rig.runtime.runs()) == 2 and parent.status().waiting)
        child = rig.runtime.get("p/c")
    for handle in (parent, child):
        with pytest.raises(RunInterrupted, match="suspended"):
            handle.result(0)
    with rigged(store, Parent) as rig:
        assert rig.runtime.runs() == []


@BOTH
@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
def test_one_that_is_to_be_more_durable_than_its_parent_is_refused(durability: str, is_async: bool) -> None:
    run_class = parent_class(is_async)
    order = Order(Told(), {"save_policy": {"durability": durability}})
    with rigged(None, run_class) as rig:
        parent = rig.runtime.start(run_class, order, run_id="p", save_policy=UNSAVED, restart_policy=NEVER)
        outcome = parent.outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.error.type.endswith("NotDurable")
        assert "nobody would know whose child it was" in outcome.error.message
        assert [event.run_id for event in rig.seen.of(RunStarted)] == ["p"]
    assert NotDurable("r").run_id == "r"


# --- children of which nothing is stored ------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("parents", ["none", "async"])
def test_a_parent_that_repeats_a_spawn_after_a_crash_does_not_have_an_unsaved_child_done_twice(
    parents: Any, is_async: bool
) -> None:
    run_class = parent_class(is_async)
    order = Order(Told(("ok",)), {"save_policy": {"durability": "none"}})
    with rigged(None, run_class) as rig:
        parent = rig.runtime.start(run_class, order, run_id="p", save_policy=SavePolicy(durability=parents))
        wait_until(lambda: parent.query("", 10) == ("Completed",))
        parent.tell(Do("crash"))
        wait_until(lambda: rig.seen.of(RunExited, "p"))
        parent.tell(Do("again"))
        wait_until(lambda: parent.status().waiting and parent.status().seq >= 5)
        assert parent.query("", 10) == ("Completed",)
        assert len(rig.seen.of(RunStarted, "p/c")) == 1
        parent.tell(Do("done"))
        assert parent.result(10) == ["Completed"]


def test_each_round_of_a_permanent_parent_has_an_unsaved_child_of_its_own() -> None:
    class Rounds(Run[int, int, str]):
        restart_policy = RestartPolicy(kind="permanent", max_restarts=2, backoff=SOON)

        def begin(self, n: int) -> Wait[int]:
            self.context.spawn(FailableRun, Told(("ok",)), key="c")
            return Wait(n)

        def step(self, state: int) -> Wait[int]:
            return Wait(state)

        def receive(self, state: int, message: ChildEnded) -> Done[str]:
            assert isinstance(message.outcome, Completed)
            return Done(message.key)

    with rigged(None, Rounds) as rig:
        rig.runtime.start(Rounds, 1, run_id="p", save_policy=UNSAVED).outcome(10)
        assert len(rig.seen.of(RunStarted, "p/c")) == 3


@STORES
def test_a_parent_that_was_resumed_spawns_an_unsaved_child_again(kind: str, store_path: Path) -> None:
    store, _ = moody(kind, store_path)
    order = Order(Told(("wait",)), {"save_policy": {"durability": "none"}})
    with rigged(store, Parent) as rig:
        rig.runtime.start(Parent, order, run_id="p")
        wait_until(lambda: len(rig.runtime.runs()) == 2 and rig.runtime.get("p").status().waiting)
    with rigged(store, Parent) as rig:
        parent = rig.runtime.get(Parent, "p")
        assert [view.run_id for view in rig.runtime.runs()] == ["p"], "the child was gone with its process"
        parent.tell(Do("again"))
        wait_until(lambda: len(rig.runtime.runs()) == 2)
        rig.runtime.get("p/c").kill(timeout_s=10)
        wait_until(lambda: parent.query("", 10) == ("Killed",))
        assert rig.runtime.get("p").status().status is RunStatus.RUNNING


def test_the_context_for_tests_keeps_the_policies() -> None:
    run = Parent()
    with context(run) as kept:
        run.step(Kept(Order(Told(), GIVEN)))
    (child,) = kept.spawned
    assert child.restart_policy == RestartPolicy(kind="temporary")
    assert child.save_policy == SavePolicy(durability="sync")
    assert child.stop_policy == StopPolicy(grace_s=1.5, run_timeout_s=3600.0)
