"""`executus ps` and `executus show` beside a daemon that lives, and after its SIGKILL."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from executus.actors import Done, Run, Runtime, Wait
from executus.actors.console.main import main
from executus.stores.rows import Table
from tests.console.daemon_program import READY
from tests.stores.disks import LmdbDisk, damage
from tests.stores.test_lmdb_reader import files_of
from tests.waiting import wait_until

PROGRAM = Path(__file__).with_name("daemon_program.py")


class Daemon:
    """A store with a run of every kind, and the process that owns it."""

    def __init__(self, store: Path) -> None:
        self.store = store
        command = [sys.executable, "-P", str(PROGRAM), str(store)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if said != f"{READY}\n":
            self.kill()
            raise AssertionError(f"the daemon said {said!r}")
        self.pid = self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("daemon") / "runs.store")
    yield daemon
    daemon.kill()


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of such a daemon after its SIGKILL. Tests only read it."""
    daemon = Daemon(tmp_path_factory.mktemp("dead") / "runs.store")
    daemon.kill()
    return daemon.store


def copied(store: Path, folder: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(store, folder / "copy.store")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    assert out.isascii()
    return json.loads(out)


# ----------------------------------------------------------------------------------------------------------------- ps


def test_ps_lists_every_run_of_a_living_daemon_and_names_its_pid(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = run_json(capsys, "ps", daemon.store)
    assert listing["owner_pid"] == daemon.pid
    assert listing["boot_epoch"] == 1
    assert listing["damaged"] == []
    child = next(row["run_id"] for row in listing["runs"] if row["parent_run_id"] == "parent")
    assert {row["run_id"]: (row["run_type"], row["status"], row["durable_seq"]) for row in listing["runs"]} == {
        "approval": ("test.Approval", "running", 1),
        "completes": ("test.Completes", "completed", None),
        "fails": ("test.Fails", "failed", 1),
        "parent": ("test.Parent", "running", 1),
        "steps": ("test.Steps", "running", 2),
        child: ("test.Approval", "running", 1),
    }
    assert (listing["stored_runs"], listing["live_runs"]) == (6, 4)
    steps = next(row for row in listing["runs"] if row["run_id"] == "steps")
    assert steps["labels"] == {"tier": "1", "who": "ann"}
    assert steps["attempt"] == 1
    assert 0 <= steps["saved_ago_s"] <= steps["created_ago_s"] < 600


def test_ps_reads_the_same_after_the_daemons_sigkill_and_says_that_nobody_owns_it(
    dead: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(dead)
    listing = run_json(capsys, "ps", dead)
    assert listing["owner_pid"] is None
    assert {row["run_id"]: row["durable_seq"] for row in listing["runs"] if not row["parent_run_id"]} == {
        "approval": 1, "completes": None, "fails": 1, "parent": 1, "steps": 2,
    }  # fmt: skip
    assert files_of(dead) == before


def test_ps_by_status_and_type(dead: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ids(*options: str) -> list[str]:
        return [row["run_id"] for row in run_json(capsys, "ps", dead, *options)["runs"]]

    assert ids("--status", "failed") == ["fails"]
    assert ids("--type", "test.Steps") == ["steps"]
    assert ids("--type", "test.Steps", "--status", "failed") == []
    assert len(ids("--type", "test.Approval", "--status", "running")) == 2


def test_ps_for_people_is_a_run_a_line(dead: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "ps", dead)
    assert (code, err) == (0, "")
    owner, heads, *rows, sums = out.splitlines()
    assert "no daemon owns it" in owner
    assert heads.split()[:4] == ["run", "type", "status", "attempt"]
    assert [row.split()[0] for row in rows if not row.startswith("test.")][-1] == "steps"
    assert len(rows) == 6
    assert "approval" in rows[0]
    assert "running (waiting)" in rows[0]
    assert "tier=1 who=ann" in rows[-1]
    assert sums == "6 runs, 4 of them live"


def test_ps_names_a_live_run_whose_claim_is_damaged(
    tmp_path: Path, dead: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = copied(dead, tmp_path)
    damage(LmdbDisk(store), Table.CLAIMS, "steps")
    listing = run_json(capsys, "ps", store)
    assert listing["damaged"] == ["steps"]
    assert "steps" not in [row["run_id"] for row in listing["runs"]]
    assert "run steps: its claim cannot be read" in run(capsys, "ps", store)[1]


# --------------------------------------------------------------------------------------------------------------- show


@pytest.mark.parametrize("alive", [True, False])
def test_show_has_the_state_of_a_run_beside_its_daemon_and_after_it(
    alive: bool, daemon: Daemon, dead: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run_json(capsys, "show", daemon.store if alive else dead, "steps")
    assert shown["owner_pid"] == (daemon.pid if alive else None)
    assert shown["claim"]["status"] == "running"
    assert shown["record"]["run_type"] == "test.Steps"
    assert shown["record"]["input"]["value"] == 0
    snapshot = shown["snapshot"]
    assert (snapshot["seq"], snapshot["schema_version"], snapshot["waiting"]) == (2, 1, False)
    assert snapshot["state"]["value"] == {"n": 1, "note": "one step further"}
    assert snapshot["fell_back"] is None
    assert shown["outcome"] is None
    assert shown["damaged"] == []


def test_show_has_a_waiting_runs_deadline(dead: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = run_json(capsys, "show", dead, "approval")["snapshot"]
    assert snapshot["waiting"] is True
    assert 3000 < snapshot["deadline_in_s"] <= 3600
    assert "waits for a message, at most" in run(capsys, "show", dead, "approval")[1]


def test_show_has_outcomes(dead: Path, capsys: pytest.CaptureFixture[str]) -> None:
    completed = run_json(capsys, "show", dead, "completes")
    assert completed["outcome"] == {"type": "Completed", "result": {"answer": 42}, "durable": True}
    assert completed["snapshot"] is None
    failed = run_json(capsys, "show", dead, "fails")["outcome"]
    assert failed["type"] == "Failed"
    assert failed["error"]["type"] == "ValueError"
    assert "Traceback" in failed["error"]["traceback"]
    assert failed["error"]["facts"] == {"status": 503, "host": "red\\x1b"}


def test_show_prints_tracebacks_by_lines_and_escapes_what_users_wrote(
    dead: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "show", dead, "fails")
    assert code == 0
    assert "\x1b" not in out
    assert all(line.isprintable() for line in out.splitlines())
    assert "\\x1b[31mred" in out
    assert "Traceback (most recent call last):" in out.splitlines()


def test_show_links_parent_and_child(dead: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (child,) = run_json(capsys, "show", dead, "parent")["children"]
    link = run_json(capsys, "show", dead, child)["record"]["parent"]
    assert (link["run_id"], link["key"]) == ("parent", "first")
    assert child in run(capsys, "show", dead, "parent")[1]


def test_show_raw_prints_the_bytes_of_the_state_and_nothing_else(
    dead: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["show", str(dead), "steps", "--raw"]) == 0
    said = capfdbinary.readouterr()
    assert msgspec.msgpack.decode(said.out) == {"n": 1, "note": "one step further"}
    assert said.err == b""


def test_show_falls_back_to_the_older_snapshot_and_says_so(
    tmp_path: Path, dead: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for slot in (0, 1):
        store = copied(dead, tmp_path / str(slot))
        damage(LmdbDisk(store), Table.SNAPSHOTS, "steps", slot)
        shown = run_json(capsys, "show", store, "steps")
        found.append((shown["snapshot"]["seq"], shown["snapshot"]["fell_back"] is None, shown["damaged"] == []))
    assert sorted(found) == [(1, False, False), (2, True, True)]


def test_show_of_a_run_without_a_readable_snapshot_shows_the_rest(
    tmp_path: Path, dead: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = copied(dead, tmp_path)
    for slot in (0, 1):
        damage(LmdbDisk(store), Table.SNAPSHOTS, "steps", slot)
    shown = run_json(capsys, "show", store, "steps")
    assert shown["snapshot"] is None
    assert "no generation" in shown["damaged"][0]
    assert shown["claim"]["run_id"] == "steps"
    code, out, err = run(capsys, "show", store, "steps", "--raw")
    assert (code, out) == (3, "")
    assert "no generation" in err


def test_show_lists_the_durable_messages_that_no_snapshot_has_consumed(
    store_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Hears(Run[int, int, int]):
        def begin(self, n: int) -> Wait[int]:
            return Wait(n)

        def step(self, state: int) -> Done[int]:
            return Done(state)

        def receive(self, state: int, message: str) -> Wait[int]:
            return Wait(state + len(message))

    with Runtime(store_path, runs=[Hears], logger=False) as runtime:
        handle = runtime.start(Hears, 1, run_id="hears")
        handle.send("heard", message_id="m0")
        wait_until(lambda: handle.status().seq == 2)
        assert handle.durable(10) == 2
        runtime.get("hears").stop(10)
        for number in range(1, 13):
            handle.send("x" * number, message_id=f"m{number}\n", expires_s=60 if number == 1 else None)
    assert main(["show", str(store_path), "hears", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["message_id"] for one in shown["messages"]] == [f"m{number}\n" for number in range(1, 13)]
    assert 0 < shown["messages"][0]["expires_in_s"] <= 60
    assert main(["show", str(store_path), "hears"]) == 0
    out = capsys.readouterr().out
    assert '2: "m1\\n", sent' in out
    assert "and 2 more, see --json" in out
