"""Where a supervisor's children are: started in order, stopped backwards, each at its own pace where it may.

What follows an end, or a start that fails, is the keeper's to say (tree.py); here it is only carried out.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from typing import Any, Protocol, assert_never

from executus.actors.actor import ActorEnded, ActorRef, ExitReport
from executus.actors.child import (
    Child,
    ChildExited,
    ChildStarted,
    DelayElapsed,
    InOrder,
    News,
    StartedFor,
    StopTimedOut,
)
from executus.actors.child_spec import ChildSpec, How, checked_specs, how_ended
from executus.actors.clock import Clock, TimerHandle, Timers, default_timers, log
from executus.actors.tree_ref import ChildCounts, ChildState, SupervisorRef, tell_to_stop


class Keeper(Protocol):
    """Who decides about the children."""

    def new_actor(self, spec: ChildSpec) -> ActorRef[Any]:
        """Start an actor for the child. May raise anything."""
        ...

    def start_failed(self, child: Child, error: BaseException | None) -> None:
        """Its constructor or `on_start` raised, or it ended before it had started."""
        ...

    def failed(self, child: Child, how: How, error: BaseException | None) -> None:
        """It ended, and nobody here told it to."""
        ...

    def has_stopped(self, child: Child) -> None:
        """It was told to stop, has ended, and rests."""
        ...

    def all_gone(self) -> None:
        """After `close`: the last has ended."""
        ...


class Nursery:
    """The children of the supervisor behind `ref`. Belongs to its turn; news comes to it as messages.

    `independent` children, once all have started, start and stop without waiting for each other.
    """

    def __init__(
        self,
        keeper: Keeper,
        ref: SupervisorRef,
        specs: Iterable[ChildSpec],
        *,
        independent: bool,
        clock: Clock,
        timers: Timers | None,
    ) -> None:
        self.closing = False
        self._keeper = keeper
        self._ref = ref
        self._independent = independent
        self._clock = clock
        self._timers = timers
        self._positions = itertools.count()
        self._numbers = itertools.count(1)
        self.table: dict[str, Child] = {}
        for spec in checked_specs(specs):
            self.add(spec, "initial")
        self._not_yet_started = set(self.table)
        # Until all have started, and always if they depend on each other: one start after the other, one stop after the
        # other, and no start beside a stop. Otherwise each child has its own pace.
        self._in_order = True
        self._starts = InOrder(ChildState.WAITING, ChildState.STARTING)
        self._stops = InOrder(ChildState.STOPPING, last_first=True)
        self._lives: dict[int, Child] = {}
        self._delays: dict[int, tuple[tuple[Child, ...], TimerHandle | None]] = {}

    def add(self, spec: ChildSpec, started_for: StartedFor) -> Child:
        """One more row, behind the others. Nothing is started yet."""
        child = self.table[spec.id] = Child(spec, next(self._positions), started_for)
        return child

    def counts(self) -> ChildCounts:
        """How many there are."""
        supervisors = sum(1 for child in self.table.values() if child.spec.kind == "supervisor")
        return ChildCounts(len(self.table), len(self._lives), supervisors, len(self.table) - supervisors)

    # --- what the keeper has done -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start all; `go_on` goes on."""
        for child in self.table.values():
            self._starts.add(child)

    def wait_to_start(self, child: Child, delay: int | None = None) -> None:
        """Its turn comes when the delay is over and, in order, those before it run."""
        child.state = ChildState.WAITING
        child.delay = delay
        if self._in_order:
            self._starts.add(child)
        elif delay is None:
            self._start(child)

    def start_again(self, child: Child, members: tuple[Child, ...], delay_s: float) -> None:
        """Stop those of the `members` that run, backwards, then start them and the ended `child`, after the delay."""
        delay = self._delay(members, delay_s)
        # Those that are being stopped already come back behind the first of these, in order.
        for member in members:
            if member is child or member.state is ChildState.WAITING:
                self.wait_to_start(member, delay)
            elif member.state in {ChildState.RUNNING, ChildState.STARTING}:
                member.delay = delay
                self.have_stopped(member, again=member.spec.restart != "temporary")

    def have_stopped(self, child: Child, *, again: bool = False) -> None:
        """Have it stopped; `again`: and then started."""
        match child.state:
            case ChildState.WAITING:
                self._stopped(child, in_time=True)
            case ChildState.RUNNING | ChildState.STARTING:
                child.state = ChildState.STOPPING
                child.asked = False
                child.again = again
                if self._in_order:
                    self._stops.add(child)
                else:
                    self._ask_to_stop(child)
            case ChildState.STOPPING:
                child.again = False  # by hand or for good: a restart asks those that run only
            case ChildState.STOPPED:
                child.answer_stops(in_time=True)
            case _:
                assert_never(child.state)

    def rest(self, child: Child) -> None:
        """It has ended and stays so. A temporary child is forgotten, for it could never run again."""
        child.state = ChildState.STOPPED
        child.delay = None
        self._not_yet_started.discard(child.spec.id)
        if child.spec.restart == "temporary":
            self.table.pop(child.spec.id, None)
        child.refuse_start(str(self._ref), None, "It was stopped before it had started.")

    def close(self) -> None:
        """Stop all, the last first. Nothing is started any more."""
        self.closing = True
        self._in_order = True
        for _, timer in self._delays.values():
            if timer is not None:
                timer.cancel()
        self._delays.clear()
        for child in list(self.table.values()):
            self.have_stopped(child)
            if child.state is ChildState.STOPPING:
                self._stops.add(child)

    # --- who is next --------------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Do all that can be done now. After every message."""
        while self._in_order and self._do_next():
            pass

    def _do_next(self) -> bool:
        """The next stop or start in order. False when a message must come first."""
        stopping = self._stops.first()
        if stopping is not None:
            if not stopping.asked:
                self._ask_to_stop(stopping)
            return False
        if self.closing:
            self._keeper.all_gone()
            return False
        child = self._starts.first()
        if child is not None:
            if child.state is ChildState.WAITING and child.delay is None:
                return not self._start(child)  # if it failed at once, the next thing can be done
            return False
        if not self._not_yet_started and self._ref.started().try_set(None):
            self._in_order = not self._independent
        return False

    # --- news ---------------------------------------------------------------------------------------------------------

    def hear(self, news: News) -> None:
        """Do what follows from it."""
        match news:
            case ChildStarted(life):
                child = self._lives.get(life)
                if child is not None and child.ref is not None and child.state is ChildState.STARTING:
                    self._runs(child, child.ref)  # otherwise it is being stopped, or has ended meanwhile
            case ChildExited(life, report):
                self._exited(life, report)
            case StopTimedOut(life):
                self._stop_timed_out(life)
            case DelayElapsed(delay):
                self._delay_elapsed(delay)
            case _:
                assert_never(news)

    def _tell(self, news: News) -> None:
        """From any thread: ahead of orders, however many there are. Not delivered to one that has ended."""
        with contextlib.suppress(ActorEnded):
            self._ref.tell_control(news)

    def _call_after(self, delay_s: float, news: News) -> TimerHandle:
        timers = default_timers() if self._timers is None else self._timers
        return timers.call_at(self._clock.now_s() + delay_s, lambda: self._tell(news))

    def _delay(self, children: tuple[Child, ...], delay_s: float) -> int:
        delay = next(self._numbers)
        timer = None
        if delay_s > 0:
            timer = self._call_after(delay_s, DelayElapsed(delay))
        else:
            # By a message, and behind orders: a child that fails whenever it is started must keep neither this turn
            # from ending nor an order from being heard.
            self._ref.tell(DelayElapsed(delay))
        self._delays[delay] = (children, timer)
        return delay

    def _delay_elapsed(self, delay: int) -> None:
        children, _ = self._delays.pop(delay, ((), None))
        for child in children:
            if child.delay == delay:
                child.delay = None
                if child.state is ChildState.WAITING and not self._in_order:
                    self._start(child)

    # --- one life -----------------------------------------------------------------------------------------------------

    def _start(self, child: Child) -> bool:
        """Start its actor. False if the constructor raised, and what follows from that was done."""
        child.state = ChildState.STARTING
        child.started_s = None
        child.life = life = next(self._numbers)
        try:
            ref = self._keeper.new_actor(child.spec)
        except BaseException as error:  # noqa: BLE001 - the boundary: what a constructor raises is that child's failure
            self._keeper.start_failed(child, error)
            return False
        child.ref = ref
        self._lives[life] = child
        self._ref.live[life] = (child.spec, ref)
        # After adding to `live`: given up on while the constructor ran, either `_ended` of the ref found it there or we
        # find here that we have ended. Raising ends this turn, and nobody hears of it any more.
        if not self._ref.is_alive():
            ref.abandon()
            raise ActorEnded(f"{self._ref} was given up on")
        ref.monitor(lambda report: self._tell(ChildExited(life, report)))
        child.started = ref.started()
        child.started.add_done_callback(
            lambda started: self._tell(ChildStarted(life)) if started.error() is None else None
        )
        return True

    def _runs(self, child: Child, ref: ActorRef[Any]) -> None:
        child.state = ChildState.RUNNING
        child.started_s = self._clock.now_s()
        child.started = None
        child.started_for = "restart"  # the next time
        self._not_yet_started.discard(child.spec.id)
        child.answer_start(ref)

    def _exited(self, life: int, report: ExitReport) -> None:
        child = self._lives.pop(life, None)
        if child is None or child.ref is None:
            return
        ref, child.ref = child.ref, None
        del self._ref.live[life]
        self._ref.inherit_unstopped(child.spec.id, ref)
        if child.stop_timer is not None:
            child.stop_timer.cancel()
            child.stop_timer = None
        if child.state is ChildState.STOPPING:
            self._stopped(child, in_time=not report.abandoned)
            return
        if child.state is ChildState.STARTING and child.has_started():
            self._runs(child, ref)  # it ended before it could say so
        how = how_ended(report, started=child.state is ChildState.RUNNING)
        if how is How.NOT_STARTED:
            self._keeper.start_failed(child, report.error)
        else:
            self._keeper.failed(child, how, report.error)

    def _ask_to_stop(self, child: Child) -> None:
        child.asked = True
        if child.ref is None:
            return
        tell_to_stop(child.spec, child.ref)
        if child.spec.stop_timeout_s is not None:
            child.stop_timer = self._call_after(child.spec.stop_timeout_s, StopTimedOut(child.life))

    def _stop_timed_out(self, life: int) -> None:
        child = self._lives.get(life)
        if child is None or child.ref is None:
            return  # it ended at the last moment
        if self._ref.gave_up(child.spec.id, child.ref):  # its report, on the way now, says `abandoned`
            log.warning(
                "child %r of %s did not stop within %s s and was given up on; its thread may still run",
                child.spec.id,
                self._ref,
                child.spec.stop_timeout_s,
            )

    def _stopped(self, child: Child, *, in_time: bool) -> None:
        if child.state is ChildState.STOPPING and child.again:
            child.again = False
            child.restarts += 1
            self.wait_to_start(child, child.delay)
            return
        self.rest(child)
        child.answer_stops(in_time=in_time)
        self._keeper.has_stopped(child)
