"""An entry of each kind, for tests of audits."""

from __future__ import annotations

from typing import Any

from executus.actors.agents.audit import (
    AuditEntry,
    ChildSettled,
    Delegated,
    Extended,
    KillOrdered,
    Nudged,
    PhaseBegan,
    PhaseEnded,
    RestartOrdered,
    RunBegan,
    RunConcluded,
    RunResumed,
    Steered,
    StepTaken,
    ToolAnswered,
)
from executus.actors.agents.parts import Usage
from tests.agents.watching import info

OF: dict[str, Any] = {"info": info(caller="mia\n", inputs={"token": "secret"}), "at_s": 1_000.0, "attempt": 2}
USED = Usage(input_tokens=70, output_tokens=7, requests=1, usd=0.000_123_456)

ENTRIES: tuple[AuditEntry, ...] = (
    RunBegan(**OF),
    RunResumed(step=3, **OF),
    StepTaken(step=4, usage=USED, calls=2, took_s=1.23456, **OF),
    ToolAnswered(name="grep", call_id="c-1", is_error=False, took_s=0.5, **OF),
    PhaseBegan(index=0, name="research", **OF),
    PhaseEnded(index=0, name="research", status="completed", **OF),
    Nudged(text="You are going in circles.", stall="spinning", **OF),
    Extended(steps=20, seconds=0.0, reason="slow", **OF),
    RestartOrdered(reason="hung", **OF),
    KillOrdered(reason="hung", **OF),
    Steered(count=1, **OF),
    Delegated(key="k", subject="editor", child_run_id="r-2", **OF),
    ChildSettled(key="k", status="completed", **OF),
    RunConcluded(status="completed", usage=USED, steps=5, **OF),
)
