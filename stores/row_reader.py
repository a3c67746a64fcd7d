"""The reading half of every store, over tables of rows; whatever is read is checked."""

from __future__ import annotations

import abc
import os
from contextlib import AbstractContextManager
from typing import Final

from executus.stores import codec
from executus.stores.due_rows import due_runs
from executus.stores.ended_rows import count_ended, ended_runs
from executus.stores.errors import RecordCorrupt, RecordTooLarge, StoreClosed, StoreForked, StoreTooNew
from executus.stores.journal_rows import Scan, read_chunks
from executus.stores.records import (
    LIVE,
    DueRun,
    EndedRun,
    Inbox,
    LoadedSnapshot,
    Message,
    ParentLink,
    RunClaim,
    RunRecord,
    RunStatus,
    Snapshot,
    StoredMessage,
    StoredRun,
    StoreInfo,
)
from executus.stores.rows import (
    SEPARATOR,
    SLOTS,
    Rows,
    Table,
    child_key,
    message_key,
    message_number,
    range_below,
    run_id_of,
    run_key,
    snapshot_key,
)

_PAGE: Final = 1000


class RowReader(abc.ABC):
    """The methods of a CheckpointStore that read, see its docstrings, over `_view`."""

    def __init__(self) -> None:
        self._boot_epoch = 0
        self._owner_pid: int | None = None

    @abc.abstractmethod
    def open(self) -> None:
        """See CheckpointStore."""

    @abc.abstractmethod
    def close(self) -> None:
        """See CheckpointStore."""

    @abc.abstractmethod
    def info(self) -> StoreInfo:
        """See CheckpointStore."""

    @abc.abstractmethod
    def _view(self) -> AbstractContextManager[Rows]:
        """A consistent view of the last commit."""

    @property
    def boot_epoch(self) -> int:
        """See CheckpointStore."""
        self._check_usable()
        return self._boot_epoch

    def load(self, run_id: str) -> StoredRun | None:
        """See CheckpointStore."""
        self._check_usable()
        key = run_key(run_id)
        with self._view() as rows:
            claim, record = rows.get(Table.CLAIMS, key), rows.get(Table.RECORDS, key)
        if claim is None:
            _refuse_without_claim(record, run_id)
            return None
        return StoredRun(codec.decode_claim(claim, key), _readable_record(record, key))

    def load_snapshot(self, run_id: str) -> LoadedSnapshot | None:
        """See CheckpointStore."""
        self._check_usable()
        key = run_key(run_id)
        slot_keys = [snapshot_key(key, slot) for slot in SLOTS]
        with self._view() as rows:
            claim = rows.get(Table.CLAIMS, key)
            record = rows.get(Table.RECORDS, key) if claim is None else None
            generations = rows.get_many(Table.SNAPSHOTS, slot_keys)
            if claim is not None:  # within the view, for the journals are to be of the same commit
                incarnation = codec.decode_claim(claim, key).incarnation

                def scan(table: Table, first: bytes, below: bytes) -> list[tuple[bytes, bytes]]:
                    return rows.page(table, first, below, 1 << 62)

                return newest_readable(generations, incarnation, run_id, scan)
        _refuse_without_claim(record, run_id)
        return None

    def load_outcome(self, run_id: str) -> bytes | None:
        """See CheckpointStore."""
        self._check_usable()
        key = run_key(run_id)
        with self._view() as rows:
            outcome = rows.get(Table.OUTCOMES, key)
        return None if outcome is None else codec.decode_outcome(outcome, key)

    def load_flight(self, run_id: str) -> bytes | None:
        """See CheckpointStore."""
        self._check_usable()
        key = run_key(run_id)
        with self._view() as rows:
            flight = rows.get(Table.FLIGHTS, key)
        return None if flight is None else codec.decode_flight(flight, key)

    def live(self) -> list[RunClaim]:
        """See CheckpointStore."""
        return [claim for _, claim in self._live_claims() if claim is not None]

    def damaged(self) -> list[str]:
        """See CheckpointStore."""
        return [run_id_of(key) for key, claim in self._live_claims() if claim is None]

    def scan(self, *, after: str | None = None, limit: int = 1000) -> list[StoredRun]:
        """See CheckpointStore."""
        self._check_usable()
        first = b"" if after is None else run_key(after) + SEPARATOR
        runs: list[StoredRun] = []
        while len(runs) < limit:
            with self._view() as rows:
                page = rows.page(Table.CLAIMS, first, None, min(limit - len(runs), _PAGE))
                records = rows.get_many(Table.RECORDS, [key for key, _ in page])
            for key, data in page:
                claim = _readable_claim(data, key)
                if claim is not None:
                    runs.append(StoredRun(claim, _readable_record(records.get(key), key)))
            if not page:
                break
            first = page[-1][0] + SEPARATOR
        return runs

    def children(self, run_id: str) -> list[tuple[str, ParentLink]]:
        """See CheckpointStore."""
        self._check_usable()
        first, below = range_below(run_key(run_id))
        with self._view() as rows:
            links = rows.page(Table.CHILDREN, first, below, 1 << 62)
        return [(run_id_of(key.partition(SEPARATOR)[2]), codec.decode_link(data, key)) for key, data in links]

    def ended(self, status: RunStatus, *, after: EndedRun | None = None, limit: int = 1000) -> list[EndedRun]:
        """See CheckpointStore."""
        self._check_usable()
        with self._view() as rows:
            return ended_runs(rows, status, after, limit)

    def count_ended(self) -> dict[RunStatus, int]:
        """See CheckpointStore."""
        self._check_usable()
        with self._view() as rows:
            return count_ended(rows)

    def due(self, *, by_wall: bool, after: DueRun | None = None, limit: int = 1000) -> list[DueRun]:
        """See CheckpointStore."""
        self._check_usable()
        with self._view() as rows:
            return due_runs(rows, after, limit, by_wall=by_wall)

    def parent_link(self, run_id: str) -> ParentLink | None:
        """See CheckpointStore."""
        self._check_usable()
        key = run_key(run_id)
        with self._view() as rows:
            data = rows.get(Table.RECORDS, key)
            parent = None if data is None else codec.decode_record(data, key).parent
            if parent is None:
                return None
            return parent if rows.get(Table.CHILDREN, child_key(run_key(parent.run_id), key)) is not None else None

    def messages(self, run_id: str) -> list[StoredMessage]:
        """See CheckpointStore."""
        self._check_usable()
        with self._view() as rows:
            return stored_messages(rows, run_key(run_id))

    def _live_claims(self) -> list[tuple[bytes, RunClaim | None]]:
        self._check_usable()
        with self._view() as rows:
            keys = [key for key, _ in rows.page(Table.LIVE, b"", None, 1 << 62)]
            claims = rows.get_many(Table.CLAIMS, keys)
            # A live key without its claim is a key with a flipped bit: whose it was, only the claims themselves tell.
            astray = len(claims) < len(keys)
            every = rows.page(Table.CLAIMS, b"", None, 1 << 62) if astray else []
        found = {key: _readable_claim(claims.get(key), key) for key in keys}
        for key, data in every:
            claim = _readable_claim(data, key)
            if claim is not None and claim.status in LIVE:
                found[key] = claim
        return sorted(found.items()) if astray else list(found.items())

    def _check_usable(self) -> None:
        if self._owner_pid is None:
            raise StoreClosed("the store is not open. Nothing was read or written. Open it first.", path=self._path)
        self._check_process()

    def _check_process(self) -> None:
        if self._owner_pid is not None and self._owner_pid != os.getpid():
            raise StoreForked(
                f"process {os.getpid()} is a fork of {self._owner_pid}, which opened this store. Nothing was read or "
                "written. Open a runtime of your own, on a store of your own, after the fork.",
                path=self._path,
            )

    @property
    def _path(self) -> str | None:
        return None


def _refuse_without_claim(record: bytes | None, run_id: str) -> None:
    """A bit flipped in the key of a claim hides it: whoever took that for a free id would begin the run from zero."""
    if record is not None:
        raise RecordCorrupt(
            f"run {run_id!r}: its claim is not there, and its record is. Nothing was changed. "
            "executus doctor tells what is left of it.",
            run_id=run_id,
            what="claim",
        )


def _readable_claim(data: bytes | None, key: bytes) -> RunClaim | None:
    try:
        return None if data is None else codec.decode_claim(data, key)
    except (RecordCorrupt, RecordTooLarge, StoreTooNew):
        return None


def _readable_record(data: bytes | None, key: bytes) -> RunRecord | None:
    try:
        return None if data is None else codec.decode_record(data, key)
    except (RecordCorrupt, RecordTooLarge):
        return None


def stored_messages(rows: Rows, key: bytes) -> list[StoredMessage]:
    """A run's messages, by number, not by row: a bit flipped in a message's key takes it to another place."""
    inbox = _readable_inbox(rows.get(Table.INBOXES, key), key)
    found = dict(rows.page(Table.MESSAGES, *range_below(key), 1 << 62))
    if inbox is None:
        keys = list(found)
    else:
        keys = [message_key(key, number) for number in range(inbox.dropped_through + 1, inbox.appended + 1)]
    return [StoredMessage(message_number(row), _readable_message(found.get(row), row)) for row in keys]


def _readable_inbox(data: bytes | None, key: bytes) -> Inbox | None:
    try:
        return None if data is None else codec.decode_inbox(data, key)
    except (RecordCorrupt, RecordTooLarge):
        return None


def _readable_message(data: bytes | None, key: bytes) -> Message | None:
    try:
        return None if data is None else codec.decode_message(data, key)
    except (RecordCorrupt, RecordTooLarge):
        return None


def newest_readable(
    generations: dict[bytes, bytes], incarnation: int, run_id: str, scan: Scan
) -> LoadedSnapshot | None:
    """Of a run's generations, by their keys, the newest of this incarnation that can be read; None without any.

    Can be read means with all items of its journals, which `scan` finds. Raises RecordCorrupt where there are some and
    none can be read, StoreTooNew.
    """
    readable: list[Snapshot] = []
    damaged: list[tuple[codec.Stamp | None, str]] = []
    for slot_key, data in generations.items():
        try:
            snapshot = codec.decode_snapshot(data, slot_key)
        except (RecordCorrupt, RecordTooLarge) as error:
            damaged.append((codec.peek_stamp(data, codec.Kind.SNAPSHOT, slot_key), str(error)))
        else:
            if snapshot.incarnation == incarnation:
                readable.append(snapshot)
    if list(generations) == [snapshot_key(run_key(run_id), 1)]:
        # The first generation stands in slot 0, and from then on there is one: a bit flipped in its key hides it.
        damaged.append((None, f"snapshot of {run_id!r}: the other generation is not there"))
    for newest in sorted(readable, key=lambda snapshot: snapshot.seq, reverse=True):
        try:
            chunks = read_chunks(scan, run_key(run_id), newest)
        except (RecordCorrupt, RecordTooLarge) as error:
            stamp = codec.Stamp(newest.incarnation, newest.epoch, newest.seq, newest.schema_version)
            damaged.append((stamp, f"snapshot of {run_id!r} lacks items: {error}"))
            continue
        # A damaged generation whose own header still proves that it was written before is no loss.
        lost = [why for stamp, why in damaged if stamp is None or (stamp.epoch, stamp.seq) > (newest.epoch, newest.seq)]
        return LoadedSnapshot(newest, lost[0] if lost else None, chunks)
    if damaged:
        raise RecordCorrupt(
            f"run {run_id!r}: no generation of its snapshot can be read: {'; '.join(why for _, why in damaged)}",
            run_id=run_id,
            what="snapshot",
        )
    return None
