"""Virtual time for a simulated process: clock and timers."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.scheduler import Home, Scheduler, Timer


class SimClock:
    """`Clock` on the scheduler's time. Its wall clock jumps when told to. Looking at it is a moment at which others may run."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.wall_offset_s = 1.8e9

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

    def __init__(self, scheduler: Scheduler, home: Home) -> None:
        self._scheduler = scheduler
        self._home = home

    def call_at(self, when_s: float, fn: Callable[[], None]) -> Timer:
        """See `Timers`."""
        timer = self._scheduler.call_at(when_s, self._home, fn)
        self._scheduler.switch_point()
        return timer
