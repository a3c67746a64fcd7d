"""The rows of journals: chunks found by base and position, each base kept for as long as a generation needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from executus.stores import codec
from executus.stores.errors import RecordCorrupt
from executus.stores.records import Base, Chunk, Layout, Snapshot
from executus.stores.rows import Table, chunk_base, chunk_key, range_below
from executus.stores.staging import Staging

Scan = Callable[[Table, bytes, bytes], Iterable[tuple[bytes, bytes]]]
"""Every pair of a table from the first key on, under the second."""

Bases = frozenset[Base] | None
"""What the generation in one slot needs; None where its row cannot be read, so that nobody can tell."""

NO_BASES: Final[tuple[Bases, Bases]] = (frozenset(), frozenset())


def bases_of(snapshot: Snapshot) -> frozenset[Base]:
    """The bases that a snapshot's journals stand in."""
    return frozenset(piece.base for layout in snapshot.journals for piece in layout)


def read_chunks(scan: Scan, key: bytes, snapshot: Snapshot) -> tuple[tuple[Chunk, ...], ...]:
    """The chunks of each of a snapshot's journals. Raises as the codec, and RecordCorrupt where an item is missing."""
    return tuple(_chunks_of(scan, key, layout, snapshot.run_id) for layout in snapshot.journals)


def _chunks_of(scan: Scan, key: bytes, layout: Layout, run_id: str) -> tuple[Chunk, ...]:
    chunks: list[Chunk] = []
    at = 0
    for piece in layout:
        first, below = chunk_key(key, piece.base, piece.first), chunk_key(key, piece.base, piece.end)
        for row_key, data in scan(Table.JOURNALS, first, below):
            chunk = codec.decode_chunk(data, row_key)
            if at != chunk.position:
                break
            chunks.append(chunk)
            at += chunk.count
        if piece.first > at or at < piece.end:
            raise RecordCorrupt(
                f"journal of {run_id!r} is damaged: item {at} of {layout[-1].end} is missing. The others were left as "
                "they are.",
                run_id=run_id,
                what="journal",
            )
        at = piece.end  # the last chunk may hold items of a branch that was left
    return tuple(chunks)


def put_chunks(staging: Staging, key: bytes, snapshot: Snapshot, chunks: Iterable[Chunk]) -> None:
    """Write chunks with their snapshot. Raises RecordTooLarge, TypeError, ValueError."""
    stamp = codec.Stamp(snapshot.incarnation, snapshot.epoch)
    for chunk in chunks:
        row_key = chunk_key(key, chunk.base, chunk.position)
        for position in chunk.replaces:
            staging.put(Table.JOURNALS, chunk_key(key, chunk.base, position), None)
        staging.put(Table.JOURNALS, row_key, codec.encode_chunk(chunk, stamp, row_key, snapshot.run_id))


def drop_unneeded(staging: Staging, key: bytes, before: Bases, after: frozenset[Base], other: Bases) -> None:
    """A generation took the place of `before`: what neither it nor the `other` one needs goes.

    Where `before` cannot be read, whatever is there is looked through. Where the other one cannot be read nothing goes
    yet: the next save takes its place.
    """
    if other is None:
        return
    needed = after | other
    if before is None:
        drop_all(staging, key, needed)
        return
    for base in before - needed:
        first, below = chunk_key(key, base, 0), chunk_key(key, base, None)
        for row_key in staging.keys(Table.JOURNALS, first, below):
            staging.put(Table.JOURNALS, row_key, None)


def drop_all(staging: Staging, key: bytes, needed: frozenset[Base] = frozenset()) -> None:
    """Drop every chunk of a run, save for those of the bases that are needed."""
    for row_key in staging.keys(Table.JOURNALS, *range_below(key)):
        if chunk_base(row_key) not in needed:
            staging.put(Table.JOURNALS, row_key, None)
