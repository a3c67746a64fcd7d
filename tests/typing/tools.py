"""Typing example: a declared tool is a Tool, and still called as the function that it is."""

from __future__ import annotations

from typing import Any, assert_type

from executus.actors.agents.parts import Image
from executus.actors.agents.tool import Effect, Tool, ToolContext, tool
from executus.actors.agents.toolbox import Toolbox


@tool(effect="pure")
def grep(pattern: str, folder: str = ".") -> list[str]:
    """Find lines."""
    return [pattern, folder]


@tool
async def look(at: int, context: ToolContext) -> bool:
    """Look at a picture."""
    context.attach_images(Image(b""))
    context.note("looked", at)
    await context.sleep(1.0)
    return True


def send(to: str) -> None:
    """Send a mail."""


assert_type(grep("x"), list[str])
assert_type(grep("x", folder="y"), list[str])
assert_type(grep.effect, Effect)


async def called(context: ToolContext) -> None:
    """With the function's own parameters."""
    assert_type(await look(1, context), bool)


def wrong() -> None:
    """What a checker refuses."""
    grep(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    grep("x", limit=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tool(effect="safe")(send)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


plain: Tool = Tool.of(send, effect="idempotent")
assert_type(plain, Tool)
assert_type(plain.bind('{"to": "a"}'), dict[str, Any])
assert_type(Toolbox([grep, look, plain, called])["grep"], Tool)
