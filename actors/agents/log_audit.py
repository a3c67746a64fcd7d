"""The default audit: one structlog line an entry, with whose run it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Literal, assert_never, cast

import structlog

from executus.actors.agents.agent import RunInfo
from executus.actors.agents.audit import (
    AuditEntry,
    ChildSettled,
    Delegated,
    Entry,
    Extended,
    KillOrdered,
    Nudged,
    PhaseBegan,
    PhaseEnded,
    RestartOrdered,
    RunBegan,
    RunConcluded,
    RunResumed,
    Steered,
    StepTaken,
    ToolAnswered,
)
from executus.actors.agents.parts import Usage
from executus.actors.events import default_logger
from executus.actors.outcomes import escape

Level = Literal["debug", "info", "warning"]

_NUMBERS: Final[dict[Level, int]] = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
MAX_CHARS: Final = 200
"""Of a text in a line."""

_WHOSE: Final = ("run_id", "subject", "caller", "channel", "guild", "parent_run_id", "root_run_id", "tier")
_CALM: Final = frozenset({"completed", "cancelled", "stopped", "suspended"})


class LogAudit:
    """Writes what happens to runs to a structlog logger. Configures nothing.

    None takes structlog as configured when it first writes, else the standard library's logger "executus".
    Steps and calls are `debug`, what a critic orders and what ends badly is `warning`, the rest `info`. A line holds no
    word of the conversation, of a nudge its length alone; inputs are left out, other texts escaped and cut.
    """

    def __init__(self, logger: Any = None) -> None:
        self._logger = logger
        self._takes: Callable[[int], bool] = _takes_all

    def record(self, entry: AuditEntry, /) -> None:
        """Write it, or do not even make the line where the default logger takes none of that level."""
        if self._logger is None:
            logger = default_logger()
            self._takes = _taker(logger)
            self._logger = logger  # twice, where two threads come at once: both are good
        level = level_of(entry)
        if self._takes(_NUMBERS[level]):
            getattr(self._logger, level)(type(entry).__name__, **fields_of(entry))


def _takes_all(_level: int, /) -> bool:
    return True


def _taker(logger: Any) -> Callable[[int], bool]:
    """Which levels the default logger takes, as far as it can be asked; see `default_logger`."""
    if not structlog.is_configured():
        return logging.getLogger("executus").isEnabledFor
    bound: object = logger.bind()
    known = hasattr(type(bound), "is_enabled_for")  # of its type: one that it passes on would be a line of the log
    return cast("Any", bound).is_enabled_for if known else _takes_all


def level_of(entry: AuditEntry) -> Level:
    """How loud an entry is."""
    match entry:
        case StepTaken():
            return "debug"
        case ToolAnswered():
            return "warning" if entry.unknown else "debug"
        case Nudged() | RestartOrdered() | KillOrdered():
            return "warning"
        case PhaseEnded() | ChildSettled() | RunConcluded():
            return "info" if entry.status in _CALM else "warning"
        case RunBegan() | RunResumed() | PhaseBegan() | Extended() | Steered() | Delegated():
            return "info"
        case _:
            assert_never(entry)


def fields_of(entry: AuditEntry) -> dict[str, object]:
    """What a line says: whose run it is, as far as that is known, and the entry's own fields."""
    fields = _whose(entry.info)
    fields["attempt"] = entry.attempt
    for field in type(entry).__struct_fields__:
        if field in Entry.__struct_fields__:
            continue
        value = getattr(entry, field)
        match value:
            case Usage():
                fields |= {"input_tokens": value.input_tokens, "output_tokens": value.output_tokens}
                fields["usd"] = round(value.usd, 6)
            case str() if field == "text":
                fields["chars"] = len(value)
            case str():
                fields["child_subject" if field == "subject" else field] = _plain(value)
            case float():
                fields[field] = round(value, 3)
            case _:
                fields[field] = value
    return fields


def _whose(info: RunInfo) -> dict[str, object]:
    """Under `agent` its name: `name` is a tool's or a phase's."""
    given: dict[str, object] = {field: _plain(value) for field in _WHOSE if (value := getattr(info, field))}
    return given | {"agent": _plain(info.name)}


def _plain(text: str) -> str:
    return escape(text[:MAX_CHARS])
