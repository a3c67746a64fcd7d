"""The demo's agents, their tools, and what their model says: a script that goes on from what it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from executus.actors.agents import (
    Agent,
    Agents,
    Invocation,
    Model,
    ModelRequest,
    Reply,
    Tool,
    ToolContext,
    ToolResult,
    call,
    say,
    tool,
)
from executus.actors.console.demo_agent_library import Claim, Finding, Hits, Library, report_of

T = TypeVar("T")

LEAD: Final = Agent(
    id="lead",
    system="You answer a question about a folder. Ask the librarian, have the editor check it, write one report.",
    tools=("list_files", "write_report", "read_report"),
    palette=("agent__librarian", "agent__editor"),
    keep_transcript=True,
)
LIBRARIAN: Final = Agent(
    id="librarian",
    description="Finds where a text stands in the files.",
    system="You find things. Count them, then quote the first of each.",
    tools=("grep", "read_line"),
    keep_transcript=True,
)
EDITOR: Final = Agent(
    id="editor",
    description="Compares quotations with the files.",
    system="You believe nothing. Read every line that is quoted.",
    tools=("read_line",),
    keep_transcript=True,
)


class Watch(Protocol):
    """Is told when a tool is called, and when an effect has taken place whose result is not stored yet."""

    def called(self, context: ToolContext, name: str) -> None:
        """A tool begins. May not return."""
        ...

    def done(self, context: ToolContext, name: str) -> None:
        """A tool that must not run twice has done its work. May not return."""
        ...


def agents(library: Library, report: Path, model: Model, watch: Watch) -> Agents:
    """The house of the demo's agents."""
    return Agents([LEAD, LIBRARIAN, EDITOR], models={"default": model}, tools=tools(library, report, watch), audit=None)


def question(library: Library, text: str) -> Invocation:
    """What the lead is asked."""
    prompt = (
        f"Where in {library.folder} does {text!r} stand most often? Quote the first line of each, and write it down."
    )
    return Invocation(prompt=prompt, caller="executus demo", inputs=(("text", text),))


# --- tools ------------------------------------------------------------------------------------------------------------


def tools(library: Library, report: Path, watch: Watch) -> list[Tool]:
    """Real ones: they read these files, and `write_report` writes one."""

    @tool(effect="pure")
    def list_files(context: ToolContext) -> dict[str, int]:
        """Count the files."""
        watch.called(context, "list_files")
        return {"files": len(library.files)}

    @tool(effect="pure")
    def grep(text: str, context: ToolContext) -> Hits:
        """Count the lines of all files in which a text stands."""
        watch.called(context, "grep")
        return library.grep(text)

    @tool(effect="pure")
    def read_line(file: str, number: int, context: ToolContext) -> str:
        """Read one line of a file."""
        watch.called(context, "read_line")
        return library.line(file, number)

    @tool(effect="unsafe")
    def write_report(text: str, context: ToolContext) -> str:
        """Append to the report. Called twice, it would stand there twice."""
        watch.called(context, "write_report")
        with report.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        watch.done(context, "write_report")
        return f"{len(text)} characters written"

    @tool(effect="pure")
    def read_report(context: ToolContext) -> str:
        """Read the report as it is."""
        watch.called(context, "read_report")
        return report.read_text(encoding="utf-8") if report.exists() else ""

    return [list_files, grep, read_line, write_report, read_report]


# --- what the model says ----------------------------------------------------------------------------------------------


def script(request: ModelRequest) -> Reply:
    """What answers a request: by whose it is, and by the results that it shows."""
    results = [part for message in request.messages for part in message.parts if isinstance(part, ToolResult)]
    match request.info.subject:
        case "lead":
            return _lead(request, results)
        case "librarian":
            return _librarian(_asked(request), results)
        case _:
            return _editor(_asked(request), results)


def _lead(request: ModelRequest, results: list[ToolResult]) -> Reply:
    text = str(dict(request.info.inputs)["text"])
    by_name = {result.name: result for result in results}
    if "list_files" not in by_name:
        return say("First, how much there is.") + call("list_files")
    if "agent__librarian" not in by_name:
        return call("agent__librarian", prompt=text)
    finding = _decoded(by_name["agent__librarian"], Finding)
    if "agent__editor" not in by_name:
        return call("agent__editor", prompt=msgspec.json.encode(finding.claims).decode())
    files = _decoded(by_name["list_files"], dict[str, int])["files"]
    report = report_of(text, files, finding, right=_decoded(by_name["agent__editor"], int))
    match results[-1]:
        case ToolResult(name="write_report", unknown=True):
            return say("Nobody knows whether it was written. I look before I write again.") + call("read_report")
        case ToolResult(name="write_report", is_error=False):
            return say(report)
        case ToolResult(name="read_report", text=written) if report in written:
            return say(report)
        case _:
            return call("write_report", text=report)


def _librarian(text: str, results: list[ToolResult]) -> Reply:
    if not results:
        return call("grep", text=text)
    hits = _decoded(results[0], Hits)
    quotes = [result.text for result in results[1:]]
    if len(quotes) < len(hits.most):
        reading, *others = (call("read_line", file=place.file, number=place.first) for place in hits.most)
        return sum(others, reading)
    claims = tuple(Claim(place, quote) for place, quote in zip(hits.most, quotes, strict=True))
    return say(msgspec.json.encode(Finding(hits, claims)).decode())


def _editor(asked: str, results: list[ToolResult]) -> Reply:
    claims = msgspec.json.decode(asked, type=tuple[Claim, ...])
    if len(results) < len(claims):
        reading, *others = (call("read_line", file=claim.place.file, number=claim.place.first) for claim in claims)
        return sum(others, reading)
    right = sum(claim.quote == result.text for claim, result in zip(claims, results, strict=True))
    return say(str(right))


def _asked(request: ModelRequest) -> str:
    return request.messages[0].text


def _decoded(result: ToolResult, kind: type[T]) -> T:
    return msgspec.json.decode(result.text, type=kind)
