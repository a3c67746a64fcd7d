"""Errors of the runtime and of its actors. Each says what happened, to which run, what was done and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executus.stores import ExecutusError

if TYPE_CHECKING:
    from executus.actors.outcomes import Cancelled, Failed, Killed, Outcome, Quarantined, TimedOut
    from executus.stores import RunStatus


# --- actors -----------------------------------------------------------------------------------------------------------


class ActorError(ExecutusError):
    """Base of the errors of the actor layer."""


class MailboxFull(ActorError):
    """The bounded mailbox is full. The message was not taken; tell it again later or raise the limit."""

    def __init__(self, who: str, limit: int) -> None:
        self.limit = limit
        super().__init__(
            f"the mailbox of {who} holds {limit} messages, its limit; this one was not taken. Tell it again later."
        )


class MailboxClosed(ActorError):
    """The mailbox takes nothing any more."""


class AskCycle(ActorError):
    """A blocking ask would wait for itself."""


class RuntimeForked(ExecutusError):
    """Used in a forked child.

    Threads and store belong to the parent; a child opens its own runtime on its own store.
    """


# --- registration and the door ----------------------------------------------------------------------------------------


class InvalidRunType(ExecutusError, TypeError):
    """A Run class that cannot be registered; the text says how to mend it."""

    def __init__(self, run_type: str, why: str) -> None:
        self.run_type = run_type
        super().__init__(f"run type {run_type!r} cannot be registered: {why}")


class NotRegistered(ExecutusError, LookupError):
    """The run class is not among the runtime's `runs=[...]`."""


class InvalidInput(ExecutusError, ValueError):
    """The input is not what the run's `begin` declares. Nothing was started."""


class InvalidMessage(ExecutusError, TypeError):
    """The message is not what the run's `receive` declares. It was not put into the mailbox."""


class BlockingCallOnLoop(ExecutusError):
    """A verb that blocks its thread was called on a running event loop."""

    def __init__(self, verb: str, twin: str) -> None:
        super().__init__(
            f"{verb} would block this thread's running event loop. Use {twin}, or call it from a thread "
            "(asyncio.to_thread)."
        )


# --- the runtime ------------------------------------------------------------------------------------------------------


class RuntimeNotOpen(ExecutusError):
    """The runtime is not open: not yet, or no longer."""


class RuntimeDraining(ExecutusError):
    """The runtime shuts down and takes no new runs and no durable messages. Nothing was done; again after the boot."""


class ServeRefused(ExecutusError):
    """serve() cannot have the signals: it is not on the main thread, or another runtime serves. Nothing was changed."""


class StartFailed(ExecutusError):
    """The run could not be started; nothing of it is left behind unless the text says otherwise."""


class ChildGone(StartFailed):
    """A parent spawns a child again whose end its state has taken in, and which retention has deleted since."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id!r} was not started: it has ended, its parent knows, and it was deleted")


class RunExists(ExecutusError):
    """The id is taken, by a live run or a finished one."""

    def __init__(self, run_id: str, status: RunStatus) -> None:
        self.run_id = run_id
        self.status = status
        super().__init__(
            f"run {run_id!r} exists already and is {status.value}. Nothing was started. "
            "Give if_exists='return' to get it, 'replace' to end it and begin anew, or 'retry_failed'."
        )


class RunNotFound(ExecutusError, LookupError):
    """No run of that id is known, here or in the store."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"no run {run_id!r} is known, neither live nor in the store")


class ResultUnreadable(ExecutusError, TypeError):
    """A stored result does not fit the Result that this code declares for its run type. It stays as it is."""


class OptionsUnreadable(ExecutusError, TypeError):
    """The policies that a run was started with cannot be read by this code: another release wrote them. They stay."""


class NotResumable(ExecutusError):
    """`resume` of a run that is not stopped, failed or quarantined, or of which no state can be read."""


# --- what waiters, askers and tellers get -----------------------------------------------------------------------------


class RunUnsuccessful(ExecutusError):
    """`result()` of a run that ended without one. `outcome` says how."""

    def __init__(self, run_id: str, outcome: Outcome, text: str) -> None:
        self.run_id = run_id
        self._outcome = outcome
        super().__init__(text)

    @property
    def outcome(self) -> Outcome:
        """How it ended. Each subclass says which outcome it is, so that its fields need no narrowing."""
        return self._outcome


class RunFailed(RunUnsuccessful):
    """It crashed for good. Look at `outcome.error`; `resume()` continues from its last snapshot."""

    if TYPE_CHECKING:

        @property
        def outcome(self) -> Failed: ...  # noqa: D102 - the contract is that of the base


class RunQuarantined(RunUnsuccessful):
    """Its state cannot be read, or it took the process down three times."""

    if TYPE_CHECKING:

        @property
        def outcome(self) -> Quarantined: ...  # noqa: D102 - the contract is that of the base


class RunKilled(RunUnsuccessful):
    """It was killed."""

    if TYPE_CHECKING:

        @property
        def outcome(self) -> Killed: ...  # noqa: D102 - the contract is that of the base


class RunCancelled(RunUnsuccessful):
    """It was cancelled."""

    if TYPE_CHECKING:

        @property
        def outcome(self) -> Cancelled: ...  # noqa: D102 - the contract is that of the base


class RunTimedOut(RunUnsuccessful):
    """Its run_timeout_s elapsed."""

    if TYPE_CHECKING:

        @property
        def outcome(self) -> TimedOut: ...  # noqa: D102 - the contract is that of the base


class RunInterrupted(ExecutusError):
    """The run is suspended, stopped or parked: it has no outcome now.

    It may go on later, in this process or at the next boot.
    """

    def __init__(self, run_id: str, status: RunStatus, reason: str = "") -> None:
        self.run_id = run_id
        self.status = status
        why = f" ({reason})" if reason else ""
        super().__init__(f"run {run_id!r} is {status.value}{why}; what waited for it was given up, the run was not")


class RunEnded(ExecutusError):
    """A message or question for a run that has ended."""

    def __init__(self, run_id: str, status: RunStatus, *, replaced: bool = False) -> None:
        self.run_id = run_id
        self.status = status
        what = (
            f"the run {run_id!r} that this handle is of has ended, another of this id is {status.value}"
            if replaced
            else f"run {run_id!r} is {status.value} and takes no messages"
        )
        super().__init__(f"{what}. The message was not delivered.")


class InboxFull(ExecutusError):
    """As many durable messages as may wait are waiting for the run. This one was not taken; send it again later."""

    def __init__(self, run_id: str, limit: int) -> None:
        self.run_id = run_id
        self.limit = limit
        super().__init__(
            f"run {run_id!r} has {limit} durable messages that it has not consumed, its inbox_limit; this one was not "
            "taken. Send it again later, with the same message_id."
        )


class NotDurable(ExecutusError, TypeError):
    """Something durable is wanted of a run of durability "none", of which nothing is stored."""

    def __init__(
        self, run_id: str, so: str = "so that no message to it can be durable. It was not sent; tell it."
    ) -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id!r} has durability 'none': nothing of it is ever stored, {so}")


class SendFailed(ExecutusError):
    """The store could not say whether it has the message. Send it again with the same `message_id`: once is enough."""

    def __init__(self, run_id: str, message_id: str, why: str) -> None:
        self.run_id = run_id
        self.message_id = message_id
        super().__init__(
            f"run {run_id!r}: the store could not take message {message_id!a}, or could not say so: {why}. Send it "
            "again with the same message_id; it is heard once however often it is sent."
        )


class MessageUnreadable(ExecutusError, TypeError):
    """A stored message does not fit what `receive` declares now. It stays as it is, and its run is parked."""


class RunCrashed(ExecutusError):
    """The run crashed with your message in hand. The message is lost; ask again if it can be repeated."""


class NoReply(ExecutusError):
    """`receive` handled the ask without returning Reply(...)."""


class QueryFailed(ExecutusError):
    """`query` raised what is no Exception (SystemExit, CancelledError …), which would end its asker as well."""


class WaitTimeout(ExecutusError, TimeoutError):
    """The time given for waiting is over. The run goes on; only the waiting ended."""


# --- inside a run -----------------------------------------------------------------------------------------------------


class WrongReturn(ExecutusError, TypeError):
    """A callback returned what it may not; the run crashed and its last completed state stands."""


class SaveRejected(ExecutusError):
    """A state that cannot be stored. The last good snapshot stands; the run goes on."""


class SaveGivenUp(ExecutusError):
    """`context.durable()` of a run that is asked to end while the store fails: its state is not durable yet.

    It is saved with the ending if the store is back by then. Return from the callback.
    """

    def __init__(self, run_id: str, seq: int, trouble: str) -> None:
        self.run_id = run_id
        self.seq = seq
        super().__init__(
            f"run {run_id!r} is asked to end, and its state of seq {seq} is not in the store, which fails: {trouble}. "
            "It is saved with the ending if the store is back by then. Return from the callback."
        )


class CallbackHung(ExecutusError):
    """A callback went on without a heartbeat for longer than idle_timeout_s, and was given up on."""


class RunFenced(ExecutusError):
    """This attempt was given up on and another may be running. Nothing it does has effect; return from the callback."""


class RestartBudgetSpent(ExecutusError):
    """A permanent run ended normally more often than its budget allows."""


# --- dispatchers (appended with actors/dispatcher.py) -----------------------------------------------------------------


class DispatcherClosed(ActorError):
    """The dispatcher runs nothing any more: it was closed, or its event loop was. The turn was not taken."""


# --- supervision trees (appended with actors/tree.py) -----------------------------------------------------------------


class ChildStartFailed(ActorError):
    """A child's constructor or `on_start` raised, or it was ended before it had started. Its error is the cause."""

    def __init__(self, supervisor: str, child_id: str, cause: BaseException | None, done: str) -> None:
        self.child_id = child_id
        why = "it was ended before its on_start was through" if cause is None else f"{type(cause).__name__} was raised"
        super().__init__(f"child {child_id!r} of {supervisor} could not be started: {why}. {done}")
        self.__cause__ = cause


class RestartIntensityReached(ActorError):
    """Children failed more often than their supervisor may restart them: it stopped them all and ended with this."""

    def __init__(
        self,
        supervisor: str,
        child_id: str,
        *,
        how: str,
        max_restarts: int,
        within_s: float,
        cause: BaseException | None,
    ) -> None:
        self.child_id = child_id
        self.max_restarts = max_restarts
        self.within_s = within_s
        super().__init__(
            f"child {child_id!r} of {supervisor} {how}, and the {max_restarts} restarts allowed within {within_s:g} s "
            "are used up. All its children were stopped, and it ended. What follows is its own supervisor's to say; "
            "if it has none, mend the cause and start it again."
        )
        self.__cause__ = cause


class ChildExists(ActorError):
    """The supervisor has a child of that id already. Nothing was started."""

    def __init__(self, supervisor: str, child_id: str) -> None:
        self.child_id = child_id
        super().__init__(
            f"{supervisor} has a child {child_id!r} already; nothing was started. Stop and delete it first, or "
            "restart_child it if it is stopped."
        )


class ChildNotFound(ActorError, LookupError):
    """The supervisor has no child of that id."""

    def __init__(self, supervisor: str, child_id: str) -> None:
        self.child_id = child_id
        super().__init__(f"{supervisor} has no child {child_id!r}")


class ChildNotStopped(ActorError):
    """The child runs, or is to run again. Nothing was changed; stop_child it first."""

    def __init__(self, supervisor: str, child_id: str, state: str) -> None:
        self.child_id = child_id
        super().__init__(f"child {child_id!r} of {supervisor} is {state}; nothing was changed. stop_child it first.")
