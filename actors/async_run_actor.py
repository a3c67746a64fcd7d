"""Drives one attempt of a run with async callbacks: one task on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import Callable
from typing import Any, Final

import msgspec

from executus.actors.actor import ExitReport
from executus.actors.errors import DispatcherClosed
from executus.actors.incarnation import tell_if_alive
from executus.actors.outcomes import DrainRequested, ExitEvidence, KillRequested
from executus.actors.run import current_context
from executus.actors.run_actor import STEPS_PER_TURN, TURN_S, CallbackEnded, RunActor

TASK_PREFIX: Final = "executus run "


def bury(task: asyncio.Task[Any]) -> None:
    """Close what a task of a closed loop would go on with. It never will, and asyncio would complain of that."""
    task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001 - as asyncio.gather does with its own
    with contextlib.suppress(RuntimeError):  # a callback that awaits although it is being closed
        task.get_coro().close()


class AsyncRunActor(RunActor):
    """One attempt with async callbacks. Its turns run on the event loop; the callbacks run in one task there.

    Turns and task share the loop's thread, so between two awaits of the task nothing interleaves with it. Synchronous
    callbacks of such a run are called on a worker, so that they do not block the loop.
    """

    __slots__ = ("task",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.task: asyncio.Task[None] | None = None

    def proceed(self) -> None:
        """See that the task is running. It ends when there is nothing to do, so that an idle run costs none."""
        self.inc.idle = False
        if self.task is None and not self.leaving:
            assert self.env.loop is not None
            self.task = self.env.loop.create_task(self._live(), name=TASK_PREFIX + self.inc.run_id)
            self.task.add_done_callback(self._never_began)

    def interrupt(self) -> None:
        """A cause was recorded. A kill cancels the callback; other endings wait for it to return, within the grace."""
        if self.task is None:
            self.proceed()
        elif any(isinstance(cause, KillRequested) for cause in self.inc.causes):
            self.task.cancel()

    def cancel_callback(self) -> None:
        """The grace is over: cancel whatever runs."""
        self.stopped = True
        if self.task is None:
            self.leave()
        else:
            self.task.cancel()

    def exited(self, report: ExitReport) -> None:
        """Besides the report: whatever still runs, of an attempt that was given up on or fenced off, is cancelled."""
        super().exited(report)
        task, loop = self.task, self.env.loop
        if task is not None and loop is not None:
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:  # the loop is closed, and nothing runs there any more
                bury(task)

    def _evidence(self, report: ExitReport) -> ExitEvidence:
        """Besides the facts: a host that closed its loop has shut the run down. That is no crash of it."""
        evidence, loop = super()._evidence(report), self.env.loop
        if isinstance(report.error, DispatcherClosed) and loop is not None and loop.is_closed():
            return msgspec.structs.replace(evidence, causes=(*evidence.causes, DrainRequested()))
        return evidence

    def _never_began(self, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step runs none of its own code: its end is told here."""
        if self.task is task:
            self.task = None
            tell_if_alive(self.actor_ref, CallbackEnded(asyncio.CancelledError()), control=True)

    async def _live(self) -> None:
        error: BaseException | None = None
        current_context.set(self.context)  # the task has a contextvars.Context of its own
        try:
            await self._call_while_there_is_work()
        except BaseException as raised:  # noqa: BLE001 - a SystemExit would stop the host's loop; the actor gets it
            error = raised
        self.task = None
        if error is not None:
            tell_if_alive(self.actor_ref, CallbackEnded(error), control=True)

    async def _call_while_there_is_work(self) -> None:
        until_s = self.env.clock.now_s() + TURN_S
        calls = 0
        while (call := self.decide()) is not None:
            function, arguments, name = self.function(call), self.arguments(call), call.callback
            if name in self.definition.async_callbacks:
                returned = await function(*arguments)
            elif name in self.definition.default_callbacks:
                returned = function(*arguments)  # Run's own are short and block nobody: no thread is taken for them
            else:
                context = contextvars.copy_context()
                job = functools.partial(self._on_worker, context, function, arguments)
                returned = await self.env.workers.submit(job)
            self.complete(call, returned)
            calls += 1
            if calls >= STEPS_PER_TURN or self.env.clock.now_s() >= until_s:
                self.env.give_way()
                await self.env.next_turn()
                until_s, calls = self.env.clock.now_s() + TURN_S, 0

    def _on_worker(self, context: contextvars.Context, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Call a synchronous callback, unless the attempt has ended while this waited for a worker."""
        return None if self.leaving or self.slot.closed else context.run(function, *arguments)
