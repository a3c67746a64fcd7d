"""How runs end: one row of design's table, one case; and what holds whatever the evidence is."""

from __future__ import annotations

import asyncio
import enum
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executus.actors.outcomes import (
    MAX_TEXT_CHARS,
    NO_REASON,
    Cancelled,
    CancelRequested,
    Cause,
    Completed,
    Crashed,
    DrainRequested,
    ErrorInfo,
    ExitEvidence,
    Failed,
    Killed,
    KillRequested,
    Parked,
    Phase,
    Quarantined,
    RunTimeoutElapsed,
    Stopped,
    StopRequested,
    Suspended,
    TimedOut,
    classify,
    decode_outcome,
    encode_outcome,
    escape,
    safe_text,
)
from tests.doubles import ERRORS, Unprintable

BOOM = ErrorInfo("ValueError", "boom")
KILL, CANCEL, STOP, DRAIN, LATE = (
    KillRequested("a", "b"),
    CancelRequested("c", "d"),
    StopRequested(),
    DrainRequested(),
    RunTimeoutElapsed(),
)

ROWS: dict[str, tuple[ExitEvidence, Any]] = {
    "Done completes": (ExitEvidence(phase=Phase.STEP, done=Completed(7)), Completed(7)),
    "an error is a crash": (ExitEvidence(phase=Phase.RECEIVE, error=BOOM), Crashed(BOOM, Phase.RECEIVE)),
    "a hang is a crash": (ExitEvidence(phase=Phase.HUNG, error=BOOM), Crashed(BOOM, Phase.HUNG)),
    "nothing at all is a crash, too": (ExitEvidence(phase=Phase.STEP), Crashed(NO_REASON, Phase.STEP)),
    "unreadable is quarantined": (
        ExitEvidence(phase=Phase.RESTORING, error=BOOM, unreadable="bits"),
        Quarantined("bits"),
    ),
    "incompatible is parked": (ExitEvidence(phase=Phase.RESTORING, error=BOOM, incompatible="old"), Parked("old")),
    "nor can what this code cannot go on with": (
        ExitEvidence(phase=Phase.RESTORING, error=BOOM, incompatible="no such phase", causes=(STOP, DRAIN)),
        Parked("no such phase"),
    ),
    "a kill kills": (ExitEvidence(phase=Phase.STEP, causes=(KILL,)), Killed("a", "b")),
    "a cancel cancels": (ExitEvidence(phase=Phase.STOPPING, causes=(CANCEL,)), Cancelled("c", "d")),
    "a stop stops": (ExitEvidence(phase=Phase.STOPPING, causes=(STOP,)), Stopped()),
    "a drain suspends": (ExitEvidence(phase=Phase.STOPPING, causes=(DRAIN,)), Suspended()),
    "a time-out times out": (ExitEvidence(phase=Phase.STOPPING, causes=(LATE,)), TimedOut()),
    "an error after a drain began is an interruption": (
        ExitEvidence(phase=Phase.STEP, error=BOOM, causes=(DRAIN,)),
        Suspended(),
    ),
    "Done still completes while draining": (
        ExitEvidence(phase=Phase.STEP, done=Completed(7), causes=(DRAIN,)),
        Completed(7),
    ),
    "the first recorded cause wins": (ExitEvidence(phase=Phase.STEP, causes=(STOP, CANCEL, DRAIN)), Stopped()),
    "a kill goes before earlier causes, its tombstone is there": (
        ExitEvidence(phase=Phase.STEP, causes=(CANCEL, KILL)),
        Killed("a", "b"),
    ),
    "and before a Done": (ExitEvidence(phase=Phase.STEP, done=Completed(7), causes=(KILL,)), Killed("a", "b")),
    "what cannot be read cannot be suspended": (
        ExitEvidence(phase=Phase.RESTORING, unreadable="bits", causes=(DRAIN,)),
        Quarantined("bits"),
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_each_row_of_the_table(row: str) -> None:
    evidence, expected = ROWS[row]
    assert classify(evidence) == expected


causes = st.lists(st.sampled_from([KILL, CANCEL, STOP, DRAIN, LATE]), max_size=4).map(tuple)
evidences = st.builds(
    ExitEvidence,
    phase=st.sampled_from(Phase),
    done=st.none() | st.just(Completed(1)),
    error=st.none() | st.just(BOOM),
    causes=causes,
    unreadable=st.none() | st.just("bits"),
    incompatible=st.none() | st.just("old"),
)


@given(evidences)
def test_every_evidence_has_an_exit_and_it_is_always_the_same(evidence: ExitEvidence) -> None:
    assert classify(evidence) == classify(evidence)


@given(evidences)
def test_a_run_ends_as_killed_exactly_when_it_was_killed(evidence: ExitEvidence) -> None:
    assert isinstance(classify(evidence), Killed) == any(isinstance(cause, KillRequested) for cause in evidence.causes)


@given(evidences)
def test_it_is_never_a_crash_once_somebody_wanted_it_to_end(evidence: ExitEvidence) -> None:
    if evidence.causes:
        assert not isinstance(classify(evidence), Crashed)


@given(evidences)
def test_what_this_code_cannot_go_on_with_is_parked_whoever_wanted_it_to_end(evidence: ExitEvidence) -> None:
    killed = any(isinstance(cause, KillRequested) for cause in evidence.causes)
    if evidence.incompatible is not None and not killed and evidence.done is None and evidence.unreadable is None:
        assert classify(evidence) == Parked(evidence.incompatible)


@given(evidences, causes)
def test_causes_recorded_later_change_nothing_unless_one_is_a_kill(
    evidence: ExitEvidence, more: tuple[Cause, ...]
) -> None:
    later = msgspec.structs.replace(evidence, causes=(*evidence.causes, *more))
    if evidence.causes and KILL not in more:
        assert classify(later) == classify(evidence)


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_can_be_described_and_the_description_stored(error: str) -> None:
    try:
        raise ERRORS[error]()
    except BaseException as raised:
        info = ErrorInfo.of(raised)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(info), type=ErrorInfo) == info
    assert info.type.endswith(error)
    assert info.type == info.mro[0]
    assert info.mro[-1] == "BaseException"


def test_a_traceback_shows_no_local_variables() -> None:
    def step(secret: str) -> None:
        raise ValueError(len(secret))

    try:
        step("hunter2")
    except ValueError as raised:
        info = ErrorInfo.of(raised)
    assert "step" in info.traceback
    assert "hunter2" not in repr(info).replace('step("hunter2")', "")  # the source line stands there, values do not


class Carrying(Exception):
    """Facts as somebody attached them."""

    def __init__(self, facts: Any) -> None:
        self.facts = facts


class Status(enum.IntEnum):
    RATE_LIMITED = 429


class Name(enum.StrEnum):
    OPENER = "opener"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"status": 429, "left": -1.5, "again": True, "model": "small"}, None),
        ({"status": Status.RATE_LIMITED, "who": Name.OPENER}, {"status": 429, "who": "opener"}),
        ({"long": "x" * 201, "w" * 64: 1, "w" * 65: 2}, {"long": "x" * 200, "w" * 64: 1}),
        ({"a\n": "b\x1b[31m", "lone": "\ud800"}, {"a\\n": "b\\x1b[31m", "lone": "\\ud800"}),
        ({"nan": math.nan, "inf": -math.inf, "big": 1 << 64, "least": -(1 << 63)}, {"least": -(1 << 63)}),
        ({"most": (1 << 64) - 1, "under": -(1 << 63) - 1}, {"most": (1 << 64) - 1}),
        ({"none": None, "list": [1], "bytes": b"x", "complex": 1j, 7: "no name", "ok": 0}, {"ok": 0}),
        ({f"n{n}": n for n in range(40)}, {f"n{n}": n for n in range(16)}),
        ([("status", 429)], {}),
        ("status", {}),
        (None, {}),
    ],
)
def test_an_errors_facts_are_its_small_scalars(given: Any, kept: Any) -> None:
    info = ErrorInfo.of(Carrying(given))
    expected = given if kept is None else kept
    assert info.facts == expected
    assert {type(fact) for fact in info.facts.values()} <= {str, int, float, bool}
    for outcome in (Failed(info, Phase.STEP, 0), Failed(ErrorInfo.of(ValueError("none")), Phase.STEP, 0)):
        assert decode_outcome(encode_outcome(outcome), int) == outcome
        assert hash(outcome) == hash(decode_outcome(encode_outcome(outcome), int))
    info.facts["status"] = 500
    assert info.facts == expected, "a copy"


class HostileFacts(dict[str, Any]):
    def items(self) -> Any:
        raise KeyboardInterrupt


class Lying:
    @property
    def __class__(self) -> Any:
        return str


class HostileText(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise SystemExit

    def __len__(self) -> int:
        raise SystemExit


class Refusing(Exception):
    @property
    def facts(self) -> Any:
        raise SystemExit


@pytest.mark.parametrize(
    "error", [Refusing(), Carrying(HostileFacts(a=1)), Carrying({"a": Lying()}), Carrying({Lying(): 1})]
)
def test_facts_that_cannot_be_had_are_none(error: BaseException) -> None:
    assert ErrorInfo.of(error).facts == {}


def test_texts_with_a_mind_of_their_own_are_copied_as_texts() -> None:
    info = ErrorInfo.of(Carrying({HostileText("name"): HostileText("value")}))
    assert info.facts == {"name": "value"}
    assert [type(text) for text in info.fact_pairs[0]] == [str, str]


def test_outcomes_that_were_stored_before_there_were_facts_are_read() -> None:
    before = {"type": "Failed", "error": {"type": "OSError", "message": "x"}, "phase": "step", "restarts": 3}
    outcome = decode_outcome(msgspec.msgpack.encode(before), int)
    assert outcome == Failed(ErrorInfo("OSError", "x"), Phase.STEP, 3)
    assert isinstance(outcome, Failed)
    assert outcome.error.facts == {}


class Hostile(Exception):
    def __str__(self) -> str:
        raise SystemExit


class Huge(Exception):
    def __str__(self) -> str:
        return "x" * 10_000_000


def test_a_text_that_cannot_be_had_is_replaced_and_a_huge_one_cut() -> None:
    assert safe_text(Unprintable()) == "<Unprintable whose __str__ raised ValueError>"
    assert safe_text(Hostile()) == "<Hostile whose __str__ raised SystemExit>"
    assert ErrorInfo.of(Hostile()).message == "<Hostile whose __str__ raised SystemExit>"
    assert len(ErrorInfo.of(Huge()).message) == MAX_TEXT_CHARS


@given(st.text(max_size=50))
def test_escaped_text_is_one_printable_line(text: str) -> None:
    assert escape(text).isprintable()
    if text.isprintable():
        assert escape(text) == text


def test_newline_escape_and_lone_surrogates_are_made_visible() -> None:
    assert escape("a\nb\x1b[31m\ud800") == "a\\nb\\x1b[31m\\ud800"


OUTCOMES = [
    Completed({"a": [1, 2.5, None]}),
    Completed(None, durable=False),
    Failed(ErrorInfo.of(asyncio.CancelledError()), Phase.STEP, 3),
    Quarantined("why"),
    Killed("a", "b"),
    Cancelled("a", "b"),
    TimedOut(),
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
def test_an_outcome_comes_back_as_it_was(outcome: Any) -> None:
    assert decode_outcome(encode_outcome(outcome), Any) == outcome


class Answer(msgspec.Struct, frozen=True):
    text: str


def test_a_result_comes_back_as_its_declared_type() -> None:
    assert decode_outcome(encode_outcome(Completed(Answer("x"))), Answer) == Completed(Answer("x"))
    with pytest.raises(msgspec.ValidationError):
        decode_outcome(encode_outcome(Completed(1)), Answer)
