"""What an agent's run needs besides its task: models, tools, agents to call, and who watches."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final

import msgspec

from executus.actors.agents.agent import AGENT, SKILL, Agent, Persona, Phase, RunInfo, Skill, persona_of
from executus.actors.agents.audit import Audit, AuditEntry
from executus.actors.agents.compactor import Compactor
from executus.actors.agents.critic import Critic
from executus.actors.agents.errors import InvalidAgent
from executus.actors.agents.model import Tier, ToolSpec
from executus.actors.agents.phase_context import PhaseContext
from executus.actors.agents.toolbox import Toolbox
from executus.actors.policies import Durability, SavePolicy

PhaseFunction = Callable[[PhaseContext], "str | Awaitable[str]"]
"""A phase without a conversation: what it returns is the phase's output."""

_PROMPT: Final[Mapping[str, object]] = {
    "type": "object",
    "properties": {"prompt": {"type": "string", "description": "What it is to do, with all that it must know."}},
    "required": ["prompt"],
}


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """The ports of all runs of one house of agents. Safe on any thread: nothing in it changes but `live`."""

    tiers: Mapping[str, Tier]
    tools: Toolbox
    agents: Mapping[str, Agent]
    skills: Mapping[str, Skill]
    functions: Mapping[str, PhaseFunction]
    critic: Critic | None
    audit: Audit | None
    compactor: Compactor | None
    live: dict[str, RunInfo]
    """Whose runs are loaded: for the audit of endings that no run can tell of itself."""
    run_class: Callable[[Agent], Any]
    """The behaviour that runs an agent: a conversation or a pipeline."""
    durability: Callable[[RunInfo], Durability] | None = None
    monotonic_s: Callable[[], float] = time.monotonic
    wall_s: Callable[[], float] = time.time

    def record(self, entry: AuditEntry, log: Any) -> None:
        """Tell the audit. One that raises harms nothing; the log says so."""
        if self.audit is None:
            return
        try:
            self.audit.record(entry)
        except Exception:
            log.warning("the audit raised; the entry is lost", entry=type(entry).__name__, exc_info=True)

    def save_policy(self, info: RunInfo, log: Any) -> SavePolicy | None:
        """How this run is saved; None as runs are. A choice that raises harms nothing."""
        if self.durability is None:
            return None
        try:
            return SavePolicy(durability=self.durability(info))
        except Exception:
            log.warning("the choice of durability raised; saved as usual", run_id=info.run_id, exc_info=True)
            return None

    def specs(self, tools: tuple[str, ...], palette: tuple[str, ...]) -> tuple[ToolSpec, ...]:
        """What a model is shown. The names must be known."""
        return (*self.tools.specs(tools), *(self._spec(name) for name in palette))

    def called(self, name: str, caller: Agent) -> Agent | None:
        """The agent behind a name of a palette."""
        if name.startswith(AGENT):
            return self.agents.get(name.removeprefix(AGENT))
        skill = self.skills.get(name.removeprefix(SKILL))
        return None if skill is None else skill.as_agent(caller)

    def check(self, agent: Agent) -> None:
        """Raise InvalidAgent where this house lacks what an agent names."""
        for phase in agent.phases or (None,):
            self._check_persona(persona_of(agent, phase), phase)

    def _check_persona(self, persona: Persona, phase: Phase | None) -> None:
        who = f"agent {persona.agent.id!r}" + (f", phase {phase.name!r}" if phase is not None else "")
        if phase is not None and phase.function is not None:
            _known("function", phase.function, self.functions, who)
            return
        _known("tier", persona.tier, self.tiers, who)
        for name in persona.tools:
            _known("tool", name, self.tools.names, who)
        for name in persona.palette:
            if name.startswith(AGENT):
                _known("agent", name.removeprefix(AGENT), self.agents, who)
            else:
                _known("skill", name.removeprefix(SKILL), self.skills, who)

    def _spec(self, name: str) -> ToolSpec:
        if name.startswith(AGENT):
            agent = self.agents[name.removeprefix(AGENT)]
            return ToolSpec(name, agent.description or f"Ask {agent.name or agent.id}, another agent.", _PROMPT)
        skill = self.skills[name.removeprefix(SKILL)]
        return ToolSpec(name, skill.description or f"Use the skill {skill.name}.", _PROMPT)


def _known(what: str, name: str, known: Collection[str], who: str) -> None:
    if name not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise InvalidAgent(f"{who}: unknown {what} {name!r}. Registered here: {listed}. Nothing was run.")
