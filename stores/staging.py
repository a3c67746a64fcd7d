"""Rows as they will be: those of the transaction, with what the commit in the making changes over them."""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import islice
from typing import Final

from executus.stores.rows import Rows, Table, Writes

_EVERYTHING: Final = 1 << 62
FEW: Final = 50
"""More keys than these are put in order by sorting anew."""


class Staging:
    """Reads through to `rows`; keeps every change in `writes`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._order: dict[Table, list[bytes]] = {}
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

    def items(self, table: Table, first: bytes, below: bytes | None) -> list[tuple[bytes, bytes]]:
        """Every pair from `first` on, under `below`; those that this commit puts come last."""
        staged = self.writes.get(table, {})
        stored = self._rows.page(table, first, below, _EVERYTHING)
        found = [(key, value) for key, value in stored if key not in staged]
        changed = self._staged_keys(table, first, below)
        return found + [(key, value) for key in changed if (value := staged[key]) is not None]

    def keys(self, table: Table, first: bytes, below: bytes | None) -> list[bytes]:
        """The keys of those pairs. Stored values are not touched."""
        staged = self.writes.get(table, {})
        stored = self._rows.keys(table, first, below, _EVERYTHING)
        found = [key for key in stored if key not in staged]
        return found + [key for key in self._staged_keys(table, first, below) if staged[key] is not None]

    def _staged_keys(self, table: Table, first: bytes, below: bytes | None) -> list[bytes]:
        """The keys of that range which this commit changes.

        They are kept in order, those that came since the last look are put in: when a thousand runs end in one commit,
        each of them would otherwise look through the rows of all.
        """
        staged, order = self.writes.get(table, {}), self._order.setdefault(table, [])
        # Keys are only ever added, and a dict gives them in the order in which they came.
        new = list(islice(staged, len(order), None))
        if len(new) > FEW:
            order.extend(new)
            order.sort()
        else:
            for key in new:
                insort(order, key)
        return order[bisect_left(order, first) : len(order) if below is None else bisect_left(order, below)]
