"""What every CheckpointStore must do with the chunks of journals: a part of the conformance kit, see there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from executus.stores import (
    EPOCHS_PER_BOOT,
    MAX_RECORD_BYTES,
    Base,
    CheckpointStore,
    Chunk,
    Piece,
    RecordCorrupt,
    RecordTooLarge,
    Refusal,
    RunStatus,
    Save,
    Token,
)
from executus.stores.rows import Table, chunk_key, run_key
from executus.stores.testing.conformance import Conformance
from executus.stores.testing.disk import Disk, damage, flip_last_bit, rebooted, removed
from executus.stores.testing.making import (
    begin,
    commit_one,
    deleted,
    reborn,
    reclaimed,
    save,
    set_aside,
    settled,
    snapshot,
    started,
    why,
)

OLD, NEW = Base(7, 1), Base(7, 2)


def chunk(position: int, count: int = 1, base: Base = OLD, **facts: Any) -> Chunk:
    values: dict[str, Any] = {"base": base, "position": position, "count": count, "items": b"items %d" % position}
    return Chunk(**values | facts)


def upto(end: int, base: Base = OLD) -> dict[str, Any]:
    """A snapshot of one journal of that length in one piece."""
    return {"layouts": ((Piece(base, 0, end),),)}


def saving(token: Token, seq: int, end: int, chunks: Iterable[Chunk], base: Base = OLD) -> Save:
    return Save(snapshot=snapshot(token, seq, **upto(end, base)), chunks=tuple(chunks))


def change(disk: Disk, position: int, how: Callable[[bytes], bytes | None], base: Base = OLD) -> None:
    disk.change(Table.JOURNALS, chunk_key(run_key("r"), base, position), how)


def rows(disk: Disk, store: CheckpointStore) -> list[bytes]:
    """The keys of all chunks, without the run's. Closes the store and opens it again."""
    store.close()
    keys = [key.partition(b"\0")[2] for key in disk.keys(Table.JOURNALS)]
    store.open()
    return keys


def key_of(position: int, base: Base = OLD) -> bytes:
    return chunk_key(b"", base, position)[1:]


class Journals(Conformance):
    def test_chunks_come_back_with_the_snapshot_that_needs_them(self, store: CheckpointStore) -> None:
        token = begin(store)
        other = Base(9, 1)
        layouts = ((Piece(OLD, 0, 3), Piece(NEW, 3, 4)), (), (Piece(other, 0, 1),))
        chunks = (chunk(0, 2), chunk(2, 5), chunk(3, base=NEW), chunk(0, base=other))
        given = snapshot(token, 1, layouts=layouts)
        assert commit_one(store, Save(snapshot=given, chunks=chunks)) is None
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert (loaded.snapshot, loaded.fell_back) == (given, None)
        assert loaded.chunks == (chunks[:3], (), chunks[3:])

    def test_a_snapshot_without_journals_has_no_chunks(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 1))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert (loaded.snapshot.journals, loaded.chunks) == ((), ())

    def test_only_what_is_new_is_handed_in_and_chunks_stay_over_a_reboot(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        token = begin(store)
        for seq in range(1, 6):
            assert commit_one(store, saving(token, seq, seq, [chunk(seq - 1)])) is None
        store = rebooted(disk, store)
        newer = token._replace(epoch=store.boot_epoch * EPOCHS_PER_BOOT)
        commit_one(store, reclaimed(token, newer.epoch), saving(newer, 6, 6, [chunk(5)]))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.chunks == (tuple(chunk(n) for n in range(6)),)
        store.close()

    def test_an_older_generation_reads_the_chunks_up_to_its_own_length(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        token = begin(store)
        commit_one(store, saving(token, 1, 2, [chunk(0, 2)]), saving(token, 2, 3, [chunk(2)]))
        store = rebooted(disk, store, lambda: damage(disk, Table.SNAPSHOTS, "r", slot=1))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert (loaded.snapshot.seq, loaded.chunks) == (1, ((chunk(0, 2),),))
        store.close()

    def test_a_chunk_takes_the_place_of_those_that_it_replaces(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        for seq in range(1, 5):
            commit_one(store, saving(token, seq, seq, [chunk(seq - 1)]))
        commit_one(store, saving(token, 5, 5, [chunk(0, 5, replaces=(1, 2, 3))]))
        assert rows(disk, store) == [key_of(0)]
        store = rebooted(disk, store, lambda: damage(disk, Table.SNAPSHOTS, "r", slot=0))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert (loaded.snapshot.seq, loaded.chunks) == (4, ((chunk(0, 5),),))
        store.close()

    def test_a_refused_save_writes_no_chunk(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, saving(token, 5, 1, [chunk(0)]))
        zombie = token._replace(epoch=token.epoch - 1)
        refused = [saving(zombie, 9, 2, [chunk(1)]), saving(token, 4, 2, [chunk(1)])]
        assert [why(verdict) for verdict in store.commit(refused)] == [Refusal.FENCED, Refusal.STALE]
        assert rows(disk, store) == [key_of(0)]

    def test_the_very_same_save_writes_no_chunk_again(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, saving(token, 5, 1, [chunk(0)]))
        assert commit_one(store, saving(token, 5, 1, [chunk(0, items=b"other")])) is None
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.chunks == ((chunk(0),),)

    def test_a_base_stays_until_no_generation_needs_it(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, saving(token, 1, 2, [chunk(0), chunk(1)]))
        commit_one(store, saving(token, 2, 1, [chunk(0, base=NEW)], NEW))
        assert rows(disk, store) == [key_of(0), key_of(1), key_of(0, NEW)]
        commit_one(store, saving(token, 3, 1, [], NEW))
        assert rows(disk, store) == [key_of(0, NEW)]
        commit_one(store, save(token, 4), save(token, 5))
        assert rows(disk, store) == []

    def test_chunks_of_a_generation_that_cannot_be_read_go_when_another_takes_its_place(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        token = begin(store)
        commit_one(store, saving(token, 1, 1, [chunk(0)]), saving(token, 2, 1, [chunk(0, base=NEW)], NEW))
        store = rebooted(disk, store, lambda: damage(disk, Table.SNAPSHOTS, "r", slot=1))
        newer = token._replace(epoch=store.boot_epoch * EPOCHS_PER_BOOT)
        commit_one(store, reclaimed(token, newer.epoch), saving(newer, 2, 2, [chunk(1)]))
        assert rows(disk, store) == [key_of(0), key_of(1)]
        store.close()

    def test_an_ending_writes_the_chunks_of_its_snapshot(self, store: CheckpointStore) -> None:
        token = begin(store)
        ending = settled(token, RunStatus.SUSPENDED, snapshot=snapshot(token, 4, **upto(1)), chunks=(chunk(0),))
        assert commit_one(store, ending) is None
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert (loaded.snapshot.seq, loaded.chunks) == (4, ((chunk(0),),))

    def test_an_ending_whose_snapshot_is_not_newer_leaves_its_chunks_out(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        token = begin(store)
        commit_one(store, saving(token, 5, 1, [chunk(0)]))
        ending = settled(token, RunStatus.FAILED, snapshot=snapshot(token, 4, **upto(2)), chunks=(chunk(1),))
        assert commit_one(store, ending) is None
        assert rows(disk, store) == [key_of(0)]

    @pytest.mark.parametrize("status", sorted(set(RunStatus) - {RunStatus.RUNNING, RunStatus.COMPLETED}))
    def test_every_ending_but_completing_keeps_them(self, store: CheckpointStore, status: RunStatus) -> None:
        token = begin(store)
        commit_one(store, saving(token, 1, 1, [chunk(0)]), settled(token, status))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.chunks == ((chunk(0),),)

    @pytest.mark.parametrize("after", ["at once", "a reboot"])
    def test_completing_deleting_dropping_and_a_new_life_drop_them_all_and_those_of_no_other_run(
        self, disk: Disk, store: CheckpointStore, after: str
    ) -> None:
        tokens = {run_id: begin(store, run_id) for run_id in ("r", "ra", "rb", "rc", "rd")}
        for token in tokens.values():
            commit_one(store, saving(token, 1, 2, [chunk(0), chunk(1)]), saving(token, 2, 1, [chunk(0, base=NEW)], NEW))
        if after == "a reboot":
            store = rebooted(disk, store)
        commit_one(store, settled(tokens["ra"]))
        commit_one(store, settled(tokens["rb"], RunStatus.FAILED), deleted(tokens["rb"]))
        commit_one(store, reclaimed(tokens["rc"], 1 << 40, drop_snapshots=True))
        commit_one(store, settled(tokens["rd"], RunStatus.FAILED), reborn(tokens["rd"], 1 << 40))
        assert rows(disk, store) == [key_of(0), key_of(1), key_of(0, NEW)]
        assert store.load_snapshot("r") is not None
        store.close()

    def test_a_deleted_id_has_none_of_them_within_the_same_commit(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, saving(token, 1, 2, [chunk(0), chunk(1)]), settled(token, RunStatus.FAILED))
        again = Token("r", 2, token.epoch + 1)
        verdicts = store.commit([deleted(token), started("r", again.epoch, 2), saving(again, 1, 1, [chunk(0)])])
        assert [why(verdict) for verdict in verdicts] == [None] * 3
        assert rows(disk, store) == [key_of(0)]

    def test_setting_aside_keeps_them(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, saving(token, 1, 1, [chunk(0)]), set_aside(token))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.chunks == ((chunk(0),),)

    @pytest.mark.parametrize("how", [flip_last_bit, removed], ids=["damaged", "missing"])
    def test_a_generation_without_one_of_its_items_falls_back_and_says_so(
        self, disk: Disk, store: CheckpointStore, how: Callable[[bytes], bytes | None]
    ) -> None:
        token = begin(store)
        commit_one(store, saving(token, 1, 1, [chunk(0)]), saving(token, 2, 3, [chunk(1), chunk(2)]))
        store = rebooted(disk, store, lambda: change(disk, 1, how))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert (loaded.snapshot.seq, loaded.chunks) == (1, ((chunk(0),),))
        assert loaded.fell_back is not None
        assert "lacks items" in loaded.fell_back
        store.close()

    def test_a_chunk_in_the_place_of_another_is_damage(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, saving(token, 1, 1, [chunk(0)]), saving(token, 2, 3, [chunk(1), chunk(2)]))
        kept: list[bytes] = []

        def keep(data: bytes) -> bytes:
            kept.append(data)
            return data

        def swap() -> None:
            change(disk, 2, keep)
            change(disk, 1, lambda _: kept[0])

        store = rebooted(disk, store, swap)
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.seq == 1
        store.close()

    def test_generations_that_both_lack_items_are_an_error_and_no_loss_of_bytes(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        token = begin(store)
        commit_one(store, saving(token, 1, 1, [chunk(0)]), saving(token, 2, 2, [chunk(1)]))
        store = rebooted(disk, store, lambda: change(disk, 0, flip_last_bit))
        with pytest.raises(RecordCorrupt) as damaged:
            store.load_snapshot("r")
        assert (damaged.value.run_id, damaged.value.what) == ("r", "snapshot")
        assert rows(disk, store) == [key_of(0), key_of(1)]
        store.close()

    def test_a_damaged_chunk_that_no_generation_needs_is_no_loss(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, saving(token, 1, 1, [chunk(0), chunk(1)]), saving(token, 2, 1, []))
        store = rebooted(disk, store, lambda: change(disk, 1, flip_last_bit))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert (loaded.snapshot.seq, loaded.fell_back) == (2, None)
        store.close()

    def test_the_next_save_never_overwrites_the_only_generation_that_has_all_its_items(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        token = begin(store)
        commit_one(store, saving(token, 1, 1, [chunk(0)]), saving(token, 2, 2, [chunk(1)]))
        store = rebooted(disk, store, lambda: change(disk, 1, flip_last_bit))
        newer = token._replace(epoch=store.boot_epoch * EPOCHS_PER_BOOT)
        commit_one(store, reclaimed(token, newer.epoch))
        # Newer than the newest readable generation is new, whatever the damaged one held.
        assert commit_one(store, saving(newer, 2, 1, [chunk(0, base=NEW)], NEW)) is None
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert (loaded.snapshot.seq, loaded.snapshot.epoch, loaded.fell_back) == (2, newer.epoch, None)
        store = rebooted(disk, store, lambda: change(disk, 0, flip_last_bit, NEW))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert (loaded.snapshot.seq, loaded.chunks) == (1, ((chunk(0),),))
        store.close()

    @pytest.mark.parametrize(
        ("bad", "error"),
        [
            (chunk(0, items=bytes(MAX_RECORD_BYTES)), RecordTooLarge),
            (chunk(0, items=None), TypeError),
            (chunk(0, base=Base(1 << 64, 1)), ValueError),
            (chunk(0, count=-1), ValueError),
        ],
        ids=["over the cap", "no bytes", "no epoch", "no count"],
    )
    def test_a_chunk_that_cannot_be_stored_is_refused_before_anything_is_written(
        self, disk: Disk, store: CheckpointStore, bad: Chunk, error: type[Exception]
    ) -> None:
        token = begin(store)
        with pytest.raises(error):
            store.commit([save(token, 1), saving(token, 2, 1, [bad])])
        assert store.load_snapshot("r") is None
        assert rows(disk, store) == []
        assert commit_one(store, save(token, 1)) is None
