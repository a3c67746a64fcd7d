"""`executus why`: beside a daemon that lives, after its SIGKILL, and for every ending."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from executus.actors import RestartPolicy, StopPolicy
from executus.actors.console.main import main
from executus.actors.flight import VERSION, FlightRecord
from executus.stores import LmdbStore, codec
from executus.stores.rows import Table
from tests.console.test_ps_and_show import Daemon, copied
from tests.doubles import FailableRun, Told, rigged
from tests.stores.disks import LmdbDisk, damage
from tests.waiting import wait_until

GOLDEN = Path(__file__).resolve().parents[1] / "stores" / "golden"


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


def why(capsys: pytest.CaptureFixture[str], store: Path, run_id: str) -> tuple[str, dict[str, Any]]:
    """What it says to people, and to scripts."""
    assert main(["why", str(store), run_id]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "\x1b" not in said.out
    assert main(["why", str(store), run_id, "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    return said.out, json.loads(printed)


# --- daemons ------------------------------------------------------------------------------------------------------------


def test_beside_a_living_daemon_a_run_at_work_is_not_taken_for_dead(daemon: Daemon, capsys: Any) -> None:
    said, found = why(capsys, daemon.store, "steps")
    assert (found["status"], found["died"], found["owner_pid"], found["saved_seq"]) == ("running", False, daemon.pid, 2)
    assert "it is at work in attempt 1, or waits" in said
    assert found["unsaved"] is None  # nobody can know from outside


def test_after_a_sigkill_the_store_says_that_the_process_died_and_what_was_saved(dead: Path, capsys: Any) -> None:
    said, found = why(capsys, dead, "steps")
    assert (found["status"], found["died"], found["owner_pid"]) == ("running", True, None)
    assert (found["attempt"], found["boot"], found["store_boot"], found["saved_seq"]) == (1, 1, 1, 2)
    assert "the process died while it was at work: it is running under boot 1" in said
    assert "its last save was seq 2" in said
    assert "none: nothing out of the ordinary" in said
    assert "while it waited" in why(capsys, dead, "approval")[0]


def test_a_failed_run_of_a_dead_daemon_shows_its_error_escaped(dead: Path, capsys: Any) -> None:
    said, found = why(capsys, dead, "fails")
    assert (found["status"], found["died"]) == ("failed", False)
    assert "ValueError: line one\\nline two \\x1b[31mred" in said
    (link,) = found["flight"]["chain"]
    assert (link["type"], link["relation"]) == ("ValueError", "raised")
    assert link["frames"][-1].endswith(" in step")
    assert "daemon_program.py" in said
    assert found["flight"]["exits"][0]["how"] == "crashed"


def test_a_run_that_went_well_has_no_record_and_says_so(dead: Path, capsys: Any) -> None:
    said, found = why(capsys, dead, "completes")
    assert "it completed in attempt 1" in said
    assert found["flight"] is None
    assert "nothing out of the ordinary" in found["flight_note"]


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["STORE", "no such run"], 4, "CommandFailed"),
        (["STORE", ""], 2, "InvalidRunId"),
        (["MISSING", "r"], 3, "StoreUnavailable"),
        (["STORE"], 2, "CommandFailed"),
    ],
)
def test_every_failure_has_its_code_and_its_kind(
    arguments: list[str], code: int, kind: str, dead: Path, tmp_path: Path, capsys: Any
) -> None:
    places = {"STORE": str(dead), "MISSING": str(tmp_path / "missing")}
    command = ["why", *(places.get(argument, argument) for argument in arguments)]
    assert main(command) == code
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert main([*command, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == kind


# --- every ending -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with runs that ended in every way that has a record. Tests only read it."""
    store = tmp_path_factory.mktemp("ended") / "runs.store"
    with rigged(LmdbStore(store, profile="process"), restart_policy=RestartPolicy(max_restarts=1)) as rig:
        runtime = rig.runtime
        runtime.start(FailableRun, Told(("ok", "raise:ExceptionGroup")), run_id="loops").outcome(20)
        hangs = runtime.start(FailableRun, Told(("hang",)), run_id="killed", stop_policy=StopPolicy(grace_s=0.1))
        wait_until(lambda: rig.world.hanging == 1, 20)
        hangs.kill("too\nslow\x1b[2J", by="ops", timeout_s=20)
        stalls = StopPolicy(idle_timeout_s=0.1)
        runtime.start(FailableRun, Told(("hang@1", "ok")), run_id="stalled", stop_policy=stalls).result(20)
        rig.waiting(run_id="cancelled").cancel("enough", by="me", timeout_s=20)
        rig.waiting(run_id="stopped").stop(20)
        limit = StopPolicy(run_timeout_s=0.1)
        runtime.start(FailableRun, Told(("wait",)), run_id="timed out", stop_policy=limit).outcome(20)
        handle = runtime.start(FailableRun, Told(("raise:OSError@1", "wait")), run_id="suspended")
        wait_until(lambda: handle.status().waiting, 20)
        rig.world.release.set()
    return store


def test_a_crash_loop_shows_every_attempt_and_the_errors_within_the_last(ended: Path, capsys: Any) -> None:
    said, found = why(capsys, ended, "loops")
    assert found["status"] == "failed"
    assert "ExceptionGroup: two (2 sub-exceptions), in step, after 1 restart" in said
    assert [one["attempt"] for one in found["flight"]["exits"]] == [1, 2]
    assert "  holding ValueError: a" in said
    assert "  holding TypeError: b" in said
    assert "RunRestarting" in said
    assert (found["saved_seq"], found["unsaved"]) == (2, 0)


def test_a_kill_shows_who_and_why_and_the_stack_of_the_hanging_step(ended: Path, capsys: Any) -> None:
    said, found = why(capsys, ended, "killed")
    assert "killed by ops: too\\nslow\\x1b[2J" in said
    assert "kill by ops" in said
    assert "stack of its thread when it was killed" in said
    assert any("in _perform" in line for line in found["flight"]["stack"]["lines"])


def test_a_stall_shows_where_the_step_hung(ended: Path, capsys: Any) -> None:
    said, found = why(capsys, ended, "stalled")
    assert found["status"] == "completed"
    assert [one["how"] for one in found["flight"]["exits"]] == ["hung", "completed"]
    assert "stack of its thread when it hung" in said
    assert "RunHung" in said


@pytest.mark.parametrize(
    ("run_id", "sentence"),
    [
        ("cancelled", "cancelled by me: enough"),
        ("stopped", "it was stopped; it rests until it is resumed by hand"),
        ("timed out", "its run_timeout_s elapsed"),
        ("suspended", "the runtime was shut down"),
    ],
)
def test_each_ending_says_what_it_was(ended: Path, run_id: str, sentence: str, capsys: Any) -> None:
    said, found = why(capsys, ended, run_id)
    assert sentence in said
    assert found["flight"]["status"] == found["status"]
    assert found["flight_note"] == ""


# --- records that cannot be read, older ones and newer ones --------------------------------------------------------------


def test_an_unreadable_record_is_told_of_and_the_rest_is_shown(ended: Path, tmp_path: Path, capsys: Any) -> None:
    store = copied(ended, tmp_path)
    damage(LmdbDisk(store), Table.FLIGHTS, "loops")
    said, found = why(capsys, store, "loops")
    assert found["flight"] is None
    assert "its flight record cannot be read" in said
    assert "ExceptionGroup: two (2 sub-exceptions), in step" in said  # the outcome says so itself
    assert main(["show", str(store), "loops"]) == 0


def test_doctor_notes_an_unreadable_record_and_needs_nobody_for_it(ended: Path, tmp_path: Path, capsys: Any) -> None:
    store = copied(ended, tmp_path)
    damage(LmdbDisk(store), Table.FLIGHTS, "loops")
    main(["doctor", str(store), "--json"])
    problems = {problem["kind"]: problem for problem in json.loads(capsys.readouterr().out)["problems"]}
    assert [one["subject"] for one in problems["flight-unreadable"]["first"]] == ["loops"]
    assert problems["flight-unreadable"]["severity"] == "note"


def rewritten(store: Path, run_id: str, **facts: Any) -> None:
    """Put another record into its place."""
    reader = LmdbStore(store, profile="process")
    reader.open()
    stored = reader.load(run_id)
    reader.close()
    assert stored is not None
    claim = stored.claim
    known: dict[str, Any] = {"version": VERSION, "incarnation": claim.incarnation, "attempt": 1, "epoch": claim.epoch}
    payload = msgspec.msgpack.encode({**known, "at_s": 1.0, "status": claim.status.value, **facts})
    frame = codec.encode_flight(payload, codec.Stamp(claim.incarnation, claim.epoch), run_id.encode(), run_id)
    LmdbDisk(store).change(Table.FLIGHTS, run_id.encode(), lambda _: frame)


def test_a_record_of_a_newer_executus_is_shown_as_far_as_it_is_understood(
    ended: Path, tmp_path: Path, capsys: Any
) -> None:
    store = copied(ended, tmp_path)
    rewritten(
        store, "loops", version=VERSION + 1, altitude=[1], exits=[{"attempt": 1, "epoch": 1, "at_s": 0.0, "how": "?"}]
    )
    said, found = why(capsys, store, "loops")
    assert f"written by a newer executus (version {VERSION + 1}, this one knows {VERSION})" in said
    assert found["flight"]["exits"][0]["how"] == "?"


def test_one_of_another_shape_is_unreadable_and_one_of_another_life_is_none(
    ended: Path, tmp_path: Path, capsys: Any
) -> None:
    store = copied(ended, tmp_path)
    rewritten(store, "loops", exits="none")
    assert "its flight record cannot be read" in why(capsys, store, "loops")[0]
    rewritten(store, "loops", incarnation=1)
    assert why(capsys, store, "loops")[1]["flight"] is None


def test_what_happened_after_the_record_was_written_is_said_to_be_missing(
    ended: Path, tmp_path: Path, capsys: Any
) -> None:
    store = copied(ended, tmp_path)
    rewritten(store, "loops", status="running")
    assert "of attempt 1; what has happened since is not in it" in why(capsys, store, "loops")[0]


@pytest.mark.parametrize("golden", ["first", "messages-journals", "ended-index"])
def test_stores_of_before_there_were_records_can_be_asked(golden: str, store_path: Path, capsys: Any) -> None:
    store_path.mkdir()
    (store_path / "data.mdb").write_bytes(gzip.decompress((GOLDEN / f"{golden}.mdb.gz").read_bytes()))
    for run_id in json.loads((GOLDEN / f"{golden}.json").read_text()):
        said, found = why(capsys, store_path, run_id)
        assert found["flight"] is None
        assert "none: nothing out of the ordinary" in said
    assert "killed by handle: golden" in why(capsys, store_path, "killed")[0]
    assert "ValueError" in why(capsys, store_path, "failed")[0]


def test_the_json_of_a_record_has_the_names_of_its_fields(ended: Path, capsys: Any) -> None:
    _, found = why(capsys, ended, "loops")
    assert set(found["flight"]) <= set(FlightRecord.__struct_fields__)
