"""A frame comes back as exactly what went in, or as a typed error."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executus.stores import (
    MAX_LABELS,
    MAX_RECORD_BYTES,
    Base,
    Chunk,
    Message,
    ParentLink,
    Piece,
    RecordCorrupt,
    RecordTooLarge,
    RunStatus,
    StoreTooNew,
    Token,
    codec,
)
from executus.stores.records import Inbox
from tests.stores.making import claim, record, snapshot

KEY = b"run"
CLAIM = claim("run", 5, 2, status=RunStatus.FAILED, reason="boom", strikes=1, ended_at_s=4.5)
RECORD = record("run", 2, labels={"b": "2", "a": "1"}, parent=ParentLink("p", 1, "k"))
SNAPSHOT = snapshot(Token("run", 2, 5), 7, b"state", schema_version=3)
LINK = ParentLink("run", 2, "k", "kill")
STAMP = codec.Stamp(2, 5)
INBOX = Inbox(incarnation=2, appended=9, consumed_through=5, dropped_through=4, forgotten_through=1)
MESSAGE = Message(
    run_id="run", incarnation=2, number=9, message_id="m-9", body=b"body", sent_at_s=1.5, expires_at_s=61.5
)
CHUNK = Chunk(base=Base(5, 1), position=8, count=2, items=b"items")
WITH_JOURNALS = snapshot(Token("run", 2, 5), 7, b"state", schema_version=3, layouts=((Piece(Base(5, 1), 0, 10),), ()))
CONSUMING = snapshot(Token("run", 2, 5), 7, b"state", schema_version=3, consumed_through=9)

FRAMES: dict[str, tuple[bytes, Callable[[bytes, bytes], object], object]] = {
    "claim": (codec.encode_claim(CLAIM, KEY), codec.decode_claim, CLAIM),
    "record": (codec.encode_record(RECORD, KEY), codec.decode_record, RECORD),
    "snapshot": (codec.encode_snapshot(SNAPSHOT, KEY), codec.decode_snapshot, SNAPSHOT),
    "outcome": (codec.encode_outcome(b"outcome", STAMP, KEY, "run"), codec.decode_outcome, b"outcome"),
    "link": (codec.encode_link(LINK, KEY), codec.decode_link, LINK),
    "number": (codec.encode_number(9, KEY), codec.decode_number, 9),
    "inbox": (codec.encode_inbox(INBOX, KEY), codec.decode_inbox, INBOX),
    "message": (codec.encode_message(MESSAGE, KEY), codec.decode_message, MESSAGE),
    "message id": (codec.encode_message_id(9, 2, KEY), codec.decode_message_id, 9),
    "snapshot with messages": (codec.encode_snapshot(CONSUMING, KEY), codec.decode_snapshot, CONSUMING),
    "chunk": (codec.encode_chunk(CHUNK, STAMP, KEY, "run"), codec.decode_chunk, CHUNK),
    "snapshot with journals": (codec.encode_snapshot(WITH_JOURNALS, KEY), codec.decode_snapshot, WITH_JOURNALS),
}

GOLDEN = {
    "claim": (
        "4558435401010000000000000000000000000002000000000000000500000000000000000000009221df3b6a1ebd85038ba6"
        "72756e5f6964a372756eab696e6361726e6174696f6e02a565706f636805a7617474656d707401a6737461747573a6666169"
        "6c6564a6726561736f6ea4626f6f6da7737472696b657301ac636c61696d65645f61745f73cb0000000000000000aa656e64"
        "65645f61745f73cb4012000000000000ad646561646c696e655f61745f73c0ab72656d61696e696e675f73c0"
    ),
    "record": (
        "455843540102000000000000000000000000000200000000000000000000000000000000000000aa23f13655440bbe9b89a6"
        "72756e5f6964a372756eab696e6361726e6174696f6e02a872756e5f74797065a154a5696e707574c405696e707574ac6372"
        "65617465645f61745f73cb3ff0000000000000a66c6162656c7382a161a131a162a132a6706172656e7484a672756e5f6964"
        "a170ab696e6361726e6174696f6e01a36b6579a16bad6f6e5f706172656e745f656e64a663616e63656cab726f6f745f7275"
        "6e5f6964a372756ea76f7074696f6e73c400"
    ),
    "snapshot": (
        "4558435401030000000000030000000000000002000000000000000500000000000000070000006a61b7f901ac171cb189a6"
        "72756e5f6964a372756eab696e6361726e6174696f6e02a565706f636805a373657107ae736368656d615f76657273696f6e"
        "03aa74616b656e5f61745f73cb4000000000000000a57374617465c4057374617465a46e657874c4046e657874a777616974"
        "696e67c2"
    ),
    "outcome": (
        "455843540104000000000000000000000000000200000000000000050000000000000000000000077d792a558af1777d6f7574636f6d65"
    ),
    "link": (
        "455843540105000000000000000000000000000200000000000000000000000000000000000000324d5d02322d8feabd84a6"
        "72756e5f6964a372756eab696e6361726e6174696f6e02a36b6579a16bad6f6e5f706172656e745f656e64a46b696c6c"
    ),
    "inbox": (
        "4558435401070000000000000000000000000002000000000000000000000000000000000000004eacd4e0938f10ffba85ab"
        "696e6361726e6174696f6e02a8617070656e64656409b0636f6e73756d65645f7468726f75676805af64726f707065645f74"
        "68726f75676804b1666f72676f7474656e5f7468726f75676801"
    ),
    "message": (
        "45584354010800000000000000000000000000020000000000000000000000000000000900000064dd2db3581fd8f9de87a6"
        "72756e5f6964a372756eab696e6361726e6174696f6e02a66e756d62657209aa6d6573736167655f6964a36d2d39a4626f64"
        "79c404626f6479a973656e745f61745f73cb3ff8000000000000ac657870697265735f61745f73cb404ec00000000000"
    ),
    "message id": ("45584354010900000000000000000000000000020000000000000000000000000000000900000000e4e12eeee4e12eee"),
    "snapshot with messages": (
        "4558435401030000000000030000000000000002000000000000000500000000000000070000007c14c5f142cce0dd2a8aa6"
        "72756e5f6964a372756eab696e6361726e6174696f6e02a565706f636805a373657107ae736368656d615f76657273696f6e"
        "03aa74616b656e5f61745f73cb4000000000000000a57374617465c4057374617465a46e657874c4046e657874a777616974"
        "696e67c2b0636f6e73756d65645f7468726f75676809"
    ),
    "number": ("455843540106000000000000000000000000000000000000000000000000000000000009000000009ce3e55b9ce3e55b"),
    "chunk": (
        "45584354010a00000000000000000000000000020000000000000005000000000000000800000015783d54ac95e6cd3a0000"
        "00000000000500000001000000026974656d73"
    ),
    "snapshot with journals": (
        "4558435401030000000000030000000000000002000000000000000500000000000000070000007b8912c9fba790ca2d8aa6"
        "72756e5f6964a372756eab696e6361726e6174696f6e02a565706f636805a373657107ae736368656d615f76657273696f6e"
        "03aa74616b656e5f61745f73cb4000000000000000a57374617465c4057374617465a46e657874c4046e657874a777616974"
        "696e67c2a76c61796f757473929193920501000a90"
    ),
}
"""Format 1, as it lies on disks. Never edit a line: what is written otherwise gets lines of its own."""

WRITTEN = GOLDEN | {
    "claim": (
        "45584354010100000000000000000000000000020000000000000005000000000000000000000099f6debc6b76fae6f78ca6"
        "72756e5f6964a372756eab696e6361726e6174696f6e02a565706f636805a7617474656d707401a6737461747573a6666169"
        "6c6564a6726561736f6ea4626f6f6da7737472696b657301a5626567756e00ac636c61696d65645f61745f73cb0000000000"
        "000000aa656e6465645f61745f73cb4012000000000000ad646561646c696e655f61745f73c0ab72656d61696e696e675f73"
        "c0"
    ),
    "record": (
        "455843540102000000000000000000000000000200000000000000000000000000000000000000b1a4e9e6cb48340d3e89a6"
        "72756e5f6964a372756eab696e6361726e6174696f6e02a872756e5f74797065a154a5696e707574c405696e707574ac6372"
        "65617465645f61745f73cb3ff0000000000000a66c6162656c7382a161a131a162a132a6706172656e7485a672756e5f6964"
        "a170ab696e6361726e6174696f6e01a36b6579a16bad6f6e5f706172656e745f656e64a663616e63656ca5626567756e00ab"
        "726f6f745f72756e5f6964a372756ea76f7074696f6e73c400"
    ),
    "link": (
        "455843540105000000000000000000000000000200000000000000000000000000000000000000399a5c8533c242708885a6"
        "72756e5f6964a372756eab696e6361726e6174696f6e02a36b6579a16bad6f6e5f706172656e745f656e64a46b696c6ca562"
        "6567756e00"
    ),
}
"""Format 1 as it is written now: claims and links have `begun` as well. Readers that do not know it pass over it."""

every_frame = pytest.mark.parametrize("name", FRAMES)


@every_frame
def test_what_went_in_comes_back(name: str) -> None:
    frame, decode, value = FRAMES[name]
    assert decode(frame, KEY) == value


@every_frame
def test_the_bytes_of_format_1_stay_as_they_are(name: str) -> None:
    frame, decode, value = FRAMES[name]
    assert frame == bytes.fromhex(WRITTEN[name])
    assert decode(frame, KEY) == value
    assert decode(bytes.fromhex(GOLDEN[name]), KEY) == value


@every_frame
def test_every_flip_of_a_single_bit_is_detected(name: str) -> None:
    frame, decode, _ = FRAMES[name]
    for place in range(len(frame) * 8):
        flipped = bytearray(frame)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(RecordCorrupt):
            decode(bytes(flipped), KEY)


@every_frame
def test_every_truncation_and_every_tail_is_detected(name: str) -> None:
    frame, decode, _ = FRAMES[name]
    for length in range(len(frame)):
        with pytest.raises(RecordCorrupt):
            decode(frame[:length], KEY)
    with pytest.raises(RecordCorrupt):
        decode(frame + b"\0", KEY)


@every_frame
def test_a_frame_under_another_key_is_detected(name: str) -> None:
    frame, decode, _ = FRAMES[name]
    for key in (b"ruN", b"run\0", b"", b"run\x000"):
        with pytest.raises(RecordCorrupt):
            decode(frame, key)


@every_frame
def test_a_frame_of_another_kind_is_detected(name: str) -> None:
    frame, own, _ = FRAMES[name]
    for _, decode, _ in FRAMES.values():
        if decode is not own:
            with pytest.raises(RecordCorrupt, match="kind"):
                decode(frame, KEY)


@every_frame
def test_a_header_on_another_payload_is_detected(name: str) -> None:
    frame, decode, _ = FRAMES[name]
    payload = bytes(reversed(frame[codec.HEADER_BYTES :])) or b"x"
    with pytest.raises(RecordCorrupt):
        decode(frame[: codec.HEADER_BYTES] + payload, KEY)


def test_a_damaged_record_is_named() -> None:
    frame, decode, _ = FRAMES["snapshot"]
    with pytest.raises(RecordCorrupt, match="snapshot of 'run' is damaged") as damaged:
        decode(frame[:-1], b"run\x001")
    assert (damaged.value.run_id, damaged.value.what) == ("run", "snapshot")


@every_frame
def test_a_newer_format_is_too_new_and_not_damaged(name: str) -> None:
    frame, decode, _ = FRAMES[name]
    fields = bytearray(frame[: codec.HEADER_BYTES - 8])
    fields[4] = codec.FORMAT_VERSION + 1
    header_sum = zlib.crc32(KEY, zlib.crc32(fields))
    newer = bytes(fields) + struct.pack(">II", header_sum, 0) + b"of a shape that nobody knows yet"
    with pytest.raises(StoreTooNew) as too_new:
        decode(newer, KEY)
    assert (too_new.value.found, too_new.value.known) == (codec.FORMAT_VERSION + 1, codec.FORMAT_VERSION)


def test_the_same_value_is_the_same_bytes_whatever_the_order_of_its_labels() -> None:
    turned = msgspec.structs.replace(RECORD, labels=dict(reversed(RECORD.labels.items())))
    assert codec.encode_record(turned, KEY) == codec.encode_record(RECORD, KEY)


def test_what_is_over_the_cap_is_refused_by_both_ends() -> None:
    big = snapshot(Token("run", 1, 1), 1, bytes(MAX_RECORD_BYTES))
    with pytest.raises(RecordTooLarge) as refused:
        codec.encode_snapshot(big, KEY)
    assert refused.value.size_bytes > refused.value.cap_bytes == MAX_RECORD_BYTES
    with pytest.raises(RecordTooLarge):
        codec.decode_snapshot(bytes(MAX_RECORD_BYTES + 1), KEY)


def test_the_largest_record_that_fits_comes_back() -> None:
    room = MAX_RECORD_BYTES - codec.HEADER_BYTES
    frame = codec.encode_outcome(bytes(room), STAMP, KEY, "run")
    assert len(frame) == MAX_RECORD_BYTES
    assert len(codec.decode_outcome(frame, KEY)) == room
    with pytest.raises(RecordTooLarge):
        codec.encode_outcome(bytes(room + 1), STAMP, KEY, "run")


@pytest.mark.parametrize(
    "stamp", [codec.Stamp(incarnation=-1), codec.Stamp(epoch=1 << 64), codec.Stamp(schema_version=-1)]
)
def test_a_number_that_fits_no_frame_is_refused_when_it_is_encoded(stamp: codec.Stamp) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        codec.encode_outcome(b"", stamp, KEY, "run")


@pytest.mark.parametrize("value", [None, "text", 5, bytearray(b"x")])
def test_what_is_no_bytes_is_refused_when_it_is_encoded(value: object) -> None:
    with pytest.raises(TypeError, match="must be bytes"):
        codec.encode_snapshot(snapshot(Token("run", 1, 1), 1, next=value), KEY)


def sealed(payload: bytes, kind: codec.Kind = codec.Kind.RECORD) -> bytes:
    """A frame whose checksums hold, around whatever an attacker likes."""
    return codec._frame(kind, codec.Stamp(), KEY, payload, "run")


BOMBS = {
    "a million empty maps": b"\xdd" + struct.pack(">I", 1_000_000) + b"\x80" * 1_000_000,
    "a million labels": b"\x81\xa6labels\xdf" + struct.pack(">I", 1_000_000) + b"\xa1a\xa0" * 1_000_000,
    "a map that claims four billion labels": b"\x81\xa6labels\xdf\xff\xff\xff\xff",
    "bytes that claim four billion": b"\x81\xa5input\xc6\xff\xff\xff\xff",
    "lists in lists": b"\x81\xa1x" + b"\x91" * 1_000_000 + b"\x90",
    "a known field of lists in lists": b"\x81\xa5input" + b"\x91" * 1_000_000 + b"\x90",
    "no utf-8": b"\x81\xa6run_id\xa1\xff",
    "an extension type": b"\x81\xa5input\xc7\x04\x01abcd",
    "an integer for text": b"\x81\xa6run_id\x05",
    "nothing": b"",
    "a tail": codec.encode_record(RECORD, KEY)[codec.HEADER_BYTES :] + b"\0",
    "too many labels by one": b"\x81\xa6labels\xde"
    + struct.pack(">H", MAX_LABELS + 1)
    + b"".join(b"\xa2%02x\xa0" % n for n in range(MAX_LABELS + 1)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_hostile_payload_is_a_damaged_record_and_costs_no_more_memory_than_its_size(bomb: str) -> None:
    frame = sealed(BOMBS[bomb])
    tracemalloc.start()
    try:
        with pytest.raises(RecordCorrupt):
            codec.decode_record(frame, KEY)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(frame) + 100_000
    finally:
        tracemalloc.stop()


def test_unknown_fields_of_newer_code_are_passed_over_without_being_built() -> None:
    raw = msgspec.msgpack.decode(codec.encode_claim(CLAIM, KEY)[codec.HEADER_BYTES :])
    payload = msgspec.msgpack.encode({**raw, "added_later": [{}] * 100_000})
    frame = sealed(payload, codec.Kind.CLAIM)
    tracemalloc.start()
    try:
        assert codec.decode_claim(frame, KEY) == CLAIM
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=300), st.sampled_from(sorted(FRAMES)))
def test_garbage_is_a_typed_error(data: bytes, name: str) -> None:
    for attempt in (data, codec.MAGIC + data, sealed(data), FRAMES[name][0][: codec.HEADER_BYTES] + data):
        for _, decode, _ in FRAMES.values():
            try:
                decode(attempt, KEY)
            except RecordCorrupt:
                continue


@given(st.binary(max_size=2000), st.binary(max_size=50), st.integers(0, 2**64 - 1), st.text(max_size=20))
def test_any_snapshot_comes_back(state: bytes, what_next: bytes, seq: int, run_id: str) -> None:
    value = snapshot(Token(run_id, 1, 1), seq, state, next=what_next)
    assert codec.decode_snapshot(codec.encode_snapshot(value, KEY), KEY) == value


def test_the_stamp_can_be_read_of_a_frame_whose_payload_is_damaged_and_of_no_other() -> None:
    frame, _, _ = FRAMES["snapshot"]
    damaged = frame[:-1] + bytes([frame[-1] ^ 1])
    assert codec.peek_stamp(damaged, codec.Kind.SNAPSHOT, KEY) == codec.Stamp(2, 5, 7, 3)
    assert codec.peek_stamp(damaged, codec.Kind.SNAPSHOT, b"other") is None
    assert codec.peek_stamp(damaged, codec.Kind.RECORD, KEY) is None
    assert codec.peek_stamp(frame[:20], codec.Kind.SNAPSHOT, KEY) is None
    choose = random.Random(7)
    for _ in range(200):
        noise = choose.randbytes(100)
        assert codec.peek_stamp(noise, codec.Kind.SNAPSHOT, KEY) is None
