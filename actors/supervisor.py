"""The run supervisor: the table of live runs. Starts them, classifies their exits, restarts, settles, drains."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, assert_never

import msgspec

from executus.actors.actor import Actor, ActorRef
from executus.actors.boot import BootFacts, Resume, SetAsideAs, plan
from executus.actors.definition import RunDefinition
from executus.actors.environment import Environment, EpochCounter
from executus.actors.errors import (
    ActorError,
    NotResumable,
    RunExists,
    RunNotFound,
    RuntimeDraining,
    StartFailed,
)
from executus.actors.events import (
    RunExited,
    RunHung,
    RunRestarting,
    RunResumed,
    RunSettled,
    RunStarted,
    RuntimeOpened,
    RunUnstopped,
)
from executus.actors.events import RuntimeDraining as DrainBegan
from executus.actors.future import Promise
from executus.actors.incarnation import Ending, Incarnation, Letter, Stage, ended_error, tell_if_alive
from executus.actors.messages import (
    PROCEED,
    AttemptExited,
    CancelCallback,
    ChildrenSpawned,
    Commit,
    CommitFailed,
    Committed,
    DrainRuns,
    EndRun,
    Interrupted,
    OfferSave,
    ResumeRun,
    RetryCommit,
    SpawnChildren,
    StartOrder,
    StartRuns,
    StoreRestarted,
    SweepIdle,
    TimerElapsed,
)
from executus.actors.outcomes import (
    CancelRequested,
    Cause,
    Completed,
    Crashed,
    DrainRequested,
    ErrorInfo,
    Exit,
    ExitEvidence,
    Killed,
    KillRequested,
    Outcome,
    Phase,
    RunTimeoutElapsed,
    classify,
    decode_outcome,
    encode_outcome,
)
from executus.actors.policies import Policies, Restart, decide
from executus.actors.policies import Settle as SettleAs
from executus.actors.run import ChildEnded, Waiting, remaining
from executus.actors.run_actor import AsyncRunActor, RunActor, Source
from executus.actors.save_slot import Published, SaveSlot, StorePort
from executus.stores import (
    ENDED,
    RESUMABLE,
    Accepted,
    Claim,
    ExecutusError,
    Operation,
    ParentLink,
    RecordCorrupt,
    Refusal,
    Refused,
    RunClaim,
    RunRecord,
    RunStatus,
    SetAside,
    Settle,
    StoredRun,
    Verdict,
)

RETRY_S: Final = 0.2
START_PATIENCE_S: Final = 5.0
"""`start` waits so long for a failing store, then raises."""
RECOVERY_BATCH: Final = 256
SWEEP_MIN_S: Final = 0.05


class DrainReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a drain left: how many runs were suspended, which did not return in time, which could not be saved."""

    suspended: int
    unstopped: tuple[str, ...]
    unsaved: tuple[str, ...]
    took_s: float


class _Pending:
    """A commit under way, kept so that it can be sent again."""

    __slots__ = ("asked_at_s", "failed", "final", "operations", "then")

    def __init__(
        self,
        operations: tuple[Operation, ...],
        then: Callable[[tuple[Verdict, ...]], None],
        failed: Callable[[ExecutusError], bool] | None,
        final: SaveSlot | None,
        asked_at_s: float,
    ) -> None:
        self.operations = operations
        self.then = then
        self.failed = failed
        self.final = final
        self.asked_at_s = asked_at_s


class RunSupervisor(Actor):
    """Owns the incarnations of one runtime. One message at a time, so that its table needs no lock.

    `table` is read by other threads, one `get` at a time: they see an entry or none, and every entry is complete when it goes in.
    """

    def __init__(self, env: Environment, port: StorePort, table: dict[str, Incarnation], ready: Promise[None]) -> None:
        super().__init__()
        self.env = env
        self.port = port
        self.table = table
        self.epochs = EpochCounter(env.store.boot_epoch)
        self._ready = ready
        self._pending: dict[int, _Pending] = {}
        self._tags = itertools.count(1)
        self._timers: dict[tuple[str, str, int], Any] = {}
        self._drain: DrainRuns | None = None
        self._drain_began_s = 0.0
        self._suspended = 0
        self._unstopped: list[str] = []
        self._sweep_every_s: float | None = None
        self._damaged: tuple[str, ...] = ()
        self._endings: dict[Incarnation, Ending] = {}

    def on_start(self) -> None:
        """Find what the last process left, before any other message."""
        self._recover()
        self._ready.try_set(None)

    def on_receive(self, message: object) -> None:
        """Every message is handled to its end here; what takes time comes back as another message."""
        match message:
            case AttemptExited():
                self._attempt_exited(message)
            case Committed(tag, verdicts):
                pending = self._pending.pop(tag, None)  # type: ignore[call-overload]
                if pending is not None:
                    pending.then(verdicts)
            case CommitFailed(tag, error):
                self._commit_failed(tag, error)  # type: ignore[arg-type]
            case StartRuns(orders, replies):
                self._start_runs(orders, replies)
            case SpawnChildren(parent, orders):
                self._spawn(parent, orders)
            case EndRun():
                self._end_run(message)
            case ResumeRun(run_id, from_input, reply):
                self._resume(run_id, from_input, reply)
            case TimerElapsed(kind, token):
                self._timer_elapsed(kind, token)
            case RetryCommit(tag):
                self._send(tag)  # type: ignore[arg-type]
            case SweepIdle():
                self._sweep()
            case StoreRestarted():
                self._store_restarted()
            case DrainRuns():
                self._begin_drain(message)
            case _DrainDeadline():
                self._drained()
            case _:
                msg = f"the run supervisor does not know {type(message).__name__}"
                raise TypeError(msg)

    # --- commits ------------------------------------------------------------------------------------------------------

    def _commit(
        self,
        operations: Sequence[Operation],
        then: Callable[[tuple[Verdict, ...]], None],
        *,
        failed: Callable[[ExecutusError], bool] | None = None,
        final: SaveSlot | None = None,
    ) -> None:
        """Have the store actor commit; `then` gets the verdicts. `failed` says whether a failure is final; else it is tried again."""
        tag = next(self._tags)
        self._pending[tag] = _Pending(tuple(operations), then, failed, final, self.env.clock.now_s())
        self._send(tag)

    def _send(self, tag: int) -> None:
        pending = self._pending.get(tag)
        if pending is not None:
            self.port.tell(Commit(tag, pending.operations, pending.final))

    def _commit_failed(self, tag: int, error: ExecutusError) -> None:
        pending = self._pending.get(tag)
        if pending is None:
            return
        if pending.failed is not None and pending.failed(error):
            del self._pending[tag]
            return
        self._tell_later(RETRY_S, RetryCommit(tag))

    def _store_restarted(self) -> None:
        for tag in list(self._pending):
            self._send(tag)
        for inc in self.table.values():
            if inc.slot is not None:
                inc.slot.offer_again()

    def _tell_later(self, delay_s: float, message: object) -> Any:
        ref = self.actor_ref
        return self.env.timers.call_at(self.env.clock.now_s() + delay_s, lambda: tell_if_alive(ref, message))

    # --- starting -----------------------------------------------------------------------------------------------------

    def _start_runs(self, orders: Sequence[StartOrder], replies: Sequence[Promise[Incarnation]]) -> None:
        claims: list[tuple[Incarnation, Claim, StartOrder]] = []
        for order, reply in zip(orders, replies, strict=True):
            if self._drain is not None:
                reply.try_fail(RuntimeDraining(f"run {order.run_id!r} was not started: the runtime is shutting down"))
                continue
            live = self.table.get(order.run_id)
            if live is not None:
                self._start_on_live(order, reply, live)
                continue
            inc = self._incarnate(order)
            inc.unstarted.append(reply)
            if inc.durable:
                claims.append((inc, Claim(claim=inc.claim, expected=None, record=_record(inc, order)), order))
            else:
                self._started(inc)
        self._claim_starts(claims)

    def _claim_starts(self, claims: list[tuple[Incarnation, Claim, StartOrder]]) -> None:
        if not claims:
            return
        asked_s = self.env.clock.now_s()

        def then(verdicts: tuple[Verdict, ...]) -> None:
            for (inc, _, order), verdict in zip(claims, verdicts, strict=True):
                self._start_verdict(inc, order, verdict)

        def failed(error: ExecutusError) -> bool:
            if self.env.clock.now_s() - asked_s < START_PATIENCE_S and not _is_final(error):
                return False
            for inc, _, _ in claims:
                self._not_started(inc, StartFailed(f"run {inc.run_id!r} was not started: {error}"), error)
            return True

        self._commit([claim for _, claim, _ in claims], then, failed=failed)

    def _start_verdict(self, inc: Incarnation, order: StartOrder, verdict: Verdict) -> None:
        match verdict:
            case Accepted():
                self._started(inc)
            case Refused(_, current):
                self._start_on_stored(order, inc, current)

    def _started(self, inc: Incarnation) -> None:
        self.env.events.emit(RunStarted(**_about(inc)))
        self._launch(inc, Source.INPUT, None)
        for reply in _taken(inc.unstarted):
            reply.try_set(inc)

    def _not_started(self, inc: Incarnation, error: ExecutusError, cause: BaseException | None = None) -> None:
        error.__cause__ = cause
        if self.table.get(inc.run_id) is inc:
            del self.table[inc.run_id]
        inc.stage = Stage.ENDED
        for reply in _taken(inc.unstarted):
            reply.try_fail(error)
        self._drained_yet()

    def _start_on_live(self, order: StartOrder, reply: Promise[Incarnation], live: Incarnation) -> None:
        """The id is taken by a run of this process."""
        if live.definition is not order.definition or order.if_exists == "raise":
            reply.try_fail(RunExists(order.run_id, RunStatus.RUNNING))
        elif order.if_exists == "replace":
            again = StartRuns((order,), (reply,))
            ref = self.actor_ref
            live.ending.add_done_callback(lambda _: tell_if_alive(ref, again))
            self._end_run(EndRun(live.run_id, live.incarnation, KillRequested("start(if_exists='replace')", "replaced"), Promise()))
        elif live.stage is Stage.CLAIMING and live.unstarted:
            live.unstarted.append(reply)
        else:
            reply.try_set(live)

    def _start_on_stored(self, order: StartOrder, inc: Incarnation, current: RunClaim | None) -> None:
        """The id is taken by a run that the store knows and this process does not run."""
        if current is None or order.if_exists == "raise":
            self._not_started(inc, RunExists(order.run_id, RunStatus.QUARANTINED if current is None else current.status))
            return
        stored = self.env.store.load(order.run_id)
        same_type = stored is not None and stored.record is not None and self.env.registry.named(stored.record.run_type) is order.definition
        anew = order.if_exists == "replace" or (order.if_exists == "retry_failed" and current.status is RunStatus.FAILED)
        if anew:
            self._claim_starts([(inc, Claim(claim=inc.claim, expected=current.token, record=_record(inc, order)), order)])
        elif stored is None or not same_type:
            self._not_started(inc, RunExists(order.run_id, current.status))
        else:
            found = self.ended_from_store(stored)
            replies = _taken(inc.unstarted)
            del self.table[order.run_id]
            inc.stage = Stage.ENDED
            for reply in replies:
                reply.try_set(found)
            self._drained_yet()

    def _incarnate(self, order: StartOrder) -> Incarnation:
        """A new life in the table, its claim not committed yet."""
        epoch = self.epochs.draw()
        now_wall_s = self.env.clock.wall_s()
        timeout_s = order.policies.stop.run_timeout_s
        claim = RunClaim(
            run_id=order.run_id,
            incarnation=epoch,
            epoch=epoch,
            attempt=1,
            status=RunStatus.RUNNING,
            claimed_at_s=now_wall_s,
            deadline_at_s=None if timeout_s is None else now_wall_s + timeout_s,
            remaining_s=timeout_s,
        )
        inc = Incarnation(
            definition=order.definition,
            claim=claim,
            policies=order.policies,
            options=order.options,
            labels=order.labels,
            created_at_s=now_wall_s,
            root_run_id=order.root_run_id or order.run_id,
            parent=order.parent,
            input=order.input,
        )
        self.table[order.run_id] = inc
        return inc

    def _launch(self, inc: Incarnation, source: Source, before: SaveSlot | None) -> None:
        """Start the actor of a new attempt. What it begins from is in the store, or in the slot of the attempt before."""
        if source is Source.MEMORY and (before is None or before.published is None):
            source = inc.origin  # it never got as far as a state; one that is in the store must not be passed over
        elif source is not Source.MEMORY:
            inc.origin = source
        slot = SaveSlot(
            inc.definition,
            inc.claim,
            inc.policies.save,
            self.port,
            durable_seq=inc.restored_seq if before is None else before.durable_seq,
            durable_waiters=inc.durable_waiters,
        )
        if before is not None and source is Source.MEMORY:
            # The newest state goes on under the new epoch, with the due time that it had.
            slot.published, slot.saved_at_s, slot.saved_seq = before.published, before.saved_at_s, before.saved_seq
            slot.claim = before.claim
        if inc.policies.save.durability in {"exit", "none"}:
            slot.dirty = True  # nothing is ever offered: "exit" is saved with the ending, "none" never
        inc.slot = slot
        inc.stage = Stage.RUNNING
        inc.phase = Phase.STARTING
        inc.idle = False
        inc.heartbeat_s = None
        inc.cut = False
        inc.attempt_started_s = self.env.clock.now_s()
        actor_class = AsyncRunActor if inc.definition.async_callbacks else RunActor
        home = self.env.async_home if inc.definition.async_callbacks else self.env.workers
        try:
            ref: ActorRef[Any] = actor_class.start_on(home, self.env, inc, slot, source, self._hear)
        except (ActorError, RuntimeError, OSError) as error:
            self._exited(inc, ExitEvidence(phase=Phase.STARTING, error=ErrorInfo.of(error), causes=tuple(inc.causes)), None)
            return
        inc.attempt_ref = ref
        slot.attempt_tell = partial(tell_if_alive, ref, control=True)
        tell_if_alive(ref, PROCEED)
        if slot.published is not None and not slot.dirty:
            slot.dirty = True
            self.port.tell(OfferSave(slot))
        self._arm_run_timeout(inc)
        self._watch_idle(inc)
        if inc.causes:
            self._arm_grace(inc)

    def _hear(self, message: object) -> None:
        """The way by which attempts tell us; safe on any thread."""
        tell_if_alive(self.actor_ref, message)

    # --- exits --------------------------------------------------------------------------------------------------------

    def _attempt_exited(self, report: AttemptExited) -> None:
        inc = self.table.get(report.token.run_id)
        if inc is None or inc.slot is None or inc.slot.token != report.token or inc.stage is not Stage.RUNNING:
            return  # a report about an attempt that is no longer the current one changes nothing
        self._exited(inc, report.evidence, report.result)

    def _exited(self, inc: Incarnation, evidence: ExitEvidence, result: bytes | None) -> None:
        """An attempt has ended: classify, decide, and follow the decision."""
        self._cancel_timers(inc, "grace", "run_timeout")
        inc.attempt_ref, inc.heartbeat_s = None, None
        if inc.slot is not None:
            published = inc.slot.close()
            inc.restored_seq = inc.restored_seq if published is None else published.seq
        now_s = self.env.clock.now_s()
        exit_ = classify(evidence)
        if isinstance(exit_, Crashed):
            inc.last_error = exit_.error
            self.env.events.emit(RunExited(**_about(inc), error=exit_.error, phase=exit_.phase, seq=inc.restored_seq))
        if isinstance(exit_, Killed):
            self._finish(inc, Ending(RunStatus.KILLED, exit_, exit_.reason))
            return
        match decide(exit_, inc.policies.restart, inc.history, now_s):
            case Restart() as restart:
                self._back_off(inc, restart, now_s, result)
            case SettleAs(status, outcome):
                self._settle(inc, status, outcome, _reason(exit_), result)

    def _back_off(self, inc: Incarnation, restart: Restart, now_s: float, result: bytes | None) -> None:
        inc.history = inc.history.restarted(inc.policies.restart, now_s)
        delay_s = inc.policies.restart.backoff.delay_s(restart.restarts, self.env.rng.random())
        inc.stage = Stage.BACKING_OFF
        self.env.events.emit(
            RunRestarting(**_about(inc), delay_s=delay_s, resumed_from_seq=0 if restart.afresh else inc.restored_seq, afresh=restart.afresh)
        )
        if restart.afresh:
            inc.restored_seq = 0 if inc.slot is None else max(inc.restored_seq, inc.slot.durable_seq) + 1
            if inc.slot is not None:
                inc.slot.published = None
            self._claim_afresh(inc, result)
        self._arm(inc, "backoff", delay_s)

    def _claim_afresh(self, inc: Incarnation, result: bytes | None) -> None:
        """One commit keeps the result, drops the snapshot and claims the next round."""
        before = inc.claim
        claim = self._next_claim(inc)
        if not inc.durable:
            inc.claim = claim
            return

        def then(verdicts: tuple[Verdict, ...]) -> None:
            if isinstance(verdicts[0], Refused):
                self._lost(inc, verdicts[0].current)

        inc.claim = claim
        self._commit([Claim(claim=claim, expected=before.token, outcome=result, drop_snapshots=True)], then)

    def _backed_off(self, inc: Incarnation) -> None:
        """The delay is over: claim and go on from memory. A failing store does not hold it up; its claim then goes in with the next save."""
        before = inc.slot
        if before is None:
            return
        if before.published is None and inc.claim.token != before.token:
            inc.stage = Stage.CLAIMING  # claimed afresh already
            self._launch(inc, Source.INPUT, None)
            return
        held = inc.claim.token if before.claim is None else before.claim.expected
        inc.stage = Stage.CLAIMING
        claim = self._next_claim(inc)
        if not inc.durable:
            inc.claim = claim
            self._launch(inc, Source.MEMORY, before)
            return
        operation = Claim(claim=claim, expected=held)

        def then(verdicts: tuple[Verdict, ...]) -> None:
            if inc.stage is not Stage.CLAIMING:
                return
            match verdicts[0]:
                case Accepted():
                    inc.claim = claim
                    before.claim = None
                    self._launch(inc, Source.MEMORY, before)
                case Refused(_, current):
                    self._lost(inc, current)

        def failed(_error: ExecutusError) -> bool:
            if inc.stage is Stage.CLAIMING:
                inc.claim = claim
                before.claim = operation
                self._launch(inc, Source.MEMORY, before)
            return True

        self._commit([operation], then, failed=failed)

    def _next_claim(self, inc: Incarnation) -> RunClaim:
        """The claim of the next attempt. The deadline stays: it is never refreshed."""
        wall_s = self.env.clock.wall_s()
        return msgspec.structs.replace(
            inc.claim,
            epoch=self.epochs.draw(),
            attempt=inc.claim.attempt + 1,
            status=RunStatus.RUNNING,
            reason="",
            claimed_at_s=wall_s,
            ended_at_s=None,
            remaining_s=remaining(inc.claim.deadline_at_s, inc.claim.remaining_s, wall_s),
        )

    def _lost(self, inc: Incarnation, current: RunClaim | None) -> None:
        """The store holds another claim or ending for this run: that one stands."""
        if inc.stage is Stage.ENDED:
            return
        status = RunStatus.SUSPENDED if current is None or current.status is RunStatus.RUNNING else current.status
        self._finish(inc, Ending(status, self._stored_outcome(inc, status), "" if current is None else current.reason))

    def _stored_outcome(self, inc: Incarnation, status: RunStatus) -> Outcome | None:
        if status not in ENDED and status is not RunStatus.QUARANTINED:
            return None
        data = self.env.store.load_outcome(inc.run_id)
        return None if data is None else decode_outcome(data, inc.definition.result_type)

    # --- settling -----------------------------------------------------------------------------------------------------

    def _settle(self, inc: Incarnation, status: RunStatus, outcome: Outcome | None, reason: str, result: bytes | None) -> None:
        """Commit the ending; waiters hear of it when it is durable, or after the grace without that."""
        self._cancel_timers(inc, "backoff", "grace", "run_timeout")
        inc.stage = Stage.SETTLING
        ending = Ending(status, outcome, reason)
        if not inc.durable:
            self._finish(inc, ending)
            return
        operation: Operation
        if status in {RunStatus.PARKED, RunStatus.QUARANTINED}:
            operation = SetAside(expected=inc.claim.token, status=status, reason=reason)
        else:
            data = result if result is not None else None if outcome is None else encode_outcome(outcome)
            operation = Settle(token=inc.claim.token, status=status, reason=reason, outcome=data, ended_at_s=self.env.clock.wall_s())

        def then(verdicts: tuple[Verdict, ...]) -> None:
            match verdicts[0]:
                case Accepted():
                    self._finish(inc, ending)
                case Refused(_, current):
                    self._lost(inc, current)

        def failed(_error: ExecutusError) -> bool:
            if outcome is not None:
                self._arm(inc, "result_grace", inc.policies.stop.result_grace_s, once=True)
            return False

        self._endings[inc] = ending
        self._commit([operation], then, failed=failed, final=inc.slot)

    def _result_grace_over(self, inc: Incarnation) -> None:
        """The store has not taken the ending in time: report it as not durable; its commit is still being retried."""
        ending = self._endings.get(inc)
        if ending is not None and isinstance(ending.outcome, Completed):
            ending = Ending(ending.status, Completed(ending.outcome.result, durable=False), ending.reason)
        if ending is not None:
            inc.ending.try_set(ending)
            self.env.events.emit(RunSettled(**_about(inc), status=ending.status, reason=ending.reason, seq=inc.restored_seq, durable=False))

    def _finish(self, inc: Incarnation, ending: Ending) -> None:
        """The incarnation has ended or rests: everybody who waits is told, and the id is free for what `if_exists` allows."""
        if inc.stage is Stage.ENDED:
            return
        inc.stage = Stage.ENDED
        self._endings.pop(inc, None)
        self._cancel_timers(inc, "backoff", "grace", "run_timeout", "result_grace")
        if inc.slot is not None:
            inc.slot.close()
        if self.table.get(inc.run_id) is inc:
            del self.table[inc.run_id]
        if ending.status is RunStatus.SUSPENDED:
            self._suspended += 1
        reported = inc.ending.done()
        error = ended_error(inc.run_id, ending)
        inc.letters.close(error)
        inc.fail_waiters(error)
        inc.run = None
        if not reported:
            self.env.events.emit(RunSettled(**_about(inc), status=ending.status, reason=ending.reason, seq=inc.restored_seq, durable=inc.durable))
        for reply in _taken(inc.unstarted):
            reply.try_set(inc)
        if ending.outcome is not None:
            self._tell_parent(inc, ending.outcome)
            self._end_children(inc)
        inc.ending.try_set(ending)
        self._drained_yet()

    # --- children -----------------------------------------------------------------------------------------------------

    def _spawn(self, parent: Incarnation, orders: Sequence[StartOrder]) -> None:
        """Claim the children in one commit, then let the parent's callback count as completed."""
        slot = parent.slot
        if slot is None or slot.closed:
            return
        replies = [Promise[Incarnation]() for _ in orders]
        left = len(orders)
        errors: list[ExecutusError] = []

        def one_done(promise: Promise[Incarnation], order: StartOrder) -> None:
            nonlocal left
            error = promise.error()
            if error is None and not self._adopted(parent, order, promise.result(0)):
                start(msgspec.structs.replace(order, if_exists="replace"), Promise())
                return
            if error is not None:
                errors.append(error if isinstance(error, ExecutusError) else StartFailed(str(error)))
            left -= 1
            if left == 0 and slot.attempt_tell is not None:
                slot.attempt_tell(ChildrenSpawned(errors[0] if errors else None))

        def start(order: StartOrder, reply: Promise[Incarnation]) -> None:
            reply.add_done_callback(partial(one_done, order=order))
            self._start_runs([order], [reply])

        for reply, order in zip(replies, orders, strict=True):
            reply.add_done_callback(partial(one_done, order=order))
        self._start_runs(orders, replies)

    def _adopted(self, parent: Incarnation, order: StartOrder, child: Incarnation) -> bool:
        """Note the child with its parent. False when its id is held by an earlier life's child or by a run that is nobody's."""
        assert order.parent is not None
        if child.parent is None or (child.parent.run_id, child.parent.incarnation) != (parent.run_id, parent.incarnation):
            return False
        parent.children[order.parent.key] = child.run_id
        if child.ending.done():
            ending = child.ending.result(0)
            if ending.outcome is not None:
                self._deliver_child_end(parent, order.parent.key, child.run_id, ending.outcome)
        return True

    def _tell_parent(self, child: Incarnation, outcome: Outcome) -> None:
        link = child.parent
        if link is None:
            return
        parent = self.table.get(link.run_id)
        if parent is not None and parent.incarnation == link.incarnation:
            self._deliver_child_end(parent, link.key, child.run_id, outcome)

    def _deliver_child_end(self, parent: Incarnation, key: str, child_run_id: str, outcome: Outcome) -> None:
        """Put ChildEnded into the parent's mailbox, once: the same end may be derived from here and from the store."""
        if parent.letters.holds_child(child_run_id):
            return
        try:
            parent.put(Letter(ChildEnded(key, child_run_id, outcome), own=True))
        except ExecutusError:
            return  # the parent has ended meanwhile; nobody is left to tell

    def _end_children(self, parent: Incarnation) -> None:
        """The parent has ended for good: its children end as they were told to."""
        for child_run_id in list(parent.children.values()):
            child = self.table.get(child_run_id)
            link = None if child is None else child.parent
            if child is None or link is None or (link.run_id, link.incarnation) != (parent.run_id, parent.incarnation):
                continue
            by = f"parent {parent.run_id!r}"
            cause: Cause = KillRequested(by, "its parent ended") if link.on_parent_end == "kill" else CancelRequested(by, "its parent ended")
            self._end_run(EndRun(child.run_id, child.incarnation, cause, Promise()))

    def _find_children(self, inc: Incarnation) -> None:
        """Derive from the store which children a resumed parent has, and which ends it has not taken in yet."""
        for child_run_id, link in self.env.store.children(inc.run_id):
            if link.incarnation != inc.incarnation:
                continue
            inc.children[link.key] = child_run_id
            stored = self.env.store.load(child_run_id)
            if stored is None or child_run_id in self.table or stored.record is None:
                continue
            ended = self.ended_from_store(stored).ending.result(0)
            if ended.outcome is not None:
                self._deliver_child_end(inc, link.key, child_run_id, ended.outcome)

    # --- ending from outside ------------------------------------------------------------------------------------------

    def _end_run(self, order: EndRun) -> None:
        inc = self.table.get(order.run_id)
        if inc is None or inc.incarnation != order.incarnation:
            self._end_resting(order)
            return
        inc.ending.add_done_callback(lambda _: order.reply.try_set(None))
        if isinstance(order.cause, KillRequested):
            self._kill(inc, order.cause)
        else:
            self._interrupt(inc, order.cause)

    def _interrupt(self, inc: Incarnation, cause: Cause) -> None:
        """Record why it shall end, and ask it to. A run that is not running settles at once."""
        inc.causes.append(cause)
        inc.interrupted.try_set(None)
        match inc.stage:
            case Stage.RUNNING:
                if inc.attempt_ref is not None:
                    tell_if_alive(inc.attempt_ref, Interrupted(), control=True)
                self._arm_grace(inc)
            case Stage.BACKING_OFF:
                self._exited(inc, ExitEvidence(phase=Phase.WAITING, causes=tuple(inc.causes)), None)
            case Stage.CLAIMING | Stage.SETTLING | Stage.ENDED:
                pass  # a claim that comes through is launched and sees the cause; the others end already
            case _:
                assert_never(inc.stage)

    def _kill(self, inc: Incarnation, cause: KillRequested) -> None:
        """Commit the tombstone, then signal: no reboot resurrects it, and whatever it still writes is refused."""
        if any(isinstance(c, KillRequested) for c in inc.causes) or inc.stage is Stage.ENDED:
            return
        if not inc.durable:
            self._signal_kill(inc, cause)
            return
        outcome = Killed(cause.by, cause.reason)
        tombstone = msgspec.structs.replace(
            self._next_claim(inc), attempt=inc.claim.attempt, status=RunStatus.KILLED, reason=cause.reason, ended_at_s=self.env.clock.wall_s()
        )
        expected = inc.claim.token
        if inc.slot is not None and inc.slot.claim is not None and inc.slot.claim.expected is not None:
            expected = inc.slot.claim.expected

        def then(verdicts: tuple[Verdict, ...]) -> None:
            if inc.stage is Stage.ENDED:
                return
            match verdicts[0]:
                case Accepted():
                    self._signal_kill(inc, cause)
                case Refused(Refusal.FENCED, current) if current is not None and current.token != expected and inc.claim.token == current.token:
                    self._kill(inc, cause)  # it was restarted meanwhile, under a newer claim
                case Refused():
                    pass  # it ended by itself first: that ending stands

        asked_s = self.env.clock.now_s()

        def failed(_error: ExecutusError) -> bool:
            if self.env.clock.now_s() - asked_s >= inc.policies.stop.grace_s and inc.stage is not Stage.ENDED:
                self._signal_kill(inc, cause)  # fenced in memory; the tombstone is still being retried
            return False

        self._commit([Claim(claim=tombstone, expected=expected, outcome=encode_outcome(outcome))], then, failed=failed)

    def _signal_kill(self, inc: Incarnation, cause: KillRequested) -> None:
        if any(isinstance(c, KillRequested) for c in inc.causes):
            return
        inc.causes.append(cause)
        if inc.slot is not None:
            inc.slot.close()
        inc.interrupted.try_set(None)
        if inc.stage is Stage.RUNNING and inc.attempt_ref is not None:
            tell_if_alive(inc.attempt_ref, Interrupted(), control=True)
            self._arm_grace(inc)
        else:
            self._finish(inc, Ending(RunStatus.KILLED, Killed(cause.by, cause.reason), cause.reason))

    def _end_resting(self, order: EndRun) -> None:
        """Kill or cancel a run that is stopped, suspended or parked: only the store has to know."""
        stored = self.env.store.load(order.run_id)
        if stored is None or stored.claim.incarnation != order.incarnation or stored.claim.status in ENDED:
            order.reply.try_set(None)
            return
        match order.cause:
            case KillRequested(by, reason):
                status, outcome = RunStatus.KILLED, encode_outcome(Killed(by, reason))
            case CancelRequested(by, reason):
                from executus.actors.outcomes import Cancelled  # noqa: PLC0415

                status, outcome = RunStatus.CANCELLED, encode_outcome(Cancelled(by, reason))
            case _:
                order.reply.try_set(None)
                return
        claim = msgspec.structs.replace(
            stored.claim, epoch=self.epochs.draw(), status=status, reason=reason, ended_at_s=self.env.clock.wall_s()
        )

        def then(_verdicts: tuple[Verdict, ...]) -> None:
            order.reply.try_set(None)

        self._commit([Claim(claim=claim, expected=stored.claim.token, outcome=outcome)], then)

    # --- timers -------------------------------------------------------------------------------------------------------

    def _arm(self, inc: Incarnation, kind: Any, delay_s: float, *, once: bool = False) -> None:
        key = (kind, inc.run_id, inc.incarnation)
        if key in self._timers:
            if once:
                return
            self._timers[key].cancel()
        self._timers[key] = self._tell_later(delay_s, TimerElapsed(kind, inc.claim.token))

    def _cancel_timers(self, inc: Incarnation, *kinds: str) -> None:
        for kind in kinds:
            timer = self._timers.pop((kind, inc.run_id, inc.incarnation), None)
            if timer is not None:
                timer.cancel()

    def _timer_elapsed(self, kind: str, token: Any) -> None:
        inc = self.table.get(token.run_id)
        if inc is None or inc.incarnation != token.incarnation or self._timers.pop((kind, inc.run_id, inc.incarnation), None) is None:
            return
        match kind:
            case "backoff":
                if inc.stage is Stage.BACKING_OFF:
                    self._backed_off(inc)
            case "grace":
                self._grace_over(inc)
            case "run_timeout":
                self._interrupt(inc, RunTimeoutElapsed())
            case "result_grace":
                self._result_grace_over(inc)

    def _arm_run_timeout(self, inc: Incarnation) -> None:
        left_s = remaining(inc.claim.deadline_at_s, inc.claim.remaining_s, self.env.clock.wall_s())
        if left_s is not None:
            self._arm(inc, "run_timeout", left_s)

    def _arm_grace(self, inc: Incarnation) -> None:
        grace_s = inc.policies.stop.grace_s
        if self._drain is not None:
            spent_s = self.env.clock.now_s() - self._drain_began_s
            grace_s = min(grace_s, max(0.0, self._drain.timeout_s - spent_s))
        self._arm(inc, "grace", grace_s, once=True)

    def _grace_over(self, inc: Incarnation) -> None:
        """It did not return in time. An async callback is cancelled first; what does not return then is given up on."""
        ref = inc.attempt_ref
        if inc.stage is not Stage.RUNNING or ref is None:
            return
        if inc.definition.async_callbacks and not inc.cut:
            inc.cut = True
            tell_if_alive(ref, CancelCallback(), control=True)
            self._arm(inc, "grace", min(1.0, 0.1 + inc.policies.stop.grace_s / 5) if self._drain is None else 0.1)
            return
        stack = self.env.stack_of(ref.running_thread())
        self._unstopped.append(inc.run_id)
        if inc.slot is not None:
            inc.slot.close()
        ref.abandon()
        self.env.events.emit(RunUnstopped(**_about(inc), stack=stack, leaked_threads=self.env.leaked_threads()))

    def _watch_idle(self, inc: Incarnation) -> None:
        idle_s = inc.policies.stop.idle_timeout_s
        if idle_s is None:
            return
        every_s = max(SWEEP_MIN_S, idle_s / 4)
        if self._sweep_every_s is None:
            self._sweep_every_s = every_s
            self._tell_later(every_s, SweepIdle())
        else:
            self._sweep_every_s = min(every_s, self._sweep_every_s)

    def _sweep(self) -> None:
        """Find callbacks without a heartbeat. Each is given up on, and its run crashes as hung."""
        now_s = self.env.clock.now_s()
        watched = False
        for inc in list(self.table.values()):
            idle_s = inc.policies.stop.idle_timeout_s
            if idle_s is None:
                continue
            watched = True
            beat_s, ref = inc.heartbeat_s, inc.attempt_ref
            if inc.stage is Stage.RUNNING and ref is not None and beat_s is not None and now_s - beat_s > idle_s and not inc.causes:
                self.env.events.emit(RunHung(**_about(inc), idle_s=now_s - beat_s, stack=self.env.stack_of(ref.running_thread())))
                if inc.slot is not None:
                    inc.slot.close()
                ref.abandon()
        if watched and self._sweep_every_s is not None:
            self._tell_later(self._sweep_every_s, SweepIdle())
        else:
            self._sweep_every_s = None

    # --- resuming -----------------------------------------------------------------------------------------------------

    def _resume(self, run_id: str, from_input: bool, reply: Promise[Incarnation]) -> None:  # noqa: FBT001 - a message's field
        if self._drain is not None:
            reply.try_fail(RuntimeDraining(f"run {run_id!r} was not resumed: the runtime is shutting down"))
            return
        live = self.table.get(run_id)
        if live is not None:
            reply.try_set(live)
            return
        try:
            claim, stored, definition = self._resumable(run_id, from_input)
        except ExecutusError as error:
            reply.try_fail(error)
            return
        inc = self._from_store(claim, stored, definition)
        inc.unstarted.append(reply)

        def then(verdicts: tuple[Verdict, ...]) -> None:
            match verdicts[0]:
                case Accepted():
                    self._resumed(inc)
                case Refused(_, current):
                    status = RunStatus.QUARANTINED if current is None else current.status
                    self._not_started(inc, NotResumable(f"run {run_id!r} is {status.value} and was not resumed"))

        def failed(error: ExecutusError) -> bool:
            self._not_started(inc, StartFailed(f"run {run_id!r} was not resumed: {error}"), error)
            return True

        self._commit([Claim(claim=claim, expected=stored.claim.token, drop_snapshots=from_input)], then, failed=failed)

    def _resumable(self, run_id: str, from_input: bool) -> tuple[RunClaim, StoredRun, RunDefinition]:  # noqa: FBT001
        stored = self.env.store.load(run_id)
        if stored is None:
            raise RunNotFound(run_id)
        claim, record = stored.claim, stored.record
        if claim.status not in RESUMABLE:
            msg = f"run {run_id!r} is {claim.status.value}; only stopped, failed and quarantined runs are resumed by hand. Nothing was changed."
            raise NotResumable(msg)
        if record is None:
            msg = f"run {run_id!r}: its start record cannot be read, so not even its type is known. Nothing was changed."
            raise NotResumable(msg)
        definition = self.env.registry.named(record.run_type)
        if definition is None:
            msg = f"run {run_id!r} is of type {record.run_type!r}, which is not registered here. Nothing was changed."
            raise NotResumable(msg)
        if not from_input:
            try:
                self.env.store.load_snapshot(run_id)
            except RecordCorrupt as error:
                msg = f"run {run_id!r}: no generation of its state can be read ({error}). Nothing was changed; resume({run_id!r}, from_input=True) begins anew."
                raise NotResumable(msg) from error
        fresh = msgspec.structs.replace(
            claim,
            epoch=self.epochs.draw(),
            attempt=claim.attempt + 1,
            status=RunStatus.RUNNING,
            reason="",
            strikes=0,
            claimed_at_s=self.env.clock.wall_s(),
            ended_at_s=None,
        )
        return fresh, stored, definition

    def _from_store(self, claim: RunClaim, stored: StoredRun, definition: RunDefinition) -> Incarnation:
        """An incarnation in the table for a run that the store knows."""
        record = stored.record
        assert record is not None
        inc = incarnation_of(claim, record, definition)
        self.table[claim.run_id] = inc
        return inc

    def _resumed(self, inc: Incarnation) -> None:
        self.env.events.emit(RunResumed(**_about(inc), strikes=inc.claim.strikes))
        self._find_children(inc)
        self._launch(inc, Source.STORE, None)
        for reply in _taken(inc.unstarted):
            reply.try_set(inc)

    def ended_from_store(self, stored: StoredRun) -> Incarnation:
        """What a handle of a run needs that does not run here. Raises RecordCorrupt where its outcome cannot be read."""
        return rest_from_store(self.env, stored)

    # --- boot ---------------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Plan for every live run of the store, claim what comes back, set aside what cannot."""
        claims = self.env.store.live()
        self._damaged = tuple(self.env.store.damaged())
        resumed = parked = quarantined = 0
        batch: list[tuple[Incarnation | None, Operation]] = []
        for claim in claims:
            stored = self.env.store.load(claim.run_id)
            if stored is None:
                continue
            facts = self._facts(stored)
            planned = plan(facts)
            match planned:
                case Resume(strikes, orphaned):
                    resumed += 1
                    batch.append(self._plan_resume(stored, strikes, orphaned))
                case SetAsideAs(status, reason):
                    parked += status is RunStatus.PARKED
                    quarantined += status is RunStatus.QUARANTINED
                    if (claim.status, claim.reason) != (status, reason):
                        batch.append((None, SetAside(expected=claim.token, status=status, reason=reason)))
                    self.env.events.emit(
                        RunSettled(
                            run_id=claim.run_id,
                            run_type=facts.run_type or "?",
                            attempt=claim.attempt,
                            epoch=claim.epoch,
                            status=status,
                            reason=reason,
                            seq=0,
                            durable=True,
                        )
                    )
            if len(batch) >= RECOVERY_BATCH:
                self._claim_recovered(batch)
                batch = []
        self._claim_recovered(batch)
        self.env.events.emit(
            RuntimeOpened(boot_epoch=self.env.store.boot_epoch, resumed=resumed, parked=parked, quarantined=quarantined + len(self._damaged))
        )

    def _facts(self, stored: StoredRun) -> BootFacts:
        claim, record = stored.claim, stored.record
        definition = None if record is None else self.env.registry.named(record.run_type)
        unreadable, snapshot = None, None
        try:
            loaded = self.env.store.load_snapshot(claim.run_id)
            snapshot = None if loaded is None else loaded.snapshot
        except RecordCorrupt as error:
            unreadable = str(error)
        parent = None if record is None or record.parent is None else self.env.store.load(record.parent.run_id)
        return BootFacts(
            claim=claim,
            run_type=None if record is None else record.run_type,
            known_schema=None if definition is None else definition.schema_version,
            snapshot_schema=None if snapshot is None else snapshot.schema_version,
            waiting=snapshot is not None and snapshot.waiting,
            unreadable=unreadable,
            parent=None if parent is None else parent.claim,
            parent_incarnation=None if record is None or record.parent is None else record.parent.incarnation,
        )

    def _plan_resume(self, stored: StoredRun, strikes: int, orphaned: str | None) -> tuple[Incarnation, Operation]:
        record = stored.record
        assert record is not None
        definition = self.env.registry.named(record.run_type)
        assert definition is not None
        wall_s = self.env.clock.wall_s()
        claim = msgspec.structs.replace(
            stored.claim,
            epoch=self.epochs.draw(),
            attempt=stored.claim.attempt + 1,
            status=RunStatus.RUNNING,
            reason="",
            strikes=strikes,
            claimed_at_s=wall_s,
            ended_at_s=None,
            remaining_s=remaining(stored.claim.deadline_at_s, stored.claim.remaining_s, wall_s),
        )
        inc = self._from_store(claim, stored, definition)
        if orphaned is not None:
            inc.causes.append(CancelRequested(f"parent {orphaned!r}", "its parent ended"))
        return inc, Claim(claim=claim, expected=stored.claim.token)

    def _claim_recovered(self, batch: list[tuple[Incarnation | None, Operation]]) -> None:
        if not batch:
            return

        def then(verdicts: tuple[Verdict, ...]) -> None:
            for (inc, _), verdict in zip(batch, verdicts, strict=True):
                if inc is None or inc.stage is Stage.ENDED:
                    continue
                match verdict:
                    case Accepted():
                        self._resumed(inc)
                    case Refused(_, current):
                        self._lost(inc, current)

        self._commit([operation for _, operation in batch], then)

    # --- draining -----------------------------------------------------------------------------------------------------

    def _begin_drain(self, order: DrainRuns) -> None:
        if self._drain is not None:
            return
        self._drain = order
        self._drain_began_s = self.env.clock.now_s()
        self.env.events.emit(DrainBegan(live=len(self.table)))
        for inc in list(self.table.values()):
            self._interrupt(inc, DrainRequested())
        self._tell_later(order.timeout_s + 0.35, _DrainDeadline())
        self._drained_yet()

    def _drained_yet(self) -> None:
        if self._drain is not None and not self.table:
            self._drained()

    def _drained(self) -> None:
        assert self._drain is not None
        self._drain.reply.try_set(
            DrainReport(
                suspended=self._suspended,
                unstopped=tuple(self._unstopped),
                unsaved=tuple(sorted(self.table)),
                took_s=self.env.clock.now_s() - self._drain_began_s,
            )
        )


class _DrainDeadline(msgspec.Struct, frozen=True):
    """To itself: the drain must answer now, whatever is left."""


def _record(inc: Incarnation, order: StartOrder) -> RunRecord:
    return RunRecord(
        run_id=inc.run_id,
        incarnation=inc.incarnation,
        run_type=inc.definition.name,
        input=order.input,
        created_at_s=inc.created_at_s,
        labels=dict(order.labels),
        parent=order.parent,
        root_run_id=inc.root_run_id,
        options=order.options,
    )


def incarnation_of(claim: RunClaim, record: RunRecord, definition: RunDefinition) -> Incarnation:
    """The incarnation of a stored run."""
    policies = definition.policies
    if record.options:
        policies = msgspec.msgpack.decode(record.options, type=Policies)
    return Incarnation(
        definition=definition,
        claim=claim,
        policies=policies,
        options=record.options,
        labels=record.labels,
        created_at_s=record.created_at_s,
        root_run_id=record.root_run_id,
        parent=record.parent,
        input=None,
    )


def rest_from_store(env: Environment, stored: StoredRun) -> Incarnation:
    """An ended incarnation for handles of a run that does not run here. Raises RunNotFound for an unreadable or unknown type."""
    claim, record = stored.claim, stored.record
    definition = None if record is None else env.registry.named(record.run_type)
    if record is None or definition is None:
        raise RunNotFound(claim.run_id)
    inc = incarnation_of(claim, record, definition)
    inc.stage = Stage.ENDED
    outcome: Outcome | None = None
    if claim.status in ENDED:
        data = env.store.load_outcome(claim.run_id)
        outcome = None if data is None else decode_outcome(data, definition.result_type)
    elif claim.status is RunStatus.QUARANTINED:
        from executus.actors.outcomes import Quarantined  # noqa: PLC0415

        outcome = Quarantined(claim.reason)
    ending = Ending(claim.status, outcome, claim.reason)
    inc.letters.close(ended_error(inc.run_id, ending))
    inc.ending.try_set(ending)
    return inc


def _about(inc: Incarnation) -> dict[str, Any]:
    return {"run_id": inc.run_id, "run_type": inc.definition.name, "attempt": inc.claim.attempt, "epoch": inc.claim.epoch}


def _taken(replies: list[Promise[Incarnation]]) -> list[Promise[Incarnation]]:
    taken = list(replies)
    replies.clear()
    return taken


def _reason(exit_: Exit) -> str:
    match exit_:
        case Crashed(error, phase):
            return f"{phase.value}: {error}"
        case _:
            return str(getattr(exit_, "reason", ""))


def _is_final(error: ExecutusError) -> bool:
    """Whether trying again cannot help: the record itself is too large."""
    from executus.stores import RecordTooLarge  # noqa: PLC0415

    return isinstance(error, RecordTooLarge)


_UNUSED = (Mapping, Published, Waiting, ParentLink)
