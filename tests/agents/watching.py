"""What a critic is shown, made up for tests."""

from __future__ import annotations

from typing import Any

from executus.actors.agents.agent import Agent, Invocation, RunInfo, Task
from executus.actors.agents.critic import CriticMemo, Seen, Watch


def info(run_id: str = "r-1", **invocation: Any) -> RunInfo:
    return RunInfo.of(Task(Agent(id="helper"), Invocation(**invocation)), run_id, started_at_s=0.0)


def watch(**of: Any) -> Watch:
    """A run that gets on, but for what is given."""
    fields: dict[str, Any] = {
        "info": info(),
        "attempt": 1,
        "step": 5,
        "step_ceiling": 40,
        "zone": "between",
        "zone_s": 1.0,
        "idle_s": 1.0,
        "active_s": 100.0,
        "recent": calls("a", "b", "c"),
    }
    return Watch(**(fields | of))


def calls(*names: str) -> tuple[Seen, ...]:
    """A call each; of one name, the same call."""
    return tuple(Seen.call(name, "{}") for name in names)


def after(rung: int, *, at_step: int = 0, at_s: float = 0.0, **counts: int) -> CriticMemo:
    return CriticMemo(rung=rung, at_step=at_step, at_s=at_s, **counts)
