"""The daemon of `executus demo agent`: started, killed and started again. Its job comes on stdin, reports go to stdout.

It does what any daemon does that embeds agents. Only that, in each life but the last, one request or call is held under
way until the kill comes: so the kill falls inside it, however fast the machine.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import msgspec

from executus.actors.agents import ModelReply, ModelRequest, RunInfo, ScriptedModel, ToolContext
from executus.actors.console.demo_agent_ledger import Asked, Called, Held, Moment
from executus.actors.console.demo_agent_library import Library
from executus.actors.console.demo_agent_script import agents, question, script
from executus.actors.console.demo_ledger import Ended, Restored
from executus.actors.console.demo_pipe import end_with_parent, report
from executus.actors.events import Event, RunRestored
from executus.actors.incarnation import Ending
from executus.actors.policies import SavePolicy
from executus.actors.runtime import Runtime

ROOT = "lead"
"""The first run's id."""


class Job(msgspec.Struct, frozen=True):
    """Where the store and the report are, what is looked for where, and which moment is held until the kill."""

    store: str
    report: str
    library: Library
    text: str
    hold: Moment | None = None


class Gate:
    """Reports what begins, and holds the one moment. Safe on any thread."""

    def __init__(self, hold: Moment | None) -> None:
        self._hold = hold
        self.runtime: Runtime | None = None
        """Whose runs they are. Set before any of them begins."""

    def called(self, context: ToolContext, name: str) -> None:
        """A tool begins."""
        report(Called(context.info.run_id, context.info.subject, context.call_id, name))
        self._held_by_thread(context.info, f"begins {name}")

    def done(self, context: ToolContext, name: str) -> None:
        """A tool has done its work."""
        self._held_by_thread(context.info, f"has done {name}")

    async def asked(self, request: ModelRequest) -> None:
        """A request to the model begins."""
        report(Asked(request.info.run_id, request.info.subject, request.step))
        if Moment(request.info.subject, f"asks {request.step}") == self._hold:
            report(Held(request.info.run_id))
            await asyncio.Event().wait()

    def _held_by_thread(self, info: RunInfo, what: str) -> None:
        if Moment(info.subject, what) == self._hold:
            assert self.runtime is not None
            # A pure call begins while the reply that asks for it is being stored. This one takes longer than that.
            self.runtime.get(info.run_id).durable()
            report(Held(info.run_id))
            threading.Event().wait()


class Model:
    """The script, and a gate before it."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._scripted = ScriptedModel(script)

    async def request(self, request: ModelRequest, /) -> ModelReply:
        """See Model."""
        await self._gate.asked(request)
        return await self._scripted.request(request)


def main() -> int:
    """Read the job, do it, end."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    end_with_parent()
    gate = Gate(job.hold)
    house = agents(job.library, Path(job.report), Model(gate), gate)
    runtime = Runtime(job.store, runs=house.runs, save_policy=SavePolicy(durability="sync"), logger=False)
    gate.runtime = runtime
    runtime.events.subscribe(report_event)
    with runtime:
        handle = house.start(runtime, ROOT, question(job.library, job.text), run_id=ROOT, if_exists="return")
        handle.monitor(report_end)
        runtime.join()
    return 0


def report_event(event: Event) -> None:
    """Pass on who has its state back."""
    if isinstance(event, RunRestored):
        report(Restored(event.run_id, event.resumed_from_seq))


def report_end(ending: Ending) -> None:
    """The lead's run has ended."""
    report(Ended(ROOT, ending.status.value, durable=True))


if __name__ == "__main__":
    sys.exit(main())
