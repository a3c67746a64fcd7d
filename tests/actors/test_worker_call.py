"""`context.run_sync()`: blocking functions of async callbacks, on workers."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from executus.actors import Killed, RestartPolicy, RunCancelled, RunFailed, RunFenced, StopPolicy
from executus.actors.clock import SystemClock, default_timers
from executus.actors.dispatcher import ThreadDispatcher
from executus.actors.worker_call import WorkerCall
from tests.doing import BOTH, At, doing, finished
from tests.doubles import ERRORS, NEVER, Strange, rigged
from tests.waiting import await_until, wait_until

WORD = contextvars.ContextVar("word", default="none")


def test_an_async_callback_gets_what_a_blocking_function_returns_and_its_loop_goes_on_meanwhile() -> None:
    go, ticks = threading.Event(), list[int]()

    def blocks(number: int, *, times: int) -> tuple[int, str]:
        go.wait()
        return number * times, threading.current_thread().name

    async def act(run: Any, state: At) -> Any:
        async def tick() -> None:
            while len(ticks) < 20:
                ticks.append(1)
                await asyncio.sleep(0)
            go.set()

        (number, thread), _ = await asyncio.gather(run.context.run_sync(blocks, 7, times=6), tick())
        return finished(state, number, thread)

    run_class, registered = doing(act, is_async=True)
    with rigged(None, registered) as rig:
        _, number, thread = rig.runtime.start(run_class, 0).result(10)
    assert number == 42
    assert thread.startswith("executus-worker")


def test_in_a_synchronous_callback_it_is_called_there_and_then() -> None:
    async def act(run: Any, state: At) -> Any:
        here = threading.get_ident()
        with pytest.raises(Strange):
            await run.context.run_sync(_raise, Strange("x"))
        return finished(state, await run.context.run_sync(threading.get_ident) == here)

    run_class, registered = doing(act, is_async=False)
    with rigged(None, registered) as rig:
        assert rig.runtime.start(run_class, 0).result(10) == [0, True]


def test_context_variables_come_along_and_so_does_the_runs_context() -> None:
    async def act(run: Any, state: At) -> Any:
        WORD.set("mine")

        def looks() -> tuple[str, str]:
            word = WORD.get()
            WORD.set("the thread's")
            run.context.heartbeat()
            return word, run.context.run_id

        return finished(state, await run.context.run_sync(looks), WORD.get())

    run_class, registered = doing(act, is_async=True)
    with rigged(None, registered) as rig:
        assert rig.runtime.start(run_class, 0, run_id="r").result(10) == [0, ("mine", "r"), "mine"]


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("name", sorted(ERRORS.keys() - {"StopIteration"}))  # no coroutine can raise that one
def test_whatever_the_function_raises_is_raised_at_the_callback(name: str) -> None:
    caught: list[BaseException] = []

    async def act(run: Any, state: At) -> Any:
        error = ERRORS[name]()
        try:
            await run.context.run_sync(_raise, error)
        except BaseException as raised:
            caught.extend((error, raised))
        await run.context.run_sync(_raise, ERRORS[name]())

    run_class, registered = doing(act, is_async=True)
    with rigged(None, registered, restart_policy=NEVER) as rig, pytest.raises(RunFailed):
        rig.runtime.start(run_class, 0).result(10)
    assert caught[0] is caught[1]


def test_a_function_whose_waiter_is_cancelled_goes_on_to_its_end_and_what_it_returns_is_dropped() -> None:
    go, ended = threading.Event(), list[int]()

    def blocks() -> int:
        go.wait()
        ended.append(1)
        return 1

    async def act(run: Any, state: At) -> Any:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run.context.run_sync(blocks), 0.01)
        go.set()
        await await_until(lambda: ended)
        return finished(state)

    run_class, registered = doing(act, is_async=True)
    with rigged(None, registered) as rig:
        assert rig.runtime.start(run_class, 0).result(10) == [0]


def test_one_that_goes_on_past_the_grace_counts_as_an_abandoned_thread_until_it_returns() -> None:
    go, began = threading.Event(), threading.Event()

    def hangs() -> None:
        began.set()
        go.wait()

    async def act(run: Any, state: At) -> Any:
        await run.context.run_sync(hangs)
        return finished(state)

    run_class, registered = doing(act, is_async=True)
    with rigged(None, registered, stop_policy=StopPolicy(grace_s=0.05)) as rig:
        handle = rig.runtime.start(run_class, 0)
        began.wait(10)
        handle.cancel(timeout_s=10)
        with pytest.raises(RunCancelled):
            handle.result(10)
        wait_until(lambda: rig.runtime.health().leaked_threads == 1)
        go.set()
        wait_until(lambda: rig.runtime.health().leaked_threads == 0)


def test_a_function_that_no_worker_has_taken_when_its_waiter_leaves_is_not_called() -> None:
    workers, go, called = ThreadDispatcher(), threading.Event(), list[int]()
    env: Any = SimpleNamespace(workers=workers, timers=default_timers(), clock=SystemClock())

    def call() -> WorkerCall[None]:
        return WorkerCall(env, lambda: called.append(1), check=lambda: None, abandoned_after_s=0)

    async def leaves() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call().on_worker(), 0.01)

    workers.submit(go.wait)  # its one thread
    asyncio.run(leaves())
    go.set()
    assert workers.submit(called.copy).result(10) == []
    asyncio.run(call().on_worker())
    assert called == [1]
    workers.close()


def test_what_the_check_raises_when_a_worker_takes_it_is_raised_instead() -> None:
    workers, called = ThreadDispatcher(), list[int]()
    env: Any = SimpleNamespace(workers=workers, timers=default_timers(), clock=SystemClock())
    call = WorkerCall(
        env, lambda: called.append(1), check=lambda: _raise(RunFenced("given up on")), abandoned_after_s=0
    )
    with pytest.raises(RunFenced):
        asyncio.run(call.on_worker())
    assert called == []
    workers.close()


@BOTH
def test_a_fenced_attempt_calls_nothing(is_async: bool) -> None:
    called: list[int] = []

    async def act(run: Any, state: At) -> Any:
        call = run.context.run_sync
        run.context.kill("enough")
        await call(called.append, 1)

    run_class, registered = doing(act, is_async=is_async)
    with rigged(None, registered, restart_policy=RestartPolicy()) as rig:
        assert rig.runtime.start(run_class, 0).outcome(10) == Killed("itself", "enough")
    assert called == []
