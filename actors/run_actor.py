"""Drives one attempt of one run: calls the user's callbacks one after the other and publishes what they return."""

from __future__ import annotations

import enum
import functools
import logging
from collections.abc import Callable
from typing import Any, Final, assert_never, cast

import msgspec

from executus.actors.actor import Actor, ExitReport
from executus.actors.definition import decode_next
from executus.actors.dispatcher import TurnBudget
from executus.actors.environment import Environment
from executus.actors.error_chain import chain_of
from executus.actors.errors import CallbackHung, DispatcherClosed, MessageUnreadable, NoReply, RunCrashed, SaveRejected
from executus.actors.events import MessageExpired, RunRestored, SaveRefused
from executus.actors.future import Promise
from executus.actors.incarnation import UNREAD, Ending, Incarnation, Letter, Posted, tell_if_alive
from executus.actors.messages import (
    PROCEED,
    AttemptExited,
    CancelCallback,
    ChildrenSpawned,
    ClaimLost,
    DeliverStored,
    Interrupted,
    Proceed,
    RestElapsed,
    SaveAcknowledged,
    SaveNow,
    SpawnChildren,
    WaitElapsed,
)
from executus.actors.outcomes import Completed, ErrorInfo, ExitEvidence, KillRequested, Phase, encode_outcome
from executus.actors.run import (
    STEPPING,
    Beginning,
    ChildEnded,
    Done,
    Next,
    Reply,
    Run,
    Wait,
    WaitExpired,
    Waiting,
    current_context,
    remaining,
    waiting_for,
)
from executus.actors.run_context import AttemptContext, encode_message
from executus.actors.save_slot import Published, SaveSlot
from executus.actors.state_codec import Journals, plain_state
from executus.stores import RecordCorrupt, StoreError

STEPS_PER_TURN: Final = 16
REST_AGAIN_S: Final = 1.0
"""When to look again at a run that has waited for long enough and cannot leave memory yet."""
TURN_S: Final = 0.001
"""A turn ends after so many callbacks or so much time, whichever is first, so that runs share their threads fairly."""

REASONS: Final = {
    "CancelRequested": "cancel",
    "StopRequested": "stop",
    "DrainRequested": "drain",
    "RunTimeoutElapsed": "timeout",
}


class Source(enum.Enum):
    """Where an attempt gets its first state from."""

    INPUT = enum.auto()
    STORE = enum.auto()
    MEMORY = enum.auto()


class Call(enum.Enum):
    """What an attempt does next."""

    BEGIN = Phase.BEGIN
    RESTORE = Phase.RESTORING
    STEP = Phase.STEP
    RECEIVE = Phase.RECEIVE
    STOPPING = Phase.STOPPING

    def __init__(self, phase: Phase) -> None:
        self.phase = phase  # plain attributes: an enum's `value` is a function call, several times a step
        self.callback = phase.value


class CallbackEnded(msgspec.Struct, frozen=True):
    """To itself: the task has ended with this error."""

    error: BaseException


class RunActor(Actor):
    """One attempt with synchronous callbacks. Its turns run on workers, one at a time.

    A callback's error escapes from `on_receive`, so that the one boundary in `actor.py` contains it; the exit report
    then carries it to the supervisor.
    """

    __slots__ = (
        "answer",
        "asked_behind",
        "consumed",
        "consumed_through",
        "context",
        "definition",
        "done",
        "env",
        "gate_seq",
        "has_state",
        "idle_since_s",
        "inc",
        "leaving",
        "letter",
        "next",
        "proceeding",
        "rest_after_s",
        "rest_timer",
        "rested",
        "result",
        "resuming",
        "returned",
        "run",
        "seq",
        "slot",
        "source",
        "state",
        "stopped",
        "supervisor_tell",
        "synchronous",
        "turn_kind",
        "unpublished",
        "wait_due_s",
        "wait_elapsed",
        "wait_number",
        "wait_timer",
        "watched",
    )
    # Slots: over 30 attributes an instance's dict is no longer shared, and an idle run weighs a kilobyte more.

    crash_log_level = logging.DEBUG  # the event RunExited tells of it

    turn_budget = TurnBudget(messages=1)
    """A turn is one batch of callbacks: a run that goes on comes back behind the others."""

    def __init__(
        self,
        env: Environment,
        incarnation: Incarnation,
        slot: SaveSlot,
        source: Source,
        supervisor_tell: Callable[[object], None],
    ) -> None:
        super().__init__()
        self.env = env
        self.inc = incarnation
        self.slot = slot
        self.source = source
        self.supervisor_tell = supervisor_tell
        self.definition = self.turn_kind = incarnation.definition
        self.context = AttemptContext(self, incarnation, env)
        self.watched = incarnation.policies.stop.idle_timeout_s is not None
        self.synchronous = slot.policy.durability == "sync"
        self.run: Run[Any, Any, Any] | None = None
        self.seq = incarnation.restored_seq
        self.state: Any = None
        self.next: Next = STEPPING
        self.has_state = False
        self.letter: Letter | None = None
        self.answer: tuple[Letter, object] | None = None
        self.consumed: tuple[tuple[int, str], ...] = ()
        self.consumed_through = incarnation.consumed_through
        """The last durable message that was taken: each is taken once, and in order."""
        self.asked_behind = -1
        self.unpublished: tuple[Letter, ...] = ()
        """Ends of children and durable messages that went into states which could not be encoded.

        A restart does not know of them.
        """
        self.gate_seq = 0
        self.returned: tuple[Call, object] | None = None
        self.proceeding = False
        self.leaving = False
        self.stopped = False
        self.wait_number = 0
        self.wait_elapsed = False
        self.wait_timer: Any = None
        self.wait_due_s: float | None = None
        self.rest_after_s = slot.policy.passivate_after_s
        self.rest_timer: Any = None
        self.idle_since_s = 0.0
        self.rested = False
        self.resuming = False
        self.done: Completed[Any] | None = None
        self.result: bytes | None = None
        self.actor_ref.monitor(self.exited)

    def on_start(self) -> None:
        """Make the user's instance, on the thread or loop on which its callbacks run."""
        self.run = self.definition.make()
        self.inc.run = self.run

    def on_receive(self, message: object) -> None:
        """Control and wake-ups; the run's own messages wait in its incarnation's mailbox."""
        if self.leaving:
            return
        match message:
            case Proceed():
                self.proceeding = False
                self.proceed()
            case SaveAcknowledged(seq, error):
                self._acknowledged(seq, error)
            case WaitElapsed(number):
                if number == self.wait_number:
                    self.wait_elapsed = True
                    self.proceed()
            case RestElapsed():
                self._rest_elapsed()
            case Interrupted():
                self.interrupt()
            case CancelCallback():
                self.cancel_callback()
            case ChildrenSpawned(error):
                self._spawned(error)
            case ClaimLost():
                self.leave()
            case CallbackEnded(error):
                self.callback_ended(error)
            case _:
                msg = f"a run's actor does not know {type(message).__name__}"
                raise TypeError(msg)

    # --- turns ---

    def proceed(self) -> None:
        """Run a batch of callbacks on this thread, then give it to others."""
        self.inc.idle = False
        token = current_context.set(self.context)
        try:
            until_s = self.env.clock.now_s() + TURN_S
            for _ in range(STEPS_PER_TURN):
                call = self.decide()
                if call is None:
                    return
                self.complete(call, self.function(call)(*self.arguments(call)))
                if self.env.clock.now_s() >= until_s:
                    break
        finally:
            current_context.reset(token)
        self.again()

    def again(self) -> None:
        """Come back behind the others that are waiting for a turn."""
        if not self.proceeding and not self.leaving:
            self.proceeding = True
            self.actor_ref.tell(PROCEED)

    def interrupt(self) -> None:
        """A cause to end was recorded: between callbacks `decide` sees it, and here we are between callbacks."""
        self.proceed()

    def cancel_callback(self) -> None:
        """The grace is over.

        A synchronous callback cannot be cancelled; between callbacks there is nothing left to wait for.
        """
        self.leave()

    def callback_ended(self, error: BaseException) -> None:
        """The task has ended with this error. Only async attempts have tasks."""
        raise error

    # --- what comes next ---

    def decide(self) -> Call | None:
        """The next callback, or None when the attempt idles, waits for a commit or leaves.

        Sets `phase` and `letter`.
        """
        inc = self.inc
        if self.leaving:
            return None
        if inc.causes:
            return self._decide_ending()
        if self.slot.closed:
            self.leave()
            return None
        if self.gate_seq or self.returned is not None:
            return None
        if not self.has_state:
            return self._calling(Call.RESTORE if self.source is not Source.INPUT else Call.BEGIN)
        if inc.letters:
            self.letter = inc.letters.take()
            if self.letter is not None and self.letter.posted is not None:
                self.letter = self._next_posted(self.letter, self.letter.posted)
            if self.letter is not None:
                return self._calling(Call.RECEIVE)
        if self.next is STEPPING:
            return self._calling(Call.STEP)
        if self.wait_elapsed:
            self.wait_elapsed = False
            self.letter = Letter(WaitExpired(), own=True)
            return self._calling(Call.RECEIVE)
        return self._idle()

    def _next_posted(self, letter: Letter | None, posted: Posted | None) -> Letter | None:
        """The durable letter in hand, or the next one that is to be heard, of whatever kind.

        What the state contains is passed over: it was put back, or the store keeps it for its older generation. So is
        one ahead of its turn, when an attempt that was given up on has taken one away: the store still has it.
        """
        inc = self.inc
        while letter is not None and posted is not None:
            if self.leaving:
                # Given up on. The letter was written, then this was read; `exited` writes this, then reads the letter:
                # one of the two puts it back, and of two that do the number makes one.
                self.letter = None
                inc.letters.put_back(letter)
                return None
            if posted.after > self.consumed_through:
                if self.asked_behind != self.consumed_through:
                    self.asked_behind = self.consumed_through
                    self.supervisor_tell(DeliverStored(inc.run_id, inc.incarnation, self.consumed_through))
            elif posted.number > self.consumed_through:
                if posted.expires_at_s is None or self.env.clock.wall_s() < posted.expires_at_s:
                    if letter.message is UNREAD:
                        letter.message = self._read(posted)
                    return letter
                self.consumed_through = posted.number
                self.env.emit(MessageExpired, inc, message_id=posted.message_id, number=posted.number)
            letter = self.letter = inc.letters.take()
            posted = None if letter is None else letter.posted
        return letter

    def _read(self, posted: Posted) -> Any:
        """Decode a message that came from the store. Raises MessageUnreadable, RecordCorrupt: then nobody hears it."""
        if posted.body is None:
            self.letter = None
            msg = (
                f"run {self.inc.run_id!r}: message {posted.number} is damaged in the store. It was left as it is, with "
                "those behind it. start(if_exists='replace') begins anew without them."
            )
            raise RecordCorrupt(msg, run_id=self.inc.run_id, what="message")
        try:
            return self.definition.decode_message(posted.body, posted.message_id)
        except MessageUnreadable:
            self.letter = None
            raise

    def _calling(self, call: Call) -> Call:
        self.inc.phase = call.phase
        if self.watched:
            self.inc.heartbeat_s = self.env.clock.now_s()
        return call

    def _decide_ending(self) -> Call | None:
        killed = any(isinstance(cause, KillRequested) for cause in self.inc.causes)
        if not (killed or self.stopped or self.has_state or self.run is None or self.source is Source.INPUT):
            return self._calling(Call.RESTORE)  # `stopping` is to see the state that is stored
        if killed or self.stopped or not self.has_state or self.run is None:
            self.leave()
            return None
        self.stopped = True
        return self._calling(Call.STOPPING)

    def _idle(self) -> Call | None:
        """Nothing to do until a message or the deadline. See Incarnation for why no message is missed."""
        inc = self.inc
        inc.phase = Phase.WAITING
        inc.heartbeat_s = None
        inc.idle = True
        if inc.letters or inc.causes:
            inc.idle = False
            return self.decide()
        if self.rest_after_s is not None:
            self.idle_since_s = self.env.clock.now_s()
            if self.rest_timer is None:
                self._arm_rest(self.idle_since_s + self.rest_after_s)
        return None

    # --- resting in the store ---

    def _arm_rest(self, at_s: float) -> None:
        """One timer for however many waits: when it elapses, it is looked since when the run idles."""
        ref = self.actor_ref
        self.rest_timer = self.env.timers.call_at(at_s, lambda: tell_if_alive(ref, RestElapsed(), control=True))

    def _rest_elapsed(self) -> None:
        """Leave memory, if the run has waited for long enough and all of it is stored.

        What comes in after this look stays in the incarnation's mailbox: the supervisor looks there before it lays the
        run down, and after.
        """
        self.rest_timer = None
        inc, now_s = self.inc, self.env.clock.now_s()
        if not inc.idle or self.rest_after_s is None:
            return  # the next idling arms it again
        if now_s < self.idle_since_s + self.rest_after_s:
            self._arm_rest(self.idle_since_s + self.rest_after_s)
        elif self._is_stored() and not inc.history.within(inc.policies.restart.within_s, now_s):
            self.rested = True
            self.leave()
        else:  # a restart still counts against its budget, or something is to be stored first
            self.slot.port.tell(SaveNow(self.slot))
            self._arm_rest(now_s + max(self.rest_after_s, REST_AGAIN_S))

    def _is_stored(self) -> bool:
        """Whether what the store has is all that there is of this run."""
        slot, published = self.slot, self.slot.published
        return (
            published is not None
            and published.seq == self.seq <= slot.durable_seq
            and published.consumed_through == self.consumed_through
            and slot.claim is None
        )

    def function(self, call: Call) -> Callable[..., Any]:
        """The function of a call."""
        run = self.run
        assert run is not None
        match call:
            case Call.STEP:
                return run.step
            case Call.RECEIVE:
                return run.receive
            case Call.BEGIN:
                return run.begin
            case Call.STOPPING:
                return run.stopping
            case Call.RESTORE:
                return self._restore
            case _:
                assert_never(call)

    def arguments(self, call: Call) -> tuple[Any, ...]:
        """What it is called with."""
        match call:
            case Call.STEP:
                return (self.state,)
            case Call.RECEIVE:
                assert self.letter is not None
                return (self.state, self.letter.message)
            case Call.BEGIN:
                return (self._input(),)
            case Call.STOPPING:
                return (self.state, REASONS[type(self.inc.causes[0]).__name__])
            case Call.RESTORE:
                return ()
            case _:
                assert_never(call)

    # --- what a callback returned ---

    def complete(self, call: Call, returned: object) -> None:
        """A callback has returned. Children it spawned are made durable before it counts as completed."""
        if self.leaving or self.slot.closed:
            self.leave()  # it was given up on meanwhile: nothing of it has effect
            return
        if self.watched:
            self.inc.heartbeat_s = None
        if self.context.spawned:
            self.returned = (call, returned)
            orders, self.context.spawned = tuple(self.context.spawned), []
            self.supervisor_tell(SpawnChildren(self.inc, orders))
            return
        match call:
            case Call.STEP | Call.BEGIN:
                self._accept(returned, call.callback)
            case Call.RECEIVE:
                self._received(returned)
            case Call.STOPPING:
                self.leave()
            case Call.RESTORE:
                self.inc.restored_seq = self.seq
            case _:
                assert_never(call)

    def _spawned(self, error: Exception | None) -> None:
        returned, self.returned = self.returned, None
        if error is not None:
            raise error
        if returned is not None:
            self.complete(*returned)
            self.again()

    def _accept(self, returned: object, callback: str) -> None:
        kind = type(returned)
        if kind is Done:
            self._finish(returned.result)  # type: ignore[attr-defined]
        elif kind is Wait:
            self.definition.check_state(returned.state, callback)  # type: ignore[attr-defined]
            self._advance(returned.state, waiting_for(returned, self.env.steady_s()))  # type: ignore[attr-defined,arg-type]
        else:
            self.definition.check_state(returned, callback)
            self._advance(returned, STEPPING)

    def _received(self, returned: object) -> None:
        letter = self.letter
        assert letter is not None
        answer: object = NoReply
        if isinstance(returned, Reply):
            reply = cast("Any", returned)  # its parameters are the user's
            answer, returned = reply.value, reply.next
        if isinstance(letter.message, ChildEnded):
            self.consumed = (*self.consumed, (self.seq + 1, letter.message.run_id))
            self.unpublished = (*self.unpublished, letter)
        elif letter.posted is not None:
            self.consumed_through = letter.posted.number
            self.unpublished = (*self.unpublished, letter)
        if letter.answer is not None:
            self.answer = (letter, answer)
        if returned is None:
            if isinstance(letter.message, WaitExpired):
                self.next = Waiting()  # that deadline is over; kept, it would expire again after each restart
            self._publish(self.state, self.next)
        else:
            self._accept(returned, "receive")
        self.letter = None
        if self.done is not None and self.synchronous and self.inc.policies.restart.kind != "permanent":
            self._answer_at_the_end()
        elif not self.gate_seq:
            self._give_answer()

    def _answer_at_the_end(self) -> None:
        """With durability 'sync': the ask in hand has completed the run, and is answered when its result is durable.

        A permanent run has no end; there the answer goes before its result.
        """
        if self.answer is not None:
            (letter, value), self.answer = self.answer, None
            self.inc.ending.add_done_callback(functools.partial(_answer_if_durable, letter, value, self.inc.run_id))

    def _give_answer(self) -> None:
        """Answer the ask in hand: at once, or with durability 'sync' when its effect is durable."""
        if self.answer is not None:
            (letter, value), self.answer = self.answer, None
            _answer(letter, value, self.inc.run_id)

    def _advance(self, state: object, following: Next) -> None:
        self.wait_number += 1
        self.wait_elapsed = False
        if self.wait_timer is not None:
            self.wait_timer.cancel()
            self.wait_timer = None
        self.state, self.next, self.has_state = state, following, True
        self.wait_due_s = None if following is STEPPING else self._due_s(following)
        self._publish(state, following)
        self._arm()

    def _due_s(self, following: Next) -> float | None:
        """The monotonic time at which a Wait's time-out is over, if it has one."""
        left_s = remaining(following.deadline_at_s, following.remaining_s, self.env.steady_s())  # type: ignore[union-attr]
        return None if left_s is None else self.env.clock.now_s() + left_s

    def _arm(self) -> None:
        """Set the timer of a Wait with a deadline."""
        moment_s = self.next.moment_s if isinstance(self.next, Waiting) else None
        if self.wait_due_s is None and moment_s is None:
            return
        number, ref, timers = self.wait_number, self.actor_ref, self.env.timers

        def elapsed() -> None:
            tell_if_alive(ref, WaitElapsed(number), control=True)

        if self.wait_due_s is not None:
            self.wait_timer = timers.call_at(self.wait_due_s, elapsed)
        elif moment_s is not None:
            self.wait_timer = timers.call_at_wall(moment_s, elapsed)
        if self.leaving:  # given up on. `exited` writes this, then looks for a timer: one of the two cancels it
            self.wait_timer.cancel()

    def _publish(self, state: object, following: Next) -> None:
        """One more completed callback: its state is the newest, for the store, for queries and for a restart."""
        gated = self.synchronous and not (self.definition.goes_ahead and self._goes_ahead(state, following))
        self.seq += 1
        if self.consumed and self.consumed[0][0] <= self.slot.durable_seq:
            self.consumed = tuple(c for c in self.consumed if c[0] > self.slot.durable_seq)
        encoded = not self.definition.immutable
        journals: Journals = ()
        if encoded:
            try:
                state, journals = self.definition.states.encode(state)
            except SaveRejected as error:
                self._refuse(error)
                return
        if gated:
            self.gate_seq = self.slot.waiting_seq = self.seq
        self.slot.publish(
            Published(
                self.seq, state, encoded, following, self.consumed, self.wait_due_s, journals, self.consumed_through
            )
        )
        if self.unpublished:
            self.unpublished = ()
        if self.inc.waiting_for_begin:
            self.inc.flush_queries()

    def _goes_ahead(self, state: object, following: Next) -> bool:
        """Whether the next callback need not wait until this state is stored. An answer is given only then."""
        assert self.run is not None
        return following is STEPPING and self.answer is None and self.run.may_go_ahead(state)

    def _refuse(self, error: SaveRejected) -> None:
        if self.synchronous:
            raise error
        self.env.emit(SaveRefused, self.inc, error=ErrorInfo.of(error), seq=self.seq)

    def _acknowledged(self, seq: int, error: Exception | None) -> None:
        if not 0 < self.gate_seq <= seq:
            return
        if error is not None:
            self.inc.phase = Phase.SAVING
            raise error
        self.gate_seq = 0
        self._give_answer()
        self.proceed()

    def _finish(self, result: object) -> None:
        self.definition.encode_result_check(result)
        self.seq += 1
        self.done = Completed(result)
        self.result = encode_outcome(self.done)
        self.slot.result_through = self.consumed_through
        self.leave()

    # --- beginning ---

    def _input(self) -> Any:
        data = self.inc.input
        if data is None:
            stored = self.env.store.load(self.inc.run_id)
            if stored is None or stored.record is None:
                msg = f"run {self.inc.run_id!r}: its start record cannot be read, so it cannot begin again"
                raise RecordCorrupt(msg, run_id=self.inc.run_id, what="record")
            data = self.inc.input = stored.record.input  # idempotency keys are made of it, too
        return self.definition.decode_input(data)

    def _restore(self) -> None:
        """Take the state from memory or from the store; without one, begin from the input."""
        published, fell_back = self.slot.published, None
        if self.source is Source.STORE:
            published, fell_back = self._load()
        if published is None:
            self.source = Source.INPUT
            return
        self.seq, self.next, self.consumed = published.seq, published.next, published.consumed
        self.consumed_through = published.consumed_through
        self.state = published.state
        if published.encoded:
            self.state = self.definition.states.decode(published.state, published.journals)
        self.has_state = True
        if self.source is Source.STORE:
            assert self.run is not None
            self.resuming = True
            self.definition.look_at_stored(self.run, self.state)
            self.resuming = False
            self.slot.durable_seq = self.slot.saved_seq = self.seq
            self.slot.published = published
            self.inc.flush_queries()
        if self.synchronous and self.seq > self.slot.durable_seq:
            self.gate_seq = self.slot.waiting_seq = self.seq  # marked first, then looked: no answer slips by
            if self.slot.durable_seq >= self.seq:
                self.gate_seq = 0
            elif self.slot.rejected_seq >= self.seq:
                self.inc.phase = Phase.SAVING
                msg = f"run {self.inc.run_id!r}: the state of seq {self.seq} cannot be stored, see SaveRefused"
                raise SaveRejected(msg)
        self.wait_number += 1
        if self.next is not STEPPING:
            self.wait_due_s = published.due_s
            self._arm()
        self.env.emit(RunRestored, self.inc, resumed_from_seq=self.seq, fell_back=fell_back)

    def _load(self) -> tuple[Published | None, str | None]:
        loaded = self.env.store.load_snapshot(self.inc.run_id)
        if loaded is None:
            return None, None
        snapshot, following = loaded.snapshot, decode_next(loaded.snapshot.next)
        if isinstance(following, Beginning):
            self.seq = self.inc.restored_seq = self.slot.durable_seq = self.slot.saved_seq = snapshot.seq
            self.consumed_through = snapshot.consumed
            return None, None
        states, keeper = self.definition.states, self.slot.keeper
        if snapshot.schema_version == self.definition.schema_version:
            state, stored = states.load(loaded)
            if keeper is not None:
                keeper.restored(stored)
        else:
            assert self.run is not None
            state = self.run.upgrade(snapshot.schema_version, plain_state(loaded))
            self.definition.check_state(state, "upgrade")
        encoded = not self.definition.immutable
        kept, journals = states.encode(state) if encoded else (state, ())
        published = Published(
            snapshot.seq,
            kept,
            encoded,
            STEPPING if following == STEPPING else following,
            due_s=None if following == STEPPING else self._due_s(following),
            journals=journals,
            consumed_through=snapshot.consumed,
        )
        return published, loaded.fell_back

    # --- leaving ---

    def leave(self) -> None:
        """End this attempt ahead of everything queued; the exit report says why."""
        if not self.leaving:
            self.leaving = True
            self.actor_ref.halt()

    def digest_of_action(self) -> bytes:
        """What the callback in hand acts on: the state before it, and the message."""
        state = self._state_before() if self.has_state else (self.inc.input or b"")
        return state if self.letter is None else state + b"\0" + encode_message(self.letter.message)

    def _state_before(self) -> bytes:
        """The bytes of the state as it is when read back: a 1 where a float is declared comes back as 1.0.

        Of a state that can change, as it was when the callback was called.
        """
        published = self.slot.published
        if published is not None and published.encoded and published.seq == self.seq:
            return self.definition.states.digest_of_encoded(published.state, published.journals)
        return self.definition.states.digest(self.state)

    def exited(self, report: ExitReport) -> None:
        """The seam's one report: turn it into evidence for the supervisor."""
        self.leaving = True  # a task that has been made and has not run yet finds nothing to do
        for timer in (self.wait_timer, self.rest_timer):
            if timer is not None:
                timer.cancel()
        inc = self.inc
        inc.idle = False
        if self.letter is not None:
            if isinstance(self.letter.message, ChildEnded) or self.letter.posted is not None:
                inc.letters.put_back(self.letter)
            self.letter.fail(
                RunCrashed(f"run {inc.run_id!r} ended with the message in hand; ask again if it may be repeated")
            )
        for letter in reversed(self.unpublished):
            if letter is not self.letter:
                inc.letters.put_back(letter)
        if self.answer is not None:
            self.answer[0].fail(_not_durable(inc.run_id))
        self.supervisor_tell(AttemptExited(self.slot.token, self._evidence(report), self.result))

    def _evidence(self, report: ExitReport) -> ExitEvidence:
        inc, error = self.inc, report.error
        phase = Phase.STARTING if report.phase == "starting" else inc.phase
        if phase is Phase.HUNG:
            idle_s = inc.policies.stop.idle_timeout_s
            error = CallbackHung(
                f"run {inc.run_id!r}: a callback went on without a heartbeat for more than {idle_s:g} s"
            )
        info = None if error is None else ErrorInfo.of(error)
        damaged = isinstance(error, RecordCorrupt) and (not self.has_state or error.what == "message")
        damaged = damaged and not self.resuming
        unreadable = str(error) if damaged else None
        incompatible = str(error) if isinstance(error, MessageUnreadable) else None
        # The end of the grace cancels an upgrade, too.
        interrupted = bool(inc.causes) and not isinstance(error, Exception)
        if phase is Phase.RESTORING and error is not None and not interrupted:
            if self.resuming:
                incompatible = f"this code cannot go on with the stored state: {info}"
            elif not isinstance(error, (StoreError, DispatcherClosed)):  # neither says anything of the state
                incompatible = f"the stored state cannot be read by this code: {info}"
        return ExitEvidence(
            phase=phase,
            done=self.done if error is None else None,
            error=info,
            chain=() if error is None else chain_of(error),
            causes=tuple(inc.causes),
            unreadable=unreadable,
            incompatible=incompatible,
            rested=self.rested and error is None,
        )


def _answer(letter: Letter, value: object, run_id: str) -> None:
    if value is NoReply:
        letter.fail(NoReply(f"run {run_id!r} handled the ask without returning Reply(...)"))
    elif letter.answer is not None:
        letter.answer.try_set(value)


def _answer_if_durable(letter: Letter, value: object, run_id: str, ending: Promise[Ending]) -> None:
    """The run has ended. On the thread that says so, which is nobody's to hold up."""
    outcome = ending.result(0).outcome
    if value is NoReply or (isinstance(outcome, Completed) and outcome.durable):
        _answer(letter, value, run_id)
    else:
        letter.fail(_not_durable(run_id))


def _not_durable(run_id: str) -> RunCrashed:
    return RunCrashed(f"run {run_id!r} ended before the answer was durable; ask again if it may be repeated")
