"""What time it is, and waking up later: two ports, and the real ones. Everything else gets its time injected."""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
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

WALL_LOOK_S: Final = 2.0
"""While a timer for a wall time is armed the wall clock is looked at this often.

It may be set, and goes on while the machine is suspended and the monotonic clock stands still.
"""


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

    def call_at_wall(self, wall_s: float, fn: Callable[[], None]) -> TimerHandle:
        """As `call_at`, when the wall clock shows `wall_s` or later; never while it shows less.

        Within WALL_LOOK_S, also where the clock was set meanwhile or the machine was suspended.
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
    __slots__ = ("_owner", "fn", "heap", "number", "when_s")

    def __init__(self, owner: TimerThread, heap: _Heap, when_s: float, number: int, fn: Callable[[], None]) -> None:
        self._owner = owner
        self.heap = heap
        self.when_s = when_s
        self.number = number
        self.fn: Callable[[], None] | None = fn

    def __lt__(self, other: _Timer) -> bool:
        return (self.when_s, self.number) < (other.when_s, other.number)

    def cancel(self) -> None:
        self._owner.cancelled(self)


class _Heap:
    """Timers by one clock, the earliest first.

    A cancelled timer stays without its function and is swept when the cancelled are the majority, so that 100,000
    timers that are made and cancelled cost neither memory nor a search each.
    """

    __slots__ = ("_cancelled", "_timers")

    def __init__(self) -> None:
        self._timers: list[_Timer] = []
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._timers)

    def push(self, timer: _Timer) -> bool:
        """Add it. True where it is the earliest now."""
        heapq.heappush(self._timers, timer)
        return self._timers[0] is timer

    def first(self) -> _Timer | None:
        """The earliest that is not cancelled."""
        while self._timers:
            timer = self._timers[0]
            if timer.fn is not None:
                return timer
            heapq.heappop(self._timers)
            self._cancelled -= 1
        return None

    def take(self) -> Callable[[], None]:
        """Remove the earliest, which `first` has just shown, and return its function."""
        timer = heapq.heappop(self._timers)
        fn, timer.fn = timer.fn, None
        assert fn is not None
        return fn

    def cancel(self, timer: _Timer) -> None:
        """Let go of its function, if it still has it."""
        if timer.fn is None:
            return
        timer.fn = None
        self._cancelled += 1
        if self._cancelled >= COMPACT_FROM and self._cancelled * 2 > len(self._timers):
            self._timers = [kept for kept in self._timers if kept.fn is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def pending(self) -> int:
        """How many are not cancelled."""
        return len(self._timers) - self._cancelled

    def clear(self) -> None:
        """Cancel all."""
        for timer in self._timers:
            timer.fn = None
        self._timers.clear()
        self._cancelled = 0


class TimerThread:
    """`Timers` on one daemon thread, which starts with the first timer and sleeps exactly until the next one is due.

    While timers for wall times are armed it sleeps no longer than WALL_LOOK_S: no call of the system waits by a clock
    that may be set. `errors` counts calls that raised.
    """

    def __init__(self, *, name: str = "executus-timer", clock: Clock | None = None) -> None:
        self.errors = 0
        self._name = name
        self._clock = SystemClock() if clock is None else clock
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        # Guards every field below; the thread waits on it and gives it up while it calls a timer, so that a call may
        # set and cancel timers. Each change of a heap's head notifies under it: no wake-up can fall in between.
        self._changed = threading.Condition(threading.Lock())
        self._heap = _Heap()
        self._wall_heap = _Heap()
        self._made = 0
        self._closed = False

    def call_at(self, when_s: float, fn: Callable[[], None]) -> TimerHandle:
        """See `Timers`. Raises ValueError for a time that is no number, RuntimeForked in a forked child.

        After `close` the timer is made and never called.
        """
        return self._call_at(self._heap, when_s, fn)

    def call_at_wall(self, wall_s: float, fn: Callable[[], None]) -> TimerHandle:
        """See `Timers`; raises as `call_at`."""
        return self._call_at(self._wall_heap, wall_s, fn)

    def _call_at(self, heap: _Heap, when_s: float, fn: Callable[[], None]) -> TimerHandle:
        if when_s != when_s:  # noqa: PLR0124  # NaN: it would break the heap's order for all others
            raise ValueError("a timer needs a time, not NaN")
        if os.getpid() != self._pid:
            raise RuntimeForked("timers belong to the process that made them; this is a forked child")
        with self._changed:
            self._made += 1
            timer = _Timer(self, heap, when_s, self._made, fn)
            if self._closed:
                timer.fn = None
                return timer
            is_first = heap.push(timer)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()  # may raise; then the next timer tries again
                self._thread = thread
            elif is_first:
                self._changed.notify()
            return timer

    def cancelled(self, timer: _Timer) -> None:
        """Forget `timer`. Called by its handle."""
        with self._changed:
            timer.heap.cancel(timer)

    def pending(self) -> int:
        """How many timers will still be called."""
        with self._changed:
            return self._heap.pending() + self._wall_heap.pending()

    def close(self, timeout_s: float = 1.0) -> None:
        """Call nothing any more and end the thread. Waits `timeout_s` at most for a call that is running now."""
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._wall_heap.clear()
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
                wait_s = math.inf
                timer = self._heap.first()
                if timer is not None:
                    wait_s = timer.when_s - time.monotonic()
                    if wait_s <= 0:
                        return self._heap.take()
                timer = self._wall_heap.first()
                if timer is not None:
                    left_s = timer.when_s - self._clock.wall_s()
                    if left_s <= 0:
                        return self._wall_heap.take()
                    wait_s = min(wait_s, left_s, WALL_LOOK_S)
                del timer  # it holds its function
                self._changed.wait(None if wait_s == math.inf else min(wait_s, threading.TIMEOUT_MAX))
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
