"""A disk under a store: what is on it outlives the store object, and bits on it can be flipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from executus.stores.protocol import CheckpointStore
from executus.stores.rows import Table, run_key, snapshot_key


class Disk(Protocol):
    def store(self) -> CheckpointStore:
        """A store over what is on the disk, not open."""
        ...

    def change(self, table: Table, key: bytes, how: Callable[[bytes], bytes | None]) -> None:
        """Change the bytes of one row, behind the back of a closed store."""
        ...

    def keys(self, table: Table) -> list[bytes]: ...


def flip_last_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def cut_short(data: bytes) -> bytes:
    return data[:-1]


def removed(_data: bytes) -> None:
    return None


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
