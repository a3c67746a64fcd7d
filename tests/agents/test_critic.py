"""What a critic is shown and may order, as data: it recognises, counts and comes back from a snapshot."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executus.actors.agents.critic import (
    RECENT,
    CriticMemo,
    Extend,
    KillRun,
    Nudge,
    RestartRun,
    Seen,
    Verdict,
    next_memo,
    remembered,
)
from tests.agents.watching import watch

verdicts = st.sampled_from([Nudge("look again"), Extend(5), RestartRun("hung"), KillRun("hung")])


def test_a_call_is_recognised_however_its_arguments_are_written() -> None:
    assert Seen.call("grep", '{"a": 1, "b": [2]}') == Seen.call("grep", '{"b":[2],"a":1}')
    assert Seen.call("grep", '{"a": 1}') != Seen.call("grep", '{"a": 2}')
    assert Seen.call("grep", "{}") != Seen.call("find", "{}")


@pytest.mark.parametrize("written", ["", "{", "\ud800", "[" * 100_000, '{"a": 1e999}', "\x00"])
def test_arguments_that_are_no_json_are_recognised_as_they_are(written: str) -> None:
    assert Seen.call("grep", written) == Seen.call("grep", written)
    assert Seen.call("grep", written) != Seen.call("grep", written + "x")


def test_calls_errors_and_words_are_not_taken_for_each_other() -> None:
    assert len({Seen.call("grep", "text"), Seen.error("grep", "text"), Seen.said("grep\ntext")}) == 3
    assert Seen.error("grep", "no such file") == Seen.error("grep", "no such file")


def test_a_digest_holds_nothing_of_the_text_and_is_the_same_in_every_process() -> None:
    seen = Seen.error("grep", "the password is 1234")
    assert seen.digest == "6832dbc6c56380cd"
    assert Seen.call("grep", '{"a":1}').digest == "3409cf000f24d9fb"
    assert "1234" not in repr(seen)


@given(st.lists(st.integers(0, 5), max_size=50))
def test_the_newest_are_remembered_in_order(numbers: list[int]) -> None:
    recent: tuple[Seen, ...] = ()
    for number in numbers:
        recent = remembered(recent, Seen.said(str(number)))
    assert recent == tuple(Seen.said(str(number)) for number in numbers[-RECENT:])


@given(st.lists(verdicts, max_size=20))
def test_a_memo_counts_every_order_and_never_steps_down(orders: list[Verdict]) -> None:
    memo = CriticMemo()
    for step, order in enumerate(orders):
        before, memo = memo, next_memo(memo, order, watch(step=step, active_s=10.0 * step))
        assert memo.rung >= before.rung
        assert (memo.at_step, memo.at_s) == (step, 10.0 * step)
    assert memo.nudges == sum(isinstance(order, Nudge) for order in orders)
    assert memo.extensions == sum(isinstance(order, Extend) for order in orders)
    assert memo.restarts == sum(isinstance(order, RestartRun) for order in orders)
    assert (memo.rung == 4) == any(isinstance(order, KillRun) for order in orders)


@given(verdicts)
def test_memos_and_orders_come_back_from_a_snapshot(order: Verdict) -> None:
    memo = next_memo(CriticMemo(), order, watch())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(memo), type=CriticMemo) == memo
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(order), type=Verdict) == order  # type: ignore[arg-type]
