"""All of `limits`, once."""

from __future__ import annotations

import pytest

from tests.beside import Ended
from tests.harness.reports import program, reported


@program("limits", 1)
def test_disk_full_file_size_map_full_address_space_threads_and_descriptors_are_survived_told_of_and_recovered_from(
    ended: list[Ended],
) -> None:
    report = reported(ended)
    assert report.failures == ()
    skipped = [f"{name}: {value}" for name, value in report.figures.items() if str(value).startswith("skipped")]
    if skipped:
        pytest.skip("; ".join(skipped))
