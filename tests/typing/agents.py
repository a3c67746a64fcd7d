"""Typing example: agents are started on both runtimes, asked and steered; models, tools, critics and audits of one's own."""

from __future__ import annotations

from typing import assert_type

from executus.actors import AsyncRunHandle, AsyncRuntime, RunHandle, Runtime, RunView
from executus.actors.agents import (
    Agent,
    AgentResult,
    Agents,
    AuditEntry,
    Budget,
    FollowUp,
    Invocation,
    Message,
    ModelReply,
    ModelRequest,
    Phase,
    PhaseContext,
    PhaseResult,
    Reply,
    RunInfo,
    ScriptedModel,
    Steer,
    Text,
    Tier,
    Verdict,
    Watch,
    assistant,
    call,
    say,
    think,
    tool,
)


class Echo:
    """A model of one's own that blocks."""

    def request(self, request: ModelRequest, /) -> ModelReply:
        """The same again."""
        return ModelReply(assistant(Text(request.messages[-1].text)))


class AsyncEcho:
    """And one that does not."""

    async def request(self, request: ModelRequest, /) -> ModelReply:
        """The same again."""
        return ModelReply(assistant(Text(request.messages[-1].text)))


class Patient:
    """A critic that says nothing."""

    every_s = 5.0
    hard_deadline_s = None

    def judge(self, watch: Watch, /) -> Verdict | None:
        """Nothing."""
        assert_type(watch.info, RunInfo)
        return None


class Printed:
    """An audit."""

    def record(self, entry: AuditEntry, /) -> None:
        """Print it."""
        print(entry.info.run_id)


class Newest:
    """A compactor."""

    threshold = 0.5

    def compact(self, messages: tuple[Message, ...], limit_tokens: int, info: RunInfo, /) -> tuple[Message, ...]:
        """All of it."""
        return messages if limit_tokens else ()


@tool(effect="pure")
def read(file: str) -> str:
    """Read."""
    return file


def count(context: PhaseContext) -> str:
    """A phase."""
    return str(len(context.outputs))


async def count_later(context: PhaseContext) -> str:
    """A phase that waits."""
    return context.phase


def script(request: ModelRequest) -> Reply:
    """What answers."""
    return think("Hm.") + say("Yes.") + call("read", file=str(request.step))


def plain(file: str) -> None:
    """A tool that was not declared."""


agents = Agents(
    [Agent(id="a", tools=("read",), phases=(Phase(name="one"), Phase(name="two", function="count")))],
    models={
        "default": Echo(),
        "scripted": ScriptedModel(script),
        "other": Tier(model=AsyncEcho(), usd_in=1.0),
        "list": ScriptedModel([say("a")]),
    },
    tools=[read, plain],
    functions={"count": count, "later": count_later},
    critic=Patient(),
    audit=Printed(),
    compactor=Newest(),
    durability=lambda info: "none" if info.caller == "ping" else "async",
)


def started(runtime: Runtime) -> None:
    """On threads."""
    run = agents.start(runtime, "a", "Go.", run_id="r", if_exists="return", budget=Budget(tokens=10))
    assert_type(run, RunHandle[AgentResult])
    result = run.result()
    assert_type(result, AgentResult)
    assert_type(result.output, str)
    assert_type(result.phases, tuple[PhaseResult, ...])
    run.send(Steer("Hurry."))
    run.tell(FollowUp("And then?"))
    views = runtime.runs(label="agent=a")
    assert_type(views, list[RunView])


async def started_there(runtime: AsyncRuntime) -> None:
    """On a loop."""
    asked = Invocation(prompt="Go.", inputs={"audience": "children", "n": 3})
    run = await agents.start(runtime, "a", asked, first=Steer("Hurry."), first_id="1")
    assert_type(run, AsyncRunHandle[AgentResult])
    assert_type(await run, AgentResult)


def wrong(runtime: Runtime) -> None:
    """What a checker refuses."""
    agents.start(runtime, "a", 7)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    Agents([], models={"default": read})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    Phase(name="x", resume="never")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
