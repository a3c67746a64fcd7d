"""What the check of `executus demo agent` must catch, and what its script does with what it is shown."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from executus.actors.agents import Message, ModelRequest, RunInfo, ToolCall, ToolResult
from executus.actors.agents.parts import Text, assistant, result, user
from executus.actors.agents.scripted import Reply
from executus.actors.console.demo_agent_check import AgentSummary, check
from executus.actors.console.demo_agent_ledger import MOMENTS, Asked, Called, Held, Ledger, Report, StoredRun
from executus.actors.console.demo_agent_library import Claim, Finding, Hits, Place
from executus.actors.console.demo_agent_script import script
from executus.actors.console.demo_ledger import Restored

ANSWER = "42"


def asks(name: str, call_id: str) -> Message:
    return assistant(ToolCall(call_id, name, "{}"))


def answers(name: str, call_id: str) -> Message:
    return result(ToolResult(call_id, name, "ok"))


WHOLE = {
    "lead": (user("Go."), asks("agent__librarian", "l0"), answers("agent__librarian", "l0"), asks("write_report", "l1"),
             answers("write_report", "l1"), assistant(Text(ANSWER))),
    "lead/1": (user("TODO"), asks("grep", "c0"), answers("grep", "c0"), assistant(Text("found"))),
}  # fmt: skip


def stored(live: bool = True, **lengths: int) -> dict[str, StoredRun]:
    """So much of each transcript. `child` is the child's."""
    names = {"lead": "lead", "child": "lead/1"}
    return {
        names[who]: StoredRun("lead" if who == "lead" else "librarian", live, "running" if live else "completed",
                              WHOLE[names[who]][:length])
        for who, length in lengths.items()
    }  # fmt: skip


LIVES: list[list[Report]] = [
    [Asked("lead", "lead", 0), Asked("lead/1", "librarian", 0), Called("lead/1", "librarian", "c0", "grep"), Held("lead/1")],
    [Restored("lead", 3), Restored("lead/1", 2), Called("lead/1", "librarian", "c0", "grep"),
     Asked("lead/1", "librarian", 1), Held("lead/1")],
    [Restored("lead", 3), Restored("lead/1", 3), Asked("lead/1", "librarian", 1), Asked("lead", "lead", 1),
     Called("lead", "lead", "l1", "write_report"), Held("lead")],
    [Restored("lead", 6), Asked("lead", "lead", 2), Held("lead")],
    [Restored("lead", 7), Asked("lead", "lead", 2)],
]  # fmt: skip
INSIDE = [MOMENTS[1], MOMENTS[2], MOMENTS[3], MOMENTS[0]]
STORED = [
    stored(lead=2, child=2),
    stored(lead=2, child=3),
    {**stored(lead=4), **stored(live=False, child=4)},
    {**stored(lead=5), **stored(live=False, child=4)},
]


def checked(
    lives: list[list[Report]] = LIVES,
    at_kills: list[dict[str, StoredRun]] = STORED,
    runs: dict[str, StoredRun] | None = None,
    answer: str | None = ANSWER,
    report: str = ANSWER + "\n",
) -> AgentSummary:
    """Lives of the daemon with a SIGKILL between each two; a second passes with every report."""
    ledger = Ledger("lead")
    now_s = 0.0
    for number, life in enumerate(lives):
        ledger.started(now_s)
        for one in life:
            now_s += 1.0
            ledger.take(one, now_s)
        if number < len(at_kills):
            ledger.killed(1000 + number, INSIDE[number], at_kills[number])
    return check(ledger, stored(live=False, lead=6, child=4) if runs is None else runs, answer, report, ANSWER)


def changed(lives: list[list[Report]], number: int, life: list[Report]) -> list[list[Report]]:
    return [*lives[:number], life, *lives[number + 1 :]]


def test_when_everything_holds_there_is_no_problem_and_the_counts_are_right() -> None:
    summary = checked()
    assert (summary.ok, summary.problems) == (True, [])
    assert (summary.kills, summary.runs, summary.messages) == (4, 2, 10)
    assert summary.messages_kept == (2 + 2) + (2 + 3) + 4 + 5
    assert summary.calls_kept == 0 + 1 + 1 + 2
    assert (summary.requests_repeated, summary.calls_repeated) == (2, 1)
    assert (summary.children_found, summary.children_interrupted) == (2, 2)
    assert summary.recovery_each_s == [2.0, 2.0, 1.0, 1.0]


def test_the_marks_stand_where_the_kills_fell() -> None:
    marks = {(line.run, line.text): line.mark for line in checked().conversation if line.mark}
    assert marks == {
        ("lead", "-> agent__librarian {}"): "killed: found again",
        ("lead/1", "-> grep {}"): "killed: run again",
        ("lead/1", "found"): "killed: asked again",
        ("lead", ANSWER): "killed: asked again",
    }


def test_a_call_whose_result_was_stored_must_not_be_made_again() -> None:
    life = [*LIVES[2], Called("lead/1", "librarian", "c0", "grep")]
    summary = checked(changed(LIVES, 2, life))
    assert summary.calls_made_again == 1
    assert summary.problems == ["a call was made again although its result was stored: lead/1: grep (c0)"]


def test_an_answer_of_the_model_that_is_not_in_the_store_is_lost() -> None:
    summary = checked(at_kills=[*STORED[:2], {**stored(lead=3), **stored(live=False, child=4)}, STORED[3]])
    assert summary.replies_lost == 1
    assert summary.problems == ["kill 3: 1 answers of the model were not in the store"]


def test_a_run_that_does_not_go_on_from_what_was_stored_has_lost_it() -> None:
    runs = stored(live=False, lead=6, child=4)
    other = runs["lead/1"].transcript
    runs["lead/1"] = msgspec.structs.replace(runs["lead/1"], transcript=(user("FIXME"), *other[1:]))
    assert "kill 1: lead/1 did not go on from the 2 messages that were stored" in checked(runs=runs).problems


def test_a_run_that_does_not_come_back_is_lost() -> None:
    life = [one for one in LIVES[1] if one != Restored("lead/1", 2)]
    summary = checked(changed(LIVES, 1, life))
    assert summary.problems == ["kill 1: lead/1 did not come back"]
    assert (summary.children_found, summary.children_interrupted) == (1, 2)


def test_a_child_that_was_started_twice_is_found() -> None:
    runs = stored(live=False, lead=6, child=4)
    runs["lead/2"] = runs["lead/1"]
    assert checked(runs=runs).problems == ["1 calls of agents made 2 runs"]


def test_a_run_that_has_not_completed_and_an_illegal_transcript_are_problems() -> None:
    runs = stored(live=False, lead=6, child=4)
    cut = msgspec.structs.replace(runs["lead/1"], status="failed", transcript=WHOLE["lead/1"][:2])
    problems = checked(runs={**runs, "lead/1": cut}).problems
    assert "run lead/1 is failed" in problems
    assert any(problem.startswith("run lead/1: its transcript is illegal") for problem in problems)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"answer": "41"}, "the answer differs"),
        ({"answer": None}, "the answer differs"),
        ({"report": ANSWER + "\n" + ANSWER + "\n"}, "the report holds what was asked for 2 times"),
        ({"report": ""}, "the report holds what was asked for 0 times"),
        ({"lives": LIVES[:4], "at_kills": STORED[:3]}, "only 3 of 4 kills"),
        (
            {"lives": changed(LIVES, 0, [Called("lead", "lead", "l9", "write_report"), *LIVES[0]])},
            "the unsafe tool was called 2 times",
        ),
        ({"at_kills": [{}, *STORED[1:]]}, "kill 1: it interrupted no run"),
    ],
)
def test_each_other_invariant_can_break(given: dict[str, Any], problem: str) -> None:
    summary = checked(**given)
    assert not summary.ok
    assert any(one.startswith(problem) for one in summary.problems), summary.problems


# ---------------------------------------------------------------------------------------------------------- its script


FINDING = Finding(Hits(4, 2, (Place("a", 3, 7),)), (Claim(Place("a", 3, 7), "x"),))
LISTED = ToolResult("0", "list_files", '{"files":9}')
FOUND = ToolResult("1", "agent__librarian", msgspec.json.encode(FINDING).decode())
RIGHT = ToolResult("2", "agent__editor", "1")
UNKNOWN = ToolResult("3", "write_report", "interrupted", is_error=True, unknown=True)
REPORT = "'TODO' stands in 4 lines of 2 of 9 files. Most often in\n1. a: 3, the first in line 7: x\nOf 1 quotations the editor found 1 to be right."


def said(*results: ToolResult, asked: str = "Go.", subject: str = "lead") -> str:
    """What the model answers, in short."""
    info = RunInfo(
        run_id="r", subject=subject, name="", caller="", channel="", guild="", parent_run_id=None, root_run_id="r",
        tier="", inputs=(("text", "TODO"),), started_at_s=0.0, step_ceiling=9, depth=0,
    )  # fmt: skip
    reply = script(ModelRequest(system="", messages=(user(asked), *map(result, results)), info=info, step=0))
    assert isinstance(reply, Reply)
    last = reply.parts[-1]
    return last.name if isinstance(last, ToolCall) else last.text


@pytest.mark.parametrize(
    ("results", "next_one"),
    [
        ([], "list_files"),
        ([LISTED], "agent__librarian"),
        ([LISTED, FOUND], "agent__editor"),
        ([LISTED, FOUND, RIGHT], "write_report"),
        ([LISTED, FOUND, RIGHT, ToolResult("3", "write_report", "written")], REPORT),
        ([LISTED, FOUND, RIGHT, UNKNOWN], "read_report"),
        ([LISTED, FOUND, RIGHT, UNKNOWN, ToolResult("4", "read_report", REPORT + "\n")], REPORT),
        ([LISTED, FOUND, RIGHT, UNKNOWN, ToolResult("4", "read_report", "")], "write_report"),
    ],
)
def test_the_lead_goes_on_from_what_it_is_shown(results: list[ToolResult], next_one: str) -> None:
    assert said(*results) == next_one


def test_the_editor_counts_what_is_right_and_does_not_take_anybodys_word() -> None:
    claims = msgspec.json.encode(FINDING.claims).decode()
    assert said(asked=claims, subject="editor") == "read_line"
    assert said(ToolResult("0", "read_line", "x"), asked=claims, subject="editor") == "1"
    assert said(ToolResult("0", "read_line", "y"), asked=claims, subject="editor") == "0"
