"""The state of a conversation, and every way in which it changes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from executus.actors.agents.agent import Budget, Note, Task
from executus.actors.agents.critic import CriticMemo, Seen, remembered
from executus.actors.agents.parts import NOTHING, Image, Message, ToolCall, ToolResult, Usage, result, user
from executus.actors.agents.transcript import open_calls, results_of
from executus.actors.journal import Journal

replace = msgspec.structs.replace

INTERRUPTED: Final = (
    "interrupted: the process ended while this call was under way, and its outcome is unknown. It may have happened. "
    "It was not made again."
)


GIVEN_UP: Final = "given up: the process ended before the call was answered, and the phase begins anew."


class Setup(msgspec.Struct, frozen=True, gc=False):
    """What never changes in a run. A journal holds this one item, so that it is written once and not with each save.

    `life` is the seed of idempotency keys.
    """

    run_id: str
    task: Task
    life: str
    started_at_s: float


class Delegation(msgspec.Struct, frozen=True, gc=False):
    """A call of an agent or skill, and the child run that answers it. `reserved` is its share of the budget."""

    call: ToolCall
    key: str
    run_id: str
    reserved: Budget
    answer: ToolResult | None = None
    used: Usage = NOTHING
    steps: int = 0


class Conversation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Where a conversation stands. Everything that counts goes on counting over a resume.

    The open calls are not kept: they follow from the transcript. `armed` is the id of the unsafe call that is about to
    be made; `restart` is why the critic wants the run restarted, until that has happened.
    """

    ceiling: int
    transcript: Journal[Message] = Journal()
    since: int = 0
    """Where the part of the transcript begins that belongs to this phase."""
    tried_since: int = 0
    """Where that of its first try does: before `since` where the phase was interrupted and began anew."""
    steps: int = 0
    tool_errors: int = 0
    repeats: int = 0
    last_call: str = ""
    armed: str = ""
    delegations: tuple[Delegation, ...] = ()
    early: tuple[Delegation, ...] = ()
    """Children that ended before a resumed run came back to the callback that has called them."""
    restart: str = ""
    # of the whole run
    inbox: tuple[Message, ...] = ()
    follow_ups: tuple[Message, ...] = ()
    notes: Journal[Note] = Journal()
    usage: Usage = NOTHING
    total_steps: int = 0
    children: int = 0
    active_s: float = 0.0
    extra_s: float = 0.0
    memo: CriticMemo = CriticMemo()
    recent: tuple[Seen, ...] = ()

    @property
    def part(self) -> tuple[Message, ...]:
        """What belongs to this phase."""
        return self.transcript[self.since :]

    @property
    def open_calls(self) -> tuple[ToolCall, ...]:
        """Calls without a result, in order."""
        return open_calls(self.transcript, self.since)

    @property
    def place(self) -> int:
        """Which message with calls this is, for their keys: the same for one that is made again, other for every other.

        It counts the model's messages alone: when a request is repeated, what was said to it since comes before.
        """
        return self.tried_since + self.steps

    @property
    def answered(self) -> bool:
        """Whether the model has had the last word, and asks for nothing."""
        if len(self.transcript) <= self.since:
            return False
        last = self.transcript[-1]
        return last.role == "assistant" and not last.calls

    @property
    def last_words(self) -> str:
        """What the model has said last in this phase."""
        for at in range(len(self.transcript) - 1, self.since - 1, -1):
            message = self.transcript[at]
            if message.role == "assistant" and message.text.strip():
                return message.text
        return ""


def said(conversation: Conversation, messages: Sequence[Message]) -> Conversation:
    """Put these into the conversation before its next step."""
    return replace(conversation, inbox=(*conversation.inbox, *messages))


def heard(conversation: Conversation) -> Conversation:
    """With what was said to it in the transcript. No call may be open."""
    if not conversation.inbox:
        return conversation
    return replace(conversation, transcript=conversation.transcript.extend(conversation.inbox), inbox=())


def asked_again(conversation: Conversation) -> Conversation:
    """The model has had the last word: the next follow-up is the user's."""
    first, *others = conversation.follow_ups
    return replace(conversation, transcript=conversation.transcript.append(first), follow_ups=tuple(others))


def replied(conversation: Conversation, message: Message, usage: Usage) -> Conversation:
    """The model has answered a request."""
    seen = [Seen.call(call.name, call.arguments) for call in message.calls] or [Seen.said(message.text)]
    return replace(
        conversation,
        transcript=conversation.transcript.append(message),
        steps=conversation.steps + 1,
        total_steps=conversation.total_steps + 1,
        usage=conversation.usage + usage,
        recent=remembered(conversation.recent, *seen),
    )


def answered(
    conversation: Conversation,
    answers: Sequence[tuple[ToolCall, ToolResult]],
    notes: Sequence[Note] = (),
    attached: Sequence[Image] = (),
) -> Conversation:
    """These calls have these results, in the order of the calls; the counters of errors and repeats go on."""
    errors, repeats, last = conversation.tool_errors, conversation.repeats, conversation.last_call
    seen: list[Seen] = []
    for call, answer in answers:
        digest = Seen.call(call.name, call.arguments).digest
        repeats = repeats + 1 if digest == last else 1
        last = digest
        errors = errors + 1 if answer.is_error and not answer.unknown else 0
        if answer.is_error:
            seen.append(Seen.error(call.name, answer.text))
    changed = replace(
        conversation,
        transcript=conversation.transcript.extend(result(answer) for _, answer in answers),
        tool_errors=errors,
        repeats=repeats,
        last_call=last,
        armed="",
        usage=conversation.usage + Usage(tool_calls=len(answers)),
        notes=conversation.notes.extend(notes),
        recent=remembered(conversation.recent, *seen),
    )
    if attached:
        changed = said(changed, (user("", tuple(attached), origin="attached"),))
    return changed


def abandoned(conversation: Conversation, why: str) -> Conversation:
    """Nobody will answer the open calls any more, and the transcript stays legal.

    What was set aside for children that still run counts as used. An armed call may have been made.
    """
    if not conversation.open_calls:
        return conversation
    total, steps = conversation.usage, conversation.total_steps
    for one in (*conversation.delegations, *conversation.early):
        total += one.used if one.answer is not None else all_of(one.reserved)
        steps += one.steps if one.answer is not None else one.reserved.steps or 0
    there = {one.call.id: one.answer for one in conversation.delegations if one.answer is not None}
    running = {one.call.id for one in conversation.delegations}

    def given_up(call: ToolCall) -> ToolResult:
        if call.id == conversation.armed:
            return ToolResult(call.id, call.name, INTERRUPTED, is_error=True, unknown=True)
        return ToolResult(call.id, call.name, why, is_error=True, unknown=call.id in running)

    answers = [(call, there.get(call.id) or given_up(call)) for call in conversation.open_calls]
    return answered(replace(conversation, delegations=(), early=(), usage=total, total_steps=steps), answers)


def all_of(reserved: Budget) -> Usage:
    """Everything that was set aside, as usage."""
    return Usage(input_tokens=reserved.tokens or 0, tool_calls=reserved.tool_calls or 0, usd=reserved.usd or 0.0)


def child_ended(conversation: Conversation, key: str, answer: ToolResult, used: Usage, steps: int) -> Conversation:
    """A child has ended. When it was the last one, all their results enter the transcript, in the order of the calls.

    What each has used is settled; the rest of what was set aside for it is free again.
    """
    delegations = tuple(
        replace(one, answer=answer, used=used, steps=steps) if one.key == key else one
        for one in conversation.delegations
    )
    if any(one.answer is None for one in delegations):
        return replace(conversation, delegations=delegations)
    total = conversation.usage
    for one in delegations:
        total += one.used
    return answered(
        replace(
            conversation,
            delegations=(),
            usage=total,
            total_steps=conversation.total_steps + sum(one.steps for one in delegations),
        ),
        [(one.call, one.answer) for one in delegations if one.answer is not None],
    )


def next_phase(conversation: Conversation, ceiling: int) -> Conversation:
    """A conversation that begins behind this one: what counts for the run goes on, what counts for a phase begins."""
    return replace(
        conversation,
        ceiling=ceiling,
        since=len(conversation.transcript),
        tried_since=len(conversation.transcript),
        steps=0,
        tool_errors=0,
        repeats=0,
        last_call="",
        armed="",
        delegations=(),
        early=(),
        recent=(),
    )


def begun_anew(conversation: Conversation, ceiling: int) -> Conversation:
    """The present phase from its start. What was said to it is said again: the model is to hear it again."""
    part = conversation.part
    again = next_phase(abandoned(conversation, GIVEN_UP), ceiling)
    return replace(
        again,
        tried_since=conversation.tried_since,
        inbox=(*(message for message in part if message.origin == "steer"), *conversation.inbox),
        follow_ups=(*(message for message in part if message.origin == "follow_up"), *conversation.follow_ups),
    )


def tried_before(conversation: Conversation, call: ToolCall) -> ToolResult | None:
    """What the same call came to in an earlier try of this phase, the latest first; of several the one it repeats.

    The same is one of this name with these arguments. None for what no earlier try has made.
    """
    if conversation.tried_since == conversation.since:
        return None
    tries: list[list[Message]] = []
    for message in conversation.transcript[conversation.tried_since : conversation.since]:
        if message.origin == "prompt":
            tries.append([])
        tries[-1].append(message)
    nth = len(results_of(call, conversation.part))
    for part in reversed(tries):
        made = [one for one in results_of(call, part) if (one.text, one.is_error) != (GIVEN_UP, True)]
        if nth < len(made):
            return replace(made[nth], call_id=call.id)
    return None
