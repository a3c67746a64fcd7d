"""Every fault of an LMDB store that can be made for real: a typed error or a recovery, and never wrong bytes."""

from __future__ import annotations

import os
import random
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest
from msgspec.structs import replace

from executus.stores import (
    ACCEPTED,
    EPOCHS_PER_BOOT,
    LmdbReader,
    LmdbStore,
    RecordCorrupt,
    RunStatus,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreTooNew,
    StoreUnavailable,
    Token,
    codec,
    store_files,
)
from executus.stores.owner_lock import read_owner, this_process, write_owner
from executus.stores.rows import Table
from tests.stores.children import in_fork, owner_of
from tests.stores.disks import LmdbDisk, end_with_unwritten_pages, flip_last_bit
from tests.stores.making import begin, commit_one, deleted, save, settled, snapshot, started, why

SMALL_MAP_BYTES = 4 * 1024**2
FORMAT_ROWS = (b"format-1", b"format-2")
BOOT_ROWS = (b"boot-1", b"boot-2")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@contextmanager
def opened(folder: Path, **options: object) -> Iterator[LmdbStore]:
    store = LmdbStore(folder, **options)  # type: ignore[arg-type]
    store.open()
    try:
        yield store
    finally:
        store.close()


def filled(folder: Path, runs: int = 3, state_bytes: int = 500) -> list[Token]:
    """A store on disk, closed in peace, with runs that were saved twice."""
    with opened(folder, profile="process") as store:
        tokens = [begin(store, f"r{n}") for n in range(runs)]
        for seq in (1, 2):
            store.commit([save(token, seq, b"%d" % seq * state_bytes) for token in tokens])
    return tokens


def data_of(folder: Path) -> bytes:
    return (folder / "data.mdb").read_bytes()


# ---------------------------------------------------------------------------------------------------------- ownership


def test_a_store_from_before_the_index_of_ended_runs_has_it_after_the_next_open(store_path: Path) -> None:
    disk = LmdbDisk(store_path)
    store = disk.store()
    store.open()
    commit_one(store, settled(begin(store, "a"), ended_at_s=2.0), settled(begin(store, "b"), ended_at_s=1.0))
    begin(store, "live")
    store.close()
    with lmdb.open(str(store_path), max_dbs=64) as env, env.begin(write=True) as txn:
        for table in Table:
            if table.startswith("ended-"):
                txn.drop(env.open_db(table.encode(), txn=txn))
    reader = LmdbReader(store_path)
    reader.open()
    assert reader.ended(RunStatus.COMPLETED) == []
    reader.close()
    store.open()
    assert [run.run_id for run in store.ended(RunStatus.COMPLETED)] == ["b", "a"]
    store.close()


def test_an_index_of_ended_runs_that_older_code_did_not_keep_is_made_anew(store_path: Path) -> None:
    disk = LmdbDisk(store_path)
    store = disk.store()
    store.open()
    commit_one(store, settled(begin(store, "a"), ended_at_s=2.0), settled(begin(store, "b"), ended_at_s=1.0))
    store.close()
    with lmdb.open(str(store_path), max_dbs=64) as env:
        table = env.open_db(Table.ENDED_COMPLETED.encode())
        with env.begin(write=True, db=table) as txn:
            first, second = (key for key, _ in txn.cursor())
            assert txn.delete(first)
            assert txn.delete(second)
            assert txn.put(b"%016xnobody" % 5, b"\1")
    store.open()
    assert [run.run_id for run in store.ended(RunStatus.COMPLETED)] == ["b", "a"]
    store.close()


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(store_path: Path) -> None:
    with owner_of(store_path) as owner, pytest.raises(StoreLocked, match=f"owned by pid {owner.pid}") as refused:
        LmdbStore(store_path).open()
    assert refused.value.owner_pid == owner.pid
    assert refused.value.path == str(store_path)


def test_a_killed_owner_frees_the_store_at_once_though_its_child_lives(store_path: Path) -> None:
    with owner_of(store_path, "fork") as owner:
        owner.kill()
        owner.wait()
        with opened(store_path) as store:
            assert store.boot_epoch == 2


def test_a_second_store_object_is_refused_and_the_first_keeps_its_lock(store_path: Path) -> None:
    with opened(store_path):
        for _ in range(3):
            with pytest.raises(StoreLocked, match="in this process") as refused:
                LmdbStore(store_path).open()
            assert refused.value.owner_pid == os.getpid()
        with pytest.raises(AssertionError), owner_of(store_path):
            pass  # A daemon that prints no "ready" was refused: the lock still holds.


def test_a_fork_of_the_owner_is_refused_as_a_second_daemon(store_path: Path) -> None:
    parent = os.getpid()

    def open_again() -> None:
        with pytest.raises(StoreLocked) as refused:
            LmdbStore(store_path).open()
        assert refused.value.owner_pid == parent

    with opened(store_path) as store:
        in_fork(open_again)
        token = begin(store)
        in_fork(open_again)
        assert commit_one(store, save(token, 1)) is None


def test_a_fork_can_own_a_store_of_its_own(store_path: Path, tmp_path: Path) -> None:
    with opened(store_path):
        in_fork(lambda: filled(tmp_path / "other"))
    with opened(tmp_path / "other") as store:
        assert len(store.live()) == 3


def test_the_store_is_free_after_close_and_after_a_failed_open(store_path: Path) -> None:
    filled(store_path)
    with owner_of(store_path):
        pass
    (store_path / "data.mdb").write_bytes(b"garbage" * 1000)
    store = LmdbStore(store_path)
    for _ in range(2):
        with pytest.raises(StoreCorrupt):
            store.open()


def test_a_removed_owner_lock_stops_the_writer_until_it_owns_the_store_again(store_path: Path) -> None:
    with opened(store_path) as store:
        token = begin(store)
        (store_path / "owner.lock").unlink()
        with pytest.raises(StoreUnavailable, match="removed or replaced"):
            store.commit([save(token, 1)])
        store.close()
        store.open()
        assert commit_one(store, save(token, 1)) is None


# ------------------------------------------------------------------------------------------------------ after a kill -9


def test_what_was_acknowledged_survives_kill_9(store_path: Path) -> None:
    acknowledged = 0
    for round_number in range(4):
        with owner_of(store_path, "save") as owner:
            assert owner.stdout is not None
            resumed = int(owner.stdout.readline().split()[1])
            assert resumed >= acknowledged
            for _ in range(20 + 13 * round_number):
                acknowledged = int(owner.stdout.readline().split()[1])
            owner.kill()
            acknowledged = max([acknowledged, *(int(line.split()[1]) for line in owner.stdout if line.endswith("\n"))])
    with opened(store_path) as store:
        loaded = store.load_snapshot("r")
    assert loaded is not None
    assert loaded.snapshot.seq in {acknowledged, acknowledged + 1}
    assert loaded.snapshot.state == b"%d " % loaded.snapshot.seq * 300


def test_header_pages_that_changed_while_nobody_wrote_are_damage_although_they_follow_each_other(
    store_path: Path,
) -> None:
    filled(store_path)
    with opened(store_path) as store:
        store.commit([])
    path = store_path / "data.mdb"
    data, stat = bytearray(path.read_bytes()), path.stat()
    page = 4096
    numbers = [int.from_bytes(data[at + 144 : at + 152], "little") for at in (0, page)]
    newer = 0 if numbers[0] > numbers[1] else page
    data[newer + 144 : newer + 152] = (max(numbers) - 2).to_bytes(8, "little")  # the commit before passes for the last
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    store_files.check_header(store_path)  # it sees nothing
    with pytest.raises(StoreCorrupt, match="header pages"):
        LmdbStore(store_path).open()
    assert path.read_bytes() == bytes(data)


def test_a_store_closed_in_peace_is_known_as_such_until_it_is_opened_or_touched(store_path: Path) -> None:
    filled(store_path)
    owner = read_owner(store_path)
    assert owner is not None
    assert owner.closed == store_files.data_file(store_path)
    (store_path / "data.mdb").write_bytes(data_of(store_path))
    assert owner.closed != store_files.data_file(store_path)
    with opened(store_path):
        owner = read_owner(store_path)
        assert owner is not None
        assert (owner.pid, owner.closed) == (os.getpid(), None)


def test_a_store_restored_from_a_copy_opens(store_path: Path, tmp_path: Path) -> None:
    tokens = filled(store_path)
    shutil.copytree(store_path, tmp_path / "copy")
    with opened(tmp_path / "copy") as store:
        assert [c.token for c in store.live()] == tokens


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"pid": "x"}', '{"x":' + "[" * 4000, "{}" * 5000])
def test_unreadable_facts_of_the_last_owner_cost_a_check_and_no_more(store_path: Path, text: str) -> None:
    filled(store_path)
    (store_path / "owner.json").write_text(text)
    with opened(store_path) as store:
        assert len(store.live()) == 3


@pytest.mark.parametrize("executable", ["", "/bin/true", "/bin/false"])
def test_where_python_is_embedded_a_store_opens_unchecked_after_a_kill(
    store_path: Path, monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    filled(store_path)
    (store_path / "owner.json").unlink()
    monkeypatch.setattr(sys, "executable", executable)
    with opened(store_path) as store:
        assert len(store.live()) == 3


# -------------------------------------------------------------------------------------------------------- damaged files


def refused_untouched(folder: Path, error: type[StoreError]) -> StoreError:
    before = data_of(folder)
    with pytest.raises(error) as refused:
        LmdbStore(folder).open()
    assert data_of(folder) == before
    assert refused.value.path == str(folder)
    return refused.value


@pytest.mark.parametrize("kept", [0, 1, 15, 100, 4095, 4096, 8191, 8192, 12288])
def test_a_truncated_file_is_corrupt_and_left_untouched(store_path: Path, kept: int) -> None:
    filled(store_path)
    data = data_of(store_path)
    (store_path / "data.mdb").write_bytes(data[:kept])
    refused_untouched(store_path, StoreCorrupt)


@pytest.mark.parametrize("closed_in_peace", [True, False])
@pytest.mark.parametrize("executable", [sys.executable, "", "/bin/true"])
def test_a_file_that_ends_before_pages_that_were_never_written_is_whole(
    store_path: Path, monkeypatch: pytest.MonkeyPatch, closed_in_peace: bool, executable: str
) -> None:
    tokens = filled(store_path)
    assert end_with_unwritten_pages(store_path) > 0
    if closed_in_peace:
        write_owner(store_path, replace(this_process(), closed=store_files.data_file(store_path)))
    monkeypatch.setattr(sys, "executable", executable)
    for seq in (3, 4):
        with opened(store_path) as store:
            assert [claim.token for claim in store.live()] == tokens
            assert store.commit([save(token, seq, b"%d" % seq * 5_000) for token in tokens]) == [ACCEPTED] * len(tokens)
    with opened(store_path) as store:
        for token in tokens:
            loaded = store.load_snapshot(token.run_id)
            assert loaded is not None
            assert (loaded.snapshot.seq, loaded.snapshot.state) == (4, b"4" * 5_000)


@pytest.mark.parametrize("closed_in_peace", [True, False])
@pytest.mark.parametrize("executable", [sys.executable, "", "/bin/true"])
def test_a_file_without_its_second_half_is_truncated_and_left_untouched(
    store_path: Path, monkeypatch: pytest.MonkeyPatch, closed_in_peace: bool, executable: str
) -> None:
    filled(store_path)
    missing_bytes = len(data_of(store_path)) // 8192 * 4096
    (store_path / "data.mdb").write_bytes(data_of(store_path)[:-missing_bytes])
    if closed_in_peace:
        write_owner(store_path, replace(this_process(), closed=store_files.data_file(store_path)))
    monkeypatch.setattr(sys, "executable", executable)
    refused = refused_untouched(store_path, StoreCorrupt)
    assert f"is truncated: {missing_bytes} bytes are missing" in str(refused)


@pytest.mark.parametrize("executable", [sys.executable, ""])
@pytest.mark.parametrize("state_bytes", [500, 20_000])
def test_a_file_cut_off_anywhere_is_refused_untouched_or_has_lost_nothing_that_is_in_use(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state_bytes: int, executable: str
) -> None:
    """The pages at its end may be free ones, which nobody misses, or the last ones of a value of several."""
    tokens = filled(store_path, state_bytes=state_bytes)
    monkeypatch.setattr(sys, "executable", executable)
    data, opens = data_of(store_path), list[bool]()
    for kept in range(2 * 4096, len(data), 4096):
        folder = tmp_path / f"kept-{kept}"
        shutil.copytree(store_path, folder)
        (folder / "data.mdb").write_bytes(data[:kept])
        try:
            with opened(folder) as store:
                loaded = [store.load_snapshot(token.run_id) for token in tokens]
                assert [one and one.snapshot.state for one in loaded] == [b"2" * state_bytes] * len(tokens)
            opens.append(True)
        except StoreCorrupt:
            assert "is truncated" in str(refused_untouched(folder, StoreCorrupt))
            opens.append(False)
    assert opens == sorted(opens)
    assert set(opens) == ({False, True} if state_bytes == 500 else {False})


@pytest.mark.parametrize("executable", [sys.executable, ""])
def test_a_file_cut_off_within_its_last_page_is_truncated(
    store_path: Path, monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    """What is missing of a page reads as zeros, and kills nobody."""
    filled(store_path)
    with lmdb.open(str(store_path), max_dbs=64) as env:
        rows = env.open_db(Table.META.encode(), create=False)
        with env.begin(db=rows, write=True) as txn:
            assert txn.put(b"fills its pages", b"x" * (50 * 4096 - 16))
    data = data_of(store_path)
    assert data.endswith(b"x" * 4096)
    (store_path / "data.mdb").write_bytes(data[:-1])
    monkeypatch.setattr(sys, "executable", executable)
    assert "is truncated: 1 bytes are missing" in str(refused_untouched(store_path, StoreCorrupt))


def test_a_file_of_garbage_is_corrupt_and_left_untouched(store_path: Path) -> None:
    filled(store_path)
    (store_path / "data.mdb").write_bytes(random.Random(1).randbytes(100_000))
    assert "no LMDB file" in str(refused_untouched(store_path, StoreCorrupt))


def test_a_file_of_the_other_byte_order_is_corrupt_and_left_untouched(store_path: Path) -> None:
    filled(store_path)
    data = bytearray(data_of(store_path))
    data[16:20] = data[16:20][::-1]
    (store_path / "data.mdb").write_bytes(data)
    assert "byte order" in str(refused_untouched(store_path, StoreCorrupt))


def test_pages_of_garbage_behind_good_headers_are_corrupt_and_left_untouched(store_path: Path) -> None:
    filled(store_path)
    data = data_of(store_path)
    (store_path / "data.mdb").write_bytes(data[:8192] + random.Random(2).randbytes(len(data) - 8192))
    refused_untouched(store_path, StoreCorrupt)


def test_a_file_of_a_newer_engine_is_too_new_and_left_untouched(store_path: Path) -> None:
    store_path.mkdir()
    lmdb.open(str(store_path), lib_version=1).close()
    assert isinstance(refused_untouched(store_path, StoreTooNew), StoreTooNew)


@pytest.mark.parametrize("foreign", [{}, {b"meta": b"a plain row"}])
def test_an_lmdb_file_of_another_program_is_corrupt_and_left_untouched(
    store_path: Path, foreign: dict[bytes, bytes]
) -> None:
    store_path.mkdir()
    with lmdb.open(str(store_path), lib_version=0) as env, env.begin(write=True) as txn:
        for key, value in foreign.items():
            txn.put(key, value)
    assert "another program" in str(refused_untouched(store_path, StoreCorrupt))


def test_a_store_of_a_newer_format_is_too_new_and_left_untouched(store_path: Path) -> None:
    filled(store_path)
    for key in FORMAT_ROWS:
        LmdbDisk(store_path).change(Table.META, key, lambda _, key=key: codec.encode_number(2, key))
    refused = refused_untouched(store_path, StoreTooNew)
    assert isinstance(refused, StoreTooNew)
    assert (refused.found, refused.known) == (2, codec.FORMAT_VERSION)


@pytest.mark.parametrize("key", [*FORMAT_ROWS, *BOOT_ROWS])
def test_one_damaged_copy_of_the_stores_own_rows_is_no_loss(store_path: Path, key: bytes) -> None:
    filled(store_path)
    LmdbDisk(store_path).change(Table.META, key, flip_last_bit)
    with opened(store_path) as store:
        assert store.boot_epoch == 2
        assert len(store.live()) == 3


def test_without_a_readable_boot_row_the_boot_epoch_still_grows(store_path: Path) -> None:
    for _ in range(5):
        with opened(store_path, profile="process") as store:
            before = store.boot_epoch
    for key in BOOT_ROWS:
        LmdbDisk(store_path).change(Table.META, key, flip_last_bit)
    with opened(store_path) as store:
        assert store.boot_epoch > before


def test_flipped_bits_anywhere_give_exact_bytes_or_a_typed_error_and_never_the_death_of_the_process(
    store_path: Path,
) -> None:
    filled(store_path, state_bytes=900)
    data = data_of(store_path)
    expected = {seq: b"%d" % seq * 900 for seq in (1, 2)}
    choose = random.Random(20)

    def survive() -> None:
        for _ in range(40):
            damaged = bytearray(data)
            damaged[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
            (store_path / "data.mdb").write_bytes(damaged)
            store = LmdbStore(store_path, profile="process")
            try:
                store.open()
            except (StoreCorrupt, StoreTooNew):
                continue
            for n in range(3):
                try:
                    loaded = store.load_snapshot(f"r{n}")
                    assert loaded is not None
                    assert loaded.snapshot.state == expected[loaded.snapshot.seq]
                    assert (loaded.snapshot.seq == 2) or loaded.fell_back
                    assert store.load(f"r{n}") is not None
                except RecordCorrupt:
                    continue
            store.close()

    in_fork(survive)


# --------------------------------------------------------------------------------------------- creation, folders, modes


def test_a_new_store_is_private_to_its_user(store_path: Path) -> None:
    old = os.umask(0)
    try:
        filled(store_path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(store_path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in store_path.iterdir()} == {0o600}


def test_a_creation_that_was_killed_leaves_nothing_in_the_way(store_path: Path) -> None:
    half = store_path / f"{store_files.NEW_PREFIX}4711"
    half.mkdir(parents=True)
    (half / "data.mdb").write_bytes(b"\0" * 4096)
    with opened(store_path) as store:
        assert store.boot_epoch == 1
    assert not half.exists()


def test_a_store_can_be_made_in_an_empty_folder_that_is_there(store_path: Path) -> None:
    store_path.mkdir()
    with opened(store_path) as store:
        assert store.scan() == []


def test_the_name_of_every_folder_that_a_new_store_needs_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    sync_folder = store_files.sync_folder
    monkeypatch.setattr(store_files, "sync_folder", lambda folder: (flushed.append(folder), sync_folder(folder)))
    (tmp_path / "left by a killed creation").mkdir()
    folder = tmp_path / "left by a killed creation" / "made" / "with" / "runs.store"
    with opened(folder):
        pass
    assert {place.parent for place in [folder, *folder.parents] if place.is_relative_to(tmp_path)} <= set(flushed)
    flushed.clear()
    with opened(folder):
        assert folder.parent not in flushed


def test_a_file_in_the_folders_place_is_unavailable(store_path: Path) -> None:
    store_path.write_text("not a folder")
    with pytest.raises(StoreUnavailable, match=r"runs\.store"):
        LmdbStore(store_path).open()
    assert store_path.read_text() == "not a folder"


@linux_only
def test_a_file_system_that_cannot_be_written_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        LmdbStore("/proc/executus.store").open()


@pytest.mark.parametrize("what", ["folder", "data.mdb", "owner.lock"])
def test_a_store_of_another_user_is_unavailable_and_left_untouched(what: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        filled(folder)
        (folder if what == "folder" else folder / what).chmod(0o555)
        before = data_of(folder)

        def open_as_other_user() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)
            with pytest.raises(StoreUnavailable, match=r"[Pp]ermission"):
                LmdbStore(folder).open()

        in_fork(open_as_other_user)
        assert data_of(folder) == before


def test_a_folder_that_is_removed_is_noticed_and_nothing_else_is_written(store_path: Path) -> None:
    with opened(store_path) as store:
        token = begin(store)
        shutil.rmtree(store_path)
        with pytest.raises(StoreUnavailable, match="removed or replaced"):
            store.commit([save(token, 1)])
        store.close()
        assert not store_path.exists()
        store.open()
        assert store.scan() == []


def test_a_folder_that_is_replaced_is_noticed_and_the_replacement_is_not_written(store_path: Path) -> None:
    with opened(store_path) as store:
        token = begin(store)
        store_path.rename(store_path.with_name("moved"))
        filled(store_path)
        before = data_of(store_path)
        with pytest.raises(StoreUnavailable, match="removed or replaced"):
            store.commit([save(token, 1)])
        assert data_of(store_path) == before


def test_saving_comes_back_with_the_folder(store_path: Path) -> None:
    away = store_path.with_name("away")
    with opened(store_path) as store:
        token = begin(store)
        store_path.rename(away)
        with pytest.raises(StoreUnavailable):
            store.commit([save(token, 1)])
        away.rename(store_path)
        assert commit_one(store, save(token, 1)) is None


def test_a_removed_lock_mdb_is_made_anew_before_the_next_commit(store_path: Path) -> None:
    with opened(store_path) as store:
        token = begin(store)
        (store_path / "lock.mdb").unlink()
        assert commit_one(store, save(token, 1)) is None
        assert (store_path / "lock.mdb").exists()
        loaded = store.load_snapshot("r")
    assert loaded is not None
    assert loaded.snapshot.seq == 1


def test_network_file_systems_are_told_by_their_device_number() -> None:
    mounts = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "40 22 0:53 / /mnt/share rw,relatime - nfs4 server:/share rw\n"
        "41 22 0:54 / /mnt/a\\040b rw,relatime shared:9 master:2 - fuse.sshfs me@there rw\n"
    )
    assert store_files.file_system_of(os.makedev(254, 0), mounts) == "ext4"
    assert store_files.file_system_of(os.makedev(0, 53), mounts) == "nfs4"
    assert store_files.file_system_of(os.makedev(0, 54), mounts) == "fuse.sshfs"
    assert store_files.file_system_of(os.makedev(0, 99), mounts) == ""


# ---------------------------------------------------------------------------------------------------- no room, bad disks


def fill_up(store: LmdbStore) -> tuple[list[Token], StoreFull]:
    """Start runs until the store refuses one."""
    tokens: list[Token] = []
    while True:
        token = Token(f"r{len(tokens)}", 1, store.boot_epoch * EPOCHS_PER_BOOT)
        try:
            store.commit([started(token.run_id, token.epoch, input=bytes(100_000)), save(token, 1, bytes(20_000))])
        except StoreFull as full:
            return tokens, full
        tokens.append(token)


def test_near_full_new_runs_are_refused_while_the_live_ones_go_on_saving(store_path: Path) -> None:
    with opened(store_path, profile="process", map_size_bytes=4 * SMALL_MAP_BYTES) as store:
        tokens, full = fill_up(store)
        assert full.map_size_bytes == 4 * SMALL_MAP_BYTES
        assert "new runs are refused" in str(full)
        assert store.info().used_ratio > 0.85
        for seq in range(2, 6):
            assert store.commit([save(token, seq, bytes(2_000)) for token in tokens]) == [ACCEPTED] * len(tokens)
        ended = tokens[:10]
        for token in ended:
            assert commit_one(store, settled(token), deleted(token)) is None
        assert commit_one(store, started("new", 1 << 40)) is None


def test_a_full_map_is_an_error_and_what_was_there_stays_and_saving_comes_back(store_path: Path) -> None:
    with opened(store_path, profile="process", map_size_bytes=SMALL_MAP_BYTES) as store:
        token = begin(store)
        commit_one(store, save(token, 1))
        for _ in range(3):
            with pytest.raises(StoreFull) as full:
                store.commit([save(token, 2, bytes(SMALL_MAP_BYTES))])
            assert full.value.map_size_bytes == SMALL_MAP_BYTES
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot == snapshot(token, 1)
        assert commit_one(store, save(token, 2)) is None
    with opened(store_path) as store:
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.seq == 2


def test_a_failed_commit_leaves_the_fences_as_the_disk_has_them(store_path: Path) -> None:
    with opened(store_path, profile="process", map_size_bytes=SMALL_MAP_BYTES) as store:
        token, other = begin(store), begin(store, "other")
        commit_one(store, save(token, 5))
        with pytest.raises(StoreFull):
            store.commit([settled(token), save(other, 9, bytes(SMALL_MAP_BYTES))])
        verdicts = store.commit([save(token, 4), save(token, 6), save(other, 1)])
        assert [why(verdict) for verdict in verdicts] == ["stale", None, None]


def test_a_limit_on_file_size_is_a_full_store_and_saving_comes_back(store_path: Path) -> None:
    def meet_the_limit() -> None:
        with opened(store_path) as store:
            token = begin(store)
            commit_one(store, save(token, 1))
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
            for _ in range(3):
                with pytest.raises(StoreFull):
                    store.commit([save(token, 2, bytes(1_000_000))])
            loaded = store.load_snapshot("r")
            assert loaded is not None
            assert loaded.snapshot.seq == 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert commit_one(store, save(token, 2, bytes(1_000_000))) is None

    in_fork(meet_the_limit)


def test_where_address_space_is_short_the_map_is_halved_until_it_fits(store_path: Path) -> None:
    def open_in_little_space() -> None:
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + 2 * 1024**3,) * 2)
        with opened(store_path) as store:
            assert 16 * 1024**2 <= store.info().map_size_bytes <= 2 * 1024**3
            token = begin(store)
            assert commit_one(store, save(token, 1)) is None

    in_fork(open_in_little_space)


@linux_only
def test_a_disk_that_fills_up_is_a_full_store_and_saving_comes_back(store_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from executus.stores import LmdbStore, StoreFull
from tests.stores.making import begin, commit_one, save
folder = Path(sys.argv[1])
store = LmdbStore(folder / "s")
store.open()
token = begin(store)
commit_one(store, save(token, 1))
room = folder / "filler"
room.write_bytes(bytes(3_000_000))
for _ in range(3):
    try:
        store.commit([save(token, 2, bytes(2_000_000))])
    except StoreFull as full:
        assert full.path
    else:
        raise SystemExit("the disk was not full")
assert store.load_snapshot("r").snapshot.seq == 1
room.unlink()
assert commit_one(store, save(token, 2, bytes(1_000_000))) is None
store.close()
store.open()
assert store.load_snapshot("r").snapshot.seq == 2
store.close()
"""
    store_path.mkdir()
    script = store_path.with_name("program.py")
    script.write_text(program)
    shell = 'mount -t tmpfs -o size=4m none "$1" || exit 77; exec "$2" -P "$3" "$1"'
    command = ["unshare", "-m", "sh", "-c", shell, "sh", str(store_path), sys.executable, str(script)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("may not mount a file system here")
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def descriptor_replaced(store_path: Path, by: str, flags: int, *, of_meta: bool) -> Iterator[None]:
    """LMDB writes pages by one descriptor and the meta page by another, opened O_DSYNC: let one of them lead elsewhere."""
    wanted = str(store_path / "data.mdb")
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            if str(entry.readlink()) != wanted:
                continue
        except FileNotFoundError:
            continue
        info = Path(f"/proc/self/fdinfo/{entry.name}").read_text()
        if bool(int(info.split("flags:")[1].split()[0], 8) & os.O_DSYNC) == of_meta:
            descriptor = int(entry.name)
            break
    else:
        pytest.skip("this LMDB writes by other descriptors")
    kept, other = os.dup(descriptor), os.open(by, flags)
    os.dup2(other, descriptor, inheritable=False)
    os.close(other)
    try:
        yield
    finally:
        os.dup2(kept, descriptor, inheritable=False)
        os.close(kept)


BAD_DISKS = [
    pytest.param("/dev/full", os.O_RDWR, StoreFull, id="ENOSPC"),
    pytest.param("/dev/null", os.O_RDONLY, StoreUnavailable, id="EBADF"),
]


@linux_only
@pytest.mark.parametrize(("device", "flags", "error"), BAD_DISKS)
def test_a_disk_that_refuses_pages_fails_the_commit_and_saving_comes_back(
    store_path: Path, device: str, flags: int, error: type[StoreError]
) -> None:
    with opened(store_path) as store:
        token = begin(store)
        commit_one(store, save(token, 1))
        with descriptor_replaced(store_path, device, flags, of_meta=False):
            for _ in range(3):
                with pytest.raises(error):
                    store.commit([save(token, 2)])
        assert commit_one(store, save(token, 2)) is None
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot == snapshot(token, 2)


@linux_only
@pytest.mark.parametrize(("device", "flags", "error"), BAD_DISKS)
def test_a_disk_that_refuses_the_meta_page_makes_lmdb_panic_and_the_store_opens_it_anew_at_once(
    store_path: Path, device: str, flags: int, error: type[StoreError]
) -> None:
    def meet_the_panic() -> None:
        with opened(store_path) as store:
            token = begin(store)
            commit_one(store, save(token, 1))
            replaced = descriptor_replaced(store_path, device, flags, of_meta=True)
            replaced.__enter__()  # Not undone: the descriptor goes with the environment.
            with pytest.raises(error):
                store.commit([save(token, 2)])
            loaded = store.load_snapshot("r")
            assert loaded is not None
            assert loaded.snapshot == snapshot(token, 1)
            assert store.commit([save(token, 2)]) == [ACCEPTED]
            loaded = store.load_snapshot("r")
            assert loaded is not None
            assert loaded.snapshot == snapshot(token, 2)

    in_fork(meet_the_panic)


def test_an_empty_commit_does_not_touch_the_disk(store_path: Path) -> None:
    with opened(store_path) as store:
        before = store_files.data_file(store_path)
        assert store.commit([]) == []
        assert store_files.data_file(store_path) == before


def test_a_commit_of_refusals_does_not_touch_the_disk(store_path: Path) -> None:
    with opened(store_path) as store:
        token = begin(store)
        commit_one(store, save(token, 5))
        before = store_files.data_file(store_path)
        assert why(store.commit([save(token, 4)])[0]) == "stale"
        assert store_files.data_file(store_path) == before


@pytest.mark.parametrize("profile", ["power", "power-1", "process"])
def test_every_profile_keeps_what_was_committed_over_a_close(store_path: Path, profile: str) -> None:
    with opened(store_path, profile=profile) as store:
        token = begin(store)
        commit_one(store, save(token, 1))
    with opened(store_path, profile=profile) as store:
        assert store.load_snapshot("r") is not None


def test_the_other_engine_as_default_changes_nothing(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMDB_DEFAULT_LIB_VERSION", "1")
    filled(store_path)
    with opened(store_path) as store:
        assert len(store.live()) == 3
