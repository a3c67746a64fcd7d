"""What a transcript is made of. Our own types, because transcripts outlive any provider's library.

`gc=False`, here and in the other data of agents: what never changes holds no cycle, and 1,000 agents hold 100,000 of
these. With them tracked the garbage collector took a seventh of the time (benchmarks/agents.py).
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Text(msgspec.Struct, frozen=True, tag="text", gc=False):
    """Words."""

    text: str


class Image(msgspec.Struct, frozen=True, tag="image", gc=False):
    """A picture as its file's bytes."""

    data: bytes
    media_type: str = "image/png"


class Thinking(msgspec.Struct, frozen=True, tag="thinking", gc=False):
    """What a model thought before it spoke; some providers want it back unchanged, with their signature."""

    text: str
    signature: str | None = None


class ToolCall(msgspec.Struct, frozen=True, tag="tool_call", gc=False):
    """A model asks for a tool. `arguments` is the JSON text as the model wrote it, valid or not."""

    id: str
    name: str
    arguments: str = "{}"


class ToolResult(msgspec.Struct, frozen=True, tag="tool_result", gc=False):
    """What became of a call. `unknown` where it was interrupted and may or may not have happened."""

    call_id: str
    name: str
    text: str
    is_error: bool = False
    unknown: bool = False


Part = Text | Image | Thinking | ToolCall | ToolResult
Role = Literal["user", "assistant", "tool"]
Origin = Literal["prompt", "model", "tool", "steer", "follow_up", "nudge", "attached"]


class Message(msgspec.Struct, frozen=True, gc=False):
    """One entry of a transcript. `origin` says how it came to be there."""

    role: Role
    parts: tuple[Part, ...]
    origin: Origin

    @property
    def text(self) -> str:
        """Its words, those of results included, without thoughts."""
        return "".join([part.text for part in self.parts if isinstance(part, (Text, ToolResult))])

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls it asks for."""
        return tuple([part for part in self.parts if isinstance(part, ToolCall)])


def storable(text: str) -> str:
    """The text, with lone surrogates escaped, which UTF-8 cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def user(text: str, images: tuple[Image, ...] = (), *, origin: Origin = "prompt") -> Message:
    """A message to the model."""
    words = (Text(storable(text)),) if text else ()
    return Message("user", (*words, *images), origin)


def assistant(*parts: Text | Thinking | ToolCall) -> Message:
    """A message of the model's."""
    return Message("assistant", parts, "model")


def result(of: ToolResult) -> Message:
    """The message that carries a call's result."""
    return Message("tool", (of,), "tool")


class Usage(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What was used, so far or by one request. `usd` where prices are known. Adds up."""

    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    tool_calls: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        """Both ways."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.requests + other.requests,
            self.tool_calls + other.tool_calls,
            self.usd + other.usd,
        )


NOTHING = Usage()
