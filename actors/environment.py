"""What the runtime's parts are given instead of reaching for it: clock, timers, chance, dispatchers, store, events."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from executus.actors.clock import Clock, Timers
from executus.actors.dispatcher import Dispatcher
from executus.actors.events import EventBus, RunEvent
from executus.actors.flight_ring import is_telling, ring_of
from executus.actors.incarnation import Incarnation
from executus.actors.outcomes import ErrorInfo
from executus.actors.retention import DEFAULT_RETENTION, RetentionPolicy
from executus.stores import EPOCHS_PER_BOOT, CheckpointStore

if TYPE_CHECKING:
    from executus.actors.definition import Registry
    from executus.actors.future import Promise


class EpochCounter:
    """Draws epochs of this boot. Used by the run supervisor alone, so it needs no lock."""

    __slots__ = ("_next",)

    def __init__(self, boot_epoch: int) -> None:
        self._next = boot_epoch * EPOCHS_PER_BOOT

    def draw(self) -> int:
        """An epoch that no execution in this store ever had."""
        self._next += 1
        return self._next


async def _next_round() -> None:
    await asyncio.sleep(0)


@dataclass(slots=True)
class Environment:
    """The edges of one runtime, injected, so that the whole of it runs under a seeded scheduler with virtual time.

    `pause(seconds, wake)` blocks the calling thread until the promise is done or the time is over. `async_home` are
    the turns of async runs, on `loop`. `stand_aside()` surrounds a commit: workers wait between turns, so that it
    gets the GIL at once, until it calls what that gives. `backlog()` says whether turns wait for a worker, `gather()`
    gives them a moment. `give_way()` is called by async runs after each turn on the loop, so that other threads get on,
    and `next_turn()` is awaited then, so that the loop's other tasks and timers do.
    """

    clock: Clock
    timers: Timers
    rng: random.Random
    workers: Dispatcher
    tree_home: Dispatcher
    store_home: Dispatcher
    async_home: Dispatcher
    supervisor_home: Dispatcher
    loop: asyncio.AbstractEventLoop | None
    store: CheckpointStore
    events: EventBus
    registry: Registry
    logger: Any
    pause: Callable[[float, Promise[None]], None]
    stand_aside: Callable[[], AbstractContextManager[Callable[[], None]]]
    backlog: Callable[[], bool]
    gather: Callable[[], None]
    give_way: Callable[[], None]
    stack_of: Callable[[int | None], str]
    leaked_threads: Callable[[], int]
    next_turn: Callable[[], Awaitable[None]] = _next_round
    retention: RetentionPolicy = DEFAULT_RETENTION
    store_trouble: ErrorInfo | None = None
    """Why commits fail at present. The store actor writes it, health reads it."""
    saves_awaited: bool = False
    """Whether a callback has called `context.durable()`. Only ever set, so that it is right on any thread."""
    _opened_at_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._opened_at_s = self.clock.wall_s() - self.clock.now_s()

    def steady_s(self) -> float:
        """The wall time of the opening, and what the monotonic clock has counted since: what durations are stored by.

        Within a process no jump of the wall clock moves it; from one to the next downtime counts.
        """
        return self._opened_at_s + self.clock.now_s()

    def emit(self, kind: type[RunEvent], inc: Incarnation, **facts: Any) -> None:
        """Emit an event of a live run; its flight ring hears of it as well. On any thread."""
        claim = inc.claim
        event = kind(
            run_id=inc.run_id,
            run_type=inc.definition.name,
            attempt=claim.attempt,
            epoch=claim.epoch,
            **facts,
        )
        if (inc.flight is not None or is_telling(event)) and inc.durable:
            ring_of(inc).hear(self.clock.wall_s(), event)
        self.events.emit(event)

    def steady_at(self, now_s: float) -> float:
        """The steady time of a monotonic one."""
        return self._opened_at_s + now_s

    def now_at(self, steady_s: float) -> float:
        """The monotonic time of a steady one."""
        return steady_s - self._opened_at_s
