"""Every ending that speaks of boots and of the process's death: a daemon, a real SIGKILL, the daemon again."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from executus.stores import LmdbStore, RunStatus, Settle
from executus.stores.protocol import CheckpointStore
from tests.scenarios.harness import Daemon, Refused, bytes_of, damage
from tests.waiting import wait_until

WAITS = {"steps": ["ok", "wait"]}


def in_store(path: Path, run_id: str) -> Any:
    """What the store holds, read by a process of its own once the daemon is dead."""
    store: CheckpointStore = LmdbStore(path)
    store.open()
    try:
        return store.load(run_id)
    finally:
        store.close()


def waiting(daemon: Daemon, run_id: str, how: Any = None, kind: str = "Failable", **options: Any) -> None:
    """Start a run and have its wait on disk."""
    daemon.do("start", kind, run_id, how or WAITS, options)
    wait_until(lambda: daemon.do("status", run_id)["waiting"])
    daemon.do("durable", run_id)


def test_a_run_whose_process_died_goes_on_from_its_last_snapshot_in_the_next_attempt(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        daemon.do("start", "Failable", "r", {"steps": ["ok", "ok", "hang@1", "wait"]}, {})
        wait_until(lambda: daemon.do("hanging") == 1)
        assert daemon.do("durable", "r") == 3
    with Daemon(store_path) as daemon:
        assert daemon.event("RunResumed", "r")["strikes"] == 1
        assert daemon.event("RunRestored", "r")["resumed_from_seq"] == 3
        wait_until(lambda: daemon.do("status", "r")["waiting"])
        view = daemon.do("status", "r")
        assert (view["attempt"], view["seq"]) == (2, 5)
        daemon.do("tell", "r", "done")
        assert daemon.do("result", "r") == 4


@pytest.mark.parametrize("death", ["abort", "segfault", "exit:0"])
def test_a_run_that_takes_the_process_down_each_time_is_quarantined_after_three_strikes(
    store_path: Path, death: str
) -> None:
    with Daemon(store_path) as daemon:
        waiting(daemon, "other")
        with contextlib.suppress(AssertionError):  # it may be dead before it has answered
            daemon.do("start", "Failable", "r", {"steps": ["ok", death]}, {"save_policy": {"durability": "sync"}})
        daemon.ended()
    strikes: list[int] = []
    status = ""
    for _ in range(10):
        daemon = Daemon(store_path)
        try:
            status = daemon.opened().do("runs")["r"]
        except (AssertionError, OSError):  # dead already
            status = "running"
        if status == "running":
            daemon.ended()
        daemon.kill()
        strikes += [resumed["strikes"] for resumed in daemon.events("RunResumed", "r")]
    assert strikes == [1, 2, 3]
    assert status == "quarantined"
    with Daemon(store_path) as daemon:
        daemon.do("tell", "other", "done")
        assert daemon.do("result", "other") == 2
        outcome = daemon.do("outcome", "r")
        assert outcome["type"] == "Quarantined"
        assert "died 3 times" in outcome["reason"]
        with contextlib.suppress(AssertionError):
            daemon.do("resume", "r", False)
        daemon.ended()
    assert in_store(store_path, "r").claim.strikes == 0


def test_a_run_that_takes_the_process_down_does_not_take_the_others_into_quarantine(store_path: Path) -> None:
    others = [f"other-{number}" for number in range(12)]
    with Daemon(store_path) as daemon:
        for run_id in others:  # none of them saves anything within the first half second after a boot
            daemon.do("start", "Failable", run_id, {"steps": ["ok", "sleep:0.5", "wait"]}, {})
        for run_id in others:
            daemon.do("durable", run_id)
        with contextlib.suppress(AssertionError):  # it may be dead before it has answered
            poison = {"steps": ["ok", "abort"]}
            daemon.do("start", "Failable", "poison", poison, {"save_policy": {"durability": "sync"}})
        daemon.ended()
    deaths = 0
    for _ in range(20):
        with Daemon(store_path) as daemon:
            daemon.opened()

            def at_rest(daemon: Daemon = daemon) -> bool:
                runs = daemon.do("runs")
                return runs["poison"] == "quarantined" and all(daemon.do("status", r)["waiting"] for r in others)

            try:
                wait_until(at_rest, 20)
            except (AssertionError, OSError):  # its answer did not come: it is dead
                deaths += 1
                daemon.ended()
                continue
            for run_id in others:
                daemon.do("tell", run_id, "done")
                assert daemon.do("outcome", run_id)["type"] == "Completed"
            break
    assert deaths == 3


def test_durable_progress_clears_the_strikes(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        daemon.do("start", "Failable", "r", {"steps": ["ok", "hang@1", "hang@2", "ok", "ok", "hang@3", "wait"]}, {})
        wait_until(lambda: daemon.do("hanging") == 1)
        daemon.do("durable", "r")
    with Daemon(store_path) as daemon:
        assert daemon.event("RunResumed", "r")["strikes"] == 1
        wait_until(lambda: daemon.do("hanging") == 1)
        daemon.do("durable", "r")
        assert daemon.do("status", "r")["strikes"] == 0
    with Daemon(store_path) as daemon:
        assert daemon.event("RunResumed", "r")["strikes"] == 1
        wait_until(lambda: daemon.do("hanging") == 1)
        assert daemon.do("durable", "r") == 6
    assert in_store(store_path, "r").claim.strikes == 0


def test_a_run_that_was_waiting_gets_no_strike_however_often_the_process_dies(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        waiting(daemon, "r")
        waiting(daemon, "a", kind="AsyncFailable")
    for boot in range(5):
        with Daemon(store_path) as daemon:
            assert [daemon.event("RunResumed", run_id)["strikes"] for run_id in "ra"] == [0, 0]
            wait_until(lambda: daemon.do("status", "r")["waiting"])
            assert daemon.do("status", "r")["attempt"] == boot + 2
    with Daemon(store_path) as daemon:
        for run_id in "ra":
            daemon.do("tell", run_id, "done")
            assert daemon.do("result", run_id) == 2


def test_a_query_reaches_a_run_right_after_the_boot_that_restores_it_into_its_wait(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        for kind in ("Failable", "AsyncFailable"):
            waiting(daemon, kind, kind=kind)
    with Daemon(store_path) as daemon:
        assert [daemon.do("query", kind, "at") for kind in ("Failable", "AsyncFailable")] == [2, 2]


def test_a_damaged_newest_snapshot_falls_back_to_the_one_before_and_says_so(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        waiting(daemon, "r")
        daemon.do("tell", "r", "ok")
        wait_until(lambda: daemon.do("durable", "r") == 4)
    assert damage(store_path, "snapshots", "r", newest=1) == 1
    with Daemon(store_path) as daemon:
        restored = daemon.event("RunRestored", "r")
        assert restored["resumed_from_seq"] < 4
        assert restored["fell_back"]
        daemon.do("tell", "r", "done")
        assert daemon.do("result", "r") in {1, 2}


def test_a_run_of_which_no_generation_can_be_read_is_quarantined_whole_and_begins_anew_only_on_request(
    store_path: Path,
) -> None:
    with Daemon(store_path) as daemon:
        waiting(daemon, "r")
        waiting(daemon, "other")
        for seq in (4, 5):  # it waits at 3, and each message is one more
            daemon.do("tell", "r", "ok")
            wait_until(lambda seq=seq: daemon.do("durable", "r") == seq)
    assert damage(store_path, "snapshots", "r") == 2
    kept = bytes_of(store_path, "snapshots", "r"), bytes_of(store_path, "records", "r")
    with Daemon(store_path) as daemon:
        assert daemon.event("RunSettled", "r")["status"] == "quarantined"
        assert daemon.do("outcome", "r")["type"] == "Quarantined"
        with pytest.raises(Refused, match="from_input=True"):
            daemon.do("resume", "r", False)
        daemon.do("tell", "other", "done")
        assert daemon.do("result", "other") == 2
    assert (bytes_of(store_path, "snapshots", "r"), bytes_of(store_path, "records", "r")) == kept
    with Daemon(store_path) as daemon:
        assert not daemon.events("RunResumed", "r")
        daemon.do("resume", "r", True)
        wait_until(lambda: daemon.do("status", "r")["waiting"])
        daemon.do("tell", "r", "done")
        assert daemon.do("result", "r") == 2


@pytest.mark.parametrize(
    ("wrote", "reads", "why"),
    [
        ("plain", "stranger", "not registered"),
        ("newer", "plain", "schema 2"),
        ("plain", "raising", "a field that is not there"),
    ],
    ids=["unknown type", "newer schema", "upgrade raised"],
)
def test_what_this_code_cannot_read_is_parked_with_its_bytes_untouched_tried_at_each_boot_and_resumed_by_the_right_code(
    store_path: Path, wrote: str, reads: str, why: str
) -> None:
    with Daemon(store_path, wrote) as daemon:
        waiting(daemon, "r")
        waiting(daemon, "other", kind="AsyncFailable")
    kept = {table: bytes_of(store_path, table, "r") for table in ("snapshots", "records")}
    assert all(kept.values())
    for _ in range(2):
        with Daemon(store_path, reads) as daemon:
            settled = daemon.event("RunSettled", "r")
            assert settled["status"] == "parked"
            assert why in settled["reason"]
            assert daemon.do("runs")["r"] == "parked"
            assert daemon.do("query", "other", "at") == 2
        assert {table: bytes_of(store_path, table, "r") for table in kept} == kept
    with Daemon(store_path, wrote) as daemon:
        assert daemon.event("RunResumed", "r")["strikes"] == 0
        assert daemon.event("RunRestored", "r")["resumed_from_seq"] == 3
        daemon.do("tell", "r", "done")
        assert daemon.do("result", "r") == 2


def test_upgrade_brings_an_older_snapshot_forward_and_the_next_save_has_the_new_schema(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        waiting(daemon, "r")
    with Daemon(store_path, "newer") as daemon:
        daemon.event("RunRestored", "r")
        assert daemon.said("upgraded") == [[1, 2]]
        daemon.do("tell", "r", "ok")
        wait_until(lambda: daemon.do("durable", "r") == 4)
    with Daemon(store_path, "newer") as daemon:
        assert daemon.event("RunRestored", "r")["resumed_from_seq"] == 4
        assert not daemon.said("upgraded")


def test_a_tombstone_is_on_disk_before_the_signal_so_no_boot_resurrects_a_killed_run(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        daemon.do("start", "Failable", "r", {"steps": ["ok", "hang"]}, {"stop_policy": {"grace_s": 60}})
        wait_until(lambda: daemon.do("hanging") == 1)
        daemon.do("kill", "r")
        wait_until(
            lambda: daemon.do("runs")["r"] == "running"
        )  # it hangs within its grace: the runtime still waits for it
        deadline_s = time.monotonic() + 20
        while not _killed_on_disk(store_path):
            assert time.monotonic() < deadline_s
    with Daemon(store_path) as daemon:
        assert not daemon.events("RunResumed", "r")
        assert daemon.do("outcome", "r") == {"type": "Killed", "by": "handle", "reason": "enough"}


def _killed_on_disk(path: Path) -> bool:
    """Looked up from outside, beside the daemon: its store is locked, its file can be read."""
    import lmdb

    from executus.stores import codec

    with lmdb.open(str(path), max_dbs=16, readonly=True, lock=True) as env:
        claims = env.open_db(b"claims", create=False)
        with env.begin() as txn:
            data = txn.get(b"r", db=claims)
    assert data is not None
    return codec.decode_claim(bytes(data), b"r").status is RunStatus.KILLED


@pytest.mark.parametrize(("verb", "status"), [("stop", "stopped"), ("cancel", "cancelled")])
def test_a_run_that_was_stopped_or_cancelled_stays_so_over_boots(store_path: Path, verb: str, status: str) -> None:
    with Daemon(store_path) as daemon:
        waiting(daemon, "r")
        daemon.do(verb, "r")
    for _ in range(2):
        with Daemon(store_path) as daemon:
            assert not daemon.events("RunResumed", "r")
            assert daemon.do("runs")["r"] == status


def test_a_stopped_run_goes_on_where_it_was_once_it_is_resumed(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        waiting(daemon, "r")
        daemon.do("tell", "r", "ok")
        wait_until(lambda: daemon.do("status", "r")["seq"] == 4)  # a stop goes ahead of messages
        daemon.do("stop", "r")
    with Daemon(store_path) as daemon:
        with pytest.raises(Refused, match="RunInterrupted"):
            daemon.do("result", "r")
        daemon.do("resume", "r", False)
        assert daemon.do("query", "r", "heard") == ["ok"]
        daemon.do("tell", "r", "done")
        assert daemon.do("result", "r") == 2


def test_a_drain_suspends_and_the_next_boot_resumes_without_a_strike(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        daemon.do("start", "Failable", "r", {"steps": ["ok", "hang@1", "wait"]}, {"stop_policy": {"grace_s": 0.1}})
        waiting(daemon, "waiter")
        daemon.do(
            "start",
            "Failable",
            "backs off",
            {"steps": ["raise:ValueError@1", "wait"]},
            {"restart_policy": {"backoff": {"initial_s": 20}}},
        )
        daemon.event("RunRestarting", "backs off")
        wait_until(lambda: daemon.do("hanging") == 1)
        daemon.do("close")
        assert sorted(settled["status"] for settled in daemon.events("RunSettled")) == ["suspended"] * 3
    with Daemon(store_path) as daemon:
        for run_id in ("r", "waiter", "backs off"):
            assert daemon.event("RunResumed", run_id)["strikes"] == 0
            wait_until(lambda run_id=run_id: daemon.do("status", run_id)["waiting"])
            daemon.do("tell", run_id, "done")
            daemon.do("result", run_id)


def test_a_failed_run_keeps_its_snapshot_and_is_resumed_by_hand_after_a_boot(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        daemon.do(
            "start",
            "Failable",
            "r",
            {"steps": ["ok", "raise:ValueError@1", "wait"]},
            {"restart_policy": {"kind": "temporary"}},
        )
        assert daemon.do("outcome", "r")["type"] == "Failed"
    with Daemon(store_path) as daemon:
        assert not daemon.events("RunResumed", "r")
        outcome = daemon.do("outcome", "r")
        assert (outcome["error"]["type"], outcome["error"]["message"], outcome["phase"]) == (
            "ValueError",
            "told to",
            "step",
        )
        daemon.do("resume", "r", False)
        wait_until(lambda: daemon.do("status", "r")["waiting"])
        daemon.do("tell", "r", "done")
        assert daemon.do("result", "r") == 3


def test_a_completed_run_keeps_its_result_over_a_kill_and_drops_its_snapshots(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        daemon.do("start", "Failable", "r", {"steps": ["ok", "ok"]}, {})
        assert daemon.do("result", "r") == 2
    assert bytes_of(store_path, "snapshots", "r") == {}
    with Daemon(store_path) as daemon:
        assert daemon.do("result", "r") == 2
        daemon.do("start", "Failable", "r", {"steps": ["hang"]}, {"if_exists": "return"})
        assert daemon.do("result", "r") == 2


def test_a_run_timeout_counts_downtime(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        waiting(daemon, "short", stop_policy={"run_timeout_s": 0.5})
        waiting(daemon, "long", stop_policy={"run_timeout_s": 3600})
        began = in_store_while_down(daemon)
    wait_until(lambda: time.time() > began + 0.5, 10)
    with Daemon(store_path) as daemon:
        assert daemon.event("RunSettled", "short")["status"] == "timed_out"
        assert daemon.do("outcome", "short") == {"type": "TimedOut"}
        assert daemon.do("query", "long", "at") == 2
    assert 3590 < in_store(store_path, "long").claim.remaining_s < 3600


def in_store_while_down(daemon: Daemon) -> float:
    return float(daemon.do("status", "short")["created_at_s"])


def test_a_wait_keeps_its_deadline_over_a_boot_and_expires_at_once_when_downtime_took_it(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        waiting(daemon, "short", {"steps": ["wait:0.6", "wait"]})
        waiting(daemon, "long", {"steps": ["wait:3600", "wait"]})
        until_s = time.time() + 0.6
    wait_until(lambda: time.time() > until_s, 10)
    with Daemon(store_path) as daemon:
        wait_until(lambda: daemon.do("status", "short")["seq"] == 4)  # begin, step, WaitExpired, step
        assert daemon.do("status", "long")["seq"] == 2


def test_policies_given_to_start_survive_a_boot(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        waiting(
            daemon,
            "r",
            {"steps": ["ok", "wait", "raise:ValueError"]},
            restart_policy={"max_restarts": 1, "backoff": {"initial_s": 0.001, "factor": 1.0, "max_s": 0.001}},
            labels={"team": "blue"},
        )
    with Daemon(store_path) as daemon:
        daemon.do("tell", "r", "go")
        outcome = daemon.do("outcome", "r")
        assert (outcome["type"], outcome["restarts"]) == ("Failed", 1)
        assert daemon.do("status", "r")["labels"] == {"team": "blue"}


def test_a_run_killed_before_its_first_save_begins_again(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        daemon.do("start", "Failable", "r", {"begin": "hang@1", "steps": ["wait"]}, {})
        wait_until(lambda: daemon.do("hanging") == 1)
    with Daemon(store_path) as daemon:
        wait_until(lambda: daemon.do("status", "r")["waiting"])
        assert daemon.do("status", "r")["attempt"] == 2


def keys_of(daemon: Daemon, what: str) -> list[Any]:
    return [line[-1] for line in daemon.said("key") if line[1] == what]


@pytest.mark.parametrize("durability", ["sync", "exit"])
def test_the_idempotency_key_is_the_same_again_exactly_when_the_action_is_repeated_after_a_sigkill(
    store_path: Path, durability: str
) -> None:
    with Daemon(store_path) as daemon:
        daemon.do("start", "KeysOf", "r", "3", {"save_policy": {"durability": durability}})
        wait_until(lambda: daemon.do("status", "r")["waiting"])
    with Daemon(store_path) as again:
        wait_until(lambda: again.do("status", "r")["waiting"])
        again.do("tell", "r", "done")
        again.do("result", "r")
    before, after = ([(*line[1:3], line[4]) for line in d.said("key")] for d in (daemon, again))
    assert len(before) == len(set(before)) == 4
    if durability == "sync":
        assert len(after) == 1  # the message: nothing was repeated
        assert after[0][-1] not in {key for *_, key in before}
    else:
        assert after[:4] == before  # nothing had been saved: all was repeated, begin as well


def test_the_idempotency_key_does_not_depend_on_how_a_number_was_written_before_it_was_stored(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        daemon.do("start", "KeysOfFloats", "r", "", {"save_policy": {"durability": "sync"}})
        daemon.wait_for(lambda: len(daemon.said("key")) == 2)
    with Daemon(store_path) as again:
        again.wait_for(lambda: len(again.said("key")) == 1)
    assert (
        again.said("key")[0][2:3] + again.said("key")[0][4:] == daemon.said("key")[1][2:3] + daemon.said("key")[1][4:]
    )


def test_each_round_of_a_permanent_run_has_keys_of_its_own_also_after_a_sigkill(store_path: Path) -> None:
    keys: list[str] = []
    with Daemon(store_path) as daemon:
        daemon.do("start", "Ring", "r", 5, {})
        daemon.wait_for(lambda: len(daemon.said("key")) == 1)
        daemon.do("tell", "r", "end the round")
        daemon.wait_for(lambda: len(daemon.said("key")) == 2)
        keys = [line[-1] for line in daemon.said("key")]
        assert len(set(keys)) == 2
    with Daemon(store_path) as daemon:
        daemon.event("RunResumed", "r")
        wait_until(lambda: daemon.do("status", "r")["waiting"])
        for line in daemon.said("key"):
            assert line[-1] == keys[1]  # if begin was repeated, it was the second round's


def test_children_survive_a_sigkill_of_both_and_the_parent_hears_of_each_exactly_until_a_snapshot_took_it_in(
    store_path: Path,
) -> None:
    children = [f"p/{n}" for n in range(3)]
    with Daemon(store_path) as daemon:
        daemon.do("start", "Brood", "p", 3, {"save_policy": {"every_s": 3600}})
        wait_until(
            lambda: (
                daemon.do("status", "p")["waiting"] and all(daemon.do("status", child)["waiting"] for child in children)
            )
        )
        daemon.do("durable", "p")
        waiting_at = daemon.do("status", "p")["seq"]
        daemon.do("tell", "p/0", "done")
        daemon.wait_for(lambda: daemon.said("heard") == [["p", "0", 1]])
        wait_until(lambda: daemon.do("status", "p")["seq"] > waiting_at)  # it says so before the callback has completed
        daemon.do("durable", "p")
        daemon.do("tell", "p/1", "done")
        daemon.wait_for(lambda: len(daemon.said("heard")) == 2)  # and no snapshot takes it in
        daemon.do("durable", "p/2")
    with Daemon(store_path) as daemon:
        daemon.wait_for(lambda: daemon.said("heard"))
        daemon.do("tell", "p/2", "done")
        daemon.wait_for(lambda: len(daemon.said("heard")) == 2)
        assert [key for _, key, _ in daemon.said("heard")] == ["1", "2"]
        assert daemon.do("query", "p/2", "at") if False else True
        daemon.do("tell", "p", "done")
        assert daemon.do("result", "p") == 3


@pytest.mark.parametrize("fate", ["cancel", "kill"])
def test_children_of_a_parent_that_ended_while_the_process_died_end_as_they_were_told_to_at_the_next_boot(
    store_path: Path, fate: str
) -> None:
    with Daemon(store_path) as daemon:
        waiting(daemon, "p")
        waiting(daemon, "bystander")
    adopt(store_path, "p", "kid", fate)
    end_by_hand(store_path, "p")
    with Daemon(store_path) as daemon:
        settled = daemon.event("RunSettled", "kid")
        assert settled["status"] == {"cancel": "cancelled", "kill": "killed"}[fate]
        outcome = daemon.do("outcome", "kid")
        assert "'p'" in outcome["by"]
        assert daemon.do("query", "bystander", "at") == 2
    with Daemon(store_path) as daemon:
        assert not daemon.events("RunResumed", "kid")


def adopt(path: Path, parent: str, child: str, fate: Any) -> None:
    """Give the parent a live child, as a spawn does."""
    import msgspec

    from executus.stores import Claim, ParentLink

    store = LmdbStore(path)
    store.open()
    stored = store.load(parent)
    assert stored is not None
    assert stored.record is not None
    epoch = store.boot_epoch << 32
    claim = msgspec.structs.replace(stored.claim, run_id=child, incarnation=epoch, epoch=epoch, attempt=1)
    record = msgspec.structs.replace(
        stored.record,
        run_id=child,
        incarnation=epoch,
        parent=ParentLink(parent, stored.claim.incarnation, "k", fate),
        root_run_id=parent,
    )
    store.commit([Claim(claim=claim, expected=None, record=record)])
    store.close()


def end_by_hand(path: Path, run_id: str) -> None:
    """Settle a run as completed, as if the process had died right after that commit."""
    from executus.actors.outcomes import Completed, encode_outcome

    store = LmdbStore(path)
    store.open()
    stored = store.load(run_id)
    assert stored is not None
    store.commit(
        [
            Settle(
                token=stored.claim.token,
                status=RunStatus.COMPLETED,
                outcome=encode_outcome(Completed(1)),
                ended_at_s=0.0,
            )
        ]
    )
    store.close()


def test_a_parent_whose_row_is_damaged_does_not_keep_the_others_from_starting(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        waiting(daemon, "p")
        waiting(daemon, "bystander")
    adopt(store_path, "p", "kid", "cancel")
    assert damage(store_path, "claims", "p") == 1
    with Daemon(store_path) as daemon:
        assert daemon.do("query", "bystander", "at") == 2


def test_a_parent_comes_back_although_its_childs_type_is_not_registered_any_more(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        daemon.do("start", "Brood", "p", 2, {})
        wait_until(lambda: daemon.do("status", "p")["waiting"])
        wait_until(lambda: daemon.do("status", "p/0")["waiting"] and daemon.do("status", "p/1")["waiting"])
        for run_id in ("p", "p/0", "p/1"):
            daemon.do("durable", run_id)
    with Daemon(store_path, "stranger") as daemon:
        assert daemon.event("RunSettled", "p/0")["status"] == "parked"
        wait_until(lambda: daemon.do("status", "p")["waiting"])
    with Daemon(store_path) as daemon:
        for child in ("p/0", "p/1"):
            daemon.do("tell", child, "done")
        daemon.wait_for(lambda: len(daemon.said("heard")) == 2)


def test_sigkill_two_seconds_into_a_sixty_second_step_leaves_the_state_before_it_on_disk(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        daemon.do("start", "Failable", "r", {"steps": ["ok", "ok", "ok", "ok", "sleep:60@1", "wait"]}, {})
        wait_until(lambda: daemon.do("status", "r")["seq"] == 5)
        began_s = time.monotonic()
        wait_until(lambda: time.monotonic() > began_s + 2.0, 10)
    with Daemon(store_path) as daemon:
        assert daemon.event("RunRestored", "r")["resumed_from_seq"] == 5
