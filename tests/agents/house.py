"""A house of agents for tests: a runtime over a store, scripted models, tools that leave a trace, and an audit to look at."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from executus.actors import RestartPolicy, RunHandle, Runtime
from executus.actors.agents.agent import Agent, AgentResult, RunInfo
from executus.actors.agents.agents import Agents
from executus.actors.agents.audit import AuditEntry
from executus.actors.agents.errors import FATAL
from executus.actors.agents.model import ModelReply, ModelRequest
from executus.actors.agents.parts import Message
from executus.actors.agents.scripted import ScriptedModel
from executus.actors.agents.tool import ToolContext, tool
from tests.doubles import SOON, Recorder

SOON_AGAIN = RestartPolicy(max_restarts=3, backoff=SOON, fatal=FATAL)
"""As agents' runs restart, without waiting."""


class Trail:
    """An audit that keeps everything."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    def record(self, entry: AuditEntry, /) -> None:
        self.entries.append(entry)

    def kinds(self, run_id: str | None = None) -> list[str]:
        return [type(one).__name__ for one in list(self.entries) if run_id is None or one.info.run_id == run_id]

    def of(self, kind: type[Any]) -> list[Any]:
        return [one for one in list(self.entries) if isinstance(one, kind)]


class Traces:
    """What tools have done: outside of the run, as the world is."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str, str]] = []
        self.fail: dict[str, BaseException] = {}
        self.fail_once: dict[str, BaseException] = {}

    def do(self, tool_name: str, what: str, key: str = "") -> str:
        self.done.append((tool_name, what, key))
        if what in self.fail:
            raise self.fail[what]
        if what in self.fail_once:
            raise self.fail_once.pop(what)
        return f"{tool_name} {what}: done"

    def count(self, what: str) -> int:
        return sum(1 for _, did, _ in self.done if did == what)

    @property
    def tools(self) -> list[Any]:
        @tool(effect="pure")
        def look(what: str) -> str:
            """Look at something."""
            return self.do("look", what)

        @tool(effect="pure")
        async def glance(what: str) -> str:
            """Look at something, on the event loop."""
            return self.do("glance", what)

        @tool(effect="idempotent")
        def put(what: str) -> str:
            """Put something where it belongs."""
            return self.do("put", what)

        @tool(effect="keyed")
        def pay(what: str, context: ToolContext) -> str:
            """Pay for something, once for each key."""
            return self.do("pay", what, context.idempotency_key)

        @tool(effect="unsafe")
        def launch(what: str, context: ToolContext) -> str:
            """Launch something. There is no way back."""
            context.note("launched", what)
            return self.do("launch", what, context.idempotency_key)

        return [look, glance, put, pay, launch]


ALL_TOOLS = ("look", "glance", "put", "pay", "launch")


class Held:
    """A request that waits."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.gate = threading.Event()

    def wait(self) -> None:
        assert self.reached.wait(10), "the model was not asked"

    def let_go(self) -> None:
        self.gate.set()


class Watched:
    """A scripted model that says what it was asked, and lets a test step in before it answers."""

    def __init__(self, script: Any) -> None:
        self.inner = ScriptedModel(script)
        self.before: Any = None

    async def request(self, request: ModelRequest, /) -> ModelReply:
        if self.before is not None:
            await self.before(request)
        return await self.inner.request(request)

    @contextmanager
    def held_at(self, step: int) -> Iterator[Held]:
        """Hold the request for this step back until it is let go, or the block is left."""
        held = Held()

        async def hold(request: ModelRequest) -> None:
            if request.step == step:
                held.reached.set()
                while not held.gate.is_set():
                    await asyncio.sleep(0.001)

        self.before = hold
        try:
            yield held
        finally:
            held.let_go()
            self.before = None

    def seen(self, at: int = -1) -> tuple[Message, ...]:
        """What the model was shown in a request."""
        return self.inner.requests[at].messages


class House:
    """An open runtime, its agents, and what can be seen of them."""

    def __init__(self, runtime: Runtime, agents: Agents, trail: Trail, traces: Traces, seen: Recorder) -> None:
        self.runtime = runtime
        self.agents = agents
        self.trail = trail
        self.traces = traces
        self.seen = seen

    def start(self, agent: str | Agent = "worker", asked: Any = "Go.", **options: Any) -> RunHandle[AgentResult]:
        options.setdefault("restart_policy", SOON_AGAIN)
        options.setdefault("run_id", "r")
        handle: RunHandle[AgentResult] = self.agents.start(self.runtime, agent, asked, **options)
        return handle


def worker(**given: Any) -> Agent:
    """An agent that has every tool."""
    given.setdefault("id", "worker")
    given.setdefault("tools", ALL_TOOLS)
    given.setdefault("keep_transcript", True)
    return Agent(**given)


@contextmanager
def house(
    script: Any = (),
    *agents: Agent,
    store: Any = None,
    models: Mapping[str, Any] | None = None,
    traces: Traces | None = None,
    trail: Trail | None = None,
    runtime_options: Mapping[str, Any] | None = None,
    **ports: Any,
) -> Iterator[House]:
    """A runtime with agents; without any named there is one `worker`. Without a critic unless one is given."""
    trail, traces = trail or Trail(), traces or Traces()
    ports.setdefault("critic", None)
    ports.setdefault("audit", trail)
    ports.setdefault("tools", traces.tools)
    default = script if hasattr(script, "request") else ScriptedModel(script)
    built = Agents(agents or (worker(),), models={"default": default, **(models or {})}, **ports)
    runtime = Runtime(store, runs=built.runs, logger=False, drain_timeout_s=5.0, **(runtime_options or {}))
    built.attach(runtime)
    seen = Recorder()
    runtime.events.subscribe(seen)
    with runtime:
        yield House(runtime, built, trail, traces, seen)


def info_of(run_id: str = "r", **given: Any) -> RunInfo:
    """Attribution for tests of ports."""
    facts: dict[str, Any] = {
        "run_id": run_id,
        "subject": "worker",
        "name": "worker",
        "caller": "",
        "channel": "",
        "guild": "",
        "parent_run_id": None,
        "root_run_id": run_id,
        "tier": "default",
        "inputs": (),
        "started_at_s": 0.0,
        "step_ceiling": 40,
        "depth": 0,
    }
    return RunInfo(**(facts | given))
