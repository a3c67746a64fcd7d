"""States <-> bytes. A journal or a large blob is a place in the state's bytes; they themselves go beside them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Final, cast

import msgspec

from executus.actors.blob import INLINE, INLINE_BYTES, REFERENCE, Blob, blob_of_log, encoded_blob, journal_of_blob
from executus.actors.errors import SaveRejected
from executus.actors.journal import Journal, Log, digest_of, journal_of, log_of
from executus.actors.journal_keeper import array_of
from executus.actors.outcomes import safe_text
from executus.actors.user_types import decoder_of, journal_items
from executus.stores import MAX_RECORD_BYTES, Chunk, Layout, LoadedSnapshot

MAX_VALUE_BYTES: Final = MAX_RECORD_BYTES - 65_536
"""The most that an input, a state or a result may take; what is left is for the record around it."""

_JOURNAL: Final = 0x4A
"""msgpack extension type of a journal's place: its number among the journals of the state."""
BLOB_PLACE: Final = 0x44
"""The same of a blob that stands by itself, stored as a journal of one item."""
_PLACE_BYTES: Final = 4

_FIRST_PLACES: Final = [msgspec.msgpack.Ext(_JOURNAL, number.to_bytes(_PLACE_BYTES, "big")) for number in range(8)]
"""Those of a state's first journals, made once: a state is encoded with every save."""

Journals = tuple[Journal[Any], ...]
_Items = list[Any]

StoredJournal = tuple[Journal[Any], Layout, tuple[tuple[int, Blob], ...]]
"""A journal or a blob that was read, where it stands, and the blobs in its items that stand by themselves."""

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_raw_lists = msgspec.msgpack.Decoder(list[msgspec.Raw])
_byte_lists = msgspec.msgpack.Decoder(list[bytes])


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
        self._decoder = decoder_of(state_type, "State", name, (Journal, Blob))
        self._items = {journal: _ItemCodec(item) for journal, item in journal_items(state_type, name).items()}

    @property
    def has_journals(self) -> bool:
        """Whether states of this type may hold journals."""
        return bool(self._items)

    def encode(self, state: object) -> tuple[bytes, Journals]:
        """Deterministically: equal states give equal bytes in every process. Raises SaveRejected."""
        journals: list[Journal[Any]] = []

        def place(value: object) -> msgspec.msgpack.Ext:
            if type(value) is Journal:
                code, number = _JOURNAL, len(journals)
                journals.append(value)  # pyright: ignore[reportUnknownArgumentType]  # of whatever items
                if number < len(_FIRST_PLACES):
                    return _FIRST_PLACES[number]
            elif type(value) is not Blob:
                raise TypeError(f"objects of type {type(value).__qualname__} cannot be stored")
            elif len(value) <= INLINE_BYTES:
                return msgspec.msgpack.Ext(INLINE, value.data)
            else:
                code = BLOB_PLACE
                journals.append(journal_of_blob(value))
            return msgspec.msgpack.Ext(code, (len(journals) - 1).to_bytes(_PLACE_BYTES, "big"))

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
        return self._decode(data, lambda _kind, number: journals[number], len(journals))

    def load(self, loaded: LoadedSnapshot) -> tuple[Any, list[StoredJournal]]:
        """The state of a snapshot of this schema, and where its journals and blobs stand. Raises as `decode`."""
        layouts = loaded.snapshot.journals
        stored: dict[int, StoredJournal] = {}
        found = _Blobs(loaded)

        def read(kind: Any, number: int) -> Journal[Any]:
            if kind is Blob:
                journal: Journal[Any] = journal_of_blob(found.at(number))
                stored[number] = (journal, layouts[number], ())
            elif number not in stored:
                blobs: list[tuple[int, Blob]] = []
                items = _items_of(loaded, number, lambda chunk: self._items[kind].decode(chunk, found, blobs))
                journal = journal_of(Log(items), len(items))
                stored[number] = (journal, layouts[number], tuple(blobs))
            return stored[number][0]

        state = self._decode(loaded.snapshot.state, read, len(layouts))
        in_items = [(journal_of_blob(blob), layouts[number], ()) for number, blob in found.in_items.items()]
        return state, [*stored.values(), *in_items]

    def _decode(self, data: bytes, journal_at: Callable[[Any, int], Journal[Any]], journals: int) -> Any:
        if not self._items:
            return self._decoder.decode(data)

        def value_at(kind: Any, found: object) -> object:
            if kind is not Blob:
                return journal_at(kind, number_of_place(found, journals))
            if isinstance(found, msgspec.msgpack.Ext) and found.code == INLINE:
                return Blob(bytes(found.data))
            return blob_of_log(log_of(journal_at(kind, number_of_place(found, journals, BLOB_PLACE))))

        return msgspec.msgpack.Decoder(self._type, dec_hook=value_at).decode(data)

    def digest(self, state: object) -> bytes:
        """What tells this state from every other of its type, and is the same for it when it is read back."""
        data, journals = self.encode(state)
        return self.digest_of_encoded(data, journals)

    def digest_of_encoded(self, data: bytes, journals: Journals) -> bytes:
        """The same, of a state that is encoded."""
        # As they are when read back: a 1 where a float is declared comes back as 1.0.
        if not self._items:
            return _encoder.encode(self._decoder.decode(data))
        kinds: dict[int, Any] = {}

        def journal_at(kind: Any, number: int) -> Journal[Any]:
            kinds[id(log_of(journals[number]))] = kind
            return journals[number]

        again, ordered = self.encode(self._decode(data, journal_at, len(journals)))
        return b"".join([again, *(self._digest_of(journal, kinds[id(log_of(journal))]) for journal in ordered)])

    def _digest_of(self, journal: Journal[Any], kind: Any) -> bytes:
        content = log_of(journal).content
        return digest_of(journal, self._items[kind].normal) if content is None else content


class _Blobs:
    """The blobs of a snapshot."""

    def __init__(self, loaded: LoadedSnapshot) -> None:
        self._loaded = loaded
        self._by_number: dict[int, Blob] = {}
        self._by_content: dict[bytes, int] | None = None
        self.in_items: dict[int, Blob] = {}

    def at(self, number: int) -> Blob:
        """The blob that stands there as a journal of one item. Raises msgspec.ValidationError."""
        if number not in self._by_number:
            items = _items_of(self._loaded, number, lambda chunk: _byte_lists.decode(chunk.items))
            if len(items) != 1:
                raise msgspec.ValidationError("Expected a blob, got a journal")
            self._by_number[number] = Blob(items[0])
        return self._by_number[number]

    def of(self, content: bytes) -> Blob:
        """The blob of this digest. Raises msgspec.ValidationError."""
        if self._by_content is None:
            self._by_content = {}
            for number in range(len(self._loaded.chunks)):
                try:
                    blob = self.at(number)
                except msgspec.MsgspecError:  # a journal of something else
                    continue
                found = log_of(journal_of_blob(blob)).content
                assert found is not None
                self._by_content[found] = number
        number = self._by_content.get(content, -1)
        if number < 0:
            raise msgspec.ValidationError("The snapshot lacks a blob that an item refers to")
        self.in_items[number] = self._by_number[number]
        return self._by_number[number]


class _ItemCodec:
    """Of the items of one type of journal."""

    def __init__(self, item: Any) -> None:
        self._item = item
        self._type = list[item]

    def decode(self, chunk: Chunk, blobs: _Blobs, larger: list[tuple[int, Blob]]) -> _Items:
        """The items of a chunk; `larger` gets those of its blobs that stand by themselves."""

        def blob_at(_kind: Any, found: object) -> Blob:
            blob = _blob_in_item(found, blobs.of)
            if len(blob) > INLINE_BYTES:
                larger.append((chunk.position, blob))
            return blob

        return msgspec.msgpack.Decoder(self._type, dec_hook=blob_at).decode(chunk.items)

    def normal(self, item: object) -> bytes:
        """The bytes of an item as it is when read back."""
        larger: list[Blob] = []

        def encode(value: object) -> bytes:
            encoder = msgspec.msgpack.Encoder(
                order="deterministic", enc_hook=lambda blob: encoded_blob(cast("Blob", blob), larger)
            )
            return encoder.encode(value)

        def again(content: bytes) -> Blob:
            return next(blob for blob in larger if log_of(journal_of_blob(blob)).content == content)

        data = encode(item)
        return encode(
            msgspec.msgpack.Decoder(self._item, dec_hook=lambda _kind, found: _blob_in_item(found, again)).decode(data)
        )


def _blob_in_item(found: object, of: Callable[[bytes], Blob]) -> Blob:
    if isinstance(found, msgspec.msgpack.Ext) and found.code == INLINE:
        return Blob(bytes(found.data))
    if isinstance(found, msgspec.msgpack.Ext) and found.code == REFERENCE:
        return of(bytes(found.data))
    raise msgspec.ValidationError("Expected a blob")


def plain_state(loaded: LoadedSnapshot) -> Any:
    """A snapshot's state as plain dicts, lists and scalars: a journal as a list, a blob as bytes.

    Raises msgspec.MsgspecError.
    """
    blobs = _Blobs(loaded)
    built: dict[int, _Items] = {}

    def value_at(code: int, data: memoryview) -> _Items | bytes:
        found = msgspec.msgpack.Ext(code, bytes(data))
        if code in {INLINE, REFERENCE}:
            return _blob_in_item(found, blobs.of).data
        if code == BLOB_PLACE:
            return blobs.at(number_of_place(found, len(loaded.chunks), BLOB_PLACE)).data
        number = number_of_place(found, len(loaded.chunks))
        if number not in built:  # no state of ours names one twice; a hostile one is not to fill the memory with copies
            built[number] = _items_of(
                loaded, number, lambda chunk: msgspec.msgpack.Decoder(_Items, ext_hook=value_at).decode(chunk.items)
            )
        return built[number]

    return msgspec.msgpack.decode(loaded.snapshot.state, ext_hook=value_at)


def _items_of(loaded: LoadedSnapshot, number: int, decode: Callable[[Chunk], _Items]) -> _Items:
    layout, chunks = loaded.snapshot.journals[number], loaded.chunks[number]
    items: _Items = []
    for chunk, after in zip_longest(chunks, chunks[1:]):
        end = layout[-1].end if after is None else after.position
        items += decode(chunk if chunk.position + chunk.count <= end else _cut(chunk, end))
    return items


def _cut(chunk: Chunk, end: int) -> Chunk:
    """A chunk without its items from `end` on: a later snapshot's, which may hold blobs that this one lacks."""
    items = _raw_lists.decode(chunk.items)[: end - chunk.position]
    return msgspec.structs.replace(chunk, items=array_of([bytes(item) for item in items]), count=len(items))


def number_of_place(found: object, journals: int, code: int = _JOURNAL) -> int:
    """The number that a journal's place holds. Raises msgspec.ValidationError for anything else."""
    if not isinstance(found, msgspec.msgpack.Ext) or found.code != code:
        raise msgspec.ValidationError("Expected the place of a journal")
    number = int.from_bytes(found.data, "big")
    if number >= journals:
        raise msgspec.ValidationError(f"The state has no journal {number}")
    return number
