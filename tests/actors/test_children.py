"""Parents and children: spawned durably, heard of until a snapshot took it in, ended as they were told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from executus.actors import (
    Backoff,
    Cancelled,
    ChildEnded,
    Completed,
    Done,
    InvalidInput,
    Killed,
    NotRegistered,
    RestartPolicy,
    Run,
    RunInterrupted,
    RunStatus,
    SavePolicy,
    Wait,
)
from executus.actors.events import RunExited, RunStarted
from executus.stores import MemoryStore
from tests.doubles import ERRORS, AsyncFailableRun, Do, FailableRun, Told, rigged
from tests.waiting import wait_until


class Family(msgspec.Struct, frozen=True):
    """What a parent is to spawn, by key, and what is to happen to it."""

    children: dict[str, Told]
    fate: str = "cancel"
    crash: str = ""


class Heard(msgspec.Struct, frozen=True):
    family: Family
    outcomes: tuple[tuple[str, str], ...] = ()
    spawned: bool = False


class Parent(Run[Family, Heard, tuple[tuple[str, str], ...]]):
    """Spawns in its step, hears of its children, is done on a word."""

    def begin(self, family: Family) -> Heard:
        return Heard(family)

    def step(self, state: Heard) -> Any:
        if not state.spawned:
            for key, told in state.family.children.items():
                fate: Any = state.family.fate
                ref = self.context.spawn(FailableRun, told, key=key, on_parent_end=fate, labels={"key": key})
                assert ref.key == key
            if state.family.crash == "step" and self.context.attempt == 1:
                raise ERRORS["ValueError"]()
        return Wait(msgspec.structs.replace(state, spawned=True))

    def receive(self, state: Heard, message: ChildEnded | Do) -> Any:
        if isinstance(message, Do):
            match message.action:
                case "done":
                    return Done(state.outcomes)
                case "crash":
                    raise ERRORS["SystemExit"]()
                case "again":
                    return msgspec.structs.replace(state, spawned=False)
                case _:
                    raise AssertionError(message.action)
        if state.family.crash == "receive" and self.context.attempt == 1:
            raise ERRORS["ValueError"]()
        return Wait(
            msgspec.structs.replace(state, outcomes=(*state.outcomes, (message.key, type(message.outcome).__name__)))
        )

    def query(self, state: Heard, question: str) -> Any:
        return state.outcomes


def test_children_are_runs_of_their_own_with_parent_root_and_labels() -> None:
    with rigged(None, Parent) as rig:
        rig.runtime.start(Parent, Family({"k": Told(("wait",))}), run_id="p")
        wait_until(lambda: len(rig.runtime.runs()) == 2)
        view = rig.runtime.get(FailableRun, "p/k").status()
        assert (view.parent_run_id, view.root_run_id, view.labels) == ("p", "p", {"key": "k"})
        assert rig.runtime.runs(label="key=k")[0].run_id == "p/k"


def test_each_childs_end_comes_to_the_parent_once_with_its_outcome() -> None:
    children = {"good": Told(("ok",)), "bad": Told(("raise:ValueError",)), "stays": Told(("wait",))}
    with rigged(None, Parent) as rig:
        parent = rig.runtime.start(Parent, Family(children), run_id="p")
        wait_until(lambda: len(parent.query("", 10)) == 2)
        rig.runtime.get("p/stays").kill("now", timeout_s=10)
        wait_until(lambda: len(parent.query("", 10)) == 3)
        parent.tell(Do("done"))
        assert sorted(parent.result(10)) == [("bad", "Failed"), ("good", "Completed"), ("stays", "Killed")]


def test_a_hundred_children_all_come_home() -> None:
    with rigged(None, Parent) as rig:
        parent = rig.runtime.start(Parent, Family({f"{n:03}": Told(("ok", "ok")) for n in range(100)}), run_id="p")
        wait_until(lambda: len(parent.query("", 10)) == 100, 20)
        parent.tell(Do("done"))
        assert sorted(parent.result(10)) == [(f"{n:03}", "Completed") for n in range(100)]
        assert len(rig.seen.of(RunStarted)) == 101


def test_a_parent_that_crashes_after_spawning_spawns_the_same_children_and_no_others() -> None:
    with rigged(None, Parent) as rig:
        parent = rig.runtime.start(Parent, Family({"a": Told(("ok",)), "b": Told(("wait",))}, crash="step"), run_id="p")
        wait_until(lambda: rig.seen.of(RunExited, "p"))
        wait_until(lambda: len(parent.query("", 10)) == 1)
        parent.tell(Do("again"))
        wait_until(lambda: parent.status().waiting and parent.status().seq >= 5)
        assert [view.run_id for view in rig.runtime.runs()] == ["p", "p/a", "p/b"]
        assert len(rig.seen.of(RunStarted, "p/a")) == 1
        assert rig.world.count("p/a", "begin") == 1


def test_children_survive_their_parents_crash() -> None:
    slow = RestartPolicy(backoff=Backoff(initial_s=0.3, factor=1, max_s=0.3, jitter=0))
    with rigged(None, Parent) as rig:
        parent = rig.runtime.start(Parent, Family({"k": Told(("wait",))}), run_id="p", restart_policy=slow)
        wait_until(lambda: parent.status().waiting and rig.runtime.get("p/k").status().waiting)
        parent.tell(Do("crash"))
        wait_until(lambda: parent.status().stage == "backing_off")
        child = rig.runtime.get(FailableRun, "p/k")
        child.tell(Do("done"))
        assert child.result(10) == 1
        wait_until(lambda: parent.query("", 10) == (("k", "Completed"),))
        assert parent.status().attempt == 2


def test_a_child_ended_whose_receive_crashed_comes_again() -> None:
    with rigged(None, Parent) as rig:
        parent = rig.runtime.start(Parent, Family({"k": Told(("ok",))}, crash="receive"), run_id="p")
        wait_until(lambda: parent.query("", 10) == (("k", "Completed"),))
        assert len(rig.seen.of(RunExited, "p")) == 1


@pytest.mark.parametrize("every_s", [0.0, 3600.0], ids=["taken in", "not taken in"])
def test_a_childs_end_comes_again_after_a_boot_exactly_until_a_snapshot_has_taken_it_in(every_s: float) -> None:
    store = MemoryStore()
    policy = SavePolicy(every_s=every_s)
    with rigged(store, Parent) as rig:
        parent = rig.runtime.start(Parent, Family({"k": Told(("wait",))}), run_id="p", save_policy=policy)
        wait_until(lambda: parent.status().waiting and rig.runtime.get("p/k").status().waiting)
        parent.durable(10)
        rig.runtime.get("p/k").tell(Do("done"))
        wait_until(lambda: len(parent.query("", 10)) == 1)
        if not every_s:
            parent.durable(10)
        snapshot = store.load_snapshot("p")
        assert snapshot is not None
        assert len(store.children("p")) == (1 if every_s else 0)
        # As a death leaves it: a crash of the supervisor suspends nothing and saves nothing.
        core = rig.runtime._core
        supervisor = core.tree.runs
        assert supervisor is not None
        supervisor.tell(object())
        wait_until(lambda: core._state == "closed")
    with rigged(store, Parent) as rig:
        parent = rig.runtime.get(Parent, "p")
        wait_until(lambda: parent.query("", 10) == (("k", "Completed"),))
        wait_until(lambda: parent.status().waiting)
        parent.tell(Do("done"))
        assert parent.result(10) == (("k", "Completed"),)


@pytest.mark.parametrize(("fate", "expected"), [("cancel", Cancelled), ("kill", Killed)])
@pytest.mark.parametrize("end", ["done", "cancel", "kill", "fail"])
def test_children_end_as_they_were_told_to_when_their_parent_has_ended_for_good(
    fate: str, expected: Any, end: str
) -> None:
    with rigged(None, Parent) as rig:
        never = RestartPolicy(kind="temporary")
        parent = rig.runtime.start(
            Parent, Family({"a": Told(("wait",)), "b": Told(("wait",))}, fate=fate), run_id="p", restart_policy=never
        )
        wait_until(lambda: parent.status().waiting and all(rig.runtime.get(f"p/{k}").status().waiting for k in "ab"))
        children = [rig.runtime.get(FailableRun, f"p/{k}") for k in "ab"]
        match end:
            case "done":
                parent.tell(Do("done"))
            case "fail":
                parent.tell(Do("crash"))
            case _:
                getattr(parent, end)(timeout_s=10)
        parent.outcome(10)
        for child in children:
            outcome = child.outcome(10)
            assert isinstance(outcome, expected)
            assert outcome.by == "parent 'p'"
        stopped = [call for call in rig.world.calls if call[1] == "stopping cancel"]
        assert len(stopped) == (2 if fate == "cancel" else 0)


def test_children_live_on_when_their_parent_is_stopped_and_are_suspended_and_resumed_with_it() -> None:
    store = MemoryStore()
    with rigged(store, Parent) as rig:
        parent = rig.runtime.start(Parent, Family({"k": Told(("wait",))}, fate="kill"), run_id="p")
        wait_until(lambda: parent.status().waiting and rig.runtime.get("p/k").status().waiting)
        parent.stop(10)
        child = rig.runtime.get(FailableRun, "p/k")
        assert child.status().waiting
        rig.runtime.drain(5)
        with pytest.raises(RunInterrupted):
            child.result(0)
    with rigged(store, Parent) as rig:
        child = rig.runtime.get(FailableRun, "p/k")
        wait_until(lambda: child.status().waiting)
        child.tell(Do("done"))
        assert child.result(10) == 1
        parent = rig.runtime.resume("p")
        wait_until(lambda: parent.query("", 10) == (("k", "Completed"),))


def test_a_replaced_parents_children_are_not_those_of_its_successor() -> None:
    with rigged(None, Parent) as rig:
        family = Family({"k": Told(("wait",))})
        parent = rig.runtime.start(Parent, family, run_id="p")
        wait_until(lambda: parent.status().waiting and rig.runtime.get("p/k").status().waiting)
        old = rig.runtime.get(FailableRun, "p/k")
        again = rig.runtime.start(Parent, family, run_id="p", if_exists="replace")
        assert isinstance(old.outcome(10), Cancelled | Killed)
        wait_until(lambda: again.status().waiting)
        wait_until(
            lambda: (
                rig.runtime.get("p/k").status().status is RunStatus.RUNNING and rig.runtime.get("p/k").status().waiting
            )
        )
        assert again.query("", 10) == ()
        rig.runtime.get("p/k").tell(Do("done"))
        wait_until(lambda: again.query("", 10) == (("k", "Completed"),))


class Nightly(Run[int, int, int]):
    """Each round has a child of its own, of one key, and ends when that has."""

    restart_policy = RestartPolicy(kind="permanent", backoff=Backoff(initial_s=0.001), max_restarts=3, within_s=1000)

    def begin(self, _: int) -> int:
        return 0

    def step(self, state: int) -> Wait[int]:
        self.context.spawn(FailableRun, Told(("wait",)), key="k")
        return Wait(state)

    def receive(self, state: int, message: ChildEnded) -> Done[int]:
        assert isinstance(message.outcome, Completed)
        return Done(state)


def test_each_round_of_a_permanent_run_has_children_of_its_own_also_over_a_boot(store_path: Path) -> None:
    for boot in range(2):
        with rigged(store_path, Nightly) as rig:
            if boot == 0:
                rig.runtime.start(Nightly, 1, run_id="p")
            for n in range(2):
                wait_until(lambda: rig.runtime.get("p").status().waiting and rig.runtime.get("p/k").status().waiting)
                child = rig.runtime.get(FailableRun, "p/k")
                began = len([event for event in rig.seen.of(RunStarted) if event.run_id == "p/k"])
                assert began == (n if boot else n + 1)  # the boot resumes the child of the round that goes on
                if (boot, n) != (0, 1):
                    child.tell(Do("done"))
                    assert child.result(10) == 1
                    wait_until(lambda n=n: len(rig.seen.of(RunStarted)) > n + 1 - boot)
    assert rig.seen.of(RunStarted)[-1].run_id == "p/k"


def test_a_run_that_begins_anew_by_hand_has_children_of_its_own_and_its_seq_goes_on(store_path: Path) -> None:
    with rigged(store_path, Parent) as rig:
        parent = rig.runtime.start(Parent, Family({"k": Told(("ok",))}), run_id="p")
        wait_until(lambda: parent.query("", 10) == (("k", "Completed"),))
        parent.stop(timeout_s=10)
        stopped_at = parent.status().seq
        again = rig.runtime.resume("p", from_input=True)
        wait_until(lambda: again.query("", 10) == (("k", "Completed"),))
        assert len([event for event in rig.seen.of(RunStarted) if event.run_id == "p/k"]) == 2
        assert again.status().seq == stopped_at + 3  # begin, step, receive
    with rigged(store_path, Parent) as rig:
        wait_until(lambda: rig.runtime.get("p").status().waiting)
        assert rig.runtime.get("p").query("", 10) == (("k", "Completed"),)
        assert not rig.seen.of(RunStarted)


class Grandparent(Run[int, int, int]):
    def begin(self, depth: int) -> Any:
        if depth:
            self.context.spawn(Grandparent, depth - 1, key="k")
        return Wait(depth)

    def step(self, state: int) -> int:
        return state

    def receive(self, state: int, message: ChildEnded) -> Any:
        assert isinstance(message.outcome, Completed)
        return Done(state + message.outcome.result)


def test_descendants_know_their_root_and_end_with_their_oldest_ancestor() -> None:
    with rigged(None, Grandparent) as rig:
        root = rig.runtime.start(Grandparent, 4, run_id="g")
        wait_until(lambda: len(rig.runtime.runs()) == 5)
        views = rig.runtime.runs()
        assert {view.root_run_id for view in views} == {"g"}
        assert [view.run_id for view in views] == ["g", "g/k", "g/k/k", "g/k/k/k", "g/k/k/k/k"]
        youngest = rig.runtime.get("g/k/k/k/k")
        root.cancel(timeout_s=10)
        assert isinstance(youngest.outcome(10), Cancelled)
        assert rig.runtime.join(10)


def test_a_spawn_of_what_cannot_be_started_raises_in_the_callback() -> None:
    caught: list[type[BaseException]] = []

    class Clumsy(Run[int, int, int]):
        def begin(self, n: int) -> Done[int]:
            attempts: list[Any] = [
                (Parent, Family({}), "k"),
                (FailableRun, 7, "k"),
                (FailableRun, Told(), "k\n"),
                (FailableRun, Told(), "k" * 300),
            ]
            for run_class, value, key in attempts:
                try:
                    self.context.spawn(run_class, value, key=key)
                except Exception as error:
                    caught.append(type(error))
            return Done(n)

        def step(self, state: int) -> int:
            return state

    with rigged(None, Clumsy) as rig:
        assert rig.runtime.start(Clumsy, 1, run_id="c").result(10) == 1
        assert caught[:2] == [NotRegistered, InvalidInput]
        assert [error.__name__ for error in caught[2:]] == ["InvalidRunId"] * 2
        assert [view.run_id for view in rig.runtime.runs()] == ["c"]


def test_a_long_parent_id_makes_a_digest_of_the_childs() -> None:
    with rigged(None, Parent) as rig:
        name = "p" * 195
        rig.runtime.start(Parent, Family({"long key": Told(("wait",))}), run_id=name)
        wait_until(lambda: len(rig.runtime.runs()) == 2)
        child = rig.runtime.runs(type=FailableRun)[0]
        assert child.run_id.startswith("child-")
        assert child.parent_run_id == name


class AsyncParent(Run[int, int, int]):
    async def begin(self, n: int) -> Wait[int]:
        for number in range(n):
            self.context.spawn(AsyncFailableRun, Told(("ok",)), key=str(number))
        return Wait(0)

    async def step(self, state: int) -> int:
        return state

    async def receive(self, state: int, message: ChildEnded) -> Any:
        return Done(3) if state == 2 else Wait(state + 1)


def test_async_parents_and_children_do_the_same() -> None:
    with rigged(None, AsyncParent) as rig:
        assert rig.runtime.start(AsyncParent, 3).result(10) == 3
