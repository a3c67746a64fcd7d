"""One object for a passivated life, whoever looks, and however the look and a change of the run lie in time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest

from executus.actors.clock import SystemClock
from executus.actors.definition import Registry
from executus.actors.dormitory import Dormitory
from executus.actors.incarnation import Incarnation, Stage
from executus.actors.policies import Policies
from executus.actors.run import Run, Wait
from executus.actors.stored_runs import incarnation_of_record
from executus.stores import RunClaim, RunRecord, RunStatus


class Rests(Run[int, int, int]):
    def begin(self, number: int) -> Wait[int]:
        return Wait(number)

    def step(self, number: int) -> Wait[int]:
        return Wait(number)


DEFINITION = Registry([Rests], Policies()).of(Rests)


def resting() -> Incarnation:
    """The passivated run "r", made anew."""
    now_s = SystemClock().wall_s()
    claim = RunClaim(
        run_id="r", incarnation=1, epoch=1, attempt=1, status=RunStatus.PASSIVATED, strikes=0, claimed_at_s=now_s
    )
    record = RunRecord(
        run_id="r", incarnation=1, run_type="Rests", input=b"\1", created_at_s=now_s, root_run_id="r", labels={}
    )
    inc = incarnation_of_record(claim, record, DEFINITION)
    inc.stage = Stage.PASSIVATED
    return inc


@pytest.fixture
def table() -> dict[str, Incarnation]:
    return {}


@pytest.fixture
def dormitory(table: dict[str, Incarnation]) -> Dormitory:
    return Dormitory(table)


def loads(*meanwhile: Callable[[], object]) -> Callable[[], Incarnation]:
    """A look into the store during which this happens, the first time and the next."""
    happenings = list(meanwhile)

    def load() -> Incarnation:
        if happenings:
            happenings.pop(0)()
        return resting()

    return load


def test_who_looks_again_finds_what_somebody_holds(dormitory: Dormitory) -> None:
    found = dormitory.find("r", resting)
    assert found is not None
    assert dormitory.find("r", lambda: pytest.fail("it is here")) is found
    assert found.rouse is dormitory.rouse


def test_what_nobody_holds_is_let_go_of_unless_somebody_waits_for_its_end(dormitory: Dormitory) -> None:
    found = dormitory.find("r", resting)
    assert found is not None
    gone = weakref.ref(found)
    dormitory.keep(found)
    del found
    gc.collect()
    assert dormitory.asleep("r") is gone() is not None
    dormitory.forget(gone())  # type: ignore[arg-type]
    gc.collect()
    assert gone() is None


def test_of_two_who_look_at_the_same_time_one_makes_it(dormitory: Dormitory) -> None:
    others: list[Incarnation | None] = []
    mine = dormitory.find("r", loads(lambda: others.append(dormitory.find("r", resting))))
    assert [mine] == others


def test_a_run_that_is_taken_up_during_a_look_is_found_in_the_table(
    dormitory: Dormitory, table: dict[str, Incarnation]
) -> None:
    taken = resting()
    assert dormitory.find("r", loads(lambda: dormitory.take_up(taken))) is taken is table["r"]
    assert taken.stage is Stage.CLAIMING


def test_a_run_that_is_laid_down_during_a_look_is_the_one_that_is_found(
    dormitory: Dormitory, table: dict[str, Incarnation]
) -> None:
    laid = table["r"] = resting()
    del table["r"]
    assert dormitory.find("r", loads(lambda: dormitory.lay_down(laid))) is laid


def test_a_run_that_came_and_went_during_a_look_is_read_anew(dormitory: Dormitory) -> None:
    """What the first look has read is of before."""

    def comes_and_goes() -> None:
        inc = resting()
        dormitory.take_up(inc)
        del dormitory._table["r"]

    reads: list[Incarnation] = []

    def load() -> Incarnation:
        reads.append(made := look())
        return made

    look = loads(comes_and_goes)
    assert dormitory.find("r", load) is reads[1]
    assert len(reads) == 2


def test_a_look_that_fails_leaves_no_note(dormitory: Dormitory) -> None:
    with pytest.raises(ZeroDivisionError):
        dormitory.find("r", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert dormitory.find("r", lambda: None) is None
    assert dormitory._looking == {}


def test_once_closed_nobody_is_found_who_was_not_held(dormitory: Dormitory) -> None:
    assert dormitory.find("r", loads(dormitory.close)) is None
    assert dormitory.close() == []
    assert dormitory.find("r", resting) is None


def test_closing_tells_who_is_there(dormitory: Dormitory) -> None:
    found = dormitory.find("r", resting)
    assert dormitory.close() == [found]
