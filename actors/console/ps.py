"""`executus ps`: the runs of a store, while its daemon lives and when it is dead."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from executus.actors.console.screen import Screen
from executus.actors.console.values import age, texts
from executus.stores import LIVE, LmdbReader, RecordCorrupt, RecordTooLarge, RunStatus, StoredRun

PAGE: Final = 1000
HEADS: Final = ("run", "type", "status", "attempt", "durable seq", "saved", "started", "labels", "reason")
"""Of these, columns without a single entry are left out."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `durable_seq` is that of its newest readable snapshot, None without one. Ages in seconds as of now."""

    run_id: str
    run_type: str
    status: RunStatus
    attempt: int
    strikes: int
    durable_seq: int | None
    waiting: bool
    saved_ago_s: float | None
    created_ago_s: float | None
    labels: dict[str, str]
    parent_run_id: str | None
    reason: str


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What `ps --json` prints.

    `owner_pid` is the daemon that owns the store now; `damaged` are live runs whose claims cannot be read.
    """

    store: str
    owner_pid: int | None
    boot_epoch: int
    stored_runs: int
    live_runs: int
    used_ratio: float
    runs: list[Row]
    damaged: list[str]


@contextmanager
def reading(store: Path) -> Generator[LmdbReader, None, None]:
    """Open a store to read, beside its daemon or without one. Raises StoreError."""
    reader = LmdbReader(store)
    reader.open()
    try:
        yield reader
    finally:
        reader.close()


def ps(store: Path, *, status: RunStatus | None, run_type: str | None) -> Listing:
    """List the runs that fit, in order of id. Raises StoreError."""
    now_s = time.time()
    with reading(store) as reader:
        info = reader.info()
        return Listing(
            store=str(store),
            owner_pid=reader.owner_pid,
            boot_epoch=reader.boot_epoch,
            stored_runs=info.runs,
            live_runs=info.live,
            used_ratio=round(info.used_ratio, 6),
            runs=[
                _row(reader, stored, now_s)
                for stored in _all(reader)
                if (status is None or stored.claim.status is status)
                and (run_type is None or (stored.record is not None and stored.record.run_type == run_type))
            ],
            damaged=reader.damaged(),
        )


def print_listing(listing: Listing, screen: Screen) -> None:
    """For people."""
    screen.say(owner_line(listing.store, listing.owner_pid))
    if listing.runs:
        columns = zip(HEADS, *map(_cells, listing.runs), strict=True)
        heads, *rows = zip(
            *(column for column in columns if any(cell not in {"", "-"} for cell in column[1:])), strict=True
        )
        screen.table(heads, rows)
    shown = "" if len(listing.runs) == listing.stored_runs else f"{len(listing.runs)} shown, "
    screen.say(f"{shown}{listing.stored_runs} runs, {listing.live_runs} of them live")
    for run_id in listing.damaged:
        screen.say(f"run {run_id}: its claim cannot be read; it is left as it is and nothing resumes it")


def owner_line(store: str, owner_pid: int | None) -> str:
    """Whether a daemon owns the store."""
    if owner_pid == 0:
        return f"{store}: owned by a process of another pid namespace"
    if owner_pid is not None:
        return f"{store}: owned by pid {owner_pid}"
    return f"{store}: no daemon owns it now; its live runs go on when one opens it"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.run_id,
        row.run_type,
        f"{row.status} (waiting)" if row.waiting and row.status in LIVE else row.status,
        str(row.attempt),
        "-" if row.durable_seq is None else str(row.durable_seq),
        "-" if row.saved_ago_s is None else f"{age(row.saved_ago_s)} ago",
        "-" if row.created_ago_s is None else f"{age(row.created_ago_s)} ago",
        texts(row.labels),
        row.reason,
    )


def _all(reader: LmdbReader) -> Iterator[StoredRun]:
    after: str | None = None
    while page := reader.scan(after=after, limit=PAGE):
        yield from page
        after = page[-1].claim.run_id


def _row(reader: LmdbReader, stored: StoredRun, now_s: float) -> Row:
    claim, record, reason = stored.claim, stored.record, stored.claim.reason
    try:
        loaded = reader.load_snapshot(claim.run_id)
    except (RecordCorrupt, RecordTooLarge) as error:
        loaded, reason = None, str(error)
    snapshot = None if loaded is None else loaded.snapshot
    if loaded is not None and loaded.fell_back is not None:
        reason = f"{reason}; {loaded.fell_back}" if reason else loaded.fell_back
    return Row(
        run_id=claim.run_id,
        run_type="?" if record is None else record.run_type,
        status=claim.status,
        attempt=claim.attempt,
        strikes=claim.strikes,
        durable_seq=None if snapshot is None else snapshot.seq,
        waiting=snapshot is not None and snapshot.waiting,
        saved_ago_s=None if snapshot is None else round(now_s - snapshot.taken_at_s, 3),
        created_ago_s=None if record is None else round(now_s - record.created_at_s, 3),
        labels={} if record is None else record.labels,
        parent_run_id=None if record is None or record.parent is None else record.parent.run_id,
        reason=reason,
    )
