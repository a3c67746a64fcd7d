"""Retention at work in a runtime: ended runs go, a few at a time; what lives or is needed stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from executus.actors import FOREVER, Keep, RetentionPolicy, RunNotFound, RunStatus, SavePolicy
from executus.actors.clock import SystemClock
from executus.actors.events import RunsPruned, SnapshotSaved, StoreFilling
from executus.stores import (
    Claim,
    Delete,
    LmdbStore,
    MemoryStore,
    Operation,
    ParentLink,
    RunClaim,
    RunRecord,
    Settle,
    StoreInfo,
    StoreUnavailable,
    Token,
    Verdict,
)
from tests.actors.test_children import Family, Parent
from tests.doubles import Do, FailableRun, Told, rigged
from tests.waiting import elapse, wait_until

AT_ONCE = Keep(0.0)
QUICK: dict[str, Any] = {"every_s": 0.02, "failed": FOREVER}
TOLD = msgspec.msgpack.encode(Told(("done",)))
DONE = msgspec.msgpack.encode({"type": "Completed", "result": 1, "durable": True})


class Counting(MemoryStore):
    """Says how many deletions each commit held, how full it claims to be, and may refuse to be read."""

    def __init__(self) -> None:
        super().__init__()
        self.deletions: list[int] = []
        self.ratio = 0.0
        self.broken = False

    def commit(self, operations: Sequence[Operation], flushing: Callable[[], None] | None = None) -> list[Verdict]:
        number = sum(isinstance(op, Delete) for op in operations)
        if number:
            self.deletions.append(number)
        return super().commit(operations, flushing)

    def info(self) -> StoreInfo:
        used = {"used_bytes": int(self.ratio * 1000), "map_size_bytes": 1000}
        return msgspec.structs.replace(super().info(), **used)

    def ended(self, *given: Any, **options: Any) -> Any:
        if self.broken:
            raise StoreUnavailable("told to")
        return super().ended(*given, **options)


def fill(
    store: Any,
    number: int,
    status: RunStatus = RunStatus.COMPLETED,
    age_s: float = 0.0,
    name: str = "old",
    **facts: Any,
) -> None:
    """Put runs into a store that is not open, the first one the longest ended."""
    store.open()
    operations: list[Operation] = []
    for at in range(number):
        run_id, epoch = f"{name}-{at:04}", store.boot_epoch << 32 | (at + 1)
        claim = RunClaim(run_id=run_id, incarnation=1, epoch=epoch, attempt=1, status=RunStatus.RUNNING)
        record = RunRecord(
            run_id=run_id,
            incarnation=1,
            run_type="Failable",
            input=TOLD,
            created_at_s=1.0,
            root_run_id=run_id,
            **facts,
        )
        ended_at_s = time.time() - age_s - (number - at) * 0.01
        operations += [
            Claim(claim=claim, expected=None, record=record),
            Settle(token=Token(run_id, 1, epoch), status=status, outcome=DONE, ended_at_s=ended_at_s),
        ]
    store.commit(operations)
    store.close()


def names(runtime: Any) -> list[str]:
    return [view.run_id for view in runtime.runs()]


def test_an_ended_run_is_not_found_once_its_time_is_over() -> None:
    with rigged(MemoryStore(), retention_policy=RetentionPolicy(completed=AT_ONCE, **QUICK)) as rig:
        handle = rig.runtime.start(FailableRun, Told(("done",)), run_id="r")
        assert handle.result(10) == 0
        rig.seen.wait_for(RunsPruned)
        with pytest.raises(RunNotFound):
            rig.runtime.get(FailableRun, "r")
        assert handle.result(10) == 0  # who has the handle has the result
        assert rig.runtime.start(FailableRun, Told(("done",)), run_id="r", if_exists="return").result(10) == 0


def test_what_is_too_many_goes_the_longest_ended_first() -> None:
    store = MemoryStore()
    fill(store, 50)
    with rigged(store, retention_policy=RetentionPolicy(completed=Keep(None, 10), **QUICK)) as rig:
        wait_until(lambda: len(names(rig.runtime)) <= 10)
        assert names(rig.runtime) == [f"old-{at:04}" for at in range(40, 50)]
        wait_until(lambda: sum(event.count for event in rig.seen.of(RunsPruned)) == 40)


def test_each_ending_has_its_own_limits_and_what_was_stopped_has_none() -> None:
    store = MemoryStore()
    for status in (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.STOPPED, RunStatus.KILLED):
        fill(store, 3, status, age_s=1000, name=status.value)
    policy = RetentionPolicy(completed=Keep(10), failed=Keep(None, 1), killed=Keep(10_000), every_s=0.02)
    with rigged(store, retention_policy=policy) as rig:
        wait_until(lambda: len(names(rig.runtime)) == 7)
        wait_until(lambda: sum(event.count for event in rig.seen.of(RunsPruned)) == 5)
        assert {status for event in rig.seen.of(RunsPruned) for status in event.pruned} == {"completed", "failed"}
        assert [name for name in names(rig.runtime) if name.startswith(("c", "f"))] == ["failed-0002"]


def test_a_store_is_left_alone_by_a_policy_that_keeps_everything() -> None:
    store = Counting()
    fill(store, 30, age_s=1e6)
    policy = RetentionPolicy(completed=FOREVER, killed=FOREVER, cancelled=FOREVER, timed_out=FOREVER, **QUICK)
    with rigged(store, retention_policy=policy) as rig:
        elapse(0.1)
        assert len(names(rig.runtime)) == 30
        assert rig.runtime._core.tree.runs is not None
    assert store.deletions == []


def test_live_runs_stay_however_short_anything_is_kept() -> None:
    everything = dict.fromkeys(("completed", "failed", "quarantined", "killed", "cancelled", "timed_out"), Keep(0.0, 0))
    with rigged(MemoryStore(), retention_policy=RetentionPolicy(every_s=0.01, **everything)) as rig:
        waits = rig.runtime.start(FailableRun, Told(("wait", "done")), run_id="waits")
        stopped = rig.runtime.start(FailableRun, Told(("wait", "done")), run_id="stopped")
        stopped.stop()
        rig.runtime.start(FailableRun, Told(("done",)), run_id="ends").result(10)
        rig.seen.wait_for(RunsPruned)
        elapse(0.1)
        assert names(rig.runtime) == ["stopped", "waits"]
        waits.tell(Do("go"))
        assert waits.result(10) == 1


def test_a_child_stays_until_a_stored_state_of_its_parent_has_taken_in_its_end() -> None:
    store = MemoryStore()
    policy = RetentionPolicy(completed=AT_ONCE, **QUICK)
    with rigged(store, Parent, retention_policy=policy) as rig:
        parent = rig.runtime.start(
            Parent,
            Family({"a": Told(("done",))}),
            run_id="parent",
            save_policy=SavePolicy(every_s=3600),
        )
        rig.seen.wait_for(SnapshotSaved, "parent")
        wait_until(lambda: parent.status().waiting)
        child = store.children("parent")[0][0]
        rig.runtime.get(child).result(10)
        rig.runtime.start(FailableRun, Told(("done",)), run_id="other").result(10)
        rig.seen.wait_for(RunsPruned)
        wait_until(lambda: "other" not in names(rig.runtime))
        elapse(0.1)
        assert names(rig.runtime) == sorted([child, "parent"])
        parent.stop()  # which saves
        wait_until(lambda: names(rig.runtime) == ["parent"])


def test_children_that_are_needed_hold_up_no_others() -> None:
    store = Counting()
    fill(store, 1, RunStatus.FAILED, name="parent")
    fill(store, 100, age_s=100, name="child", parent=ParentLink("parent-0000", 1, "k"))
    fill(store, 30, name="other")
    policy = RetentionPolicy(completed=AT_ONCE, max_per_sweep=4, **QUICK)
    with rigged(store, retention_policy=policy) as rig:
        wait_until(lambda: not any(name.startswith("other") for name in names(rig.runtime)), 20)
        assert len(names(rig.runtime)) == 101
        assert max(event.count for event in rig.seen.of(RunsPruned)) <= 4


class Jumping(SystemClock):
    """A wall clock that somebody sets."""

    def __init__(self) -> None:
        self.jump_s = 0.0

    def wall_s(self) -> float:
        return super().wall_s() + self.jump_s


def test_wall_clock_jumps_retention_is_capped_per_sweep() -> None:
    store, clock = Counting(), Jumping()
    fill(store, 200)
    with rigged(store) as rig:
        pruning = rig.runtime._core.tree.runs._actor_weakref().pruning  # type: ignore[union-attr]
        pruning._policy = RetentionPolicy(max_per_sweep=20, every_s=3600)
        rig.runtime._core.env.clock = clock
        pruning.timer.cancel()
        for sweep in (1, 2):
            clock.jump_s = 365 * 86_400.0
            rig.runtime._core.tree.tell_runs(_prune())
            rig.seen.wait_for(RunsPruned, count=sweep)
            assert len(names(rig.runtime)) == 200 - 20 * sweep
            due_s = pruning.timer.when_s - clock.now_s()
            assert due_s > 3000, f"the next sweep comes in {due_s} s"
            pruning.timer.cancel()
        assert max(store.deletions) <= 16


def _prune() -> object:
    from executus.actors.messages import Prune

    return Prune()


def test_a_store_that_is_filling_prunes_what_has_ended_for_good_early_and_says_so() -> None:
    store = Counting()
    for status in (RunStatus.COMPLETED, RunStatus.FAILED):
        fill(store, 10, status, age_s=7200, name=status.value)
    fill(store, 10, name="young")
    store.ratio = 0.79
    with rigged(store, retention_policy=RetentionPolicy(every_s=0.05)) as rig:
        elapse(0.2)
        assert len(names(rig.runtime)) == 30
        assert rig.runtime.health().ok
        store.ratio = 0.81
        event = rig.seen.wait_for(RunsPruned)
        assert (event.filling, event.pruned) == (True, {"completed": 10})
        assert not any(name.startswith("completed") for name in names(rig.runtime))
        assert len(names(rig.runtime)) == 20
        assert [event.used_ratio for event in rig.seen.of(StoreFilling)] == [0.81]
        assert not rig.runtime.health().ok


def test_an_lmdb_store_that_fills_up_gets_room_from_finished_runs_and_takes_new_ones_again(store_path: Any) -> None:
    store = LmdbStore(store_path, profile="process", map_size_bytes=4 * 1024**2)
    policy = RetentionPolicy(when_filling_s=0.0, every_s=0.05)
    with rigged(store, retention_policy=policy) as rig:
        for number in range(300):
            handle = rig.runtime.start(FailableRun, Told(("done",), ballast="x" * 20_000), run_id=f"r{number}")
            assert handle.result(20) == 0
            if store.info().used_ratio >= 0.8:
                wait_until(lambda: store.info().used_ratio < 0.8, 20)
        assert rig.seen.of(StoreFilling)
        wait_until(lambda: sum(event.count for event in rig.seen.of(RunsPruned)) >= 100)
        assert store.info().used_ratio > 0.5  # no more went than had to


def test_a_store_that_cannot_be_read_keeps_what_it_has_until_it_can() -> None:
    store = Counting()
    fill(store, 5)
    store.broken = True
    with rigged(store, retention_policy=RetentionPolicy(completed=AT_ONCE, **QUICK)) as rig:
        elapse(0.1)
        assert len(names(rig.runtime)) == 5
        store.broken = False
        wait_until(lambda: names(rig.runtime) == [])


def test_a_run_that_ends_again_at_another_time_is_as_old_as_its_last_end() -> None:
    store = MemoryStore()
    fill(store, 1, RunStatus.FAILED, age_s=1000)
    policy = RetentionPolicy(completed=Keep(500), failed=FOREVER, every_s=0.02)
    with rigged(store, retention_policy=policy) as rig:
        rig.runtime.resume("old-0000").result(10)
        elapse(0.1)
        assert names(rig.runtime) == ["old-0000"]
