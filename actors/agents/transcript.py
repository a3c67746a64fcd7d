"""Which transcripts are legal, and what is open in one. Pure.

A provider refuses a transcript in which a call has no result, a result has no call, or the user speaks between the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from executus.actors.agents.parts import Message, ToolCall, ToolResult


def open_calls(transcript: Sequence[Message], since: int = 0) -> tuple[ToolCall, ...]:
    """The calls of the last message of the model's that have no result yet, in their order. Looks at the end alone."""
    answered: list[str] = []
    at = len(transcript)
    while at > since:
        at -= 1
        message = transcript[at]
        if message.role == "assistant":
            calls = message.calls
            return tuple([call for call in calls if call.id not in answered]) if answered else calls
        if message.role != "tool":
            return ()
        answered += [part.call_id for part in message.parts if isinstance(part, ToolResult)]
    return ()


def results_of(call: ToolCall, transcript: Iterable[Message]) -> list[ToolResult]:
    """The results of all calls with this one's name and arguments, whatever their ids, in order."""
    found: list[ToolResult] = []
    alike: set[str] = set()
    for message in transcript:
        if message.role == "assistant":
            alike = {one.id for one in message.calls if (one.name, one.arguments) == (call.name, call.arguments)}
        found += [part for part in message.parts if isinstance(part, ToolResult) and part.call_id in alike]
    return found


def problems(transcript: Iterable[Message]) -> list[str]:
    """What a provider would refuse, one sentence each; empty for a legal transcript that is ready for a request."""
    found: list[str] = []
    waiting: dict[str, str] = {}
    for at, message in enumerate(transcript):
        match message.role:
            case "tool":
                for part in message.parts:
                    if not isinstance(part, ToolResult):
                        found.append(f"message {at}: a tool's message holds something else than results")
                    elif waiting.pop(part.call_id, None) is None:
                        found.append(f"message {at}: a result of {part.name!r} without an open call")
            case _:
                if waiting:
                    found.append(f"message {at}: {', '.join(waiting.values())} has no result before it")
                    waiting = {}
                if message.role == "assistant":
                    waiting = {call.id: call.name for call in message.calls}
                    if len(waiting) != len(message.calls):
                        found.append(f"message {at}: two calls carry one id")
    if waiting:
        found.append(f"at the end: {', '.join(waiting.values())} has no result")
    return found


def with_ids(message: Message, number: int) -> Message:
    """A reply of the model's whose calls all have ids of their own: some providers send none, or the same one twice.

    `number` is the message's place in the transcript, so that ids are new in it and the same when it is made again.
    """
    calls = message.calls
    ids = {call.id for call in calls}
    if "" not in ids and len(ids) == len(calls):
        return message
    seen: set[str] = set()
    parts = list(message.parts)
    for at, part in enumerate(parts):
        if isinstance(part, ToolCall):
            own = part.id or f"call-{number}-{at}"
            while own in seen:
                own += f"-{at}"
            parts[at] = msgspec.structs.replace(part, id=own)
            seen.add(own)
    return msgspec.structs.replace(message, parts=tuple(parts))
