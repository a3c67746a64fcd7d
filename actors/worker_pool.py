"""Many turns on few threads: one worker for short turns, lanes for those that block or compute."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import chain, count, islice
from time import monotonic
from typing import Final, TypeVar

from executus.actors.clock import log_contained
from executus.actors.dispatcher import GiveWay, Job, StandAside, Turn, TurnBudget, refuse_all, run_contained
from executus.actors.errors import DispatcherClosed, RuntimeForked
from executus.actors.forks import forks
from executus.actors.future import Promise, this_thread, yield_cpu
from executus.actors.lanes import SHORT_S, Habits, Lane, Worker
from executus.actors.pool_monitor import (
    COMPUTING_S,
    TICK_S,
    Look,
    Looks,
    Monitor,
    is_blocked,
    is_computing,
    was_computing,
)

T = TypeVar("T")

COMPUTING_WORKERS: Final = 2
"""Computing turns share the interpreter: the second worker is so that a long one does not stop all; more only fight."""
PATIENCE_S: Final = 0.5
"""If none of n computing turns has ended for n times this, their lane gets one more, so that nobody is shut out."""
IDLE_S: Final = 1.0
MOVED_AT_ONCE: Final = 1024
SAMPLE: Final = 64
"""Of so many blocking turns the monitor reads the CPU clocks at each tick: 0.05 ms of 5."""


class WorkerPool(StandAside):
    """`Dispatcher` on daemon threads.

    One worker, the leader, runs the short turns: with a GIL a second one would only fight it. When it is stuck in a
    turn another worker gets its role, at once if the turn says that it will wait (`Promise.wait`), else when the
    monitor sees it. The turn's kind (its actor's class, or its run type) is learned: kinds that block go to a lane with
    as many workers as there are turns, kinds that compute to a lane with two. Both are unlearned after `BELIEF` short
    turns. Workers with nothing to do end after `IDLE_S`. Of `max_threads` the lanes leave one to the leader; if turns
    of unknown kinds have taken that one as well, the first lane worker that ends its turn changes places with the stuck
    leader. A thread that cannot be started costs nothing but time: the work stays queued, `start_errors` counts,
    `start_error` says why until one starts again, `on_start_error` is told of the first, the next `schedule` or tick
    tries again.

    Why no turn is missed: `schedule` appends, *then* reads `_resting`; the leader sets `_resting`, *then* tries to take
    a turn. The queue's own lock orders append and take: if the take found nothing, it came first, so `_resting` was set
    before the append and is read as True. With the GIL or not.
    Why none is lost at the end: `close` sets `_closed`, *then* takes from the queues until they are empty; `schedule`
    appends, *then* reads `_closed`, and empties them itself if it is set. By the same argument.
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
        blocking = max_threads - COMPUTING_WORKERS - 1
        if blocking < 1:
            raise ValueError(f"needs max_threads of at least {COMPUTING_WORKERS + 2}, got {max_threads}")
        self.lends_turns = True
        """Whether an actor may run its turn on its asker's thread. Not after closing: nothing runs any more then."""
        self.start_errors = 0
        self.start_error: BaseException | None = None
        self.on_start_error = on_start_error
        self._max = max_threads
        self._name = name
        self._born = forks.count
        self._ready: deque[Turn] = deque()
        self._blocking = Lane("blocking", blocking, blocks=True)
        self._computing = Lane("computing", COMPUTING_WORKERS)
        self._lanes = (self._blocking, self._computing)
        self._habits = Habits()
        # Guards all that follows, and what workers and lanes say is under it. Held for a few bytecodes; never while a
        # turn runs, a thread starts or anything is waited for.
        self._lock = threading.Lock()
        # True while the leader sleeps or there is none: who then schedules takes the lock and rouses it. Read without
        # the lock by `schedule`, see above.
        self._resting = True
        # Read without the lock by the leader itself, between two turns: an old value costs one turn more.
        self._leader: Worker | None = None
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []
        # The leader is stuck, all other workers are busy: to which lane it will belong when one of them relieves it.
        # Read without the lock between two turns; asked again under it.
        self._relief: Lane | None = None
        self._leaked = 0
        self._numbers = count(1)
        # How many reserved workers' threads are being started; `close` waits for these, or it could not join them.
        self._starting = 0
        self._started = threading.Condition(self._lock)
        self._closed = False
        self._looks = Looks()
        self._monitor = Monitor(f"{name}-monitor", self._tick, self._is_idle, self._start_failed)

    # --- any thread -----------------------------------------------------------------------------------------------

    def schedule(self, turn: Turn) -> None:
        """See `Dispatcher`."""
        if self._closed or self._born != forks.count:
            self._refuse()
        self._ready.append(turn)
        if self._resting:
            self._rouse()
        if self._closed:
            self._refuse_waiting()

    def submit(self, fn: Callable[[], T]) -> Promise[T]:
        """See `Dispatcher`. Such calls are expected to block and go to the lane for that."""
        if self._closed or self._born != forks.count:
            self._refuse()
        job = Job(fn)
        self._enter(self._blocking, job)
        return job

    def abandoned(self, turn: Turn) -> None:
        """Count the thread that runs `turn` as leaked and replace it. It ends when its turn returns, if ever."""
        if self._born != forks.count:
            return
        successor = None
        with self._lock:
            # A worker may be past its turn already and in its next one: then that one goes on, is run to its end, and
            # its thread ends after it; one thread is replaced that need not have been.
            worker = next((worker for worker in self._workers if worker.turn is turn), None)
            if worker is None:
                return
            worker.leaked = True
            self._workers.discard(worker)
            self._leaked += 1
            lane = self._leave(worker)
            if self._leader is worker:
                self._leader, self._resting = None, True
                successor = None if self._closed else self._fill(None)
        self._start_if_new(successor)
        if lane is not None:
            self._send_for_worker(lane)

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
        if self._born != forks.count:
            return True
        until_s = monotonic() + timeout_s
        self.lends_turns = False
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            if self._resting and self._leader is not None:
                self._resting = False
                idle.append(self._leader)
            for worker in idle:
                worker.parked.release()
        self._refuse_waiting()
        with self._lock:
            self._started.wait_for(lambda: not self._starting, timeout_s)
            threads = [worker.thread for worker in self._workers]
        threads.append(self._monitor.close())
        others = [thread for thread in threads if thread is not None and thread is not threading.current_thread()]
        for thread in others:
            if thread.ident is not None:  # else it was being started for longer than we may wait
                thread.join(max(0.0, until_s - monotonic()))
        return not any(thread.is_alive() or thread.ident is None for thread in others)

    def _refuse(self) -> None:
        if self._born != forks.count:
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

    # --- a worker's thread ----------------------------------------------------------------------------------------

    def _work(self, worker: Worker) -> None:
        this_thread.about_to_block = partial(self._about_to_block, worker)
        worker.clock_id = _cpu_clock_of_this_thread()
        while True:
            try:
                if not self._next_post(worker):
                    return
                lane = worker.lane
                if lane is None:
                    self._lead(worker)
                else:
                    self._serve(worker, lane)
            except BaseException:  # noqa: BLE001  # a defect, or no memory; a leader that died would freeze all
                log_contained("a worker stumbled between two turns; it goes on")

    def _next_post(self, worker: Worker) -> bool:
        """Wait until `worker` has the leader's role or a lane. False when it is to end."""
        while True:
            with self._lock:
                if worker.leaked:
                    self._leaked -= 1
                    return False
                if self._closed:
                    self._workers.discard(worker)
                    return False
                if self._leader is worker:
                    self._resting = False
                    return True
                if worker.lane is not None:
                    return True
                if self._leader is None:
                    self._leader, self._resting = worker, False
                    return True
                for lane in self._lanes:
                    if lane.wants_one():
                        self._join(worker, lane)
                        return True
                self._idle.append(worker)
            if worker.parked.acquire(timeout=IDLE_S):
                continue
            with self._lock:
                if worker in self._idle:
                    self._idle.remove(worker)
                    self._workers.discard(worker)
                    return False
            worker.parked.acquire()  # taken off the list while its time ran out, and released under the same lock

    def _lead(self, worker: Worker) -> None:
        """Run short turns for as long as this worker has the role."""
        ready, habits = self._ready, self._habits
        popleft = ready.popleft
        # Or store, timers and the host's loop wait out a switch interval each time that they want the interpreter.
        give_way = GiveWay()
        give_way_at_s = give_way.next_s(monotonic())
        moved = 0
        while self._leader is worker:
            try:
                turn = popleft()
            except IndexError:
                if moved:
                    moved = self._send_for_workers()
                    continue
                yield_cpu()  # who waits for our last turn may have the next one: then neither has to be woken
                if ready:
                    continue
                found = self._rest(worker)
                if found is None:
                    if self._closed:
                        return
                    continue
                turn = found
                del found
                give_way_at_s = give_way.next_s(monotonic())
            if habits.known and (lane := habits.lane_of(turn)) is not None:
                lane.turns.append(turn)
                if self._closed:
                    self._refuse_waiting()
                # Workers are sent for when all are in the lane: to start a thread is to wait for it. One by one, the
                # leader started a thousand threads itself, and short turns behind them waited for 100 ms.
                moved += 1
                if moved >= MOVED_AT_ONCE:
                    moved = self._send_for_workers()
                continue
            if self._gate is not None:
                self.breathe()
            worker.turns += 1
            worker.turn = turn
            run_contained(turn)
            worker.turn = None
            if moved:
                moved = self._send_for_workers()
            del turn  # or a resting leader keeps the last actor it ran alive
            now_s = monotonic()
            if now_s >= give_way_at_s:
                give_way_at_s = give_way.let_go(now_s)

    def _send_for_workers(self) -> int:
        for lane in self._lanes:
            if lane.turns:
                self._send_for_worker(lane)
        return 0

    def _rest(self, worker: Worker) -> Turn | None:
        """Sleep until there is something to do; or the turn that came just before."""
        with self._lock:
            if self._leader is not worker or self._closed:
                return None
            self._resting = True
            try:
                turn = self._ready.popleft()
            except IndexError:
                pass
            else:
                self._resting = False
                return turn
        # Whoever sets `_resting` to False from here on releases this, under the lock. The role is not handed on
        # meanwhile: a resting leader is not stuck.
        worker.parked.acquire()
        return None

    def _serve(self, worker: Worker, lane: Lane) -> None:
        """Run the lane's turns until there are none, or the worker is no longer the lane's."""
        arriving = True
        while worker.lane is lane and not self._closed:
            turn = self._take(worker, lane, arriving=arriving)
            arriving = False
            if turn is None:
                break
            known = self._habits.lane_of(turn)
            if known is not None and known is not lane:
                self._enter(known, turn)
                continue
            if self._gate is not None:
                self.breathe()
            began_s, used_s, process_s = monotonic(), time.thread_time(), time.process_time()
            worker.turns += 1
            worker.turn = turn
            run_contained(turn)
            worker.turn = None
            took_s, used_s = monotonic() - began_s, time.thread_time() - used_s
            if lane is self._blocking and self._computed(worker, used_s, took_s, process_s):
                self._habits.learn(turn, self._computing)
            else:
                self._habits.doubt(turn, took_s)
            del turn
            if lane is self._computing:
                lane.limit = COMPUTING_WORKERS  # turns end: no more patience needed; those over it leave
            if self._relief is not None or self._leader is None:
                self._relieve_leader(worker)
            if lane.serving > lane.limit:
                break
        with self._lock:
            if worker.lane is lane:
                self._leave(worker)
        # For what came between the look above and giving up the place.
        self._send_for_worker(lane)

    def _computed(self, worker: Worker, used_s: float, took_s: float, process_began_s: float) -> bool:
        """Whether a turn in the lane of those that block did not block."""
        if used_s <= SHORT_S:
            return False
        starved_s = worker.starved_s()
        share = starved_s / (starved_s + time.thread_time() + 1e-9)
        return is_computing(used_s, took_s) or was_computing(
            used_s, took_s, time.process_time() - process_began_s, share
        )

    def _take(self, worker: Worker, lane: Lane, *, arriving: bool) -> Turn | None:
        """The lane's next turn; and a worker is sent for the one after it."""
        following = None
        with self._lock:
            if arriving and lane.coming is worker:
                lane.coming = None
            turn = lane.take()
            # In one step with arriving: otherwise the leader finds nobody coming and starts the next thread itself.
            if lane.wants_one() and not self._closed:
                following = self._fill(lane)
        if following is not None:
            self._monitor.wake()
            self._start_if_new(following)
        return turn

    def _about_to_block(self, worker: Worker) -> None:
        """The worker's own turn is going to wait: it needs neither the leader's role nor a computing worker's place."""
        if self._born != forks.count:  # forked from inside a turn: nobody is there to take over
            return
        if self._leader is worker:
            self._hand_on(worker, self._blocking)
        elif worker.lane is self._computing:
            self._move(worker, self._blocking)

    # --- who does what --------------------------------------------------------------------------------------------

    def _rouse(self) -> None:
        """Wake the leader, or make one. Of several that see it rest, the one that gets the lock first does it."""
        newcomer = None
        with self._lock:
            if not self._resting or self._closed:
                return
            if self._leader is not None:
                self._resting = False
                self._leader.parked.release()
            else:
                newcomer = self._fill(None)
        self._monitor.wake()
        self._start_if_new(newcomer)

    def _enter(self, lane: Lane, turn: Turn) -> None:
        lane.turns.append(turn)
        self._send_for_worker(lane)
        if self._closed:
            self._refuse_waiting()

    def _send_for_worker(self, lane: Lane) -> None:
        """See that a worker is on its way to the lane, if it has turns and room.

        Where there are no more threads to be had, the next worker that leaves its lane comes by itself (`_next_post`).
        """
        with self._lock:
            if not lane.wants_one() or self._closed:
                return
            sent = self._fill(lane)
        self._monitor.wake()
        self._start_if_new(sent)

    def _hand_on(self, worker: Worker, lane: Lane) -> None:
        """Give the leader's role to another worker; the old one counts to `lane`, where it goes on after its turn."""
        with self._lock:
            # Not if it has ended its turn and rests: it would sleep as no leader, and nobody would wake it.
            if self._leader is not worker or self._resting or self._closed:
                return
            successor = self._fill(None)
            if successor is None:
                self._relief = lane
                return
            self._join(worker, lane)
        self._start_if_new(successor)

    def _relieve_leader(self, worker: Worker) -> None:
        """Between two turns: change places with the leader, which is stuck and found nobody else, or is not there."""
        with self._lock:
            lane, self._relief = self._relief, None
            stuck = self._leader
            if worker.lane is None or self._closed or (stuck is not None and (lane is None or self._resting)):
                return
            self._leave(worker)
            self._leader, self._resting = worker, False
            if stuck is not None and lane is not None:
                self._join(stuck, lane)

    def _move(self, worker: Worker, lane: Lane) -> None:
        """Count a worker to another lane, whose kind of turn it turned out to run."""
        with self._lock:
            was = self._leave(worker)
            if was is None:
                return
            self._join(worker, lane)
        self._send_for_worker(was)

    def _fill(self, lane: Lane | None) -> Worker | None:
        """Have another worker lead (None) or serve; None if there is none to be had. Under the lock; then start it."""
        if self._idle:
            worker = self._idle.pop()  # the last that parked: the others' idle time runs on
            worker.parked.release()
        elif len(self._workers) < self._max:
            worker = Worker()
            self._workers.add(worker)
            self._starting += 1
        else:
            return None
        if lane is None:
            self._leader, self._resting = worker, False
        else:
            self._join(worker, lane)
            lane.coming = worker
        return worker

    def _join(self, worker: Worker, lane: Lane) -> None:
        worker.lane = lane
        lane.serving += 1

    def _leave(self, worker: Worker) -> Lane | None:
        lane, worker.lane = worker.lane, None
        if lane is not None:
            lane.serving -= 1
            if lane.coming is worker:
                lane.coming = None
        return lane

    # --- threads --------------------------------------------------------------------------------------------------

    def _start_if_new(self, worker: Worker | None) -> None:
        """Start the thread of a worker that has none; without the lock, for a start waits for the GIL.

        The one who filled it in does it, or the monitor, should that one have been interrupted (by Ctrl-C) before.
        """
        if worker is None or not worker.is_unstarted():
            return
        name = f"{self._name}-{next(self._numbers)}"
        thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
        with self._lock:
            if not worker.is_unstarted():
                return
            worker.thread = thread
        try:
            thread.start()
        except BaseException as error:
            self._dismiss(worker)
            # Anything else is the caller's, a KeyboardInterrupt for example. Should the thread have started all the
            # same, it is one worker that `threads` does not count.
            if not isinstance(error, (RuntimeError, MemoryError)):
                raise
            self._start_failed(error)
        else:
            with self._lock:
                self._starting -= 1
                self._started.notify_all()
            self.start_error = None

    def _dismiss(self, worker: Worker) -> None:
        """Its thread did not start: as if it had never been filled in."""
        with self._lock:
            self._workers.discard(worker)
            self._starting -= 1
            self._started.notify_all()
            self._leave(worker)
            if self._leader is worker:
                self._leader, self._resting = None, True

    def _start_failed(self, error: BaseException) -> None:
        self.start_errors += 1
        # One word, last writer wins: two that fail at once may both tell, and that is all.
        told, self.start_error = self.start_error is not None, error
        if told or self.on_start_error is None:
            return
        try:
            self.on_start_error(error)
        except BaseException:  # noqa: BLE001  # the boundary: a report that fails must not stop the pool
            log_contained("the report of a thread that could not be started raised")

    # --- the monitor ----------------------------------------------------------------------------------------------

    def _is_idle(self) -> bool:
        with self._lock:
            return self._resting and not self.queued() and not self._computing.serving

    def _tick(self) -> bool:
        """Find who is stuck in a turn. Whether there is anything to watch. On the monitor's thread alone."""
        with self._lock:
            leader = self._leader
            computing = [worker for worker in self._workers if worker.lane is self._computing]
            blocking = (worker for worker in self._workers if worker.lane is self._blocking)
            watched = list(chain([leader] if leader else [], computing, islice(blocking, SAMPLE)))
            unstarted = [worker for worker in self._workers if worker.is_unstarted()] if self._starting else []
        for worker in unstarted:
            self._start_if_new(worker)
        if self._ready and self._resting:
            self._rouse()  # there was no thread to be had for a leader
        for lane in self._lanes:
            if lane.turns:
                self._send_for_worker(lane)  # nor for the lane
        same = self._looks.again(watched)
        for worker, look in same:
            turn = worker.turn
            if turn is not None:
                self._judge(worker, turn, look, len(computing))
        if computing and self._computing.turns:
            latest_s = monotonic() - PATIENCE_S * len(computing)
            endless = [worker for worker, look in same if look.at_s < latest_s and worker.lane is self._computing]
            if len(endless) >= self._computing.limit:
                self._computing.limit += 1
        return not self._is_idle()

    def _judge(self, worker: Worker, turn: Turn, look: Look, contenders: int) -> None:
        """Of a turn that was there at an earlier look, learn whether it blocks, or computes for too long."""
        used_s, over_s = look.since(worker)
        if worker.lane is self._blocking:
            if is_computing(used_s, over_s):
                self._habits.learn(turn, self._computing)
            elif self._habits.lane_of(turn) is None:  # it handed on by itself, and really waits
                self._habits.learn(turn, self._blocking)
        elif is_blocked(used_s, over_s, contenders):
            self._habits.learn(turn, self._blocking)
            if worker.lane is None:
                self._hand_on(worker, self._blocking)
            else:
                self._move(worker, self._blocking)
        elif worker.lane is None and over_s > COMPUTING_S:
            self._habits.learn(turn, self._computing)
            self._hand_on(worker, self._computing)


def _cpu_clock_of_this_thread() -> int | None:
    # Asked for by the thread itself: of one that has ended the identifier is not safe to use.
    try:
        return time.pthread_getcpuclockid(threading.get_ident())
    except (AttributeError, OSError):
        return None


__all__ = ["TICK_S", "WorkerPool"]
