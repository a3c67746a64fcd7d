"""The port to critics: what one is shown of a run, and what it may order. Data, and pure functions on it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from typing import Final, Literal, Protocol, assert_never

import msgspec

from executus.actors.agents.agent import RunInfo
from executus.actors.agents.parts import Usage

Zone = Literal["model", "tool", "function", "rate_limit", "store", "children", "between"]
"""What a run is doing: waiting for its model, a tool, a phase's function; or `between` two of them."""

PROTECTED: Final[frozenset[Zone]] = frozenset({"rate_limit", "store", "children"})
"""Where a run waits for others. However long that takes, it is no fault of the run's."""

Stall = Literal["hung", "spinning", "waiting", "slow"]

RECENT: Final = 16
"""How much of what a run has done a critic is shown."""


SHORT_CHARS: Final = 2_000
"""Arguments of this length are kept with their digest for a while, some hundred of them."""
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_DECODER: Final = msgspec.json.Decoder()


class Seen(msgspec.Struct, frozen=True, gc=False):
    """A call, an error or a text as something to be recognised: its digest, and the tool's name."""

    digest: str
    kind: Literal["call", "error", "text"]
    name: str = ""

    @classmethod
    def call(cls, name: str, arguments: str) -> Seen:
        """A call. Arguments that mean the same in another order, or with other spaces, are the same."""
        # Asked twice a call: when the model has made it, and when it is answered.
        return (_seen_lately if len(arguments) <= SHORT_CHARS else _seen_call)(name, arguments)

    @classmethod
    def error(cls, name: str, text: str) -> Seen:
        """The text of a tool's error."""
        return cls(_digest(f"{name}\n{text}"), "error", name)

    @classmethod
    def said(cls, text: str) -> Seen:
        """The words of a message of the model's."""
        return cls(_digest(text), "text")


def _seen_call(name: str, arguments: str) -> Seen:
    with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):  # else: as the model wrote them
        arguments = _ENCODER.encode(_DECODER.decode(arguments)).decode()
    return Seen(_digest(f"{name}\n{arguments}"), "call", name)


_seen_lately: Final = functools.lru_cache(maxsize=256)(_seen_call)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def remembered(recent: tuple[Seen, ...], *seen: Seen) -> tuple[Seen, ...]:
    """What was seen last, newest last, with these behind it; the oldest go."""
    return (*recent, *seen)[-RECENT:]


class CriticMemo(msgspec.Struct, frozen=True, gc=False):
    """What a critic has ordered so far. Saved with the run's state, so that the ladder goes on over a resume."""

    nudges: int = 0
    extensions: int = 0
    restarts: int = 0
    rung: int = 0
    """The highest order given: 1 a nudge, 2 an extension, 3 a restart, 4 a kill; 0 none."""
    at_step: int = 0
    """Requests made when the last order was given."""
    at_s: float = 0.0
    """The run's loaded time then."""


class Watch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a critic sees of a run, after each callback and every `every_s` while a call runs."""

    info: RunInfo
    attempt: int
    phase: str = ""
    """The phase of a pipeline, by its name."""
    step: int
    """Requests to the model so far in this conversation."""
    step_ceiling: int
    """As extended so far; `info` has the agent's own."""
    zone: Zone
    zone_s: float
    """Time in this zone so far."""
    idle_s: float
    """Since the last sign of life: the begin of the callback, a heartbeat, a call that came back."""
    active_s: float
    """How long the run has been loaded in a process, over all its attempts."""
    deadline_s: float | None = None
    """The loaded time at which it is ended as it stands, as extended so far. Not the hard deadline."""
    recent: tuple[Seen, ...] = ()
    """What was seen last, newest last: every call, and every error's text."""
    usage: Usage = Usage()
    memo: CriticMemo = CriticMemo()


class Nudge(msgspec.Struct, frozen=True, tag="nudge"):
    """Put this into the conversation before its next step. `stall` is for the record."""

    text: str
    stall: str = ""


class Extend(msgspec.Struct, frozen=True, tag="extend"):
    """Raise the step ceiling by so many steps, or the deadline by so many seconds: the run is long, and well."""

    steps: int = 0
    seconds: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        if not (self.steps >= 0 and self.seconds >= 0):  # NaN is refused, too
            raise ValueError(f"{self!r}: an extension takes nothing away")


class RestartRun(msgspec.Struct, frozen=True, tag="restart"):
    """Give up what runs and start again from the last snapshot, within the run's restart policy."""

    reason: str


class KillRun(msgspec.Struct, frozen=True, tag="kill"):
    """End the run for good."""

    reason: str


Verdict = Nudge | Extend | RestartRun | KillRun
_decoder: Final = msgspec.msgpack.Decoder(Verdict)


def checked_verdict(given: object) -> Verdict | None:
    """What a critic returned, if a state can hold it. Raises TypeError, ValueError or msgspec's errors."""
    return None if given is None else _decoder.decode(msgspec.msgpack.encode(given))


def next_memo(memo: CriticMemo, verdict: Verdict, watch: Watch) -> CriticMemo:
    """The memo once this verdict is given.

    It must be in the run's state before the verdict is carried out: a restart that forgets itself is ordered for ever.
    """
    nudges, extensions, restarts = memo.nudges, memo.extensions, memo.restarts
    match verdict:
        case Nudge():
            rung, nudges = 1, nudges + 1
        case Extend():
            rung, extensions = 2, extensions + 1
        case RestartRun():
            rung, restarts = 3, restarts + 1
        case KillRun():
            rung = 4
        case _:
            assert_never(verdict)
    return CriticMemo(nudges, extensions, restarts, max(memo.rung, rung), watch.step, watch.active_s)


class Critic(Protocol):
    """Watches runs. One critic serves many: what it must remember of one is its memo.

    One that raises harms nothing.
    """

    @property
    def every_s(self) -> float:
        """How often it looks while a call runs."""
        ...

    @property
    def hard_deadline_s(self) -> float | None:
        """Binds the run from its start, downtime included, and is never extended: its `run_timeout_s`."""
        ...

    def judge(self, watch: Watch, /) -> Verdict | None:
        """What to do about this run; None is nothing. Pure and short: called on the event loop's thread."""
        ...
