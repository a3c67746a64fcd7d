"""The default critic: four stalls told apart, and a bounded ladder of nudge, extension, restart and kill. Pure."""

from __future__ import annotations

import math
from collections import Counter
from typing import assert_never

import msgspec

from executus.actors.agents.critic import PROTECTED, Extend, KillRun, Nudge, RestartRun, Seen, Stall, Verdict, Watch


class Ladder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a run has stalled, and how often each order is given to one run in all its life. 0: never."""

    hung_after_s: float = 600.0
    """Without a sign of life in a model, a tool or a function. Providers' clients give up after ten minutes as well."""
    spinning_after: int = 2
    """Repeats of one call, or of one error, with nothing new among them."""
    slow_share: float = 0.9
    """Of the step ceiling or the deadline."""
    extend_share: float = 0.5
    """Of the step ceiling or the deadline as they are: what an extension adds."""
    max_nudges: int = 2
    max_extensions: int = 2
    max_restarts: int = 2
    min_gap_s: float = 30.0
    """Between two orders: time for the first to show."""
    min_gap_steps: int = 2
    """Between two orders to a spinning run."""

    def __post_init__(self) -> None:
        for name in ("hung_after_s", "slow_share", "extend_share", "spinning_after"):
            if not getattr(self, name) > 0:  # NaN is refused, too
                raise ValueError(f"{name} must be greater than 0, not {getattr(self, name)!r}")
        for name in ("max_nudges", "max_extensions", "max_restarts", "min_gap_s", "min_gap_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)!r}")


class LadderCritic(msgspec.Struct, frozen=True, kw_only=True):
    """Orders the mildest thing that can help, each at most so often, and ends with a kill.

    - hung: restart, then kill. A call that does not come back reads no nudge, and no extension moves it.
    - spinning: nudge, restart, kill. More steps would be more of the same.
    - slow: extend, and no more: a run that gets on is never punished, its ceiling ends it.
    - waiting: nothing. The hard deadline alone bounds it.

    No two orders for the same evidence: silence counts from the last order, and a spinning run must have made more
    requests since. A run that lives on after a kill is killed again.
    """

    ladder: Ladder = Ladder()
    every_s: float = 5.0
    hard_deadline_s: float | None = None

    def __post_init__(self) -> None:
        if not self.every_s > 0:
            raise ValueError(f"every_s must be greater than 0, not {self.every_s!r}")
        if self.hard_deadline_s is not None and not self.hard_deadline_s > 0:
            raise ValueError(f"hard_deadline_s must be greater than 0, not {self.hard_deadline_s!r}")

    def judge(self, watch: Watch, /) -> Verdict | None:
        """The next rung for what this run suffers from, if any."""
        ladder = self.ladder
        stall = stall_of(watch, ladder)
        if stall is None or stall == "waiting" or _since_s(watch) < ladder.min_gap_s:
            return None
        match stall:
            case "hung":
                reason = f"hung: no sign of life for {watch.idle_s:.0f} s ({watch.zone})"
                return _forced(watch, ladder, reason)
            case "spinning":
                if watch.memo.nudges < ladder.max_nudges:
                    return Nudge(_nudge_for(watch), stall)
                return _forced(watch, ladder, f"spinning: {_what(watch)} again and again, with nothing new")
            case "slow":
                return _extension(watch, ladder) if watch.memo.extensions < ladder.max_extensions else None
            case _:
                assert_never(stall)


def stall_of(watch: Watch, ladder: Ladder) -> Stall | None:
    """What the run suffers from: the gravest, where it is several. None: it gets on."""
    if watch.zone in PROTECTED:
        return "waiting"
    silent_s = min(watch.idle_s, watch.zone_s)
    if watch.memo.rung:
        silent_s = min(silent_s, _since_s(watch))
    if silent_s >= ladder.hung_after_s:
        return "hung"
    rounds = repeats(watch.recent)
    if rounds >= ladder.spinning_after and _since_steps(watch) >= ladder.min_gap_steps:
        return "spinning"
    if rounds < ladder.spinning_after and watch.recent and _nears_its_end(watch, ladder):
        return "slow"
    return None


def _nears_its_end(watch: Watch, ladder: Ladder) -> bool:
    if watch.step >= ladder.slow_share * watch.step_ceiling:
        return True
    return watch.deadline_s is not None and watch.active_s >= ladder.slow_share * watch.deadline_s


def _since_s(watch: Watch) -> float:
    """Loaded time since the last order; endless where there was none.

    All of the run's, where a restart took it back behind that order.
    """
    if not watch.memo.rung:
        return math.inf
    return watch.active_s - watch.memo.at_s if watch.active_s >= watch.memo.at_s else watch.active_s


def _since_steps(watch: Watch) -> float:
    """Requests since the last order; endless where there was none, all of them in another phase's conversation."""
    if not watch.memo.rung:
        return math.inf
    return watch.step - watch.memo.at_step if watch.step >= watch.memo.at_step else watch.step


def repeats(recent: tuple[Seen, ...]) -> int:
    """How often the most frequent thing since the last new one was a repetition.

    A call is new when it was not made before, unless it met with an error that was; new words alone are nothing new.
    """
    if len(set(recent)) == len(recent):
        return 0  # nothing came twice, as nearly always
    known: set[Seen] = set()
    old: list[bool] = []
    for seen in recent:
        old.append(seen in known)
        known.add(seen)
    again: Counter[Seen] = Counter()
    failed: Counter[str] = Counter()
    for seen, was_known in zip(reversed(recent), reversed(old), strict=True):
        met_an_error = seen.kind == "call" and failed[seen.name] > 0
        if met_an_error:
            failed[seen.name] -= 1
        if was_known:
            again[seen] += 1
            if seen.kind == "error":
                failed[seen.name] += 1
        elif not met_an_error and seen.kind != "text":
            break
    return max(again.values(), default=0)


def _what(watch: Watch) -> str:
    """What comes again, in words."""
    last = next((seen for seen in reversed(watch.recent) if seen.kind != "text"), None)
    if last is None:
        return "the same words"
    return f"the same call of {last.name[:60]!r}" if last.kind == "call" else f"the same error of {last.name[:60]!r}"


def _nudge_for(watch: Watch) -> str:
    """What a spinning run is told; the last time, that it is the last."""
    text = (
        f"You are going in circles: {_what(watch)} has come up several times, with nothing new in between. "
        "Doing the same again will give the same. Work with what you have, or take another way."
    )
    if watch.memo.nudges:
        text += " If there is none, say what keeps you, and finish."
    return text


def _forced(watch: Watch, ladder: Ladder, reason: str) -> Verdict:
    if watch.memo.restarts < ladder.max_restarts:
        return RestartRun(reason)
    return KillRun(f"{reason}; restarted {watch.memo.restarts} times before")


def _extension(watch: Watch, ladder: Ladder) -> Verdict:
    """Of that which comes to its end: steps, time, or both."""
    steps, seconds = 0, 0.0
    if watch.step >= ladder.slow_share * watch.step_ceiling:
        steps = math.ceil(watch.step_ceiling * ladder.extend_share)
    if watch.deadline_s is not None and watch.active_s >= ladder.slow_share * watch.deadline_s:
        seconds = watch.deadline_s * ladder.extend_share
    return Extend(steps, seconds, f"slow: at step {watch.step} of {watch.step_ceiling}, and getting on")
