"""Typing example: a run's three types reach every handle. Every assert_type is what a user's editor shows."""

from __future__ import annotations

import asyncio
from typing import Any, assert_never, assert_type

import msgspec

from executus.actors import (
    AsyncRunHandle,
    AsyncRuntime,
    Backoff,
    Cancelled,
    ChildEnded,
    ChildRef,
    Completed,
    Done,
    DrainReport,
    Factory,
    Failed,
    Health,
    Killed,
    Outcome,
    Phase,
    Quarantined,
    Reply,
    RestartPolicy,
    Run,
    RunContext,
    RunFailed,
    RunHandle,
    RunInterrupted,
    RunStatus,
    Runtime,
    RunView,
    SavePolicy,
    StopPolicy,
    TimedOut,
    Wait,
    WaitExpired,
)
from executus.actors.events import Event, RunSettled
from executus.actors.run import current_context


class Progress(msgspec.Struct, frozen=True):
    """A state."""

    left: int
    done: int = 0


class Count(Run[int, Progress, str]):
    """Sync callbacks, and policies as class attributes."""

    restart_policy = RestartPolicy(kind="permanent", max_restarts=5, backoff=Backoff(max_s=60), fatal=(OSError,))
    save_policy = SavePolicy(durability="sync")
    stop_policy = StopPolicy(run_timeout_s=3600)

    def begin(self, pages: int) -> Progress:
        """Narrower than what the base allows."""
        return Progress(pages)

    def step(self, state: Progress) -> Progress | Done[str]:
        """The context is typed as well."""
        assert_type(self.context.attempt, int)
        assert_type(self.context.idempotency_key, str)
        assert_type(self.context.parent_run_id, str | None)
        self.context.sleep(0.1)
        self.context.durable()
        if state.left < 0:
            assert_type(self.context.kill("nothing can be left of nothing", by="the count"), None)
        if state.left == 0:
            return Done(f"{state.done} pages")
        return Progress(state.left - 1, state.done + 1)


class Add(msgspec.Struct, frozen=True, tag=True):
    """A message."""

    pages: int


class Finish(msgspec.Struct, frozen=True, tag=True):
    """A message."""


class AsyncCount(Run[int, Progress, str]):
    """Async callbacks, messages, children and a resource."""

    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s

    async def begin(self, pages: int) -> Wait[Progress]:
        """An async callback fits where a sync one does."""
        child = self.context.spawn(
            Count, pages, key="child", restart_policy=RestartPolicy(), save_policy=None, stop_policy=StopPolicy()
        )
        assert_type(child, ChildRef)
        return Wait(Progress(pages), timeout_s=60)

    async def step(self, state: Progress) -> Progress | Wait[Progress] | Done[str]:
        """Any of the three."""
        await self.context.sleep(self.pause_s)
        assert_type(await self.context.durable(), int)
        assert_type(await self.context.run_sync(divmod, 7, 2), tuple[int, int])
        assert_type(await self.context.run_sync(sorted, [2, 1], reverse=True), list[int])
        return Wait(state) if state.left == 0 else Progress(state.left - 1, state.done + 1)

    async def receive(
        self, state: Progress, message: Add | Finish | WaitExpired | ChildEnded
    ) -> Progress | Done[str] | Reply[Progress, str] | None:
        """The union is closed: a message that is forgotten is an error here."""
        match message:
            case Add(pages):
                return Reply(state.left + pages, Progress(state.left + pages, state.done))
            case Finish():
                return Done("finished")
            case WaitExpired():
                return None
            case ChildEnded(_, _, outcome):
                assert_type(outcome, Outcome)
                return state
            case _:
                assert_never(message)

    async def query(self, state: Progress, question: str) -> int:
        """What it returns is the asker's business."""
        return state.done if question == "done" else state.left

    async def stopping(self, state: Progress, reason: str) -> None:
        """Last words."""

    def may_go_ahead(self, state: Progress) -> bool:
        """Whether the next callback only computes."""
        return state.left > 0

    def resuming(self, state: Progress) -> None:
        """Whether this code can go on with what is stored."""
        if state.left < 0:
            raise ValueError(state.left)

    def upgrade(self, version: int, raw: Any) -> Progress:
        """From plain data to the state of now."""
        return Progress(raw["left"] if version == 1 else 0)


def threads() -> str:
    """`Runtime` and `RunHandle`."""
    with Runtime("runs.store", runs=[Count, Factory(AsyncCount, pause_s=0.1)]) as runtime:
        run = runtime.start(Count, 3, run_id="three", if_exists="return", labels={"team": "a"})
        assert_type(run, RunHandle[str])
        assert_type(runtime.get(Count, "three"), RunHandle[str])
        assert_type(runtime.get("three"), RunHandle[Any])
        assert_type(runtime.start_many(Count, {"a": 1, "b": 2}), list[RunHandle[str]])
        assert_type(runtime.runs(status=RunStatus.FAILED), list[RunView])
        assert_type(runtime.drain(5), DrainReport)
        assert_type(runtime.health(), Health)
        assert_type(run.status(), RunView)
        assert_type(run.durable(), int)
        try:
            return run.result(timeout_s=5)
        except RunFailed as error:
            assert_type(error.outcome, Failed)
        except RunInterrupted as error:
            assert_type(error.status, RunStatus)
        return describe(run.outcome())


async def coroutines() -> str:
    """`AsyncRuntime` and `AsyncRunHandle`."""
    async with AsyncRuntime(None, runs=[Count, Factory(AsyncCount, pause_s=0.1)], loop="own") as runtime:
        run = await runtime.start(AsyncCount, 3)
        assert_type(run, AsyncRunHandle[str])
        assert_type(await runtime.get(AsyncCount, run.run_id), AsyncRunHandle[str])
        assert_type(await run.result(5), str)
        assert_type(await run.outcome(), Outcome)
        assert_type(await asyncio.gather(run, run.durable()), tuple[str, int])
        return await run


def describe(outcome: Outcome) -> str:
    """The union of outcomes is closed."""
    match outcome:
        case Completed(result, durable):
            assert_type(durable, bool)
            return f"{result}"
        case Failed(error, phase, restarts):
            assert_type(phase, Phase)
            assert_type(error.facts, dict[str, str | int | float | bool])
            return f"{error} in {phase} after {restarts}"
        case Killed(by, reason) | Cancelled(by, reason):
            return f"{by}: {reason}"
        case Quarantined(reason):
            return reason
        case TimedOut():
            return "timed out"
        case _:
            assert_never(outcome)


def watch(event: Event) -> None:
    """A subscriber."""
    if isinstance(event, RunSettled):
        assert_type(event.status, RunStatus)


def wrong(runtime: Runtime) -> None:
    """What a checker must refuse: mypy's unused-ignore check proves that it does."""
    runtime.start(Count, "three")  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    runtime.start(Count, 3, if_exists="reuse")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    runtime_context: RunContext = current_context.get()
    runtime_context.run_sync(len, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    RestartPolicy(kind="forever")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
