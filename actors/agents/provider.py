"""Any model that pydantic-ai reaches, as a Model of ours: `pip install 'executus[llm]'`. No other file knows it."""
# pyright: reportMissingImports=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUnknownMemberType=false, reportUnknownParameterType=false, reportUnknownVariableType=false
# As above where pydantic-ai is not installed; where it is, its types are checked.

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, Literal

import msgspec

from executus.actors.agents.errors import FatalModelError, ModelError, RateLimited
from executus.actors.agents.model import ModelReply, ModelRequest
from executus.actors.agents.parts import Image, Message, Text, Thinking, ToolCall, ToolResult, Usage, assistant

try:
    from pydantic_ai import direct, exceptions
    from pydantic_ai import messages as theirs
    from pydantic_ai.models import Model, ModelRequestParameters, infer_model
    from pydantic_ai.settings import ModelSettings
    from pydantic_ai.tools import ToolDefinition
except ImportError as missing:
    raise ImportError(
        f"executus.actors.agents.provider needs pydantic-ai ({missing}). Install it: pip install 'executus[llm]'"
    ) from missing

WITHHELD = "(The provider's content filter withheld the answer.)"
MAY_PASS = frozenset({408, 409, 425})
"""Time-out, conflict, too early: refusals that the same request may not meet again."""
SERVER_ERRORS = 500
MESSAGE_CHARACTERS = 2_000


class PydanticModel:
    """Asks a model of pydantic-ai's: by name, as `"openai:gpt-5"`, by a function that makes one, or one made already.

    By name or function each event loop gets a model of its own, so several runtimes may ask side by side; one made
    already serves one loop at a time. An HTTP client is open while requests are under way, and closed after the last.

    `settings` are pydantic-ai's. Without `max_retries` in them the provider's library retries nothing: a rate limit
    is waited for by the run, and what else is transient restarts it from its last step. A name that is unknown, or a
    key that is missing, is an error of pydantic-ai's, here and not at the first request.
    """

    def __init__(self, model: str | Model | Callable[[], Model], *, settings: ModelSettings | None = None) -> None:
        self._settings = settings
        self._make = None if isinstance(model, Model) else model if callable(model) else lambda: infer_model(model)
        self._free = [model if isinstance(model, Model) else self._another()]
        self._lent: dict[asyncio.AbstractEventLoop, tuple[Model, int]] = {}
        self._lock = threading.Lock()

    async def request(self, request: ModelRequest, /) -> ModelReply:
        """The provider's next message. Raises RateLimited, FatalModelError, or ModelError for what may pass."""
        model = self._borrowed()
        try:
            async with _client_of(model):
                response = await direct.model_request(
                    model,
                    _history(request, model.system),
                    model_settings=self._settings_for(model),
                    model_request_parameters=_parameters(request),
                )
        except exceptions.FallbackExceptionGroup as group:
            raise _of_all([_failure(error, model.model_name) for error in group.exceptions]) from group
        except (exceptions.AgentRunError, exceptions.UserError, OSError, ValueError) as error:
            raise _failure(error, model.model_name) from error
        finally:
            self._given_back()
        return ModelReply(_message(response), _usage(response))

    def _another(self) -> Model:
        if self._make is None:
            raise FatalModelError(
                "this model of pydantic-ai's answers another event loop now, and its HTTP client belongs to that. "
                "Nothing was asked. Give PydanticModel a name or a function that makes one, then each loop has its own."
            )
        return self._make()

    def _borrowed(self) -> Model:
        loop = asyncio.get_running_loop()
        with self._lock:
            model, requests = self._lent.get(loop, (None, 0))
            if model is None:
                model = self._free.pop() if self._free else self._another()
            self._lent[loop] = model, requests + 1
            return model

    def _given_back(self) -> None:
        loop = asyncio.get_running_loop()
        with self._lock:
            model, requests = self._lent.pop(loop)
            if requests > 1:
                self._lent[loop] = model, requests - 1
            else:
                self._free.append(model)

    def _settings_for(self, model: Model) -> ModelSettings | None:
        if "max_retries" in model.unsupported_settings or "max_retries" in (model.settings or {}):
            return self._settings
        return ModelSettings(max_retries=0) | (self._settings or {})


@contextlib.asynccontextmanager
async def _client_of(model: Model) -> AsyncGenerator[None]:
    """The model's HTTP client is open meanwhile; it counts who uses it."""
    await model.__aenter__()
    try:
        yield
    finally:
        await _to_its_end(model.__aexit__(None, None, None))


async def _to_its_end(closing: Coroutine[Any, Any, object]) -> None:
    """Wait for it, also where the request is cancelled meanwhile: a client that is half closed stays open."""
    task = asyncio.ensure_future(closing)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


# --- ours to theirs --------------------------------------------------------------------------------------------------


class _Seal(msgspec.Struct, omit_defaults=True):
    """What a provider wants back with a thought, as the text that `Thinking.signature` holds."""

    provider: str | None = None
    signature: str | None = None
    id: str | None = None
    details: dict[str, Any] | None = None


def _history(request: ModelRequest, system: str) -> list[theirs.ModelMessage]:
    """What was said, with neighbours of one side in one message: some providers refuse two of them in a row."""
    history: list[theirs.ModelMessage] = []
    asked: list[theirs.ModelRequestPart] = []
    for message in request.messages:
        if message.role == "assistant":
            history += [theirs.ModelRequest(asked)] if asked else []
            history.append(theirs.ModelResponse([*_answered(message, system)]))
            asked = []
        else:
            asked += _asked(message)
    return [*history, theirs.ModelRequest(asked, instructions=request.system or None)]


def _asked(message: Message) -> Iterable[theirs.ModelRequestPart]:
    content: list[theirs.UserContent] = []
    for part in message.parts:
        match part:
            case ToolResult():
                outcome: Literal["failed", "success"] = "failed" if part.is_error else "success"
                yield theirs.ToolReturnPart(part.name, part.text, part.call_id, outcome=outcome)
            case Text():
                content.append(part.text)
            case Image():
                content.append(theirs.BinaryContent(part.data, media_type=part.media_type))
            case _:  # a thought or a call, which the user's side never holds
                pass
    match content:
        case []:
            pass
        case [str(words)]:  # as a plain string: servers that only look like OpenAI's know nothing else
            yield theirs.UserPromptPart(words)
        case _:
            yield theirs.UserPromptPart(content)


def _answered(message: Message, system: str) -> Iterable[theirs.ModelResponsePart]:
    for part in message.parts:
        match part:
            case Text():
                yield theirs.TextPart(part.text)
            case Thinking():
                seal = _opened(part.signature, system)
                yield theirs.ThinkingPart(
                    part.text,
                    id=seal.id,
                    signature=seal.signature,
                    provider_name=seal.provider,
                    provider_details=seal.details,
                )
            case ToolCall():
                yield theirs.ToolCallPart(part.name, part.arguments, part.id)
            case _:  # pictures and results are no model's words
                pass


def _opened(signature: str | None, system: str) -> _Seal:
    if signature is None:
        return _Seal()
    try:
        return msgspec.json.decode(signature, type=_Seal)
    except msgspec.DecodeError:  # not sealed here: a provider's own
        return _Seal(system, signature)


def _parameters(request: ModelRequest) -> ModelRequestParameters:
    tools = [
        ToolDefinition(
            name=tool.name, parameters_json_schema=dict(tool.parameters), description=tool.description or None
        )
        for tool in request.tools
    ]
    return ModelRequestParameters(function_tools=tools)


# --- theirs to ours --------------------------------------------------------------------------------------------------


def _message(response: theirs.ModelResponse) -> Message:
    """Its words, thoughts and calls; what ran at the provider, and files, are left out. A refusal is its words."""
    parts: list[Text | Thinking | ToolCall] = []
    for part in response.parts:
        match part:
            case theirs.TextPart() if part.content:
                parts.append(Text(part.content))
            case theirs.ThinkingPart() if part.content or part.signature:
                parts.append(Thinking(part.content, _sealed(part)))
            case theirs.ToolCallPart():
                arguments = part.args if isinstance(part.args, str) else msgspec.json.encode(part.args or {}).decode()
                parts.append(ToolCall(part.tool_call_id, part.tool_name, arguments or "{}"))
            case _:
                pass
    if response.finish_reason == "content_filter" and not any(isinstance(part, Text) for part in parts):
        parts.append(Text(str((response.provider_details or {}).get("refusal") or WITHHELD)))
    return assistant(*parts)


def _sealed(part: theirs.ThinkingPart) -> str | None:
    seal = _Seal(part.provider_name, part.signature, part.id, part.provider_details)
    return None if seal == _Seal(part.provider_name) else msgspec.json.encode(seal).decode()


def _usage(response: theirs.ModelResponse) -> Usage:
    used, usd = response.usage, response.usage.cost
    if usd is None:
        with contextlib.suppress(LookupError, ValueError, AssertionError):  # no price list knows it
            usd = response.cost().total_price
    return Usage(used.input_tokens, used.output_tokens, usd=float(usd or 0))


def _failure(error: Exception, name: str) -> ModelError:
    """What a run makes of it: waits, restarts, or ends."""
    facts: dict[str, str | int] = {"model": name}
    said = f"{type(error).__name__}: {error}"[:MESSAGE_CHARACTERS]
    match error:
        case exceptions.ModelHTTPError(status_code=status):
            facts["status"] = status
        case _:
            pass
    match error:
        case exceptions.ModelQuotaExceededError() | exceptions.UserError():  # some say it with 429: waiting is no help
            return FatalModelError(f"model {name!r} will not answer this request. {said}", **facts)
        case exceptions.ModelRateLimitError() | exceptions.ModelHTTPError(status_code=429):
            return RateLimited(f"model {name!r} wants to be asked later. {said}", error.retry_after, **facts)
        case exceptions.ModelHTTPError(status_code=status) if status in MAY_PASS or status >= SERVER_ERRORS:
            return ModelError(f"model {name!r} failed. {said}", **facts)
        case exceptions.ModelHTTPError() | exceptions.ModelRequestRejectedError():
            return FatalModelError(f"model {name!r} will not answer this request. {said}", **facts)
        case _:  # time-outs, broken connections, answers that are none
            return ModelError(f"model {name!r} failed. {said}", **facts)


def _of_all(failures: list[ModelError]) -> ModelError:
    """Of all the models that were tried in turn: what gives the run most hope."""
    limited = [failure for failure in failures if isinstance(failure, RateLimited)]
    if transient := [failure for failure in failures if type(failure) is ModelError]:
        return transient[0]
    return min(limited, key=lambda failure: failure.retry_after_s or 0.0) if limited else failures[0]
