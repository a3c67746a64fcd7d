"""Callbacks that use `self.context` are called as functions."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from executus.actors import Done, InvalidInput, InvalidRunId, Progress, Run, RunContext, Wait, WaitExpired
from executus.actors.testing import context


class State(msgspec.Struct, frozen=True):
    n: int = 0


class Talkative(Run[int, State, int]):
    def __init__(self) -> None:
        self.keys: list[str] = []

    def begin(self, n: int) -> State:
        self.keys.append(self.context.idempotency_key)
        return State(n)

    def step(self, state: State) -> State | Done[int]:
        self.keys.append(self.context.idempotency_key)
        self.context.heartbeat({"at": state.n})
        self.context.progress(state.n, 10, "going on")
        self.context.sleep(60)
        self.context.log.info("never shown", n=state.n)
        if self.context.cancelled:
            return Done(state.n)
        self.context.spawn(Talkative, state.n, key="child", labels={"a": "b"})
        return State(state.n + 1)

    def receive(self, state: State, message: WaitExpired | str) -> Wait[State]:
        self.keys.append(self.context.idempotency_key_for("mail"))
        return Wait(state)

    def stopping(self, state: State, reason: str) -> None:
        self.context.heartbeat(reason)


class AsyncTalkative(Run[int, State, int]):
    async def begin(self, n: int) -> State:
        return State(n)

    async def step(self, state: State) -> Done[int]:
        await self.context.sleep(60)
        self.key = self.context.idempotency_key
        return Done(self.context.attempt)


def test_what_a_step_did_with_its_context_is_kept() -> None:
    run = Talkative()
    with context(run, run_id="r", attempt=2, labels={"team": "press"}) as kept:
        assert run.step(State(3)) == State(4)
        assert (kept.run_id, kept.root_run_id, kept.attempt, kept.labels) == ("r", "r", 2, {"team": "press"})
        kept.cancelled = True
        assert run.step(State(4)) == Done(4)
        run.stopping(State(4), "stop")
    assert kept.heartbeats == [{"at": 3}, {"at": 4}, "stop"]
    assert kept.progressed[0] == Progress(3, 10, "going on")
    assert kept.slept == [60, 60]
    (child,) = kept.spawned
    assert (child.run_class, child.input, child.key, child.labels) == (Talkative, 3, "child", {"a": "b"})


def test_saves_that_were_waited_for_functions_on_workers_and_a_kill_are_kept_or_done_at_once() -> None:
    class Effects(AsyncTalkative):
        async def step(self, state: State) -> Done[int]:
            assert await self.context.durable() == 4
            doubled = await self.context.run_sync(lambda n, by: n * by, state.n, by=2)
            self.context.kill("enough", by="critic")
            return Done(doubled)

    run = Effects()
    with context(run, seq=4) as kept:
        assert asyncio.run(run.step(State(3))) == Done(6)
    assert kept.made_durable == [4]
    assert [(kill.by, kill.reason) for kill in kept.killed] == [("critic", "enough")]
    assert kept.cancelled


def test_outside_of_the_block_there_is_no_context() -> None:
    run = Talkative()
    with context(run):
        run.begin(1)
    with pytest.raises(LookupError, match="is for begin, step, receive"):
        run.begin(1)
    assert "step" not in vars(run)


def test_a_key_is_the_same_again_exactly_when_the_same_action_is_repeated() -> None:
    def key(action: str, *arguments: Any, **where: Any) -> str:
        run = Talkative()
        with context(run, **where):
            getattr(run, action)(*arguments)
        return run.keys[-1]

    assert key("step", State(1)) == key("step", State(1)) == key("step", State(1), attempt=2, epoch=9)
    others = [
        key("step", State(1)),
        key("step", State(2)),
        key("step", State(1), seq=1),
        key("step", State(1), run_id="other"),
        key("receive", State(1), "a"),
        key("receive", State(1), "b"),
        key("begin", 1),
    ]
    assert len(set(others)) == len(others)


def test_completed_callbacks_count_and_those_that_raise_do_not() -> None:
    run = Talkative()
    with context(run, seq=5) as kept:
        run.begin(1)
        assert kept.seq == 6
        with pytest.raises(AttributeError):
            run.step(None)  # type: ignore[arg-type]
        assert kept.seq == 6


def test_coroutines_have_the_context_too() -> None:
    run = AsyncTalkative()
    with context(run, attempt=3) as kept:
        assert asyncio.run(run.step(State())) == Done(3)
    assert kept.slept == [60]
    assert kept.seq == 1
    assert run.key


def test_a_child_is_checked_as_the_runtime_does() -> None:
    run = Talkative()
    with context(run, parent_run_id="p") as kept:
        with pytest.raises(InvalidInput):
            run.context.spawn(Talkative, "not a number", key="k")  # type: ignore[arg-type]
        with pytest.raises(InvalidRunId):
            run.context.spawn(Talkative, 1, key="\0")
        assert run.context.spawn(Talkative, 1, key="k").run_id == "test/k"
        checked: RunContext = kept
        assert checked.parent_run_id == "p"
