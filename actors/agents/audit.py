"""The port to audits: what an agent's run did, in order, as typed entries.

None holds a call's arguments, or words of the conversation other than a nudge.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from executus.actors.agents.agent import RunInfo, Status
from executus.actors.agents.parts import NOTHING, Usage


class Entry(msgspec.Struct, frozen=True, kw_only=True, tag=True, gc=False):
    """Something that a run did, or that was done to it. Subclasses are the whole catalogue. `at_s` is wall time."""

    info: RunInfo
    at_s: float
    attempt: int


class RunBegan(Entry, frozen=True, kw_only=True, tag=True):
    """The first step comes next."""


class RunResumed(Entry, frozen=True, kw_only=True, tag=True):
    """Another attempt goes on from a snapshot in which so many steps were done."""

    step: int


class StepTaken(Entry, frozen=True, kw_only=True, tag=True):
    """The model has answered request number `step`, counted from 0, and asks for so many calls."""

    step: int
    usage: Usage
    calls: int
    took_s: float


class ToolAnswered(Entry, frozen=True, kw_only=True, tag=True):
    """A call has its result. `unknown` where it was interrupted and may or may not have happened."""

    name: str
    call_id: str
    is_error: bool
    unknown: bool = False
    took_s: float = 0.0


class PhaseBegan(Entry, frozen=True, kw_only=True, tag=True):
    """A phase begins, or goes on in another attempt."""

    index: int
    name: str


class PhaseEnded(Entry, frozen=True, kw_only=True, tag=True):
    """A phase is over and in the state. `failed` an optional one alone."""

    index: int
    name: str
    status: Status


class Nudged(Entry, frozen=True, kw_only=True, tag=True):
    """The critic has put a message into the conversation. `stall` is what it saw."""

    text: str
    stall: str = ""


class Extended(Entry, frozen=True, kw_only=True, tag=True):
    """The critic has raised the step ceiling or the deadline."""

    steps: int = 0
    seconds: float = 0.0
    reason: str = ""


class RestartOrdered(Entry, frozen=True, kw_only=True, tag=True):
    """The critic wants the run to start again from its last snapshot."""

    reason: str


class KillOrdered(Entry, frozen=True, kw_only=True, tag=True):
    """The critic wants the run to end for good."""

    reason: str


class Steered(Entry, frozen=True, kw_only=True, tag=True):
    """So many messages from outside have been taken into the conversation."""

    count: int


class Delegated(Entry, frozen=True, kw_only=True, tag=True):
    """A call of another agent or skill has become a child run."""

    key: str
    subject: str
    child_run_id: str


class ChildSettled(Entry, frozen=True, kw_only=True, tag=True):
    """A child has ended: with a result's status, or as its outcome is called."""

    key: str
    status: str


class RunConcluded(Entry, frozen=True, kw_only=True, tag=True):
    """The run has ended: with a result's status, or as its outcome is called."""

    status: str
    reason: str = ""
    usage: Usage = NOTHING
    steps: int = 0


AuditEntry = (
    RunBegan
    | RunResumed
    | StepTaken
    | ToolAnswered
    | PhaseBegan
    | PhaseEnded
    | Nudged
    | Extended
    | RestartOrdered
    | KillOrdered
    | Steered
    | Delegated
    | ChildSettled
    | RunConcluded
)


def facts_of(entry: AuditEntry) -> dict[str, str | float | bool]:
    """An entry as the facts of a `RunReported` event, with whose run it is."""
    info = entry.info
    facts: dict[str, str | float | bool] = {
        name: value for name in ("subject", "caller", "channel", "guild", "tier") if (value := str(getattr(info, name)))
    }
    for name in entry.__struct_fields__:
        value = getattr(entry, name)
        if isinstance(value, Usage):
            facts |= {"tokens": value.tokens, "requests": value.requests, "usd": value.usd}
        elif isinstance(value, str | int | float) and name not in {"at_s", "attempt"}:
            facts[name] = value
    return facts


class Audit(Protocol):
    """Is told what runs do, each run's entries in order; what a crash took back is told again in the next attempt.

    One audit serves many runs, on whichever threads they are, and must be short. One that raises harms nothing.
    """

    def record(self, entry: AuditEntry, /) -> None:
        """Take note."""
        ...
