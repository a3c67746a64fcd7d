"""The disks under our stores; what they are for is in `executus.stores.testing`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lmdb

from executus.stores import CheckpointStore, LmdbStore, MemoryStore
from executus.stores.rows import Table
from executus.stores.testing.disk import Disk, damage, flip_last_bit, rebooted

__all__ = ["Disk", "LmdbDisk", "MemoryDisk", "damage", "flip_last_bit", "rebooted"]


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


def end_with_unwritten_pages(folder: Path) -> int:
    """Leave a store's file as commits do now and then: pages at its end were taken, given up again, and never written.

    How many bytes it is shorter than its last page.
    """
    with lmdb.open(str(folder), max_dbs=64, map_size=64 * 1024**2) as env:
        rows = env.open_db(Table.META.encode(), create=False)
        with env.begin(db=rows, write=True) as txn:
            assert txn.put(b"in passing", b"x" * 100_000)
            assert txn.delete(b"in passing")
        needed_bytes = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    return int(needed_bytes) - (folder / "data.mdb").stat().st_size
