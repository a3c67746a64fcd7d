"""Where the items of a run's journals stand in the store, and which rows the next snapshot must write."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Sequence
from itertools import compress, count
from typing import Any, Final, NamedTuple

import msgspec

from executus.actors.errors import SaveRejected
from executus.actors.journal import Journal, Log, log_of
from executus.actors.outcomes import safe_text
from executus.stores import MAX_RECORD_BYTES, Base, Chunk, Layout, Piece

CHUNK_BYTES: Final = 256 * 1024
"""A chunk holds no more, save for a single item: large enough to be read fast, small beside the cap of a row."""
GATHER_ROWS: Final = 32
"""So many rows of a save each are written once more as one, so that a long journal is few rows to read and to drop.

Each byte is written twice by that and no more: gathered rows stay as they are.
"""
MAX_PIECES: Final = 16
"""A journal in more pieces (each restart from the store and each branch begins one) is written anew as one."""
MAX_ITEM_BYTES: Final = MAX_RECORD_BYTES - 65_536
_FIXARRAY_MAX: Final = 15
_ARRAY16_MAX: Final = 0xFFFF

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_AnyLog = Log[Any]


class _Plan(NamedTuple):
    """What is so of one log once the commit in hand has come through."""

    layout: Layout
    small: tuple[int, ...]
    chunks: tuple[Chunk, ...] = ()


class _Kept:
    """What the store has acknowledged of one log, and what it may have besides.

    Rows of `base` are only ever extended: a commit whose outcome is unknown may have written items up to `offered`, and
    writing the same rows again, with as many items or more, is right whether it did or not. Where the run has gone back
    behind `offered`, the rest goes under a base of its own.
    """

    __slots__ = ("base", "layout", "log", "offered", "small")

    def __init__(self, log: _AnyLog, layout: Layout = ()) -> None:
        self.log = log
        self.layout = layout
        self.base: Base | None = None
        self.small: tuple[int, ...] = ()
        """Positions of the newest rows of `base` that are a save each."""
        self.offered = 0

    @property
    def stored(self) -> int:
        return self.layout[-1].end if self.layout else 0

    def plan(self, end: int, draw: Callable[[], Base]) -> _Plan:
        stored = self.stored
        if end <= stored:
            return _Plan(self.layout, self.small)
        if self.base is None or end < self.offered:
            base, small = draw(), ()
        else:
            base, small = self.base, self.small
        gathers = len(small) >= GATHER_ROWS - 1
        start = small[0] if gathers else stored
        rows = _rows(self.log.items[start:end], start)
        written = {position for position, _, _ in rows}
        replaced = tuple(position for position in small if position not in written) if gathers else ()
        chunks = tuple(
            Chunk(base=base, position=position, count=number, items=items, replaces=() if at else replaced)
            for at, (position, number, items) in enumerate(rows)
        )
        if self.layout and self.layout[-1].base == base:
            layout = (*self.layout[:-1], Piece(base, self.layout[-1].first, end))
        else:
            layout = (*self.layout, Piece(base, stored, end))
        is_small = not gathers and len(rows) == 1
        self.base, self.small, self.offered = base, small, end
        return _Plan(layout, (*small, stored) if is_small else (), chunks)


class JournalKeeper:
    """Of one run, handed from attempt to attempt as long as its state is in memory.

    Only the store actor's thread uses it. The attempt that restores a state from the store fills it in before it
    publishes that state, and nothing of the run reaches the store actor before.
    """

    __slots__ = ("_acknowledged", "_kept", "_number", "_pending")

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}
        """By the identity of the log, which the entry keeps alive."""
        self._acknowledged: frozenset[int] = frozenset()
        self._pending: tuple[int, dict[int, _Plan]] = (0, {})
        self._number = 0

    def restored(self, journals: Sequence[Journal[Any]], layouts: Sequence[Layout]) -> None:
        """These journals were read from the store, where they stand so."""
        for journal, layout in zip(journals, layouts, strict=True):
            log = log_of(journal)
            self._kept[id(log)] = _Kept(log, layout if len(layout) < MAX_PIECES else ())
        self._acknowledged = frozenset(self._kept)

    def lay_out(
        self, journals: Sequence[Journal[Any]], *, seq: int, epoch: int
    ) -> tuple[tuple[Layout, ...], tuple[Chunk, ...]]:
        """Where each journal stands with the snapshot `seq`, and the chunks that must be written for that.

        Says the same again for the same journals until `confirm`. Raises SaveRejected.
        """

        def draw() -> Base:
            self._number += 1
            return Base(epoch, self._number)

        ends: dict[int, tuple[_AnyLog, int]] = {}
        for journal in journals:
            log = log_of(journal)
            ends[id(log)] = (log, max(len(journal), ends[id(log)][1] if id(log) in ends else 0))
        kept = {key: self._kept.get(key) or self._adopted(log, end) for key, (log, end) in ends.items()}
        self._kept = {key: one for key, one in self._kept.items() if key in self._acknowledged} | kept
        plans = {key: one.plan(ends[key][1], draw) for key, one in kept.items()}
        self._pending = (seq, plans)
        layouts = tuple(_cut(plans[id(log_of(journal))].layout, len(journal)) for journal in journals)
        return layouts, tuple(chunk for plan in plans.values() for chunk in plan.chunks)

    def confirm(self, seq: int) -> None:
        """The snapshot `seq` is committed. If it was not laid out last, its rows will be written again."""
        if self._pending[0] != seq:
            return
        plans = self._pending[1]
        self._kept = {key: self._kept[key] for key in plans}
        for key, plan in plans.items():
            self._kept[key].layout, self._kept[key].small = plan.layout, plan.small
        self._acknowledged = frozenset(plans)
        self._pending = (0, {})

    def _adopted(self, log: _AnyLog, end: int) -> _Kept:
        """A log that was not seen before begins with what it has in common with one that is stored.

        In common are the very same objects: a branch, or a list that was made of a journal's items.
        """
        common, layout = 0, ()
        for key in self._acknowledged:
            other = self._kept[key]
            shared = _common(log.items, other.log.items, min(end, other.stored))
            if shared > common and len(other.layout) < MAX_PIECES:
                common, layout = shared, other.layout
        return _Kept(log, _cut(layout, common))


def _common(one: list[Any], other: list[Any], most: int) -> int:
    """How many items at the beginning are the same objects, up to `most`."""
    if one[:most] == [] or one[0] is not other[0]:
        return 0
    differ = compress(count(), map(operator.is_not, one[:most], other[:most]))
    return next(differ, most)


def _cut(layout: Layout, end: int) -> Layout:
    """A layout up to `end`."""
    return tuple(
        piece if piece.end <= end else Piece(piece.base, piece.first, end) for piece in layout if piece.first < end
    )


def _rows(items: list[Any], position: int) -> list[tuple[int, int, bytes]]:
    """(position, count, bytes) of rows for these items. Of more items, all rows but the last are the same."""
    rows: list[tuple[int, int, bytes]] = []
    parts: list[bytes] = []
    size = 0
    for at, item in enumerate(items, position):
        data = _encoded(item, at)
        if parts and size + len(data) > CHUNK_BYTES:
            rows.append((at - len(parts), len(parts), _array(parts)))
            parts, size = [], 0
        parts.append(data)
        size += len(data)
    if parts:
        rows.append((position + len(items) - len(parts), len(parts), _array(parts)))
    return rows


def _encoded(item: object, at: int) -> bytes:
    try:
        data = _encoder.encode(item)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SaveRejected(f"item {at} of a journal cannot be encoded: {safe_text(error)}") from error
    if len(data) > MAX_ITEM_BYTES:
        raise SaveRejected(f"item {at} of a journal takes {len(data)} bytes, the cap is {MAX_ITEM_BYTES}")
    return data


def _array(parts: list[bytes]) -> bytes:
    """One msgpack array of encoded items."""
    number = len(parts)
    if number <= _FIXARRAY_MAX:
        head = bytes([0x90 | number])
    elif number <= _ARRAY16_MAX:
        head = b"\xdc" + struct.pack(">H", number)
    else:
        head = b"\xdd" + struct.pack(">I", number)
    return head + b"".join(parts)
