"""`serve()`: a runtime goes on until a signal ends it. The one place that installs signal handlers, on request only.

Whatever happens meanwhile (a signal, an answer of the tree, the end of the drain) comes as news to the serving thread
or coroutine, one at a time. `Serving` says what follows from it; the two functions at the end bring it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any, Final, Self, assert_never

from executus.actors import systemd
from executus.actors.clock import TimerHandle
from executus.actors.core import EXIT_RELEASE_S, Core
from executus.actors.errors import RuntimeNotOpen, ServeRefused, WaitTimeout
from executus.actors.future import Promise
from executus.actors.interruption import DrainReport

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SIGNALLED: Final = 128
"""A forced end exits with 128 + n, as shells report a death of signal n: 143 for SIGTERM, 130 for SIGINT."""
OVERDUE_S: Final = 1.0
"""A drain answers within half a second of its time-out. So long after it the supervisor itself is stuck."""
WAKE_S: Final = 1.0
"""A signal may reach any thread of the process; where that is not the main one, some systems leave that one asleep."""

_serving: Final[set[int]] = set()
"""This process's id while one of its runtimes serves. Not a flag: a fork inherits it, and may serve by itself."""


_given_back: Final[list[Callable[[], None]]] = []
"""What gives a process's signals back that is serving. A forked child does it at once: nobody listens there, a handler
of Python's may be heard late where another thread than the main one has forked, and the loop's handlers write into a
pipe whose other end is the parent's."""


def _forked() -> None:
    while _given_back:
        _given_back.pop()()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Fact(enum.Enum):
    """What the runtime reports to whoever serves it."""

    TICK = "it is time to see whether the tree answers"
    ANSWERED = "the tree has answered"
    DRAINED = "the drain is over"
    CLOSED = "the runtime was closed, by somebody else or by its own crash"


News = signal.Signals | Fact
Post = Callable[[News], None]


class Serving:
    """One call of serve(), from READY on. `post` takes news from any thread to the one that hands it to `take`.

    Once `over`, either `forced_by` is the second signal, or `report()` tells.
    """

    def __init__(self, core: Core, drain_timeout_s: float, post: Post) -> None:
        self.over = False
        self.forced_by: signal.Signals | None = None
        self._core = core
        self._drain_timeout_s = drain_timeout_s
        self._post = post
        self._drain: Promise[DrainReport] | None = None
        self._watchdog_s = systemd.watchdog_s()
        self._next_look: TimerHandle | None = None

    def __enter__(self) -> Self:
        self._core.closed.add_done_callback(lambda _: self._post(Fact.CLOSED))
        systemd.notify("READY=1")
        self._look()
        return self

    def __exit__(self, *_: object) -> None:
        if self._next_look is not None:
            self._next_look.cancel()

    def take(self, news: News) -> None:
        """Follow the news."""
        match news:
            case signal.Signals() if self._drain is None:
                self._drain = self._begin_drain()
            case signal.Signals():
                self.forced_by, self.over = news, True
            case Fact.TICK:
                self._look()
            case Fact.ANSWERED:
                systemd.notify("WATCHDOG=1")
            case Fact.DRAINED | Fact.CLOSED:
                self.over = True
            case _:
                assert_never(news)

    def report(self) -> DrainReport:
        """What the drain left. Raises RuntimeNotOpen where there was none, WaitTimeout where nobody answered it."""
        if self._drain is None:
            error = self._core.closed.result(0)
            why = "" if error is None else f": {error}"
            raise RuntimeNotOpen(f"the runtime was closed while it served{why}")
        return self._drain.result(0)

    def _begin_drain(self) -> Promise[DrainReport]:
        systemd.notify("STOPPING=1")
        drain = self._core.drain(self._drain_timeout_s)
        drain.add_done_callback(lambda _: self._post(Fact.DRAINED))

        def give_up() -> None:
            drain.try_fail(WaitTimeout("the drain was not answered: the run supervisor is stuck. What is saved stays."))

        self._later(self._drain_timeout_s + OVERDUE_S, give_up)
        return drain

    def _look(self) -> None:
        """Ask the tree for an answer; each answer is a ping. At half the period, so that one may be late."""
        if self._watchdog_s is not None:
            self._core.tree.probe().add_done_callback(lambda _: self._post(Fact.ANSWERED))
            self._next_look = self._later(self._watchdog_s / 2, lambda: self._post(Fact.TICK))

    def _later(self, delay_s: float, fn: Callable[[], None]) -> TimerHandle:
        return self._core.env.timers.call_at(self._core.env.clock.now_s() + delay_s, fn)


def serve_on_thread(core: Core, drain_timeout_s: float) -> DrainReport:
    """Serve on the main thread, blocking it. See Runtime.serve."""
    core.check_open()
    # Its put() may be interrupted by itself, which a handler's is: a lock or an Event would block for ever then.
    news: queue.SimpleQueue[News] = queue.SimpleQueue()
    with _the_one(), _signals_to(news.put), Serving(core, drain_timeout_s, news.put) as serving:
        while not serving.over:
            with contextlib.suppress(queue.Empty):
                serving.take(news.get(timeout=WAKE_S))
        if serving.forced_by is not None:
            core.close(0.0, EXIT_RELEASE_S)
            raise SystemExit(SIGNALLED + serving.forced_by)
        return serving.report()


async def serve_on_loop(core: Core, drain_timeout_s: float) -> DrainReport:
    """Serve on the main thread's event loop. See AsyncRuntime.serve."""
    core.check_open()
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[News] = asyncio.Queue()

    def post(item: News) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile, and its coroutine with it
            loop.call_soon_threadsafe(news.put_nowait, item)

    with _the_one(), _loop_signals_to(news.put_nowait, loop), Serving(core, drain_timeout_s, post) as serving:
        while not serving.over:
            serving.take(await news.get())
        if serving.forced_by is not None:
            if core.begin_close():
                await core.drain_closing(0.0)
                await asyncio.to_thread(core.finish_close, EXIT_RELEASE_S)
            raise SystemExit(SIGNALLED + serving.forced_by)
        return serving.report()


@contextlib.contextmanager
def _the_one() -> Generator[None, None, None]:
    """Where signals can be had, and nobody else has them. Raises ServeRefused."""
    if threading.current_thread() is not threading.main_thread():
        raise ServeRefused(
            f"serve() was called on thread {threading.current_thread().name!r}, and Python hands signals to the main "
            "thread only. Nothing was changed. Call it there; elsewhere, wait for what you like and leave the `with` "
            "block, which drains as well."
        )
    if os.getpid() in _serving:
        raise ServeRefused(
            "another runtime serves in this process already, and a signal has one taker. Nothing was changed. Let one "
            "of them serve, and close the other behind it."
        )
    _serving.add(os.getpid())
    try:
        yield
    finally:
        _serving.discard(os.getpid())


@contextlib.contextmanager
def _signals_to(post: Post) -> Generator[None, None, None]:
    """Handlers of this process; what was there before comes back."""

    def hear(number: int, _frame: FrameType | None) -> None:
        post(signal.Signals(number))

    with _kept() as previous:
        for number in SIGNALS:
            previous[number] = _handler_of(number)
            signal.signal(number, hear)
        yield


@contextlib.contextmanager
def _loop_signals_to(post: Post, loop: asyncio.AbstractEventLoop) -> Generator[None, None, None]:
    """The loop's own handlers; what Python had before comes back, what the loop had is gone."""
    with _kept(loop) as previous:
        for number in SIGNALS:
            loop.remove_signal_handler(number)  # what it leaves behind is what can be put back
            previous[number] = _handler_of(number)
            loop.add_signal_handler(number, post, number)
        yield


@contextlib.contextmanager
def _kept(loop: asyncio.AbstractEventLoop | None = None) -> Generator[dict[int, Any], None, None]:
    """Handlers that come back: those filled in, at the end of the block, and in a child that is forked meanwhile."""
    previous: dict[int, Any] = {}

    def in_child() -> None:
        if loop is not None:
            signal.set_wakeup_fd(-1)
        for number, handler in previous.items():
            signal.signal(number, handler)

    _given_back.append(in_child)
    try:
        yield previous
    finally:
        if in_child in _given_back:  # not where the block is left by a forked child
            _given_back.remove(in_child)
        for number, handler in previous.items():
            if loop is not None:
                loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _handler_of(number: int) -> Any:
    """What is set for a signal; the default where that is not Python's and could not be put back."""
    handler = signal.getsignal(number)
    return signal.SIG_DFL if handler is None else handler
