"""What our own actors tell each other: orders are verbs, reports past participles.

Data, and at most a promise to answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from executus.actors.outcomes import Cause, ExitEvidence
from executus.stores import ExecutusError, Operation, RunClaim, Token, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from executus.actors.definition import RunDefinition
    from executus.actors.future import Promise
    from executus.actors.incarnation import Incarnation
    from executus.actors.policies import Policies
    from executus.actors.save_slot import SaveSlot
    from executus.stores import ParentLink

IfExists = Literal["raise", "return", "replace", "retry_failed"]


# --- to the store actor and to the run supervisor ---------------------------------------------------------------------


class Probe(msgspec.Struct, frozen=True):
    """Answer. From the control lane: who is busy answers after the message in hand, who is stuck does not."""

    reply: Promise[None]


# --- to the store actor -----------------------------------------------------------------------------------------------


class OfferSave(msgspec.Struct, frozen=True, gc=False):
    """The slot holds a state newer than the stored one; write it when the throttle says so."""

    slot: SaveSlot


class SaveNow(msgspec.Struct, frozen=True, gc=False):
    """Write the slot's state in the next commit; the slot's waiters are answered after it."""

    slot: SaveSlot


class Commit(msgspec.Struct, frozen=True):
    """Apply these operations in the next commit and tell the supervisor `Committed` or `CommitFailed` with this tag.

    `final`, if given, is a closed slot whose last state goes into the Settle among the operations.
    """

    tag: int
    operations: tuple[Operation, ...]
    final: SaveSlot | None = None


# --- to the run supervisor --------------------------------------------------------------------------------------------


class Committed(msgspec.Struct, frozen=True):
    """The commit came through, with these verdicts in the order of the operations."""

    tag: int
    verdicts: tuple[Verdict, ...]


class CommitFailed(msgspec.Struct, frozen=True):
    """The outcome of this commit is unknown; the same operations may be sent again."""

    tag: int
    error: ExecutusError


class Outgoing(msgspec.Struct, frozen=True):
    """A durable message, checked at the door: as it is stored, and as `receive` gets it, decoded from that."""

    message_id: str
    body: bytes
    message: Any
    expires_at_s: float | None = None


class StartOrder(msgspec.Struct, frozen=True):
    """What `start` was given, checked at the door."""

    run_id: str
    definition: RunDefinition
    input: bytes
    if_exists: IfExists
    labels: Mapping[str, str]
    policies: Policies
    options: bytes
    parent: ParentLink | None = None
    root_run_id: str | None = None
    first: Outgoing | None = None


class StartRuns(msgspec.Struct, frozen=True):
    """Start runs in one commit; each promise gets its incarnation, or the error that kept it from starting."""

    orders: tuple[StartOrder, ...]
    replies: tuple[Promise[Incarnation], ...]


class SendMessage(msgspec.Struct, frozen=True):
    """Commit a durable message, then put it into the run's mailbox if it runs here.

    `reply` holds its number when it is durable, or says why it is not taken.
    """

    run_id: str
    incarnation: int
    limit: int
    outgoing: Outgoing
    reply: Promise[int]


class DeliverStored(msgspec.Struct, frozen=True):
    """Put what the store has for this run into its mailbox, as far as it is behind that number."""

    run_id: str
    incarnation: int
    behind: int


class SpawnChildren(msgspec.Struct, frozen=True):
    """A parent's callback has spawned these; tell its attempt `ChildrenSpawned` when they are durable."""

    parent: Incarnation
    orders: tuple[StartOrder, ...]


class EndRun(msgspec.Struct, frozen=True):
    """Somebody wants this run to end. `reply` is resolved when it has ended, or with the error that prevents it."""

    run_id: str
    incarnation: int
    cause: Cause
    reply: Promise[None]


class ResumeRun(msgspec.Struct, frozen=True):
    """Bring back a stopped, failed or quarantined run."""

    run_id: str
    from_input: bool
    reply: Promise[Incarnation]


class AttemptExited(msgspec.Struct, frozen=True):
    """An attempt has ended; the one and only report of it."""

    token: Token
    evidence: ExitEvidence
    result: bytes | None


class DrainRuns(msgspec.Struct, frozen=True):
    """Suspend everything within `timeout_s`, then answer with the report."""

    timeout_s: float
    reply: Promise[Any]


class Recover(msgspec.Struct, frozen=True):
    """Find what the last process left. The first message, told once the store actor knows whom to answer."""


class ActivateRun(msgspec.Struct, frozen=True):
    """Somebody wants something of a passivated run."""

    incarnation: Incarnation


class LookAtDue(msgspec.Struct, frozen=True):
    """Look which passivated runs are due. `elapsed` is by which clock, the wall's or not, if a timer says so."""

    elapsed: bool | None = None


class AdmitSuspects(msgspec.Struct, frozen=True):
    """Look whether the next runs with strikes can be let in."""


class StoreCrashed(msgspec.Struct, frozen=True):
    """The store actor has crashed: what it had not answered has failed, with an unknown outcome."""

    error: ExecutusError


class StoreRestarted(msgspec.Struct, frozen=True):
    """The store actor came back: what it had not answered is to be sent again."""


class TimerElapsed(msgspec.Struct, frozen=True):
    """A timer of the supervisor for this execution is due."""

    kind: Literal["backoff", "grace", "run_timeout", "result_grace", "tombstone"]
    token: Token


class RetryCommit(msgspec.Struct, frozen=True):
    """A failed commit is to be sent again."""

    tag: int


class DrainDeadline(msgspec.Struct, frozen=True):
    """The drain must answer now, whatever is left."""


class Prune(msgspec.Struct, frozen=True):
    """Look for ended runs that are kept no longer, and delete the next few of them."""


class SweepIdle(msgspec.Struct, frozen=True):
    """Look for callbacks that have gone on without a heartbeat."""


# --- to an attempt ----------------------------------------------------------------------------------------------------


class Proceed(msgspec.Struct, frozen=True):
    """Go on: with the next step, a message, or whatever is due."""


class Interrupted(msgspec.Struct, frozen=True):
    """A cause to end has been recorded with the incarnation."""


class CancelCallback(msgspec.Struct, frozen=True):
    """The grace is over: cancel the async callback that is running."""


class SaveAcknowledged(msgspec.Struct, frozen=True, gc=False):
    """The save that this attempt waits for is durable, or `error` says why not."""

    seq: int
    error: ExecutusError | None = None


class ChildrenSpawned(msgspec.Struct, frozen=True):
    """The children of the callback are durable, or `error` says why not."""

    error: ExecutusError | None = None


class WaitElapsed(msgspec.Struct, frozen=True):
    """The deadline of wait number `number` has come."""

    number: int


class RestElapsed(msgspec.Struct, frozen=True):
    """Look whether it has waited for long enough to rest in the store alone."""


class ClaimLost(msgspec.Struct, frozen=True):
    """The store refused this attempt: another execution holds the run, or it has been settled."""

    current: RunClaim | None


PROCEED = Proceed()
