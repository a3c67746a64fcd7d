"""The demo's ledger: what it must catch. A demo that cannot fail proves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from executus.actors.console.demo_check import check
from executus.actors.console.demo_ledger import Begun, Ended, Ledger, Report, Restored, Saved, StepBegun
from executus.actors.console.demo_run import Share
from executus.actors.console.screen import SilentScreen
from executus.stores import LmdbStore


def ledger_of(*lives: list[Report], runs: int = 1, steps: int = 4) -> Ledger:
    """Lives of the daemon with a SIGKILL between each two; a second passes with every report."""
    ledger = Ledger({f"r{number}": steps for number in range(runs)})
    now_s = 0.0
    for number, life in enumerate(lives):
        if number:
            ledger.killed(1000 + number, now_s)
        ledger.started(now_s)
        for report in life:
            now_s += 1.0
            ledger.take(report, now_s)
    return ledger


def done(run_id: str = "r0") -> Ended:
    return Ended(run_id, "completed", durable=True)


def steps(first: int, below: int, run_id: str = "r0") -> list[Report]:
    return [StepBegun(run_id, at) for at in range(first, below)]


def test_a_run_that_comes_back_from_what_was_acknowledged_has_lost_nothing() -> None:
    ledger = ledger_of(
        [Begun("r0"), *steps(0, 2), Saved("r0", 2), *steps(2, 3)],
        [Restored("r0", 2), *steps(1, 4), Saved("r0", 5), done()],
    )
    assert ledger.snapshots_lost == 0
    assert ledger.steps_kept == 1  # seq 2 is begin and one step
    assert ledger.steps_repeated == 2
    assert ledger.steps_begun == 6
    assert ledger.saved_share == 1.0


def test_a_run_may_come_back_from_something_newer_than_was_acknowledged() -> None:
    ledger = ledger_of([Begun("r0"), Saved("r0", 2)], [Restored("r0", 4), done()])
    assert ledger.snapshots_lost == 0
    assert ledger.steps_kept == 3


@pytest.mark.parametrize(
    "second_life",
    [
        pytest.param([Restored("r0", 2), done()], id="an older snapshot"),
        pytest.param([Begun("r0"), done()], id="the beginning"),
        pytest.param([], id="nothing at all"),
    ],
)
def test_a_run_that_comes_back_from_less_than_was_acknowledged_is_a_lost_snapshot(second_life: list[Report]) -> None:
    ledger = ledger_of([Begun("r0"), Saved("r0", 2), Saved("r0", 3)], second_life)
    assert ledger.snapshots_lost == 1
    assert ledger.kills[0].lost == ["r0"]


def test_each_kill_is_judged_by_what_was_acknowledged_before_it() -> None:
    ledger = ledger_of(
        [Begun("r0"), Saved("r0", 2)], [Restored("r0", 2), Saved("r0", 4)], [Restored("r0", 3), Saved("r0", 5), done()]
    )
    assert [kill.lost for kill in ledger.kills] == [[], ["r0"]]


def test_a_run_that_had_nothing_saved_may_begin_again() -> None:
    ledger = ledger_of([Begun("r0"), *steps(0, 1)], [Begun("r0"), *steps(0, 4), done()])
    assert ledger.snapshots_lost == 0
    assert (ledger.steps_kept, ledger.steps_repeated) == (0, 1)


def test_a_run_whose_end_came_through_without_being_reported_is_back() -> None:
    ledger = ledger_of([Begun("r0"), Saved("r0", 3)], [done()])
    assert ledger.snapshots_lost == 0
    assert ledger.all_back


@pytest.mark.parametrize("sign", [Begun("r0"), Restored("r0", 3), StepBegun("r0", 3)])
def test_a_run_that_goes_on_after_its_acknowledged_end_is_a_loss(sign: Report) -> None:
    ledger = ledger_of([Begun("r0"), Saved("r0", 5), done()], [sign, done()])
    assert ledger.revived == {"r0"}
    assert ledger.snapshots_lost == 1


def test_recovery_lasts_until_the_last_interrupted_run_has_its_state_back() -> None:
    first_life: list[Report] = [Begun("r0"), Begun("r1"), Begun("r2"), done("r2"), Saved("r0", 2)]
    ledger = ledger_of(first_life, [Restored("r0", 2), StepBegun("r0", 1)], runs=3)
    assert not ledger.all_back
    ledger.take(Begun("r1"), 9.0)
    assert ledger.all_back
    assert ledger.recovery_s == 9.0 - 5.0
    assert set(ledger.kills[0].newest) == {"r0", "r1"}
    assert ledger.kills[0].oldest_snapshot_s == 0.0


def test_the_check_finds_a_result_that_is_wrong_or_missing_and_a_kill_that_missed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words\n")
    store = LmdbStore(tmp_path / "runs.store")
    store.open()
    store.close()
    ledger = ledger_of([Begun("r0"), done()])
    summary = check(
        {"r0": Share(str(tmp_path), ("a.txt",), 0.0)}, ledger, tmp_path / "runs.store", kills=2, screen=SilentScreen()
    )
    assert not summary.ok
    assert summary.results_wrong == 1
    assert summary.problems == ["run r0: ended with None", "only 0 of 2 kills fell into the work"]
