"""The pykka seam: an actor type of our own for pykka's API. The only file that imports pykka.

What is overridden, and why:

- `Actor.__init__`: no uuid, no Event, no inbox of its own; the ref is the mailbox and makes its name when asked.
- `Actor.start`: no global registry, which is O(n) and keeps zombies; no thread an actor.
- `Actor._actor_loop` and its parts: not used. One `SystemExit` in pykka's loop stops every actor of the process, one in
  `on_start` leaves a zombie that looks alive. Here a turn is bounded, and everything is contained at one boundary.
- `Actor._handle_receive`: inherited; it knows pykka's proxy messages.
- `ActorRef.__init__`, `is_alive`, `tell`, `ask`, `stop`: on the closable mailbox, so that no ask races with the end.
- `ActorRef._actor_weakref`: a method; proxies ask for the actor through it.
- `Future`: done-callbacks, and an `await` that lets the event loop go on.

An error while handling an **ask** goes to the asker and the actor lives; under a **tell** it dies. So what must not
outlive its own error is driven by tell. What is no `Exception` (SystemExit, KeyboardInterrupt, CancelledError ...)
ends the actor either way, and the asker gets ActorDeadError from it: raised at the asker it would end the asker, too.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, Self, TypeVar, cast, overload

import pykka
from pykka import messages

from executus.actors.clock import log_contained
from executus.actors.dispatcher import Dispatcher, TurnBudget
from executus.actors.errors import AskCycle, MailboxClosed, RuntimeForked, WaitTimeout
from executus.actors.future import Promise
from executus.actors.mailbox import NOTHING, Mailbox
from executus.actors.worker_pool import WorkerPool

if TYPE_CHECKING:
    from pykka._types import OptExcInfo

T = TypeVar("T")
A = TypeVar("A", bound="Actor")

Phase = Literal["starting", "running", "stopping"]


class ActorEnded(MailboxClosed, pykka.ActorDeadError):
    """The actor has ended: a tell was not delivered, an ask will not be answered."""


class AskTimeout(WaitTimeout, pykka.Timeout):
    """No reply within the time given. The actor may still handle the message."""


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How an actor ended. Given to every monitor exactly once.

    `error` is what a hook raised in `phase`, or None. `abandoned`: it was given up on while in a hook that did not
    return. `unhandled` counts what was accepted and never handled; those of it that were asked got ActorDeadError.
    """

    actor: str
    error: BaseException | None
    phase: Phase
    abandoned: bool
    unhandled: int


# --- futures ----------------------------------------------------------------------------------------------------------


class ActorFuture(Promise[T], pykka.Future[T]):
    """pykka's future, for threads and event loops alike."""

    _hook: tuple[Callable[[float | None], T], threading.Lock] | None = None
    _get_hook_result: Any = NOTHING
    _target: ActorRef[Any] | None = None
    """Whom we wait for: to find cycles of asks, and forks."""

    def __init__(self) -> None:
        super().__init__()  # Promise's alone: pykka's two attributes are the class's here

    def __repr__(self) -> str:
        return f"<ActorFuture {'done' if self.done() else 'pending'}>"

    def get(self, *, timeout: float | None = None) -> Any:
        """The reply, or raise the error. Raises AskTimeout (a pykka.Timeout and a TimeoutError) when time is over.

        Called within an actor it raises AskCycle at once if the reply would have to wait for this very actor.
        """
        if self._hook is not None:
            return self._get_hooked(*self._hook, timeout)
        if not self._done:
            target = self._target
            if target is None:
                settled = self.wait(timeout)
            else:
                with target.waited_for():
                    settled = self.wait(timeout)
            if not settled:
                raise AskTimeout(f"{timeout} seconds")
        return self.result(0)

    def set(self, value: T | None = None) -> None:
        """Settle with `value`. Raises queue.Full if it was settled before or has a get hook."""
        if self._hook is not None or not self.try_set(cast("T", value)):
            raise queue.Full

    def set_exception(self, exc_info: OptExcInfo | None = None) -> None:
        """Settle with the error of `exc_info`, or the one being handled. Raises queue.Full as `set` does."""
        kind, error, traceback = exc_info if exc_info is not None else sys.exc_info()
        if error is None:
            error = kind() if kind is not None else RuntimeError("set_exception() without an exception")
        if error.__traceback__ is not traceback:
            error = error.with_traceback(traceback)
        if self._hook is not None or not self.try_fail(error):
            raise queue.Full

    def set_get_hook(self, func: Callable[[float | None], T]) -> None:
        """Have `func(timeout)` make the value when it is first got. Raises queue.Full if settled."""
        if self._done:
            raise queue.Full
        self._hook = (func, threading.Lock())

    def _get_hooked(self, hook: Callable[[float | None], T], lock: threading.Lock, timeout: float | None) -> Any:
        # One getter at a time in the hook, as in pykka: a hook with effects runs once for all. Read again under the
        # lock, the result is there or nobody else is making it.
        if self._get_hook_result is NOTHING:
            if not lock.acquire(timeout=-1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)):
                raise AskTimeout(f"{timeout} seconds")
            try:
                if self._get_hook_result is NOTHING:
                    self._get_hook_result = hook(timeout)
            finally:
                lock.release()
        return self._get_hook_result

    def done(self) -> bool:
        """Whether `get` returns at once. One made by `map` and the like is done once it was got."""
        return self._done or self._get_hook_result is not NOTHING

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn(self)` exactly once, at once if it is done. It runs on the thread that settles: keep it short."""
        if self._hook is None:
            super().add_done_callback(fn)
        else:
            self._fetched(*self._hook).add_done_callback(lambda _: fn(self))

    def __await__(self) -> Generator[Any, None, T]:
        """The reply, for a coroutine; the event loop goes on meanwhile."""
        if self._hook is None:
            return super().__await__()
        return self._fetched(*self._hook).__await__()

    __iter__ = __await__

    def _fetched(self, hook: Callable[[float | None], T], lock: threading.Lock) -> Promise[T]:
        """The value that a hook makes. It may block, so it runs on a thread of its own."""
        fetched: Promise[T] = Promise()

        def fetch() -> None:
            try:
                value = self._get_hooked(hook, lock, None)
            except BaseException as error:  # noqa: BLE001  # goes to whoever waits
                fetched.try_fail(error)
            else:
                fetched.try_set(value)

        threading.Thread(target=fetch, name="executus-default-hook", daemon=True).start()
        return fetched


class _Ask:
    """A message with somebody who waits. An envelope of its own, for a future may itself be told as a message."""

    __slots__ = ("message", "reply_to")

    def __init__(self, message: Any, reply_to: ActorFuture[Any]) -> None:
        self.message = message
        self.reply_to = reply_to


class _Halt:
    """Stop, from the control lane."""


_STOP: Final = messages._ActorStop()  # noqa: SLF001  # what pykka's own refs and actors send
_HALT: Final = _Halt()
_SPECIAL: Final = frozenset(
    {_Ask, _Halt, type(_STOP), messages.ProxyCall, messages.ProxyGetAttr, messages.ProxySetAttr}
)
_STOPS: Final = frozenset({_Halt, type(_STOP)})

_numbers = itertools.count(1)

_current = threading.local()
"""`.ref`: the actor whose turn runs on this thread."""


# --- refs -------------------------------------------------------------------------------------------------------------


class ActorRef(Mailbox, pykka.ActorRef[A], Generic[A]):
    """Talks to an actor, from any thread; it is the actor's mailbox, and its turn."""

    closed_error: ClassVar[type[MailboxClosed]] = ActorEnded

    def __init__(self, actor: A) -> None:  # not pykka's __init__: nothing of what it makes is used
        self.actor_class = type(actor)
        Mailbox.__init__(self, self.actor_class.mailbox_limit)
        # Strong, for no thread keeps an idle actor alive; dropped at the end, which breaks the circle.
        self._actor: A | None = actor
        self._dispatcher: Dispatcher | None = None
        self._budget = _NO_BUDGET
        self._pid = 0
        self._started = False
        self._phase: Phase = "starting"
        self._error: BaseException | None = None
        self._in_hand: _Ask | None = None
        self._waits_for: ActorRef[Any] | None = None
        # These two change under the mailbox's lock: whoever puts the report there is the one who delivers it, and a
        # monitor is either on the list that goes with it or finds the report.
        self._report: ExitReport | None = None
        self._monitors: tuple[Callable[[ExitReport], object], ...] = ()

    @property
    def actor_urn(self) -> str:  # type: ignore[override]
        """A name, unique in this process, made when first asked for."""
        urn = self.__dict__.get("_urn")
        # `setdefault` of a dict is one step: of two threads that ask first, both get the same name.
        return cast("str", urn or self.__dict__.setdefault("_urn", f"urn:executus:{next(_numbers)}"))

    @property
    def actor_stopped(self) -> threading.Event:  # type: ignore[override]
        """An event that is set when the actor has ended. Made when first asked for; `monitor` tells more."""
        event = threading.Event()
        self.monitor(lambda _: event.set())
        return event

    @property
    def kind(self) -> object:
        """What its turns are told apart by: see `Actor.turn_kind`."""
        kind = None if (actor := self._actor) is None else actor.turn_kind
        return self.actor_class if kind is None else kind

    def _actor_weakref(self) -> A | None:  # type: ignore[override]
        return self._actor

    def __repr__(self) -> str:
        return f"<ActorRef for {self}>"

    # --- any thread -----------------------------------------------------------------------------------------------

    def is_alive(self) -> bool:
        """Whether it takes messages. False from the moment it stops, before its `on_stop`."""
        return not self._closed

    @overload
    def ask(self, message: Any, *, block: Literal[False], timeout: float | None = None) -> ActorFuture[Any]: ...
    @overload
    def ask(self, message: Any, *, block: Literal[True] = True, timeout: float | None = None) -> Any: ...
    @overload
    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any | ActorFuture[Any]: ...
    def ask(  # pyright: ignore[reportIncompatibleMethodOverride]  # the same calls; ours knows `block`'s default as well
        self, message: Any, *, block: bool = True, timeout: float | None = None
    ) -> Any | ActorFuture[Any]:
        """Send `message` and get the reply, or with `block=False` its future. Always answered, if only by an error.

        The future fails with ActorDeadError if the actor has ended or ends first, and with MailboxFull at the limit.
        Blocking, raises these, AskTimeout, AskCycle, and whatever handling the message raised.
        """
        self._check_process()
        future: ActorFuture[Any] = ActorFuture()
        future._target = self  # noqa: SLF001
        try:
            self.tell(_Ask(message, future))
        except RuntimeForked:
            raise
        except Exception as error:  # noqa: BLE001  # not delivered; whoever asked is told by the future
            future.try_fail(error)
        return future.get(timeout=timeout) if block else future

    @overload
    def stop(self, *, block: Literal[True] = True, timeout: float | None = None) -> bool: ...
    @overload
    def stop(self, *, block: Literal[False], timeout: float | None = None) -> ActorFuture[bool]: ...
    @overload
    def stop(self, *, block: bool = True, timeout: float | None = None) -> bool | ActorFuture[bool]: ...
    def stop(self, *, block: bool = True, timeout: float | None = None) -> bool | ActorFuture[bool]:
        """Stop it behind what was told before. True when it has ended, its `on_stop` included; False if it was dead.

        Never refused by a full mailbox.
        """
        self._check_process()
        stopped: ActorFuture[bool] = ActorFuture()
        stopped._target = self  # noqa: SLF001
        future: ActorFuture[None] = ActorFuture()
        future.add_done_callback(lambda _: stopped.try_set(future.error() is None))
        try:
            self.tell_anyway(_Ask(_STOP, future))
        except ActorEnded as error:
            future.try_fail(error)
        return stopped.get(timeout=timeout) if block else stopped

    def halt(self) -> bool:
        """Stop it ahead of all that was told; `on_stop` runs. False if it was dead. Does not wait: `monitor` it."""
        try:
            self.tell_control(_HALT)
        except ActorEnded:
            return False
        return True

    def abandon(self) -> bool:
        """Give up on it, also while it is stuck in a hook: it is dead at once and its report says `abandoned`.

        When the stuck call returns, nothing of it has effect: no reply, no further hook, no report. Its thread then
        ends or goes back. The message in hand, if asked, is answered with ActorDeadError. False if it was dead.
        """
        self._check_process()
        if not self._finish(None, abandoned=True):
            return False
        abandoned = getattr(self._dispatcher, "abandoned", None)
        if abandoned is not None:
            abandoned(self)
        return True

    def monitor(self, callback: Callable[[ExitReport], object]) -> None:
        """Call `callback(report)` exactly once when it ends, or now if it has. Keep it short; errors are contained.

        It runs on the thread that ends the actor, or on this one.
        """
        self._check_process()
        with self._lock:
            report = self._report
            if report is None:
                self._monitors = (*self._monitors, callback)
        if report is not None:
            _deliver(report, (callback,))

    def started(self) -> ActorFuture[None]:
        """Holds when its `on_start` has returned; fails with ActorDeadError if it ended before that."""
        started: ActorFuture[None] = ActorFuture()
        started._target = self  # noqa: SLF001

        def settle(asked: Promise[Any]) -> None:
            error, report = asked.error(), self._report
            if error is None or (self._phase if report is None else report.phase) != "starting":
                started.try_set(None)
            else:
                started.try_fail(error)

        # By the control lane it is the first thing handled after `on_start`; the proxy's question, so no `on_receive`
        # sees it.
        asked: ActorFuture[Any] = ActorFuture()
        asked.add_done_callback(settle)
        try:
            self.tell_control(_Ask(messages.ProxyGetAttr(attr_path=("actor_ref",)), asked))
        except ActorEnded as error:
            asked.try_fail(error)
        return started

    def running_thread(self) -> int | None:
        """The ident of the thread in one of its hooks now, or None."""
        return self._running

    def waited_for(self) -> _Waiting:
        """The block in which this thread waits for a reply from this actor. Entering raises AskCycle, RuntimeForked."""
        return _Waiting(self)

    # --- turns ----------------------------------------------------------------------------------------------------

    def begin(self, dispatcher: Dispatcher, on_exit: Callable[[ExitReport], object] | None) -> None:
        """Let its first turn run on `dispatcher`. Once."""
        self._dispatcher = dispatcher
        own: TurnBudget | None = self.actor_class.turn_budget
        self._budget = getattr(dispatcher, "budget", _NO_BUDGET) if own is None else own
        self._pid = os.getpid()
        if on_exit is not None:
            self._monitors = (on_exit,)
        self.open()

    def run_turn(self) -> None:
        """A bounded batch of messages. The one boundary: whatever a hook raises ends here, and this actor alone."""
        thread = threading.get_ident()
        actor = self._actor
        if actor is None or not self.enter(thread):
            return
        _current.ref = self
        try:
            try:
                if not self._started:
                    self._started = True
                    actor.on_start()
                    self._phase = "running"
                stopping = self._run_batch(actor)
            except BaseException as error:  # noqa: BLE001
                self._end(actor, error)
            else:
                if stopping:
                    self._end(actor, None)
                else:
                    self.leave()
        finally:
            _current.ref = None

    def turn_refused(self, error: BaseException) -> None:
        """Its dispatcher has closed and will not run it: it ends here, without hooks."""
        if self._finish(error, abandoned=False):
            log_contained(f"{self} ended, for its dispatcher takes no turns:", error=error)

    def _run_batch(self, actor: A) -> bool:
        """Handle messages until the batch is over (False) or one says stop (True). Raises what ends the actor."""
        on_receive = actor.on_receive
        get = self._queue.get_nowait  # `take` by hand, without its call: a tenth of what a told message costs
        seconds = self._budget.seconds
        until_s = monotonic() + seconds if seconds is not None else 0.0
        for _ in range(self._budget.messages):
            if self._control:
                message = self.take()
            else:
                try:
                    message = get()
                except queue.Empty:
                    return False
            if self._closed or message is NOTHING:
                self._refuse(message)
                return False
            kind = type(message)  # pyright: ignore[reportUnknownVariableType]  # messages are of any type
            if kind not in _SPECIAL:
                on_receive(message)
            elif kind is _Ask:
                if self._answer(actor, message):
                    return True
            elif kind in _STOPS:
                return True
            else:
                actor._handle_receive(message)  # noqa: SLF001
            if seconds is not None and monotonic() >= until_s:
                return False
        return False

    def _answer(self, actor: A, ask: _Ask) -> bool:
        """Handle an ask and settle its future. True if it asks to stop. Raises what is no Exception."""
        with self._lock:  # with `abandon`: it finds this in hand and answers it, or we find the mailbox closed
            closed = self._closed
            self._in_hand = ask
        if closed:
            self._refuse(ask)
            return False
        if type(ask.message) in _STOPS:
            return True  # stays in hand until `_finish` answers it
        try:
            if type(ask.message) in _SPECIAL:
                reply = actor._handle_receive(ask.message)  # noqa: SLF001
            else:
                reply = actor.on_receive(ask.message)
        except Exception as error:  # noqa: BLE001  # as in pykka: the asker gets it, the actor lives
            ask.reply_to.try_fail(error)
            log_contained(f"Exception returned from {self} to caller:", level=logging.INFO)
        else:
            ask.reply_to.try_set(reply)
        self._in_hand = None
        return False

    def _end(self, actor: A, error: BaseException | None) -> None:
        """Run the last hook and report; not for one that was abandoned, which has its report."""
        if not self.close():
            self.leave()
            return
        self._error = error  # for the report, should `on_failure` have to be abandoned
        if error is not None:
            log_contained(f"Unhandled exception in {self}:", error=error, level=actor.crash_log_level)
        try:
            if error is None:
                self._phase = "stopping"
                actor.on_stop()
            elif self._phase == "running":
                actor.on_failure(type(error), error, error.__traceback__)
        except BaseException as hook_error:  # noqa: BLE001  # the boundary again: a last hook may raise as well
            if error is None:
                error = hook_error
            log_contained(f"Unhandled exception in {self}:")
        finally:
            self.leave()
            self._finish(error, abandoned=False)

    def _finish(self, error: BaseException | None, *, abandoned: bool) -> bool:
        """Close, make the report, answer everybody, tell the monitors. False, and no effect, if there is a report."""
        name = str(self)
        # Closing and claiming the report in one step: whoever finds the mailbox closed by somebody else while it is in
        # a turn was abandoned, and the report is the abandoner's.
        with self._lock:
            if self._report is not None:
                return False
            self._close()
            leftovers, self._leftovers = self._leftovers or [], None
            in_hand, self._in_hand = self._in_hand, None
            unhandled = sum(1 for message in leftovers if not _is_stop(message))
            self._report = report = ExitReport(
                name, self._error if error is None else error, self._phase, abandoned, unhandled
            )
            monitors, self._monitors = self._monitors, ()
            self._actor = None
        # Answers before reports: who waits for the end must not depend on what a monitor does.
        if in_hand is not None:
            self._refuse(in_hand, error)
        for message in leftovers:
            self._refuse(message, error)
        _deliver(report, monitors)
        return True

    def _refuse(self, message: Any, cause: BaseException | None = None) -> None:
        """Answer one that will not be handled: to stop is done, the rest gets ActorDeadError."""
        if type(message) is not _Ask:
            return
        if _is_stop(message):
            message.reply_to.try_set(None)
            return
        why = "" if cause is None else f"; it died of {type(cause).__name__}"
        dead = ActorEnded(f"{self} stopped before handling the message{why}")
        dead.__cause__ = cause
        message.reply_to.try_fail(dead)

    # --- of the mailbox -------------------------------------------------------------------------------------------

    def _check_process(self) -> None:
        if self._pid and self._pid != os.getpid():
            raise RuntimeForked(f"{self} belongs to the parent process; this is a forked child")

    def _schedule(self) -> None:
        try:
            cast("Dispatcher", self._dispatcher).schedule(self)  # `begin` comes before any schedule
        except RuntimeForked:
            raise
        except BaseException as error:  # noqa: BLE001  # no turn will ever come: better dead than silent
            self.turn_refused(error)


class _Waiting:
    """This thread waits for `target`. Seen by other waiters, so that a cycle is found by whoever closes it.

    Each waiter writes its own arrow before it follows the others'. Two that close a cycle at the same time may both see
    it and both raise; at worst, on a machine that delays writes, neither does and the time-out decides.
    """

    __slots__ = ("_me", "_target")

    def __init__(self, target: ActorRef[Any]) -> None:
        self._me: ActorRef[Any] | None = getattr(_current, "ref", None)
        self._target = target

    def __enter__(self) -> None:
        target, me = self._target, self._me
        target._check_process()  # noqa: SLF001
        if me is None:
            return
        me._waits_for = target  # noqa: SLF001
        seen: ActorRef[Any] | None = target
        for _ in range(1000):  # arrows change while we follow them; no chain of ours is that long
            if seen is None:
                return
            if seen is me:
                me._waits_for = None  # noqa: SLF001
                raise AskCycle(f"{me} would wait for {target}, which waits for {me}: neither could ever go on")
            seen = seen._waits_for  # noqa: SLF001

    def __exit__(self, *_: object) -> None:
        if self._me is not None:
            self._me._waits_for = None  # noqa: SLF001


def _is_stop(message: Any) -> bool:
    return type(message) in _STOPS or (type(message) is _Ask and type(message.message) in _STOPS)


def _deliver(report: ExitReport, monitors: Iterable[Callable[[ExitReport], object]]) -> None:
    for monitor in monitors:
        try:
            monitor(report)
        except BaseException:  # noqa: BLE001  # the boundary: a monitor is not part of the actor that ended
            log_contained(f"a monitor of {report.actor} raised")


_NO_BUDGET: Final = TurnBudget()


# --- actors -----------------------------------------------------------------------------------------------------------


class Actor(pykka.Actor):
    """pykka's actor on a shared dispatcher: the same hooks, a thread only while there is something to do.

    `on_failure` is called as by pykka, for what `on_receive` raised under a tell; errors of the other hooks, and these,
    are in the ExitReport. An actor to which nothing refers any more is garbage like everything else.
    """

    mailbox_limit: ClassVar[int | None] = None
    """How many messages may wait; None is any number. Control, and stop, are not counted."""
    turn_budget: ClassVar[TurnBudget | None] = None
    """How long its turns are; None is what its dispatcher says."""
    turn_kind: object = None
    """What a dispatcher tells its turns apart by when it learns which of them block; None is the class."""
    crash_log_level: ClassVar[int] = logging.ERROR
    """At which level a crash is logged here; lower it where whoever gets the exit report tells of it in other words."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:  # not pykka's, see the top of the file
        self._actor_ref = ActorRef(self)

    @classmethod
    def start(  # pyright: ignore[reportIncompatibleMethodOverride]  # our ref is pykka's, of a narrower actor
        cls, *args: Any, **kwargs: Any
    ) -> ActorRef[Self]:
        """Start one on the default dispatcher, which is made on first use. Arguments go to the constructor."""
        return _start(default_dispatcher(), None, cls, args, kwargs)

    @classmethod
    def start_on(
        cls,
        dispatcher: Dispatcher,
        /,
        *args: Any,
        on_exit: Callable[[ExitReport], None] | None = None,
        **kwargs: Any,
    ) -> ActorRef[Self]:
        """Start one on `dispatcher`; `on_exit` is its first monitor. Does not wait for `on_start`.

        What the constructor raises is raised here. A dispatcher that takes no turns makes a dead actor, whose report
        says why; only in a forked child it raises RuntimeForked.
        """
        return _start(dispatcher, on_exit, cls, args, kwargs)

    @property
    def actor_ref(self) -> ActorRef[Self]:  # pyright: ignore[reportIncompatibleMethodOverride]  # as at `start`
        """The ref that others use."""
        return cast("ActorRef[Self]", self._actor_ref)

    @property
    def actor_urn(self) -> str:  # type: ignore[override]
        """See `ActorRef.actor_urn`."""
        return self.actor_ref.actor_urn

    @property
    def actor_stopped(self) -> threading.Event:  # type: ignore[override]
        """See `ActorRef.actor_stopped`."""
        return self.actor_ref.actor_stopped

    def stop(self) -> None:
        """Stop behind what is queued. Harmless when it ends already."""
        self._actor_ref.stop(block=False)

    @staticmethod
    def _create_actor_inbox() -> Any:
        raise NotImplementedError("the ref is the mailbox")

    @staticmethod
    def _create_future() -> ActorFuture[Any]:
        return ActorFuture()

    def _start_actor_loop(self) -> None:
        raise NotImplementedError("there is no loop; the dispatcher runs turns")


def _start(
    dispatcher: Dispatcher,
    on_exit: Callable[[ExitReport], object] | None,
    actor_class: type[A],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> ActorRef[A]:
    actor = actor_class(*args, **kwargs)
    ref = getattr(actor, "_actor_ref", None)
    if ref is None:  # as pykka says it, and with the same error
        raise AssertionError("Actor.__init__() have not been called. Did you forget to call super() in your override?")
    ref.begin(dispatcher, on_exit)
    return cast("ActorRef[A]", ref)


_default_lock = threading.Lock()
_default: tuple[int, WorkerPool] | None = None


def default_dispatcher() -> WorkerPool:
    """The process's own dispatcher, made on first use. A forked child gets another.

    It is never closed: its threads are daemons and end with the process.
    """
    global _default  # noqa: PLW0603  # pykka's `start` has no place to hand one in
    # Read without the lock: a tuple that is there is complete. Made under it: once a process.
    found = _default
    if found is not None and found[0] == os.getpid():
        return found[1]
    with _default_lock:
        if _default is None or _default[0] != os.getpid():
            _default = (os.getpid(), WorkerPool(name="executus-default"))
        return _default[1]
