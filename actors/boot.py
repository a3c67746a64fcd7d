"""What becomes of a live run that a boot finds in the store. Pure: facts in, a plan out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from executus.actors.policies import MAX_STRIKES, strike
from executus.stores import ENDED, ParentLink, RunClaim, RunStatus


class BootFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the store says of one live run, and what this code knows of its type.

    `known_schema` is None where the run type is not registered; `snapshot_schema` None where nothing was saved yet.
    `unreadable` says what is damaged, `unfit` what is whole and not for this code. `link` is None, too, where the
    parent's claim cannot be read: then nobody knows that it has ended. `saved_seq` is for its flight record.
    """

    claim: RunClaim
    run_type: str | None
    known_schema: int | None
    snapshot_schema: int | None
    waiting: bool
    unreadable: str | None
    unfit: str | None = None
    saved_seq: int | None = None
    link: ParentLink | None = None
    parent: RunClaim | None = None


class Resume(msgspec.Struct, frozen=True, tag=True):
    """Claim it with these strikes and go on.

    `orphaned` is its link to a parent that has ended meanwhile; `suspect` says that this is not its first strike.
    """

    strikes: int
    orphaned: ParentLink | None = None
    suspect: bool = False


class SetAsideAs(msgspec.Struct, frozen=True, tag=True):
    """Park or quarantine it."""

    status: RunStatus
    reason: str


def plan(facts: BootFacts) -> Resume | SetAsideAs:
    """Decide what becomes of a run that was live when the last process ended.

    What cannot be read is quarantined; what this code is too old for is parked; three strikes quarantine; the rest
    comes back.
    """
    claim = facts.claim
    if facts.unreadable is not None:
        return SetAsideAs(RunStatus.QUARANTINED, facts.unreadable)
    if facts.run_type is None:
        return SetAsideAs(RunStatus.QUARANTINED, "its start record cannot be read")
    if facts.known_schema is None:
        return SetAsideAs(
            RunStatus.PARKED,
            f"run type {facts.run_type!r} is not registered; deploy code that has it, or add the name to "
            "a run's aliases",
        )
    if facts.snapshot_schema is not None and facts.snapshot_schema > facts.known_schema:
        return SetAsideAs(
            RunStatus.PARKED,
            f"its snapshot has schema {facts.snapshot_schema}, this code knows {facts.known_schema} of "
            f"{facts.run_type!r}; deploy newer code",
        )
    if facts.unfit is not None:
        return SetAsideAs(RunStatus.PARKED, facts.unfit)
    strikes = strike(claim.strikes, died_running=claim.status is RunStatus.RUNNING, waiting=facts.waiting)
    if strikes is None:
        return SetAsideAs(
            RunStatus.QUARANTINED,
            f"the process died {MAX_STRIKES} times in a row while this run was being resumed, before it "
            "made durable progress",
        )
    return Resume(strikes, _orphaned_by(facts), suspect=0 < claim.strikes < strikes)


SUSPECTS_AT_ONCE: Final = 8


def cohort(strikes: Sequence[int]) -> int:
    """How many of these suspects, in ascending order of strikes, are resumed together.

    With their second strike a few at a time, which is quick; with the last one alone, so that a death then is proof.
    """
    second = sum(1 for count in strikes if count < MAX_STRIKES)
    return min(second, SUSPECTS_AT_ONCE) if second else min(len(strikes), 1)


def _orphaned_by(facts: BootFacts) -> ParentLink | None:
    """The link to the parent, if the run has one and that has ended for good."""
    link = facts.link
    return link if link is not None and orphaned(link, facts.parent) else None


def orphaned(link: ParentLink, parent: RunClaim | None) -> bool:
    """Whether the life that this link leads to has ended for good."""
    return parent is None or parent.incarnation != link.incarnation or parent.status in ENDED
