"""The runtime's own supervision tree: a store actor that always comes back, a run supervisor that never does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from executus.actors.actor import ActorRef, ExitReport
from executus.actors.child_spec import ChildSpec
from executus.actors.dormitory import Dormitory
from executus.actors.environment import Environment
from executus.actors.errors import ChildStartFailed, RestartIntensityReached
from executus.actors.events import StoreActorRestarted
from executus.actors.future import Promise
from executus.actors.incarnation import Incarnation, tell_if_alive
from executus.actors.messages import Probe, Recover, StoreCrashed, StoreRestarted
from executus.actors.outcomes import ErrorInfo
from executus.actors.policies import Backoff
from executus.actors.save_slot import StorePort
from executus.actors.store_actor import StoreActor
from executus.actors.supervisor import RunSupervisor
from executus.actors.tree import Supervisor
from executus.actors.tree_ref import SupervisorRef
from executus.stores import StoreUnavailable

STORE_BACKOFF: Final = Backoff(initial_s=0.05, factor=2.0, max_s=5.0, jitter=0.0)
STORE_STOP_S: Final = 2.0
"""What the store actor gets for the commits that it was told of."""
RUNS_STOP_S: Final = 0.2
"""What the run supervisor gets, which has nothing to do at its stop; only a subscriber of events can hold it up."""


class _Supervisor(Supervisor):
    crash_log_level = logging.DEBUG  # open() raises it, or the event RuntimeClosed tells of it


class RuntimeTree:
    """Starts, watches and stops the actors that every runtime has, and knows whom to tell.

        top      one_for_one, no restarts: what crashes here ends the tree, and the next boot recovers
        ├─ store     one_for_one, with backoff, any number of restarts: a store that is down fails no running run
        │  └─ actor      StoreActor
        └─ runs      RunSupervisor

    `crashed(error)` is called, perhaps twice, when the tree cannot go on: at once where it crashed. `ended()` when all
    that was left has ended after that. Both are called on the thread where it happens.
    """

    def __init__(
        self,
        env: Environment,
        table: dict[str, Incarnation],
        dormitory: Dormitory,
        *,
        crashed: Callable[[BaseException], object],
        ended: Callable[[], object],
    ) -> None:
        self.store_error: ErrorInfo | None = None
        """Why there is no store actor at present."""
        self.store_hangs = False
        """The store actor was given up on at the end. Its thread closes the store when it comes back."""
        # The present actors. Each written by the supervisor that starts it and read by all: who reads the former one
        # tells a dead actor, as it would have a moment earlier.
        self.store: ActorRef[StoreActor] | None = None
        self.runs: ActorRef[RunSupervisor] | None = None
        self._env = env
        self._table = table
        self._dormitory = dormitory
        self._crashed = crashed
        self._ended = ended
        self._ready: Promise[None] = Promise()
        self._top: SupervisorRef | None = None

    def start(self) -> Promise[None]:
        """Open the store, then find what the last process left. Holds when both are done; fails with what went wrong.

        Does not block.
        """
        store = ChildSpec("actor", self._start_store, stop="drain", stop_timeout_s=STORE_STOP_S)
        self._top = _Supervisor.start_on(
            self._env.tree_home,
            max_restarts=0,
            children=[
                ChildSpec(
                    "store",
                    (_Supervisor, (), {"children": [store], "max_restarts": None, "backoff": STORE_BACKOFF}),
                    kind="supervisor",
                    stop_timeout_s=None,
                ),
                ChildSpec("runs", self._start_runs, stop_timeout_s=RUNS_STOP_S),
            ],
            clock=self._env.clock,
            timers=self._env.timers,
            rng=self._env.rng,
            on_exit=self._top_exited,
        )
        return self._ready

    def tell_store(self, message: object) -> None:
        """Tell the store actor. If it is down, what it is not told now is offered again when it comes back."""
        if self.store is not None:
            tell_if_alive(self.store, message)

    def tell_runs(self, message: object) -> None:
        """Tell the run supervisor, if it lives."""
        if self.runs is not None:
            tell_if_alive(self.runs, message)

    def probe(self) -> Promise[None]:
        """Holds once the run supervisor and then the store actor have answered; never, where one is stuck or down."""
        supervisor_answered: Promise[None] = Promise()
        both_answered: Promise[None] = Promise()

        def ask_store(_: object) -> None:
            if self.store is not None:
                tell_if_alive(self.store, Probe(both_answered), control=True)

        supervisor_answered.add_done_callback(ask_store)
        if self.runs is not None:
            tell_if_alive(self.runs, Probe(supervisor_answered), control=True)
        return both_answered

    def begin_stop(self) -> Promise[bool]:
        """Stop the run supervisor, then the store behind all that it was told. Holds when they have ended."""
        assert self._top is not None
        return self._top.stop(block=False)

    def stop(self, timeout_s: float) -> None:
        """`begin_stop`, and wait; what has not ended when time is up is given up on. The tree has ended then."""
        if self._top is not None and not self.begin_stop().wait(timeout_s):
            self._top.abandon()

    # --- the store actor ----------------------------------------------------------------------------------------------

    def _start_store(self) -> ActorRef[StoreActor]:
        store = StoreActor.start_on(self._env.store_home, self._env, self.tell_runs, on_exit=self._store_exited)
        self.store = store
        # After `store` is the new one: what is sent again then must not go to the old one.
        store.started().add_done_callback(self._store_started)
        return store

    def _store_started(self, started: Promise[None]) -> None:
        if started.error() is None:
            self.store_error = None
            self.tell_runs(StoreRestarted())  # at the first start there is nobody to hear it

    def _store_exited(self, report: ExitReport) -> None:
        if report.abandoned:
            self.store_hangs = True
            self._env.store_home.submit(self._env.store.close)  # behind what it hangs in, on the thread that writes
        elif report.error is not None and self.runs is not None and self.runs.is_alive():
            self.store_error = ErrorInfo.of(report.error)
            self._env.events.emit(StoreActorRestarted(error=self.store_error))
            self.tell_runs(StoreCrashed(StoreUnavailable(f"the store actor crashed: {self.store_error}")))

    # --- the run supervisor -------------------------------------------------------------------------------------------

    def _start_runs(self) -> ActorRef[RunSupervisor]:
        runs = RunSupervisor.start_on(
            self._env.supervisor_home,
            self._env,
            StorePort(self.tell_store),
            self._table,
            self._dormitory,
            self._ready,
            on_exit=self._runs_exited,
        )
        self.runs = runs
        runs.tell(Recover())  # not in its on_start: then the store actor could not answer it yet
        return runs

    def _runs_exited(self, report: ExitReport) -> None:
        if report.error is not None:
            self._crashed(report.error)  # at once: who waits for a run shall not wait for the store's last commit, too

    # --- the end ------------------------------------------------------------------------------------------------------

    def _top_exited(self, report: ExitReport) -> None:
        if report.error is not None:
            cause = _first_cause(report.error)
            self._crashed(cause)
            self._ready.try_fail(cause)
            self._ended()


def _first_cause(error: BaseException) -> BaseException:
    """What went wrong below, without the supervisors that it went through."""
    while isinstance(error, (ChildStartFailed, RestartIntensityReached)) and error.__cause__ is not None:
        error = error.__cause__
    return error
