"""What tests of tools share: a context of a call, without a run."""

from __future__ import annotations

from executus.actors.agents.agent import Agent, Invocation, Note, RunInfo, Task
from executus.actors.agents.tool import ToolContext
from executus.actors.testing.stand_in import TestContext

INFO = RunInfo.of(Task(Agent(id="reader"), Invocation(prompt="read")), "run-1", 0.0)


def a_run() -> TestContext:
    return TestContext(run_id="run-1", attempt=1, epoch=1, seq=0, parent_run_id=None, labels=None)


def a_context(call_id: str = "c1", *, run: TestContext | None = None, notes: tuple[Note, ...] = ()) -> ToolContext:
    return ToolContext(run or a_run(), INFO, call_id=call_id, idempotency_key=f"key-of-{call_id}", notes=notes)
