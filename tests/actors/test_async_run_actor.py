"""Attempts whose callbacks are async."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

from executus.actors import Done, RestartPolicy, Run
from executus.actors.async_run_actor import AsyncRunActor
from executus.actors.events import RunExited, RunSettled
from executus.actors.policies import Backoff
from executus.actors.runtime import AsyncRuntime
from executus.stores import MemoryStore, RunStatus
from tests.doubles import Recorder
from tests.waiting import await_until


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


class Endless(Run[int, int, int]):
    """Never comes back from its first step."""

    async def begin(self, number: int) -> int:
        return number

    async def step(self, number: int) -> int:
        INSIDE.set()
        await asyncio.Event().wait()
        return number


INSIDE = threading.Event()


def close_the_loop_under_a_run(patch: pytest.MonkeyPatch, *, begun: bool) -> None:
    INSIDE.clear()
    loop = asyncio.new_event_loop()
    runtime = AsyncRuntime(None, runs=[Endless], logger=False)
    starting: list[asyncio.Task[Any]] = []

    async def main() -> None:
        await runtime.open()
        starting.append(asyncio.create_task(runtime.start(Endless, 7, run_id="r")))
        await await_until(INSIDE.is_set, 20)
        loop.stop()

    proceed = AsyncRunActor.proceed

    def stopped_before_its_first_step(actor: AsyncRunActor) -> None:
        proceed(actor)
        main_task.cancel()
        loop.stop()

    if not begun:
        patch.setattr(AsyncRunActor, "proceed", stopped_before_its_first_step)
    main_task = loop.create_task(main())
    loop.run_forever()
    main_task.cancel()
    for task in (main_task, *starting):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # these two are the host's own
    loop.close()
    runtime._core.close()


@pytest.mark.parametrize("begun", [True, False])
def test_what_runs_on_a_loop_that_its_host_closes_goes_without_a_word(
    begun: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    close_the_loop_under_a_run(monkeypatch, begun=begun)
    gc.collect()
    assert INSIDE.is_set() == begun
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


class Crashes(Run[int, int, int]):
    """Crashes in its first step, and is slow to come back."""

    restart_policy = RestartPolicy(backoff=Backoff(initial_s=0.5, jitter=0.0))

    async def begin(self, number: int) -> int:
        return number

    async def step(self, number: int) -> int:
        raise ValueError(number)


def test_a_run_that_comes_back_to_a_loop_that_its_host_has_closed_is_suspended() -> None:
    store, seen = MemoryStore(), Recorder()
    runtime = AsyncRuntime(store, runs=[Crashes], logger=False)
    runtime.events.subscribe(seen)

    async def main() -> None:
        await runtime.open()
        await runtime.start(Crashes, 7, run_id="r")
        await await_until(lambda: seen.of(RunExited, "r"), 20)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    assert seen.wait_for(RunSettled).status is RunStatus.SUSPENDED
    runtime._core.close()
    store.open()
    assert [claim.status for claim in store.live()] == [RunStatus.SUSPENDED]
    store.close()
