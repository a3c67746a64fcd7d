"""The pipeline: phases in order, each a conversation or a plain function, each completed one saved at its boundary."""

from __future__ import annotations

from typing import Any

from executus.actors.agents.agent import AgentResult, Phase, PhaseResult, Status, Task, persona_of
from executus.actors.agents.audit import PhaseBegan, PhaseEnded
from executus.actors.agents.behaviour import Behaviour, Standable
from executus.actors.agents.conversation import Conversation, abandoned, begun_anew, next_phase, replace
from executus.actors.agents.engine import Concluded, Engine
from executus.actors.agents.errors import BudgetExceeded, CriticRestart, InvalidAgent
from executus.actors.agents.parts import NOTHING, Message, Usage, user
from executus.actors.agents.phase_context import PhaseContext
from executus.actors.agents.template import names_in, rendered
from executus.actors.agents.tool_calls import function_key
from executus.actors.agents.watcher import WatchedContext
from executus.actors.errors import RunFenced
from executus.actors.journal import Journal
from executus.actors.outcomes import safe_text
from executus.actors.run import Done, Wait


class PipelineState(Standable, frozen=True, kw_only=True):
    """What is saved of a pipeline: the phases that are over, and how the present one stands.

    `entered` says whether the present phase has begun; `before` and `steps_before` are what was used when the last one
    was over: what a phase had used that was interrupted and began anew is its own, too.
    """

    completed: Journal[PhaseResult] = Journal()
    entered: bool = False
    before: Usage = NOTHING
    steps_before: int = 0

    @property
    def at(self) -> int:
        """The index of the present phase."""
        return len(self.completed)


class PipelineRun(Behaviour[PipelineState]):
    """A durable pipeline. Made by `Agents`, which gives it its ports."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._goes_on = False
        """Whether this attempt has begun, or looked at, the present phase: one that was interrupted may begin anew."""

    def resuming(self, state: PipelineState, /) -> None:
        """Besides what every agent's run needs: what is completed must be the first of the agent's phases."""
        agent = state.setup[0].task.agent
        completed = [one.name for one in state.completed]
        if completed != [phase.name for phase in agent.phases[: len(completed)]]:
            raise InvalidAgent(
                f"agent {agent.id!r}: completed are the phases {', '.join(completed)}, which are not the first of its "
                f"phases {', '.join(phase.name for phase in agent.phases)}"
            )
        super().resuming(state)

    async def begin(self, task: Task, /) -> PipelineState:
        """The first state, before the first phase. Raises InvalidAgent."""
        setup = self.set_up(task)
        return PipelineState(setup=Journal((setup,)), conversation=Conversation(ceiling=1))

    async def step(self, state: PipelineState, /) -> PipelineState | Wait[PipelineState] | Done[AgentResult]:
        """Enter the next phase, or take the present one further."""
        engine, agent = self.engine(state), state.setup[0].task.agent
        if state.at == len(agent.phases):
            return self.done(state, _result_of(state, engine))
        phase = agent.phases[state.at]
        anew = self._begins_anew(state, phase, engine)
        if anew or not state.entered:
            return await self._entered(state, phase, engine, anew=anew)
        try:
            concluded = await self._further(state, phase, engine)
        except (CriticRestart, RunFenced):
            raise
        except Exception as error:
            if not phase.optional or self.context.cancelled:
                raise  # a run that is asked to end ends by that, whatever its phase raised
            text = safe_text(error) or type(error).__name__
            self.context.log.warning("an optional phase failed", phase=phase.name, exc_info=True)
            state = replace(state, conversation=engine.timed(abandoned(state.conversation, f"not answered: {text}")))
            return self._over(state, PhaseResult(index=state.at, name=phase.name, status="failed", error=text))
        if isinstance(concluded, Concluded):
            state = replace(state, conversation=engine.timed(concluded.conversation))
            ended = PhaseResult(index=state.at, name=phase.name, status=concluded.status, output=concluded.output)
            return self._over(state, ended)
        return self.going_on(replace(state, conversation=engine.timed(concluded)))

    def phase_index(self, state: PipelineState) -> int | None:
        """See Behaviour."""
        return state.at

    def _begins_anew(self, state: PipelineState, phase: Phase, engine: Engine) -> bool:
        """Whether the present phase was interrupted and is to begin anew.

        What it had stays in the transcript, where an unsafe call finds its outcome. Children that it has called, or
        may have, are waited for first: nobody else would hear of them.
        """
        if self._goes_on or self.began_here or not state.entered or phase.resume == "step":
            self._goes_on = True
            return False
        if engine.calls_children(state.conversation):
            return False
        self._goes_on = True
        return True

    # --- one phase ---

    async def _entered(
        self, state: PipelineState, phase: Phase, engine: Engine, *, anew: bool = False
    ) -> PipelineState:
        """Begin a phase. The boundary before it is durable first: what was paid for is not paid for again."""
        if state.at and not await engine.made_durable(state.conversation, phase.name):
            return state  # asked to end meanwhile
        engine.record(PhaseBegan(**engine.at(), index=state.at, name=phase.name))
        ceiling = persona_of(state.setup[0].task.agent, phase).ceiling
        conversation = (begun_anew if anew else next_phase)(state.conversation, ceiling)
        if phase.function is None:
            invocation = state.setup[0].task.invocation
            images = invocation.images if "prompt" in names_in(phase.prompt) else ()
            prompt = user(rendered(phase.prompt, _values(state)), images)
            conversation = replace(conversation, transcript=conversation.transcript.append(prompt))
        return replace(
            state,
            conversation=engine.timed(conversation),
            entered=True,
        )

    async def _further(self, state: PipelineState, phase: Phase, engine: Engine) -> Conversation | Concluded:
        conversation = state.conversation
        if phase.function is None:
            agent = state.setup[0].task.agent
            is_last = all(later.function is not None for later in agent.phases[state.at + 1 :])
            return await engine.advance(conversation, persona_of(agent, phase), is_last=is_last)
        conversation = engine.entered(conversation)
        heard: list[Message] = []

        def take_steers() -> tuple[Message, ...]:
            new = conversation.inbox[len(heard) :]
            heard.extend(new)
            return new

        context = PhaseContext(
            info=engine.info,
            phase=phase.name,
            prompt=rendered(phase.prompt, _values(state)),
            outputs={one.name: one.output for one in state.completed},
            context=WatchedContext(self.context, engine.watcher),
            idempotency_key=function_key(engine.setup.life, state.at, phase.name),
            steers=take_steers,
        )
        try:
            output = await engine.call_function(self.ports.functions[phase.function], context, conversation, phase.name)
        except CriticRestart as error:
            return engine.given_up(conversation, error)
        except BudgetExceeded as error:
            return Concluded(conversation, "", "out_of_budget", error)
        return Concluded(
            engine.heeded(
                replace(
                    conversation,
                    transcript=conversation.transcript.extend(heard),
                    inbox=conversation.inbox[len(heard) :],
                )
            ),
            output,
            "completed",
        )

    def _over(self, state: PipelineState, ended: PhaseResult) -> PipelineState:
        """The phase is over; what it took is what was used since it began."""
        conversation, engine = state.conversation, self.engine(state)
        ended = replace(
            ended,
            steps=conversation.total_steps - state.steps_before,
            usage=minus(conversation.usage, state.before),
        )
        engine.record(PhaseEnded(**engine.at(), index=ended.index, name=ended.name, status=ended.status))
        return replace(
            state,
            completed=state.completed.append(ended),
            entered=False,
            before=conversation.usage,
            steps_before=conversation.total_steps,
            conversation=next_phase(conversation, conversation.ceiling),
        )


def minus(usage: Usage, before: Usage) -> Usage:
    """What was used since."""
    return Usage(
        usage.input_tokens - before.input_tokens,
        usage.output_tokens - before.output_tokens,
        usage.requests - before.requests,
        usage.tool_calls - before.tool_calls,
        usage.usd - before.usd,
    )


def _values(state: PipelineState) -> dict[str, object]:
    """What a prompt can name: what was given, and outputs of phases; of two of one name the later one's."""
    invocation = state.setup[0].task.invocation
    values: dict[str, object] = {"prompt": invocation.prompt, **dict(invocation.inputs)}
    return values | {one.name: one.output for one in state.completed}


def _result_of(state: PipelineState, engine: Engine) -> AgentResult:
    phases = tuple(state.completed)
    kinds = {one.status for one in phases}
    status: Status = "completed"
    if "out_of_budget" in kinds:
        status = "out_of_budget"
    elif "out_of_steps" in kinds:
        status = "out_of_steps"
    spoken = [one.output for one in phases if one.status != "failed"]
    return replace(engine.result(state.conversation, spoken[-1] if spoken else "", status), phases=phases)
