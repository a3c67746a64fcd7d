"""`context.durable()`: a callback waits until the state that it was given is in the store."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from executus.actors import (
    Cancelled,
    Done,
    NotDurable,
    RestartPolicy,
    Run,
    RunCancelled,
    RunFenced,
    SaveGivenUp,
    SavePolicy,
    SaveRejected,
    StopPolicy,
    Wait,
)
from executus.actors.events import RunHung, StoreActorRestarted, StoreDegraded
from executus.stores import MemoryStore
from tests.doing import BOTH, STORES, At, doing, driven, finished, moody
from tests.doubles import SOON, FailableRun, Told, rigged
from tests.waiting import wait_until

SELDOM = SavePolicy(every_s=3600)
UNASKED_NEVER = SavePolicy(durability="exit")
"""While it runs, nothing is saved but what it asks for: otherwise the first commit may take in the newest state."""
HANDS = StopPolicy(grace_s=0.05)


def seq_in(store: Any, run_id: str = "r") -> int:
    loaded = store.load_snapshot(run_id)
    return 0 if loaded is None else loaded.snapshot.seq


@STORES
@BOTH
@pytest.mark.parametrize("policy", [SELDOM, UNASKED_NEVER, SavePolicy(durability="sync")])
def test_the_state_that_a_step_was_given_is_in_the_store_when_durable_comes_back(
    policy: SavePolicy, is_async: bool, kind: str, store_path: Path
) -> None:
    store, _ = moody(kind, store_path)

    async def act(run: Any, state: At) -> Any:
        before = seq_in(store)
        seq = await run.context.durable()
        return finished(state, before, seq, seq_in(store), await run.context.durable())

    run_class, registered = doing(act, is_async=is_async)
    with rigged(store, registered, save_policy=policy) as rig:
        _, before, *found = rig.runtime.start(run_class, 5, run_id="r").result(10)
    assert found == [6, 6, 6]
    assert before == {"sync": 6, "exit": 0}.get(policy.durability, before)


@BOTH
def test_begin_was_given_no_state_so_that_nothing_is_waited_for(is_async: bool) -> None:
    found: list[int] = []

    class Begins(Run[int, At, int]):
        restart_policy = RestartPolicy(kind="permanent", backoff=SOON)

        def begin(self, n: int) -> At:
            found.append(driven(self.context.durable()))
            return At(n)

        def step(self, state: At) -> Any:
            return Done(0) if len(found) == 1 else Wait(state)

    class AsyncBegins(Begins):
        async def begin(self, n: int) -> At:  # type: ignore[override]
            found.append(await self.context.durable())
            return At(n)

    kind = AsyncBegins if is_async else Begins
    with rigged(None, kind) as rig:
        rig.runtime.start(kind, 1)
        wait_until(lambda: len(found) == 2)
    assert found == [0, 2], "the second round goes on behind the first one's state and its Done"


@BOTH
def test_with_durability_none_there_is_nothing_to_wait_for(is_async: bool) -> None:
    async def act(run: Any, state: At) -> Any:
        with pytest.raises(NotDurable, match="none of its states ever is durable"):
            await run.context.durable()
        return finished(state)

    run_class, registered = doing(act, is_async=is_async)
    with rigged(None, registered) as rig:
        assert rig.runtime.start(run_class, 0, save_policy=SavePolicy(durability="none")).result(10) == [0]


class Mutable(msgspec.Struct):
    n: int = 0
    blot: int = 0


class Blots(Run[int, Mutable, str]):
    """As `blots` below, with a state that is encoded after each step."""

    def begin(self, n: int) -> Mutable:
        return Mutable()

    def step(self, state: Mutable) -> Any:
        if not state.n:
            return Mutable(1, blot=1 << 70)
        with pytest.raises(SaveRejected, match="the state of seq 2 cannot be stored"):
            driven(self.context.durable())
        return Done("went on")


@STORES
def test_a_state_that_no_store_can_keep_is_rejected_and_the_run_goes_on(kind: str, store_path: Path) -> None:
    async def blots(run: Any, state: At) -> Any:
        if not state.n:
            return At(1, blot=1 << 70)
        for _ in range(2):  # the second time the store has rejected it already
            with pytest.raises(SaveRejected, match="the state of seq 2 cannot be stored"):
                await run.context.durable()
        return Done("went on")

    store, _ = moody(kind, store_path)
    sync, first = doing(blots, is_async=False)
    other, second = doing(blots, is_async=True)
    with rigged(store, first, second, Blots) as rig:
        assert [rig.runtime.start(run, 0).result(10) for run in (sync, other, Blots)] == ["went on"] * 3


@STORES
@BOTH
def test_while_the_store_fails_it_waits_and_is_not_taken_for_hung(is_async: bool, kind: str, store_path: Path) -> None:
    store, switch = moody(kind, store_path)
    before: list[int] = []

    async def act(run: Any, state: At) -> Any:
        switch.fail()
        before.append(switch.tries)
        return finished(state, await run.context.durable())

    run_class, registered = doing(act, is_async=is_async)
    watched = StopPolicy(idle_timeout_s=1)
    with rigged(store, registered, save_policy=UNASKED_NEVER) as rig:
        handle = rig.runtime.start(run_class, 3, run_id="r", stop_policy=watched)
        wait_until(lambda: before and switch.tries >= before[0] + 6, 20)  # 50 ms apart, then twice as long each time
        assert rig.seen.of(StoreDegraded)
        switch.mend()
        assert handle.result(10) == [0, 4]
        assert not rig.seen.of(RunHung)


@STORES
@BOTH
@pytest.mark.parametrize("first", ["trouble", "trouble and a hang", "end"])
def test_once_it_is_asked_to_end_it_waits_no_longer_for_a_store_that_fails(
    first: str, is_async: bool, kind: str, store_path: Path
) -> None:
    store, switch = moody(kind, store_path)
    go, caught = threading.Event(), list[SaveGivenUp]()

    async def act(run: Any, state: At) -> Any:
        await run.context.run_sync(go.wait) if is_async else go.wait()
        try:
            await run.context.durable()
        except SaveGivenUp as error:
            caught.append(error)
            raise
        return finished(state)

    run_class, registered = doing(act, is_async=is_async)
    with rigged(store, registered, save_policy=UNASKED_NEVER) as rig:
        handle = rig.runtime.start(run_class, 3, run_id="r")
        wait_until(lambda: handle.status().seq == 4)
        switch.fail()
        switch.held = first == "end"
        go.set()
        if first != "end":
            rig.seen.wait_for(StoreDegraded)
            switch.held = "hang" in first
        wait_until(lambda: switch.hanging or not switch.held)
        cancel = threading.Thread(target=lambda: handle.cancel("enough"))
        cancel.start()
        wait_until(lambda: handle._inc.causes)
        if "hang" in first:
            wait_until(lambda: caught)  # while nothing comes from the store
        switch.held = False
        switch.go_on.set()
        wait_until(lambda: caught)
        switch.mend()
        cancel.join(10)
        assert handle.outcome(10) == Cancelled("handle", "enough")
    assert (caught[0].run_id, caught[0].seq) == ("r", 4)
    assert "told to fail" in str(caught[0])


@STORES
def test_given_up_on_while_the_store_hangs_its_thread_comes_back(kind: str, store_path: Path) -> None:
    store, switch = moody(kind, store_path)
    go, caught = threading.Event(), list[BaseException]()

    async def act(run: Any, state: At) -> Any:
        go.wait()
        try:
            await run.context.durable()
        except BaseException as error:
            caught.append(error)
            raise
        return finished(state)

    run_class, registered = doing(act, is_async=False)
    with rigged(store, registered, save_policy=UNASKED_NEVER, stop_policy=HANDS) as rig:
        handle = rig.runtime.start(run_class, 3, run_id="r")
        wait_until(lambda: handle.status().seq == 4)
        switch.held = True
        go.set()
        wait_until(lambda: switch.hanging)
        end = threading.Thread(target=lambda: handle.cancel("enough"))
        end.start()
        wait_until(lambda: caught)
        assert [type(error) for error in caught] == [RunFenced]
        wait_until(lambda: rig.runtime.health().leaked_threads == 0)
        switch.go_on.set()
        end.join(10)
        with pytest.raises(RunCancelled):
            handle.result(10)


@BOTH
def test_a_store_actor_that_crashes_meanwhile_answers_when_it_is_back(is_async: bool, store_path: Path) -> None:
    store, switch = moody("memory", store_path)

    async def act(run: Any, state: At) -> Any:
        switch.raises = RuntimeError("a defect of the store")
        mending = threading.Timer(0.1, switch.mend)
        mending.start()
        seq = await run.context.durable()
        mending.join()
        return finished(state, seq)

    run_class, registered = doing(act, is_async=is_async)
    with rigged(store, registered, save_policy=UNASKED_NEVER) as rig:
        assert rig.runtime.start(run_class, 3, run_id="r").result(20) == [0, 4]
        assert rig.seen.of(StoreActorRestarted)


def test_runs_that_wait_for_the_store_leave_threads_for_the_others(store_path: Path) -> None:
    store, switch = moody("memory", store_path)
    go, waiting = threading.Event(), list[int]()

    async def act(run: Any, state: At) -> Any:
        go.wait()
        waiting.append(1)
        return finished(state, await run.context.durable())

    run_class, registered = doing(act, is_async=False)
    with rigged(store, registered, save_policy=UNASKED_NEVER) as rig:
        handles = rig.runtime.start_many(run_class, {f"r{n}": 3 for n in range(30)})
        wait_until(lambda: all(handle.status().seq == 4 for handle in handles))
        switch.fail()
        go.set()
        wait_until(lambda: len(waiting) == 30)
        other = rig.runtime.start(FailableRun, Told(("ok",) * 20), save_policy=SavePolicy(durability="none"))
        assert other.result(20) == 20
        switch.mend()
        assert [handle.result(20) for handle in handles] == [[0, 4]] * 30


def test_a_coroutine_that_gives_up_waiting_leaves_nothing_behind(store_path: Path) -> None:
    store, switch = moody("memory", store_path)

    async def act(run: Any, state: At) -> Any:
        switch.fail()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run.context.durable(), 0.01)
        left = len(handle._inc.slot.waiting_callers)
        both = asyncio.gather(run.context.durable(), run.context.durable())
        await asyncio.sleep(0)
        switch.mend()
        return finished(state, left, *await both)

    run_class, registered = doing(act, is_async=True)
    with rigged(store, registered, save_policy=UNASKED_NEVER) as rig:
        handle: Any = rig.runtime.start(run_class, 3, run_id="r")
        assert handle.result(10) == [0, 0, 4, 4]


@BOTH
def test_a_restart_in_process_waits_for_the_state_that_it_has_in_memory(is_async: bool) -> None:
    store = MemoryStore()

    async def act(run: Any, state: At) -> Any:
        if run.context.attempt == 1:
            raise ValueError("told to")
        return finished(state, await run.context.durable(), seq_in(store))

    run_class, registered = doing(act, is_async=is_async)
    with rigged(store, registered, save_policy=UNASKED_NEVER) as rig:
        assert rig.runtime.start(run_class, 3, run_id="r").result(10) == [0, 4, 4]


def test_the_errors_say_what_was_done_and_what_to_do() -> None:
    text = str(SaveGivenUp("r", 7, "no space"))
    assert "run 'r' is asked to end" in text
    assert "seq 7" in text
