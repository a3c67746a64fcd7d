"""The smaller part of `ownership`."""

from __future__ import annotations

from tests.harness.reports import report_of


def test_of_several_that_open_a_store_one_owns_it_the_others_name_it_and_it_is_free_at_once_after_sigkill() -> None:
    report = report_of("ownership", 20)
    assert report.failures == ()
    assert report.figures["opened"] == 40
