"""The smaller part of `drains`."""

from __future__ import annotations

from tests.harness.reports import report_of


def test_a_drain_returns_within_its_time_and_half_a_second_whatever_the_runs_do() -> None:
    report = report_of("drains", 12)
    assert report.failures == ()
    assert int(report.figures["runs given up on"]) > 0
