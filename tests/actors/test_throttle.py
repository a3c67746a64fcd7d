"""When a state must be written: never late, on the grid, at once where the policy says so."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executus.actors.policies import SavePolicy
from executus.actors.throttle import GRID_S, NEVER, due_at

moments = st.floats(0, 1e7)
intervals = st.floats(0, 3600)


@given(moments, st.floats(0, 5000), intervals, st.integers(0, 10**6))
def test_a_save_is_never_due_later_than_its_interval_and_never_in_the_past(
    saved_at_s: float, since_s: float, every_s: float, steps: int
) -> None:
    now_s = saved_at_s + since_s
    due_s = due_at(SavePolicy(every_s=every_s), saved_at_s=saved_at_s, steps_since=steps, now_s=now_s)
    assert now_s <= due_s <= max(now_s, saved_at_s + every_s) + 1e-6  # a float's last bit


@given(moments, st.floats(0, 1), st.floats(1, 3600))
def test_what_is_due_later_is_due_on_the_grid_so_that_saves_share_a_commit(
    saved_at_s: float, since_s: float, every_s: float
) -> None:
    now_s = saved_at_s + since_s
    due_s = due_at(SavePolicy(every_s=every_s), saved_at_s=saved_at_s, steps_since=1, now_s=now_s)
    if due_s > now_s:
        assert math.isclose(due_s / GRID_S, round(due_s / GRID_S), abs_tol=1e-6)
        assert due_s > saved_at_s + every_s - 1.000001 * GRID_S


@given(moments, st.integers(1, 1000), st.integers(0, 2000))
def test_so_many_steps_are_due_at_once(now_s: float, every_steps: int, steps: int) -> None:
    due_s = due_at(SavePolicy(every_s=3600, every_steps=every_steps), saved_at_s=now_s, steps_since=steps, now_s=now_s)
    assert (due_s == now_s) == (steps >= every_steps)


@pytest.mark.parametrize("saved_at_s", [None, 5.0])
def test_sync_is_always_due_at_once_exit_and_none_never(saved_at_s: float | None) -> None:
    for durability, expected in (("sync", 10.0), ("exit", NEVER), ("none", NEVER)):
        policy = SavePolicy(durability=durability)  # type: ignore[arg-type]
        assert due_at(policy, saved_at_s=saved_at_s, steps_since=10**6, now_s=10.0) == expected


@given(moments, intervals)
def test_the_first_state_is_due_at_once(now_s: float, every_s: float) -> None:
    assert due_at(SavePolicy(every_s=every_s), saved_at_s=None, steps_since=0, now_s=now_s) == now_s


def test_the_default_is_a_second() -> None:
    assert due_at(SavePolicy(), saved_at_s=100.02, steps_since=1, now_s=100.5) == pytest.approx(101.0)


def test_an_interval_of_nothing_is_due_at_once() -> None:
    assert due_at(SavePolicy(every_s=0), saved_at_s=7.0, steps_since=1, now_s=7.0) == 7.0
