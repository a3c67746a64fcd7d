"""The share of an event loop's rounds that busy tasks have."""

from __future__ import annotations

import asyncio
import time

from executus.actors import loop_share
from executus.actors.loop_share import LoopShare


def spin(seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        pass


def test_busy_tasks_go_on_in_turn_and_a_round_has_not_all_of_them():
    async def main() -> None:
        share = LoopShare(asyncio.get_running_loop())
        rounds = 0
        done: list[int] = []

        async def busy(name: int) -> None:
            for _ in range(20):
                done.append(name)
                spin(0.0005)
                await share.next_turn()

        tasks = [asyncio.create_task(busy(name)) for name in range(50)]
        await asyncio.sleep(0)  # the first turns of all
        while not all(task.done() for task in tasks):
            rounds += 1
            await asyncio.sleep(0)
        assert [done.count(name) for name in range(50)] == [20] * 50
        # 1,000 turns of 0.5 ms: all at once they were 20 rounds of 25 ms.
        assert rounds > 100

    asyncio.run(main())


def test_short_turns_share_a_round():
    async def main() -> None:
        share = LoopShare(asyncio.get_running_loop())
        turns = rounds = 0

        async def busy() -> None:
            nonlocal turns
            while turns < 20_000:
                turns += 1
                await share.next_turn()

        tasks = [asyncio.create_task(busy()) for _ in range(200)]
        while not all(task.done() for task in tasks):
            rounds += 1
            await asyncio.sleep(0)
        assert turns / rounds > 5

    asyncio.run(main())


def test_a_task_that_is_cancelled_while_it_waits_holds_nobody_up():
    async def main() -> None:
        share = LoopShare(asyncio.get_running_loop())
        gone = [asyncio.create_task(share_once(share)) for _ in range(20)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.wait_for(share.next_turn(), 5)
        await asyncio.gather(*gone, return_exceptions=True)
        assert not share._waiting
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not share._in_rounds
        await asyncio.wait_for(share.next_turn(), 5)  # and it begins anew

    asyncio.run(main())


async def share_once(share: LoopShare) -> None:
    await share.next_turn()


def test_what_a_round_may_take_keeps_the_loop_s_lag_small():
    assert loop_share.ROUND_S <= 0.005
