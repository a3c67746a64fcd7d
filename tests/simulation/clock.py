"""Virtual time for a simulated process: clock and timers."""

from __future__ import annotations

from collections.abc import Callable

from executus.actors.clock import WALL_LOOK_S
from tests.simulation.scheduler import Home, Scheduler, Timer


class SimClock:
    """`Clock` on the scheduler's time. Its wall clock jumps when told to. Looking at it is a moment at which others may run."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.wall_offset_s = self.opened_at_s = 1.8e9

    def now_s(self) -> float:
        """See `Clock`."""
        self._scheduler.switch_point()
        return self._scheduler.now_s

    def wall_s(self) -> float:
        """See `Clock`."""
        self._scheduler.switch_point()
        return self._scheduler.now_s + self.wall_offset_s


class SimTimers:
    """`Timers`: what is due runs at the home of timers, one after the other."""

    def __init__(self, scheduler: Scheduler, home: Home, clock: SimClock) -> None:
        self._scheduler = scheduler
        self._home = home
        self._clock = clock

    def call_at(self, when_s: float, fn: Callable[[], None]) -> Timer:
        """See `Timers`."""
        timer = self._scheduler.call_at(when_s, self._home, fn)
        self._scheduler.switch_point()
        return timer

    def call_at_wall(self, wall_s: float, fn: Callable[[], None]) -> WallTimer:
        """See `Timers`."""
        timer = WallTimer(wall_s, fn)
        self._look(timer)
        self._scheduler.switch_point()
        return timer

    def _look(self, timer: WallTimer) -> None:
        if timer.cancelled:
            return
        now_s = self._scheduler.now_s
        left_s = timer.wall_s - now_s - self._clock.wall_offset_s
        if left_s <= 0:
            timer.next = self._scheduler.call_at(now_s, self._home, timer.fn)
        else:
            timer.next = self._scheduler.call_at(
                now_s + min(left_s, WALL_LOOK_S), self._home, lambda: self._look(timer)
            )


class WallTimer:
    """One pending call by the wall clock, which is looked at again and again."""

    __slots__ = ("cancelled", "fn", "next", "wall_s")

    def __init__(self, wall_s: float, fn: Callable[[], None]) -> None:
        self.wall_s = wall_s
        self.fn = fn
        self.next: Timer | None = None
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        if self.next is not None:
            self.next.cancel()
