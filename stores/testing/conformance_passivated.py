"""Sentences of the contract about passivated runs, each a test over every store."""

from __future__ import annotations

from typing import Any, Final

import pytest

from executus.stores import (
    EPOCHS_PER_BOOT,
    ROUSED,
    CheckpointStore,
    Claim,
    Due,
    DueRun,
    Operation,
    ParentLink,
    Refusal,
    RunClaim,
    RunStatus,
    Settle,
    Token,
)
from executus.stores.testing.conformance import Conformance
from executus.stores.testing.disk import Disk, rebooted
from executus.stores.testing.making import (
    append,
    begin,
    child_of,
    claim,
    commit_one,
    deleted,
    reborn,
    reclaimed,
    save,
    set_aside,
    settled,
    started,
)

LATER: Final = 9 * EPOCHS_PER_BOOT
"""An epoch of a later boot."""


def laid_down(token: Token, *dues: Due, **facts: Any) -> Settle:
    return settled(token, RunStatus.PASSIVATED, dues=dues, **facts)


def claim_of(store: CheckpointStore, run_id: str) -> RunClaim:
    stored = store.load(run_id)
    assert stored is not None
    return stored.claim


class Passivating(Conformance):
    def due(self, store: CheckpointStore, *, by_wall: bool = False) -> list[tuple[int, str]]:
        return [(run.at_ms, run.run_id) for run in store.due(by_wall=by_wall)]

    def test_a_passivated_run_rests_with_its_snapshots_and_due_times_and_is_not_live(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        token = begin(store)
        commit_one(store, save(token, 1), laid_down(token, Due(5.0), Due(7.0, by_wall=True)))
        store = rebooted(disk, store)
        assert claim_of(store, "r").due_times == (Due(5.0), Due(7.0, by_wall=True))
        assert store.live() == []
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.seq == 1
        assert [run.run_id for run in store.ended(RunStatus.PASSIVATED)] == ["r"]
        assert (self.due(store), self.due(store, by_wall=True)) == ([(5_000, "r")], [(7_000, "r")])
        store.close()

    def test_its_execution_may_not_write_any_more(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, laid_down(token))
        assert commit_one(store, save(token, 1)) is Refusal.SETTLED

    def test_due_runs_come_by_page_the_earliest_first(self, store: CheckpointStore) -> None:
        for run_id, at_s in (("a", 30.0), ("b", 10.0005), ("c", 0.25), ("d", 10.0)):
            commit_one(store, laid_down(begin(store, run_id), Due(at_s)))
        assert self.due(store) == [(250, "c"), (10_000, "d"), (10_001, "b"), (30_000, "a")]
        first = store.due(by_wall=False, limit=2)
        assert first == [DueRun("c", 250), DueRun("d", 10_000)]
        assert [run.run_id for run in store.due(by_wall=False, after=first[-1], limit=1)] == ["b"]
        assert self.due(store, by_wall=True) == []

    def test_without_due_times_it_is_due_never(self, store: CheckpointStore) -> None:
        commit_one(store, laid_down(begin(store)))
        assert (self.due(store), self.due(store, by_wall=True)) == ([], [])

    @pytest.mark.parametrize("at_s", [float("nan"), float("inf"), 1e300])
    def test_a_time_that_never_comes_hides_no_run(self, store: CheckpointStore, at_s: float) -> None:
        commit_one(store, laid_down(begin(store), Due(at_s)))
        assert [run.run_id for run in store.due(by_wall=False)] == ["r"]

    @pytest.mark.parametrize("end", ["claimed", "killed", "set aside", "replaced", "deleted"])
    def test_what_is_passivated_no_more_is_due_no_more(self, store: CheckpointStore, end: str) -> None:
        token = begin(store)
        commit_one(store, laid_down(token, Due(5.0), Due(7.0, by_wall=True)))
        dead = claim("r", LATER, status=RunStatus.KILLED)
        commit_one(
            store,
            {
                "claimed": reclaimed(token, LATER),
                "killed": Claim(claim=dead, expected=token),
                "set aside": set_aside(token),
                "replaced": reborn(token, LATER),
                "deleted": deleted(token),
            }[end],
        )
        assert (self.due(store), self.due(store, by_wall=True)) == ([], [])
        assert store.ended(RunStatus.PASSIVATED) == []
        stored = store.load("r")
        assert stored is None or stored.claim.due_times == ()

    def test_an_append_makes_it_due_at_once(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, laid_down(token, Due(5.0)))
        commit_one(store, append(token, "m"))
        assert self.due(store) == [(0, "r"), (5_000, "r")]
        store = rebooted(disk, store)
        assert self.due(store) == [(0, "r"), (5_000, "r")]
        store.close()

    def test_with_a_message_that_is_not_consumed_it_is_due_at_once(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, append(token, "m"), laid_down(token, Due(5.0)))
        assert self.due(store) == [(0, "r"), (5_000, "r")]
        other = begin(store, "other")
        commit_one(store, append(other, "m"), save(other, 1, consumed_through=1), laid_down(other))
        assert self.due(store) == [(0, "r"), (5_000, "r")]

    @pytest.mark.parametrize("order", ["child first", "parent first"])
    def test_the_end_of_a_child_makes_its_parent_due_at_once_whichever_is_first(
        self, store: CheckpointStore, order: str
    ) -> None:
        parent, child = begin(store, "parent"), Token("child", 1, 1)
        commit_one(store, child_of(parent, "child"))
        both: list[Operation] = [settled(child, rouses=("parent", "nobody")), laid_down(parent)]
        commit_one(store, *(both if order == "child first" else reversed(both)))
        assert self.due(store) == [(0, "parent")]
        assert claim_of(store, "parent").due_times == (ROUSED,)

    def test_an_end_that_it_has_taken_in_does_not(self, store: CheckpointStore) -> None:
        parent, child = begin(store, "parent"), Token("child", 1, 1)
        commit_one(store, child_of(parent, "child"), settled(child))
        commit_one(store, save(parent, 1, consumed_children=("child",)), laid_down(parent))
        assert self.due(store) == []

    @pytest.mark.parametrize("status", [RunStatus.STOPPED, RunStatus.SUSPENDED, RunStatus.PASSIVATED])
    def test_a_child_that_rests_does_not(self, store: CheckpointStore, status: RunStatus) -> None:
        parent, child = begin(store, "parent"), Token("child", 1, 1)
        commit_one(store, child_of(parent, "child"), settled(child, status, rouses=("parent",)), laid_down(parent))
        assert self.due(store) == []

    @pytest.mark.parametrize("order", ["child first", "parent first"])
    @pytest.mark.parametrize("end", ["settled", "settled unknowing", "killed", "replaced", "deleted"])
    def test_the_end_of_its_parent_makes_a_child_due_at_once_whichever_is_first(
        self, store: CheckpointStore, order: str, end: str
    ) -> None:
        parent, child = begin(store, "parent"), Token("child", 1, 1)
        commit_one(store, child_of(parent, "child"))
        tombstone = claim("parent", LATER, status=RunStatus.KILLED)
        by_name: dict[str, list[Operation]] = {
            "settled": [settled(parent, rouses=("child",))],
            "settled unknowing": [settled(parent, rouses_children=True)],
            "killed": [Claim(claim=tombstone, expected=parent, rouses=("child",))],
            "replaced": [settled(parent, RunStatus.STOPPED), reborn(parent, LATER)],
            "deleted": [settled(parent, RunStatus.STOPPED), deleted(parent)],
        }
        ends = by_name[end]
        commit_one(store, *([laid_down(child), *ends] if order == "child first" else [*ends, laid_down(child)]))
        assert self.due(store) == [(0, "child")]

    def test_who_runs_is_not_roused(self, store: CheckpointStore) -> None:
        parent, child = begin(store, "parent"), Token("child", 1, 1)
        commit_one(store, child_of(parent, "child"), settled(child, rouses=("parent",)))
        assert self.due(store) == []
        assert claim_of(store, "parent").due_times == ()

    def test_the_child_of_an_earlier_beginning_is_none_of_its_own(self, store: CheckpointStore) -> None:
        parent = begin(store, "parent")
        earlier = ParentLink("parent", parent.incarnation, "k", begun=7)
        commit_one(store, started("child", 1, parent=earlier, root_run_id="parent"), settled(Token("child", 1, 1)))
        commit_one(store, laid_down(parent))
        assert self.due(store) == []
