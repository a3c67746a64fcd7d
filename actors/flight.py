"""The flight record of a run: what is kept of how it came to stand where it stands, and how that fits 8 KiB. Pure.

Texts of any origin go in escaped and cut. Nothing of a run's state is in it, but what it says of itself: the texts of
errors, notes of progress, details of heartbeats.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from executus.actors.outcomes import (
    Cancelled,
    Completed,
    Crashed,
    ErrorLink,
    Exit,
    Killed,
    Parked,
    Passivated,
    Phase,
    Quarantined,
    Stopped,
    Suspended,
    TimedOut,
    escape,
)
from executus.stores import MAX_FLIGHT_BYTES

VERSION: Final = 1
"""Of what the fields mean. A field that is new needs no new version: older code passes it over, newer has a default."""

PROCESS_DIED: Final = "process died"
MAX_EXITS: Final = 8
MAX_EVENTS: Final = 16
DETAIL_CHARS: Final = 400


class AttemptExit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an attempt ended: `how` in a word or two, `error` and `where` (file:line) of a crash, `reason` else.

    `at_s` is wall time, of a death with its process that of the boot that found it; `seq` what it had reached.
    """

    attempt: int
    epoch: int
    at_s: float
    how: str
    phase: str = ""
    seq: int | None = None
    error: str = ""
    where: str = ""
    reason: str = ""


class FlightEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event, or the last of `times` equal ones in a row."""

    at_s: float
    name: str
    facts: str = ""
    times: int = 1


class Heartbeat(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last heartbeat, and what came with one last."""

    at_s: float
    details: str = ""


class ProgressMade(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the run told of itself last. A number that is none is None."""

    done: float | None
    total: float | None = None
    note: str = ""


class ThreadStack(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the run's thread was when it was killed, hung, or did not stop in time; the innermost frame last."""

    at_s: float
    when: str
    lines: tuple[str, ...]
    left_out: int = 0


class Refusals(msgspec.Struct, frozen=True, omit_defaults=True):
    """States that could not be stored: how many, the last of them, and why."""

    times: int
    seq: int
    why: str


class EndRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who wanted the run to end."""

    what: str
    by: str = ""
    reason: str = ""


class FlightRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is stored. `status` is what the commit that carries it made of the run; `exits` and `events` oldest first.

    `chain` is the last error's, of attempt `chain_attempt`. `earlier` says why nothing is left of an earlier record.
    """

    version: int
    incarnation: int
    attempt: int
    epoch: int
    at_s: float
    status: str
    seq: int = 0
    durable_seq: int = 0
    exits: tuple[AttemptExit, ...] = ()
    exits_dropped: int = 0
    chain: tuple[ErrorLink, ...] = ()
    chain_attempt: int = 0
    events: tuple[FlightEvent, ...] = ()
    events_dropped: int = 0
    heartbeat: Heartbeat | None = None
    progress: ProgressMade | None = None
    stack: ThreadStack | None = None
    refused: Refusals | None = None
    request: EndRequest | None = None
    store_trouble: str = ""
    earlier: str = ""


def how_of(exit_: Exit) -> str:
    """How an attempt ended, in a word."""
    match exit_:
        case Crashed(_, phase):
            return "hung" if phase is Phase.HUNG else "crashed"
        case Completed():
            return "completed"
        case Quarantined():
            return "quarantined"
        case Parked():
            return "parked"
        case Killed():
            return "killed"
        case Cancelled():
            return "cancelled"
        case TimedOut():
            return "timed out"
        case Stopped():
            return "stopped"
        case Suspended():
            return "suspended"
        case Passivated():
            return "passivated"


# --- to bytes and back ------------------------------------------------------------------------------------------------


class Room(NamedTuple):
    """How much a record may keep: characters of a text, and how many of each kind."""

    chars: int
    links: int
    frames: int
    exits: int
    events: int
    lines: int


ROOMS: Final = (
    Room(DETAIL_CHARS, 8, 12, MAX_EXITS, MAX_EVENTS, 24),
    Room(240, 6, 8, MAX_EXITS, 12, 16),
    Room(140, 4, 5, 6, 8, 10),
    Room(80, 3, 3, 4, 4, 6),
    Room(40, 2, 2, 2, 2, 3),
)
"""Tried in order. What fills the last, with four bytes for each character, takes about 7,000 bytes."""

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(FlightRecord)


def encode_flight(record: FlightRecord) -> bytes:
    """The bytes that the store keeps: at most MAX_FLIGHT_BYTES, by leaving out and cutting the least telling."""
    data = b""
    for room in ROOMS:
        data = _encoder.encode(shortened(record, room))
        if len(data) <= MAX_FLIGHT_BYTES:
            break
    return data


def decode_flight(data: bytes) -> FlightRecord:
    """Read a record back, of older code or newer. Raises what is UNDECODABLE."""
    return _decoder.decode(data)


def shortened(record: FlightRecord, room: Room) -> FlightRecord:
    """The record with as much as there is room for: the newest exits and events, the outermost errors, inner frames."""
    exits, events = record.exits[-room.exits :], record.events[-room.events :]
    dropped = record.events[: len(record.events) - len(events)]
    return replace(
        record,
        status=cut(record.status, room.chars),
        exits=tuple(_shorter_exit(one, room.chars) for one in exits),
        exits_dropped=record.exits_dropped + len(record.exits) - len(exits),
        chain=tuple(_shorter_link(link, room) for link in record.chain[: room.links]),
        events=tuple(
            replace(event, name=cut(event.name, room.chars), facts=cut(event.facts, room.chars)) for event in events
        ),
        events_dropped=record.events_dropped + sum(event.times for event in dropped),
        heartbeat=record.heartbeat and replace(record.heartbeat, details=cut(record.heartbeat.details, room.chars)),
        progress=record.progress and replace(record.progress, note=cut(record.progress.note, room.chars)),
        stack=record.stack and _shorter_stack(record.stack, room),
        refused=record.refused and replace(record.refused, why=cut(record.refused.why, room.chars)),
        request=record.request and _shorter_request(record.request, room.chars),
        store_trouble=cut(record.store_trouble, room.chars),
        earlier=cut(record.earlier, room.chars),
    )


def cut(text: str, chars: int) -> str:
    """At most so many characters, from the front, escaped."""
    short = escape(text[: chars + 1])
    return short if len(short) <= chars else f"{short[: chars - 3]}..."


def _cut_front(text: str, chars: int) -> str:
    """At most so many characters, from the end: what a path or frame ends in tells more than how it begins."""
    short = escape(text[-chars - 1 :])
    return short if len(short) <= chars else f"...{short[3 - chars :]}"


def _shorter_exit(one: AttemptExit, chars: int) -> AttemptExit:
    return replace(
        one,
        how=cut(one.how, chars),
        phase=cut(one.phase, chars),
        error=cut(one.error, chars),
        where=_cut_front(one.where, chars),
        reason=cut(one.reason, chars),
    )


def _shorter_link(link: ErrorLink, room: Room) -> ErrorLink:
    frames = link.frames[-room.frames :]
    return ErrorLink(
        cut(link.relation, room.chars),
        _cut_front(link.type, room.chars),
        cut(link.message, room.chars),
        tuple(_cut_front(frame, room.chars) for frame in frames),
        link.left_out + len(link.frames) - len(frames),
    )


def _shorter_stack(stack: ThreadStack, room: Room) -> ThreadStack:
    lines = stack.lines[-room.lines :]
    left_out = stack.left_out + len(stack.lines) - len(lines)
    return ThreadStack(
        stack.at_s, cut(stack.when, room.chars), tuple(_cut_front(line, room.chars) for line in lines), left_out
    )


def _shorter_request(request: EndRequest, chars: int) -> EndRequest:
    return EndRequest(cut(request.what, chars), cut(request.by, chars), cut(request.reason, chars))
