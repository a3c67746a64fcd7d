"""States <-> bytes. A journal in a state is a place in its bytes; the journals themselves go beside them."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from executus.actors.errors import SaveRejected
from executus.actors.journal import Journal, Log, digest_of, journal_of
from executus.actors.outcomes import safe_text
from executus.actors.user_types import decoder_of, journal_items
from executus.stores import MAX_RECORD_BYTES, LoadedSnapshot

MAX_VALUE_BYTES: Final = MAX_RECORD_BYTES - 65_536
"""The most that an input, a state or a result may take; what is left is for the record around it."""

_PLACE: Final = 0x4A
"""msgpack extension type of a journal's place: its number among the journals of the state."""
_PLACE_BYTES: Final = 4

Journals = tuple[Journal[Any], ...]
_Items = list[Any]

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_plain_lists = msgspec.msgpack.Decoder(_Items)


class StateCodec:
    """Of one run type. Immutable after construction and safe on any thread.

    Journals are values that never change, so that a state and its journals may be encoded at different times and on
    different threads.
    """

    __slots__ = ("_decoder", "_items", "_name", "_type")

    def __init__(self, state_type: Any, name: str) -> None:
        """Raises InvalidRunType."""
        self._name = name
        self._type = state_type
        self._decoder = decoder_of(state_type, "State", name, journals=True)
        self._items = {journal: _ItemCodec(item) for journal, item in journal_items(state_type, name).items()}

    @property
    def has_journals(self) -> bool:
        """Whether states of this type may hold journals."""
        return bool(self._items)

    def encode(self, state: object) -> tuple[bytes, Journals]:
        """Deterministically: equal states give equal bytes in every process. Raises SaveRejected."""
        journals: list[Journal[Any]] = []

        def place(value: object) -> msgspec.msgpack.Ext:
            if type(value) is not Journal:
                raise TypeError(f"objects of type {type(value).__qualname__} cannot be stored")
            journals.append(value)
            return msgspec.msgpack.Ext(_PLACE, (len(journals) - 1).to_bytes(_PLACE_BYTES, "big"))

        encoder = msgspec.msgpack.Encoder(order="deterministic", enc_hook=place) if self._items else _encoder
        try:
            data = encoder.encode(state)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
            msg = f"run type {self._name!r}: the state cannot be encoded: {safe_text(error)}"
            raise SaveRejected(msg) from error
        if len(data) > MAX_VALUE_BYTES:
            msg = f"run type {self._name!r}: the state takes {len(data)} bytes, the cap is {MAX_VALUE_BYTES}"
            raise SaveRejected(msg)
        return data, tuple(journals)

    def decode(self, data: bytes, journals: Journals = ()) -> Any:
        """A fresh state with these journals. Raises what msgspec raises on bytes of another type."""
        if not self._items:
            return self._decoder.decode(data)

        def journal_at(_kind: Any, found: object) -> Journal[Any]:
            return journals[number_of_place(found, len(journals))]

        return msgspec.msgpack.Decoder(self._type, dec_hook=journal_at).decode(data)

    def load(self, loaded: LoadedSnapshot) -> tuple[Any, Journals]:
        """State and journals of a snapshot of this schema. Raises as `decode`."""
        snapshot = loaded.snapshot
        if not (self._items or snapshot.journals):
            return self._decoder.decode(snapshot.state), ()
        journals: list[Journal[Any]] = [_EMPTY] * len(snapshot.journals)
        placed: set[int] = set()

        def journal_at(kind: Any, found: object) -> Journal[Any]:
            number = _first_place(found, len(journals), placed)
            items = _items_of(loaded, number, self._items[kind].decoder)
            journals[number] = journal_of(Log(items), len(items))
            return journals[number]

        state = msgspec.msgpack.Decoder(self._type, dec_hook=journal_at).decode(snapshot.state)
        return state, tuple(journals)

    def digest(self, state: object) -> bytes:
        """What tells this state from every other of its type, and is the same for it when it is read back."""
        data, journals = self.encode(state)
        return self.digest_of_encoded(data, journals)

    def digest_of_encoded(self, data: bytes, journals: Journals) -> bytes:
        """The same, of a state that is encoded."""
        # As they are when read back: a 1 where a float is declared comes back as 1.0.
        kinds: dict[int, Any] = {}
        if not self._items:
            return _encoder.encode(self._decoder.decode(data))

        def journal_at(kind: Any, found: object) -> Journal[Any]:
            journal = journals[number_of_place(found, len(journals))]
            kinds[id(journal)] = kind
            return journal

        again, ordered = self.encode(msgspec.msgpack.Decoder(self._type, dec_hook=journal_at).decode(data))
        return b"".join([again, *(digest_of(journal, self._items[kinds[id(journal)]].normal) for journal in ordered)])


class _ItemCodec:
    """Of the items of one type of journal."""

    def __init__(self, item: Any) -> None:
        self.decoder: msgspec.msgpack.Decoder[_Items] = msgspec.msgpack.Decoder(list[item])
        self._one: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(item)

    def normal(self, item: object) -> bytes:
        """The bytes of an item as it is when read back."""
        return _encoder.encode(self._one.decode(_encoder.encode(item)))


_EMPTY: Final[Journal[Any]] = Journal()


def plain_state(loaded: LoadedSnapshot) -> Any:
    """A snapshot's state as plain dicts, lists and scalars, a journal as a list. Raises msgspec.DecodeError."""
    placed: set[int] = set()

    def items_at(code: int, data: memoryview) -> _Items:
        found = msgspec.msgpack.Ext(code, bytes(data))
        return _items_of(loaded, _first_place(found, len(loaded.chunks), placed), _plain_lists)

    return msgspec.msgpack.decode(loaded.snapshot.state, ext_hook=items_at)


def _items_of(loaded: LoadedSnapshot, number: int, decoder: msgspec.msgpack.Decoder[_Items]) -> _Items:
    layout = loaded.snapshot.journals[number]
    items: _Items = []
    for chunk in loaded.chunks[number]:
        items[chunk.position :] = decoder.decode(chunk.items)
    del items[layout[-1].end if layout else 0 :]
    return items


def _first_place(found: object, journals: int, placed: set[int]) -> int:
    """The number that a place holds, which stands in a state once: each time its items would be built anew."""
    number = number_of_place(found, journals)
    if number in placed:
        raise msgspec.ValidationError(f"The state has journal {number} twice")
    placed.add(number)
    return number


def number_of_place(found: object, journals: int) -> int:
    """The number that a place holds. Raises msgspec.ValidationError for anything else."""
    if not isinstance(found, msgspec.msgpack.Ext) or found.code != _PLACE:
        raise msgspec.ValidationError("Expected the place of a journal")
    number = int.from_bytes(found.data, "big")
    if number >= journals:
        raise msgspec.ValidationError(f"The state has no journal {number}")
    return number
