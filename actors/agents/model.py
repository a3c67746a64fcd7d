"""The port to language models: messages and tools in, a message and its usage out."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping
from typing import Any, Final, Protocol

import msgspec

from executus.actors.agents.agent import RunInfo
from executus.actors.agents.errors import FatalModelError, InvalidAgent, ModelError
from executus.actors.agents.parts import Message, Text, Thinking, ToolCall, Usage, storable
from executus.actors.outcomes import safe_text

MAX_REPLY_BYTES: Final = 4 * 1024 * 1024
"""Of a message of the model's: a record holds 16 MiB, and a million tokens are less than this."""


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool as a model sees it. `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, object]


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request. `messages` is a legal transcript that ends with the user's or a tool's word."""

    system: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    info: RunInfo
    step: int
    """Which request of this conversation it is, from 0."""


class ModelReply(msgspec.Struct, frozen=True, gc=False):
    """The model's message, of text, thoughts and calls, and what it took. `usage.requests` is counted by the caller."""

    message: Message
    usage: Usage = Usage()


_decoder: Final = msgspec.msgpack.Decoder(ModelReply)
_SAID: Final = (Text, Thinking, ToolCall)


def checked_reply(given: Any) -> ModelReply:
    """What a model returned, if a transcript can hold it; lone surrogates in it are escaped.

    Types are checked here, as a Struct does not: a state with a number for a text could be saved, and never be loaded.
    Raises FatalModelError for what is no reply, ModelError for one that is too long.
    """
    try:
        if not isinstance(given, ModelReply):
            raise TypeError(f"not {safe_text(given)[:80]}")
        try:
            data = msgspec.msgpack.encode(given)
        except UnicodeEncodeError:
            data = msgspec.msgpack.encode(_storable(given))
        reply = _decoder.decode(data)
        if reply.message.role != "assistant" or not all(isinstance(part, _SAID) for part in reply.message.parts):
            raise TypeError("its message is not one of text, thoughts and calls")
    except Exception as error:
        raise FatalModelError(
            f"a model must return a ModelReply with a message of the assistant's: {safe_text(error)}"
        ) from error
    if len(data) > MAX_REPLY_BYTES:
        raise ModelError(f"the model's reply takes {len(data)} bytes, the most is {MAX_REPLY_BYTES}")
    return reply


def _storable(reply: ModelReply) -> ModelReply:
    replace = msgspec.structs.replace
    parts = (
        replace(part, **{name: storable(text) for name, text in msgspec.structs.asdict(part).items() if _is_text(text)})
        for part in reply.message.parts
    )
    return replace(reply, message=replace(reply.message, parts=tuple(parts)))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


class Model(Protocol):
    """Answers requests; `def` is called on a worker thread and may block, `async def` on the event loop.

    Raises RateLimited to be asked again later within the same step, FatalModelError to end the run; anything else
    restarts the run, with backoff, from its last completed step. One model serves many runs at once.
    """

    def request(self, request: ModelRequest, /) -> ModelReply | Awaitable[ModelReply]:
        """The next message."""
        ...


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """A model under a name: how much it can see, and what it costs. Prices are for a million tokens."""

    model: Model
    context_tokens: int = 128_000
    usd_in: float = 0.0
    usd_out: float = 0.0
    blocks: bool = False
    """Found out: whether the model's `request` is a plain function, which is called on a worker thread."""

    def __post_init__(self) -> None:
        given: Any = self.model
        if isinstance(given, type) or not callable(getattr(given, "request", None)):
            raise InvalidAgent(
                f"a model is an object with a method `request`, not {safe_text(given)[:80]}. "
                "Of a provider's: executus.actors.agents.provider.PydanticModel('openai:…')"
            )
        msgspec.structs.force_setattr(self, "blocks", not inspect.iscoroutinefunction(self.model.request))

    def priced(self, usage: Usage) -> Usage:
        """The usage of one request, with its price where the model did not say it."""
        usd = usage.usd or (usage.input_tokens * self.usd_in + usage.output_tokens * self.usd_out) / 1e6
        return msgspec.structs.replace(usage, requests=1, usd=usd)
