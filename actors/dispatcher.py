"""Many turns on few threads. Who runs where and when; what a turn does is not known here."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from executus.actors.clock import log_contained
from executus.actors.errors import DispatcherClosed, RuntimeForked
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
            turn.turn_refused(error)


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


class _Worker:
    """One thread of a pool. All fields belong to the pool's lock."""

    __slots__ = ("clock_id", "leaked", "parked", "thread", "turn")

    def __init__(self) -> None:
        self.turn: Turn | None = None
        self.leaked = False
        self.clock_id: int | None = None
        self.thread: threading.Thread | None = None
        # Taken while it has nothing to do. Released by whoever pops it from the idle list, and by nobody else.
        self.parked = threading.Lock()
        self.parked.acquire()


class WorkerPool(StandAside):
    """`Dispatcher` on daemon threads: few while turns are short, more while they block, few again afterwards.

    A monitor looks every `TICK_S` while there is work. When more turns wait than will end within `BACKLOG_TICKS` and
    the workers' CPU clocks say that they block, it doubles them. When they compute, more threads would only share the
    GIL: one is added if no turn ends at all for long, and the more there are the later. Above `min_threads` a worker
    ends after `IDLE_S`; the last parked is woken first, so that the others' idle time runs on. A thread that cannot be
    started costs nothing but time: the work stays queued, `start_errors` counts, `on_start_error` is told, and the next
    tick tries again.
    """

    TICK_S: Final = 0.005
    IDLE_S: Final = 1.0
    BACKLOG_TICKS: Final = 4
    """A backlog that the present rate works off within so many ticks needs no more threads."""
    COMPUTING: Final = 0.5
    """Share of one CPU that the workers use together, above which they count as computing.

    Of the time on the wall: where other processes take the CPUs, computing looks like blocking and threads are added.
    """
    PATIENCE_S: Final = 0.05
    """Seconds in which no turn ended, for each thread there is, before a computing pool gets one more."""
    QUIET_TICKS: Final = 20
    """After so many idle ticks the monitor sleeps until work comes."""

    budget = TurnBudget(messages=64, seconds=0.001)

    def __init__(
        self,
        *,
        min_threads: int = 2,
        max_threads: int = 1024,
        name: str = "executus-worker",
        on_start_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= min_threads <= max_threads:
            raise ValueError(f"needs 1 <= min_threads <= max_threads, got {min_threads} and {max_threads}")
        self.start_errors = 0
        self._min = min_threads
        self._max = max_threads
        self._name = name
        self._on_start_error = on_start_error
        self._pid = os.getpid()
        # Guards all that follows. Held for a few bytecodes, and for the start of a thread; never while a turn runs.
        self._lock = threading.Lock()
        self._ready: deque[Turn] = deque()
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._waking = False
        self._leaked = 0
        self._numbered = 0
        self._closed = False
        # One per finished turn, by its worker; only ever compared with itself, so a lost increment costs one tick.
        self._finished = 0
        self._monitor: threading.Thread | None = None
        # The monitor sleeps on the event when all is quiet. `_monitor_asleep` is set and cleared under the lock, so one
        # scheduler of many wakes it, or starts it, which is its first sleep.
        self._monitor_wake = threading.Event()
        self._monitor_asleep = True

    # --- any thread -----------------------------------------------------------------------------------------------

    def schedule(self, turn: Turn) -> None:
        """See `Dispatcher`."""
        if os.getpid() != self._pid:  # before the lock, which a thread that is not here may hold
            raise RuntimeForked(f"{self._name}: its threads belong to the parent process")
        newcomer = None
        with self._lock:
            if self._closed:
                raise DispatcherClosed(f"{self._name}: closed, runs nothing any more")
            self._ready.append(turn)
            # One wake-up at a time: the woken worker wakes the next if there is more. Otherwise a burst of a thousand
            # turns wakes every thread to fight for the GIL.
            if self._idle:
                if not self._waking:
                    self._wake_one()
            elif len(self._workers) < self._min:
                newcomer = self._reserve()
            wake_monitor, self._monitor_asleep = self._monitor_asleep, False
        if newcomer is not None:
            self._start(newcomer)
        if wake_monitor:
            self._wake_monitor()

    def submit(self, fn: Callable[[], T]) -> Promise[T]:
        """See `Dispatcher`."""
        job = Job(fn)
        self.schedule(job)
        return job

    def abandoned(self, turn: Turn) -> None:
        """Count the thread that runs `turn` as leaked and replace it. It ends when its turn returns, if ever."""
        with self._lock:
            for worker in self._workers:
                if worker.turn is turn:
                    # Under the lock, as its step to the next turn: so it cannot have gone on to another meanwhile.
                    worker.leaked = True
                    self._workers.discard(worker)
                    self._leaked += 1
                    break
            else:
                return
            newcomer = self._reserve() if self._ready and not self._idle and not self._closed else None
        if newcomer is not None:
            self._start(newcomer)

    def threads(self) -> int:
        """How many workers there are, leaked ones not counted."""
        with self._lock:
            return len(self._workers)

    def leaked(self) -> int:
        """How many threads are stuck in turns that were given up on."""
        with self._lock:
            return self._leaked

    def queued(self) -> int:
        """How many turns wait for a worker."""
        with self._lock:
            return len(self._ready)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Take no more turns, refuse those that wait, let those that run end. Whether all threads ended in time.

        Threads that did not are daemons: they keep neither this call nor the interpreter's exit. From inside a turn it
        does not wait for its own thread.
        """
        if os.getpid() != self._pid:
            return True
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            self._closed = True
            refused, self._ready = list(self._ready), deque()
            idle, self._idle = self._idle, []
            threads = [worker.thread for worker in self._workers if worker.thread is not None]
            if self._monitor is not None:
                threads.append(self._monitor)
            self._monitor_wake.set()
        for worker in idle:
            worker.parked.release()
        refuse_all(refused, DispatcherClosed(f"{self._name}: closed before this turn could run"))
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in threads if thread is not threading.current_thread())

    # --- workers --------------------------------------------------------------------------------------------------

    def _work(self, worker: _Worker) -> None:
        worker.clock_id = _cpu_clock_of_this_thread()
        while True:
            turn = self._next_turn(worker)
            if turn is None:
                return
            if self._gate is not None:
                self.breathe()
            run_contained(turn)
            self._finished += 1
            del turn  # or an idle worker keeps the last actor it ran alive

    def _next_turn(self, worker: _Worker) -> Turn | None:
        """The next turn for `worker`, which waits for it here; None if the worker is to end."""
        woken = False
        while True:
            with self._lock:
                worker.turn = None
                if woken:
                    self._waking = False
                if worker.leaked:
                    self._leaked -= 1
                    return None
                if self._ready:
                    worker.turn = self._ready.popleft()
                    if self._ready and self._idle and not self._waking:
                        self._wake_one()
                    return worker.turn
                if self._closed:
                    self._workers.discard(worker)
                    return None
                self._idle.append(worker)
                may_end = len(self._workers) > self._min
            # Parked after the lock is given up: a release that comes in between is kept by `parked` itself.
            woken = worker.parked.acquire(timeout=self.IDLE_S if may_end else -1)
            if not woken and self._ends_idle(worker):
                return None

    def _ends_idle(self, worker: _Worker) -> bool:
        with self._lock:
            if worker not in self._idle:
                # Popped while its time ran out: the release is on its way or there.
                popped = True
            else:
                self._idle.remove(worker)
                popped = False
                if len(self._workers) > self._min:
                    self._workers.discard(worker)
                    return True
        if popped:
            worker.parked.acquire()
            with self._lock:
                self._waking = False
        return False

    def _wake_one(self) -> None:
        """Wake the worker that parked last. Under the lock."""
        self._waking = True
        self._idle.pop().parked.release()

    def _reserve(self) -> _Worker:
        """Room for one more worker. Under the lock; `_start` it after."""
        worker = _Worker()
        self._workers.add(worker)
        return worker

    def _start(self, worker: _Worker) -> bool:
        """Start a reserved worker's thread; without the lock, for a start waits for the GIL. Whether it worked."""
        self._numbered += 1  # only a name: two threads of one number do no harm
        thread = threading.Thread(target=self._work, args=(worker,), name=f"{self._name}-{self._numbered}", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:  # no more threads: the work waits for those that are there
            with self._lock:
                self._workers.discard(worker)
                self.start_errors += 1
            self._start_failed(error)
            return False
        with self._lock:
            worker.thread = thread
        return True

    def _start_failed(self, error: BaseException) -> None:
        if self._on_start_error is None:
            return
        try:
            self._on_start_error(error)
        except BaseException:  # noqa: BLE001  # the boundary: a report that fails must not stop the pool
            log_contained("the report of a thread that could not be started raised")

    # --- the monitor ----------------------------------------------------------------------------------------------

    def _wake_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor_wake.set()
            return
        monitor = threading.Thread(target=self._watch, name=f"{self._name}-monitor", daemon=True)
        try:
            monitor.start()
        except (RuntimeError, MemoryError) as error:
            with self._lock:
                self.start_errors += 1
                self._monitor_asleep = True  # the next `schedule` tries again
            self._start_failed(error)
            return
        with self._lock:
            self._monitor = monitor

    def _watch(self) -> None:
        look = _Look(0, None)
        progress_s = look.at_s
        quiet = 0
        while not self._closed:
            time.sleep(self.TICK_S)
            try:
                with self._lock:
                    queued = len(self._ready)
                    workers = list(self._workers)
                    resting = not queued and all(worker.turn is None for worker in workers)
                was, look = look, _Look(self._finished, workers if queued else None)
                finished = look.finished - was.finished
                if finished or not queued:
                    progress_s = look.at_s
                quiet = quiet + 1 if resting else 0
                if quiet >= self.QUIET_TICKS:
                    quiet = 0
                    self._sleep_until_work()
                elif was.cpu_s is None or look.cpu_s is None:
                    continue  # nothing waits, or this look is the mark to measure the next from
                elif look.cpu_s_since(was) < self.COMPUTING * (look.at_s - was.at_s):
                    if queued > finished * self.BACKLOG_TICKS:
                        self._grow(max(1, len(workers)))
                elif look.at_s - progress_s > self.PATIENCE_S * len(workers):
                    progress_s = look.at_s
                    self._grow(1)
            except BaseException:  # noqa: BLE001  # a monitor that died would freeze the pool silently
                log_contained("the pool's monitor stumbled; it goes on")

    def _grow(self, by: int) -> None:
        for _ in range(by):
            with self._lock:
                # As many as there is work for: the idle ones are about to be woken, the new ones take one turn each.
                if self._closed or len(self._workers) >= self._max or len(self._idle) >= len(self._ready):
                    return
                newcomer = self._reserve()
            if not self._start(newcomer):
                return

    def _sleep_until_work(self) -> None:
        with self._lock:
            if self._closed or self._ready or any(worker.turn is not None for worker in self._workers):
                return
            self._monitor_wake.clear()
            self._monitor_asleep = True
        # A `schedule` or `close` that comes in between sets the event, and an event that is set stays so.
        self._monitor_wake.wait()


class _Look:
    """What the monitor saw at one tick."""

    __slots__ = ("at_s", "cpu_s", "finished")

    SAMPLE: Final = 64
    """Of so many workers it reads the CPU clocks: where one computes among a thousand that block, more threads help."""

    def __init__(self, finished: int, workers: list[_Worker] | None) -> None:
        self.finished = finished
        self.at_s = time.monotonic()
        # None: it did not look, for nothing waited.
        self.cpu_s: dict[_Worker, float] | None = None
        if workers is not None:
            self.cpu_s = {}
            for worker in workers[: self.SAMPLE]:
                if worker.clock_id is not None:
                    with suppress(OSError):  # its thread has ended since
                        self.cpu_s[worker] = time.clock_gettime(worker.clock_id)

    def cpu_s_since(self, was: _Look) -> float:
        """CPU used by the workers seen at both looks; a thread that is just starting is no sign of computing."""
        now, then = self.cpu_s or {}, was.cpu_s or {}
        return sum(cpu_s - then[worker] for worker, cpu_s in now.items() if worker in then)


def _cpu_clock_of_this_thread() -> int | None:
    # Asked by the thread itself: of a thread that has ended, the C library may answer with a crash.
    clock_of = getattr(time, "pthread_getcpuclockid", None)  # not on every system; then all are taken to block
    return None if clock_of is None else int(clock_of(threading.get_ident()))


class ThreadDispatcher:
    """`Dispatcher` on exactly one daemon thread, for actors whose resources belong to a thread.

    The thread starts with the first turn and is never replaced: a turn that does not return stops all others here.
    """

    budget = TurnBudget(messages=64, seconds=0.01)

    def __init__(self, *, name: str = "executus-thread") -> None:
        self._name = name
        self._pid = os.getpid()
        # Guards `_closed` and `_thread` and orders puts against `close`: behind the None that ends the thread nothing
        # is put.
        self._lock = threading.Lock()
        self._ready: SimpleQueue[Turn | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def schedule(self, turn: Turn) -> None:
        """See `Dispatcher`. Raises also what starting the thread raises."""
        if os.getpid() != self._pid:
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
        if thread is None or thread is threading.current_thread() or os.getpid() != self._pid:
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
        self._pid = os.getpid()
        # Guards the three below: a turn is appended and found pending, or its scheduler is the one that calls the loop.
        self._lock = threading.Lock()
        self._ready: deque[Turn] = deque()
        self._pending = False
        self._closed = False

    def schedule(self, turn: Turn) -> None:
        """See `Dispatcher`. A loop that was closed is a closed dispatcher, and the turns still waiting are refused."""
        if os.getpid() != self._pid:
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
