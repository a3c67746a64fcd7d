"""serve() within this process: who may call it, and that it puts back what it found. Signals from outside: tests/scenarios."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from executus.actors import (
    AsyncRuntime,
    BlockingCallOnLoop,
    Runtime,
    RuntimeNotOpen,
    ServeRefused,
    WaitTimeout,
)
from executus.actors.future import Promise
from executus.actors.messages import Probe
from tests.doubles import FailableRun, Told, rigged
from tests.waiting import await_until, wait_until


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@contextmanager
def meanwhile(do: Callable[[], object]) -> Iterator[None]:
    """Do it on another thread once this one has taken the signals; they are put back at the end, or that is an error."""
    before = handlers()

    def once_serving() -> None:
        wait_until(lambda: not any(now == was for now, was in zip(handlers(), before, strict=True)))
        do()

    thread = threading.Thread(target=once_serving)
    thread.start()
    yield
    thread.join()
    assert handlers() == before


def signalled() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_off_the_main_thread_it_is_refused_and_changes_nothing() -> None:
    before, errors = handlers(), list[BaseException]()

    def serve() -> None:
        try:
            runtime.serve()
        except ServeRefused as error:
            errors.append(error)

    with Runtime(None, runs=[], logger=False) as runtime:
        thread = threading.Thread(target=serve, name="somewhere")
        thread.start()
        thread.join()
    assert "'somewhere'" in str(errors[0])
    assert "main thread" in str(errors[0])
    assert handlers() == before


def test_a_loop_off_the_main_thread_is_refused_too() -> None:
    async def main() -> None:
        async with AsyncRuntime(None, runs=[], logger=False) as runtime:
            with pytest.raises(ServeRefused):
                await runtime.serve()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()


def test_a_runtime_that_is_not_open_does_not_serve() -> None:
    before = handlers()
    with pytest.raises(RuntimeNotOpen):
        Runtime(None, runs=[]).serve()
    with Runtime(None, runs=[], logger=False) as runtime:
        pass
    with pytest.raises(RuntimeNotOpen):
        runtime.serve()
    assert handlers() == before


def test_on_a_running_loop_serve_names_its_twin() -> None:
    async def main(runtime: Runtime) -> None:
        with pytest.raises(BlockingCallOnLoop, match=r"AsyncRuntime\.serve"):
            runtime.serve()

    with Runtime(None, runs=[], logger=False) as runtime:
        asyncio.run(main(runtime))


def test_the_runtime_is_drained_and_still_open_when_serve_returns() -> None:
    with rigged() as rig:
        rig.waiting()
        with meanwhile(signalled):
            report = rig.runtime.serve()
        assert report.suspended == 1
        assert rig.runtime.health().live_runs == 0


def test_a_handler_of_the_host_comes_back() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with rigged() as rig, meanwhile(signalled):
            rig.runtime.serve()
        assert heard == []
        signalled()
        wait_until(lambda: heard == [signal.SIGTERM])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_drain_that_somebody_else_began_is_no_end_of_serving() -> None:
    def drain_then_signal() -> None:
        assert rig.runtime.drain(5).suspended == 1
        signalled()

    with rigged() as rig:
        rig.waiting()
        with meanwhile(drain_then_signal):
            assert rig.runtime.serve().suspended == 1


def test_a_close_from_another_thread_ends_serving_with_an_error() -> None:
    with rigged() as rig, meanwhile(rig.runtime.close), pytest.raises(RuntimeNotOpen, match="while it served"):
        rig.runtime.serve()


def test_a_supervisor_that_is_stuck_does_not_keep_serve_from_its_end() -> None:
    gate = threading.Event()
    with rigged(drain_timeout_s=0.1) as rig:
        stuck: Promise[None] = Promise()
        stuck.add_done_callback(lambda _: gate.wait())
        rig.runtime._core.tree.tell_runs(Probe(stuck))
        wait_until(stuck.done)
        try:
            with meanwhile(signalled), pytest.raises(WaitTimeout, match="supervisor is stuck"):
                rig.runtime.serve()
        finally:
            gate.set()


def test_a_probe_is_answered_by_the_supervisor_and_the_store_ahead_of_their_work() -> None:
    with rigged() as rig:
        rig.runtime.start(FailableRun, Told(("wait",)))
        assert rig.runtime._core.tree.probe().wait(10)


def test_of_two_runtimes_of_one_process_one_serves_and_a_cancelled_serve_puts_everything_back() -> None:
    async def main() -> None:
        before = handlers()
        async with AsyncRuntime(None, runs=[], logger=False) as one, AsyncRuntime(None, runs=[], logger=False) as other:
            serving = asyncio.create_task(one.serve())
            await await_until(lambda: handlers()[1] != before[1])
            with pytest.raises(ServeRefused, match="another runtime"):
                await other.serve()
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            assert handlers() == before
            serving = asyncio.create_task(other.serve())
            await await_until(lambda: handlers()[1] != before[1])
            signalled()
            assert (await serving).suspended == 0
            assert handlers() == before

    asyncio.run(main())
