"""What time it is, and waking up later: two ports, and the real ones. Everything else gets its time injected."""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from executus.actors.errors import RuntimeForked
from executus.actors.outcomes import indented, traceback_text

log = logging.getLogger("executus.actors")

COMPACT_FROM: Final = 64
"""Fewer cancelled timers than this are not worth a sweep; they leave when their time comes."""


class Clock(Protocol):
    """Two clocks: `now_s` for durations, `wall_s` for what is stored and shown."""

    def now_s(self) -> float:
        """Monotonic seconds; only differences mean anything, and only within this process."""
        ...

    def wall_s(self) -> float:
        """Seconds since 1970, UTC. May jump."""
        ...


class TimerHandle(Protocol):
    """One pending call."""

    def cancel(self) -> None:
        """Do not call it any more, and let go of the function. Harmless after it ran, or twice, from any thread."""
        ...


class Timers(Protocol):
    """Calls later."""

    def call_at(self, when_s: float, fn: Callable[[], None]) -> TimerHandle:
        """Call `fn` at the monotonic time `when_s`, or at once if that is past, never before.

        `fn` runs on the timers' own thread and must be short: tell an actor, nothing more. What it raises is contained.
        Timers of one time run in the order in which they were made.
        """
        ...


class SystemClock:
    """The machine's clocks."""

    def now_s(self) -> float:
        """Monotonic seconds of this process."""
        return time.monotonic()

    def wall_s(self) -> float:
        """Seconds since 1970, UTC."""
        return time.time()


class _Timer:
    __slots__ = ("_owner", "fn", "number", "when_s")

    def __init__(self, owner: TimerThread, when_s: float, number: int, fn: Callable[[], None]) -> None:
        self._owner = owner
        self.when_s = when_s
        self.number = number
        self.fn: Callable[[], None] | None = fn

    def __lt__(self, other: _Timer) -> bool:
        return (self.when_s, self.number) < (other.when_s, other.number)

    def cancel(self) -> None:
        self._owner.cancelled(self)


class TimerThread:
    """`Timers` on one daemon thread, which starts with the first timer and sleeps exactly until the next one is due.

    A cancelled timer stays in the heap without its function and is swept when the cancelled are the majority, so that
    100,000 timers that are made and cancelled cost neither memory nor a search each. `errors` counts calls that raised.
    """

    def __init__(self, *, name: str = "executus-timer") -> None:
        self.errors = 0
        self._name = name
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        # Guards every field below; the thread waits on it and gives it up while it calls a timer, so that a call may
        # set and cancel timers. Each change of the heap's head notifies under it: no wake-up can fall in between.
        self._changed = threading.Condition(threading.Lock())
        self._heap: list[_Timer] = []
        self._cancelled = 0
        self._made = 0
        self._closed = False

    def call_at(self, when_s: float, fn: Callable[[], None]) -> TimerHandle:
        """See `Timers`. Raises ValueError for a time that is no number, RuntimeForked in a forked child.

        After `close` the timer is made and never called.
        """
        if when_s != when_s:  # noqa: PLR0124  # NaN: it would break the heap's order for all others
            raise ValueError("a timer needs a time, not NaN")
        if os.getpid() != self._pid:
            raise RuntimeForked("timers belong to the process that made them; this is a forked child")
        with self._changed:
            self._made += 1
            timer = _Timer(self, when_s, self._made, fn)
            if self._closed:
                timer.fn = None
                return timer
            heapq.heappush(self._heap, timer)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()  # may raise; then the next timer tries again
                self._thread = thread
            elif self._heap[0] is timer:
                self._changed.notify()
            return timer

    def cancelled(self, timer: _Timer) -> None:
        """Forget `timer`. Called by its handle."""
        with self._changed:
            if timer.fn is None:
                return
            timer.fn = None
            self._cancelled += 1
            if self._cancelled >= COMPACT_FROM and self._cancelled * 2 > len(self._heap):
                self._heap = [kept for kept in self._heap if kept.fn is not None]
                heapq.heapify(self._heap)
                self._cancelled = 0

    def pending(self) -> int:
        """How many timers will still be called."""
        with self._changed:
            return len(self._heap) - self._cancelled

    def close(self, timeout_s: float = 1.0) -> None:
        """Call nothing any more and end the thread. Waits `timeout_s` at most for a call that is running now."""
        with self._changed:
            self._closed = True
            for timer in self._heap:
                timer.fn = None
            self._heap.clear()
            self._cancelled = 0
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread() and os.getpid() == self._pid:
            thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            fn = self._next_due()
            if fn is None:
                return
            try:
                fn()
            except BaseException:  # noqa: BLE001  # the boundary: one bad timer must not take the others along
                self.errors += 1
                log_contained("a timer's function raised; the other timers go on")
            del fn  # or the last function, and all it holds, lives until the next timer is due

    def _next_due(self) -> Callable[[], None] | None:
        """Wait for the next timer that is due and hand out its function, once. None when closed."""
        with self._changed:
            while not self._closed:
                if not self._heap:
                    self._changed.wait()
                    continue
                timer = self._heap[0]
                if timer.fn is None:
                    heapq.heappop(self._heap)
                    self._cancelled -= 1
                    continue
                wait_s = timer.when_s - time.monotonic()
                if wait_s > 0:
                    self._changed.wait(min(wait_s, threading.TIMEOUT_MAX))
                    continue
                heapq.heappop(self._heap)
                fn, timer.fn = timer.fn, None
                return fn
            return None


_timers_lock = threading.Lock()
_timers: tuple[int, TimerThread] | None = None


def default_timers() -> Timers:
    """The process's own timers, made on first use. A forked child gets others.

    Never closed: their thread is a daemon.
    """
    global _timers  # noqa: PLW0603 - as the default dispatcher, see there
    # Read without the lock: a tuple that is there is complete. Made under it: once a process.
    found = _timers
    if found is not None and found[0] == os.getpid():
        return found[1]
    with _timers_lock:
        if _timers is None or _timers[0] != os.getpid():
            _timers = (os.getpid(), TimerThread(name="executus-default-timers"))
        return _timers[1]


def log_contained(text: str, *, error: BaseException | None = None, level: int = logging.ERROR) -> None:
    """Log the current (or given) error under `text`; what the host's log handlers raise in turn is dropped.

    The record carries the error itself, for handlers that want it; its text is made here, indented and escaped, for
    an error's message is the user's and could forge a line or drive a terminal.
    """
    with contextlib.suppress(BaseException):  # a broken log sink must not change what happens to actors
        error = sys.exception() if error is None else error
        if error is None or not log.isEnabledFor(level):
            return
        info = (type(error), error, error.__traceback__)
        record = log.makeRecord(log.name, level, __file__, 0, text, (), info, "log_contained")
        record.exc_text = indented(traceback_text(error))  # formatters make their own only where there is none
        log.handle(record)
