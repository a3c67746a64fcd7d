"""The catalogue, the bus and the log adapter."""

from __future__ import annotations

import logging
import threading
from typing import Any

import msgspec
import pytest

from executus.actors import events as catalogue
from executus.actors.events import (
    SEVERITY,
    Event,
    EventBus,
    RunEvent,
    RunExited,
    RunProgressed,
    RunRestarting,
    RunRestored,
    RunResumed,
    RunSettled,
    RunStarted,
    RuntimeClosed,
    RuntimeDraining,
    RuntimeOpened,
    SnapshotSaved,
    StoreFilling,
    default_logger,
    log_events,
    severity,
)
from executus.actors.outcomes import ErrorInfo, Phase
from executus.stores import MemoryStore, RunStatus
from tests.doubles import ERRORS, Do, FailableRun, Told, rigged
from tests.waiting import wait_until

KINDS = [
    kind
    for kind in vars(catalogue).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind not in {Event, RunEvent}
]
OPENED = RuntimeOpened(boot_epoch=1, resumed=0, parked=0, quarantined=0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_is_frozen_tagged_and_has_a_level(kind: Any) -> None:
    config = kind.__struct_config__
    assert config.frozen
    assert config.tag == kind.__name__
    assert SEVERITY.get(kind, "info") in {"debug", "info", "warning", "error"}


def test_every_transition_of_a_life_has_its_event_in_order() -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        handle = rig.waiting(told=Told(("ok", "raise:ValueError@1", "wait")))
        handle.durable(10)
    kinds = [type(event) for event in rig.seen.events if not isinstance(event, SnapshotSaved)]
    assert kinds == [
        RuntimeOpened,
        RunStarted,
        RunExited,
        RunRestarting,
        RunRestored,
        RuntimeDraining,
        RunSettled,
        RuntimeClosed,
    ]
    with rigged(store) as rig:
        handle = rig.runtime.get("r")
        wait_until(lambda: handle.status().waiting)
        handle.tell(Do("done"))
        handle.result(10)
    kinds = [type(event) for event in rig.seen.events if not isinstance(event, SnapshotSaved)]
    assert kinds[:1] + kinds[-3:] == [RuntimeOpened, RunSettled, RuntimeDraining, RuntimeClosed]
    assert {RunResumed, RunRestored} <= set(kinds)
    assert rig.seen.of(RuntimeOpened)[0].resumed == 1


def test_events_can_be_encoded_as_they_are() -> None:
    with rigged() as rig:
        rig.runtime.start(FailableRun, Told(("raise:ValueError@1",))).result(10)
    for event in rig.seen.events:
        assert msgspec.json.decode(msgspec.json.encode(event))["type"] == type(event).__name__


def test_a_subscriber_hears_everything_from_now_on_until_it_is_unsubscribed() -> None:
    bus, heard = EventBus(), list[Event]()
    bus.emit(OPENED)
    assert not bus.is_heard(RuntimeOpened)
    unsubscribe = bus.subscribe(heard.append)
    bus.emit(OPENED)
    assert bus.is_heard(RuntimeOpened)
    unsubscribe()
    unsubscribe()
    bus.emit(OPENED)
    assert heard == [OPENED]
    assert not bus.is_heard(RuntimeOpened)


def test_a_subscriber_of_some_kinds_hears_those_alone() -> None:
    bus, heard = EventBus(), list[Event]()
    closed = RuntimeClosed(escalated=None)
    bus.subscribe(heard.append, only=RuntimeOpened)
    unsubscribe = bus.subscribe(heard.append, only=(RuntimeClosed, RunEvent))
    bus.emit(OPENED)
    bus.emit(closed)
    assert heard == [OPENED, closed]
    assert bus.is_heard(RunProgressed)
    assert not bus.is_heard(StoreFilling)
    unsubscribe()
    assert not bus.is_heard(RunProgressed)
    assert bus.is_heard(RuntimeOpened)


def test_a_subscriber_may_subscribe_and_unsubscribe_while_it_is_called() -> None:
    bus, heard = EventBus(), list[str]()

    def once(event: Event) -> None:
        heard.append("once")
        unsubscribe()
        bus.subscribe(lambda _: heard.append("later"))

    unsubscribe = bus.subscribe(once)
    bus.emit(OPENED)
    bus.emit(OPENED)
    assert heard == ["once", "later"]


@pytest.mark.parametrize("error", ERRORS)
def test_what_a_subscriber_raises_is_counted_and_the_others_hear_all(error: str) -> None:
    bus, heard = EventBus(), list[Event]()

    def raising(_: Event) -> None:
        raise ERRORS[error]()

    bus.subscribe(raising)
    bus.subscribe(heard.append)
    for _ in range(3):
        bus.emit(OPENED)
    assert bus.failures == 3
    assert heard == [OPENED] * 3


def test_subscribers_from_many_threads_are_all_there() -> None:
    bus, heard = EventBus(), list[int]()
    threads = [threading.Thread(target=lambda n=n: bus.subscribe(lambda _: heard.append(n))) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bus.emit(OPENED)
    assert sorted(heard) == list(range(50))


def settled(status: RunStatus) -> RunSettled:
    return RunSettled(run_id="r", run_type="T", attempt=1, epoch=1, status=status, reason="", seq=1, durable=True)


def test_levels_follow_how_bad_it_is() -> None:
    assert severity(settled(RunStatus.COMPLETED)) == "info"
    assert {severity(settled(status)) for status in (RunStatus.FAILED, RunStatus.QUARANTINED, RunStatus.PARKED)} == {
        "warning"
    }
    fine = RunRestored(run_id="r", run_type="T", attempt=1, epoch=1, resumed_from_seq=1)
    assert severity(fine) == "info"
    assert severity(msgspec.structs.replace(fine, fell_back="bits")) == "warning"
    assert severity(OPENED) == "info"


def test_the_log_adapter_writes_name_and_fields_with_texts_escaped() -> None:
    lines: list[tuple[str, str, dict[str, Any]]] = []

    class Logger:
        def __getattr__(self, level: str) -> Any:
            return lambda event, **fields: lines.append((level, event, fields))

    write = log_events(Logger())
    error = ErrorInfo("ValueError", "a\nb", "Traceback ...")
    write(RunExited(run_id="r", run_type="T", attempt=1, epoch=1, error=error, phase=Phase.STEP, seq=3))
    write(RunProgressed(run_id="r", run_type="T", attempt=1, epoch=1, done=1, total=None, note="x\x1b[2J"))
    (level, name, fields), (_, _, progressed) = lines
    assert (level, name) == ("warning", "RunExited")
    assert fields["run_id"] == "r"
    assert fields["error"] == "ValueError: a\\nb"
    assert progressed["note"] == "x\\x1b[2J"


@pytest.mark.parametrize("how", ["exception", "exc_info", "the error itself"])
def test_where_structlog_is_not_configured_a_logged_error_comes_with_its_traceback(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    logger = default_logger()
    with caplog.at_level(logging.INFO, "executus"):
        try:
            raise OSError("disk\x1b[31m")
        except OSError as error:
            match how:
                case "exception":
                    logger.exception("it failed", run_id="r")
                case "exc_info":
                    logger.warning("it failed", run_id="r", exc_info=True)
                case _:
                    logger.warning("it failed", run_id="r", exc_info=error)
        logger.info("nothing raised", run_id="r", exc_info=True)  # noqa: LOG014 - users make mistakes
    first, second = (record.getMessage() for record in caplog.records)
    lines = first.splitlines()
    assert lines[0] == "event='it failed' run_id='r'"
    assert lines[1] == "    Traceback (most recent call last):"
    assert lines[-1] == "    OSError: disk\\x1b[31m"
    assert second == "event='nothing raised' run_id='r'"
