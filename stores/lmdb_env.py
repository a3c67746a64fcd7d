"""LMDB itself: how an environment is created and opened, one transaction over the tables, and what its errors mean."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import lmdb

from executus.stores.errors import StoreCorrupt, StoreError, StoreFull, StoreUnavailable
from executus.stores.rows import FIRST_TABLES, Table, Writes
from executus.stores.store_files import DATA_NAME, NEW_PREFIX, is_file, sync_folder

LOCK_NAME: Final = "lock.mdb"
FOLDER_MODE: Final = 0o700
_NEW_MAP_BYTES: Final = 1024 * 1024
_LEAST_MAP_BYTES: Final = 16 * 1024 * 1024
_USUAL_MAP_BYTES: Final = 64 * 1024**3
_MAX_READERS: Final = 512
_SPARE_DISK_BYTES: Final = 1024 * 1024
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_Databases = dict[Table, Any]
"""lmdb's handle type has no public name."""


class Panicked(StoreUnavailable):
    """LMDB gave the environment up, after a commit whose outcome nobody knows. It has to be opened anew."""


class Settings(NamedTuple):
    """What an environment is opened with."""

    profile: Literal["power", "power-1", "process"]
    map_size_bytes: int


class TransactionRows:
    """The tables within one transaction. Values are copied out. A table that the store does not have yet is empty."""

    def __init__(self, txn: lmdb.Transaction[bytes], databases: _Databases) -> None:
        self.txn = txn
        self._databases = databases
        self.written_bytes = 0

    def get(self, table: Table, key: bytes) -> bytes | None:
        """See Rows."""
        database = self._databases.get(table)
        return None if database is None else self.txn.get(key, db=database)

    def get_many(self, table: Table, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """See Rows."""
        database = self._databases.get(table)
        if database is None:
            return {}
        with self.txn.cursor(database) as cursor:
            return dict(cursor.getmulti(keys))

    def page(self, table: Table, first: bytes, below: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """See Rows."""
        found: list[tuple[bytes, bytes]] = []
        database = self._databases.get(table)
        if database is None:
            return found
        with self.txn.cursor(database) as cursor:
            if limit and (cursor.set_range(first) if first else cursor.first()):
                last = first
                for key, value in cursor:
                    if key <= last and (found or key < last):
                        raise _out_of_order(table, last, key)
                    if below is not None and key >= below:
                        break
                    found.append((key, value))
                    last = key
                    if len(found) == limit:
                        break
        return found

    def keys(self, table: Table, first: bytes, below: bytes | None, limit: int) -> list[bytes]:
        """See Rows."""
        database = self._databases.get(table)
        if database is None:
            return []
        with self.txn.cursor(database) as cursor:
            if not (cursor.set_range(first) if first else cursor.first()):
                return []
            keys: Iterator[bytes] = itertools.islice(cursor.iternext(values=False), limit)
            found = list(keys if below is None else itertools.takewhile(lambda key: key < below, keys))
        for last, key in itertools.pairwise([first, *found]):
            if key <= last and (last is not first or key < last):
                raise _out_of_order(table, last, key)
        return found

    def write(self, writes: Writes) -> None:
        """See Rows."""
        # Few calls: each one's return waits up to 5 ms for the GIL while any Python thread computes.
        for table, changes in writes.items():
            database = self._databases[table]
            puts = sorted((key, value) for key, value in changes.items() if value is not None)
            if puts:
                with self.txn.cursor(database) as cursor:
                    cursor.putmulti(puts)
            for key, value in changes.items():
                if value is None:
                    self.txn.delete(key, db=database)

    def count(self, table: Table) -> int:
        """See Rows."""
        database = self._databases.get(table)
        return 0 if database is None else self.txn.stat(database)["entries"]

    def used_bytes(self) -> int:
        """Pages that hold something; free pages inside the file do not count."""
        stats = [self.txn.stat(database) for database in self._databases.values()]
        pages = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        return pages * stats[0]["psize"]


class ReadableEnvironment:
    """An environment with its tables, as far as it can be read."""

    def __init__(self, env: lmdb.Environment, databases: _Databases) -> None:
        self._env = env
        self._databases = databases
        self.map_size_bytes = env.info()["map_size"]

    def close(self) -> None:
        """Give the files up. No transaction may be open."""
        self._env.close()

    def copy_to(self, folder: Path) -> tuple[int, int]:
        """Put a compacted copy of the last commit into an empty folder; how many runs, and live ones, it holds."""
        with self.read() as rows:
            self._env.copy(str(folder), compact=True, txn=rows.txn)
            return rows.count(Table.CLAIMS), rows.count(Table.LIVE)

    @contextmanager
    def read(self) -> Generator[TransactionRows, None, None]:
        """A view of the last commit."""
        try:
            txn = self._env.begin()
        except lmdb.ReadersFullError:
            # Slots of killed readers: drop them and try once more.
            self._env.reader_check()
            txn = self._env.begin()
        with txn:
            yield TransactionRows(txn, self._databases)


class OpenEnvironment(ReadableEnvironment):
    """The owner's: with writing, and the identity of the files that it has open."""

    def __init__(self, folder: Path, env: lmdb.Environment, databases: _Databases) -> None:
        super().__init__(env, databases)
        self._data, self._lock = folder / DATA_NAME, folder / LOCK_NAME
        self._data_stat, self._lock_stat = self._data.stat(), self._lock.stat()
        self._page_bytes = env.stat()["psize"]

    def make_missing_tables(self) -> None:
        """A store of older code gets the tables that it lacks. Not before its format is known to be ours to write."""
        for table in Table:
            if table not in self._databases:
                self._databases[table] = self._env.open_db(table.encode())

    def data_is_in_place(self) -> bool:
        """Is the data file still the one under its name? `rm -rf` is otherwise unnoticed."""
        return is_file(self._data, self._data_stat)

    def lock_is_in_place(self) -> bool:
        """The same for LMDB's lock file."""
        return is_file(self._lock, self._lock_stat)

    def reached_bytes(self) -> int:
        """How far into the map pages were ever used."""
        return (self._env.info()["last_pgno"] + 1) * self._page_bytes

    def drop_dead_readers(self) -> None:
        """Free the slots of readers that were killed: each pins every page freed since."""
        self._env.reader_check()

    def sync(self) -> None:
        """Make every commit durable, whatever the profile."""
        self._env.sync(True)  # noqa: FBT003 - positional only in LMDB

    def last_transaction(self) -> int:
        """The number of the last commit."""
        return self._env.info()["last_txnid"]

    @contextmanager
    def write(self) -> Generator[TransactionRows, None, None]:
        """The write transaction: committed when left in peace, else aborted."""
        with self._env.begin(write=True) as txn:
            yield TransactionRows(txn, self._databases)


def create(folder: Path, meta: dict[bytes, bytes | None]) -> None:
    """Make an empty store's data file, all or nothing: LMDB refuses a half-created one for ever.

    Raises lmdb.Error, OSError.
    """
    new = folder / f"{NEW_PREFIX}{os.getpid()}"
    new.mkdir(mode=FOLDER_MODE)
    # The engine by number: an environment variable can change the default, and the two cannot read each other's files.
    with lmdb.open(str(new), map_size=_NEW_MAP_BYTES, mode=FOLDER_MODE, max_dbs=len(Table), lib_version=0) as env:
        databases = {table: env.open_db(table.encode()) for table in Table}
        with env.begin(write=True) as txn:
            TransactionRows(txn, databases).write({Table.META: meta})
    (new / DATA_NAME).rename(folder / DATA_NAME)
    sync_folder(folder)
    shutil.rmtree(new)


def open_environment(folder: Path, settings: Settings) -> OpenEnvironment:
    """Open an existing store's environment and the tables that it has.

    Raises StoreCorrupt for another program's file, lmdb.Error, OSError.
    """
    env = _open_within_address_space(
        folder,
        settings.map_size_bytes,
        # A full disk would be a SIGBUS.
        writemap=False,
        meminit=True,
        lock=True,
        # Without the first, a power loss left 22 % of states whole.
        sync=settings.profile != "process",
        metasync=settings.profile == "power",
    )
    try:
        return OpenEnvironment(folder, env, _open_tables(folder, env))
    except BaseException:
        env.close()
        raise


def open_to_read(folder: Path, *, lock: bool) -> ReadableEnvironment:
    """Open an existing store's environment and its tables to read, beside its owner or without one.

    `lock` takes a slot in the readers' table, so that an owner reuses no page that is being read. Raises as
    open_environment.
    """
    # A map size of 0 is the owner's own.
    env = _open_within_address_space(folder, 0, readonly=True, lock=lock)
    try:
        return ReadableEnvironment(env, _open_tables(folder, env))
    except BaseException:
        env.close()
        raise


def _out_of_order(table: Table, last: bytes, key: bytes) -> StoreCorrupt:
    """A damaged page: whoever pages through it by the last key seen would never come to an end."""
    return StoreCorrupt(
        f"the table of {table} is damaged: {key!r} follows {last!r}. It was left as it is. Restore the store from a "
        "backup, or move the folder away to begin anew."
    )


def _open_tables(folder: Path, env: lmdb.Environment) -> _Databases:
    """The tables that are there; those that every store has must be."""
    databases: _Databases = {}
    for table in Table:
        try:
            databases[table] = env.open_db(table.encode(), create=False)
        except (lmdb.NotFoundError, lmdb.IncompatibleError) as error:
            if isinstance(error, lmdb.NotFoundError) and table not in FIRST_TABLES:
                continue
            raise StoreCorrupt(
                f"store {str(folder)!r}: {DATA_NAME} is an LMDB file of another program ({error}). It was left "
                "untouched. Use a folder of its own for the store.",
                path=str(folder),
            ) from error
    return databases


@contextmanager
def typed_errors(folder: Path, map_size_bytes: int) -> Generator[None, None, None]:
    """LMDB's and the system's errors come out as the store's, with the facts for whoever reads them."""
    try:
        yield
    except StoreError as error:
        error.path = error.path or str(folder)
        raise
    except (lmdb.Error, OSError) as error:
        raise _typed(error, folder, map_size_bytes) from error


def engine_folder() -> str:
    """Where the lmdb package lies, for a child process that shares nothing else with this one."""
    return str(Path(lmdb.__file__).parent.parent)


def _typed(error: lmdb.Error | OSError, folder: Path, map_size_bytes: int) -> StoreError:
    path = str(folder)
    code = error.errno if isinstance(error, OSError) else error.code
    if isinstance(error, lmdb.PanicError):
        return Panicked(
            f"store {path!r}: {error}. The outcome of the last commit is unknown. Make the same call again; where that "
            "does not help, close the store and open it anew.",
            path=path,
        )
    if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)):
        return StoreCorrupt(
            f"store {path!r} is damaged: {error}. It was left as it is. Restore it from a backup, or move the folder "
            "away to begin anew.",
            path=path,
        )
    if isinstance(error, lmdb.MapFullError):
        return StoreFull(
            f"store {path!r} has reached its map size of {map_size_bytes} bytes. Nothing of the commit was written. "
            "Delete runs, or open it with a larger map_size_bytes.",
            path=path,
            map_size_bytes=map_size_bytes,
        )
    # A disk that fills in mid-write comes as a short write, which LMDB reports as a plain EIO.
    if code in _FULL or isinstance(error, lmdb.DiskError) or (code == errno.EIO and _is_short_of_room(folder)):
        return StoreFull(
            f"store {path!r}: no room on its disk, or a limit on file size is reached ({error}; {_free_bytes(folder)} "
            "bytes free). Saving comes back when there is room.",
            path=path,
            needed_bytes=_SPARE_DISK_BYTES,
            map_size_bytes=map_size_bytes,
        )
    return StoreUnavailable(
        f"store {path!r} cannot be used now: {error}. Check that its folder is there, is writable and belongs to this "
        "user, and that the disk works.",
        path=path,
    )


def _open_within_address_space(folder: Path, map_size_bytes: int, **options: Any) -> lmdb.Environment:
    """Open with that much address space, or half of it, and so on, where a limit is in the way."""
    while True:
        try:
            return lmdb.open(
                str(folder),
                map_size=map_size_bytes,
                mode=FOLDER_MODE,
                create=False,
                max_dbs=len(Table),
                max_readers=_MAX_READERS,
                max_spare_txns=0,
                **options,
            )
        except lmdb.MemoryError:
            map_size_bytes = (map_size_bytes or _USUAL_MAP_BYTES) // 2
            if map_size_bytes < _LEAST_MAP_BYTES:
                raise


def _is_short_of_room(folder: Path) -> bool:
    limit_bytes = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    try:
        size_bytes = (folder / DATA_NAME).stat().st_size
    except OSError:
        return False
    if limit_bytes != resource.RLIM_INFINITY and size_bytes + _SPARE_DISK_BYTES > limit_bytes:
        return True
    return _free_bytes(folder) < _SPARE_DISK_BYTES


def _free_bytes(folder: Path) -> int:
    try:
        stat = os.statvfs(folder)
    except OSError:
        return 0
    return stat.f_bavail * stat.f_frsize
