"""The shipped runtime on a machine: no threads, a virtual clock, everything in one order that is always the same."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import math
import random
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

from executus.actors.clock import Clock
from executus.actors.core import DRAIN_S, Core, Store
from executus.actors.definition import Registry
from executus.actors.environment import Environment
from executus.actors.events import EventBus
from executus.actors.homes import Homes
from executus.actors.interruption import DrainReport
from executus.actors.policies import Policies, RestartPolicy, SavePolicy, StopPolicy
from executus.actors.runtime import Registrable, Runtime
from executus.actors.testing.machine import BEGIN_S, Home, Machine, VirtualDispatcher, VirtualTimers
from executus.actors.testing.stacks import Stacks
from executus.actors.testing.virtual_loop import VirtualLoop
from executus.stores import CheckpointStore


class VirtualHomes(Homes):
    """`Homes` on a machine. There is nothing to start and nothing to end but the tasks on its loop."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        workers = Home("workers", pool=True)
        self._on_workers = VirtualDispatcher(machine, workers, workers)
        home = Home("loop")
        self._virtual_loop = VirtualLoop(machine, home, self._on_workers)  # type: ignore[abstract]  # what is not there raises
        self._on_loop = VirtualDispatcher(machine, home, workers)
        self._on_tree, self._on_store, self._on_supervisor = (
            VirtualDispatcher(machine, Home(name), workers) for name in ("tree", "store", "supervisor")
        )

    def environment(
        self, *, clock: Clock, store: CheckpointStore, events: EventBus, registry: Registry, logger: Any
    ) -> Environment:
        """The edges of a runtime on the machine."""
        machine = self._machine
        return Environment(
            clock=clock,
            timers=VirtualTimers(machine),
            rng=random.Random(0),
            workers=self._on_workers,
            tree_home=self._on_tree,
            store_home=self._on_store,
            async_home=self._on_loop,
            supervisor_home=self._on_supervisor,
            loop=self._virtual_loop,
            store=store,
            events=events,
            registry=registry,
            logger=logger,
            pause=machine.pause,
            stand_aside=lambda: contextlib.nullcontext(lambda: None),
            backlog=lambda: False,
            gather=lambda: None,
            give_way=lambda: None,
            next_turn=lambda: asyncio.sleep(0),
            stack_of=lambda _ident: "",
            leaked_threads=lambda: 0,
        )

    def start_timers(self) -> None:
        """Nothing: they have no thread."""

    def worker_threads(self) -> int:
        """None, whatever runs."""
        return 0

    def thread_error(self) -> None:
        """None: there are no threads to be had or not."""

    def close(self, timeout_s: float, *, store_hangs: bool) -> None:
        """Cancel what is left on the loop."""
        del timeout_s, store_hangs
        self._virtual_loop.cancel_all()
        if not self._machine.dead:
            self._machine.settle()


class VirtualCore(Core):
    """The shipped core on a machine."""

    def __init__(self, machine: Machine, store: Store, **options: Any) -> None:
        super().__init__(store, clock=machine, **options)
        self._machine = machine

    def make_homes(self, host_loop: asyncio.AbstractEventLoop | None, *, own_loop: bool) -> Homes:
        """See Core."""
        del host_loop, own_loop
        return VirtualHomes(self._machine)

    def open(self, host_loop: asyncio.AbstractEventLoop | None) -> None:
        """See Core."""
        super().open(host_loop)
        atexit.unregister(self._close_at_exit)  # the test closes it, or its process dies in the machine


class VirtualRuntime(Runtime):
    """`Runtime` on a machine: the same verbs; those that wait let the others go on meanwhile."""

    def __init__(
        self,
        machine: Machine,
        store: Store,
        *,
        runs: Iterable[Registrable],
        restart_policy: RestartPolicy | None = None,
        save_policy: SavePolicy | None = None,
        stop_policy: StopPolicy | None = None,
        drain_timeout_s: float = DRAIN_S,
        logger: Any = False,
    ) -> None:
        defaults = Policies(restart_policy or RestartPolicy(), save_policy or SavePolicy(), stop_policy or StopPolicy())
        self._core = VirtualCore(machine, store, runs=runs, defaults=defaults, logger=logger)
        self._drain_timeout_s = drain_timeout_s
        self._machine = machine

    @property
    def core(self) -> Core:
        """The core below, for what watches it."""
        return self._core

    def close(self) -> None:
        """See Runtime.close. Time passes meanwhile, as far as the drain needs it."""
        with passing(self._machine):
            super().close()

    def drain(self, timeout_s: float = DRAIN_S) -> DrainReport:
        """See Runtime.drain. Time passes meanwhile."""
        with passing(self._machine):
            return super().drain(timeout_s)


class VirtualClock:
    """Time that passes only when it is told, for the runtimes that are made with it.

    Between two of the test's calls nothing runs. A call that waits (`start`, `result`, `ask`, …) and `advance` come
    back when everything has happened that can happen at that moment. Waits, throttled saves, backoffs, time-outs,
    `context.sleep` and asyncio's time in callbacks follow this clock, which begins at the wall clock's time;
    `time.time()` and `time.sleep()` do not.
    """

    def __init__(self) -> None:
        self._stacks = Stacks()
        self._machine = Machine(self._stacks, wall_s=time.time())
        self._machine.limit_s = -math.inf

    def runtime(self, store: Store = None, *, runs: Iterable[Registrable], **options: Any) -> VirtualRuntime:
        """A runtime on this clock, not opened yet; options as for Runtime. All verbs on the thread of the test."""
        return VirtualRuntime(self._machine, store, runs=runs, **options)

    def advance(self, seconds: float) -> None:
        """Let time pass; all that is due meanwhile happens, each at its own time."""
        self._machine.advance(seconds)

    def now_s(self) -> float:
        """Seconds since this clock was made."""
        return self._machine.now - BEGIN_S

    @contextmanager
    def running(self) -> Generator[None, None, None]:
        """Within this block whatever waits lets time pass by itself."""
        with passing(self._machine):
            yield

    @contextmanager
    def taken(self) -> Generator[None, None, None]:
        """Within this block this thread waits by this clock; its threads end with it."""
        try:
            with self._machine.taken():
                yield
        finally:
            self._machine.die()
            self._machine.unwind()
            self._stacks.close()


@contextmanager
def passing(machine: Machine) -> Generator[None, None, None]:
    """Within this block time passes by itself."""
    limit_s, machine.limit_s = machine.limit_s, math.inf
    try:
        yield
    finally:
        machine.limit_s = limit_s
