"""The smaller part of `drains`."""

from __future__ import annotations

from tests.beside import Ended
from tests.harness.reports import program, reported


@program("drains", 12)
def test_a_drain_returns_within_its_time_and_half_a_second_whatever_the_runs_do(ended: list[Ended]) -> None:
    report = reported(ended)
    assert report.failures == ()
    assert int(report.figures["runs given up on"]) > 0
