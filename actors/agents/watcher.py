"""Watches one attempt on behalf of its critic: between callbacks, and by a timer on the loop while a call runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from executus.actors.agents.agent import RunInfo
from executus.actors.agents.conversation import Conversation
from executus.actors.agents.critic import (
    Critic,
    CriticMemo,
    KillRun,
    RestartRun,
    Verdict,
    Watch,
    Zone,
    checked_verdict,
    next_memo,
)
from executus.actors.agents.errors import CriticRestart
from executus.actors.errors import RunFenced
from executus.actors.run import RunContext

T = TypeVar("T")


class Watcher:
    """One attempt's. Everything happens on the event loop's thread, but for `beat`, which only writes a number.

    Verdicts of the timer that the conversation must take in wait in `pending` until the call has returned. `memo` is
    the critic's, as of now; the engine puts it into the conversation that it returns.
    """

    def __init__(
        self,
        critic: Critic | None,
        info: RunInfo,
        monotonic_s: Callable[[], float],
        active_s: Callable[[Conversation], float],
        ordered: Callable[[RestartRun | KillRun], None],
    ) -> None:
        self.critic = critic
        self.info = info
        self.pending: list[Verdict] = []
        self.memo = CriticMemo()
        self.deadline_s: float | None = None
        """The loaded time at which the budget of time is spent, as extended so far."""
        self._now_s = monotonic_s
        self._active_s = active_s
        self._tell_ordered = ordered
        self._beat_s = monotonic_s()
        self._ordered: str | None = None
        self._raised: BaseException | None = None

    def beat(self) -> None:
        """A sign of life. From any thread: a number is replaced, and which of two is newer matters to nobody."""
        self._beat_s = self._now_s()

    def judge(
        self, conversation: Conversation, phase: str, context: RunContext, zone: Zone = "between", zone_s: float = 0.0
    ) -> Verdict | None:
        """Ask the critic. One that raises harms nothing; the run's log says so."""
        if self.critic is None:
            return None
        now_s = self._now_s()
        watch = Watch(
            info=self.info,
            attempt=context.attempt,
            phase=phase,
            step=conversation.steps,
            step_ceiling=conversation.ceiling,
            zone=zone,
            zone_s=zone_s,
            idle_s=max(0.0, now_s - self._beat_s),
            active_s=self._active_s(conversation),
            deadline_s=self.deadline_s,
            recent=conversation.recent,
            usage=conversation.usage,
            memo=self.memo,
        )
        try:
            verdict = checked_verdict(self.critic.judge(watch))
        except Exception:
            context.log.warning("the critic raised; it is not heard this time", exc_info=True)
            return None
        if verdict is not None:
            self.memo = next_memo(self.memo, verdict, watch)
        return verdict

    async def during(
        self, zone: Zone, work: Awaitable[T], conversation: Conversation, phase: str, context: RunContext
    ) -> T:
        """Await a call, and let the critic look at it every so often.

        Raises CriticRestart where the critic would rather have the run restarted; the call is cancelled then.
        """
        critic = self.critic
        self.beat()
        if critic is None:
            return await work
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        began_s = self._now_s()
        self._ordered = self._raised = None
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal timer
            timer = loop.call_later(critic.every_s, look)
            try:
                heed()
            except RunFenced:
                timer.cancel()  # killed or given up on: nothing that is ordered has effect
            except BaseException as error:  # noqa: BLE001 - a SystemExit would end the host's loop; the run gets it
                timer.cancel()
                self._raised = error
                task.cancel()

        def heed() -> None:
            verdict = self.judge(conversation, phase, context, zone, self._now_s() - began_s)
            match verdict:
                case None:
                    pass
                case RestartRun(reason):
                    if self._ordered is None:
                        self._ordered = reason
                        self._tell_ordered(verdict)
                        task.cancel()
                case KillRun(reason):
                    self._tell_ordered(verdict)
                    context.kill(reason, by="critic")
                case _:
                    self.pending.append(verdict)

        timer = loop.call_later(critic.every_s, look)
        try:
            returned = await work
        except asyncio.CancelledError:
            # Our own cancel, or somebody's who ends the run: then the run's ending is classified by that cause first.
            self._carry_out(task)
            raise
        finally:
            timer.cancel()
            self.beat()
        self._carry_out(task)  # the call may have swallowed the cancel
        return returned

    def _carry_out(self, task: asyncio.Task[Any]) -> None:
        if self._raised is not None:
            task.uncancel()
            raise self._raised
        if self._ordered is not None:
            task.uncancel()
            raise CriticRestart(self._ordered)


class WatchedContext:
    """What tools and functions get of the run's context: their signs of life reach the critic, too."""

    def __init__(self, context: RunContext, watcher: Watcher) -> None:
        self._context = context
        self._watcher = watcher

    @property
    def log(self) -> Any:
        """See RunContext."""
        return self._context.log

    @property
    def cancelled(self) -> bool:
        """See RunContext."""
        return self._context.cancelled

    def heartbeat(self, details: object = None) -> None:
        """See RunContext."""
        self._watcher.beat()
        self._context.heartbeat(details)

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """See RunContext."""
        self._watcher.beat()
        self._context.progress(done, total, note)

    def sleep(self, seconds: float) -> Awaitable[None]:
        """See RunContext."""
        return self._context.sleep(seconds)
