"""What a run's ring hears: bounded, repeated events counted, nothing for a run that goes well."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from executus.actors.events import (
    MessageExpired,
    RunEvent,
    RunHung,
    RunProgressed,
    RunReported,
    RunRestarting,
    RunRestored,
    RunResumed,
    RunSettled,
    RunStarted,
    SaveRefused,
    SnapshotSaved,
)
from executus.actors.flight import MAX_EVENTS, MAX_EXITS, AttemptExit, FlightEvent, FlightRecord
from executus.actors.flight_ring import STACK_LINES, FlightRing, facts_of, is_telling, ring_of
from executus.actors.outcomes import ErrorInfo, ErrorLink, Phase
from executus.stores import RunStatus
from tests.stores.making import claim

WHO: dict[str, Any] = {"run_id": "r", "run_type": "T", "attempt": 1, "epoch": 1}
ERROR = ErrorInfo("ValueError", "no\\n")


def expired(number: int) -> MessageExpired:
    return MessageExpired(**WHO, message_id=f"m{number}", number=number)


def restored(seq: int) -> RunRestored:
    return RunRestored(**WHO, resumed_from_seq=seq)


def an_exit(attempt: int) -> AttemptExit:
    return AttemptExit(attempt=attempt, epoch=attempt, at_s=float(attempt), how="crashed")


def record(ring: FlightRing) -> FlightRecord:
    return ring.record(claim(), 9.0, "failed")


@pytest.mark.parametrize(
    ("event", "telling"),
    [
        (RunStarted(**WHO), False),
        (RunResumed(**WHO, strikes=0), False),
        (restored(1), False),
        (RunRestored(**WHO, resumed_from_seq=1, fell_back="the newest is damaged"), True),
        (RunRestarting(**WHO, delay_s=0.1, resumed_from_seq=1, afresh=False), True),
        (RunRestarting(**WHO, delay_s=0.1, resumed_from_seq=1, afresh=True), False),
        (SaveRefused(**WHO, error=ERROR, seq=3), True),
        (expired(1), True),
        (SnapshotSaved(**WHO, seq=3), False),
    ],
)
def test_only_what_is_out_of_the_ordinary_begins_a_ring(event: RunEvent, telling: bool) -> None:
    assert is_telling(event) is telling


def test_the_last_events_are_kept_and_the_others_counted() -> None:
    ring = FlightRing()
    for number in range(20):
        ring.hear(float(number), expired(number) if number % 2 else restored(number))
    found = record(ring)
    assert len(found.events) == MAX_EVENTS
    assert found.events_dropped == 4
    assert found.events[-1] == FlightEvent(19.0, "MessageExpired", "message_id=m19, number=19")


def test_equal_events_in_a_row_are_one_with_their_number_and_the_facts_of_the_last() -> None:
    ring = FlightRing()
    for seq in range(1000):
        ring.hear(float(seq), SaveRefused(**WHO, error=ERROR, seq=seq))
    found = record(ring)
    assert [(event.name, event.times, event.at_s) for event in found.events] == [("SaveRefused", 1000, 999.0)]
    assert found.refused is not None
    assert (found.refused.times, found.refused.seq, found.refused.why) == (1000, 999, "ValueError: no\\n")


def test_what_comes_by_the_thousand_is_not_heard() -> None:
    ring = FlightRing()
    for event in (
        RunStarted(**WHO),
        SnapshotSaved(**WHO, seq=1),
        RunProgressed(**WHO, done=1, total=2, note=""),
        RunSettled(**WHO, status=RunStatus.FAILED, reason="", seq=1, durable=True),
    ):
        ring.hear(1.0, event)
    assert record(ring).events == ()


def test_the_last_exits_are_kept_and_the_error_of_the_last_that_had_one() -> None:
    ring = FlightRing()
    link = ErrorLink("raised", "ValueError", "x")
    for attempt in range(1, 12):
        ring.ended(an_exit(attempt), [link] if attempt == 9 else [])
    found = record(ring)
    assert [one.attempt for one in found.exits] == list(range(12 - MAX_EXITS, 12))
    assert (found.exits_dropped, found.chain, found.chain_attempt) == (3, (link,), 9)


def test_what_is_stored_comes_before_what_was_heard_here() -> None:
    before = FlightRing()
    for attempt in range(1, 7):
        before.ended(an_exit(attempt), [ErrorLink("raised", "OldError", "")])
        before.hear(1.0, restored(attempt))
        before.hear(1.0, expired(attempt))
    ring = FlightRing()
    for attempt in (7, 8, 9):
        ring.ended(an_exit(attempt))
        ring.hear(2.0, restored(attempt))
        ring.hear(2.0, expired(attempt))
    ring.after(record(before))
    found = record(ring)
    assert [one.attempt for one in found.exits] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert (found.exits_dropped, found.events_dropped, len(found.events)) == (1, 2, MAX_EVENTS)
    assert (found.chain[0].type, found.chain_attempt) == ("OldError", 6)


def test_an_error_of_this_process_stands_before_a_stored_one() -> None:
    before, ring = FlightRing(), FlightRing()
    before.ended(an_exit(1), [ErrorLink("raised", "OldError", "")])
    ring.ended(an_exit(2), [ErrorLink("raised", "NewError", "")])
    ring.after(record(before))
    assert (record(ring).chain[0].type, record(ring).chain_attempt) == ("NewError", 2)


def test_an_unreadable_record_before_is_told_of() -> None:
    ring = FlightRing()
    ring.after(None, "it is damaged")
    assert record(ring).earlier == "it is damaged"
    later = FlightRing()
    later.after(record(ring))
    assert record(later).earlier == "it is damaged"


def test_a_stack_keeps_its_inner_lines_escaped() -> None:
    ring = FlightRing()
    lines = [f'  File "/app/run.py", line {number}, in step\x1b' for number in range(100)]
    ring.hear(5.0, RunHung(**WHO, idle_s=1.0, stack="\n".join(lines) + "\n"))
    stack = record(ring).stack
    assert stack is not None
    assert (stack.when, len(stack.lines), stack.left_out) == ("it hung", STACK_LINES, 60)
    assert stack.lines[-1].endswith("line 99, in step\\x1b")


def test_a_stack_begins_at_the_users_code() -> None:
    ring = FlightRing()
    ours = threading.__file__, FlightRing.__init__.__code__.co_filename
    frames = "".join(f'  File "{path}", line 1, in f\n    call()\n' for path in (*ours, "/app/run.py", ours[0]))
    ring.saw_stack(1.0, "it was killed", frames)
    stack = record(ring).stack
    assert stack is not None
    assert stack.lines[0] == '  File "/app/run.py", line 1, in f'
    assert len(stack.lines) == 4


def test_a_thread_that_is_nowhere_has_no_stack() -> None:
    ring = FlightRing()
    ring.saw_stack(1.0, "it was killed", "")
    assert record(ring).stack is None


def test_facts_are_those_of_the_event_in_one_line() -> None:
    assert facts_of(RunRestarting(**WHO, delay_s=0.123456, resumed_from_seq=7, afresh=False)) == (
        "delay_s=0.123, resumed_from_seq=7, afresh=False"
    )
    assert facts_of(SaveRefused(**WHO, error=ERROR, seq=3)) == "error=ValueError: no\\n, seq=3"
    assert (
        facts_of(RunReported(**WHO, what="tools", facts={"calls": 3, "ok": True}))
        == "what=tools, facts=calls=3 ok=True"
    )
    settled = RunSettled(**WHO, status=RunStatus.FAILED, reason="", seq=0, durable=False)
    assert facts_of(settled) == "status=failed, seq=0, durable=False"
    assert Phase.STEP.value in facts_of(msgspec.structs.replace(settled, reason="step"))


def test_of_two_that_make_a_ring_at_once_both_get_the_same() -> None:
    class Flown:
        flight: FlightRing | None = None

    for _ in range(50):
        flown, found = Flown(), []
        start = threading.Barrier(4)

        def make(flown: Flown = flown, found: list[FlightRing] = found, start: threading.Barrier = start) -> None:
            start.wait()
            found.append(ring_of(flown))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {id(ring) for ring in found} == {id(flown.flight)}


def test_hearing_on_many_threads_loses_no_count() -> None:
    ring = FlightRing()

    def hear() -> None:
        for number in range(500):
            ring.hear(1.0, expired(number))
            ring.hear(1.0, restored(number))

    threads = [threading.Thread(target=hear) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = record(ring)
    assert sum(event.times for event in found.events) + found.events_dropped == 4000
