"""A scripted model answers by step, the same in every process; it fails, waits and counts as it is told."""

from __future__ import annotations

import asyncio
import math

import pytest

from executus.actors.agents.errors import FatalModelError, ModelError, RateLimited
from executus.actors.agents.model import Model, ModelReply, ModelRequest
from executus.actors.agents.parts import Image, Text, Thinking, ToolCall, Usage, assistant, user
from executus.actors.agents.scripted import Reply, ScriptedModel, call, fail, say, think
from tests.agents.asking import asked


def answer(model: ScriptedModel, request: ModelRequest) -> ModelReply:
    return asyncio.run(model.request(request))


def test_a_scripted_model_is_a_model() -> None:
    model: Model = ScriptedModel([say("yes")])
    assert asyncio.iscoroutinefunction(model.request)


def test_the_step_alone_chooses_the_reply_so_a_new_process_gives_the_same_one() -> None:
    script = [call("read", path="a"), call("read", path="b"), say("done")]
    first, other_process = ScriptedModel(script), ScriptedModel(script)
    whole = [answer(first, asked(step=step)) for step in range(3)]
    assert [answer(other_process, asked(step=step)) for step in (2, 0, 1)] == [whole[2], whole[0], whole[1]]
    shortened = answer(other_process, asked(user("(earlier messages are left out)"), step=2))
    assert shortened.message == whole[2].message


def test_a_message_is_added_up_of_thoughts_words_and_calls() -> None:
    model = ScriptedModel([think("hm", "sig") + say("Both:") + call("read", path="ä") + call("add", name="x", a=1)])
    message = answer(model, asked()).message
    assert message.parts == (
        Thinking("hm", "sig"),
        Text("Both:"),
        ToolCall("scripted-0-2", "read", '{"path":"ä"}'),
        ToolCall("scripted-0-3", "add", '{"name":"x","a":1}'),
    )
    assert (message.role, message.origin) == ("assistant", "model")


def test_calls_have_ids_of_their_own_over_a_whole_conversation() -> None:
    model = ScriptedModel(lambda request: call("read") + call("read") if request.step < 3 else say("done"))
    ids = [made.id for step in range(3) for made in answer(model, asked(step=step)).message.calls]
    assert len(set(ids)) == 6


def test_an_id_that_the_script_gives_is_kept_and_a_whole_reply_goes_out_as_it_stands() -> None:
    whole = ModelReply(assistant(ToolCall("", "read", "{broken")), Usage(1, 2))
    model = ScriptedModel([Reply((ToolCall("mine", "read"),)), whole])
    assert answer(model, asked()).message.calls == (ToolCall("mine", "read"),)
    assert answer(model, asked(step=1)) is whole


def test_a_function_sees_the_request() -> None:
    model = ScriptedModel(lambda request: say(f"{request.step}: {request.messages[-1].text}"))
    assert answer(model, asked(user("hello"), step=4)).message.text == "4: hello"


def test_failures_come_before_the_reply_of_their_step_and_count_for_each_run() -> None:
    slow_down = RateLimited("slow down", 0.5)
    model = ScriptedModel([say("one"), fail(slow_down, times=2), fail(ModelError("broken")), say("two")])

    def outcome(run_id: str, step: int) -> object:
        try:
            return answer(model, asked(run_id=run_id, step=step)).message.text
        except ModelError as error:
            return type(error)

    assert outcome("r-1", 0) == "one"
    for run_id in ("r-1", "r-2"):
        assert [outcome(run_id, 1) for _ in range(5)] == [RateLimited, RateLimited, ModelError, "two", "two"]
    with pytest.raises(RateLimited) as caught:
        answer(model, asked(run_id="r-3", step=1))
    assert caught.value is slow_down
    assert caught.value.retry_after_s == 0.5


def test_a_function_may_fail_first_and_then_reply() -> None:
    model = ScriptedModel(lambda _: [fail(ModelError("once")), say("then")])
    with pytest.raises(ModelError, match="once"):
        answer(model, asked())
    assert answer(model, asked()).message.text == "then"


def test_a_failure_without_an_end_fails_always() -> None:
    model = ScriptedModel([fail(ModelError("down"), times=None), say("never")])
    for _ in range(5):
        with pytest.raises(ModelError, match="down"):
            answer(model, asked())


def test_one_error_raised_again_and_again_gathers_no_frames() -> None:
    error = ModelError("down")
    model = ScriptedModel([fail(error, times=None)])
    depths: list[int] = []
    for _ in range(3):
        with pytest.raises(ModelError) as caught:
            answer(model, asked())
        depths.append(len(caught.traceback))
    assert depths[0] == depths[2]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (ScriptedModel([say("a"), say("b")]), "it has 2, counted"),
        (ScriptedModel([]), "it has 0, counted"),
        (ScriptedModel(lambda _: None), "its function returned nothing"),
        (ScriptedModel(lambda _: []), "its function returned nothing"),
    ],
)
def test_a_step_without_a_reply_is_a_fatal_error_that_names_it(model: ScriptedModel, why: str) -> None:
    with pytest.raises(FatalModelError, match=why) as caught:
        answer(model, asked(run_id="r-7", step=2))
    assert "run 'r-7', step 2" in str(caught.value)
    assert caught.value.facts == {"run_id": "r-7", "step": 2}


def test_a_function_answers_one_request_at_a_time() -> None:
    with pytest.raises(TypeError, match="one request at a time, not 2"):
        answer(ScriptedModel(lambda _: [say("a"), say("b")]), asked())


def test_a_delay_leaves_the_event_loop_to_others() -> None:
    model = ScriptedModel([say("late").after(0.05), say("prompt")])

    async def both() -> list[str]:
        order: list[str] = []

        async def one(step: int) -> None:
            order.append((await model.request(asked(step=step))).message.text)

        await asyncio.gather(one(0), one(1))
        return order

    assert asyncio.run(both()) == ["prompt", "late"]


@pytest.mark.parametrize("hanging", [say("never").after(math.inf), fail(ModelError("never")).after(math.inf)])
def test_a_model_that_hangs_is_cancelled(hanging: Reply) -> None:
    model = ScriptedModel([hanging])

    async def cancelled() -> None:
        task = asyncio.create_task(model.request(asked()))
        await asyncio.sleep(0)
        assert model.requests
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())


@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_a_delay_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="after_s must not be negative"):
        say("x").after(seconds)


def test_usage_is_what_the_script_says_or_a_quarter_of_the_characters() -> None:
    model = ScriptedModel([say("x").using(100, 20, usd=0.5), say("12345678")])
    assert answer(model, asked()).usage == Usage(100, 20, usd=0.5)
    request = asked(user("1234", (Image(b"png"),)), assistant(ToolCall("1", "read", "{}")), system="1234", step=1)
    assert answer(model, request).usage == Usage((4 + 4 + 4_000 + 6 + 3) // 4, 2)


def test_usage_and_delays_of_a_message_add_up() -> None:
    added = think("hm").using(1, 2).after(0.1) + say("x").using(10, 20).after(0.2) + call("read")
    assert added.usage == Usage(11, 22)
    assert math.isclose(added.after_s, 0.3)


def test_the_last_requests_are_kept_and_no_more() -> None:
    model, forgetful = ScriptedModel(lambda _: say("x"), keep=2), ScriptedModel(lambda _: say("x"), keep=0)
    for step in range(3):
        answer(model, asked(step=step))
        answer(forgetful, asked(step=step))
    assert [request.step for request in model.requests] == [1, 2]
    assert forgetful.requests == ()
