"""Runs whose steps do what a test hands them, over stores that fail, crash or hang when they are told to."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from executus.actors import Done, Factory, Run, Wait
from executus.stores import CheckpointStore, LmdbStore, MemoryStore, Operation, StoreUnavailable

BOTH = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
STORES = pytest.mark.parametrize("kind", ["memory", "lmdb"])


class At(msgspec.Struct, frozen=True):
    """How many steps it has done; `blot` is for what no store can keep."""

    n: int = 0
    blot: int = 0


class Doing(Run[int, At, Any]):
    """Counts its steps up to its input, then `act(run, state)` says what comes next."""

    def __init__(self, act: Callable[[Any, At], Any]) -> None:
        self.act = act

    def begin(self, upto: int) -> At:
        return At(-upto)

    def step(self, state: At) -> Any:
        return At(state.n + 1) if state.n < 0 else self.act(self, state)

    def receive(self, state: At, message: str) -> Wait[At]:
        return Wait(state)

    def stopping(self, state: At, reason: str) -> None:
        pass


class AsyncDoing(Doing):
    """The same, awaited."""

    async def step(self, state: At) -> Any:
        return At(state.n + 1) if state.n < 0 else await self.act(self, state)


def doing(act: Callable[[Any, At], Awaitable[Any]], *, is_async: bool) -> tuple[type[Doing], Factory[Doing]]:
    """A run class, and its registration. `act` is a coroutine function; a sync run drives it without a loop."""
    if is_async:
        return AsyncDoing, Factory(AsyncDoing, act)
    return Doing, Factory(Doing, lambda run, state: driven(act(run, state)))


def driven(awaitable: Awaitable[Any]) -> Any:
    """What it comes to, where nothing is left to await."""
    awaited = awaitable.__await__()
    try:
        next(awaited)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for a loop")


class Switch:
    """What the next commits do: `raises` is raised, `held` holds them until `go_on`."""

    def __init__(self) -> None:
        self.raises: BaseException | None = None
        self.held = False
        self.go_on = threading.Event()
        self.tries = 0
        self.hanging = 0

    def fail(self) -> None:
        self.raises = StoreUnavailable("told to fail")

    def mend(self) -> None:
        self.raises = None

    def commit(self, operations: Sequence[Operation]) -> None:
        if not operations:
            return
        self.tries += 1
        if self.held:
            self.hanging += 1
            self.go_on.wait()
        if self.raises is not None:
            raise self.raises


class _MoodyMemory(MemoryStore):
    switch: Switch

    def commit(self, operations: Any, flushing: Any = None) -> Any:
        self.switch.commit(operations)
        return super().commit(operations, flushing)


class _MoodyLmdb(LmdbStore):
    switch: Switch

    def commit(self, operations: Any, flushing: Any = None) -> Any:
        self.switch.commit(operations)
        return super().commit(operations, flushing)


def moody(kind: str, path: Path) -> tuple[CheckpointStore, Switch]:
    """A store of that kind with its switch."""
    store: Any = _MoodyMemory() if kind == "memory" else _MoodyLmdb(path, profile="process")
    store.switch = Switch()
    return store, store.switch


def finished(state: At, *more: Any) -> Done[Any]:
    return Done([state.n, *more])
