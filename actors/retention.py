"""Retention: which ended runs a store still keeps. Pure: what stands in the store in, what may go out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from executus.stores import ENDED_FOR_GOOD, EndedRun, ParentLink, RunClaim, RunStatus, ended_at_ms

DAY_S: Final = 86_400.0
FILLING_RATIO: Final = 0.8
"""From this share of the map on, runs that have ended for good go early."""


class Keep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long ended runs are kept, and at most how many, the youngest; None is no limit."""

    age_s: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if not ((self.age_s is None or self.age_s >= 0) and (self.count is None or self.count >= 0)):  # NaN, too
            msg = f"{self!r}: age_s and count must not be negative"
            raise ValueError(msg)


FOREVER: Final = Keep()


class RetentionPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What becomes of runs that have ended: for each ending, how long and how many are kept. The rest is deleted.

    A result is there to be fetched, and `if_exists="return"` finds it instead of doing the work twice: a week. A failed
    run can be resumed from its last snapshot, if somebody looks: a quarter of a year. What is quarantined is evidence
    that only a person may throw away; what was stopped has not ended.

    A sweep every `every_s` deletes at most `max_per_sweep` for their age, so that a wall clock that jumps cannot empty
    a store. While the store is more than 80 % full, what has ended for good is kept for `when_filling_s` only.
    """

    completed: Keep = Keep(7 * DAY_S, 10_000)
    failed: Keep = Keep(90 * DAY_S, 10_000)
    quarantined: Keep = FOREVER
    killed: Keep = Keep(7 * DAY_S, 10_000)
    cancelled: Keep = Keep(7 * DAY_S, 10_000)
    timed_out: Keep = Keep(7 * DAY_S, 10_000)
    when_filling_s: float | None = 3600.0
    every_s: float = 60.0
    max_per_sweep: int = 500

    def __post_init__(self) -> None:
        if not (self.every_s > 0 and self.max_per_sweep > 0):
            msg = f"{self!r}: every_s and max_per_sweep must be greater than 0"
            raise ValueError(msg)
        if self.when_filling_s is not None and not self.when_filling_s >= 0:
            msg = f"when_filling_s must not be negative, not {self.when_filling_s!r}"
            raise ValueError(msg)

    def keep(self, status: RunStatus, *, filling: bool = False) -> Keep:
        """What holds for runs of this status. What has not ended is kept."""
        keep: Keep = getattr(self, status.value) if status in PRUNED else FOREVER
        if not filling or self.when_filling_s is None or status not in ENDED_FOR_GOOD or keep == FOREVER:
            return keep
        return Keep(self.when_filling_s if keep.age_s is None else min(keep.age_s, self.when_filling_s), keep.count)


PRUNED: Final = (
    RunStatus.COMPLETED,
    RunStatus.FAILED,
    RunStatus.QUARANTINED,
    RunStatus.KILLED,
    RunStatus.CANCELLED,
    RunStatus.TIMED_OUT,
)
"""The endings that a policy has something to say of."""

DEFAULT_RETENTION: Final = RetentionPolicy()
KEEP_EVERYTHING: Final = RetentionPolicy(
    completed=FOREVER, failed=FOREVER, killed=FOREVER, cancelled=FOREVER, timed_out=FOREVER
)


def surplus(counts: Mapping[RunStatus, int], status: RunStatus, keep: Keep) -> int:
    """By how much there are more runs of a status than are kept."""
    return 0 if keep.count is None else max(0, counts.get(status, 0) - keep.count)


def expired(oldest: Sequence[EndedRun], keep: Keep, *, too_many: int, now_s: float) -> Sequence[EndedRun]:
    """Which of these runs of one status go: the first `too_many`, and those that are older than is kept.

    `oldest` are in order, the longest ended first. One that ended in the future, after a clock was put back, is young.
    """
    number = max(0, min(too_many, len(oldest)))
    if keep.age_s is not None:
        while number < len(oldest) and now_s - oldest[number].ended_at_ms / 1000 > keep.age_s:
            number += 1
    return oldest[:number]


def is_needed(link: ParentLink | None, parent: RunClaim | None) -> bool:
    """Whether a parent still needs the end of its child.

    `link` is the child's while that end is in no stored state of the parent, `parent` what the store says of that run.
    A parent that has ended for good, begun anew since, or is another life under the same id, will never take it in.
    """
    if link is None or parent is None:
        return False
    same = (link.incarnation, link.begun) == (parent.incarnation, parent.begun)
    return same and parent.status not in ENDED_FOR_GOOD


def may_go(run: EndedRun, claim: RunClaim | None) -> bool:
    """Whether the claim says of this run what the index does: an index is a hint, the claim is the truth."""
    return claim is not None and (claim.status, ended_at_ms(claim)) == (run.status, run.ended_at_ms)
