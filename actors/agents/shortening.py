"""The default compactor: old results are cut, then old messages left out, and the model is told so. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from executus.actors.agents.agent import RunInfo
from executus.actors.agents.budget import estimate_tokens, message_tokens
from executus.actors.agents.parts import Image, Message, Part, Text, ToolResult, user

SHORTEST: Final = 200
"""Characters of a result that are left in any case."""

Messages = tuple[Message, ...]


class Shortening(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Gives up what is needed least, step by step until the rest fits.

    1. Results and images before the newest `keep_last` messages: `result_chars` are left of a result, of an image a
       word.
    2. The oldest messages, but for the first of the user's; a note says how many.
    3. Both among the newest `keep_last`, save the model's last message and what follows it.
    4. Results in that, down to 200 characters each.

    A call is never parted from its results. What does not fit even so is as short as it gets.
    """

    keep_last: int = 8
    threshold: float = 0.75
    result_chars: int = 2_000

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, not {self.threshold!r}")
        if self.keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, not {self.keep_last}")
        if self.result_chars < SHORTEST:
            raise ValueError(f"result_chars must be at least {SHORTEST}, not {self.result_chars}")

    def compact(self, messages: Messages, limit_tokens: int, _info: RunInfo, /) -> Messages:
        """The messages themselves where they fit."""
        best, tokens = messages, estimate_tokens(messages)
        if tokens <= limit_tokens:
            return messages
        for shorter in self._ever_shorter(messages, limit_tokens):
            size = estimate_tokens(shorter)
            if size < tokens:  # a note may be longer than what it stands for
                best, tokens = shorter, size
            if tokens <= limit_tokens:
                break
        return best

    def _ever_shorter(self, messages: Messages, limit_tokens: int) -> Iterator[Messages]:
        last = _last_block(messages)
        kept = min(last, _block_start(messages, max(0, len(messages) - self.keep_last)))
        old_cut = _cut(messages, kept, self.result_chars)
        yield old_cut
        yield _newest(old_cut, kept, limit_tokens)
        all_cut = _cut(messages, last, self.result_chars)
        yield _newest(all_cut, last, limit_tokens)
        chars = max((len(part.text) for part in _results(messages[last:])), default=0)
        while chars > SHORTEST:
            chars = max(SHORTEST, chars * 3 // 4)
            block = tuple(_with_results_cut(message, chars) for message in messages[last:])
            yield _newest((*all_cut[:last], *block), last, limit_tokens)


def _results(messages: Sequence[Message]) -> Iterator[ToolResult]:
    return (part for message in messages for part in message.parts if isinstance(part, ToolResult))


def _first_user(messages: Messages) -> int:
    """Where the user first spoke; behind the end, if never."""
    return next((at for at, message in enumerate(messages) if message.role == "user"), len(messages))


def _block_start(messages: Messages, at: int) -> int:
    """Where the message at `at` may be parted from those before it: results stay with the calls."""
    while at > 0 and messages[at].role == "tool":
        at -= 1
    return at


def _last_block(messages: Messages) -> int:
    """Where the model spoke last; the last message, where it never did."""
    spoke = (at for at in range(len(messages) - 1, -1, -1) if messages[at].role == "assistant")
    return next(spoke, max(0, len(messages) - 1))


def _cut(messages: Messages, before: int, chars: int) -> Messages:
    """With results and images cut before this place; not in the first message of the user's."""
    first = _first_user(messages)
    old = (
        message if at == first else _without_images(_with_results_cut(message, chars))
        for at, message in enumerate(messages[:before])
    )
    return (*old, *messages[before:])


def _newest(messages: Messages, latest: int, limit_tokens: int) -> Messages:
    """The first message of the user's, a note, and as many of the newest as fit; all from `latest` on in any case."""
    first = _first_user(messages)
    head = messages[first : first + 1] if first < latest else ()
    room = limit_tokens - estimate_tokens((*head, _note(len(messages)), *messages[latest:]))
    start = latest
    for at in range(latest - 1, first if head else -1, -1):
        room -= message_tokens(messages[at])
        if room < 0:
            break
        if messages[at].role != "tool":
            start = at
    left_out = start - len(head)
    return (*head, _note(left_out), *messages[start:]) if left_out else messages


def _note(left_out: int) -> Message:
    return user(f"({left_out} earlier messages are left out here.)", origin="nudge")


def _with_results_cut(message: Message, chars: int) -> Message:
    if all(len(part.text) <= chars for part in _results((message,))):
        return message
    return _with(message, (_cut_result(part, chars) for part in message.parts))


def _cut_result(part: Part, chars: int) -> Part:
    """Its beginning and end, with a remark between them that counts as well."""
    if not isinstance(part, ToolResult) or len(part.text) <= chars:
        return part
    remark = f"\n[... of {len(part.text)} characters, the middle is left out ...]\n"
    room = chars - len(remark)
    text = part.text[: room - room // 3] + remark + part.text[len(part.text) - room // 3 :]
    return msgspec.structs.replace(part, text=text)


def _without_images(message: Message) -> Message:
    if not any(isinstance(part, Image) for part in message.parts):
        return message
    return _with(message, (Text("[an image, left out]") if isinstance(part, Image) else part for part in message.parts))


def _with(message: Message, parts: Iterator[Part]) -> Message:
    return msgspec.structs.replace(message, parts=tuple(parts))
