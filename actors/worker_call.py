"""A blocking function that an async callback has called on a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from executus.actors.environment import Environment

T = TypeVar("T")


class WorkerCall(Generic[T]):
    """One call. `check` raises where, by the time a worker takes it, nobody may call it any more.

    A waiter that is cancelled leaves it: one that no worker has taken yet is not called, one that runs goes on, and its
    result is dropped. One that goes on for more than `abandoned_after_s` then counts as an abandoned thread until it
    returns.
    """

    __slots__ = ("_abandoned_after_s", "_check", "_env", "_function", "_left")

    def __init__(
        self, env: Environment, function: Callable[[], T], *, check: Callable[[], None], abandoned_after_s: float
    ) -> None:
        self._env = env
        self._function = function
        self._check = check
        self._abandoned_after_s = abandoned_after_s
        self._left = False

    async def on_worker(self) -> T | None:
        """Have it called and await what comes of it; None only where nobody waits any more. Raises what it raises."""
        env = self._env
        job = env.workers.submit(self._call)
        try:
            return await job
        finally:
            if not job.done():
                self._left = True
                abandoned = getattr(env.workers, "abandoned", None)
                if abandoned is not None:
                    env.timers.call_at(env.clock.now_s() + self._abandoned_after_s, lambda: abandoned(job))

    def _call(self) -> T | None:
        if self._left:
            return None
        self._check()
        return self._function()
