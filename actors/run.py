"""What a user writes: a `Run` is a behaviour, functions that take a state and return what comes next.

Pure but for the context.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar, Generic, Literal, ParamSpec, Protocol, TypeVar

import msgspec

from executus.actors.outcomes import Outcome
from executus.actors.policies import RestartPolicy, SavePolicy, StopPolicy

I = TypeVar("I")  # noqa: E741 - Input; the three letters of Run[Input, State, Result]
S = TypeVar("S")
R = TypeVar("R")
T = TypeVar("T")
P = ParamSpec("P")
Facts = Mapping[str, str | float | bool]


class Done(msgspec.Struct, Generic[R], frozen=True):
    """The run is complete, with this result."""

    result: R


class Wait(msgspec.Struct, Generic[S], frozen=True):
    """Idle, without a thread, until a message arrives or time is up, which arrives as the message `WaitExpired()`.

    `timeout_s` is relative: no jump of the wall clock moves it, and a machine's suspend does not count. `until` is a
    moment, an aware datetime or wall seconds: it has come when the wall clock shows it, within seconds also where that
    was set or the machine was suspended. Neither: until a message arrives.
    A snapshot keeps the deadline: after a restart the run waits again for what is left of it; downtime counts.
    """

    state: S
    timeout_s: float | None = None
    until: dt.datetime | float | None = None

    def __post_init__(self) -> None:
        if self.timeout_s is not None and self.until is not None:
            msg = "Wait takes timeout_s or until, not both"
            raise ValueError(msg)
        if self.timeout_s is not None and not self.timeout_s >= 0:  # NaN is refused, too
            msg = f"Wait's timeout_s must not be negative, not {self.timeout_s!r}"
            raise ValueError(msg)
        if isinstance(self.until, dt.datetime) and self.until.tzinfo is None:
            msg = "Wait's until must be an aware datetime: a naive one names no moment"
            raise ValueError(msg)


class Reply(msgspec.Struct, Generic[S, R], frozen=True):
    """Answer the ask in hand with `value`, then go on with `next`; None keeps state, next and deadline as they were."""

    value: Any
    next: S | Wait[S] | Done[R] | None = None


class WaitExpired(msgspec.Struct, frozen=True, tag="executus.WaitExpired"):
    """The time given to `Wait` is up. The runtime's own message to `receive`."""


class ChildEnded(msgspec.Struct, frozen=True, tag="executus.ChildEnded"):
    """A child has ended.

    The runtime's own message to `receive`; comes again after a crash until a snapshot has taken it in.
    """

    key: str
    run_id: str
    outcome: Outcome


class ChildRef(msgspec.Struct, frozen=True):
    """A spawned child. Its end comes to the parent's `receive` as `ChildEnded(key, …)`."""

    key: str
    run_id: str


class RunContext(Protocol):
    """What a callback can ask of the runtime. Valid in the callback that got it, on its thread or task."""

    @property
    def run_id(self) -> str:
        """The id, in NFC."""
        ...

    @property
    def attempt(self) -> int:
        """Which execution of this incarnation it is, from 1."""
        ...

    @property
    def epoch(self) -> int:
        """The fencing token: greater than that of every earlier attempt in this store.

        Hand it to systems that can fence.
        """
        ...

    @property
    def parent_run_id(self) -> str | None:
        """The spawning run, if there is one."""
        ...

    @property
    def root_run_id(self) -> str:
        """The oldest ancestor; its own id for a run that nobody spawned."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels given to `start`."""
        ...

    @property
    def log(self) -> Any:
        """A structlog logger with run_id, run_type, attempt and epoch bound."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether the run has been asked to end: finish the step, or return early."""
        ...

    @property
    def idempotency_key(self) -> str:
        """A key for the effect of this callback: the same again exactly when the same action is repeated after a crash.

        Derived (BLAKE2b) from the incarnation, the seq and a digest of state and message before the callback.
        """
        ...

    def idempotency_key_for(self, name: str) -> str:
        """As `idempotency_key`, one for each of several effects in one callback."""
        ...

    def heartbeat(self, details: object = None) -> None:
        """Say that the callback is alive, for `idle_timeout_s`. Raises RunFenced in an attempt that was given up on.

        `executus why` shows the last one of a run that went wrong, with the text of `details`.
        """
        ...

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Report progress for `status()` and events; a heartbeat too."""
        ...

    def report(self, what: str, facts: Facts | Callable[[], Facts]) -> None:
        """Emit the event `RunReported(what, facts)`: what means something to this kind of run. A heartbeat, too.

        Facts are small scalars; what is none goes, texts are cut and escaped. Cheap where nobody listens: a function
        that makes the facts is not even called there.
        """
        ...

    def sleep(self, seconds: float) -> Awaitable[None]:
        """Sleep, or return early once the run is asked to end.

        In `async def` callbacks await it; elsewhere it blocks the thread.
        """
        ...

    def durable(self) -> Awaitable[int]:
        """Wait until the state that this callback was given is in the store, at once and whatever the save policy.

        In `async def` callbacks await it; elsewhere it blocks the thread. Gives the durable seq. `begin` was given no
        state: there it is at once, and 0 in a run's first life. What the callback itself does, and the message that
        `receive` was given, are not in that state.

        While the store fails it waits for it to be back, and no heartbeat is due. Raises NotDurable with durability
        "none", SaveRejected where the state cannot be stored, SaveGivenUp once the run is asked to end while the store
        fails, RunFenced once the attempt is given up on.
        """
        ...

    def run_sync(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """Call a blocking function on one of the runtime's workers and await what it returns.

        For `async def` callbacks, whose loop nothing may block; elsewhere it is called at once on the same thread.
        ContextVars come along, and so does the context. Whatever the function raises is raised here.

        Cancelling it does not stop the function: Python cannot. It goes on on its thread, which counts as abandoned
        once that takes longer than the run's `grace_s`; what it returns is dropped. Raises RunFenced.
        """
        ...

    def kill(self, reason: str, *, by: str = "itself") -> None:
        """End this very run as killed, as `RunHandle.kill` does: the tombstone is committed first.

        Returns at once. From then on nothing that the callback does has effect: what it returns or raises is dropped,
        verbs of the context raise RunFenced, `cancelled` is True. An `async def` callback is cancelled.
        """
        ...

    def spawn(
        self,
        run_class: type[Run[I, Any, Any]],
        input: I,
        *,
        key: str,
        on_parent_end: Literal["cancel", "kill"] = "cancel",
        labels: Mapping[str, str] | None = None,
        restart_policy: RestartPolicy | None = None,
        save_policy: SavePolicy | None = None,
        stop_policy: StopPolicy | None = None,
    ) -> ChildRef:
        """Start a child run, or find the one spawned under this key before. Policies stand in for its type's.

        It is durable before this callback counts as completed, unless its durability is "none". Such a child is known
        in this process alone: a parent that a later boot resumes is not told of its end and must spawn it again.

        The child of a parent with durability "none" has that, too, whatever its type says: without a record of its
        parent nobody would know whose child it was.

        Raises NotRegistered, InvalidInput, InvalidRunId, and NotDurable where `save_policy` wants more of a child than
        its parent has, at once. A store that cannot take it crashes the callback.
        """
        ...


current_context: ContextVar[RunContext] = ContextVar("executus_run_context")
"""A ContextVar and not an attribute, so that a `query` beside a step cannot mistake the step's context for its own."""


class Run(Generic[I, S, R]):
    """A durable run: subclass as `Run[Input, State, Result]`. One instance per attempt; keep nothing durable on it.

    Each callback may be `def` (runs on a worker thread and may block) or `async def` (runs on the event loop and must
    not).
    """

    run_type: ClassVar[str]
    """The name in the store; the class's name unless set.

    Keep it when you rename the class, or list the old one in `aliases`.
    """
    aliases: ClassVar[tuple[str, ...]] = ()
    schema_version: ClassVar[int] = 1
    """Count it up when the state's shape changes, and bring older ones forward in `upgrade`."""
    restart_policy: ClassVar[RestartPolicy] = RestartPolicy()
    save_policy: ClassVar[SavePolicy] = SavePolicy()
    stop_policy: ClassVar[StopPolicy] = StopPolicy()
    mailbox_limit: ClassVar[int] = 1_000
    """Messages that may wait; one more raises MailboxFull at the teller. Durable ones do not count."""
    inbox_limit: ClassVar[int] = 10_000
    """Durable messages that may be unconsumed; one more raises InboxFull at the sender."""

    @property
    def context(self) -> RunContext:
        """The context of the callback that is running. Raises LookupError outside of one, in `query` too."""
        try:
            return current_context.get()
        except LookupError:
            msg = (
                f"{type(self).__name__}.context is for begin, step, receive and stopping, on the thread or "
                "task that runs them"
            )
            raise LookupError(msg) from None

    def begin(self, input: I, /) -> S | Wait[S] | Done[R] | Awaitable[S | Wait[S] | Done[R]]:
        """The first state, from the input."""
        raise NotImplementedError

    def step(self, state: S, /) -> S | Wait[S] | Done[R] | Awaitable[S | Wait[S] | Done[R]]:
        """One step: from a state to what comes next."""
        raise NotImplementedError

    def receive(
        self, state: S, message: Any, /
    ) -> S | Wait[S] | Done[R] | Reply[S, R] | Awaitable[S | Wait[S] | Done[R] | Reply[S, R] | None] | None:
        """Take a message, between steps.

        None keeps state, next and deadline. Unless overridden: go on when a wait expires.
        """
        return state if isinstance(message, WaitExpired) else None

    def query(self, state: S, question: Any, /) -> Any:
        """Answer about the last completed state, beside whatever runs. Must not change anything; has no context."""
        msg = f"{type(self).__name__} defines no query"
        raise NotImplementedError(msg)

    def stopping(self, state: S, reason: str, /) -> Awaitable[None] | None:
        """Last words, within the grace: reason is 'stop', 'cancel', 'drain' or 'timeout'.

        Not called after a kill or a crash.
        """

    def upgrade(self, version: int, raw: Any, /) -> S:
        """Bring a snapshot of an older `schema_version` forward.

        `raw` is its state as plain dicts, lists and scalars.
        """
        msg = f"{type(self).__name__} is at schema {self.schema_version} and defines no upgrade from schema {version}"
        raise NotImplementedError(msg)

    def resuming(self, state: S, /) -> None:
        """Look whether this code can go on with a stored state. What it raises parks the run, its record untouched.

        Called before any other callback in an attempt that has loaded its state from the store: at a boot, for a
        `resume` by hand, when a passivated run is taken up; after `upgrade`, if that was called. Not for a restart in
        process, which goes on from memory, and not where `begin` is next. A parked run is tried again at each boot.

        Must not be `async` and must not change the state. It has no context: `executus doctor --runs` calls it as well.
        """

    def may_go_ahead(self, state: S, /) -> bool:  # noqa: ARG002 - for those that override it
        """Whether, with durability "sync", what comes next may begin before this state is stored. No, by default.

        Say yes where all that can come next, of `step` and of messages, only reads and computes: after a crash it is
        done again by a run that knows nothing of it. The state goes to the store as ever, and what comes after it waits
        for both, in one commit. Asked after `begin`, `step` and a `receive` that answers nobody, where `step` is next.

        Must not be `async`, must not block and must not change the state. What it raises is the callback's own error.
        """
        return False


class Factory(Generic[T]):
    """A run class with the resources its instances need: `runs=[Factory(Crawl, http=client)]`."""

    def __init__(self, run_class: Callable[..., T], /, *args: Any, **kwargs: Any) -> None:
        self.run_class = run_class
        self._args = args
        self._kwargs = kwargs

    def __call__(self) -> T:
        """A fresh instance, for one attempt."""
        return self.run_class(*self._args, **self._kwargs)


# --- what comes next, as a snapshot keeps it
# ---------------------------------------------------------------------------


class Stepping(msgspec.Struct, frozen=True, tag="step"):
    """`step` is next."""


class Waiting(msgspec.Struct, frozen=True, tag="wait"):
    """A message is next, or the deadline. Both None: no deadline.

    Of a time-out the steady time (see Environment) says when, and the remaining time bounds what a wall clock that was
    set back between two boots can do to it. Without a remaining time the deadline is a moment of the wall clock.
    """

    deadline_at_s: float | None = None
    remaining_s: float | None = None

    @property
    def moment_s(self) -> float | None:
        """The moment of the wall clock that is waited for, if it is one."""
        return self.deadline_at_s if self.remaining_s is None else None


class Beginning(msgspec.Struct, frozen=True, tag="begin"):
    """`begin` is next: a permanent run's next round.

    Its snapshot has no state; it is there for the seq, which goes on.
    """


Next = Stepping | Waiting | Beginning
STEPPING = Stepping()


def waiting_for(wait: Wait[Any], steady_s: float) -> Waiting:
    """The deadline of a Wait returned at steady time `steady_s`."""
    if wait.timeout_s is not None:
        return Waiting(steady_s + wait.timeout_s, wait.timeout_s)
    if wait.until is not None:
        return Waiting(wait.until.timestamp() if isinstance(wait.until, dt.datetime) else float(wait.until))
    return Waiting()


def remaining(deadline_at_s: float | None, remaining_s: float | None, steady_s: float) -> float | None:
    """What is left of a stored time-out: downtime counts, a clock that was set back does not lengthen it.

    None where there is none: no deadline, or one that is a moment of the wall clock.
    """
    if deadline_at_s is None or remaining_s is None:
        return None
    return min(max(0.0, deadline_at_s - steady_s), remaining_s)
