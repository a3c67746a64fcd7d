"""The default compactor: what it gives up, in which order, and that what is left is a legal transcript."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executus.actors.agents.budget import estimate_tokens
from executus.actors.agents.compactor import Compactor
from executus.actors.agents.parts import Image, Message, Text, ToolCall, ToolResult, assistant, result, user
from executus.actors.agents.shortening import SHORTEST, Shortening
from executus.actors.agents.transcript import problems
from tests.agents.watching import info

INFO = info()


def step(number: int, *results: int) -> list[Message]:
    """The model asks for as many calls, and gets results of these lengths."""
    calls = [ToolCall(f"c-{number}-{at}", "read", "{}") for at in range(len(results))]
    answers = [ToolResult(call.id, "read", "r" * length) for call, length in zip(calls, results, strict=True)]
    return [assistant(Text(f"step {number}"), *calls), *map(result, answers)]


def compact(shortening: Shortening, messages: tuple[Message, ...], limit: int) -> tuple[Message, ...]:
    shorter = shortening.compact(messages, limit, INFO)
    assert isinstance(shorter, tuple)
    return shorter


def test_the_default_is_a_compactor() -> None:
    compactor: Compactor = Shortening()
    assert compactor.threshold == 0.75


def test_what_fits_is_left_alone() -> None:
    messages = (user("go"), *step(1, 10_000))
    assert Shortening().compact(messages, estimate_tokens(messages), INFO) is messages


def test_big_old_results_are_cut_before_a_message_is_left_out() -> None:
    messages = (user("go"), *step(1, 40_000), *step(2, 300), *step(3, 40_000))
    shorter = compact(Shortening(keep_last=4), messages, 12_000)
    assert len(shorter) == len(messages)
    cut, whole = shorter[2].parts[0], shorter[6]
    assert isinstance(cut, ToolResult)
    assert len(cut.text) == 2_000
    assert "of 40000 characters" in cut.text
    assert cut.text.startswith("rrr")
    assert cut.text.endswith("rrr")
    assert whole == messages[6]
    assert shorter[4] == messages[4], "it was short enough"


def test_old_images_are_left_out_but_the_first_message_keeps_its_own() -> None:
    picture = Image(b"...")
    attached = user("as you asked", (picture,), origin="attached")
    messages = (user("what is this?", (picture,)), *step(1, 10), attached, *step(2, 10), attached)
    shorter = compact(Shortening(keep_last=1), messages, 4_000)
    assert shorter[0] == messages[0]
    assert shorter[3].parts == (Text("as you asked"), Text("[an image, left out]"))
    assert shorter[3].origin == "attached"
    assert shorter[-1] == messages[-1]


def test_then_the_oldest_messages_go_and_the_model_is_told_how_many() -> None:
    steps = [message for number in range(50) for message in step(number, 400)]
    messages = (user("go"), *steps)
    shorter = compact(Shortening(), messages, 2_000)
    assert shorter[0] == messages[0]
    assert shorter[1].role == "user"
    left_out = len(messages) - (len(shorter) - 1)
    assert shorter[1].text == f"({left_out} earlier messages are left out here.)"
    assert shorter[2:] == messages[-len(shorter) + 2 :]
    assert shorter[2].role == "assistant"
    assert 1_800 < estimate_tokens(shorter) <= 2_000, "no more than it takes"
    assert problems(shorter) == []


def test_then_results_among_the_newest_are_cut_but_not_the_last_ones() -> None:
    messages = (user("go"), *step(1, 30_000), *step(2, 20_000))
    shorter = compact(Shortening(keep_last=4), messages, 6_000)
    assert len(shorter) == len(messages)
    assert len(shorter[2].text) == 2_000
    assert shorter[-1] == messages[-1]


def test_results_among_the_newest_stay_whole_while_leaving_out_older_ones_is_enough() -> None:
    messages = (user("go"), *(message for number in range(50) for message in step(number, 3_000)))
    shorter = compact(Shortening(keep_last=4), messages, 2_500)
    assert shorter[-4:] == messages[-4:]
    assert len(shorter[-5].text) == 2_000


def test_the_newest_never_begin_in_the_middle_of_results() -> None:
    messages = (user("go"), *step(1, 3_000, 3_000), *step(2))
    shorter = compact(Shortening(keep_last=2), messages, 1_000)
    assert problems(shorter) == []


def test_the_models_last_results_stay_whole_also_when_the_user_has_spoken_since() -> None:
    messages = (user("go"), *step(1, 30_000), *step(2, 3_000), user("hurry", origin="steer"))
    shorter = compact(Shortening(keep_last=1), messages, 2_000)
    assert shorter[-3:] == messages[-3:]


def test_at_last_the_last_results_are_cut_to_fit() -> None:
    messages = (user("go"), *step(1, 50_000, 400, 50_000))
    shorter = compact(Shortening(), messages, 6_000)
    assert estimate_tokens(shorter) <= 6_000
    assert len(shorter) == len(messages)
    assert shorter[3] == messages[3], "the short one stays whole"
    assert problems(shorter) == []
    assert estimate_tokens(shorter) > 4_000, "no more than it takes"


def test_what_cannot_fit_is_as_short_as_it_gets() -> None:
    messages = (user("x" * 40_000), *step(1, 9_000), *step(2, 9_000))
    shorter = compact(Shortening(), messages, 100)
    assert shorter[0] == messages[0]
    assert shorter[1].text == "(2 earlier messages are left out here.)"
    assert len(shorter[-1].text) == SHORTEST


def test_a_note_longer_than_what_it_stands_for_is_not_worth_it() -> None:
    messages = (user("x" * 4_000), assistant(Text("a")), user("b"), assistant(Text("c")))
    assert compact(Shortening(), messages, 10) == messages


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0.0}, {"threshold": 1.1}, {"threshold": math.nan}, {"keep_last": 0}, {"result_chars": 199}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Shortening(**wrong)


# --------------------------------------------------------------------------------------------- any transcript, any limit

words = st.one_of(st.text(max_size=30), st.builds(lambda c, n: c * n, st.sampled_from("xé日"), st.integers(0, 9_000)))
images = st.lists(st.just(Image(b"...")), max_size=2).map(tuple)
said = st.builds(lambda text, pictures: [user(text, pictures)], words, images)


@st.composite
def spoken(draw: st.DrawFn) -> list[Message]:
    results = draw(st.lists(words, max_size=3))
    calls = [ToolCall(f"c-{at}", "read", draw(st.sampled_from(["{}", '{"a": 1}']))) for at in range(len(results))]
    answers = [ToolResult(call.id, "read", text) for call, text in zip(calls, results, strict=True)]
    together = draw(st.booleans())  # providers differ: all results in one message, or one in each
    tools = [Message("tool", tuple(answers), "tool")] if together and answers else list(map(result, answers))
    return [assistant(Text(draw(words)), *calls), *tools]


transcripts = st.lists(st.one_of(said, spoken()), min_size=1, max_size=12).map(lambda blocks: tuple(chain(*blocks)))
shortenings = st.builds(
    Shortening, keep_last=st.integers(1, 10), result_chars=st.integers(SHORTEST, 3_000), threshold=st.floats(0.1, 1)
)


def least(messages: tuple[Message, ...]) -> int:
    """What cannot be given up: the first of the user's, a note, and the last block with its results cut."""
    spoke = [at for at, message in enumerate(messages) if message.role == "assistant"]
    last = spoke[-1] if spoke else len(messages) - 1
    first = next((at for at, message in enumerate(messages) if message.role == "user"), len(messages))
    head = messages[first : first + 1] if first < last else ()
    note = user(f"({len(messages)} earlier messages are left out here.)")
    block = [
        msgspec.structs.replace(
            message,
            parts=tuple(
                msgspec.structs.replace(part, text="日" * min(SHORTEST, len(part.text)))
                if isinstance(part, ToolResult)
                else part
                for part in message.parts
            ),
        )
        for message in messages[last:]
    ]
    return estimate_tokens((*head, note, *block))


@given(transcripts, shortenings, st.integers(0, 12_000))
def test_any_legal_transcript_stays_legal_ends_the_same_and_fits_where_it_can(messages, shortening, limit) -> None:
    assert problems(messages) == []
    before, size = msgspec.msgpack.encode(messages), estimate_tokens(messages)
    shorter = compact(shortening, messages, limit)
    after = estimate_tokens(shorter)
    assert msgspec.msgpack.encode(messages) == before, "the transcript itself is not touched"
    assert problems(shorter) == []
    assert after <= size
    assert after <= limit or limit < least(messages)
    assert [part for part in shorter[-1].parts if not isinstance(part, ToolResult)] == [
        part for part in messages[-1].parts if not isinstance(part, ToolResult)
    ]
    assert (shorter[-1].role, shorter[-1].origin) == (messages[-1].role, messages[-1].origin)
    first = next((message for message in messages if message.role == "user"), None)
    assert first is None or first in shorter
    assert compact(shortening, messages, limit) == shorter, "the same every time"


@given(transcripts, shortenings, st.integers(0, 12_000))
def test_whatever_is_left_but_the_note_was_there_in_that_order(messages, shortening, limit) -> None:
    shorter = compact(shortening, messages, limit)
    notes = [message for message in shorter if message.origin == "nudge"]
    assert len(notes) <= 1
    kept = [message for message in shorter if message.origin != "nudge"]
    shapes = [shape(message) for message in messages]
    at = -1
    for message in kept:
        at = shapes.index(shape(message), at + 1)  # raises where it was not there
    left_out = int(notes[0].text[1:].split()[0]) if notes else 0
    assert left_out == len(messages) - len(kept)


def shape(message: Message) -> tuple[object, ...]:
    """What no shortening changes of a message."""
    return (message.role, message.origin, message.calls, len(message.parts))
