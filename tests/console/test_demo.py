"""`executus demo` as a newcomer runs it, in a process of its own: real SIGKILLs, real files, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from executus.actors.console import demo_files
from executus.actors.console.demo_run import read_facts
from executus.stores import LmdbReader, RunStatus

STEPS_A_RUN = demo_files.LEAST_STEPS


def demo(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    temporary = tmp_path / "temporary"
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, "-P", "-m", "executus.actors.console.main", "demo", *arguments]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def folder_of_texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for number in range(7):
        (folder / "deep" / f"{number}.txt").write_text("a line of words\n" * (number + 1))
    (folder / "latin.txt").write_bytes("é à la carte\n".encode("latin-1"))
    (folder / "not.a.text").write_bytes(b"\0\1\2")
    return folder


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tmp_path = tmp_path_factory.mktemp("demo")
    done = demo(tmp_path, str(folder_of_texts(tmp_path)), "--runs", "12", "--json")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert list((tmp_path / "temporary").iterdir()) == [], "it leaves nothing behind"
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def test_the_demo_survives_its_kills_and_says_so_as_one_json_object(summary: dict[str, Any]) -> None:
    assert summary["ok"] is True
    assert summary["problems"] == []
    assert (summary["runs"], summary["kills"], summary["files"]) == (12, 2, 8)
    assert (summary["snapshots_lost"], summary["results_wrong"]) == (0, 0)
    assert len(summary["recovery_each_s"]) == 2
    assert summary["recovery_s"] == max(summary["recovery_each_s"]) > 0


def test_its_kills_fall_into_the_middle_of_most_runs(summary: dict[str, Any]) -> None:
    assert len(summary["interrupted"]) == 2
    assert min(summary["interrupted"]) > 6


def test_its_steps_add_up(summary: dict[str, Any]) -> None:
    assert summary["steps"] == 12 * STEPS_A_RUN
    # A kill keeps what is saved: less than everything, more than nothing. What it repeats began twice, at least once a run in hand.
    assert 0 < summary["steps_kept"] < 2 * summary["steps"]
    assert 0 < summary["steps_repeated"] < summary["steps"]


def test_the_demo_tells_its_story_in_plain_text_and_keeps_the_store_when_told(tmp_path: Path) -> None:
    done = demo(tmp_path, str(folder_of_texts(tmp_path)), "--runs", "3", "--kills", "1", "--keep")
    assert (done.returncode, done.stderr) == (0, ""), done
    lines = done.stdout.splitlines()
    assert lines[0].startswith("3 runs read 8 files")
    assert lines[1].startswith("daemon started: pid ")
    assert lines[2].startswith(f"killed {lines[1].split(': ')[1]} with SIGKILL at ")
    assert lines[3].startswith("started again as pid ")
    assert lines[4].startswith("all 3 runs have ended")
    facts = dict(line.rsplit("  ", 1) for line in lines[5:-1])
    assert {name.strip(): value for name, value in facts.items()}["snapshots lost"] == "0"
    store = Path(lines[-1].rpartition(" ")[2])
    reader = LmdbReader(store)
    reader.open()
    try:
        runs = reader.scan()
        assert [run.claim.status for run in runs] == [RunStatus.COMPLETED] * 3
        assert {run.claim.attempt for run in runs} == {2}
    finally:
        reader.close()


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_a_folder_that_gives_nothing_to_read_is_not_found(tmp_path: Path, what: str) -> None:
    folder = tmp_path / what
    if what == "empty":
        folder.mkdir()
    done = demo(tmp_path, str(folder))
    assert (done.returncode, done.stdout) == (4, "")
    assert len(done.stderr.splitlines()) == 1
    assert str(folder) in done.stderr


# ---------------------------------------------------------------------------------------------------------- its files


def test_files_are_texts_sorted_and_within_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of_texts(tmp_path)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.txt").write_text("x")
    (folder / "empty.txt").touch()
    (folder / "link.txt").symlink_to(folder / "latin.txt")
    os.mkfifo(folder / "pipe.txt")
    found = demo_files.select(folder)
    assert found.files == ("latin.txt", *(f"deep/{number}.txt" for number in range(7)))
    assert not found.cut
    monkeypatch.setattr(demo_files, "MAX_FILES", 3)
    cut = demo_files.select(folder)
    assert cut.files == found.files[:3]
    assert cut.cut


def test_every_file_is_dealt_and_every_run_gets_enough() -> None:
    many = tuple(map(str, range(1000)))
    dealt = demo_files.deal(many, 50)
    assert sorted(file for share in dealt for file in share) == sorted(many)
    few = demo_files.deal(("a", "b", "c"), 5)
    assert {len(share) for share in few} == {STEPS_A_RUN}
    assert {file for share in few for file in share} == {"a", "b", "c"}


def test_facts_of_a_file_are_its_lines_words_and_digest(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("two words\nand three more\n")
    facts = read_facts(str(tmp_path), "a.txt")
    assert (facts.lines, facts.words) == (2, 5)
    assert facts.digest != read_facts(str(folder_of_texts(tmp_path)), "latin.txt").digest
