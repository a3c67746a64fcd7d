"""One obedient double: `FailableRun` does in every callback what it was told; `AsyncFailableRun` does the same on the loop."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from executus.actors import (
    ChildEnded,
    Done,
    Factory,
    Reply,
    RestartPolicy,
    Run,
    RunHandle,
    Runtime,
    StopPolicy,
    Wait,
    WaitExpired,
)
from executus.actors.events import Event, RunEvent
from executus.actors.policies import Backoff
from tests.waiting import wait_until

E = TypeVar("E", bound=Event)

SOON = Backoff(initial_s=0.001, factor=1, max_s=0.001, jitter=0)
"""A backoff that does not hold tests up."""
THRICE = RestartPolicy(backoff=SOON)
NEVER = RestartPolicy(kind="temporary")
SHORT = StopPolicy(grace_s=0.05)
"""A grace that a hung callback does not hold tests up with."""


class Unprintable(Exception):
    """Neither __str__ nor __repr__ work."""

    def __str__(self) -> str:
        raise ValueError("no text")

    def __repr__(self) -> str:
        raise ValueError("no text")


class Strange(BaseException):
    """No Exception, and nobody's in particular."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
    "ExceptionGroup": lambda: ExceptionGroup("two", [ValueError("a"), TypeError("b")]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("two", [KeyboardInterrupt(), SystemExit(1)]),
    "StopIteration": lambda: StopIteration(1),
    "Unprintable": Unprintable,
    "Strange": lambda: Strange("strange"),
    "OSError": lambda: OSError(5, "Input/output error"),
    "ValueError": lambda: ValueError("told to"),
}
TWELVE = [name for name in ERRORS if name != "ValueError"]


class Told(msgspec.Struct, frozen=True):
    """What to do, by callback. Actions: ok, done, wait[:seconds], raise:<error>, hang, spin, sleep:<seconds>, exit:<code>, abort,
    segfault, corrupt. `action@2` does it in attempt 2 only, and is `ok` in others."""

    steps: tuple[str, ...] = ()
    begin: str = "ok"
    query: str = "ok"
    stopping: str = "ok"
    ballast: str = ""


class At(msgspec.Struct, frozen=True):
    """How far it is, and what it has heard."""

    told: Told
    at: int = 0
    heard: tuple[str, ...] = ()


class Do(msgspec.Struct, frozen=True, tag=True):
    """A message: do this. Also `none` (keep everything), `reply:<text>`, `go` (step on)."""

    action: str


class World:
    """What a test shares with the runs of its process: the calls they made, and the release of those that hang."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.calls: list[tuple[str, str]] = []
        self.construct = "ok"
        self.hanging = 0

    def note(self, who: str, what: str) -> None:
        self.calls.append((who, what))

    def count(self, who: str, what: str) -> int:
        return self.calls.count((who, what))


class _Obedient(Run[Told, At, int]):
    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        if self.world.construct != "ok":
            self._perform(self.world.construct)

    def _perform(self, action: str) -> str:
        verb, _, only = action.partition("@")
        if only and self.context.attempt != int(only):
            return "ok"
        kind, _, argument = verb.partition(":")
        match kind:
            case "raise":
                raise ERRORS[argument]()
            case "hang":
                self.world.hanging += 1
                self.world.release.wait()
            case "spin":
                self.world.hanging += 1
                while not self.world.release.is_set():
                    pass
            case "sleep":
                time.sleep(float(argument))
            case "exit":
                os._exit(int(argument))
            case "abort":
                os.abort()
            case "segfault":
                ctypes.string_at(0)
            case _:
                return verb
        return "ok"

    def _next(self, verb: str, after: At) -> Any:
        kind, _, argument = verb.partition(":")
        match kind:
            case "ok" | "go":
                return after
            case "done":
                return Done(after.at)
            case "wait":
                return Wait(after, timeout_s=float(argument) if argument else None)
            case "until":
                return Wait(after, until=time.time() + float(argument))
            case "corrupt":
                return object()
            case _:
                raise AssertionError(f"told to {verb!r}")

    def _stepped(self, verb: str, before: At) -> Any:
        return (
            Done(before.at) if verb == "done" else self._next(verb, msgspec.structs.replace(before, at=before.at + 1))
        )

    def _note(self, what: str) -> None:
        self.world.note(self.context.run_id, what)

    def _step_action(self, state: At) -> str:
        return state.told.steps[state.at] if state.at < len(state.told.steps) else "done"


class FailableRun(_Obedient):
    """Does what it was told. Its result is the number of steps before the last one."""

    run_type = "Failable"

    def begin(self, told: Told) -> Any:
        self._note("begin")
        return self._next(self._perform(told.begin), At(told))

    def step(self, state: At) -> Any:
        self._note(f"step {state.at}")
        return self._stepped(self._perform(self._step_action(state)), state)

    def receive(self, state: At, message: Do | WaitExpired | ChildEnded) -> Any:
        if not isinstance(message, Do):
            self._note(f"receive {type(message).__name__}")
            return state
        self._note(f"receive {message.action}")
        if message.action.startswith("reply:"):
            return Reply(message.action.removeprefix("reply:"))
        if message.action == "none":
            return None
        verb = self._perform(message.action)
        heard = msgspec.structs.replace(state, heard=(*state.heard, message.action))
        return Wait(heard) if verb == "ok" else self._next(verb, heard)

    def query(self, state: At, question: str) -> Any:
        self._perform(state.told.query if question != "at" else "ok")
        return state.at if question == "at" else state.heard

    def stopping(self, state: At, reason: str) -> None:
        self._note(f"stopping {reason}")
        self._perform(state.told.stopping)


class AsyncFailableRun(_Obedient):
    """The same on the event loop; `hang` awaits, `block` blocks the loop."""

    run_type = "AsyncFailable"

    async def _perform_async(self, action: str) -> str:
        verb, _, only = action.partition("@")
        if verb == "hang" and (not only or self.context.attempt == int(only)):
            self.world.hanging += 1
            try:
                while not self.world.release.is_set():
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                self._note("cancelled")
                raise
            return "ok"
        if verb == "block":
            self.world.release.wait()
            return "ok"
        if verb == "shrug":  # swallows its cancellation
            while not self.world.release.is_set():
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    self._note("shrugged")
            return "ok"
        return self._perform(action)

    async def begin(self, told: Told) -> Any:
        self._note("begin")
        return self._next(await self._perform_async(told.begin), At(told))

    async def step(self, state: At) -> Any:
        self._note(f"step {state.at}")
        return self._stepped(await self._perform_async(self._step_action(state)), state)

    async def receive(self, state: At, message: Do | WaitExpired | ChildEnded) -> Any:
        if not isinstance(message, Do):
            return state
        self._note(f"receive {message.action}")
        verb = await self._perform_async(message.action)
        heard = msgspec.structs.replace(state, heard=(*state.heard, message.action))
        return Wait(heard) if verb == "ok" else self._next(verb, heard)

    async def query(self, state: At, question: str) -> Any:
        await self._perform_async(state.told.query if question != "at" else "ok")
        return state.at if question == "at" else state.heard

    async def stopping(self, state: At, reason: str) -> None:
        self._note(f"stopping {reason}")
        await self._perform_async(state.told.stopping)


class Recorder:
    """A subscriber that keeps events, for a test to wait for."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[E], run_id: str | None = None) -> list[E]:
        return [
            event
            for event in list(self.events)
            if isinstance(event, kind) and (run_id is None or (isinstance(event, RunEvent) and event.run_id == run_id))
        ]

    def wait_for(self, kind: type[E], run_id: str | None = None, count: int = 1, timeout_s: float = 10.0) -> E:
        wait_until(
            lambda: len(self.of(kind, run_id)) >= count,
            timeout_s,
            f"{count} {kind.__name__} of {run_id}; so far {self.events}",
        )
        return self.of(kind, run_id)[count - 1]


class Rig:
    """An open runtime with its recorder and its world."""

    def __init__(self, runtime: Runtime, seen: Recorder, world: World) -> None:
        self.runtime = runtime
        self.seen = seen
        self.world = world

    def waiting(
        self,
        double: Any = FailableRun,
        told: Told = Told(("wait",)),  # noqa: B008 - frozen
        run_id: str = "r",
        **options: Any,
    ) -> RunHandle[Any]:
        """Start a run that is told to wait, and return when it does."""
        handle: RunHandle[Any] = self.runtime.start(double, told, run_id=run_id, **options)
        wait_until(lambda: handle.status().waiting, 10, f"{run_id} waits")
        return handle


@contextmanager
def rigged(store: Any = None, *more: Any, world: World | None = None, **options: Any) -> Iterator[Rig]:
    """A runtime with both doubles registered, opened, and closed with everything that hangs released."""
    world = world or World()
    options.setdefault("restart_policy", THRICE)
    options.setdefault("logger", False)
    options.setdefault("drain_timeout_s", 5.0)
    runtime = Runtime(store, runs=[Factory(FailableRun, world), Factory(AsyncFailableRun, world), *more], **options)
    seen = Recorder()
    runtime.events.subscribe(seen)
    with runtime:
        try:
            yield Rig(runtime, seen, world)
        finally:
            world.release.set()
