"""Who runs next, and what time it is: one seeded choice after the other."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from executus.actors.dispatcher import Job, Turn, TurnBudget
from executus.actors.future import Promise
from tests.simulation.stacks import Stack, Stacks

T = TypeVar("T")

MAX_TURNS: Final = 40_000
"""A scenario takes a few thousand; one that goes on for so long goes round in a circle."""


class ProcessDied(BaseException):
    """Unwinds a stack of a simulated process that was killed."""


class Stuck(Exception):
    """The simulation did not come to its end."""


class Mortal(Protocol):
    """A simulated process."""

    dead: bool


class Home:
    """A place where turns run: one at a time (a thread, a loop), or as many as there are (a pool)."""

    __slots__ = ("busy", "name", "owner", "pool", "queue", "weight")

    def __init__(self, name: str, owner: Mortal | None, *, pool: bool, weight: float) -> None:
        self.name = name
        self.owner = owner
        self.pool = pool
        self.weight = weight
        self.busy = 0
        self.queue: deque[Callable[[], object]] = deque()


class _Parked:
    """A stack in the middle of something."""

    __slots__ = ("home", "stack", "until_s", "wake")

    def __init__(self, stack: Stack, home: Home, until_s: float, wake: Promise[Any] | None) -> None:
        self.stack = stack
        self.home = home
        self.until_s = until_s
        self.wake = wake


class Timer:
    """One pending call; runs at `home`."""

    __slots__ = ("fn", "home", "when_s")

    def __init__(self, when_s: float, home: Home, fn: Callable[[], None]) -> None:
        self.when_s = when_s
        self.home = home
        self.fn: Callable[[], None] | None = fn

    def cancel(self) -> None:
        self.fn = None


class Scheduler:
    """Runs everything, one turn at a time, and moves time on when nothing else can run.

    Any call into the environment may be a switch: `switch_point` parks the caller with probability `switch_p`, as an operating system
    does with a thread. `lag_p` lets time pass although turns are waiting, as on a loaded machine.
    """

    def __init__(self, rng: random.Random, stacks: Stacks, *, switch_p: float, lag_p: float) -> None:
        self.rng = rng
        self.switch_p = switch_p
        self.lag_p = lag_p
        self.now_s = 1000.0
        self.turns = 0
        self.homes: list[Home] = []
        self.before_time_passes: Callable[[], None] = lambda: None
        self.failed: Callable[[BaseException, str], None] = lambda _error, _where: None
        self._stacks = stacks
        self._parked: list[_Parked] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._home: Home | None = None
        self._stack: Stack | None = None
        self._until_s = 0.0
        self._error: BaseException | None = None
        self._finished = threading.Lock()
        self._finished.acquire()

    # --- from outside -------------------------------------------------------------------------------------------------

    def run(self, until_s: float) -> None:
        """Run until nothing is left to do or the next thing is due after `until_s`."""
        self._until_s = until_s
        self._stacks.drive = self._drive
        first = self._stacks.take()
        first.hand_over()
        self._finished.acquire()
        if self._error is not None:
            raise self._error

    def call_at(self, when_s: float, home: Home, fn: Callable[[], None]) -> Timer:
        """Run `fn` at `home` when that time has come."""
        timer = Timer(when_s, home, fn)
        heapq.heappush(self._timers, (when_s, next(self._numbers), timer))
        return timer

    def timers_of(self, owner: Mortal) -> list[Timer]:
        """What is still to be called for a process."""
        return [timer for _, _, timer in self._timers if timer.fn is not None and timer.home.owner is owner]

    def parked_of(self, owner: Mortal) -> int:
        """How many stacks of a process are in the middle of something."""
        return sum(1 for parked in self._parked if parked.home.owner is owner)

    def buried(self, owner: Mortal) -> None:
        """The process is dead: nothing of it runs any more; stacks in the middle of something unwind."""
        for home in self.homes:
            if home.owner is owner:
                home.queue.clear()
        self.homes = [home for home in self.homes if home.owner is not owner]

    # --- from turns ---------------------------------------------------------------------------------------------------

    def here(self) -> Home | None:
        """Where the running turn runs; None outside of turns."""
        return self._home

    def switch_point(self) -> None:
        """Somebody else may run now."""
        home = self._home
        if home is None or home.owner is None:
            return
        if home.owner.dead:
            raise ProcessDied
        if self.rng.random() < self.switch_p:
            self.park(self.now_s, None)

    def park(self, until_s: float, wake: Promise[Any] | None) -> None:
        """Park the running turn until a time, or until the promise is done. Raises ProcessDied."""
        home, me = self._home, self._stack
        assert home is not None
        assert me is not None
        if home.owner is not None and home.owner.dead:
            raise ProcessDied
        self._parked.append(_Parked(me, home, until_s, wake))
        successor = self._stack = self._stacks.take()
        successor.hand_over()
        me.wait()
        self._home = home
        if home.owner is not None and home.owner.dead:
            raise ProcessDied

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _drive(self, stack: Stack) -> None:
        """On `stack`, which holds the baton: run turns until another stack goes on."""
        self._stack = stack
        try:
            while True:
                chosen = self._choose()
                if isinstance(chosen, Home):
                    self._run_turn(chosen)
                    continue
                self._home = None
                self._stacks.give_back(stack)
                if chosen is None:
                    self._finished.release()
                    return
                self._stack = chosen.stack
                chosen.stack.hand_over()
                return
        except BaseException as error:
            self._error = error
            self._stacks.give_back(stack)
            self._finished.release()

    def _run_turn(self, home: Home) -> None:
        if home.pool and len(home.queue) > 1:
            home.queue.rotate(-self.rng.randrange(len(home.queue)))
        fn = home.queue.popleft()
        home.busy += 1
        self._home = home
        self.turns += 1
        try:
            fn()
        except ProcessDied:
            pass
        except BaseException as error:
            self.failed(error, home.name)
        home.busy -= 1
        self._home = None

    def _choose(self) -> Home | _Parked | None:
        """What runs next: the next turn of a home, a parked stack, or None at the end."""
        if self.turns > MAX_TURNS:
            raise Stuck(f"more than {MAX_TURNS} turns")
        while True:
            for index, parked in enumerate(self._parked):
                if parked.home.owner is not None and parked.home.owner.dead:
                    return self._parked.pop(index)
            homes = [home for home in self.homes if home.queue and (home.pool or not home.busy)]
            now_s = self.now_s
            ready = [p for p in self._parked if p.until_s <= now_s or (p.wake is not None and p.wake.done())]
            if (homes or ready) and not (self.lag_p and self.rng.random() < self.lag_p and self._lag()):
                return self._pick(homes, ready)
            if not (homes or ready) and not self._pass_time(None):
                return None

    def _pick(self, homes: list[Home], ready: list[_Parked]) -> Home | _Parked:
        if len(homes) + len(ready) == 1:
            chosen = homes[0] if homes else ready[0]
        else:
            roll = self.rng.random() * (sum(home.weight for home in homes) + sum(p.home.weight for p in ready))
            chosen = homes[-1] if homes else ready[-1]
            for option in (*ready, *homes):
                roll -= option.weight if isinstance(option, Home) else option.home.weight
                if roll <= 0:
                    chosen = option
                    break
        if isinstance(chosen, _Parked):
            self._parked.remove(chosen)
        return chosen

    def _lag(self) -> bool:
        """Time passes although there is work, a little."""
        return self._pass_time(self.now_s + self.rng.random() * 0.05)

    def _pass_time(self, at_most_s: float | None) -> bool:
        """Go to the next moment at which something is due. False if there is none before the end."""
        timers = self._timers
        while timers and (
            timers[0][2].fn is None or (timers[0][2].home.owner is not None and timers[0][2].home.owner.dead)
        ):
            heapq.heappop(timers)
        next_s = min((p.until_s for p in self._parked), default=float("inf"))
        if timers:
            next_s = min(next_s, timers[0][0])
        if at_most_s is not None:
            next_s = min(next_s, at_most_s)
        elif next_s > self._until_s:
            return False
        if next_s > self.now_s:
            self.before_time_passes()
            self.now_s = next_s
        while timers and timers[0][0] <= self.now_s:
            _, _, timer = heapq.heappop(timers)
            if timer.fn is not None:
                fn, timer.fn = timer.fn, None
                timer.home.queue.append(fn)
        return True


class SimDispatcher:
    """`Dispatcher` whose turns wait at a home until the scheduler picks them."""

    def __init__(self, scheduler: Scheduler, home: Home, workers: Home, budget: TurnBudget) -> None:
        self.budget = budget
        self._scheduler = scheduler
        self._home = home
        self._workers = workers

    def schedule(self, turn: Turn) -> None:
        """See `Dispatcher`. That somebody else runs before this returns is what a preempted thread sees."""
        if not _dead(self._home):
            self._home.queue.append(turn.run_turn)
            self._scheduler.switch_point()

    def submit(self, fn: Callable[[], T]) -> Promise[T]:
        """See `Dispatcher`."""
        job = Job(fn)
        if not _dead(self._workers):
            self._workers.queue.append(job.run_turn)
            self._scheduler.switch_point()
        return job


def _dead(home: Home) -> bool:
    return home.owner is not None and home.owner.dead
