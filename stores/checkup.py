"""One run's rows looked at, each by its checksums: what can be read of it, and what not. Pure: bytes in, facts out."""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Final, TypeVar

import msgspec

from executus.stores import codec
from executus.stores.due_rows import due_keys, run_key_of
from executus.stores.errors import RecordCorrupt, RecordTooLarge, StoreTooNew
from executus.stores.journal_rows import Scan, read_chunks
from executus.stores.records import LIVE, RunClaim, Snapshot, StoredMessage
from executus.stores.row_reader import newest_readable
from executus.stores.rows import SEPARATOR, Table, run_id_of

_UNREADABLE: Final = (RecordCorrupt, RecordTooLarge, StoreTooNew)
_T = TypeVar("_T")


class DamageKind(enum.StrEnum):
    """What is wrong with a run's rows."""

    CLAIM = "claim"
    """Nobody can tell where the run stands, and nothing may write for it."""
    RECORD = "record"
    """What it was started with cannot be read, or is not there."""
    SNAPSHOT_LOST = "snapshot-lost"
    """No generation of its state can be read."""
    SNAPSHOT_FELL_BACK = "snapshot-fell-back"
    """The newest generation cannot be read, the one before can."""
    SNAPSHOT_OLDER = "snapshot-older"
    """The newest generation can be read, the one before cannot: nothing is lost."""
    OUTCOME = "outcome"
    """It has ended, and nobody can read with what result."""
    INDEX = "index"
    """Claim and index of live runs disagree."""
    DUE_MISSING = "due-missing"
    """It is passivated and does not stand in the index of due runs with a time of its claim."""
    DUE_STALE = "due-stale"
    """A row of the index of due runs that is of no passivated run with such a time."""
    LINK = "link"
    """A child's link to its parent cannot be read."""
    MESSAGE = "message"
    """A durable message that waits for it cannot be read."""
    FLIGHT = "flight"
    """Its flight record cannot be read. Nothing of the run itself is lost."""


class Damage(msgspec.Struct, frozen=True):
    """One thing that is wrong. `why` is for people."""

    kind: DamageKind
    why: str


class RunCheckup(msgspec.Struct, frozen=True, kw_only=True):
    """What a store holds of one run. `claim` and `run_type` are None where they are unreadable; `damages` says why."""

    run_id: str
    claim: RunClaim | None
    run_type: str | None
    damages: tuple[Damage, ...]


class RunRows(msgspec.Struct, frozen=True, kw_only=True):
    """A run's rows within one view; None and absent keys are rows that are not there."""

    key: bytes
    claim: bytes | None
    record: bytes | None
    generations: Mapping[bytes, bytes]
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    outcome: bytes | None
    flight: bytes | None = None
    messages: tuple[StoredMessage, ...] = ()
    indexed: bool
    dues: frozenset[bytes] = frozenset()
    """Of the rows in the index of due runs that its claim asks for, those that are there."""


def check_run(rows: RunRows) -> RunCheckup:
    """Open every frame of a run."""
    damages: list[Damage] = []
    claim = _read(lambda data: codec.decode_claim(data, rows.key), rows.claim, DamageKind.CLAIM, damages)
    record = _read(lambda data: codec.decode_record(data, rows.key), rows.record, DamageKind.RECORD, damages)
    if rows.outcome is not None:
        _read(lambda data: codec.decode_outcome(data, rows.key), rows.outcome, DamageKind.OUTCOME, damages)
    if rows.flight is not None:
        _read(lambda data: codec.decode_flight(data, rows.key), rows.flight, DamageKind.FLIGHT, damages)
    if claim is not None:
        damages += _damaged_snapshots(rows, claim)
        if rows.indexed != (claim.status in LIVE):
            stands = "stands" if rows.indexed else "does not stand"
            damages.append(Damage(DamageKind.INDEX, f"it is {claim.status} and {stands} in the index of live runs"))
        missing = len(set(due_keys(claim)) - rows.dues)
        if missing:
            why = f"it is passivated, and {missing} of its due times are not in the index: they do not wake it"
            damages.append(Damage(DamageKind.DUE_MISSING, why))
        unread = [stored.number for stored in rows.messages if stored.message is None]
        damages += [Damage(DamageKind.MESSAGE, f"its durable message {number} cannot be read") for number in unread]
    return RunCheckup(
        run_id=run_id_of(rows.key),
        claim=claim,
        run_type=None if record is None else record.run_type,
        damages=tuple(damages),
    )


def check_link(key: bytes, data: bytes) -> RunCheckup | None:
    """Open the frame of a child's link to its parent; None where it can be read."""
    damages: list[Damage] = []
    _read(lambda data: codec.decode_link(data, key), data, DamageKind.LINK, damages)
    child = run_id_of(key.partition(SEPARATOR)[2])
    return RunCheckup(run_id=child, claim=None, run_type=None, damages=tuple(damages)) if damages else None


def check_due(key: bytes, data: bytes | None) -> RunCheckup | None:
    """A row of the index of due runs beside that run's claim; None where they agree, or the claim cannot be read."""
    owner = run_key_of(key)
    status = "not there"
    if data is not None:
        try:
            claim = codec.decode_claim(data, owner)
        except _UNREADABLE:
            return None  # told of already
        if key in due_keys(claim):
            return None
        status = claim.status.value
    why = f"it is {status}, and a row of the index of due runs is of none of its due times"
    damages = (Damage(DamageKind.DUE_STALE, why),)
    return RunCheckup(run_id=owner.decode(errors="replace"), claim=None, run_type=None, damages=damages)


def without_claim(key: bytes, table: str) -> RunCheckup:
    """A run of which rows are left over, without a claim that says whose they are."""
    damage = Damage(DamageKind.CLAIM, f"it is not there, and a row in the table of {table} is")
    return RunCheckup(run_id=run_id_of(key), claim=None, run_type=None, damages=(damage,))


def _damaged_snapshots(rows: RunRows, claim: RunClaim) -> list[Damage]:
    unreadable: list[Damage] = []

    def scan(_table: Table, first: bytes, below: bytes) -> list[tuple[bytes, bytes]]:
        start, stop = (bisect_left(rows.chunks, key, key=itemgetter(0)) for key in (first, below))
        return list(rows.chunks[start:stop])

    for key, data in rows.generations.items():
        _read(lambda data, key=key: _decoded(data, key, scan, rows.key), data, DamageKind.SNAPSHOT_OLDER, unreadable)  # type: ignore[misc]
    if not unreadable:
        return []
    try:
        newest = newest_readable(dict(rows.generations), claim.incarnation, claim.run_id, scan)
    except _UNREADABLE:
        return [Damage(DamageKind.SNAPSHOT_LOST, " ".join(dict.fromkeys(damage.why for damage in unreadable)))]
    if newest is not None and newest.fell_back is not None:
        return [Damage(DamageKind.SNAPSHOT_FELL_BACK, f"{newest.fell_back} It is behind seq {newest.snapshot.seq}.")]
    return unreadable


def _decoded(data: bytes, slot_key: bytes, scan: Scan, key: bytes) -> Snapshot:
    snapshot = codec.decode_snapshot(data, slot_key)
    read_chunks(scan, key, snapshot)
    return snapshot


def _read(decode: Callable[[bytes], _T], data: bytes | None, kind: DamageKind, damages: list[Damage]) -> _T | None:
    if data is None:
        damages.append(Damage(kind, "it is not there"))
        return None
    try:
        return decode(data)
    except _UNREADABLE as error:
        damages.append(Damage(kind, str(error)))
        return None
