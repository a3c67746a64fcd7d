"""Budgets: what is left, what fits, what children get; and the estimate of tokens."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executus.actors.agents.agent import UNLIMITED, Budget
from executus.actors.agents.budget import (
    NO_AMOUNT,
    Amount,
    check,
    estimate_tokens,
    left,
    message_tokens,
    settle,
    share,
    tighter,
)
from executus.actors.agents.errors import BudgetExceeded
from executus.actors.agents.model import ToolSpec
from executus.actors.agents.parts import Image, Text, Thinking, ToolCall, ToolResult, Usage, assistant, result, user

BUDGET = Budget(tokens=1_000, usd=1.0, steps=10, tool_calls=5, wall_s=60.0)

counts = st.integers(0, 10_000)
money = st.floats(0, 100, allow_nan=False).map(lambda usd: round(usd, 6))
budgets = st.builds(
    Budget,
    tokens=st.none() | counts,
    usd=st.none() | money,
    steps=st.none() | counts,
    tool_calls=st.none() | counts,
    wall_s=st.none() | st.floats(0, 1e6),
)
usages = st.builds(Usage, input_tokens=counts, output_tokens=counts, requests=counts, tool_calls=counts, usd=money)
amounts = st.builds(Amount, tokens=counts, usd=money, steps=counts, tool_calls=counts)


def numbers(of: msgspec.Struct) -> list[float]:
    return [value for name in of.__struct_fields__ if (value := getattr(of, name)) is not None]


def test_what_is_left_is_what_is_allowed_less_what_is_spent_and_set_aside() -> None:
    spent = Usage(input_tokens=100, output_tokens=50, tool_calls=2, usd=0.25)
    reserved = Amount(tokens=200, usd=0.25, steps=3, tool_calls=1)
    assert left(BUDGET, spent, steps=4, active_s=12.5, reserved=reserved) == Budget(
        tokens=650, usd=0.5, steps=3, tool_calls=2, wall_s=47.5
    )


def test_no_limit_leaves_no_limit() -> None:
    assert left(UNLIMITED, Usage(10**9, 10**9, usd=1e9), steps=10**9, active_s=1e9) == UNLIMITED
    endless = Budget(usd=math.inf, wall_s=math.inf)
    assert left(endless, Usage(usd=5.0), steps=1, active_s=1.0) == UNLIMITED
    check(UNLIMITED, Usage(10**9, 10**9, usd=1e9), steps=10**9, active_s=1e9, wanted=Amount(10**9, 1e9, 10**9, 10**9))


@given(budgets, usages, counts, st.floats(0, 1e7), amounts)
def test_what_is_left_is_never_negative_and_never_more_than_allowed(budget, spent, steps, active_s, reserved) -> None:
    rest = left(budget, spent, steps=steps, active_s=active_s, reserved=reserved)
    for name in budget.__struct_fields__:
        allowed, mine = getattr(budget, name), getattr(rest, name)
        assert (allowed is None) == (mine is None)
        if allowed is not None:
            assert 0 <= mine <= allowed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_usage_that_is_no_number_leaves_nothing_and_nothing_fits(bad: float) -> None:
    spent = Usage(usd=bad)
    assert left(BUDGET, spent, steps=0, active_s=bad) == msgspec.structs.replace(BUDGET, usd=0.0, wall_s=0.0)
    with pytest.raises(BudgetExceeded) as caught:
        check(BUDGET, spent, steps=0, active_s=0.0)
    assert caught.value.facts["limit"] == "usd"


def test_a_negative_usage_buys_nothing() -> None:
    assert left(BUDGET, Usage(input_tokens=-500, usd=-5.0), steps=-3, active_s=-9.0) == BUDGET


@pytest.mark.parametrize(
    ("spent", "steps", "active_s", "wanted", "limit"),
    [
        (Usage(input_tokens=900), 0, 0.0, Amount(tokens=101), "tokens"),
        (Usage(input_tokens=600, output_tokens=401), 0, 0.0, Amount(tool_calls=1), "tokens"),
        (Usage(usd=0.9), 0, 0.0, Amount(usd=0.2), "usd"),
        (Usage(), 10, 0.0, Amount(steps=1), "steps"),
        (Usage(tool_calls=5), 0, 0.0, Amount(tool_calls=1), "tool_calls"),
        (Usage(), 0, 60.0, Amount(steps=1), "wall_s"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_numbers(spent, steps, active_s, wanted, limit) -> None:
    with pytest.raises(BudgetExceeded) as caught:
        check(BUDGET, spent, steps=steps, active_s=active_s, wanted=wanted)
    facts = caught.value.facts
    assert (facts["limit"], facts["allowed"]) == (limit, getattr(BUDGET, limit))
    assert set(facts) == {"limit", "allowed", "spent", "wanted"}
    assert limit in str(caught.value)


def test_what_fits_exactly_is_let_through() -> None:
    spent = Usage(input_tokens=900, tool_calls=4, usd=0.7)
    wanted = Amount(tokens=100, usd=0.3, steps=1, tool_calls=1)
    check(BUDGET, spent, steps=9, active_s=59.9, wanted=wanted)


def test_what_is_set_aside_for_children_does_not_fit_a_second_time() -> None:
    check(BUDGET, Usage(), steps=0, active_s=0.0, wanted=Amount(tokens=500), reserved=Amount(tokens=500))
    with pytest.raises(BudgetExceeded):
        check(BUDGET, Usage(), steps=0, active_s=0.0, wanted=Amount(tokens=500), reserved=Amount(tokens=501))


def test_sums_of_money_are_not_refused_for_their_last_bit() -> None:
    spent = Usage(usd=0.1) + Usage(usd=0.2)
    assert spent.usd > 0.3
    check(Budget(usd=0.3), spent, steps=0, active_s=0.0)


def test_children_get_equal_parts_and_all_of_the_time() -> None:
    part = share(Budget(tokens=1_000, usd=1.0, steps=10, tool_calls=2, wall_s=60.0), 3)
    assert part == Budget(tokens=333, usd=0.333333, steps=3, tool_calls=0, wall_s=60.0)
    assert share(UNLIMITED, 8) == UNLIMITED
    assert share(Budget(usd=math.inf), 8) == UNLIMITED


@pytest.mark.parametrize(
    ("rest", "parts", "limit"),
    [
        (Budget(tokens=2), 3, "tokens"),
        (Budget(steps=0), 1, "steps"),
        (Budget(steps=2), 3, "steps"),
        (Budget(wall_s=0.0), 1, "wall_s"),
    ],
)
def test_a_part_too_small_for_one_step_is_an_error(rest: Budget, parts: int, limit: str) -> None:
    with pytest.raises(BudgetExceeded) as caught:
        share(rest, parts)
    assert caught.value.facts["limit"] == limit


def test_a_part_may_hold_no_money_and_no_tool_calls() -> None:
    assert share(Budget(usd=0.0, tool_calls=1), 2) == Budget(usd=0.0, tool_calls=0)
    with pytest.raises(ValueError, match="at least 1"):
        share(UNLIMITED, 0)


@given(budgets, budgets, budgets)
def test_tighter_is_the_smaller_of_two_whichever_comes_first(one, other, third) -> None:
    both = tighter(one, other)
    assert both == tighter(other, one)
    assert tighter(both, both) == both
    assert tighter(one, UNLIMITED) == one
    assert tighter(tighter(one, other), third) == tighter(one, tighter(other, third))
    for name in both.__struct_fields__:
        limits = [limit for limit in (getattr(one, name), getattr(other, name)) if limit is not None]
        assert getattr(both, name) == (min(limits) if limits else None)


@given(amounts, amounts)
def test_what_was_not_used_comes_back_exactly(reserved: Amount, used: Amount) -> None:
    back = settle(reserved, used)
    for name in back.__struct_fields__:
        assert getattr(back, name) == max(0, getattr(reserved, name) - getattr(used, name))


def test_children_without_limits_set_nothing_aside() -> None:
    parts = [UNLIMITED, Budget(tokens=10, wall_s=5.0), Budget(tokens=5, usd=0.5, steps=2, tool_calls=1)]
    assert Amount.set_aside(parts) == Amount(tokens=15, usd=0.5, steps=2, tool_calls=1)
    assert Amount.set_aside([]) == NO_AMOUNT


@given(budgets, st.lists(st.tuples(st.integers(1, 8), st.floats(0, 1)), max_size=30))
def test_a_tree_of_children_that_keep_to_their_parts_never_uses_more_than_the_budget(budget, children) -> None:
    """A caller calls children one after the other, each a share of what is left then, and some end in between."""
    spent, steps = Usage(), 0
    running: list[tuple[Budget, float]] = []
    for parts, uses in children:
        reserved = Amount.set_aside(part for part, _ in running)
        rest = left(budget, spent, steps=steps, active_s=0.0, reserved=reserved)
        try:
            running.append((share(rest, parts), uses))
        except BudgetExceeded:
            shared = [limit // parts for limit in (rest.tokens, rest.steps) if limit is not None]
            assert 0 in (rest.wall_s, *shared)
        if len(running) > 3:
            part, share_used = running.pop(0)
            used = Usage(
                input_tokens=int((part.tokens or 0) * share_used),
                tool_calls=int((part.tool_calls or 0) * share_used),
                usd=(part.usd or 0.0) * share_used,
            )
            child_steps = int((part.steps or 0) * share_used)
            before = left(budget, spent, steps=steps, active_s=0.0, reserved=Amount.set_aside([part]))
            spent, steps = spent + used, steps + child_steps
            after = left(budget, spent, steps=steps, active_s=0.0)
            back = settle(Amount.set_aside([part]), Amount.used(used, child_steps))
            for name in ("tokens", "steps", "tool_calls"):
                if getattr(budget, name) is not None:
                    assert getattr(after, name) == getattr(before, name) + getattr(back, name)
        check(budget, spent, steps=steps, active_s=-1.0, reserved=Amount.set_aside(part for part, _ in running))
        assert all(
            math.isfinite(number) and number >= 0 for number in numbers(rest) + numbers(Amount.used(spent, steps))
        )


def test_an_estimate_is_a_quarter_of_the_length_and_a_flat_number_a_picture() -> None:
    assert message_tokens(user("x" * 400)) == 104
    assert message_tokens(user("", (Image(b"..."), Image(b"...")))) == 3_204
    assert message_tokens(assistant(Thinking("t" * 40), ToolCall("c", "grep", "a" * 36))) == 4 + 20
    assert message_tokens(result(ToolResult("c", "grep", "r" * 80))) == 24
    assert message_tokens(user("日本語" * 4)) == 4 + 9, "three bytes a character"
    assert message_tokens(assistant(Text("\ud800" * 4))) == 4 + 3, "a lone surrogate is no reason to crash"


def test_an_estimate_adds_up_over_system_tools_and_messages() -> None:
    tools = (ToolSpec("grep", "Look for a text.", {"type": "object", "properties": {}}),)
    messages = (user("hello"), assistant())
    whole = estimate_tokens(messages, "You are terse.", tools)
    assert whole == estimate_tokens((), "You are terse.", tools) + sum(map(message_tokens, messages))
    assert estimate_tokens((), "", ()) == 0
    assert whole > estimate_tokens(messages)
