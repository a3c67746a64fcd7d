"""What is kept and what goes, as tables: the decisions of retention without a store."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from executus.actors import FOREVER, KEEP_EVERYTHING, Keep, RetentionPolicy
from executus.actors.retention import DAY_S, PRUNED, expired, is_needed, may_go, surplus
from executus.stores import LIVE, EndedRun, ParentLink, RunClaim, RunStatus

NOW_S = 1_000_000.0
LINK = ParentLink("parent", 1, "key")


def ended(*ages_s: float) -> list[EndedRun]:
    """Runs that ended so long ago."""
    return [
        EndedRun(f"r{number}", RunStatus.COMPLETED, int((NOW_S - age_s) * 1000)) for number, age_s in enumerate(ages_s)
    ]


def claimed(status: RunStatus = RunStatus.RUNNING, **facts: Any) -> RunClaim:
    return RunClaim(**{"run_id": "parent", "incarnation": 1, "epoch": 1, "attempt": 1, "status": status} | facts)


@pytest.mark.parametrize(
    ("ages_s", "keep", "too_many", "gone"),
    [
        ((), Keep(10, 10), 0, 0),
        ((30, 20, 10), FOREVER, 0, 0),
        ((30, 20, 10), Keep(15, None), 0, 2),
        ((30, 20, 10), Keep(0, None), 0, 3),
        ((30, 20, 10), Keep(30, None), 0, 0),  # as old as is kept is kept
        ((30, 20, 10), Keep(100, 2), 1, 1),
        ((30, 20, 10), Keep(15, 2), 1, 2),  # whichever takes more
        ((30, 20, 10), Keep(25, 0), 3, 3),
        ((30, 20, 10), Keep(None, 1), 7, 3),  # a page: there are more behind it
        ((30, 20, 10), Keep(None, 1), -4, 0),
        ((30, -20, -30), Keep(10, None), 0, 1),  # ended in the future: the clock was put back
    ],
)
def test_the_oldest_go_for_their_age_or_because_they_are_too_many(
    ages_s: tuple[float, ...], keep: Keep, too_many: int, gone: int
) -> None:
    runs = ended(*ages_s)
    assert expired(runs, keep, too_many=too_many, now_s=NOW_S) == runs[:gone]


@pytest.mark.parametrize(
    ("keep", "count", "more"), [(FOREVER, 10, 0), (Keep(1, 10), 10, 0), (Keep(1, 10), 12, 2), (Keep(1, 10), 3, 0)]
)
def test_by_how_much_there_are_more_than_are_kept(keep: Keep, count: int, more: int) -> None:
    assert surplus({RunStatus.FAILED: count}, RunStatus.FAILED, keep) == more


@pytest.mark.parametrize(
    ("link", "parent", "needed"),
    [
        (None, None, False),
        (None, claimed(), False),  # the end is in the parent's stored state
        (LINK, None, False),  # nobody is left to need it
        (LINK, claimed(RunStatus.RUNNING), True),
        (LINK, claimed(RunStatus.SUSPENDED), True),
        (LINK, claimed(RunStatus.PARKED), True),
        (LINK, claimed(RunStatus.STOPPED), True),
        (LINK, claimed(RunStatus.FAILED), True),  # it may be resumed by hand
        (LINK, claimed(RunStatus.QUARANTINED), True),
        (LINK, claimed(RunStatus.COMPLETED), False),
        (LINK, claimed(RunStatus.KILLED), False),
        (LINK, claimed(RunStatus.CANCELLED), False),
        (LINK, claimed(RunStatus.TIMED_OUT), False),
        (LINK, claimed(incarnation=2), False),  # another life under that id
        (LINK, claimed(begun=1), False),  # a later round: the child is none of its
    ],
)
def test_a_child_is_needed_while_its_parent_may_still_take_in_its_end(
    link: ParentLink | None, parent: RunClaim | None, needed: bool
) -> None:
    assert is_needed(link, parent) is needed


@pytest.mark.parametrize(
    ("claim", "may"),
    [
        (claimed(RunStatus.COMPLETED, ended_at_s=5.0), True),
        (claimed(RunStatus.COMPLETED, ended_at_s=6.0), False),  # it came back and ended again
        (claimed(RunStatus.FAILED, ended_at_s=5.0), False),
        (claimed(RunStatus.RUNNING), False),
        (None, False),
    ],
)
def test_the_claim_has_the_last_word_over_the_index(claim: RunClaim | None, may: bool) -> None:
    assert may_go(EndedRun("parent", RunStatus.COMPLETED, 5_000), claim) is may


@pytest.mark.parametrize("status", list(RunStatus))
def test_what_has_not_ended_is_kept_whatever_the_policy_says(status: RunStatus) -> None:
    nothing = Keep(0, 0)
    policy = RetentionPolicy(**{status.value: nothing for status in PRUNED})
    assert policy.keep(status) == (nothing if status in PRUNED else FOREVER)
    assert not LIVE & set(PRUNED)
    assert RunStatus.STOPPED not in PRUNED
    assert KEEP_EVERYTHING.keep(status, filling=True) == FOREVER


@pytest.mark.parametrize(
    ("status", "usual", "when_filling"),
    [
        (RunStatus.COMPLETED, Keep(7 * DAY_S, 10_000), Keep(3600, 10_000)),
        (RunStatus.KILLED, Keep(7 * DAY_S, 10_000), Keep(3600, 10_000)),
        (RunStatus.CANCELLED, Keep(7 * DAY_S, 10_000), Keep(3600, 10_000)),
        (RunStatus.TIMED_OUT, Keep(7 * DAY_S, 10_000), Keep(3600, 10_000)),
        (RunStatus.FAILED, Keep(90 * DAY_S, 10_000), Keep(90 * DAY_S, 10_000)),  # it can be resumed
        (RunStatus.QUARANTINED, FOREVER, FOREVER),
        (RunStatus.STOPPED, FOREVER, FOREVER),
    ],
)
def test_the_defaults(status: RunStatus, usual: Keep, when_filling: Keep) -> None:
    assert RetentionPolicy().keep(status) == usual
    assert RetentionPolicy().keep(status, filling=True) == when_filling
    assert RetentionPolicy(when_filling_s=None).keep(status, filling=True) == usual


def test_a_policy_that_keeps_less_keeps_no_more_while_the_store_is_filling() -> None:
    assert RetentionPolicy(killed=Keep(5, 2)).keep(RunStatus.KILLED, filling=True) == Keep(5, 2)
    assert RetentionPolicy(killed=Keep(None, 2)).keep(RunStatus.KILLED, filling=True) == Keep(3600, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Keep(-1),
        lambda: Keep(float("nan")),
        lambda: Keep(1, -1),
        lambda: RetentionPolicy(every_s=0),
        lambda: RetentionPolicy(max_per_sweep=0),
        lambda: RetentionPolicy(when_filling_s=-1),
        lambda: RetentionPolicy(when_filling_s=float("nan")),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        make()


def test_a_policy_is_a_value() -> None:
    data = msgspec.json.encode(RetentionPolicy())
    assert msgspec.json.decode(data, type=RetentionPolicy) == RetentionPolicy()
