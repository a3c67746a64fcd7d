"""What a runtime records of runs that end, crash, hang and are killed: read back from the store, as `executus why` does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from executus.actors import Backoff, Failed, RestartPolicy, Run, SavePolicy, StopPolicy, Wait
from executus.actors.events import MessageExpired, RunSettled, SaveRefused
from executus.actors.flight import PROCESS_DIED, FlightRecord, decode_flight
from executus.actors.flights import load_flight
from executus.stores import (
    MAX_FLIGHT_BYTES,
    Claim,
    MemoryStore,
    Operation,
    RunClaim,
    RunStatus,
    Save,
    Verdict,
    codec,
)
from executus.stores.rows import Table
from tests.doubles import AsyncFailableRun, Do, FailableRun, Told, rigged
from tests.stores.disks import MemoryDisk, damage
from tests.waiting import elapse, wait_until

BOTH = pytest.mark.parametrize("double", [FailableRun, AsyncFailableRun], ids=["sync", "async"])


class Watched(MemoryStore):
    """Counts commits, and those operations that carried a flight record."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[list[Operation]] = []

    def commit(self, operations: Any, flushing: Any = None) -> list[Verdict]:
        self.commits.append(list(operations))
        return super().commit(operations, flushing)

    def carriers(self) -> list[Operation]:
        return [op for commit in self.commits for op in commit if getattr(op, "flight", None) is not None]


def claim_of(store: MemoryStore, run_id: str = "r") -> RunClaim:
    stored = store.load(run_id)
    assert stored is not None
    return stored.claim


def flight(store: MemoryStore, run_id: str = "r") -> FlightRecord:
    """The record in a store that no runtime has open."""
    store.open()
    try:
        found = load_flight(store, claim_of(store, run_id))
        assert found is not None
        return found
    finally:
        store.close()


def rows(store: MemoryStore) -> list[bytes]:
    store.open()
    try:
        return [key for key, _ in store._tables.page(Table.FLIGHTS, b"", None, 1 << 62)]
    finally:
        store.close()


def named(record: FlightRecord) -> list[str]:
    return [event.name for event in record.events]


# --- runs that go well -------------------------------------------------------------------------------------------------


@BOTH
def test_of_runs_that_go_well_nothing_is_written(double: Any) -> None:
    store = Watched()
    with rigged(store) as rig:
        assert rig.runtime.start(double, Told(("ok", "ok")), run_id="r").result(10) == 2
        rig.waiting(double, run_id="suspended")
        assert rig.runtime.get("suspended")._current().flight is None
    with rigged(store) as rig:
        wait_until(lambda: rig.runtime.get("suspended").status().waiting, 10)
        rig.runtime.get("suspended").tell(Do("done"))
        assert rig.runtime.get("suspended").result(10) == 1
    assert store.carriers() == []
    assert rows(store) == []


def test_a_run_whose_state_touches_no_disk_leaves_no_record() -> None:
    store = Watched()
    with rigged(store, save_policy=SavePolicy(durability="none")) as rig:
        handle = rig.runtime.start(FailableRun, Told(("raise:ValueError",)), run_id="r")
        assert isinstance(handle.outcome(10), Failed)
        assert handle._current().flight is None
    assert store.commits == []


# --- crashes -----------------------------------------------------------------------------------------------------------


@BOTH
def test_a_crash_loop_until_it_failed_shows_every_attempt_and_the_last_error(double: Any) -> None:
    store = Watched()
    with rigged(store) as rig:
        rig.runtime.start(double, Told(("ok", "raise:ValueError")), run_id="r").outcome(10)
    found = flight(store)
    assert found.status == "failed"
    assert [(one.attempt, one.how, one.phase, one.seq) for one in found.exits] == [
        (attempt, "crashed", "step", 2) for attempt in (1, 2, 3, 4)
    ]
    assert len({one.epoch for one in found.exits}) == 4
    assert [one.error for one in found.exits] == ["ValueError: told to"] * 4
    assert found.exits[-1].where.endswith(" in _perform")
    assert (found.chain[0].type, found.chain[0].message, found.chain_attempt) == ("ValueError", "told to", 4)
    assert any(frame.endswith(" in step") for frame in found.chain[0].frames)
    assert named(found)[:3] == ["RunExited", "RunRestarting", "RunRestored"]
    assert found.request is None
    # Only with commits that there were before: a claim for each restart, and the ending.
    assert [type(op).__name__ for op in store.carriers()] == ["Claim", "Claim", "Claim", "Settle"]


def test_a_run_that_came_through_after_a_crash_keeps_what_happened() -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        rig.runtime.start(FailableRun, Told(("raise:OSError@1", "ok")), run_id="r").result(10)
    found = flight(store)
    assert found.status == "completed"
    assert [(one.attempt, one.how) for one in found.exits] == [(1, "crashed"), (2, "completed")]


def test_the_causes_of_an_error_are_recorded() -> None:
    class Chained(Run[int, int, int]):
        restart_policy = RestartPolicy(kind="temporary")

        def begin(self, value: int) -> int:
            return value

        def step(self, state: int) -> int:
            try:
                return {1: 2}[state]
            except KeyError as error:
                raise RuntimeError("no \x1b[31mplace\nforged: line") from error

    store = MemoryStore()
    with rigged(store, Chained) as rig:
        rig.runtime.start(Chained, 7, run_id="r").outcome(10)
    chain = flight(store).chain
    assert [(link.relation, link.type) for link in chain] == [("raised", "RuntimeError"), ("cause", "KeyError")]
    assert chain[0].message == "no \\x1b[31mplace\\nforged: line"


def test_a_run_that_begins_wrong_is_recorded_with_its_phase() -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        rig.runtime.start(FailableRun, Told(begin="raise:MemoryError"), run_id="r").outcome(10)
    assert {(one.phase, one.seq) for one in flight(store).exits} == {("begin", 0)}


@BOTH
def test_a_stall_is_recorded_with_the_stack_of_the_hanging_step(double: Any) -> None:
    store = MemoryStore()
    with rigged(store, stop_policy=StopPolicy(idle_timeout_s=0.1)) as rig:
        assert rig.runtime.start(double, Told(("ok", "hang@1", "ok")), run_id="r").result(20) == 3
        rig.world.release.set()
    found = flight(store)
    assert [(one.attempt, one.how, one.phase) for one in found.exits] == [
        (1, "hung", "hung"),
        (2, "completed", "step"),
    ]
    assert "RunHung" in named(found)
    if double is FailableRun:
        assert found.stack is not None
        assert found.stack.when == "it hung"
        assert any("in _perform" in line for line in found.stack.lines)
        assert not any("worker_pool" in line for line in found.stack.lines)


# --- ended from outside ------------------------------------------------------------------------------------------------


def test_a_kill_is_recorded_with_who_and_why_and_where_the_step_hangs() -> None:
    store = Watched()
    with rigged(store, stop_policy=StopPolicy(grace_s=0.2)) as rig:
        handle = rig.runtime.start(FailableRun, Told(("ok", "hang")), run_id="r")
        wait_until(lambda: rig.world.hanging == 1, 10)
        handle.kill("too\nslow", by="ops", timeout_s=10)
        rig.world.release.set()
    found = flight(store)
    assert found.status == "killed"
    assert found.request is not None
    assert (found.request.what, found.request.by, found.request.reason) == ("kill", "ops", "too\\nslow")
    assert [(one.how, one.phase, one.seq) for one in found.exits] == [("killed", "step", 2)]
    assert found.stack is not None
    assert found.stack.when == "it was killed"
    assert any("in _perform" in line for line in found.stack.lines)
    assert [type(op).__name__ for op in store.carriers()] == ["Claim"]  # the tombstone


def test_a_kill_of_a_run_that_waits_has_no_stack() -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        rig.waiting().kill("enough", by="me", timeout_s=10)
    found = flight(store)
    assert (found.stack, found.exits[-1].phase) == (None, "waiting")


@pytest.mark.parametrize(
    ("verb", "status", "what", "by"),
    [
        ("cancel", "cancelled", "cancel", "me"),
        ("stop", "stopped", "stop", ""),
        ("timeout", "timed_out", "time-out", ""),
    ],
)
def test_what_ends_a_run_from_outside_is_recorded(verb: str, status: str, what: str, by: str) -> None:
    store = MemoryStore()
    limit_s = 0.3 if verb == "timeout" else None
    with rigged(store, stop_policy=StopPolicy(run_timeout_s=limit_s)) as rig:
        handle = rig.waiting()
        if verb == "cancel":
            handle.cancel("enough", by="me", timeout_s=10)
        elif verb == "stop":
            handle.stop(10)
        rig.seen.wait_for(RunSettled, "r")
    found = flight(store)
    assert (found.status, found.exits[-1].how) == (status, status.replace("_", " "))
    assert found.request is not None
    assert (found.request.what, found.request.by) == (what, by)


def test_a_step_that_does_not_stop_in_time_leaves_its_stack_with_the_ending() -> None:
    store = MemoryStore()
    with rigged(store, stop_policy=StopPolicy(grace_s=0.1)) as rig:
        handle = rig.runtime.start(FailableRun, Told(("hang",)), run_id="r")
        wait_until(lambda: rig.world.hanging == 1, 10)
        handle.cancel("enough", by="me", timeout_s=10)
        rig.world.release.set()
    found = flight(store)
    assert found.status == "cancelled"
    assert found.stack is not None
    assert found.stack.when == "it did not stop in time"
    assert any("in _perform" in line for line in found.stack.lines)
    assert "RunUnstopped" in named(found)


def test_a_drain_that_a_step_outlasts_is_recorded() -> None:
    store = MemoryStore()
    with rigged(store, stop_policy=StopPolicy(grace_s=0.1)) as rig:
        rig.runtime.start(FailableRun, Told(("hang",)), run_id="r")
        wait_until(lambda: rig.world.hanging == 1, 10)
        rig.runtime.drain(5)
        rig.world.release.set()
    found = flight(store)
    assert (found.status, found.exits[-1].how) == ("suspended", "suspended")
    assert found.request is not None
    assert found.request.what == "drain"
    assert found.stack is not None


# --- what it told of itself, and what could not be saved -----------------------------------------------------------------


class Tells(Run[int, int, int]):
    """Reports, then waits."""

    def begin(self, value: int) -> int:
        return value

    def step(self, state: int) -> Wait[int]:
        self.context.progress(3, 7, "page\n3")
        self.context.heartbeat({"page": 3})
        return Wait(state)

    def receive(self, state: int, message: str) -> Any:
        raise ValueError(message)


def test_last_heartbeat_and_progress_are_recorded_escaped() -> None:
    store = MemoryStore()
    with rigged(store, Tells) as rig:
        rig.waiting(Tells, 1)
    found = flight(store)
    assert found.status == "suspended"
    assert found.progress is not None
    assert (found.progress.done, found.progress.total, found.progress.note) == (3.0, 7.0, "page\\n3")
    assert found.heartbeat is not None
    assert found.heartbeat.details == "{'page': 3}"
    assert 0 <= found.at_s - found.heartbeat.at_s < 60


class Odd:
    def __str__(self) -> str:
        raise SystemExit(1)

    def __float__(self) -> float:
        raise SystemExit(1)


def test_what_a_run_passes_as_progress_harms_nobody() -> None:
    class TellsOddly(Tells):
        def step(self, state: int) -> Wait[int]:
            odd: Any = Odd()
            self.context.progress(odd, 1 << 2000, odd)
            self.context.heartbeat(odd)
            return Wait(state)

    store = MemoryStore()
    with rigged(store, TellsOddly) as rig:
        rig.waiting(TellsOddly, 1)
    found = flight(store)
    assert found.progress is not None
    assert (found.progress.done, found.progress.total, found.progress.note) == (None, None, "Odd")
    assert found.heartbeat is not None
    assert "whose __str__ raised SystemExit" in found.heartbeat.details


class Bag(msgspec.Struct):
    """Mutable, so that it is encoded after every step."""

    items: list[Any]


class Hoards(Run[int, Bag, int]):
    save_policy = SavePolicy(every_s=0.01)

    def begin(self, value: int) -> Bag:
        return Bag([value])

    def step(self, state: Bag) -> Any:
        if len(state.items) == 4:
            return Wait(state)
        return Bag([*state.items, object()])


def test_states_that_could_not_be_saved_are_recorded_with_why_and_how_far_behind_the_store_is() -> None:
    store = MemoryStore()
    with rigged(store, Hoards) as rig:
        handle = rig.waiting(Hoards, 1)
        assert len(rig.seen.of(SaveRefused)) == 4
        handle.kill("enough", by="me", timeout_s=10)
    found = flight(store)
    assert found.refused is not None
    assert found.refused.times == 4
    assert "object" in found.refused.why
    assert [(event.name, event.times) for event in found.events] == [("SaveRefused", 4)]
    assert found.seq > found.durable_seq


class TooLarge(Run[int, tuple[int, str], int]):
    save_policy = SavePolicy(every_s=0.01)

    def begin(self, value: int) -> tuple[int, str]:
        return (value, "")

    def step(self, state: tuple[int, str]) -> Any:
        return Wait((state[0] + 1, "x" * (17 * 1024 * 1024)))


def test_a_state_that_the_store_refuses_is_recorded_too() -> None:
    store = MemoryStore()
    with rigged(store, TooLarge) as rig:
        handle = rig.waiting(TooLarge, 1)
        rig.seen.wait_for(SaveRefused, "r")
        handle.stop(10)
    found = flight(store)
    assert found.refused is not None
    assert (found.refused.times, found.refused.seq) == (1, 2)
    assert found.seq == 2
    assert found.durable_seq < 2  # the first state may have been stored, or passed over


def test_messages_that_expired_are_among_the_events() -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        handle = rig.runtime.start(FailableRun, Told(("hang", "wait")), run_id="r")
        wait_until(lambda: rig.world.hanging == 1, 10)
        handle.send(Do("ok"), message_id="late", expires_s=0.01)
        elapse(0.02)
        rig.world.release.set()
        rig.seen.wait_for(MessageExpired, "r")
        handle.stop(10)
    assert "MessageExpired" in named(flight(store))


# --- over boots --------------------------------------------------------------------------------------------------------


def test_attempts_of_earlier_boots_stay_in_it() -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        handle = rig.runtime.start(FailableRun, Told(("raise:ValueError@1", "wait")), run_id="r")
        wait_until(lambda: handle.status().waiting, 10)
    assert [one.how for one in flight(store).exits] == ["crashed", "suspended"]
    with rigged(store) as rig:
        handle = rig.runtime.get("r")
        wait_until(lambda: handle.status().waiting, 10)
        handle.tell(Do("raise:OSError"))
        wait_until(lambda: handle.status().attempt == 4, 10)
        handle.stop(10)
    found = flight(store)
    assert [(one.attempt, one.how) for one in found.exits] == [
        (1, "crashed"),
        (2, "suspended"),
        (3, "crashed"),
        (4, "stopped"),
    ]
    assert (found.chain[0].type, found.chain_attempt) == ("OSError", 3)


def test_a_resume_by_hand_keeps_what_was_recorded() -> None:
    store = MemoryStore()
    with rigged(store, restart_policy=RestartPolicy(kind="temporary")) as rig:
        rig.runtime.start(FailableRun, Told(("raise:ValueError@1",)), run_id="r").outcome(10)
        rig.runtime.resume("r").result(10)
    found = flight(store)
    assert [(one.attempt, one.how) for one in found.exits] == [(1, "crashed")]  # the second went well: nothing to add


def test_a_new_life_of_the_id_begins_without_it() -> None:
    store = MemoryStore()
    with rigged(store, restart_policy=RestartPolicy(kind="temporary")) as rig:
        rig.runtime.start(FailableRun, Told(("raise:ValueError",)), run_id="r").outcome(10)
        rig.runtime.start(FailableRun, Told(("ok",)), run_id="r", if_exists="replace").result(10)
    assert rows(store) == []


def crashed_store(status: str) -> MemoryStore:
    """A store with a run that failed; its flight record is there."""
    store = MemoryStore()
    with rigged(store, restart_policy=RestartPolicy(kind="temporary")) as rig:
        rig.runtime.start(FailableRun, Told(("raise:ValueError@1", "wait")), run_id="r").outcome(10)
    assert flight(store).status == status
    return store


def test_an_unreadable_record_harms_no_run_and_the_next_one_says_so() -> None:
    disk = MemoryDisk()
    disk._store = crashed_store("failed")
    damage(disk, Table.FLIGHTS, "r")
    store = disk._store
    with rigged(store) as rig:
        handle = rig.runtime.resume("r")
        wait_until(lambda: handle.status().waiting, 10)
        handle.kill("enough", by="me", timeout_s=10)
    found = flight(store)
    assert [one.how for one in found.exits] == ["killed"]
    assert "cannot be read" in found.earlier
    assert "damaged" in found.earlier


def test_a_record_that_is_no_record_harms_no_run_either() -> None:
    store = crashed_store("failed")
    store.open()
    key = b"r"
    claim = claim_of(store)
    junk = codec.encode_flight(b"\xc1\xff", codec.Stamp(claim.incarnation, claim.epoch), key, "r")
    store._tables.write({Table.FLIGHTS: {key: junk}})
    store.close()
    with rigged(store) as rig:
        handle = rig.runtime.resume("r")
        wait_until(lambda: handle.status().waiting, 10)
        handle.stop(10)
    assert "cannot be read" in flight(store).earlier


class Shouts(Run[int, int, int]):
    """Fills every place there is with text."""

    restart_policy = RestartPolicy(max_restarts=12, within_s=600)

    def begin(self, value: int) -> int:
        return value

    def step(self, state: int) -> int:
        self.context.progress(1, 2, "\x1b\n" * 10_000)
        self.context.heartbeat("\U0001f600" * 10_000)
        return self.deeper(40)

    def deeper(self, left: int) -> int:
        if left:
            return self.deeper(left - 1)
        try:
            raise ValueError("\u6f22" * 100_000)
        except ValueError as error:
            raise ExceptionGroup("\x00" * 100_000, [OSError("y" * 100_000) for _ in range(100)]) from error


def test_however_much_a_run_says_its_record_stays_within_its_bound() -> None:
    store = Watched()
    policy = RestartPolicy(max_restarts=12, within_s=600, backoff=Backoff(initial_s=0.001, max_s=0.001))
    with rigged(store, Shouts) as rig:
        handle = rig.runtime.start(Shouts, 1, run_id="r", restart_policy=policy)
        assert isinstance(handle.outcome(30), Failed)
    carried = [op.flight for op in store.carriers()]  # type: ignore[union-attr]
    assert len(carried) == 13
    assert all(len(data) <= MAX_FLIGHT_BYTES for data in carried if data is not None)
    found = flight(store)
    assert found.exits[-1].attempt == 13
    assert len(found.exits) + found.exits_dropped == 13
    assert found.chain[0].type == "ExceptionGroup"


def test_the_death_of_the_process_is_recorded_at_the_boot_that_finds_it() -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        handle = rig.runtime.start(FailableRun, Told(("ok", "wait")), run_id="r")
        wait_until(lambda: handle.status().waiting, 10)
        handle.durable(10)
    # As a process leaves it that was killed in the middle of a step: running, under its boot's epoch.
    store.open()
    claim = claim_of(store)
    running = replace(claim, epoch=claim.epoch + 1, attempt=claim.attempt + 1, status=RunStatus.RUNNING)
    loaded = store.load_snapshot("r")
    assert loaded is not None
    at_work = replace(loaded.snapshot, epoch=running.epoch, seq=loaded.snapshot.seq + 1, waiting=False)
    store.commit([Claim(claim=running, expected=claim.token), Save(snapshot=at_work)])
    store.close()
    with rigged(store) as rig:
        wait_until(lambda: rig.runtime.get("r").status().waiting, 10)
        data = store.load_flight("r")  # with the claim of the resume, before its first callback
        assert data is not None
        (death,) = decode_flight(data).exits
        assert (death.how, death.attempt, death.epoch, death.seq) == (PROCESS_DIED, 2, running.epoch, at_work.seq)
