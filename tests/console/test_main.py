"""What the command says when something is wrong, and with which exit code."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from executus.actors.console import main as module
from executus.actors.console.demo_agent_check import check
from executus.actors.console.demo_agent_ledger import Ledger
from executus.actors.console.demo_check import Summary
from executus.actors.console.failures import ExitCode
from executus.actors.console.main import main
from executus.stores import LmdbStore
from tests.stores.making import begin

SUMMARY = Summary(
    ok=True, runs=1, kills=1, interrupted=[1], steps=12, steps_kept=6, steps_repeated=1, snapshots_lost=0, results_wrong=0,
    recovery_s=0.1, recovery_each_s=[0.1], problems=[],
)  # fmt: skip


def stored(folder: Path, *run_ids: str) -> Path:
    store = LmdbStore(folder)
    store.open()
    for run_id in run_ids:
        begin(store, run_id)
    store.close()
    return folder


def test_exit_codes_are_what_scripts_rely_on() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0, "FAILED": 1, "USAGE": 2, "STORE": 3, "NOT_FOUND": 4, "INTERRUPTED": 130,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["fly"], 2),
        (["demo", "--runs", "0"], 2),
        (["demo", "--kills", "many"], 2),
        (["demo", "agent", "--text", ""], 2),
        (["demo", "agent", "--kills", "1"], 2),
        (["demo", "agent", "MISSING"], 4),
        (["ps"], 2),
        (["ps", "STORE", "--status", "sleepy"], 2),
        (["show", "STORE", "r", "--raw", "--json"], 2),
        (["show", "STORE", "bad\nid"], 2),
        (["ps", "MISSING"], 3),
        (["show", "MISSING", "r"], 3),
        (["ps", "NO STORE"], 3),
        (["ps", "GARBAGE"], 3),
        (["show", "STORE", "nobody"], 4),
        (["show", "STORE", "r", "--raw"], 4),
        (["demo", "MISSING"], 4),
        (["doctor"], 2),
        (["doctor", "STORE", "--limit", "-1"], 2),
        (["doctor", "MISSING"], 3),
        (["doctor", "STORE"], 0),
        (["ps", "STORE"], 0),
        (["show", "STORE", "r"], 0),
        (["why", "MISSING", "r"], 3),
        (["why", "STORE", "nobody"], 4),
        (["why", "STORE", "r"], 0),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_every_failure_has_its_code_and_one_line(
    arguments: list[str], code: int, as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: tmp_path / name for name in ("MISSING", "NO STORE", "GARBAGE", "STORE")}
    places["NO STORE"].mkdir()
    places["GARBAGE"].mkdir()
    (places["GARBAGE"] / "data.mdb").write_bytes(b"garbage" * 5000)
    stored(places["STORE"], "r")
    arguments = [str(places.get(argument, argument)) for argument in arguments]
    if as_json and not {"--json", "--raw"} & set(arguments):
        arguments.append("--json")
    assert main(arguments) == code
    said = capsys.readouterr()
    if code == 0:
        assert said.err == ""
    elif "--json" in arguments:
        error = json.loads(said.out)["error"]
        assert error["exit_code"] == code
        assert error["message"]
        assert said.err == ""
    else:
        assert said.out == ""
        assert len(said.err.splitlines()) == 1
        assert said.err.startswith("executus: ")


def test_a_broken_invariant_is_exit_code_1_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = msgspec.structs.replace(SUMMARY, ok=False, snapshots_lost=1, problems=["kill 1: r came back from 2"])
    monkeypatch.setattr(module, "demo", lambda *_, **__: broken)
    assert main(["demo"]) == 1
    assert "broken: kill 1: r came back from 2" in capsys.readouterr().out
    assert main(["demo", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["snapshots_lost"] == 1


def test_a_broken_invariant_of_the_agents_is_exit_code_1_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = check(Ledger("lead"), {}, None, "", "the answer")
    monkeypatch.setattr(module, "demo_agent", lambda *_, **__: broken)
    assert main(["demo", "agent"]) == 1
    assert "broken: only 0 of 4 kills fell into the work" in capsys.readouterr().out
    assert main(["demo", "agent", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["answer_differs"] is True


def test_the_demos_json_has_what_scripts_rely_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "demo", lambda *_, **__: SUMMARY)
    assert main(["demo", "--json"]) == 0
    promised = {"ok", "runs", "kills", "steps_kept", "steps_repeated", "snapshots_lost", "recovery_s"}
    assert promised <= json.loads(capsys.readouterr().out).keys()


def test_what_users_wrote_is_escaped_in_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", str(tmp_path / "a\x1b[31m\nb")]) == 3
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "\x1b" not in said


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    try:
        version = importlib.metadata.version("executus")
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    assert capsys.readouterr().out.startswith(f"executus {version}")


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    store = stored(tmp_path / "runs.store", *(f"run-{number}" for number in range(30)))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-P", "-m", "executus.actors.console.main", "ps", str(store)]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
