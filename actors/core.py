"""The one core under both faces of the runtime: opens it, closes it, takes its orders and looks things up."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from executus.actors.clock import Clock, SystemClock
from executus.actors.definition import Registry, RunDefinition, checked_labels, checked_message_id, expiry
from executus.actors.dormitory import Dormitory
from executus.actors.environment import Environment
from executus.actors.errors import NotDurable, RunNotFound, RuntimeForked, RuntimeNotOpen, StartFailed
from executus.actors.events import EventBus, RuntimeClosed, default_logger, log_events
from executus.actors.future import Promise
from executus.actors.homes import Homes
from executus.actors.incarnation import Ending, Incarnation, RunView, Stage, ended_error, view_of_stored
from executus.actors.interruption import DrainReport
from executus.actors.messages import (
    DrainRuns,
    IfExists,
    Outgoing,
    ResumeRun,
    SendMessage,
    StartOrder,
    StartRuns,
)
from executus.actors.outcomes import ErrorInfo
from executus.actors.policies import Backoff, Policies, RestartPolicy, SavePolicy, StopPolicy
from executus.actors.retention import DEFAULT_RETENTION, FILLING_RATIO, RetentionPolicy
from executus.actors.run import Run
from executus.actors.runtime_tree import RUNS_STOP_S, RuntimeTree
from executus.actors.stored_runs import resting_incarnation, sleeping_incarnation
from executus.stores import (
    LIVE,
    RESUMABLE,
    CheckpointStore,
    ExecutusError,
    LmdbStore,
    MemoryStore,
    RunStatus,
    StoreError,
    check_run_id,
)

DRAIN_S: Final = 10.0
GATHER_S: Final = 0.0005
MAY_GO_ON: Final = LIVE | RESUMABLE | {RunStatus.PASSIVATED}
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
    thread_error: str | None = None
    """Why no worker's thread can be started at present; runs wait for one."""


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
        retention: RetentionPolicy = DEFAULT_RETENTION,
    ) -> None:
        self.registry = Registry(runs, defaults)
        self.store = _store(store)
        self.events = EventBus()
        self.table: dict[str, Incarnation] = {}
        self.dormitory = Dormitory(self.table)
        self.logger = default_logger() if logger is None else logger
        self._clock = SystemClock() if clock is None else clock
        self._retention = retention
        self._pid = 0
        self._state = "new"
        self._lock = threading.Lock()
        self._closed_by: ErrorInfo | None = None
        self.closed: Promise[ErrorInfo | None] = Promise()
        """Holds when the runtime has closed, with the crash that closed it, if one did."""
        self._unanswered: set[Promise[Any]] = set()
        """Replies that the supervisor owes: if it dies before it has handled the order, nobody else would answer."""
        self.env: Environment
        self.tree: RuntimeTree
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
        own_loop = host_loop is None and any(definition.async_callbacks for definition in self.registry)
        try:
            self._homes = self.make_homes(host_loop, own_loop=own_loop)
        except BaseException:
            self._state = "closed"
            raise
        self.plant(
            self._homes.environment(
                clock=self._clock, store=self.store, events=self.events, registry=self.registry, logger=self.logger
            )
        )
        try:
            self._homes.start_timers()
            self.tree.start().result()
            self._opened()
        except BaseException:
            self._state = "closed"
            self.tree.stop(1.0)
            self._homes.close(1.0, store_hangs=self.tree.store_hangs)
            raise
        atexit.register(self._close_at_exit)

    def make_homes(self, host_loop: asyncio.AbstractEventLoop | None, *, own_loop: bool) -> Homes:
        """Where its actors will run. Overridden where that is no thread."""
        return Homes(host_loop, own_loop=own_loop, clock=self._clock)

    def plant(self, env: Environment) -> None:
        """Make the tree for that environment. Nothing of it runs yet."""
        self.env = env
        env.retention = self._retention
        self.tree = RuntimeTree(env, self.table, self.dormitory, crashed=self._crashed, ended=self._ended)

    def _opened(self) -> None:
        with self._lock:  # with `_crashed`: either it finds us open, or we find what it left
            if self._closed_by is not None:
                raise self._not_open()
            self._state = "open"

    # --- crashing -----------------------------------------------------------------------------------------------------

    def _crashed(self, error: BaseException) -> None:
        """The tree cannot go on: this closes the runtime, and the next boot recovers. The first cause counts."""
        info = ErrorInfo.of(error)
        with self._lock:  # of a crash and a close, one closes; while opening, `open` raises
            closes = self._state == "open"
            if self._closed_by is None and self._state in {"opening", "open"}:
                self._closed_by = info
            if closes:
                self._state = "closing"
        if closes:
            self._interrupt_all(f"its supervisor crashed: {info}")
        self._refuse_unanswered()

    def _ended(self) -> None:
        """What a crash left of the tree has ended. We close on the tree's thread: at exit no other can be started."""
        if self._closed_by is not None and self._state == "closing":
            self._let_go(1.0)

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
        self._let_go(timeout_s)

    def close(self, drain_s: float = DRAIN_S, release_s: float = 2.0) -> DrainReport | None:
        """Drain, then let everything go. Idempotent. None when it was closed already."""
        if not self.begin_close():
            return None
        reply = self._drain_closing(drain_s)
        report = reply.result() if reply.wait(drain_s + 0.45) and reply.error() is None else None
        self.finish_close(release_s)
        return report

    async def drain_closing(self, timeout_s: float) -> None:
        """The drain of a close, awaited."""
        reply = self._drain_closing(timeout_s)

        def give_up() -> None:
            reply.try_fail(RuntimeNotOpen("the drain did not end in time"))

        self.env.timers.call_at(self.env.clock.now_s() + timeout_s + 0.45, give_up)
        try:
            await reply
        except RuntimeNotOpen:
            return

    def _drain_closing(self, timeout_s: float) -> Promise[DrainReport]:
        reply: Promise[DrainReport] = Promise()
        self._unanswered.add(reply)  # and so a crash answers it
        self.tree.tell_runs(DrainRuns(timeout_s, reply))
        return reply

    def _close_at_exit(self) -> None:
        self.close(EXIT_DRAIN_S, EXIT_RELEASE_S)

    def _let_go(self, timeout_s: float) -> None:
        self.tree.stop(max(timeout_s, 0.5) + RUNS_STOP_S)  # the store may have a commit to end
        self._homes.close(timeout_s, store_hangs=self.tree.store_hangs)
        self._refuse_unanswered()
        self._state = "closed"
        atexit.unregister(self._close_at_exit)
        self.events.emit(RuntimeClosed(escalated=self._closed_by))
        self.closed.try_set(self._closed_by)

    def _refuse_unanswered(self) -> None:
        """The supervisor is gone: who still waits for its answer will get none."""
        for reply in list(self._unanswered):
            reply.try_fail(self._not_open())

    def _interrupt_all(self, reason: str) -> None:
        """Nobody will end these any more: their waiters get RunInterrupted, never a hang."""
        for inc in (*self.table.values(), *self.dormitory.close()):
            status = RunStatus.PASSIVATED if inc.stage is Stage.PASSIVATED else RunStatus.SUSPENDED
            ending = Ending(status, None, reason)
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

    def tell_supervisor(self, message: object, *replies: Promise[Any]) -> None:
        """Give an order; the replies fail if there is nobody to take it."""
        self.check_process()
        runs = self.tree.runs if self._state == "open" else None
        if runs is not None:
            self._unanswered.update(replies)
            for reply in replies:
                reply.add_done_callback(self._unanswered.discard)
            try:
                runs.tell(message)
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
        """Start runs in one commit, with their first messages; those that exist already are sent theirs."""
        replies: list[Promise[Incarnation]] = [Promise() for _ in orders]
        self.tell_supervisor(StartRuns(tuple(orders), tuple(replies)), *replies)
        return [
            reply if order.first is None else self._with_first(order.first, reply)
            for order, reply in zip(orders, replies, strict=True)
        ]

    def _with_first(self, first: Outgoing, started: Promise[Incarnation]) -> Promise[Incarnation]:
        """Resolved when the first message is durable as well: it went in with the start record, or is sent now."""
        both: Promise[Incarnation] = Promise()

        def send(done: Promise[Incarnation]) -> None:
            error = done.error()
            if error is not None:
                both.try_fail(error)
                return
            inc = done.result(0)
            if inc.first_id == first.message_id:
                both.try_set(inc)
                return
            if not inc.durable:
                both.try_fail(NotDurable(inc.run_id))
                return
            sent: Promise[int] = Promise()
            sent.add_done_callback(lambda sent: _resolve(both, inc, sent.error()))
            self.tell_supervisor(SendMessage(inc.run_id, inc.incarnation, inc.inbox_limit, first, sent), sent)

        started.add_done_callback(send)
        return both

    def outgoing(
        self, definition: RunDefinition, message: object, message_id: str | None, expires_s: float | None = None
    ) -> Outgoing:
        """A durable message, checked at the door. Raises InvalidMessage, ValueError."""
        body, decoded = definition.encode_message(message)
        return Outgoing(
            checked_message_id(message_id, lambda: f"{self.env.rng.getrandbits(128):032x}"),
            body,
            decoded,
            expiry(expires_s, self.env.clock.wall_s()),
        )

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
        first: object = None,
        first_id: str | None = None,
    ) -> StartOrder:
        """Check everything at the door. `first` None is no message.

        Raises NotRegistered, InvalidRunId, InvalidInput, InvalidMessage, NotDurable, ValueError; nothing is started
        then.
        """
        definition = self.registry.of(run_class)
        if if_exists not in {"raise", "return", "replace", "retry_failed"}:
            msg = f"if_exists takes 'raise', 'return', 'replace' or 'retry_failed', not {if_exists!r}"
            raise ValueError(msg)
        policies, options = definition.overridden(restart_policy, save_policy, stop_policy)
        checked_id = self._new_id(definition) if run_id is None else check_run_id(run_id)
        if first is None and first_id is not None:
            raise ValueError("first_id without first: there is no message that it could be of. Nothing was started.")
        if first is not None and policies.save.durability == "none":
            raise NotDurable(checked_id)
        return StartOrder(
            run_id=checked_id,
            definition=definition,
            input=definition.encode_input(input),
            if_exists=if_exists,
            labels=checked_labels(labels),
            policies=policies,
            options=options,
            first=None if first is None else self.outgoing(definition, first, first_id),
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
        while True:
            inc = self.dormitory.find(run_id, lambda: sleeping_incarnation(self.env, run_id))
            if inc is not None:
                return inc
            stored = self.store.load(run_id)
            if stored is None:
                raise RunNotFound(run_id)
            # Else it was laid down between the two looks. A runtime that shuts down wakes nobody.
            if stored.claim.status is not RunStatus.PASSIVATED or self.dormitory.closed:
                return resting_incarnation(self.env, stored)

    def present(self, inc: Incarnation) -> Incarnation:
        """What has become of an incarnation that ended or rests; itself, if nothing has.

        One that rested may have been resumed by hand, or ended at rest. May read the store; never raises.
        """
        newer = self.table.get(inc.run_id) or self.dormitory.asleep(inc.run_id)
        if newer is not None:
            return newer if newer.incarnation == inc.incarnation else inc
        if inc.ending.result(0).status not in MAY_GO_ON or not inc.durable or self._state != "open":
            return inc
        try:
            stored = self.store.load(inc.run_id)
            if stored is None or stored.claim.incarnation != inc.incarnation or stored.claim.epoch == inc.claim.epoch:
                return inc
            return inc if stored.claim.status is RunStatus.RUNNING else self.find(inc.run_id)
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
        error = self.tree.store_error or self.env.store_trouble
        ratio = 0.0
        try:
            info = self.store.info()
            ratio, kind = info.used_ratio, info.kind
        except StoreError as raised:
            error, kind = error or ErrorInfo.of(raised), "?"
        leaked, starved = self.env.leaked_threads(), self._homes.thread_error()
        return Health(
            ok=error is None and leaked == 0 and ratio < FILLING_RATIO and starved is None,
            live_runs=len(self.table),
            store=kind,
            store_error=None if error is None else str(error),
            store_used_ratio=ratio,
            worker_threads=self._homes.worker_threads(),
            leaked_threads=leaked,
            thread_error=None if starved is None else str(ErrorInfo.of(starved)),
            event_failures=self.events.failures,
        )

    def check_open(self) -> None:
        """Raise RuntimeNotOpen, or RuntimeForked."""
        self.check_process()
        if self._state != "open":
            msg = f"this runtime is {self._state}"
            raise RuntimeNotOpen(msg)


def _resolve(both: Promise[Incarnation], inc: Incarnation, error: BaseException | None) -> None:
    if error is None:
        both.try_set(inc)
    else:
        both.try_fail(error)


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
