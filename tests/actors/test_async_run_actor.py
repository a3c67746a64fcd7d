"""Attempts whose callbacks are async."""

from __future__ import annotations

import asyncio

import pytest

from executus.actors import Done, RestartPolicy, Run
from executus.actors.async_run_actor import AsyncRunActor
from executus.actors.policies import Backoff
from executus.actors.runtime import AsyncRuntime


class Once(Run[int, int, int]):
    """Ends in its first step."""

    restart_policy = RestartPolicy(backoff=Backoff(initial_s=0.001, max_s=0.001))

    async def begin(self, number: int) -> int:
        return number

    async def step(self, number: int) -> Done[int]:
        return Done(number)


def test_a_task_that_is_cancelled_before_its_first_step_is_a_crash_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proceed, cancelled = AsyncRunActor.proceed, list[str]()

    def hasty(actor: AsyncRunActor) -> None:
        proceed(actor)
        if not cancelled and actor.task is not None:
            cancelled.append(actor.inc.run_id)
            actor.task.cancel()  # none of its own code runs, so it cannot tell of its end

    monkeypatch.setattr(AsyncRunActor, "proceed", hasty)

    async def main() -> None:
        async with AsyncRuntime(None, runs=[Once], logger=False) as runtime:
            handle = await runtime.start(Once, 7, run_id="r")
            assert await handle.result(20) == 7
            assert handle.status().attempt == 2

    asyncio.run(main())
    assert cancelled == ["r"]
