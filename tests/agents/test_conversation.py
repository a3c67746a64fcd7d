"""Every way in which a conversation changes keeps its transcript legal and its counters right."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from executus.actors.agents.agent import UNLIMITED, Budget, Note
from executus.actors.agents.conversation import (
    GIVEN_UP,
    Conversation,
    Delegation,
    abandoned,
    all_of,
    answered,
    asked_again,
    begun_anew,
    child_ended,
    heard,
    next_phase,
    replace,
    replied,
    said,
    tried_before,
)
from executus.actors.agents.parts import NOTHING, Image, Text, ToolCall, ToolResult, Usage, assistant, user
from executus.actors.agents.transcript import problems
from executus.actors.journal import Journal

ONE, TWO = ToolCall("1", "look", '{"what": "a"}'), ToolCall("2", "look", '{"what": "b"}')


def fresh(**given: Any) -> Conversation:
    return Conversation(**{"ceiling": 9, "transcript": Journal([user("Go.")]), **given})


def result_of(
    call: ToolCall, *, error: bool = False, unknown: bool = False, text: str = "ok"
) -> tuple[ToolCall, ToolResult]:
    return call, ToolResult(call.id, call.name, text, is_error=error, unknown=unknown)


def asked(conversation: Conversation, *calls: ToolCall) -> Conversation:
    return replied(conversation, assistant(*(calls or (Text("So."),))), Usage(3, 2, requests=1))


def test_a_reply_counts_and_its_calls_are_open_until_they_are_answered() -> None:
    conversation = asked(fresh(), ONE, TWO)
    assert (conversation.steps, conversation.total_steps, conversation.usage.tokens) == (1, 1, 5)
    assert conversation.open_calls == (ONE, TWO)
    conversation = answered(conversation, [result_of(ONE)])
    assert conversation.open_calls == (TWO,)
    conversation = answered(conversation, [result_of(TWO)])
    assert (conversation.open_calls, conversation.usage.tool_calls, conversation.answered) == ((), 2, False)
    assert asked(conversation).answered


def test_errors_in_a_row_are_counted_and_a_success_or_an_interruption_is_none() -> None:
    conversation = fresh()
    for at in range(3):
        call = ToolCall(f"c{at}", "look", f'{{"what": {at}}}')
        conversation = answered(asked(conversation, call), [result_of(call, error=True)])
        assert conversation.tool_errors == at + 1
    interrupted = answered(asked(conversation, ONE), [result_of(ONE, error=True, unknown=True)])
    assert interrupted.tool_errors == 0
    assert answered(asked(conversation, ONE), [result_of(ONE)]).tool_errors == 0


def test_the_same_call_in_a_row_is_counted_however_it_is_spelt() -> None:
    conversation = fresh()
    for at, arguments in enumerate(['{"a":1,"b":2}', '{"b": 2, "a": 1}', '{"a":1,"b":2}']):
        call = ToolCall(f"c{at}", "look", arguments)
        conversation = answered(asked(conversation, call), [result_of(call)])
    assert conversation.repeats == 3
    assert answered(asked(conversation, TWO), [result_of(TWO)]).repeats == 1


def test_what_is_said_enters_before_the_next_request_and_never_between_a_call_and_its_result() -> None:
    conversation = said(asked(fresh(), ONE), [user("Stop.", origin="steer")])
    assert problems(conversation.transcript) == ["at the end: look has no result"]
    conversation = heard(answered(conversation, [result_of(ONE)]))
    assert [message.origin for message in conversation.transcript] == ["prompt", "model", "tool", "steer"]
    assert conversation.inbox == ()
    assert problems(conversation.transcript) == []


def test_attached_images_and_notes_are_kept() -> None:
    image = Image(b"x")
    conversation = answered(asked(fresh(), ONE), [result_of(ONE)], [Note("n", "1")], [image])
    assert [note.name for note in conversation.notes] == ["n"]
    assert heard(conversation).transcript[-1].parts == (image,)


def test_follow_ups_are_asked_one_at_a_time() -> None:
    conversation = replace(
        asked(fresh()), follow_ups=(user("Two?", origin="follow_up"), user("Three?", origin="follow_up"))
    )
    conversation = asked_again(conversation)
    assert (conversation.transcript[-1].text, len(conversation.follow_ups), conversation.answered) == ("Two?", 1, False)


def test_last_words_are_those_of_the_phase() -> None:
    conversation = replied(fresh(), assistant(Text("First.")), NOTHING)
    assert conversation.last_words == "First."
    conversation = next_phase(conversation, 5)
    assert (conversation.last_words, conversation.part, conversation.ceiling) == ("", (), 5)
    assert conversation.total_steps == 1


def test_abandoned_calls_are_answered_and_what_was_set_aside_for_running_children_counts_as_used() -> None:
    children = tuple(Delegation(call, call.id, f"r/{call.id}", Budget(tokens=40, steps=3)) for call in (ONE, TWO))
    conversation = replace(asked(fresh(), ONE, TWO), delegations=children)
    conversation = child_ended(conversation, "1", ToolResult("1", "look", "here"), Usage(4, 3), 2)
    conversation = abandoned(conversation, "no time")
    assert problems(conversation.transcript) == []
    assert [message.text for message in conversation.transcript[-2:]] == ["here", "no time"]
    assert conversation.usage.tokens == 5 + 7 + 40
    assert conversation.total_steps == 1 + 2 + 3
    assert conversation.delegations == ()
    assert abandoned(conversation, "again") is conversation


def test_a_message_that_is_made_again_behind_a_steer_has_the_place_that_it_had() -> None:
    before = asked(fresh(), ONE)
    behind = asked(heard(said(fresh(), [user("Wait.", origin="steer")])), ONE)
    assert before.place == behind.place
    after = asked(answered(before, [result_of(ONE)]), TWO)
    assert after.place != before.place
    assert asked(next_phase(after, 9), ONE).place not in {before.place, after.place}


def test_a_phase_that_begins_anew_finds_what_came_of_the_calls_of_its_earlier_tries() -> None:
    again = ToolCall("3", ONE.name, ONE.arguments)
    first = answered(asked(fresh(), ONE, again), [result_of(ONE, text="first"), result_of(again, text="second")])
    first = asked(heard(said(first, [user("Wait.", origin="steer")])), TWO)
    second = begun_anew(replace(first, armed=TWO.id, follow_ups=(user("And?", origin="follow_up"),)), 9)
    assert problems(second.transcript) == []
    assert [message.text for message in (*second.inbox, *second.follow_ups)] == ["Wait.", "And?"], "is said again"
    second = asked(replace(second, transcript=second.transcript.append(user("Go."))), ONE)
    assert second.place == asked(fresh(), ONE).place, "its keys are those of the first try"
    found = tried_before(second, ONE)
    assert found is not None
    assert found.text == "first"
    second = answered(second, [(ONE, found)])
    found = tried_before(asked(second, again), again)
    assert found is not None
    assert (found.text, found.call_id) == ("second", again.id), "the second of its kind is the second then"
    armed = tried_before(asked(second, TWO), TWO)
    assert armed is not None
    assert armed.unknown, "it was about to be made"
    third = begun_anew(second, 9)
    assert tried_before(asked(replace(third, transcript=third.transcript.append(user("Go."))), TWO), TWO) == armed
    assert tried_before(asked(next_phase(second, 9), ONE), ONE) is None, "another phase makes its own"


def test_a_call_that_was_given_up_before_it_was_made_is_made_in_the_next_try() -> None:
    second = begun_anew(asked(fresh(), ONE, TWO), 9)
    assert [part.text for message in second.transcript for part in message.parts if isinstance(part, ToolResult)] == [
        GIVEN_UP
    ] * 2
    second = asked(replace(second, transcript=second.transcript.append(user("Go."))), ONE)
    assert tried_before(second, ONE) is None


def test_an_unlimited_child_has_nothing_set_aside() -> None:
    assert all_of(UNLIMITED) == NOTHING


MOVES = st.lists(
    st.sampled_from(["reply", "calls", "answer", "say", "abandon", "delegate", "ended", "phase", "ask"]), max_size=40
)


@given(MOVES)
def test_whatever_happens_in_whatever_order_the_transcript_is_legal_whenever_a_model_may_be_asked(
    moves: list[str],
) -> None:
    conversation = fresh()
    for number, move in enumerate(moves):
        calls, waiting = conversation.open_calls, conversation.delegations
        ready = not calls
        match move:
            case "reply" if ready:
                conversation = asked(heard(conversation))
            case "calls" if ready:
                conversation = asked(
                    heard(conversation), ToolCall(f"a{number}", "look"), ToolCall(f"b{number}", "look")
                )
            case "answer" if calls and not waiting:
                conversation = answered(conversation, [result_of(calls[0])], attached=[Image(b"x")])
            case "say":
                conversation = said(conversation, [user(str(number), origin="steer")])
            case "abandon":
                conversation = abandoned(conversation, "given up")
            case "delegate" if calls and not waiting:
                spawned = tuple(Delegation(call, call.id, f"r/{call.id}", UNLIMITED) for call in calls)
                conversation = replace(conversation, delegations=spawned)
            case "ended" if waiting:
                one = next(one for one in waiting if one.answer is None)
                conversation = child_ended(conversation, one.key, result_of(one.call)[1], Usage(1), 1)
            case "phase":
                conversation = next_phase(abandoned(conversation, "given up"), 3)
            case "ask" if conversation.follow_ups and conversation.answered:
                conversation = asked_again(conversation)
            case _:
                pass
        if not conversation.open_calls:
            assert problems(heard(conversation).transcript) == []
            assert conversation.delegations == ()
    assert conversation.usage.requests == sum(message.role == "assistant" for message in conversation.transcript)
