"""What a supervisor decides, as tables and as properties."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executus.actors.actor import Actor, ActorRef, ExitReport
from executus.actors.child_spec import (
    ChildSpec,
    Escalate,
    How,
    Intensity,
    LetRest,
    Recipe,
    RestartTogether,
    Strategy,
    checked_specs,
    decide,
    failures_in_a_row,
    how_ended,
    is_restarted,
    restart_delay_s,
    restarted_together,
)
from executus.actors.policies import Backoff

STRATEGIES: tuple[Strategy, ...] = ("one_for_one", "one_for_all", "rest_for_one")
KINDS = ("permanent", "transient", "temporary")


class Worker(Actor):
    pass


def start_worker() -> ActorRef[Worker]:
    raise NotImplementedError


def spec(restart: Any = "permanent", child_id: str = "b") -> ChildSpec:
    return ChildSpec(child_id, start_worker, restart)


def report(error: BaseException | None = None, *, abandoned: bool = False, phase: Any = "running") -> ExitReport:
    return ExitReport("actor", error, phase, abandoned, 0)


# --- specs ------------------------------------------------------------------------------------------------------------


def test_a_spec_has_the_defaults_of_otp():
    found = spec()
    assert (found.restart, found.stop_timeout_s, found.kind) == ("permanent", 5.0, "worker")


@pytest.mark.parametrize(
    ("start", "recipe"),
    [
        (start_worker, start_worker),
        (Worker.start, Worker.start),
        (Worker, Recipe(Worker, (), {})),
        ((Worker,), Recipe(Worker, (), {})),
        ((Worker, (1, 2)), Recipe(Worker, (1, 2), {})),
        ((Worker, [1]), Recipe(Worker, (1,), {})),
        ((Worker, (), {"a": 1}), Recipe(Worker, (), {"a": 1})),
    ],
)
def test_a_start_is_a_function_or_a_class_with_what_it_takes(start: Any, recipe: object):
    assert ChildSpec("a", start).recipe() == recipe


@pytest.mark.parametrize(
    "start",
    [
        None, "Worker", int, Worker(), (), (int,), (start_worker,), (Worker, 1), (Worker, {"a": 1}),
        (Worker, (), 3), (Worker, (), {}, "more"), (Worker, "ab"),
    ],
)  # fmt: skip
def test_what_cannot_be_started_is_refused_with_advice(start: Any):
    with pytest.raises(TypeError, match=r"child 'a': start is a function without arguments .* or \(class, args"):
        ChildSpec("a", start)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"id": ""}, "a child's id"),
        ({"id": 3}, "a child's id"),
        ({"restart": "always"}, "restart takes 'transient', 'permanent', 'temporary', not 'always'"),
        ({"kind": "boss"}, "kind takes 'worker', 'supervisor'"),
        ({"stop_timeout_s": 0}, "stop_timeout_s is greater than 0"),
        ({"stop_timeout_s": -1.0}, "stop_timeout_s is greater than 0"),
        ({"stop_timeout_s": float("nan")}, "stop_timeout_s is greater than 0"),
    ],
)
def test_a_spec_validates_itself(wrong: dict[str, Any], text: str):
    with pytest.raises(ValueError, match=text):
        ChildSpec(**({"id": "a", "start": start_worker} | wrong))


def test_a_child_may_have_for_ever_to_stop():
    assert ChildSpec("a", start_worker, stop_timeout_s=None).stop_timeout_s is None


def test_ids_are_unique_and_children_are_specs():
    assert checked_specs(iter([spec(child_id="a"), spec(child_id="b")]))[1].id == "b"
    with pytest.raises(ValueError, match="two children have the id 'b'"):
        checked_specs([spec(), spec()])
    with pytest.raises(TypeError, match="children are ChildSpecs, not 3"):
        checked_specs([3])  # type: ignore[list-item]


# --- which exits are normal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exit_report", "started", "how"),
    [
        (report(), True, How.NORMAL),
        (report(phase="stopping"), True, How.NORMAL),
        (report(ValueError()), True, How.CRASHED),
        (report(SystemExit(0)), True, How.CRASHED),
        (report(KeyboardInterrupt()), True, How.CRASHED),
        (report(OSError(), phase="stopping"), True, How.CRASHED),
        (report(abandoned=True), True, How.ABANDONED),
        (report(ValueError(), abandoned=True), True, How.ABANDONED),
        (report(ValueError(), phase="starting"), False, How.NOT_STARTED),
        (report(abandoned=True, phase="starting"), False, How.NOT_STARTED),
        (report(), False, How.NOT_STARTED),
    ],
)
def test_an_exit_is_classified_by_its_report(exit_report: ExitReport, started: bool, how: How):
    assert how_ended(exit_report, started=started) is how


# --- who is restarted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("restart", "normal", "abnormal"),
    [("permanent", True, True), ("transient", False, True), ("temporary", False, False)],
)
def test_the_kind_and_the_exit_say_whether_it_is_restarted(restart: Any, normal: bool, abnormal: bool):
    assert is_restarted(restart, How.NORMAL) is normal
    for how in set(How) - {How.NORMAL}:
        assert is_restarted(restart, how) is abnormal


@pytest.mark.parametrize(
    ("strategy", "child_id", "members"),
    [
        ("one_for_one", "a", "a"), ("one_for_one", "b", "b"), ("one_for_one", "d", "d"),
        ("one_for_all", "a", "abcd"), ("one_for_all", "b", "abcd"), ("one_for_all", "d", "abcd"),
        ("rest_for_one", "a", "abcd"), ("rest_for_one", "b", "bcd"), ("rest_for_one", "d", "d"),
    ],
)  # fmt: skip
def test_the_strategy_says_who_is_restarted_together(strategy: Strategy, child_id: str, members: str):
    assert restarted_together(strategy, dict.fromkeys("abcd"), child_id) == tuple(members)


# --- how often --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_restarts", "earlier_s", "now_s", "after_s"),
    [
        (0, (), 0.0, None),
        (1, (), 0.0, (0.0,)),
        (1, (0.0,), 4.9, None),
        (1, (0.0,), 5.0, (5.0,)),  # a restart leaves the window when it is within_s old
        (3, (0.0, 1.0, 2.0), 4.0, None),
        (3, (0.0, 1.0, 2.0), 5.5, (1.0, 2.0, 5.5)),
        (3, (0.0, 1.0, 2.0), 50.0, (50.0,)),
    ],
)
def test_one_restart_more_than_allowed_is_too_many(max_restarts: int, earlier_s: Any, now_s: float, after_s: Any):
    assert Intensity(max_restarts, 5.0).one_more(earlier_s, now_s) == after_s


def test_without_a_limit_any_number_of_restarts_is_allowed_and_none_is_remembered():
    intensity = Intensity(None, 5.0)
    history: tuple[float, ...] = ()
    for _ in range(1000):
        history = intensity.one_more(history, 1.0)  # type: ignore[assignment]
        assert history == ()


@pytest.mark.parametrize("wrong", [(-1, 5.0), (3, 0.0), (3, -1.0), (3, float("nan"))])
def test_an_intensity_validates_itself(wrong: tuple[int, float]):
    with pytest.raises(ValueError, match="must"):
        Intensity(*wrong)


@given(
    st.lists(st.floats(0, 100), max_size=60).map(sorted),
    st.integers(0, 5),
    st.floats(0.1, 20),
)
def test_no_window_ever_sees_more_restarts_than_allowed(exits_s: list[float], max_restarts: int, within_s: float):
    intensity = Intensity(max_restarts, within_s)
    history: tuple[float, ...] = ()
    restarted_s: list[float] = []
    for now_s in exits_s:
        after = intensity.one_more(history, now_s)
        recent = [at_s for at_s in restarted_s if now_s - at_s < within_s]
        assert (after is None) == (len(recent) == max_restarts)
        assert len(recent) <= max_restarts
        if after is None:
            break
        history = after
        restarted_s.append(now_s)
        assert len(history) <= max_restarts, "what is remembered is bounded"


# --- all together -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("restart", "how", "strategy", "spent"), list(itertools.product(KINDS, How, STRATEGIES, [False, True]))
)
def test_a_decision_is_one_of_three(restart: str, how: How, strategy: Strategy, spent: bool):
    found = decide(
        spec(restart),
        how,
        strategy=strategy,
        order=("a", "b", "c"),
        intensity=Intensity(1, 5.0),
        restarts_s=(1.0,) if spent else (),
        now_s=2.0,
    )
    if restart == "temporary" or (restart == "transient" and how is How.NORMAL):
        assert found == LetRest(), "an end that needs no restart never escalates"
    elif spent:
        assert found == Escalate(1, 5.0)
    else:
        members = {"one_for_one": ("b",), "one_for_all": ("a", "b", "c"), "rest_for_one": ("b", "c")}[strategy]
        assert found == RestartTogether(members, (2.0,))


@given(
    st.permutations("abcdef"),
    st.sampled_from(STRATEGIES),
    st.sampled_from(KINDS),
    st.sampled_from(list(How)),
    st.data(),
)
def test_a_restart_keeps_the_order_and_never_reaches_before_the_child(
    order: list[str], strategy: Strategy, restart: str, how: How, data: st.DataObject
):
    child = data.draw(st.sampled_from(order))
    found = decide(
        spec(restart, child),
        how,
        strategy=strategy,
        order=order,
        intensity=Intensity(),
        restarts_s=(),
        now_s=0.0,
    )
    if isinstance(found, RestartTogether):
        assert child in found.members
        assert list(found.members) == [member for member in order if member in found.members]
        if strategy != "one_for_all":
            assert found.members[0] == child


# --- backoff ----------------------------------------------------------------------------------------------------------


def test_without_a_backoff_restarts_come_at_once():
    assert restart_delay_s(None, 7, 0.9) == 0.0


def test_a_backoff_grows_with_failures_in_a_row_and_starts_anew_after_a_good_run():
    backoff = Backoff(initial_s=1.0, factor=2.0, max_s=10.0, jitter=0.0)
    intensity = Intensity(3, 5.0)
    assert [restart_delay_s(backoff, n, 0.5) for n in range(6)] == [1, 2, 4, 8, 10, 10]
    assert failures_in_a_row(4, 4.9, intensity) == 4
    assert failures_in_a_row(4, 5.0, intensity) == 0


@given(st.integers(0, 2000), st.floats(0, 1), st.floats(0, 0.9))
def test_jitter_varies_a_delay_by_no_more_than_its_share(earlier: int, roll: float, jitter: float):
    plain = restart_delay_s(Backoff(jitter=0), earlier, roll)
    delay_s = restart_delay_s(Backoff(jitter=jitter), earlier, roll)
    assert plain * (1 - jitter) - 1e-9 <= delay_s <= plain * (1 + jitter) + 1e-9
