"""Calls of other agents and skills: which child run answers one, with what budget, and what the model reads of its end.

Pure.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Final, assert_never

import msgspec

from executus.actors.agents.agent import AGENT, SKILL, Agent, AgentResult, Budget, Invocation, RunInfo, Task
from executus.actors.agents.budget import share
from executus.actors.agents.conversation import Conversation, Delegation, Setup, all_of, replace
from executus.actors.agents.errors import BudgetExceeded, InvalidAgent
from executus.actors.agents.parts import NOTHING, ToolCall, ToolResult, Usage
from executus.actors.outcomes import Cancelled, Completed, Failed, Killed, Outcome, Quarantined, TimedOut
from executus.stores import RunStatus

_STATUS: Final[dict[type[object], RunStatus]] = {
    Completed: RunStatus.COMPLETED,
    Failed: RunStatus.FAILED,
    Killed: RunStatus.KILLED,
    Cancelled: RunStatus.CANCELLED,
    TimedOut: RunStatus.TIMED_OUT,
    Quarantined: RunStatus.QUARANTINED,
}


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of a call of an agent or skill."""

    prompt: str


class Plan(msgspec.Struct, frozen=True):
    """The children to spawn, each under its key, and the calls that get an error for an answer instead."""

    children: tuple[tuple[ToolCall, str, Task], ...]
    refused: tuple[tuple[ToolCall, ToolResult], ...]


def plan(  # noqa: PLR0917 - facts, in the order in which they are asked
    calls: Sequence[ToolCall],
    conversation: Conversation,
    setup: Setup,
    info: RunInfo,
    left: Budget,
    agent_named: Callable[[str], Agent | None],
) -> Plan:
    """Which of these calls become children. Depth, fan-out and number are capped by the caller's limits."""
    limits = setup.task.agent.limits
    wanted: list[tuple[ToolCall, Task]] = []
    refused: list[tuple[ToolCall, ToolResult]] = []
    earlier = _earlier(calls[0], conversation)
    for call in calls:
        agent = agent_named(call.name)
        if agent is None:
            refused.append(_refuse(call, f"there is no {call.name!r} to call"))
        elif info.depth >= limits.depth:
            refused.append(_refuse(call, f"not called: {limits.depth} agents deep is the most"))
        elif earlier + len(wanted) >= limits.fan_out:
            refused.append(_refuse(call, f"not called: {limits.fan_out} calls of agents in one message are the most"))
        elif conversation.children + len(wanted) >= limits.children:
            refused.append(_refuse(call, f"not called: {limits.children} calls of agents in one run are the most"))
        else:
            try:
                asked = msgspec.json.decode(call.arguments or "{}", type=Asked)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                refused.append(_refuse(call, f"bad arguments: {error}. Expected: {{'prompt': 'what to do'}}"))
            else:
                try:
                    wanted.append((call, _task(agent, asked.prompt, info)))
                except InvalidAgent as error:  # its phases want inputs that no call gives
                    refused.append(_refuse(call, f"not called: {error}"))
    budget = left
    if wanted:
        try:
            budget = share(left, len(wanted) + 1)  # the caller itself wants to go on afterwards
        except BudgetExceeded as error:
            refused += [_refuse(call, f"not called: {error}") for call, _ in wanted]
            wanted = []
    place = len(conversation.transcript)
    return Plan(
        tuple((call, key_of(place, call), replace(task, budget=budget)) for call, task in wanted),
        tuple(refused),
    )


def _earlier(first: ToolCall, conversation: Conversation) -> int:
    """How many calls of agents and skills stand before this one in its message, with calls of tools between."""
    asking = next(message for message in reversed(conversation.transcript) if message.role == "assistant")
    before = itertools.takewhile(lambda call: call.id != first.id, asking.calls)
    return sum(call.name.startswith((AGENT, SKILL)) for call in before)


def _task(agent: Agent, prompt: str, info: RunInfo) -> Task:
    """What a child is given, by whom its parent was asked. Raises InvalidAgent."""
    return Task(
        agent,
        Invocation(
            prompt=prompt,
            caller=info.caller,
            channel=info.channel,
            guild=info.guild,
            parent_run_id=info.run_id,
            root_run_id=info.root_run_id,
            depth=info.depth + 1,
        ),
    )


def key_of(place: int, call: ToolCall) -> str:
    """The child's key: where in the transcript the call was made, and which one it is.

    The transcript that holds the call is durable before the child is spawned, so that a resumed parent makes the same.
    """
    return f"{place}-{_digest(call)}"


def is_key_of(key: str, call: ToolCall) -> bool:
    """Whether it is the key of this call, wherever it was made."""
    return key.partition("-")[2] == _digest(call)


def _digest(call: ToolCall) -> str:
    text = f"{call.id}\0{call.name}\0{call.arguments}"
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=6).hexdigest()


def delegated(conversation: Conversation, spawned: Sequence[Delegation]) -> Conversation:
    """These children answer calls of this conversation from now on."""
    return replace(
        conversation,
        delegations=(*conversation.delegations, *spawned),
        children=conversation.children + sum(1 for one in spawned if one.run_id),
    )


def read(call: ToolCall, outcome: Outcome, reserved: Budget, result_chars: int) -> tuple[ToolResult, Usage, int]:
    """What the model reads of a child's end, and what the child has used.

    Of one that says nothing of it (killed, timed out), all that was set aside counts as used: it may have been.
    """
    match outcome:
        case Completed(result) if isinstance(result, AgentResult):
            text = result.output or "(no output)"
            if result.status != "completed":
                text = f"[{result.status}] {text}"
            return _result(call, text, result_chars, is_error=result.status == "failed"), result.usage, result.steps
        case Completed(result):
            return _result(call, str(result), result_chars), NOTHING, 0
        case Failed(error):
            facts = error.facts
            used = Usage(
                input_tokens=_whole(facts.get("input_tokens")),
                output_tokens=_whole(facts.get("output_tokens")),
                requests=_whole(facts.get("requests")),
                tool_calls=_whole(facts.get("tool_calls")),
                usd=_number(facts.get("usd")),
            )
            known = "requests" in facts
            name = error.type.rsplit(".", 1)[-1]
            answer = _result(call, f"{call.name} failed: {name}: {error.message}", result_chars, is_error=True)
            return answer, used if known else all_of(reserved), _whole(facts.get("steps"))
        case Killed(by, reason):
            text = f"{call.name} was killed by {by}: {reason}"
        case Cancelled(by, reason):
            text = f"{call.name} was cancelled by {by}: {reason}"
        case TimedOut():
            text = f"{call.name} ran out of time"
        case Quarantined(reason):
            text = f"{call.name} was quarantined: {reason}"
        case _:
            assert_never(outcome)
    return _result(call, text, result_chars, is_error=True), all_of(reserved), reserved.steps or 0


def status_of(outcome: Outcome) -> str:
    """A result's status where there is one, else the run's."""
    if isinstance(outcome, Completed) and isinstance(outcome.result, AgentResult):
        return outcome.result.status
    return _STATUS[type(outcome)].value


def settled_early(early: Delegation, reserved: Budget) -> tuple[ToolResult, Usage, int]:
    """As `read`, of an end that was read before it was known what is set aside for the child."""
    assert early.answer is not None
    if early.answer.is_error and early.used == NOTHING:
        return early.answer, all_of(reserved), reserved.steps or 0
    return early.answer, early.used, early.steps


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _whole(value: object) -> int:
    return int(_number(value))


def _refuse(call: ToolCall, text: str) -> tuple[ToolCall, ToolResult]:
    return call, ToolResult(call.id, call.name, text, is_error=True)


def _result(call: ToolCall, text: str, most: int, *, is_error: bool = False) -> ToolResult:
    if len(text) > most:
        text = f"{text[:most]}… [cut: {most} of {len(text)} characters]"
    return ToolResult(call.id, call.name, text, is_error=is_error)
