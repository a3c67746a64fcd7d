"""Rows as they will be: those of the transaction, with what the commit in the making changes over them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from executus.stores.rows import Rows, Table, Writes

_EVERYTHING: Final = 1 << 62


class Staging:
    """Reads through to `rows`; keeps every change in `writes`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.writes: Writes = {}

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value under a key, or None."""
        staged = self.writes.get(table)
        if staged is not None and key in staged:
            return staged[key]
        return self._rows.get(table, key)

    def put(self, table: Table, key: bytes, value: bytes | None) -> None:
        """Put a value under a key; None deletes."""
        self.writes.setdefault(table, {})[key] = value

    def items(self, table: Table, first: bytes, below: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Every pair from `first` on, under `below`; those that this commit puts come last."""
        staged = self.writes.get(table, {})
        stored = self._rows.page(table, first, below, _EVERYTHING)
        yield from [(key, value) for key, value in stored if key not in staged]
        for key, value in list(staged.items()):
            if value is not None and first <= key and (below is None or key < below):
                yield key, value
