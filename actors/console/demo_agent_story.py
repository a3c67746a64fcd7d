"""The conversations of the demo's agents, to be read from top to bottom: a child's stands where it was called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, assert_never

import msgspec

from executus.actors.agents.agent import AGENT
from executus.actors.agents.parts import Image, Message, Part, Text, Thinking, ToolCall, ToolResult
from executus.actors.console.demo_agent_ledger import Ledger, StoredRun
from executus.actors.console.screen import Screen

LINE_CHARS: Final = 118
_ROLE_CHARS: Final = 9


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that was said, asked for or answered. `mark` says what a kill did to it."""

    run: str
    role: str
    text: str
    depth: int = 0
    mark: str = ""


def story(ledger: Ledger, runs: dict[str, StoredRun]) -> list[Line]:
    """All of it, from the first run on."""
    return list(_of_run(ledger, runs, ledger.root, 0)) if ledger.root in runs else []


def tell(lines: list[Line], screen: Screen) -> None:
    """For people: each in one line, cut where it is long; the last one whole."""
    for line in lines[:-1]:
        _say(line, " / ".join(line.text.splitlines()), screen)
    for last in lines[-1:]:
        first, *others = last.text.splitlines() or [""]
        _say(last, first, screen)
        for text in others:
            _say(Line(last.run, "", text), text, screen)


def _say(line: Line, text: str, screen: Screen) -> None:
    head = f"{'    ' * line.depth}{line.role:<{_ROLE_CHARS}} "
    mark = f"  <- {line.mark}" if line.mark else ""
    room = LINE_CHARS - len(head) - len(mark)
    screen.say(head + (text if len(text) <= room else text[: room - 1] + "…") + mark)


def _of_run(ledger: Ledger, runs: dict[str, StoredRun], run_id: str, depth: int) -> Iterator[Line]:
    run, step = runs[run_id], 0
    for message in run.transcript:
        marks: list[str] = []
        if message.role == "assistant":
            if ledger.requests[run_id, step] > 1:
                marks.append("killed: asked again")
            step += 1
        for part in message.parts:
            role, text = _told(message, part, run.agent)
            children = _children(runs, run_id, part)
            if isinstance(part, ToolCall) and ledger.calls[run_id, part.id] > 1:
                marks.append("killed: run again")
            if any(child in kill.children for kill in ledger.kills for child in children):
                marks.append("killed: found again")
            if isinstance(part, ToolResult) and part.unknown:
                marks.append("killed: not run again")
            yield Line(run_id, role, text, depth, ", ".join(marks))
            marks.clear()
            for child in children:
                yield from _of_run(ledger, runs, child, depth + 1)


def _told(message: Message, part: Part, agent: str) -> tuple[str, str]:
    """Who, and what."""
    match part:
        case Text(text):
            return (agent if message.role == "assistant" else "asked"), text
        case Thinking(text):
            return agent, f"({text})"
        case ToolCall(_, name, arguments):
            return agent, f"-> {name} {arguments}"
        case ToolResult(name=name, text=text):
            return "", f"{name}: {text}"
        case Image(media_type=media_type):
            return "", media_type
        case _:
            assert_never(part)


def _children(runs: dict[str, StoredRun], run_id: str, part: object) -> list[str]:
    """The runs that answered a call of an agent: here each agent is called once."""
    if not isinstance(part, ToolCall) or not part.name.startswith(AGENT):
        return []
    agent = part.name.removeprefix(AGENT)
    return [child for child, run in runs.items() if child.startswith(f"{run_id}/") and run.agent == agent]
