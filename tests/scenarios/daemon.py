"""A daemon that embeds a runtime and does what it is told: a line of JSON in, lines of JSON out. Killed with SIGKILL by its tests.

Arguments: the store, and what to register: `plain`, `older`, `newer`, `stranger` or `raising` versions of the run types.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import msgspec

from executus.actors import ChildEnded, Done, Factory, RestartPolicy, Run, Runtime, SavePolicy, StopPolicy, Wait
from executus.actors.events import Event
from executus.stores import LmdbStore
from tests.doubles import SOON, AsyncFailableRun, At, Do, FailableRun, Told, World


class KeysOf(Run[str, int, int]):
    """Says its idempotency keys: in begin, in every step, in every receive. Stops at the count it was told."""

    def begin(self, upto: str) -> int:
        say("key", self.context.run_id, "begin", 0, self.context.attempt, self.context.idempotency_key)
        return 0

    def step(self, state: int) -> Any:
        say("key", self.context.run_id, "step", state, self.context.attempt, self.context.idempotency_key)
        return Wait(state + 1) if state % 3 == 2 else state + 1

    def receive(self, state: int, message: Do) -> Any:
        say("key", self.context.run_id, message.action, state, self.context.attempt, self.context.idempotency_key)
        return Done(state) if message.action == "done" else state


class Bill(msgspec.Struct, frozen=True):
    """A whole number where a float is declared: every second user's default."""

    total: float = 0
    at: int = 0


class KeysOfFloats(Run[str, Bill, float]):
    def begin(self, _: str) -> Bill:
        return Bill()

    def step(self, state: Bill) -> Any:
        say("key", self.context.run_id, "step", state.at, self.context.attempt, self.context.idempotency_key)
        if state.at == 1:
            threading.Event().wait()
        return Bill(1, state.at + 1)


class Ring(Run[int, int, int]):
    """Permanent: each round begins afresh, waits for a word, ends."""

    restart_policy = RestartPolicy(kind="permanent", max_restarts=100, backoff=SOON)

    def begin(self, start: int) -> Any:
        say("key", self.context.run_id, "begin", start, self.context.attempt, self.context.idempotency_key)
        return Wait(start)

    def step(self, state: int) -> Any:
        return Done(state)

    def receive(self, state: int, message: Do) -> Any:
        return Done(state + 1)


class Brood(Run[int, tuple[str, ...], int]):
    """Spawns as many children as it was told, and is done when it has heard of all."""

    def begin(self, count: int) -> Any:
        for number in range(count):
            self.context.spawn(FailableRun, Told(("ok", "wait")), key=str(number))
        return Wait(())

    def step(self, state: tuple[str, ...]) -> Any:
        return state

    def receive(self, state: tuple[str, ...], message: ChildEnded | Do) -> Any:
        if isinstance(message, Do):
            return Done(len(state))
        say("heard", self.context.run_id, message.key, self.context.attempt)
        return Wait((*state, message.key))


class Newer(FailableRun):
    run_type = "Failable"
    schema_version = 2

    def upgrade(self, version: int, raw: Any) -> At:
        say("upgraded", version, raw["at"])
        return msgspec.convert(raw, At)


class Raising(Newer):
    def upgrade(self, version: int, raw: Any) -> At:
        raise KeyError("a field that is not there")


def registered(version: str, world: World) -> list[Any]:
    others = [Factory(AsyncFailableRun, world), KeysOf, KeysOfFloats, Ring, Brood]
    match version:
        case "plain":
            return [Factory(FailableRun, world), *others]
        case "newer":
            return [Factory(Newer, world), *others]
        case "raising":
            return [Factory(Raising, world), *others]
        case "stranger":
            return others
        case _:
            raise ValueError(version)


def say(*parts: Any) -> None:
    """One write each, so that lines never mix and a SIGKILL cuts none."""
    os.write(1, msgspec.json.encode(parts, enc_hook=str) + b"\n")


def report(event: Event) -> None:
    facts = {name: getattr(event, name) for name in event.__struct_fields__}
    say("event", type(event).__name__, facts)


class Clerk:
    """Carries out commands."""

    def __init__(self, runtime: Runtime, world: World) -> None:
        self.runtime = runtime
        self.world = world
        self.handles: dict[str, Any] = {}

    def handle(self, run_id: str) -> Any:
        if run_id not in self.handles:
            self.handles[run_id] = self.runtime.get(run_id)
        return self.handles[run_id]

    def do(self, verb: str, *args: Any) -> Any:
        return getattr(self, f"do_{verb}")(*args)

    def do_start(self, kind: str, run_id: str, what: Any, options: dict[str, Any]) -> None:
        run_class: Any = {definition.name: definition.run_class for definition in self.runtime._core.registry}[kind]
        told = msgspec.convert(what, Told) if kind in {"Failable", "AsyncFailable"} else what
        for name, policy in (
            ("stop_policy", StopPolicy),
            ("save_policy", SavePolicy),
            ("restart_policy", RestartPolicy),
        ):
            if name in options:
                options[name] = msgspec.convert(options[name], policy)
        self.handles[run_id] = self.runtime.start(run_class, told, run_id=run_id, **options)

    def do_tell(self, run_id: str, action: str) -> None:
        self.handle(run_id).tell(Do(action))

    def do_query(self, run_id: str, question: str) -> Any:
        return self.handle(run_id).query(question, 10)

    def do_status(self, run_id: str) -> Any:
        return msgspec.to_builtins(self.handle(run_id).status())

    def do_durable(self, run_id: str) -> int:
        return int(self.handle(run_id).durable(10))

    def do_result(self, run_id: str) -> Any:
        return self.handle(run_id).result(20)

    def do_outcome(self, run_id: str) -> Any:
        return msgspec.to_builtins(self.handle(run_id).outcome(20))

    def do_stop(self, run_id: str) -> None:
        self.handle(run_id).stop(20)

    def do_cancel(self, run_id: str) -> None:
        self.handle(run_id).cancel("enough", timeout_s=20)

    def do_kill(self, run_id: str) -> None:
        """Does not wait: the tests look at what is in the store meanwhile."""
        threading.Thread(target=lambda: self.handle(run_id).kill("enough"), daemon=True).start()

    def do_resume(self, run_id: str, from_input: bool) -> None:
        self.handles[run_id] = self.runtime.resume(run_id, from_input=from_input)

    def do_hanging(self) -> int:
        return self.world.hanging

    def do_runs(self) -> Any:
        return {view.run_id: view.status.value for view in self.runtime.runs()}

    def do_close(self) -> None:
        self.runtime.close()


def main(store: str, version: str = "plain") -> None:
    world = World()
    runtime = Runtime(
        LmdbStore(store, profile="process"),
        runs=registered(version, world),
        restart_policy=RestartPolicy(backoff=SOON),
        logger=False,
    )
    runtime.events.subscribe(report)
    runtime.open()
    say("open")
    clerk = Clerk(runtime, world)
    for line in sys.stdin.buffer:
        number, verb, *args = msgspec.json.decode(line)
        try:
            answer = clerk.do(verb, *args)
        except Exception as error:
            say("answer", number, type(error).__name__, str(error))
        else:
            say("answer", number, None, answer)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
