"""An error with what led to it, as data: causes, contexts and members of groups, each with its frames. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Final, cast

from executus.actors.outcomes import ErrorLink, escape, from_user_code, qualified_name, safe_text

MAX_LINKS: Final = 8
MAX_MEMBERS: Final = 4
"""Of a group, so many are followed."""
MAX_FRAMES: Final = 16
"""Of a traceback, so many are kept, the innermost."""


def chain_of(error: BaseException) -> tuple[ErrorLink, ...]:
    """The error first, then what led to it, each once. Never raises; no local variables, no source lines."""
    links: list[ErrorLink] = []
    seen: set[int] = set()
    waiting: list[tuple[str, BaseException]] = [("raised", error)]
    while waiting and len(links) < MAX_LINKS:
        relation, one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        links.append(_link(relation, one))
        waiting[:0] = _before(one)
    return tuple(links)


def _before(error: BaseException) -> Iterator[tuple[str, BaseException]]:
    """What Python prints above or inside it."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        yield from (("member", one) for one in group.exceptions[:MAX_MEMBERS])
    if error.__cause__ is not None:
        yield "cause", error.__cause__
    elif error.__context__ is not None and not error.__suppress_context__:
        yield "context", error.__context__


def _link(relation: str, error: BaseException) -> ErrorLink:
    frames: list[str] = []
    left_out = 0
    trace: TracebackType | None = from_user_code(error.__traceback__)
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(escape(f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}"))
        if len(frames) > MAX_FRAMES:
            del frames[0]
            left_out += 1
        trace = trace.tb_next
    return ErrorLink(relation, qualified_name(type(error)), safe_text(error), tuple(frames), left_out)
