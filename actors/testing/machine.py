"""A machine that does one thing at a time, in the order in which it came, and on which time passes only when it may."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from executus.actors.dispatcher import Job, Turn, TurnBudget
from executus.actors.errors import WaitTimeout
from executus.actors.future import Promise, this_thread
from executus.actors.testing.stacks import Baton, Stack, Stacks

T = TypeVar("T")

BEGIN_S: Final = 1000.0
"""The monotonic time of a new machine."""
PATIENCE_TURNS: Final = 10_000
"""So many turns later the test's own thread goes on although there is work: a run may step for ever."""


class ProcessDied(BaseException):
    """Unwinds what was in the middle of something when its process died in the machine. Let it pass."""


class TimeStandsStill(WaitTimeout):
    """What is waited for can only happen later, and nobody lets time pass."""


class TooManyTurns(Exception):
    """It goes on and on."""


class Home:
    """A place where turns run: one at a time (a thread, a loop), or as many as there are (a pool)."""

    __slots__ = ("busy", "name", "pool")

    def __init__(self, name: str, *, pool: bool = False) -> None:
        self.name = name
        self.pool = pool
        self.busy = 0


class _Parked:
    """A stack in the middle of something; `home` None is the test's own thread."""

    __slots__ = ("baton", "home", "promise", "stuck", "turns", "until_s")

    def __init__(self, baton: Baton, home: Home | None, until_s: float, promise: Promise[Any], turns: int) -> None:
        self.baton = baton
        self.home = home
        self.until_s = until_s
        self.promise = promise
        self.turns = turns
        self.stuck = False


class VirtualTimer:
    """One pending call; runs at `home`."""

    __slots__ = ("fn", "home")

    def __init__(self, home: Home, fn: Callable[[], object]) -> None:
        self.home = home
        self.fn: Callable[[], object] | None = fn

    def cancel(self) -> None:
        """See TimerHandle."""
        self.fn = None


class Machine:
    """Runs turns first come, first served, on one thread at a time, and moves time on when nothing else can run.

    The thread that made it is the test's own. Whatever waits for a promise there, or in a turn, waits here instead
    (`this_thread.wait_instead`): others run meanwhile. The test's own goes on when nothing else can at this moment. So
    everything that happens follows from the code alone, and happens again the same way.

    `look_s` passes with each look at the clock. `limit_s` is how far time may go; infinity lets it pass by itself.
    The wall clock was at `wall_s` when the machine was new.
    """

    def __init__(self, stacks: Stacks, *, wall_s: float, look_s: float = 0.0, max_turns: float = math.inf) -> None:
        self.now = BEGIN_S
        self.limit_s = math.inf
        self.dead = False
        self.turns = 0
        self.max_turns = max_turns
        self.buried: list[Callable[[], object]] = []
        """Called when the process dies."""
        self._wall_offset_s = wall_s - BEGIN_S
        self._look_s = look_s
        self._stacks = stacks
        self._queue: deque[tuple[Home, Callable[[], object]]] = deque()
        self._parked: list[_Parked] = []
        self._outside: _Parked | None = None
        self._timers: list[tuple[float, int, VirtualTimer]] = []
        self._numbers = itertools.count()
        self._stack: Stack | None = None
        self._home: Home | None = None
        self._fault: BaseException | None = None

    # --- the test's own thread ----------------------------------------------------------------------------------------

    @contextmanager
    def taken(self) -> Generator[None, None, None]:
        """Within this block the calling thread is the machine's own: what waits on it waits here."""
        before, this_thread.wait_instead = this_thread.wait_instead, self.wait
        try:
            yield
        finally:
            this_thread.wait_instead = before

    def settle(self) -> None:
        """Run whatever can run at this moment. Time does not pass."""
        limit_s, self.limit_s = self.limit_s, self.now
        try:
            self._park(Promise(), self.now)
        finally:
            self.limit_s = limit_s

    def advance(self, seconds: float) -> None:
        """Let so much time pass, and run all that is due meanwhile, each at its time."""
        limit_s, self.limit_s = self.limit_s, self.now + seconds
        try:
            self._park(Promise(), self.limit_s)
        finally:
            self.limit_s = limit_s

    def unwind(self) -> None:
        """After `die`, on the test's own thread: let what is parked in the middle of something unwind."""
        if self._parked:
            self._outside = _Parked(Baton(), None, self.now, Promise(), self.turns)
            self._stacks.take(self).baton.hand_over()
            self._outside.baton.wait()
            self._outside = None

    def next_due_s(self) -> float:
        """When the next thing is due, of all that waits for its time; infinity if there is none."""
        timers = self._timers
        while timers and timers[0][2].fn is None:
            heapq.heappop(timers)
        return min(
            (timers[0][0] if timers else math.inf), min((parked.until_s for parked in self._parked), default=math.inf)
        )

    # --- anywhere -----------------------------------------------------------------------------------------------------

    def now_s(self) -> float:
        """See Clock."""
        self.now += self._look_s
        return self.now

    def wall_s(self) -> float:
        """See Clock."""
        return self.now_s() + self._wall_offset_s

    def when_wall(self, wall_s: float) -> float:
        """The monotonic time at which the wall clock will show that."""
        return wall_s - self._wall_offset_s

    def enqueue(self, home: Home, fn: Callable[[], object]) -> None:
        """Run `fn` at `home`, behind what is queued."""
        if not self.dead:
            self._queue.append((home, fn))

    def call_at(self, when_s: float, home: Home, fn: Callable[[], object]) -> VirtualTimer:
        """Run `fn` at `home` when that time has come."""
        timer = VirtualTimer(home, fn)
        if not self.dead:
            heapq.heappush(self._timers, (when_s, next(self._numbers), timer))
        return timer

    def wait(self, promise: Promise[Any], timeout_s: float | None) -> bool:
        """As Promise.wait. Raises TimeStandsStill where time would have to pass, and ProcessDied."""
        if promise.done():
            return True
        parked = self._park(promise, math.inf if timeout_s is None else self.now + timeout_s)
        if promise.done():
            return True
        if parked.stuck:
            raise TimeStandsStill(self._why_stuck())
        return False

    def pause(self, seconds: float, wake: Promise[Any]) -> None:
        """See Environment."""
        self.wait(wake, seconds)

    def die(self) -> None:
        """The process is gone at this moment. What is in the middle of something unwinds; nothing of it has effect."""
        if not self.dead:
            self.dead = True
            self._queue.clear()
            self._timers.clear()
            for bury in self.buried:
                bury()

    # --- the machinery ------------------------------------------------------------------------------------------------

    def _park(self, promise: Promise[Any], until_s: float) -> _Parked:
        """Park the calling stack until the promise is done or the time has come, or nothing else can happen."""
        if self.dead:
            raise ProcessDied
        stack, home = self._stack, self._home
        baton = Baton() if stack is None else stack.baton
        parked = _Parked(baton, home, until_s, promise, self.turns)
        if stack is None:
            self._outside = parked
        else:
            self._parked.append(parked)
        self._stacks.take(self).baton.hand_over()
        parked.baton.wait()
        self._stack, self._home = stack, home
        if stack is None:
            self._outside = None
            fault, self._fault = self._fault, None
            if fault is not None:
                raise fault
        if self.dead:
            raise ProcessDied
        return parked

    def drive(self, stack: Stack) -> None:
        """See Driver."""
        self._stack = stack
        this_thread.wait_instead = self.wait
        try:
            while not isinstance(chosen := self._choose(), _Parked):
                self._run_turn(*chosen)
        except BaseException as error:  # noqa: BLE001 - the test's own thread raises it
            assert self._outside is not None
            chosen, self._fault = self._outside, error
        self._stacks.give_back(stack)
        chosen.baton.hand_over()

    def _run_turn(self, home: Home, fn: Callable[[], object]) -> None:
        self.turns += 1
        home.busy += 1
        self._home = home
        try:
            fn()
        except ProcessDied:
            pass
        finally:
            home.busy -= 1
            self._home = None

    def _choose(self) -> _Parked | tuple[Home, Callable[[], object]]:
        """What runs next: what was parked and may go on, then turns in their order, then the test's own thread."""
        outside = self._outside
        assert outside is not None
        if self.turns > self.max_turns:
            self.die()
            self._fault = self._fault or TooManyTurns(f"more than {self.max_turns:g} turns")
        while True:
            if self.dead:
                return self._parked.pop() if self._parked else outside
            self._queue_what_is_due()
            for index, parked in enumerate(self._parked):
                if parked.promise.done() or parked.until_s <= self.now:
                    return self._parked.pop(index)
            outside_ready = outside.promise.done() or outside.until_s <= self.now
            if not (outside_ready and self.turns - outside.turns > PATIENCE_TURNS):
                for index, (home, _) in enumerate(self._queue):
                    if home.pool or not home.busy:
                        turn = self._queue[index]
                        del self._queue[index]
                        return turn
            if outside_ready:
                return outside
            if not self._pass_time(outside.until_s):
                outside.stuck = True
                return outside

    def _pass_time(self, outside_s: float) -> bool:
        """Go to the next moment at which something is due. False if there is none, or none that time may go to."""
        next_s = min(self.next_due_s(), outside_s)
        if next_s > self.limit_s or next_s == math.inf:
            return False
        self.now = max(self.now, next_s)
        return True

    def _queue_what_is_due(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            _, _, timer = heapq.heappop(self._timers)
            if timer.fn is not None:
                fn, timer.fn = timer.fn, None
                self._queue.append((timer.home, fn))

    def _why_stuck(self) -> str:
        due_s = self.next_due_s()
        if due_s == math.inf:
            return "nothing is left that could happen, and what is waited for has not"
        return (
            f"nothing more happens at this moment; the next thing is due in {due_s - self.now:g} s, and time passes "
            "only when it is told: advance() the clock, or wait within its running()"
        )


class VirtualTimers:
    """`Timers` on a machine: what is due runs one after the other at a home of its own."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._home = Home("timers")

    def call_at(self, when_s: float, fn: Callable[[], None]) -> VirtualTimer:
        """See Timers."""
        return self._machine.call_at(when_s, self._home, fn)

    def call_at_wall(self, wall_s: float, fn: Callable[[], None]) -> VirtualTimer:
        """See Timers. The wall clock of a machine is never set: it goes with the other one."""
        return self._machine.call_at(self._machine.when_wall(wall_s), self._home, fn)


class VirtualDispatcher:
    """`Dispatcher` whose turns wait at a home of a machine."""

    budget = TurnBudget()

    def __init__(self, machine: Machine, home: Home, workers: Home) -> None:
        self._machine = machine
        self._home = home
        self._workers = workers

    def schedule(self, turn: Turn) -> None:
        """See Dispatcher."""
        self._machine.enqueue(self._home, turn.run_turn)

    def submit(self, fn: Callable[[], T]) -> Promise[T]:
        """See Dispatcher."""
        job = Job(fn)
        self._machine.enqueue(self._workers, job.run_turn)
        return job
