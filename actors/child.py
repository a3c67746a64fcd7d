"""What a supervisor knows of a child, what it hears of it, and which of its children is next."""

from __future__ import annotations

import heapq
from typing import Any, Literal, TypeAlias

import msgspec

from executus.actors.actor import ActorFuture, ActorRef, ExitReport
from executus.actors.child_spec import ChildSpec
from executus.actors.clock import TimerHandle
from executus.actors.errors import ChildStartFailed
from executus.actors.tree_ref import ChildInfo, ChildState, Order

StartedFor = Literal["initial", "start_child", "restart_child", "restart"]
"""What a child is started for, which says what follows if it cannot be."""


class Child:
    """A row of the table. Belongs to the supervisor's turn."""

    __slots__ = (
        "again", "asked", "delay", "failures", "life", "position", "put_off", "ref", "reply", "restarts", "spec",
        "started", "started_for", "started_s", "state", "stop_replies", "stop_timer",
    )  # fmt: skip

    def __init__(self, spec: ChildSpec, position: int, started_for: StartedFor) -> None:
        self.spec = spec
        self.position = position
        self.state = ChildState.WAITING
        self.started_for: StartedFor = started_for
        self.life = 0
        self.ref: ActorRef[Any] | None = None
        self.started: ActorFuture[None] | None = None
        self.started_s: float | None = None
        self.restarts = 0
        self.failures = 0
        """Failures in a row, for the backoff."""
        self.delay: int | None = None
        """The backoff that it waits for."""
        self.asked = False
        """Stopping: it was told so; before that, those behind it end."""
        self.again = False
        """Stopping: to be started again."""
        self.stop_timer: TimerHandle | None = None
        self.reply: ActorFuture[ActorRef[Any]] | None = None
        self.stop_replies: list[ActorFuture[bool]] = []
        self.put_off: list[Order] = []
        """Orders that wait until it has stopped."""

    def has_started(self) -> bool:
        """Whether its actor has said that it started, though perhaps not heard yet."""
        return self.started is not None and self.started.done() and self.started.error() is None

    def answer_start(self, ref: ActorRef[Any]) -> None:
        """Give its actor to who asked for its start, if somebody did."""
        if self.reply is not None:
            self.reply.try_set(ref)
            self.reply = None

    def refuse_start(self, supervisor: str, cause: BaseException | None, done: str) -> None:
        """Tell who asked for its start why it has not started."""
        if self.reply is not None:
            self.reply.try_fail(ChildStartFailed(supervisor, self.spec.id, cause, done))
            self.reply = None

    def answer_stops(self, *, in_time: bool) -> None:
        """Tell who asked for its stop."""
        replies, self.stop_replies = self.stop_replies, []
        for reply in replies:
            reply.try_set(in_time)

    def info(self) -> ChildInfo:
        """It, for others."""
        spec = self.spec
        return ChildInfo(spec.id, self.state, self.ref, spec.kind, spec.restart, self.restarts)


class InOrder:
    """Children that are in one of some states, the first or last of them at hand.

    A heap that forgets when looked at: with a search through the table each time, to start or stop 10,000 children
    would take 10,000 searches of as many rows.
    """

    def __init__(self, *states: ChildState, last_first: bool = False) -> None:
        self._states = states
        self._sign = -1 if last_first else 1
        self._heap: list[tuple[int, Child]] = []
        self._in: set[int] = set()

    def add(self, child: Child) -> None:
        """Put it in. Harmless if it is in already."""
        # Each once: so a child that is tried again for ever does not fill the heap, and positions alone are compared.
        place = self._sign * child.position
        if place not in self._in:
            self._in.add(place)
            heapq.heappush(self._heap, (place, child))

    def first(self) -> Child | None:
        """The first that is in such a state."""
        while self._heap and self._heap[0][1].state not in self._states:
            self._in.discard(heapq.heappop(self._heap)[0])
        return self._heap[0][1] if self._heap else None


# --- news: all by number, so that what is told of a former life of a child changes nothing ----------------------------


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


News: TypeAlias = ChildStarted | ChildExited | StopTimedOut | DelayElapsed
