"""The ways into the table: started, spawned, resumed by hand, found at boot.

Each commits its claim first, then launches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec

from executus.actors.boot import BootFacts, Resume, SetAsideAs, plan
from executus.actors.deliveries import Deliveries, append_of
from executus.actors.desk import RETRY_S, Desk, Lifecycle, Verdicts, taken
from executus.actors.errors import (
    ChildGone,
    NotRegistered,
    NotResumable,
    ResultUnreadable,
    RunExists,
    RuntimeDraining,
    StartFailed,
)
from executus.actors.events import RunResumed, RunSettled, RunStarted, RuntimeOpened
from executus.actors.family import Family, parent_ended
from executus.actors.flights import flight_of_dead, ring_of_dead
from executus.actors.future import Promise
from executus.actors.incarnation import Ending, Incarnation, Stage, ended_error
from executus.actors.messages import ChildrenSpawned, EndRun, ResumeRun, SpawnChildren, StartOrder, StartRuns
from executus.actors.outcomes import ErrorInfo, ExitEvidence, Killed, KillRequested, Phase, encode_outcome
from executus.actors.run_actor import Source
from executus.actors.stored_runs import (
    begin_afresh,
    boot_facts,
    check_resumable,
    ending_claim,
    first_claim,
    incarnation_of_order,
    incarnation_of_record,
    next_claim,
    record_of,
    resting_incarnation,
    sleeping_incarnation,
    stored_kin,
)
from executus.actors.suspects import Suspects
from executus.stores import (
    Accepted,
    Claim,
    Delete,
    ExecutusError,
    Operation,
    RecordCorrupt,
    RecordTooLarge,
    Refusal,
    Refused,
    RunClaim,
    RunStatus,
    SetAside,
    Settle,
    StoredRun,
    StoreError,
    Verdict,
)

START_PATIENCE_S: Final = 5.0
"""`start` waits so long for a failing store, then raises."""
RECOVERY_BATCH: Final = 256
"""Runs claimed in one commit at boot.

Enough to be cheap, few enough for the first to run while the last are claimed.
"""


class Admission:
    """Brings runs into the table. On the supervisor's thread."""

    def __init__(self, desk: Desk, lifecycle: Lifecycle, family: Family, deliveries: Deliveries) -> None:
        self._desk = desk
        self._deliveries = deliveries
        self._env = desk.env
        self._life = lifecycle
        self._family = family
        self.suspects = Suspects(desk, lambda group: self._claim_recovered([list(group)], _at_once))

    # --- started ------------------------------------------------------------------------------------------------------

    def start(self, orders: Sequence[StartOrder], replies: Sequence[Promise[Incarnation]]) -> None:
        """Start runs in one commit; each promise gets its incarnation, or the error that kept it from starting."""
        claims: list[tuple[Incarnation, Claim, StartOrder]] = []
        for order, reply in zip(orders, replies, strict=True):
            live = self._desk.table.get(order.run_id) or self._desk.dormitory.asleep(order.run_id)
            if self._desk.drain is not None:
                reply.try_fail(RuntimeDraining(f"run {order.run_id!r} was not started: the runtime is shutting down"))
            elif live is not None:
                self._start_on_live(order, reply, live)
            else:
                inc = incarnation_of_order(order, first_claim(self._env, order, self._desk.epochs.draw()))
                self._desk.table[order.run_id] = inc
                inc.unstarted.append(reply)
                if inc.durable:
                    claims.append((inc, Claim(claim=inc.claim, expected=None, record=record_of(inc, order)), order))
                else:
                    self._started(inc)
        if claims:
            self._claim_starts(claims)

    def _claim_starts(self, claims: list[tuple[Incarnation, Claim, StartOrder]]) -> None:
        asked_s, wall_s = self._env.clock.now_s(), self._env.clock.wall_s()
        operations: list[Operation] = []
        for inc, claim, order in claims:
            operations.append(claim)
            if order.first is not None:  # refused, with the claim, as another life's, where the id is taken
                operations.append(append_of(inc.run_id, inc.incarnation, inc.inbox_limit, order.first, wall_s))

        def then(verdicts: Verdicts) -> None:
            answers = iter(verdicts)
            for inc, _, order in claims:
                verdict = next(answers)
                appended = None if order.first is None else next(answers)
                match verdict:
                    case Accepted():
                        if order.first is not None and isinstance(appended, Accepted):
                            inc.first_id = order.first.message_id
                            self._deliveries.accepted(inc.run_id, inc.incarnation, appended.number, order.first)
                        self._started(inc)
                    case Refused(Refusal.GONE):
                        self._not_started(inc, ChildGone(inc.run_id))
                    case Refused(Refusal.MISSING):
                        self._start_again(order, inc)  # deleted since it was looked at
                    case Refused(_, current):
                        self._start_on_stored(order, inc, current)

        def failed(error: ExecutusError) -> bool:
            waited_s = self._env.clock.now_s() - asked_s
            if waited_s < START_PATIENCE_S and not isinstance(error, RecordTooLarge):
                return False
            for inc, claim, _ in claims:
                self._not_started(
                    inc, StartFailed(f"run {inc.run_id!r} was not started, after {waited_s:.1f} s: {error}"), error
                )
                if not isinstance(error, RecordTooLarge):
                    self._take_back_start(claim)
            return True

        self._desk.commit(operations, then, failed=failed)

    def _start_again(self, order: StartOrder, inc: Incarnation) -> None:
        """What stood in the way, or was to be replaced, has changed: once more from the beginning."""
        replies = taken(inc.unstarted)
        self._leave(inc)
        self.start([order] * len(replies), replies)

    def _take_back_start(self, claim: Claim) -> None:
        """A start that was given up may have been applied, now or later: or else the next boot would run it."""
        token = claim.claim.token
        undo: list[Operation] = [Settle(token=token, status=RunStatus.STOPPED, reason="its start was given up")]
        if claim.expected is None:
            undo.append(Delete(token=token))
        self._desk.commit(undo, _whatever)

    def _started(self, inc: Incarnation) -> None:
        self._env.emit(RunStarted, inc)
        self._life.launch(inc, Source.INPUT)
        for reply in taken(inc.unstarted):
            reply.try_set(inc)

    def _not_started(self, inc: Incarnation, error: ExecutusError, cause: BaseException | None = None) -> None:
        error.__cause__ = cause
        self._leave(inc)
        for reply in taken(inc.unstarted):
            reply.try_fail(error)
        self._life.left()

    def _leave(self, inc: Incarnation) -> None:
        self._leave_table(inc)
        inc.stage = Stage.ENDED
        ending = Ending(RunStatus.STOPPED, None, "it was not started")
        error = ended_error(inc.run_id, ending)
        inc.letters.close(error)
        inc.fail_waiters(error)
        inc.ending.try_set(ending)  # for whoever wanted it to end
        self._desk.look_soon()  # a passivated run of this id may be due, and could not be taken up meanwhile

    def _leave_table(self, inc: Incarnation) -> None:
        if self._desk.table.get(inc.run_id) is inc:
            del self._desk.table[inc.run_id]

    def _start_on_live(self, order: StartOrder, reply: Promise[Incarnation], live: Incarnation) -> None:
        """The id is taken by a run of this process."""
        if live.definition is not order.definition or order.if_exists == "raise":
            status = RunStatus.PASSIVATED if live.stage is Stage.PASSIVATED else RunStatus.RUNNING
            reply.try_fail(RunExists(order.run_id, status))
        elif order.if_exists == "replace":
            again = StartRuns((order,), (reply,))
            if live.ending.done():  # reported already, and a failing store has not taken it yet
                self._desk.tell_later(RETRY_S, again)
                return
            live.ending.add_done_callback(lambda _: self._desk.tell_self(again))
            cause = KillRequested("start(if_exists='replace')", "replaced by a new run of this id")
            self._life.end_run(EndRun(live.run_id, live.incarnation, cause, Promise()))
        elif live.unstarted:
            live.unstarted.append(reply)  # its claim is under way: it starts, or fails, for both
        else:
            reply.try_set(live)

    def _start_on_stored(self, order: StartOrder, inc: Incarnation, current: RunClaim | None) -> None:
        """The id is taken by a run that the store knows and this process does not run."""
        status = RunStatus.QUARANTINED if current is None else current.status
        if current is None or order.if_exists == "raise":
            self._not_started(inc, RunExists(order.run_id, status))
            return
        if status is RunStatus.RUNNING:  # not here: it was killed or given up, and a failing store has yet to take that
            replies = taken(inc.unstarted)
            self._leave(inc)
            self._desk.tell_later(RETRY_S, StartRuns((order,) * len(replies), tuple(replies)))
            return
        if status is RunStatus.PASSIVATED and self._start_on_passivated(order, inc):
            return
        replaces = order.if_exists == "replace" or (order.if_exists == "retry_failed" and status is RunStatus.FAILED)
        if replaces and current.epoch > inc.claim.epoch:  # it was killed at rest since this start drew its epoch
            self._start_again(order, inc)
            return
        if replaces:
            self._claim_starts(
                [(inc, Claim(claim=inc.claim, expected=current.token, record=record_of(inc, order)), order)]
            )
            return
        try:
            stored = self._env.store.load(order.run_id)
            found = None if stored is None else resting_incarnation(self._env, stored)
        except ExecutusError as error:
            self._not_started(
                inc,
                StartFailed(f"run {order.run_id!r} exists and is {status.value}, but cannot be read: {error}"),
                error,
            )
            return
        if found is None:
            self._start_again(order, inc)  # deleted since it was found to be there
            return
        if found.definition is not order.definition:
            self._not_started(inc, RunExists(order.run_id, status))
            return
        self._leave(inc)
        for reply in taken(inc.unstarted):
            reply.try_set(found)
        self._life.left()

    def _start_on_passivated(self, order: StartOrder, inc: Incarnation) -> bool:
        """The id is taken by a passivated run: as by a live one. False where this code cannot tell what it is."""
        self._leave_table(inc)
        try:
            found = self._desk.dormitory.find(order.run_id, lambda: sleeping_incarnation(self._env, order.run_id))
        except ExecutusError:
            self._desk.table[order.run_id] = inc
            return False
        replies = taken(inc.unstarted)
        self._leave(inc)
        if found is None:
            self.start([order] * len(replies), replies)
        else:
            for reply in replies:
                self._start_on_live(order, reply, found)
        return True

    # --- spawned ------------------------------------------------------------------------------------------------------

    def spawn(self, message: SpawnChildren) -> None:
        """Claim the children in one commit, then let the parent's callback count as completed."""
        parent, slot = message.parent, message.parent.slot
        if slot is None or slot.closed:
            return
        orders = tuple(order for order in message.orders if not self._family.is_past(parent, order))
        if not orders:
            slot.tell_attempt(ChildrenSpawned())
            return
        left = len(orders)
        errors: list[ExecutusError] = []

        def one_done(promise: Promise[Incarnation], order: StartOrder) -> None:
            nonlocal left
            error = promise.error()
            assert order.parent is not None
            adopted = True
            if error is None:
                begun_here = parent.origin is Source.INPUT
                try:
                    adopted = self._family.adopt(parent, order.parent.key, promise.result(0), begun_here=begun_here)
                except StoreError as unread:
                    error = unread
            if not adopted:
                again: Promise[Incarnation] = Promise()
                again.add_done_callback(partial(one_done, order=order))
                self.start([msgspec.structs.replace(order, if_exists="replace")], [again])
                return
            if error is not None and not isinstance(error, ChildGone):  # nothing is owed for one that is gone
                errors.append(error if isinstance(error, ExecutusError) else StartFailed(str(error)))
            left -= 1
            if left == 0:
                slot.tell_attempt(ChildrenSpawned(errors[0] if errors else None))

        replies: list[Promise[Incarnation]] = [Promise() for _ in orders]
        for reply, order in zip(replies, orders, strict=True):
            reply.add_done_callback(partial(one_done, order=order))
        self.start(orders, replies)

    # --- resumed by hand ----------------------------------------------------------------------------------------------

    def resume(self, message: ResumeRun) -> None:
        """Bring back a stopped, failed or quarantined run."""
        run_id, reply = message.run_id, message.reply
        live = self._desk.table.get(run_id) or self._desk.dormitory.asleep(run_id)
        if self._desk.drain is not None:
            reply.try_fail(RuntimeDraining(f"run {run_id!r} was not resumed: the runtime is shutting down"))
            return
        if live is not None and live.unstarted:
            live.unstarted.append(reply)  # its claim is under way
            return
        if live is not None:
            reply.try_set(live)
            return
        try:
            sleeping = self._desk.dormitory.find(run_id, lambda: sleeping_incarnation(self._env, run_id))
            if sleeping is not None:
                reply.try_set(sleeping)
                return
            stored, record, definition = check_resumable(self._env, run_id, from_input=message.from_input)
            seq, consumed = self._reached(run_id) if message.from_input else (0, 0)
        except ExecutusError as error:
            reply.try_fail(error)
            return
        claim = next_claim(self._env, stored.claim, self._desk.epochs.draw(), strikes=0, afresh=message.from_input)
        inc = incarnation_of_record(claim, record, definition)
        self._desk.table[run_id] = inc
        inc.unstarted.append(reply)

        def then(verdicts: Verdicts) -> None:
            match verdicts[0]:
                case Accepted():
                    self._resumed(inc)
                case Refused(_, current):
                    status = "unreadable" if current is None else current.status.value
                    self._not_started(inc, NotResumable(f"run {run_id!r} is {status} and was not resumed"))

        def failed(error: ExecutusError) -> bool:
            waited_s = self._env.clock.now_s() - asked_s
            if waited_s < START_PATIENCE_S:
                return False
            self._not_started(
                inc, StartFailed(f"run {run_id!r} was not resumed, after {waited_s:.1f} s: {error}"), error
            )
            # It may have been applied: back to where it rested, or else the next boot would run it.
            rest = stored.claim
            undo = Settle(token=claim.token, status=rest.status, reason=rest.reason, ended_at_s=rest.ended_at_s)
            self._desk.commit([undo], _whatever)
            return True

        asked_s = self._env.clock.now_s()
        operations: tuple[Operation, ...] = (Claim(claim=claim, expected=stored.claim.token),)
        if message.from_input:
            operations = begin_afresh(
                claim,
                stored.claim.token,
                seq=seq,
                schema_version=definition.schema_version,
                consumed_through=consumed,
            )
        self._desk.commit(operations, then, failed=failed)

    def _reached(self, run_id: str) -> tuple[int, int]:
        """The seq that a run at rest had got to, and the last durable message that it had consumed.

        Both 0 where no generation of its state can be read. Raises StoreError.
        """
        try:
            loaded = self._env.store.load_snapshot(run_id)
        except RecordCorrupt:
            return 0, 0
        return (0, 0) if loaded is None else (loaded.snapshot.seq, loaded.snapshot.consumed)

    def _resumed(self, inc: Incarnation) -> None:
        """The claim is committed: now load and go on."""
        self._env.emit(RunResumed, inc, strikes=inc.claim.strikes)
        self.load(inc)
        for reply in taken(inc.unstarted):
            reply.try_set(inc)

    def load(self, inc: Incarnation) -> None:
        """Launch a run from the store, with what is owed to it of its children's ends and of durable messages."""
        try:
            self._family.find(inc)
            self._deliveries.load(inc)
        except (NotRegistered, ResultUnreadable) as error:
            facts = ExitEvidence(phase=Phase.STARTING, incompatible=f"of a child: {error}", causes=tuple(inc.causes))
            self._life.exited(inc, facts, None)
        except StoreError as error:
            inc.origin = Source.STORE
            self._life.exited(
                inc, ExitEvidence(phase=Phase.STARTING, error=ErrorInfo.of(error), causes=tuple(inc.causes)), None
            )
        else:
            self._life.launch(inc, Source.STORE)

    # --- found at boot ------------------------------------------------------------------------------------------------

    def recover(self, recovered: Callable[[], None]) -> None:
        """Plan for every live run of the store, claim what comes back, set aside what cannot. Raises StoreError.

        `recovered` is called when all that is committed; or, so that nobody waits for a store that has just broken, at
        the first failure or after START_PATIENCE_S. The commits are tried on.
        """
        store, resumed, parked = self._env.store, 0, 0
        quarantined = len(store.damaged())
        batches: list[list[tuple[Incarnation | None, Operation]]] = []
        batch: list[tuple[Incarnation | None, Operation]] = []
        for claim in store.live():
            stored = store.load(claim.run_id)
            if stored is None:
                continue
            facts = boot_facts(self._env, stored)
            match plan(facts):
                case Resume() as comes_back:
                    resumed += 1
                    inc, operation = self._comes_back(stored, comes_back, facts)
                    if comes_back.suspect and operation.claim.status is RunStatus.RUNNING:
                        self.suspects.hold(inc, operation)
                    else:
                        batch.append((inc, operation))
                case SetAsideAs(status, reason):
                    parked += status is RunStatus.PARKED
                    quarantined += status is RunStatus.QUARANTINED
                    self._tell_set_aside(stored, status, reason)
                    if (claim.status, claim.reason) != (status, reason):
                        batch.append((None, self._set_aside(stored, facts, status, reason)))
            if len(batch) == RECOVERY_BATCH:
                batches.append(batch)
                batch = []
        if batch:
            batches.append(batch)
        self._env.events.emit(
            RuntimeOpened(boot_epoch=store.boot_epoch, resumed=resumed, parked=parked, quarantined=quarantined)
        )
        self._claim_recovered(batches, recovered)
        self.suspects.admit()
        self._desk.look_soon()  # passivated runs are not loaded; whose time has come are activated beside the others

    def _comes_back(self, stored: StoredRun, planned: Resume, facts: BootFacts) -> tuple[Incarnation, Claim]:
        record = stored.record
        definition = None if record is None else self._env.registry.named(record.run_type)
        assert record is not None  # plan() resumes nothing else
        assert definition is not None
        claim = next_claim(self._env, stored.claim, self._desk.epochs.draw(), strikes=planned.strikes)
        outcome = None
        kin: tuple[str, ...] = ()
        cause = None if planned.orphaned is None else parent_ended(planned.orphaned)
        if isinstance(cause, KillRequested):  # its tombstone is its claim: it never runs again
            claim = ending_claim(claim, claim.epoch, self._env.clock.wall_s(), RunStatus.KILLED, cause.reason)
            outcome, kin = encode_outcome(Killed(cause.by, cause.reason)), stored_kin(self._env, stored)
        inc = incarnation_of_record(claim, record, definition)
        self._desk.table[claim.run_id] = inc
        if cause is not None:
            inc.causes.append(cause)
        flight = None
        if planned.strikes > stored.claim.strikes:
            inc.flight = ring_of_dead(self._env, facts)
            flight = flight_of_dead(self._env, inc.flight, facts, claim.status)
        return inc, Claim(claim=claim, expected=stored.claim.token, outcome=outcome, flight=flight, rouses=kin)

    def _set_aside(self, stored: StoredRun, facts: BootFacts, status: RunStatus, reason: str) -> SetAside:
        claim, flight = stored.claim, None
        if claim.status is RunStatus.RUNNING:
            flight = flight_of_dead(self._env, ring_of_dead(self._env, facts), facts, status)
        return SetAside(
            expected=claim.token,
            status=status,
            reason=reason,
            at_s=self._env.clock.wall_s(),
            flight=flight,
            rouses=stored_kin(self._env, stored),
        )

    def _killed_with_its_parent(self, inc: Incarnation) -> None:
        with suppress(ExecutusError):  # what cannot be read now is found orphaned at the next boot
            self._family.find(inc)
        self._life.lost(inc, inc.claim)

    def _tell_set_aside(self, stored: StoredRun, status: RunStatus, reason: str) -> None:
        claim = stored.claim
        self._env.events.emit(
            RunSettled(
                run_id=claim.run_id,
                run_type="?" if stored.record is None else stored.record.run_type,
                attempt=claim.attempt,
                epoch=claim.epoch,
                status=status,
                reason=reason,
                seq=0,
                durable=True,
            )
        )

    def _claim_recovered(
        self, batches: list[list[tuple[Incarnation | None, Operation]]], recovered: Callable[[], None]
    ) -> None:
        if not batches:
            recovered()
            return
        patience = self._env.timers.call_at(self._env.clock.now_s() + START_PATIENCE_S, recovered)
        left = len(batches)

        def one(inc: Incarnation, verdict: Verdict) -> None:
            match verdict:
                case Accepted() if inc.claim.status is RunStatus.RUNNING:
                    self._resumed(inc)
                case Accepted() if inc.claim.status is RunStatus.SUSPENDED:
                    self._life.lost(inc, inc.claim)
                case Accepted():
                    self._killed_with_its_parent(inc)
                case Refused(_, current):
                    self._life.lost(inc, current)

        def then(batch: list[tuple[Incarnation | None, Operation]], verdicts: Verdicts) -> None:
            nonlocal left
            for (inc, _), verdict in zip(batch, verdicts, strict=True):
                if inc is not None and inc.stage is Stage.CLAIMING:
                    one(inc, verdict)
            left -= 1
            if left == 0:
                patience.cancel()
                recovered()

        def failed(_error: ExecutusError) -> bool:
            recovered()
            return False

        for batch in batches:
            self._desk.commit([operation for _, operation in batch], partial(then, batch), failed=failed)


def _at_once() -> None:
    """Nobody waits for suspects: opening returns without them."""


def _whatever(_verdicts: Verdicts) -> None:
    """Refused where it was never applied; either way it is undone."""
