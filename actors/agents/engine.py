"""Takes a conversation one callback further: a request to the model, or the answers to the calls that it asked for.

One callback asks the model; the next ones answer what it asked for, in groups, so that a snapshot can fall between any
two of them. A resumed conversation is continued in the same way, whatever is open in it: pure and idempotent tools run
again, keyed ones with the same key, and an unsafe one only if no attempt before may have run it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypedDict, TypeVar, assert_never

import msgspec

from executus.actors.agents.agent import (
    UNLIMITED,
    AgentResult,
    Budget,
    Note,
    Persona,
    RunInfo,
    Status,
    Task,
    persona_of,
)
from executus.actors.agents.audit import (
    AuditEntry,
    ChildSettled,
    Delegated,
    Extended,
    KillOrdered,
    Nudged,
    RestartOrdered,
    StepTaken,
    ToolAnswered,
    facts_of,
)
from executus.actors.agents.budget import NO_AMOUNT, Amount, check, estimate_tokens, left, tighter
from executus.actors.agents.conversation import (
    INTERRUPTED,
    Conversation,
    Delegation,
    Setup,
    abandoned,
    answered,
    asked_again,
    child_ended,
    heard,
    replace,
    replied,
    said,
    tried_before,
)
from executus.actors.agents.critic import Extend, KillRun, Nudge, RestartRun, Verdict, Zone
from executus.actors.agents.delegation import delegated, is_key_of, plan, read, settled_early, status_of
from executus.actors.agents.errors import (
    AgentError,
    BudgetExceeded,
    CriticRestart,
    Fact,
    RateLimited,
    RepeatedCall,
    TooManyToolErrors,
)
from executus.actors.agents.model import ModelReply, ModelRequest, Tier, ToolSpec, checked_reply
from executus.actors.agents.parts import Image, Message, ToolCall, ToolResult, storable, user
from executus.actors.agents.phase_context import PhaseContext
from executus.actors.agents.ports import PhaseFunction, Ports
from executus.actors.agents.tool import ToolContext
from executus.actors.agents.tool_calls import groups, kind_of, run_group, tool_key
from executus.actors.agents.transcript import problems, with_ids
from executus.actors.agents.watcher import WatchedContext, Watcher
from executus.actors.errors import NotDurable
from executus.actors.policies import SavePolicy
from executus.actors.run import ChildEnded, Run, RunContext

T = TypeVar("T")

MAX_RATE_LIMIT_WAITS: Final = 20
"""So often a request is made again within one step; then it counts as a crash, and the run's backoff goes on."""


class Concluded(msgspec.Struct, frozen=True):
    """A conversation is over. `error` where it ran out of budget."""

    conversation: Conversation
    output: str
    status: Status
    error: AgentError | None = None


class Engine:
    """Of one attempt. Keeps nothing durable: what it knows besides the state is what this very attempt has begun."""

    def __init__(self, ports: Ports, run: Run[Any, Any, Any], setup: Setup) -> None:
        self.ports = ports
        self.setup = setup
        self.context: RunContext = run.context
        """The attempt's, whichever callback is running."""
        self.info = RunInfo.of(setup.task, setup.run_id, setup.started_at_s)
        self.watcher = Watcher(ports.critic, self.info, ports.monotonic_s, self._active_s, self._record_order)
        self.persona = persona_of(setup.task.agent)
        """The agent's own; a pipeline's phases have others."""
        self.budget = tighter(setup.task.agent.budget, setup.task.budget)
        self.saves = True
        """Whether anything of this run is stored; known once it has wanted to wait for that."""
        self._armed = ""
        self._restart_ordered = False
        self._counted = (0, 0, 0)
        self._fixed: tuple[str, tuple[ToolSpec, ...], int] = ("", (), 0)
        self._since_s = ports.monotonic_s()

    async def advance(
        self, conversation: Conversation, persona: Persona, *, is_last: bool = True
    ) -> Conversation | Concluded:
        """One callback's worth. With children under way there is nothing to do but to wait, see `waiting`.

        Follow-ups are for the run's last conversation. Raises AgentErrors, and whatever a model raises.
        """
        conversation = self.entered(conversation)
        try:
            return await self._advanced(conversation, persona, is_last=is_last)
        except CriticRestart as error:
            return self.given_up(conversation, error)
        except BudgetExceeded as error:
            error.facts = {**error.facts, **self.facts(conversation)}
            conversation = abandoned(conversation, f"not answered: {error}")
            return Concluded(conversation, conversation.last_words, "out_of_budget", error)
        except AgentError as error:
            # What was used is known here, and whoever reads the outcome wants to know it.
            error.facts = {**error.facts, **self.facts(conversation)}
            raise

    async def _advanced(
        self, conversation: Conversation, persona: Persona, *, is_last: bool
    ) -> Conversation | Concluded:
        ends = conversation.answered and not conversation.inbox
        if ends and not (is_last and conversation.follow_ups):  # whatever that took: nothing more is wanted
            return Concluded(conversation, conversation.last_words, "completed")
        self._check(conversation)
        if conversation.delegations:
            return conversation
        self._check_limits(conversation)
        if open_calls := conversation.open_calls:
            after = await self._answer(conversation, persona, open_calls)
        elif ends:
            after = asked_again(conversation)
        elif conversation.steps >= conversation.ceiling:
            return Concluded(conversation, conversation.last_words, "out_of_steps")
        else:
            after = await self._ask(conversation, persona)
        return self._judged(after, persona)

    # --- restarts that the critic has ordered ---

    def entered(self, conversation: Conversation) -> Conversation:
        """At the begin of each callback. Raises CriticRestart where this attempt was to be given up."""
        self.watcher.memo, self.watcher.pending = conversation.memo, []
        if not conversation.restart:
            return conversation
        if self._restart_ordered:
            raise CriticRestart(conversation.restart, **self.facts(conversation))
        return replace(conversation, restart="")  # that was an attempt before this one

    def given_up(self, conversation: Conversation, error: CriticRestart) -> Conversation:
        """The call in hand was given up, and the next callback crashes.

        Not this one: what it returns is the memo of it. A restart that forgets itself would be ordered for ever.
        """
        self._restart_ordered = True
        return replace(self.heeded(conversation), restart=str(error))

    # --- the model ---

    async def _ask(self, conversation: Conversation, persona: Persona) -> Conversation:
        """One request. What was said meanwhile goes into the conversation first."""
        conversation = heard(conversation)
        tier = self.ports.tiers[persona.tier]
        tools = self.ports.specs(persona.tools, persona.palette)
        messages, fixed = conversation.part, self._fixed_tokens(persona.system, tools)
        wanted = fixed + self._part_tokens(conversation)
        compactor = self.ports.compactor
        if compactor is not None and wanted > (limit := int(tier.context_tokens * compactor.threshold)):
            messages = await self._shortened(conversation, max(0, limit - fixed), persona.phase)
            wanted = fixed + estimate_tokens(messages)
        self._check(conversation, Amount(tokens=wanted, steps=1, usd=wanted * tier.usd_in / 1e6))
        request = ModelRequest(
            system=persona.system, messages=messages, tools=tools, info=self.info, step=conversation.steps
        )
        began_s = self.ports.monotonic_s()
        reply = await self._reply(request, tier, conversation, persona)
        if reply is None:
            return conversation  # asked to end while it waited for the provider
        message = with_ids(reply.message, len(conversation.transcript))
        usage = tier.priced(reply.usage)
        if self.ports.audit is not None:
            self.record(
                StepTaken(
                    **self.at(),
                    step=conversation.steps,
                    usage=usage,
                    calls=len(message.calls),
                    took_s=self.ports.monotonic_s() - began_s,
                )
            )
        self.context.progress(conversation.steps + 1, conversation.ceiling, persona.phase)
        return replied(conversation, message, usage)

    async def _reply(
        self, request: ModelRequest, tier: Tier, conversation: Conversation, persona: Persona
    ) -> ModelReply | None:
        """Ask until there is an answer, as long as the provider only wants to be left alone for a while."""
        for waits in range(MAX_RATE_LIMIT_WAITS + 1):
            try:
                return await self.watched("model", self._requested(request, tier), conversation, persona.phase)
            except RateLimited as limited:
                if waits == MAX_RATE_LIMIT_WAITS:
                    raise
                wait_s = min(60.0, 2.0**waits) if limited.retry_after_s is None else max(0.0, limited.retry_after_s)
                left_s = self._left(conversation).wall_s
                wait_s = wait_s if left_s is None else min(wait_s, left_s)
                self.context.log.info("the model's provider limits the rate", wait_s=wait_s, tier=persona.tier)
                await self.watched("rate_limit", self.context.sleep(wait_s), conversation, persona.phase)
                if self.context.cancelled:
                    return None
                self._check(conversation)
        raise AssertionError  # the loop returns or raises

    async def _requested(self, request: ModelRequest, tier: Tier) -> ModelReply:
        if tier.blocks:
            reply: Any = await self.context.run_sync(tier.model.request, request)
        else:
            reply = tier.model.request(request)
        return checked_reply(await reply if inspect.isawaitable(reply) else reply)

    def _fixed_tokens(self, system: str, tools: tuple[ToolSpec, ...]) -> int:
        """Of what is the same in all requests of a phase. Counted again where it is not."""
        if self._fixed[:2] != (system, tools):
            self._fixed = (system, tools, estimate_tokens((), system, tools))
        return self._fixed[2]

    def _part_tokens(self, conversation: Conversation) -> int:
        """Of the transcript of this phase. What was counted before is not counted again."""
        since, counted, tokens = self._counted
        if since != conversation.since or counted > len(conversation.transcript):
            counted, tokens = conversation.since, 0
        tokens += estimate_tokens(conversation.transcript[counted:])
        self._counted = (conversation.since, len(conversation.transcript), tokens)
        return tokens

    async def _shortened(self, conversation: Conversation, limit_tokens: int, phase: str) -> tuple[Message, ...]:
        """What the model is shown of a part that is too long. A compactor that fails leaves nothing out."""
        compactor, part = self.ports.compactor, conversation.part
        assert compactor is not None
        try:
            made = compactor.compact(part, limit_tokens, self.info)
            # It may ask a model, and so the critic looks at it as at one.
            messages = made if isinstance(made, tuple) else await self.watched("model", made, conversation, phase)
            found = problems(messages) if messages else ["it is empty"]
        except CriticRestart:
            raise
        except Exception:
            self.context.log.warning("the compactor raised; the model sees all of it", exc_info=True)
            return part
        if found:
            self.context.log.warning("the compactor made an illegal transcript; the model sees all", found=found[:3])
            return part
        return messages

    # --- what the model asked for ---

    async def _answer(
        self, conversation: Conversation, persona: Persona, open_calls: Sequence[ToolCall]
    ) -> Conversation:
        """Answer the next group of open calls."""
        calls = next(groups(open_calls, self.ports.tools))
        match kind_of(calls[0], self.ports.tools):
            case "palette":
                return await self._delegate(conversation, persona, calls)
            case "unsafe":
                return await self._unsafe(conversation, persona, calls[0])
            case "other":
                return await self._call(conversation, persona, calls)

    async def _unsafe(self, conversation: Conversation, persona: Persona, call: ToolCall) -> Conversation:
        """A call that must not be made twice: what says that it is about to be made is durable before it is made.

        Found armed by an earlier attempt it is not made: it may have happened.
        """
        if before := tried_before(conversation, call):
            return self._answered(conversation, [(call, before)])
        if conversation.armed != call.id:
            self._armed = call.id
            return replace(conversation, armed=call.id)
        if self._armed != call.id:
            return self._answered(
                conversation, [(call, ToolResult(call.id, call.name, INTERRUPTED, is_error=True, unknown=True))]
            )
        if not await self.made_durable(conversation, persona.phase):
            return replace(conversation, armed="")
        self._armed = ""
        return await self._call(conversation, persona, (call,))

    async def made_durable(self, conversation: Conversation, phase: str) -> bool:
        """Wait until the state that this callback was given is stored. False where the run was asked to end meanwhile.

        A run that saves nothing has nothing to wait for.
        """
        try:
            await self.watched("store", self.context.durable(), conversation, phase)
        except NotDurable:
            self.saves = False
        return not self.context.cancelled

    async def _call(self, conversation: Conversation, persona: Persona, calls: Sequence[ToolCall]) -> Conversation:
        self._check(conversation, Amount(tool_calls=len(calls)))
        if self._has_keyed(calls) and not await self.made_durable(conversation, persona.phase):
            return conversation
        indexes = {call.id: index for index, call in enumerate(_asking(conversation).calls)}
        watched = WatchedContext(self.context, self.watcher)
        notes = tuple(conversation.notes)
        contexts: dict[str, ToolContext] = {}

        def context_of(call: ToolCall) -> ToolContext:
            key = tool_key(self.setup.life, conversation.place, indexes[call.id], call)
            made = contexts[call.id] = ToolContext(
                watched, self.info, call_id=call.id, idempotency_key=key, notes=notes
            )
            return made

        began_s = self.ports.monotonic_s()
        results = await self.watched(
            "tool",
            run_group(
                calls,
                self.ports.tools,
                persona.tools,
                context_of,
                run_sync=self.context.run_sync,
                result_chars=self.setup.task.agent.limits.result_chars,
            ),
            conversation,
            persona.phase,
        )
        used = [contexts[call.id] for call in calls if call.id in contexts]
        return self._answered(
            conversation,
            list(zip(calls, results, strict=True)),
            [note for context in used for note in context.noted],
            [image for context in used for image in context.attached],
            self.ports.monotonic_s() - began_s,
        )

    def _has_keyed(self, calls: Sequence[ToolCall]) -> bool:
        """Whether one of them takes place once for its key: the key holds as long as the call is in the transcript."""
        tools = self.ports.tools
        return any(call.name in tools and tools[call.name].effect == "keyed" for call in calls)

    def _answered(
        self,
        conversation: Conversation,
        answers: Sequence[tuple[ToolCall, ToolResult]],
        notes: Sequence[Note] = (),
        attached: Sequence[Image] = (),
        took_s: float = 0.0,
    ) -> Conversation:
        for call, answer in answers if self.ports.audit is not None else ():
            self.record(
                ToolAnswered(
                    **self.at(),
                    name=call.name,
                    call_id=call.id,
                    is_error=answer.is_error,
                    unknown=answer.unknown,
                    took_s=took_s,
                )
            )
        return answered(conversation, answers, notes, attached)

    # --- other agents ---

    async def _delegate(self, conversation: Conversation, persona: Persona, calls: Sequence[ToolCall]) -> Conversation:
        """Spawn a child for each call. The calls are durable first: a resumed parent finds the same children."""
        caller = replace(persona.agent, tier=persona.tier, tools=persona.tools, phases=())
        known = [(call, tried_before(conversation, call)) for call in calls]
        if before := [(call, answer) for call, answer in known if answer is not None]:
            return self._answered(conversation, before)
        planned = plan(
            calls,
            conversation,
            self.setup,
            self.info,
            self._left(conversation),
            lambda name: self.ports.called(name, caller) if name in persona.palette else None,
        )
        if planned.children and not await self.made_durable(conversation, persona.phase):
            return conversation
        by_call = {call.id: (call, answer) for call, answer in planned.refused}
        spawned: list[Delegation] = []
        early = {one.key: one for one in conversation.early}
        for call, key, task in planned.children:
            if key in early:
                spawned.append(Delegation(call, key, early[key].run_id, task.budget))
                continue
            child = self.context.spawn(
                self.ports.run_class(task.agent),
                task,
                key=key,
                on_parent_end="kill",
                labels=labels_of(task),
                save_policy=self._save_policy(task, key),
            )
            spawned.append(Delegation(call, key, child.run_id, task.budget))
            self.record(Delegated(**self.at(), key=key, subject=task.agent.id, child_run_id=child.run_id))
        if not spawned:
            return self._answered(conversation, planned.refused)
        under_way = {one.call.id: one for one in spawned}
        after = delegated(
            replace(conversation, early=()),
            [under_way.get(call.id) or Delegation(call, "", "", UNLIMITED, by_call[call.id][1]) for call in calls],
        )
        for one in spawned:
            if one.key in early:
                after = child_ended(after, one.key, *settled_early(early[one.key], one.reserved))
        return after

    def _save_policy(self, task: Task, key: str) -> SavePolicy | None:
        """As the house chooses for a child, but never "none": who waits for it would find nothing after a crash.

        A caller that saves nothing itself has children of its own kind.
        """
        if not self.saves:
            return None
        info = RunInfo.of(task, f"{self.info.run_id}/{key}", self.ports.wall_s())
        policy = self.ports.save_policy(info, self.context.log)
        return None if policy is None or policy.durability == "none" else policy

    def child_ended(self, conversation: Conversation, ended: ChildEnded) -> Conversation:
        """Take in a child's end. One that nobody waits for any more is passed over.

        A resumed run may hear of it before it comes back to the callback that calls the child: it is kept until then.
        """
        one = next((one for one in conversation.delegations if one.key == ended.key and one.answer is None), None)
        if one is None:
            calls = [call for call in conversation.open_calls if is_key_of(ended.key, call)]
            if conversation.delegations or not calls:
                return conversation
            one = Delegation(calls[0], ended.key, ended.run_id, UNLIMITED)
        answer, used, steps = read(one.call, ended.outcome, one.reserved, self.setup.task.agent.limits.result_chars)
        self.record(ChildSettled(**self.at(), key=ended.key, status=status_of(ended.outcome)))
        if not conversation.delegations:
            early = replace(one, answer=answer, used=used, steps=steps)
            return replace(conversation, early=(*conversation.early, early))
        return child_ended(conversation, ended.key, answer, used, steps)

    def calls_children(self, conversation: Conversation) -> bool:
        """Whether children are under way, or may be: they were called, and the process died before that was saved."""
        if conversation.delegations or conversation.early:
            return True
        calls = next(groups(conversation.open_calls, self.ports.tools), None)
        return calls is not None and kind_of(calls[0], self.ports.tools) == "palette"

    def waiting_s(self, conversation: Conversation) -> float | None:
        """How long to wait for children at most; None without end."""
        wall_s = self._left(conversation).wall_s
        return None if wall_s is None else max(0.0, wall_s)

    # --- functions ---

    async def call_function(
        self, function: PhaseFunction, context: PhaseContext, conversation: Conversation, phase: str
    ) -> str:
        """What a function phase returns. Watched by the critic as every other call."""
        self._check(conversation)
        if inspect.iscoroutinefunction(function):
            called: Awaitable[Any] = function(context)
        else:
            called = self.context.run_sync(function, context)
        output: Any = await self.watched("function", called, conversation, phase)
        if not isinstance(output, str):
            raise TypeError(f"phase {phase!r}: its function must return a text, not {type(output).__name__}")
        return storable(output)

    def result(self, conversation: Conversation, output: str, status: Status) -> AgentResult:
        """What a run comes to that ends with this conversation."""
        return AgentResult(
            output=output,
            status=status,
            usage=conversation.usage,
            steps=conversation.total_steps,
            notes=tuple(conversation.notes),
            unheard=(*conversation.inbox, *conversation.follow_ups),
            transcript=tuple(conversation.transcript) if self.setup.task.agent.keep_transcript else (),
        )

    # --- limits, budget, critic ---

    def watched(self, zone: Zone, work: Awaitable[T], conversation: Conversation, phase: str) -> Awaitable[T]:
        """Await a call while the critic looks on, if there is one. Raises CriticRestart."""
        if self.ports.critic is None:
            return work
        return self.watcher.during(zone, work, conversation, phase, self.context)

    def facts(self, conversation: Conversation) -> dict[str, Fact]:
        """What an error of this run carries, so that whoever reads its outcome knows what it has used."""
        usage = conversation.usage
        return {
            "steps": conversation.total_steps,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "requests": usage.requests,
            "tool_calls": usage.tool_calls,
            "usd": usage.usd,
        }

    def timed(self, conversation: Conversation) -> Conversation:
        """With the time that this attempt has spent since it was asked last."""
        now_s = self.ports.monotonic_s()
        spent_s, self._since_s = max(0.0, now_s - self._since_s), now_s
        return replace(conversation, active_s=conversation.active_s + spent_s)

    def _check_limits(self, conversation: Conversation) -> None:
        limits = self.setup.task.agent.limits
        if conversation.tool_errors >= limits.tool_errors_in_a_row:
            raise TooManyToolErrors(
                f"{conversation.tool_errors} tool calls in a row ended in errors; limits.tool_errors_in_a_row is "
                f"{limits.tool_errors_in_a_row}"
            )
        if conversation.repeats >= limits.same_call_in_a_row:
            raise RepeatedCall(
                f"the model made the same call with the same arguments {conversation.repeats} times in a row; "
                f"limits.same_call_in_a_row is {limits.same_call_in_a_row}"
            )

    def _left(self, conversation: Conversation) -> Budget:
        return left(
            self._budget(conversation),
            conversation.usage,
            steps=conversation.total_steps,
            active_s=self._active_s(conversation),
            reserved=_reserved(conversation),
        )

    def _budget(self, conversation: Conversation) -> Budget:
        """As extended so far."""
        budget = self.budget
        if budget.wall_s is not None and conversation.extra_s:
            budget = replace(budget, wall_s=budget.wall_s + conversation.extra_s)
        self.watcher.deadline_s = budget.wall_s
        return budget

    def _active_s(self, conversation: Conversation) -> float:
        return conversation.active_s + max(0.0, self.ports.monotonic_s() - self._since_s)

    def _check(self, conversation: Conversation, wanted: Amount = NO_AMOUNT) -> None:
        """Raise BudgetExceeded unless what is next fits into what is left."""
        if self.budget == UNLIMITED:
            return
        check(
            self._budget(conversation),
            conversation.usage,
            steps=conversation.total_steps,
            active_s=self._active_s(conversation),
            wanted=wanted,
            reserved=_reserved(conversation),
        )

    def _judged(self, conversation: Conversation, persona: Persona) -> Conversation:
        """Ask the critic what it thinks of this, and take in what it thought meanwhile."""
        if self.ports.critic is None:
            return conversation
        verdict = self.watcher.judge(conversation, persona.phase, self.context)
        conversation = self.heeded(conversation)
        return conversation if verdict is None else self._taken(conversation, verdict)

    def heeded(self, conversation: Conversation) -> Conversation:
        """With what the critic has ordered while calls ran, and its memo."""
        pending, self.watcher.pending = self.watcher.pending, []
        for one in pending:
            conversation = self._taken(conversation, one)
        memo = self.watcher.memo
        return conversation if memo is conversation.memo else replace(conversation, memo=memo)

    def _taken(self, conversation: Conversation, verdict: Verdict) -> Conversation:
        match verdict:
            case Nudge(text, stall):
                self.record(Nudged(**self.at(), text=text, stall=stall))
                return said(conversation, (user(text, origin="nudge"),))
            case Extend(steps, seconds, reason):
                self.record(Extended(**self.at(), steps=steps, seconds=seconds, reason=reason))
                most = max(conversation.ceiling, self.setup.task.agent.limits.max_ceiling)
                return replace(
                    conversation,
                    ceiling=min(conversation.ceiling + steps, most),
                    extra_s=conversation.extra_s + seconds,
                )
            case RestartRun(reason):
                # With the state that says so: the next callback of this attempt crashes, the next attempt goes on.
                self._record_order(verdict)
                self._restart_ordered = True
                return replace(conversation, restart=reason or "the critic wants a restart")
            case KillRun(reason):
                self._record_order(verdict)
                self.context.kill(reason, by="critic")
                return conversation
            case _:
                assert_never(verdict)

    # --- the audit ---

    def _record_order(self, verdict: RestartRun | KillRun) -> None:
        kind = RestartOrdered if isinstance(verdict, RestartRun) else KillOrdered
        self.record(kind(**self.at(), reason=verdict.reason))

    def at(self) -> At:
        """What every entry begins with."""
        return {"info": self.info, "at_s": self.ports.wall_s(), "attempt": self.context.attempt}

    def record(self, entry: AuditEntry) -> None:
        """Tell the audit, and whoever listens to the runtime's events."""
        if self.ports.audit is not None:
            context = self.context
            self.ports.record(entry, context.log)
            context.report(type(entry).__name__, functools.partial(facts_of, entry))


class At(TypedDict):
    """What every entry of the audit begins with."""

    info: RunInfo
    at_s: float
    attempt: int


def _asking(conversation: Conversation) -> Message:
    """The message with the open calls."""
    return next(message for message in reversed(conversation.transcript) if message.role == "assistant")


def _reserved(conversation: Conversation) -> Amount:
    """What is set aside for children that run."""
    return Amount.set_aside(one.reserved for one in conversation.delegations if one.answer is None)


def labels_of(task: Task) -> dict[str, str]:
    """Labels by which an agent's run is found again: whose it is, and where it was asked."""
    invocation = task.invocation
    found = {
        "agent": task.agent.id,
        "caller": invocation.caller,
        "channel": invocation.channel,
        "guild": invocation.guild,
    }
    return {name: value for name, value in found.items() if value}
