"""A stored state for people: decoded as far as that goes without its type, of its journals the last items."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from executus.actors.console.values import MAX_DECODED_BYTES, Decoded, json_value
from executus.actors.state_codec import number_of_place
from executus.stores import Chunk, LoadedSnapshot

JOURNAL_BYTES: Final = 64 * 1024
"""So much of a journal is shown whole."""
LAST: Final = 20
"""Of a larger one, so many items from its end."""


class ShownJournal(msgspec.Struct, frozen=True):
    """A journal of so many items, and the last of them."""

    journal: int
    last: list[Any]


def decoded_state(loaded: LoadedSnapshot) -> Decoded:
    """Decode it into what JSON can hold. A journal that is not decoded whole comes as a ShownJournal."""
    state = loaded.snapshot.state
    size_bytes = len(state) + sum(len(chunk.items) for chunks in loaded.chunks for chunk in chunks)
    if len(state) > MAX_DECODED_BYTES:
        return Decoded(size_bytes, why_not=f"larger than {MAX_DECODED_BYTES} bytes; --raw prints them")
    left_bytes = MAX_DECODED_BYTES - len(state)

    def journal_at(code: int, data: memoryview) -> list[Any] | ShownJournal:
        nonlocal left_bytes
        number = number_of_place(msgspec.msgpack.Ext(code, bytes(data)), len(loaded.chunks))
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
            items[chunk.position - first :] = msgspec.msgpack.decode(chunk.items, type=list[Any])
        del items[length - first :]
        return items if len(items) == length and taken_bytes <= JOURNAL_BYTES else ShownJournal(length, items[-LAST:])

    try:
        return Decoded(size_bytes, value=json_value(msgspec.msgpack.decode(state, ext_hook=journal_at)))
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        return Decoded(size_bytes, why_not=f"not plain msgpack ({error}); --raw prints them")
