"""What a model returns is checked before it enters a transcript."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from executus.actors.agents.agent import AgentResult
from executus.actors.agents.errors import FatalModelError, ModelError
from executus.actors.agents.model import MAX_REPLY_BYTES, ModelReply, checked_reply
from executus.actors.agents.parts import Message, Text, Thinking, ToolCall, ToolResult, Usage, assistant, user
from executus.actors.agents.scripted import ScriptedModel, call, say
from executus.actors.agents.transcript import problems
from executus.actors.outcomes import Failed
from tests.agents.house import house

ALONE = "\ud800"


def reply(*parts: Any, **usage: Any) -> ModelReply:
    return ModelReply(assistant(*parts), Usage(**usage))


def test_a_good_reply_is_taken_as_it_is() -> None:
    good = reply(
        Thinking("hm", "signed"), Text("A zebra, \U0001f993."), ToolCall("c", "look", "not even JSON"), usd=0.5
    )
    assert checked_reply(good) == good
    assert checked_reply(reply()) == reply()


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "words",
        ModelReply(user("words")),
        ModelReply(Message("assistant", (ToolResult("c", "look", "made up"),), "model")),
        ModelReply(assistant(Text("words")), None),  # type: ignore[arg-type]
        ModelReply(None),  # type: ignore[arg-type]
        reply("words"),
        reply(Text(3)),  # type: ignore[arg-type]
        reply(ToolCall("c", "look", {"what": "a"})),  # type: ignore[arg-type]
        reply(ToolCall(None, "look")),  # type: ignore[arg-type]
        reply(Text("words"), input_tokens=1.5),
    ],
)
def test_what_could_be_saved_and_never_be_loaded_is_refused(bad: Any) -> None:
    with pytest.raises(FatalModelError, match="must return a ModelReply"):
        checked_reply(bad)


def test_lone_surrogates_are_escaped_wherever_they_are() -> None:
    checked = checked_reply(reply(Text(ALONE), ToolCall(ALONE, ALONE, ALONE), Thinking("", ALONE)))
    assert checked.message.parts == (
        Text("\\ud800"),
        ToolCall("\\ud800", "\\ud800", "\\ud800"),
        Thinking("", "\\ud800"),
    )
    msgspec.msgpack.encode(checked)


def test_a_reply_that_no_record_can_hold_is_an_error_that_may_pass() -> None:
    with pytest.raises(ModelError, match="the most is") as caught:
        checked_reply(reply(Text("x" * MAX_REPLY_BYTES)))
    assert not isinstance(caught.value, FatalModelError)


# --- through a runtime


def test_a_run_ends_well_with_words_that_no_store_can_keep() -> None:
    script = [reply(Text(ALONE), ToolCall(ALONE, "launch", '{"what": "a"}')), say("done" + ALONE)]
    with house(script) as it:
        result: AgentResult = it.start().result(10)
        assert result.output == "done\\ud800"
        assert it.traces.count("a") == 1
        assert problems(result.transcript) == []


def test_nonsense_ends_a_run_by_name() -> None:
    with house([reply(Text("x"), input_tokens=0.5)]) as it:
        outcome = it.start().outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.error.type.endswith("FatalModelError")


def test_a_model_that_says_far_too_much_is_asked_again() -> None:
    asked: list[int] = []

    def script(request: Any) -> Any:
        asked.append(request.step)
        return reply(Text("x" * (MAX_REPLY_BYTES + 1))) if len(asked) == 1 else say("short")

    with house(ScriptedModel(script)) as it:
        assert it.start().result(10).output == "short"
        assert asked == [0, 0]


def test_a_model_may_say_nothing() -> None:
    with house([call("look", what="a"), reply()]) as it:
        result = it.start().result(10)
        assert (result.output, result.status) == ("", "completed")
