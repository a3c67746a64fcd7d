"""What an actor lives in: its mailbox, its turns, the one boundary for what its hooks raise, and its one exit report.

Plain machinery: it knows hooks and asks, and not whose API they are (see actor.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import Empty
from threading import get_ident
from time import monotonic
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar, cast

from executus.actors.clock import log_contained
from executus.actors.dispatcher import Dispatcher, TurnBudget
from executus.actors.errors import RuntimeForked
from executus.actors.exit_report import ExitReport, Phase, deliver
from executus.actors.future import Promise
from executus.actors.mailbox import NOTHING, Mailbox

T = TypeVar("T")

UNCLOCKED: Final = 16
"""In a batch so many messages at most are handled between two looks at the clock."""

_NO_BUDGET: Final = TurnBudget()


class Halt:
    """Stop, from the control lane."""


class Envelope(Promise[T], Generic[T]):
    """An answer to come, which travels as its own question: one object an ask instead of two.

    `asks` is whose question it is, until that one has taken it. After that, and in any other mailbox, it is a message
    like others: a future may be told to somebody. `message` may be read by the owner that took it.
    """

    __slots__ = ("_target", "asks", "message")

    def __init__(self) -> None:
        self._outcomes = []  # by hand, without `super().__init__()`: a tenth of what a pipelined ask costs
        self._callbacks = []
        self.asks: Cell | None = None
        # Whom we wait for: to find cycles of asks, and forks.
        self._target: Cell | None = None
        self.message: Any = None


class Handler(Protocol):
    """Whose hooks are called: pykka's, by their names."""

    crash_log_level: ClassVar[int]
    turn_budget: ClassVar[TurnBudget | None]

    def on_start(self) -> Any: ...  # noqa: D102  # pykka's
    def on_receive(self, message: Any) -> Any: ...  # noqa: D102
    def on_stop(self) -> Any: ...  # noqa: D102
    def on_failure(self, kind: Any, error: Any, traceback: Any, /) -> Any: ...  # noqa: D102
    def _handle_receive(self, message: Any) -> Any: ...


class Cell(Mailbox):
    """Runs a handler's turns, and ends it: on its own word, at an error, or when it is given up on."""

    __slots__ = ("_budget", "_dispatcher", "_ending", "_error", "_handler", "_in_hand", "_monitors", "_phase")

    envelope: ClassVar[type[Envelope[Any]]]
    """The type of asks."""
    stops: ClassVar[frozenset[type]]
    """The types of messages that say stop."""
    special: ClassVar[frozenset[type]]
    """The types of all messages that are not simply `on_receive`d. One look instead of a chain of `isinstance`."""

    def __init__(self, handler: Handler, limit: int | None) -> None:
        Mailbox.__init__(self, limit)  # `super()`, three deep, is a tenth of a start
        # Strong, for no thread keeps an idle actor alive; dropped at the end, which breaks the circle.
        self._handler: Handler | None = handler
        self._dispatcher: Dispatcher | None = None
        self._budget = _NO_BUDGET
        self._phase: Phase = "starting"
        self._error: BaseException | None = None
        self._in_hand: Envelope[Any] | None = None
        # These two change under the mailbox's lock: whoever writes the ending is the one who delivers it, and a monitor
        # is either on the list that goes with it or finds the ending, from which the report is made.
        self._ending: ExitReport | tuple[BaseException | None, Phase, bool, int] | None = None
        self._monitors: tuple[Callable[[ExitReport], object], ...] = ()

    # --- any thread -----------------------------------------------------------------------------------------------

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
            ended = self._ending is not None
            if not ended:
                self._monitors = (*self._monitors, callback)
        if ended:
            deliver(self._report(), (callback,))

    def running_thread(self) -> int | None:
        """The ident of the thread in one of its hooks now, or None."""
        return self._running

    # --- turns ----------------------------------------------------------------------------------------------------

    def begin(self, dispatcher: Dispatcher, on_exit: Callable[[ExitReport], object] | None) -> None:
        """Let its first turn run on `dispatcher`. Once."""
        self._dispatcher = dispatcher
        own = cast("Handler", self._handler).turn_budget
        self._budget = getattr(dispatcher, "budget", _NO_BUDGET) if own is None else own
        if on_exit is not None:
            self._monitors = (on_exit,)
        self._schedule()

    def run_turn(self) -> None:
        """A bounded batch of messages. The one boundary: whatever a hook raises ends here, and this actor alone."""
        # `enter`, `take` and `leave` by hand, here and below: their calls were a fifth of a turn with one message.
        handler = self._handler
        if handler is None or self._closed:
            return
        self._running = get_ident()
        queue = self._queue
        stopping = False
        try:
            if self._phase == "starting":
                handler.on_start()
                self._phase = "running"
            # Asked for its length, the queue need not be asked until it raises Empty, which costs as much as a handler.
            waiting = queue.qsize()
            if self._control or waiting > 1:
                stopping = self._run_batch(handler, waiting)
            elif waiting and (message := self.take()) is not NOTHING:
                kind = type(message)  # pyright: ignore[reportUnknownVariableType]  # messages are of any type
                if kind not in self.special:
                    handler.on_receive(message)
                else:
                    stopping = self._handle_special(handler, message, kind)  # pyright: ignore[reportUnknownArgumentType]
        except BaseException as error:  # noqa: BLE001
            self._end(handler, error)
            return
        if stopping:
            self._end(handler, None)
            return
        self._running = None
        if self._control or not queue.empty():
            if not self._closed:
                self._schedule()
            return
        self._idle.append(None)
        if self._control or not queue.empty():
            self._wake(NOTHING)

    def turn_refused(self, error: BaseException) -> None:
        """Its dispatcher has closed and will not run it: it ends here, without hooks."""
        handler = self._handler
        if self._finish(error, abandoned=False):
            # At its own level: a loop that is closed under a thousand runs would be a thousand tracebacks.
            level = logging.ERROR if handler is None else handler.crash_log_level
            log_contained(f"{self} ended, for its dispatcher takes no turns:", error=error, level=level)

    def _run_batch(self, handler: Handler, waiting: int) -> bool:
        """Handle messages until the batch is over (False) or one says stop (True). Raises what ends the actor."""
        on_receive, special = handler.on_receive, self.special
        get = self._queue.get_nowait
        most, seconds = self._budget
        if self._control:
            waiting += len(self._control or ())
        left = min(waiting, most)
        until_s = monotonic() + seconds if seconds is not None else 0.0
        # The clock is read after 1, 4 and then each 16 messages; after each it was a fifth of a told message. A long
        # message among short ones ends the turn after 15 more at most.
        unclocked = 1
        while left > 0:
            for _ in range(min(unclocked, left)):
                try:
                    message = get() if not self._control else self._take_control(get)
                except Empty:  # closed meanwhile
                    return False
                kind = type(message)  # pyright: ignore[reportUnknownVariableType]  # messages are of any type
                if kind not in special:
                    on_receive(message)
                elif self._handle_special(handler, message, kind):  # pyright: ignore[reportUnknownArgumentType]
                    return True
            left -= unclocked
            if seconds is not None:
                if monotonic() >= until_s:
                    return False
                if unclocked < UNCLOCKED:
                    unclocked *= 4
            else:
                unclocked = UNCLOCKED
        return False

    def _take_control(self, get: Callable[[], Any]) -> Any:
        message = self.take()
        return get() if message is NOTHING else message

    def _handle_special(self, handler: Handler, message: Any, kind: type) -> bool:
        """Handle what is not simply received. True if it says stop. Raises what ends the actor."""
        if kind is self.envelope:
            asks: Cell | None = message.asks
            if asks is self:
                return self._answer(handler, message)
            handler.on_receive(message)  # somebody's future, told as a message
        elif kind in self.stops:
            return True
        else:
            handler._handle_receive(message)  # noqa: SLF001  # pykka's
        return False

    def _answer(self, handler: Handler, ask: Envelope[Any]) -> bool:
        """Handle an ask and settle it. True if it asks to stop. Raises what is no Exception."""
        message = ask.message
        ask.asks = ask.message = None
        self._in_hand = ask
        # With `abandon`, which sets `_closed`, *then* takes the queue apart, *then* looks what is in hand. We write
        # what is in hand, *then* touch the queue, *then* read `_closed`. By the queue's own lock: either it finds this
        # in hand and answers it, or we find the mailbox closed.
        self._queue.empty()
        if self._closed:
            self._refuse(ask)
            return False
        kind = type(message)  # pyright: ignore[reportUnknownVariableType]  # messages are of any type
        try:
            if kind not in self.special or kind is self.envelope:
                reply = handler.on_receive(message)
            elif kind in self.stops:
                ask.message = message  # it stays in hand until `_finish` answers it
                return True
            else:
                reply = handler._handle_receive(message)  # noqa: SLF001  # pykka's
        except Exception as error:  # noqa: BLE001  # as in pykka: the asker gets it, the actor lives
            self._in_hand = None
            ask.try_fail(error)
            log_contained(f"Exception returned from {self} to caller:", level=logging.INFO)
        else:
            self._in_hand = None
            ask.try_set(reply)
        return False

    # --- the end --------------------------------------------------------------------------------------------------

    def _end(self, handler: Handler, error: BaseException | None) -> None:
        """Run the last hook and report; not for one that was abandoned, which has its report."""
        if not self.close():
            self._running = None
            return
        self._error = error  # for the report, should `on_failure` have to be abandoned
        if error is not None:
            log_contained(f"Unhandled exception in {self}:", error=error, level=handler.crash_log_level)
        try:
            if error is None:
                self._phase = "stopping"
                handler.on_stop()
            elif self._phase == "running":
                handler.on_failure(type(error), error, error.__traceback__)
        except BaseException as hook_error:  # noqa: BLE001  # the boundary again: a last hook may raise as well
            if error is None:
                error = hook_error
            log_contained(f"Unhandled exception in {self}:")
        finally:
            self._running = None
            self._finish(error, abandoned=False)

    def _finish(self, error: BaseException | None, *, abandoned: bool) -> bool:
        """Close, make the report, answer everybody, tell the monitors. False, and no effect, if there is a report."""
        # Closing and claiming the report in one step: whoever finds the mailbox closed by somebody else while it is in
        # a turn was abandoned, and the report is the abandoner's.
        with self._lock:
            if self._ending is not None:
                return False
            self._close()
            leftovers, self._leftovers = self._leftovers or [], None
            in_hand, self._in_hand = self._in_hand, None
            unhandled = sum(not self._is_stop(message) for message in leftovers) if leftovers else 0
            self._ending = (self._error if error is None else error, self._phase, abandoned, unhandled)
            monitors, self._monitors = self._monitors, ()
            self._handler = None
        # Answers before reports: who waits for the end must not depend on what a monitor does.
        if in_hand is not None:
            self._refuse(in_hand, error)
        for message in leftovers:
            if type(message) is self.envelope and message.asks is self:
                self._refuse(message, error)
        if monitors:
            deliver(self._report(), monitors)
        return True

    def _report(self) -> ExitReport:
        """The report, made by the first who wants to read it: a name and a report were a fifth of an actor's life."""
        ending = self._ending
        assert ending is not None
        if isinstance(ending, ExitReport):
            return ending
        made = ExitReport(str(self), *ending)
        with self._lock:
            if isinstance(self._ending, ExitReport):
                return self._ending
            self._ending = made
        return made

    def _is_stop(self, message: Any) -> bool:
        kind = type(message)  # pyright: ignore[reportUnknownVariableType]  # messages are of any type
        return kind in self.stops or (
            kind is self.envelope and message.asks is self and type(message.message) in self.stops
        )

    def _refuse(self, ask: Envelope[Any], cause: BaseException | None = None) -> None:
        """Answer one that will not be handled: to stop is done, the rest gets ActorDeadError."""
        if type(ask.message) in self.stops:
            ask.try_set(True)  # noqa: FBT003  # it has ended, as was asked
            return
        why = "" if cause is None else f"; it died of {type(cause).__name__}"
        dead = self.closed_error(f"{self} stopped before handling the message{why}")
        dead.__cause__ = cause
        ask.try_fail(dead)

    # --- of the mailbox -------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        try:
            cast("Dispatcher", self._dispatcher).schedule(self)  # `begin` comes before any schedule
        except RuntimeForked:
            raise
        except BaseException as error:  # noqa: BLE001  # no turn will ever come: better dead than silent
            self.turn_refused(error)
