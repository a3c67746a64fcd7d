"""Which transcripts are legal, what is open in one, and that a reply's calls get ids of their own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from executus.actors.agents.parts import Message, Text, Thinking, ToolCall, ToolResult, assistant, result, user
from executus.actors.agents.transcript import open_calls, problems, with_ids

READ, GREP = ToolCall("a", "read"), ToolCall("b", "grep")


def answer(call: ToolCall) -> Message:
    return result(ToolResult(call.id, call.name, "fine"))


def test_the_calls_of_the_last_message_without_results_are_open_in_their_order() -> None:
    transcript = [user("go"), assistant(READ, GREP)]
    assert open_calls(transcript) == (READ, GREP)
    assert open_calls([*transcript, answer(GREP)]) == (READ,)
    assert open_calls([*transcript, answer(GREP), answer(READ)]) == ()
    assert open_calls([*transcript, answer(GREP), answer(READ), user("more")]) == ()
    assert open_calls([]) == ()


def test_calls_before_the_part_that_is_looked_at_are_not_open() -> None:
    transcript = [user("go"), assistant(READ)]
    assert open_calls(transcript, since=2) == ()
    assert open_calls([*transcript, user("anew"), assistant(Text("done"))], since=2) == ()


def test_a_legal_transcript_has_no_problems() -> None:
    assert (
        problems([user("go"), assistant(Thinking("hm"), READ, GREP), answer(READ), answer(GREP), assistant(Text("."))])
        == []
    )


def test_each_way_to_be_illegal_is_said_in_words() -> None:
    assert problems([assistant(READ)]) == ["at the end: read has no result"]
    assert problems([assistant(READ), user("hey")]) == ["message 1: read has no result before it"]
    assert problems([assistant(READ), answer(GREP)])[0] == "message 1: a result of 'grep' without an open call"
    assert problems([answer(READ)]) == ["message 0: a result of 'read' without an open call"]
    assert problems([assistant(READ, READ), answer(READ)]) == ["message 0: two calls carry one id"]
    assert problems([Message("tool", (Text("?"),), "tool")]) == [
        "message 0: a tool's message holds something else than results"
    ]


@given(st.lists(st.sampled_from(["", "a", "b", "call-3-1", "call-3-2"]), max_size=6), st.integers(2, 4))
def test_every_call_of_a_reply_has_an_id_of_its_own_the_same_when_it_is_made_again(ids: list[str], number: int) -> None:
    message = assistant(Text("look"), *(ToolCall(one, "read") for one in ids))
    named = with_ids(message, number)
    assert len({call.id for call in named.calls}) == len(ids)
    assert all(call.id for call in named.calls)
    assert with_ids(message, number) == named == with_ids(named, number)
    assert [call.id for call in named.calls if call.id in ids][:1] == [one for one in ids if one][:1]
