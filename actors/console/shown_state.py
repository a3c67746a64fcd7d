"""A stored state for people: decoded as far as that goes without its type, of its journals the last items."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from executus.actors.blob import INLINE, REFERENCE
from executus.actors.console.values import MAX_DECODED_BYTES, Decoded, json_value
from executus.actors.state_codec import BLOB_PLACE, number_of_place
from executus.stores import Chunk, LoadedSnapshot

JOURNAL_BYTES: Final = 64 * 1024
"""So much of a journal is shown whole."""
LAST: Final = 20
"""Of a larger one, so many items from its end."""


class ShownJournal(msgspec.Struct, frozen=True):
    """A journal of so many items, and the last of them."""

    journal: int
    last: list[Any]


class ShownBlob(msgspec.Struct, frozen=True, omit_defaults=True):
    """A blob of about so many bytes; or its digest, where it stands by itself and an item holds it."""

    blob_bytes: int | None = None
    sha256: str = ""


def decoded_state(loaded: LoadedSnapshot) -> Decoded:
    """Decode it into what JSON can hold. A journal that is not decoded whole comes as a ShownJournal."""
    state = loaded.snapshot.state
    size_bytes = len(state) + sum(len(chunk.items) for chunks in loaded.chunks for chunk in chunks)
    if len(state) > MAX_DECODED_BYTES:
        return Decoded(size_bytes, why_not=f"larger than {MAX_DECODED_BYTES} bytes; --raw prints them")
    left_bytes = MAX_DECODED_BYTES - len(state)

    def value_at(code: int, data: memoryview) -> list[Any] | ShownJournal | ShownBlob:
        nonlocal left_bytes
        found = msgspec.msgpack.Ext(code, bytes(data))
        if code == INLINE:
            return ShownBlob(len(data))
        if code == REFERENCE:
            return ShownBlob(None, bytes(data).hex())
        if code == BLOB_PLACE:
            number = number_of_place(found, len(loaded.chunks), BLOB_PLACE)
            return ShownBlob(sum(len(chunk.items) for chunk in loaded.chunks[number]))
        number = number_of_place(found, len(loaded.chunks))
        layout = loaded.snapshot.journals[number]
        length = layout[-1].end if layout else 0
        tail: list[Chunk] = []
        taken_bytes = 0
        for chunk in reversed(loaded.chunks[number]):
            taken_bytes += len(chunk.items)
            if taken_bytes > left_bytes or (tail and taken_bytes > JOURNAL_BYTES):
                break
            tail.insert(0, chunk)
        left_bytes -= taken_bytes
        first = tail[0].position if tail else length
        items: list[Any] = []
        for chunk in tail:
            items[chunk.position - first :] = decoder.decode(chunk.items)
        del items[length - first :]
        return items if len(items) == length and taken_bytes <= JOURNAL_BYTES else ShownJournal(length, items[-LAST:])

    decoder = msgspec.msgpack.Decoder(list[Any], ext_hook=value_at)
    try:
        return Decoded(size_bytes, value=json_value(msgspec.msgpack.decode(state, ext_hook=value_at)))
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        return Decoded(size_bytes, why_not=f"not plain msgpack ({error}); --raw prints them")
