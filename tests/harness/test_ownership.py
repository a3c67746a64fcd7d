"""The smaller part of `ownership`."""

from __future__ import annotations

from tests.beside import Ended
from tests.harness.reports import program, reported


@program("ownership", 20)
def test_of_several_that_open_a_store_one_owns_it_the_others_name_it_and_it_is_free_at_once_after_sigkill(
    ended: list[Ended],
) -> None:
    report = reported(ended)
    assert report.failures == ()
    assert report.figures["opened"] == 40
