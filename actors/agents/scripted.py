"""A model that follows a script: for tests, demos and benchmarks, offline, and the same again in another process."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from executus.actors.agents.errors import FatalModelError
from executus.actors.agents.model import ModelReply, ModelRequest
from executus.actors.agents.parts import Image, Message, Text, Thinking, ToolCall, ToolResult, Usage, assistant

CHARACTERS_PER_TOKEN = 4
IMAGE_CHARACTERS = 4_000
"""What a picture counts for: about a thousand tokens, the order of what providers charge."""


class Reply(msgspec.Struct, frozen=True):
    """What the model says, thinks and asks for in one message: `think("…") + say("…") + call("read", path="a")`.

    Calls without an id get one from their step. Without `usage` it is estimated from the lengths of the texts.
    """

    parts: tuple[Text | Thinking | ToolCall, ...]
    after_s: float = 0.0
    usage: Usage | None = None

    def __post_init__(self) -> None:
        if not self.after_s >= 0:  # NaN is refused, too
            raise ValueError(f"after_s must not be negative, not {self.after_s!r}")

    def __add__(self, other: Reply) -> Reply:
        usage = self.usage if other.usage is None else other.usage + (self.usage or Usage())
        return Reply(self.parts + other.parts, self.after_s + other.after_s, usage)

    def after(self, seconds: float) -> Reply:
        """The same, but that much later; `math.inf` for a model that hangs. The event loop goes on meanwhile."""
        return msgspec.structs.replace(self, after_s=seconds)

    def using(self, input_tokens: int, output_tokens: int, usd: float = 0.0) -> Reply:
        """The same, with this as what it took."""
        usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens, usd=usd)
        return msgspec.structs.replace(self, usage=usage)


def say(text: str) -> Reply:
    """Words; alone in a message they are the conversation's last."""
    return Reply((Text(text),))


def think(text: str, signature: str | None = None) -> Reply:
    """A thought, ahead of what is said or called."""
    return Reply((Thinking(text, signature),))


def call(name: str, /, **arguments: object) -> Reply:
    """A tool call; several in one message are added up."""
    return Reply((ToolCall("", name, msgspec.json.encode(arguments).decode()),))


class Failure(msgspec.Struct, frozen=True):
    """A request that fails. In a script it stands before the reply of its step and takes up no step of its own."""

    error: BaseException
    times: int | None = 1
    after_s: float = 0.0

    def after(self, seconds: float) -> Failure:
        """The same, but that much later."""
        return msgspec.structs.replace(self, after_s=seconds)


def fail(error: BaseException, *, times: int | None = 1) -> Failure:
    """Raise `error`, so many times in each run, then go on with what comes next. None: always.

    Counted in memory: a run that is resumed in another process fails as often again.
    """
    return Failure(error, times)


Entry = Reply | Failure | ModelReply
"""A ModelReply goes out as it stands."""
Script = Sequence[Entry] | Callable[[ModelRequest], Entry | Sequence[Entry] | None]


class _Cue(msgspec.Struct, frozen=True):
    """What answers one step: failures first, as often as they are due."""

    failures: tuple[Failure, ...] = ()
    reply: Reply | ModelReply | None = None

    def entry(self, failed: int) -> Entry | None:
        """What comes after so many failures."""
        for failure in self.failures:
            if failure.times is None or failed < failure.times:
                return failure
            failed -= failure.times
        return self.reply


def _cues(entries: Iterable[Entry]) -> list[_Cue]:
    cues: list[_Cue] = []
    failures: tuple[Failure, ...] = ()
    for entry in entries:
        if isinstance(entry, Failure):
            failures = (*failures, entry)
        else:
            cues.append(_Cue(failures, entry))
            failures = ()
    return [*cues, _Cue(failures)] if failures else cues


class ScriptedModel:
    """Answers by `request.step` alone, so that a resumed run gets what the interrupted one would have got.

    `script`: replies, the first for step 0 of every conversation; or a function of the request, which returns what
    answers it: a reply, failures and a reply, or None for nothing. Where nothing answers: FatalModelError.
    Serves many runs at once. The last `keep` requests are kept to be looked at.
    """

    def __init__(self, script: Script, *, keep: int = 1_000) -> None:
        self._function = script if callable(script) else None
        self._cues = [] if callable(script) else _cues(script)
        self._requests: deque[ModelRequest] = deque(maxlen=keep)
        self._failed: Counter[tuple[str, int]] = Counter()

    @property
    def requests(self) -> tuple[ModelRequest, ...]:
        """What it was asked, the oldest first, failed requests included."""
        return tuple(self._requests)

    async def request(self, request: ModelRequest, /) -> ModelReply:
        """What the script has for this step. Raises what it says, FatalModelError where it says nothing."""
        self._requests.append(request)
        place = (request.info.run_id, request.step)
        entry = self._cue(request).entry(self._failed.get(place, 0))
        if entry is None:
            raise self._nothing_for(request)
        if isinstance(entry, ModelReply):
            return entry
        if isinstance(entry, Failure):
            self._failed[place] += 1
        if entry.after_s:
            await asyncio.sleep(entry.after_s)
        if isinstance(entry, Failure):
            raise entry.error.with_traceback(None)  # one error for every run: it must not gather their frames
        message = assistant(*_with_ids(entry.parts, request.step))
        return ModelReply(message, entry.usage or _estimated(request, message))

    def _cue(self, request: ModelRequest) -> _Cue:
        if self._function is None:
            return self._cues[request.step] if request.step < len(self._cues) else _Cue()
        answer = self._function(request)
        if answer is None:
            return _Cue()
        cues = _cues([answer] if isinstance(answer, Entry) else answer)
        if len(cues) > 1:
            raise TypeError(f"a script's function answers one request at a time, not {len(cues)}")
        return cues[0] if cues else _Cue()

    def _nothing_for(self, request: ModelRequest) -> FatalModelError:
        run_id, step = request.info.run_id, request.step
        has = "its function returned nothing" if self._function else f"it has {len(self._cues)}, counted from 0"
        return FatalModelError(
            f"run {run_id!r}, step {step}: the script has no reply: {has}. "
            "Give it one more, or the agent a lower step ceiling.",
            run_id=run_id,
            step=step,
        )


def _with_ids(parts: tuple[Text | Thinking | ToolCall, ...], step: int) -> Iterable[Text | Thinking | ToolCall]:
    """Calls without an id get one that is the same whenever this step is answered, and no other step's."""
    for at, part in enumerate(parts):
        if isinstance(part, ToolCall) and not part.id:
            yield ToolCall(f"scripted-{step}-{at}", part.name, part.arguments)
        else:
            yield part


def _estimated(request: ModelRequest, message: Message) -> Usage:
    read = len(request.system) + sum(map(_characters, request.messages))
    said = _characters(message)
    return Usage(-(-read // CHARACTERS_PER_TOKEN), -(-said // CHARACTERS_PER_TOKEN))


def _characters(message: Message) -> int:
    count = 0
    for part in message.parts:
        match part:
            case Text() | Thinking() | ToolResult():
                count += len(part.text)
            case ToolCall():
                count += len(part.name) + len(part.arguments)
            case Image():
                count += IMAGE_CHARACTERS
    return count
