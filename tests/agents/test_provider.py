"""PydanticModel with pydantic-ai's own models for tests, and without pydantic-ai."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal

import pytest
from pydantic_ai import messages as theirs
from pydantic_ai.exceptions import UnexpectedModelBehavior, UserError
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from executus.actors.agents.errors import FatalModelError, ModelError
from executus.actors.agents.model import ModelReply, ModelRequest, ToolSpec
from executus.actors.agents.parts import Image, Text, Thinking, ToolCall, ToolResult, Usage, assistant, result, user
from executus.actors.agents.provider import PydanticModel
from tests.agents.asking import asked

READ = ToolSpec(
    "read", "Reads a file.", {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
)


def answer(model: PydanticModel, request: ModelRequest) -> ModelReply:
    return asyncio.run(model.request(request))


class Told:
    """A FunctionModel that answers what it is told and keeps what it was asked."""

    def __init__(self, *parts: theirs.ModelResponsePart, **response: object) -> None:
        self.response = theirs.ModelResponse([*parts], **response)  # type: ignore[arg-type]
        self.messages: list[theirs.ModelMessage] = []
        self.info: AgentInfo | None = None

    def __call__(self, messages: list[theirs.ModelMessage], info: AgentInfo) -> theirs.ModelResponse:
        self.messages, self.info = messages, info
        return self.response

    @property
    def model(self) -> PydanticModel:
        return PydanticModel(FunctionModel(self, model_name="told"))


@pytest.mark.parametrize("given", ["test", TestModel(), TestModel], ids=["by name", "made already", "by function"])
def test_a_model_may_be_a_name_a_model_or_a_function(given: str | TestModel | Callable[[], TestModel]) -> None:
    model = PydanticModel(given)
    called = answer(model, asked(tools=(READ,)))
    assert [call.name for call in called.message.calls] == ["read"]
    assert called.message.calls[0].id
    assert called.usage.input_tokens > 0
    answered = asked(
        user("Read."), called.message, result(ToolResult(called.message.calls[0].id, "read", "A")), tools=(READ,)
    )
    said = answer(model, answered)
    assert said.message.text == '{"read":"A"}'
    assert not said.message.calls


def test_a_name_that_is_unknown_is_an_error_at_once() -> None:
    with pytest.raises(UserError, match="no-such-provider"):
        PydanticModel("no-such-provider:x")


def test_a_key_that_is_missing_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        PydanticModel("openai:gpt-5")


def test_what_was_said_reaches_the_model_part_by_part() -> None:
    told = Told(theirs.TextPart("ok"))
    conversation = (
        user("Look.", (Image(b"jpg", "image/jpeg"),)),
        user("", (Image(b"png"),), origin="attached"),
        assistant(
            Thinking("Hm."),
            Thinking("Aha.", "raw"),
            Text("I read."),
            ToolCall("1", "read", '{"path": "a"}'),
            ToolCall("2", "read"),
        ),
        result(ToolResult("1", "read", "A")),
        result(ToolResult("2", "read", "interrupted, outcome unknown", is_error=True, unknown=True)),
        user("Go on.", origin="nudge"),
    )
    answer(told.model, asked(*conversation, system="Be brief.", tools=(READ,)))
    prompt, said, results = told.messages
    assert isinstance(prompt, theirs.ModelRequest)
    assert [part.content for part in prompt.parts] == [
        ["Look.", theirs.BinaryContent(b"jpg", media_type="image/jpeg")],
        [theirs.BinaryContent(b"png", media_type="image/png")],
    ]
    assert isinstance(said, theirs.ModelResponse)
    assert said.parts == [
        theirs.ThinkingPart("Hm."),
        theirs.ThinkingPart("Aha.", signature="raw", provider_name="function"),
        theirs.TextPart("I read."),
        theirs.ToolCallPart("read", '{"path": "a"}', "1"),
        theirs.ToolCallPart("read", "{}", "2"),
    ]
    assert isinstance(results, theirs.ModelRequest)
    first, second, nudge = results.parts
    assert isinstance(first, theirs.ToolReturnPart)
    assert (first.tool_name, first.content, first.tool_call_id, first.outcome) == ("read", "A", "1", "success")
    assert isinstance(second, theirs.ToolReturnPart)
    assert (second.content, second.tool_call_id, second.outcome) == ("interrupted, outcome unknown", "2", "failed")
    assert isinstance(nudge, theirs.UserPromptPart)
    assert told.info is not None
    assert told.info.instructions == "Be brief."
    (tool,) = told.info.function_tools
    assert (tool.name, tool.description, tool.parameters_json_schema) == ("read", "Reads a file.", READ.parameters)


def test_what_the_model_says_comes_back_part_by_part() -> None:
    told = Told(
        theirs.ThinkingPart("Hm."),
        theirs.ThinkingPart("", id="redacted_thinking", signature="sealed", provider_name="anthropic"),
        theirs.TextPart(""),
        theirs.TextPart("I read."),
        theirs.ToolCallPart("read", '{"path": "a"}', "1"),
        theirs.ToolCallPart("read", {"path": "b"}, "2"),
        theirs.ToolCallPart("now", None, "3"),
        theirs.ToolCallPart("now", "", "4"),
        theirs.FilePart(theirs.BinaryContent(b"png", media_type="image/png")),
    )
    hm, sealed, *rest = answer(told.model, asked()).message.parts
    assert hm == Thinking("Hm.")
    assert isinstance(sealed, Thinking)
    assert rest == [
        Text("I read."),
        ToolCall("1", "read", '{"path": "a"}'),
        ToolCall("2", "read", '{"path":"b"}'),
        ToolCall("3", "now", "{}"),
        ToolCall("4", "now", "{}"),
    ]


def test_a_thought_goes_back_with_all_that_its_provider_wants() -> None:
    thought = theirs.ThinkingPart(
        "Hm.", id="rs_1", signature="s", provider_name="openai", provider_details={"raw": ["a"]}
    )
    told = Told(thought)
    message = answer(told.model, asked()).message
    answer(told.model, asked(user("Well?"), message, user("And?")))
    assert isinstance(told.messages[1], theirs.ModelResponse)
    assert told.messages[1].parts == [thought]


def test_settings_reach_the_model() -> None:
    told = Told(theirs.TextPart("ok"))
    answer(PydanticModel(FunctionModel(told), settings=ModelSettings(temperature=0.5)), asked())
    assert told.info is not None
    assert told.info.model_settings == {"max_retries": 0, "temperature": 0.5}


def test_settings_of_a_model_are_not_overruled() -> None:
    told = Told(theirs.TextPart("ok"))
    answer(PydanticModel(FunctionModel(told, settings=ModelSettings(max_retries=3))), asked())
    assert told.info is not None
    assert told.info.model_settings == {"max_retries": 3}


def test_the_price_is_the_providers_or_of_a_list_or_none() -> None:
    used = RequestUsage(input_tokens=1_000_000, output_tokens=10)
    said = Told(theirs.TextPart("ok"), usage=RequestUsage(input_tokens=1, output_tokens=1, cost=Decimal("0.25")))
    assert answer(said.model, asked()).usage == Usage(1, 1, usd=0.25)
    listed = FunctionModel(Told(theirs.TextPart("ok"), usage=used, provider_name="openai"), model_name="gpt-4o")
    assert answer(PydanticModel(listed), asked()).usage.usd > 0
    unknown = Told(theirs.TextPart("ok"), usage=used)
    assert answer(unknown.model, asked()).usage == Usage(1_000_000, 10)


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (UnexpectedModelBehavior("what?"), ModelError),
        (UserError("pictures are not for this model"), FatalModelError),
        (ConnectionResetError("gone"), ModelError),
        (ValueError("no JSON"), ModelError),
    ],
)
def test_errors_of_the_library_become_ours(raised: Exception, becomes: type[ModelError]) -> None:
    def fails(messages: object, info: object) -> theirs.ModelResponse:
        raise raised

    with pytest.raises(becomes, match=str(raised)) as caught:
        answer(PydanticModel(FunctionModel(fails, model_name="told")), asked())
    assert type(caught.value) is becomes
    assert caught.value.__cause__ is raised
    assert caught.value.facts == {"model": "told"}


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)


def test_nothing_else_in_agents_needs_pydantic_ai() -> None:
    program = """
import pkgutil, sys
import executus.actors.agents as agents
for module in pkgutil.iter_modules(agents.__path__):
    if module.name != "provider":
        __import__(f"executus.actors.agents.{module.name}")
assert not {"pydantic_ai", "pydantic", "openai"} & set(sys.modules)
"""
    run = python(program)
    assert run.returncode == 0, run.stderr


def test_where_pydantic_ai_is_missing_the_error_says_what_to_install() -> None:
    run = python("import sys; sys.modules['pydantic_ai'] = None; import executus.actors.agents.provider")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith("Install it: pip install 'executus[llm]'")
