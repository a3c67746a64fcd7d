"""`executus show`: everything that a store holds of one run, its state as far as that goes without its type."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from executus.actors.console.failures import CommandFailed, ExitCode
from executus.actors.console.ps import owner_line, reading
from executus.actors.console.screen import Screen
from executus.actors.console.shown_state import decoded_state
from executus.actors.console.values import MAX_DECODED_BYTES, Decoded, age, decoded, json_value, one_line, pretty, texts
from executus.actors.definition import decode_next
from executus.actors.outcomes import Failed, decode_outcome
from executus.actors.run import Waiting
from executus.stores import (
    LmdbReader,
    LoadedSnapshot,
    ParentLink,
    RecordCorrupt,
    RecordTooLarge,
    RunClaim,
    RunRecord,
    Snapshot,
    StoredRun,
    check_run_id,
)

MESSAGES_SHOWN: Final = 10


class ShownRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the run was started with."""

    run_type: str
    created_ago_s: float
    labels: dict[str, str]
    parent: ParentLink | None
    root_run_id: str
    input: Decoded
    policies: Decoded | None


class ShownSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The newest snapshot that can be read. `fell_back` says why it is not the newest that was written."""

    seq: int
    epoch: int
    schema_version: int
    saved_ago_s: float
    waiting: bool
    deadline_in_s: float | None
    fell_back: str | None
    state: Decoded


class ShownMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A durable message that no snapshot has consumed. What is unreadable is damaged."""

    number: int
    message_id: str | None
    sent_ago_s: float | None
    expires_in_s: float | None
    size_bytes: int | None


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What `show --json` prints. `damaged` names what cannot be read."""

    store: str
    owner_pid: int | None
    claim: RunClaim
    record: ShownRecord | None
    snapshot: ShownSnapshot | None
    outcome: Any
    children: list[str]
    messages: list[ShownMessage]
    damaged: list[str]


def show(store: Path, run_id: str) -> Shown:
    """Read it. Raises StoreError, InvalidRunId, CommandFailed where there is no such run."""
    now_s = time.time()
    damaged: list[str] = []
    with reading(store) as reader:
        stored = stored_run(reader, store, run_id)
        run_id = stored.claim.run_id
        loaded = _loaded(reader, run_id, damaged)
        if stored.record is None:
            damaged.append("its start record cannot be read")
        return Shown(
            store=str(store),
            owner_pid=reader.owner_pid,
            claim=stored.claim,
            record=None if stored.record is None else _record(stored.record, now_s),
            snapshot=None if loaded is None else _snapshot(loaded, now_s, damaged),
            outcome=_outcome(reader, run_id, damaged),
            children=[child for child, _ in reader.children(run_id)],
            messages=_messages(reader, run_id, 0 if loaded is None else loaded.snapshot.consumed, now_s),
            damaged=damaged,
        )


def _messages(reader: LmdbReader, run_id: str, consumed_through: int, now_s: float) -> list[ShownMessage]:
    """What was sent and is in no snapshot yet."""
    return [
        ShownMessage(
            number=stored.number,
            message_id=None if stored.message is None else stored.message.message_id,
            sent_ago_s=None if stored.message is None else round(now_s - stored.message.sent_at_s, 3),
            expires_in_s=None
            if stored.message is None or stored.message.expires_at_s is None
            else round(stored.message.expires_at_s - now_s, 3),
            size_bytes=None if stored.message is None else len(stored.message.body),
        )
        for stored in reader.messages(run_id)
        if stored.number > consumed_through
    ]


def print_raw(store: Path, run_id: str) -> None:
    """The bytes of its newest readable state on stdout, as they are. Raises as `show`, and RecordCorrupt.

    The items of journals are not among them: a journal is an extension there, which holds its number.
    """
    with reading(store) as reader:
        stored = stored_run(reader, store, run_id)
        loaded = reader.load_snapshot(stored.claim.run_id)
    if loaded is None:
        raise CommandFailed(ExitCode.NOT_FOUND, f"run {run_id!r} is {stored.claim.status} and has no snapshot.")
    sys.stdout.buffer.write(loaded.snapshot.state)
    sys.stdout.buffer.flush()


def print_shown(shown: Shown, screen: Screen) -> None:
    """For people."""
    claim, record, snapshot = shown.claim, shown.record, shown.snapshot
    screen.say(owner_line(shown.store, shown.owner_pid))
    rows = [
        ("run", claim.run_id),
        ("status", f"{claim.status}: {claim.reason}" if claim.reason else claim.status),
        (
            "incarnation, attempt",
            f"{claim.incarnation}, {claim.attempt} (epoch {claim.epoch}, {claim.strikes} strikes)",
        ),
    ]
    if record is not None:
        rows += [
            ("type", record.run_type),
            ("started", f"{age(record.created_ago_s)} ago"),
            ("labels", texts(record.labels)),
            ("parent", "" if record.parent is None else f"{record.parent.run_id}, key {record.parent.key}"),
            ("input", _line(record.input)),
        ]
    rows += [("children", " ".join(shown.children))] if shown.children else []
    if snapshot is not None:
        saved = f"seq {snapshot.seq}, {age(snapshot.saved_ago_s)} ago"
        rows += [
            ("snapshot", f"{saved}, {snapshot.state.size_bytes} bytes, schema {snapshot.schema_version}"),
            ("next", _next_line(snapshot)),
        ]
    rows += [("message", _message_line(message)) for message in shown.messages[:MESSAGES_SHOWN]]
    if len(shown.messages) > MESSAGES_SHOWN:
        rows.append(("message", f"… and {len(shown.messages) - MESSAGES_SHOWN} more, see --json"))
    rows += [("damaged", what) for what in shown.damaged]
    screen.table((), [row for row in rows if row[1]])
    if snapshot is not None:
        screen.say("state:" if snapshot.state.why_not is None else f"state: {snapshot.state.why_not}")
        for line in pretty(snapshot.state.value) if snapshot.state.why_not is None else ():
            screen.say(line)
    _print_outcome(shown.outcome, screen)


def _message_line(message: ShownMessage) -> str:
    if message.message_id is None or message.sent_ago_s is None:
        return f"{message.number}: damaged"
    line = f"{message.number}: {one_line(message.message_id)}, sent {age(message.sent_ago_s)} ago"
    line += f", {message.size_bytes} bytes, waits to be heard"
    if message.expires_in_s is None:
        return line
    return f"{line}, expires in {age(message.expires_in_s)}" if message.expires_in_s > 0 else f"{line}, expired"


def _print_outcome(outcome: Any, screen: Screen) -> None:
    """As JSON; the traceback of a failure by lines."""
    if outcome is None:
        return
    facts = cast("dict[str, Any]", outcome)
    error: dict[str, Any] = facts.get("error") or {}
    traceback: str = error.get("traceback") or ""
    if traceback:
        facts = {**facts, "error": {name: fact for name, fact in error.items() if name != "traceback"}}
    screen.say("outcome:")
    for line in [*pretty(facts), *traceback.splitlines()]:
        screen.say(line)


def stored_run(reader: LmdbReader, store: Path, run_id: str) -> StoredRun:
    """Read a run. Raises StoreError, InvalidRunId, CommandFailed where there is none."""
    stored = reader.load(check_run_id(run_id))
    if stored is None:
        raise CommandFailed(
            ExitCode.NOT_FOUND,
            f"there is no run {run_id!r} in {str(store)!r}. To see which there are: executus ps {store}",
        )
    return stored


def _loaded(reader: LmdbReader, run_id: str, damaged: list[str]) -> LoadedSnapshot | None:
    try:
        return reader.load_snapshot(run_id)
    except (RecordCorrupt, RecordTooLarge) as error:
        damaged.append(str(error))
        return None


def _record(record: RunRecord, now_s: float) -> ShownRecord:
    return ShownRecord(
        run_type=record.run_type,
        created_ago_s=round(now_s - record.created_at_s, 3),
        labels=record.labels,
        parent=record.parent,
        root_run_id=record.root_run_id,
        input=decoded(record.input),
        policies=decoded(record.options) if record.options else None,
    )


def _snapshot(loaded: LoadedSnapshot, now_s: float, damaged: list[str]) -> ShownSnapshot:
    snapshot = loaded.snapshot
    if loaded.fell_back is not None:
        damaged.append(loaded.fell_back)
    return ShownSnapshot(
        seq=snapshot.seq,
        epoch=snapshot.epoch,
        schema_version=snapshot.schema_version,
        saved_ago_s=round(now_s - snapshot.taken_at_s, 3),
        waiting=snapshot.waiting,
        deadline_in_s=_deadline_in_s(snapshot, now_s),
        fell_back=loaded.fell_back,
        state=decoded_state(loaded),
    )


def _deadline_in_s(snapshot: Snapshot, now_s: float) -> float | None:
    try:
        following = decode_next(snapshot.next)
    except msgspec.MsgspecError:
        return None
    if not isinstance(following, Waiting) or following.deadline_at_s is None:
        return None
    return round(following.deadline_at_s - now_s, 3)


def _outcome(reader: LmdbReader, run_id: str, damaged: list[str]) -> Any:
    try:
        data = reader.load_outcome(run_id)
        if data is None:
            return None
        if len(data) > MAX_DECODED_BYTES:
            return {"size_bytes": len(data), "why_not": f"larger than {MAX_DECODED_BYTES} bytes"}
        outcome = decode_outcome(data, Any)
        shown = json_value(outcome)
        if isinstance(outcome, Failed):
            shown["error"]["facts"] = outcome.error.facts
        return shown
    except (RecordCorrupt, RecordTooLarge, msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        damaged.append(f"its outcome cannot be read: {error}")
        return None


def _line(value: Decoded) -> str:
    return f"{value.size_bytes} bytes, {value.why_not}" if value.why_not is not None else one_line(value.value)


def _next_line(snapshot: ShownSnapshot) -> str:
    if not snapshot.waiting:
        return "a step"
    if snapshot.deadline_in_s is None:
        return "waits for a message, without a deadline"
    if snapshot.deadline_in_s < 0:
        return f"waits; its deadline passed {age(-snapshot.deadline_in_s)} ago"
    return f"waits for a message, at most {age(snapshot.deadline_in_s)} more"
