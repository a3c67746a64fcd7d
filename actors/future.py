"""One result for threads, callbacks and event loops to wait for. Plain machinery: it knows no actors."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Final, Generic, TypeVar, cast

from executus.actors.clock import log_contained
from executus.actors.errors import WaitTimeout

T = TypeVar("T")

_allocate_lock = threading.Lock

yield_cpu: Final[Callable[[], object]] = getattr(os, "sched_yield", lambda: None)
"""Let go of the GIL and of the CPU for a moment, for who is ready to run. Where nobody is it costs 1 us."""


class LateReplies:
    """How many results found their event loop closed. A number for health reports, never a traceback."""

    def __init__(self) -> None:
        self.count = 0


late_replies = LateReplies()


class ThisThread(threading.local):
    """What the thread's owner wants to be told."""

    about_to_block: Callable[[], None] | None = None
    """Called before the thread waits for a promise: a pool gives the thread's work to another one meanwhile."""
    nested: int = 0
    """How many turns run on it inside each other, lent by the actors that are asked."""
    wait_instead: Callable[[Promise[Any], float | None], bool] | None = None
    """Waits for a promise in place of a lock, as `Promise.wait` does: where one thread does everything in turn."""


this_thread = ThisThread()


class Promise(Generic[T]):
    """One value or one error, once.

    Any thread may settle it, read it and wait for it. Settling never raises and never runs foreign code under a lock.
    It holds no lock of its own, only two lists whose appends and pops are one step each, with the GIL or without: a
    lock costs 50 ns to make and 150 ns to take and give back, an append 20 ns. A waiting thread makes one to park on.

    **Why one settler wins.** Each appends its outcome; the first in the list is the result, and whoever appended it has
    won. So there is no moment at which a promise is claimed and has no value: a settler that is interrupted (by Ctrl-C)
    has settled or has not.

    **Why each callback is called once.** A settler appends its outcome, *then* looks for callbacks. An adder appends
    its callback, *then* copies the list of outcomes. Append and copy take that list's own lock: if the copy came first,
    the callback was there before the settler looked; otherwise the adder sees the outcome and takes its callback back,
    unless the settler has it already. Whoever takes it out calls it, and of two that try one gets it.
    """

    __slots__ = ("_callbacks", "_outcomes")

    def __init__(self) -> None:
        # (value, error, the error's traceback); what comes behind the first came too late.
        self._outcomes: list[tuple[Any, BaseException | None, TracebackType | None]] = []
        self._callbacks: list[Callable[[], object]] = []

    def done(self) -> bool:
        """Whether there is a result or an error."""
        return bool(self._outcomes)

    def try_set(self, value: T) -> bool:
        """Settle with `value`; False, and no effect, if it was settled before."""
        outcomes = self._outcomes
        if outcomes:
            return False
        mine = (value, None, None)
        outcomes.append(mine)
        if outcomes[0] is not mine:
            return False
        if self._callbacks:
            self._call_all()
        return True

    def try_fail(self, error: BaseException) -> bool:
        """Settle with `error`; False, and no effect, if it was settled before."""
        outcomes = self._outcomes
        if outcomes:
            return False
        mine = (None, error, error.__traceback__)
        outcomes.append(mine)
        if outcomes[0] is not mine:
            return False
        if self._callbacks:
            self._call_all()
        return True

    def error(self) -> BaseException | None:
        """The error it was settled with; None while open, and for a value."""
        return self._outcomes[0][1] if self._outcomes else None

    def result(self, timeout_s: float | None = None) -> T:
        """The value, or raise the error. Waits up to `timeout_s` (None: for ever), then raises WaitTimeout."""
        if not self._outcomes and not self.wait(timeout_s):
            raise WaitTimeout(f"no result within {timeout_s} s; whoever makes it goes on")
        value, error, traceback = self._outcomes[0]
        if error is not None:
            # From the place where it was raised, each time: otherwise every reader lengthens the traceback.
            raise error.with_traceback(traceback)
        return cast("T", value)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until settled. False when `timeout_s` is over first; zero or less only looks."""
        if self._outcomes:
            return True
        if timeout_s is not None and timeout_s <= 0:
            return False
        wait_instead = this_thread.wait_instead
        if wait_instead is not None:
            return wait_instead(self, timeout_s)
        # A lock of this waiter's own, taken, that settling releases: a wake-up before the sleep is not lost.
        parked = _allocate_lock()
        parked.acquire()
        wake = parked.release
        if not self._add(wake):
            return True
        about_to_block = this_thread.about_to_block
        try:
            if about_to_block is not None:
                about_to_block()
            timeout = -1.0 if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)
            return parked.acquire(timeout=timeout) or bool(self._outcomes)
        finally:
            self._discard(wake)

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn(self)` exactly once: now if it is settled, else on the thread that settles. Errors are contained."""

        def call() -> None:
            fn(self)

        if not self._add(call):
            _call(call)

    def __await__(self) -> Generator[Any, None, T]:
        """The value for a coroutine; its event loop goes on meanwhile. Cancelling the waiter changes nothing here."""
        if not self._outcomes:
            loop = asyncio.get_running_loop()
            waiter = loop.create_future()

            def wake_on_loop() -> None:
                if not waiter.done():
                    waiter.set_result(None)

            def wake() -> None:
                try:
                    loop.call_soon_threadsafe(wake_on_loop)
                except RuntimeError:  # the loop was closed before the result came
                    late_replies.count += 1

            if self._add(wake):
                try:
                    yield from waiter.__await__()
                finally:
                    self._discard(wake)
        return self.result(0)

    def _add(self, callback: Callable[[], object]) -> bool:
        """Have `callback` called when settled; False if it is settled already, and then nothing was kept."""
        self._callbacks.append(callback)
        return not (self._outcomes.copy() and self._take_back(callback))

    def _discard(self, callback: Callable[[], object]) -> None:
        """Forget a callback, so that waiters that gave up leave nothing behind."""
        self._take_back(callback)

    def _take_back(self, callback: Callable[[], object]) -> bool:
        """Take a callback out; False if somebody has it already and calls it."""
        try:
            self._callbacks.remove(callback)
        except ValueError:
            return False
        return True

    def _call_all(self) -> None:
        callbacks = self._callbacks
        while callbacks:
            try:
                callback = callbacks.pop(0)
            except IndexError:  # its adder took it back
                return
            _call(callback)


def _call(callback: Callable[[], object]) -> None:
    try:
        callback()
    except BaseException:  # noqa: BLE001  # the boundary: whoever settles is no party to what listeners do
        log_contained("a done-callback raised; the result stands")
