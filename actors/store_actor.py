"""The store actor: the one writer. It drains its mailbox and commits everything that is due in one transaction."""

from __future__ import annotations

import logging
import math
from types import TracebackType
from typing import Any, assert_never

import msgspec

from executus.actors.actor import Actor
from executus.actors.environment import Environment
from executus.actors.errors import SaveRejected
from executus.actors.events import RunFencedOff, SaveRefused, SnapshotSaved, StoreDegraded, StoreRecovered
from executus.actors.incarnation import tell_if_alive
from executus.actors.messages import Commit, CommitFailed, Committed, OfferSave, Probe, SaveNow
from executus.actors.outcomes import ErrorInfo, safe_text
from executus.actors.save_slot import Published, SaveSlot
from executus.actors.throttle import NEVER, due_at
from executus.stores import (
    Accepted,
    Append,
    Claim,
    Delete,
    Operation,
    RecordTooLarge,
    Refusal,
    Refused,
    RunClaim,
    RunStatus,
    Save,
    SetAside,
    Settle,
    StoreError,
    StoreUnavailable,
    Verdict,
)

GATHER_MIN_S = 0.002
GATHER_MAX_S = 0.02
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 1.0
"""A store that fails is tried again after 50 ms, then twice as long each time up to a second.

Soon enough to notice freed space, seldom enough to leave a sick disk alone.
"""


class Flush(msgspec.Struct, frozen=True):
    """To itself, behind what is queued: everything told so far goes into one commit."""


class DueElapsed(msgspec.Struct, frozen=True):
    """The earliest throttled save is due."""


class _Member:
    """One part of a commit: a slot's save, or the supervisor's operations. Retried alone when it spoils the whole."""

    __slots__ = ("operations", "order", "published", "slot")

    def __init__(
        self,
        operations: list[Operation],
        *,
        slot: SaveSlot | None = None,
        published: Published | None = None,
        order: Commit | None = None,
    ) -> None:
        self.operations = operations
        self.slot = slot
        self.published = published
        self.order = order


class StoreActor(Actor):
    """Owns the store on its own thread.

    Everything that writes goes through here; answers come as tells, after the commit.
    """

    crash_log_level = logging.DEBUG  # open() raises it, the event StoreActorRestarted tells of it

    def __init__(self, env: Environment, answer: Any) -> None:
        super().__init__()
        self._env = env
        self._answer = answer
        self._slots: dict[SaveSlot, None] = {}
        self._orders: list[Commit] = []
        self._due: dict[float, list[SaveSlot]] = {}
        self._due_of: dict[SaveSlot, float] = {}
        self._timer: Any = None
        self._timer_at_s = math.inf
        self._flushing = False
        self._gathering_until_s = 0.0
        self._commit_took_s = 0.0
        self._failures = 0
        self._failed_since_s = 0.0
        self._retry_at_s = 0.0

    def on_start(self) -> None:
        """Open the store on the thread that will write it."""
        self._env.store.open()

    def on_stop(self) -> None:
        """Write what is still due, then let the store go."""
        try:
            self._slots.update(dict.fromkeys(self._due_of))
            self._commit_due()
        finally:
            self._close()

    def on_failure(
        self,
        exception_type: type[BaseException] | None,  # noqa: ARG002
        exception_value: BaseException | None,  # noqa: ARG002
        traceback: TracebackType | None,  # noqa: ARG002
    ) -> None:
        """Let the store go, so that the actor that replaces this one can open it."""
        self._close()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._env.store.close()

    def on_receive(self, message: object) -> None:
        """Collect; `Flush` commits what was collected."""
        match message:
            case OfferSave(slot):
                self._schedule(slot)
            case Commit():
                self._orders.append(message)
                self._flush_soon()
            case SaveNow(slot):
                self._slots[slot] = None
                self._flush_soon()
            case DueElapsed():
                self._collect_due()
            case Flush():
                self._flush()
            case Probe(reply):
                reply.try_set(None)
            case _:
                msg = f"the store actor does not know {type(message).__name__}"
                raise TypeError(msg)

    # --- what is due ---

    def _schedule(self, slot: SaveSlot) -> None:
        published = slot.published
        if slot.closed or published is None:
            return
        now_s = self._env.clock.now_s()
        due_s = due_at(slot.policy, saved_at_s=slot.saved_at_s, steps_since=published.seq - slot.saved_seq, now_s=now_s)
        if due_s == NEVER:
            return
        if due_s <= now_s:
            self._slots[slot] = None
            self._flush_soon()
        elif due_s < self._due_of.get(slot, math.inf):
            self._due_of[slot] = due_s
            self._due.setdefault(due_s, []).append(slot)
            if slot.policy.every_steps is not None:
                slot.nudge_seq = slot.saved_seq + slot.policy.every_steps
            self._arm(due_s)

    def _arm(self, due_s: float) -> None:
        if due_s >= self._timer_at_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = due_s
        self._timer = self._env.timers.call_at(due_s, self._tell_self_due)

    def _tell_self_due(self) -> None:
        tell_if_alive(self.actor_ref, DueElapsed())

    def _collect_due(self) -> None:
        self._timer, self._timer_at_s = None, math.inf
        now_s = self._env.clock.now_s()
        for due_s in sorted(at for at in self._due if at <= now_s):
            for slot in self._due.pop(due_s):
                if self._due_of.get(slot) == due_s:
                    del self._due_of[slot]
                    self._slots[slot] = None
        if self._due:
            self._arm(min(self._due))
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._gathering_until_s = self._env.clock.now_s() + min(
                max(2 * self._commit_took_s, GATHER_MIN_S), GATHER_MAX_S
            )
            self.actor_ref.tell(Flush())

    def _flush(self) -> None:
        """Commit what was collected; while runs are at work that will want a save as well, a little later.

        Waiting up to twice as long as a commit takes makes each commit several times as full, and delays nobody who is
        alone: without a backlog there is nothing to wait for. 2,600 durable steps a second became 20,000.
        """
        now_s = self._env.clock.now_s()
        if now_s < self._gathering_until_s and self._env.backlog():
            self._env.gather()
            self.actor_ref.tell(Flush())
            return
        self._flushing = False
        if now_s >= self._retry_at_s:  # while the store fails, only a due retry tries it
            self._commit_due()
            self._commit_took_s = self._env.clock.now_s() - now_s

    # --- the commit ---

    def _commit_due(self) -> None:
        members = self._members()
        if not members:
            return
        try:
            verdicts = self._commit(members)
        except StoreUnavailable as error:
            self._failed(members, error)
            return
        self._recovered()
        for member, answers in verdicts:
            self._deliver(member, answers)

    def _members(self) -> list[_Member]:
        """Take what is collected. The slots' marks are cleared here, before their states are read."""
        now_s, wall_s = self._env.clock.now_s(), self._env.clock.wall_s()
        slots, self._slots = self._slots, {}
        orders, self._orders = self._orders, []
        members: list[_Member] = []
        for slot in slots:
            published = slot.take()
            if published is None:
                slot.answer_waiters()
                continue
            slot.saved_at_s, slot.saved_seq = now_s, published.seq
            try:
                save = slot.save(published, wall_s)
            except SaveRejected as error:
                self._reject(slot, published, error)
                continue
            members.append(_Member([*_pending_claim(slot), save], slot=slot, published=published))
        members.extend(_Member(self._with_final(order, wall_s), order=order) for order in orders)
        return members

    def _with_final(self, order: Commit, wall_s: float) -> list[Operation]:
        """The order's operations, a claim not taken yet before them, and the closed slot's last state in the Settle."""
        slot = order.final
        if slot is None:
            return list(order.operations)
        operations = [*_pending_claim(slot), *order.operations]
        published = slot.published
        if published is None or published.seq <= max(slot.durable_seq, slot.rejected_seq):
            return operations
        try:
            snapshot, chunks = slot.snapshot(published, wall_s)
        except SaveRejected as error:
            self._reject(slot, published, error)
            return operations
        consumed = tuple(child for _, child in published.consumed)
        return [
            msgspec.structs.replace(op, snapshot=snapshot, chunks=chunks, consumed_children=consumed)
            if isinstance(op, Settle) and op.status is not RunStatus.COMPLETED
            else op
            for op in operations
        ]

    def _commit(self, members: list[_Member]) -> list[tuple[_Member, list[Verdict]]]:
        """One transaction for all; without the members that cannot be written, each of which fails alone."""
        while members:
            operations = [op for member in members for op in member.operations]
            try:
                with self._env.stand_aside() as go_on:
                    verdicts = self._env.store.commit(operations, go_on)
            except RecordTooLarge as error:
                spoiler = next(m for m in members if any(_run_id(op) == error.run_id for op in m.operations))
                members.remove(spoiler)
                self._spoiled(spoiler, error)
                continue
            except (TypeError, ValueError) as error:  # raised before anything is written: one of them cannot be stored
                if len(members) > 1:
                    return [pair for member in members for pair in self._commit([member])]
                self._spoiled(members[0], StoreError(f"a record that no store takes: {safe_text(error)}"))
                return []
            answers = iter(verdicts)
            return [(member, [next(answers) for _ in member.operations]) for member in members]
        return []

    def _spoiled(self, member: _Member, error: StoreError) -> None:
        if member.slot is not None and member.published is not None:
            self._reject(member.slot, member.published, error)
        elif member.order is not None:
            self._answer(CommitFailed(member.order.tag, error))

    def _deliver(self, member: _Member, verdicts: list[Verdict]) -> None:
        if member.order is not None:
            wanted = len(member.order.operations)
            self._answer(Committed(member.order.tag, tuple(verdicts[-wanted:])))
            return
        slot, published = member.slot, member.published
        assert slot is not None
        assert published is not None
        match verdicts[-1]:
            case Accepted():
                slot.claim = None
                slot.confirm(published.seq)
                slot.acknowledge(published.seq)
                self._emit_saved(slot, published.seq)
            case Refused(Refusal.STALE, _):
                slot.acknowledge(published.seq)  # a newer one is stored already, under this very claim
            case Refused(Refusal.FENCED, current) if current is not None and _is_earlier_claim(slot, current):
                assert slot.claim is not None
                slot.claim = msgspec.structs.replace(slot.claim, expected=current.token)
                slot.dirty = True  # it stays with us
                self._slots[slot] = None
                self._flush_soon()
            case Refused(_, current):
                slot.refuse(current)
                self._env.events.emit(RunFencedOff(**_about(slot)))

    def _emit_saved(self, slot: SaveSlot, seq: int) -> None:
        if self._env.events.is_heard(SnapshotSaved):
            self._env.events.emit(SnapshotSaved(**_about(slot), seq=seq))

    def _reject(self, slot: SaveSlot, published: Published, error: SaveRejected | StoreError) -> None:
        """This state cannot be stored.

        The last good snapshot stands; the run goes on, unless it waits for this very save.
        """
        rejected = error if isinstance(error, SaveRejected) else SaveRejected(str(error))
        slot.rejected_seq, slot.rejection = published.seq, rejected
        self._env.events.emit(SaveRefused(**_about(slot), error=ErrorInfo.of(error), seq=published.seq))
        slot.fail_waiters(published.seq, rejected)

    # --- a store that fails ---

    def _failed(self, members: list[_Member], error: StoreError) -> None:
        """Nothing is given up.

        Throttled saves are tried again, who waits is told, the supervisor decides about its own.
        """
        now_s, self._env.store_trouble = self._env.clock.now_s(), ErrorInfo.of(error)
        if self._failures == 0:
            self._failed_since_s = now_s
            self._env.events.emit(StoreDegraded(error=ErrorInfo.of(error), waiting_saves=len(members)))
        self._retry_at_s = retry_at_s = now_s + min(RETRY_FIRST_S * 2 ** min(self._failures, 10), RETRY_MAX_S)
        self._failures += 1
        for member in members:
            if member.order is not None:
                self._answer(CommitFailed(member.order.tag, error))
            elif member.slot is not None and member.published is not None:
                member.slot.dirty = True  # it stays with us, so that a publish need not offer it again
                self._due_of[member.slot] = retry_at_s
                self._due.setdefault(retry_at_s, []).append(member.slot)
                member.slot.fail_waiters(member.published.seq, error)
        self._due.setdefault(retry_at_s, [])
        self._arm(retry_at_s)

    def _recovered(self) -> None:
        if self._failures:
            self._failures, self._retry_at_s, self._env.store_trouble = 0, 0.0, None
            self._env.events.emit(StoreRecovered(down_s=self._env.clock.now_s() - self._failed_since_s))
            self._flush_soon()


def _pending_claim(slot: SaveSlot) -> list[Operation]:
    """A claim that a failing store has not taken yet; it goes in before the slot's first write."""
    return [] if slot.claim is None else [slot.claim]


def _is_earlier_claim(slot: SaveSlot, current: RunClaim) -> bool:
    """Whether an earlier claim of this run, given up as failed, had been applied all the same: ours goes over it."""
    if slot.claim is None or current.status not in {RunStatus.RUNNING, RunStatus.PASSIVATED}:
        return False
    return current.incarnation == slot.token.incarnation and current.epoch < slot.token.epoch


def _run_id(operation: Operation) -> str:
    match operation:
        case Claim(claim=claim):
            return claim.run_id
        case Save(snapshot=snapshot):
            return snapshot.run_id
        case Settle(token=token) | SetAside(expected=token) | Delete(token=token):
            return token.run_id
        case Append(run_id=run_id):
            return run_id
        case _:
            assert_never(operation)


def _about(slot: SaveSlot) -> dict[str, Any]:
    return {
        "run_id": slot.token.run_id,
        "run_type": slot.definition.name,
        "attempt": slot.attempt,
        "epoch": slot.token.epoch,
    }
