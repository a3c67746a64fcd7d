"""Budgets: what is left of one, whether what comes next fits, and what a child gets of it. Pure.

What counts against a budget is what a run and its children have used, and what is set aside for children that run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeVar

import msgspec

from executus.actors.agents.agent import Budget
from executus.actors.agents.errors import BudgetExceeded
from executus.actors.agents.model import ToolSpec
from executus.actors.agents.parts import Message, Text, Thinking, ToolCall, ToolResult, Usage

N = TypeVar("N", int, float)
Limit = Literal["tokens", "usd", "steps", "tool_calls", "wall_s"]

_SAME: Final = 1e-9
"""Sums of money that differ by this share are the same: 0.1 + 0.2 is not 0.3."""

_MICRO: Final = 1e6
"""Shares of money are whole millionths of a dollar."""


class Amount(msgspec.Struct, frozen=True, gc=False):
    """So much of each limit but time, which passes for a caller and its children at once. Never negative."""

    tokens: int = 0
    usd: float = 0.0
    steps: int = 0
    tool_calls: int = 0

    @classmethod
    def used(cls, usage: Usage, steps: int) -> Amount:
        """What a run has used, its children included."""
        return cls(usage.tokens, usage.usd, steps, usage.tool_calls)

    @classmethod
    def set_aside(cls, parts: Iterable[Budget]) -> Amount:
        """What these children may use in all; where they are not limited, nothing is set aside."""
        total = NO_AMOUNT
        for part in parts:
            total += cls(part.tokens or 0, part.usd or 0.0, part.steps or 0, part.tool_calls or 0)
        return total

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.tokens + other.tokens,
            self.usd + other.usd,
            self.steps + other.steps,
            self.tool_calls + other.tool_calls,
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            max(0, self.tokens - other.tokens),
            max(0.0, self.usd - other.usd),
            max(0, self.steps - other.steps),
            max(0, self.tool_calls - other.tool_calls),
        )


NO_AMOUNT: Final = Amount()


def left(budget: Budget, spent: Usage, *, steps: int, active_s: float, reserved: Amount = NO_AMOUNT) -> Budget:
    """What remains, limit by limit, at least 0; None where there is no limit.

    `spent` and `steps` are of the run and its ended children, `reserved` is for those that run, `active_s` is how long
    the run has been loaded.
    """
    taken = Amount.used(spent, steps) + reserved
    return Budget(
        tokens=_whole(_rest(budget.tokens, taken.tokens)),
        usd=_rest(budget.usd, taken.usd),
        steps=_whole(_rest(budget.steps, taken.steps)),
        tool_calls=_whole(_rest(budget.tool_calls, taken.tool_calls)),
        wall_s=_rest(budget.wall_s, active_s),
    )


def _rest(allowed: float | None, taken: float) -> float | None:
    if allowed is None or allowed == math.inf:
        return None
    return min(allowed, allowed - taken) if taken < allowed else 0  # nothing, too, where what was taken is NaN


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def check(
    budget: Budget,
    spent: Usage,
    *,
    steps: int,
    active_s: float,
    wanted: Amount = NO_AMOUNT,
    reserved: Amount = NO_AMOUNT,
) -> None:
    """Raise BudgetExceeded unless what is wanted fits, with `limit`, `allowed`, `spent` and `wanted` as its facts.

    Before a request `wanted` is one step, its estimated tokens and their price, before a call one tool call. An answer
    may cost more than was estimated: whatever is wanted next is then refused. No time left is refused as well.
    """
    taken, kept = Amount.used(spent, steps), reserved
    rows: tuple[tuple[Limit, float | None, float, float], ...] = (
        ("tokens", budget.tokens, taken.tokens + kept.tokens, wanted.tokens),
        ("usd", _with_slack(budget.usd), taken.usd + kept.usd, wanted.usd),
        ("steps", budget.steps, taken.steps + kept.steps, wanted.steps),
        ("tool_calls", budget.tool_calls, taken.tool_calls + kept.tool_calls, wanted.tool_calls),
    )
    for limit, allowed, gone, more in rows:
        if allowed is not None and not gone + more <= allowed:  # NaN is refused, too
            raise _exceeded(limit, getattr(budget, limit), gone, more)
    if budget.wall_s is not None and not active_s < budget.wall_s:
        raise _exceeded("wall_s", budget.wall_s, active_s, 0.0)


def _with_slack(usd: float | None) -> float | None:
    return None if usd is None else usd + _SAME * max(1.0, usd)


def _exceeded(limit: Limit, allowed: float, spent: float, wanted: float) -> BudgetExceeded:
    more = f" and {wanted:g} more wanted" if wanted else ""
    return BudgetExceeded(
        f"the budget allows {allowed:g} {limit}: {spent:g} spent or set aside{more}",
        limit=limit,
        allowed=allowed,
        spent=spent,
        wanted=wanted,
    )


def share(remaining: Budget, parts: int) -> Budget:
    """One of so many equal parts of what is left, rounded down; all of the time, for children run side by side.

    A caller that wants to go on afterwards counts itself among the parts. Raises BudgetExceeded where a part is too
    small for one step: no token, no step, no time. No tool calls and no money are left to the child, which may need
    none.
    """
    if parts < 1:
        raise ValueError(f"parts must be at least 1, not {parts}")
    part = Budget(
        tokens=None if remaining.tokens is None else remaining.tokens // parts,
        usd=_part_of_money(remaining.usd, parts),
        steps=None if remaining.steps is None else remaining.steps // parts,
        tool_calls=None if remaining.tool_calls is None else remaining.tool_calls // parts,
        wall_s=remaining.wall_s,
    )
    needed: tuple[tuple[Limit, float | None, float | None], ...] = (
        ("tokens", part.tokens, remaining.tokens),
        ("steps", part.steps, remaining.steps),
        ("wall_s", part.wall_s, remaining.wall_s),
    )
    for limit, mine, whole in needed:
        if mine == 0:
            raise BudgetExceeded(
                f"too little is left of the budget to call another agent: {whole:g} {limit} for {parts}",
                limit=limit,
                allowed=whole or 0,
                spent=0,
                wanted=parts,
            )
    return part


def _part_of_money(usd: float | None, parts: int) -> float | None:
    if usd is None or usd == math.inf:
        return None
    return math.floor(usd / parts * _MICRO) / _MICRO


def settle(reserved: Amount, used: Amount) -> Amount:
    """What comes back of what was set aside for a child, once it has ended and used so much.

    Nothing where it used more. What it used is the caller's to add to what it has spent.
    """
    return reserved - used


def tighter(one: Budget, other: Budget) -> Budget:
    """The smaller of two budgets, limit by limit."""
    return Budget(
        tokens=_smaller(one.tokens, other.tokens),
        usd=_smaller(one.usd, other.usd),
        steps=_smaller(one.steps, other.steps),
        tool_calls=_smaller(one.tool_calls, other.tool_calls),
        wall_s=_smaller(one.wall_s, other.wall_s),
    )


def _smaller(one: N | None, other: N | None) -> N | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


_CHARS: Final = 4
"""Of a token: what providers say of English. Bytes of UTF-8 here, as other scripts take more tokens a character."""

_MESSAGE: Final = 4
"""Tokens around each message: its role, and where it begins and ends."""

_IMAGE: Final = 1_600
"""A picture of 1.2 megapixels at 750 pixels a token, to which Anthropic's API scales larger ones down; others count
less, so that this errs on the safe side."""


_WORDS: Final = (Text, ToolResult, Thinking)


def estimate_tokens(messages: Sequence[Message], system: str = "", tools: Iterable[ToolSpec] = ()) -> int:
    """About how many tokens a request takes: its length over 4, and a flat number a picture.

    Adds up, so that a caller may keep the number of what does not change.
    """
    fixed = _length(system) // _CHARS + sum(
        (_length(tool.name) + _length(tool.description) + len(msgspec.json.encode(dict(tool.parameters)))) // _CHARS
        for tool in tools
    )
    return fixed + sum(map(message_tokens, messages))


def message_tokens(message: Message) -> int:
    """About how many tokens one message takes."""
    length = images = 0
    for part in message.parts:
        if isinstance(part, _WORDS):
            length += _length(part.text)
        elif isinstance(part, ToolCall):
            length += _length(part.name) + _length(part.arguments)
        else:
            images += 1
    return _MESSAGE + length // _CHARS + images * _IMAGE


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
