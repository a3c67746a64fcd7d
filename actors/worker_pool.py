"""Many turns on few threads: one worker for short turns, lanes for those that block or compute."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final, TypeVar

from executus.actors.clock import log_contained
from executus.actors.dispatcher import Job, StandAside, Turn, TurnBudget, refuse_all, run_contained
from executus.actors.errors import DispatcherClosed, RuntimeForked
from executus.actors.future import Promise

T = TypeVar("T")

TICK_S: Final = 0.005
"""How often the monitor looks while there is work: CPython's switch interval, below which nothing can be told apart."""
BLOCKED_SHARE: Final = 0.1
"""A turn whose thread used less of the CPU than this is blocked; more, and it computes."""
COMPUTING_S: Final = 0.02
"""A turn that computes for longer than this keeps others waiting too long; its kind gets a lane of its own."""
COMPUTING_WORKERS: Final = 2
"""Computing turns share the interpreter anyway: a second worker lets a long one not stop all others, more only fight."""
SHORT_S: Final = 0.002
BELIEF: Final = 16
"""So many short turns in a row bring a kind back from its lane."""
IDLE_S: Final = 1.0
QUIET_TICKS: Final = 40
YIELD_EVERY_S: Final = 0.0015
YIELD_S: Final = 0.00001
YIELD_DEAR_S: Final = 0.002
YIELD_MAX_S: Final = 0.02
"""The worker gives up the GIL for 10 us every 1.5 ms, so that store, timers and the host's loop need not wait out a
switch interval; where that costs more than 2 ms (somebody else hogs the interpreter) it does so less often."""


class _Worker:
    """One thread of a pool."""

    __slots__ = ("clock_id", "lane", "leaked", "parked", "thread", "turn", "turns")

    def __init__(self, lane: _Lane | None) -> None:
        # Written by its own thread, read by the monitor and by `abandoned`: an old value delays them by a tick.
        self.turn: Turn | None = None
        self.turns = 0
        self.clock_id: int | None = None
        # Under the pool's lock.
        self.lane = lane
        self.leaked = False
        self.thread: threading.Thread | None = None
        # Taken while it has nothing to do. Released by whoever takes it off the list of the idle, and by nobody else.
        self.parked = threading.Lock()
        self.parked.acquire()

    def cpu_s(self) -> float | None:
        """CPU time of its thread; None where that cannot be told."""
        if self.clock_id is None:
            return None
        try:
            return time.clock_gettime(self.clock_id)
        except OSError:  # the thread has ended
            return None


class _Lane:
    """Turns of kinds that keep their worker: each worker serves one at a time, up to `limit` at once."""

    __slots__ = ("coming", "limit", "name", "serving", "turns")

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.turns: deque[Turn] = deque()
        # Under the pool's lock. `coming`: a worker is on its way and will look; one wake-up at a time, each worker that
        # takes a turn sends for the next one if there is more.
        self.coming = False
        self.serving = 0


class WorkerPool(StandAside):
    """`Dispatcher` on daemon threads.

    One worker, the leader, runs the short turns: with a GIL a second one would only fight it. A monitor looks every
    `TICK_S`. When the leader is stuck in a turn, another worker gets its role at once, and the turn's kind (its actor's
    class, or its run type) is learned: kinds that block go to a lane with as many workers as there are turns, up to
    `max_threads`; kinds that compute to a lane with two. Both are unlearned after `BELIEF` short turns. Workers with
    nothing to do end after `IDLE_S`. A thread that cannot be started costs nothing but time: the work stays queued,
    `start_errors` counts, `on_start_error` is told, and the next tick tries again.

    Why no turn is missed: `schedule` appends, then reads `_resting`; the leader sets `_resting`, then looks once more.
    Why none is lost at the end: `close` sets `_closed`, then empties the queues; `schedule` appends, then reads
    `_closed`, and empties them itself if it is set.
    """

    budget = TurnBudget(messages=64, seconds=0.001)

    def __init__(
        self,
        *,
        max_threads: int = 1024,
        name: str = "executus-worker",
        on_start_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        super().__init__()
        if max_threads < 1 + COMPUTING_WORKERS + 1:
            raise ValueError(f"needs max_threads of at least {COMPUTING_WORKERS + 2}, got {max_threads}")
        self.start_errors = 0
        self._max = max_threads
        self._name = name
        self._on_start_error = on_start_error
        self._pid = os.getpid()
        self._ready: deque[Turn] = deque()
        self._blocking = _Lane("blocking", max_threads)
        self._computing = _Lane("computing", COMPUTING_WORKERS)
        # Which kinds have a lane, and for how many short turns still. One word a kind; a lost update costs a turn.
        self._kinds: dict[object, _Lane] = {}
        self._belief: dict[object, int] = {}
        # True while the leader sleeps or there is none: who then schedules takes the lock and rouses it.
        self._resting = True
        # Guards all that follows, and the lanes' counters. Never held while a turn runs.
        self._lock = threading.Lock()
        self._leader: _Worker | None = None
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._leaked = 0
        self._numbered = 0
        self._closed = False
        self._monitor: threading.Thread | None = None
        self._monitor_wake = threading.Event()
        self._monitor_asleep = True

    # --- any thread -----------------------------------------------------------------------------------------------

    def schedule(self, turn: Turn) -> None:
        """See `Dispatcher`."""
        if self._closed or os.getpid() != self._pid:
            self._refuse()
        self._ready.append(turn)
        if self._resting:
            self._rouse()
        if self._closed:
            self._refuse_waiting()

    def submit(self, fn: Callable[[], T]) -> Promise[T]:
        """See `Dispatcher`. Such calls are expected to block and go to the lane for that."""
        if self._closed or os.getpid() != self._pid:
            self._refuse()
        job = Job(fn)
        self._enter(self._blocking, job)
        return job

    def abandoned(self, turn: Turn) -> None:
        """Count the thread that runs `turn` as leaked and replace it. It ends when its turn returns, if ever."""
        with self._lock:
            found = [worker for worker in self._workers if worker.turn is turn]
            if not found:
                return
            worker = found[0]
            worker.leaked = True
            self._workers.discard(worker)
            self._leaked += 1
            if worker.lane is not None:
                worker.lane.serving -= 1
                lane, worker.lane = worker.lane, None
            else:
                lane = None
        if lane is not None:
            self._send_for_worker(lane)
        elif self._leader is worker:
            self._hand_on(worker)

    def handing_on(self) -> None:
        """The calling thread is about to block: if it is the leader, let another one lead meanwhile."""
        worker: _Worker | None = getattr(_here, "worker", None)
        turn = None if worker is None else worker.turn
        if worker is not None and turn is not None and self._leader is worker:
            self._learn(turn, self._blocking)
            self._hand_on(worker)

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
        return len(self._ready) + len(self._blocking.turns) + len(self._computing.turns)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Take no more turns, refuse those that wait, let those that run end. Whether all threads ended in time.

        Threads that did not are daemons: they keep neither this call nor the interpreter's exit. From inside a turn it
        does not wait for its own thread.
        """
        if os.getpid() != self._pid:
            return True
        until_s = monotonic() + timeout_s
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            if self._resting and self._leader is not None:
                self._resting = False
                idle.append(self._leader)
            threads = [worker.thread for worker in self._workers if worker.thread is not None]
            if self._monitor is not None:
                threads.append(self._monitor)
            self._monitor_wake.set()
        for worker in idle:
            worker.parked.release()
        self._refuse_waiting()
        others = [thread for thread in threads if thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, until_s - monotonic()))
        return not any(thread.is_alive() for thread in others)

    def _refuse(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeForked(f"{self._name}: its threads belong to the parent process")
        raise DispatcherClosed(f"{self._name}: closed, runs nothing any more")

    def _refuse_waiting(self) -> None:
        refused: list[Turn] = []
        for queue in (self._ready, self._blocking.turns, self._computing.turns):
            try:
                while True:
                    refused.append(queue.popleft())
            except IndexError:
                continue
        refuse_all(refused, DispatcherClosed(f"{self._name}: closed before this turn could run"))

    # --- the leader -----------------------------------------------------------------------------------------------

    def _rouse(self) -> None:
        """Wake the leader, or make one. Of several that see it rest, the one that gets the lock first does it."""
        newcomer = None
        with self._lock:
            if not self._resting or self._closed:
                return
            self._resting = False
            if self._leader is None:
                newcomer = self._leader = self._reserve(None)
            else:
                self._leader.parked.release()
            wake_monitor, self._monitor_asleep = self._monitor_asleep, False
        if newcomer is not None and not self._start(newcomer):
            with self._lock:
                if self._leader is newcomer:
                    self._leader, self._resting = None, True  # the next schedule, or tick, tries again
        if wake_monitor:
            self._wake_monitor()

    def _lead(self, worker: _Worker) -> None:
        """Run short turns for as long as this worker has the role."""
        popleft, kinds = self._ready.popleft, self._kinds
        every_s = YIELD_EVERY_S
        yield_at_s = monotonic() + every_s
        while self._leader is worker:
            try:
                turn = popleft()
            except IndexError:
                if not self._rest(worker):
                    return
                continue
            if kinds and (lane := kinds.get(_kind(turn))) is not None:
                self._enter(lane, turn)
                continue
            worker.turns += 1
            worker.turn = turn
            run_contained(turn)
            worker.turn = None
            del turn  # or a resting leader keeps the last actor it ran alive
            if self._gate is not None:
                self.breathe()
            now_s = monotonic()
            if now_s >= yield_at_s:
                time.sleep(YIELD_S)
                yielded_s = monotonic()
                every_s = min(every_s * 2, YIELD_MAX_S) if yielded_s - now_s > YIELD_DEAR_S else YIELD_EVERY_S
                yield_at_s = yielded_s + every_s

    def _rest(self, worker: _Worker) -> bool:
        """Sleep until there is something to do. False when the role was given to another, or the pool is closed."""
        with self._lock:
            if self._leader is not worker or self._closed:
                return False
            self._resting = True
            if self._ready:  # appended before the line above, by somebody who read the old value
                self._resting = False
                return True
        worker.parked.acquire()
        return not self._closed

    def _hand_on(self, worker: _Worker) -> None:
        """Give the leader's role to another worker. The old one goes idle when its turn returns."""
        with self._lock:
            if self._leader is not worker or self._closed:
                return
            newcomer = None
            if self._idle:
                successor = self._idle.pop()
                successor.lane = None
                self._leader = successor
                successor.parked.release()
            elif len(self._workers) < self._max:
                newcomer = self._leader = self._reserve(None)
            else:
                return  # all threads there may be are stuck; the next tick looks again
        if newcomer is not None and not self._start(newcomer):
            with self._lock:
                if self._leader is newcomer:
                    self._leader = worker

    # --- lanes ----------------------------------------------------------------------------------------------------

    def _enter(self, lane: _Lane, turn: Turn) -> None:
        lane.turns.append(turn)
        self._send_for_worker(lane)
        if self._closed:
            self._refuse_waiting()

    def _send_for_worker(self, lane: _Lane) -> None:
        """See that a worker is on its way to the lane, if it has turns and room."""
        newcomer = None
        with self._lock:
            if lane.coming or not lane.turns or lane.serving >= lane.limit or self._closed:
                return
            if self._idle:
                idle = self._idle.pop()
                idle.lane = lane
                idle.parked.release()
            elif len(self._workers) < self._max:
                newcomer = self._reserve(lane)
            else:
                return  # whoever serves there takes the next one when its turn ends
            lane.coming = True
            lane.serving += 1
            wake_monitor, self._monitor_asleep = self._monitor_asleep, False
        if newcomer is not None and not self._start(newcomer):
            with self._lock:
                lane.coming = False
                lane.serving -= 1
        if wake_monitor:
            self._wake_monitor()

    def _serve(self, worker: _Worker, lane: _Lane) -> None:
        """Run the lane's turns until there are none."""
        with self._lock:
            lane.coming = False
        while not worker.leaked and worker.lane is lane:
            try:
                turn = lane.turns.popleft()
            except IndexError:
                break
            if lane.turns:
                self._send_for_worker(lane)
            learned = self._kinds.get(_kind(turn))
            if learned is not None and learned is not lane:
                self._enter(learned, turn)
                continue
            began_s = monotonic()
            worker.turns += 1
            worker.turn = turn
            run_contained(turn)
            worker.turn = None
            self._doubt(turn, monotonic() - began_s)
            del turn
            if self._gate is not None:
                self.breathe()
        with self._lock:
            if worker.lane is lane:
                lane.serving -= 1
                worker.lane = None
        self._send_for_worker(lane)  # what came between the look above and giving up the place

    def _learn(self, turn: Turn, lane: _Lane) -> None:
        kind = _kind(turn)
        if kind is not Job:
            self._belief[kind] = BELIEF
            self._kinds[kind] = lane

    def _doubt(self, turn: Turn, took_s: float) -> None:
        """A kind that no longer keeps its worker needs no lane."""
        kind = _kind(turn)
        belief = self._belief.get(kind)
        if belief is None:
            return
        if took_s > SHORT_S:
            self._belief[kind] = BELIEF
        elif belief > 1:
            self._belief[kind] = belief - 1
        else:
            self._belief.pop(kind, None)
            self._kinds.pop(kind, None)

    # --- threads --------------------------------------------------------------------------------------------------

    def _work(self, worker: _Worker) -> None:
        _here.worker = worker
        worker.clock_id = _cpu_clock_of_this_thread()
        while True:
            lane = worker.lane
            if lane is not None:
                self._serve(worker, lane)
            else:
                self._lead(worker)
            if not self._park(worker):
                return

    def _park(self, worker: _Worker) -> bool:
        """Wait among the idle for a role or a lane. False when it is to end."""
        with self._lock:
            if worker.leaked:
                self._leaked -= 1
                return False
            if self._closed:
                self._workers.discard(worker)
                return False
            if self._leader is worker:
                return True
            self._idle.append(worker)
        if worker.parked.acquire(timeout=IDLE_S):
            return not self._ends(worker)
        with self._lock:
            if worker in self._idle:
                self._idle.remove(worker)
                self._workers.discard(worker)
                return False
        worker.parked.acquire()  # taken off the list while its time ran out: the release is on its way or there
        return not self._ends(worker)

    def _ends(self, worker: _Worker) -> bool:
        with self._lock:
            if self._closed:
                self._workers.discard(worker)
            return self._closed

    def _reserve(self, lane: _Lane | None) -> _Worker:
        """Room for one more worker. Under the lock; `_start` it after."""
        worker = _Worker(lane)
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
            self._start_failed(error)
            return False
        with self._lock:
            worker.thread = thread
        return True

    def _start_failed(self, error: BaseException) -> None:
        self.start_errors += 1
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
                self._monitor_asleep = True  # the next one that rouses a worker tries again
            self._start_failed(error)
            return
        with self._lock:
            self._monitor = monitor

    def _watch(self) -> None:
        looks: dict[_Worker, _Look] = {}
        quiet = 0
        while not self._closed:
            time.sleep(TICK_S)
            try:
                busy = self._look(looks)
                quiet = 0 if busy else quiet + 1
                if quiet >= QUIET_TICKS:
                    quiet = 0
                    looks.clear()
                    self._sleep_until_work()
            except BaseException:  # noqa: BLE001  # a monitor that died would freeze the pool silently
                log_contained("the pool's monitor stumbled; it goes on")

    def _look(self, looks: dict[_Worker, _Look]) -> bool:
        """One tick: find the leader, or a computing worker, stuck in a turn. Whether there is anything to watch."""
        with self._lock:
            leader, resting = self._leader, self._resting
            watched = [w for w in self._workers if w.lane is self._computing or w is leader]
            waiting = bool(self._ready or self._blocking.turns or self._computing.turns)
            contenders = self._computing.serving
        if waiting and resting:
            self._rouse()  # a leader that could not be started
        for lane in (self._blocking, self._computing):
            if lane.turns:
                self._send_for_worker(lane)
        for gone in [w for w in looks if w not in watched]:
            del looks[gone]
        for worker in watched:
            turn = worker.turn
            if turn is None:
                looks.pop(worker, None)
                continue
            look = looks.get(worker)
            if look is None or look.turns != worker.turns:
                looks[worker] = _Look(worker)
            else:
                self._judge(worker, turn, look, contenders)
        return waiting or not resting or bool(looks)

    def _judge(self, worker: _Worker, turn: Turn, look: _Look, contenders: int) -> None:
        """The same turn as at the last look: does it block, or compute for too long?"""
        stuck_s = monotonic() - look.at_s
        cpu_s = worker.cpu_s()
        used = 1.0 if cpu_s is None or look.cpu_s is None else (cpu_s - look.cpu_s) / max(stuck_s, 1e-9)
        # A worker that waits for the GIL uses no CPU either; each contender may keep it for a switch interval.
        if used < BLOCKED_SHARE and stuck_s > TICK_S * (1.6 + 3 * contenders):
            self._learn(turn, self._blocking)
            if worker.lane is not None:
                self._move(worker, self._blocking)
            else:
                self._hand_on(worker)
        elif worker.lane is None and stuck_s > COMPUTING_S:
            self._learn(turn, self._computing)
            self._hand_on(worker)

    def _move(self, worker: _Worker, lane: _Lane) -> None:
        """Count a worker to another lane, whose kind of turn it turned out to run."""
        with self._lock:
            was = worker.lane
            if was is None or was is lane:
                return
            was.serving -= 1
            lane.serving += 1
            worker.lane = lane
        self._send_for_worker(was)

    def _sleep_until_work(self) -> None:
        with self._lock:
            if self._closed or not self._resting or self.queued():
                return
            self._monitor_wake.clear()
            self._monitor_asleep = True
        # One that rouses a worker in between sets the event, and an event that is set stays so.
        self._monitor_wake.wait()


class _Look:
    """What the monitor saw of a worker when it first found it in its turn."""

    __slots__ = ("at_s", "cpu_s", "turns")

    def __init__(self, worker: _Worker) -> None:
        self.turns = worker.turns
        self.at_s = monotonic()
        self.cpu_s = worker.cpu_s()


_here = threading.local()
"""`.worker`: the worker whose thread this is."""


def _kind(turn: Turn) -> object:
    """What turns are told apart by, when it is learned which of them block: their own word, or their class."""
    return getattr(turn, "kind", None) or type(turn)


def _cpu_clock_of_this_thread() -> int | None:
    # Asked for by the thread itself: of one that has ended the identifier is not safe to use.
    try:
        return time.pthread_getcpuclockid(threading.get_ident())
    except (AttributeError, OSError):
        return None
