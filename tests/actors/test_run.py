"""What a user writes, without a runtime: steps are plain functions, and what comes next is a value."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executus.actors import Done, Factory, Reply, Run, Wait, WaitExpired
from executus.actors.definition import decode_next, encode_next
from executus.actors.run import STEPPING, Beginning, Stepping, Waiting, remaining, waiting_for


class Doubles(Run[int, int, int]):
    def begin(self, start: int) -> int:
        return start

    def step(self, state: int) -> int | Done[int]:
        return Done(state) if state > 100 else state * 2


def test_a_step_is_tested_as_a_plain_function() -> None:
    assert Doubles().begin(7) == 7
    assert Doubles().step(7) == 14
    assert Doubles().step(101) == Done(101)


def test_outside_of_a_callback_there_is_no_context_and_the_error_says_where_it_is() -> None:
    with pytest.raises(LookupError, match=r"Doubles\.context is for begin, step, receive and stopping"):
        _ = Doubles().context


def test_defaults_of_the_callbacks_that_need_not_be_written() -> None:
    assert Doubles().receive(7, WaitExpired()) == 7
    assert Doubles().receive(7, "else") is None
    assert Doubles().stopping(7, "stop") is None
    with pytest.raises(NotImplementedError, match="defines no query"):
        Doubles().query(7, "?")
    with pytest.raises(NotImplementedError, match="no upgrade from schema 3"):
        Doubles().upgrade(3, {})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Wait(1, timeout_s=1, until=1.0),
        lambda: Wait(1, timeout_s=-1),
        lambda: Wait(1, timeout_s=math.nan),
        lambda: Wait(1, until=dt.datetime(2030, 1, 1)),  # noqa: DTZ001 - naive on purpose
    ],
)
def test_a_wait_refuses_what_names_no_moment(make: Any) -> None:
    with pytest.raises(ValueError, match="Wait"):
        make()


def test_a_wait_until_a_moment_is_the_same_for_a_datetime_and_its_seconds() -> None:
    moment = dt.datetime(2030, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5)))
    assert waiting_for(Wait(1, until=moment), 1e9) == waiting_for(Wait(1, until=moment.timestamp()), 1e9)


def test_a_moment_in_the_past_is_due_at_once() -> None:
    assert waiting_for(Wait(1, until=5.0), 10.0) == Waiting(5.0)
    assert Waiting(5.0).moment_s == 5.0


def test_a_moment_is_a_deadline_of_the_wall_clock_and_a_time_out_is_none() -> None:
    assert waiting_for(Wait(1, timeout_s=5.0), 10.0).moment_s is None
    moment = waiting_for(Wait(1, until=20.0), 10.0)
    assert remaining(moment.deadline_at_s, moment.remaining_s, 10.0) is None


@pytest.mark.parametrize("following", [STEPPING, Waiting(), Waiting(5.0, 1.0), Beginning()], ids=repr)
def test_what_comes_next_comes_back_as_it_was(following: Any) -> None:
    assert decode_next(encode_next(following)) == following
    assert isinstance(decode_next(encode_next(STEPPING)), Stepping)


walls = st.floats(0, 4e9)


@given(walls, st.floats(0, 1e6), st.floats(-1e6, 1e6))
def test_what_is_left_of_a_wait_is_never_negative_never_longer_than_it_was_and_downtime_counts(
    wall_s: float, timeout_s: float, gone_s: float
) -> None:
    waiting = waiting_for(Wait(0, timeout_s=timeout_s), wall_s)
    left_s = remaining(waiting.deadline_at_s, waiting.remaining_s, wall_s + gone_s)
    assert left_s is not None
    assert 0 <= left_s <= timeout_s
    if gone_s >= 0:
        assert left_s == pytest.approx(max(0.0, timeout_s - gone_s), abs=1e-3)
    else:
        assert left_s == pytest.approx(timeout_s, abs=1e-3)  # a clock that jumped back does not lengthen it


@given(walls)
def test_without_a_deadline_nothing_is_left_to_count(wall_s: float) -> None:
    waiting = waiting_for(Wait(0), wall_s)
    assert remaining(waiting.deadline_at_s, waiting.remaining_s, wall_s) is None


def test_what_callbacks_return_are_values() -> None:
    for value in (Done(1), Wait(1), Reply(1, 2)):
        with pytest.raises(AttributeError):
            value.result = 2  # type: ignore[misc,union-attr]
        assert value == msgspec.structs.replace(value)


def test_a_factory_makes_a_fresh_instance_each_time_with_its_resources() -> None:
    class Needs(Doubles):
        def __init__(self, client: object, *, limit: int) -> None:
            self.client, self.limit = client, limit

    client = object()
    factory = Factory(Needs, client, limit=3)
    one, two = factory(), factory()
    assert one is not two
    assert one.client is two.client is client
    assert one.limit == 3
