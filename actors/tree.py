"""Supervision trees: a supervisor starts, watches, restarts and stops actors. Who restarts is decided in child_spec.py.

A supervisor never waits. It tells a child to start or stop and goes on; that it started, ended, or ran out of
time comes back as a message, ahead of all orders. So one hung child holds up nobody but those that must wait for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any, TypedDict, Unpack, assert_never, cast

from executus.actors.actor import Actor, ActorEnded, ActorRef, ExitReport, default_dispatcher
from executus.actors.child import Child, ChildExited, ChildStarted, DelayElapsed, StopTimedOut
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
    restart_delay_s,
)
from executus.actors.clock import Clock, SystemClock, Timers, log
from executus.actors.dispatcher import Dispatcher
from executus.actors.errors import (
    ActorError,
    ChildExists,
    ChildNotFound,
    ChildNotStopped,
    ChildStartFailed,
    RestartIntensityReached,
)
from executus.actors.nursery import Nursery
from executus.actors.policies import Backoff
from executus.actors.tree_ref import (
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
)


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
        self._nursery = Nursery(
            self, self._ref, children, independent=strategy == "one_for_one", clock=self._clock, timers=timers
        )
        self._restarts_s: tuple[float, ...] = ()
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
        """Begin with the first child; news of it goes on."""
        self._nursery.begin()
        self._nursery.go_on()

    def on_receive(self, message: Any) -> Any:
        """Every message is handled to its end here; what takes time comes back as another message."""
        match message:
            case ChildStarted() | ChildExited() | StopTimedOut() | DelayElapsed():
                self._nursery.hear(message)
            case StartChild() | StopChild() | RestartChild() | DeleteChild():
                self._take(message)
            case WhichChildren(reply):
                reply.try_set(tuple(child.info() for child in self._nursery.table.values()))
            case CountChildren(reply):
                reply.try_set(self._nursery.counts())
            case ShutDown():
                self._shut_down(None)
            case _:
                return super().on_receive(message)  # notes that nobody expected it
        self._nursery.go_on()
        return None

    # --- orders -------------------------------------------------------------------------------------------------------

    def _take(self, order: Order) -> None:
        """Do what can be done of it now, or answer why not."""
        try:
            if self._nursery.closing:
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
        namesake = self._nursery.table.get(spec.id)
        if namesake is None:
            child = self._nursery.add(spec, "start_child")
            child.reply = order.reply
            self._nursery.wait_to_start(child)
        elif not _put_off(order, namesake):
            raise ChildExists(str(self._ref), spec.id)

    def _restart_child(self, order: RestartChild) -> None:
        child = self._child(order.id)
        if not _put_off(order, child):
            self._check_stopped(child)
            child.started_for = "restart_child"
            child.reply = order.reply
            self._nursery.wait_to_start(child)

    def _delete_child(self, order: DeleteChild) -> None:
        child = self._child(order.id)
        if not _put_off(order, child):
            self._check_stopped(child)
            del self._nursery.table[order.id]
            order.reply.try_set(None)

    def _stop_child(self, order: StopChild) -> None:
        child = self._child(order.id)
        if child.put_off:
            child.put_off.append(order)
        else:
            child.stop_replies.append(order.reply)
            self._nursery.have_stopped(child)

    def _child(self, child_id: str) -> Child:
        child = self._nursery.table.get(child_id)
        if child is None:
            raise ChildNotFound(str(self._ref), child_id)
        return child

    def _check_stopped(self, child: Child) -> None:
        if child.state is not ChildState.STOPPED:
            raise ChildNotStopped(str(self._ref), child.spec.id, child.state)

    # --- as the nursery's keeper --------------------------------------------------------------------------------------

    def new_actor(self, spec: ChildSpec) -> ActorRef[Any]:
        """Start an actor as the spec says."""
        recipe = spec.recipe()
        if isinstance(recipe, Recipe):
            kwargs: dict[str, Any] = dict(recipe.kwargs)
            if issubclass(recipe.actor_class, Supervisor):
                kwargs = {"clock": self._clock, "timers": self._timers, "rng": self._rng, **kwargs}
            home = cast("Dispatcher", self._ref.dispatcher)
            return recipe.actor_class.start_on(home, *recipe.args, **kwargs)
        ref = recipe()
        if isinstance(cast("object", ref), ActorRef):
            return ref
        raise TypeError(f"child {spec.id!r}: start returned no ActorRef, but {type(ref).__name__}")

    def start_failed(self, child: Child, error: BaseException | None) -> None:
        """What follows depends on what it was started for."""
        match child.started_for:
            case "restart":
                self.failed(child, How.NOT_STARTED, error)
            case "initial":
                self._nursery.rest(child)
                done = "The children started before it were stopped, and the supervisor ended."
                self._shut_down(ChildStartFailed(str(self._ref), child.spec.id, error, done))
            case "start_child":
                child.refuse_start(str(self._ref), error, "It was not taken in.")
                self._nursery.rest(child)
                self._nursery.table.pop(child.spec.id, None)
            case "restart_child":
                child.refuse_start(str(self._ref), error, "It stays stopped.")
                self._nursery.rest(child)
            case _:
                assert_never(child.started_for)

    def failed(self, child: Child, how: How, error: BaseException | None) -> None:
        """It ended and nobody told it to, or could not be started again: decide, and follow the decision."""
        now_s = self._clock.now_s()
        decision = decide(
            child.spec,
            how,
            strategy=self._strategy,
            order=self._nursery.table,
            intensity=self._intensity,
            restarts_s=self._restarts_s,
            now_s=now_s,
        )
        match decision:
            case RestartTogether(members, restarts_s):
                self._restarts_s = restarts_s
                self._restart(child, how, tuple(self._nursery.table[member] for member in members), now_s)
            case LetRest():
                self._nursery.rest(child)
            case Escalate(max_restarts, within_s):
                self._nursery.rest(child)
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
        self._nursery.start_again(child, members, delay_s)

    def has_stopped(self, child: Child) -> None:
        """Take the orders that waited for it."""
        put_off, child.put_off = child.put_off, []
        for order in put_off:
            self._take(order)

    # --- its own end --------------------------------------------------------------------------------------------------

    def _shut_down(self, error: ActorError | None) -> None:
        """Stop all, the last first, then end, with `error` if there is one. The first cause counts."""
        if not self._nursery.closing:
            self._error = error
            self._nursery.close()

    def all_gone(self) -> None:
        """End, once."""
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
