"""What follows an exit: OTP's matrix of restart kinds, the budget, backoff, strikes; and knobs that refuse nonsense."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executus.actors.outcomes import (
    Cancelled,
    Completed,
    Crashed,
    ErrorInfo,
    Failed,
    Killed,
    Parked,
    Phase,
    Quarantined,
    Stopped,
    Suspended,
    TimedOut,
)
from executus.actors.policies import (
    BUDGET_SPENT,
    MAX_STRIKES,
    Backoff,
    Policies,
    Restart,
    RestartHistory,
    RestartPolicy,
    SavePolicy,
    Settle,
    StopPolicy,
    decide,
    strike,
)
from executus.stores import RunStatus

BOOM = ErrorInfo.of(KeyError("boom"))
CRASH = Crashed(BOOM, Phase.STEP)
DONE: Completed[int] = Completed(7)
KINDS = ["transient", "permanent", "temporary"]


@pytest.mark.parametrize(
    ("kind", "exit_", "restarts", "afresh"),
    [
        ("transient", CRASH, True, False),
        ("permanent", CRASH, True, False),
        ("temporary", CRASH, False, False),
        ("transient", DONE, False, False),
        ("permanent", DONE, True, True),
        ("temporary", DONE, False, False),
    ],
)
def test_the_matrix_of_kinds_and_ends(kind: Any, exit_: Any, restarts: bool, afresh: bool) -> None:
    decision = decide(exit_, RestartPolicy(kind=kind), RestartHistory(), 0.0)
    assert isinstance(decision, Restart) == restarts
    if isinstance(decision, Restart):
        assert decision.afresh == afresh


RESTS: list[tuple[Any, RunStatus, Any]] = [
    (Quarantined("bits"), RunStatus.QUARANTINED, Quarantined("bits")),
    (Parked("old"), RunStatus.PARKED, None),
    (Killed("a", "b"), RunStatus.KILLED, Killed("a", "b")),
    (Cancelled("a", "b"), RunStatus.CANCELLED, Cancelled("a", "b")),
    (TimedOut(), RunStatus.TIMED_OUT, TimedOut()),
    (Stopped(), RunStatus.STOPPED, None),
    (Suspended(), RunStatus.SUSPENDED, None),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("exit_", "status", "outcome"), RESTS, ids=[type(row[0]).__name__ for row in RESTS])
def test_every_other_end_is_settled_whatever_the_kind(kind: Any, exit_: Any, status: RunStatus, outcome: Any) -> None:
    assert decide(exit_, RestartPolicy(kind=kind), RestartHistory(), 0.0) == Settle(status, outcome)


def test_a_normal_end_of_a_permanent_run_over_its_budget_is_failed_as_budget_spent() -> None:
    policy = RestartPolicy(kind="permanent", max_restarts=2)
    decision = decide(DONE, policy, RestartHistory((1.0, 2.0), 2), 3.0)
    assert isinstance(decision, Settle)
    assert isinstance(decision.outcome, Failed)
    assert decision.outcome.error.type == BUDGET_SPENT
    assert decision.outcome.restarts == 2


def test_budget_spent_is_named_after_a_real_error() -> None:
    from executus.actors import errors

    assert f"{errors.__name__}.{errors.RestartBudgetSpent.__qualname__}" == BUDGET_SPENT


class Fatal(Exception): ...


class MoreFatal(Fatal): ...


@pytest.mark.parametrize("named", [Fatal, f"{__name__}.Fatal"], ids=["by class", "by name"])
def test_a_fatal_error_ends_the_run_at_once_named_by_class_or_name_subclasses_included(named: Any) -> None:
    policy = RestartPolicy(fatal=(named,))
    for error in (Fatal(), MoreFatal()):
        assert isinstance(decide(Crashed(ErrorInfo.of(error), Phase.STEP), policy, RestartHistory(), 0.0), Settle)
    assert isinstance(decide(CRASH, policy, RestartHistory(), 0.0), Restart)


def test_a_policy_with_fatal_classes_can_be_stored_and_read_back_as_names() -> None:
    policies = Policies(RestartPolicy(fatal=(Fatal, OSError)), SavePolicy(every_steps=3), StopPolicy(run_timeout_s=3.0))
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(policies), type=Policies)
    assert again == policies
    assert again.restart.is_fatal(ErrorInfo.of(FileNotFoundError()))


times = st.lists(st.floats(0, 1000), max_size=8).map(lambda at: tuple(sorted(at)))


@given(times, st.integers(0, 6), st.floats(0.01, 500), st.floats(0, 1000))
def test_a_restart_is_allowed_exactly_while_fewer_than_max_restarts_lie_within_the_window(
    at_s: tuple[float, ...], max_restarts: int, within_s: float, now_s: float
) -> None:
    recent = [at for at in at_s if now_s - at < within_s]
    decision = decide(
        CRASH, RestartPolicy(max_restarts=max_restarts, within_s=within_s), RestartHistory(at_s, len(at_s)), now_s
    )
    assert isinstance(decision, Restart) == (len(recent) < max_restarts)
    if isinstance(decision, Restart):
        assert decision.restarts == len(recent)


@given(st.integers(0, 5), st.floats(0.1, 100), st.lists(st.floats(0, 10), max_size=30))
def test_never_more_than_max_restarts_in_any_window(max_restarts: int, within_s: float, gaps: list[float]) -> None:
    policy = RestartPolicy(max_restarts=max_restarts, within_s=within_s)
    history, now_s, restarts = RestartHistory(), 0.0, []
    for gap in gaps:
        now_s += gap
        if isinstance(decide(CRASH, policy, history, now_s), Restart):
            history = history.restarted(policy, now_s)
            restarts.append(now_s)
    assert history.total == len(restarts)
    for at in restarts:
        assert len([r for r in restarts if at - within_s < r <= at]) <= max_restarts


backoffs = st.builds(
    Backoff,
    initial_s=st.floats(0.001, 10),
    factor=st.floats(1, 10),
    max_s=st.floats(10, 1000),
    jitter=st.floats(0, 0.99),
)


@given(backoffs, st.integers(0, 10**9), st.floats(0, 1))
def test_a_delay_is_finite_and_within_its_jitter_of_the_bounds(backoff: Backoff, restarts: int, roll: float) -> None:
    delay_s = backoff.delay_s(restarts, roll)
    assert math.isfinite(delay_s)
    slack = 1e-9
    assert backoff.initial_s * (1 - backoff.jitter) - slack <= delay_s <= backoff.max_s * (1 + backoff.jitter) + slack


@given(backoffs, st.integers(0, 2000))
def test_delays_do_not_shrink(backoff: Backoff, restarts: int) -> None:
    assert backoff.delay_s(restarts + 1) >= backoff.delay_s(restarts)


def test_the_default_backoff_doubles_from_a_tenth_of_a_second_to_half_a_minute() -> None:
    assert [round(Backoff().delay_s(n), 3) for n in (0, 1, 2, 3, 50)] == [0.1, 0.2, 0.4, 0.8, 30.0]


@pytest.mark.parametrize(
    ("strikes", "died", "waiting", "expected"),
    [
        (0, True, False, 1),
        (2, True, False, 3),
        (3, True, False, None),
        (3, True, True, 3),
        (3, False, False, 3),
        (0, False, True, 0),
    ],
)
def test_strikes_row_by_row(strikes: int, died: bool, waiting: bool, expected: int | None) -> None:
    assert strike(strikes, died_running=died, waiting=waiting) == expected


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=20))
def test_exactly_three_deaths_on_duty_are_forgiven(boots: list[tuple[bool, bool]]) -> None:
    strikes, deaths = 0, 0
    for died, waiting in boots:
        deaths += died and not waiting
        after = strike(strikes, died_running=died, waiting=waiting)
        assert (after is None) == (deaths > MAX_STRIKES)
        if after is None:
            return
        strikes = after


@pytest.mark.parametrize(
    "make",
    [
        lambda: Backoff(initial_s=0),
        lambda: Backoff(factor=0.5),
        lambda: Backoff(initial_s=2, max_s=1),
        lambda: Backoff(jitter=1),
        lambda: Backoff(initial_s=math.nan),
        lambda: RestartPolicy(max_restarts=-1),
        lambda: RestartPolicy(within_s=0),
        lambda: RestartPolicy(kind="sometimes"),  # type: ignore[arg-type]
        lambda: SavePolicy(durability="sync", every_s=1),
        lambda: SavePolicy(durability="exit", every_steps=1),
        lambda: SavePolicy(durability="none", every_s=1),
        lambda: SavePolicy(durability="later"),  # type: ignore[arg-type]
        lambda: SavePolicy(every_s=-1),
        lambda: SavePolicy(every_steps=0),
        lambda: StopPolicy(grace_s=-1),
        lambda: StopPolicy(result_grace_s=-1),
        lambda: StopPolicy(run_timeout_s=0),
        lambda: StopPolicy(idle_timeout_s=-1),
    ],
)
def test_a_policy_refuses_nonsense_when_it_is_made(make: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        make()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda v: SavePolicy(every_s=v),
        lambda v: StopPolicy(grace_s=v),
        lambda v: StopPolicy(result_grace_s=v),
        lambda v: StopPolicy(run_timeout_s=v),
    ],
    ids=["every_s", "grace_s", "result_grace_s", "run_timeout_s"],
)
def test_a_time_that_is_no_number_is_refused(make: Any, value: float) -> None:
    if math.isnan(value):
        with pytest.raises(ValueError, match=r".+"):
            make(value)
    else:
        make(value)
