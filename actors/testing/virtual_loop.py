"""An event loop on a machine: asyncio's own futures, tasks, locks and time-outs work, on virtual time. No sockets."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from executus.actors.clock import log
from executus.actors.future import Promise
from executus.actors.testing.machine import Home, Machine, VirtualDispatcher, VirtualTimer


class VirtualLoop(asyncio.AbstractEventLoop):
    """One handle at a time, each a turn of its machine. What it does not know raises NotImplementedError."""

    def __init__(self, machine: Machine, home: Home, workers: VirtualDispatcher) -> None:
        self._machine = machine
        self._home = home
        self._workers = workers
        self._timers: dict[asyncio.TimerHandle, VirtualTimer] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        machine.buried.append(self.bury)

    # --- what asyncio calls -------------------------------------------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """See AbstractEventLoop."""
        handle = asyncio.Handle(callback, args, self, context)
        self._machine.enqueue(self._home, lambda: self._run(handle))
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """See AbstractEventLoop."""
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """See AbstractEventLoop."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """See AbstractEventLoop."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers[handle] = self._machine.call_at(when, self._home, lambda: self._run_timer(handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio's handles tell their loop."""
        timer = self._timers.pop(handle, None)
        if timer is not None:
            timer.cancel()

    def time(self) -> float:
        """See AbstractEventLoop."""
        return self._machine.now_s()

    def create_future(self) -> asyncio.Future[Any]:
        """See AbstractEventLoop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        """See AbstractEventLoop."""
        task = asyncio.Task(coro, loop=self, **options)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """On a worker of the machine, whatever the executor: nothing here runs beside anything else."""
        del executor
        future = self.create_future()

        def settle(job: Promise[Any]) -> None:
            if not future.done():
                error = job.error()
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(job.result(0))

        self._workers.submit(lambda: func(*args)).add_done_callback(lambda job: self.call_soon(settle, job))
        return future

    def get_debug(self) -> bool:
        """See AbstractEventLoop."""
        return False

    def is_running(self) -> bool:
        """See AbstractEventLoop."""
        return True

    def is_closed(self) -> bool:
        """See AbstractEventLoop."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """See AbstractEventLoop."""
        if not self._machine.dead:
            log.error("event loop: %s", context.get("message"), exc_info=context.get("exception"))

    # --- the end ------------------------------------------------------------------------------------------------------

    def cancel_all(self) -> None:
        """Cancel what still runs, as a loop does that is closed."""
        for task in list(self._tasks):
            task.cancel()

    def bury(self) -> None:
        """The process is dead. Close what it leaves in the middle, or the garbage collector would, at any moment."""
        for task in list(self._tasks):
            coro = task.get_coro()
            if not task.done() and inspect.iscoroutine(coro):
                with contextlib.suppress(Exception):  # it is executing: then it unwinds by itself
                    coro.close()

    def _run_timer(self, handle: asyncio.TimerHandle) -> None:
        self._timers.pop(handle, None)
        self._run(handle)

    def _run(self, handle: asyncio.Handle) -> None:
        if handle.cancelled():
            return
        asyncio._set_running_loop(self)  # noqa: SLF001 - what every loop says of itself
        try:
            handle._run()  # noqa: SLF001 - what every loop does with its handles
        finally:
            asyncio._set_running_loop(None)  # noqa: SLF001
