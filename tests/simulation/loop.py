"""A virtual event loop: one handle at a time, when the scheduler says so."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.scheduler import Home, Scheduler, Timer


class SimLoop(asyncio.AbstractEventLoop):
    """What asyncio's own futures, tasks and time-outs need of a loop, on virtual time. No sockets, no threads, no signals."""

    def __init__(self, scheduler: Scheduler, home: Home, report: Callable[[str], None]) -> None:
        self._scheduler = scheduler
        self._home = home
        self._report = report
        self._timers: dict[asyncio.TimerHandle, Timer] = {}
        self._tasks: list[asyncio.Task[Any]] = []

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = self.call_soon(callback, *args, context=context)
        self._scheduler.switch_point()
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers[handle] = self._scheduler.call_at(when, self._home, lambda: self._run_timer(handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio's handles tell their loop."""
        timer = self._timers.pop(handle, None)
        if timer is not None:
            timer.cancel()

    def _run_timer(self, handle: asyncio.TimerHandle) -> None:
        self._timers.pop(handle, None)
        self._run(handle)

    def _enqueue(self, handle: asyncio.Handle) -> None:
        if self._home.owner is None or not self._home.owner.dead:
            self._home.queue.append(lambda: self._run(handle))

    def _run(self, handle: asyncio.Handle) -> None:
        if handle.cancelled():
            return
        asyncio._set_running_loop(self)
        try:
            handle._run()
        finally:
            asyncio._set_running_loop(None)

    def time(self) -> float:
        return self._scheduler.now_s

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def bury(self) -> None:
        """The process is dead. Close what it leaves in the middle, or the garbage collector would, at any moment."""
        for task in self._tasks:
            coro = task.get_coro()
            if coro is not None and not task.done():
                with contextlib.suppress(Exception):  # it is executing: then it unwinds by itself
                    coro.close()

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._home.owner is None or not self._home.owner.dead:
            self._report(f"event loop: {context.get('message')}: {context.get('exception')!r}")
