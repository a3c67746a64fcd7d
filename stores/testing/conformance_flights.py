"""What every CheckpointStore must do about flight records, by the sentences of `operations.py` and `protocol.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from executus.stores import (
    MAX_FLIGHT_BYTES,
    CheckpointStore,
    Claim,
    Operation,
    RecordCorrupt,
    RecordTooLarge,
    Refusal,
    RunStatus,
    SetAside,
    Token,
)
from executus.stores.rows import Table
from executus.stores.testing.conformance import Conformance
from executus.stores.testing.disk import Disk, damage, rebooted
from executus.stores.testing.making import (
    append,
    begin,
    claim,
    commit_one,
    deleted,
    reborn,
    reclaimed,
    save,
    settled,
    started,
)

Carrier = Callable[[Token, bytes | None], Operation]


def as_claim(token: Token, flight: bytes | None) -> Operation:
    return reclaimed(token, token.epoch + 1, flight=flight)


def as_tombstone(token: Token, flight: bytes | None) -> Operation:
    ending = claim(token.run_id, token.epoch + 1, token.incarnation, status=RunStatus.KILLED)
    return Claim(claim=ending, expected=token, flight=flight)


def as_result(token: Token, flight: bytes | None) -> Operation:
    return settled(token, flight=flight)


def as_failure(token: Token, flight: bytes | None) -> Operation:
    return settled(token, RunStatus.FAILED, flight=flight)


def as_suspension(token: Token, flight: bytes | None) -> Operation:
    return settled(token, RunStatus.SUSPENDED, flight=flight)


def as_set_aside(token: Token, flight: bytes | None) -> Operation:
    return SetAside(expected=token, status=RunStatus.QUARANTINED, reason="unreadable", flight=flight)


CARRIERS: list[Carrier] = [as_claim, as_tombstone, as_result, as_failure, as_suspension, as_set_aside]


class Flights(Conformance):
    def test_a_run_has_none_until_one_comes(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 1))
        assert store.load_flight("r") is None
        assert store.load_flight("another") is None

    @pytest.mark.parametrize("carrier", CARRIERS)
    def test_each_operation_that_carries_one_keeps_it(self, store: CheckpointStore, carrier: Carrier) -> None:
        token = begin(store)
        assert commit_one(store, carrier(token, b"flown")) is None
        assert store.load_flight("r") == b"flown"

    @pytest.mark.parametrize("carrier", CARRIERS)
    def test_one_takes_the_place_of_that_before(self, store: CheckpointStore, carrier: Carrier) -> None:
        token = begin(store)
        newer = Token("r", 1, token.epoch + 1)
        assert commit_one(store, reclaimed(token, newer.epoch, flight=b"first")) is None
        assert commit_one(store, carrier(newer, b"second")) is None
        assert store.load_flight("r") == b"second"

    @pytest.mark.parametrize("carrier", CARRIERS)
    def test_without_one_that_before_stays(self, store: CheckpointStore, carrier: Carrier) -> None:
        token = begin(store)
        newer = Token("r", 1, token.epoch + 1)
        assert commit_one(store, reclaimed(token, newer.epoch, flight=b"first")) is None
        assert commit_one(store, save(newer, 1), append(newer, "m"), carrier(newer, None)) is None
        assert store.load_flight("r") == b"first"

    @pytest.mark.parametrize("carrier", CARRIERS)
    def test_a_refused_operation_leaves_that_which_is_there(self, store: CheckpointStore, carrier: Carrier) -> None:
        token = begin(store)
        newer = Token("r", 1, token.epoch + 9)
        assert commit_one(store, reclaimed(token, newer.epoch, flight=b"first")) is None
        assert commit_one(store, carrier(token, b"of an execution before")) is Refusal.FENCED
        assert store.load_flight("r") == b"first"

    def test_one_of_the_first_claim_is_kept(self, store: CheckpointStore) -> None:
        first = started()
        assert commit_one(store, Claim(claim=first.claim, expected=None, record=first.record, flight=b"begun")) is None
        assert store.load_flight("r") == b"begun"

    def test_a_new_life_begins_without_the_one_of_the_life_before(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, settled(token, flight=b"old"), reborn(token, token.epoch + 1)) is None
        assert store.load_flight("r") is None

    def test_a_deletion_takes_it_along(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, settled(token, flight=b"x"), deleted(token)) is None
        assert store.load_flight("r") is None
        store.close()
        assert disk.keys(Table.FLIGHTS) == []

    def test_it_outlives_the_process(self, disk: Disk, store: CheckpointStore) -> None:
        commit_one(store, settled(begin(store), flight=b"x"))
        store = rebooted(disk, store)
        assert store.load_flight("r") == b"x"
        store.close()

    @pytest.mark.parametrize("carrier", CARRIERS)
    def test_one_over_its_cap_is_refused_and_nothing_is_written(self, store: CheckpointStore, carrier: Carrier) -> None:
        token = begin(store)
        with pytest.raises(RecordTooLarge) as refused:
            store.commit([save(token, 1), carrier(token, bytes(MAX_FLIGHT_BYTES + 1))])
        assert (refused.value.run_id, refused.value.what) == ("r", "flight")
        assert (refused.value.size_bytes, refused.value.cap_bytes) == (MAX_FLIGHT_BYTES + 1, MAX_FLIGHT_BYTES)
        assert (store.load_flight("r"), store.load_snapshot("r")) == (None, None)
        assert commit_one(store, carrier(token, bytes(MAX_FLIGHT_BYTES))) is None
        assert store.load_flight("r") == bytes(MAX_FLIGHT_BYTES)

    def test_what_is_no_bytes_is_refused(self, store: CheckpointStore) -> None:
        token = begin(store)
        text: Any = "text"
        with pytest.raises(TypeError, match="flight"):
            store.commit([settled(token, flight=text)])
        assert [stored.claim.status for stored in store.scan()] == [RunStatus.RUNNING]

    def test_a_damaged_one_is_an_error_and_in_nobodys_way(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        newer, newest = Token("r", 1, token.epoch + 1), Token("r", 1, token.epoch + 2)
        commit_one(store, save(token, 1), reclaimed(token, newer.epoch, flight=b"x"))
        store = rebooted(disk, store, lambda: damage(disk, Table.FLIGHTS, "r"))
        with pytest.raises(RecordCorrupt) as damaged:
            store.load_flight("r")
        assert (damaged.value.run_id, damaged.value.what) == ("r", "flight")
        assert store.load("r") is not None
        assert store.load_snapshot("r") is not None
        assert commit_one(store, save(newer, 2), reclaimed(newer, newest.epoch)) is None
        assert commit_one(store, settled(newest, flight=b"y")) is None
        assert store.load_flight("r") == b"y"
        store.close()

    def test_one_that_was_moved_to_another_run_is_damaged(self, disk: Disk, store: CheckpointStore) -> None:
        token, other = begin(store), begin(store, "other")
        commit_one(store, settled(token, flight=b"r"), settled(other, flight=b"other"))
        taken: list[bytes] = []

        def take(data: bytes) -> bytes:
            taken.append(data)
            return data

        def swap() -> None:
            disk.change(Table.FLIGHTS, b"other", take)
            disk.change(Table.FLIGHTS, b"r", lambda _: taken[0])

        store = rebooted(disk, store, swap)
        with pytest.raises(RecordCorrupt):
            store.load_flight("r")
        store.close()
