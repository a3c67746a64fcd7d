"""The smaller part of `sigkill`.

That a run which takes its process down each time is quarantined after three attempts is in tests/scenarios/test_boots.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.report import Report
from tests.harness.reports import report_of


@pytest.mark.timeout(600)  # a hundred processes are opened, half of them one after the other
def test_a_daemon_killed_a_hundred_times_loses_no_acknowledged_save_and_ends_with_every_result_right() -> None:
    def half(seed: int) -> Report:
        return report_of("sigkill", 50, seed=seed, timeout_s=580)

    with ThreadPoolExecutor(2) as both:  # two stores, side by side: most of the time is spent waiting
        reports = list(both.map(half, (1, 2)))
    assert [report.failures for report in reports] == [(), ()]
    assert sum(report.count for report in reports) >= 100

    def total(figure: str) -> int:
        return sum(int(report.figures.get(figure, 0)) for report in reports)

    assert total("resumed from a save") > 100
    assert max(int(report.figures["most attempts of a run"]) for report in reports) > 2
    assert total("killed: label") > 5
    assert total("killed: stopped") > 3
