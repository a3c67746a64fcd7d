"""The smaller part of `corruption`, and that it would see what it looks for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from executus.stores import LmdbStore, RecordCorrupt, StoreCorrupt
from executus.stores.rows import Table, snapshot_key
from tests.beside import Ended
from tests.harness.corruption import PAGE, Examination
from tests.harness.reports import program, reported
from tests.harness.shelf import Shelf
from tests.scenarios.harness import rows_of
from tests.stores.making import commit_one, started


@program("corruption", 1000, seeds=(1, 2))
def test_a_thousand_damaged_files_give_exact_bytes_or_a_typed_error_and_a_generation_before_where_there_is_one(
    ended: list[Ended],
) -> None:
    report = reported(ended)
    assert report.failures == ()
    assert report.figures["generations that fell back to the one before"] == 100
    assert int(report.figures["runs exact"]) > 5000


def test_a_state_that_comes_back_changed_is_seen(store_path: Path) -> None:
    shelf = Shelf(store_path, 1)
    newest = shelf.snapshots["run-003"]
    newest[max(newest)] = newest[min(newest)]
    shelf.claims["run-999"] = shelf.claims["run-001"]
    shelf.snapshots["run-999"] = {1: newest[1]}
    _, wrong = Examination(shelf, stale=False).made()
    assert any("run-003: wrong bytes" in complaint for complaint in wrong)
    assert any("run-999 has vanished" in complaint for complaint in wrong)


@pytest.mark.parametrize("page", [0, 1])
def test_a_flipped_bit_in_the_number_of_a_commit_does_not_pass_the_commit_before_for_the_last_one(
    store_path: Path, page: int
) -> None:
    shelf = Shelf(store_path, 1)
    for bit in random.Random(page).sample(range(64), 8):
        data = bytearray(shelf.data)
        data[page * PAGE + 144 + bit // 8] ^= 1 << bit % 8
        shelf.put(bytes(data), silently=True)
        with pytest.raises(StoreCorrupt, match="never stand together"):
            LmdbStore(store_path).open()


def _renamed(store: Path, table: Table, key: bytes) -> None:
    """The row stays, and one bit of its key is another: to LMDB it is somebody else's."""
    with rows_of(store, table) as (txn, database):
        value = txn.pop(key, db=database)
        txn.put(key[:-1] + bytes([key[-1] ^ 0x40]), value, db=database)


def test_a_claim_hidden_by_a_flipped_key_is_a_damaged_run_and_no_free_id(store_path: Path) -> None:
    Shelf(store_path, 1)
    _renamed(store_path, Table.CLAIMS, b"run-000")
    store = LmdbStore(store_path, profile="process")
    store.open()
    try:
        with pytest.raises(RecordCorrupt, match="its claim is not there"):
            store.load("run-000")
        with pytest.raises(RecordCorrupt, match="its claim is not there"):
            store.load_snapshot("run-000")
        assert "run-000" in store.damaged()
        assert commit_one(store, started("run-000", 1 << 40)) == "exists"
    finally:
        store.close()


def test_a_generation_hidden_by_a_flipped_key_is_told_of(store_path: Path) -> None:
    shelf = Shelf(store_path, 1)
    _renamed(store_path, Table.SNAPSHOTS, snapshot_key(b"run-000", 0))
    store = LmdbStore(store_path, profile="process")
    store.open()
    try:
        loaded = store.load_snapshot("run-000")
        assert loaded is not None
        assert loaded.snapshot in shelf.snapshots["run-000"].values()
        assert loaded.fell_back is not None
    finally:
        store.close()


def test_keys_out_of_order_are_damage_and_no_endless_scan(store_path: Path) -> None:
    shelf = Shelf(store_path, 1)
    shelf.put(shelf.data.replace(b"run-039EXCT", b"run-001EXCT"), silently=True)
    store = LmdbStore(store_path, profile="process")
    store.open()
    try:
        with pytest.raises(StoreCorrupt, match="follows"):
            store.scan()
    finally:
        store.close()


def test_a_live_row_hidden_by_a_flipped_key_loses_no_run(store_path: Path) -> None:
    shelf = Shelf(store_path, 1)
    _renamed(store_path, Table.LIVE, b"run-000")
    store = LmdbStore(store_path, profile="process")
    store.open()
    try:
        assert shelf.claims["run-000"] in store.live()
    finally:
        store.close()
