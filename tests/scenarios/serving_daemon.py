"""A daemon that serves until a signal ends it: started, told and killed by test_serving.py.

Arguments: the store, the face (`thread` or `loop`), the drain's seconds, and what each of its runs is told to do.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from typing import Any

import msgspec

from executus.actors import AsyncRuntime, Factory, Runtime, SavePolicy, StopPolicy
from executus.actors.core import Core
from executus.actors.future import Promise
from executus.actors.messages import Probe
from executus.stores import LmdbStore
from tests.doubles import AsyncFailableRun, FailableRun, Told, World
from tests.scenarios.daemon import report, say
from tests.waiting import wait_until


class Operator:
    """Does, on a thread of its own, what comes in by stdin: the main thread serves."""

    def __init__(self, core: Core, world: World) -> None:
        self.core = core
        self.world = world
        self.before = handlers()
        self.gate = threading.Event()

    def listen(self) -> None:
        # Unbuffered: at exit nobody must hold the lock of a buffered stdin.
        with open(0, "rb", buffering=0, closefd=False) as orders:
            for line in orders:
                number, verb, *args = msgspec.json.decode(line)
                say("answer", number, None, getattr(self, f"do_{verb}")(*args))

    def do_serving(self) -> None:
        """Returns when the signals are taken."""
        wait_until(lambda: not any(now == was for now, was in zip(handlers(), self.before, strict=True)))

    def do_release(self) -> None:
        self.world.release.set()

    def do_stick(self, who: str) -> None:
        """Block an actor's thread within a message, until `unstick`."""
        ref: Any = {"supervisor": self.core.tree.runs, "store": self.core.tree.store}[who]
        stuck: Promise[None] = Promise()
        stuck.add_done_callback(lambda _: self.gate.wait())
        ref.tell(Probe(stuck))

    def do_unstick(self) -> None:
        self.gate.set()

    def do_fork(self) -> int:
        """A child that SIGTERM ends, as it would end any process; returns by which signal it went."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, b"here")  # what comes before, a fork forgets
            time.sleep(60)
            os._exit(0)
        os.read(reader, 4)
        os.kill(pid, signal.SIGTERM)
        return -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def do_crash(self) -> None:
        """The run supervisor meets what it does not know."""
        self.core.tree.tell_runs("no message of yours")


def options(world: World) -> dict[str, Any]:
    return {
        "runs": [Factory(FailableRun, world), Factory(AsyncFailableRun, world)],
        "stop_policy": StopPolicy(grace_s=60),
        "save_policy": SavePolicy(durability="sync"),
        "logger": False,
        "drain_timeout_s": 0.1,
    }


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def begin(core: Core, world: World) -> None:
    core.events.subscribe(report)
    threading.Thread(target=Operator(core, world).listen, daemon=True).start()


def on_thread(store: str, drain_s: float, told: list[str]) -> None:
    world, before = World(), handlers()
    runtime = Runtime(LmdbStore(store, profile="process"), **options(world))
    begin(runtime._core, world)
    try:
        with runtime:
            for action in told:
                runtime.start(FailableRun, Told(("ok", action)), run_id=action, if_exists="return")
            say("open")
            say("report", runtime.serve(drain_timeout_s=drain_s))
    finally:
        say("left", handlers() == before)


async def on_loop(store: str, drain_s: float, told: list[str]) -> None:
    world, before = World(), handlers()
    runtime = AsyncRuntime(LmdbStore(store, profile="process"), **options(world))
    begin(runtime._core, world)
    try:
        async with runtime:
            for action in told:
                await runtime.start(AsyncFailableRun, Told(("ok", action)), run_id=action, if_exists="return")
            say("open")
            say("report", await runtime.serve(drain_timeout_s=drain_s))
    finally:
        say("left", handlers() == before)


def main(store: str, face: str, drain_s: str, *told: str) -> None:
    # As in a terminal: a shell's background job, as these tests may be one, ignores SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if face == "thread":
        on_thread(store, float(drain_s), list(told))
    else:
        asyncio.run(on_loop(store, float(drain_s), list(told)))


if __name__ == "__main__":
    main(*sys.argv[1:])
