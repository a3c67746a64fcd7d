"""`executus doctor` over stores that are well, that are damaged in every way, beside daemons that live and after their death."""

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

from executus.actors.console import doctor as module
from executus.actors.console.doctor import doctor
from executus.actors.console.doctor_problems import MEANINGS, Kind, Severity
from executus.actors.console.main import main
from executus.actors.console.screen import SilentScreen
from executus.stores import LmdbReader, LmdbStore, RunStatus, StoreInfo, StoreLocked
from executus.stores.owner_lock import FACTS_NAME, holder_of_lock
from executus.stores.rows import Table, child_key, message_key, run_key
from tests.console.test_ps_and_show import Daemon, copied
from tests.stores.disks import LmdbDisk, damage, flip_last_bit
from tests.stores.making import append, begin, commit_one, numbered, set_aside, settled
from tests.stores.test_lmdb_reader import files_of


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


def examined(store: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, Any]:
    code = main(["doctor", str(store), "--json", *options])
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.isascii()
    return code, json.loads(said.out)


def kinds(found: Any) -> dict[str, list[str]]:
    """What was found, by kind: who has it."""
    return {problem["kind"]: [one["subject"] for one in problem["first"]] for problem in found["problems"]}


def made(store: Path, *statuses: RunStatus) -> Path:
    """A store with a run for each status, closed in peace."""
    opened = LmdbStore(store, profile="process")
    opened.open()
    for number, status in enumerate(statuses):
        token = begin(opened, f"run-{number:03}")
        if status in {RunStatus.PARKED, RunStatus.QUARANTINED}:
            assert commit_one(opened, set_aside(token, status, "its reason")) is None
        elif status is not RunStatus.RUNNING:
            assert commit_one(opened, settled(token, status)) is None
    opened.close()
    return store


# --------------------------------------------------------------------------------------------------- a store that is well


def test_beside_a_living_daemon_it_names_the_owner_and_finds_nothing(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = examined(daemon.store, capsys)
    assert (code, found["ok"], found["readable"], found["problems"]) == (0, True, True, [])
    assert found["owner"] == {"pid": daemon.pid, "last_pid": daemon.pid, "holds_lock": True, "closed_in_peace": None}
    assert found["checked_runs"] == 6
    assert {status: runs["count"] for status, runs in found["runs"].items()} == {
        "running": 4, "completed": 1, "failed": 1,
    }  # fmt: skip
    assert found["runs"]["running"]["first"][0]["run_id"] == "approval"
    assert found["runs"]["completed"]["first"] == [], "only runs that may go on are named"
    assert found["space"]["map_size_bytes"] == 64 << 30


def test_looking_takes_no_lock_and_writes_nothing(dead: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(dead)
    code, found = examined(dead, capsys)
    assert files_of(dead) == before
    assert (code, found["ok"]) == (0, True)
    assert kinds(found) == {"not-closed": [f"pid {found['owner']['last_pid']}"]}
    assert found["owner"]["pid"] is None


def test_the_daemon_keeps_its_lock_while_it_is_looked_at(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    examined(daemon.store, capsys)
    assert holder_of_lock(daemon.store) == daemon.pid
    with pytest.raises(StoreLocked):
        LmdbStore(daemon.store).open()


def test_a_store_that_was_closed_in_peace_has_nothing_to_tell(
    store_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = examined(made(store_path), capsys)
    assert (code, found["problems"], found["runs"]) == (0, [], {})
    assert found["owner"]["closed_in_peace"] is True


def test_in_the_owners_own_process_it_is_refused(store_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = LmdbStore(store_path)
    store.open()
    try:
        assert main(["doctor", str(store_path)]) == 3
        assert "open already in this process" in capsys.readouterr().err
        with pytest.raises(StoreLocked):
            LmdbStore(store_path).open()
    finally:
        store.close()


# ---------------------------------------------------------------------------------------------------------- what runs need


def test_it_counts_every_status_and_names_those_that_may_go_on(
    store_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = list(RunStatus)
    code, found = examined(made(store_path, *statuses), capsys)
    assert {status: runs["count"] for status, runs in found["runs"].items()} == dict.fromkeys(statuses, 1)
    assert {status for status, runs in found["runs"].items() if runs["first"]} == set(module.LISTED)
    assert found["live_runs"] == 3
    assert code == 1
    numbers = {status: f"run-{number:03}" for number, status in enumerate(statuses)}
    assert kinds(found) == {
        "quarantined": [numbers[RunStatus.QUARANTINED]], "parked": [numbers[RunStatus.PARKED]],
    }  # fmt: skip
    assert found["problems"][0]["first"][0]["why"] == "its reason"


def test_it_names_no_more_than_it_was_told_and_counts_all(store_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made(store_path, *[RunStatus.PARKED] * 25)
    for limit in (0, 3, 100):
        code, found = examined(store, capsys, "--limit", str(limit))
        (problem,) = found["problems"]
        assert (code, problem["count"], len(problem["first"])) == (1, 25, min(limit, 25))
        assert len(found["runs"]["parked"]["first"]) == min(limit, 25)
    assert main(["doctor", str(store), "--limit", "3"]) == 1
    said = capsys.readouterr().out
    assert "run-000 run-001 run-002 and 22 more" in said
    assert "    and 22 more\n" in said


def test_every_problem_says_what_to_do_in_one_sentence() -> None:
    assert set(MEANINGS) == set(Kind)
    for kind, meaning in MEANINGS.items():
        assert meaning.advice.endswith("."), kind
        assert meaning.advice.count(". ") == 0, kind
        assert meaning.advice[0].isupper(), kind
        assert meaning.what[0].islower(), kind


def test_for_people_each_problem_has_its_reason_and_its_advice(
    store_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(made(store_path, RunStatus.QUARANTINED))]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("warning: runs that were set aside"))
    assert lines[at + 1] == "    run-000: its reason"
    assert lines[at + 2].startswith("    -> Mend what the reason names")
    assert "nothing here needs a person" not in lines


def test_with_a_thousand_runs_it_shows_how_far_it_is(store_path: Path) -> None:
    class Screen(SilentScreen):
        def progress(self, share: float, note: str) -> None:
            shown.append((share, note))

    shown: list[tuple[float, str]] = []
    found = doctor(made(store_path, *[RunStatus.COMPLETED] * 1000), limit=1, screen=Screen())
    assert found.checked_runs == 1000
    assert shown[0] == (0.0, "checking the file")
    assert shown[-1] == (1.0, "1000 of 1000 runs checked")
    assert [share for share, _ in shown] == sorted(share for share, _ in shown)


# --------------------------------------------------------------------------------------------------------- damaged frames


@pytest.mark.parametrize(
    ("table", "slot", "expected"),
    [
        (Table.CLAIMS, None, {"claim-unreadable": ["steps"]}),
        (Table.RECORDS, None, {"record-unreadable": ["steps"]}),
    ],
)
def test_a_flipped_bit_in_a_row_is_found_and_named(
    table: Table, slot: int | None, expected: dict[str, list[str]], tmp_path: Path, dead: Path, capsys: Any
) -> None:
    store = copied(dead, tmp_path)
    damage(LmdbDisk(store), table, "steps", slot)
    code, found = examined(store, capsys)
    assert (code, found["readable"], found["ok"]) == (1, True, False)
    assert {kind: who for kind, who in kinds(found).items() if kind != "not-closed"} == expected
    assert found["problems"][0]["severity"] == Severity.ERROR


def test_it_tells_a_lost_snapshot_from_an_older_one_and_from_both(tmp_path: Path, dead: Path, capsys: Any) -> None:
    expected = {(0,): set(), (1,): set(), (0, 1): {"snapshot-lost"}}
    seen = []
    for slots in expected:
        store = copied(dead, tmp_path / "".join(map(str, slots)))
        for slot in slots:
            damage(LmdbDisk(store), Table.SNAPSHOTS, "steps", slot)
        code, found = examined(store, capsys)
        assert code == 1
        (kind,) = set(kinds(found)) - {"not-closed"}
        assert kinds(found)[kind] == ["steps"]
        seen.append(kind)
    assert seen[2] == "snapshot-lost"
    assert sorted(seen[:2]) == ["snapshot-fell-back", "snapshot-older-unreadable"]


def test_a_damaged_outcome_is_found(tmp_path: Path, dead: Path, capsys: Any) -> None:
    store = copied(dead, tmp_path)
    damage(LmdbDisk(store), Table.OUTCOMES, "completes")
    assert kinds(examined(store, capsys)[1])["outcome-unreadable"] == ["completes"]


def test_a_damaged_link_to_a_parent_is_found(tmp_path: Path, dead: Path, capsys: Any) -> None:
    store = copied(dead, tmp_path)
    (link,) = LmdbDisk(store).keys(Table.CHILDREN)
    child = link.partition(b"\0")[2].decode()
    assert link == child_key(run_key("parent"), run_key(child))
    LmdbDisk(store).change(Table.CHILDREN, link, flip_last_bit)
    assert kinds(examined(store, capsys)[1])["link-unreadable"] == [child]


def test_a_damaged_durable_message_is_found(tmp_path: Path, capsys: Any) -> None:
    opened = LmdbStore(tmp_path / "runs.store", profile="process")
    opened.open()
    token = begin(opened, "run")
    assert numbered(opened, append(token, "a"), append(token, "b")) == [1, 2]
    opened.close()
    LmdbDisk(tmp_path / "runs.store").change(Table.MESSAGES, message_key(b"run", 2), flip_last_bit)
    found = examined(tmp_path / "runs.store", capsys)[1]
    assert kinds(found)["message-unreadable"] == ["run"]
    (problem,) = (one for one in found["problems"] if one["kind"] == "message-unreadable")
    assert "message 2" in problem["first"][0]["why"]


@pytest.mark.parametrize("copy", [b"format-1", b"format-2", b"boot-1", b"boot-2"])
def test_one_damaged_copy_of_the_stores_numbers_is_found(copy: bytes, tmp_path: Path, dead: Path, capsys: Any) -> None:
    store = copied(dead, tmp_path)
    LmdbDisk(store).change(Table.META, copy, flip_last_bit)
    code, found = examined(store, capsys)
    assert (code, found["boot_epoch"]) == (1, 1)
    (problem,) = (one for one in found["problems"] if one["kind"] == "number-unreadable")
    assert copy.decode() in problem["first"][0]["why"]


def test_rows_without_a_claim_and_an_index_that_disagrees_are_found(tmp_path: Path, dead: Path, capsys: Any) -> None:
    store = copied(dead, tmp_path)
    LmdbDisk(store).change(Table.CLAIMS, b"steps", lambda _: None)
    LmdbDisk(store).change(Table.LIVE, b"approval", lambda _: None)
    LmdbDisk(store).change(Table.RECORDS, b"fails", lambda _: None)
    found = kinds(examined(store, capsys)[1])
    assert found["claim-unreadable"] == ["steps"]
    assert found["index-wrong"] == ["approval"]
    assert found["record-unreadable"] == ["fails"]


def test_a_store_whose_format_is_unreadable_is_a_report_with_exit_code_3(
    tmp_path: Path, dead: Path, capsys: Any
) -> None:
    store = copied(dead, tmp_path)
    for copy in (b"format-1", b"format-2"):
        LmdbDisk(store).change(Table.META, copy, flip_last_bit)
    code, found = examined(store, capsys)
    assert (code, found["readable"], found["ok"], found["space"]) == (3, False, False, None)
    assert "store-corrupt" in kinds(found)


# ----------------------------------------------------------------------------------------------------------- damaged files


def test_files_that_are_no_store_are_a_report(tmp_path: Path, dead: Path, capsys: Any) -> None:
    empty, garbage, cut = tmp_path / "empty", tmp_path / "garbage", copied(dead, tmp_path)
    empty.mkdir(0o700)
    garbage.mkdir(0o700)
    (garbage / "data.mdb").write_bytes(b"garbage" * 5000)
    with (cut / "data.mdb").open("r+b") as file:
        file.truncate(20000)
    for store, kind in ((empty, "store-unavailable"), (garbage, "store-corrupt"), (cut, "store-corrupt")):
        code, found = examined(store, capsys)
        assert (code, found["readable"]) == (3, False)
        assert kind in kinds(found)
        assert main(["doctor", str(store)]) == 3
        assert "error: " in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "missing")]) == 3
    assert "there is no store" in capsys.readouterr().err


FUZZ = """
import random, sys
from pathlib import Path
from executus.actors.console.doctor import doctor
from executus.actors.console.screen import SilentScreen
whole, seeds = Path(sys.argv[1], "data.mdb").read_bytes(), range(*map(int, sys.argv[2:]))
used = [at for at, byte in enumerate(whole) if byte]
for seed in seeds:
    rng = random.Random(seed)
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 8])):
        at = rng.choice(used)
        match rng.randrange(3):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + 64] = bytes(len(data[at : at + 64]))
            case 2:
                page, other = (rng.randrange(len(data) // 4096) * 4096 for _ in range(2))
                data[page : page + 4096] = data[other : other + 4096]
    Path(sys.argv[1], "data.mdb").write_bytes(data)
    print(seed, int(doctor(Path(sys.argv[1]), limit=3, screen=SilentScreen()).exit_code), flush=True)
"""


def test_whatever_was_done_to_the_file_there_is_a_report_and_never_a_traceback(tmp_path: Path, dead: Path) -> None:
    store = copied(dead, tmp_path)
    command = [sys.executable, "-P", "-c", FUZZ, str(store), "0", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    codes = {int(line.split()[1]) for line in done.stdout.splitlines()}
    assert codes <= {0, 1, 3}, "0: a page that nothing uses was hit"
    assert {1, 3} <= codes


# ------------------------------------------------------------------------------------------------- files, modes and space


def test_files_that_others_may_read_are_found(tmp_path: Path, dead: Path, capsys: Any) -> None:
    store = copied(dead, tmp_path)
    (store / "data.mdb").chmod(0o644)
    assert "open-to-others" not in kinds(examined(store, capsys)[1]), "nobody else gets into its folder"
    store.chmod(0o755)
    code, found = examined(store, capsys)
    assert code == 1
    assert kinds(found)["open-to-others"] == ["data.mdb"]
    store.chmod(0o770)
    assert kinds(examined(store, capsys)[1])["open-to-others"] == [store.name, "data.mdb"]


def test_what_a_killed_process_left_over_is_a_note(tmp_path: Path, dead: Path, capsys: Any) -> None:
    store = copied(dead, tmp_path)
    (store / "new-store-4711").mkdir(0o700)
    (store / "owner.json.new").touch(0o600)
    code, found = examined(store, capsys)
    assert code == 0
    assert kinds(found)["left-over"] == ["new-store-4711", "owner.json.new"]


def test_a_daemon_whose_lock_files_were_removed_is_found(tmp_path: Path, capsys: Any) -> None:
    daemon = Daemon(tmp_path / "runs.store")
    try:
        (daemon.store / "owner.lock").unlink()
        code, found = examined(daemon.store, capsys)
        assert (code, found["owner"]["holds_lock"]) == (1, False)
        assert kinds(found) == {"lock-not-held": [f"pid {daemon.pid}"]}
    finally:
        daemon.kill()


def test_an_owner_that_its_facts_do_not_name_is_known_by_its_lock(tmp_path: Path, capsys: Any) -> None:
    daemon = Daemon(tmp_path / "runs.store")
    try:
        (daemon.store / FACTS_NAME).unlink()
        code, found = examined(daemon.store, capsys)
        assert (code, found["owner"]["pid"], found["owner"]["holds_lock"]) == (0, daemon.pid, True)
    finally:
        daemon.kill()


def test_a_disk_and_a_map_that_fill_are_told_before_they_are_full(
    store_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(store_path)
    for free_bytes, kind in ((module.LOW_DISK_BYTES - 1, "disk-low"), (0, "disk-full")):
        usage = shutil.disk_usage(store_path)._replace(free=free_bytes)
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _, usage=usage: usage)
        code, found = examined(store_path, capsys)
        assert (code, list(kinds(found))) == (1, [kind])


@pytest.mark.parametrize(("share", "expected"), [(0.79, []), (0.81, ["map-filling"]), (0.91, ["map-full"])])
def test_a_map_that_fills_is_told(
    share: float, expected: list[str], store_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = LmdbReader.info

    def fuller(reader: LmdbReader) -> StoreInfo:
        facts = info(reader)
        return msgspec.structs.replace(facts, used_bytes=round(share * facts.map_size_bytes))

    monkeypatch.setattr(LmdbReader, "info", fuller)
    code, found = examined(made(store_path), capsys)
    assert (code, list(kinds(found))) == (len(expected), expected)
