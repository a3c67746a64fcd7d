"""PydanticModel over real HTTP: what a provider's answers, refusals and broken connections become."""

from __future__ import annotations

import asyncio
import email.utils
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from executus.actors.agents.errors import FatalModelError, ModelError, RateLimited
from executus.actors.agents.model import Model, ModelReply, ToolSpec
from executus.actors.agents.parts import Image, Text, Thinking, ToolCall, ToolResult, Usage, assistant, result, user
from executus.actors.agents.provider import PydanticModel
from executus.actors.loop_thread import LoopThread
from tests.agents.asking import asked
from tests.agents.chat_server import HANG_UP, SILENCE, Answer, ChatServer, completion, refusal
from tests.waiting import await_until, wait_until


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer().running() as server:
        yield server


def made(server: ChatServer) -> OpenAIChatModel:
    return OpenAIChatModel("test-model", provider=OpenAIProvider(base_url=server.url, api_key="a-key"))


def over(server: ChatServer, **settings: float) -> PydanticModel:
    return PydanticModel(lambda: made(server), settings=ModelSettings(**settings))  # type: ignore[typeddict-item]


def answer(model: PydanticModel) -> ModelReply:
    return asyncio.run(model.request(asked()))


def test_words_and_usage(server: ChatServer) -> None:
    server.will(completion("Nothing new."))
    model: Model = over(server)
    assert asyncio.iscoroutinefunction(model.request)
    assert answer(over(server)) == ModelReply(assistant(Text("Nothing new.")), Usage(11, 7))
    assert server.asked[0]["messages"] == [{"role": "user", "content": "What is new?"}]
    assert server.keys == ["Bearer a-key"]


def test_a_conversation_with_tools_goes_out_as_providers_want_it(server: ChatServer) -> None:
    read = ToolSpec("read", "Reads a file.", {"type": "object", "properties": {"path": {"type": "string"}}})
    conversation = (
        user("Compare a and b.", (Image(b"\x89PNG", "image/png"),)),
        assistant(Text("Both:"), ToolCall("1", "read", '{"path":"a"}'), ToolCall("2", "read", "{broken")),
        result(ToolResult("1", "read", "A")),
        result(ToolResult("2", "read", "bad arguments", is_error=True)),
        user("Hurry.", origin="steer"),
    )
    server.will(completion("They differ.", [("3", "read", '{"path": "c"}'), ("4", "read", "{also broken")]))
    reply = asyncio.run(over(server).request(asked(*conversation, system="Be brief.", tools=(read,))))
    assert reply.message.parts == (
        Text("They differ."),
        ToolCall("3", "read", '{"path": "c"}'),
        ToolCall("4", "read", "{also broken"),
    )
    body = server.asked[0]
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "tool", "tool", "user"]
    system, prompt, said, first, second, steer = body["messages"]
    assert system["content"] == "Be brief."
    assert prompt["content"][0] == {"type": "text", "text": "Compare a and b."}
    assert prompt["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBORw")
    assert [call["id"] for call in said["tool_calls"]] == ["1", "2"]
    assert [json.loads(call["function"]["arguments"]) for call in said["tool_calls"]] == [
        {"path": "a"},
        {"INVALID_JSON": "{broken"},
    ]
    assert (first["tool_call_id"], first["content"]) == ("1", "A")
    assert second["tool_call_id"] == "2"
    assert "bad arguments" in second["content"]
    assert "Hurry." in json.dumps(steer)
    assert body["tools"][0]["function"]["name"] == "read"
    assert body["tools"][0]["function"]["parameters"]["properties"] == {"path": {"type": "string"}}


def test_thoughts_go_back_to_where_they_came_from_and_not_elsewhere(server: ChatServer) -> None:
    server.will(completion("Yes.", reasoning_content="Hm."), completion("Still."), completion("Who?"))
    model = over(server)
    thought = answer(model).message
    assert [type(part) for part in thought.parts] == [Thinking, Text]
    assert (thought.parts[0].text, thought.text) == ("Hm.", "Yes.")  # type: ignore[union-attr]
    again = asked(user("Sure?"), thought, user("Really?"))
    asyncio.run(model.request(again))
    assert server.asked[1]["messages"][1]["reasoning_content"] == "Hm."
    foreign = assistant(
        Thinking("Aha.", '{"provider":"elsewhere","signature":"s","id":"reasoning_content"}'), Text("No.")
    )
    asyncio.run(model.request(asked(user("Sure?"), foreign, user("Really?"))))
    assert "reasoning_content" not in server.asked[2]["messages"][1]
    assert '"s"' not in json.dumps(server.asked[2])


def test_a_refusal_is_text(server: ChatServer) -> None:
    server.will(completion(refusal="I would rather not."))
    assert answer(over(server)).message.text == "I would rather not."


def test_what_the_content_filter_withholds_is_said_so(server: ChatServer) -> None:
    filtered = json.loads(completion("").says)
    filtered["choices"][0]["finish_reason"] = "content_filter"
    server.will(Answer(json.dumps(filtered).encode()))
    assert answer(over(server)).message.text == "(The provider's content filter withheld the answer.)"


BROKEN = {
    "a 500": refusal(500),
    "a 503 without JSON": Answer(b"<html>busy</html>", 503, {"Content-Type": "text/html"}),
    "overloaded": refusal(529),
    "a time-out of a gateway": refusal(408),
    "a conflict": refusal(409),
    "hangs up at once": HANG_UP,
    "hangs up midway": Answer(completion("Nothing new.").says, cut=True),
    "hangs up between chunks": Answer(
        b'20\r\n{"id": "chatcmpl-1", "object": "c',
        headers={"Transfer-Encoding": "chunked", "Content-Length": ""},
        cut=True,
    ),
    "malformed JSON": Answer(b'{"choices": [}'),
    "JSON that is no completion": Answer(b'{"hello": "world"}'),
    "no JSON": Answer(b"hello", headers={"Content-Type": "text/plain"}),
    "an error inside of a 200": Answer(b'{"error": {"message": "upstream failed", "code": 502}}'),
    "nothing": Answer(b""),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_what_may_pass_is_asked_again_by_a_restart_and_not_by_the_providers_library(
    server: ChatServer, broken: Answer
) -> None:
    server.will(broken, completion("Nothing new."))
    model = over(server)
    with pytest.raises(ModelError) as caught:
        answer(model)
    assert type(caught.value) is ModelError
    assert caught.value.__cause__ is not None
    assert caught.value.facts["model"] == "test-model"
    assert len(server.asked) == 1
    assert answer(model).message.text == "Nothing new."


def test_settings_may_leave_retries_to_the_providers_library(server: ChatServer) -> None:
    server.will(refusal(500, retry_after_ms="1"), completion("Nothing new."))
    assert answer(over(server, max_retries=1)).message.text == "Nothing new."


@pytest.mark.parametrize("setting", ["timeout", "request_timeout"])
def test_a_provider_that_says_nothing_is_given_up(server: ChatServer, setting: str) -> None:
    server.will(SILENCE)
    with pytest.raises(ModelError) as caught:
        answer(over(server, **{setting: 0.2}))
    assert type(caught.value) is ModelError


def test_a_provider_that_is_not_there_may_be_back_later(server: ChatServer) -> None:
    with socket.socket() as bound, pytest.raises(ModelError) as caught:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        server.url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        answer(over(server))
    assert type(caught.value) is ModelError


def test_a_rate_limit_says_how_long_to_wait(server: ChatServer) -> None:
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    server.will(refusal(429, retry_after="7"), refusal(429, retry_after=in_a_minute), refusal(429))
    model, waits = over(server), []
    for _ in range(3):
        with pytest.raises(RateLimited) as caught:
            answer(model)
        assert isinstance(caught.value.__cause__, ModelHTTPError)
        assert caught.value.facts == {"model": "test-model", "status": 429}
        waits.append(caught.value.retry_after_s)
    assert waits[0] == 7.0
    assert waits[1] is not None
    assert 0 < waits[1] <= 60
    assert waits[2] is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_will_never_be_answered_ends_the_run(server: ChatServer, status: int) -> None:
    server.will(refusal(status, "not like this"))
    with pytest.raises(FatalModelError, match="not like this") as caught:
        answer(over(server))
    assert caught.value.facts == {"model": "test-model", "status": status}
    assert isinstance(caught.value.__cause__, ModelHTTPError)


def test_an_account_without_money_is_no_rate_limit(server: ChatServer) -> None:
    server.will(refusal(429, "pay first", code="insufficient_quota"))
    with pytest.raises(FatalModelError, match="pay first"):
        answer(over(server))


def test_models_that_are_tried_in_turn_fail_as_the_most_hopeful_of_them(server: ChatServer) -> None:
    model = PydanticModel(lambda: FallbackModel(made(server), made(server)))
    server.will(refusal(401), refusal(429, retry_after="7"))
    with pytest.raises(RateLimited) as limited:
        answer(model)
    assert limited.value.retry_after_s == 7.0
    server.will(refusal(429), refusal(500))
    with pytest.raises(ModelError) as transient:
        answer(model)
    assert type(transient.value) is ModelError
    server.will(refusal(401), refusal(404))
    with pytest.raises(FatalModelError):
        answer(model)
    server.will(refusal(401), completion("Nothing new."))
    assert answer(model).message.text == "Nothing new."


def test_a_request_that_is_cancelled_leaves_nothing_running(server: ChatServer) -> None:
    model = over(server)

    async def cancelled() -> None:
        server.will(SILENCE)
        task = asyncio.create_task(model.request(asked()))
        await await_until(lambda: server.waiting.acquire(blocking=False))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await await_until(lambda: not server.connections)
        server.will(completion("Nothing new."))
        assert (await model.request(asked())).message.text == "Nothing new."

    asyncio.run(cancelled())


def test_a_request_that_is_cancelled_again_and_again_still_closes_the_client(server: ChatServer) -> None:
    model = over(server)

    async def cancelled() -> None:
        server.will(completion("Nothing new."), SILENCE)
        tasks = [asyncio.create_task(model.request(asked(step=step))) for step in range(2)]
        _, (waiting,) = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert server.connections, "that of the answered request is kept for the next one"
        while not waiting.done():
            waiting.cancel()
            await asyncio.sleep(0)
        assert waiting.cancelled()
        await await_until(lambda: not server.connections)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(cancelled())


def test_a_runtimes_loop_that_closes_in_the_middle_of_a_request_leaves_nothing_open(server: ChatServer) -> None:
    model = over(server)
    for _ in range(2):
        server.will(SILENCE)
        ours = LoopThread()
        waiting = asyncio.run_coroutine_threadsafe(model.request(asked()), ours.loop)
        assert server.waiting.acquire(timeout=30)
        ours.close(timeout_s=30)
        assert waiting.cancelled()
        wait_until(lambda: not server.connections)


def test_requests_under_way_share_a_client_and_the_last_one_closes_it(server: ChatServer) -> None:
    model = over(server)
    server.will(*[completion("Nothing new.") for _ in range(20)])

    async def many() -> None:
        replies = await asyncio.gather(*[model.request(asked(step=step)) for step in range(20)])
        assert {reply.message.text for reply in replies} == {"Nothing new."}
        await await_until(lambda: not server.connections)

    asyncio.run(many())


def test_one_model_serves_one_loop_after_the_other(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    for model in (over(server), PydanticModel(made(server)), PydanticModel("openai-chat:test-model")):
        for _ in range(3):
            server.will(completion("Nothing new."))
            assert answer(model).message.text == "Nothing new."
    assert server.keys[-1] == "Bearer of-the-environment"


def beside(server: ChatServer, model: PydanticModel, meanwhile: PydanticModel) -> ModelReply:
    """What `meanwhile` answers on a loop of this thread while `model` waits for its answer on that of another one."""
    server.will(SILENCE)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    waiting = asyncio.run_coroutine_threadsafe(model.request(asked()), loop)
    try:
        assert server.waiting.acquire(timeout=30)
        server.will(completion("Nothing new."))
        return answer(meanwhile)
    finally:
        waiting.cancel()
        asyncio.run_coroutine_threadsafe(_all_done(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _all_done() -> None:
    await await_until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, timeout_s=30)


def test_a_model_by_name_or_function_serves_two_loops_side_by_side(server: ChatServer) -> None:
    model = over(server)
    assert beside(server, model, model).message.text == "Nothing new."


def test_a_model_made_already_says_that_it_serves_one_loop_at_a_time(server: ChatServer) -> None:
    model = PydanticModel(made(server))
    with pytest.raises(FatalModelError, match="another event loop now"):
        beside(server, model, model)
    assert answer(model).message.text == "Nothing new."
