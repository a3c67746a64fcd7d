"""What others hold of a supervisor: its ref, the orders that it takes, and what they are answered with."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, TypeVar, assert_never, overload

import msgspec

from executus.actors.actor import ActorEnded, ActorFuture, ActorRef, ExitReport
from executus.actors.child_spec import ChildKind, ChildSpec
from executus.actors.dispatcher import Dispatcher
from executus.actors.policies import RestartKind

T = TypeVar("T")


class ChildState(enum.StrEnum):
    """Where a child is. Only a `waiting` and a `stopped` one have no actor."""

    WAITING = "waiting"
    """To be started when its backoff is over and those before it run."""
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


class ChildInfo(msgspec.Struct, frozen=True):
    """One row of `which_children`. `ref` is the present actor; another one after each of its `restarts`."""

    id: str
    state: ChildState
    ref: ActorRef[Any] | None
    kind: ChildKind
    restart: RestartKind
    restarts: int


class ChildCounts(msgspec.Struct, frozen=True):
    """How many children are in the table, how many of them have an actor, and of which kind they are."""

    specs: int
    active: int
    supervisors: int
    workers: int


class StartChild(msgspec.Struct, frozen=True):
    """Take it in behind the others and start it."""

    spec: ChildSpec
    reply: ActorFuture[ActorRef[Any]]


class StopChild(msgspec.Struct, frozen=True):
    """Stop it and leave it so."""

    id: str
    reply: ActorFuture[bool]


class RestartChild(msgspec.Struct, frozen=True):
    """Start one that is stopped."""

    id: str
    reply: ActorFuture[ActorRef[Any]]


class DeleteChild(msgspec.Struct, frozen=True):
    """Forget one that is stopped."""

    id: str
    reply: ActorFuture[None]


Order: TypeAlias = StartChild | StopChild | RestartChild | DeleteChild


class WhichChildren(msgspec.Struct, frozen=True):
    """Tell what children there are."""

    reply: ActorFuture[tuple[ChildInfo, ...]]


class CountChildren(msgspec.Struct, frozen=True):
    """Tell how many there are."""

    reply: ActorFuture[ChildCounts]


class ShutDown(msgspec.Struct, frozen=True):
    """Stop all children, then end."""


SHUT_DOWN: Final = ShutDown()


def tell_to_stop(spec: ChildSpec, ref: ActorRef[Any]) -> None:
    """Tell an actor to stop as its spec says. Does not wait. Harmless if it has ended."""
    match spec.stop:
        case "halt":
            ref.halt()
        case "drain":
            ref.stop(block=False)
        case _:
            assert_never(spec.stop)


class SupervisorRef(ActorRef[Any]):
    """Talks to a supervisor, from any thread. Whatever takes time gives a future: `get` it, or await it.

    The futures fail with ActorDeadError when the supervisor has ended, or ends before it has done what it was asked.
    """

    def __init__(self, actor: Any) -> None:
        super().__init__(actor)
        self.live: dict[int, tuple[ChildSpec, ActorRef[Any]]] = {}
        """The children's actors. Written by the supervisor alone; at its end, whatever ended it, they end as well."""
        self._ready: ActorFuture[None] = ActorFuture()
        self._owed: set[ActorFuture[Any]] = {self._ready}
        self._given_up: list[str] = []  # appended to by the supervisor, and at its end; each one step, in any order

    # --- orders -------------------------------------------------------------------------------------------------------

    def started(self) -> ActorFuture[None]:
        """Holds when every child that it was started with runs. Fails with ChildStartFailed if one could not."""
        return self._ready

    def start_child(self, spec: ChildSpec) -> ActorFuture[ActorRef[Any]]:
        """Take in a child, behind the others, and start it. Holds when its `on_start` is through.

        Fails with ChildExists, or with ChildStartFailed; then the spec is not kept.
        """
        return self._order(lambda reply: StartChild(spec, reply))

    def stop_child(self, child_id: str) -> ActorFuture[bool]:
        """Stop a child, which stays in the table unless it is temporary; the others go on.

        True when it has ended, False when it did not within its stop_timeout_s and was given up on. Fails with
        ChildNotFound.
        """
        return self._order(lambda reply: StopChild(child_id, reply))

    def restart_child(self, child_id: str) -> ActorFuture[ActorRef[Any]]:
        """Start a child that is stopped. Fails with ChildNotFound, ChildNotStopped, ChildStartFailed (it stays)."""
        return self._order(lambda reply: RestartChild(child_id, reply))

    def delete_child(self, child_id: str) -> ActorFuture[None]:
        """Forget a child that is stopped. Fails with ChildNotFound, ChildNotStopped."""
        return self._order(lambda reply: DeleteChild(child_id, reply))

    def which_children(self) -> ActorFuture[tuple[ChildInfo, ...]]:
        """The children, in the order of their starts."""
        return self._order(WhichChildren)

    def count_children(self) -> ActorFuture[ChildCounts]:
        """How many children there are."""
        return self._order(CountChildren)

    @property
    def unstopped(self) -> tuple[str, ...]:
        """Who was told to stop, did not in time, and was given up on; `sub/child` for a supervisor's own children.

        Their threads may still run. Also readable after the supervisor's end.
        """
        return tuple(self._given_up)

    # --- as an actor --------------------------------------------------------------------------------------------------

    @overload
    def stop(self, *, block: Literal[True] = True, timeout: float | None = None) -> bool: ...
    @overload
    def stop(self, *, block: Literal[False], timeout: float | None = None) -> ActorFuture[bool]: ...
    @overload
    def stop(self, *, block: bool = True, timeout: float | None = None) -> bool | ActorFuture[bool]: ...
    def stop(self, *, block: bool = True, timeout: float | None = None) -> bool | ActorFuture[bool]:
        """Stop the children, the last first, then it ends. True when it has, False if it was dead.

        Unlike another actor it lives, and `is_alive`, until the last of its children has ended or was given up on.
        """
        self._check_process()
        stopped: ActorFuture[bool] = ActorFuture()
        stopped._target = self  # noqa: SLF001 - as the seam's own futures: so that a cycle of waits is found
        try:
            self.tell_anyway(SHUT_DOWN)
        except ActorEnded:
            stopped.try_set(False)  # noqa: FBT003 - the answer
        else:
            self.monitor(lambda _: stopped.try_set(True))  # noqa: FBT003 - the answer
        return stopped.get(timeout=timeout) if block else stopped

    def halt(self) -> bool:
        """As `stop`, ahead of all that was told. False if it was dead. Does not wait: `monitor` it."""
        try:
            self.tell_control(SHUT_DOWN)
        except ActorEnded:
            return False
        return True

    def halt_itself(self) -> None:
        """End now. Of the supervisor, when it has no children any more."""
        super().halt()

    def begin(self, dispatcher: Dispatcher, on_exit: Callable[[ExitReport], object] | None) -> None:
        """See `ActorRef.begin`. Its own monitor is the first: later ones find the children told."""
        super().begin(dispatcher, self._ended)
        if on_exit is not None:
            self.monitor(on_exit)

    @property
    def dispatcher(self) -> Dispatcher | None:
        """Where it runs, and where children named by their class do."""
        return self._dispatcher

    def gave_up(self, child_id: str, ref: ActorRef[Any]) -> bool:
        """Abandon a child and put it on the list of the unstopped. False if it has ended."""
        if not ref.abandon():
            return False
        self._given_up.append(child_id)
        return True

    def inherit_unstopped(self, child_id: str, ref: ActorRef[Any]) -> None:
        """Take over what a child that is a supervisor had to give up on."""
        if isinstance(ref, SupervisorRef):
            self._given_up.extend(f"{child_id}/{name}" for name in ref.unstopped)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _order(self, order: Callable[[ActorFuture[T]], object]) -> ActorFuture[T]:
        self._check_process()
        reply: ActorFuture[T] = ActorFuture()
        reply._target = self  # noqa: SLF001 - see `stop`
        # Owed before it is told: if the telling succeeds and the supervisor ends without an answer, `_ended`, which
        # runs after the mailbox was closed, finds it here.
        self._owed.add(reply)
        reply.add_done_callback(self._owed.discard)
        try:
            self.tell_anyway(order(reply))
        except ActorEnded as error:
            reply.try_fail(error)
        return reply

    def _ended(self, report: ExitReport) -> None:
        """However it ended: nobody supervises its children any more, and nobody answers."""
        # Copies in one step each, for a supervisor that was abandoned in mid-turn may still write. What it adds to
        # `live` after this it finds to be its own to end: it looks whether it lives after adding.
        for spec, ref in reversed(self.live.copy().values()):
            if not report.abandoned:
                tell_to_stop(spec, ref)
            elif self.gave_up(spec.id, ref):
                self.inherit_unstopped(spec.id, ref)
        dead = ActorEnded(f"{self} ended before it had done what it was asked")
        dead.__cause__ = report.error
        self._ready.try_fail(report.error if isinstance(report.error, Exception) else dead)
        for reply in self._owed.copy():
            reply.try_fail(dead)
