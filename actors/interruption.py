"""Ending runs from outside: stop, cancel, kill, time-outs, stalls, the drain.

Records the cause first, then asks, then insists.
"""

from __future__ import annotations

from typing import Final, assert_never

import msgspec

from executus.actors.desk import Desk, Lifecycle, Verdicts
from executus.actors.events import MessagesLost, RunHung, RuntimeDraining, RunUnstopped
from executus.actors.flights import flight_of, note_kill
from executus.actors.incarnation import Ending, Incarnation, Stage, tell_if_alive
from executus.actors.messages import CancelCallback, DrainDeadline, DrainRuns, EndRun, Interrupted, SweepIdle
from executus.actors.outcomes import (
    Cancelled,
    CancelRequested,
    Cause,
    DrainRequested,
    ExitEvidence,
    Killed,
    KillRequested,
    Outcome,
    Phase,
    encode_outcome,
)
from executus.actors.stored_runs import ending_claim, stored_kin
from executus.stores import (
    ENDED,
    Accepted,
    Claim,
    ExecutusError,
    Refusal,
    Refused,
    RunClaim,
    RunStatus,
    StoredRun,
    Token,
)

GOING_ON: Final = frozenset({RunStatus.RUNNING, RunStatus.PASSIVATED})
SWEEP_MIN_S: Final = 0.05
CANCEL_GRACE_S: Final = 0.1
"""What an async callback gets after its cancellation to clean up, where the grace itself is over."""
ANSWER_S: Final = 0.35
"""After its time-out a drain has this long to commit what was given up on; then it answers with what is left."""


class DrainReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a drain left: how many runs were suspended, which did not return in time, which could not be saved."""

    suspended: int
    unstopped: tuple[str, ...]
    unsaved: tuple[str, ...]
    took_s: float


class Interruption:
    """Ends runs on somebody's word. On the supervisor's thread."""

    def __init__(self, desk: Desk, lifecycle: Lifecycle) -> None:
        self._desk = desk
        self._env = desk.env
        self._life = lifecycle
        self._unstopped: list[str] = []
        self._sweep_every_s: float | None = None
        self.suspended = 0

    # --- stop, cancel, time out ---------------------------------------------------------------------------------------

    def end(self, order: EndRun) -> None:
        """Somebody wants this run to end; the reply is resolved when it has, or rests."""
        inc = self._desk.table.get(order.run_id)
        if inc is None or inc.incarnation != order.incarnation:
            self._end_resting(order)
            return
        inc.ending.add_done_callback(lambda _: order.reply.try_set(None))
        if isinstance(order.cause, KillRequested):
            self._kill(inc, order.cause)
        else:
            self.interrupt(inc, order.cause)

    def interrupt(self, inc: Incarnation, cause: Cause) -> None:
        """Record why it shall end, and ask it to.

        A run that is backing off has nothing to be asked: it settles at once.
        """
        inc.record(cause)
        match inc.stage:
            case Stage.RUNNING:
                if inc.attempt_ref is not None:
                    tell_if_alive(inc.attempt_ref, Interrupted(), control=True)
                self.arm_grace(inc)
            case Stage.BACKING_OFF:
                self._life.exited(inc, ExitEvidence(phase=Phase.WAITING, causes=tuple(inc.causes)), None)
            case Stage.CLAIMING | Stage.SETTLING | Stage.PASSIVATED | Stage.ENDED:
                pass  # a claim that comes through is launched and sees the cause; the others end already
            case _:
                assert_never(inc.stage)

    def arm_grace(self, inc: Incarnation) -> None:
        """Give the callback in hand its time; in a drain no more than the drain has."""
        grace_s = inc.policies.stop.grace_s
        drain = self._desk.drain
        if drain is not None:
            grace_s = min(grace_s, max(0.0, drain.timeout_s - (self._env.clock.now_s() - self._desk.drain_began_s)))
        self._desk.arm(inc, "grace", grace_s, once=True)

    def grace_over(self, inc: Incarnation) -> None:
        """It did not return in time. An async callback is cancelled first; what does not return then is given up on."""
        ref = inc.attempt_ref
        if inc.stage is not Stage.RUNNING or ref is None:
            return
        if inc.definition.async_callbacks and not inc.cut:
            inc.cut = True
            tell_if_alive(ref, CancelCallback(), control=True)
            self._desk.arm(inc, "grace", CANCEL_GRACE_S)
            return
        self._unstopped.append(inc.run_id)
        stack = self._give_up_on(inc)
        self._env.emit(RunUnstopped, inc, stack=stack, leaked_threads=self._env.leaked_threads())

    def _give_up_on(self, inc: Incarnation) -> str:
        """Fence the attempt and declare it dead; its thread may be anywhere. Returns that thread's stack."""
        ref = inc.attempt_ref
        assert ref is not None
        stack = self._env.stack_of(ref.running_thread())
        if inc.slot is not None:
            inc.slot.close()
        ref.abandon()
        return stack

    # --- kill ---------------------------------------------------------------------------------------------------------

    def _kill(self, inc: Incarnation, cause: KillRequested) -> None:
        """Commit the tombstone, then signal: no reboot resurrects the run, and whatever it still writes is refused.

        Where the store does not take it within the grace, the run is fenced in memory and signalled; the tombstone is
        retried.
        """
        if inc.killed_by is not None or inc.stage is Stage.ENDED or inc.ending.done():
            return
        inc.killed_by = cause
        if not inc.durable:
            self._signal_kill(inc, cause)
            return
        if inc.stage is not Stage.CLAIMING:  # then nothing of it runs, and its claim has to be there first: see launch
            self.entomb(inc, cause)

    def entomb(self, inc: Incarnation, cause: KillRequested) -> None:
        """Commit the tombstone of a run whose claim is known, and signal when it is there."""
        note_kill(self._env, inc, cause)
        self._desk.arm(inc, "tombstone", inc.policies.stop.grace_s)
        self._commit_tombstone(inc, cause, inc.claim.token)

    def _commit_tombstone(self, inc: Incarnation, cause: KillRequested, expected: Token) -> None:
        tombstone = ending_claim(
            inc.claim, self._desk.epochs.draw(), self._env.clock.wall_s(), RunStatus.KILLED, cause.reason
        )

        def then(verdicts: Verdicts) -> None:
            match verdicts[0]:
                case Refused(Refusal.FENCED, RunClaim(incarnation=inc.incarnation) as held) if held.status in GOING_ON:
                    # It was restarted meanwhile, or its newest claim has not reached a failing store: over what is
                    # there, then. Also after it was signalled without its tombstone.
                    self._commit_tombstone(inc, cause, held.token)
                case _ if inc.stage is Stage.ENDED:
                    return
                case Accepted():
                    self._signal_kill(inc, cause)
                case Refused(_, current) if inc.attempt_ref is None and (inc.slot is None or inc.slot.killed):
                    self._life.lost(inc, current)  # it rested, or had killed itself, and nothing else will end it
                case Refused():
                    inc.killed_by = None  # it ended by itself first: that ending stands

        outcome, flight = encode_outcome(Killed(cause.by, cause.reason)), flight_of(self._env, inc, RunStatus.KILLED)
        operation = Claim(claim=tombstone, expected=expected, outcome=outcome, flight=flight, rouses=inc.kin())
        self._desk.commit([operation], then)

    def tombstone_late(self, inc: Incarnation) -> None:
        """The store has not taken the tombstone within the grace. Of a run that settles, either may be taken first."""
        if inc.killed_by is not None and inc.stage is not Stage.SETTLING:
            self._signal_kill(inc, inc.killed_by)

    def _signal_kill(self, inc: Incarnation, cause: KillRequested) -> None:
        self._desk.disarm(inc, "tombstone")
        if any(isinstance(c, KillRequested) for c in inc.causes):
            return
        if inc.slot is not None:
            inc.slot.close()
        inc.record(cause)
        if inc.stage is Stage.RUNNING and inc.attempt_ref is not None:
            tell_if_alive(inc.attempt_ref, Interrupted(), control=True)
            self.arm_grace(inc)
        else:
            self._life.finish(inc, Ending(RunStatus.KILLED, Killed(cause.by, cause.reason), cause.reason))

    def _end_resting(self, order: EndRun) -> None:
        """Kill or cancel a run that is stopped, suspended or parked: only the store has to know."""
        outcome: Outcome
        match order.cause:
            case KillRequested(by, reason):
                status, outcome = RunStatus.KILLED, Killed(by, reason)
            case CancelRequested(by, reason):
                status, outcome = RunStatus.CANCELLED, Cancelled(by, reason)
            case _:
                order.reply.try_set(None)  # it is not running
                return
        try:
            stored = self._env.store.load(order.run_id)
        except ExecutusError as error:
            order.reply.try_fail(error)
            return
        if stored is None or stored.claim.incarnation != order.incarnation or stored.claim.status in ENDED:
            order.reply.try_set(None)
            return
        claim = ending_claim(stored.claim, self._desk.epochs.draw(), self._env.clock.wall_s(), status, reason)
        pending = self._pending_of(stored)

        def then(verdicts: Verdicts) -> None:
            if pending and isinstance(verdicts[0], Accepted):
                self._env.events.emit(
                    MessagesLost(
                        run_id=claim.run_id,
                        run_type="?" if stored.record is None else stored.record.run_type,
                        attempt=claim.attempt,
                        epoch=claim.epoch,
                        count=pending,
                        durable=pending,
                    )
                )
            order.reply.try_set(None)

        def failed(error: ExecutusError) -> bool:
            order.reply.try_fail(error)
            return True

        operation = Claim(
            claim=claim,
            expected=stored.claim.token,
            outcome=encode_outcome(outcome),
            rouses=stored_kin(self._env, stored),
        )
        self._desk.commit([operation], then, failed=failed)

    def _pending_of(self, stored: StoredRun) -> int:
        """How many durable messages wait for a run at rest; 0 where that cannot be read."""
        try:
            loaded = self._env.store.load_snapshot(stored.claim.run_id)
            messages = self._env.store.messages(stored.claim.run_id)
        except ExecutusError:
            return 0
        consumed = 0 if loaded is None else loaded.snapshot.consumed
        return sum(1 for message in messages if message.number > consumed)

    # --- stalls -------------------------------------------------------------------------------------------------------

    def watch(self, inc: Incarnation) -> None:
        """See that somebody looks for this run's heartbeats, if it has an idle_timeout_s."""
        idle_s = inc.policies.stop.idle_timeout_s
        if idle_s is None:
            return
        every_s = max(SWEEP_MIN_S, idle_s / 4)
        if self._sweep_every_s is None:
            self._desk.tell_later(every_s, SweepIdle())
            self._sweep_every_s = every_s
        self._sweep_every_s = min(every_s, self._sweep_every_s)

    def sweep(self) -> None:
        """Find callbacks without a heartbeat. Each is given up on, and its run crashes as hung."""
        now_s, watched = self._env.clock.now_s(), False
        for inc in list(self._desk.table.values()):
            idle_s, beat_s = inc.policies.stop.idle_timeout_s, inc.heartbeat_s
            if idle_s is None:
                continue
            watched = True
            if (
                inc.stage is Stage.RUNNING
                and inc.attempt_ref is not None
                and not inc.causes
                and beat_s is not None
                and now_s - beat_s > idle_s
            ):
                inc.phase = Phase.HUNG
                stack = self._give_up_on(inc)
                self._env.emit(RunHung, inc, idle_s=now_s - beat_s, stack=stack)
        if watched and self._sweep_every_s is not None:
            self._desk.tell_later(self._sweep_every_s, SweepIdle())
        else:
            self._sweep_every_s = None

    # --- the drain ----------------------------------------------------------------------------------------------------

    def drain(self, order: DrainRuns) -> None:
        """Suspend everything; from now on nothing is started."""
        if self._desk.drain is not None:
            first = self._desk.drain.reply
            first.add_done_callback(lambda _: order.reply.try_set(first.result(0)))
            self._hurry(order.timeout_s)
            return
        self._desk.drain = order
        self._desk.drain_began_s = self._env.clock.now_s()
        self._env.events.emit(RuntimeDraining(live=len(self._desk.table)))
        for inc in list(self._desk.table.values()):
            self.interrupt(inc, DrainRequested())
        self._desk.tell_later(order.timeout_s + ANSWER_S, DrainDeadline())
        self.drained_yet()

    def _hurry(self, timeout_s: float) -> None:
        """Somebody else drains, and gives less time: then nobody has more than that."""
        drain = self._desk.drain
        assert drain is not None
        if self._env.clock.now_s() + timeout_s >= self._desk.drain_began_s + drain.timeout_s:
            return
        for inc in self._desk.table.values():
            if inc.stage is Stage.RUNNING:
                self._desk.arm(inc, "grace", min(inc.policies.stop.grace_s, timeout_s))
        self._desk.tell_later(timeout_s + ANSWER_S, DrainDeadline())

    def drained_yet(self) -> None:
        """Answer the drain if nothing is left, not even a tombstone that a failing store has not taken."""
        if self._desk.drain is not None and not self._desk.table and not self._desk.busy:
            self.answer_drain()

    def answer_drain(self) -> None:
        """Answer the drain, whatever is left."""
        drain = self._desk.drain
        assert drain is not None
        drain.reply.try_set(
            DrainReport(
                suspended=self.suspended,
                unstopped=tuple(self._unstopped),
                unsaved=tuple(sorted(self._desk.table)),
                took_s=self._env.clock.now_s() - self._desk.drain_began_s,
            )
        )
