"""What the console says of passivated runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest

from executus.actors import Run, Runtime, SavePolicy, Wait
from executus.actors.console.main import main
from executus.stores import Accepted, Append, LmdbStore
from executus.stores.rows import Table
from tests.stores.disks import LmdbDisk, damage
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


def problems(capsys: pytest.CaptureFixture[str], store: Path) -> tuple[int, dict[str, list[str]]]:
    code, found = told(capsys, "doctor", store)
    return code, {problem["kind"]: [run["subject"] for run in problem["first"]] for problem in found["problems"]}


def test_doctor_names_a_passivated_run_that_its_time_would_not_wake_and_a_query_mends_it(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = LmdbDisk(store).keys(Table.DUE)
    LmdbDisk(store).change(Table.DUE, row, lambda _: None)
    assert problems(capsys, store) == (1, {"due-missing": ["r"]})
    with Runtime(store, runs=RUNS, logger=False) as runtime:
        assert runtime.get(Rests, "r").durable(10) == 1
        wait_until(lambda: not runtime._core.table)
    assert problems(capsys, store) == (0, {})


def test_doctor_names_rows_of_due_runs_that_are_of_no_run_that_rests_so(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = LmdbDisk(store).keys(Table.DUE)
    with lmdb.open(str(store), max_dbs=64) as env, env.begin(db=env.open_db(Table.DUE.encode()), write=True) as txn:
        for stale in (row[:-1] + b"gone", b"s" + b"0" * 16 + b"r", b"s" + b"x" * 16 + b"r"):
            txn.put(stale, b"\1")
    code, found = problems(capsys, store)
    assert (code, list(found), sorted(found["due-stale"])) == (0, ["due-stale"], ["gone", "r", "r"])
    with Runtime(store, runs=RUNS, logger=False) as runtime:  # who goes by them looks at the claim
        runtime.start(Rests, 8, run_id="other")  # it is laid down when that look is over
        wait_until(lambda: [view.status for view in runtime.runs()] == ["passivated"] * 2)
        assert [(view.run_id, view.attempt) for view in runtime.runs()] == [("other", 1), ("r", 1)]


def test_doctor_finds_nothing_wrong_with_a_run_that_was_roused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = LmdbStore(store)
    opened.open()
    stored = opened.load("r")
    assert stored is not None
    message = Append(
        run_id="r", incarnation=stored.claim.incarnation, message_id="m", body=b"\1", sent_at_s=1.0, limit=10
    )
    assert opened.commit([message]) == [Accepted(1)]
    opened.close()
    assert problems(capsys, store) == (0, {})


def test_doctor_does_not_trip_over_a_damaged_claim_of_a_passivated_run(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(LmdbDisk(store), Table.CLAIMS, "r")
    assert problems(capsys, store) == (1, {"claim-unreadable": ["r"]})


def test_gc_counts_no_passivated_run_among_the_ended(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "gc", store)[1]["ended"] == {}
