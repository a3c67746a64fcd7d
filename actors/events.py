"""The event catalogue, the bus that carries it, and its structlog adapter.

A subscriber or log sink that raises harms no run.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import textwrap
import threading
from collections.abc import Callable, MutableMapping
from typing import Any, Final, cast

import msgspec
import structlog

from executus.actors.outcomes import ErrorInfo, Fact, Phase, escape, safe_text, traceback_text
from executus.stores import RunStatus


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Something that happened. Subclasses are the whole catalogue; `severity` is a logging level name."""


class RunEvent(Event, frozen=True, kw_only=True, tag=True):
    """Something that happened to one run."""

    run_id: str
    run_type: str
    attempt: int
    epoch: int


class RunStarted(RunEvent, frozen=True, kw_only=True, tag=True):
    """The start record is committed; `begin` comes next."""


class RunResumed(RunEvent, frozen=True, kw_only=True, tag=True):
    """A run of an earlier boot, or one resumed by hand, is claimed and comes back. `strikes` is what it carries now."""

    strikes: int


class RunRestored(RunEvent, frozen=True, kw_only=True, tag=True):
    """A resumed run has its state back. `fell_back` says why the newest generation was passed over."""

    resumed_from_seq: int
    fell_back: str | None = None


class RunExited(RunEvent, frozen=True, kw_only=True, tag=True):
    """An exception ended an attempt; what becomes of the run follows.

    One that was being ended anyway ends as it would have.
    """

    error: ErrorInfo
    phase: Phase
    seq: int


class RunRestarting(RunEvent, frozen=True, kw_only=True, tag=True):
    """A restart is due in `delay_s`."""

    delay_s: float
    resumed_from_seq: int
    afresh: bool


class RunSettled(RunEvent, frozen=True, kw_only=True, tag=True):
    """The run has ended, or rests: `status` says which. `durable` is False where that is not in the store yet."""

    status: RunStatus
    reason: str
    seq: int
    durable: bool


class RunPassivated(RunEvent, frozen=True, kw_only=True, tag=True):
    """The run waits in the store alone. `timed` says whether it has a time to come back at."""

    seq: int
    timed: bool


class RunActivated(RunEvent, frozen=True, kw_only=True, tag=True):
    """A passivated run is wanted or due: it is claimed and comes back."""


class RunHung(RunEvent, frozen=True, kw_only=True, tag=True):
    """A callback went on without heartbeat for longer than idle_timeout_s.

    `stack` is its thread's, where it has one.
    """

    idle_s: float
    stack: str


class RunUnstopped(RunEvent, frozen=True, kw_only=True, tag=True):
    """A callback did not return within the grace.

    It was fenced and given up on; its thread is leaked until it returns.
    """

    stack: str
    leaked_threads: int


class RunFencedOff(RunEvent, frozen=True, kw_only=True, tag=True):
    """An attempt that no longer holds its claim tried to save. It was refused and told to stop."""


class RunProgressed(RunEvent, frozen=True, kw_only=True, tag=True):
    """`context.progress` was called."""

    done: float
    total: float | None
    note: str


class RunReported(RunEvent, frozen=True, kw_only=True, tag=True):
    """`context.report` was called: something that means something to the run's own kind."""

    what: str
    facts: dict[str, Fact]


class SaveRefused(RunEvent, frozen=True, kw_only=True, tag=True):
    """A state that cannot be stored. The last good snapshot stands and the run goes on."""

    error: ErrorInfo
    seq: int


class MessagesLost(RunEvent, frozen=True, kw_only=True, tag=True):
    """The run ended, or rests, with messages in its mailbox. Who asked was told; what was told is lost.

    `durable` of them were sent: those go with an ending for good only.
    """

    count: int
    durable: int = 0


class MessageExpired(RunEvent, frozen=True, kw_only=True, tag=True):
    """A durable message was not heard in time. It is consumed with the next save."""

    message_id: str
    number: int


class SnapshotSaved(RunEvent, frozen=True, kw_only=True, tag=True):
    """Snapshot `seq` is durable."""

    seq: int


class StoreDegraded(Event, frozen=True, kw_only=True, tag=True):
    """A commit failed. Runs go on, saves are retried."""

    error: ErrorInfo
    waiting_saves: int


class StoreRecovered(Event, frozen=True, kw_only=True, tag=True):
    """Commits come through again."""

    down_s: float


class StoreActorRestarted(Event, frozen=True, kw_only=True, tag=True):
    """The store actor crashed and came back alone; unacknowledged saves are offered again."""

    error: ErrorInfo


class ThreadsExhausted(Event, frozen=True, kw_only=True, tag=True):
    """No thread could be started for `waiting` turns; they wait for the next that can. Told once, until one starts."""

    error: ErrorInfo
    waiting: int


class RunsPruned(Event, frozen=True, kw_only=True, tag=True):
    """A sweep has deleted `count` ended runs, by status in `pruned`.

    It has passed over `needed` whose parents have not taken in their ends. `filling` says that the store is so full
    that runs went early.
    """

    count: int
    pruned: dict[str, int]
    needed: int
    filling: bool


class StoreFilling(Event, frozen=True, kw_only=True, tag=True):
    """So much of the store's map is in use that ended runs are kept for a shorter time. At 90 % no new run is taken."""

    used_ratio: float


class RuntimeOpened(Event, frozen=True, kw_only=True, tag=True):
    """The runtime is open."""

    boot_epoch: int
    resumed: int
    parked: int
    quarantined: int


class RuntimeDraining(Event, frozen=True, kw_only=True, tag=True):
    """No new runs; the live ones are being suspended."""

    live: int


class RuntimeClosed(Event, frozen=True, kw_only=True, tag=True):
    """The runtime is closed. `escalated` names the crash that closed it, if one did."""

    escalated: ErrorInfo | None = None


SEVERITY: Final[dict[type[Event], str]] = {
    RunExited: "warning",
    MessagesLost: "warning",
    MessageExpired: "warning",
    RunHung: "error",
    RunUnstopped: "error",
    RunFencedOff: "warning",
    SaveRefused: "error",
    StoreDegraded: "error",
    ThreadsExhausted: "error",
    StoreRecovered: "warning",
    StoreActorRestarted: "error",
    StoreFilling: "warning",
    SnapshotSaved: "debug",
    RunProgressed: "debug",
    RunReported: "debug",
}
"""Everything else is 'info'.

RunSettled is a warning for failed, quarantined and parked runs, RunRestored when it fell back.
"""


def severity(event: Event) -> str:
    """The log level of an event."""
    if isinstance(event, RunSettled) and event.status in {RunStatus.FAILED, RunStatus.QUARANTINED, RunStatus.PARKED}:
        return "warning"
    if isinstance(event, RunRestored) and event.fell_back is not None:
        return "warning"
    return SEVERITY.get(type(event), "info")


Subscriber = Callable[[Event], None]
Kinds = type[Event] | tuple[type[Event], ...]


class EventBus:
    """Carries events to subscribers, on the thread on which they happen. Subscribers must be short.

    The tuple of subscribers is replaced, never changed, so that `emit` reads it without a lock: it sees the old or
    the new one whole.
    """

    def __init__(self) -> None:
        self._subscribers: tuple[tuple[Subscriber, Kinds], ...] = ()
        self._lock = threading.Lock()
        self.failures = 0

    def subscribe(self, subscriber: Subscriber, *, only: Kinds = Event) -> Callable[[], None]:
        """Call `subscriber` for every event of these kinds from now on; the returned function ends that.

        A run that steps by the thousand reports its progress and its saves only where somebody wants to hear of them.
        """
        with self._lock:  # two subscribers at once must not overwrite each other's tuple
            self._subscribers = (*self._subscribers, (subscriber, only))

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = tuple(pair for pair in self._subscribers if pair[0] is not subscriber)

        return unsubscribe

    def is_heard(self, kind: type[Event]) -> bool:
        """Whether anybody listens to this kind; events made by the thousand are not even built otherwise."""
        for _, only in self._subscribers:  # noqa: SIM110 - any() takes three times as long, here where it matters
            if issubclass(kind, only):
                return True
        return False

    def emit(self, event: Event) -> None:
        """Tell every subscriber. What they raise is counted in `failures` and logged once per kind, never passed on."""
        for subscriber, only in self._subscribers:
            if not isinstance(event, only):
                continue
            try:
                subscriber(event)
            except BaseException as error:  # noqa: BLE001 - the boundary between the runtime and code that watches it
                self.failures += 1
                _report_failure(subscriber, error)


_reported: set[str] = set()


def _report_failure(subscriber: Subscriber, error: BaseException) -> None:
    kind = (
        f"{safe_text(getattr(subscriber, '__qualname__', type(subscriber).__qualname__))} raised {type(error).__name__}"
    )
    if kind in _reported:
        return
    _reported.add(kind)
    with contextlib.suppress(BaseException):  # the log sink itself is what raises
        logging.getLogger("executus").error(
            "event subscriber %s: %s; runs are unaffected, reported once", kind, safe_text(error)
        )


def log_events(logger: Any) -> Subscriber:
    """A subscriber that writes events to a structlog logger: the event's name, its fields, texts escaped.

    A crash's traceback goes under `exception`, where structlog's renderers look for one.
    """

    def write(event: Event) -> None:
        fields = {name: _plain(getattr(event, name)) for name in event.__struct_fields__}
        if isinstance(event, (RunExited, StoreActorRestarted)) and event.error.traceback:
            fields["exception"] = "\n".join(map(escape, event.error.traceback.splitlines()))
        getattr(logger, severity(event))(type(event).__name__, **fields)

    return write


def _plain(value: object) -> object:
    if isinstance(value, ErrorInfo):
        return escape(str(value))
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in cast("dict[str, object]", value).items()}
    return escape(str(value)) if isinstance(value, str) else value  # str(): an enum's member is its value


_fields = structlog.processors.KeyValueRenderer(key_order=["event", "run_id"])


def _render(logger: Any, method: str, entry: MutableMapping[str, Any]) -> str:
    """One line of fields; below it a traceback, indented, so that no text in it can pass for a line of its own."""
    trace = entry.pop("exception", None)
    if (raised := entry.pop("exc_info", None)) and trace is None:
        error = raised if isinstance(raised, BaseException) else sys.exc_info()[1]
        trace = None if error is None else "\n".join(map(escape, traceback_text(error).splitlines()))
    line = _fields(logger, method, entry)
    return line if trace is None else f"{line}\n{textwrap.indent(trace, '    ')}"


def default_logger() -> Any:
    """structlog as the host has configured it; else the standard library's logger "executus", unconfigured.

    structlog's own default prints everything to stdout, which a library must not do unasked.
    """
    if structlog.is_configured():
        return structlog.get_logger("executus")
    return structlog.wrap_logger(
        logging.getLogger("executus"),
        processors=[structlog.stdlib.filter_by_level, _render],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
