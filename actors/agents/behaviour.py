"""What both behaviours share: taking in what is said to a run, its children's ends, and questions about it."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

import msgspec

from executus.actors.agents.agent import AgentResult, RunInfo, Task
from executus.actors.agents.audit import RunBegan, RunConcluded, RunResumed, Steered
from executus.actors.agents.conversation import Conversation, Setup, replace, said
from executus.actors.agents.engine import Engine
from executus.actors.agents.errors import FATAL
from executus.actors.agents.parts import Message, Usage
from executus.actors.agents.ports import Ports
from executus.actors.agents.steering import FollowUp, Steer, checked_message
from executus.actors.agents.tool_calls import are_all_pure
from executus.actors.journal import Journal
from executus.actors.policies import RestartPolicy
from executus.actors.run import ChildEnded, Done, Run, Wait, WaitExpired
from executus.actors.state_codec import MAX_VALUE_BYTES


class Transcript(msgspec.Struct, frozen=True, tag="transcript"):
    """Question: the whole transcript so far, a tuple of Messages."""


class Attribution(msgspec.Struct, frozen=True, tag="attribution"):
    """Question: whose run it is, a RunInfo."""


class Standing(msgspec.Struct, frozen=True, tag="standing"):
    """Question: where it stands, a Progress."""


Question = Transcript | Attribution | Standing


class AgentProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Where an agent's run stands. `phase` is the index of the current one, None without phases."""

    steps: int
    step_ceiling: int
    usage: Usage
    waiting_for: tuple[str, ...]
    phase: int | None = None


class Standable(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The part that the states of both behaviours have."""

    setup: Journal[Setup]
    conversation: Conversation


S = TypeVar("S", bound=Standable)


class Behaviour(Run[Task, S, AgentResult], Generic[S]):
    """The common part; see AgentRun and PipelineRun. One instance an attempt, on the event loop."""

    restart_policy: ClassVar[RestartPolicy] = RestartPolicy(fatal=FATAL)

    def __init__(self, ports: Ports) -> None:
        self.ports = ports
        self.began_here = False
        """Whether this very attempt has begun the run: another one has resumed it."""
        self._engine: Engine | None = None

    def resuming(self, state: S, /) -> None:
        """Refuse what this code cannot go on with: the run is parked until code comes that can.

        From here on the audit can be told of its end, also if that comes before any callback.
        """
        setup = state.setup[0]
        self.ports.check(setup.task.agent)
        self.ports.live[setup.run_id] = RunInfo.of(setup.task, setup.run_id, setup.started_at_s)

    def may_go_ahead(self, state: S, /) -> bool:
        """Calls of pure tools need not wait until the reply that asks for them is stored: its commit takes both."""
        return are_all_pure(state.conversation.open_calls, self.ports.tools) and not state.conversation.delegations

    async def receive(self, state: S, message: Steer | FollowUp | ChildEnded | WaitExpired, /) -> S | Wait[S] | None:
        """Take in what is said, between steps; it reaches the model with the next request."""
        engine = self.engine(state)
        conversation = engine.timed(state.conversation)
        match message:
            case Steer() | FollowUp():
                try:
                    words = checked_message(message, MAX_VALUE_BYTES)
                except Exception:
                    # Told, and not looked at until now. In the state it would keep the run from ever being saved.
                    self.context.log.warning(
                        "a message is passed over: it is empty, or no state can hold it", exc_info=True
                    )
                    return None
                engine.record(Steered(**engine.at(), count=1))
                if isinstance(message, Steer):
                    conversation = said(conversation, (words,))
                else:
                    conversation = replace(conversation, follow_ups=(*conversation.follow_ups, words))
            case ChildEnded():
                conversation = engine.child_ended(conversation, message)
            case WaitExpired():
                return replace(state, conversation=conversation)  # a step finds that the time is up
        return self.going_on(replace(state, conversation=conversation))

    def query(self, state: S, question: Question, /) -> tuple[Message, ...] | RunInfo | AgentProgress:
        """Answer a Transcript, an Attribution or a Standing."""
        setup, conversation = state.setup[0], state.conversation
        match question:
            case Transcript():
                return tuple(conversation.transcript)
            case Attribution():
                return RunInfo.of(setup.task, setup.run_id, setup.started_at_s)
            case Standing():
                return AgentProgress(
                    steps=conversation.total_steps,
                    step_ceiling=conversation.ceiling,
                    usage=conversation.usage,
                    waiting_for=tuple(one.run_id for one in conversation.delegations if one.answer is None),
                    phase=self.phase_index(state),
                )

    def phase_index(self, state: S) -> int | None:  # noqa: ARG002 - for those that have phases
        """The current phase, where there are phases."""
        return None

    # --- for the behaviours ---

    def set_up(self, task: Task) -> Setup:
        """Check the task against what is here, and note what never changes. Raises InvalidAgent."""
        context, started_at_s = self.context, self.ports.wall_s()
        self.ports.live[context.run_id] = RunInfo.of(task, context.run_id, started_at_s)
        self.ports.check(task.agent)
        self.began_here = True
        return Setup(run_id=context.run_id, task=task, life=context.idempotency_key, started_at_s=started_at_s)

    def engine(self, state: S) -> Engine:
        """This attempt's engine, made on first use."""
        if self._engine is None:
            engine = self._engine = Engine(self.ports, self, state.setup[0])
            self.ports.live[engine.info.run_id] = engine.info
            if self.began_here:
                engine.record(RunBegan(**engine.at()))
            else:
                engine.record(RunResumed(**engine.at(), step=state.conversation.total_steps))
        return self._engine

    def going_on(self, state: S) -> S | Wait[S]:
        """Step on; with children under way there is nothing to do but to wait for them."""
        if not state.conversation.delegations:
            return state
        return Wait(state, timeout_s=self.engine(state).waiting_s(state.conversation))

    def done(self, state: S, result: AgentResult) -> Done[AgentResult]:
        """The run's end, told to the audit."""
        engine = self.engine(state)
        result = self._fitting(result)
        engine.record(
            RunConcluded(**engine.at(), status=result.status, reason="", usage=result.usage, steps=result.steps)
        )
        self.ports.live.pop(engine.info.run_id, None)
        return Done(result)

    def _fitting(self, result: AgentResult) -> AgentResult:
        """What was paid for is not lost because of what comes with it: a result is one record, and has its cap."""
        for name in ("transcript", "unheard", "notes"):
            if not getattr(result, name):
                continue
            if len(msgspec.msgpack.encode(result)) <= MAX_VALUE_BYTES:
                break
            self.context.log.warning("the result is too large for a record: a part of it is left out", part=name)
            result = replace(result, **{name: ()})
        return result
