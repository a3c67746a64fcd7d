"""One result for threads, callbacks and event loops to wait for. Plain machinery: it knows no actors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from executus.actors.clock import log_contained
from executus.actors.errors import WaitTimeout

T = TypeVar("T")

_allocate_lock = threading.Lock


class LateReplies:
    """How many results found their event loop closed. A number for health reports, never a traceback."""

    def __init__(self) -> None:
        self.count = 0


late_replies = LateReplies()


class ThisThread(threading.local):
    """What the thread's owner wants to be told."""

    about_to_block: Callable[[], None] | None = None
    """Called before the thread waits for a promise: a pool gives the thread's work to another one meanwhile."""


this_thread = ThisThread()


class Promise(Generic[T]):
    """One value or one error, once.

    Any thread may settle it, read it and wait for it. Settling never raises and never runs foreign code under a lock.
    A promise costs one small lock for its own state; a second one, to park on, is made only by a thread that waits.
    """

    __slots__ = ("_callbacks", "_done", "_error", "_state", "_traceback", "_value")

    def __init__(self) -> None:
        # Guards the step from open to done and the list of callbacks, so that of two settlers one wins, and a callback
        # is either on the list that the winner takes or its adder sees `_done`. Held for a few bytecodes, never while
        # calling out.
        self._state = _allocate_lock()
        # Written last when settling: who reads True without the lock finds the value already there.
        self._done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._callbacks: list[Callable[[], object]] | None = None

    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self._done

    def try_set(self, value: T) -> bool:
        """Settle with `value`; False, and no effect, if it was settled before."""
        with self._state:
            if self._done:
                return False
            self._value = value
            self._done = True
            callbacks, self._callbacks = self._callbacks, None
        if callbacks:
            _run_all(callbacks)
        return True

    def try_fail(self, error: BaseException) -> bool:
        """Settle with `error`; False, and no effect, if it was settled before."""
        with self._state:
            if self._done:
                return False
            self._error = error
            self._traceback = error.__traceback__
            self._done = True
            callbacks, self._callbacks = self._callbacks, None
        if callbacks:
            _run_all(callbacks)
        return True

    def error(self) -> BaseException | None:
        """The error it was settled with; None while open, and for a value."""
        return self._error

    def result(self, timeout_s: float | None = None) -> T:
        """The value, or raise the error. Waits up to `timeout_s` (None: for ever), then raises WaitTimeout."""
        if not self._done and not self.wait(timeout_s):
            raise WaitTimeout(f"no result within {timeout_s} s; whoever makes it goes on")
        if self._error is not None:
            # From the place where it was raised, each time: otherwise every reader lengthens the traceback.
            raise self._error.with_traceback(self._traceback)
        return cast("T", self._value)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until settled. False when `timeout_s` is over first; zero or less only looks."""
        if self._done:
            return True
        if timeout_s is not None and timeout_s <= 0:
            return False
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
            return parked.acquire(timeout=timeout) or self._done
        finally:
            self._discard(wake)

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn(self)` exactly once: now if it is settled, else on the thread that settles. Errors are contained."""

        def call() -> None:
            fn(self)

        if not self._add(call):
            _run_all([call])

    def __await__(self) -> Generator[Any, None, T]:
        """The value for a coroutine; its event loop goes on meanwhile. Cancelling the waiter changes nothing here."""
        if not self._done:
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
        with self._state:
            if self._done:
                return False
            if self._callbacks is None:
                self._callbacks = [callback]
            else:
                self._callbacks.append(callback)
            return True

    def _discard(self, callback: Callable[[], object]) -> None:
        """Forget a callback, so that waiters that gave up leave nothing behind."""
        with self._state:
            if self._callbacks is not None and callback in self._callbacks:
                self._callbacks.remove(callback)


def _run_all(callbacks: list[Callable[[], object]]) -> None:
    for callback in callbacks:
        try:
            callback()
        except BaseException:  # noqa: BLE001  # the boundary: whoever settles is no party to what listeners do
            log_contained("a done-callback raised; the result stands")
