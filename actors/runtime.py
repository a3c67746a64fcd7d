"""What users open and close: `Runtime` for threads, `AsyncRuntime` for coroutines.

Two faces over one core, with the same verbs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from executus.actors.core import DRAIN_S, Core, Health, Store
from executus.actors.events import EventBus
from executus.actors.handle import AsyncRunHandle, RunHandle, refuse_on_loop
from executus.actors.incarnation import RunView
from executus.actors.interruption import DrainReport
from executus.actors.messages import IfExists
from executus.actors.policies import Policies, RestartPolicy, SavePolicy, StopPolicy
from executus.actors.retention import RetentionPolicy
from executus.actors.run import Run
from executus.actors.serving import serve_on_loop, serve_on_thread
from executus.stores import RunStatus

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")

Registrable = Callable[[], Run[Any, Any, Any]]


class _Face:
    """What both faces share: the core and the verbs that never wait."""

    def __init__(
        self,
        store: Store,
        *,
        runs: Iterable[Registrable],
        restart_policy: RestartPolicy | None = None,
        save_policy: SavePolicy | None = None,
        stop_policy: StopPolicy | None = None,
        retention_policy: RetentionPolicy | None = None,
        drain_timeout_s: float = DRAIN_S,
        logger: Any = None,
    ) -> None:
        defaults = Policies(restart_policy or RestartPolicy(), save_policy or SavePolicy(), stop_policy or StopPolicy())
        retention = retention_policy or RetentionPolicy()
        self._core = Core(store, runs=runs, defaults=defaults, logger=logger, retention=retention)
        self._drain_timeout_s = drain_timeout_s

    @property
    def events(self) -> EventBus:
        """The event bus: `events.subscribe(fn)` calls `fn(event)` on the thread where it happens.

        See `executus.actors.events`.
        """
        return self._core.events

    def health(self) -> Health:
        """How the runtime and its store are. Cheap; any thread."""
        return self._core.health()


class Runtime(_Face):
    """A runtime for threads: `with Runtime("runs.store", runs=[MyRun]) as runtime: …`.

    `store` is a folder, a store, or None for memory. Opening resumes whatever was interrupted; leaving the block
    suspends what still runs. Async callbacks run on an event loop of its own. The policies are defaults for run
    classes that set none; `retention_policy` says how long ended runs stay in the store. `logger` is a structlog
    logger; None takes structlog as configured, or the standard library's logger "executus"; False writes no log. One
    process owns a store; any number of runtimes live in one process.
    """

    def open(self) -> Self:
        """Open the store and resume. Raises StoreLocked, StoreCorrupt, StoreTooNew, StoreUnavailable."""
        refuse_on_loop("Runtime.open()", "async with AsyncRuntime(...)")
        self._core.open(None)
        return self

    def close(self) -> None:
        """Drain for up to `drain_timeout_s`, then let everything go. Idempotent."""
        refuse_on_loop("Runtime.close()", "async with AsyncRuntime(...)")
        self._core.close(self._drain_timeout_s)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(
        self,
        run_class: type[Run[I, Any, R]],
        input: I,
        *,
        run_id: str | None = None,
        if_exists: IfExists = "raise",
        labels: Mapping[str, str] | None = None,
        restart_policy: RestartPolicy | None = None,
        save_policy: SavePolicy | None = None,
        stop_policy: StopPolicy | None = None,
        first: object = None,
        first_id: str | None = None,
    ) -> RunHandle[R]:
        """Start a run; returns when its start record is committed, so that a run that was started survives.

        `begin` runs after that. `if_exists`: "raise" RunExists; "return" the existing run, live or finished, with its
        result; "replace" ends a live one and begins anew; "retry_failed" is "return", but a failed one begins anew.

        `first` is a durable message, see `RunHandle.send`, committed together with the start record. Where "return"
        finds a run, it is sent to that one, which is what makes `start` a "send, and start if need be"; one that has
        ended refuses it with RunEnded, unless it has consumed that very `first_id`. Give a `first_id` where the call
        may be repeated: without one an id is drawn, and each call sends anew.

        Raises NotRegistered, InvalidRunId, InvalidInput, RuntimeDraining, StartFailed, and for `first` what `send`
        raises.
        """
        refuse_on_loop("Runtime.start()", "await AsyncRuntime.start()")
        self._core.check_open()
        order = self._core.order(
            run_class,
            input,
            run_id=run_id,
            if_exists=if_exists,
            labels=labels,
            restart_policy=restart_policy,
            save_policy=save_policy,
            stop_policy=stop_policy,
            first=first,
            first_id=first_id,
        )
        return RunHandle(self._core, self._core.start([order])[0].result())

    def start_many(
        self,
        run_class: type[Run[I, Any, R]],
        inputs: Mapping[str, I],
        *,
        if_exists: IfExists = "raise",
        labels: Mapping[str, str] | None = None,
    ) -> list[RunHandle[R]]:
        """Start many runs, inputs by run id, in one commit.

        Raises the first error; the others are started nevertheless.
        """
        refuse_on_loop("Runtime.start_many()", "await AsyncRuntime.start_many()")
        self._core.check_open()
        return [
            RunHandle(self._core, reply.result())
            for reply in _start_many(self._core, run_class, inputs, if_exists, labels)
        ]

    @overload
    def get(self, run_class: type[Run[Any, Any, R]], run_id: str, /) -> RunHandle[R]: ...
    @overload
    def get(self, run_id: str, /) -> RunHandle[Any]: ...
    def get(self, *args: Any) -> RunHandle[Any]:
        """The handle of a run, live or stored.

        Raises RunNotFound, NotRegistered, and TypeError if it is of another type.
        """
        return RunHandle(self._core, _found(self._core, args))

    def runs(
        self,
        *,
        status: RunStatus | str | None = None,
        type: str | type | None = None,
        label: str | None = None,
    ) -> list[RunView]:
        """Runs, live and stored, in order of id; `label` is "key" or "key=value". Reads the whole store."""
        return self._core.views(status=status, type_=type, label=label)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until no run is live. False when time was up first."""
        refuse_on_loop("Runtime.join()", "await AsyncRuntime.join()")
        self._core.check_process()
        clock = self._core.env.clock
        until_s = None if timeout_s is None else clock.now_s() + timeout_s
        while (inc := next(iter(list(self._core.table.values())), None)) is not None:
            if not inc.ending.wait(None if until_s is None else until_s - clock.now_s()):
                return False
        return True

    def resume(self, run_id: str, *, from_input: bool = False) -> RunHandle[Any]:
        """Bring back a stopped, failed or quarantined run from its last snapshot; `from_input` from its beginning.

        Raises NotResumable.
        """
        refuse_on_loop("Runtime.resume()", "await AsyncRuntime.resume()")
        return RunHandle(self._core, self._core.resume(run_id, from_input=from_input).result())

    def drain(self, timeout_s: float = DRAIN_S) -> DrainReport:
        """Take no new runs and suspend the live ones.

        Returns within `timeout_s` + 0.5 s, whatever they do; the report says what was left.
        """
        refuse_on_loop("Runtime.drain()", "await AsyncRuntime.drain()")
        return self._core.drain(timeout_s).result()

    def serve(self, *, drain_timeout_s: float | None = None) -> DrainReport:
        """Block the main thread until SIGTERM or SIGINT comes, then drain and return what was left.

        The drain gets `drain_timeout_s`, or what the runtime was given. A second signal forces: every callback is given
        up on at once, what was saved stays, the runtime is closed, and SystemExit is raised with 128 plus the signal's
        number, so that `with` and `finally` blocks are still left in order. Handlers that were set before are back when
        this returns or raises; in forked children they act as before.

        Where NOTIFY_SOCKET is set, systemd is told READY=1 on entry, STOPPING=1 when the drain begins, and, where it
        watches (WATCHDOG_USEC, WATCHDOG_PID), WATCHDOG=1 at half its period: only when the run supervisor and then the
        store actor have answered. A failing store, a full one or a run that hangs withholds no ping: a restart mends
        none of them; see health().

        Raises ServeRefused off the main thread or while another runtime serves, RuntimeNotOpen where the runtime is not
        open or is closed meanwhile (by its own crash, too), WaitTimeout where the supervisor does not answer the drain.
        """
        refuse_on_loop("Runtime.serve()", "await AsyncRuntime.serve()")
        return serve_on_thread(self._core, self._drain_timeout_s if drain_timeout_s is None else drain_timeout_s)


class AsyncRuntime(_Face):
    """A runtime for coroutines: `async with AsyncRuntime(...) as runtime: …`. As Runtime; whatever waits is awaited.

    Async callbacks run on the host's loop, where its clients live; `loop="own"` gives them a loop of their own thread.
    """

    def __init__(
        self, store: Store, *, runs: Iterable[Registrable], loop: Literal["host", "own"] = "host", **options: Any
    ) -> None:
        super().__init__(store, runs=runs, **options)
        self._loop_choice = loop

    async def open(self) -> Self:
        """See Runtime.open."""
        host = asyncio.get_running_loop() if self._loop_choice == "host" else None
        await asyncio.to_thread(self._core.open, host)
        return self

    async def close(self) -> None:
        """See Runtime.close."""
        if self._core.begin_close():
            await self._core.drain_closing(self._drain_timeout_s)
            await asyncio.to_thread(self._core.finish_close)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(self.close())

    async def start(
        self,
        run_class: type[Run[I, Any, R]],
        input: I,
        *,
        run_id: str | None = None,
        if_exists: IfExists = "raise",
        labels: Mapping[str, str] | None = None,
        restart_policy: RestartPolicy | None = None,
        save_policy: SavePolicy | None = None,
        stop_policy: StopPolicy | None = None,
        first: object = None,
        first_id: str | None = None,
    ) -> AsyncRunHandle[R]:
        """See Runtime.start."""
        self._core.check_open()
        order = self._core.order(
            run_class,
            input,
            run_id=run_id,
            if_exists=if_exists,
            labels=labels,
            restart_policy=restart_policy,
            save_policy=save_policy,
            stop_policy=stop_policy,
            first=first,
            first_id=first_id,
        )
        return AsyncRunHandle(self._core, await self._core.start([order])[0])

    async def start_many(
        self,
        run_class: type[Run[I, Any, R]],
        inputs: Mapping[str, I],
        *,
        if_exists: IfExists = "raise",
        labels: Mapping[str, str] | None = None,
    ) -> list[AsyncRunHandle[R]]:
        """See Runtime.start_many."""
        self._core.check_open()
        return [
            AsyncRunHandle(self._core, await reply)
            for reply in _start_many(self._core, run_class, inputs, if_exists, labels)
        ]

    @overload
    async def get(self, run_class: type[Run[Any, Any, R]], run_id: str, /) -> AsyncRunHandle[R]: ...
    @overload
    async def get(self, run_id: str, /) -> AsyncRunHandle[Any]: ...
    async def get(self, *args: Any) -> AsyncRunHandle[Any]:
        """See Runtime.get."""
        return AsyncRunHandle(self._core, await asyncio.to_thread(_found, self._core, args))

    async def runs(
        self,
        *,
        status: RunStatus | str | None = None,
        type: str | type | None = None,
        label: str | None = None,
    ) -> list[RunView]:
        """See Runtime.runs."""
        return await asyncio.to_thread(self._core.views, status=status, type_=type, label=label)

    async def join(self, timeout_s: float | None = None) -> bool:
        """See Runtime.join."""
        try:
            async with asyncio.timeout(timeout_s):
                while (inc := next(iter(list(self._core.table.values())), None)) is not None:
                    await inc.ending
        except TimeoutError:
            return False
        return True

    async def resume(self, run_id: str, *, from_input: bool = False) -> AsyncRunHandle[Any]:
        """See Runtime.resume."""
        return AsyncRunHandle(self._core, await self._core.resume(run_id, from_input=from_input))

    async def drain(self, timeout_s: float = DRAIN_S) -> DrainReport:
        """See Runtime.drain."""
        return await self._core.drain(timeout_s)

    async def serve(self, *, drain_timeout_s: float | None = None) -> DrainReport:
        """See Runtime.serve. Awaited on the main thread's loop, by `loop.add_signal_handler`; cancelling it ends it.

        Pings and signals come through the loop: a callback that blocks it withholds the ones and delays the others.
        Handlers that the host had put on the loop itself for the two signals cannot be put back.
        """
        return await serve_on_loop(self._core, self._drain_timeout_s if drain_timeout_s is None else drain_timeout_s)


def _start_many(
    core: Core,
    run_class: type[Run[Any, Any, Any]],
    inputs: Mapping[str, Any],
    if_exists: IfExists,
    labels: Mapping[str, str] | None,
) -> Sequence[Any]:
    orders = [
        core.order(
            run_class,
            value,
            run_id=run_id,
            if_exists=if_exists,
            labels=labels,
            restart_policy=None,
            save_policy=None,
            stop_policy=None,
        )
        for run_id, value in inputs.items()
    ]
    return core.start(orders)


def _found(core: Core, args: tuple[Any, ...]) -> Any:
    *classes, run_id = args
    inc = core.find(run_id)
    if classes and core.registry.of(classes[0]) is not inc.definition:
        msg = f"run {run_id!r} is of type {inc.definition.name!r}, not {classes[0].__name__}"
        raise TypeError(msg)
    return inc
