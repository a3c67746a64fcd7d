"""A conversation and a pipeline whose process dies at every commit, in virtual time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from executus.actors.agents import (
    Agent,
    Agents,
    FatalModelError,
    ModelRequest,
    Phase,
    PhaseContext,
    ScriptedModel,
    ToolContext,
    call,
    fail,
    say,
    tool,
)
from executus.actors.testing import CrashReport, Effects, crash_everywhere

SCRIPTS: dict[str, Any] = {
    "single": [
        call("look", what="a") + call("pay", what="b"),
        call("launch", what="c") + call("pay", what="d"),
        say("All is well."),
    ],
    "research": [call("look", what="a") + call("pay", what="b"), say("facts")],
    "gamble": [call("look", what="c"), fail(FatalModelError("no"), times=None)],
    "write": [call("launch", what="c") + call("pay", what="d"), say("a text")],
}


def reply(request: ModelRequest) -> Any:
    script = SCRIPTS[request.system]
    entry = script[request.step]
    return entry.using(10, 5) if hasattr(entry, "using") else [entry, say("never")]


PHASES = (
    Phase(name="research", system="research"),
    Phase(name="count", function="count", prompt="${research}"),
    Phase(name="gamble", system="gamble", optional=True),
    Phase(name="write", system="write", prompt="${count}"),
)
TOOLS = ("look", "pay", "launch")
AGENTS = (
    Agent(id="single", system="single", tools=TOOLS),
    Agent(id="pipeline", tools=TOOLS, phases=PHASES),
)


class World:
    """What the tools do: in the ledger, but for launches, which an interruption may leave undone."""

    def __init__(self) -> None:
        self.effects = Effects()
        self.launched: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def agents(self) -> Agents:
        effects = self.effects

        @tool(effect="pure")
        async def look(what: str) -> str:
            """Look at something."""
            effects.perform(f"look {what}")
            return what

        @tool(effect="keyed")
        async def pay(what: str, context: ToolContext) -> str:
            """Pay for something."""
            effects.perform(f"pay {what}", key=context.idempotency_key)
            return what

        @tool(effect="unsafe")
        async def launch(what: str) -> str:
            """Launch something."""
            self.launched[what] += 1
            return what

        async def count(context: PhaseContext) -> str:
            effects.perform("count", key=context.idempotency_key)
            return str(len(context.prompt))

        return Agents(
            AGENTS,
            models={"default": ScriptedModel(reply)},
            tools=[look, pay, launch],
            functions={"count": count},
            audit=None,
            critic=None,
            compactor=None,
        )

    def renew(self) -> None:
        """A life is over, another one begins."""
        self.most |= self.launched
        self.launched.clear()

    def crashed_everywhere(self, agent: str) -> CrashReport:
        houses: list[Agents] = []

        def runs() -> Any:
            houses.append(self.agents())
            return houses[-1].runs

        looks = {f"look {what}": 9 for what in "ac"}
        return crash_everywhere(
            lambda runtime: houses[-1].start(runtime, agent, "Go.", run_id="r", if_exists="return"),
            runs=runs,
            effects=self.effects,
            at_most=looks,
            reset=self.renew,
        )


@pytest.mark.parametrize("agent", ["single", "pipeline"])
def test_an_agent_ends_the_same_wherever_its_process_dies_and_launches_nothing_twice(agent: str) -> None:
    world = World()
    report = world.crashed_everywhere(agent)
    assert report.ended.startswith("Completed(AgentResult(")
    assert not report.not_reached
    assert len(report.points) > 20
    world.renew()
    assert world.most == {"c": 1}
