"""Calls of tools: what a model asked for becomes results that it can read."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import inspect
import itertools
import json
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any, Final, Literal, TypeVar, assert_never, cast

import msgspec

from executus.actors.agents.agent import AGENT, SKILL
from executus.actors.agents.errors import ToolError
from executus.actors.agents.parts import ToolCall, ToolResult, storable
from executus.actors.agents.tool import Effect, Tool, ToolContext
from executus.actors.agents.toolbox import Toolbox
from executus.actors.outcomes import escape, safe_text, traceback_text

T = TypeVar("T")

RunSync = Callable[..., Awaitable[Any]]
"""Calls a function on a worker thread: `RunContext.run_sync`."""
Kind = Literal["palette", "unsafe", "other"]

NOTHING_RETURNED: Final = "ok"
"""The result of a tool that returns None: providers do not all take an empty one."""
MAX_ERRORS_SHOWN: Final = 10
MAX_TOGETHER: Final = 16
"""Calls of tools that one callback makes."""


def effect_after_interruption(effect: Effect) -> Literal["run_again", "unknown"]:
    """What becomes of a call that had begun when its process died: a keyed one runs again with the key it had."""
    match effect:
        case "pure" | "idempotent" | "keyed":
            return "run_again"
        case "unsafe":
            return "unknown"
        case _:
            assert_never(effect)


def tool_key(life: str, place: int, index: int, call: ToolCall) -> str:
    """The idempotency key of a call: of a conversation's life, of the message at this place in it, of a place in that.

    The same for a call that is repeated after a crash, also where the model was asked again and gave the same answer;
    another for every other call.
    """
    return _key(life, str(place), str(index), call.name, call.arguments)


def function_key(life: str, phase: int, name: str) -> str:
    """The idempotency key of the function of a phase: the same whenever it is repeated."""
    return _key(life, "phase", str(phase), name)


def _key(*parts: str) -> str:
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    framed = b"".join([piece for data in encoded for piece in (len(data).to_bytes(8, "big"), data)])
    return hashlib.blake2b(framed, digest_size=20).hexdigest()


def kind_of(call: ToolCall, toolbox: Toolbox) -> Kind:
    """How a call is gone about. One of a tool that there is not is harmless: it gets an error."""
    if call.name.startswith((AGENT, SKILL)):
        return "palette"
    return "unsafe" if call.name in toolbox and toolbox[call.name].effect == "unsafe" else "other"


def are_all_pure(calls: Sequence[ToolCall], toolbox: Toolbox) -> bool:
    """Whether there are calls, and all of them are of tools that only read and compute."""
    return bool(calls) and all(call.name in toolbox and toolbox[call.name].effect == "pure" for call in calls)


def groups(calls: Sequence[ToolCall], toolbox: Toolbox) -> Iterator[tuple[ToolCall, ...]]:
    """Calls in their order, cut into what one callback does: an unsafe one alone, else as many of a kind as follow.

    Of tools at most `MAX_TOGETHER`: between two groups a snapshot falls, and limits are looked at.
    """
    most = {"unsafe": 1, "palette": len(calls), "other": MAX_TOGETHER}
    for kind, of_a_kind in itertools.groupby(calls, lambda call: kind_of(call, toolbox)):
        while group := tuple(itertools.islice(of_a_kind, most[kind])):
            yield group


async def run_group(
    calls: Sequence[ToolCall],
    toolbox: Toolbox,
    offered: Collection[str],
    context_of: Callable[[ToolCall], ToolContext],
    *,
    run_sync: RunSync,
    result_chars: int,
) -> tuple[ToolResult, ...]:
    """The results of a group's calls, in their order.

    Pure ones that follow each other run side by side, others one after the other. A tool that is not among those
    `offered` is not called. If one is cancelled, or raises what is no Exception, the others are cancelled and waited
    for, then that is raised.
    """

    def is_harmless(call: ToolCall) -> bool:
        return not is_there(call) or toolbox[call.name].effect == "pure"

    def is_there(call: ToolCall) -> bool:
        return call.name in offered and call.name in toolbox

    async def one(call: ToolCall) -> ToolResult:
        if not is_there(call):
            there = ", ".join(name for name in offered if name in toolbox) or "none"
            return _cut_result(call, f"There is no tool {call.name!r}. There are: {there}", result_chars, is_error=True)
        return await answer(toolbox[call.name], call, context_of, run_sync, result_chars)

    if len(calls) == 1:
        return (await one(calls[0]),)
    results: list[ToolResult] = []
    for side_by_side, batch in itertools.groupby(calls, is_harmless):
        makers = [functools.partial(one, call) for call in batch]
        if side_by_side and len(makers) > 1:
            results.extend(await _together(makers))
        else:
            for make in makers:
                results.append(await make())  # noqa: PERF401 - one after the other
    return tuple(results)


async def answer(
    tool: Tool, call: ToolCall, context_of: Callable[[ToolCall], ToolContext], run_sync: RunSync, result_chars: int
) -> ToolResult:
    """Call the tool and put what comes of it into words; its context, made for a tool that takes one, is over then.

    A text is the result as it is, None is "ok", anything else is JSON. An Exception, of arguments that do not fit
    too, is an error result and a line in the log. Raises what is no Exception.
    """
    context: ToolContext | None = None
    try:
        arguments = tool.bind(call.arguments)
        if tool.signature.context is not None:
            arguments[tool.signature.context] = context = context_of(call)
        if tool.is_async:
            value = await tool.function(**arguments)
        else:
            # In one argument, as a tool may have parameters of any name.
            value = await run_sync(functools.partial(_call, tool.function, arguments))
            if inspect.isawaitable(value):  # a coroutine function behind a plain wrapper
                value = await value
        return _cut_result(call, _text_of(value), result_chars)
    except Exception as error:  # noqa: BLE001 - a tool may raise anything; the model is told
        with contextlib.suppress(Exception):  # the log's sink may raise, too
            trace = "\n".join(map(escape, traceback_text(error).splitlines()))
            log = (context or context_of(call)).log
            log.info("a tool failed", tool=tool.name, call_id=call.id, error=safe_text(error), exception=trace)
        return _cut_result(call, _words_of(error), result_chars, is_error=True)
    finally:
        if context is not None:
            context.end()


def _call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        return function(**arguments)
    except StopIteration as error:  # no future takes one, and whoever awaits it would wait for ever
        raise RuntimeError("the tool raised StopIteration") from error


def _cut_result(call: ToolCall, text: str, result_chars: int, *, is_error: bool = False) -> ToolResult:
    text = storable(text)
    if len(text) > result_chars:
        text = f"{text[:result_chars]}… [cut: {result_chars} of {len(text)} characters]"
    return ToolResult(call.id, call.name, text, is_error)


def _text_of(value: object) -> str:
    if isinstance(value, str):
        return str.__str__(value)  # not what a subclass makes of it
    if value is None:
        return NOTHING_RETURNED
    try:
        try:
            return msgspec.json.encode(value).decode()
        except UnicodeEncodeError:  # a lone surrogate somewhere, as in names of files; made storable with the text
            return json.dumps(msgspec.to_builtins(value, str_keys=True), ensure_ascii=False)
    except Exception as error:
        raise ToolError(
            f"The call took place, but what it returned, of type {type(value).__qualname__}, cannot be put into JSON: "
            f"{safe_text(error)}"
        ) from error


def _words_of(error: Exception) -> str:
    """What the model is told: a ToolError's own words, of others the type too, of a group each one."""
    if leaves := list(itertools.islice(_leaves(error), MAX_ERRORS_SHOWN)):
        shown = (f"- {_words_of(one)}" for one in leaves)
        return "\n".join([f"{type(error).__name__}: {safe_text(error)}", *shown])
    if isinstance(error, ToolError):
        with contextlib.suppress(Exception):
            if text := str(error):
                return text
    text = safe_text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _leaves(error: Exception) -> Iterator[Exception]:
    """The errors that a group comes to; none of what is no group."""
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, ExceptionGroup):
            waiting.extend(reversed(cast("ExceptionGroup[Exception]", one).exceptions))
        elif one is not error:
            yield one


async def _together(makers: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Await what each one makes, side by side. What one raises ends the others first, and is raised then."""
    escaped: list[BaseException] = []
    results: list[T] = []
    tasks: list[asyncio.Task[T | None]] = []

    async def contained(make: Callable[[], Awaitable[T]]) -> T | None:
        # Never out of the task: a SystemExit there would end the host's event loop.
        try:
            return await make() if not escaped else None
        except BaseException as error:  # noqa: BLE001 - same
            escaped.append(error)
            for task in tasks:
                if task is not asyncio.current_task() and not task.cancelling():  # once: it may be cleaning up
                    task.cancel()
            return None

    async with asyncio.TaskGroup() as group:
        for make in makers:
            tasks.append(group.create_task(contained(make)))  # noqa: PERF401 - an eager task looks for those before it
    if escaped:
        raise next((error for error in escaped if not isinstance(error, asyncio.CancelledError)), escaped[0])
    for task in tasks:
        result = task.result()
        assert result is not None
        results.append(result)
    return results
