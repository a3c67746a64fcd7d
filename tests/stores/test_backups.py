"""Backups beside a daemon that writes, restores that resume, compactions: whole or not there at all."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from executus.actors import Runtime
from executus.actors.console.main import main
from executus.stores import (
    LmdbReader,
    LmdbStore,
    RunStatus,
    StoreCorrupt,
    StoreLocked,
    StoreUnavailable,
    backup,
    backups,
    compact,
    lmdb_env,
    restore,
)
from executus.stores.rows import Table
from executus.stores.testing.making import begin, commit_one, deleted, save, settled
from tests.console.counting_daemon import READY, Counting
from tests.scenarios.harness import ROOT, environment
from tests.stores.disks import LmdbDisk, damage, end_with_unwritten_pages
from tests.waiting import wait_until

PROGRAM = ROOT / "tests" / "console" / "counting_daemon.py"


@pytest.fixture
def daemon(store_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that owns `store_path` and writes it all the time."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(PROGRAM), str(store_path), "20"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == f"{READY}\n"
    yield process
    process.kill()
    process.communicate()


def filled(store_path: Path, number: int = 50) -> LmdbStore:
    store = LmdbStore(store_path, profile="process", map_size_bytes=64 * 1024**2)
    store.open()
    for at in range(number):
        token = begin(store, f"r{at:02}")
        commit_one(store, save(token, 1, b"x" * 5000), save(token, 2, b"y" * 5000))
    store.close()
    return store


def seqs(store_path: Path) -> dict[str, int]:
    reader = LmdbReader(store_path)
    reader.open()
    try:
        loaded = {claim.run_id: reader.load_snapshot(claim.run_id) for claim in reader.live()}
        return {run_id: 0 if found is None else found.snapshot.seq for run_id, found in loaded.items()}
    finally:
        reader.close()


def opened_seqs(store: LmdbStore) -> list[str]:
    store.open()
    found = [claim.run_id for claim in store.live()]
    store.close()
    return found


# --- backup -----------------------------------------------------------------------------------------------------------


def test_a_backup_beside_a_writing_daemon_is_whole_and_a_runtime_resumes_what_it_held(
    daemon: subprocess.Popen[str], store_path: Path, tmp_path: Path
) -> None:
    for number in range(5):
        before = seqs(store_path)
        report = backup(store_path, tmp_path / f"backup-{number}")
        after = seqs(store_path)
        copied = seqs(tmp_path / f"backup-{number}")
        assert (report.runs, report.live, report.damaged) == (21, 20, [])
        assert all(before[run_id] <= copied[run_id] <= after[run_id] for run_id in before)
    assert daemon.poll() is None
    assert any(after[run_id] > before[run_id] for run_id in before)  # it wrote meanwhile
    with Runtime(tmp_path / "backup-4", runs=[Counting], logger=False) as runtime:
        for run_id, seq in copied.items():
            wait_until(lambda: runtime.get(Counting, run_id).status().seq > seq)
        assert runtime.get(Counting, "ended").result(10) == 3


def test_a_file_that_ends_before_pages_that_were_never_written_is_copied_restored_and_compacted(
    store_path: Path, tmp_path: Path
) -> None:
    filled(store_path, 5)
    assert end_with_unwritten_pages(store_path) > 0
    backup(store_path, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    compact(store_path)
    assert seqs(tmp_path / "restored") == seqs(store_path) == {f"r{at:02}": 2 for at in range(5)}


def test_a_backup_and_its_folder_are_for_their_owner_only(store_path: Path, tmp_path: Path) -> None:
    filled(store_path)
    backup(store_path, tmp_path / "backup")
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "backup" / "data.mdb").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "backup").iterdir()] == ["data.mdb"]


def test_nothing_is_written_over_without_force_and_nothing_but_a_copy_with_it(store_path: Path, tmp_path: Path) -> None:
    store, to = filled(store_path), tmp_path / "backup"
    backup(store_path, to)
    inode = (to / "data.mdb").stat().st_ino
    with pytest.raises(StoreUnavailable, match="is there already"):
        backup(store_path, to)
    assert (to / "data.mdb").stat().st_ino == inode
    store.open()
    begin(store, "new")
    store.close()
    backup(store_path, to, force=True)
    assert "new" in seqs(to)
    other = tmp_path / "letters"
    other.mkdir()
    (other / "a.txt").write_text("dear")
    with pytest.raises(StoreUnavailable, match="is there already"):
        backup(store_path, other, force=True)
    assert (other / "a.txt").read_text() == "dear"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"backup", "letters", store_path.name})


def test_a_backup_is_not_put_in_the_place_of_a_store_that_is_owned(
    daemon: subprocess.Popen[str], store_path: Path, tmp_path: Path
) -> None:
    filled(tmp_path / "other")
    for copy in (backup, restore):
        with pytest.raises(StoreLocked) as refused:
            copy(tmp_path / "other", store_path, force=True)
        assert refused.value.owner_pid == daemon.pid
    assert daemon.poll() is None


def test_a_copy_that_fails_on_the_way_leaves_nothing_and_what_was_there(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store_path)
    backup(store_path, tmp_path / "backup")
    before = (tmp_path / "backup" / "data.mdb").read_bytes()

    def torn(self: lmdb_env.ReadableEnvironment, folder: Path) -> tuple[int, int]:
        (folder / "data.mdb").write_bytes(before[: len(before) // 2])
        return 50, 50

    monkeypatch.setattr(lmdb_env.ReadableEnvironment, "copy_to", torn)
    with pytest.raises(StoreCorrupt):
        backup(store_path, tmp_path / "backup", force=True)
    with pytest.raises(StoreCorrupt):
        compact(store_path)
    assert (tmp_path / "backup" / "data.mdb").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"backup", store_path.name})
    assert not list(store_path.glob("new-store-*"))
    assert len(seqs(store_path)) == 50


def test_a_copy_that_lacks_a_run_is_refused(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(store_path)
    copy_to = lmdb_env.ReadableEnvironment.copy_to

    def more(self: lmdb_env.ReadableEnvironment, folder: Path) -> tuple[int, int]:
        runs, live = copy_to(self, folder)
        return runs + 1, live

    monkeypatch.setattr(lmdb_env.ReadableEnvironment, "copy_to", more)
    with pytest.raises(StoreCorrupt, match="instead of 51"):
        backup(store_path, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_damage_in_the_source_is_copied_and_told(store_path: Path, tmp_path: Path) -> None:
    filled(store_path)
    damage(LmdbDisk(store_path), Table.SNAPSHOTS, "r07", 1)
    report = backup(store_path, tmp_path / "backup")
    assert [checkup.run_id for checkup in report.damaged] == ["r07"]
    assert main(["backup", str(store_path), str(tmp_path / "second")]) == 1
    assert len(seqs(tmp_path / "second")) == 50


def test_the_owner_itself_is_told_to_call_it_elsewhere(store_path: Path, tmp_path: Path) -> None:
    store = filled(store_path)
    store.open()
    for call in (lambda: backup(store_path, tmp_path / "backup"), lambda: compact(store_path)):
        with pytest.raises(StoreLocked):
            call()
    begin(store, "goes on")
    store.close()


def test_what_is_no_store_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for call in (
        lambda: backup(tmp_path / "empty", tmp_path / "to"),
        lambda: restore(tmp_path / "nothing", tmp_path / "to"),
        lambda: compact(tmp_path / "empty"),
    ):
        with pytest.raises(StoreUnavailable, match="is no store"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not list((tmp_path / "empty").iterdir())


# --- restore ----------------------------------------------------------------------------------------------------------


def test_a_restored_store_goes_on_under_epochs_that_were_never_drawn(store_path: Path, tmp_path: Path) -> None:
    store = filled(store_path)
    backup(store_path, tmp_path / "backup")
    for _ in range(3):  # the store goes on after its backup
        store.open()
        after = store.boot_epoch
        store.close()
    report = restore(tmp_path / "backup", tmp_path / "restored")
    restored = LmdbStore(tmp_path / "restored")
    restored.open()
    assert restored.boot_epoch == report.boot_epoch + 1 > after + backups.BOOTS_SKIPPED // 2
    assert len(restored.live()) == 50
    restored.close()
    assert seqs(tmp_path / "backup") == seqs(tmp_path / "restored")


def test_a_restore_by_force_moves_aside_what_was_there(store_path: Path, tmp_path: Path) -> None:
    store = filled(store_path, 5)
    backup(store_path, tmp_path / "backup")
    store.open()
    begin(store, "after")
    store.close()
    with pytest.raises(StoreUnavailable, match="is there already"):
        restore(tmp_path / "backup", store_path)
    report = restore(tmp_path / "backup", store_path, force=True)
    assert report.moved_aside == f"{store_path}.before-1"
    assert len(opened_seqs(store)) == 5
    assert len(seqs(Path(report.moved_aside))) == 6


# --- compact ----------------------------------------------------------------------------------------------------------


def test_compacting_gives_the_room_back_and_loses_nothing(store_path: Path) -> None:
    store = filled(store_path, 200)
    store.open()
    for claim in store.live()[20:]:
        commit_one(store, settled(claim.token, RunStatus.STOPPED), deleted(claim.token))
    store.close()
    before = seqs(store_path)
    report = compact(store_path)
    assert report.size_bytes < report.size_before_bytes / 3
    assert (store_path / "data.mdb").stat().st_size == report.size_bytes
    assert seqs(store_path) == before
    store.open()
    assert store.boot_epoch == report.boot_epoch + 1
    token = store.live()[0].token
    assert commit_one(store, save(token, 9)) is None
    store.close()


def test_a_store_is_not_compacted_under_a_daemon_or_a_reader(
    daemon: subprocess.Popen[str], store_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreLocked, match=f"pid {daemon.pid}"):
        compact(store_path)
    filled(tmp_path / "read")
    program = f"""
import sys
from executus.stores import LmdbReader
reader = LmdbReader({str(tmp_path / "read")!r})
reader.open()
print("ready", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-P", "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        with pytest.raises(StoreLocked, match=f"being read by pid {reader.pid}"):
            compact(tmp_path / "read")
        reader.communicate()
    compact(tmp_path / "read")
    assert len(seqs(tmp_path / "read")) == 50


def test_a_copy_whose_boot_numbers_are_both_damaged_repeats_no_epoch_of_its_runs(store_path: Path) -> None:
    store = filled(store_path, 1)
    for boot in range(60):
        store.open()
        last = store.boot_epoch
        if boot == 59:
            commit_one(store, settled(store.live()[0].token, RunStatus.STOPPED))
            begin(store, "newest")
        store.close()
    compact(store_path)
    for key in (b"boot-1", b"boot-2"):
        LmdbDisk(store_path).change(Table.META, key, lambda data: data[:-1] + b"!")
    store.open()
    assert store.boot_epoch > last
    store.close()


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_commands_say_what_they_did(store_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(store_path, 3)
    assert main(["backup", str(store_path), str(tmp_path / "backup")]) == 0
    assert "backed up to" in capsys.readouterr().out
    assert main(["backup", str(store_path), str(tmp_path / "backup")]) == 3
    assert "is there already" in capsys.readouterr().err
    assert main(["restore", str(tmp_path / "backup"), str(tmp_path / "restored"), "--json"]) == 0
    assert '"live": 3' in capsys.readouterr().out
    assert main(["compact", str(store_path)]) == 0
    assert "3 runs, 3 of them live" in capsys.readouterr().out
    assert main(["backup", str(tmp_path / "nothing"), str(tmp_path / "x")]) == 3
