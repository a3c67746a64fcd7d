"""The smaller part of `leaks`, and that it would see what it looks for."""

from __future__ import annotations

from tests.beside import Ended
from tests.harness.leaks import SLACK_BYTES, Reading, judge
from tests.harness.reports import program, reported


@program("leaks", 400)
def test_starts_stops_crashes_opens_and_closes_leave_threads_descriptors_memory_and_objects_flat(
    ended: list[Ended],
) -> None:
    report = reported(ended)
    assert report.failures == ()
    assert report.count > 1000


def test_what_grows_is_seen() -> None:
    flat = [Reading(3, 7, 10_000_000, 30_000)] * 3
    assert judge(flat) == []
    growing = [Reading(3 + n, 7 + n, 10_000_000 + 2 * n * SLACK_BYTES, 30_000 + n * 1000) for n in range(3)]
    assert [complaint.split()[0] for complaint in judge(growing)] == [
        "threads",
        "descriptors",
        "memory_bytes",
        "objects",
    ]
