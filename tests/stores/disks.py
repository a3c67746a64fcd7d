"""A disk under a store: what is on it outlives the store object, and bits on it can be flipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import lmdb

from executus.stores import CheckpointStore, LmdbStore, MemoryStore
from executus.stores.rows import Table, run_key, snapshot_key


class Disk(Protocol):
    def store(self) -> CheckpointStore:
        """A store over what is on the disk, not open."""
        ...

    def change(self, table: Table, key: bytes, how: Callable[[bytes], bytes | None]) -> None:
        """Change the bytes of one row, behind the back of a closed store."""
        ...

    def keys(self, table: Table) -> list[bytes]: ...


class MemoryDisk:
    def __init__(self) -> None:
        self._store = MemoryStore()

    def store(self) -> CheckpointStore:
        return self._store

    def change(self, table: Table, key: bytes, how: Callable[[bytes], bytes | None]) -> None:
        tables = self._store._tables
        old = tables.get(table, key)
        assert old is not None, f"no row {key!r} in {table}"
        tables.write({table: {key: how(old)}})

    def keys(self, table: Table) -> list[bytes]:
        return [key for key, _ in self._store._tables.page(table, b"", None, 1 << 62)]


class LmdbDisk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self) -> LmdbStore:
        return LmdbStore(self.folder, profile="process", map_size_bytes=64 * 1024**2)

    def change(self, table: Table, key: bytes, how: Callable[[bytes], bytes | None]) -> None:
        with lmdb.open(str(self.folder), max_dbs=64) as env:
            rows = env.open_db(table.encode(), create=False)
            with env.begin(db=rows, write=True) as txn:
                old = txn.get(key)
                assert old is not None, f"no row {key!r} in {table}"
                new = how(old)
                assert txn.delete(key) if new is None else txn.put(key, new)

    def keys(self, table: Table) -> list[bytes]:
        with lmdb.open(str(self.folder), max_dbs=64) as env:
            rows = env.open_db(table.encode(), create=False)
            with env.begin(db=rows) as txn:
                return list(txn.cursor().iternext(values=False))


def flip_last_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def damage(disk: Disk, table: Table, run_id: str, slot: int | None = None) -> None:
    """Flip a bit of a run's row; of one generation where a slot is given."""
    key = run_key(run_id)
    disk.change(table, key if slot is None else snapshot_key(key, slot), flip_last_bit)


def rebooted(disk: Disk, store: CheckpointStore, between: Callable[[], None] = lambda: None) -> CheckpointStore:
    """Close, let something happen to the disk, open again."""
    store.close()
    between()
    store = disk.store()
    store.open()
    return store
