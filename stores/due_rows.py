"""The index of passivated runs by the times at which they are to be looked at: nobody need read all of them for that.

A hint only, as that of ended runs: whoever goes by it looks at the claim.
"""

from __future__ import annotations

from typing import Final

from executus.stores.records import Due, DueRun, RunClaim, RunStatus
from executus.stores.rows import SEPARATOR, Rows, Table, run_id_of, run_key

PRESENT: Final = b"\1"
_KINDS: Final = {False: b"s", True: b"w"}
"""Steady times and those of the wall clock stand apart, for each is compared with a clock of its own."""
_TIME_CHARS: Final = 17
_LATEST_MS: Final = (1 << 63) - 1


def due_keys(claim: RunClaim) -> tuple[bytes, ...]:
    """Where the run of this claim stands in the index."""
    if claim.status is not RunStatus.PASSIVATED:
        return ()
    return tuple(_key(due.by_wall, due_at_ms(due), run_key(claim.run_id)) for due in claim.due_times)


def run_key_of(key: bytes) -> bytes:
    """The key of the run that a row is of."""
    return key[_TIME_CHARS:]


def due_at_ms(due: Due) -> int:
    """The time in whole milliseconds, rounded up; what is no number never comes."""
    at_ms = due.at_s * 1000
    return max(0, -int(-at_ms // 1)) if at_ms < _LATEST_MS else _LATEST_MS


def due_runs(rows: Rows, after: DueRun | None, limit: int, *, by_wall: bool) -> list[DueRun]:
    """A page of the index, the earliest first, beginning behind `after`."""
    kind = _KINDS[by_wall]
    first = kind if after is None else _key(by_wall, after.at_ms, run_key(after.run_id)) + SEPARATOR
    below = bytes([kind[0] + 1])
    return [run for key, _ in rows.page(Table.DUE, first, below, limit) if (run := _read(key)) is not None]


def _key(by_wall: bool, at_ms: int, key: bytes) -> bytes:  # noqa: FBT001 - part of the key, and private
    return b"%b%016x%b" % (_KINDS[by_wall], at_ms, key)


def _read(key: bytes) -> DueRun | None:
    """None for a key with a flipped bit in it."""
    try:
        return DueRun(run_id_of(run_key_of(key)), int(key[1:_TIME_CHARS], 16))
    except ValueError:
        return None
