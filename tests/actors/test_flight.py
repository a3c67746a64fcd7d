"""What a flight record keeps, and that it fits: whatever was in it before, 8 KiB and no control character."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from executus.actors.flight import (
    ROOMS,
    VERSION,
    AttemptExit,
    EndRequest,
    FlightEvent,
    FlightRecord,
    Heartbeat,
    ProgressMade,
    Refusals,
    ThreadStack,
    cut,
    decode_flight,
    encode_flight,
    how_of,
)
from executus.actors.outcomes import Crashed, ErrorInfo, ErrorLink, Phase, Stopped, TimedOut
from executus.stores import MAX_FLIGHT_BYTES

WIDEST = "\U0001f600"
BARE = FlightRecord(version=VERSION, incarnation=1, attempt=1, epoch=1, at_s=0.0, status="failed")

texts = st.builds(
    lambda part, times: part * times,
    st.sampled_from(["", "a", "word ", "\u6f22", WIDEST, "\n", "\x1b[2J", "\ud800", "\u2028", "back\\slash"]),
    st.integers(0, 2_000),
)
times_s = st.floats(allow_nan=False)
numbers = st.integers(0, 2**62)
exits = st.builds(
    AttemptExit,
    attempt=numbers,
    epoch=numbers,
    at_s=times_s,
    how=texts,
    phase=texts,
    seq=st.none() | numbers,
    error=texts,
    where=texts,
    reason=texts,
)


def up_to_forty(of: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.builds(lambda one, times: tuple(one * times), st.lists(of, max_size=2), st.integers(0, 20))


records = st.builds(
    FlightRecord,
    version=st.just(VERSION),
    incarnation=numbers,
    attempt=numbers,
    epoch=numbers,
    at_s=times_s,
    status=texts,
    seq=numbers,
    durable_seq=numbers,
    exits=up_to_forty(exits),
    exits_dropped=st.integers(0, 2**32),
    chain=up_to_forty(st.builds(ErrorLink, texts, texts, texts, up_to_forty(texts), st.integers(0, 1000))),
    chain_attempt=numbers,
    events=up_to_forty(st.builds(FlightEvent, times_s, texts, texts, st.integers(1, 2**32))),
    events_dropped=st.integers(0, 2**32),
    heartbeat=st.none() | st.builds(Heartbeat, times_s, texts),
    progress=st.none() | st.builds(ProgressMade, st.none() | st.floats(), st.none() | times_s, texts),
    stack=st.none() | st.builds(ThreadStack, times_s, texts, up_to_forty(texts), st.integers(0, 1000)),
    refused=st.none() | st.builds(Refusals, numbers, numbers, texts),
    request=st.none() | st.builds(EndRequest, texts, texts, texts),
    store_trouble=texts,
    earlier=texts,
)


def texts_in(value: object) -> list[str]:
    match value:
        case str():
            return [value]
        case dict():
            return [text for one in value.values() for text in texts_in(one)]
        case list() | tuple():
            return [text for one in value for text in texts_in(one)]
        case _:
            return []


@given(record=records)
def test_any_record_fits_is_escaped_and_comes_back(record: FlightRecord) -> None:
    data = encode_flight(record)
    assert len(data) <= MAX_FLIGHT_BYTES
    found = decode_flight(data)
    assert all(text.isprintable() for text in texts_in(msgspec.to_builtins(found)))
    assert (found.attempt, found.epoch, found.seq, found.durable_seq) == (
        record.attempt,
        record.epoch,
        record.seq,
        record.durable_seq,
    )
    assert found.exits_dropped + len(found.exits) == record.exits_dropped + len(record.exits)
    assert found.events_dropped + sum(event.times for event in found.events) == record.events_dropped + sum(
        event.times for event in record.events
    )
    if record.exits:
        assert found.exits[-1].attempt == record.exits[-1].attempt
    if record.chain:
        assert len(found.chain[0].frames) + found.chain[0].left_out == (
            len(record.chain[0].frames) + record.chain[0].left_out
        )


def full(text: str) -> FlightRecord:
    one = AttemptExit(
        attempt=2**62, epoch=2**62, at_s=1e9, how=text, phase=text, seq=2**62, error=text, where=text, reason=text
    )
    return replace(
        BARE,
        status=text,
        seq=2**62,
        durable_seq=2**62,
        exits=(one,) * 8,
        exits_dropped=2**62,
        chain=(ErrorLink(text, text, text, (text,) * 16, 2**62),) * 8,
        chain_attempt=2**62,
        events=(FlightEvent(1e9, text, text, 2**32),) * 16,
        events_dropped=2**62,
        heartbeat=Heartbeat(1e9, text),
        progress=ProgressMade(1e9, 1e9, text),
        stack=ThreadStack(1e9, text, (text,) * 40, 2**62),
        refused=Refusals(2**62, 2**62, text),
        request=EndRequest(text, text, text),
        store_trouble=text,
        earlier=text,
    )


@pytest.mark.parametrize("text", ["x" * 3_000, WIDEST * 3_000, "\x1b" * 3_000, "\n"])
def test_one_with_everything_in_it_fits_and_keeps_something_of_each(text: str) -> None:
    data = encode_flight(full(text))
    assert len(data) <= MAX_FLIGHT_BYTES
    found = decode_flight(data)
    assert all((found.exits, found.chain, found.events, found.heartbeat, found.progress, found.stack, found.refused))
    assert found.exits[0].error
    assert found.chain[0].frames
    assert found.stack is not None
    assert found.stack.lines


def test_what_has_room_is_kept_whole() -> None:
    record = full("a fact")
    small = replace(record, chain=record.chain[:2], stack=replace(record.stack, lines=("one", "two")))
    found = decode_flight(encode_flight(small))
    assert found == replace(
        small, chain=tuple(replace(link, frames=link.frames[-12:], left_out=2**62 + 4) for link in small.chain)
    )


def test_texts_are_cut_where_they_tell_least() -> None:
    assert cut("a message", 40) == "a message"
    assert cut("x" * 50, 40) == "x" * 37 + "..."
    link = ErrorLink("raised", "pkg.Error", "m", ("/a/" + "deep/" * 200 + "file.py:3 in step",))
    (found,) = decode_flight(encode_flight(replace(BARE, chain=(link,)))).chain
    assert found.frames[0].startswith("...")
    assert found.frames[0].endswith("deep/file.py:3 in step")


def test_each_room_is_no_larger_than_the_one_before() -> None:
    for larger, smaller in itertools.pairwise(ROOMS):
        assert all(most >= least for most, least in zip(larger, smaller, strict=True))


def test_a_record_of_older_code_has_defaults_and_one_of_newer_code_is_read_as_far_as_it_is_known() -> None:
    older = {"version": 1, "incarnation": 1, "attempt": 2, "epoch": 3, "at_s": 4.0, "status": "failed"}
    assert decode_flight(msgspec.msgpack.encode(older)) == replace(BARE, attempt=2, epoch=3, at_s=4.0)
    newer = {
        **older,
        "version": 2,
        "altitude": [1, 2],
        "exits": [{"attempt": 1, "epoch": 1, "at_s": 0.0, "how": "?", "g": 9}],
    }
    found = decode_flight(msgspec.msgpack.encode(newer))
    assert (found.version, found.exits[0].how) == (2, "?")


def test_each_way_to_end_has_a_word() -> None:
    error = ErrorInfo("ValueError", "x")
    assert how_of(Crashed(error, Phase.STEP)) == "crashed"
    assert how_of(Crashed(error, Phase.HUNG)) == "hung"
    assert [how_of(exit_) for exit_ in (Stopped(), TimedOut())] == ["stopped", "timed out"]
