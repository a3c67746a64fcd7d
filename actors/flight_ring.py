"""What one run's flight record is made of, in memory: bounded, and made only once there is something to tell.

Written by the attempt, the supervisor and whoever emits an event of the run, each on its thread, so under a lock. None
of it is on the path of a step that goes well.
"""

from __future__ import annotations

import enum
import os
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

from msgspec.structs import replace

from executus.actors.events import (
    MessageExpired,
    MessagesLost,
    RunActivated,
    RunEvent,
    RunExited,
    RunHung,
    RunPassivated,
    RunProgressed,
    RunReported,
    RunRestarting,
    RunRestored,
    RunSettled,
    RunStarted,
    RunUnstopped,
    SaveRefused,
    SnapshotSaved,
)
from executus.actors.flight import (
    DETAIL_CHARS,
    MAX_EVENTS,
    MAX_EXITS,
    VERSION,
    AttemptExit,
    EndRequest,
    FlightEvent,
    FlightRecord,
    Refusals,
    ThreadStack,
    cut,
)
from executus.actors.outcomes import ErrorInfo, ErrorLink, escape
from executus.stores import RunClaim

STACK_LINES: Final = 40
_TELLING: Final = frozenset({RunExited, RunHung, RunUnstopped, SaveRefused, MessagesLost, MessageExpired})
_UNHEARD: Final = frozenset(
    {RunStarted, RunSettled, RunProgressed, RunReported, SnapshotSaved, RunPassivated, RunActivated}
)
"""Record and claim say so themselves, or they come by the thousand."""
_NOT_FACTS: Final = frozenset({*RunEvent.__struct_fields__, "stack"})


def is_telling(event: RunEvent) -> bool:
    """Whether it is out of the ordinary: such an event begins a run's ring, others are heard where there is one."""
    if isinstance(event, RunRestored):
        return event.fell_back is not None
    if isinstance(event, RunRestarting):
        return not event.afresh
    return type(event) in _TELLING


class FlightRing:
    """The last events and exits of one life of a run, and the last error, stack and refused save. On any thread."""

    __slots__ = (
        "_chain",
        "_chain_attempt",
        "_earlier",
        "_events",
        "_events_dropped",
        "_exits",
        "_exits_dropped",
        "_lock",
        "_refused",
        "_request",
        "_stack",
        "read_earlier",
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: deque[FlightEvent] = deque(maxlen=MAX_EVENTS)
        self._events_dropped = 0
        self._exits: deque[AttemptExit] = deque(maxlen=MAX_EXITS)
        self._exits_dropped = 0
        self._chain: tuple[ErrorLink, ...] = ()
        self._chain_attempt = 0
        self._stack: ThreadStack | None = None
        self._refused: Refusals | None = None
        self._request: EndRequest | None = None
        self._earlier = ""
        self.read_earlier = False
        """Whether what the store has of earlier attempts is in it. The supervisor's alone."""

    def hear(self, at_s: float, event: RunEvent) -> None:
        """One more event of the run. Equal ones in a row count as one."""
        if type(event) in _UNHEARD:
            return
        heard = FlightEvent(at_s, type(event).__name__, facts_of(event))
        with self._lock:
            if isinstance(event, SaveRefused):
                self._refuse(event.seq, str(event.error))
            if self._events and self._events[-1].name == heard.name:
                heard = replace(heard, times=self._events.pop().times + 1)
            elif len(self._events) == MAX_EVENTS:
                self._events_dropped += self._events[0].times
            self._events.append(heard)
        if isinstance(event, (RunHung, RunUnstopped)):
            self.saw_stack(at_s, "it hung" if isinstance(event, RunHung) else "it did not stop in time", event.stack)

    def _refuse(self, seq: int, why: str) -> None:
        times = 0 if self._refused is None else self._refused.times
        self._refused = Refusals(times + 1, seq, cut(why, DETAIL_CHARS))

    def refused_by_store(self, seq: int, why: str) -> None:
        """A state could not be encoded when it was due. Told of at each look, and counted once for each seq."""
        with self._lock:
            if self._refused is None or self._refused.seq < seq:
                self._refuse(seq, why)

    def saw_stack(self, at_s: float, when: str, stack: str) -> None:
        """Where the run's thread was; an empty stack is none."""
        lines = _from_user_code(stack.rstrip().splitlines())
        if lines:
            kept = tuple(map(escape, lines[-STACK_LINES:]))
            with self._lock:
                self._stack = ThreadStack(at_s, when, kept, len(lines) - len(kept))

    def requested(self, request: EndRequest) -> None:
        """Somebody wants the run to end."""
        with self._lock:
            self._request = request

    def ended(self, attempt: AttemptExit, chain: Sequence[ErrorLink] = ()) -> None:
        """An attempt has ended, with this error and what led to it."""
        with self._lock:
            if len(self._exits) == MAX_EXITS:
                self._exits_dropped += 1
            self._exits.append(attempt)
            if chain:
                self._chain, self._chain_attempt = tuple(chain), attempt.attempt

    def after(self, earlier: FlightRecord | None, why_not: str = "") -> None:
        """Put what is stored before what was heard here; `why_not` where something is stored and cannot be read."""
        self.read_earlier = True
        with self._lock:
            self._earlier = why_not
            if earlier is None:
                return
            exits, events = [*earlier.exits, *self._exits], [*earlier.events, *self._events]
            self._exits_dropped += earlier.exits_dropped + max(0, len(exits) - MAX_EXITS)
            self._events_dropped += earlier.events_dropped + sum(event.times for event in events[:-MAX_EVENTS])
            self._exits = deque(exits, maxlen=MAX_EXITS)
            self._events = deque(events, maxlen=MAX_EVENTS)
            if not self._chain:
                self._chain, self._chain_attempt = earlier.chain, earlier.chain_attempt
            self._stack = self._stack or earlier.stack
            self._refused = self._refused or earlier.refused
            self._earlier = why_not or earlier.earlier

    def record(self, claim: RunClaim, at_s: float, status: str, *, seq: int = 0, **now: Any) -> FlightRecord:
        """All of it, with the facts of the moment: `durable_seq`, `heartbeat`, `progress`, `store_trouble`.

        `seq` is the last that has a state in memory: one that was refused may have come after it.
        """
        with self._lock:
            return FlightRecord(
                version=VERSION,
                incarnation=claim.incarnation,
                attempt=claim.attempt,
                epoch=claim.epoch,
                at_s=at_s,
                status=status,
                seq=seq if self._refused is None else max(seq, self._refused.seq),
                exits=tuple(self._exits),
                exits_dropped=self._exits_dropped,
                chain=self._chain,
                chain_attempt=self._chain_attempt,
                events=tuple(self._events),
                events_dropped=self._events_dropped,
                stack=self._stack,
                refused=self._refused,
                request=self._request,
                earlier=self._earlier,
                **now,
            )


def _from_user_code(lines: list[str]) -> list[str]:
    """A stack without the frames of thread and runtime that call the callback; with them where there is no other."""
    ours = tuple(f'  File "{path}' for path in (threading.__file__, f"{Path(__file__).parent}{os.sep}"))
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    return next((lines[number:] for number in frames if not lines[number].startswith(ours)), lines)


def facts_of(event: RunEvent) -> str:
    """The facts of an event in one line, without those that every event of the run has, and without stacks."""
    facts: list[str] = []
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if name not in _NOT_FACTS and value is not None and value != "":
            facts.append(f"{name}={_text(value)}")
    return cut(", ".join(facts), DETAIL_CHARS)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):  # of RunReported: texts are cut and escaped already
        return " ".join(f"{name}={_text(fact)}" for name, fact in cast("dict[str, object]", value).items())
    if isinstance(value, (ErrorInfo, enum.Enum, int, str)):
        return str(value.value if isinstance(value, enum.Enum) else value)
    return type(value).__name__


class _Flown(Protocol):
    """An Incarnation, as far as it is needed here."""

    flight: FlightRing | None


_making: Final = threading.Lock()


def ring_of(inc: _Flown) -> FlightRing:
    """A run's flight ring, made where there is none. On any thread."""
    ring = inc.flight
    if ring is None:
        with _making:
            ring = inc.flight = inc.flight or FlightRing()
    return ring
