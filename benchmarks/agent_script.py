"""What every contender of `python -m benchmarks agents` does, and how it is measured: in a process of its own.

An agent asks its scripted model, which says about 1 KB and calls a tool; the tool answers with about 1 KB; that is a
step. After STEPS of them the model is asked once more and says its last words. Model and tool are coroutine functions
that return at once. No two texts are the same.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from benchmarks.harness import resident_bytes

STEPS = 20
SYSTEM = "You are a benchmark's agent."
PROMPT = "Do twenty steps. " + "p" * 1_000
_FILL = "x" * 1_000


def thought(agent: str, step: int) -> str:
    """What the model says beside its call."""
    return f"{agent} looks for number {step:02}. {_FILL}"


def found(agent: str, number: int) -> str:
    """What the tool answers."""
    return f"{agent} has found number {number:02}. {_FILL}"


class Gate:
    """Where all agents wait for each other before their last words, so that what they hold can be weighed."""

    def __init__(self, agents: int) -> None:
        self._waiting = agents
        self._open = asyncio.Event()
        self.resident_bytes = 0

    async def passed(self) -> None:
        """Wait for all others; the last one weighs."""
        self._waiting -= 1
        if not self._waiting:
            gc.collect()
            self.resident_bytes = resident_bytes()
            self._open.set()
        await self._open.wait()


def names(agents: int) -> list[str]:
    """Of so many agents."""
    return [f"agent-{number:04}" for number in range(agents)]


Life = Callable[[str], Awaitable[int]]
"""Takes one agent, by its name, from its start to its end; returns how many results of tools its transcript holds."""


async def weighed(life: Life, agents: Sequence[str], gate: Gate) -> dict[str, float]:
    """All of them at once, in front of the gate: what each holds."""
    gc.collect()
    before = resident_bytes()
    await _lived(life, agents)
    return {"resident": (gate.resident_bytes - before) / len(agents)}


async def timed(life: Life, agents: Sequence[str], folder: Path) -> dict[str, float]:
    """All of them at once: steps a second, starts and endings included, and bytes a step."""
    gc.collect()
    before, used_s, began_s = written_bytes(), time.process_time(), time.perf_counter()
    await _lived(life, agents)
    took_s, used_s, steps = time.perf_counter() - began_s, time.process_time() - used_s, len(agents) * STEPS
    return {
        "steps": steps / took_s,
        "cpu": used_s / steps,
        "written": (written_bytes() - before) / steps,
        "stored": _stored_bytes(folder) / steps,
    }


async def _lived(life: Life, agents: Sequence[str]) -> None:
    results = await asyncio.gather(*map(life, agents))
    assert results == [STEPS] * len(agents), "an agent did not do its steps"


def _stored_bytes(folder: Path) -> int:
    """What the files in a folder take of the disk."""
    return sum(one.stat().st_blocks * 512 for one in folder.rglob("*") if one.is_file())


def written_bytes() -> int:
    """What this process has handed to the system to write so far, by `wchar` of Linux; 0 elsewhere.

    Not `write_bytes`: that counts a whole folio of the page cache, up to a megabyte, for each page written in it.
    """
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return int(dict(line.split(": ") for line in lines)["wchar"])


def tell(figures: dict[str, float]) -> None:
    """Hand a child's figures to its parent."""
    print(json.dumps(figures))
