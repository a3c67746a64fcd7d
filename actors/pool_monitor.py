"""Looks after a worker pool: a thread that ticks while there is work, and how it tells blocking from computing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Final

from executus.actors.clock import log_contained
from executus.actors.lanes import SHORT_S, Worker

TICK_S: Final = 0.005
"""How often it looks while there is work: CPython's switch interval, below which nothing can be told apart."""
QUIET_TICKS: Final = 40
"""After so many ticks without work it sleeps until there is some."""
BLOCKED_SHARE: Final = 0.1
"""A turn whose thread used less of the CPU than this is blocked; more, and it computes."""
COMPUTING_S: Final = 0.02
"""A turn that computes for longer than this keeps others waiting too long; its kind gets a lane of its own."""


def is_blocked(used_s: float | None, over_s: float, contenders: int) -> bool:
    """Whether a turn that used so much CPU over so much time blocks; `contenders` turns compute beside it.

    Who waits for the GIL uses no CPU either, and each contender may keep it for a switch interval. Where CPU time
    cannot be told all that last are taken to block: too many threads are better than runs that wait for each other.
    """
    if used_s is not None and used_s >= BLOCKED_SHARE * over_s:
        return False
    return over_s > TICK_S * (1.6 + 3 * contenders)


def is_computing(used_s: float | None, over_s: float) -> bool:
    """Whether a turn that was taken to block computes instead. A tenth is much, for others compute beside it."""
    return used_s is not None and used_s > COMPUTING_S and used_s > BLOCKED_SHARE * over_s


def was_computing(used_s: float, took_s: float, process_s: float, starved_share: float) -> bool:
    """Whether a turn that has ended, in the lane of those that block, would rather have computed.

    It used CPU enough to keep others waiting, and what it waited for is explained by what the process computed
    meanwhile: `process_s`, stretched by the `starved_share` of its time in which the system gave it no CPU. Its own
    share of the CPU says nothing, for among hundreds that compute each has next to none.
    """
    return used_s > SHORT_S and took_s < 2 * process_s / max(0.01, 1 - starved_share)


class Look:
    """What was seen of a worker when it was first found in its turn."""

    __slots__ = ("at_s", "cpu_s", "starved_s", "turns")

    def __init__(self, worker: Worker) -> None:
        self.turns = worker.turns
        self.at_s = monotonic()
        self.cpu_s = worker.cpu_s()
        # Not of the many in the lane of those that block: nothing hangs on it there, and it is 5 us each.
        self.starved_s = None if worker.lane is not None and worker.lane.blocks else worker.starved_s()

    def since(self, worker: Worker) -> tuple[float | None, float]:
        """CPU used since, and time passed; without the time in which it waited for no more than a CPU.

        On a loaded machine a thread that computes gets no CPU for many ticks, and would look like one that blocks.
        """
        over_s = monotonic() - self.at_s
        if self.starved_s is not None:
            over_s -= worker.starved_s() - self.starved_s
        cpu_s = worker.cpu_s()
        return (None if cpu_s is None or self.cpu_s is None else cpu_s - self.cpu_s), over_s


class Looks:
    """The last look at each worker. Belongs to the monitor's thread."""

    def __init__(self) -> None:
        self._at: dict[Worker, Look] = {}

    def again(self, workers: Iterable[Worker]) -> list[tuple[Worker, Look]]:
        """Look at `workers`, forget all others. Those in the same turn as before, with the first look at it."""
        was, self._at = self._at, {}
        same: list[tuple[Worker, Look]] = []
        for worker in workers:
            if worker.turn is None:
                continue
            look = was.get(worker)
            if look is not None and look.turns == worker.turns:
                same.append((worker, look))
            else:
                look = Look(worker)
            self._at[worker] = look
        return same


class Monitor:
    """A daemon thread that calls `tick()` every `TICK_S` while that returns True, and sleeps when it long has not.

    It starts with the first `wake`. What `tick` raises is contained: without a monitor a stuck leader freezes all.
    Should the thread itself be lost, the next `wake` starts another.
    """

    def __init__(
        self,
        name: str,
        tick: Callable[[], bool],
        is_idle: Callable[[], bool],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._name = name
        self._tick = tick
        self._is_idle = is_idle
        self._on_error = on_error
        # Held while the thread is started, so that there is one; who finds it taken leaves it to the other.
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        # Why no wake-up is lost: the thread sets `_asleep`, *then* asks `is_idle`, which takes the pool's lock; who has
        # work changes the pool under that lock, *then* reads `_asleep`. Whichever was there first, the other sees it.
        self._asleep = False
        self._wake = threading.Event()

    def wake(self) -> None:
        """See that it ticks. Any thread, not under the pool's lock."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._start()
        elif self._asleep:
            self._wake.set()

    def is_asleep(self) -> bool:
        """Whether it sleeps until it is woken."""
        return self._asleep

    def close(self) -> threading.Thread | None:
        """Let it end; its thread, to be joined."""
        self._closed = True
        with self._starting:  # a thread that is starting now is there afterwards
            self._wake.set()
            return self._thread

    def _start(self) -> None:
        if not self._starting.acquire(blocking=False):
            return
        failed: BaseException | None = None
        try:
            if self._closed or (self._thread is not None and self._thread.is_alive()):
                return
            self._asleep = False
            thread = threading.Thread(target=self._watch, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        except (RuntimeError, MemoryError) as error:  # no more threads; whoever wakes it next tries again
            failed = error
        finally:
            self._starting.release()
        if failed is not None:
            self._on_error(failed)

    def _watch(self) -> None:
        quiet = 0
        while not self._closed:
            try:
                time.sleep(TICK_S)
                quiet = 0 if self._tick() else quiet + 1
                if quiet >= QUIET_TICKS:
                    quiet = 0
                    self._sleep_until_woken()
            except BaseException:  # noqa: BLE001  # a monitor that died would freeze the pool silently
                log_contained("the pool's monitor stumbled; it goes on")

    def _sleep_until_woken(self) -> None:
        self._wake.clear()
        self._asleep = True
        try:
            if self._is_idle() and not self._closed:
                self._wake.wait()  # set in between, it stays set
        finally:
            self._asleep = False
