"""The smaller part of `sigkill`.

That a run which takes its process down each time is quarantined after three attempts is in tests/scenarios/test_boots.py.
"""

from __future__ import annotations

from tests.beside import Ended
from tests.harness.reports import program, reported


@program("sigkill", 100, seeds=(1, 2))  # two stores, side by side: most of the time is spent waiting
def test_a_daemon_killed_a_hundred_times_loses_no_acknowledged_save_and_ends_with_every_result_right(
    ended: list[Ended],
) -> None:
    report = reported(ended)
    assert report.failures == ()
    assert report.count >= 100
    assert int(report.figures["resumed from a save"]) > 100
    assert int(report.figures["most attempts of a run"]) > 2
    assert int(report.figures["killed: label"]) > 5
    assert int(report.figures["killed: stopped"]) > 3
