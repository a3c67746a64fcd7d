"""One life of a run id, from start to its end for good: what outlives its attempts and its handles share."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from executus.actors.errors import (
    MailboxClosed,
    MailboxFull,
    RunCancelled,
    RunEnded,
    RunFailed,
    RunFenced,
    RunInterrupted,
    RunKilled,
    RunQuarantined,
    RunTimedOut,
)
from executus.actors.flight_ring import FlightRing
from executus.actors.future import Promise
from executus.actors.messages import PROCEED
from executus.actors.outcomes import (
    Cancelled,
    Cause,
    Completed,
    ErrorInfo,
    Failed,
    Killed,
    KillRequested,
    Outcome,
    Phase,
    Quarantined,
    TimedOut,
)
from executus.actors.policies import NO_RESTARTS, Policies
from executus.actors.run import ChildEnded
from executus.stores import ExecutusError, ParentLink, RunClaim, RunStatus, StoredRun

if TYPE_CHECKING:
    from executus.actors.actor import ActorRef
    from executus.actors.definition import RunDefinition
    from executus.actors.run import Run
    from executus.actors.save_slot import SaveSlot


T = TypeVar("T")


def tell_if_alive(ref: ActorRef[Any], message: object, *, control: bool = False) -> None:
    """Tell an attempt; one that has just died is replaced by the supervisor, and its successor looks by itself."""
    try:
        if control:
            ref.tell_control(message)
        else:
            ref.tell(message)
    except MailboxClosed:
        return


def pop_first(items: list[T]) -> T | None:
    """Take out the first item, or None. One step, so that of two that take at once each gets another."""
    try:
        return items.pop(0)
    except IndexError:
        return None


UNREAD: Final = object()
"""In place of a durable message that comes from the store: the attempt decodes it when it takes it."""


class Posted(msgspec.Struct, frozen=True):
    """What is known of a durable message in a mailbox.

    `after` is the number of the one that must have been consumed before; 0 for the oldest that the store has. `body`
    is there where the message has not been decoded yet; None where its stored bytes are damaged.
    """

    number: int
    after: int
    message_id: str
    expires_at_s: float | None = None
    body: bytes | None = None


class Letter:
    """A message in a run's mailbox.

    `answer` is the asker's promise; `own` marks the runtime's own messages, exempt from the limit; `posted` durable
    ones, which have a limit of their own.
    """

    __slots__ = ("answer", "message", "own", "posted")

    def __init__(
        self, message: object, answer: Promise[Any] | None = None, *, own: bool = False, posted: Posted | None = None
    ) -> None:
        self.message = message
        self.answer = answer
        self.own = own
        self.posted = posted

    def fail(self, error: ExecutusError) -> None:
        """Tell the asker, if there is one, that no answer will come."""
        if self.answer is not None:
            self.answer.try_fail(error)


class Letters:
    """The mailbox of an incarnation: bounded, in order, handed from attempt to attempt.

    Tellers and the closing supervisor take the lock, so that nothing gets in after the close; the attempt takes from
    the left without it, because pop is atomic and it is the only one that takes while it lives.
    """

    __slots__ = ("_closed_with", "_lock", "_posted_in", "_posted_out", "_queue", "limit", "who")

    def __init__(self, who: str, limit: int) -> None:
        self.who = who
        self.limit = limit
        # Lists, not deques, here and below: an empty deque holds 700 bytes, a fifth of an idle run's weight.
        self._queue: list[Letter] = []
        self._lock = threading.Lock()
        self._closed_with: ExecutusError | None = None
        # Durable ones in the queue are the difference: of each count one side is the only writer.
        self._posted_in = 0
        self._posted_out = 0

    def __bool__(self) -> bool:
        return bool(self._queue)

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, letter: Letter) -> None:
        """Queue it. Raises MailboxFull, or what the mailbox was closed with."""
        with self._lock:
            if self._closed_with is not None:
                raise self._closed_with
            if letter.posted is not None:
                self._posted_in += 1
            elif len(self._queue) - (self._posted_in - self._posted_out) >= self.limit and not letter.own:
                raise MailboxFull(f"run {self.who!r}", self.limit)
            self._queue.append(letter)

    def put_back(self, letter: Letter) -> None:
        """Put a letter that was in hand back to the front."""
        with self._lock:
            self._posted_in += letter.posted is not None
            self._queue.insert(0, letter)

    def holds_child(self, child_run_id: str) -> bool:
        """Whether the end of that child is queued already."""
        with self._lock:
            return any(getattr(letter.message, "run_id", None) == child_run_id for letter in self._queue if letter.own)

    def drop_ends(self) -> None:
        """Forget the ends of children: the run begins anew and knows of none."""
        with self._lock:
            self._queue = [letter for letter in self._queue if not isinstance(letter.message, ChildEnded)]

    def take(self) -> Letter | None:
        """The oldest letter, or None."""
        letter = pop_first(self._queue)
        if letter is not None and letter.posted is not None:
            self._posted_out += 1
        return letter

    def close(self, error: ExecutusError) -> list[Letter]:
        """Refuse everything from now on with `error`, and tell the askers of what was queued. Returns the letters."""
        with self._lock:
            self._closed_with = error
            leftovers, self._queue = self._queue, []
        for letter in leftovers:
            letter.fail(error)
        return leftovers


class Stage(enum.Enum):
    """What the supervisor is doing with an incarnation."""

    CLAIMING = "claiming"
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    SETTLING = "settling"
    PASSIVATED = "passivated"
    ENDED = "ended"


class Ending(msgspec.Struct, frozen=True):
    """How an incarnation rests: with an outcome, or, suspended, stopped and parked, without one."""

    status: RunStatus
    outcome: Outcome | None
    reason: str = ""


class Progress(msgspec.Struct, frozen=True, gc=False):
    """What a run last told of itself by `context.progress`."""

    done: float
    total: float | None = None
    note: str = ""


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """A run as `status()` and `runs()` show it.

    `seq` counts completed callbacks, `durable_seq` those that survive a crash right now. Times in wall seconds.
    """

    run_id: str
    run_type: str
    status: RunStatus
    stage: str
    reason: str = ""
    attempt: int
    epoch: int
    seq: int
    durable_seq: int
    restarts: int
    strikes: int
    waiting: bool
    phase: str
    messages: int
    progress: Progress | None = None
    labels: Mapping[str, str] = {}
    parent_run_id: str | None = None
    root_run_id: str
    created_at_s: float
    last_error: ErrorInfo | None = None


class Incarnation:
    """One life of an id. The supervisor writes it; handles read single fields, which are always whole values.

    `letters` and `ending` are safe on any thread. `idle` is the attempt's word that it looks at its letters only when
    told to: it writes `idle = True`, then looks once more; a teller puts its letter, then reads `idle`. So one of the
    two sees the other. `rouse`, set where it is passivated, is the supervisor's word of the same kind: see Dormitory.
    """

    __slots__ = (
        "__weakref__",
        "_sleeper",
        "attempt_ref",
        "beat",
        "causes",
        "children",
        "claim",
        "consumed_through",
        "created_at_s",
        "cut",
        "definition",
        "delivered_through",
        "durable_waiters",
        "ending",
        "first_id",
        "flight",
        "heartbeat_s",
        "history",
        "idle",
        "incarnation",
        "input",
        "killed_by",
        "labels",
        "last_error",
        "letters",
        "origin",
        "parent",
        "phase",
        "policies",
        "progress",
        "restored_seq",
        "root_run_id",
        "rouse",
        "run",
        "run_id",
        "slot",
        "stage",
        "told_of",
        "unstarted",
        "waiting_for_begin",
        "watched",
    )

    def __init__(
        self,
        *,
        definition: RunDefinition,
        claim: RunClaim,
        policies: Policies,
        labels: Mapping[str, str],
        created_at_s: float,
        root_run_id: str,
        parent: ParentLink | None,
        input: bytes | None,
    ) -> None:
        self.run_id = claim.run_id
        self.incarnation = claim.incarnation
        self.definition = definition
        self.claim = claim
        self.policies = policies
        self.labels = labels
        self.created_at_s = created_at_s
        self.root_run_id = root_run_id
        self.parent = parent
        self.input = input
        self.stage = Stage.CLAIMING
        self.letters = Letters(claim.run_id, definition.run_class.mailbox_limit)
        self.ending: Promise[Ending] = Promise()
        self.slot: SaveSlot | None = None
        self.attempt_ref: ActorRef[Any] | None = None
        self.run: Run[Any, Any, Any] | None = None
        self.idle = False
        self.phase = Phase.STARTING
        self.causes: list[Cause] = []
        self.killed_by: KillRequested | None = None
        self._sleeper: Promise[None] | None = None
        self.history = NO_RESTARTS
        self.heartbeat_s: float | None = None
        self.progress: Progress | None = None
        self.beat: tuple[float, str] | None = None
        """The last `context.heartbeat`, monotonic, and what came with it; `heartbeat_s` is of the callback in hand."""
        self.flight: FlightRing | None = None
        """Made by `ring_of`, once there is something to tell: most runs never have one."""
        self.last_error: ErrorInfo | None = None
        self.children: dict[str, str] = {}
        self.told_of: set[str] | None = None
        """Children whose end was put into the mailbox by this process."""
        self.durable_waiters: list[tuple[int, Promise[int]]] = []
        self.restored_seq = 0
        self.consumed_through = 0
        """The last durable message that an attempt without a state of its own begins behind."""
        self.delivered_through: int | None = None
        """The last durable message that is, or was, in the mailbox; None until they are taken from the store.

        The supervisor's alone.
        """
        self.first_id = ""
        """The id of the message that went in with the start record."""
        self.unstarted: list[Promise[Incarnation]] = []
        self.origin: Any = None
        """Where an attempt gets its state while there is none in memory.

        From the input, or from the store for a resumed run.
        """
        self.cut = False
        """Whether the grace is over and the async callback was cancelled."""
        self.waiting_for_begin: list[Callable[[ExecutusError | None], None]] = []
        """Queries that came before the first state.

        Whoever appends looks at the slot once more; append and pop are atomic.
        """

        self.rouse: Callable[[Incarnation], None] | None = None
        self.watched = False
        """Whether somebody waits for its end who may hold nothing else of it."""

    def kin(self) -> tuple[str, ...]:
        """Whom its end concerns: its parent, and the children of whose ends it was not told."""
        told = self.told_of or ()
        children = tuple(child for child in self.children.values() if child not in told)
        return children if self.parent is None else (self.parent.run_id, *children)

    def woken(self) -> Promise[None]:
        """What a `context.sleep` waits for: done once the run is asked to end. Made only for a run that sleeps.

        The sleeper makes it, then looks at the causes; who records a cause does so before it looks for a sleeper. So
        one of the two sees the other.
        """
        if self._sleeper is None:
            self._sleeper = Promise()
        if self.causes:
            self._sleeper.try_set(None)
        return self._sleeper

    def record(self, cause: Cause) -> None:
        """Record why the run is to end, and wake it if it sleeps or waits for a save. On the supervisor's thread."""
        self.causes.append(cause)
        if self._sleeper is not None:
            self._sleeper.try_set(None)
        if self.slot is not None:
            self.slot.stir()

    @property
    def durable(self) -> bool:
        """Whether anything of this run goes to disk."""
        return self.policies.save.durability != "none"

    @property
    def inbox_limit(self) -> int:
        """How many durable messages may be unconsumed."""
        return self.definition.run_class.inbox_limit

    def put(self, letter: Letter) -> None:
        """Queue a letter and wake the attempt if it is idle. On any thread. Raises as Letters.put."""
        self.letters.put(letter)
        self.wake()

    def wake(self) -> None:
        """Have the attempt look at its letters, if it said that it does not look by itself."""
        ref = self.attempt_ref
        if self.idle and ref is not None:
            self.idle = False
            tell_if_alive(ref, PROCEED)
        else:
            self.wake_if_passivated()

    def wake_if_passivated(self) -> None:
        """Have the supervisor take it up, if it rests in the store alone. Whoever calls has put down what it wants."""
        rouse = self.rouse
        if rouse is not None:
            rouse(self)

    def flush_queries(self, error: ExecutusError | None = None) -> None:
        """There is a first state, or there will be none: let the queries go on that wait for it."""
        for _ in range(len(self.waiting_for_begin)):  # one that cannot go on yet queues up again
            go_on = pop_first(self.waiting_for_begin)
            if go_on is None:
                return
            go_on(error)

    def fail_waiters(self, error: ExecutusError) -> None:
        """The incarnation ends or rests: whoever waits for durability or for a first state is told."""
        slot = self.slot
        if slot is not None:
            slot.answer_waiters()
        while (waiter := pop_first(self.durable_waiters)) is not None:
            waiter[1].try_fail(error)
        self.flush_queries(error)

    def _status(self) -> RunStatus:
        return RunStatus.PASSIVATED if self.stage is Stage.PASSIVATED else RunStatus.RUNNING

    def _durable_seq(self) -> int:
        return self.restored_seq if self.stage is Stage.PASSIVATED else 0

    def view(self) -> RunView:
        """A snapshot of the facts, for people."""
        slot, ending, claim = self.slot, self.ending, self.claim
        ended = ending.result(0) if ending.done() else None
        published = None if slot is None else slot.published
        return RunView(
            run_id=self.run_id,
            run_type=self.definition.name,
            status=self._status() if ended is None else ended.status,
            stage=self.stage.value,
            reason="" if ended is None else ended.reason,
            attempt=claim.attempt,
            epoch=claim.epoch,
            seq=self.restored_seq if published is None else published.seq,
            durable_seq=self._durable_seq() if slot is None else slot.durable_seq,
            restarts=self.history.total,
            strikes=0 if slot is None else slot.strikes,
            waiting=self.phase is Phase.WAITING,
            phase=self.phase.value,
            messages=len(self.letters),
            progress=self.progress,
            labels=self.labels,
            parent_run_id=None if self.parent is None else self.parent.run_id,
            root_run_id=self.root_run_id,
            created_at_s=self.created_at_s,
            last_error=self.last_error,
        )


def ended_error(run_id: str, ending: Ending) -> ExecutusError:
    """What tellers and askers of a run get that has ended or rests."""
    if ending.outcome is None:
        return RunInterrupted(run_id, ending.status, ending.reason)
    return RunEnded(run_id, ending.status)


def fenced_error(run_id: str, attempt: int) -> RunFenced:
    """What a callback gets whose attempt was given up on."""
    return RunFenced(
        f"run {run_id!r}, attempt {attempt}: this attempt was given up on; nothing it does has effect. "
        "Return from the callback."
    )


def result_of(run_id: str, ending: Ending) -> Any:
    """The result, or raise what the ending means to somebody who wanted one."""
    match ending.outcome:
        case None:
            raise RunInterrupted(run_id, ending.status, ending.reason)
        case Completed(result):
            return result
        case Failed(error, phase, restarts) as outcome:
            text = (
                f"run {run_id!r} failed in {phase.value} after {restarts} restarts: {error}\n"
                f"Its last snapshot is kept; resume({run_id!r}) continues from it."
            )
            raise RunFailed(run_id, outcome, f"{text}\n{error.traceback}" if error.traceback else text)
        case Quarantined(reason) as outcome:
            raise RunQuarantined(
                run_id,
                outcome,
                f"run {run_id!r} is quarantined: {reason}. Nothing of it was deleted; resume({run_id!r}) "
                "tries it by hand.",
            )
        case Killed(by, reason) as outcome:
            raise RunKilled(run_id, outcome, f"run {run_id!r} was killed by {by}: {reason}")
        case Cancelled(by, reason) as outcome:
            raise RunCancelled(run_id, outcome, f"run {run_id!r} was cancelled by {by}: {reason}")
        case TimedOut() as outcome:
            raise RunTimedOut(run_id, outcome, f"run {run_id!r} exceeded its run_timeout_s")


def view_of_stored(stored: StoredRun) -> RunView:
    """A run that is only in the store, as `runs()` shows it."""
    claim, record = stored.claim, stored.record
    return RunView(
        run_id=claim.run_id,
        run_type="?" if record is None else record.run_type,
        status=claim.status,
        stage=Stage.ENDED.value,
        reason=claim.reason,
        attempt=claim.attempt,
        epoch=claim.epoch,
        seq=0,
        durable_seq=0,
        restarts=max(0, claim.attempt - 1),
        strikes=claim.strikes,
        waiting=claim.status is RunStatus.PASSIVATED,
        phase="",
        messages=0,
        labels={} if record is None else record.labels,
        parent_run_id=None if record is None or record.parent is None else record.parent.run_id,
        root_run_id=claim.run_id if record is None else record.root_run_id,
        created_at_s=0.0 if record is None else record.created_at_s,
    )
