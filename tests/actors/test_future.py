"""Promise: one result for threads, callbacks and event loops."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from executus.actors.errors import WaitTimeout
from executus.actors.future import Promise, late_replies
from tests.waiting import wait_until


def test_the_first_result_stands_and_later_ones_have_no_effect():
    promise: Promise[int] = Promise()
    assert not promise.done()
    assert promise.try_set(1)
    assert not promise.try_set(2)
    assert not promise.try_fail(ValueError("late"))
    assert promise.done()
    assert promise.result() == 1
    assert promise.error() is None


def test_an_error_is_raised_at_every_reader_with_the_traceback_it_had():
    promise: Promise[int] = Promise()
    with pytest.raises(ValueError, match="here") as raised:
        raise ValueError("here")
    assert promise.try_fail(raised.value)
    depths: list[int] = []
    for _ in range(5):
        with pytest.raises(ValueError, match="here") as caught:
            promise.result()
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(set(depths)) == 1


def test_waiting_is_over_when_the_result_comes_or_the_time_is_up():
    promise: Promise[str] = Promise()
    assert not promise.wait(0)
    assert not promise.wait(-1)
    assert not promise.wait(0.001)
    with pytest.raises(WaitTimeout):
        promise.result(0.001)
    assert promise._callbacks == []  # waiters that gave up leave nothing behind
    with ThreadPoolExecutor(4) as pool:
        waiters = [pool.submit(promise.result, timeout) for timeout in (None, 5, 1e300, 60)]
        wait_until(lambda: len(promise._callbacks or []) == 4)
        promise.try_set("now")
        assert [waiter.result(5) for waiter in waiters] == ["now"] * 4
    assert promise.wait(0)


def test_of_many_settlers_exactly_one_wins_and_everybody_sees_its_value(tight_switching: None):
    for _ in range(200):
        promise: Promise[int] = Promise()
        start = threading.Barrier(4)
        won: list[int] = []
        called: list[int] = []

        def settle(n: int, promise: Promise[int] = promise, start: Any = start, won: list[int] = won) -> None:
            start.wait()
            if promise.try_set(n):
                won.append(n)

        def listen(promise: Promise[int] = promise, start: Any = start, called: list[int] = called) -> None:
            start.wait()
            promise.add_done_callback(lambda done: called.append(done.result()))

        threads = [threading.Thread(target=settle, args=(n,)) for n in range(2)]
        threads += [threading.Thread(target=listen) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert called == [won[0]] * 2


@pytest.fixture
def tight_switching():
    """Make threads change places as often as possible, so that races have their chance."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_a_callback_runs_exactly_once_before_or_after():
    promise: Promise[int] = Promise()
    seen: list[object] = []
    promise.add_done_callback(seen.append)
    assert seen == []
    promise.try_set(1)
    promise.try_set(2)
    assert seen == [promise]
    promise.add_done_callback(seen.append)
    assert seen == [promise, promise]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callback_that_raises_hurts_neither_the_settler_nor_the_next(error: type[BaseException]):
    promise: Promise[int] = Promise()
    seen: list[object] = []

    def fail(_: object) -> None:
        raise error

    promise.add_done_callback(fail)
    promise.add_done_callback(seen.append)
    assert promise.try_set(1)
    promise.add_done_callback(fail)
    assert seen == [promise]


def test_a_callback_added_while_another_thread_settles_is_called_by_one_of_the_two():
    # The settler has appended its outcome and looked for callbacks; the adder comes between its append and its look.
    promise: Promise[int] = Promise()
    seen: list[object] = []

    class Settled(list[Any]):
        """The outcomes, settled by another thread at the very moment at which the adder copies them."""

        def copy(self) -> list[Any]:
            if not self:
                assert promise.try_set(1)
            return super().copy()

    promise._outcomes = Settled()
    promise.add_done_callback(seen.append)
    assert seen == [promise]
    assert promise._callbacks == []


def test_a_callback_may_settle_and_listen_again():
    promise: Promise[int] = Promise()
    seen: list[str] = []

    def again(done: Promise[int]) -> None:
        assert not done.try_set(9)
        done.add_done_callback(lambda _: seen.append("nested"))

    promise.add_done_callback(again)
    promise.try_set(1)
    assert seen == ["nested"]


def test_a_settled_promise_keeps_no_callback_alive():
    class Listener:
        def __call__(self, _: object) -> None: ...

    listener = Listener()
    gone = weakref.ref(listener)
    promise: Promise[int] = Promise()
    promise.add_done_callback(listener)
    promise.try_set(1)
    del listener
    gc.collect()
    assert gone() is None


def test_awaiting_gives_the_value_or_raises_the_error():
    async def main() -> None:
        done: Promise[int] = Promise()
        done.try_set(1)
        assert await done == 1
        failed: Promise[int] = Promise()
        failed.try_fail(ValueError("x"))
        with pytest.raises(ValueError, match="x"):
            await failed
        later: Promise[int] = Promise()
        timer = threading.Timer(0.01, later.try_set, (3,))
        timer.start()
        assert await later == 3
        timer.join()

    asyncio.run(main())


def test_the_event_loop_goes_on_while_a_coroutine_awaits():
    async def main() -> None:
        promise: Promise[int] = Promise()
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while not promise.done():
                ticks += 1
                if ticks == 50:
                    threading.Thread(target=promise.try_set, args=(1,)).start()
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        assert await promise == 1  # would never come if awaiting stopped the loop: tick 50 settles it
        await ticking
        assert ticks >= 50

    asyncio.run(main())


def test_one_promise_serves_many_loops_and_threads():
    promise: Promise[int] = Promise()

    async def one() -> int:
        return await promise

    with ThreadPoolExecutor(6) as pool:
        waiters = [pool.submit(asyncio.run, one()) for _ in range(3)] + [
            pool.submit(promise.result, 5) for _ in range(3)
        ]
        wait_until(lambda: len(promise._callbacks or []) == 6)
        promise.try_set(4)
        assert [waiter.result(5) for waiter in waiters] == [4] * 6


def test_cancelling_a_waiter_changes_nothing_and_leaves_nothing():
    async def main() -> None:
        promise: Promise[int] = Promise()

        async def waiter() -> int:
            return await promise

        task = asyncio.create_task(waiter())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert promise._callbacks == []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiter(), 0.001)
        assert promise.try_set(1)
        assert await promise == 1

    asyncio.run(main())


def test_a_loop_closed_before_the_reply_is_counted_and_nothing_else(caplog: pytest.LogCaptureFixture):
    promise: Promise[int] = Promise()
    loop = asyncio.new_event_loop()

    async def waiter() -> None:
        await promise

    task = loop.create_task(waiter())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    before = late_replies.count
    assert promise.try_set(1)
    assert late_replies.count == before + 1
    assert caplog.records == []
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # the closed loop's task is this test's doing


def test_waiting_costs_no_cpu():
    promise: Promise[int] = Promise()
    before_s = time.thread_time()
    assert not promise.wait(0.2)
    assert time.thread_time() - before_s < 0.1
