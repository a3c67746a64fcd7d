"""The house of agents: who there is, with which models and tools; what a runtime registers, and what users start."""

from __future__ import annotations

import math
import threading
import uuid
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypedDict, TypeVar, Unpack, overload

import msgspec

from executus.actors.agents.agent import UNLIMITED, Agent, AgentResult, Budget, Invocation, RunInfo, Skill, Task
from executus.actors.agents.agent_run import AgentRun
from executus.actors.agents.audit import Audit, RunConcluded
from executus.actors.agents.compactor import Compactor
from executus.actors.agents.critic import Critic
from executus.actors.agents.engine import labels_of
from executus.actors.agents.errors import InvalidAgent
from executus.actors.agents.ladder import LadderCritic
from executus.actors.agents.log_audit import LogAudit
from executus.actors.agents.model import Model, Tier
from executus.actors.agents.parts import NOTHING
from executus.actors.agents.pipeline_run import PipelineRun
from executus.actors.agents.ports import PhaseFunction, Ports
from executus.actors.agents.shortening import Shortening
from executus.actors.agents.tool import Tool
from executus.actors.agents.toolbox import Toolbox
from executus.actors.errors import NotRegistered, StartFailed
from executus.actors.events import Event, RunSettled, default_logger
from executus.actors.handle import AsyncRunHandle, RunHandle
from executus.actors.messages import IfExists
from executus.actors.outcomes import safe_text
from executus.actors.policies import Durability, RestartPolicy, SavePolicy, StopPolicy
from executus.actors.run import Factory, Run
from executus.actors.runtime import AsyncRuntime, Runtime
from executus.stores import RunStatus

T = TypeVar("T")
DEFAULT: Final[Any] = object()


class StartOptions(TypedDict, total=False):
    """What `Runtime.start` takes besides; see there. `budget` bounds this run beside the agent's own."""

    run_id: str
    if_exists: IfExists
    labels: Mapping[str, str]
    budget: Budget
    restart_policy: RestartPolicy
    save_policy: SavePolicy
    stop_policy: StopPolicy
    first: object
    first_id: str


class _Order(NamedTuple):
    run_class: type[Run[Task, Any, AgentResult]]
    task: Task
    options: dict[str, Any]


class Agents:
    """Agents, and everything they need: `Runtime(path, runs=agents.runs)`, then `agents.start(runtime, "who", "what")`.

    `models` by tier: a model, or a `Tier` that says what it costs and how much it sees. `critic`, `audit` and
    `compactor` have defaults; None leaves them out and costs nothing. `durability` chooses for each run how it is
    saved, `"none"` for short ones that need no disk. Immutable, and safe on any thread.
    """

    def __init__(
        self,
        agents: Iterable[Agent],
        *,
        models: Mapping[str, Model | Tier],
        tools: Iterable[Tool | Callable[..., Any]] = (),
        skills: Iterable[Skill] = (),
        functions: Mapping[str, PhaseFunction] | None = None,
        critic: Critic | None = DEFAULT,
        audit: Audit | None = DEFAULT,
        compactor: Compactor | None = DEFAULT,
        durability: Callable[[RunInfo], Durability] | None = None,
    ) -> None:
        self._log = default_logger()
        self._lock = threading.Lock()
        self._attached: weakref.WeakSet[Runtime | AsyncRuntime] = weakref.WeakSet()
        self.ports = Ports(
            tiers={name: one if isinstance(one, Tier) else Tier(model=one) for name, one in models.items()},
            tools=Toolbox(tools),
            agents=_by_name("agent", ((one.id, one) for one in agents)),
            skills=_by_name("skill", ((one.name, one) for one in skills)),
            functions=dict(functions or {}),
            critic=LadderCritic() if critic is DEFAULT else critic,
            audit=LogAudit() if audit is DEFAULT else audit,
            compactor=Shortening() if compactor is DEFAULT else compactor,
            live={},
            durability=durability,
            run_class=run_class_of,
        )
        for agent in self.ports.agents.values():
            self.ports.check(agent)

    @property
    def runs(self) -> list[Factory[Any]]:
        """What a runtime registers: `Runtime(path, runs=[*agents.runs, ...])`."""
        return [Factory(AgentRun, self.ports), Factory(PipelineRun, self.ports)]

    def task(self, agent: str | Agent, asked: str | Invocation, budget: Budget = UNLIMITED) -> Task:
        """What a run of this agent is given. Raises InvalidAgent where it cannot run with what is registered here."""
        if isinstance(agent, str):
            if agent not in self.ports.agents:
                known = ", ".join(sorted(self.ports.agents)) or "none"
                raise InvalidAgent(f"unknown agent {agent!r}. Registered here: {known}. Nothing was started.")
            agent = self.ports.agents[agent]
        invocation = Invocation(prompt=asked) if isinstance(asked, str) else asked
        if not isinstance(invocation, Invocation):  # pyright: ignore[reportUnnecessaryIsInstance] - users are untyped
            raise InvalidAgent(f"an agent is asked a text or an Invocation, not {safe_text(invocation)[:80]}")
        task = Task(agent, invocation, budget)
        self.ports.check(agent)
        return task

    @overload
    def start(
        self, runtime: Runtime, agent: str | Agent, asked: str | Invocation, **options: Unpack[StartOptions]
    ) -> RunHandle[AgentResult]: ...
    @overload
    def start(
        self, runtime: AsyncRuntime, agent: str | Agent, asked: str | Invocation, **options: Unpack[StartOptions]
    ) -> Coroutine[Any, Any, AsyncRunHandle[AgentResult]]: ...
    def start(
        self,
        runtime: Runtime | AsyncRuntime,
        agent: str | Agent,
        asked: str | Invocation,
        **options: Unpack[StartOptions],
    ) -> RunHandle[AgentResult] | Coroutine[Any, Any, AsyncRunHandle[AgentResult]]:
        """Start a run of an agent; with an AsyncRuntime await it. Options as `Runtime.start`, and its errors.

        Raises InvalidAgent before anything is started. Where the store cannot take a new run it runs all the same,
        without being saved, and the log says so; with `first`, or durability "sync", StartFailed is raised.
        """
        order = self._order(agent, asked, options)
        self.attach(runtime)
        if isinstance(runtime, AsyncRuntime):
            return self._start_async(runtime, order)
        try:
            return runtime.start(order.run_class, order.task, **order.options)
        except StartFailed as error:
            return runtime.start(order.run_class, order.task, **self._degraded(order, error))
        except NotRegistered:
            raise _not_registered() from None

    async def _start_async(self, runtime: AsyncRuntime, order: _Order) -> AsyncRunHandle[AgentResult]:
        try:
            return await runtime.start(order.run_class, order.task, **order.options)
        except StartFailed as error:
            return await runtime.start(order.run_class, order.task, **self._degraded(order, error))
        except NotRegistered:
            raise _not_registered() from None

    def attach(self, runtime: Runtime | AsyncRuntime) -> None:
        """Let the audit hear of this runtime's endings, those that no run can tell of itself. `start` does it, too.

        For a daemon that only resumes what is stored: call it before the runtime is opened. Once for a runtime counts.
        """
        with self._lock:  # two threads that start at once would subscribe twice
            if runtime in self._attached:
                return
            self._attached.add(runtime)
        runtime.events.subscribe(self._heard, only=RunSettled)

    def _heard(self, event: Event) -> None:
        if not isinstance(event, RunSettled):
            return
        # Popped by whoever comes first: the end of a run is told once.
        info = self.ports.live.pop(event.run_id, None)
        if info is None or event.status is RunStatus.COMPLETED:
            return  # a completed one has told it itself, with its usage
        self.ports.record(
            RunConcluded(
                info=info,
                at_s=self.ports.wall_s(),
                attempt=event.attempt,
                status=event.status.value,
                reason=event.reason,
                usage=NOTHING,
                steps=0,
            ),
            self._log,
        )

    def _order(self, agent: str | Agent, asked: str | Invocation, given: StartOptions) -> _Order:
        options: dict[str, Any] = dict(given)
        task = self.task(agent, asked, options.pop("budget", UNLIMITED))
        options.setdefault("run_id", f"{task.agent.id}-{uuid.uuid4().hex}")
        options["labels"] = {**labels_of(task), **(options.get("labels") or {})}
        if "save_policy" not in options:
            info = RunInfo.of(task, options["run_id"], self.ports.wall_s())
            options["save_policy"] = self.ports.save_policy(info, self._log)
        critic = self.ports.critic
        if critic is not None and critic.hard_deadline_s is not None:
            given_policy = options.get("stop_policy", StopPolicy())
            run_timeout_s = min(critic.hard_deadline_s, given_policy.run_timeout_s or math.inf)
            options["stop_policy"] = msgspec.structs.replace(given_policy, run_timeout_s=run_timeout_s)
        return _Order(run_class_of(task.agent), task, options)

    def _degraded(self, order: _Order, error: StartFailed) -> dict[str, Any]:
        """How to start where the store cannot take it. Raises the error where durability was asked for."""
        policy = order.options.get("save_policy")
        if "first" in order.options or (policy is not None and policy.durability in {"none", "sync"}):
            raise error
        self._log.warning(
            "the store did not take a new run: it runs without being saved, and nothing resumes it",
            run_id=order.options["run_id"],
            error=str(error),
        )
        return {**order.options, "save_policy": SavePolicy(durability="none")}


def run_class_of(agent: Agent) -> type[Run[Task, Any, AgentResult]]:
    """The behaviour that runs an agent."""
    return PipelineRun if agent.phases else AgentRun


def _not_registered() -> NotRegistered:
    return NotRegistered("this runtime knows no agents: Runtime(…, runs=[*agents.runs, …]). Nothing was started.")


def _by_name(what: str, named: Iterable[tuple[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, one in named:
        if name in found:
            raise InvalidAgent(f"two {what}s are called {name!r}")
        found[name] = one
    return found
