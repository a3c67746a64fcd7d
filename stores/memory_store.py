"""The reference store: the same frames and rules, in dictionaries. What it holds outlives close(), as a disk would."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, insort
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

from executus.stores.codec import FORMAT_VERSION
from executus.stores.errors import StoreLocked
from executus.stores.operations import Operation
from executus.stores.records import StoreInfo
from executus.stores.row_store import RowStore
from executus.stores.rows import Rows, Table, WritableRows, Writes


class MemoryStore(RowStore):
    """Keeps everything until the object goes: open() after close() is the next boot on the same "disk"."""

    def __init__(self) -> None:
        super().__init__()
        self._tables = _Tables()
        self._lock = threading.Lock()
        self._boots = 0

    def open(self) -> None:
        """See CheckpointStore."""
        self._check_process()
        if self._owner_pid is not None:
            raise StoreLocked("this store is open already. Close it first.", owner_pid=self._owner_pid)
        self._boots += 1
        self._boot_epoch = self._boots
        self._fences.clear()
        self._owner_pid = os.getpid()

    def close(self) -> None:
        """See CheckpointStore."""
        self._check_process()
        self._owner_pid = None

    def info(self) -> StoreInfo:
        """See CheckpointStore."""
        self._check_usable()
        with self._lock:
            return StoreInfo(
                kind="memory",
                path=None,
                boot_epoch=self._boot_epoch,
                format_version=FORMAT_VERSION,
                runs=self._tables.count(Table.CLAIMS),
                live=self._tables.count(Table.LIVE),
                used_bytes=self._tables.used_bytes,
                map_size_bytes=0,
            )

    @contextmanager
    def _view(self) -> Generator[Rows, None, None]:
        with self._lock:
            yield self._tables

    @contextmanager
    def _transaction(self, operations: Sequence[Operation]) -> Generator[WritableRows, None, None]:
        # Rows change only in write(), the last thing a commit does: an error before it leaves nothing to undo.
        del operations
        with self._lock:
            yield self._tables


class _Tables:
    """Dictionaries with their keys kept in order."""

    def __init__(self) -> None:
        self._rows: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
        self._order: dict[Table, list[bytes]] = {table: [] for table in Table}
        self.used_bytes = 0

    def count(self, table: Table) -> int:
        return len(self._rows[table])

    def get(self, table: Table, key: bytes) -> bytes | None:
        return self._rows[table].get(key)

    def get_many(self, table: Table, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        rows = self._rows[table]
        return {key: rows[key] for key in keys if key in rows}

    def page(self, table: Table, first: bytes, below: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        rows = self._rows[table]
        return [(key, rows[key]) for key in self.keys(table, first, below, limit)]

    def keys(self, table: Table, first: bytes, below: bytes | None, limit: int) -> list[bytes]:
        order = self._order[table]
        start = bisect_left(order, first)
        stop = len(order) if below is None else bisect_left(order, below)
        return order[start : min(stop, start + limit)]

    def write(self, writes: Writes) -> None:
        for table, changes in writes.items():
            rows, order = self._rows[table], self._order[table]
            for key, value in changes.items():
                old = rows.pop(key, None)
                if old is not None:
                    self.used_bytes -= len(old)
                if value is not None:
                    rows[key] = value
                    self.used_bytes += len(value)
                if (old is None) and (value is not None):
                    insort(order, key)
                elif (old is not None) and (value is None):
                    del order[bisect_left(order, key)]
