"""The default critic: each stall on each rung, and a ladder that ends."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executus.actors.agents.critic import (
    Critic,
    Extend,
    KillRun,
    Nudge,
    RestartRun,
    Seen,
    Stall,
    Verdict,
    Watch,
    next_memo,
    remembered,
)
from executus.actors.agents.ladder import Ladder, LadderCritic, repeats, stall_of
from tests.agents.watching import after, calls, watch

LADDER = Ladder()
CRITIC = LadderCritic()

HUNG: dict[str, Any] = {"zone": "tool", "zone_s": 700.0, "idle_s": 700.0, "active_s": 5_000.0}
SPINNING: dict[str, Any] = {"recent": calls("a", "b", "b", "b"), "active_s": 5_000.0, "step": 20}
SLOW: dict[str, Any] = {"step": 36, "active_s": 5_000.0}
WAITING: dict[str, Any] = {"zone": "rate_limit", "zone_s": 90_000.0, "idle_s": 90_000.0, "active_s": 90_000.0}


def test_the_default_is_a_critic() -> None:
    critic: Critic = CRITIC
    assert critic.judge(watch()) is None
    assert (critic.every_s, critic.hard_deadline_s) == (5.0, None)


@pytest.mark.parametrize(
    ("of", "stall"),
    [
        ({}, None),
        ({"recent": ()}, None),
        (HUNG, "hung"),
        (HUNG | {"zone": "model"}, "hung"),
        (HUNG | {"zone": "function"}, "hung"),
        (HUNG | {"zone": "between"}, "hung"),
        (HUNG | SPINNING, "hung"),
        (HUNG | {"idle_s": 599.0}, None),  # a heartbeat came
        (HUNG | {"zone_s": 599.0}, None),  # it was elsewhere before
        (HUNG | {"zone": "store"}, "waiting"),
        (HUNG | {"zone": "children"}, "waiting"),
        (WAITING, "waiting"),
        (WAITING | SPINNING, "waiting"),
        (SPINNING, "spinning"),
        (SPINNING | {"recent": calls("b", "b")}, None),
        (SPINNING | {"recent": calls("b", "b", "b", "c")}, None),  # something new
        (SPINNING | {"step": 39}, "spinning"),  # no extension for this one
        (SPINNING | {"step": 39, "memo": after(1, nudges=1, at_step=38)}, None),  # nor while its nudge is fresh
        (SLOW, "slow"),
        (SLOW | {"step": 35}, None),
        (SLOW | {"recent": ()}, None),  # nothing says that it gets on
        ({"active_s": 90.0, "deadline_s": 100.0}, "slow"),
        ({"active_s": 89.0, "deadline_s": 100.0}, None),
    ],
)
def test_stalls_are_told_apart(of: dict[str, Any], stall: Stall | None) -> None:
    assert stall_of(watch(**of), LADDER) == stall


NUDGED = after(1, nudges=1, at_step=10, at_s=1_000.0)
NUDGED_OUT = after(1, nudges=2, at_step=10, at_s=1_000.0)
EXTENDED = after(2, extensions=1, at_step=30, at_s=1_000.0)
EXTENDED_OUT = after(2, extensions=2, at_step=30, at_s=1_000.0)
RESTARTED = after(3, nudges=2, restarts=1, at_step=10, at_s=1_000.0)
RESTARTED_OUT = after(3, nudges=2, restarts=2, at_step=10, at_s=1_000.0)
KILLED = after(4, nudges=2, restarts=2, at_step=10, at_s=1_000.0)


@pytest.mark.parametrize(
    ("of", "memo", "verdict"),
    [
        (HUNG, after(0), RestartRun),
        (HUNG, NUDGED, RestartRun),
        (HUNG, NUDGED_OUT, RestartRun),
        (HUNG, EXTENDED_OUT, RestartRun),
        (HUNG, RESTARTED, RestartRun),
        (HUNG, RESTARTED_OUT, KillRun),
        (HUNG, KILLED, KillRun),
        (SPINNING, after(0), Nudge),
        (SPINNING, NUDGED, Nudge),
        (SPINNING, NUDGED_OUT, RestartRun),
        (SPINNING, EXTENDED_OUT, Nudge),
        (SPINNING, RESTARTED, RestartRun),
        (SPINNING, RESTARTED_OUT, KillRun),
        (SPINNING, KILLED, KillRun),
        (SLOW, after(0), Extend),
        (SLOW, NUDGED_OUT, Extend),
        (SLOW, EXTENDED, Extend),
        (SLOW, EXTENDED_OUT, None),
        (SLOW, RESTARTED_OUT, Extend),
        (WAITING, after(0), None),
        (WAITING, NUDGED_OUT, None),
        (WAITING, EXTENDED_OUT, None),
        (WAITING, RESTARTED_OUT, None),
        (WAITING, KILLED, None),
        ({}, after(0), None),
        ({}, RESTARTED_OUT, None),
    ],
)
def test_each_stall_on_each_rung_gets_the_mildest_order_that_can_help(of, memo, verdict) -> None:
    order = CRITIC.judge(watch(**of, memo=memo))
    assert (type(order) if order else None) is verdict


@pytest.mark.parametrize("of", [HUNG, SPINNING, SLOW])
def test_two_orders_keep_their_distance(of: dict[str, Any]) -> None:
    memo = after(1, nudges=1, at_step=3, at_s=5_000.0 - 29.0)
    assert CRITIC.judge(watch(**of, memo=memo)) is None
    assert CRITIC.judge(watch(**of, memo=after(1, nudges=1, at_step=3, at_s=1_000.0))) is not None


def test_silence_counts_from_the_last_order() -> None:
    hung = {**HUNG, "idle_s": 3_000.0, "zone_s": 3_000.0}
    assert CRITIC.judge(watch(**hung, memo=after(3, restarts=1, at_s=4_401.0))) is None
    assert CRITIC.judge(watch(**hung, memo=after(3, restarts=1, at_s=4_400.0))) is not None


def test_a_spinning_run_is_judged_again_after_more_requests_only() -> None:
    assert CRITIC.judge(watch(**SPINNING, memo=after(1, nudges=1, at_step=19, at_s=0.0))) is None
    assert CRITIC.judge(watch(**SPINNING, memo=after(1, nudges=1, at_step=18, at_s=0.0))) is not None


def test_a_memo_from_before_a_restart_or_of_another_phase_does_not_silence_the_critic() -> None:
    ahead = after(1, nudges=1, at_step=900, at_s=9_000.0)
    assert isinstance(CRITIC.judge(watch(**SPINNING, memo=ahead)), Nudge)
    assert isinstance(CRITIC.judge(watch(**HUNG, memo=ahead)), RestartRun)


def test_an_extension_is_of_what_comes_to_its_end() -> None:
    assert CRITIC.judge(watch(step=36)) == Extend(20, 0.0, "slow: at step 36 of 40, and getting on")
    late = CRITIC.judge(watch(active_s=95.0, deadline_s=100.0))
    assert isinstance(late, Extend)
    assert (late.steps, late.seconds) == (0, 50.0)
    both = CRITIC.judge(watch(step=9, step_ceiling=9, active_s=95.0, deadline_s=100.0))
    assert isinstance(both, Extend)
    assert (both.steps, both.seconds) == (5, 50.0)


def test_a_nudge_names_what_comes_again_and_the_last_one_asks_to_finish() -> None:
    first = CRITIC.judge(watch(**SPINNING))
    last = CRITIC.judge(watch(**SPINNING, memo=NUDGED))
    assert isinstance(first, Nudge)
    assert isinstance(last, Nudge)
    assert "same call of 'b'" in first.text
    assert first.stall == "spinning"
    assert last.text.startswith(first.text)
    assert last.text != first.text
    failing = CRITIC.judge(watch(**{**SPINNING, "recent": (Seen.error("x" * 9_000, "no"),) * 4}))
    assert isinstance(failing, Nudge)
    assert "same error of 'xxx" in failing.text
    assert len(failing.text) < 500


def test_a_kill_says_what_was_tried() -> None:
    order = CRITIC.judge(watch(**HUNG, memo=RESTARTED_OUT))
    assert order == KillRun("hung: no sign of life for 700 s (tool); restarted 2 times before")


ERROR, OTHER = Seen.error("a", "no such file"), Seen.error("b", "denied")


def numbered(number: int) -> Seen:
    return Seen.call("a", f'{{"n": {number}}}')


@pytest.mark.parametrize(
    ("recent", "again"),
    [
        ((), 0),
        (calls("a", "b", "c"), 0),
        (calls("a", "a"), 1),
        (calls("a", "a", "a"), 2),
        (calls("a", "b", "a", "b", "a", "b"), 2),
        (calls("a", "b", "c", "a", "b", "c"), 1),  # the same three once more
        (calls("a", "a", "a", "b"), 0),
        (calls("a", "a", "a", "b", "b"), 1),
        ((*calls("a"), ERROR) * 3, 2),
        ((numbered(1), ERROR, numbered(2), ERROR, numbered(3), ERROR), 2),  # other arguments, the same error
        ((numbered(1), ERROR, numbered(2), ERROR, numbered(3)), 0),  # the third may yet succeed
        ((numbered(1), ERROR, numbered(2), OTHER), 0),
        ((numbered(1), ERROR, numbered(2), ERROR, numbered(3), numbered(4), ERROR), 1),  # one of two went well
        ((*calls("a", "a"), Seen.said("hm"), *calls("a"), Seen.said("so")), 2),  # words alone are nothing new
        ((Seen.said("done"),) * 3, 2),
    ],
)
def test_repeats_are_counted_since_the_last_new_thing(recent: tuple[Seen, ...], again: int) -> None:
    assert repeats(recent) == again


@pytest.mark.parametrize(
    "wrong",
    [
        {"hung_after_s": 0.0},
        {"hung_after_s": math.nan},
        {"spinning_after": 0},
        {"slow_share": -1.0},
        {"extend_share": 0.0},
        {"max_nudges": -1},
        {"max_restarts": -1},
        {"min_gap_s": math.nan},
    ],
)
def test_a_ladder_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Ladder(**wrong)


@pytest.mark.parametrize("wrong", [{"every_s": 0.0}, {"hard_deadline_s": 0.0}, {"hard_deadline_s": math.nan}])
def test_a_critic_that_never_looks_or_allows_no_time_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LadderCritic(**wrong)


# ---------------------------------------------------------------------------------------- whole lives, looked at in time


class Life:
    """A run under a critic, in simulated time: what it does is given look by look, orders are carried out."""

    def __init__(self, critic: LadderCritic) -> None:
        self.critic = critic
        self.seen = watch(step=0, active_s=0.0, idle_s=0.0, zone_s=0.0, recent=())
        self.orders: list[tuple[Watch, Verdict]] = []

    def goes_on(self, **changed: Any) -> None:
        """One more look."""
        if self.killed:
            return
        self.seen = msgspec.structs.replace(self.seen, **changed)
        order = self.critic.judge(self.seen)
        if order is None:
            return
        self.orders.append((self.seen, order))
        memo = next_memo(self.seen.memo, order, self.seen)
        self.seen = msgspec.structs.replace(self.seen, memo=memo)
        if isinstance(order, Extend):
            self.seen = msgspec.structs.replace(self.seen, step_ceiling=self.seen.step_ceiling + order.steps)
        if isinstance(order, RestartRun):
            self.seen = msgspec.structs.replace(self.seen, attempt=self.seen.attempt + 1, idle_s=0.0, zone_s=0.0)

    def hangs(self, zone: str, seconds: float) -> None:
        before_s = self.seen.zone_s if zone == self.seen.zone else 0.0
        self.goes_on(
            zone=zone,
            idle_s=self.seen.idle_s + seconds,
            zone_s=before_s + seconds,
            active_s=self.seen.active_s + seconds,
        )

    def steps(self, seen: Seen, seconds: float) -> None:
        self.goes_on(
            zone="between",
            idle_s=0.0,
            zone_s=0.0,
            step=self.seen.step + 1,
            recent=remembered(self.seen.recent, seen),
            active_s=self.seen.active_s + seconds,
        )

    @property
    def killed(self) -> bool:
        return bool(self.orders) and isinstance(self.orders[-1][1], KillRun)

    def of(self, kind: type[Verdict]) -> int:
        return sum(isinstance(order, kind) for _, order in self.orders)


ladders = st.builds(
    Ladder,
    hung_after_s=st.floats(1, 1_000),
    spinning_after=st.integers(1, 4),
    slow_share=st.floats(0.1, 1),
    max_nudges=st.integers(0, 4),
    max_extensions=st.integers(0, 4),
    max_restarts=st.integers(0, 4),
    min_gap_s=st.floats(0, 100),
    min_gap_steps=st.integers(0, 4),
)
deeds = st.one_of(
    st.tuples(st.sampled_from(["model", "tool", "function", "between", "rate_limit", "store", "children"])),
    st.tuples(st.just("step"), st.integers(0, 6)),
)


@given(ladders, st.lists(st.tuples(deeds, st.floats(0, 2_000)), max_size=120))
def test_in_any_life_orders_are_bounded_kept_apart_and_end_with_the_kill(ladder, life) -> None:
    run = Life(LadderCritic(ladder=ladder))
    for deed, seconds in life:
        if deed[0] == "step":
            run.steps(numbered(deed[1]), seconds)
        else:
            run.hangs(deed[0], seconds)
    assert run.of(Nudge) <= ladder.max_nudges
    assert run.of(Extend) <= ladder.max_extensions
    assert run.of(RestartRun) <= ladder.max_restarts
    assert run.of(KillRun) <= 1
    assert not any(isinstance(order, KillRun) for _, order in run.orders[:-1])
    for (before, _), (now, _) in zip(run.orders, run.orders[1:], strict=False):
        assert now.active_s - before.active_s >= ladder.min_gap_s
    for at, order in run.orders:
        assert at.zone not in ("rate_limit", "store", "children"), f"{order} for a run that waits"
        if isinstance(order, KillRun):
            assert run.of(RestartRun) == ladder.max_restarts


@given(ladders, st.integers(1, 3), st.floats(1, 60))
def test_a_run_that_spins_for_ever_is_nudged_restarted_and_killed(ladder, cycle, seconds) -> None:
    run = Life(LadderCritic(ladder=ladder))
    for at in range(2_000):
        run.steps(numbered(at % cycle), seconds)
    assert run.killed
    orders = [type(order) for _, order in run.orders if not isinstance(order, Extend)]
    assert orders == [Nudge] * ladder.max_nudges + [RestartRun] * ladder.max_restarts + [KillRun]


@given(ladders, st.sampled_from(["model", "tool", "function", "between"]), st.floats(0.5, 60))
def test_a_run_that_hangs_in_every_attempt_is_restarted_and_killed(ladder, zone, seconds) -> None:
    run = Life(LadderCritic(ladder=ladder))
    for _ in range(20_000):
        run.hangs(zone, seconds)
        if run.killed:
            break
    assert [type(order) for _, order in run.orders] == [RestartRun] * ladder.max_restarts + [KillRun]


@given(ladders, st.lists(st.sampled_from(["model", "tool", "rate_limit", "children", "store"]), max_size=300))
def test_a_run_that_gets_on_is_extended_at_most_however_long_it_waits_for_others(ladder, zones) -> None:
    run = Life(LadderCritic(ladder=ladder))
    for number, zone in enumerate(zones):
        waits = zone not in ("model", "tool")
        run.hangs(zone, 86_400.0 if waits else 0.9 * ladder.hung_after_s)
        run.steps(numbered(number), 1.0)
    assert run.of(Extend) == len(run.orders) <= ladder.max_extensions
