"""The log: a line an entry, whose it is, how loud, and nothing of what was said."""

from __future__ import annotations

import logging

import pytest
import structlog
from structlog.testing import CapturingLogger

from executus.actors.agents import log_audit
from executus.actors.agents.audit import (
    Audit,
    ChildSettled,
    KillOrdered,
    Nudged,
    PhaseEnded,
    RunBegan,
    RunConcluded,
    ToolAnswered,
)
from executus.actors.agents.log_audit import MAX_CHARS, LogAudit, fields_of, level_of
from tests.agents.entries import ENTRIES, OF

STEP = ENTRIES[2]
"""Of level debug."""


def logged(*entries) -> list[tuple[str, str, dict]]:
    """Level, event and fields of each line."""
    sink = CapturingLogger()
    audit: Audit = LogAudit(sink)
    for entry in entries:
        audit.record(entry)
    return [(call.method_name, call.args[0], call.kwargs) for call in sink.calls]


def test_every_entry_is_one_line_that_says_whose_run_it_is() -> None:
    lines = logged(*ENTRIES)
    assert [event for _, event, _ in lines] == [type(entry).__name__ for entry in ENTRIES]
    for _, _, fields in lines:
        whose = {name: fields[name] for name in ("run_id", "root_run_id", "subject", "agent", "tier", "attempt")}
        assert whose == {
            "run_id": "r-1", "root_run_id": "r-1", "subject": "helper", "agent": "helper", "tier": "default", "attempt": 2,
        }  # fmt: skip
        assert "guild" not in fields, "what is not known is not said"


@pytest.mark.parametrize(
    ("entry", "level"),
    [
        *zip(ENTRIES, ["info", "info", "debug", "debug", "info", "info", "warning", "info", "warning", "warning", "info", "info", "info", "info"], strict=True),
        (ToolAnswered(name="pay", call_id="c", is_error=True, **OF), "debug"),
        (ToolAnswered(name="pay", call_id="c", is_error=True, unknown=True, **OF), "warning"),
        (PhaseEnded(index=1, name="p", status="failed", **OF), "warning"),
        (ChildSettled(key="k", status="killed", **OF), "warning"),
        (RunConcluded(status="out_of_budget", **OF), "warning"),
        (RunConcluded(status="suspended", **OF), "info"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_an_entry_is_as_loud_as_it_is_grave(entry, level) -> None:
    assert logged(entry)[0][0] == level


def test_a_line_holds_an_entrys_own_fields_with_usage_laid_out() -> None:
    lines = {event: fields for _, event, fields in logged(*ENTRIES)}
    step = lines["StepTaken"]
    assert {name: step[name] for name in ("step", "calls", "took_s", "input_tokens", "output_tokens", "usd")} == {
        "step": 4, "calls": 2, "took_s": 1.235, "input_tokens": 70, "output_tokens": 7, "usd": 0.000123,
    }  # fmt: skip
    assert lines["ToolAnswered"]["name"] == "grep"
    delegated = lines["Delegated"]
    assert (delegated["subject"], delegated["child_subject"], delegated["child_run_id"]) == ("helper", "editor", "r-2")


def test_no_line_holds_what_was_said_or_given() -> None:
    lines = logged(*ENTRIES)
    assert "circles" not in str(lines)
    assert "secret" not in str(lines)
    nudged = next(fields for _, event, fields in lines if event == "Nudged")
    assert (nudged["chars"], nudged["stall"]) == (25, "spinning")


def test_foreign_text_can_forge_no_line_and_fill_no_disk() -> None:
    hostile = "x\n2026-01-01 [error] forged\x1b[2J" + "y" * 100_000
    [(_, _, fields)] = logged(KillOrdered(reason=hostile, **OF))
    assert "\n" not in fields["reason"]
    assert "\x1b" not in fields["reason"]
    assert len(fields["reason"]) < MAX_CHARS + 20
    assert fields["caller"] == r"mia\n"


def test_unconfigured_it_speaks_as_executus_and_configures_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert not structlog.is_configured()
    handlers, level = list(logging.getLogger().handlers), logging.getLogger("executus").level
    with caplog.at_level(logging.INFO, logger="executus"):
        audit = LogAudit()
        audit.record(RunBegan(**OF))
        audit.record(ENTRIES[2])  # debug
        audit.record(Nudged(text="n", **OF))
    assert [record.name for record in caplog.records] == ["executus", "executus"]
    assert "RunBegan" in caplog.records[0].getMessage()
    assert "run_id='r-1'" in caplog.records[0].getMessage()
    assert not structlog.is_configured()
    assert logging.getLogger().handlers == handlers
    assert logging.getLogger("executus").level == level


def made_lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The entries of which a line was made, whether or not anybody took it."""
    made: list[str] = []

    def noted(entry):
        made.append(type(entry).__name__)
        return fields_of(entry)

    monkeypatch.setattr(log_audit, "fields_of", noted)
    return made


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING])
def test_a_line_that_the_default_logger_would_drop_is_not_made(level, caplog, monkeypatch) -> None:
    made = made_lines(monkeypatch)
    with caplog.at_level(level, logger="executus"):
        audit = LogAudit()
        for entry in ENTRIES:
            audit.record(entry)
    assert made == [type(entry).__name__ for entry in ENTRIES if getattr(logging, level_of(entry).upper()) >= level]
    assert len(caplog.records) == len(made)


def test_a_level_that_changes_later_counts_from_then_on(caplog) -> None:
    audit = LogAudit()
    with caplog.at_level(logging.INFO, logger="executus"):
        audit.record(STEP)
    with caplog.at_level(logging.DEBUG, logger="executus"):
        audit.record(STEP)
    assert len(caplog.records) == 1


def test_a_line_that_a_configured_structlog_would_drop_is_not_made(monkeypatch) -> None:
    made, sink = made_lines(monkeypatch), CapturingLogger()
    structlog.configure(
        processors=[lambda _logger, _method, entry: ((entry["event"],), {})],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_args: sink,
    )
    try:
        audit = LogAudit()
        for entry in ENTRIES:
            audit.record(entry)
    finally:
        structlog.reset_defaults()
    assert made == [type(entry).__name__ for entry in ENTRIES if level_of(entry) != "debug"]
    assert [call.args[0] for call in sink.calls] == made


def test_a_structlog_configured_before_the_first_entry_is_used() -> None:
    audit = LogAudit()
    lines: list[dict] = []

    def keep(_logger, _method, entry):
        lines.append(dict(entry))
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    try:
        audit.record(RunBegan(**OF))
    finally:
        structlog.reset_defaults()
    assert [line["event"] for line in lines] == ["RunBegan"]
