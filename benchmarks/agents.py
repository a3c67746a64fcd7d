"""Asks how fast agents go when everything is offline, what a step writes, and what an agent weighs.

1,000 agents at once, 20 steps each, with messages of about 1 KB, see `agent_script`. Beside them, in the same round and
on the same disk, LangGraph does the same steps, where it is installed (`pip install langgraph
langgraph-checkpoint-sqlite`). Each contender runs in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.agent_script import PROMPT, STEPS, SYSTEM, Gate, found, names, tell, thought, timed, weighed
from benchmarks.harness import Measured, interleaved, report
from benchmarks.runs import Figures, folder
from executus.actors import AsyncRuntime, SavePolicy
from executus.actors.agents import Agent, Agents, ModelReply, ModelRequest, Text, ToolCall, tool
from executus.actors.agents.parts import assistant
from executus.actors.agents.tool import Effect

AGENTS = 1_000
NEIGHBOURS = 50
"""So many agents of LangGraph's, which are some hundred times slower: more would take minutes a round."""
WANTED = 20

POLICIES = {
    "sync": SavePolicy(durability="sync"),
    "every step": SavePolicy(every_steps=1),
    "every second": SavePolicy(every_s=1.0),
    "none": SavePolicy(durability="none"),
}
NO_PORTS: dict[str, Any] = {"critic": None, "audit": None, "compactor": None}


class Script:
    """The model."""

    def __init__(self, gate: Gate | None) -> None:
        self.gate = gate

    async def request(self, request: ModelRequest, /) -> ModelReply:
        agent, step = request.info.run_id, request.step
        if step < STEPS:
            asked = ToolCall(f"call-{step}", "search", f'{{"agent":"{agent}","number":{step}}}')
            return ModelReply(assistant(Text(thought(agent, step)), asked))
        if self.gate is not None:
            await self.gate.passed()
        return ModelReply(assistant(Text("Done.")))


async def search(agent: str, number: int) -> str:
    """Look for a number."""
    return found(agent, number)


async def _main(durability: str, agents: int, where: Path, *, weigh: bool, ports: bool, effect: Effect) -> None:
    gate = Gate(agents) if weigh else None
    worker = Agent(id="worker", system=SYSTEM, tools=("search",), step_ceiling=STEPS + 5)
    house = Agents(
        [worker], models={"default": Script(gate)}, tools=[tool(effect=effect)(search)], **({} if ports else NO_PORTS)
    )
    async with AsyncRuntime(where / "store", runs=house.runs, logger=False) as runtime:

        async def life(agent: str) -> int:
            policy = POLICIES[durability]
            handle = await house.start(runtime, "worker", PROMPT, run_id=agent, save_policy=policy)
            return (await handle).usage.tool_calls

        tell(await (timed(life, names(agents), where) if gate is None else weighed(life, names(agents), gate)))


def child(
    durability: str, agents: int, where: str, *, weigh: bool = False, ports: bool = True, effect: Effect = "pure"
) -> None:
    """One child's work: print its figures."""
    asyncio.run(_main(durability, agents, Path(where), weigh=weigh, ports=ports, effect=effect))


# --- the parent ---

OURS, THEIRS = "benchmarks.agents:child", "benchmarks.agents_langgraph:main"
FIGURES = {
    "cpu": ("processor's time", "us/step", 1e6),
    "steps": ("steps", "steps/s", 1.0),
    "written": ("written to the disk", "KB/step", 1e-3),
    "stored": ("store's size at the end", "KB/step", 1e-3),
    "resident": ("resident in flight", "KB/agent", 1e-3),
}
"""What a child tells, and how it is called here."""


def asked(name: str, function: str, arguments: str, root: str | None) -> Callable[[], Figures]:
    """A question that a process of its own answers: a function of a module's, called with these arguments."""
    module, function = function.split(":")

    def ask() -> Figures:
        with folder(root) as where:
            program = f"from {module} import {function}; {function}({arguments}, where={str(where)!r})"
            done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
        told: dict[str, float] = json.loads(done.stdout)
        return {f"{name}: {FIGURES[what][0]}": (told[what] * FIGURES[what][2], FIGURES[what][1]) for what in told}

    return ask


def questions(agents: int, neighbours: int, root: str | None) -> dict[str, Callable[[], Figures]]:
    """Each contender's, those of a kind one after the other; without LangGraph ours alone."""
    contenders = [
        ("sync", OURS, f"'sync', {agents}"),
        ("sync, a call with an effect", OURS, f"'sync', {agents}, effect='idempotent'"),
        ("LangGraph sync", THEIRS, f"'sync', {neighbours}"),
        ("LangGraph sync, DeltaChannel", THEIRS, f"'sync', {neighbours}, delta=True"),
        ("sync, no ports", OURS, f"'sync', {agents}, ports=False"),
        ("every step", OURS, f"'every step', {agents}"),
        ("LangGraph async", THEIRS, f"'async', {neighbours}"),
        ("every second", OURS, f"'every second', {agents}"),
        ("not saved", OURS, f"'none', {agents}"),
        ("every second", OURS, f"'every second', {agents}, weigh=True"),
        ("LangGraph async", THEIRS, f"'async', {neighbours}, weigh=True"),
    ]
    return {
        f"{name} ({arguments})": asked(name, function, arguments, root)
        for name, function, arguments in contenders
        if function == OURS or langgraph_is_there()
    }


def langgraph_is_there() -> bool:
    """Whether it can be imported here, its SQLite saver too."""
    return all(importlib.util.find_spec(name) is not None for name in ("langgraph", "aiosqlite", "langchain_core"))


RATIOS = (
    ("sync", "LangGraph sync"),
    ("sync, a call with an effect", "LangGraph sync"),
    ("sync, no ports", "LangGraph sync"),
    ("sync, no ports", "LangGraph sync, DeltaChannel"),
    ("every step", "LangGraph async"),
    ("sync", "LangGraph async"),
)
"""Of equal durability, and one of stronger."""


def ratios(measured: dict[str, Measured]) -> dict[str, Measured]:
    """How many times as many steps as LangGraph makes, round by round."""
    found: dict[str, Measured] = {}
    for ours, theirs in RATIOS:
        if f"{theirs}: steps" in measured:
            ratio = found[f"{ours} / {theirs}"] = Measured(f"{ours} / {theirs}", "times")
            pairs = zip(measured[f"{ours}: steps"].values, measured[f"{theirs}: steps"].values, strict=True)
            ratio.values = [one / other for one, other in pairs]
    return found


def main(options: argparse.Namespace) -> int:
    """Measure, and report."""
    measured = interleaved(questions(AGENTS, NEIGHBOURS, options.folder), options.rounds)
    there = langgraph_is_there()
    notes = [
        f"{AGENTS:,} agents at once, {STEPS} steps each: a request, answered with 1 KB and a call, and the call,",
        "answered with 1 KB; then the last words. Starts and endings count. 'no ports': no critic, audit, compactor.",
        "sync: the model is asked when all before that is committed and flushed, a call with an effect then, too; one",
        "that only computes while the reply is committed. A commit takes all that are ready. every step: offered after",
        "each half, committed while the next ones run. every second: a crash takes back that much. Written: what is",
        "handed to the system's write calls. Resident: with all of them in flight, each before its last words, its",
        "transcript of 42 KB included.",
    ]
    if there:
        versions = [f"{one} {importlib.metadata.version(one)}" for one in ("langgraph", "langgraph-checkpoint-sqlite")]
        notes += [
            f"{', '.join(versions)}: {NEIGHBOURS} agents at once; with 1,000 it is as fast, and takes",
            "minutes. Each half of a step is a superstep of its graph. sync: its checkpoint is in a flushed",
            "transaction (WAL, synchronous=FULL) before the next one begins; async, its default: while that runs. Each",
            "holds all messages anew; with its DeltaChannel, in beta, what is new.",
            "Both are bound by the interpreter: see the processor's time. Besides, LangGraph flushes each checkpoint",
            "and each write by itself, one at a time; here hundreds share one; a quarter of the time is the store's.",
            f"Wanted: at least {WANTED} times LangGraph's steps at equal or stronger durability.",
        ]
    else:
        notes.append("LangGraph is not installed here (pip install langgraph langgraph-checkpoint-sqlite): ours alone.")
    report("agents", measured | ratios(measured), notes=notes, as_json=options.json, save=options.save)
    return 0
