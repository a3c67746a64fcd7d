"""`executus why`: how a run came to stand where it stands, from the store alone, while its daemon lives or is dead."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import msgspec

from executus.actors.console.ps import owner_line, reading
from executus.actors.console.screen import Screen
from executus.actors.console.show import stored_run
from executus.actors.console.values import age
from executus.actors.console.why_words import Standing, boot_of, died, verdict
from executus.actors.flight import VERSION, AttemptExit, FlightRecord
from executus.actors.flights import load_flight
from executus.actors.outcomes import (
    UNDECODABLE,
    Outcome,
    decode_outcome,
    safe_text,
)
from executus.actors.policies import MAX_STRIKES
from executus.stores import (
    ExecutusError,
    LmdbReader,
    RecordCorrupt,
    RecordTooLarge,
    RunClaim,
    RunStatus,
    Snapshot,
    StoredRun,
    StoreTooNew,
)

_UNREADABLE = (RecordCorrupt, RecordTooLarge, StoreTooNew)
_RELATIONS: Final = {"cause": "caused by ", "context": "raised while handling ", "member": "holding "}
_EXITS: Final = ("attempt", "ended", "how", "in", "seq", "why", "at")
_NONE: Final = (
    "none: nothing out of the ordinary was noted of this run, or it was written by an executus that kept none"
)


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """What `why --json` prints. Times are wall time in seconds; in `flight` what is empty is left out.

    `died` says that the process died while the run was at work. `saved_seq` is the last callback whose state is stored,
    `unsaved` how many there were after it, None where nobody can know. `unread` names what cannot be read.
    """

    store: str
    owner_pid: int | None
    run_id: str
    run_type: str | None
    status: RunStatus
    verdict: str
    died: bool
    attempt: int
    epoch: int
    boot: int
    store_boot: int
    strikes: int
    started_at_s: float | None
    claimed_at_s: float
    ended_at_s: float | None
    saved_seq: int | None
    saved_at_s: float | None
    unsaved: int | None
    flight: FlightRecord | None
    flight_note: str
    unread: list[str]


def why(store: Path, run_id: str) -> Why:
    """Read it. Raises StoreError, InvalidRunId, CommandFailed where there is no such run."""
    with reading(store) as reader:
        stored = stored_run(reader, store, run_id)
        return _why(reader, str(store), stored)


def _why(reader: LmdbReader, store: str, stored: StoredRun) -> Why:
    claim, record = stored.claim, stored.record
    unread = [] if record is not None else ["its start record cannot be read"]
    snapshot, outcome = _snapshot(reader, claim.run_id, unread), _outcome(reader, claim.run_id, unread)
    flight, note = _flight(reader, stored)
    standing = Standing(
        claim=claim,
        owner_pid=reader.owner_pid,
        store_boot=reader.boot_epoch,
        snapshot=snapshot,
        outcome=outcome,
        now_s=time.time(),
    )
    return Why(
        store=store,
        owner_pid=reader.owner_pid,
        run_id=claim.run_id,
        run_type=None if record is None else record.run_type,
        status=claim.status,
        verdict=verdict(standing),
        died=died(standing),
        attempt=claim.attempt,
        epoch=claim.epoch,
        boot=boot_of(claim.epoch),
        store_boot=reader.boot_epoch,
        strikes=claim.strikes,
        started_at_s=None if record is None else record.created_at_s,
        claimed_at_s=claim.claimed_at_s,
        ended_at_s=claim.ended_at_s,
        saved_seq=None if snapshot is None else snapshot.seq,
        saved_at_s=None if snapshot is None else snapshot.taken_at_s,
        unsaved=_unsaved(claim, snapshot, flight),
        flight=flight,
        flight_note=note,
        unread=unread,
    )


def _unsaved(claim: RunClaim, snapshot: Snapshot | None, flight: FlightRecord | None) -> int | None:
    """How many completed callbacks an ending has cost. None where nobody can know, and of a result, which has all."""
    if flight is None or claim.status in {RunStatus.RUNNING, RunStatus.COMPLETED} or flight.status != claim.status:
        return None
    return max(0, flight.seq - (0 if snapshot is None else snapshot.seq))


def _snapshot(reader: LmdbReader, run_id: str, unread: list[str]) -> Snapshot | None:
    try:
        loaded = reader.load_snapshot(run_id)
    except _UNREADABLE as error:
        unread.append(str(error))
        return None
    if loaded is not None and loaded.fell_back is not None:
        unread.append(loaded.fell_back)
    return None if loaded is None else loaded.snapshot


def _outcome(reader: LmdbReader, run_id: str, unread: list[str]) -> Outcome | None:
    try:
        data = reader.load_outcome(run_id)
        return None if data is None else decode_outcome(data, msgspec.Raw)
    except (*_UNREADABLE, *UNDECODABLE) as error:
        unread.append(f"its outcome cannot be read: {safe_text(error)}")
        return None


def _flight(reader: LmdbReader, stored: StoredRun) -> tuple[FlightRecord | None, str]:
    """The record, and what is to be said of it as a whole."""
    claim = stored.claim
    try:
        flight = load_flight(reader, claim)
    except (ExecutusError, *UNDECODABLE) as error:
        return None, f"its flight record cannot be read: {safe_text(error)} Nothing else depends on it."
    if flight is None:
        return None, _NONE
    notes: list[str] = []
    if flight.version > VERSION:
        notes.append(f"written by a newer executus (version {flight.version}, this one knows {VERSION})")
    if flight.status != claim.status:
        notes.append(f"of attempt {flight.attempt}; what has happened since is not in it")
    notes += [flight.earlier] if flight.earlier else []
    return flight, "; ".join(notes)


# --- for people -------------------------------------------------------------------------------------------------------


def print_why(found: Why, screen: Screen) -> None:
    """For people."""
    now_s, flight = time.time(), found.flight
    screen.say(owner_line(found.store, found.owner_pid))
    ended = (
        "" if found.ended_at_s is None or found.status is RunStatus.RUNNING else f", {_ago(found.ended_at_s, now_s)}"
    )
    rows = [
        ("run", found.run_id if found.run_type is None else f"{found.run_id}, of type {found.run_type}"),
        ("status", f"{found.status}{ended}"),
        ("why", found.verdict),
        (
            "attempt",
            f"{found.attempt}, claimed {_ago(found.claimed_at_s, now_s)} (epoch {found.epoch}, boot {found.boot})",
        ),
        (
            "strikes",
            f"{found.strikes} of {MAX_STRIKES}: deaths of the process without progress since" if found.strikes else "",
        ),
        ("saved", _saved(found, now_s)),
        ("not saved", f"{found.unsaved} completed callbacks after that" if found.unsaved else ""),
        *(() if flight is None else _told(flight, now_s)),
        ("flight record", found.flight_note),
        *(("cannot be read", what) for what in found.unread),
    ]
    screen.table((), [row for row in rows if row[1]])
    if flight is not None:
        _print_exits(flight, screen, now_s)
        _print_errors(flight, screen)
        _print_stack(flight, screen, now_s)
        _print_events(flight, screen, now_s)


def _saved(found: Why, now_s: float) -> str:
    if found.saved_at_s is None:
        return "" if found.status is RunStatus.COMPLETED else "nothing"
    return f"seq {found.saved_seq}, {_ago(found.saved_at_s, now_s)}"


def _told(flight: FlightRecord, now_s: float) -> list[tuple[str, str]]:
    """What the record says besides errors, events and stacks, by rows."""
    request, refused, progress, beat = flight.request, flight.refused, flight.progress, flight.heartbeat
    rows: list[tuple[str, str]] = []
    if refused is not None:
        rows.append(("refused saves", f"{refused.times}, the last of seq {refused.seq}: {refused.why}"))
    if request is not None:
        by = f" by {request.by}" if request.by else ""
        rows.append(("asked to end", f"{request.what}{by}{f': {request.reason}' if request.reason else ''}"))
    if progress is not None:
        of = "" if progress.total is None else f" of {progress.total:g}"
        done = "?" if progress.done is None else f"{progress.done:g}"
        rows.append(("last progress", f"{done}{of}{f': {progress.note}' if progress.note else ''}"))
    if beat is not None:
        rows.append(("last heartbeat", f"{_ago(beat.at_s, now_s)}{f': {beat.details}' if beat.details else ''}"))
    if flight.store_trouble:
        rows.append(("store then", f"commits failed: {flight.store_trouble}"))
    return rows


def _print_exits(flight: FlightRecord, screen: Screen, now_s: float) -> None:
    if not flight.exits:
        return
    screen.say(f"attempts that have ended{_dropped(flight.exits_dropped)}:")
    screen.table(_EXITS, [_exit_cells(one, now_s) for one in flight.exits])


def _exit_cells(one: AttemptExit, now_s: float) -> tuple[str, ...]:
    seq = "-" if one.seq is None else str(one.seq)
    return (str(one.attempt), _ago(one.at_s, now_s), one.how, one.phase, seq, one.error or one.reason, one.where)


def _print_errors(flight: FlightRecord, screen: Screen) -> None:
    if flight.chain:
        screen.say(f"error of attempt {flight.chain_attempt}:")
    for link in flight.chain:
        screen.say(f"  {_RELATIONS.get(link.relation, '')}{link.type}{f': {link.message}' if link.message else ''}")
        if link.left_out:
            screen.say(f"      ... {link.left_out} outer frames")
        for frame in link.frames:
            screen.say(f"      {frame}")


def _print_stack(flight: FlightRecord, screen: Screen, now_s: float) -> None:
    if flight.stack is not None:
        screen.say(f"stack of its thread when {flight.stack.when}, {_ago(flight.stack.at_s, now_s)}:")
        if flight.stack.left_out:
            screen.say(f"  ... {flight.stack.left_out} outer lines")
        for line in flight.stack.lines:
            screen.say(line)


def _print_events(flight: FlightRecord, screen: Screen, now_s: float) -> None:
    if flight.events:
        screen.say(f"last events{_dropped(flight.events_dropped)}:")
        rows = [
            (
                _ago(event.at_s, now_s),
                event.name if event.times == 1 else f"{event.name} ({event.times} times)",
                event.facts,
            )
            for event in flight.events
        ]
        screen.table(("when", "event", "facts"), rows)


def _dropped(count: int) -> str:
    return f" ({count} earlier ones are not kept)" if count else ""


def _ago(at_s: float, now_s: float) -> str:
    return f"{age(now_s - at_s)} ago"
