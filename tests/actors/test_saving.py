"""When states reach the store: durabilities, the trailing save, what cannot be stored, a store that fails and comes back."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from executus.actors import (
    Completed,
    Done,
    Failed,
    InvalidMessage,
    Killed,
    Phase,
    RestartPolicy,
    Run,
    RunEnded,
    RunNotFound,
    RunStatus,
    SavePolicy,
    SaveRejected,
    StartFailed,
    StopPolicy,
    Wait,
)
from executus.actors.events import RunExited, SaveRefused, SnapshotSaved, StoreDegraded, StoreRecovered
from executus.stores import MAX_RECORD_BYTES, LmdbStore, MemoryStore, Operation, Save, StoreUnavailable, Verdict
from tests.doubles import NEVER, SHORT, AsyncFailableRun, Do, FailableRun, Told, rigged
from tests.waiting import in_time, wait_until

BOTH = pytest.mark.parametrize("double", [FailableRun, AsyncFailableRun], ids=["sync", "async"])


class Counting(MemoryStore):
    """Counts commits and saves, and fails while it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[list[Operation]] = []
        self.failing = False
        self.tries = 0

    def commit(self, operations: Sequence[Operation], *args: Any, **kwargs: Any) -> list[Verdict]:
        if operations:
            self.tries += 1
            if self.failing:
                raise StoreUnavailable("told to fail")
            self.commits.append(list(operations))
        return super().commit(operations, *args, **kwargs)

    def saves(self, run_id: str) -> list[int]:
        return [
            op.snapshot.seq
            for batch in list(self.commits)
            for op in batch
            if isinstance(op, Save) and op.snapshot.run_id == run_id
        ]


def seq_in(store: MemoryStore, run_id: str) -> int:
    loaded = store.load_snapshot(run_id)
    return 0 if loaded is None else loaded.snapshot.seq


# --- durabilities ------------------------------------------------------------------------------------------------------


@BOTH
def test_sync_commits_every_step_before_the_next_one_begins(double: Any) -> None:
    store = Counting()
    with rigged(store, save_policy=SavePolicy(durability="sync")) as rig:
        handle = rig.waiting(double, Told(("ok",) * 9 + ("wait",)))
        wait_until(lambda: handle.status().durable_seq == 11)
        assert store.saves("r") == list(range(1, 12))


@BOTH
def test_async_coalesces_what_comes_within_its_interval_and_the_last_one_is_stored(double: Any) -> None:
    store = Counting()
    with rigged(store, save_policy=SavePolicy(every_s=0.2)) as rig:
        rig.waiting(double, Told(("ok",) * 500 + ("wait",)))
        wait_until(lambda: seq_in(store, "r") == 502)
        assert len(store.saves("r")) < 20


@BOTH
def test_every_steps_saves_so_often_however_long_the_interval(double: Any) -> None:
    store = Counting()
    with rigged(store, save_policy=SavePolicy(every_s=3600, every_steps=5)) as rig:
        handle = rig.waiting(double, Told(("ok",) * 50 + ("wait",)))
        wait_until(lambda: seq_in(store, "r") >= 48)
        assert handle.status().seq == 52


@BOTH
def test_exit_saves_when_the_run_rests_and_not_before(double: Any) -> None:
    store = Counting()
    with rigged(store, save_policy=SavePolicy(durability="exit")) as rig:
        handle = rig.waiting(double, Told(("ok", "raise:ValueError@1", "wait")))
        assert store.saves("r") == []
        assert seq_in(store, "r") == 0
        handle.stop(10)
        assert seq_in(store, "r") == 4


@BOTH
def test_none_leaves_no_trace_in_the_store_and_its_id_is_known_while_it_lives(double: Any) -> None:
    store = Counting()
    with rigged(store, save_policy=SavePolicy(durability="none")) as rig:
        handle = rig.waiting(double, Told(("ok", "raise:ValueError@1", "wait")))
        assert rig.runtime.get(double, "r").run_id == "r"
        with pytest.raises(InvalidMessage, match="none"):
            handle.durable(1)
        handle.tell(Do("done"))
        assert handle.result(10) == 3
        assert handle.outcome(0) == Completed(3, durable=True) or handle.outcome(0) == Completed(3)
        assert store.commits == []
        with pytest.raises(RunNotFound):
            rig.runtime.get("r")


@BOTH
def test_what_is_stored_is_never_older_than_the_interval_also_while_the_next_step_hangs(double: Any) -> None:
    store = Counting()
    with rigged(store, save_policy=SavePolicy(every_s=0.3)) as rig:
        handle = rig.runtime.start(double, Told(("ok", "ok", "ok", "hang")), run_id="r")
        wait_until(lambda: rig.world.hanging == 1)
        wait_until(lambda: seq_in(store, "r") == 4, 5)
        assert handle.status().durable_seq == 4


def test_an_interval_of_zero_need_not_commit_every_step_but_durable_waits_for_the_newest() -> None:
    store = Counting()
    with rigged(store, save_policy=SavePolicy(every_s=0)) as rig:
        handle = rig.waiting(told=Told(("ok",) * 100 + ("wait",)))
        assert handle.durable(10) == 102
        assert seq_in(store, "r") == 102


def test_many_runs_share_commits() -> None:
    store = Counting()
    with rigged(store, save_policy=SavePolicy(every_s=0.2)) as rig:
        handles = rig.runtime.start_many(FailableRun, {f"r{n}": Told(("wait",)) for n in range(200)})
        wait_until(lambda: all(handle.status().durable_seq == 2 for handle in handles), 10)
        assert len(store.commits) < 100


def test_durable_asked_while_a_run_backs_off_is_answered_whatever_the_durability() -> None:
    from executus.actors import Backoff

    slow = RestartPolicy(backoff=Backoff(initial_s=0.2, factor=1, max_s=0.2, jitter=0))
    for durability in ("async", "exit", "sync"):
        with rigged(MemoryStore(), save_policy=SavePolicy(durability=durability), restart_policy=slow) as rig:  # type: ignore[arg-type]
            handle = rig.runtime.start(FailableRun, Told(("ok", "raise:ValueError@1", "wait")), run_id="r")
            wait_until(lambda handle=handle: handle.status().stage == "backing_off")
            assert handle.durable(10) >= 2


# --- states that leak, states that cannot be stored ----------------------------------------------------------------------


class Bag(msgspec.Struct):
    """As mutable as it gets."""

    items: list[Any]
    at: int = 0


class Careless(Run[str, Bag, list[Any]]):
    """Changes its state in place before it crashes or hangs, and keeps what it returned."""

    def begin(self, mode: str) -> Bag:
        return Bag([mode])

    def step(self, state: Bag) -> Any:
        mode = state.items[0]
        state.at += 1
        state.items.append(f"attempt {self.context.attempt}")
        if state.at == 2 and self.context.attempt == 1:
            state.items.append("must never be seen")
            if mode == "crash":
                raise ValueError(mode)
        if state.at == 2 and mode == "hang":
            self.context.sleep(60)
        return Done(state.items) if state.at == 3 else state

    def query(self, state: Bag, question: str) -> list[Any]:
        state.items.append("changed by a query")
        return state.items


def test_a_state_changed_in_place_before_a_crash_is_not_what_the_restart_gets() -> None:
    with rigged(None, Careless) as rig:
        result = rig.runtime.start(Careless, "crash").result(10)
        assert result == ["crash", "attempt 1", "attempt 2", "attempt 2"]


def test_a_state_changed_in_place_beside_a_query_is_not_what_it_sees_and_a_query_changes_nothing() -> None:
    with rigged(None, Careless, stop_policy=SHORT) as rig:
        handle = rig.runtime.start(Careless, "hang")
        wait_until(lambda: handle.status().seq == 2)
        for _ in range(2):
            assert handle.query("", 10) == ["hang", "attempt 1", "changed by a query"]


def looped() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


UNSTORABLE = {
    "a cycle": looped,
    "a 65-bit int": lambda: [1 << 65],
    "a lone surrogate": lambda: ["\ud800"],
    "an unknown type": lambda: [threading.Lock()],
    "over the cap": lambda: ["x" * (MAX_RECORD_BYTES + 1)],
}


class Hoards(Run[str, Bag, int]):
    """Its state cannot be stored between step 1 and step 3; then it can again."""

    def begin(self, what: str) -> Bag:
        return Bag([what])

    def step(self, state: Bag) -> Any:
        match state.at:
            case 0:
                return Wait(Bag(state.items, 1))
            case 1 | 2:
                return Wait(Bag([state.items[0], *UNSTORABLE[state.items[0]]()], state.at + 1))
            case 3:
                return Wait(Bag([state.items[0]], 4))
            case _:
                return Done(state.at)

    def receive(self, state: Bag, message: Do) -> Any:
        if message.action == "crash" and self.context.attempt == 1:
            raise ValueError
        return state


class Frozen(msgspec.Struct, frozen=True):
    text: str
    number: int = 0
    at: int = 0


class FrozenHoards(Run[str, Frozen, int]):
    """The same with an immutable state, which is encoded late."""

    def begin(self, what: str) -> Frozen:
        return Frozen(what)

    def step(self, state: Frozen) -> Any:
        big = {
            "a 65-bit int": Frozen(state.text, 1 << 65),
            "a lone surrogate": Frozen("\ud800"),
            "over the cap": Frozen("x" * (MAX_RECORD_BYTES + 1)),
        }
        match state.at:
            case 0:
                return Wait(Frozen(state.text, 0, 1))
            case 1:
                return Wait(msgspec.structs.replace(big[state.text], at=2))
            case 2:
                return Wait(Frozen("fine", 0, 3))
            case _:
                return Done(state.at)

    def receive(self, state: Frozen, message: Do) -> Any:
        return state


CASES = [(Hoards, what) for what in UNSTORABLE] + [
    (FrozenHoards, what) for what in ("a 65-bit int", "a lone surrogate", "over the cap")
]


@pytest.mark.parametrize(
    ("run_class", "what"), CASES, ids=[f"{run_class.__name__} {what}" for run_class, what in CASES]
)
def test_a_state_that_cannot_be_stored_is_refused_loudly_the_last_good_one_stands_and_the_run_goes_on(
    run_class: Any, what: str
) -> None:
    store = MemoryStore()
    with rigged(store, run_class, save_policy=SavePolicy(every_s=0)) as rig:
        handle = rig.runtime.start(run_class, what, run_id="r")
        wait_until(lambda: handle.status().waiting and handle.status().durable_seq == 2)
        handle.tell(Do("go"))
        refused = rig.seen.wait_for(SaveRefused, "r")
        assert refused.seq in {3, 4}
        if what == "over the cap":
            sizes = [int(number) for number in re.findall(r"\d+", refused.error.message)]
            assert len(sizes) == 2
            assert (
                sizes[0] > MAX_RECORD_BYTES >= sizes[1]
            )  # what it takes, and the cap less room for the rest of the row
        assert handle.status().durable_seq <= 3  # the one that `receive` returned may be there, the refused one is not
        while handle.status().status is RunStatus.RUNNING:
            wait_until(lambda: handle.status().waiting or handle.status().status is not RunStatus.RUNNING)
            with contextlib.suppress(SaveRejected, RunEnded):
                handle.durable(10)
            with contextlib.suppress(RunEnded):
                handle.tell(Do("go"))
            wait_until(lambda: not handle.status().messages)
        assert handle.result(10) in {3, 4}
        assert max(saved.seq for saved in rig.seen.of(SnapshotSaved, "r")) > refused.seq
        assert not rig.seen.of(RunExited)


def test_a_crash_behind_a_state_that_could_not_be_stored_restarts_from_the_last_good_one() -> None:
    with rigged(None, Hoards, save_policy=SavePolicy(every_s=0)) as rig:
        handle = rig.runtime.start(Hoards, "a cycle", run_id="r")
        wait_until(lambda: handle.status().waiting)
        handle.tell(Do("go"))
        rig.seen.wait_for(SaveRefused, "r")
        wait_until(lambda: handle.status().waiting)
        handle.tell(Do("crash"))
        rig.seen.wait_for(RunExited, "r")
        wait_until(lambda: handle.status().attempt == 2)
        wait_until(lambda: len(rig.seen.of(SaveRefused, "r")) >= 2)  # the same step was done again


def test_with_durability_sync_a_state_that_cannot_be_stored_fails_the_run() -> None:
    for run_class in (Hoards, FrozenHoards):
        with rigged(None, run_class, save_policy=SavePolicy(durability="sync"), restart_policy=NEVER) as rig:
            handle: Any = rig.runtime.start(run_class, "a 65-bit int", run_id="r")
            wait_until(lambda handle=handle: handle.status().waiting)
            handle.tell(Do("go"))
            outcome = handle.outcome(10)
            assert isinstance(outcome, Failed)
            assert outcome.error.type.endswith("SaveRejected")


def test_a_result_that_cannot_be_stored_as_declared_is_a_crash() -> None:
    class Wrong(Run[int, int, str]):
        def begin(self, n: int) -> Any:
            return Done(n)

        def step(self, state: int) -> int:
            return state

    with rigged(None, Wrong, restart_policy=NEVER) as rig:
        outcome = rig.runtime.start(Wrong, 1).outcome(10)
        assert isinstance(outcome, Failed)
        assert "cannot be kept as" in outcome.error.message


def test_one_run_whose_state_is_too_large_spoils_nobody_elses_save() -> None:
    store = MemoryStore()
    with rigged(store, FrozenHoards, save_policy=SavePolicy(every_s=0)) as rig:
        bad = rig.runtime.start(FrozenHoards, "over the cap", run_id="bad")
        wait_until(lambda: bad.status().waiting)
        good = rig.waiting(run_id="good")
        bad.tell(Do("go"))
        good.tell(Do("ok"))
        wait_until(lambda: good.status().seq == 3)  # `durable` speaks of what has completed, not of what is queued
        assert good.durable(10) == 3
        rig.seen.wait_for(SaveRefused, "bad")


# --- a store that fails ------------------------------------------------------------------------------------------------


@BOTH
def test_runs_go_on_while_the_store_fails_and_their_newest_states_are_stored_when_it_comes_back(double: Any) -> None:
    store = Counting()
    with rigged(store, save_policy=SavePolicy(every_s=0.05)) as rig:
        handles = [rig.waiting(double, Told(("ok", "wait")), run_id=f"r{n}") for n in range(5)]
        for handle in handles:
            handle.durable(10)
        store.failing = True
        for handle in handles:
            handle.tell(Do("ok"))
        rig.seen.wait_for(StoreDegraded)
        for handle in handles:
            handle.tell(Do("ok"))
            wait_until(lambda handle=handle: handle.status().seq == 5)
            assert handle.status().durable_seq == 3
        assert not rig.runtime.health().ok
        with pytest.raises(StoreUnavailable):
            handles[0].durable(10)
        store.failing = False
        rig.seen.wait_for(StoreRecovered)
        wait_until(lambda: all(handle.status().durable_seq == 5 for handle in handles))
        assert [seq_in(store, handle.run_id) for handle in handles] == [5] * 5
        assert not rig.seen.of(RunExited)
        wait_until(lambda: rig.runtime.health().ok)


def test_a_failing_store_is_left_alone_between_tries() -> None:
    store = Counting()
    with rigged(store, save_policy=SavePolicy(every_s=0)) as rig:
        handle = rig.waiting()
        handle.durable(10)
        store.failing, before = True, store.tries
        began_s = time.monotonic()
        for _ in range(400):
            handle.tell(Do("ok"))
            handle.status()
        wait_until(lambda: handle.status().messages == 0 and time.monotonic() > began_s + 0.5)
        assert store.tries - before < 20
        store.failing = False


def test_start_waits_for_a_failing_store_and_goes_through_when_it_is_back() -> None:
    store = Counting()
    with rigged(store) as rig:
        store.failing = True
        timer = threading.Timer(0.4, lambda: setattr(store, "failing", False))
        timer.start()
        handle = rig.runtime.start(FailableRun, Told(("ok",)), run_id="r")
        assert not store.failing
        assert handle.result(10) == 1
        timer.join()


def test_start_raises_when_the_store_stays_away_and_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from executus.actors import admission

    monkeypatch.setattr(admission, "START_PATIENCE_S", 0.3)  # five seconds, for people
    store = Counting()
    with rigged(store) as rig:
        store.failing = True
        with pytest.raises(StartFailed, match="told to fail"):
            rig.runtime.start(FailableRun, Told(("ok",)), run_id="r")
        store.failing = False
        with pytest.raises(RunNotFound):
            rig.runtime.get("r")
        assert rig.world.calls == []
        assert rig.runtime.start(FailableRun, Told(("ok",)), run_id="r").result(10) == 1


def test_a_restart_during_a_store_failure_runs_under_an_epoch_in_memory_that_is_claimed_with_the_next_save() -> None:
    store = Counting()
    with rigged(store, save_policy=SavePolicy(every_s=0.05)) as rig:
        handle = rig.waiting(told=Told(("ok", "wait", "raise:ValueError@1", "wait")))
        handle.durable(10)
        store.failing = True
        handle.tell(Do("go"))
        wait_until(lambda: handle.status().attempt == 2 and handle.status().waiting)
        stored = store.load("r")
        assert stored is not None
        assert stored.claim.attempt == 1
        store.failing = False
        wait_until(lambda: handle.status().durable_seq == handle.status().seq)
        stored = store.load("r")
        assert stored is not None
        assert (stored.claim.attempt, stored.claim.epoch) == (2, handle.status().epoch)
        handle.tell(Do("done"))
        assert handle.result(10) == 4


def test_a_result_is_reported_as_not_durable_after_its_grace_and_stored_when_the_store_is_back() -> None:
    store = Counting()
    with rigged(store, stop_policy=StopPolicy(result_grace_s=0.2)) as rig:
        handle = rig.waiting()
        handle.durable(10)
        store.failing = True
        handle.tell(Do("done"))
        assert handle.result(10) == 1
        assert handle.outcome(0) == Completed(1, durable=False)
        store.failing = False
        wait_until(lambda: not rig.runtime._core.table)
        assert rig.runtime.get("r").outcome(0) == Completed(1, durable=True)


def test_a_result_within_its_grace_waits_for_its_commit_and_is_durable() -> None:
    store = Counting()
    with rigged(store, stop_policy=StopPolicy(result_grace_s=20)) as rig:
        handle = rig.waiting()
        store.failing = True
        threading.Timer(0.2, lambda: setattr(store, "failing", False)).start()
        handle.tell(Do("done"))
        assert handle.outcome(10) == Completed(1, durable=True)


def test_a_kill_while_the_store_fails_takes_effect_after_the_grace_and_its_tombstone_is_committed_later() -> None:
    store = Counting()
    with rigged(store, stop_policy=SHORT) as rig:
        handle = rig.waiting()
        handle.durable(10)
        store.failing = True
        handle.kill("now", timeout_s=10)
        assert isinstance(handle.outcome(0), Killed)
        store.failing = False
        wait_until(lambda: (stored := store.load("r")) is not None and stored.claim.status is RunStatus.KILLED)


def test_with_durability_sync_a_failing_store_fails_the_run_instead() -> None:
    store = Counting()
    with rigged(
        store,
        save_policy=SavePolicy(durability="sync"),
        restart_policy=NEVER,
        stop_policy=StopPolicy(result_grace_s=0.1),
    ) as rig:
        handle = rig.waiting()
        store.failing = True
        handle.tell(Do("ok"))
        outcome = handle.outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.phase is Phase.SAVING
        assert "told to fail" in outcome.error.message
        store.failing = False


def test_a_close_while_the_store_fails_ends_in_time_and_says_what_it_could_not_save() -> None:
    def took_s() -> float:
        store = Counting()
        with rigged(store) as rig:
            handle = rig.waiting()
            handle.durable(10)
            store.failing = True
            handle.tell(Do("ok"))
            began_s = time.monotonic()
            report = rig.runtime.drain(0.3)
            ended_s = time.monotonic()
            assert report.unsaved == ("r",)
            store.failing = False
        return ended_s - began_s

    in_time(took_s, 0.3 + 0.5)


def test_a_store_whose_map_is_full_refuses_new_runs_keeps_live_ones_going_and_recovers_when_there_is_room(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from executus.actors import admission

    monkeypatch.setattr(admission, "START_PATIENCE_S", 0.2)
    store = LmdbStore(store_path, map_size_bytes=1024 * 1024, profile="process")
    with rigged(store, save_policy=SavePolicy(every_s=0), stop_policy=StopPolicy(result_grace_s=0.2)) as rig:
        handle = rig.waiting(told=Told(("wait",), ballast="x"))
        handle.durable(10)
        started: list[Any] = []
        with pytest.raises(StartFailed):
            for number in range(2000):
                started.append(
                    rig.runtime.start(FailableRun, Told(("wait",), ballast="x" * 50_000), run_id=f"b{number}")
                )
        assert started
        handle.tell(Do("ok"))
        wait_until(lambda: handle.status().seq == 3)
        assert not rig.seen.of(RunExited)
        for other in started:
            other.tell(Do("done"))
        for other in started:
            assert other.result(20) in {0, 1}
        wait_until(lambda: rig.runtime.health().ok, 20)
        assert rig.runtime.start(FailableRun, Told(("ok",)), run_id="new").result(10) == 1
        handle.tell(Do("done"))
        assert handle.outcome(10) == Completed(1, durable=True)
