"""The smaller part of `sigkill`.

That a run which takes its process down each time is quarantined after three attempts is in tests/scenarios/test_boots.py.
"""

from __future__ import annotations

import pytest

from tests.harness.reports import halves_of


@pytest.mark.timeout(600)  # a hundred processes are opened, half of them one after the other
def test_a_daemon_killed_a_hundred_times_loses_no_acknowledged_save_and_ends_with_every_result_right() -> None:
    report = halves_of("sigkill", 100, timeout_s=580)  # two stores, side by side: most of the time is spent waiting
    assert report.failures == ()
    assert report.count >= 100
    assert int(report.figures["resumed from a save"]) > 100
    assert int(report.figures["most attempts of a run"]) > 2
    assert int(report.figures["killed: label"]) > 5
    assert int(report.figures["killed: stopped"]) > 3
