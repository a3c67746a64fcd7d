"""Where one runtime's actors run: its threads, its event loop, and letting go of them."""

from __future__ import annotations

import asyncio
import random
import sys
import time
import traceback
from typing import Any, Final

from executus.actors.async_run_actor import TASK_PREFIX, bury
from executus.actors.clock import Clock, TimerThread
from executus.actors.definition import Registry
from executus.actors.dispatcher import LoopDispatcher, ThreadDispatcher
from executus.actors.environment import Environment
from executus.actors.events import EventBus, ThreadsExhausted
from executus.actors.future import Promise
from executus.actors.loop_share import LoopShare
from executus.actors.loop_thread import LoopThread
from executus.actors.outcomes import ErrorInfo
from executus.actors.worker_pool import WorkerPool
from executus.stores import CheckpointStore

GATHER_S: Final = 0.0005
POOL_CLOSE_S: Final = 0.2
"""What workers get to end when the runs are over; who still hangs in a step is a daemon."""


class Homes:
    """The threads of one runtime, daemons all. They start with their first turn, that of an `own_loop` at once.

    The tree has a thread of its own, for a subscriber of events that blocks the run supervisor's must not keep the
    store from being restarted or closed.
    """

    def __init__(self, host_loop: asyncio.AbstractEventLoop | None, *, own_loop: bool, clock: Clock) -> None:
        self._loop_thread = LoopThread() if own_loop else None  # the first: it may raise, and then nothing is there
        self._loop = host_loop if self._loop_thread is None else self._loop_thread.loop
        self._pool = WorkerPool(name="executus-worker")
        self._timers = TimerThread(name="executus-timers", clock=clock)
        self._tree = ThreadDispatcher(name="executus-tree")
        self._store = ThreadDispatcher(name="executus-store")
        self._supervisor = ThreadDispatcher(name="executus-supervisor")
        self._async = None if self._loop is None else LoopDispatcher(self._loop, self._pool)

    def environment(
        self, *, clock: Clock, store: CheckpointStore, events: EventBus, registry: Registry, logger: Any
    ) -> Environment:
        """The edges of a runtime that runs here."""
        environment = Environment(
            clock=clock,
            timers=self._timers,
            rng=random.Random(),
            workers=self._pool,
            tree_home=self._tree,
            store_home=self._store,
            async_home=self._pool if self._async is None else self._async,
            supervisor_home=self._supervisor,
            loop=self._loop,
            store=store,
            events=events,
            registry=registry,
            logger=logger,
            pause=_pause,
            stand_aside=self._pool.stand_aside,
            backlog=lambda: self._pool.queued() > 0,
            gather=lambda: time.sleep(GATHER_S),
            give_way=_nothing if self._async is None else self._async.give_way,
            stack_of=stack_of,
            leaked_threads=self._pool.leaked,
        )

        def tell(error: BaseException) -> None:
            events.emit(ThreadsExhausted(error=ErrorInfo.of(error), waiting=self._pool.queued()))

        self._pool.on_start_error = tell
        if self._loop is not None:
            environment.next_turn = LoopShare(self._loop).next_turn
        return environment

    def start_timers(self) -> None:
        """Start their thread now: the drain at exit needs timers, and there no thread can be started any more."""
        self._timers.call_at(0.0, _nothing)

    def thread_error(self) -> BaseException | None:
        """Why no worker's thread can be started at present."""
        return self._pool.start_error

    def worker_threads(self) -> int:
        """How many threads the workers have."""
        return self._pool.threads()

    def close(self, timeout_s: float, *, store_hangs: bool) -> None:
        """End the threads; each gets `timeout_s`. A store's that hangs ends by itself, when it has closed the store."""
        self._tree.close(timeout_s)
        self._supervisor.close(timeout_s)
        if store_hangs:
            self._store.submit(self._store.close)  # behind the closing of the store, see RuntimeTree
        else:
            self._store.close(timeout_s)
        if self._async is not None:
            self._async.close()
        if self._loop_thread is not None:
            self._loop_thread.close(timeout_s)
        elif self._loop is not None and self._loop.is_closed():  # the host closed its loop over runs at work
            for task in asyncio.all_tasks(self._loop):
                if task.get_name().startswith(TASK_PREFIX):
                    bury(task)
        self._timers.close(timeout_s)
        self._pool.close(POOL_CLOSE_S)


def _nothing() -> None:
    pass


def _pause(seconds: float, wake: Promise[None]) -> None:
    wake.wait(seconds)


def stack_of(ident: int | None) -> str:
    """The stack of a thread, without local variables; empty when it has none."""
    frame = sys._current_frames().get(ident) if ident is not None else None  # noqa: SLF001 - the documented way there is
    return "" if frame is None else "".join(traceback.format_stack(frame))
