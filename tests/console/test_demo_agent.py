"""`executus demo agent` as a newcomer runs it, in a process of its own: real SIGKILLs inside requests and calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from executus.actors.console.demo_agent_library import Library
from executus.actors.console.demo_agent_store import stored_runs
from tests.console.test_demo import demo

MARKS = ["killed: asked again", "killed: found again", "killed: run again", "killed: not run again"]


def folder_of_remarks(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for number in range(4):
        (folder / "deep" / f"{number}.txt").write_text("a line\n  FIXME: x\n" * (number + 1))
    (folder / "latin.txt").write_bytes("FIXME é\n".encode("latin-1"))
    (folder / "nothing.txt").write_text("nothing\n")
    return folder


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tmp_path = tmp_path_factory.mktemp("demo")
    done = demo(tmp_path, "agent", str(folder_of_remarks(tmp_path)), "--text", "FIXME", "--json")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert list((tmp_path / "temporary").iterdir()) == [], "it leaves nothing behind"
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def test_the_agents_survive_their_kills_and_say_so_as_one_json_object(summary: dict[str, Any]) -> None:
    assert (summary["ok"], summary["problems"], summary["answer_differs"]) == (True, [], False)
    assert summary["killed"] == [
        "lead: inside request 1 to its model",
        "librarian: inside its call of grep",
        "editor: inside request 1 to its model",
        "lead: inside its call of write_report, which had done its work",
    ]
    assert (summary["kills"], summary["runs"], summary["files"]) == (4, 3, 6)
    assert summary["answer"].splitlines() == [
        "'FIXME' stands in 11 lines of 5 of 6 files. Most often in",
        "1. deep/3.txt: 4, the first in line 2: FIXME: x",
        "2. deep/2.txt: 3, the first in line 2: FIXME: x",
        "3. deep/1.txt: 2, the first in line 2: FIXME: x",
        "Of 3 quotations the editor found 3 to be right.",
    ]
    assert len(summary["recovery_each_s"]) == 4
    assert summary["recovery_s"] == max(summary["recovery_each_s"]) > 0


def test_what_was_stored_is_kept_and_only_what_was_cut_off_is_done_again(summary: dict[str, Any]) -> None:
    assert (summary["replies_lost"], summary["calls_made_again"]) == (0, 0)
    assert (summary["requests_repeated"], summary["calls_repeated"]) == (2, 1)
    assert (summary["children_found"], summary["children_interrupted"]) == (2, 2)
    assert (summary["unsafe_calls"], summary["reports"]) == (1, 1)
    # At each kill the lead had 3, 4, 6 and 8 messages, the librarian 2 and the editor 5; with results 1, 1, 2, 3 and 3.
    assert (summary["messages_kept"], summary["calls_kept"]) == (28, 10)


def test_the_conversation_is_whole_and_says_what_the_kills_did_to_it(summary: dict[str, Any]) -> None:
    lines = summary["conversation"]
    assert {(line["role"], line.get("depth", 0)) for line in lines} == {
        ("asked", 0), ("lead", 0), ("", 0), ("asked", 1), ("librarian", 1), ("editor", 1), ("", 1),
    }  # fmt: skip
    marks = [mark for line in lines for mark in line.get("mark", "").split(", ") if mark]
    assert sorted(marks) == sorted(MARKS + MARKS[:2])
    assert [line["text"] for line in lines if line["role"] == "lead"][-1] == summary["answer"]
    assert lines[0]["text"].startswith("Where in ")


def test_it_tells_its_story_in_plain_text_and_keeps_the_store_when_told(tmp_path: Path) -> None:
    done = demo(tmp_path, "agent", str(folder_of_remarks(tmp_path)), "--text", "FIXME", "--keep")
    assert (done.returncode, done.stderr) == (0, ""), done
    lines = done.stdout.splitlines()
    assert lines[0].startswith("a lead, a librarian and an editor look for 'FIXME' in 6 files")
    assert lines[1].startswith("daemon started: pid ")
    assert lines[2] == f"killed pid {lines[1].split(': pid ')[1]} with SIGKILL, lead: inside request 1 to its model"
    assert lines[3].startswith("started again as pid ")
    assert lines[5].endswith(" s: lead and librarian, with 6 messages")
    assert lines[9].endswith(" s: lead, with 8 messages")
    assert max(map(len, lines[11:-1])) <= 118
    assert all(mark in done.stdout for mark in MARKS)
    store = Path(lines[-1].rpartition(" ")[2])
    runs = stored_runs(store)
    assert sorted(run.agent for run in runs.values()) == ["editor", "lead", "librarian"]
    assert {run.status for run in runs.values()} == {"completed"}
    assert (store.parent / "report.txt").read_text().count("stands in") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["nowhere"], 4, "/nowhere' is no folder"),
        (["texts", "--text", "no such words"], 4, "'no such words'"),
        (["texts", "--text", " "], 2, "' '"),
        (["texts", "--text", "a\nb"], 2, "a\\nb"),
        (["texts", "--runs", "3"], 2, "--runs"),
    ],
)
def test_what_cannot_be_tried_says_so_in_one_line(arguments: list[str], code: int, named: str, tmp_path: Path) -> None:
    folder_of_remarks(tmp_path)
    done = demo(tmp_path, "agent", *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done
    assert named in done.stderr
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_folder_called_agent_is_reached_as_a_path(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    done = demo(tmp_path, "./agent")
    assert done.returncode == 4
    assert "holds no text files" in done.stderr, "that folder was looked into, no agent was started"
    assert str(tmp_path / "agent") in done.stderr


# -------------------------------------------------------------------------------------------------------- its library


def test_a_finding_names_the_files_in_which_the_text_stands_most_often(tmp_path: Path) -> None:
    folder = folder_of_remarks(tmp_path)
    files = ("deep/0.txt", "deep/1.txt", "deep/2.txt", "latin.txt", "nothing.txt")
    library = Library(str(folder), files)
    hits = library.grep("FIXME")
    assert (hits.lines, hits.files) == (7, 4)
    assert [(place.file, place.lines, place.first) for place in hits.most] == [
        ("deep/2.txt", 3, 2), ("deep/1.txt", 2, 2), ("deep/0.txt", 1, 2),
    ]  # fmt: skip
    assert [claim.quote for claim in library.finding("FIXME").claims] == ["FIXME: x"] * 3
    assert library.grep("no such words").most == ()


@pytest.mark.parametrize(("file", "number"), [("deep/3.txt", 1), ("deep/0.txt", 3), ("../texts/latin.txt", 1)])
def test_a_line_that_is_not_there_or_not_in_the_library_is_not_read(file: str, number: int, tmp_path: Path) -> None:
    library = Library(str(folder_of_remarks(tmp_path)), ("deep/0.txt", "latin.txt"))
    with pytest.raises(LookupError):
        library.line(file, number)
