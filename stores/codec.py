"""Record <-> bytes. A frame says what it is, whose it is, which execution wrote it; two checksums hold it to that.

Why checksums: LMDB returns a flipped bit as wrong bytes without an error, and its verifier calls such a file fine.
Why the key is in them: a page that lands in another page's place is whole, but it is somebody else's.
Decoding runs no code, allocates no more than the capped payload is worth, and raises RecordCorrupt, RecordTooLarge or
StoreTooNew and nothing else.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import Final, NamedTuple, TypeVar

import msgspec

from executus.stores.errors import RecordCorrupt, RecordTooLarge, StoreTooNew
from executus.stores.records import (
    MAX_FLIGHT_BYTES,
    MAX_LABELS,
    MAX_RECORD_BYTES,
    Base,
    Chunk,
    Inbox,
    Message,
    ParentLink,
    RunClaim,
    RunRecord,
    Snapshot,
)

MAGIC: Final = b"EXCT"
FORMAT_VERSION: Final = 1
"""Of frames and of the store's layout alike. Later versions keep the header's size and the place of its checksum."""

_FIELDS: Final = struct.Struct(">4sBBHIQQQI")
"""magic, format version, kind, reserved, schema version, incarnation, epoch, seq, payload length."""
_SUMS: Final = struct.Struct(">II")
"""crc32 of fields and key; crc32 of the payload, begun from the first, so that a payload fits one header only."""
HEADER_BYTES: Final = _FIELDS.size + _SUMS.size
_CHUNK: Final = struct.Struct(">QII")
"""Before a chunk's items: the two numbers of its base, how many items they are."""


class Kind(enum.IntEnum):
    """What a frame holds. Numbers are stored: never reuse one."""

    CLAIM = 1
    RECORD = 2
    SNAPSHOT = 3
    OUTCOME = 4
    LINK = 5
    META = 6
    INBOX = 7
    MESSAGE = 8
    MESSAGE_ID = 9
    CHUNK = 10
    FLIGHT = 11


class Stamp(NamedTuple):
    """Which execution wrote a frame, and how far along it was."""

    incarnation: int = 0
    epoch: int = 0
    seq: int = 0
    schema_version: int = 0


class Frame(NamedTuple):
    """A frame whose checksums hold. `payload` is still opaque."""

    stamp: Stamp
    payload: memoryview


_T = TypeVar("_T")
_ENCODER: Final = msgspec.msgpack.Encoder(order="deterministic")
_CLAIMS: Final = msgspec.msgpack.Decoder(RunClaim)
_RECORDS: Final = msgspec.msgpack.Decoder(RunRecord)
_SNAPSHOTS: Final = msgspec.msgpack.Decoder(Snapshot)
_LINKS: Final = msgspec.msgpack.Decoder(ParentLink)
_INBOXES: Final = msgspec.msgpack.Decoder(Inbox)
_MESSAGES: Final = msgspec.msgpack.Decoder(Message)


def encode_claim(claim: RunClaim, key: bytes) -> bytes:
    """Frame a claim. Raises RecordTooLarge."""
    stamp = Stamp(claim.incarnation, claim.epoch)
    return _frame(Kind.CLAIM, stamp, key, _ENCODER.encode(claim), claim.run_id)


def decode_claim(data: bytes, key: bytes) -> RunClaim:
    """Read a claim back."""
    return _typed(_CLAIMS, open_frame(data, Kind.CLAIM, key).payload, Kind.CLAIM, key)


def encode_record(record: RunRecord, key: bytes) -> bytes:
    """Frame what a run was started with. Raises RecordTooLarge, ValueError over MAX_LABELS, TypeError on no bytes."""
    _must_be_bytes(record.input, "input", record.run_id)
    _must_be_bytes(record.options, "options", record.run_id)
    if len(record.labels) > MAX_LABELS:
        raise ValueError(f"run {record.run_id!r}: {len(record.labels)} labels, the most is {MAX_LABELS}")
    return _frame(Kind.RECORD, Stamp(record.incarnation), key, _ENCODER.encode(record), record.run_id)


def decode_record(data: bytes, key: bytes) -> RunRecord:
    """Read a run's record back."""
    return _typed(_RECORDS, open_frame(data, Kind.RECORD, key).payload, Kind.RECORD, key)


def encode_snapshot(snapshot: Snapshot, key: bytes) -> bytes:
    """Frame a checkpoint. Raises RecordTooLarge; TypeError where state or next is no bytes."""
    _must_be_bytes(snapshot.state, "state", snapshot.run_id)
    _must_be_bytes(snapshot.next, "next", snapshot.run_id)
    stamp = Stamp(snapshot.incarnation, snapshot.epoch, snapshot.seq, snapshot.schema_version)
    return _frame(Kind.SNAPSHOT, stamp, key, _ENCODER.encode(snapshot), snapshot.run_id)


def decode_snapshot(data: bytes, key: bytes) -> Snapshot:
    """Read a checkpoint back."""
    return _typed(_SNAPSHOTS, open_frame(data, Kind.SNAPSHOT, key).payload, Kind.SNAPSHOT, key)


def encode_outcome(outcome: bytes, stamp: Stamp, key: bytes, run_id: str) -> bytes:
    """Frame an outcome, which is opaque. Raises RecordTooLarge, TypeError."""
    _must_be_bytes(outcome, "outcome", run_id)
    return _frame(Kind.OUTCOME, stamp, key, outcome, run_id)


def decode_outcome(data: bytes, key: bytes) -> bytes:
    """Read an outcome back."""
    return bytes(open_frame(data, Kind.OUTCOME, key).payload)


def encode_flight(flight: bytes, stamp: Stamp, key: bytes, run_id: str) -> bytes:
    """Frame a flight record, which is opaque. Raises RecordTooLarge over MAX_FLIGHT_BYTES, TypeError."""
    _must_be_bytes(flight, "flight", run_id)
    if len(flight) > MAX_FLIGHT_BYTES:
        raise _too_large(Kind.FLIGHT, run_id, len(flight), MAX_FLIGHT_BYTES)
    return _frame(Kind.FLIGHT, stamp, key, flight, run_id)


def decode_flight(data: bytes, key: bytes) -> bytes:
    """Read a flight record back."""
    if len(data) > HEADER_BYTES + MAX_FLIGHT_BYTES:
        raise _too_large(Kind.FLIGHT, _name(key), len(data) - HEADER_BYTES, MAX_FLIGHT_BYTES)
    return bytes(open_frame(data, Kind.FLIGHT, key).payload)


def encode_link(link: ParentLink, key: bytes) -> bytes:
    """Frame a child's link to its parent."""
    return _frame(Kind.LINK, Stamp(link.incarnation), key, _ENCODER.encode(link), link.run_id)


def decode_link(data: bytes, key: bytes) -> ParentLink:
    """Read a child's link back."""
    return _typed(_LINKS, open_frame(data, Kind.LINK, key).payload, Kind.LINK, key)


def encode_inbox(inbox: Inbox, key: bytes) -> bytes:
    """Frame how far a life's messages have got."""
    return _frame(Kind.INBOX, Stamp(inbox.incarnation), key, _ENCODER.encode(inbox), _name(key))


def decode_inbox(data: bytes, key: bytes) -> Inbox:
    """Read back how far a life's messages have got."""
    return _typed(_INBOXES, open_frame(data, Kind.INBOX, key).payload, Kind.INBOX, key)


def encode_message(message: Message, key: bytes) -> bytes:
    """Frame a message. Raises RecordTooLarge; TypeError where its body is no bytes."""
    _must_be_bytes(message.body, "body", message.run_id)
    stamp = Stamp(message.incarnation, seq=message.number)
    return _frame(Kind.MESSAGE, stamp, key, _ENCODER.encode(message), message.run_id)


def decode_message(data: bytes, key: bytes) -> Message:
    """Read a message back."""
    return _typed(_MESSAGES, open_frame(data, Kind.MESSAGE, key).payload, Kind.MESSAGE, key)


def encode_message_id(number: int, incarnation: int, key: bytes) -> bytes:
    """Frame the number that the message of an id got."""
    return _frame(Kind.MESSAGE_ID, Stamp(incarnation, seq=number), key, b"", _name(key))


def decode_message_id(data: bytes, key: bytes) -> int:
    """Read the number of an id's message back."""
    return open_frame(data, Kind.MESSAGE_ID, key).stamp.seq


def encode_chunk(chunk: Chunk, stamp: Stamp, key: bytes, run_id: str) -> bytes:
    """Frame items of a journal; the stamp says who writes them. Raises RecordTooLarge, TypeError, ValueError."""
    _must_be_bytes(chunk.items, "items of a journal", run_id)
    try:
        head = _CHUNK.pack(*chunk.base, chunk.count)
    except struct.error as error:
        raise ValueError(f"run {run_id!r}: {chunk.base} and {chunk.count} fit no chunk: {error}") from None
    placed = Stamp(stamp.incarnation, stamp.epoch, chunk.position, stamp.schema_version)
    return _frame(Kind.CHUNK, placed, key, head + chunk.items, run_id)


def decode_chunk(data: bytes, key: bytes) -> Chunk:
    """Read items of a journal back."""
    frame = open_frame(data, Kind.CHUNK, key)
    if len(frame.payload) < _CHUNK.size:
        raise _corrupt(Kind.CHUNK, key, "its shape is wrong")
    epoch, number, count = _CHUNK.unpack_from(frame.payload)
    items = bytes(frame.payload[_CHUNK.size :])
    return Chunk(base=Base(epoch, number), position=frame.stamp.seq, count=count, items=items)


def encode_number(number: int, key: bytes) -> bytes:
    """Frame one number of the store's own, such as its boot epoch."""
    return _frame(Kind.META, Stamp(seq=number), key, b"", key.decode())


def decode_number(data: bytes, key: bytes) -> int:
    """Read a number of the store's own back."""
    return open_frame(data, Kind.META, key).stamp.seq


def open_frame(data: bytes, kind: Kind, key: bytes) -> Frame:
    """Check a frame that stands under `key` and should hold `kind`. Size first, then checksums, then version."""
    if len(data) > MAX_RECORD_BYTES:
        raise _too_large(kind, _name(key), len(data))
    if len(data) < HEADER_BYTES:
        raise _corrupt(kind, key, f"it is {len(data)} bytes long, shorter than a header")
    magic, version, found, _, schema_version, incarnation, epoch, seq, length = _FIELDS.unpack_from(data)
    if magic != MAGIC:
        raise _corrupt(kind, key, "it does not begin with the magic number")
    header_sum, payload_sum = _SUMS.unpack_from(data, _FIELDS.size)
    view = memoryview(data)
    if zlib.crc32(key, zlib.crc32(view[: _FIELDS.size])) != header_sum:
        raise _corrupt(kind, key, "its header's checksum does not fit this key")
    if version > FORMAT_VERSION:
        raise StoreTooNew(
            f"{kind.name.lower()} of {_name(key)!r}: format {version}, this code knows up to {FORMAT_VERSION}. "
            "Left as it is. Deploy newer code.",
            found=version,
            known=FORMAT_VERSION,
        )
    payload = view[HEADER_BYTES:]
    if found != kind or len(payload) != length:
        raise _corrupt(kind, key, f"kind {found} and {len(payload)} bytes of payload where {length} were written")
    if zlib.crc32(payload, header_sum) != payload_sum:
        raise _corrupt(kind, key, "its payload's checksum does not fit")
    return Frame(Stamp(incarnation, epoch, seq, schema_version), payload)


def peek_stamp(data: bytes, kind: Kind, key: bytes) -> Stamp | None:
    """Who wrote a frame, if its header can be trusted, whatever became of its payload."""
    if len(data) < HEADER_BYTES:
        return None
    _, _, found, _, schema_version, incarnation, epoch, seq, _ = _FIELDS.unpack_from(data)
    (header_sum, _) = _SUMS.unpack_from(data, _FIELDS.size)
    if found != kind or zlib.crc32(key, zlib.crc32(data[: _FIELDS.size])) != header_sum:
        return None
    return Stamp(incarnation, epoch, seq, schema_version)


def _frame(kind: Kind, stamp: Stamp, key: bytes, payload: bytes, run_id: str) -> bytes:
    if HEADER_BYTES + len(payload) > MAX_RECORD_BYTES:
        raise _too_large(kind, run_id, HEADER_BYTES + len(payload))
    try:
        fields = _FIELDS.pack(
            MAGIC,
            FORMAT_VERSION,
            kind,
            0,
            stamp.schema_version,
            stamp.incarnation,
            stamp.epoch,
            stamp.seq,
            len(payload),
        )
    except struct.error as error:
        raise ValueError(f"run {run_id!r}: {stamp} does not fit a frame: {error}") from None
    header_sum = zlib.crc32(key, zlib.crc32(fields))
    return b"".join((fields, _SUMS.pack(header_sum, zlib.crc32(payload, header_sum)), payload))


def _typed(decoder: msgspec.msgpack.Decoder[_T], payload: memoryview, kind: Kind, key: bytes) -> _T:
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        # The checksums hold, so whoever wrote this wrote another shape: as unreadable as a flipped bit.
        raise _corrupt(kind, key, f"its shape is wrong: {error}") from None


def _must_be_bytes(value: object, field: str, run_id: str) -> None:
    # LMDB's put() stores nothing for None and still says True.
    if not isinstance(value, bytes):
        raise TypeError(f"run {run_id!r}: {field} must be bytes, not {type(value).__name__}")


def _name(key: bytes) -> str:
    return key.split(b"\0")[0].decode("utf-8", "backslashreplace")


def _corrupt(kind: Kind, key: bytes, why: str) -> RecordCorrupt:
    what = kind.name.lower()
    return RecordCorrupt(
        f"{what} of {_name(key)!r} is damaged: {why}. Its bytes were left as they are.", run_id=_name(key), what=what
    )


def _too_large(kind: Kind, run_id: str, size_bytes: int, cap_bytes: int = MAX_RECORD_BYTES) -> RecordTooLarge:
    what = kind.name.lower()
    return RecordTooLarge(
        f"{what} of {run_id!r} is {size_bytes} bytes, the cap is {cap_bytes}. Nothing was written or read.",
        run_id=run_id,
        what=what,
        size_bytes=size_bytes,
        cap_bytes=cap_bytes,
    )
