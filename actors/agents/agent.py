"""What an agent is, and what it is asked: data, all of it in the start record of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec

from executus.actors.agents.errors import InvalidAgent
from executus.actors.agents.parts import NOTHING, Image, Message, Usage
from executus.actors.agents.template import names_in

AGENT: Final = "agent__"
SKILL: Final = "skill__"
Scalar = str | int | float | bool | None


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """What ends a run that has gone astray. Counts go on over a resume."""

    tool_errors_in_a_row: int = 6
    same_call_in_a_row: int = 5
    depth: int = 3
    """Agents below the first one."""
    fan_out: int = 8
    """Calls of agents and skills in one message of the model's; what is more gets an error as its result."""
    children: int = 64
    """Calls of agents and skills in all."""
    result_chars: int = 60_000
    """A tool's result is cut there, visibly."""
    max_ceiling: int = 1_000
    """No extension raises the step ceiling above it."""


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """The most a run and the children it calls may use. None: as much as they like.

    `wall_s` counts while the run is loaded in a process, waiting for children included; downtime does not count.
    """

    tokens: int | None = None
    usd: float | None = None
    steps: int | None = None
    tool_calls: int | None = None
    wall_s: float | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and not value >= 0:  # NaN is refused, too
                raise InvalidAgent(f"a budget's {name} must not be negative, not {value!r}")


UNLIMITED: Final = Budget()


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """One phase of a pipeline. What is None is the agent's.

    `prompt` sees what was given and what came before: `${prompt}`, `${an_input}`, `${an_earlier_phase}`.
    `function` names a plain function instead of a conversation. An `optional` phase may fail; it is not tried again.
    `resume`: an interrupted phase goes on from its last saved step, or from its start.
    """

    name: str
    prompt: str = "${prompt}"
    system: str | None = None
    tier: str | None = None
    tools: tuple[str, ...] | None = None
    palette: tuple[str, ...] | None = None
    step_ceiling: int | None = None
    function: str | None = None
    optional: bool = False
    resume: Literal["step", "phase"] = "step"


class Agent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """Who does the work: one conversation, or a pipeline where it has `phases`.

    `tools` and `tier` are names of what is registered, `palette` names agents and skills that it may call, with their
    prefix: `agent__editor`, `skill__summarise`. `description` is what a model reads that may call it.
    """

    id: str
    name: str = ""
    description: str = ""
    system: str = ""
    tier: str = "default"
    tools: tuple[str, ...] = ()
    palette: tuple[str, ...] = ()
    step_ceiling: int = 40
    limits: Limits = Limits()
    budget: Budget = UNLIMITED
    phases: tuple[Phase, ...] = ()
    keep_transcript: bool = False
    """Whether the result holds the transcript: with the run's end its state is dropped.

    One that makes the result too large for a record is left out all the same, and the log says so.
    """

    def __post_init__(self) -> None:
        if not self.id:
            raise InvalidAgent("an agent needs an id")
        for ceiling in (self.step_ceiling, *(phase.step_ceiling for phase in self.phases)):
            if ceiling is not None and ceiling < 1:
                raise InvalidAgent(
                    f"agent {self.id!r}: its step ceiling must be at least 1, not {ceiling}", agent=self.id
                )
        for one in (self, *self.phases):
            for what in ("tools", "palette"):
                if isinstance(getattr(one, what), str):
                    raise InvalidAgent(f"agent {self.id!r}: {what} is a tuple of names, not a text", agent=self.id)
        for name in (*self.palette, *(one for phase in self.phases for one in phase.palette or ())):
            if not name.startswith((AGENT, SKILL)):
                raise InvalidAgent(
                    f"agent {self.id!r}: {name!r} in its palette must begin with {AGENT!r} or {SKILL!r}", agent=self.id
                )


class Persona(msgspec.Struct, frozen=True, gc=False):
    """Who speaks in a conversation: the agent, or one of its phases."""

    agent: Agent
    system: str
    tier: str
    tools: tuple[str, ...]
    palette: tuple[str, ...]
    ceiling: int
    phase: str = ""


def persona_of(agent: Agent, phase: Phase | None = None) -> Persona:
    """The agent's, or of a phase of it: what that leaves out is the agent's."""
    if phase is None:
        return Persona(agent, agent.system, agent.tier, agent.tools, agent.palette, agent.step_ceiling)
    return Persona(
        agent,
        agent.system if phase.system is None else phase.system,
        agent.tier if phase.tier is None else phase.tier,
        agent.tools if phase.tools is None else phase.tools,
        agent.palette if phase.palette is None else phase.palette,
        agent.step_ceiling if phase.step_ceiling is None else phase.step_ceiling,
        phase.name,
    )


class Skill(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A way of doing something, to be called as `skill__<name>`: a child run with these instructions.

    What is None is the caller's.
    """

    name: str
    description: str = ""
    instructions: str = ""
    tier: str | None = None
    tools: tuple[str, ...] | None = None
    step_ceiling: int = 20

    def as_agent(self, caller: Agent) -> Agent:
        """The agent that a call of this skill runs."""
        return Agent(
            id=f"{SKILL}{self.name}",
            name=self.name,
            description=self.description,
            system=self.instructions,
            tier=caller.tier if self.tier is None else self.tier,
            tools=caller.tools if self.tools is None else self.tools,
            step_ceiling=self.step_ceiling,
            limits=caller.limits,
        )


class Invocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """What an agent is asked, by whom and from where. `inputs` may be given as a mapping."""

    prompt: str = ""
    images: tuple[Image, ...] = ()
    inputs: tuple[tuple[str, Scalar], ...] = ()
    caller: str = ""
    channel: str = ""
    guild: str = ""
    parent_run_id: str | None = None
    root_run_id: str | None = None
    depth: int = 0

    if TYPE_CHECKING:  # for inputs as a mapping

        def __init__(
            self,
            *,
            prompt: str = "",
            images: tuple[Image, ...] = (),
            inputs: Mapping[str, Scalar] | tuple[tuple[str, Scalar], ...] = (),
            caller: str = "",
            channel: str = "",
            guild: str = "",
            parent_run_id: str | None = None,
            root_run_id: str | None = None,
            depth: int = 0,
        ) -> None: ...

    def __post_init__(self) -> None:
        given: Any = self.inputs
        if isinstance(given, Mapping):
            inputs = cast("Mapping[str, Scalar]", given)
            msgspec.structs.force_setattr(self, "inputs", tuple(sorted(inputs.items())))


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The input of an agent's run. Raises InvalidAgent where a phase's prompt names what it cannot see."""

    agent: Agent
    invocation: Invocation
    budget: Budget = UNLIMITED
    """What a calling agent has set aside for this run, beside the agent's own."""

    def __post_init__(self) -> None:
        given = {"prompt", *(name for name, _ in self.invocation.inputs)}
        earlier: set[str] = set()
        for phase in self.agent.phases:
            if phase.name in given:
                raise InvalidAgent(f"agent {self.agent.id!r}: phase {phase.name!r} has the name of an input")
            if unknown := sorted(set(names_in(phase.prompt)) - given - earlier):
                seen = ", ".join(f"${{{name}}}" for name in sorted(given | earlier))
                raise InvalidAgent(
                    f"agent {self.agent.id!r}, phase {phase.name!r}: its prompt names ${{{unknown[0]}}}, which is "
                    f"neither given nor an earlier phase. It can see {seen}. Nothing was run.",
                    agent=self.agent.id,
                    phase=phase.name,
                )
            earlier.add(phase.name)


class RunInfo(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Whose run it is: what audits, critics, tools and the choice of durability are told."""

    run_id: str
    subject: str
    name: str
    caller: str
    channel: str
    guild: str
    parent_run_id: str | None
    root_run_id: str
    tier: str
    inputs: tuple[tuple[str, Scalar], ...]
    started_at_s: float
    step_ceiling: int
    depth: int

    @classmethod
    def of(cls, task: Task, run_id: str, started_at_s: float) -> RunInfo:
        """Of a task that runs, or will, under this id."""
        agent, invocation = task.agent, task.invocation
        return cls(
            run_id=run_id,
            subject=agent.id,
            name=agent.name or agent.id,
            caller=invocation.caller,
            channel=invocation.channel,
            guild=invocation.guild,
            parent_run_id=invocation.parent_run_id,
            root_run_id=invocation.root_run_id or run_id,
            tier=agent.tier,
            inputs=invocation.inputs,
            started_at_s=started_at_s,
            step_ceiling=agent.step_ceiling,
            depth=invocation.depth,
        )


Status = Literal["completed", "out_of_steps", "out_of_budget", "failed"]


class Note(msgspec.Struct, frozen=True, gc=False):
    """What a tool has put into the run's accumulator: a name and a JSON text."""

    name: str
    json: str


class PhaseResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A phase that is over. `failed` an optional one alone."""

    index: int
    name: str
    output: str = ""
    status: Status = "completed"
    steps: int = 0
    usage: Usage = NOTHING
    error: str | None = None


class AgentResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an agent's run comes to. `out_of_steps` with what it has said last.

    `unheard` is what was said to the run and no model has seen: its steps or its budget were spent before.
    """

    output: str
    status: Status
    usage: Usage
    steps: int
    phases: tuple[PhaseResult, ...] = ()
    notes: tuple[Note, ...] = ()
    unheard: tuple[Message, ...] = ()
    transcript: tuple[Message, ...] = ()
