"""A store read from outside: beside the daemon that owns it, or after its death. Writes nothing, owns nothing."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from executus.stores import codec, lmdb_env, lmdb_meta, store_files
from executus.stores.checkup import RunCheckup, RunRows, check_due, check_link, check_run, without_claim
from executus.stores.due_rows import due_keys, run_key_of
from executus.stores.errors import (
    RecordCorrupt,
    RecordTooLarge,
    StoreClosed,
    StoreCorrupt,
    StoreTooNew,
    StoreUnavailable,
)
from executus.stores.owner_lock import boot_id, holder_of_lock, is_running, read_owner, refuse_in_owner
from executus.stores.records import StoreInfo
from executus.stores.row_reader import RowReader, stored_messages
from executus.stores.rows import SEPARATOR, SLOTS, Rows, Table, range_below, snapshot_key

_FIRST_PAGE: Final = 32
_PAGE: Final = 1000
_PAGE_BYTES: Final = 4 * 1024 * 1024
"""A checkup reads about so much at a time: states may be a few bytes or 16 MB."""
_WALKS: Final = 10
"""So often a file that may be truncated is walked while its owner writes it."""


class LmdbReader(RowReader):
    """The reading methods of a CheckpointStore over the folder of an LmdbStore, in any process but the owner's.

    `boot_epoch` is that of the last owner. `owner_pid` is the daemon that owned the store when it was opened here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._folder = Path(path).absolute()
        self._gate = threading.Lock()
        self._env: lmdb_env.ReadableEnvironment | None = None
        self.owner_pid: int | None = None

    def open(self) -> None:
        """Open to read.

        Raises StoreUnavailable where there is no store, StoreCorrupt, StoreTooNew; StoreLocked in the owner's process.
        """
        self._check_process()
        if self._env is not None:
            return
        with self._typed_errors():
            self._check_there()
            # LMDB must not be opened twice in one process: closing one drops the locks of the other.
            refuse_in_owner(self._folder)
            missing_bytes = store_files.check_header(self._folder)
            self.owner_pid = self._live_owner()
            self._check_after_unclean_exit(missing_bytes)
            env = lmdb_env.open_to_read(self._folder, lock=self._takes_slot())
            try:
                with env.read() as rows:
                    lmdb_meta.check_format(rows, self._path)
                    self._boot_epoch = lmdb_meta.last_boot(rows) or 0
            except BaseException:
                env.close()
                raise
        self._env, self._owner_pid = env, os.getpid()

    def close(self) -> None:
        """Let the files go. Idempotent."""
        self._check_process()
        with self._gate:
            env, self._env, self._owner_pid = self._env, None, None
            if env is not None:
                env.close()

    def info(self) -> StoreInfo:
        """See CheckpointStore."""
        self._check_usable()
        with self._view() as rows:
            assert isinstance(rows, lmdb_env.TransactionRows)
            assert self._env is not None
            return StoreInfo(
                kind="lmdb",
                path=self._path,
                boot_epoch=self._boot_epoch,
                format_version=codec.FORMAT_VERSION,
                runs=rows.count(Table.CLAIMS),
                live=rows.count(Table.LIVE),
                used_bytes=rows.used_bytes(),
                map_size_bytes=self._env.map_size_bytes,
            )

    def copy_to(self, folder: Path) -> tuple[int, int]:
        """Put a compacted copy of the last commit into an empty folder; how many runs, and live ones, it holds."""
        self._check_usable()
        with self._gate:
            assert self._env is not None
            return self._env.copy_to(folder)

    def walk(self) -> None:
        """Have every page of the file looked at in a process of its own, before `open`. Beside an owner: do nothing.

        Raises as `open`.
        """
        self._check_process()
        with self._typed_errors():
            self._check_there()
            refuse_in_owner(self._folder)
            missing_bytes = store_files.check_header(self._folder)
            self.owner_pid = self._live_owner()
            if self.owner_pid is None:
                self._walk(missing_bytes, machine_restarted=True)

    def checkup(self) -> Generator[RunCheckup, None, None]:
        """Every run, in order of id, with what of it cannot be read; then rows that belong to no run that is there.

        A page at a time, each a consistent view that is let go before it is handed out.
        """
        self._check_usable()
        first, limit = b"", _FIRST_PAGE
        while page := self._run_rows(first, limit):
            yield from map(check_run, page)
            first = page[-1].key + SEPARATOR
            limit = max(1, min(_PAGE, _PAGE_BYTES * len(page) // sum(map(_size, page))))
        yield from self._without_claim()
        yield from self._damaged_links()
        yield from self._stale_dues()

    def damaged_numbers(self) -> list[str]:
        """Which copies of the store's own numbers cannot be read. There are two of each, and one is enough."""
        self._check_usable()
        with self._view() as rows:
            return lmdb_meta.damaged_copies(rows)

    def _run_rows(self, first: bytes, limit: int) -> list[RunRows]:
        with self._view() as rows:
            claims = rows.page(Table.CLAIMS, first, None, limit)
            keys = [key for key, _ in claims]
            records, outcomes = rows.get_many(Table.RECORDS, keys), rows.get_many(Table.OUTCOMES, keys)
            live, flights = rows.get_many(Table.LIVE, keys), rows.get_many(Table.FLIGHTS, keys)
            slots = {key: [snapshot_key(key, slot) for slot in SLOTS] for key in keys}
            snapshots = rows.get_many(Table.SNAPSHOTS, sorted(itertools.chain.from_iterable(slots.values())))
            chunks = {key: tuple(rows.page(Table.JOURNALS, *range_below(key), 1 << 62)) for key in keys}
            messages = {key: tuple(stored_messages(rows, key)) for key in keys}
            dues = {key: frozenset(rows.get_many(Table.DUE, sorted(_asked_dues(key, claim)))) for key, claim in claims}
        return [
            RunRows(
                key=key,
                claim=claim,
                record=records.get(key),
                generations={slot: snapshots[slot] for slot in slots[key] if slot in snapshots},
                chunks=chunks[key],
                messages=messages[key],
                outcome=outcomes.get(key),
                flight=flights.get(key),
                indexed=key in live,
                dues=dues[key],
            )
            for key, claim in claims
        ]

    def _without_claim(self) -> Generator[RunCheckup, None, None]:
        told: set[bytes] = set()
        for table in (Table.RECORDS, Table.SNAPSHOTS, Table.OUTCOMES, Table.LIVE, Table.JOURNALS, Table.FLIGHTS):
            first = b""
            while True:
                with self._view() as rows:
                    assert isinstance(rows, lmdb_env.TransactionRows)
                    keys = rows.keys(table, first, None, _PAGE)
                    runs = dict.fromkeys(key.partition(SEPARATOR)[0] for key in keys)
                    claimed = rows.get_many(Table.CLAIMS, runs)
                if not keys:
                    break
                lost = [key for key in runs if key not in claimed and key not in told]
                told.update(lost)
                yield from (without_claim(key, table) for key in lost)
                first = keys[-1] + SEPARATOR

    def _damaged_links(self) -> Generator[RunCheckup, None, None]:
        first = b""
        while True:
            with self._view() as rows:
                links = rows.page(Table.CHILDREN, first, None, _PAGE)
            if not links:
                return
            yield from (found for key, data in links if (found := check_link(key, data)) is not None)
            first = links[-1][0] + SEPARATOR

    def _stale_dues(self) -> Generator[RunCheckup, None, None]:
        first = b""
        while True:
            with self._view() as rows:
                dues = [key for key, _ in rows.page(Table.DUE, first, None, _PAGE)]
                claims = rows.get_many(Table.CLAIMS, sorted({run_key_of(key) for key in dues} - {b""}))
            if not dues:
                return
            yield from (found for key in dues if (found := check_due(key, claims.get(run_key_of(key)))) is not None)
            first = dues[-1] + SEPARATOR

    @contextmanager
    def _view(self) -> Generator[Rows, None, None]:
        with self._gate, self._typed_errors():
            if self._env is None:
                raise StoreClosed(f"store {self._path!r} was closed meanwhile. Nothing was read.", path=self._path)
            with self._env.read() as rows:
                yield rows

    def _check_there(self) -> None:
        if not self._folder.exists():
            raise StoreUnavailable(
                f"there is no store at {self._path!r}. Check the path; a runtime makes it when it opens.",
                path=self._path,
            )
        if not (self._folder / store_files.DATA_NAME).is_file():
            raise StoreUnavailable(
                f"{self._path!r} is no store: it has no {store_files.DATA_NAME}. Name the folder given to the runtime.",
                path=self._path,
            )

    def _live_owner(self) -> int | None:
        owner = read_owner(self._folder)
        if owner is not None and owner.closed is None and is_running(owner):
            return owner.pid
        try:
            return holder_of_lock(self._folder)  # who has just taken it, or is in another pid namespace
        except OSError:
            return None

    def _check_after_unclean_exit(self, missing_bytes: int) -> None:
        """A file that was not closed in peace, or may be truncated, is walked in a child first, as by any new owner."""
        last = read_owner(self._folder)
        if self.owner_pid is not None:
            self._check_beside_owner(missing_bytes)
        elif missing_bytes or last is None or not store_files.is_as_left(self._folder, last.closed):
            self._walk(missing_bytes, machine_restarted=last is None or last.boot_id != boot_id())

    def _check_beside_owner(self, missing_bytes: int) -> None:
        """A truncated file kills a reader beside the owner, too. Where a commit came under the walk, it walks again."""
        for _ in range(_WALKS):
            if not missing_bytes:
                return
            before = store_files.data_file(self._folder)
            try:
                store_files.check_in_child(
                    self._folder, lmdb_env.engine_folder(), machine_restarted=False, missing_bytes=missing_bytes
                )
            except (StoreCorrupt, StoreUnavailable):
                if store_files.data_file(self._folder) == before:
                    raise
            else:
                return
            missing_bytes = store_files.check_header(self._folder)

    def _walk(self, missing_bytes: int, *, machine_restarted: bool) -> None:
        try:
            store_files.check_in_child(
                self._folder,
                lmdb_env.engine_folder(),
                machine_restarted=machine_restarted,
                missing_bytes=missing_bytes,
            )
        except StoreCorrupt:
            self.owner_pid = self._live_owner()
            if self.owner_pid is None:
                raise
            # A daemon has opened it meanwhile, after the same check: the file was written to under ours.

    def _takes_slot(self) -> bool:
        """Whether to take a slot in the readers' table: needed beside an owner only, had only where one can write."""
        if os.access(self._folder / lmdb_env.LOCK_NAME, os.R_OK | os.W_OK):
            return True
        if self.owner_pid is not None:
            raise StoreUnavailable(
                f"store {self._path!r} is owned by pid {self.owner_pid}, and {lmdb_env.LOCK_NAME} cannot be written: "
                "without a place in it the daemon would write over what is being read. Nothing was read. Try as the "
                "daemon's user, or when the daemon has ended.",
                path=self._path,
            )
        return False

    def _typed_errors(self) -> AbstractContextManager[None]:
        return lmdb_env.typed_errors(self._folder, 0 if self._env is None else self._env.map_size_bytes)

    @property
    def _path(self) -> str:
        return str(self._folder)


def _size(rows: RunRows) -> int:
    values = [rows.claim, rows.record, rows.outcome, *rows.generations.values(), *(data for _, data in rows.chunks)]
    return sum(len(value) for value in values if value is not None)


def _asked_dues(key: bytes, claim: bytes) -> tuple[bytes, ...]:
    """Which rows of the index of due runs a claim asks for; none where it cannot be read."""
    try:
        return due_keys(codec.decode_claim(claim, key))
    except (RecordCorrupt, RecordTooLarge, StoreTooNew):
        return ()
