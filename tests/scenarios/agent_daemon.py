"""A daemon that plays the stories of agents: it says at which point each run is, and stops a run where it is told to.

Arguments: the store, the file of effects, and a file with the Plan. A run that it is to stop at a label does not go on
from there, the others do: so one SIGKILL meets each of hundreds of runs at another point.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from executus.actors import Completed, Runtime, SavePolicy
from executus.actors.agents import AgentResult, FollowUp, Steer
from executus.actors.agents.transcript import problems
from executus.actors.events import Event, RunExited, RunSettled, RunStarted, SnapshotSaved
from executus.stores import LmdbStore
from tests.scenarios.agent_stories import (
    STEERS,
    STORIES,
    Effect,
    EffectLog,
    WatchedAgentRun,
    WatchedPipelineRun,
    house_on,
    runs_on,
)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a life of the daemon is to do: the story of each run, and the label at which each stops, if any.

    `every_s` None: each step is saved before the next one; else the saves are so far apart. `announces` says whether
    points are said, too.
    """

    stories: dict[str, str]
    stops: dict[str, str] = {}
    every_s: float | None = None
    pause_s: float = 0.0
    announces: bool = False


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to, in less than a pipe takes at once: so `wrong` holds what there is to say of its transcript."""

    output: str
    status: str
    used: tuple[int, int, int]
    """Steps, requests and calls of tools."""
    phases: tuple[tuple[str, str, str], ...] = ()
    heard: dict[str, int] = {}
    wrong: tuple[str, ...] = ()

    @classmethod
    def of(cls, outcome: Any) -> Ended:
        if not isinstance(outcome, Completed):
            return cls(output=f"{outcome!r:.1000}", status=type(outcome).__name__, used=(0, 0, 0))
        result: AgentResult = outcome.result
        said = Counter(message.text for message in result.transcript)
        return cls(
            output=result.output,
            status=result.status,
            used=(result.steps, result.usage.requests, result.usage.tool_calls),
            phases=tuple((one.name, one.status, one.output) for one in result.phases),
            heard={text: said[text] for text in STEERS},
            wrong=tuple(problems(result.transcript)[:5]),
        )


def say(*parts: Any) -> None:
    """One write each, of less than a pipe takes at once: so lines never mix, and a SIGKILL cuts none."""
    line = msgspec.json.encode(parts) + b"\n"
    assert len(line) <= select.PIPE_BUF
    os.write(1, line)


class Theatre:
    """The Stage of this process."""

    def __init__(self, plan: Plan, effects: EffectLog) -> None:
        self.plan = plan
        self.opened = threading.Event()
        self.runtime: Runtime | None = None
        self._effects = effects
        self._attempts: dict[str, int] = {}

    def tell(self, kind: str, run_id: str, *facts: Any) -> None:
        if kind == "attempt":
            self._attempts[run_id] = facts[0]
        else:
            say(kind, run_id, *facts)

    async def reach(self, run_id: str, label: str) -> None:
        if self._is_the_end(run_id, label):
            await asyncio.Event().wait()

    def reach_blocking(self, run_id: str, label: str) -> None:
        if self._is_the_end(run_id, label):
            threading.Event().wait()

    async def send(self, run_id: str, message: Steer | FollowUp, message_id: str) -> None:
        def sent() -> None:
            self.opened.wait()  # what comes back does so while the runtime opens
            assert self.runtime is not None
            self.runtime.get(run_id).send(message, message_id=message_id)

        await asyncio.to_thread(sent)
        say("accepted", run_id, message.text)

    def effect(self, run_id: str, tool: str, what: str, key: str) -> None:
        self._effects.write(Effect(run_id, tool, what, key, self._attempts[run_id], os.getpid()))

    def _is_the_end(self, run_id: str, label: str) -> bool:
        root, _, child = run_id.partition("/")
        label = f"{child} {label}".strip()
        if self.plan.announces:
            say("point", root, label)
        if self.plan.stops.get(root) != label:
            return False
        say("stopped", root, label)
        return True


def report(event: Event) -> None:
    match event:
        case RunStarted(run_id=run_id):
            say("started", run_id)
        case RunExited(run_id=run_id, error=error):
            say("exited", run_id, f"{error.type}: {error.message:.1000}")
        case RunSettled(run_id=run_id, status=status):
            say("settled", run_id, status.value)
        case SnapshotSaved(run_id=run_id, seq=seq):
            say("saved", run_id, seq)
        case _:
            pass


def main(store: str, effects: str, plan_file: str) -> None:
    plan = msgspec.json.decode(Path(plan_file).read_bytes(), type=Plan)
    theatre = Theatre(plan, EffectLog(Path(effects)))
    agents = house_on(theatre, plan.pause_s)
    policy = SavePolicy(durability="sync") if plan.every_s is None else SavePolicy(every_s=plan.every_s)
    runtime = theatre.runtime = Runtime(
        LmdbStore(store, profile="process"), runs=runs_on(theatre, agents), save_policy=policy, logger=False
    )
    runtime.events.subscribe(report)
    runtime.open()
    theatre.opened.set()
    say("open")

    def watch(handle: Any) -> None:
        def ended(ending: Any) -> None:
            say("ended", handle.run_id, Ended.of(ending.outcome))

        handle.monitor(ended)

    for story in STORIES:
        tasks = {run_id: agents.task(story, story) for run_id, other in plan.stories.items() if other == story}
        kind = WatchedPipelineRun if agents.ports.agents[story].phases else WatchedAgentRun
        for handle in runtime.start_many(kind, tasks, if_exists="return"):
            watch(handle)
    say("all started")
    sys.stdin.buffer.read()  # until nobody listens any more
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
