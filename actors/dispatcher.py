"""Many turns on few threads. Who runs where and when; what a turn does is not known here."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from executus.actors.clock import log_contained
from executus.actors.errors import DispatcherClosed, RuntimeForked
from executus.actors.forks import forks
from executus.actors.future import Promise

T = TypeVar("T")


class Turn(Protocol):
    """A bounded piece of work."""

    def run_turn(self) -> None:
        """Do it. Never raises."""
        ...


@runtime_checkable
class Refusable(Protocol):
    """A turn that wants to know when a dispatcher that closes will never run it."""

    def turn_refused(self, error: BaseException) -> None:
        """It was scheduled and will not run. Never raises; any thread."""
        ...


class TurnBudget(NamedTuple):
    """How long an actor may keep its worker before others get a turn. Without `seconds` no clock is read at all."""

    messages: int = 64
    seconds: float | None = None


class Dispatcher(Protocol):
    """Runs turns.

    May have an attribute `budget: TurnBudget` (the default is 64 messages, no clock: deterministic) and a method
    `abandoned(turn)`, called when the owner has given up on a turn that does not return.
    """

    def schedule(self, turn: Turn) -> None:
        """Run `turn.run_turn()` once, soon, and never within this call.

        From any thread and from inside a turn; does not block. Raises DispatcherClosed after closing and RuntimeForked
        in a forked child; then the turn will not run.
        """
        ...

    def submit(self, fn: Callable[[], T]) -> Promise[T]:
        """Run `fn`, which may block, on a worker. Whatever it raises goes into the promise."""
        ...


class Job(Promise[T]):
    """One call as a turn: its own promise."""

    __slots__ = ("_fn",)

    def __init__(self, fn: Callable[[], T]) -> None:
        super().__init__()
        self._fn = fn

    def run_turn(self) -> None:
        """Call it and settle."""
        try:
            value = self._fn()
        except BaseException as error:  # noqa: BLE001  # the boundary: whoever waits gets it, the worker lives
            self.try_fail(error)
        else:
            self.try_set(value)

    def turn_refused(self, error: BaseException) -> None:
        """Tell whoever waits that it will not be called."""
        self.try_fail(error)


def refuse_all(turns: list[Turn], error: BaseException) -> None:
    """Tell turns that will never run, so that nobody waits for them for ever."""
    for turn in turns:
        if isinstance(turn, Refusable):
            try:
                turn.turn_refused(error)
            except BaseException:  # noqa: BLE001  # the boundary: the others must be told as well
                log_contained(f"refusing a turn of {type(turn).__name__} raised, against its contract")


def run_contained(turn: Turn) -> None:
    """Run a turn. It must not raise; if it does, that is a defect, which must not cost a worker."""
    try:
        turn.run_turn()
    except BaseException:  # noqa: BLE001  # the last line: a dead worker would freeze others silently
        log_contained(f"a turn of {type(turn).__name__} raised, against its contract")


class StandAside:
    """Lets a thread that commits have the GIL at once: the others wait at `breathe()` until it is through.

    A courtesy, not a lock: whoever waits gives up after `LONGEST_S`, so that a disk that hangs does not hang the runs.
    """

    LONGEST_S: Final = 0.1

    def __init__(self) -> None:
        # None, or a lock that the committing thread holds. One word, written by the committing thread and read by all:
        # who reads an old value waits once too little, or on a lock that is free already. Neither is wrong.
        self._gate: threading.Lock | None = None

    @contextmanager
    def stand_aside(self) -> Generator[Callable[[], None], None, None]:
        """Within this block the workers wait between turns, until the function that it gives is called."""
        gate = threading.Lock()
        gate.acquire()
        self._gate = gate
        open_ = False

        def go_on() -> None:
            nonlocal open_  # not `gate.locked()`: one of those who waited may hold it for a moment
            if not open_:
                open_ = True
                if self._gate is gate:
                    self._gate = None
                gate.release()

        try:
            yield go_on
        finally:
            go_on()

    def breathe(self) -> None:
        """Wait if a commit is under way. Otherwise this costs one attribute."""
        gate = self._gate
        if gate is None:
            return
        if gate.acquire(timeout=self.LONGEST_S):
            gate.release()  # and so the next one wakes
        elif self._gate is gate:
            self._gate = None  # waited long enough for this one, all of us


class GiveWay:
    """Gives up the GIL for a moment every 1.5 ms of a thread's work; where that is dear, less often.

    A thread that waits for the GIL asks for it after 5 ms, but each time the holder lets go for an instant, as an event
    loop does whenever it polls, these 5 ms begin anew, and whoever was woken comes too late. Beside a loop full of busy
    async runs and one hog the supervisor waited 6 s to hear of an end that it had been told within 10 ms.
    """

    __slots__ = ("_at_s", "_every_s")

    EVERY_S: Final = 0.0015
    SLEEP_S: Final = 0.00001
    DEAR_S: Final = 0.002
    MAX_S: Final = 0.02

    def __init__(self) -> None:
        self._every_s = self.EVERY_S
        self._at_s = 0.0

    def __call__(self) -> None:
        """Between two turns, on the thread whose work it is."""
        now_s = time.monotonic()
        if now_s >= self._at_s:
            self._at_s = self.let_go(now_s)

    def next_s(self, now_s: float) -> float:
        """When it is due for a thread that begins to work now."""
        return now_s + self._every_s

    def let_go(self, now_s: float) -> float:
        """It is due: give it up, and say when it is due again. For a loop that looks at the clock itself."""
        time.sleep(self.SLEEP_S)
        back_s = time.monotonic()
        # Dear: somebody else hogs the interpreter, and each time costs a switch interval.
        self._every_s = min(self._every_s * 2, self.MAX_S) if back_s - now_s > self.DEAR_S else self.EVERY_S
        return self.next_s(back_s)


class ThreadDispatcher:
    """`Dispatcher` on exactly one daemon thread, for actors whose resources belong to a thread.

    The thread starts with the first turn and is never replaced: a turn that does not return stops all others here.
    """

    budget = TurnBudget(messages=64, seconds=0.01)

    def __init__(self, *, name: str = "executus-thread") -> None:
        self._name = name
        self._born = forks.count
        # Guards `_closed` and `_thread` and orders puts against `close`: behind the None that ends the thread nothing
        # is put.
        self._lock = threading.Lock()
        self._ready: SimpleQueue[Turn | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def schedule(self, turn: Turn) -> None:
        """See `Dispatcher`. Raises also what starting the thread raises."""
        if self._born != forks.count:
            raise RuntimeForked(f"{self._name}: its thread belongs to the parent process")
        with self._lock:
            if self._closed:
                raise DispatcherClosed(f"{self._name}: closed, runs nothing any more")
            if self._thread is None:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                thread.start()
                self._thread = thread
            self._ready.put(turn)

    def submit(self, fn: Callable[[], T]) -> Promise[T]:
        """See `Dispatcher`. On the one thread: what blocks there blocks the actors there."""
        job = Job(fn)
        self.schedule(job)
        return job

    def close(self, timeout_s: float = 5.0) -> bool:
        """Run what is scheduled, then end. Whether it ended in time; otherwise what is left is refused."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._ready.put(None)
            thread = self._thread
        if thread is None or thread is threading.current_thread() or self._born != forks.count:
            return True
        thread.join(timeout_s)
        if not thread.is_alive():
            return True
        self._refuse_rest()
        return False

    def _work(self) -> None:
        while (turn := self._ready.get()) is not None:
            run_contained(turn)
            del turn  # or the last actor lives until the next turn
        self._refuse_rest()

    def _refuse_rest(self) -> None:
        rest: list[Turn] = []
        with suppress(Empty):
            while True:
                turn = self._ready.get_nowait()
                if turn is not None:
                    rest.append(turn)
        self._ready.put(None)  # taken out by us, or by the thread; it needs it to end
        refuse_all(rest, DispatcherClosed(f"{self._name}: closed before this turn could run"))


class LoopDispatcher:
    """`Dispatcher` on an asyncio event loop, beside the host's own coroutines.

    One call into the loop a burst; a burst that takes longer than `BURST_S` goes to the back of the loop's queue, so
    that the loop's lag stays small however many messages there are. `submit` goes to `pool`.
    """

    BURST_S: Final = 0.002

    budget = TurnBudget(messages=64, seconds=0.001)

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Dispatcher) -> None:
        self._loop = loop
        self._pool = pool
        self.give_way = GiveWay()
        """For whoever else works on this loop, after each of its turns."""
        self._born = forks.count
        # Guards the three below: a turn is appended and found pending, or its scheduler is the one that calls the loop.
        self._lock = threading.Lock()
        self._ready: deque[Turn] = deque()
        self._pending = False
        self._closed = False

    def schedule(self, turn: Turn) -> None:
        """See `Dispatcher`. A loop that was closed is a closed dispatcher, and the turns still waiting are refused."""
        if self._born != forks.count:
            raise RuntimeForked("the event loop belongs to the parent process")
        with self._lock:
            if self._closed:
                raise DispatcherClosed("the event loop's dispatcher is closed, runs nothing any more")
            self._ready.append(turn)
            if self._pending and not self._loop.is_closed():
                return
            self._pending = True
        try:
            if _running_loop() is self._loop:
                self._loop.call_soon(_Burst(self))
            else:
                self._loop.call_soon_threadsafe(_Burst(self))
        except RuntimeError as error:  # the loop is closed
            self.close(without=turn)
            raise DispatcherClosed("the event loop is closed; it runs nothing any more") from error

    def submit(self, fn: Callable[[], T]) -> Promise[T]:
        """See `Dispatcher`. Runs on the pool: nothing may block the loop."""
        return self._pool.submit(fn)

    def close(self, *, without: Turn | None = None) -> None:
        """Take no more turns and refuse those that wait. Call it before closing the loop, from any thread."""
        with self._lock:
            self._closed = True
            refused = [turn for turn in self._ready if turn is not without]
            self._ready.clear()
        refuse_all(refused, DispatcherClosed("the event loop's dispatcher was closed before this turn could run"))

    def run_burst(self) -> None:
        """Run what is ready, for `BURST_S` at most. On the loop's thread."""
        until_s = time.monotonic() + self.BURST_S
        while True:
            with self._lock:
                if not self._ready:
                    self._pending = False
                    return
                turn = self._ready.popleft()
            run_contained(turn)
            if time.monotonic() >= until_s:
                break
        self.give_way()
        self._loop.call_soon(_Burst(self))  # still pending: schedulers only append


class _Burst:
    """A burst in the loop's queue. A loop that is closed drops it unrun; then nobody else would ever know."""

    __slots__ = ("_owner", "_ran")

    def __init__(self, owner: LoopDispatcher) -> None:
        self._owner = owner
        self._ran = False

    def __call__(self) -> None:
        self._ran = True
        self._owner.run_burst()

    def __del__(self) -> None:
        if not self._ran:
            self._owner.close()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
