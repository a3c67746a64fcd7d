"""All of `limits`, once."""

from __future__ import annotations

import pytest

from tests.harness.reports import report_of


def test_disk_full_file_size_map_full_address_space_threads_and_descriptors_are_survived_told_of_and_recovered_from() -> (
    None
):
    report = report_of("limits", 1)
    assert report.failures == ()
    skipped = [f"{name}: {value}" for name, value in report.figures.items() if str(value).startswith("skipped")]
    if skipped:
        pytest.skip("; ".join(skipped))
