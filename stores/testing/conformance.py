"""What every CheckpointStore must do: one test for each sentence of `protocol.py` and `operations.py`.

To hold a store of your own to it: inherit from the classes here in a test module, and give them a fixture `disk`
that yields a `Disk`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from executus.stores import (
    ACCEPTED,
    ENDED,
    ENDED_FOR_GOOD,
    EPOCHS_PER_BOOT,
    LIVE,
    MAX_LABELS,
    MAX_RECORD_BYTES,
    REMEMBERED_IDS,
    Accepted,
    CheckpointStore,
    Claim,
    EndedRun,
    InvalidRunId,
    Message,
    Operation,
    ParentLink,
    RecordCorrupt,
    RecordTooLarge,
    Refusal,
    Refused,
    RunStatus,
    Settle,
    StoreClosed,
    StoreForked,
    StoreInfo,
    StoreLocked,
    Token,
)
from executus.stores.rows import Table, message_id_key, message_key
from executus.stores.testing.disk import Disk, cut_short, damage, flip_last_bit, rebooted, removed
from executus.stores.testing.making import (
    append,
    begin,
    child_of,
    claim,
    commit_one,
    deleted,
    numbered,
    pending,
    reborn,
    reclaimed,
    record,
    save,
    set_aside,
    settled,
    snapshot,
    started,
    why,
)

READS: list[Callable[[CheckpointStore], object]] = [
    lambda store: store.boot_epoch,
    lambda store: store.commit([]),
    lambda store: store.commit([started()]),
    lambda store: store.load("r"),
    lambda store: store.load_snapshot("r"),
    lambda store: store.load_outcome("r"),
    lambda store: store.load_flight("r"),
    lambda store: store.live(),
    lambda store: store.damaged(),
    lambda store: store.scan(),
    lambda store: store.children("r"),
    lambda store: store.messages("r"),
    lambda store: store.ended(RunStatus.FAILED),
    lambda store: store.count_ended(),
    lambda store: store.due(by_wall=False),
    lambda store: store.parent_link("r"),
    lambda store: store.info(),
]


class Conformance:
    @pytest.fixture
    def store(self, disk: Disk) -> Iterator[CheckpointStore]:
        store = disk.store()
        store.open()
        yield store
        store.close()


class OpeningAndClosing(Conformance):
    def test_the_boot_epoch_is_greater_at_each_opening(self, disk: Disk, store: CheckpointStore) -> None:
        seen = [store.boot_epoch]
        for _ in range(3):
            store = rebooted(disk, store)
            seen.append(store.boot_epoch)
        assert seen == sorted(set(seen))
        store.close()

    def test_every_method_of_a_store_that_is_not_open_raises(self, disk: Disk) -> None:
        store = disk.store()
        for read in READS:
            with pytest.raises(StoreClosed):
                read(store)

    def test_every_method_of_a_closed_store_raises(self, store: CheckpointStore) -> None:
        store.close()
        for read in READS:
            with pytest.raises(StoreClosed):
                read(store)

    def test_close_is_idempotent(self, store: CheckpointStore) -> None:
        store.close()
        store.close()

    def test_an_open_store_cannot_be_opened_again(self, store: CheckpointStore) -> None:
        with pytest.raises(StoreLocked) as refused:
            store.open()
        assert refused.value.owner_pid == os.getpid()
        assert store.info() is not None

    def test_what_was_committed_stays_when_the_store_is_closed(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 1))
        before = (store.load("r"), store.load_snapshot("r"), store.live())
        store = rebooted(disk, store)
        assert (store.load("r"), store.load_snapshot("r"), store.live()) == before
        store.close()

    def test_a_store_can_be_closed_and_opened_on_another_thread(self, store: CheckpointStore) -> None:
        token = begin(store)

        def restart() -> None:
            store.close()
            store.open()
            assert commit_one(store, save(token, 1)) is None
            store.close()
            store.open()

        thread = threading.Thread(target=restart)
        thread.start()
        thread.join()
        assert store.load_snapshot("r") is not None

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_every_method_raises_in_a_forked_child(self, store: CheckpointStore) -> None:
        begin(store)
        calls: list[Callable[[CheckpointStore], object]] = [
            *READS,
            lambda store: store.open(),
            lambda store: store.close(),
        ]
        pid = os.fork()
        if pid == 0:
            refused = 0
            for call in calls:
                try:
                    call(store)
                except StoreForked:
                    refused += 1
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == len(calls)
        assert store.load("r") is not None


class Committing(Conformance):
    def test_a_verdict_comes_for_each_operation_in_order(self, store: CheckpointStore) -> None:
        token = Token("r", 1, 1)
        verdicts = store.commit([started(), save(token, 1), save(token, 0), settled(token), settled(Token("x", 1, 1))])
        assert [why(verdict) for verdict in verdicts] == [None, None, Refusal.STALE, None, Refusal.MISSING]

    def test_an_empty_commit_says_nothing(self, store: CheckpointStore) -> None:
        assert store.commit([]) == []

    def test_a_refused_operation_changes_nothing_and_hinders_no_other(self, store: CheckpointStore) -> None:
        token = begin(store)
        zombie = token._replace(epoch=token.epoch - 1)
        verdicts = store.commit([save(zombie, 9), settled(zombie), save(token, 1)])
        assert [why(verdict) for verdict in verdicts] == [Refusal.FENCED, Refusal.FENCED, None]
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot == snapshot(token, 1)

    def test_a_refusal_names_the_claim_in_the_way(self, store: CheckpointStore) -> None:
        token = begin(store)
        (verdict,) = store.commit([started(epoch=token.epoch + 1)])
        stored = store.load("r")
        assert stored is not None
        assert verdict == Refused(Refusal.EXISTS, stored.claim)

    def test_a_record_over_the_cap_is_refused_before_anything_is_written(self, store: CheckpointStore) -> None:
        token = begin(store)
        huge = save(token, 2, bytes(MAX_RECORD_BYTES))
        with pytest.raises(RecordTooLarge) as refused:
            store.commit([save(token, 1), huge])
        assert (refused.value.run_id, refused.value.what, refused.value.cap_bytes) == (
            "r",
            "snapshot",
            MAX_RECORD_BYTES,
        )
        assert refused.value.size_bytes > MAX_RECORD_BYTES
        assert store.load_snapshot("r") is None
        assert commit_one(store, save(token, 1)) is None

    @pytest.mark.parametrize("run_id", ["", "a\0b", "x" * 201, "e\u0301", "\ud800", "a\nb"])
    def test_an_id_that_did_not_pass_check_run_id_is_refused_before_anything_is_written(
        self, store: CheckpointStore, run_id: str
    ) -> None:
        with pytest.raises(InvalidRunId):
            store.commit([started("good"), started(run_id)])
        assert store.scan() == []
        with pytest.raises(InvalidRunId):
            store.load(run_id)

    def test_what_is_no_bytes_is_refused_before_anything_is_written(self, store: CheckpointStore) -> None:
        token = begin(store)
        bad: object = None
        with pytest.raises(TypeError, match="state"):
            store.commit([save(token, 1), save(token, 2, state=bad or 5)])  # type: ignore[arg-type]
        assert store.load_snapshot("r") is None

    def test_too_many_labels_are_refused_before_anything_is_written(self, store: CheckpointStore) -> None:
        with pytest.raises(ValueError, match="labels"):
            store.commit([started("a"), started("b", labels={str(n): "" for n in range(MAX_LABELS + 1)})])
        assert store.scan() == []


class Claiming(Conformance):
    def test_the_first_claim_keeps_claim_and_record(self, store: CheckpointStore) -> None:
        link = ParentLink("parent", 3, "key", "kill")
        op = started("r", 7, labels={"who": "me"}, parent=link, options=b"o", input=b"\0\xff")
        assert commit_one(store, op) is None
        stored = store.load("r")
        assert stored is not None
        assert (stored.claim, stored.record) == (op.claim, op.record)

    def test_an_id_that_is_taken_exists(self, store: CheckpointStore) -> None:
        begin(store)
        assert commit_one(store, started(epoch=1 << 40)) is Refusal.EXISTS

    def test_an_id_whose_run_has_ended_exists_still(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, settled(token))
        assert commit_one(store, started(epoch=1 << 40)) is Refusal.EXISTS

    def test_a_claim_on_what_is_not_there_is_missing(self, store: CheckpointStore) -> None:
        assert commit_one(store, reclaimed(Token("r", 1, 1), 2)) is Refusal.MISSING

    def test_a_claim_on_another_token_is_fenced(self, store: CheckpointStore) -> None:
        token = begin(store)
        other = token._replace(epoch=token.epoch + 5)
        assert commit_one(store, reclaimed(other, token.epoch + 9)) is Refusal.FENCED

    def test_a_claim_whose_epoch_is_not_newer_is_fenced(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, settled(token, RunStatus.STOPPED))
        assert commit_one(store, reclaimed(token, token.epoch)) is Refusal.FENCED
        assert commit_one(store, reclaimed(token, token.epoch - 1)) is Refusal.FENCED

    def test_the_same_claim_once_more_is_accepted(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, started(epoch=token.epoch)) is None
        again = reclaimed(token, token.epoch + 1)
        assert commit_one(store, again, again) is None

    def test_a_newer_claim_fences_the_execution_before(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, save(token, 1), reclaimed(token, token.epoch + 1)) is None
        assert commit_one(store, save(token, 2)) is Refusal.FENCED
        assert commit_one(store, settled(token)) is Refusal.FENCED
        newer = token._replace(epoch=token.epoch + 1)
        assert commit_one(store, save(newer, 2)) is None

    def test_of_two_claims_on_one_token_the_first_wins(self, store: CheckpointStore) -> None:
        token = begin(store)
        verdicts = store.commit([reclaimed(token, token.epoch + 1), reclaimed(token, token.epoch + 2)])
        assert [why(verdict) for verdict in verdicts] == [None, Refusal.FENCED]

    def test_a_claim_keeps_record_snapshots_and_outcome(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 1), settled(token, RunStatus.FAILED, outcome=b"why"))
        assert commit_one(store, reclaimed(token, token.epoch + 1)) is None
        stored, loaded = store.load("r"), store.load_snapshot("r")
        assert stored is not None
        assert stored.record == record()
        assert loaded is not None
        assert loaded.snapshot.seq == 1
        assert store.load_outcome("r") == b"why"

    def test_a_record_begins_a_new_incarnation_without_what_the_one_before_left(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 5), child_of(token, "child"), settled(token, RunStatus.FAILED, outcome=b"old"))
        assert commit_one(store, reborn(token, token.epoch + 1, input=b"new")) is None
        stored = store.load("r")
        assert stored is not None
        assert stored.record is not None
        assert stored.record.input == b"new"
        assert store.load_snapshot("r") is None
        assert store.load_outcome("r") is None
        assert store.children("r") == []
        assert commit_one(store, save(Token("r", 2, token.epoch + 1), 1)) is None

    def test_a_new_incarnation_leaves_the_parent_of_the_one_before(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, child_of(token, "child"))
        assert [child for child, _ in store.children("r")] == ["child"]
        commit_one(store, reborn(Token("child", 1, 1), 2))
        assert store.children("r") == []

    def test_the_outcome_of_a_tombstone_is_kept(self, store: CheckpointStore) -> None:
        token = begin(store)
        tomb = Claim(claim=claim("r", token.epoch + 1, status=RunStatus.KILLED), expected=token, outcome=b"killed")
        assert commit_one(store, tomb) is None
        assert store.load_outcome("r") == b"killed"
        assert store.live() == []
        assert commit_one(store, save(token, 1)) is Refusal.FENCED
        assert commit_one(store, save(tomb.claim.token, 1)) is Refusal.SETTLED

    def test_a_tombstone_comes_too_late_for_a_run_that_has_ended(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, settled(token, outcome=b"done")) is None
        tomb = Claim(claim=claim("r", token.epoch + 1, status=RunStatus.KILLED), expected=token, outcome=b"killed")
        assert commit_one(store, tomb) is Refusal.SETTLED
        assert store.load_outcome("r") == b"done"

    def test_dropping_snapshots_makes_the_execution_begin_afresh(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 1), save(token, 2))
        newer = token._replace(epoch=token.epoch + 1)
        assert commit_one(store, reclaimed(token, newer.epoch, drop_snapshots=True, outcome=b"last")) is None
        assert store.load_snapshot("r") is None
        assert store.load_outcome("r") == b"last"
        assert commit_one(store, save(newer, 1)) is None

    def test_parts_of_different_lives_are_refused_where_they_are_put_together(self) -> None:
        with pytest.raises(ValueError, match="record"):
            Claim(claim=claim(), expected=None, record=record("other"))
        with pytest.raises(ValueError, match="needs its record"):
            Claim(claim=claim(), expected=None)
        with pytest.raises(ValueError, match="expects"):
            Claim(claim=claim(epoch=2), expected=Token("r", 2, 1))


class Saving(Conformance):
    def test_the_newest_snapshot_comes_back_whole(self, store: CheckpointStore) -> None:
        token = begin(store)
        given = snapshot(token, 3, b"\0state\xff", next=b"wait", schema_version=9, waiting=True, taken_at_s=7.5)
        store.commit([save(token, 1), settled(token, RunStatus.SUSPENDED, snapshot=given)])
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert (loaded.snapshot, loaded.fell_back) == (given, None)

    def test_a_save_of_a_run_that_is_not_there_is_missing(self, store: CheckpointStore) -> None:
        assert commit_one(store, save(Token("r", 1, 1), 1)) is Refusal.MISSING

    def test_a_save_of_another_incarnation_is_fenced(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, save(token._replace(incarnation=2), 1)) is Refusal.FENCED

    def test_a_save_by_a_newer_epoch_that_claimed_nothing_is_fenced(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, save(token._replace(epoch=token.epoch + 1), 1)) is Refusal.FENCED

    @pytest.mark.parametrize("status", [status for status in RunStatus if status is not RunStatus.RUNNING])
    def test_a_save_of_a_run_that_does_not_run_is_settled(self, store: CheckpointStore, status: RunStatus) -> None:
        token = begin(store)
        commit_one(store, settled(token, status))
        assert commit_one(store, save(token, 9)) is Refusal.SETTLED

    def test_an_older_seq_is_stale(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, save(token, 5), save(token, 4)) is Refusal.STALE

    def test_the_very_same_save_is_accepted_without_a_write(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 5, b"first"))
        assert commit_one(store, save(token, 5, b"second")) is None
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.state == b"first"

    def test_the_same_seq_saved_by_an_earlier_epoch_is_accepted_without_a_write(self, store: CheckpointStore) -> None:
        token = begin(store)
        newer = token._replace(epoch=token.epoch + 1)
        commit_one(store, save(token, 5), reclaimed(token, newer.epoch))
        assert commit_one(store, save(newer, 5)) is None
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.epoch == token.epoch
        assert commit_one(store, save(newer, 4)) is Refusal.STALE

    def test_seq_goes_on_over_a_reboot(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 5))
        store = rebooted(disk, store)
        newer = token._replace(epoch=store.boot_epoch * EPOCHS_PER_BOOT)
        assert commit_one(store, reclaimed(token, newer.epoch), save(newer, 4)) is Refusal.STALE
        assert commit_one(store, save(newer, 6)) is None
        store.close()

    def test_the_generation_before_stays_as_the_second_and_older_ones_go(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        token = begin(store)
        for seq in range(1, 6):
            commit_one(store, save(token, seq))
        store.close()
        assert len(disk.keys(Table.SNAPSHOTS)) == 2
        damage(disk, Table.SNAPSHOTS, "r", slot=0)
        store.open()
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.seq == 4

    def test_clearing_strikes_happens_in_the_same_commit(self, store: CheckpointStore) -> None:
        token = begin(store)
        struck = claim("r", token.epoch + 1, strikes=2)
        commit_one(store, Claim(claim=struck, expected=token))
        commit_one(store, save(struck.token, 1))
        stored = store.load("r")
        assert stored is not None
        assert stored.claim.strikes == 2
        commit_one(store, save(struck.token, 2, clears_strikes=True))
        stored = store.load("r")
        assert stored is not None
        assert stored.claim.strikes == 0
        assert stored.claim.token == struck.token

    def test_a_refused_save_clears_no_strikes(self, store: CheckpointStore) -> None:
        token = begin(store)
        struck = claim("r", token.epoch + 1, strikes=2)
        commit_one(store, save(token, 3), Claim(claim=struck, expected=token))
        assert commit_one(store, save(struck.token, 1, clears_strikes=True)) is Refusal.STALE
        stored = store.load("r")
        assert stored is not None
        assert stored.claim.strikes == 2

    def test_children_that_the_state_took_in_leave(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, child_of(token, "a"), child_of(token, "b"))
        commit_one(store, save(token, 1, consumed_children=("a",)))
        assert [child for child, _ in store.children("r")] == ["b"]

    def test_a_refused_save_consumes_no_child(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, child_of(token, "a"), save(token, 5))
        assert commit_one(store, save(token, 4, consumed_children=("a",))) is Refusal.STALE
        assert [child for child, _ in store.children("r")] == ["a"]


class Settling(Conformance):
    @pytest.mark.parametrize("status", [status for status in RunStatus if status is not RunStatus.RUNNING])
    def test_an_ending_is_kept_with_its_outcome(self, store: CheckpointStore, status: RunStatus) -> None:
        token = begin(store)
        assert commit_one(store, settled(token, status, reason="so", outcome=b"out", ended_at_s=9.0)) is None
        stored = store.load("r")
        assert stored is not None
        assert (stored.claim.status, stored.claim.reason, stored.claim.ended_at_s) == (status, "so", 9.0)
        assert stored.claim.token == token
        assert store.load_outcome("r") == b"out"

    def test_completing_drops_the_snapshots(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 1), save(token, 2), settled(token, snapshot=snapshot(token, 3)))
        assert store.load_snapshot("r") is None

    @pytest.mark.parametrize("status", sorted(set(RunStatus) - {RunStatus.RUNNING, RunStatus.COMPLETED}))
    def test_every_other_ending_keeps_the_last_snapshot(self, store: CheckpointStore, status: RunStatus) -> None:
        token = begin(store)
        commit_one(store, save(token, 1), settled(token, status))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.seq == 1

    def test_a_snapshot_is_saved_with_the_ending(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, settled(token, RunStatus.SUSPENDED, snapshot=snapshot(token, 4))) is None
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.seq == 4

    def test_a_snapshot_that_is_not_newer_is_left_out_and_not_refused(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 5))
        assert commit_one(store, settled(token, RunStatus.FAILED, snapshot=snapshot(token, 4))) is None
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.seq == 5

    def test_an_ending_under_another_token_is_fenced(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, settled(token._replace(epoch=token.epoch + 1))) is Refusal.FENCED
        assert commit_one(store, settled(token._replace(incarnation=9))) is Refusal.FENCED

    def test_an_ending_of_what_is_not_there_is_missing(self, store: CheckpointStore) -> None:
        assert commit_one(store, settled(Token("r", 1, 1))) is Refusal.MISSING

    def test_of_two_endings_the_first_wins(self, store: CheckpointStore) -> None:
        token = begin(store)
        first, second = settled(token, outcome=b"1"), settled(token, RunStatus.CANCELLED, outcome=b"2")
        assert [why(verdict) for verdict in store.commit([first, second])] == [None, Refusal.SETTLED]
        assert store.load_outcome("r") == b"1"

    def test_the_same_ending_once_more_is_accepted(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        ending = settled(token, RunStatus.FAILED, reason="x", outcome=b"1", ended_at_s=3.0)
        assert commit_one(store, ending, ending) is None
        store = rebooted(disk, store)
        assert commit_one(store, ending) is None
        store.close()

    @pytest.mark.parametrize("difference", [{"outcome": b"2"}, {"reason": "y"}, {"ended_at_s": 4.0}])
    def test_another_ending_with_the_same_status_is_not_the_same(
        self, store: CheckpointStore, difference: dict[str, Any]
    ) -> None:
        token = begin(store)
        facts: dict[str, Any] = {"reason": "x", "outcome": b"1", "ended_at_s": 3.0}
        commit_one(store, settled(token, **facts))
        assert commit_one(store, settled(token, **facts | difference)) is Refusal.SETTLED
        assert store.load_outcome("r") == b"1"

    def test_an_ending_without_outcome_leaves_the_one_that_is_there(self, store: CheckpointStore) -> None:
        token = begin(store)
        newer = token._replace(epoch=token.epoch + 1)
        commit_one(store, reclaimed(token, newer.epoch, outcome=b"before"), settled(newer, RunStatus.STOPPED))
        assert store.load_outcome("r") == b"before"

    def test_children_that_the_last_state_took_in_leave(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, child_of(token, "a"), settled(token, RunStatus.STOPPED, consumed_children=("a",)))
        assert store.children("r") == []

    def test_running_is_no_ending(self) -> None:
        with pytest.raises(ValueError, match="running"):
            settled(Token("r", 1, 1), RunStatus.RUNNING)
        with pytest.raises(ValueError, match="snapshot"):
            Settle(token=Token("r", 1, 1), status=RunStatus.FAILED, snapshot=snapshot(Token("r", 1, 2), 1))


class SettingAside(Conformance):
    @pytest.mark.parametrize("status", [RunStatus.PARKED, RunStatus.QUARANTINED])
    def test_only_claim_and_index_change(self, disk: Disk, store: CheckpointStore, status: RunStatus) -> None:
        token = begin(store)
        commit_one(store, save(token, 1), save(token, 2))
        store = rebooted(disk, store, lambda: damage(disk, Table.RECORDS, "r"))
        assert commit_one(store, set_aside(token, status, "why")) is None
        stored, loaded = store.load("r"), store.load_snapshot("r")
        assert stored is not None
        assert (stored.claim.status, stored.claim.reason, stored.claim.token) == (status, "why", token)
        assert stored.record is None
        assert loaded is not None
        assert loaded.snapshot.seq == 2
        assert [c.run_id for c in store.live()] == (["r"] if status in LIVE else [])
        store.close()

    def test_under_another_token_it_is_fenced(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, set_aside(token._replace(epoch=1))) is Refusal.FENCED

    def test_what_is_not_there_is_missing(self, store: CheckpointStore) -> None:
        assert commit_one(store, set_aside(Token("r", 1, 1))) is Refusal.MISSING

    def test_what_has_ended_for_good_is_settled(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, settled(token), set_aside(token, RunStatus.PARKED)) is Refusal.SETTLED
        assert store.live() == []

    def test_the_same_once_more_is_accepted(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, set_aside(token), set_aside(token)) is None

    def test_what_was_set_aside_writes_no_more_until_it_is_claimed(self, store: CheckpointStore) -> None:
        token = begin(store)
        newer = token._replace(epoch=token.epoch + 1)
        assert commit_one(store, set_aside(token), save(token, 1)) is Refusal.SETTLED
        assert commit_one(store, reclaimed(token, newer.epoch), save(newer, 1)) is None

    def test_no_other_status_sets_aside(self) -> None:
        with pytest.raises(ValueError, match="set aside"):
            set_aside(Token("r", 1, 1), RunStatus.COMPLETED)


class Appending(Conformance):
    def test_messages_are_numbered_from_1_and_come_back_whole_and_in_order(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        token, other = begin(store), begin(store, "r2")
        assert numbered(store, append(token, "a", b"\0\xff", expires_at_s=9.5), append(token, "b")) == [1, 2]
        assert numbered(store, append(other, "a")) == [1]
        expected = [
            Message(
                run_id="r", incarnation=1, number=1, message_id="a", body=b"\0\xff", sent_at_s=3.0, expires_at_s=9.5
            ),
            Message(run_id="r", incarnation=1, number=2, message_id="b", body=b"body", sent_at_s=3.0),
        ]
        assert [stored.message for stored in store.messages("r")] == expected
        store = rebooted(disk, store)
        assert [stored.message for stored in store.messages("r")] == expected
        assert numbered(store, append(token, "c")) == [3]
        store.close()

    def test_an_id_that_was_taken_before_is_accepted_with_its_number_and_changes_nothing(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        token = begin(store)
        verdicts = store.commit([append(token, "a"), append(token, "a", b"other"), append(token, "b")])
        assert verdicts == [Accepted(1), Accepted(1), Accepted(2)]
        store = rebooted(disk, store)
        assert numbered(store, append(token, "a", b"other")) == [1]
        assert [stored.message and stored.message.body for stored in store.messages("r")] == [b"body", b"body"]
        store.close()

    def test_to_what_is_not_there_it_is_missing(self, store: CheckpointStore) -> None:
        assert numbered(store, append(Token("r", 1, 1), "a")) == [Refusal.MISSING]

    def test_for_another_life_it_is_fenced(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert numbered(store, append(token._replace(incarnation=2), "a")) == [Refusal.FENCED]
        assert store.messages("r") == []

    def test_another_epoch_of_the_same_life_takes_it(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, reclaimed(token, token.epoch + 1))
        assert numbered(store, append(token, "a")) == [1]

    @pytest.mark.parametrize("status", sorted(ENDED))
    def test_to_a_run_that_has_ended_it_is_settled(self, store: CheckpointStore, status: RunStatus) -> None:
        token = begin(store)
        commit_one(store, settled(token, status))
        assert numbered(store, append(token, "a")) == [Refusal.SETTLED]

    @pytest.mark.parametrize("status", sorted(set(RunStatus) - ENDED - {RunStatus.RUNNING}))
    def test_what_rests_without_having_ended_takes_messages_and_keeps_them(
        self, store: CheckpointStore, status: RunStatus
    ) -> None:
        token = begin(store)
        assert numbered(store, append(token, "a")) == [1]
        commit_one(store, settled(token, status))
        assert numbered(store, append(token, "b"), append(token, "a")) == [2, 1]
        commit_one(store, reclaimed(token, token.epoch + 1))
        assert pending(store) == [1, 2]

    def test_at_the_limit_it_is_full_until_one_is_consumed(self, store: CheckpointStore) -> None:
        token = begin(store)
        messages = [append(token, name, limit=2) for name in "abc"]
        assert numbered(store, *messages, messages[0]) == [1, 2, Refusal.FULL, 1]
        commit_one(store, save(token, 1, consumed_through=1))
        assert numbered(store, messages[2]) == [3]

    def test_a_body_over_the_cap_or_of_no_bytes_is_refused_before_anything_is_written(
        self, store: CheckpointStore
    ) -> None:
        token = begin(store)
        with pytest.raises(RecordTooLarge):
            store.commit([append(token, "a"), append(token, "b", bytes(MAX_RECORD_BYTES))])
        with pytest.raises(TypeError, match="body"):
            store.commit([append(token, "a"), append(token, "b", "text")])  # type: ignore[arg-type]
        assert numbered(store, append(token, "c")) == [1]

    def test_a_save_consumes_in_its_own_commit_and_a_message_leaves_when_both_generations_have_it(
        self, store: CheckpointStore
    ) -> None:
        token = begin(store)
        numbered(store, *(append(token, name) for name in "abc"))
        commit_one(store, save(token, 1, consumed_through=1))
        assert pending(store) == [1, 2, 3]
        commit_one(store, save(token, 2, consumed_through=2))
        assert pending(store) == [2, 3]
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.consumed == 2
        commit_one(store, save(token, 3, consumed_through=3), save(token, 4, consumed_through=3))
        assert pending(store) == []

    def test_a_refused_save_consumes_nothing(self, store: CheckpointStore) -> None:
        token = begin(store)
        numbered(store, append(token, "a", limit=1))
        commit_one(store, save(token, 5))
        assert commit_one(store, save(token, 4, consumed_through=1)) is Refusal.STALE
        assert numbered(store, append(token, "b", limit=1)) == [Refusal.FULL]

    def test_where_the_newest_generation_is_damaged_nothing_is_missing_that_the_older_one_has_not(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        token = begin(store)
        numbered(store, *(append(token, name) for name in "abc"))
        commit_one(store, save(token, 1, consumed_through=1), save(token, 2, consumed_through=3))
        store = rebooted(disk, store, lambda: damage(disk, Table.SNAPSHOTS, "r", slot=1))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert (loaded.snapshot.seq, loaded.snapshot.consumed) == (1, 1)
        assert pending(store) == [2, 3]
        newer = token._replace(epoch=store.boot_epoch * EPOCHS_PER_BOOT)
        commit_one(store, reclaimed(token, newer.epoch), save(newer, 2, consumed_through=2))
        assert pending(store) == [2, 3]
        commit_one(store, save(newer, 3, consumed_through=3), save(newer, 4, consumed_through=3))
        assert pending(store) == []
        store.close()

    def test_beginning_afresh_keeps_what_is_pending(self, store: CheckpointStore) -> None:
        token = begin(store)
        numbered(store, *(append(token, name) for name in "abc"))
        commit_one(store, save(token, 1, consumed_through=1), save(token, 2, consumed_through=1))
        newer = token._replace(epoch=token.epoch + 1)
        commit_one(store, reclaimed(token, newer.epoch, drop_snapshots=True), save(newer, 3, consumed_through=2))
        commit_one(store, save(newer, 4, consumed_through=2))
        assert pending(store) == [3]
        assert numbered(store, append(token, "a"), append(token, "d")) == [1, 4]

    @pytest.mark.parametrize("status", sorted(ENDED_FOR_GOOD))
    def test_an_ending_for_good_drops_messages_and_what_was_consumed_stays_known(
        self, store: CheckpointStore, status: RunStatus
    ) -> None:
        token = begin(store)
        numbered(store, *(append(token, name) for name in "abc"))
        commit_one(store, save(token, 1, consumed_through=1), settled(token, status, consumed_through=2))
        assert pending(store) == []
        again = [append(token, name) for name in "abcd"]
        assert numbered(store, *again) == [1, 2, Refusal.SETTLED, Refusal.SETTLED]

    def test_a_tombstone_drops_messages(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        numbered(store, append(token, "a"))
        store = rebooted(disk, store)
        commit_one(store, Claim(claim=claim("r", 1 << 60, status=RunStatus.KILLED), expected=token))
        assert pending(store) == []
        store.close()

    def test_a_failed_run_keeps_its_messages(self, store: CheckpointStore) -> None:
        token = begin(store)
        numbered(store, append(token, "a"))
        commit_one(store, settled(token, RunStatus.FAILED))
        assert pending(store) == [1]
        assert numbered(store, append(token, "a")) == [1]

    def test_an_ending_consumes_with_its_snapshot(self, store: CheckpointStore) -> None:
        token = begin(store)
        numbered(store, *(append(token, name, limit=2) for name in "ab"))
        last = snapshot(token, 2, consumed_through=1)
        commit_one(store, save(token, 1), settled(token, RunStatus.SUSPENDED, snapshot=last))
        assert numbered(store, append(token, "c", limit=2)) == [3]

    def test_a_new_life_begins_without_the_messages_and_ids_of_the_one_before(self, store: CheckpointStore) -> None:
        token = begin(store)
        numbered(store, append(token, "a"), append(token, "b"))
        commit_one(store, settled(token, RunStatus.FAILED), reborn(token, token.epoch + 1))
        assert pending(store) == []
        again = Token("r", token.incarnation + 1, token.epoch + 1)
        assert numbered(store, append(token, "c"), append(again, "b")) == [Refusal.FENCED, 1]

    def test_a_first_message_goes_in_with_the_record_and_is_fenced_where_the_id_is_taken(
        self, store: CheckpointStore
    ) -> None:
        first = Token("r", 1, 1)
        assert store.commit([started(), append(first, "a")]) == [ACCEPTED, Accepted(1)]
        late = Token("r", 2, 2)
        verdicts = store.commit([started("r", 2, 2), append(late, "b")])
        assert [why(verdict) for verdict in verdicts] == [Refusal.EXISTS, Refusal.FENCED]
        assert pending(store) == [1]

    def test_the_last_ids_are_remembered_after_they_were_consumed_and_older_ones_forgotten(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        token = begin(store)
        count = 2 * REMEMBERED_IDS + 1
        store.commit([append(token, f"m{n}", limit=count) for n in range(1, count + 1)])
        commit_one(store, save(token, 1, consumed_through=count - 1))
        assert numbered(store, append(token, "m1", limit=2)) == [1]
        commit_one(store, save(token, 2, consumed_through=count))
        oldest = count - REMEMBERED_IDS + 1
        known = range(oldest, count + 1)
        assert numbered(store, *(append(token, f"m{n}", limit=1) for n in known)) == list(known)
        assert numbered(store, append(token, f"m{oldest - 1}", limit=9)) == [count + 1]
        commit_one(store, save(token, 3, consumed_through=count))
        store.close()
        assert len(disk.keys(Table.MESSAGE_IDS)) == REMEMBERED_IDS + 1 == 1001
        assert len(disk.keys(Table.MESSAGES)) == 1

    def test_a_damaged_message_is_none_inside(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        numbered(store, *(append(token, name) for name in "abc"))
        store = rebooted(disk, store, lambda: disk.change(Table.MESSAGES, message_key(b"r", 2), flip_last_bit))
        assert [(stored.number, stored.message is None) for stored in store.messages("r")] == [
            (1, False),
            (2, True),
            (3, False),
        ]
        store = rebooted(disk, store, lambda: disk.change(Table.MESSAGES, message_key(b"r", 2), lambda _: None))
        assert [stored.message is None for stored in store.messages("r")] == [False, True, False]
        store.close()

    @pytest.mark.parametrize("how", [cut_short, removed])
    def test_where_the_count_is_damaged_it_is_made_again_from_the_messages_and_ids(
        self, disk: Disk, store: CheckpointStore, how: Callable[[bytes], bytes | None]
    ) -> None:
        token = begin(store)
        numbered(store, *(append(token, name) for name in "abc"))
        commit_one(store, save(token, 1, consumed_through=1), save(token, 2, consumed_through=1))
        store = rebooted(disk, store, lambda: disk.change(Table.INBOXES, b"r", how))
        assert pending(store) == [2, 3]
        again = [append(token, name, limit=3) for name in ("a", "c", "d", "e")]
        assert numbered(store, *again) == [1, 3, 4, Refusal.FULL]
        assert pending(store) == [2, 3, 4]
        store.close()

    def test_an_id_whose_row_is_damaged_is_not_taken_again(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        numbered(store, append(token, "a"))
        row = message_id_key(b"r", "a")
        store = rebooted(disk, store, lambda: disk.change(Table.MESSAGE_IDS, row, flip_last_bit))
        assert numbered(store, append(token, "a"), append(token, "b")) == [Refusal.FENCED, 2]
        store.close()


class Deleting(Conformance):
    def test_everything_of_the_run_goes(self, disk: Disk, store: CheckpointStore) -> None:
        parent = begin(store, "parent")
        token = Token("r", 1, 1)
        commit_one(store, child_of(parent, "r"), child_of(token, "grandchild", epoch=2), save(token, 1), save(token, 2))
        numbered(store, append(token, "a"), append(token, "b"))
        commit_one(store, settled(token, RunStatus.FAILED, outcome=b"x"), settled(Token("grandchild", 1, 2)))
        assert commit_one(store, deleted(token), deleted(Token("grandchild", 1, 2))) is None
        assert (store.load("r"), store.load_snapshot("r"), store.load_outcome("r")) == (None, None, None)
        assert (store.children("r"), store.children("parent")) == ([], [])
        commit_one(store, settled(parent), deleted(parent))
        store.close()
        assert [table for table in Table if table is not Table.META and disk.keys(table)] == []

    def test_a_run_whose_record_is_damaged_leaves_its_parent_too(self, disk: Disk, store: CheckpointStore) -> None:
        parent = begin(store, "parent")
        token = Token("child", 1, 1)
        commit_one(store, child_of(parent, "child"), settled(token))
        store = rebooted(disk, store, lambda: damage(disk, Table.RECORDS, "child"))
        assert commit_one(store, deleted(token)) is None
        assert store.children("parent") == []
        store.close()

    def test_a_running_run_is_not_deleted(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, deleted(token)) is Refusal.RUNNING
        assert store.load("r") is not None

    def test_under_another_token_it_is_fenced(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, settled(token))
        assert commit_one(store, deleted(token._replace(epoch=1))) is Refusal.FENCED

    def test_what_is_not_there_is_deleted(self, store: CheckpointStore) -> None:
        token = begin(store)
        assert commit_one(store, deleted(Token("x", 1, 1))) is None
        assert commit_one(store, settled(token), deleted(token), deleted(token)) is None

    def test_a_deleted_id_is_free_within_the_same_commit(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 5), child_of(token, "c"), settled(token, RunStatus.FAILED, outcome=b"x"))
        again = Token("r", 2, token.epoch + 1)
        verdicts = store.commit([deleted(token), started("r", again.epoch, 2), save(again, 1)])
        assert verdicts == [ACCEPTED] * 3
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.seq == 1
        assert (store.load_outcome("r"), store.children("r")) == (None, [])
        assert [c.token for c in store.live() if c.run_id == "r"] == [again]


class Reading(Conformance):
    def test_what_is_not_there_is_none(self, store: CheckpointStore) -> None:
        assert (store.load("r"), store.load_snapshot("r"), store.load_outcome("r")) == (None, None, None)
        assert (store.live(), store.damaged(), store.scan(), store.children("r")) == ([], [], [], [])
        assert store.messages("r") == []

    def test_a_run_without_a_save_has_no_snapshot(self, store: CheckpointStore) -> None:
        begin(store)
        assert store.load_snapshot("r") is None

    def test_live_holds_the_live_statuses_in_order_of_id_and_no_others(self, store: CheckpointStore) -> None:
        ids = {status: f"run {status.value} é" for status in RunStatus}
        for status, run_id in ids.items():
            token = begin(store, run_id)
            if status is not RunStatus.RUNNING:
                commit_one(store, settled(token, status))
        assert [c.run_id for c in store.live()] == sorted(ids[status] for status in LIVE)

    def test_a_run_that_is_claimed_again_is_live_again(self, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, settled(token, RunStatus.STOPPED))
        assert store.live() == []
        commit_one(store, reclaimed(token, token.epoch + 1))
        assert [c.run_id for c in store.live()] == ["r"]

    def test_scan_pages_through_all_runs_in_order_of_id(self, store: CheckpointStore) -> None:
        ids = [f"{n:02}" for n in range(25)] + ["a", "a b", "ab", "ä", "日本"]
        store.commit([started(run_id) for run_id in reversed(ids)])
        seen: list[str] = []
        after: str | None = None
        while page := store.scan(after=after, limit=7):
            assert len(page) <= 7
            seen += [stored.claim.run_id for stored in page]
            after = seen[-1]
        assert seen == sorted(ids)
        assert store.scan(limit=0) == []

    def test_scan_gives_claim_and_record(self, store: CheckpointStore) -> None:
        op = started()
        store.commit([op])
        (stored,) = store.scan()
        assert (stored.claim, stored.record) == (op.claim, op.record)

    def test_children_come_in_order_of_id_with_links_of_any_incarnation(self, store: CheckpointStore) -> None:
        parent = begin(store, "p")
        begin(store, "p2")
        commit_one(store, child_of(parent, "b", "kb"), child_of(Token("p2", 1, 1), "x"))
        commit_one(store, child_of(parent._replace(incarnation=7), "a", "ka"))
        assert store.children("p") == [("a", ParentLink("p", 7, "ka")), ("b", ParentLink("p", 1, "kb"))]

    def test_children_stay_over_a_claim_of_the_parent_and_a_reboot(self, disk: Disk, store: CheckpointStore) -> None:
        parent = begin(store, "p")
        commit_one(store, child_of(parent, "a"), settled(Token("a", 1, 1), outcome=b"x"))
        store = rebooted(disk, store)
        commit_one(store, reclaimed(parent, store.boot_epoch * EPOCHS_PER_BOOT))
        assert [child for child, _ in store.children("p")] == ["a"]
        store.close()

    def test_info_tells_facts(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        begin(store, "other")
        commit_one(store, settled(token))
        info = store.info()
        assert isinstance(info, StoreInfo)
        assert (info.runs, info.live, info.boot_epoch) == (2, 1, store.boot_epoch)
        assert 0 <= info.used_ratio < 1
        assert info.used_bytes > 0

    def test_readers_on_other_threads_see_whole_commits(self, store: CheckpointStore) -> None:
        tokens = [begin(store, f"r{n}") for n in range(4)]
        done = threading.Event()
        torn: list[object] = []

        def read() -> None:
            while not done.is_set():
                loaded = [store.load_snapshot(f"r{n}") for n in range(4)]
                torn.extend(one for one in loaded if one and one.snapshot.state != b"state %d" % one.snapshot.seq)
                torn.extend(one for one in loaded if one and one.fell_back)
                if len(store.live()) != 4:
                    torn.append("live")

        thread = threading.Thread(target=read)
        thread.start()
        try:
            for seq in range(1, 60):
                store.commit([save(token, seq) for token in tokens])
        finally:
            done.set()
            thread.join()
        assert torn == []


class Resting(Conformance):
    """What retention looks at."""

    def ended(self, store: CheckpointStore, status: RunStatus = RunStatus.COMPLETED, **page: Any) -> list[str]:
        return [run.run_id for run in store.ended(status, **page)]

    def test_runs_of_a_status_come_by_page_the_longest_ended_first(self, store: CheckpointStore) -> None:
        for run_id, at_s in (("a", 30.0), ("b", 10.5), ("c", 20.0), ("d", 10.5)):
            commit_one(store, settled(begin(store, run_id), ended_at_s=at_s))
        assert self.ended(store) == ["b", "d", "c", "a"]
        first = store.ended(RunStatus.COMPLETED, limit=2)
        assert first == [EndedRun("b", RunStatus.COMPLETED, 10_500), EndedRun("d", RunStatus.COMPLETED, 10_500)]
        assert self.ended(store, after=first[-1], limit=1) == ["c"]
        assert self.ended(store, after=store.ended(RunStatus.COMPLETED)[-1]) == []

    @pytest.mark.parametrize("status", sorted(set(RunStatus) - LIVE))
    def test_every_run_that_is_not_live_is_listed_and_counted(self, store: CheckpointStore, status: RunStatus) -> None:
        token = begin(store)
        assert sum(store.count_ended().values()) == 0
        commit_one(store, set_aside(token) if status is RunStatus.QUARANTINED else settled(token, status))
        assert self.ended(store, status) == ["r"]
        assert {status: number for status, number in store.count_ended().items() if number} == {status: 1}

    @pytest.mark.parametrize("status", sorted(LIVE))
    def test_a_live_run_is_not_listed(self, store: CheckpointStore, status: RunStatus) -> None:
        token = begin(store)
        if status is RunStatus.PARKED:
            commit_one(store, set_aside(token, status))
        elif status is RunStatus.SUSPENDED:
            commit_one(store, settled(token, status))
        assert [run_id for status in RunStatus for run_id in self.ended(store, status)] == []
        assert sum(store.count_ended().values()) == 0

    def test_a_run_that_comes_back_is_replaced_or_deleted_is_listed_no_more(self, store: CheckpointStore) -> None:
        resumed, replaced, gone = (begin(store, run_id) for run_id in ("resumed", "replaced", "gone"))
        for token in (resumed, replaced, gone):
            commit_one(store, settled(token, RunStatus.FAILED, ended_at_s=5.0))
        commit_one(store, reclaimed(resumed, resumed.epoch + 1), reborn(replaced, replaced.epoch + 1), deleted(gone))
        assert sum(store.count_ended().values()) == 0
        again = resumed._replace(epoch=resumed.epoch + 1)
        commit_one(store, settled(again, ended_at_s=6.0))
        assert (self.ended(store, RunStatus.FAILED), self.ended(store)) == ([], ["resumed"])

    def test_a_quarantined_run_is_as_old_as_the_operation_says(self, store: CheckpointStore) -> None:
        commit_one(store, msgspec.structs.replace(set_aside(begin(store)), at_s=7.0))
        assert [run.ended_at_ms for run in store.ended(RunStatus.QUARANTINED)] == [7_000]

    def test_a_run_whose_end_has_no_time_is_as_old_as_its_last_claim(self, store: CheckpointStore) -> None:
        first = started()
        commit_one(store, Claim(claim=claim(claimed_at_s=3.0), expected=None, record=first.record))
        commit_one(store, settled(Token("r", 1, 1)))
        assert [run.ended_at_ms for run in store.ended(RunStatus.COMPLETED)] == [3_000]

    @pytest.mark.parametrize("at_s", [-1.0, float("nan"), float("inf"), 1e300])
    def test_a_time_that_is_none_hides_no_run(self, store: CheckpointStore, at_s: float) -> None:
        token = begin(store)
        commit_one(store, settled(token, ended_at_s=at_s))
        assert self.ended(store) == ["r"]
        commit_one(store, deleted(token))
        assert self.ended(store) == []

    def test_the_link_to_the_parent_is_there_until_that_has_taken_in_the_end(self, store: CheckpointStore) -> None:
        parent = begin(store, "parent")
        commit_one(store, child_of(parent, "child"), settled(Token("child", 1, 1)))
        assert store.parent_link("child") == ParentLink("parent", 1, "k")
        assert store.parent_link("parent") is store.parent_link("nobody") is None
        commit_one(store, save(parent, 1, consumed_children=("child",)))
        assert store.parent_link("child") is None

    def gone(self, store: CheckpointStore) -> Token:
        """The token of a parent that has taken in the end of `child`, which was then deleted."""
        parent = begin(store, "parent")
        child = Token("child", 1, 1)
        commit_one(store, child_of(parent, "child"), settled(child), save(parent, 1, consumed_children=("child",)))
        assert commit_one(store, deleted(child)) is None
        return parent

    def test_a_child_that_was_deleted_after_its_parent_had_taken_in_its_end_is_gone(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        parent = self.gone(store)
        assert commit_one(store, child_of(parent, "child", epoch=2)) is Refusal.GONE
        store = rebooted(disk, store)
        assert commit_one(store, child_of(parent, "child", epoch=2)) is Refusal.GONE
        assert (store.load("child"), store.children("parent")) == (None, [])
        assert commit_one(store, started("child", epoch=2)) is None  # nobody's child
        store.close()

    def test_it_is_gone_for_that_beginning_of_the_parent_only(self, store: CheckpointStore) -> None:
        parent = self.gone(store)
        later = ParentLink("parent", parent.incarnation, "k", begun=1)
        child = Token("child", 1, 2)
        assert commit_one(store, started("child", 2, parent=later, root_run_id="parent")) is None
        assert commit_one(store, settled(child), deleted(child), child_of(parent, "child", epoch=3)) is None

    @pytest.mark.parametrize("end", ["replaced", "deleted"])
    def test_what_was_gone_for_a_parent_is_forgotten_with_it(self, store: CheckpointStore, end: str) -> None:
        parent = self.gone(store)
        commit_one(store, settled(parent))
        commit_one(store, reborn(parent, parent.epoch + 1) if end == "replaced" else deleted(parent))
        assert commit_one(store, child_of(parent, "child", epoch=2)) is None

    def test_a_child_that_was_deleted_before_its_parent_knew_of_its_end_may_begin_once_more(
        self, store: CheckpointStore
    ) -> None:
        parent = begin(store, "parent")
        child = Token("child", 1, 1)
        commit_one(store, child_of(parent, "child"), settled(child), deleted(child))
        assert commit_one(store, child_of(parent, "child", epoch=2)) is None

    def test_the_link_of_a_run_whose_record_is_damaged_cannot_be_told(self, disk: Disk, store: CheckpointStore) -> None:
        begin(store)
        store = rebooted(disk, store, lambda: damage(disk, Table.RECORDS, "r"))
        with pytest.raises(RecordCorrupt):
            store.parent_link("r")
        store.close()


class Damage(Conformance):
    def test_a_damaged_newest_generation_falls_back_and_says_so(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 1), save(token, 2))
        store = rebooted(disk, store, lambda: damage(disk, Table.SNAPSHOTS, "r", slot=1))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot == snapshot(token, 1)
        assert loaded.fell_back is not None
        assert "checksum" in loaded.fell_back
        store.close()

    def test_a_damaged_older_generation_is_no_loss(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 1), save(token, 2))
        store = rebooted(disk, store, lambda: damage(disk, Table.SNAPSHOTS, "r", slot=0))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert (loaded.snapshot.seq, loaded.fell_back) == (2, None)
        store.close()

    def test_two_damaged_generations_are_an_error_and_no_loss_of_bytes(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        token = begin(store)
        commit_one(store, save(token, 1), save(token, 2))

        def damage_both() -> None:
            damage(disk, Table.SNAPSHOTS, "r", slot=0)
            damage(disk, Table.SNAPSHOTS, "r", slot=1)

        store = rebooted(disk, store, damage_both)
        with pytest.raises(RecordCorrupt) as damaged:
            store.load_snapshot("r")
        assert (damaged.value.run_id, damaged.value.what) == ("r", "snapshot")
        store.close()
        assert len(disk.keys(Table.SNAPSHOTS)) == 2

    def test_the_only_generation_damaged_is_an_error(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, save(token, 1))
        store = rebooted(disk, store, lambda: damage(disk, Table.SNAPSHOTS, "r", slot=0))
        with pytest.raises(RecordCorrupt):
            store.load_snapshot("r")
        store.close()

    @pytest.mark.parametrize("bad", [0, 1])
    def test_the_next_save_never_overwrites_the_only_readable_generation(
        self, disk: Disk, store: CheckpointStore, bad: int
    ) -> None:
        token = begin(store)
        commit_one(store, save(token, 1), save(token, 2))
        store = rebooted(disk, store, lambda: damage(disk, Table.SNAPSHOTS, "r", slot=bad))
        readable = 2 - bad
        newer = token._replace(epoch=store.boot_epoch * EPOCHS_PER_BOOT)
        commit_one(store, reclaimed(token, newer.epoch))
        # Newer than the newest readable generation is new, whatever the damaged one held.
        assert commit_one(store, save(newer, readable + 1)) is None
        store = rebooted(disk, store, lambda: damage(disk, Table.SNAPSHOTS, "r", slot=bad))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.seq == readable
        store.close()

    def test_a_damaged_record_is_none_inside(self, disk: Disk, store: CheckpointStore) -> None:
        begin(store)
        store = rebooted(disk, store, lambda: damage(disk, Table.RECORDS, "r"))
        stored = store.load("r")
        assert stored is not None
        assert stored.record is None
        assert [one.record for one in store.scan()] == [None]
        store.close()

    def test_a_damaged_claim_is_an_error_named_by_damaged_and_left_out_elsewhere(
        self, disk: Disk, store: CheckpointStore
    ) -> None:
        for run_id in ("a", "b", "c"):
            begin(store, run_id)
        store = rebooted(disk, store, lambda: damage(disk, Table.CLAIMS, "b"))
        for read in (store.load, store.load_snapshot):
            with pytest.raises(RecordCorrupt) as damaged:
                read("b")
            assert (damaged.value.run_id, damaged.value.what) == ("b", "claim")
        assert store.damaged() == ["b"]
        assert [c.run_id for c in store.live()] == ["a", "c"]
        assert [stored.claim.run_id for stored in store.scan(limit=2)] == ["a", "c"]
        store.close()

    def test_nobody_writes_over_a_damaged_claim(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        store = rebooted(disk, store, lambda: damage(disk, Table.CLAIMS, "r"))
        writes: list[Operation] = [
            save(token, 1),
            settled(token),
            set_aside(token),
            deleted(token),
            reclaimed(token, 1 << 40),
        ]
        verdicts = store.commit([*writes, started(epoch=1 << 40), started("other")])
        fenced = [Refused(Refusal.FENCED)] * len(writes)
        assert verdicts == [*fenced, Refused(Refusal.EXISTS), ACCEPTED]
        assert store.damaged() == ["r"]
        store.close()

    def test_a_damaged_outcome_is_an_error(self, disk: Disk, store: CheckpointStore) -> None:
        token = begin(store)
        commit_one(store, settled(token, outcome=b"x"))
        store = rebooted(disk, store, lambda: damage(disk, Table.OUTCOMES, "r"))
        with pytest.raises(RecordCorrupt) as damaged:
            store.load_outcome("r")
        assert damaged.value.what == "outcome"
        store.close()
