"""The one core under both faces of the runtime: builds the tree, opens and closes it, and knows whom to tell."""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from executus.actors.actor import ActorRef, ExitReport
from executus.actors.clock import Clock, SystemClock, TimerThread
from executus.actors.definition import Registry, RunDefinition, checked_labels
from executus.actors.dispatcher import LoopDispatcher, ThreadDispatcher
from executus.actors.environment import Environment
from executus.actors.errors import RunNotFound, RuntimeForked, RuntimeNotOpen, StartFailed
from executus.actors.events import EventBus, RuntimeClosed, StoreActorRestarted, default_logger, log_events
from executus.actors.future import Promise
from executus.actors.incarnation import Ending, Incarnation, RunView, Stage, ended_error, tell_if_alive, view_of_stored
from executus.actors.interruption import DrainReport
from executus.actors.loop_thread import LoopThread
from executus.actors.messages import (
    DrainRuns,
    IfExists,
    Probe,
    Recover,
    ResumeRun,
    StartOrder,
    StartRuns,
    StoreCrashed,
    StoreRestarted,
)
from executus.actors.outcomes import ErrorInfo
from executus.actors.policies import Backoff, Policies, RestartPolicy, SavePolicy, StopPolicy
from executus.actors.run import Run
from executus.actors.save_slot import StorePort
from executus.actors.store_actor import StoreActor
from executus.actors.stored_runs import resting_incarnation
from executus.actors.supervisor import RunSupervisor
from executus.actors.worker_pool import WorkerPool
from executus.stores import (
    LIVE,
    RESUMABLE,
    CheckpointStore,
    ExecutusError,
    LmdbStore,
    MemoryStore,
    RunStatus,
    StoreError,
    StoreUnavailable,
    check_run_id,
)

DRAIN_S: Final = 10.0
GATHER_S: Final = 0.0005
EXIT_DRAIN_S: Final = 1.0
EXIT_RELEASE_S: Final = 0.1
"""What a forgotten runtime gets at exit, for its runs and then for each of its threads: exit must not block."""
STORE_BACKOFF: Final = Backoff(initial_s=0.05, factor=2.0, max_s=5.0, jitter=0.0)

Store = CheckpointStore | str | os.PathLike[str] | None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How a runtime is. `ok` is False when something needs a person."""

    ok: bool
    live_runs: int
    store: str
    store_error: str | None
    store_used_ratio: float
    worker_threads: int
    leaked_threads: int
    event_failures: int


class Core:
    """A runtime without a face. `open` and `close` may block and belong on a thread; everything else only tells."""

    def __init__(
        self,
        store: Store,
        *,
        runs: Iterable[Callable[[], Run[Any, Any, Any]]],
        defaults: Policies,
        logger: Any,
        clock: Clock | None = None,
    ) -> None:
        self.registry = Registry(runs, defaults)
        self.store = _store(store)
        self.events = EventBus()
        self.table: dict[str, Incarnation] = {}
        self.logger = default_logger() if logger is None else logger
        self._clock = SystemClock() if clock is None else clock
        self._pid = 0
        self._state = "new"
        self._lock = threading.Lock()
        self._supervisor: ActorRef[RunSupervisor] | None = None
        self._store_ref: ActorRef[StoreActor] | None = None
        self._store_restarts = 0
        self._store_error: ErrorInfo | None = None
        self._closed_by: ErrorInfo | None = None
        self.closed: Promise[ErrorInfo | None] = Promise()
        """Holds when the runtime has closed, with the crash that closed it, if one did."""
        self._unanswered: set[Promise[Any]] = set()
        """Replies that the supervisor owes: if it dies before it has handled the order, nobody else would answer."""
        self.port = StorePort(self._tell_store)
        self.env: Environment
        if logger is not False:
            self.events.subscribe(log_events(self.logger))
        else:
            self.logger = default_logger()

    # --- opening ------------------------------------------------------------------------------------------------------

    def open(self, host_loop: asyncio.AbstractEventLoop | None) -> None:
        """Open the store, then find what the last process left. Blocks; raises what the store's open raises."""
        with self._lock:  # two openers: one opens, the other is refused
            if self._state != "new":
                msg = f"this runtime is {self._state}; a runtime is opened once"
                raise RuntimeNotOpen(msg)
            self._state = "opening"
        self._pid = os.getpid()
        self._pool = WorkerPool(name="executus-worker")
        self._timers = TimerThread(name="executus-timers")
        self._store_thread = ThreadDispatcher(name="executus-store")
        self._supervisor_thread = ThreadDispatcher(name="executus-supervisor")
        self._loop_thread = None
        if host_loop is None and any(d.async_callbacks for d in self.registry):
            try:
                self._loop_thread = LoopThread()
            except BaseException:
                self._state = "closed"
                raise
            host_loop = self._loop_thread.loop
        async_home = self._pool if host_loop is None else LoopDispatcher(host_loop, self._pool)
        self.env = Environment(
            clock=self._clock,
            timers=self._timers,
            rng=random.Random(),
            workers=self._pool,
            store_home=self._store_thread,
            async_home=async_home,
            supervisor_home=self._supervisor_thread,
            loop=host_loop,
            store=self.store,
            events=self.events,
            registry=self.registry,
            logger=self.logger,
            pause=_pause,
            stand_aside=self._pool.stand_aside,
            backlog=lambda: self._pool.queued() > 0,
            gather=lambda: time.sleep(GATHER_S),
            give_way=async_home.give_way if isinstance(async_home, LoopDispatcher) else _nothing,
            stack_of=stack_of,
            leaked_threads=self._pool.leaked,
        )
        try:
            # Its thread starts now: the drain at exit needs timers, and there no thread can be started any more.
            self._timers.call_at(0.0, lambda: None)
            self.start_tree().result()
        except BaseException:
            self._state = "closed"
            self._stop_store(1.0)
            self._release(1.0)
            raise
        self._state = "open"
        atexit.register(self._close_at_exit)

    def start_tree(self) -> Promise[None]:
        """Start the store actor and, once it has opened the store, the run supervisor.

        Does not block: the promise holds when both are ready.
        """
        opened: Promise[None] = Promise()
        ready: Promise[None] = Promise()
        self._start_store(opened)
        # Now `_store_ref` is there: what the supervisor tells the store, at once, must not be lost.
        opened.add_done_callback(lambda _: self._start_supervisor(opened, ready))
        return ready

    def _start_supervisor(self, opened: Promise[None], ready: Promise[None]) -> None:
        error = opened.error()
        if error is not None:
            ready.try_fail(error)
            return
        self._supervisor = RunSupervisor.start_on(
            self.env.supervisor_home,
            self.env,
            self.port,
            self.table,
            ready,
            on_exit=lambda report: self._supervisor_exited(report, ready),
        )
        self._tell_supervisor_always(Recover())  # not in its on_start: then the store actor could not answer it yet

    def _start_store(self, opened: Promise[None]) -> None:
        self._store_ref = StoreActor.start_on(
            self.env.store_home,
            self.env,
            self._tell_supervisor_always,
            opened=lambda: opened.try_set(None),
            on_exit=lambda report: self._store_exited(report, opened),
        )

    def _store_exited(self, report: ExitReport, opened: Promise[None]) -> None:
        """The store actor comes back alone, for as long as the runtime lives.

        A store that is down fails no running run.
        """
        if report.error is not None and self._supervisor is None:
            opened.try_fail(report.error)
            return
        if report.error is None or self._state in {"closing", "closed"}:
            return
        self._store_error = ErrorInfo.of(report.error)
        self.events.emit(StoreActorRestarted(error=self._store_error))
        self._tell_supervisor_always(StoreCrashed(StoreUnavailable(f"the store actor crashed: {self._store_error}")))
        delay_s = STORE_BACKOFF.delay_s(self._store_restarts)
        self._store_restarts += 1
        self.env.timers.call_at(self.env.clock.now_s() + delay_s, self._restart_store)

    def _restart_store(self) -> None:
        if self._state in {"closing", "closed"}:
            return
        opened: Promise[None] = Promise()
        self._start_store(opened)
        # After `_store_ref` is the new one: what the supervisor sends again must not go to the old one.
        opened.add_done_callback(self._store_reopened)

    def _store_reopened(self, opened: Promise[None]) -> None:
        if opened.error() is None:
            self._store_restarts, self._store_error = 0, None
            self._tell_supervisor_always(StoreRestarted())

    def _supervisor_exited(self, report: ExitReport, ready: Promise[None]) -> None:
        """The run supervisor has no restart: its crash closes the runtime, and the next boot recovers."""
        if report.error is None:
            return
        ready.try_fail(report.error)
        if self._state == "open":
            self._closed_by = ErrorInfo.of(report.error)
            self._escalate()

    def _escalate(self) -> None:
        """Close from a thread of its own: the one that reports the crash belongs to the dispatchers that close."""
        threading.Thread(target=self._close_crashed, name="executus-escalation", daemon=True).start()

    def _close_crashed(self) -> None:
        with self._lock:
            if self._state != "open":
                return
            self._state = "closing"
        self._interrupt_all(f"the run supervisor crashed: {self._closed_by}")
        self._shut_down(1.0)

    # --- closing ------------------------------------------------------------------------------------------------------

    def drain(self, timeout_s: float) -> Promise[DrainReport]:
        """Suspend every run. The promise holds within `timeout_s` + 0.5 s, whatever the runs do."""
        reply: Promise[DrainReport] = Promise()
        self.tell_supervisor(DrainRuns(timeout_s, reply), reply)
        return reply

    def begin_close(self) -> bool:
        """Take the step from open to closing; False if somebody else did, or nothing was opened."""
        if os.getpid() != self._pid:
            return False
        with self._lock:
            if self._state != "open":
                return False
            self._state = "closing"
            return True

    def finish_close(self, timeout_s: float = 2.0) -> None:
        """After the drain: let everything go. What does not end by itself gets so long, each."""
        self._interrupt_all("the runtime was closed")
        self._shut_down(timeout_s)

    def close(self, drain_s: float = DRAIN_S, release_s: float = 2.0) -> DrainReport | None:
        """Drain, then let everything go. Idempotent. None when it was closed already."""
        if not self.begin_close():
            return None
        reply: Promise[DrainReport] = Promise()
        self._tell_supervisor_always(DrainRuns(drain_s, reply))
        report = reply.result() if reply.wait(drain_s + 0.45) else None
        self.finish_close(release_s)
        return report

    async def drain_closing(self, timeout_s: float) -> None:
        """The drain of a close, awaited."""
        reply: Promise[DrainReport] = Promise()
        self._tell_supervisor_always(DrainRuns(timeout_s, reply))

        def give_up() -> None:
            reply.try_fail(RuntimeNotOpen("the drain did not end in time"))

        self.env.timers.call_at(self.env.clock.now_s() + timeout_s + 0.45, give_up)
        try:
            await reply
        except RuntimeNotOpen:
            return

    def _close_at_exit(self) -> None:
        self.close(EXIT_DRAIN_S, EXIT_RELEASE_S)

    def _shut_down(self, timeout_s: float) -> None:
        self._stop_store(max(timeout_s, 0.5))  # it may have a commit to end
        self._release(timeout_s)
        self._state = "closed"
        atexit.unregister(self._close_at_exit)
        self.events.emit(RuntimeClosed(escalated=self._closed_by))
        self.closed.try_set(self._closed_by)

    def _stop_store(self, timeout_s: float) -> None:
        if self._store_ref is not None and self._store_ref.is_alive():
            self._store_ref.stop(block=False).wait(timeout_s)

    def _release(self, timeout_s: float) -> None:
        if self._supervisor is not None:
            self._supervisor.halt()
        self._supervisor_thread.close(timeout_s)
        self._store_thread.close(timeout_s)
        if isinstance(self.env.async_home, LoopDispatcher):
            self.env.async_home.close()
        if self._loop_thread is not None:
            self._loop_thread.close(timeout_s)
        self._timers.close(timeout_s)
        self._pool.close(0.2)
        self._refuse_unanswered()

    def _refuse_unanswered(self) -> None:
        """The supervisor is gone: who still waits for its answer will get none."""
        for reply in list(self._unanswered):
            reply.try_fail(self._not_open())

    def _interrupt_all(self, reason: str) -> None:
        """Nobody will end these any more: their waiters get RunInterrupted, never a hang."""
        for inc in list(self.table.values()):
            ending = Ending(RunStatus.SUSPENDED, None, reason)
            if inc.slot is not None:
                inc.slot.close()
            inc.stage = Stage.ENDED
            error = ended_error(inc.run_id, ending)
            inc.letters.close(error)
            inc.fail_waiters(error)
            for reply in inc.unstarted:
                reply.try_fail(StartFailed(f"run {inc.run_id!r} was not started: {reason}"))
            inc.ending.try_set(ending)

    # --- telling ------------------------------------------------------------------------------------------------------

    def _tell_store(self, message: object) -> None:
        ref = self._store_ref
        if ref is not None:
            tell_if_alive(ref, message)

    def _tell_supervisor_always(self, message: object) -> None:
        if self._supervisor is not None:
            tell_if_alive(self._supervisor, message)

    def tell_supervisor(self, message: object, *replies: Promise[Any]) -> None:
        """Give an order; the replies fail if there is nobody to take it."""
        self.check_process()
        if self._state == "open" and self._supervisor is not None:
            self._unanswered.update(replies)
            for reply in replies:
                reply.add_done_callback(self._unanswered.discard)
            try:
                self._supervisor.tell(message)
            except ExecutusError:
                pass
            else:
                return
        for reply in replies:
            reply.try_fail(self._not_open())

    def _not_open(self) -> RuntimeNotOpen:
        why = f": {self._closed_by}" if self._closed_by is not None else ""
        return RuntimeNotOpen(f"this runtime is {self._state}{why}")

    def check_process(self) -> None:
        """Raise RuntimeForked in a forked child."""
        if self._pid and os.getpid() != self._pid:
            msg = (
                "this runtime was opened by the parent process; a forked child opens its own, on its own "
                "store. Nothing was done."
            )
            raise RuntimeForked(msg)

    # --- orders -------------------------------------------------------------------------------------------------------

    def start(self, orders: Sequence[StartOrder]) -> list[Promise[Incarnation]]:
        """Start runs in one commit."""
        replies: list[Promise[Incarnation]] = [Promise() for _ in orders]
        self.tell_supervisor(StartRuns(tuple(orders), tuple(replies)), *replies)
        return replies

    def order(
        self,
        run_class: type[Run[Any, Any, Any]],
        input: object,
        *,
        run_id: str | None,
        if_exists: IfExists,
        labels: Mapping[str, str] | None,
        restart_policy: RestartPolicy | None,
        save_policy: SavePolicy | None,
        stop_policy: StopPolicy | None,
    ) -> StartOrder:
        """Check everything at the door.

        Raises NotRegistered, InvalidRunId, InvalidInput, ValueError; nothing is started then.
        """
        definition = self.registry.of(run_class)
        if if_exists not in {"raise", "return", "replace", "retry_failed"}:
            msg = f"if_exists takes 'raise', 'return', 'replace' or 'retry_failed', not {if_exists!r}"
            raise ValueError(msg)
        policies = Policies(
            restart_policy or definition.policies.restart,
            save_policy or definition.policies.save,
            stop_policy or definition.policies.stop,
        )
        overridden = policies != definition.policies
        return StartOrder(
            run_id=self._new_id(definition) if run_id is None else check_run_id(run_id),
            definition=definition,
            input=definition.encode_input(input),
            if_exists=if_exists,
            labels=checked_labels(labels),
            policies=policies,
            options=msgspec.msgpack.encode(policies) if overridden else b"",
        )

    def _new_id(self, definition: RunDefinition) -> str:
        return check_run_id(f"{definition.name[:100]}-{self.env.rng.getrandbits(64):016x}")

    def resume(self, run_id: str, *, from_input: bool) -> Promise[Incarnation]:
        """Bring back a stopped, failed or quarantined run."""
        reply: Promise[Incarnation] = Promise()
        self.tell_supervisor(ResumeRun(check_run_id(run_id), from_input, reply), reply)
        return reply

    # --- looking ------------------------------------------------------------------------------------------------------

    def find(self, run_id: str) -> Incarnation:
        """The incarnation of an id, live or from the store. Raises RunNotFound. May read the disk."""
        self.check_open()
        run_id = check_run_id(run_id)
        inc = self.table.get(run_id)
        if inc is not None:
            return inc
        stored = self.store.load(run_id)
        if stored is None:
            raise RunNotFound(run_id)
        return resting_incarnation(self.env, stored)

    def present(self, inc: Incarnation) -> Incarnation:
        """What has become of an incarnation that ended or rests; itself, if nothing has.

        One that rested may have been resumed by hand, or ended at rest. May read the store; never raises.
        """
        newer = self.table.get(inc.run_id)
        if newer is not None:
            return newer if newer.incarnation == inc.incarnation else inc
        if inc.ending.result(0).status not in LIVE | RESUMABLE or not inc.durable or self._state != "open":
            return inc
        try:
            stored = self.store.load(inc.run_id)
            if stored is None or stored.claim.incarnation != inc.incarnation or stored.claim.epoch == inc.claim.epoch:
                return inc
            return inc if stored.claim.status is RunStatus.RUNNING else resting_incarnation(self.env, stored)
        except ExecutusError:
            return inc

    def views(self, *, status: RunStatus | str | None, type_: str | type | None, label: str | None) -> list[RunView]:
        """All runs that fit, in order of id. Reads the whole store."""
        self.check_open()
        wanted = None if status is None else RunStatus(status)
        name = type_ if type_ is None or isinstance(type_, str) else self.registry.of(type_).name
        views = {view.run_id: view for view in self._stored_views()}
        views.update({inc.run_id: inc.view() for inc in list(self.table.values())})
        return [
            view
            for _, view in sorted(views.items())
            if (wanted is None or view.status is wanted)
            and (name is None or view.run_type == name)
            and _has_label(view, label)
        ]

    def _stored_views(self) -> Iterable[RunView]:
        after: str | None = None
        while page := self.store.scan(after=after, limit=1000):
            yield from map(view_of_stored, page)
            after = page[-1].claim.run_id

    def health(self) -> Health:
        """How the runtime is."""
        self.check_open()
        error = self._store_error or self.env.store_trouble
        ratio = 0.0
        try:
            info = self.store.info()
            ratio, kind = info.used_ratio, info.kind
        except StoreError as raised:
            error, kind = ErrorInfo.of(raised), "?"
        leaked = self.env.leaked_threads()
        return Health(
            ok=error is None and leaked == 0 and ratio < 0.8,  # noqa: PLR2004 - the warning threshold of the space rule
            live_runs=len(self.table),
            store=kind,
            store_error=None if error is None else str(error),
            store_used_ratio=ratio,
            worker_threads=self._pool.threads(),
            leaked_threads=leaked,
            event_failures=self.events.failures,
        )

    def probe(self) -> Promise[None]:
        """Holds once the run supervisor and then the store actor have answered; never, where one is stuck or down."""
        supervisor_answered: Promise[None] = Promise()
        both_answered: Promise[None] = Promise()

        def ask_store(_: object) -> None:
            if self._store_ref is not None:
                tell_if_alive(self._store_ref, Probe(both_answered), control=True)

        supervisor_answered.add_done_callback(ask_store)
        if self._supervisor is not None:
            tell_if_alive(self._supervisor, Probe(supervisor_answered), control=True)
        return both_answered

    def check_open(self) -> None:
        """Raise RuntimeNotOpen, or RuntimeForked."""
        self.check_process()
        if self._state != "open":
            msg = f"this runtime is {self._state}"
            raise RuntimeNotOpen(msg)


def _store(store: Store) -> CheckpointStore:
    if store is None:
        return MemoryStore()
    if isinstance(store, (str, os.PathLike)):
        return LmdbStore(Path(store))
    return store


def _has_label(view: RunView, label: str | None) -> bool:
    if label is None:
        return True
    key, equals, value = label.partition("=")
    return view.labels.get(key) == value if equals else key in view.labels


def _nothing() -> None:
    """There is no loop to give way on."""


def _pause(seconds: float, wake: Promise[None]) -> None:
    wake.wait(seconds)


def stack_of(ident: int | None) -> str:
    """The stack of a thread, without local variables; empty when it has none."""
    frame = sys._current_frames().get(ident) if ident is not None else None  # noqa: SLF001 - the documented way there is
    return "" if frame is None else "".join(traceback.format_stack(frame))
