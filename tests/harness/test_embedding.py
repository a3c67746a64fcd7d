"""The smaller part of `embedding`: each way to end once."""

from __future__ import annotations

from tests.beside import Ended
from tests.harness.host_program import ENDINGS
from tests.harness.reports import program, reported


@program("embedding", len(ENDINGS))
def test_a_host_ends_in_time_with_its_own_exit_code_and_without_a_word_however_it_ends(ended: list[Ended]) -> None:
    report = reported(ended)
    assert report.failures == ()
