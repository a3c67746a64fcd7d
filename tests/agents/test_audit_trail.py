"""The trail: the newest entries in order, from any thread."""

from __future__ import annotations

import threading

import pytest

from executus.actors.agents.audit import Audit, RunBegan, RunResumed
from executus.actors.agents.audit_trail import AuditTrail
from tests.agents.entries import ENTRIES, OF
from tests.agents.watching import info


def test_entries_are_kept_in_order_of_all_runs_or_of_one() -> None:
    trail = AuditTrail()
    audit: Audit = trail
    other = RunBegan(**(OF | {"info": info("r-2")}))
    for entry in (*ENTRIES, other):
        audit.record(entry)
    assert trail.entries() == (*ENTRIES, other)
    assert trail.entries("r-1") == ENTRIES
    assert trail.entries("r-2") == (other,)
    assert trail.entries("r-3") == ()
    assert trail.dropped == 0


def test_the_oldest_go_and_are_counted() -> None:
    trail = AuditTrail(limit=3)
    for entry in ENTRIES:
        trail.record(entry)
    assert trail.entries() == ENTRIES[-3:]
    assert trail.dropped == len(ENTRIES) - 3
    with pytest.raises(ValueError, match="limit"):
        AuditTrail(limit=0)


def test_threads_that_record_and_read_at_once_lose_nothing_and_keep_each_runs_order() -> None:
    trail = AuditTrail(limit=4 * 2_000)
    barrier = threading.Barrier(5)
    written = threading.Event()
    seen: list[int] = []

    def records(run_id: str) -> None:
        whose = OF | {"info": info(run_id)}
        entries = [RunResumed(step=step, **whose) for step in range(2_000)]
        barrier.wait(timeout=60)
        for entry in entries:
            trail.record(entry)

    def reads() -> None:
        barrier.wait(timeout=60)
        while not written.is_set():
            seen.append(len(trail.entries()))

    writers = [threading.Thread(target=records, args=(f"r-{number}",)) for number in range(4)]
    reader = threading.Thread(target=reads)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    written.set()
    reader.join()
    assert seen == sorted(seen)
    for number in range(4):
        steps = [entry.step for entry in trail.entries(f"r-{number}") if isinstance(entry, RunResumed)]
        assert steps == list(range(2_000))
    assert trail.dropped == 0
