"""Watches one attempt on behalf of its critic: between callbacks, and by a timer on the loop while a call runs."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

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


class _Sight(NamedTuple):
    """What the timer looks at."""

    task: asyncio.Task[Any]
    conversation: Conversation
    phase: str
    context: RunContext
    zone: Zone
    began_s: float
    look_at_s: float
    """When next, by the loop's clock."""


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
        self._timer: asyncio.TimerHandle | None = None
        self._sight: _Sight | None = None
        """What runs now."""

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
        if self.critic is None:
            return await work
        task = asyncio.current_task()
        assert task is not None
        self.beat()
        self._ordered = self._raised = None
        every_s = self.critic.every_s
        look_at_s = asyncio.get_running_loop().time() + every_s
        self._sight = _Sight(task, conversation, phase, context, zone, self._beat_s, look_at_s)
        if self._timer is None:
            self._look_in(every_s)
        try:
            returned = await work
        except asyncio.CancelledError:
            # Our own cancel, or somebody's who ends the run: then the run's ending is classified by that cause first.
            self._carry_out(task)
            raise
        finally:
            self._sight = None
            self.beat()
        self._carry_out(task)  # the call may have swallowed the cancel
        return returned

    def _look_in(self, seconds: float) -> None:
        # By a weak reference: a run that has ended is not kept until the timer elapses.
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, _look_of, weakref.WeakMethod(self._look))

    def _look(self) -> None:
        """The timer has elapsed. One timer serves call after call: most last no longer than setting one takes."""
        self._timer = None
        sight, critic = self._sight, self.critic
        if sight is None or critic is None:
            return  # the next call sets it again
        early_s = sight.look_at_s - asyncio.get_running_loop().time()
        if early_s > 0:
            self._look_in(early_s)
            return
        self._sight = sight._replace(look_at_s=sight.look_at_s + critic.every_s)
        self._look_in(critic.every_s)
        try:
            self._heed(sight)
        except RunFenced:
            self._sight = None  # killed or given up on: nothing that is ordered has effect
        except BaseException as error:  # noqa: BLE001 - a SystemExit would end the host's loop; the run gets it
            self._sight = None
            self._raised = error
            sight.task.cancel()

    def _heed(self, sight: _Sight) -> None:
        zone_s = self._now_s() - sight.began_s
        verdict = self.judge(sight.conversation, sight.phase, sight.context, sight.zone, zone_s)
        match verdict:
            case None:
                pass
            case RestartRun(reason):
                if self._ordered is None:
                    self._ordered = reason
                    self._tell_ordered(verdict)
                    sight.task.cancel()
            case KillRun(reason):
                self._tell_ordered(verdict)
                sight.context.kill(reason, by="critic")
            case _:
                self.pending.append(verdict)

    def _carry_out(self, task: asyncio.Task[Any]) -> None:
        if self._raised is not None:
            task.uncancel()
            raise self._raised
        if self._ordered is not None:
            task.uncancel()
            raise CriticRestart(self._ordered)


def _look_of(look: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Look, if the watcher is still there."""
    method = look()
    if method is not None:
        method()


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
