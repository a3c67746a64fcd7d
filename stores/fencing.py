"""Who may write what: one pure verdict for each kind of operation. No store decides anything beside these.

Each takes an operation and the claim that is there now, and says APPLY, ALREADY (it is there: accept it, write
nothing) or why it is refused.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from executus.stores.operations import Append, Claim, Delete, Refusal, Refused, SetAside, Settle
from executus.stores.records import ENDED, ENDED_FOR_GOOD, Inbox, RunClaim, RunStatus, Token


class Fit(enum.Enum):
    """An operation that is accepted."""

    APPLY = "apply"
    ALREADY = "already"


class Newest(NamedTuple):
    """The newest readable generation of a run: its seq, the slot in which it stands, the last message in it."""

    seq: int
    slot: int
    consumed: int


def judge_claim(op: Claim, current: RunClaim | None) -> Fit | Refused:
    """Compare-and-set on the token.

    A newer epoch wins, the same claim again is a retry; an ending does not replace an ending.
    """
    if current is None:
        return Fit.APPLY if op.expected is None else Refused(Refusal.MISSING)
    if current.token == op.claim.token and current.status is op.claim.status:
        return Fit.ALREADY
    if op.expected is None:
        return Refused(Refusal.EXISTS, current)
    if current.token != op.expected or op.claim.epoch <= current.epoch:
        return Refused(Refusal.FENCED, current)
    if op.claim.status in ENDED and current.status in ENDED:
        return Refused(Refusal.SETTLED, current)
    return Fit.APPLY


def judge_writer(token: Token, current: RunClaim | None) -> Fit | Refused:
    """May this execution write at all? Only the one that holds the claim, and only while it runs."""
    if current is None:
        return Refused(Refusal.MISSING)
    if current.token != token:
        return Refused(Refusal.FENCED, current)
    if current.status is not RunStatus.RUNNING:
        return Refused(Refusal.SETTLED, current)
    return Fit.APPLY


def judge_seq(seq: int, newest: Newest | None, current: RunClaim) -> Fit | Refused:
    """Is this snapshot newer than what can be read back? The same seq is the same state, whichever epoch saved it."""
    if newest is None or seq > newest.seq:
        return Fit.APPLY
    if seq == newest.seq:
        return Fit.ALREADY
    return Refused(Refusal.STALE, current)


def judge_settle(op: Settle, current: RunClaim | None, *, same_outcome: bool) -> Fit | Refused:
    """The first committed ending wins; that very ending again is a retry. `same_outcome`: kept and given are equal."""
    verdict = judge_writer(op.token, current)
    if verdict is Fit.APPLY or current is None or current.token != op.token:
        return verdict
    if same_outcome and (current.status, current.reason, current.ended_at_s) == (op.status, op.reason, op.ended_at_s):
        return Fit.ALREADY
    return verdict


def judge_set_aside(op: SetAside, current: RunClaim | None) -> Fit | Refused:
    """What has ended for good is not brought back by setting it aside."""
    if current is None:
        return Refused(Refusal.MISSING)
    if current.token != op.expected:
        return Refused(Refusal.FENCED, current)
    if (current.status, current.reason) == (op.status, op.reason):
        return Fit.ALREADY
    if current.status in ENDED_FOR_GOOD:
        return Refused(Refusal.SETTLED, current)
    return Fit.APPLY


def judge_life(op: Append, current: RunClaim | None) -> Refused | RunClaim:
    """The claim of the life that a message is for, or why there is none."""
    if current is None:
        return Refused(Refusal.MISSING)
    if current.incarnation != op.incarnation:
        return Refused(Refusal.FENCED, current)
    return current


def judge_append(op: Append, current: RunClaim, inbox: Inbox, known: int | None) -> Fit | Refused:
    """Is there a place for this message? `known` is the number that its id got before.

    What an ending for good dropped unheard was not taken; what was consumed before it was.
    """
    if known is not None and (known <= inbox.consumed_through or current.status not in ENDED_FOR_GOOD):
        return Fit.ALREADY
    if current.status in ENDED:
        return Refused(Refusal.SETTLED, current)
    if inbox.pending >= op.limit:
        return Refused(Refusal.FULL, current)
    return Fit.APPLY


def judge_delete(op: Delete, current: RunClaim | None) -> Fit | Refused:
    """What is gone is gone; what runs stays."""
    if current is None:
        return Fit.ALREADY
    if current.token != op.token:
        return Refused(Refusal.FENCED, current)
    if current.status is RunStatus.RUNNING:
        return Refused(Refusal.RUNNING, current)
    return Fit.APPLY


def judge_damaged(op: object) -> Refused:
    """The row in the way cannot be read: nobody's token is known, so nobody may write over it."""
    taken = isinstance(op, Claim) and op.expected is None
    return Refused(Refusal.EXISTS if taken else Refusal.FENCED)
