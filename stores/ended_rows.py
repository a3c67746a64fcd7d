"""The index of runs that do not run, one table a status, in order of time: so that retention need not scan the store.

Passivated ones stand in it as well, with the time since which they are.

A hint only: whoever deletes by it looks at the claim, whose token the deletion carries.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from executus.stores import codec
from executus.stores.due_rows import PRESENT, due_keys
from executus.stores.errors import RecordCorrupt, RecordTooLarge, StoreTooNew
from executus.stores.records import EndedRun, RunClaim, RunStatus
from executus.stores.rows import SEPARATOR, Rows, Table, WritableRows, Writes, run_id_of, run_key

ENDED_TABLES: Final[dict[RunStatus, Table]] = {
    RunStatus.COMPLETED: Table.ENDED_COMPLETED,
    RunStatus.FAILED: Table.ENDED_FAILED,
    RunStatus.QUARANTINED: Table.ENDED_QUARANTINED,
    RunStatus.KILLED: Table.ENDED_KILLED,
    RunStatus.CANCELLED: Table.ENDED_CANCELLED,
    RunStatus.TIMED_OUT: Table.ENDED_TIMED_OUT,
    RunStatus.STOPPED: Table.ENDED_STOPPED,
    RunStatus.PASSIVATED: Table.PASSIVATED,
}
"""Of every status that is not LIVE: a claim stands either in the live index or in one of these."""

_TIME_CHARS: Final = 16
_LATEST_MS: Final = (1 << 63) - 1
_PAGE: Final = 10_000


class EndedRow(NamedTuple):
    """Where a run stands in the index."""

    table: Table
    key: bytes


def ended_row(claim: RunClaim) -> EndedRow | None:
    """Where the run of this claim stands, None for one that is live."""
    table = ENDED_TABLES.get(claim.status)
    return None if table is None else EndedRow(table, _key(ended_at_ms(claim), run_key(claim.run_id)))


def ended_at_ms(claim: RunClaim) -> int:
    """When it ended, in whole milliseconds; of one that does not say, when it was claimed last."""
    at_s = claim.claimed_at_s if claim.ended_at_s is None else claim.ended_at_s
    return max(0, int(min(at_s * 1000, _LATEST_MS))) if at_s == at_s else 0  # noqa: PLR0124 - not a NaN


def ended_runs(rows: Rows, status: RunStatus, after: EndedRun | None, limit: int) -> list[EndedRun]:
    """A page of the index, the oldest first, beginning behind `after`."""
    table = ENDED_TABLES.get(status)
    if table is None:
        return []
    first = b"" if after is None else _key(after.ended_at_ms, run_key(after.run_id)) + SEPARATOR
    return [run for key, _ in rows.page(table, first, None, limit) if (run := _read(key, status)) is not None]


def count_ended(rows: Rows) -> dict[RunStatus, int]:
    """How many runs stand in the index, for each status."""
    return {status: rows.count(table) for status, table in ENDED_TABLES.items()}


def is_complete(rows: Rows) -> bool:
    """Whether every claim stands in an index. Older code, or a store from before there was one, leaves some out."""
    return rows.count(Table.CLAIMS) == rows.count(Table.LIVE) + sum(count_ended(rows).values())


def rebuild(rows: WritableRows) -> None:
    """Write the index anew from the claims. One that cannot be read stands nowhere: nothing is deleted by it."""
    wanted: Writes = {table: {} for table in (*ENDED_TABLES.values(), Table.DUE)}
    first = b""
    while page := rows.page(Table.CLAIMS, first, None, _PAGE):
        for key, data in page:
            try:
                claim = codec.decode_claim(data, key)
            except (RecordCorrupt, RecordTooLarge, StoreTooNew):
                continue
            wanted[Table.DUE].update(dict.fromkeys(due_keys(claim), PRESENT))
            row = ended_row(claim)
            if row is not None:
                wanted[row.table][row.key] = PRESENT
        first = page[-1][0] + SEPARATOR
    for table, changes in wanted.items():
        for key, _ in rows.page(table, b"", None, 1 << 62):
            if changes.pop(key, None) is None:
                changes[key] = None
    rows.write(wanted)


def _key(at_ms: int, key: bytes) -> bytes:
    return b"%016x%b" % (at_ms, key)


def _read(key: bytes, status: RunStatus) -> EndedRun | None:
    """None for a key with a flipped bit in it."""
    try:
        return EndedRun(run_id_of(key[_TIME_CHARS:]), status, int(key[:_TIME_CHARS], 16))
    except ValueError:
        return None
