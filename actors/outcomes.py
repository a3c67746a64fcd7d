"""How runs end. `classify` turns the evidence of an ended attempt into an Exit; nothing else decides that. Pure."""

from __future__ import annotations

import enum
import math
import traceback as tracebacks
from collections.abc import Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

R = TypeVar("R")

MAX_TEXT_CHARS: Final = 2_000
MAX_TRACEBACK_CHARS: Final = 16_000
"""Error texts are stored and logged; a runaway `__str__` must not fill the store."""

UNDECODABLE: Final = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, MemoryError)
"""What decoding stored bytes as a type may raise: text that is no UTF-8 is a UnicodeDecodeError, no MsgspecError."""


class Phase(enum.StrEnum):
    """What an attempt was doing."""

    STARTING = "starting"
    RESTORING = "restoring"
    BEGIN = "begin"
    STEP = "step"
    RECEIVE = "receive"
    WAITING = "waiting"
    SAVING = "saving"
    STOPPING = "stopping"
    HUNG = "hung"


MAX_FACTS: Final = 16
MAX_FACT_NAME_CHARS: Final = 64
MAX_FACT_CHARS: Final = 200
"""Facts are for programs to act on; what is larger belongs into the state, or the message."""

Fact = str | int | float | bool


class ErrorInfo(msgspec.Struct, frozen=True):
    """An exception as data.

    `type` is qualified, `message` escaped, `traceback` without local variables (they leak secrets), and `mro` holds the
    qualified names of its classes, so that a policy can match it without the object. `facts` are what the exception
    has under that name: see `facts_of`.
    """

    type: str
    message: str
    traceback: str = ""
    mro: tuple[str, ...] = ()
    fact_pairs: tuple[tuple[str, Fact], ...] = msgspec.field(default=(), name="facts")
    """As pairs, so that outcomes stay hashable."""

    @property
    def facts(self) -> dict[str, Fact]:
        """The small scalars that the exception carried, by name."""
        return dict(self.fact_pairs)

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        """Describe `error`. Never raises, whatever its `__str__` does."""
        kind = type(error)
        return cls(
            type=qualified_name(kind),
            message=safe_text(error),
            traceback=traceback_text(error),
            mro=tuple(qualified_name(base) for base in kind.__mro__ if base is not object),
            fact_pairs=facts_of(error),
        )

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class ErrorLink(msgspec.Struct, frozen=True, omit_defaults=True):
    """One error of a chain. `relation` is what it is to the one before: `cause`, `context` or `member` of its group.

    `frames` are `file:line in function`, the innermost last, of which `left_out` outer ones are not there.
    """

    relation: str
    type: str
    message: str
    frames: tuple[str, ...] = ()
    left_out: int = 0


def facts_of(error: BaseException) -> tuple[tuple[str, Fact], ...]:
    """The scalars of the mapping that the exception has as `facts`, copied. Never raises.

    Of its first 16 entries those with a name of at most 64 characters and a text, a bool, a finite float or an integer
    of 64 bits; texts are cut at 200 characters; names and texts are escaped.
    """
    try:
        given: object = getattr(error, "facts", None)
        return tuple(scalars_of(cast("Mapping[object, object]", given))) if isinstance(given, Mapping) else ()
    except BaseException:  # noqa: BLE001 - a foreign mapping may raise anything, and this is for reporting errors
        return ()


def scalars_of(given: Mapping[Any, object]) -> Iterator[tuple[str, Fact]]:
    """The facts among these, as `facts_of` says. Raises what a foreign mapping raises."""
    for name, value in islice(given.items(), MAX_FACTS):
        if not isinstance(name, str) or str.__len__(name) > MAX_FACT_NAME_CHARS:
            continue
        shown = escape(str.__str__(name))
        match value:
            case str():
                yield shown, escape(str.__str__(value)[:MAX_FACT_CHARS])
            case bool():
                yield shown, value
            case int() if -(1 << 63) <= int.__int__(value) < 1 << 64:
                yield shown, int.__int__(value)
            case float() if math.isfinite(float.__float__(value)):
                yield shown, float.__float__(value)
            case _:
                continue


def qualified_name(kind: type) -> str:
    """The name under which a policy's `fatal` finds an exception class; builtins without their module."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def safe_text(value: object) -> str:
    """`str(value)`, cut, escaped for terminals and logs, or a note that it could not be had. Never raises."""
    try:
        text = str(value)
    except BaseException as error:  # noqa: BLE001 - a __str__ may raise anything, and this text is for reporting errors
        text = f"<{type(value).__name__} whose __str__ raised {type(error).__name__}>"
    return escape(text[:MAX_TEXT_CHARS])


def escape(text: str) -> str:
    r"""Make control characters visible (`\n`, `\x1b`) so that user text cannot forge log lines or drive a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def indented(text: str) -> str:
    """Lines of foreign text as they may stand in a log: each one indented and escaped."""
    return "\n".join(f"  {escape(line)}" for line in text.splitlines())


def traceback_text(error: BaseException) -> str:
    """Its traceback, cut, without local variables and the runtime's own frames on top. Never raises."""
    try:
        described = tracebacks.TracebackException(
            type(error), error, from_user_code(error.__traceback__), capture_locals=False, compact=True
        )
        text = "".join(described.format())
    except BaseException as failure:  # noqa: BLE001 - formatting calls the error's own __str__ and __notes__
        text = "".join(tracebacks.format_tb(error.__traceback__)) + f"<unprintable: {type(failure).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode()[-MAX_TRACEBACK_CHARS:]


def from_user_code(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the runtime's own frames on top: they are the same for every crash and tell nothing."""
    while trace is not None and trace.tb_next is not None and _is_ours(trace):
        trace = trace.tb_next
    return trace


def _is_ours(trace: TracebackType) -> bool:
    return str(trace.tb_frame.f_globals.get("__name__")).startswith("executus.actors.")


# --- causes: why somebody wants a run to end; recorded in order, the first one counts ---------------------------------


class KillRequested(msgspec.Struct, frozen=True, tag=True):
    """Somebody killed it. Its tombstone is committed before this is recorded."""

    by: str
    reason: str


class CancelRequested(msgspec.Struct, frozen=True, tag=True):
    """Somebody cancelled it, or its parent ended."""

    by: str
    reason: str


class StopRequested(msgspec.Struct, frozen=True, tag=True):
    """Somebody stopped it; it stays so until resumed by hand."""


class DrainRequested(msgspec.Struct, frozen=True, tag=True):
    """The runtime shuts down."""


class RunTimeoutElapsed(msgspec.Struct, frozen=True, tag=True):
    """Its run_timeout_s is over."""


Cause = KillRequested | CancelRequested | StopRequested | DrainRequested | RunTimeoutElapsed


# --- exits and outcomes -----------------------------------------------------------------------------------------------


class Completed(msgspec.Struct, Generic[R], frozen=True, tag="Completed"):
    """It returned Done. `durable` is False when the result was reported before its commit came through."""

    result: R
    durable: bool = True


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It crashed for good: fatal error, no restarts wanted, or the budget spent. `resume()` by hand is possible."""

    error: ErrorInfo
    phase: Phase
    restarts: int


class Quarantined(msgspec.Struct, frozen=True, tag=True):
    """No generation of its state can be read, or it took the process down three times. Kept whole."""

    reason: str


class Killed(msgspec.Struct, frozen=True, tag=True):
    """It was killed; no reboot resurrects it."""

    by: str
    reason: str


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """It was cancelled, after `stopping`."""

    by: str
    reason: str


class TimedOut(msgspec.Struct, frozen=True, tag=True):
    """Its run_timeout_s elapsed."""


class Crashed(msgspec.Struct, frozen=True, tag=True):
    """An exception escaped a callback, or it hung; whether it comes back is the policy's decision."""

    error: ErrorInfo
    phase: Phase


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """It was stopped by hand."""


class Suspended(msgspec.Struct, frozen=True, tag=True):
    """The runtime shut down under it; the next boot resumes it."""


class Passivated(msgspec.Struct, frozen=True, tag=True):
    """It has waited for long enough to rest in the store alone."""


class Parked(msgspec.Struct, frozen=True, tag=True):
    """This code cannot read its state, or go on with it (schema newer, `upgrade` or `resuming` raised).

    Untouched, tried again at each boot.
    """

    reason: str


Outcome = Completed[Any] | Failed | Quarantined | Killed | Cancelled | TimedOut
"""What a waiter gets."""

Exit = (
    Completed[Any] | Crashed | Quarantined | Parked | Killed | Cancelled | TimedOut | Stopped | Suspended | Passivated
)
"""What a supervisor classifies."""


class ExitEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about an ended attempt. `causes` in the order in which they were recorded; `done` is what Done held.

    `rested` says that it left by itself, waiting, with everything saved. `chain` is `error` once more with what led to
    it: for the flight record, nothing is decided by it.
    """

    phase: Phase
    done: Completed[Any] | None = None
    error: ErrorInfo | None = None
    chain: tuple[ErrorLink, ...] = ()
    causes: tuple[Cause, ...] = ()
    unreadable: str | None = None
    incompatible: str | None = None
    rested: bool = False


NO_REASON: Final = ErrorInfo(
    type="executus.UnexplainedExit", message="the attempt ended without result, error or request"
)


def classify(evidence: ExitEvidence) -> Exit:
    """Say how an attempt ended.

    A kill goes first, because its tombstone is already in the store. A normal Done completes even while stopping. State
    that cannot be read, or that this code cannot go on with, outranks requests, because nothing can be suspended or
    stopped without it. Then the first recorded cause wins: an error after a drain began is an interruption. What is
    left is a crash.
    """
    for cause in evidence.causes:
        if isinstance(cause, KillRequested):
            return Killed(cause.by, cause.reason)
    if evidence.done is not None:
        return evidence.done
    if evidence.unreadable is not None:
        return Quarantined(evidence.unreadable)
    if evidence.incompatible is not None:
        return Parked(evidence.incompatible)
    match evidence.causes[:1]:
        case (CancelRequested(by, reason),):
            return Cancelled(by, reason)
        case (StopRequested(),):
            return Stopped()
        case (DrainRequested(),):
            return Suspended()
        case (RunTimeoutElapsed(),):
            return TimedOut()
        case () if evidence.rested:
            return Passivated()
        case _:
            return Crashed(evidence.error or NO_REASON, evidence.phase)


# --- outcomes in the store --------------------------------------------------------------------------------------------

_StoredOutcome = Completed[msgspec.Raw] | Failed | Quarantined | Killed | Cancelled | TimedOut
_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(_StoredOutcome)


def encode_outcome(outcome: Outcome) -> bytes:
    """The bytes that the store keeps. Raises what msgspec raises for a result it cannot encode."""
    return _encoder.encode(outcome)


def decode_outcome(data: bytes, result_type: Any) -> Outcome:
    """Read an outcome back, its result as `result_type`. Raises msgspec.ValidationError or DecodeError."""
    outcome: Outcome = _decoder.decode(data)
    if isinstance(outcome, Completed):
        return Completed(msgspec.msgpack.decode(outcome.result, type=result_type), outcome.durable)
    return outcome
