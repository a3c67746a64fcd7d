"""What the console says of passivated runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from executus.actors import Run, Runtime, SavePolicy, Wait
from executus.actors.console.main import main
from tests.waiting import wait_until


class Rests(Run[int, int, int]):
    """Waits for an hour, in the store."""

    save_policy = SavePolicy(passivate_after_s=0.01)

    def begin(self, number: int) -> Wait[int]:
        return Wait(number, timeout_s=3600)

    def step(self, number: int) -> Wait[int]:
        return Wait(number)


RUNS = [Rests]


class Demands(Rests):
    """The same type, of newer code that cannot read what is stored."""

    run_type = "Rests"
    schema_version = 2

    def upgrade(self, version: int, raw: Any, /) -> int:
        raise ValueError(f"no way from schema {version}")


NEWER = [Demands]


@pytest.fixture
def store(store_path: Path) -> Path:
    with Runtime(store_path, runs=RUNS, logger=False) as runtime:
        runtime.start(Rests, 7, run_id="r")
        wait_until(lambda: not runtime._core.table)
    return store_path


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_ps_lists_a_passivated_run(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, listing = told(capsys, "ps", store, "--status", "passivated")
    assert code == 0
    assert [(row["run_id"], row["status"], row["waiting"]) for row in listing["runs"]] == [("r", "passivated", True)]


def test_show_says_how_long_it_waits(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(store), "r"]) == 0
    shown = capsys.readouterr().out
    assert "passivated" in shown
    assert "waits for a message, at most" in shown


def test_doctor_finds_nothing_wrong_with_it(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = told(capsys, "doctor", store)
    assert code == 0


@pytest.mark.parametrize(("name", "verdict"), [("RUNS", "resumable"), ("NEWER", "parked")])
def test_doctor_judges_it_by_the_code_that_will_take_it_up(
    store: Path, capsys: pytest.CaptureFixture[str], name: str, verdict: str
) -> None:
    code, found = told(capsys, "doctor", store, "--runs", f"{__name__}:{name}")
    assert (code == 0) is (verdict == "resumable")
    assert verdict in msgspec.json.encode(found).decode()
