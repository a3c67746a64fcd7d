"""Clocks and timers."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from executus.actors.clock import SystemClock, TimerThread, log_contained
from executus.actors.errors import RuntimeForked
from tests.waiting import wait_until


@pytest.fixture
def timers() -> Iterator[TimerThread]:
    timers = TimerThread()
    yield timers
    timers.close()


def test_the_monotonic_clock_never_goes_back_and_the_wall_clock_tells_the_date():
    clock = SystemClock()
    first = clock.now_s()
    assert clock.now_s() >= first
    assert abs(clock.wall_s() - time.time()) < 60


def test_timers_are_called_in_the_order_of_their_times_and_of_their_making(timers: TimerThread):
    called: list[str] = []
    done = threading.Event()
    now_s = time.monotonic()
    timers.call_at(now_s + 0.06, done.set)
    timers.call_at(now_s + 0.04, lambda: called.append("later"))
    timers.call_at(now_s + 0.02, lambda: called.append("soon"))
    timers.call_at(now_s + 0.02, lambda: called.append("soon, made second"))
    timers.call_at(now_s - 1, lambda: called.append("past"))
    assert done.wait(5)
    assert called == ["past", "soon", "soon, made second", "later"]


def test_a_timer_is_never_called_before_its_time(timers: TimerThread):
    at: list[float] = []
    due = [time.monotonic() + n * 0.003 for n in range(20)]
    for due_s in due:
        timers.call_at(due_s, lambda: at.append(time.monotonic()))
    wait_until(lambda: len(at) == 20)
    assert all(called_s >= due_s for called_s, due_s in zip(at, due, strict=True))


def test_an_earlier_timer_wakes_a_thread_that_sleeps_for_a_later_one(timers: TimerThread):
    timers.call_at(time.monotonic() + 3600, lambda: None)
    done = threading.Event()
    timers.call_at(time.monotonic() + 0.01, done.set)
    assert done.wait(5)
    assert timers.pending() == 1


def test_the_thread_starts_with_the_first_timer_and_ends_with_close():
    before = threading.active_count()
    timers = TimerThread()
    assert threading.active_count() == before
    timers.call_at(time.monotonic() + 3600, lambda: None)
    assert threading.active_count() == before + 1
    timers.close()
    wait_until(lambda: threading.active_count() == before)


def test_a_cancelled_timer_is_not_called_and_lets_go_of_its_function(timers: TimerThread):
    class Payload:
        def __call__(self) -> None:
            raise AssertionError("cancelled")

    payload = Payload()
    gone = weakref.ref(payload)
    handle = timers.call_at(time.monotonic() + 0.02, payload)
    handle.cancel()
    handle.cancel()
    del payload
    gc.collect()
    assert gone() is None
    done = threading.Event()
    timers.call_at(time.monotonic() + 0.04, done.set)
    assert done.wait(5)
    assert timers.errors == 0


def test_a_timer_that_ran_lets_go_of_its_function_before_the_next_is_due(timers: TimerThread):
    class Payload:
        ran = False

        def __call__(self) -> None:
            Payload.ran = True

    payload = Payload()
    gone = weakref.ref(payload)
    handle = timers.call_at(time.monotonic(), payload)
    timers.call_at(time.monotonic() + 3600, lambda: None)
    del payload
    wait_until(lambda: Payload.ran and gone() is None)
    handle.cancel()
    assert timers.pending() == 1


def test_a_hundred_thousand_timers_made_and_cancelled_leave_nothing(timers: TimerThread):
    far_s = time.monotonic() + 3600
    handles = [timers.call_at(far_s + n, int) for n in range(100_000)]
    assert timers.pending() == 100_000
    for handle in handles:
        handle.cancel()
    assert timers.pending() == 0
    assert len(timers._heap) < 200


def test_a_timer_that_is_made_and_cancelled_again_and_again_does_not_grow_the_heap(timers: TimerThread):
    far_s = time.monotonic() + 3600
    longest = 0
    for n in range(20_000):
        timers.call_at(far_s + n, int).cancel()
        longest = max(longest, len(timers._heap))
    assert longest < 200


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_what_a_timer_raises_is_counted_and_the_others_go_on(timers: TimerThread, error: BaseException):
    def fail() -> None:
        raise error

    done = threading.Event()
    now_s = time.monotonic()
    timers.call_at(now_s, fail)
    timers.call_at(now_s, done.set)
    assert done.wait(5)
    assert timers.errors == 1


def test_a_timer_may_make_and_cancel_timers(timers: TimerThread):
    done = threading.Event()
    far = timers.call_at(time.monotonic() + 3600, lambda: None)

    def first() -> None:
        far.cancel()
        timers.call_at(time.monotonic(), done.set)

    timers.call_at(time.monotonic(), first)
    assert done.wait(5)
    assert timers.pending() == 0


def test_a_time_that_is_no_number_is_refused_and_for_ever_is_not(timers: TimerThread):
    with pytest.raises(ValueError, match="NaN"):
        timers.call_at(float("nan"), lambda: None)
    timers.call_at(float("inf"), lambda: None)
    done = threading.Event()
    timers.call_at(time.monotonic(), done.set)
    assert done.wait(5)


class Set(SystemClock):
    """A wall clock that somebody sets. For a process a suspend is the same: the wall clock is ahead at once."""

    ahead_s = 0.0

    def wall_s(self) -> float:
        return super().wall_s() + self.ahead_s


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executus.actors.clock.WALL_LOOK_S", 0.02)


@pytest.mark.usefixtures("looks")
def test_a_timer_for_a_wall_time_is_called_soon_after_the_clock_was_set_to_it():
    clock = Set()
    timers = TimerThread(clock=clock)
    done, elapsed = threading.Event(), threading.Event()
    timers.call_at_wall(clock.wall_s() + 3600, done.set)
    timers.call_at(clock.now_s() + 3600, elapsed.set)
    assert not done.wait(0.1)
    clock.ahead_s = 3600
    assert done.wait(5)
    assert not elapsed.is_set()
    assert timers.pending() == 1
    timers.close()


@pytest.mark.usefixtures("looks")
def test_a_timer_for_a_wall_time_is_not_called_before_it_where_the_clock_was_set_back():
    clock = Set()
    timers = TimerThread(clock=clock)
    done = threading.Event()
    timers.call_at_wall(clock.wall_s() + 0.1, done.set)
    clock.ahead_s = -3600
    assert not done.wait(0.3)
    clock.ahead_s = 0
    assert done.wait(5)
    timers.close()


def test_timers_of_both_clocks_wait_for_each_other_no_longer_than_they_must(timers: TimerThread):
    called: list[str] = []
    done = threading.Event()
    timers.call_at_wall(time.time() + 3600, lambda: called.append("in an hour"))
    timers.call_at(time.monotonic() + 3600, lambda: called.append("in an hour"))
    timers.call_at_wall(time.time() + 0.02, lambda: called.append("wall"))
    timers.call_at(time.monotonic() + 0.04, lambda: called.append("monotonic"))
    timers.call_at_wall(time.time() + 0.06, done.set)
    assert done.wait(1.5)
    assert called == ["wall", "monotonic"]
    assert timers.pending() == 2


def test_a_cancelled_timer_for_a_wall_time_is_not_called(timers: TimerThread):
    timers.call_at_wall(time.time() - 1 + 1.05, lambda: pytest.fail("cancelled")).cancel()
    done = threading.Event()
    timers.call_at_wall(time.time() + 0.1, done.set)
    assert done.wait(5)
    assert (timers.errors, timers.pending()) == (0, 0)


def test_after_close_nothing_is_called():
    timers = TimerThread()
    called: list[int] = []
    timers.call_at(time.monotonic() + 0.05, lambda: called.append(1))
    timers.close()
    handle = timers.call_at(time.monotonic(), lambda: called.append(2))
    handle.cancel()
    timers.close()
    assert called == []
    assert timers.pending() == 0


def test_closing_from_a_timer_does_not_wait_for_itself():
    timers = TimerThread()
    closed = threading.Event()
    timers.call_at(time.monotonic(), lambda: (timers.close(), closed.set()))
    assert closed.wait(5)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_that_no_timer_will_ever_be_called(timers: TimerThread):
    timers.call_at(time.monotonic() + 3600, lambda: None)
    pid = os.fork()
    if pid == 0:
        try:
            timers.call_at(time.monotonic(), lambda: None)
        except RuntimeForked:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_log_sink_that_raises_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    class Broken:
        def log(self, *args: object, **kwargs: object) -> None:
            raise SystemExit(1)

    monkeypatch.setattr("executus.actors.clock.log", Broken())
    log_contained("nobody hears this")
