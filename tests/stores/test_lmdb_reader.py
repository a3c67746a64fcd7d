"""A store read from outside: the same answers as its owner gives, beside it and after its death, and nothing is written."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from executus.stores import (
    LmdbReader,
    LmdbStore,
    RecordCorrupt,
    RunStatus,
    StoreClosed,
    StoreCorrupt,
    StoreForked,
    StoreLocked,
    StoreTooNew,
    StoreUnavailable,
    Token,
    codec,
)
from executus.stores.rows import FIRST_TABLES, Table
from tests.stores.children import in_fork, owner_of
from tests.stores.disks import LmdbDisk, damage, end_with_unwritten_pages
from tests.stores.making import append, begin, child_of, commit_one, numbered, pending, save, settled
from tests.waiting import wait_until

READS = ("load", "load_snapshot", "load_outcome", "children", "messages")


@contextmanager
def reading(folder: Path) -> Iterator[LmdbReader]:
    reader = LmdbReader(folder)
    reader.open()
    try:
        yield reader
    finally:
        reader.close()


def filled(folder: Path) -> list[Token]:
    """A store closed in peace: a run saved twice, with a child, and one that has completed."""
    store = LmdbStore(folder, profile="process")
    store.open()
    try:
        one, two = begin(store, "one"), begin(store, "two")
        store.commit([save(one, 1), save(one, 2), save(two, 1)])
        commit_one(store, child_of(one, "one-child", epoch=one.epoch + 1), settled(two, outcome=b"outcome"))
    finally:
        store.close()
    return [one, two]


def files_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file but LMDB's lock, where readers have their places: inode, time of change, content."""
    return {
        file.name: (file.stat().st_ino, file.stat().st_mtime_ns, file.read_bytes())
        for file in folder.iterdir()
        if file.name != "lock.mdb"
    }


# ------------------------------------------------------------------------------------------------------- same answers


def test_it_answers_as_the_store_does(store_path: Path) -> None:
    filled(store_path)
    store = LmdbStore(store_path)
    store.open()
    epoch = store.boot_epoch
    ids = ("one", "two", "one-child", "nobody")
    answers = {(name, run_id): getattr(store, name)(run_id) for name in READS for run_id in ids}
    listed = store.live(), store.damaged(), store.scan(), store.scan(after="one", limit=1)
    info = store.info()
    store.close()
    with reading(store_path) as reader:
        assert {(name, run_id): getattr(reader, name)(run_id) for name in READS for run_id in ids} == answers
        assert (reader.live(), reader.damaged(), reader.scan(), reader.scan(after="one", limit=1)) == listed
        assert reader.info() == info
        assert reader.boot_epoch == epoch


def test_reading_writes_nothing_and_draws_no_epoch(store_path: Path) -> None:
    filled(store_path)
    before = files_of(store_path)
    for _ in range(3):
        with reading(store_path) as reader:
            assert len(reader.scan()) == 3
    assert files_of(store_path) == before
    store = LmdbStore(store_path)
    store.open()
    assert store.boot_epoch == 2
    store.close()


@pytest.mark.parametrize("slot", [0, 1])
def test_a_damaged_snapshot_falls_back_and_says_so(store_path: Path, slot: int) -> None:
    filled(store_path)
    damage(LmdbDisk(store_path), Table.SNAPSHOTS, "one", slot)
    with reading(store_path) as reader:
        loaded = reader.load_snapshot("one")
        assert loaded is not None
        assert loaded.snapshot.seq in {1, 2}
        assert (loaded.fell_back is None) == (loaded.snapshot.seq == 2)


def test_a_damaged_claim_is_a_typed_error(store_path: Path) -> None:
    filled(store_path)
    damage(LmdbDisk(store_path), Table.CLAIMS, "one")
    with reading(store_path) as reader:
        with pytest.raises(RecordCorrupt):
            reader.load("one")
        assert reader.damaged() == ["one"]
        assert [run.claim.run_id for run in reader.scan()] == ["one-child", "two"]


# ------------------------------------------------------------------------------------------------------ beside a daemon


def test_beside_a_daemon_that_saves_it_sees_whole_snapshots_of_growing_seq(store_path: Path) -> None:
    with owner_of(store_path, "save") as owner:
        assert owner.stdout is not None
        for _ in range(3):
            owner.stdout.readline()
        with reading(store_path) as reader:
            assert reader.owner_pid == owner.pid
            last = 0
            for _ in range(300):
                # What it had acknowledged before must be there; reading its pipe also keeps it going.
                acknowledged = int(owner.stdout.readline().split()[1])
                loaded = reader.load_snapshot("r")
                assert loaded is not None
                assert loaded.fell_back is None
                assert loaded.snapshot.seq >= max(last, acknowledged)
                assert loaded.snapshot.state == b"%d " % loaded.snapshot.seq * 300
                last = loaded.snapshot.seq
        assert owner.poll() is None


def test_a_store_whose_daemon_was_killed_can_be_read_and_has_no_owner(store_path: Path) -> None:
    with owner_of(store_path, "save") as owner:
        assert owner.stdout is not None
        for _ in range(20):
            acknowledged = int(owner.stdout.readline().split()[1])
        owner.kill()
        owner.wait()
    with reading(store_path) as reader:
        assert reader.owner_pid is None
        loaded = reader.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.seq >= acknowledged
        assert [claim.status for claim in reader.live()] == [RunStatus.RUNNING]


def test_a_reader_that_is_open_outlives_the_daemon_and_hinders_no_next_one(store_path: Path) -> None:
    with owner_of(store_path) as owner, reading(store_path) as reader:
        owner.kill()
        owner.wait()
        assert reader.scan() == []
        with owner_of(store_path, "save") as second:
            assert second.stdout is not None
            for _ in range(3):
                second.stdout.readline()
            wait_until(lambda: reader.load("r") is not None, what="the open reader sees the next daemon's run")


def test_in_the_owners_process_it_is_refused_and_the_owner_keeps_its_store(store_path: Path) -> None:
    filled(store_path)
    store = LmdbStore(store_path)
    store.open()
    with pytest.raises(StoreLocked) as refused:
        LmdbReader(store_path).open()
    assert refused.value.owner_pid == os.getpid()
    with owner_refused(store_path):
        begin(store, "still mine")
    store.close()


@contextmanager
def owner_refused(folder: Path) -> Iterator[None]:
    """Another process cannot own the store meanwhile."""

    def open_it() -> None:
        with pytest.raises(StoreLocked):
            LmdbStore(folder).open()

    in_fork(open_it)
    yield


def test_a_fork_of_the_reader_is_refused(store_path: Path) -> None:
    filled(store_path)
    with reading(store_path) as reader:

        def read_on() -> None:
            with pytest.raises(StoreForked):
                reader.load("one")

        in_fork(read_on)


# ------------------------------------------------------------------------------------------- what cannot be read, and how


def test_without_a_store_it_says_so(store_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="there is no store"):
        LmdbReader(store_path).open()
    assert not store_path.exists()


def test_a_folder_that_is_no_store_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear store")
    with pytest.raises(StoreUnavailable, match="is no store"):
        LmdbReader(tmp_path).open()
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_a_file_in_the_stores_place_is_no_store(tmp_path: Path) -> None:
    file = tmp_path / "runs.store"
    file.write_text("dear store")
    with pytest.raises(StoreUnavailable, match="is no store"):
        LmdbReader(file).open()


@pytest.mark.parametrize("how", ["truncated", "garbage", "another program's"])
def test_a_damaged_or_foreign_file_is_corrupt_and_left_untouched(store_path: Path, how: str) -> None:
    filled(store_path)
    data = store_path / "data.mdb"
    match how:
        case "truncated":
            os.truncate(data, 3 * 4096)
        case "garbage":
            data.write_bytes(b"dear store" * 10_000)
        case _:
            data.unlink()
            lmdb.open(str(store_path), lib_version=0).close()
    before = files_of(store_path)
    with pytest.raises(StoreCorrupt):
        LmdbReader(store_path).open()
    assert files_of(store_path) == before


def test_a_file_that_ends_before_pages_that_were_never_written_is_read_and_left_as_it_is(store_path: Path) -> None:
    tokens = filled(store_path)
    assert end_with_unwritten_pages(store_path) > 0
    before = files_of(store_path)
    with reading(store_path) as reader:
        reader.walk()
        assert [claim.run_id for claim in reader.live()] == ["one", "one-child"]
        assert {token.run_id for token in tokens} <= {one.run_id for one in reader.checkup()}
    assert files_of(store_path) == before


def test_beside_a_daemon_a_file_that_ends_before_pages_that_were_never_written_is_read(store_path: Path) -> None:
    filled(store_path)
    end_with_unwritten_pages(store_path)
    with owner_of(store_path) as owner, reading(store_path) as reader:
        assert reader.owner_pid == owner.pid
        assert [claim.run_id for claim in reader.live()] == ["one", "one-child"]


@pytest.mark.parametrize("executable", [sys.executable, ""])
def test_beside_a_daemon_a_truncated_file_is_corrupt(
    store_path: Path, monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    tokens = filled(store_path)
    store = LmdbStore(store_path, profile="process")
    store.open()
    store.commit([save(tokens[0], 3, b"x" * 100_000)])
    store.close()
    with owner_of(store_path):
        data = store_path / "data.mdb"
        os.truncate(data, data.stat().st_size - 4096)
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(StoreCorrupt, match=r"is truncated: 4096 bytes are missing"):
            LmdbReader(store_path).open()


def test_a_store_from_before_there_were_messages_is_read_as_it_is_and_gets_its_tables_from_its_next_owner(
    store_path: Path,
) -> None:
    store = LmdbDisk(store_path).store()
    store.open()
    token = begin(store)
    store.close()
    with lmdb.open(str(store_path), max_dbs=32) as env:
        for table in set(Table) - FIRST_TABLES:
            database = env.open_db(table.encode(), create=False)
            with env.begin(write=True) as txn:
                txn.drop(database)
    with reading(store_path) as reader:
        assert reader.load("r") is not None
        assert reader.messages("r") == []
        assert list(reader.checkup()) != []
    store.open()
    assert numbered(store, append(token, "a")) == [1]
    assert pending(store) == [1]
    store.close()


def test_a_store_of_a_newer_format_is_too_new(store_path: Path) -> None:
    filled(store_path)
    for key in (b"format-1", b"format-2"):
        LmdbDisk(store_path).change(Table.META, key, lambda _, key=key: codec.encode_number(2, key))
    with pytest.raises(StoreTooNew):
        LmdbReader(store_path).open()


def test_a_copy_without_lock_files_is_read_and_gets_none(store_path: Path) -> None:
    filled(store_path)
    for name in ("lock.mdb", "owner.lock", "owner.json"):
        (store_path / name).unlink()
    with reading(store_path) as reader:
        assert len(reader.scan()) == 3
    assert [file.name for file in store_path.iterdir()] == ["data.mdb"]


def test_a_dead_store_in_a_folder_that_cannot_be_written_is_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        filled(folder)
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o555)

        def read_as_other_user() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)
            with reading(folder) as reader:
                assert len(reader.scan()) == 3

        in_fork(read_as_other_user)
        folder.chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_beside_a_daemon_a_user_who_can_take_no_readers_place_is_refused() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with owner_of(folder) as owner:
            folder.chmod(0o755)
            for file in folder.iterdir():
                file.chmod(0o644)

            def read_as_other_user() -> None:
                os.setuid(65534)
                with pytest.raises(StoreUnavailable, match=f"owned by pid {owner.pid}"):
                    LmdbReader(folder).open()

            in_fork(read_as_other_user)


def test_once_closed_it_reads_nothing_and_can_be_opened_again(store_path: Path) -> None:
    filled(store_path)
    reader = LmdbReader(store_path)
    with pytest.raises(StoreClosed):
        reader.scan()
    reader.open()
    reader.close()
    reader.close()
    with pytest.raises(StoreClosed):
        reader.scan()
    reader.open()
    assert len(reader.scan()) == 3
    reader.close()
