"""Supervision trees: a supervisor starts, watches, restarts and stops actors. Who restarts is decided in child_spec.py.

A supervisor never waits. It tells a child to start or stop and goes on; that it started, ended, or ran out of
time comes back as a message, ahead of all orders. So one hung child holds up nobody but those that must wait for it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypedDict, Unpack, assert_never, cast

import msgspec

from executus.actors.actor import Actor, ActorEnded, ActorFuture, ActorRef, ExitReport, default_dispatcher
from executus.actors.child import Child, InOrder
from executus.actors.child_spec import (
    ChildSpec,
    Escalate,
    How,
    Intensity,
    LetRest,
    Recipe,
    RestartTogether,
    Strategy,
    check_choice,
    checked_specs,
    decide,
    failures_in_a_row,
    how_ended,
    restart_delay_s,
)
from executus.actors.clock import Clock, SystemClock, TimerHandle, Timers, TimerThread, log
from executus.actors.dispatcher import Dispatcher
from executus.actors.errors import (
    ActorError,
    ChildExists,
    ChildNotFound,
    ChildNotStopped,
    ChildStartFailed,
    RestartIntensityReached,
)
from executus.actors.policies import Backoff
from executus.actors.tree_ref import (
    ChildCounts,
    ChildState,
    CountChildren,
    DeleteChild,
    Order,
    RestartChild,
    ShutDown,
    StartChild,
    StopChild,
    SupervisorRef,
    WhichChildren,
    tell_to_stop,
)

# --- what a supervisor tells itself: all by number, so that news of a former life of a child changes nothing ----------


class ChildStarted(msgspec.Struct, frozen=True):
    """Its `on_start` is through; for a supervisor, those of its children, too."""

    life: int


class ChildExited(msgspec.Struct, frozen=True):
    """It has ended. Comes exactly once for each actor that was started."""

    life: int
    report: ExitReport


class StopTimedOut(msgspec.Struct, frozen=True):
    """Its time to stop is over."""

    life: int


class DelayElapsed(msgspec.Struct, frozen=True):
    """A backoff is over."""

    delay: int


class SupervisorOptions(TypedDict, total=False):
    """What a Supervisor takes, by name; see there."""

    children: Iterable[ChildSpec]
    strategy: Strategy
    max_restarts: int | None
    within_s: float
    backoff: Backoff | None
    clock: Clock | None
    timers: Timers | None
    rng: random.Random | None


class Supervisor(Actor):
    """Starts its children in order, restarts those that fail, stops them backwards. Itself an actor, so trees nest.

    `children` are ChildSpecs. `strategy`: a restart concerns that child alone (`one_for_one`), all (`one_for_all`), or
    it and those behind it (`rest_for_one`). More than `max_restarts` restarts within `within_s` seconds end the
    supervisor, after its children, with RestartIntensityReached, which its own supervisor may answer with a restart;
    None is any number.
    `backoff` delays restarts, the more the more often a child failed in a row; None restarts at once. A child that
    cannot be started at the beginning ends the supervisor with ChildStartFailed; later it is tried again as if it had
    crashed. Clock, timers and the randomness of the backoff are injected, and handed on to supervisors among the
    children that are named by their class; what is left out is the system's.
    """

    def __init__(
        self,
        *,
        children: Iterable[ChildSpec] = (),
        strategy: Strategy = "one_for_one",
        max_restarts: int | None = 3,
        within_s: float = 5.0,
        backoff: Backoff | None = None,
        clock: Clock | None = None,
        timers: Timers | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__()
        self._ref = SupervisorRef(self)
        self._actor_ref = self._ref
        check_choice("strategy", strategy, Strategy)
        self._strategy: Strategy = strategy
        self._intensity = Intensity(max_restarts, within_s)
        self._backoff = backoff
        self._clock = SystemClock() if clock is None else clock
        self._timers = timers
        self._rng = random.Random() if rng is None else rng
        self._positions = itertools.count()
        self._numbers = itertools.count(1)
        self._children = {spec.id: Child(spec, next(self._positions), "initial") for spec in checked_specs(children)}
        self._not_yet_started = set(self._children)
        # Until all have started, and always if they depend on each other: one start after the other, one stop after the
        # other, and no start beside a stop. Otherwise each child has its own pace.
        self._in_order = True
        self._starts = InOrder(ChildState.WAITING, ChildState.STARTING)
        self._stops = InOrder(ChildState.STOPPING, last_first=True)
        self._lives: dict[int, Child] = {}
        self._delays: dict[int, tuple[tuple[Child, ...], TimerHandle | None]] = {}
        self._restarts_s: tuple[float, ...] = ()
        self._closing = False
        self._error: ActorError | None = None
        self._ended = False

    @classmethod
    def start(  # pyright: ignore[reportIncompatibleMethodOverride]  # a ref that knows more
        cls, **options: Unpack[SupervisorOptions]
    ) -> SupervisorRef:
        """Start one on the default dispatcher. See `start_on`."""
        return cls.start_on(default_dispatcher(), **options)

    @classmethod
    def start_on(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # as at `start`
        cls,
        dispatcher: Dispatcher,
        /,
        *,
        on_exit: Callable[[ExitReport], None] | None = None,
        **options: Unpack[SupervisorOptions],
    ) -> SupervisorRef:
        """Start one on `dispatcher`; `on_exit` is its first monitor.

        Does not wait for the children: `started()` of the ref does. Raises ValueError and TypeError for what a
        supervisor cannot mean.
        """
        return cast("SupervisorRef", super().start_on(dispatcher, on_exit=on_exit, **options))

    # --- messages -----------------------------------------------------------------------------------------------------

    def on_start(self) -> None:
        """Begin with the first child; `_started` goes on."""
        for child in self._children.values():
            self._starts.add(child)
        self._go_on()

    def on_receive(self, message: Any) -> Any:
        """Every message is handled to its end here; what takes time comes back as another message."""
        match message:
            case ChildStarted(life):
                self._started(life)
            case ChildExited(life, report):
                self._exited(life, report)
            case StopTimedOut(life):
                self._stop_timed_out(life)
            case DelayElapsed(delay):
                self._delay_elapsed(delay)
            case StartChild() | StopChild() | RestartChild() | DeleteChild():
                self._take(message)
            case WhichChildren(reply):
                reply.try_set(tuple(child.info() for child in self._children.values()))
            case CountChildren(reply):
                reply.try_set(self._counts())
            case ShutDown():
                self._shut_down(None)
            case _:
                return super().on_receive(message)  # notes that nobody expected it
        self._go_on()
        return None

    def _tell_self(self, message: object) -> None:
        """From any thread: ahead of orders, however many there are. Not delivered to one that has ended."""
        with contextlib.suppress(ActorEnded):
            self._ref.tell_control(message)

    # --- orders -------------------------------------------------------------------------------------------------------

    def _take(self, order: Order) -> None:
        """Do what can be done of it now, or answer why not."""
        try:
            if self._closing:
                raise ActorEnded(f"{self._ref} is stopping")
            match order:
                case StartChild():
                    self._start_child(order)
                case StopChild():
                    self._stop_child(order)
                case RestartChild():
                    self._restart_child(order)
                case DeleteChild():
                    self._delete_child(order)
                case _:
                    assert_never(order)
        except (ActorError, TypeError) as error:
            order.reply.try_fail(error)

    def _start_child(self, order: StartChild) -> None:
        (spec,) = checked_specs((order.spec,))
        namesake = self._children.get(spec.id)
        if namesake is None:
            child = self._children[spec.id] = Child(spec, next(self._positions), "start_child")
            child.reply = order.reply
            self._wait_to_start(child)
        elif not _put_off(order, namesake):
            raise ChildExists(str(self._ref), spec.id)

    def _restart_child(self, order: RestartChild) -> None:
        child = self._child(order.id)
        if not _put_off(order, child):
            self._check_stopped(child)
            child.started_for = "restart_child"
            child.reply = order.reply
            self._wait_to_start(child)

    def _delete_child(self, order: DeleteChild) -> None:
        child = self._child(order.id)
        if not _put_off(order, child):
            self._check_stopped(child)
            del self._children[order.id]
            order.reply.try_set(None)

    def _stop_child(self, order: StopChild) -> None:
        child = self._child(order.id)
        if child.put_off:
            child.put_off.append(order)
        else:
            child.stop_replies.append(order.reply)
            self._have_stopped(child, again=False)

    def _child(self, child_id: str) -> Child:
        child = self._children.get(child_id)
        if child is None:
            raise ChildNotFound(str(self._ref), child_id)
        return child

    def _check_stopped(self, child: Child) -> None:
        if child.state is not ChildState.STOPPED:
            raise ChildNotStopped(str(self._ref), child.spec.id, child.state)

    def _counts(self) -> ChildCounts:
        supervisors = sum(1 for child in self._children.values() if child.spec.kind == "supervisor")
        return ChildCounts(len(self._children), len(self._lives), supervisors, len(self._children) - supervisors)

    # --- who is next --------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
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
        if self._closing:
            self._end()
            return False
        child = self._starts.first()
        if child is not None:
            if child.state is ChildState.WAITING and child.delay is None:
                return not self._start_actor(child)  # if it failed at once, the next thing can be done
            return False
        if not self._not_yet_started and self._ref.started().try_set(None):
            self._in_order = self._strategy != "one_for_one"
        return False

    def _wait_to_start(self, child: Child, delay: int | None = None) -> None:
        """Its turn comes when the delay is over and, in order, those before it run."""
        child.state = ChildState.WAITING
        child.delay = delay
        if self._in_order:
            self._starts.add(child)
        elif delay is None:
            self._start_actor(child)

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
                    self._start_actor(child)

    def _call_after(self, delay_s: float, message: object) -> TimerHandle:
        timers = default_timers() if self._timers is None else self._timers
        return timers.call_at(self._clock.now_s() + delay_s, lambda: self._tell_self(message))

    # --- starting -----------------------------------------------------------------------------------------------------

    def _start_actor(self, child: Child) -> bool:
        """Start it. False if its constructor raised, and what follows from that was done."""
        child.state = ChildState.STARTING
        child.started_s = None
        child.life = life = next(self._numbers)
        try:
            ref = self._new_actor(child.spec)
        except BaseException as error:  # noqa: BLE001 - the boundary: what a constructor raises is that child's failure
            self._start_failed(child, error)
            return False
        child.ref = ref
        self._lives[life] = child
        self._ref.live[life] = (child.spec, ref)
        # After adding to `live`: given up on while the constructor ran, either `_ended` of the ref found it there or we
        # find here that we have ended. Raising ends this turn, and nobody hears of it any more.
        if not self._ref.is_alive():
            ref.abandon()
            raise ActorEnded(f"{self._ref} was given up on")
        ref.monitor(lambda report: self._tell_self(ChildExited(life, report)))
        child.started = ref.started()
        child.started.add_done_callback(
            lambda started: self._tell_self(ChildStarted(life)) if started.error() is None else None
        )
        return True

    def _new_actor(self, spec: ChildSpec) -> ActorRef[Any]:
        recipe = spec.recipe()
        if isinstance(recipe, Recipe):
            kwargs: dict[str, Any] = dict(recipe.kwargs)
            if issubclass(recipe.actor_class, Supervisor):
                kwargs = {**self._ports(), **kwargs}
            home = cast("Dispatcher", self._ref.dispatcher)
            return recipe.actor_class.start_on(home, *recipe.args, **kwargs)
        ref = recipe()
        if isinstance(cast("object", ref), ActorRef):
            return ref
        raise TypeError(f"child {spec.id!r}: start returned no ActorRef, but {type(ref).__name__}")

    def _ports(self) -> dict[str, Any]:
        """What a supervisor hands on to one that is its child."""
        return {"clock": self._clock, "timers": self._timers, "rng": self._rng}

    def _started(self, life: int) -> None:
        child = self._lives.get(life)
        if child is not None and child.ref is not None and child.state is ChildState.STARTING:
            self._runs(child, child.ref)  # otherwise it is being stopped, or has ended meanwhile

    def _runs(self, child: Child, ref: ActorRef[Any]) -> None:
        child.state = ChildState.RUNNING
        child.started_s = self._clock.now_s()
        child.started = None
        child.started_for = "restart"  # the next time
        self._not_yet_started.discard(child.spec.id)
        if child.reply is not None:
            child.reply.try_set(ref)
            child.reply = None

    def _start_failed(self, child: Child, error: BaseException | None) -> None:
        match child.started_for:
            case "restart":
                self._failed(child, How.NOT_STARTED, error)
            case "initial":
                self._rest(child)
                done = "The children started before it were stopped, and the supervisor ended."
                self._shut_down(ChildStartFailed(str(self._ref), child.spec.id, error, done))
            case "start_child":
                reply, child.reply = child.reply, None
                self._rest(child)
                self._children.pop(child.spec.id, None)
                _fail(reply, ChildStartFailed(str(self._ref), child.spec.id, error, "It was not taken in."))
            case "restart_child":
                reply, child.reply = child.reply, None
                self._rest(child)
                _fail(reply, ChildStartFailed(str(self._ref), child.spec.id, error, "It stays stopped."))
            case _:
                assert_never(child.started_for)

    # --- ends and restarts --------------------------------------------------------------------------------------------

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
            self._start_failed(child, report.error)
        else:
            self._failed(child, how, report.error)

    def _failed(self, child: Child, how: How, error: BaseException | None) -> None:
        """It ended and nobody told it to, or could not be started again."""
        now_s = self._clock.now_s()
        decision = decide(
            child.spec,
            how,
            strategy=self._strategy,
            order=self._children,
            intensity=self._intensity,
            restarts_s=self._restarts_s,
            now_s=now_s,
        )
        match decision:
            case RestartTogether(members, restarts_s):
                self._restarts_s = restarts_s
                self._restart(child, how, tuple(self._children[member] for member in members), now_s)
            case LetRest():
                self._rest(child)
            case Escalate(max_restarts, within_s):
                self._rest(child)
                self._shut_down(
                    RestartIntensityReached(
                        str(self._ref),
                        child.spec.id,
                        how=how.value,
                        max_restarts=max_restarts,
                        within_s=within_s,
                        cause=error,
                    )
                )
            case _:
                assert_never(decision)

    def _restart(self, child: Child, how: How, members: tuple[Child, ...], now_s: float) -> None:
        ran_s = 0.0 if child.started_s is None else now_s - child.started_s
        earlier = failures_in_a_row(child.failures, ran_s, self._intensity)
        delay_s = restart_delay_s(self._backoff, earlier, self._rng.random())
        child.failures = earlier + 1
        child.restarts += 1
        log.info("child %r of %s %s; restarted in %.3g s", child.spec.id, self._ref, how.value, delay_s)
        delay = self._delay(members, delay_s)
        # Those that are being stopped already come back behind the first of these, in order.
        for member in members:
            if member is child or member.state is ChildState.WAITING:
                self._wait_to_start(member, delay)
            elif member.state in {ChildState.RUNNING, ChildState.STARTING}:
                member.delay = delay
                self._have_stopped(member, again=member.spec.restart != "temporary")

    def _rest(self, child: Child) -> None:
        """It has ended and stays so. A temporary child is forgotten, for it could never run again."""
        child.state = ChildState.STOPPED
        child.delay = None
        self._not_yet_started.discard(child.spec.id)
        if child.spec.restart == "temporary":
            self._children.pop(child.spec.id, None)
        if child.reply is not None:
            done = "It was stopped before it had started."
            _fail(child.reply, ChildStartFailed(str(self._ref), child.spec.id, None, done))
            child.reply = None

    # --- stopping -----------------------------------------------------------------------------------------------------

    def _have_stopped(self, child: Child, *, again: bool) -> None:
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
                self._answer_stops(child, in_time=True)
            case _:
                assert_never(child.state)

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
            self._wait_to_start(child, child.delay)
            return
        self._rest(child)
        self._answer_stops(child, in_time=in_time)
        put_off, child.put_off = child.put_off, []
        for order in put_off:
            self._take(order)

    def _answer_stops(self, child: Child, *, in_time: bool) -> None:
        replies, child.stop_replies = child.stop_replies, []
        for reply in replies:
            reply.try_set(in_time)

    # --- its own end --------------------------------------------------------------------------------------------------

    def _shut_down(self, error: ActorError | None) -> None:
        """Stop all, the last first, then end, with `error` if there is one. The first cause counts."""
        if self._closing:
            return
        self._closing = True
        self._error = error
        self._in_order = True
        for _, timer in self._delays.values():
            if timer is not None:
                timer.cancel()
        self._delays.clear()
        for child in list(self._children.values()):
            self._have_stopped(child, again=False)
            if child.state is ChildState.STOPPING:
                self._stops.add(child)

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._error is not None:
            raise self._error
        self._ref.halt_itself()


def _put_off(order: StartChild | RestartChild | DeleteChild, child: Child) -> bool:
    """Whether the order waits for a child that is being stopped: so orders for one child are done as they came."""
    if child.state is not ChildState.STOPPING or child.again:
        return False
    child.put_off.append(order)
    return True


def _fail(reply: ActorFuture[Any] | None, error: ActorError) -> None:
    if reply is not None:
        reply.try_fail(error)


_timers_lock = threading.Lock()
_timers: tuple[int, TimerThread] | None = None


def default_timers() -> Timers:
    """The process's own timers, made on first use. A forked child gets others.

    Never closed: their thread is a daemon.
    """
    global _timers  # noqa: PLW0603 - as the default dispatcher, see there
    # Read without the lock: a tuple that is there is complete. Made under it: once a process.
    found = _timers
    if found is not None and found[0] == os.getpid():
        return found[1]
    with _timers_lock:
        if _timers is None or _timers[0] != os.getpid():
            _timers = (os.getpid(), TimerThread(name="executus-default-timers"))
        return _timers[1]
