"""Where a run's newest state waits for the store: one pending snapshot a run, never a queue."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from executus.actors.definition import RunDefinition, encode_next
from executus.actors.errors import SaveRejected
from executus.actors.incarnation import pop_first, tell_if_alive
from executus.actors.journal_keeper import JournalKeeper
from executus.actors.messages import ClaimLost, OfferSave, SaveAcknowledged, SaveNow
from executus.actors.policies import SavePolicy
from executus.actors.run import Next, Waiting
from executus.actors.state_codec import Journals
from executus.stores import Chunk, Claim, ExecutusError, Layout, RunClaim, Save, Snapshot, Token

if TYPE_CHECKING:
    from executus.actors.actor import ActorRef
    from executus.actors.future import Promise


class StorePort:
    """Where the current store actor is.

    Replaced when it is restarted; a tell to a dead one is made good by the restart's re-offer.
    """

    __slots__ = ("tell",)

    def __init__(self, tell: Any) -> None:
        self.tell = tell


class Published(msgspec.Struct, frozen=True, gc=False):
    """A completed callback's result: the state itself if its type is immutable, else its bytes (`encoded`).

    `due_s`, monotonic, is a Wait's deadline in this process: a restart here goes by it, whatever the wall clock did.
    `journals` are those of an encoded state, values that never change.
    `consumed_through` is the number of the last durable message whose effect is in the state.
    """

    seq: int
    state: Any
    encoded: bool
    next: Next
    consumed: tuple[tuple[int, str], ...] = ()
    due_s: float | None = None
    journals: Journals = ()
    consumed_through: int = 0


class SaveSlot:
    """The hand-over between an attempt (publishes), the store actor (takes) and the supervisor (closes).

    Why it is right under free interleaving: the attempt writes `published`, then reads `dirty`; the store actor clears
    `dirty`, then reads `published`. So either the attempt sees the mark cleared and offers again, or the store actor
    reads this state or a newer one. The supervisor sets `closed`, then reads `published`; the store actor reads
    `published`, then checks `closed`: whatever it still writes is not newer than what the supervisor has read, and a
    zombie's later states are never written. Each field has one writer but `dirty`, whose two writers only ever make
    the other one look once more.
    """

    __slots__ = (
        "attempt",
        "attempt_ref",
        "claim",
        "closed",
        "definition",
        "dirty",
        "durable_seq",
        "durable_waiters",
        "keeper",
        "killed",
        "nudge_seq",
        "policy",
        "port",
        "published",
        "rejected_seq",
        "rejection",
        "result_through",
        "saved_at_s",
        "saved_seq",
        "strikes",
        "token",
        "waiting_callers",
        "waiting_seq",
    )

    def __init__(
        self,
        definition: RunDefinition,
        claim: RunClaim,
        policy: SavePolicy,
        port: StorePort,
        *,
        durable_seq: int,
        durable_waiters: list[tuple[int, Promise[int]]],
    ) -> None:
        self.definition = definition
        self.token: Token = claim.token
        self.attempt = claim.attempt
        self.policy = policy
        self.port = port
        self.strikes = claim.strikes
        self.claim: Claim | None = None
        """A claim that a failing store has not taken yet; it goes in with the next save.

        Supervisor sets, store actor clears.
        """
        self.keeper = JournalKeeper() if definition.states.has_journals else None
        """Handed to the next attempt where that goes on from memory; see there for its threads."""
        self.published: Published | None = None
        self.dirty = False
        self.closed = False
        self.nudge_seq: float = math.inf
        self.waiting_seq = 0
        """The seq whose commit the attempt waits for.

        Set before it offers, so that no acknowledgement can pass it by.
        """
        self.saved_at_s: float | None = None
        self.saved_seq = 0
        self.durable_seq = durable_seq
        self.rejected_seq = 0
        self.rejection: SaveRejected | None = None
        self.result_through = 0
        """The last durable message that went into the result.

        The attempt writes it before it leaves, the supervisor reads it after the report of that.
        """
        self.durable_waiters = durable_waiters
        """(seq, promise) pairs of whoever waits for durability.

        Only appended to and popped, which is atomic: a waiter is either seen by the acknowledgement that it waits
        for, or its own SaveNow, told after the append, finds it.
        """
        self.waiting_callers: list[Promise[None]] = []
        """Waits of this attempt's own callbacks for a save, see SaveWait. They put themselves in and out."""
        self.killed = False
        """Whether the attempt has killed its run: its ending is the tombstone's. Written before the attempt ends."""
        self.attempt_ref: ActorRef[Any] | None = None

    def tell_attempt(self, message: object) -> None:
        """Tell the attempt, ahead of its other messages. One that has ended needs to hear nothing."""
        if self.attempt_ref is not None:
            tell_if_alive(self.attempt_ref, message, control=True)

    def publish(self, published: Published) -> None:
        """Make this the newest state and see that the store actor looks. On the attempt's thread."""
        self.published = published
        if not self.dirty or published.seq >= self.nudge_seq:
            self.dirty = True
            self.nudge_seq = math.inf
            self.port.tell(OfferSave(self))

    def offer_again(self) -> None:
        """After a restart of the store actor: what it had not acknowledged is offered once more."""
        if self.published is not None and not self.closed:
            self.dirty = True
            waited_for = self.durable_waiters or self.waiting_callers
            self.port.tell(SaveNow(self) if waited_for else OfferSave(self))

    def take(self) -> Published | None:
        """Clear the mark, then read; None when there is nothing newer than the stored one.

        On the store actor's thread.
        """
        self.dirty = False
        published = self.published
        if self.closed or published is None or published.seq <= max(self.durable_seq, self.rejected_seq):
            return None
        return published

    def close(self) -> Published | None:
        """Accept nothing more, and read the last state. On the supervisor's thread, or on that of who ends it."""
        self.closed = True
        self.stir()
        return self.published

    def stir(self) -> None:
        """Something has changed for callbacks that wait for a save: let them look. On any thread."""
        for caller in self.waiting_callers.copy():
            caller.try_set(None)

    def save(self, published: Published, wall_s: float) -> Save:
        """The operation that stores this state. Raises SaveRejected where it cannot be encoded."""
        snapshot, chunks = self.snapshot(published, wall_s)
        return Save(
            snapshot=snapshot,
            chunks=chunks,
            clears_strikes=self.strikes > 0,
            consumed_children=tuple([child for _, child in published.consumed]),
        )

    def snapshot(self, published: Published, wall_s: float) -> tuple[Snapshot, tuple[Chunk, ...]]:
        """The snapshot of this state under this slot's token, and what its journals have that is not stored.

        On the store actor's thread. Raises SaveRejected.
        """
        if published.encoded:
            state, journals = published.state, published.journals
        else:
            state, journals = self.definition.states.encode(published.state)
        layouts: tuple[Layout, ...] | msgspec.UnsetType = msgspec.UNSET
        chunks: tuple[Chunk, ...] = ()
        if self.keeper is not None:
            laid_out, chunks = self.keeper.lay_out(journals, seq=published.seq, epoch=self.token.epoch)
            layouts = laid_out or msgspec.UNSET
        snapshot = Snapshot(
            run_id=self.token.run_id,
            incarnation=self.token.incarnation,
            epoch=self.token.epoch,
            seq=published.seq,
            schema_version=self.definition.schema_version,
            taken_at_s=wall_s,
            state=state,
            next=encode_next(published.next),
            waiting=isinstance(published.next, Waiting),
            layouts=layouts,
            consumed_through=published.consumed_through or msgspec.UNSET,
        )
        return snapshot, chunks

    def confirm(self, seq: int) -> None:
        """The snapshot `seq` was accepted, and its chunks with it. On the store actor's thread."""
        if self.keeper is not None:
            self.keeper.confirm(seq)

    def acknowledge(self, seq: int) -> None:
        """Snapshot `seq` is durable. On the store actor's thread."""
        self.durable_seq = max(self.durable_seq, seq)
        self.strikes = 0
        if 0 < self.waiting_seq <= seq:
            self.tell_attempt(SaveAcknowledged(seq))
        self.stir()
        self.answer_waiters()

    def answer_waiters(self) -> None:
        """Resolve the promises that wait for a seq which is durable now, or never will be."""
        for _ in range(len(self.durable_waiters)):
            waiter = pop_first(self.durable_waiters)
            if waiter is None:
                return  # somebody else answers them at the same time
            if waiter[0] <= self.durable_seq:
                waiter[1].try_set(self.durable_seq)
            elif waiter[0] <= self.rejected_seq and self.rejection is not None:
                waiter[1].try_fail(self.rejection)
            else:
                self.durable_waiters.append(waiter)

    def fail_waiters(self, seq: int, error: ExecutusError) -> None:
        """The save of `seq` was refused or failed: who waits for it is told so."""
        if 0 < self.waiting_seq <= seq:
            self.tell_attempt(SaveAcknowledged(seq, error))
        self.stir()
        while (waiter := pop_first(self.durable_waiters)) is not None:
            waiter[1].try_fail(error)

    def refuse(self, current: RunClaim | None) -> None:
        """The store has refused this attempt for good; tell it to stop."""
        self.close()
        self.tell_attempt(ClaimLost(current))
