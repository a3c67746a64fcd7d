"""One seed: a disk, processes that live and die on it, clients with orders, and at the end the reckoning."""

from __future__ import annotations

import contextlib
import gc
import random
import traceback
from collections.abc import Callable
from typing import Any, Final, cast
from unittest import mock

import msgspec
import structlog

from executus.actors import journal_keeper
from executus.actors.core import Core
from executus.actors.dispatcher import TurnBudget
from executus.actors.environment import Environment
from executus.actors.errors import RuntimeNotOpen, SendFailed
from executus.actors.future import Promise
from executus.actors.handle import RunHandle
from executus.actors.incarnation import Ending, Incarnation, Stage
from executus.actors.outcomes import CancelRequested, Completed, KillRequested, StopRequested
from executus.actors.policies import Backoff, Policies, RestartPolicy, SavePolicy, StopPolicy
from executus.actors.retention import FOREVER, Keep, RetentionPolicy
from executus.actors.stored_runs import stored_outcome
from executus.stores import ENDED, RESUMABLE, TOLD_OF, Base, ExecutusError, MemoryStore, RunStatus, codec
from executus.stores.journal_rows import bases_of
from executus.stores.rows import SLOTS, Table, chunk_base, range_below, run_key, snapshot_key
from tests.simulation.clock import SimClock, SimTimers
from tests.simulation.invariants import Ledger, Violation
from tests.simulation.loop import SimLoop
from tests.simulation.scheduler import Home, ProcessDied, Scheduler, SimDispatcher
from tests.simulation.stacks import Stacks
from tests.simulation.store import FAULTS, FailingStore, Weather
from tests.simulation.workload import (
    ERRORS,
    LOST,
    OLD_REGISTRY,
    REGISTRY,
    Add,
    Deed,
    Deeds,
    GoOn,
    Job,
    Kinds,
    Sum,
    child_job,
    fold,
)
from tests.simulation.workload import Stage as Theatre

CHAOS_S: Final = 5.0
"""So long things go wrong."""
PATIENCE_S: Final = 400.0
"""So long, after that, everything may take to finish: backoffs and time-outs are seconds, hung steps wake up after a few hundred."""
LOGGER: Final = structlog.wrap_logger(None, processors=[lambda *_: (_ for _ in ()).throw(structlog.DropEvent)])


class SimCore(Core):
    """The shipped core in an environment without threads."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.store, runs=(), defaults=Policies(), logger=False, retention=process.world.retention)
        self.registry = process.registry
        self._process = process

    def boot(self, env: Environment) -> Promise[None]:
        self._state = "opening"
        self.plant(env)
        return self.tree.start()

    def is_open(self) -> None:
        self._opened()

    def closing(self) -> None:
        self._state = "closing"
        self._interrupt_all("the runtime was closed")
        self.tree.begin_stop()

    def is_closed(self) -> None:
        self._state = "closed"
        self._refuse_unanswered()

    def left_over(self) -> list[str]:
        """What is still held although every run has ended."""
        left = [f"run {run_id} in the table" for run_id in self.table]
        supervisor = cast("Any", self.tree.runs)._actor_weakref()
        if supervisor is not None:
            left += [f"commit {p.operations}" for p in supervisor.desk._pending.values()]
            left += [f"timer {key}" for key in supervisor.desk._timers]
            left += [f"ending {inc.run_id}" for inc in supervisor._endings]
        store = cast("Any", self.tree.store)._actor_weakref()
        if store is not None:
            left += [f"order {order}" for order in store._orders]
            left += [f"slot {slot.token}" for slot in (*store._slots, *store._due_of)]
        return left

    def pruning(self) -> Any:
        """The supervisor's retention, while it lives."""
        supervisor = None if self.tree.runs is None else cast("Any", self.tree.runs)._actor_weakref()
        return None if supervisor is None else supervisor.pruning

    def _crashed(self, error: BaseException) -> None:
        if not self._process.dead and self._state != "opening":
            self._process.world.ledger.violated(
                f"the tree crashed: {error}\n{''.join(traceback.format_exception(error))}"
            )

    def _ended(self) -> None:
        """Nothing: the violation is noted, and this process goes on as a daemon with a closed runtime does."""


class Process:
    """One life of the simulated daemon."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.dead = False
        self.open = False
        self.closing = False
        self.handles: dict[str, list[RunHandle[Any]]] = {}
        self.orders: list[tuple[str, Promise[Any]]] = []
        self.monitors: list[list[int | Incarnation]] = []
        self._launched: dict[Any, float] = {}
        scheduler, rng = world.scheduler, world.rng
        self.registry = OLD_REGISTRY if world.chaos and number > 1 and rng.random() < 0.1 else REGISTRY
        homes = {
            name: Home(name, self, pool=name in {"workers", "clients"}, weight=rng.choice((0.2, 1.0, 1.0, 5.0)))
            for name in ("tree", "store", "supervisor", "timers", "loop", "workers", "clients")
        }
        self.clients = homes["clients"]
        scheduler.homes += homes.values()
        self.store = FailingStore(world.disk, self, scheduler, world.weather, world.ledger)
        self.loop = SimLoop(scheduler, homes["loop"], world.ledger.violated)
        self.core = SimCore(self)
        self.core.events.subscribe(self._event)
        self.core.events.subscribe(self._stumble)

        def dispatcher(name: str) -> SimDispatcher:
            return SimDispatcher(scheduler, homes[name], homes["workers"], world.budget)

        self.env = Environment(
            clock=world.clock,
            timers=SimTimers(scheduler, homes["timers"], world.clock),
            rng=rng,
            workers=dispatcher("workers"),
            tree_home=dispatcher("tree"),
            store_home=dispatcher("store"),
            async_home=dispatcher("loop"),
            supervisor_home=dispatcher("supervisor"),
            loop=self.loop,
            store=self.store,
            events=self.core.events,
            registry=self.registry,
            logger=LOGGER,
            pause=lambda seconds, wake: scheduler.park(scheduler.now_s + seconds, wake),
            stand_aside=lambda: contextlib.nullcontext(lambda: None),
            backlog=lambda: bool(homes["workers"].queue),
            gather=lambda: scheduler.park(scheduler.now_s + 0.0005, None),
            give_way=lambda: None,
            stack_of=lambda _ident: "",
            leaked_threads=lambda: 0,
        )

    # --- life and death -----------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Open the store and recover. On the clients' home."""
        self.world.ledger.note("process", f"boot {self.number}")
        self.world.clock.opened_at_s = self.env.steady_at(0.0)
        self.core.boot(self.env).add_done_callback(self._booted)

    def _booted(self, ready: Promise[None]) -> None:
        if self.dead:
            return
        error = ready.error()
        if error is not None:
            self.die(f"it could not open: {error!r}")
            return
        self.core.is_open()
        self.open = True
        self.world.ledger.note("process", f"{self.number} is open")
        self.clients.queue.append(self._find_handles)

    def _find_handles(self) -> None:
        for run_id in self.world.jobs:
            with contextlib.suppress(ExecutusError):
                self.hold(self.core.find(run_id))

    def die(self, why: str) -> None:
        """The process is gone at this very moment; the disk stays."""
        if self.dead:
            return
        self.dead = True
        self.world.ledger.note("process", f"{self.number} died: {why}")
        self.world.disk.close()
        self.world.scheduler.buried(self)
        self.loop.bury()
        self.world.process_died()

    def close(self, drain_s: float) -> None:
        """Drain, let go, end: the orderly way."""
        if self.closing or not self.open:
            return
        self.closing = True
        self.world.ledger.note("process", f"{self.number} drains for {drain_s:.2f}")
        asked_s = self.world.scheduler.now_s

        def drained(reply: Promise[Any]) -> None:
            if self.dead:
                return
            took_s = self.world.scheduler.now_s - asked_s
            self.world.ledger.note(
                "process", f"{self.number} drained in {took_s:.3f}: {reply.error() or reply.result(0)}"
            )
            if not self.world.scheduler.lag_p:
                self.world.ledger.check(took_s <= drain_s + 0.5, f"a drain of {drain_s} s took {took_s} s")
            self.clients.queue.append(self._let_go)

        reply = self.core.drain(drain_s)
        self.orders.append(("drain", reply))
        reply.add_done_callback(drained)

    def _let_go(self) -> None:
        self.core.closing()
        self.world.scheduler.call_at(self.world.scheduler.now_s + 1.0, self.world.home, self._gone)

    def _gone(self) -> None:
        if not self.dead:
            self.core.is_closed()
            self.check_answers()
            self.die("closed")

    # --- clients ------------------------------------------------------------------------------------------------------

    def hold(self, inc: Incarnation) -> RunHandle[Any]:
        """Get a handle, and a monitor with it."""
        handle: RunHandle[Any] = RunHandle(self.core, inc)
        self.handles.setdefault(inc.run_id, []).append(handle)
        self.monitor(handle)
        return handle

    def monitor(self, handle: RunHandle[Any]) -> None:
        """One more monitor; each must be told once."""
        inc = handle._current()
        counted: list[int | Incarnation] = [0, inc]
        self.monitors.append(counted)

        def told(ending: Ending) -> None:
            counted[0] = cast("int", counted[0]) + 1
            if not self.dead:
                self.world.ledger.told(self, inc, ending)

        handle.monitor(told)

    def order(self, what: str, make: Callable[[], Promise[Any]], then: Callable[[Any], None] | None = None) -> None:
        """Give an order and remember its promise."""
        try:
            promise = make()
        except ExecutusError as error:
            self.world.ledger.note("client", f"{what}: {type(error).__name__}: {error}")
            return
        except ProcessDied:
            raise
        self.world.ledger.note("client", what)
        self.orders.append((what, promise))

        def answered(done: Promise[Any]) -> None:
            if self.dead:
                return
            error = done.error()
            text = f"{type(error).__name__}: {error}" if error is not None else repr(done.result(0))
            self.world.ledger.note("client", f"{what} -> {text[:120]}")
            if error is not None and not isinstance(error, (ExecutusError, ValueError)):
                self.world.ledger.violated(f"{what} was answered with {error!r}")
            if error is None and then is not None:
                then(done.result(0))

        promise.add_done_callback(answered)

    def check_answers(self) -> None:
        """Nobody waits any more who cannot be answered."""
        ledger = self.world.ledger
        for what, promise in self.orders:
            ledger.check(promise.done(), f"never answered: {what}")
        for count, inc in self.monitors:
            ending = cast("Incarnation", inc).ending
            ledger.check(
                count == 1 or not ending.done(),
                f"a monitor of {cast('Incarnation', inc).run_id} was told {count} times",
            )

    def tempt(self, run_id: str) -> None:
        """A run is being laid down: now and then somebody wants something of it at this very moment."""
        if run_id in self.handles and self.world.rng.random() < 0.3:
            want = self.world.rng.choice((World._tell, World._ask, World._query, World._durable, World._kill))
            self.clients.queue.append(lambda: want(self.world, run_id))

    # --- for the ledger -----------------------------------------------------------------------------------------------

    def may_be_unproven(self, inc: Incarnation) -> bool:
        """Whether an ending may be reported that the disk does not have yet."""
        now_s, weather = self.world.scheduler.now_s, self.world.weather
        if inc.policies.stop.grace_s == 0 and inc.killed_by is not None:
            return True  # no time to wait for its tombstone
        return self.closing or not weather.is_fair or now_s - weather.broken_at_s < 10.0 or inc.stage is not Stage.ENDED

    def launched_s(self, inc: Incarnation) -> float:
        """Since when the present attempt is there."""
        return self._launched.setdefault(inc.slot, self.world.scheduler.now_s)

    def _event(self, event: Any) -> None:
        if not self.dead:
            self.world.ledger.event(event)
            self.world.scheduler.switch_point()

    def _stumble(self, _event: Any) -> None:
        if self.world.rng.random() < 0.02:
            raise ValueError("simulated: a subscriber that raises")


class World:
    """One seed's whole story."""

    def __init__(self, seed: int, stacks: Stacks) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.scheduler = Scheduler(
            rng, stacks, switch_p=rng.choice((0.0, 0.02, 0.1)), lag_p=rng.choice((0.0, 0.0, 0.0, 0.02))
        )
        self.clock = SimClock(self.scheduler)
        self.budget = TurnBudget(messages=rng.choice((1, 1, 4, 64)))
        self.retention = _retention(rng)
        self.disk = MemoryStore()
        self.weather = Weather()
        self.ledger = Ledger(self.disk, lambda: self.scheduler.now_s)
        self.deeds = Deeds()
        self.jobs: dict[str, Job] = {}
        self.policies: dict[str, Policies] = {}
        self.kinds: dict[str, str] = {}
        self.told: dict[str, set[str]] = {}
        self.uncertain: dict[str, dict[str, tuple[tuple[str, int], Process]]] = {}
        """Durable messages of which their senders do not know (yet) whether they were taken, by run.

        For which life, and in which process: when that is dead, or says so, they are sent again.
        """
        self.heard_durably: dict[tuple[str, int], set[str]] = {}
        self.home = Home("world", None, pool=False, weight=1.0)
        self.scheduler.homes.append(self.home)
        self.scheduler.before_time_passes = self._before_time_passes
        self.scheduler.failed = lambda error, where: self.ledger.violated(f"a turn at {where} raised {error!r}")
        self.process: Process | None = None
        self.processes = 0
        self.chaos = True
        self.sleepy = rng.random() < 0.4
        """Whether its runs wait much."""
        self._names = 0
        self._starts: dict[str, Callable[[World], None]] = {}

    # --- the story ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play it. Raises Violation with the seed and its log."""
        Theatre.world = self
        collects = gc.isenabled()
        gc.disable()  # what a weak reference still holds must not depend on what else this process does
        try:
            with mock.patch.object(journal_keeper, "GATHER_ROWS", 3):  # few saves, and some gather
                self._play()
        except Violation:
            raise
        except Exception as error:
            self.ledger.violated(f"{type(error).__name__}: {error}")
            raise Violation(self.report()) from error
        finally:
            if self.process is not None and not self.process.dead:
                self.chaos = False
                self.process.die("the end")
                with contextlib.suppress(Exception):
                    self.scheduler.run(self.scheduler.now_s)
            if collects:
                gc.enable()
        if self.ledger.violations:
            raise Violation(self.report())

    def _play(self) -> None:
        self._boot()
        self._plan()
        begin_s = self.scheduler.now_s
        self.scheduler.run(begin_s + CHAOS_S)
        self._calm()
        self.scheduler.run(self.scheduler.now_s + PATIENCE_S)
        self._reckon()

    def report(self) -> str:
        """The log, to be read."""
        lines = [f"{at_s - 1000:9.4f}  {who:10} {what}" for at_s, who, what in self.ledger.notes]
        return "\n".join(
            [
                f"seed {self.seed}: {len(self.ledger.violations)} violations",
                *lines,
                "",
                *self.ledger.violations,
                f"replay: python -m tests.simulation --seed {self.seed}",
            ]
        )

    def process_died(self) -> None:
        """Start another one, soon."""
        self.ledger.unsaved.clear()
        if self.chaos:
            self.scheduler.call_at(self.scheduler.now_s + self.rng.random(), self.home, self._boot)

    def _boot(self) -> None:
        if self.process is not None and not self.process.dead:
            return
        self.processes += 1
        self.ledger.boot = self.processes
        self.process = Process(self, self.processes)
        self.process.clients.queue.append(self.process.boot)

    def _before_time_passes(self) -> None:
        if not self.scheduler.lag_p:
            healthy_since_s = self.weather.broken_at_s + 2.0 if self.weather.is_fair else self.scheduler.now_s
            self.ledger.before_time_passes(self.process, healthy_since_s)
            self._check_wanted(healthy_since_s)

    def _check_wanted(self, healthy_since_s: float) -> None:
        """No time passes while somebody wants something of a run that rests."""
        process = self.process
        if process is None or process.dead or healthy_since_s >= self.scheduler.now_s:
            return
        for inc in process.core.dormitory.all():
            wanted = inc.causes or inc.letters or inc.waiting_for_begin
            self.ledger.check(not wanted, f"{inc.run_id} rests, and is wanted: {wanted}")

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        rng = self.rng
        for number in range(rng.randint(2, 4)):
            self._at(rng.random() * 2.0, self._start_order(f"r{number}"))
        for _ in range(rng.randint(6, 14)):
            self._at(0.1 + rng.random() * (CHAOS_S - 0.2), rng.choice(ACTIONS))
        for _ in range(rng.choice((0, 1, 1, 2))):
            self._at(0.1 + rng.random() * (CHAOS_S - 0.2), World._storm)
        for _ in range(rng.choice((0, 0, 1, 2))):
            self._at(0.1 + rng.random() * (CHAOS_S - 0.2), World._death)

    def _at(self, after_s: float, action: Callable[[World], None]) -> None:
        def act() -> None:
            if not self.chaos:
                return
            process = self.process
            if action in WORLDLY:
                action(self)
            elif process is not None and process.open and not process.dead:
                process.clients.queue.append(lambda: action(self))

        self.scheduler.call_at(self.scheduler.now_s + after_s, self.home, act)

    def _start_order(self, run_id: str) -> Callable[[World], None]:
        rng = self.rng
        kind = rng.choice(("SyncRun", "SyncRun", "AsyncRun", "AsyncRun", "MutableRun", "MixedRun"))
        goal = rng.randint(3, 8)
        children: tuple[str, ...] = ()
        restart = rng.choice(("transient", "transient", "transient", "transient", "permanent", "temporary"))
        if rng.random() < 0.4:
            children = tuple(rng.sample(("s1", "s2k", "a1", "a22k"), rng.randint(1, 2)))
        self.jobs[run_id] = job = Job(goal, rng.randrange(1000), children)
        self.kinds[run_id] = kind
        self._make_deeds(run_id, goal)
        for key in children:
            self._make_deeds(f"{run_id}/{key}", child_job(0, key).goal, share=0.3)
        save = rng.choice(
            (
                SavePolicy(every_s=0.0),
                SavePolicy(every_s=0.3),
                SavePolicy(every_s=0.5, every_steps=2),
                SavePolicy(),
                SavePolicy(durability="sync"),
                SavePolicy(durability="sync"),
                SavePolicy(durability="exit"),
                SavePolicy(durability="none") if not children else SavePolicy(),
            )
        )
        if save.durability != "none":
            save = msgspec.structs.replace(save, passivate_after_s=rng.choice((None, 0.02, 0.02, 0.1, 0.5)))
        self.policies[run_id] = policies = Policies(
            RestartPolicy(
                kind=restart,
                max_restarts=rng.choice((3, 6)),
                within_s=20.0,
                backoff=Backoff(initial_s=rng.choice((0.01, 0.1, 0.3)), max_s=1.0),
                fatal=("MemoryError",),
            ),
            save,
            StopPolicy(
                grace_s=rng.choice((0.0, 0.2, 0.5)),
                run_timeout_s=rng.choice((None, None, None, 3.0)),
                idle_timeout_s=rng.choice((None, 0.3, 0.6)),
                result_grace_s=rng.choice((0.2, 1.0)),
            ),
        )

        first_id = self._name(run_id) if rng.random() < 0.3 and save.durability != "none" else None

        def start(world: World) -> None:
            process = world.process
            assert process is not None
            if_exists = rng.choice(("return", "return", "raise", "replace", "retry_failed"))

            def make() -> Promise[Any]:
                order = process.core.order(
                    Kinds.by_name[kind],
                    job,
                    run_id=run_id,
                    if_exists=if_exists,
                    labels=None,
                    restart_policy=policies.restart,
                    save_policy=policies.save,
                    stop_policy=policies.stop,
                    first=None if first_id is None else Add(first_id),
                    first_id=first_id,
                )
                return process.core.start([order])[0]

            process.order(
                f"start {run_id} {kind} {save.durability} {save.every_s} {policies.restart.kind} ({if_exists})",
                make,
                started,
            )

        def started(inc: Incarnation) -> None:
            process = self.process
            assert process is not None
            row = self.ledger.rows.get(run_id)
            if inc.durable:
                self.ledger.check(
                    (row is not None and row.incarnation >= inc.incarnation)
                    or (run_id, inc.incarnation) in self.ledger.deleted,
                    f"{run_id} was reported as started, the disk has {row}",
                )
            process.hold(inc)

        self._starts[run_id] = start
        return start

    def _make_deeds(self, run_id: str, goal: int, share: float = 1.0) -> None:
        rng = self.rng
        of = self.deeds.of
        for _ in range(rng.randint(0, 4)):
            if rng.random() > share:
                continue
            place: int | str = rng.choice((*range(goal), *range(goal), "begin", "receive", "stopping"))
            kind = rng.choice(
                ("raise", "raise", "sleep", "sleep", "hang", "work", "work", "wait", "until", "waitmsg", "blot")
            )
            if self.sleepy and rng.random() < 0.5:
                kind = rng.choice(("wait", "until", "waitmsg"))
            if kind in {"wait", "until", "waitmsg", "blot"}:
                place = f"{'blot' if kind == 'blot' else 'wait'}{rng.randrange(goal)}"
            elif rng.random() < 0.03:
                kind = "poison"
            seconds = {
                "sleep": rng.choice((0.2, 2.0, 300.0)),
                "hang": rng.choice((0.7, 3.0, 300.0)),
                "work": rng.random() * 0.5,
                "wait": rng.random() * 2,
                "until": rng.random() * 2 - 0.1,
            }
            of[run_id, place] = Deed(
                kind,
                seconds.get(kind, 0.0),
                rng.choice(ERRORS) if kind == "raise" else ValueError,
                rng.choice((1, 1, 2, 5)),
            )
        if rng.random() < 0.7 * share:  # slow it down, so that something can happen to it
            for at in range(goal):
                of.setdefault((run_id, at), Deed("work", rng.random() * 0.4, times=100))

    def _storm(self) -> None:
        rng, weather = self.rng, self.weather
        weather.fault_p = rng.choice((0.2, 0.5, 1.0))
        weather.faults = FAULTS if rng.random() < 0.5 else (rng.choice(FAULTS),)
        weather.read_fault_p = rng.choice((0.0, 0.0, 0.3))
        weather.slow_s = rng.choice((0.0, 0.0, 0.01, 0.5))
        self.ledger.note("weather", f"{weather}")
        self.scheduler.call_at(self.scheduler.now_s + rng.choice((0.1, 0.5, 2.0)), self.home, self._fair)

    def _fair(self) -> None:
        self.weather.calm()
        self.ledger.note("weather", "fair")

    def _death(self) -> None:
        process = self.process
        how = self.rng.choice(("now", "before", "after", "soon"))
        if how in {"before", "after"}:
            self.weather.death = how  # type: ignore[assignment]
        elif process is not None:
            if how == "now":
                process.die("killed")
            else:
                home = self.rng.choice([home for home in self.scheduler.homes if home.owner is process] or [self.home])
                home.queue.append(lambda: process.die("killed in a turn"))

    def poisoned(self) -> None:
        """A callback takes the whole process down."""
        process = self.process
        if process is not None:
            process.die("poisoned")
        raise ProcessDied

    def _jump(self) -> None:
        by_s = self.rng.choice((-3600.0, -1.0, 0.5, 3600.0))
        self.clock.wall_offset_s += by_s
        self.ledger.note("wall clock", f"jumps by {by_s:g} s")

    # --- what clients do ----------------------------------------------------------------------------------------------

    def _handle(self, run_id: str | None = None) -> RunHandle[Any] | None:
        process = self.process
        assert process is not None
        if not process.handles:
            return None
        return self.rng.choice(process.handles[run_id or self.rng.choice(list(process.handles))])

    def _name(self, run_id: str) -> str:
        self._names += 1
        name = f"m{self._names}"
        self.told.setdefault(run_id, set()).add(name)
        return name

    def _tell(self, run_id: str | None = None) -> None:
        handle, process = self._handle(run_id), self.process
        assert process is not None
        if handle is None:
            return
        name = self._name(handle.run_id)
        try:
            handle.tell(GoOn() if self.rng.random() < 0.3 else Add(name, quiet=self.rng.random() < 0.2))
        except ExecutusError as error:
            self.ledger.note("client", f"tell {handle.run_id}: {type(error).__name__}")
        else:
            self.ledger.note("client", f"tell {handle.run_id} {name}")

    def _send(self) -> None:
        handle, process = self._handle(), self.process
        assert process is not None
        if handle is None:
            return
        uncertain = self.uncertain.setdefault(handle.run_id, {})
        names = sorted(name for name, (_, sender) in uncertain.items() if sender.dead)
        if names and self.rng.random() < 0.7:
            name = self.rng.choice(names)
            life, _ = uncertain.pop(name)
            if life != (handle.run_id, handle._inc.incarnation):
                return  # another life's: to this one it is new
        else:
            name = self._name(handle.run_id)
            self.ledger.passing |= {name} if self.rng.random() < 0.2 else set()
        self._send_message(process, handle, name)

    def _send_message(self, process: Process, handle: RunHandle[Any], name: str) -> None:
        life = (handle.run_id, handle._inc.incarnation)
        quiet = name in self.ledger.passing and name[-1] in "02468"
        expires_s = 0.5 if name in self.ledger.passing and not quiet else None

        def answered(done: Promise[Any]) -> None:
            error = done.error()
            if process.dead or isinstance(error, (RuntimeNotOpen, SendFailed)):
                return
            del self.uncertain[handle.run_id][name]
            if error is None:
                self.ledger.acknowledge_message(life, name)
            else:
                self.ledger.refused.add(name)

        def make() -> Promise[Any]:
            promise = handle._send(Add(name, quiet=quiet), name, expires_s)[1]
            self.uncertain[handle.run_id][name] = (life, process)
            promise.add_done_callback(answered)
            return promise

        process.order(f"send {handle.run_id} {name}{' quiet' if quiet else ''}", make)

    def _ask(self, run_id: str | None = None) -> None:
        handle, process = self._handle(run_id), self.process
        assert process is not None
        if handle is None:
            return
        name = self._name(handle.run_id)

        def answered(value: object) -> None:
            self.ledger.check(value == name, f"the ask {name} was answered with {value!r}")
            inc = handle._inc
            if inc.policies.save.durability == "sync":
                self.heard_durably.setdefault((inc.run_id, inc.incarnation), set()).add(name)

        process.order(f"ask {handle.run_id} {name}", lambda: handle._ask(Add(name)), answered)

    def _query(self, run_id: str | None = None) -> None:
        handle, process = self._handle(run_id), self.process
        assert process is not None
        if handle is not None:
            question = self.rng.choice(("at", "at", "raise"))
            process.order(
                f"query {handle.run_id}",
                lambda: handle._query(question),
                lambda at: self.ledger.check(at >= 0, f"a query has changed the state of {handle.run_id}"),
            )

    def _durable(self, run_id: str | None = None) -> None:
        handle, process = self._handle(run_id), self.process
        assert process is not None
        if handle is None:
            return
        life = (handle._inc.run_id, handle._inc.incarnation)
        process.order(
            f"durable {handle.run_id}", handle._durable, lambda seq: self.ledger.acknowledge(life, seq, "durable()")
        )

    def _stop(self) -> None:
        handle, process = self._handle(), self.process
        assert process is not None
        if handle is not None:
            process.order(f"stop {handle.run_id}", lambda: handle._end(StopRequested()))

    def _cancel(self) -> None:
        handle, process = self._handle(), self.process
        assert process is not None
        if handle is not None:
            process.order(f"cancel {handle.run_id}", lambda: handle._end(CancelRequested("client", "because")))

    def _kill(self, run_id: str | None = None) -> None:
        handle, process = self._handle(run_id), self.process
        assert process is not None
        if handle is not None:
            process.order(f"kill {handle.run_id}", lambda: handle._end(KillRequested("client", "because")))

    def _resume(self) -> None:
        process = self.process
        assert process is not None
        if process.handles:
            self._resume_run(self.rng.choice(list(process.handles)), from_input=self.rng.random() < 0.15)

    def _resume_run(self, run_id: str, *, from_input: bool = False) -> None:
        process = self.process
        assert process is not None
        self.ledger.resumable.add(run_id)
        what = f"resume {run_id}{' from input' if from_input else ''}"
        process.order(what, lambda: process.core.resume(run_id, from_input=from_input), process.hold)

    def _start_again(self) -> None:
        run_id = self.rng.choice(list(self._starts))
        self._starts[run_id](self)

    def _monitor(self) -> None:
        handle, process = self._handle(), self.process
        assert process is not None
        if handle is not None:
            process.monitor(handle)

    def _glance(self) -> None:
        """Look at a run and let go of it: of a passivated one nothing is left in memory."""
        process = self.process
        assert process is not None
        with contextlib.suppress(ExecutusError):
            process.core.find(self.rng.choice(list(self.jobs))).view()

    def _close(self) -> None:
        assert self.process is not None
        self.process.close(self.rng.choice((0.0, 0.3, 2.0)))

    # --- the end ------------------------------------------------------------------------------------------------------

    def _calm(self) -> None:
        """Faults stop; whatever can finish is asked to."""
        self.weather.calm()
        self.deeds.over = True
        self.retention = msgspec.structs.replace(self.retention, every_s=60.0)
        pruning = self.process.core.pruning() if self.process is not None and self.process.open else None
        if pruning is not None:
            pruning._policy = self.retention
        self.ledger.note("world", "faults stop")
        process = self.process
        if process is not None and (process.closing or process.registry is OLD_REGISTRY) and not process.dead:
            process.die("was closing, or old code, when the faults stopped")
        self.chaos = False
        self._boot()
        for after_s in (5.0, 10.0, 320.0, 330.0, 340.0, 350.0):  # once more after hung steps have come back
            self.scheduler.call_at(self.scheduler.now_s + after_s, self.home, self._encourage)

    def _encourage(self) -> None:
        process = self.process
        if process is None or process.dead:
            self._boot()
        elif process.open:
            self._check_sleepers()
            process.clients.queue.append(self._finish_all)

    def _check_sleepers(self) -> None:
        """The weather has been fair for seconds: whose time has come, or who has news, rests no more."""
        disk, now_s = self.disk, self.scheduler.now_s
        for stored in disk.scan():
            claim, record = stored.claim, stored.record
            if claim.status is not RunStatus.PASSIVATED or record is None:
                continue
            loaded, messages = disk.load_snapshot(claim.run_id), disk.messages(claim.run_id)
            consumed = 0 if loaded is None else loaded.snapshot.consumed
            late = [due for due in claim.due_times if not due.by_wall and due.at_s < self.clock.opened_at_s + now_s - 3]
            ends = [
                child_id
                for child_id, link in disk.children(claim.run_id)
                if (link.incarnation, link.begun) == (claim.incarnation, claim.begun)
                and (child := disk.load(child_id)) is not None
                and child.claim.status in TOLD_OF
            ]
            parent = None if record.parent is None else disk.load(record.parent.run_id)
            orphan = record.parent is not None and (
                parent is None or parent.claim.incarnation != record.parent.incarnation or parent.claim.status in ENDED
            )
            news = [*late, *ends, *(message.number for message in messages if message.number > consumed)]
            self.ledger.check(not (news or orphan), f"{claim.run_id} rests, and has news: {news}, {orphan=}")

    def _finish_all(self) -> None:
        process = self.process
        assert process is not None
        for run_id, row in list(self.ledger.rows.items()):
            if row.status in RESUMABLE and not self._spent(run_id, row.status):
                self._resume_run(run_id)
        passivated = [run_id for run_id, row in self.ledger.rows.items() if row.status is RunStatus.PASSIVATED]
        for inc in dict.fromkeys([*process.core.table.values(), *map(process.core.find, passivated)]):
            handle = process.hold(inc)
            if inc.policies.restart.kind == "permanent":
                process.order(f"cancel {inc.run_id}", lambda h=handle: h._end(CancelRequested("world", "the end")))  # type: ignore[misc]
            else:
                with contextlib.suppress(ExecutusError):
                    handle.tell(GoOn())

    def _spent(self, run_id: str, status: RunStatus) -> bool:
        policies = self.policies.get(run_id)
        return status is RunStatus.FAILED and policies is not None and policies.restart.kind == "permanent"

    def _reckon(self) -> None:
        """Nothing is left, and everything is right."""
        ledger, process = self.ledger, self.process
        assert process is not None
        if process.dead or not process.open:
            ledger.violated("no process is up at the end")
            return
        process.check_answers()
        for left in process.core.left_over():
            ledger.violated(f"left over at the end: {left}")
        for timer in self.scheduler.timers_of(process):
            if timer is process.core.pruning().timer:
                continue  # sweeps go on for ever
            ledger.violated(
                f"left over at the end: a timer for {timer.when_s - 1000:.3f} at {timer.home.name}: {timer.fn}"
            )
        ledger.check(self.scheduler.parked_of(process) == 0, "left over at the end: a parked stack")
        for run_id, row in ledger.rows.items():
            self._check_end(run_id, row.incarnation, row.status)

    def _check_end(self, run_id: str, incarnation: int, status: RunStatus) -> None:
        ledger = self.ledger
        ledger.check(
            status in ENDED and (status is not RunStatus.FAILED or self._spent(run_id, status)),
            f"{run_id} is recoverable and did not finish: {status.value}",
        )
        left_over = chunks_that_no_generation_needs(self.disk, run_id)
        ledger.check(not left_over, f"{run_id}: chunks that no generation needs are left: {left_over}")
        stored = self.disk.load(run_id)
        assert stored is not None
        assert stored.record is not None
        definition = REGISTRY.named(stored.record.run_type)
        assert definition is not None
        outcome = stored_outcome(cast("Any", _Only(self.disk)), stored.claim, definition)
        report = ledger.reports.get((run_id, incarnation))
        rested = report is None or report.ending.outcome is None or report.ending.status is RunStatus.QUARANTINED
        if report is not None and not rested and report.proven and outcome is not None:
            ledger.check(
                type(outcome) is type(report.ending.outcome),
                f"{run_id}: reported {report.ending.outcome}, stored {outcome}",
            )
        if isinstance(outcome, Completed):
            self._check_result(run_id, incarnation, definition.decode_input(stored.record.input), outcome.result)

    def _check_result(self, run_id: str, incarnation: int, job: Job, result: Sum) -> None:
        ledger = self.ledger
        ledger.check(result.acc == fold(job), f"{run_id} came to {result.acc}, a plain fold to {fold(job)}")
        ledger.check(len(set(result.heard)) == len(result.heard), f"{run_id} heard something twice: {result.heard}")
        ledger.check(
            set(result.heard) <= self.told.get(run_id, set()), f"{run_id} heard what nobody told: {result.heard}"
        )
        life = (run_id, incarnation)
        ledger.heard(life, result.heard)
        if life not in ledger.restarted_from_input:
            # What was acknowledged before the last but one callback was called lay in the mailbox before the last.
            due = {name for name, at in ledger.sent.get(life, {}).items() if at < ledger.calls[life] - 1}
            left = due - ledger.passing - set(result.heard)
            ledger.check(not left, f"{run_id} has not heard {left}, which were acknowledged in time")
        missing = self.heard_durably.get((run_id, incarnation), set()) - set(result.heard)
        ledger.check(
            not missing or (run_id, incarnation) in ledger.restarted_from_input,
            f"{run_id} answered asks durably and has forgotten them: {missing}",
        )
        ledger.check(
            {key for key, _ in result.ended} == set(job.children), f"{run_id} was told of the ends of {result.ended}"
        )
        for key, value in result.ended:
            right = fold(child_job(job.salt, key))
            ledger.check(value in {right, LOST}, f"{run_id}: child {key} came to {value}, a plain fold to {right}")


def chunks_that_no_generation_needs(disk: MemoryStore, run_id: str) -> list[bytes]:
    """Keys of journals' rows."""
    key = run_key(run_id)
    needed: frozenset[Base] = frozenset()
    for slot in SLOTS:
        data = disk._tables.get(Table.SNAPSHOTS, snapshot_key(key, slot))
        if data is not None:
            needed |= bases_of(codec.decode_snapshot(data, snapshot_key(key, slot)))
    rows = disk._tables.page(Table.JOURNALS, *range_below(key), 1 << 62)
    return [row for row, _ in rows if chunk_base(row) not in needed]


def _retention(rng: random.Random) -> RetentionPolicy:
    """Half the worlds delete whatever they may, soon and often."""
    if rng.random() < 0.5:
        return RetentionPolicy()
    keeps = [Keep(rng.choice((0.0, 0.0, 0.3, 2.0)), rng.choice((None, 0, 1))) for _ in range(5)]
    return RetentionPolicy(
        completed=keeps[0],
        failed=rng.choice((FOREVER, keeps[1])),
        killed=keeps[2],
        cancelled=keeps[3],
        timed_out=keeps[4],
        every_s=rng.choice((0.05, 0.3)),
        max_per_sweep=rng.choice((1, 2, 500)),
    )


class _Only:
    """As much of an environment as reading an outcome needs."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store


ACTIONS: Final[tuple[Callable[[World], None], ...]] = (
    World._tell,
    World._tell,
    World._send,
    World._send,
    World._send,
    World._send,
    World._ask,
    World._ask,
    World._ask,
    World._query,
    World._durable,
    World._durable,
    World._stop,
    World._stop,
    World._cancel,
    World._kill,
    World._kill,
    World._resume,
    World._resume,
    World._resume,
    World._start_again,
    World._start_again,
    World._monitor,
    World._glance,
    World._close,
    World._jump,
)
WORLDLY: Final = frozenset({World._storm, World._death, World._jump})
