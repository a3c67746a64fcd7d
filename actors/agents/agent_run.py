"""The single loop: one conversation with one agent, until it has said its last word."""

from __future__ import annotations

from executus.actors.agents.agent import AgentResult, Task
from executus.actors.agents.behaviour import Behaviour, Standable
from executus.actors.agents.conversation import Conversation, replace
from executus.actors.agents.engine import Concluded
from executus.actors.agents.parts import Message, user
from executus.actors.journal import Journal
from executus.actors.run import Done, Wait


class AgentState(Standable, frozen=True, kw_only=True):
    """What is saved of a single loop."""


class AgentRun(Behaviour[AgentState]):
    """A durable conversation. Made by `Agents`, which gives it its ports."""

    async def begin(self, task: Task, /) -> AgentState:
        """The first state: what was asked, and nothing answered yet. Raises InvalidAgent."""
        setup = self.set_up(task)
        invocation = task.invocation
        asked = (user(invocation.prompt, invocation.images),) if invocation.prompt or invocation.images else ()
        return AgentState(
            setup=Journal((setup,)),
            conversation=Conversation(ceiling=task.agent.step_ceiling, transcript=Journal[Message]().extend(asked)),
        )

    async def step(self, state: AgentState, /) -> AgentState | Wait[AgentState] | Done[AgentResult]:
        """Ask the model, or answer what it has asked for."""
        engine = self.engine(state)
        advanced = await engine.advance(state.conversation, engine.persona)
        if not isinstance(advanced, Concluded):
            return self.going_on(replace(state, conversation=engine.timed(advanced)))
        if advanced.error is not None:
            raise advanced.error
        return self.done(state, engine.result(advanced.conversation, advanced.output, advanced.status))
