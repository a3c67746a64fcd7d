"""Where the items of a run's journals stand in the store, and which rows the next snapshot must write."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import compress, count
from typing import Any, Final, NamedTuple

import msgspec

from executus.actors.blob import INLINE_BYTES, Blob, encoded_blob, journal_of_blob
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
_plain = msgspec.msgpack.Encoder(order="deterministic")
_ARRAY16_MAX: Final = 0xFFFF

_AnyLog = Log[Any]
_Blobs = tuple[tuple[int, Blob], ...]
"""Blobs that stand by themselves, each with the position of an item that holds it, or of one before it."""


class _Plan(NamedTuple):
    """What is so of one log once the commit in hand has come through."""

    layout: Layout
    small: tuple[int, ...]
    blobs: _Blobs
    chunks: tuple[Chunk, ...] = ()


class _Kept:
    """What the store has of one log for sure, and what it may have besides.

    For sure is what was acknowledged and has been in every snapshot that was laid out since: of those nobody may know
    which were stored, and what two of them did not need is gone.

    Rows of `base` are only ever extended: a commit whose outcome is unknown may have written items up to `offered`, and
    writing the same rows again, with as many items or more, is right whether it did or not. Where the run has gone back
    behind `offered`, the rest goes under a base of its own.
    """

    __slots__ = ("base", "blobs", "layout", "log", "offered", "small")

    def __init__(self, log: _AnyLog, layout: Layout = (), blobs: _Blobs = ()) -> None:
        self.log = log
        self.layout = layout
        self.blobs = blobs
        self.base: Base | None = None
        self.small: tuple[int, ...] = ()
        """Positions of the newest rows of `base` that are a save each."""
        self.offered = 0

    @property
    def stored(self) -> int:
        return self.layout[-1].end if self.layout else 0

    def plan(self, end: int, draw: Callable[[], Base]) -> _Plan:
        stored = self.stored
        if end < stored:
            self.layout, self.blobs = _cut(self.layout, end), tuple(one for one in self.blobs if one[0] < end)
            self.base, self.small = None, ()
            stored = self.stored
        if end == stored:
            return _Plan(self.layout, self.small, self.blobs)
        base, small = self.base, self.small
        if base is None or end < self.offered:
            base, small = draw(), ()
        gathers = len(small) >= GATHER_ROWS - 1
        start = small[0] if gathers else stored
        rows, found = _rows(self.log.items[start:end], start)
        blobs = (*[one for one in self.blobs if one[0] < start], *found) if self.blobs or found else ()
        replaced: tuple[int, ...] = ()
        if gathers:
            written = {position for position, _, _ in rows}
            replaced = tuple(position for position in small if position not in written)
        chunks = tuple(
            [
                Chunk(base=base, position=position, count=number, items=items, replaces=() if at else replaced)
                for at, (position, number, items) in enumerate(rows)
            ]
        )
        if self.layout and self.layout[-1].base == base:
            layout = (*self.layout[:-1], Piece(base, self.layout[-1].first, end))
        else:
            layout = (*self.layout, Piece(base, stored, end))
        is_small = not gathers and len(rows) == 1 and len(rows[0][2]) <= INLINE_BYTES
        self.base, self.small, self.offered = base, small, end
        return _Plan(layout, (*small, stored) if is_small else (), blobs, chunks)


class JournalKeeper:
    """Of one run, handed from attempt to attempt as long as its state is in memory.

    Only the store actor's thread uses it. The attempt that restores a state from the store fills it in before it
    publishes that state, and nothing of the run reaches the store actor before.
    """

    __slots__ = ("_kept", "_number", "_pending")

    def __init__(self) -> None:
        self._kept: dict[_Key, _Kept] = {}
        """Of the logs of the snapshot that was laid out last."""
        self._pending: tuple[int, dict[_Key, _Plan]] = (0, {})
        self._number = 0

    def restored(self, stored: Iterable[tuple[Journal[Any], Layout, _Blobs]]) -> None:
        """These journals were read from the store, where they stand so, blobs among them and such as are in items."""
        for journal, layout, blobs in stored:
            log = log_of(journal)
            self._kept[_key(log)] = _Kept(log, layout if len(layout) < MAX_PIECES else (), blobs)

    def lay_out(
        self, journals: Sequence[Journal[Any]], *, seq: int, epoch: int
    ) -> tuple[tuple[Layout, ...], tuple[Chunk, ...]]:
        """Where each journal stands with the snapshot `seq`, and the chunks that must be written for that.

        Behind the journals come the blobs that their items hold: found by their content, so that their order is of no
        account. Says the same again for the same journals until `confirm`. Raises SaveRejected.
        """
        plans: dict[_Key, _Plan] = {}
        kept: dict[_Key, _Kept] = {}
        places = self._planned(journals, epoch, kept, plans)
        held = {
            blob: journal_of_blob(blob)
            for key, length in places
            for position, blob in plans[key].blobs
            if position < length
        }
        if held:
            places += self._planned(held.values(), epoch, kept, plans)
        self._kept, self._pending = kept, (seq, plans)
        layouts = tuple([_cut(plans[key].layout, length) for key, length in places])
        return layouts, tuple([chunk for plan in plans.values() for chunk in plan.chunks])

    def _planned(
        self, journals: Iterable[Journal[Any]], epoch: int, kept: dict[_Key, _Kept], plans: dict[_Key, _Plan]
    ) -> list[tuple[_Key, int]]:
        """Plan each log as far as the longest of its journals goes; the key of each journal's log, and its length."""

        def draw() -> Base:
            self._number += 1
            return Base(epoch, self._number)

        places: list[tuple[_Key, int]] = []
        ends: dict[_Key, tuple[_AnyLog, int]] = {}
        for journal in journals:
            log, length = log_of(journal), len(journal)
            key = _key(log)
            places.append((key, length))
            if key not in ends or ends[key][1] < length:
                ends[key] = (log, length)
        for key, (log, end) in ends.items():
            if key not in plans:
                one = kept[key] = self._kept.get(key) or self._adopted(log, end)
                plans[key] = one.plan(end, draw)
        return places

    def confirm(self, seq: int) -> None:
        """The snapshot `seq` is committed. If it was not laid out last, its rows will be written again."""
        if self._pending[0] != seq:
            return
        for key, plan in self._pending[1].items():
            one = self._kept[key]
            one.layout, one.small, one.blobs = plan.layout, plan.small, plan.blobs
        self._pending = (0, {})

    def _adopted(self, log: _AnyLog, end: int) -> _Kept:
        """A log that was not seen before begins with what it has in common with one that is stored.

        In common are the very same objects: a branch, or a list that was made of a journal's items.
        """
        common, best = 0, None
        for other in self._kept.values():
            shared = _common(log.items, other.log.items, min(end, other.stored))
            if shared > common and len(other.layout) < MAX_PIECES:
                common, best = shared, other
        if best is None:
            return _Kept(log)
        return _Kept(log, _cut(best.layout, common), tuple(one for one in best.blobs if one[0] < common))


_Key = int | bytes


def _key(log: _AnyLog) -> _Key:
    """A log's identity, while an entry keeps it alive; a blob's is its content."""
    return id(log) if log.content is None else log.content


def _common(one: list[Any], other: list[Any], most: int) -> int:
    """How many items at the beginning are the same objects, up to `most`."""
    if one[:most] == [] or one[0] is not other[0]:
        return 0
    differ = compress(count(), map(operator.is_not, one[:most], other[:most]))
    return next(differ, most)


def _cut(layout: Layout, end: int) -> Layout:
    """A layout up to `end`."""
    if not layout or layout[-1].end <= end:
        return layout
    return tuple(
        piece if piece.end <= end else Piece(piece.base, piece.first, end) for piece in layout if piece.first < end
    )


def _rows(items: list[Any], position: int) -> tuple[list[tuple[int, int, bytes]], list[tuple[int, Blob]]]:
    """(position, count, bytes) of rows for these items, and the blobs in them that stand by themselves.

    Of more items, all rows but the last are the same. Raises SaveRejected.
    """
    if (together := _together(items)) is not None:
        return [(position, len(items), together)], []
    rows: list[tuple[int, int, bytes]] = []
    blobs: list[tuple[int, Blob]] = []
    larger: list[Blob] = []

    def encode_blob(value: object) -> msgspec.msgpack.Ext:
        if type(value) is not Blob:
            raise TypeError(f"objects of type {type(value).__qualname__} cannot be stored")
        return encoded_blob(value, larger)

    parts: list[bytes] = []
    size = 0
    for at, item in enumerate(items, position):
        data = _encoded(item, at, encode_blob)
        if larger:
            blobs += [(at, blob) for blob in larger]
            larger.clear()
        if parts and size + len(data) > CHUNK_BYTES:
            rows.append((at - len(parts), len(parts), array_of(parts)))
            parts, size = [], 0
        parts.append(data)
        size += len(data)
    if parts:
        rows.append((position + len(items) - len(parts), len(parts), array_of(parts)))
    return rows, blobs


def _together(items: list[Any]) -> bytes | None:
    """All of them as one row, where they fit into one and hold no blob: nearly always, a step has said one or two."""
    try:
        data = _plain.encode(items)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError):
        return None  # one by one it shows which
    return data if len(data) <= CHUNK_BYTES else None


def _encoded(item: object, at: int, encode_blob: Callable[[object], object]) -> bytes:
    try:
        try:
            data = _plain.encode(item)
        except TypeError:  # there is a blob in it, or something that cannot be stored
            data = msgspec.msgpack.Encoder(order="deterministic", enc_hook=encode_blob).encode(item)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SaveRejected(f"item {at} of a journal cannot be encoded: {safe_text(error)}") from error
    if len(data) > MAX_ITEM_BYTES:
        raise SaveRejected(f"item {at} of a journal takes {len(data)} bytes, the cap is {MAX_ITEM_BYTES}")
    return data


def array_of(parts: list[bytes]) -> bytes:
    """One msgpack array of encoded items."""
    number = len(parts)
    if number <= _FIXARRAY_MAX:
        head = bytes([0x90 | number])
    elif number <= _ARRAY16_MAX:
        head = b"\xdc" + struct.pack(">H", number)
    else:
        head = b"\xdd" + struct.pack(">I", number)
    return head + b"".join(parts)
