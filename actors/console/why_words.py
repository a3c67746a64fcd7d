"""How a run came to stand where it stands, in a sentence: by its claim, snapshot and outcome. Pure."""

from __future__ import annotations

from typing import assert_never

import msgspec

from executus.actors.console.values import age
from executus.actors.outcomes import Cancelled, Failed, Killed, Outcome
from executus.stores import EPOCHS_PER_BOOT, RunClaim, RunStatus, Snapshot


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What is known. `store_boot` is the last opening of the store; `owner_pid` who owns it now, None for nobody."""

    claim: RunClaim
    owner_pid: int | None
    store_boot: int
    snapshot: Snapshot | None
    outcome: Outcome | None
    now_s: float


def boot_of(epoch: int) -> int:
    """The opening of the store under which an epoch was drawn."""
    return epoch // EPOCHS_PER_BOOT


def died(standing: Standing) -> bool:
    """Whether the process died while the run was at work: it is running, under a boot that is over."""
    over = standing.owner_pid is None or boot_of(standing.claim.epoch) < standing.store_boot
    return standing.claim.status is RunStatus.RUNNING and over


def verdict(standing: Standing) -> str:
    """The sentence."""
    claim, outcome = standing.claim, standing.outcome
    because = f": {claim.reason}" if claim.reason else ""
    match claim.status:
        case RunStatus.RUNNING:
            return _death(standing) if died(standing) else f"it is at work in attempt {claim.attempt}, or waits"
        case RunStatus.SUSPENDED:
            return f"the runtime was shut down{because}; the next boot resumes it"
        case RunStatus.PASSIVATED:
            return "it waits, and rests in the store until a message, a query or its time wakes it"
        case RunStatus.PARKED:
            return f"this code could not take it up{because}; every boot tries again"
        case RunStatus.STOPPED:
            return f"it was stopped{because}; it rests until it is resumed by hand"
        case RunStatus.QUARANTINED:
            return f"it was set aside{because}"
        case RunStatus.COMPLETED:
            return f"it completed in attempt {claim.attempt}"
        case RunStatus.FAILED:
            if isinstance(outcome, Failed):
                restarts = f"{outcome.restarts} restart{'' if outcome.restarts == 1 else 's'}"
                return f"{outcome.error}, in {outcome.phase.value}, after {restarts}"
            return f"it crashed for good{because}"
        case RunStatus.KILLED:
            return f"killed{_by(outcome)}{because}"
        case RunStatus.CANCELLED:
            return f"cancelled{_by(outcome)}{because or _reason(outcome)}"
        case RunStatus.TIMED_OUT:
            return "its run_timeout_s elapsed"
        case _:
            assert_never(claim.status)


def _by(outcome: Outcome | None) -> str:
    return f" by {outcome.by}" if isinstance(outcome, (Killed, Cancelled)) else ""


def _reason(outcome: Outcome | None) -> str:
    return f": {outcome.reason}" if isinstance(outcome, (Killed, Cancelled)) and outcome.reason else ""


def _death(standing: Standing) -> str:
    claim, snapshot = standing.claim, standing.snapshot
    boot = boot_of(claim.epoch)
    since = "nobody owns the store now" if standing.owner_pid is None else f"the store is at boot {standing.store_boot}"
    doing = "while it waited" if snapshot is not None and snapshot.waiting else "while it was at work"
    saved = "nothing of it was saved"
    if snapshot is not None:
        saved = f"its last save was seq {snapshot.seq}, {age(standing.now_s - snapshot.taken_at_s)} ago"
    later = "the next boot resumes it" if standing.owner_pid is None else "it has not been taken up yet"
    return (
        f"the process died {doing}: it is running under boot {boot}, and {since}. It was in attempt {claim.attempt}; "
        f"{saved}; {later}"
    )
