"""Requests as an agent's run would make them, for tests of models."""

from __future__ import annotations

from executus.actors.agents.agent import Agent, Invocation, RunInfo, Task
from executus.actors.agents.model import ModelRequest, ToolSpec
from executus.actors.agents.parts import Message, user


def asked(
    *messages: Message, step: int = 0, run_id: str = "r-1", system: str = "", tools: tuple[ToolSpec, ...] = ()
) -> ModelRequest:
    info = RunInfo.of(Task(Agent(id="helper"), Invocation()), run_id, started_at_s=0.0)
    return ModelRequest(system=system, messages=messages or (user("What is new?"),), tools=tools, info=info, step=step)
