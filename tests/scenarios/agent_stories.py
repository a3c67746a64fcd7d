"""Agents whose every move can be watched and stopped: one conversation, a pipeline in both resume modes, one that delegates.

The model answers by the step of its conversation alone. Tools leave a line for each effect, and what they are asked to
do is another thing each time, so that a line tells which call it was.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from executus.actors.agents import (
    Agent,
    AgentRun,
    Agents,
    FatalModelError,
    FollowUp,
    ModelReply,
    ModelRequest,
    Phase,
    PhaseContext,
    PipelineRun,
    ScriptedModel,
    Steer,
    ToolContext,
    ToolResult,
    call,
    fail,
    say,
    tool,
)
from executus.actors.agents.parts import Message
from executus.actors.agents.ports import Ports
from executus.actors.agents.transcript import problems
from executus.actors.run import ChildEnded, Factory, WaitExpired

Said = Steer | FollowUp | ChildEnded | WaitExpired

UNSAFE: Final = frozenset({"launch", "fire"})
KEYED: Final = frozenset({"pay", "tally"})
TOOLS: Final = ("look", "glance", "put", "pay", "launch", "fire")
STEERS: Final = ("Mind the dog.", "And then?")
"""What is said to each root run, durably: a Steer, and a FollowUp."""


class Effect(msgspec.Struct, frozen=True):
    """One thing that was done to the world."""

    run_id: str
    tool: str
    what: str
    key: str
    attempt: int
    pid: int


class EffectLog:
    """The world: a file that outlives every process. A line is on the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, effect: Effect) -> None:
        os.write(self._file, msgspec.json.encode(effect) + b"\n")
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    @staticmethod
    def read(path: Path) -> list[Effect]:
        return [msgspec.json.decode(line, type=Effect) for line in path.read_bytes().splitlines()]


class Stage(Protocol):
    """Where a story is played: it hears of each labelled point, and may never let a run go on from there."""

    async def reach(self, run_id: str, label: str) -> None: ...

    def reach_blocking(self, run_id: str, label: str) -> None: ...

    def tell(self, kind: str, run_id: str, *facts: Any) -> None: ...

    async def send(self, run_id: str, message: Steer | FollowUp, message_id: str) -> None: ...

    def effect(self, run_id: str, tool: str, what: str, key: str) -> None: ...


# --- the stories ------------------------------------------------------------------------------------------------------

SCRIPTS: Final[Mapping[str, Sequence[Any]]] = {
    "single": (
        call("look", what="a") + call("glance", what="b") + call("put", what="c"),
        call("pay", what="d") + call("launch", what="e"),
        call("launch", what="f") + call("fire", what="g") + call("pay", what="h"),
        call("glance", what="i"),
        None,
        None,
    ),
    "research": (call("look", what="a") + call("pay", what="b"), call("launch", what="c"), None),
    "gamble": (call("put", what="d"), fail(FatalModelError("the dice are gone"), times=None)),
    "write": (call("glance", what="e") + call("fire", what="f"), call("pay", what="g"), None, None),
    "chief": (
        call("glance", what="a") + call("agent__digger", prompt="x") + call("agent__digger", prompt="y"),
        call("launch", what="b") + call("agent__digger", prompt="z"),
        None,
        None,
    ),
    "digger": (call("pay", what="p") + call("fire", what="q"), None),
}
"""By system prompt. None: the words that sum up what was done."""

SENT_AT: Final[Mapping[tuple[str, int], tuple[Steer | FollowUp, ...]]] = {
    ("single", 1): (Steer(STEERS[0]), FollowUp(STEERS[1])),
    ("research", 1): (Steer(STEERS[0]),),
    ("write", 0): (FollowUp(STEERS[1]),),
    ("chief", 0): (Steer(STEERS[0]), FollowUp(STEERS[1])),
}
"""What is said to a run before the model answers this step of the conversation with that system prompt."""


def _phases(resume: Any) -> tuple[Phase, ...]:
    return (
        Phase(name="research", system="research", prompt="Find ${prompt}", resume=resume),
        Phase(name="tally", function="tally", prompt="Tally ${research}", resume=resume),
        Phase(name="gamble", system="gamble", optional=True, resume=resume),
        Phase(name="write", system="write", prompt="From ${research} and ${tally}", resume=resume),
    )


AGENTS: Final = (
    Agent(id="single", system="single", tools=TOOLS, keep_transcript=True),
    Agent(id="pipeline", tools=TOOLS, phases=_phases("step"), keep_transcript=True),
    Agent(id="anew", tools=TOOLS, phases=_phases("phase"), keep_transcript=True),
    Agent(id="chief", system="chief", tools=TOOLS, palette=("agent__digger",), keep_transcript=True),
    Agent(id="digger", system="digger", tools=TOOLS, keep_transcript=True),
)
PHASES: Final = ("research", "tally", "gamble", "write")
STORIES: Final = ("single", "pipeline", "anew", "chief")


def summed_up(messages: Sequence[Message]) -> str:
    """What a conversation ends with: the calls that it made, in order, and what was said to it."""
    answered = {part.call_id for message in messages for part in message.parts if isinstance(part, ToolResult)}
    made = [f"{one.name}{one.arguments}" for message in messages for one in message.calls if one.id in answered]
    heard = sorted(message.text for message in messages if message.origin in {"steer", "follow_up"})
    asked = [message.text for message in messages if message.origin == "prompt"]
    return " | ".join([*asked, *made, *heard])


def what_is_wrong(messages: Sequence[Message]) -> list[str]:
    """What a provider would refuse in this, and what was said once and is heard twice."""
    said = Counter(message.text for message in messages if message.origin in {"steer", "follow_up"})
    return [*problems(messages), *(f"{text!r} is heard {count} times" for text, count in said.items() if count > 1)]


def unknown_in(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """The calls, by tool and by what they were to do, whose outcome the model is told to be unknown."""
    calls = {one.id: one for message in messages for one in message.calls}
    results = [part for message in messages for part in message.parts if isinstance(part, ToolResult)]
    return [
        (one.name, msgspec.json.decode(calls[one.call_id].arguments)["what"])
        for one in results
        if one.unknown and one.call_id in calls
    ]


class StoryModel:
    """Follows the script of the conversation's system prompt, and says at which point of a request it is."""

    def __init__(self, stage: Stage, pause_s: float) -> None:
        self._stage = stage
        self._pause_s = pause_s
        self._scripted = ScriptedModel(self._entry, keep=1)

    async def request(self, request: ModelRequest, /) -> ModelReply:
        stage, run_id, who, step = self._stage, request.info.run_id, request.system, request.step
        await stage.reach(run_id, f"model {who} {step} before")
        stage.tell("asked", run_id, who, step)
        for wrong in what_is_wrong(request.messages):
            stage.tell("wrong", run_id, f"{who} {step}: {wrong}")
        for tool_name, what in unknown_in(request.messages):
            stage.tell("unknown", run_id, tool_name, what)
        for message in SENT_AT.get((who, step), ()):
            await stage.send(run_id, message, type(message).__name__)
        await asyncio.sleep(self._pause_s)
        await stage.reach(run_id, f"model {who} {step} during")
        reply = await self._scripted.request(request)
        await stage.reach(run_id, f"model {who} {step} after")
        return reply

    @staticmethod
    def _entry(request: ModelRequest) -> Any:
        script = SCRIPTS[request.system]
        if request.step + 1 == len(script) and isinstance(script[-1], type(fail(ValueError()))):
            return (script[-1], say("never"))
        entry = script[request.step]
        return say(summed_up(request.messages)) if entry is None else entry


def tools_on(stage: Stage, pause_s: float) -> list[Any]:
    """One of each effect, on threads and on the loop."""

    def blocking(context: ToolContext, name: str, what: str) -> str:
        run_id = context.info.run_id
        stage.reach_blocking(run_id, f"tool {name} {what} before")
        stage.effect(run_id, name, what, context.idempotency_key)
        stage.reach_blocking(run_id, f"tool {name} {what} inside")
        return f"{name} {what}: done"

    async def on_loop(context: ToolContext, name: str, what: str) -> str:
        run_id = context.info.run_id
        await stage.reach(run_id, f"tool {name} {what} before")
        await asyncio.sleep(pause_s)
        stage.effect(run_id, name, what, context.idempotency_key)
        await stage.reach(run_id, f"tool {name} {what} inside")
        return f"{name} {what}: done"

    @tool(effect="pure")
    def look(what: str, context: ToolContext) -> str:
        """Look at something."""
        return blocking(context, "look", what)

    @tool(effect="pure")
    async def glance(what: str, context: ToolContext) -> str:
        """Look at something, on the loop."""
        return await on_loop(context, "glance", what)

    @tool(effect="idempotent")
    async def put(what: str, context: ToolContext) -> str:
        """Put something where it belongs."""
        return await on_loop(context, "put", what)

    @tool(effect="keyed")
    async def pay(what: str, context: ToolContext) -> str:
        """Pay for something, once for each key."""
        return await on_loop(context, "pay", what)

    @tool(effect="unsafe")
    async def launch(what: str, context: ToolContext) -> str:
        """Launch something, on the loop. There is no way back."""
        return await on_loop(context, "launch", what)

    @tool(effect="unsafe")
    def fire(what: str, context: ToolContext) -> str:
        """Fire something, on a thread. There is no way back."""
        return blocking(context, "fire", what)

    return [look, glance, put, pay, launch, fire]


def house_on(stage: Stage, pause_s: float = 0.0) -> Agents:
    """Everything that the stories need."""

    def tally(context: PhaseContext) -> str:
        run_id = context.info.run_id
        stage.reach_blocking(run_id, "function tally before")
        stage.tell("asked", run_id, "tally", 0)
        stage.effect(run_id, "tally", context.phase, context.idempotency_key)
        stage.reach_blocking(run_id, "function tally inside")
        return f"{len(context.prompt)} letters"

    return Agents(
        AGENTS,
        models={"default": StoryModel(stage, pause_s)},
        tools=tools_on(stage, pause_s),
        functions={"tally": tally},
        audit=None,
    )


# --- the behaviours, with a point at each boundary ---------------------------------------------------------------------


class Watched:
    """A point before and behind each callback: at the one the state before it stands, at the other nothing is saved."""

    stage: Stage
    _count = 0

    async def at_each_end(self, name: str, state: Any, work: Callable[[], Awaitable[Any]]) -> Any:
        context: Any = self.context  # type: ignore[attr-defined]
        run_id, self._count = context.run_id, self._count + 1
        label = f"callback {self._count}"
        if state is not None:
            talk = state.conversation
            self.stage.tell("stands", run_id, context.attempt, talk.total_steps, talk.usage.requests)
        self.stage.tell("attempt", run_id, context.attempt)
        await self.stage.reach(run_id, f"{label} {name} before")
        after = await work()
        await self.stage.reach(run_id, f"{label} {name} after")
        return after


class WatchedAgentRun(AgentRun, Watched):
    run_type = "AgentRun"

    def __init__(self, ports: Ports, stage: Stage) -> None:
        super().__init__(ports)
        self.stage = stage

    async def begin(self, task: Any, /) -> Any:
        return await self.at_each_end("begin", None, lambda: AgentRun.begin(self, task))

    async def step(self, state: Any, /) -> Any:
        return await self.at_each_end("step", state, lambda: AgentRun.step(self, state))

    async def receive(self, state: Any, message: Said, /) -> Any:
        name = f"receive {type(message).__name__}"
        return await self.at_each_end(name, state, lambda: AgentRun.receive(self, state, message))


class WatchedPipelineRun(PipelineRun, Watched):
    run_type = "PipelineRun"

    def __init__(self, ports: Ports, stage: Stage) -> None:
        super().__init__(ports)
        self.stage = stage

    async def begin(self, task: Any, /) -> Any:
        return await self.at_each_end("begin", None, lambda: PipelineRun.begin(self, task))

    async def step(self, state: Any, /) -> Any:
        return await self.at_each_end("step", state, lambda: PipelineRun.step(self, state))

    async def receive(self, state: Any, message: Said, /) -> Any:
        name = f"receive {type(message).__name__}"
        return await self.at_each_end(name, state, lambda: PipelineRun.receive(self, state, message))


def watched_class(agent: Agent) -> Any:
    return WatchedPipelineRun if agent.phases else WatchedAgentRun


def runs_on(stage: Stage, agents: Agents) -> list[Factory[Any]]:
    """What a runtime registers: the agents' own behaviours, watched."""
    ports = msgspec.structs.replace(agents.ports, run_class=watched_class)
    return [Factory(WatchedAgentRun, ports, stage), Factory(WatchedPipelineRun, ports, stage)]
