"""The pykka seam: an actor type of our own for pykka's API. The only file that imports pykka.

What is overridden, and why:

- `Actor.__init__`: no uuid, no Event, no inbox of its own; the ref is the mailbox and makes its name when asked.
- `Actor.start`: no global registry, which is O(n) and keeps zombies; no thread an actor.
- `Actor._actor_loop` and its parts: not used. One `SystemExit` in pykka's loop stops every actor of the process, one in
  `on_start` leaves a zombie that looks alive. Here a turn is bounded, and everything is contained at one boundary.
- `Actor._handle_receive`: inherited; it knows pykka's proxy messages.
- `ActorRef.__init__`, `is_alive`, `tell`, `ask`, `stop`: on the closable mailbox, so that no ask races with the end.
  What is under them knows no pykka: `Cell` the turns and the end, `Mailbox` the messages, `Promise` the answers.
- `ActorRef._actor_weakref`: a method; proxies ask for the actor through it.
- `Future`: done-callbacks, and an `await` that lets the event loop go on.

An error while handling an **ask** goes to the asker and the actor lives; under a **tell** it dies. So what must not
outlive its own error is driven by tell. What is no `Exception` (SystemExit, KeyboardInterrupt, CancelledError ...)
ends the actor either way, and the asker gets ActorDeadError from it: raised at the asker it would end the asker, too.
"""

from __future__ import annotations

import itertools
import logging
import queue
import sys
import threading
from asyncio.events import _get_running_loop  # no error to raise and catch where there is none: 0.5 us
from collections.abc import Callable, Generator
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, Self, TypeVar, cast, overload

import pykka
from pykka import messages

from executus.actors.ask_cycles import WaitingFor
from executus.actors.cell import Cell, Envelope, Halt
from executus.actors.clock import log_contained
from executus.actors.default_pool import default_dispatcher
from executus.actors.dispatcher import Dispatcher, TurnBudget
from executus.actors.errors import MailboxClosed, RuntimeForked, WaitTimeout
from executus.actors.exit_report import ExitReport, Phase
from executus.actors.forks import forks
from executus.actors.future import Promise, this_thread, yield_cpu
from executus.actors.mailbox import NOTHING
from executus.actors.worker_pool import WorkerPool

if TYPE_CHECKING:
    from pykka._types import OptExcInfo

T = TypeVar("T")
A = TypeVar("A", bound="Actor")


class ActorEnded(MailboxClosed, pykka.ActorDeadError):
    """The actor has ended: a tell was not delivered, an ask will not be answered."""


class AskTimeout(WaitTimeout, pykka.Timeout):
    """No reply within the time given. The actor may still handle the message."""


# --- futures ----------------------------------------------------------------------------------------------------------


class ActorFuture(Envelope[T], pykka.Future[T]):
    """pykka's future, for threads and event loops alike."""

    _hook: tuple[Callable[[float | None], T], threading.Lock] | None = None
    _get_hook_result: Any = NOTHING

    def __repr__(self) -> str:
        return f"<ActorFuture {'done' if self.done() else 'pending'}>"

    def get(self, *, timeout: float | None = None) -> Any:
        """The reply, or raise the error. Raises AskTimeout (a pykka.Timeout and a TimeoutError) when time is over.

        Called within an actor it raises AskCycle at once if the reply would have to wait for this very actor.
        """
        if self._hook is not None:
            return self._get_hooked(*self._hook, timeout)
        if not self._outcomes:
            target = self._target
            if target is None:
                settled = self.wait(timeout)
            else:
                target._check_process()  # noqa: SLF001
                with WaitingFor(target, get_ident()):
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
        if self._outcomes:
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
        return bool(self._outcomes) or self._get_hook_result is not NOTHING

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


_STOP: Final = messages._ActorStop()  # noqa: SLF001  # what pykka's own refs and actors send
_HALT: Final = Halt()

_numbers = itertools.count(1)

MOST_NESTED: Final = 50
"""Asks that run on their caller's thread inside each other; deeper ones are queued, before the stack runs out."""


# --- refs -------------------------------------------------------------------------------------------------------------


class ActorRef(Cell, pykka.ActorRef[A], Generic[A]):
    """Talks to an actor, from any thread; it is the actor's mailbox, and its turn."""

    closed_error: ClassVar[type[MailboxClosed]] = ActorEnded
    envelope: ClassVar[type[Envelope[Any]]] = ActorFuture
    stops: ClassVar[frozenset[type]] = frozenset({Halt, type(_STOP)})
    special: ClassVar[frozenset[type]] = stops | {
        ActorFuture,
        messages.ProxyCall,
        messages.ProxyGetAttr,
        messages.ProxySetAttr,
    }

    __slots__ = ("_lends", "actor_class")

    def __init__(self, actor: A) -> None:  # not pykka's __init__: nothing of what it makes is used
        self.actor_class = type(actor)
        self._lends = False
        Cell.__init__(self, actor, self.actor_class.mailbox_limit)

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
        kind = None if (actor := self._actor_weakref()) is None else actor.turn_kind
        return self.actor_class if kind is None else kind

    def _actor_weakref(self) -> A | None:  # type: ignore[override]
        return cast("A | None", self._handler)

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
        if self._born != forks.count:
            self._check_process()
        if block and timeout is None and self._lends and self._idle:
            return self._ask_here(message)
        return self._ask_queued(message, timeout) if block else self._ask_later(message)

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
        stopped._target = stopped.asks = self  # noqa: SLF001
        stopped.message = _STOP
        try:
            self.tell_anyway(stopped)
        except ActorEnded:
            stopped.try_set(False)  # noqa: FBT003  # it was dead
        return stopped.get(timeout=timeout) if block else stopped

    def halt(self) -> bool:
        """Stop it ahead of all that was told; `on_stop` runs. False if it was dead. Does not wait: `monitor` it."""
        try:
            self.tell_control(_HALT)
        except ActorEnded:
            return False
        return True

    def started(self) -> ActorFuture[None]:
        """Holds when its `on_start` has returned; fails with ActorDeadError if it ended before that."""
        started: ActorFuture[None] = ActorFuture()
        started._target = self  # noqa: SLF001

        def settle(asked: Promise[Any]) -> None:
            error = asked.error()
            if error is None or (self._phase if self._ending is None else self._report().phase) != "starting":
                started.try_set(None)
            else:
                started.try_fail(error)

        # By the control lane it is the first thing handled after `on_start`; the proxy's question, so no `on_receive`
        # sees it.
        asked: ActorFuture[Any] = ActorFuture()
        asked.asks, asked.message = self, messages.ProxyGetAttr(attr_path=("actor_ref",))
        asked.add_done_callback(settle)
        try:
            self.tell_control(asked)
        except ActorEnded as error:
            asked.try_fail(error)
        return started

    # --- asking ---------------------------------------------------------------------------------------------------

    def _ask_later(self, message: Any) -> ActorFuture[Any]:
        future: ActorFuture[Any] = ActorFuture()
        future.message = message
        future._target = future.asks = self  # noqa: SLF001
        try:
            self.tell(future)
        except RuntimeForked:
            raise
        except Exception as error:  # noqa: BLE001  # not delivered; whoever asked is told by the future
            future.try_fail(error)
        return future

    def _ask_queued(self, message: Any, timeout: float | None) -> Any:
        future: ActorFuture[Any] = ActorFuture()
        future.message = message
        future._target = future.asks = self  # noqa: SLF001
        self.tell(future)
        if this_thread.about_to_block is None:
            # Not a worker's own thread: let the workers run once before this one parks. Where that is enough, and for
            # an idle actor it is, two of four changes of threads are saved: 1.8x.
            yield_cpu()
        return future.get(timeout=timeout)

    def _ask_here(self, message: Any) -> Any:
        """Run the turn of an idle actor on this thread, for this one message. See `Actor.caller_runs`."""
        handler, queue, depth = self._handler, self._queue, this_thread.nested
        if (
            depth >= MOST_NESTED
            or type(message) in self.special
            or _get_running_loop() is not None
            or not cast("WorkerPool", self._dispatcher).lends_turns
            or handler is None
        ):
            return self._ask_queued(message, None)
        me = get_ident()
        inside = answered = False
        failed: Exception | None = None
        reply: Any = None
        try:
            del self._idle[0]  # no call: where nothing is called no KeyboardInterrupt comes, and the token is not lost
        except IndexError:
            return self._ask_queued(message, None)
        try:
            this_thread.nested = depth + 1
            # Looked at again, with the token in hand: what was told before this ask comes first.
            if queue.empty() and not self._control and not self._closed:
                self._running = me
                inside = True
                try:
                    reply = handler.on_receive(message)
                except Exception as error:  # noqa: BLE001  # as in a turn: the asker gets it, the actor lives
                    failed = error
                inside = False
                answered = True
        except BaseException as error:
            # Before and after the handler it is nothing to the actor. Within, its state is torn: it ends, as it does of
            # whatever is no Exception; a KeyboardInterrupt is the caller's all the same.
            if not inside:
                raise
            self._end(handler, error)
            if isinstance(error, KeyboardInterrupt):
                raise
            raise ActorEnded(f"{self} died of {type(error).__name__} while handling the message") from error
        finally:
            this_thread.nested = depth
            self._running = None
            try:
                self._idle.append(None)
            finally:  # also for a KeyboardInterrupt that came with the append
                if self._control or not queue.empty():
                    self._wake(NOTHING)
        if not answered:
            return self._ask_queued(message, None)
        if self._closed:
            raise ActorEnded(f"{self} was abandoned while handling the message")
        if failed is not None:
            log_contained(f"Exception returned from {self} to caller:", error=failed, level=logging.INFO)
            raise failed
        return reply

    # --- turns ----------------------------------------------------------------------------------------------------

    def begin(self, dispatcher: Dispatcher, on_exit: Callable[[ExitReport], object] | None) -> None:
        """See `Cell.begin`."""
        if self.actor_class.caller_runs:
            self._lends = isinstance(dispatcher, WorkerPool)
        Cell.begin(self, dispatcher, on_exit)


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
    caller_runs: ClassVar[bool] = False
    """Whether a blocking ask without time-out may run the turn on the asker's own thread, if the actor is idle.

    That saves two changes of threads, most of what an ask costs. It is for actors whose handlers are short and do not
    care on which thread they run: theirs is now any that asks, with its context variables. Never on a thread with a
    running event loop, never for an actor on anything but a worker pool, at most `MOST_NESTED` deep; then the ask is
    queued as always. A KeyboardInterrupt in the handler is raised at the caller, and ends the actor, whose state it
    tore.
    """
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


__all__ = [
    "Actor",
    "ActorEnded",
    "ActorFuture",
    "ActorRef",
    "AskTimeout",
    "ExitReport",
    "Phase",
    "default_dispatcher",
]
