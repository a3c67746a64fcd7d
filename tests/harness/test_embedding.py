"""The smaller part of `embedding`: each way to end once."""

from __future__ import annotations

from tests.harness.host_program import ENDINGS
from tests.harness.reports import report_of


def test_a_host_ends_in_time_with_its_own_exit_code_and_without_a_word_however_it_ends() -> None:
    report = report_of("embedding", len(ENDINGS))
    assert report.failures == ()
