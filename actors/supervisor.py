"""The run supervisor: the table of live runs. Classifies their exits, decides, restarts, settles."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from executus.actors.actor import Actor, ActorRef
from executus.actors.admission import Admission
from executus.actors.alarms import Alarms
from executus.actors.async_run_actor import AsyncRunActor
from executus.actors.deliveries import Deliveries
from executus.actors.desk import Desk, Verdicts, reason_of, taken
from executus.actors.dormitory import Dormitory
from executus.actors.environment import Environment
from executus.actors.errors import ActorError
from executus.actors.events import MessagesLost, RunExited, RunRestarting, RunSettled
from executus.actors.family import Family
from executus.actors.flights import flight_of, note_exit
from executus.actors.future import Promise
from executus.actors.incarnation import Ending, Incarnation, Letter, Stage, ended_error, tell_if_alive
from executus.actors.interruption import Interruption
from executus.actors.messages import (
    PROCEED,
    ActivateRun,
    AdmitSuspects,
    AttemptExited,
    CommitFailed,
    Committed,
    DeliverStored,
    DrainDeadline,
    DrainRuns,
    EndRun,
    LookAtDue,
    OfferSave,
    Probe,
    Prune,
    Recover,
    ResumeRun,
    RetryCommit,
    SaveNow,
    SendMessage,
    SpawnChildren,
    StartRuns,
    StoreCrashed,
    StoreRestarted,
    SweepIdle,
    TimerElapsed,
)
from executus.actors.outcomes import (
    Completed,
    Crashed,
    ErrorInfo,
    ExitEvidence,
    Killed,
    KillRequested,
    Outcome,
    Parked,
    Passivated,
    Phase,
    RunTimeoutElapsed,
    classify,
    encode_outcome,
)
from executus.actors.passivation import Passivation
from executus.actors.policies import Restart, decide
from executus.actors.policies import Settle as SettleAs
from executus.actors.pruning import Pruning
from executus.actors.run import remaining
from executus.actors.run_actor import RunActor, Source
from executus.actors.save_slot import SaveSlot, StorePort
from executus.actors.stored_runs import begin_afresh, is_own, next_claim, stored_outcome
from executus.stores import (
    ENDED_FOR_GOOD,
    Accepted,
    Claim,
    ExecutusError,
    Operation,
    Refused,
    RunClaim,
    RunStatus,
    SetAside,
    Settle,
    Token,
)

CANCELLED: Final = "asyncio.exceptions.CancelledError"
"""What an async callback leaves with when a kill, or the end of the grace, cancels it: no news."""


class RunSupervisor(Actor):
    """Owns the incarnations of one runtime. One message at a time, so that its table needs no lock.

    `table` is read by other threads, one `get` at a time: they see an entry or none, and every entry is complete when
    it goes in. A run comes in by `admission`, is ended from outside by `interruption`; what lies between is here:
    launch, exit, restart, settle.
    """

    def __init__(
        self,
        env: Environment,
        port: StorePort,
        table: dict[str, Incarnation],
        dormitory: Dormitory,
        ready: Promise[None],
    ) -> None:
        super().__init__()
        self.env = env
        self.desk = Desk(env, port, table, dormitory, self._tell_self)
        self.interruption = Interruption(self.desk, self)
        self.family = Family(self.desk, self.end_run)
        self.deliveries = Deliveries(self.desk)
        self.admission = Admission(self.desk, self, self.family, self.deliveries)
        self.passivation = Passivation(self.desk, self, self.admission, self.interruption, self.family)
        self.alarms = Alarms(self.desk, self.passivation)
        self.pruning = Pruning(self.desk)
        self._ready = ready
        self._endings: dict[Incarnation, Ending] = {}
        self._unclaimed: set[Incarnation] = set()
        """Permanent runs whose next round the store has not taken yet: they wait, or its saves would be refused."""

    def _tell_self(self, message: object) -> None:
        tell_if_alive(self.actor_ref, message)

    def _recovered(self) -> None:
        self._ready.try_set(None)

    def on_receive(self, message: object) -> None:
        """Every message is handled to its end here; what takes time comes back as another message."""
        match message:
            case AttemptExited(token, evidence, result):
                inc = self.desk.table.get(token.run_id)
                # A report about an attempt that is no longer the current one changes nothing.
                if inc is not None and inc.stage is Stage.RUNNING and inc.slot is not None and inc.slot.token == token:
                    self.exited(inc, evidence, result)
            case Committed(tag, verdicts):
                self.desk.committed(tag, verdicts)
                self.left()
            case CommitFailed(tag, error):
                self.desk.commit_failed(tag, error)
                self.left()
            case RetryCommit(tag):
                self.desk.send(tag)
            case StartRuns(orders, replies):
                self.admission.start(orders, replies)
            case SpawnChildren():
                self.admission.spawn(message)
            case ResumeRun():
                self.admission.resume(message)
            case SendMessage() | DeliverStored():
                self.deliveries.receive(message)
            case EndRun():
                self.end_run(message)
            case TimerElapsed():
                self._timer_elapsed(message)
            case SweepIdle():
                self.interruption.sweep()
            case Prune():
                self.pruning.go_on()
            case ActivateRun() | LookAtDue():
                self.alarms.receive(message)
            case Recover():
                self.admission.recover(self._recovered)
                self.pruning.begin()
            case StoreCrashed(error):
                self.desk.all_failed(error)
            case StoreRestarted():
                self._store_restarted()
            case AdmitSuspects():
                self.admission.suspects.admit()
            case DrainRuns():
                self._drain(message)
            case DrainDeadline():
                self.interruption.answer_drain()
            case Probe(reply):
                reply.try_set(None)
            case _:
                msg = f"the run supervisor does not know {type(message).__name__}"
                raise TypeError(msg)

    def _drain(self, order: DrainRuns) -> None:
        self.admission.suspects.suspend()
        self.interruption.drain(order)
        self.passivation.suspend()

    def end_run(self, order: EndRun) -> None:
        """Somebody wants a run to end."""
        if not self.passivation.end(order):
            self.interruption.end(order)

    def left(self) -> None:
        """A run has left the table, or a commit is through; a drain may be over."""
        self.interruption.drained_yet()

    def _timer_elapsed(self, message: TimerElapsed) -> None:
        inc = self.desk.elapsed(message)
        if inc is None:
            return
        match message.kind:
            case "backoff":
                if inc.stage is Stage.BACKING_OFF:
                    self.restart(inc)
            case "grace":
                self.interruption.grace_over(inc)
            case "run_timeout":
                self.interruption.interrupt(inc, RunTimeoutElapsed())
            case "tombstone":
                self.interruption.tombstone_late(inc)
            case "result_grace":
                self._result_grace_over(inc)

    def _store_restarted(self) -> None:
        """The store actor came back.

        What it had not answered is sent again, what it had not acknowledged is offered again.
        """
        self.desk.send_all()
        for inc in self.desk.table.values():
            if inc.slot is not None:
                inc.slot.offer_again()

    # --- launching ----------------------------------------------------------------------------------------------------

    def launch(self, inc: Incarnation, source: Any, before: SaveSlot | None = None) -> None:
        """Start an attempt of a run whose claim is held.

        From the input, the store, or the slot of the attempt before.
        """
        if inc.killed_by is not None and inc.durable:  # while it was being claimed
            self.interruption.entomb(inc, inc.killed_by)
            return
        if source is not Source.MEMORY:
            inc.origin = source
        elif before is None or before.published is None:
            source = (
                inc.origin
            )  # it never got as far as a state in memory; one that is in the store must not be passed over
        slot = inc.slot = self._slot(inc, before if source is Source.MEMORY else None)
        inc.stage, inc.phase = Stage.RUNNING, Phase.STARTING
        inc.idle, inc.cut, inc.heartbeat_s = False, False, None
        actor_class, home = (
            (AsyncRunActor, self.env.async_home) if inc.definition.async_callbacks else (RunActor, self.env.workers)
        )
        try:
            ref: ActorRef[Any] = actor_class.start_on(home, self.env, inc, slot, source, self._tell_self)
        except (ActorError, RuntimeError, OSError) as error:  # no thread to be had: a start failure counts as a crash
            self.exited(
                inc, ExitEvidence(phase=Phase.STARTING, error=ErrorInfo.of(error), causes=tuple(inc.causes)), None
            )
            return
        inc.attempt_ref = ref
        slot.attempt_ref = ref
        tell_if_alive(ref, PROCEED)
        if slot.published is not None and (inc.durable_waiters or not slot.dirty):
            slot.dirty = True
            self.desk.port.tell(SaveNow(slot) if inc.durable_waiters else OfferSave(slot))
        left_s = remaining(inc.claim.deadline_at_s, inc.claim.remaining_s, self.env.steady_s())
        if left_s is not None:
            self.desk.arm(inc, "run_timeout", left_s, once=True)  # it runs on through restarts and backoffs
        self.interruption.watch(inc)
        if inc.causes:
            self.interruption.arm_grace(inc)

    def _slot(self, inc: Incarnation, before: SaveSlot | None) -> SaveSlot:
        """The attempt's slot. The newest state in memory goes on under the new epoch, with the due time that it had."""
        slot = SaveSlot(
            inc.definition,
            inc.claim,
            inc.policies.save,
            self.desk.port,
            durable_seq=inc.restored_seq if before is None else before.durable_seq,
            durable_waiters=inc.durable_waiters,
        )
        if before is not None:
            slot.published, slot.saved_at_s, slot.saved_seq = before.published, before.saved_at_s, before.saved_seq
            slot.claim, slot.keeper = before.claim, before.keeper
        if inc.policies.save.durability in {"exit", "none"}:
            slot.dirty = True  # nothing is ever offered: "exit" is saved with the ending, "none" never
        return slot

    # --- exits --------------------------------------------------------------------------------------------------------

    def exited(self, inc: Incarnation, evidence: ExitEvidence, result: bytes | None) -> None:
        """An attempt has ended: classify, decide, and follow the decision."""
        self.desk.disarm(inc, "backoff", "grace")
        inc.attempt_ref, inc.heartbeat_s = None, None
        if inc.slot is not None:
            published = inc.slot.close()
            inc.restored_seq = inc.restored_seq if published is None else published.seq
            if inc.slot.killed and not any(isinstance(cause, KillRequested) for cause in inc.causes):
                self._await_tombstone(inc)
                return
        if len(inc.causes) > len(evidence.causes):  # recorded while the report of its end was under way
            evidence = msgspec.structs.replace(evidence, causes=tuple(inc.causes))
        exit_ = classify(evidence)
        if isinstance(exit_, Passivated):
            self.passivation.passivate(inc)
            return
        if evidence.rested and not isinstance(exit_, Killed):  # it is wanted after all: a cause came in
            self.restart(inc)
            return
        error = exit_.error if isinstance(exit_, Crashed) else evidence.error
        cancelled = error is not None and CANCELLED in error.mro
        if error is not None and (isinstance(exit_, Crashed) or not (cancelled or isinstance(exit_, Parked))):
            inc.last_error = error
            self.env.emit(RunExited, inc, error=error, phase=evidence.phase, seq=inc.restored_seq)
        note_exit(self.env, inc, evidence, exit_)
        if isinstance(exit_, Killed):
            self.finish(inc, Ending(RunStatus.KILLED, exit_, exit_.reason))  # its tombstone is the record already
            return
        now_s = self.env.clock.now_s()
        match decide(exit_, inc.policies.restart, inc.history, now_s):
            case Restart() as restart:
                self._back_off(inc, restart, now_s, result)
            case SettleAs(status, outcome):
                self._settle(inc, status, outcome, reason_of(exit_), result)

    def _await_tombstone(self, inc: Incarnation) -> None:
        """It has killed itself and left: whatever else its attempt came to, its ending is the tombstone's.

        Nothing of it runs until the store has taken that, or has had its grace.
        """
        if inc.killed_by is None:
            self.lost(inc, None)  # the store refused it: another ending stands
        else:
            inc.stage = Stage.BACKING_OFF

    def _back_off(self, inc: Incarnation, restart: Restart, now_s: float, result: bytes | None) -> None:
        inc.history = inc.history.restarted(inc.policies.restart, now_s)
        inc.stage = Stage.BACKING_OFF
        delay_s = inc.policies.restart.backoff.delay_s(restart.restarts, self.env.rng.random())
        self.env.emit(RunRestarting, inc, delay_s=delay_s, resumed_from_seq=inc.restored_seq, afresh=restart.afresh)
        if restart.afresh:
            self._claim_afresh(inc, result)
        self.desk.arm(inc, "backoff", delay_s)

    def _claim_afresh(self, inc: Incarnation, result: bytes | None) -> None:
        """A permanent run ended normally: one commit keeps the result, drops the snapshot and claims the next round."""
        held = inc.claim
        claim = next_claim(self.env, held, self.desk.epochs.draw(), afresh=True)
        inc.claim, inc.origin = claim, Source.INPUT
        self.family.begins_afresh(inc)
        inc.restored_seq += 1  # the Done counted as well; seq never resets within an incarnation
        if inc.slot is not None:
            inc.consumed_through = inc.slot.result_through
            unseen, inc.slot = inc.slot.claim, None
            held_token = held.token if unseen is None or unseen.expected is None else unseen.expected
        else:
            held_token = held.token
        if not inc.durable:
            return

        self._unclaimed.add(inc)

        def then(verdicts: Verdicts) -> None:
            match verdicts[0]:
                case Refused(_, current) if current is not None and is_own(inc, current, claim.epoch):
                    self.desk.commit([msgspec.structs.replace(claimed, expected=current.token), saved], then)
                    return
                case Refused(_, current):
                    self.lost(inc, current)
                case Accepted() if inc.stage is Stage.CLAIMING:  # its backoff was over before
                    self.launch(inc, inc.origin)
                case Accepted():
                    pass
            self._unclaimed.discard(inc)

        claimed, saved = begin_afresh(
            claim,
            held_token,
            seq=inc.restored_seq,
            schema_version=inc.definition.schema_version,
            outcome=result,
            consumed_through=inc.consumed_through,
        )
        self.desk.commit([claimed, saved], then)

    def restart(self, inc: Incarnation) -> None:
        """The backoff is over, or a rest: claim, then go on from memory.

        A failing store does not hold it up; its claim then goes in with the next save.
        """
        before = inc.slot
        inc.stage = Stage.CLAIMING
        if before is None:  # claimed afresh when its round ended, or never launched
            if inc.origin is Source.STORE:
                self.admission.load(inc)
            elif inc not in self._unclaimed:
                self.launch(inc, inc.origin)
            return
        claim = next_claim(self.env, inc.claim, self.desk.epochs.draw())
        self._claim_restart(inc, before, claim, inc.claim.token if before.claim is None else before.claim.expected)

    def _claim_restart(self, inc: Incarnation, before: SaveSlot, claim: RunClaim, expected: Token | None) -> None:
        operation = Claim(claim=claim, expected=expected, flight=flight_of(self.env, inc, RunStatus.RUNNING))

        def go_on(unseen: Claim | None) -> None:
            inc.claim, before.claim = claim, unseen
            self.launch(inc, Source.MEMORY, before)

        def then(verdicts: Verdicts) -> None:
            if inc.stage is not Stage.CLAIMING:
                return
            match verdicts[0]:
                case Accepted():
                    go_on(None)
                case Refused(_, current) if current is not None and is_own(inc, current, claim.epoch):
                    self._claim_restart(inc, before, claim, current.token)
                case Refused(_, current):
                    self.lost(inc, current)

        def failed(_error: ExecutusError) -> bool:
            if inc.stage is Stage.CLAIMING:
                go_on(operation)
            return True

        if inc.durable:
            self.desk.commit([operation], then, failed=failed)
        else:
            go_on(None)

    def lost(self, inc: Incarnation, current: RunClaim | None) -> None:
        """The store holds another claim or ending for this run: that one stands."""
        if inc.stage is Stage.ENDED:
            return
        if current is None or current.status is RunStatus.RUNNING:
            self.finish(inc, Ending(RunStatus.SUSPENDED, None, "another execution holds its claim"))
            return
        try:
            outcome = stored_outcome(self.env, current, inc.definition)
        except ExecutusError:
            outcome = None  # it has ended; how, the store cannot say now
        self.finish(inc, Ending(current.status, outcome, current.reason))

    # --- settling -----------------------------------------------------------------------------------------------------

    def _settle(
        self, inc: Incarnation, status: RunStatus, outcome: Outcome | None, reason: str, result: bytes | None
    ) -> None:
        """Commit the ending; waiters hear of it when it is durable, or after the grace without that."""
        inc.stage = Stage.SETTLING
        ending = Ending(status, outcome, reason)
        if not inc.durable:
            self.finish(inc, ending)
            return
        self._endings[inc] = ending
        operation: Operation
        flight = flight_of(self.env, inc, status)
        if status in {RunStatus.PARKED, RunStatus.QUARANTINED}:
            operation = SetAside(
                expected=inc.claim.token,
                status=status,
                reason=reason,
                at_s=self.env.clock.wall_s(),
                flight=flight,
                rouses=inc.kin(),
            )
        else:
            data = result if isinstance(outcome, Completed) else None if outcome is None else encode_outcome(outcome)
            operation = Settle(
                token=inc.claim.token,
                status=status,
                reason=reason,
                outcome=data,
                ended_at_s=self.env.clock.wall_s(),
                consumed_through=inc.slot.result_through if data is result and inc.slot is not None else 0,
                flight=flight,
                rouses=inc.kin(),
                rouses_children=inc.slot is None,  # it was never launched: perhaps its children could not be read
            )

        def then(verdicts: Verdicts) -> None:
            match verdicts[-1]:
                case Accepted():
                    if inc.slot is not None and inc.slot.rejected_seq < inc.restored_seq:
                        inc.slot.durable_seq = inc.restored_seq  # the last state, or the result in its place, went in
                    self.finish(inc, ending)
                case Refused(_, current) if current is not None and is_own(inc, current, inc.claim.epoch):
                    claim = Claim(claim=inc.claim, expected=current.token)
                    self.desk.commit([claim, operation], then, failed=failed, final=inc.slot)
                case Refused(_, current):
                    self.lost(inc, current)

        def failed(_error: ExecutusError) -> bool:
            if outcome is not None and inc.stage is not Stage.ENDED:
                self.desk.arm(inc, "result_grace", inc.policies.stop.result_grace_s, once=True)
            return False

        self.desk.commit([operation], then, failed=failed, final=inc.slot)

    def _result_grace_over(self, inc: Incarnation) -> None:
        """The store has not taken the ending in time: report it as not durable; its commit is still being retried."""
        ending = self._endings.get(inc)
        if ending is None or inc.killed_by is not None:  # whichever the store takes first is the ending
            return
        if isinstance(ending.outcome, Completed):
            ending = Ending(ending.status, Completed(ending.outcome.result, durable=False), ending.reason)
        inc.ending.try_set(ending)
        self.env.emit(RunSettled, inc, status=ending.status, reason=ending.reason, seq=inc.restored_seq, durable=False)

    def finish(self, inc: Incarnation, ending: Ending) -> None:
        """The incarnation has ended or rests.

        Everybody who waits is told, and the id is free for what `if_exists` allows.
        """
        if inc.stage is Stage.ENDED:
            return
        inc.stage = Stage.ENDED
        self._endings.pop(inc, None)
        self.desk.disarm(inc, "backoff", "grace", "run_timeout", "result_grace", "tombstone")
        if inc.slot is not None:
            inc.slot.close()
        if self.desk.table.get(inc.run_id) is inc:
            del self.desk.table[inc.run_id]
        self.desk.dormitory.forget(inc)
        self.interruption.suspended += ending.status is RunStatus.SUSPENDED
        error = ended_error(inc.run_id, ending)
        told, durable = _lost(inc, inc.letters.close(error), ending.status)
        if told or durable:
            self.env.emit(MessagesLost, inc, count=told + durable, durable=durable)
        inc.fail_waiters(error)
        inc.run = None
        if not inc.ending.done():
            self.env.emit(
                RunSettled, inc, status=ending.status, reason=ending.reason, seq=inc.restored_seq, durable=inc.durable
            )
        for reply in taken(inc.unstarted):
            reply.try_set(inc)
        if ending.outcome is not None:
            self.family.ended(inc, ending.outcome)
        inc.ending.try_set(ending)
        self.left()


def _lost(inc: Incarnation, letters: list[Letter], status: RunStatus) -> tuple[int, int]:
    """How many of the letters that an ending leaves are lost: told ones, and durable ones where it is for good."""
    told = sum(1 for letter in letters if letter.posted is None and not letter.own)
    if status not in ENDED_FOR_GOOD:
        return told, 0
    slot = inc.slot
    published = 0 if slot is None or slot.published is None else slot.published.consumed_through
    consumed = max(published, 0 if slot is None else slot.result_through)
    numbers = {letter.posted.number for letter in letters if letter.posted is not None}
    return told, sum(1 for number in numbers if number > consumed)
