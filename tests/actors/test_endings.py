"""Every row of the table of endings, through a real runtime; the rows of boots and process deaths are in tests/scenarios."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from executus.actors import (
    Backoff,
    Cancelled,
    Completed,
    Done,
    Factory,
    Failed,
    Killed,
    NotResumable,
    Phase,
    RestartPolicy,
    Run,
    RunCancelled,
    RunEnded,
    RunFailed,
    RunInterrupted,
    RunKilled,
    RunStatus,
    RunTimedOut,
    SavePolicy,
    StopPolicy,
    TimedOut,
    Wait,
)
from executus.actors.events import RunExited, RunHung, RunRestarting, RunSettled, RunUnstopped
from executus.stores import MemoryStore
from tests.doubles import NEVER, SHORT, SOON, AsyncFailableRun, Do, FailableRun, Rig, Told, World, rigged
from tests.waiting import in_time, wait_until

BOTH = pytest.mark.parametrize("double", [FailableRun, AsyncFailableRun], ids=["sync", "async"])


def status_of(rig: Rig, run_id: str) -> RunStatus:
    (view,) = (view for view in rig.runtime.runs() if view.run_id == run_id)
    return view.status


def stored_status(store: MemoryStore, run_id: str) -> RunStatus | None:
    store.open()
    try:
        stored = store.load(run_id)
        return None if stored is None else stored.claim.status
    finally:
        store.close()


# --- completed, permanent ----------------------------------------------------------------------------------------------


@BOTH
def test_done_completes_keeps_the_result_and_drops_the_snapshot(double: Any) -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        handle = rig.runtime.start(double, Told(("ok", "ok")), run_id="r")
        assert handle.result(10) == 2
        assert handle.outcome(10) == Completed(2, durable=True)
        assert store.load_snapshot("r") is None
        assert status_of(rig, "r") is RunStatus.COMPLETED
    with rigged(store) as rig:
        assert rig.runtime.get(double, "r").result(10) == 2


class Rounds(Run[str, int, int]):
    """Permanent: a round a word; its result counts the rounds of this process."""

    restart_policy = RestartPolicy(kind="permanent", max_restarts=3, within_s=60, backoff=SOON)

    def __init__(self, begun: list[tuple[int, int]]) -> None:
        self.begun = begun

    def begin(self, _: str) -> Wait[int]:
        self.begun.append((self.context.attempt, len(self.begun)))
        return Wait(len(self.begun))

    def step(self, state: int) -> int:
        return state

    def receive(self, state: int, message: Do) -> Any:
        return Done(state)


def test_a_permanent_run_keeps_each_result_and_begins_afresh_until_its_budget_is_spent() -> None:
    store, begun = MemoryStore(), list[tuple[int, int]]()
    with rigged(store, Factory(Rounds, begun)) as rig:
        handle = rig.runtime.start(Rounds, "", run_id="r")
        seqs = []
        for rounds in range(1, 5):
            wait_until(lambda rounds=rounds: len(begun) == rounds and handle.status().waiting)
            seqs.append(handle.status().seq)
            handle.tell(Do("end this round"))
        with pytest.raises(RunFailed, match="RestartBudgetSpent"):
            handle.result(10)
        outcome = handle.outcome(0)
        assert isinstance(outcome, Failed)
        assert outcome.restarts == 3
        assert [attempt for attempt, _ in begun] == [1, 2, 3, 4]
        assert seqs == [1, 3, 5, 7]  # begin and receive, in every round
        assert not rig.seen.of(RunExited)
        assert [restarting.afresh for restarting in rig.seen.of(RunRestarting)] == [True] * 3


def test_a_permanent_runs_last_result_is_in_the_store_while_its_next_round_runs() -> None:
    from executus.actors.outcomes import decode_outcome

    store, begun = MemoryStore(), list[tuple[int, int]]()
    with rigged(store, Factory(Rounds, begun)) as rig:
        handle = rig.runtime.start(Rounds, "", run_id="r")
        wait_until(lambda: handle.status().waiting)
        handle.tell(Do("end"))
        wait_until(lambda: len(begun) == 2 and handle.status().waiting)
        kept = store.load_outcome("r")
        assert kept is not None
        assert decode_outcome(kept, int) == Completed(1)
    with rigged(store, Factory(Rounds, begun)) as rig:
        wait_until(lambda: rig.runtime.get("r").status().waiting)
        assert rig.runtime.get("r").status().seq == 3
        assert len(begun) == 2  # it was suspended in its wait, and goes on there


# --- crashes -----------------------------------------------------------------------------------------------------------


@BOTH
def test_a_transient_run_restarts_from_its_last_completed_step_with_a_growing_delay(double: Any) -> None:
    policy = RestartPolicy(backoff=Backoff(initial_s=0.01, factor=2, max_s=1, jitter=0))
    told = Told(("ok", "ok", "raise:ValueError@1", "raise:ValueError@2", "raise:ValueError@3", "ok"))
    with rigged(restart_policy=policy) as rig:
        assert rig.runtime.start(double, told, run_id="r").result(10) == 6
        assert [round(r.delay_s, 3) for r in rig.seen.of(RunRestarting)] == [0.01, 0.02, 0.04]
        assert [r.resumed_from_seq for r in rig.seen.of(RunRestarting)] == [3, 4, 5]
        assert [rig.world.count("r", f"step {n}") for n in range(6)] == [1, 1, 2, 2, 2, 1]
        assert rig.world.count("r", "begin") == 1


@BOTH
def test_a_temporary_run_fails_at_its_first_crash_and_keeps_its_snapshot(double: Any) -> None:
    store = MemoryStore()
    with rigged(store, restart_policy=NEVER) as rig:
        handle = rig.runtime.start(double, Told(("ok", "ok", "raise:ValueError")), run_id="r")
        with pytest.raises(RunFailed, match="told to") as caught:
            handle.result(10)
        outcome = caught.value.outcome
        assert isinstance(outcome, Failed)
        assert (outcome.error.type, outcome.phase, outcome.restarts) == ("ValueError", Phase.STEP, 0)
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.seq == 3


@pytest.mark.parametrize("fatal", [ValueError, "ValueError", Exception], ids=str)
def test_a_fatal_error_fails_at_once(fatal: Any) -> None:
    with rigged(restart_policy=RestartPolicy(fatal=(fatal,), backoff=SOON)) as rig:
        outcome = rig.runtime.start(FailableRun, Told(("raise:ValueError",)), run_id="r").outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.restarts == 0
        outcome = rig.runtime.start(FailableRun, Told(("raise:SystemExit@1",)), run_id="s").outcome(10)
        assert outcome == Completed(1)


def test_a_failed_run_is_resumed_by_hand_from_its_last_snapshot() -> None:
    with rigged(restart_policy=NEVER) as rig:
        handle = rig.runtime.start(FailableRun, Told(("ok", "raise:ValueError@1", "ok")), run_id="r")
        assert isinstance(handle.outcome(10), Failed)
        again = rig.runtime.resume("r")
        assert again.result(10) == 3
        assert again.status().attempt == 2
        assert rig.world.count("r", "begin") == 1
        with pytest.raises(NotResumable, match="completed"):
            rig.runtime.resume("r")


def test_a_wrong_return_is_a_crash_that_says_what_was_returned_and_the_last_state_stands() -> None:
    with rigged() as rig:
        assert rig.runtime.start(FailableRun, Told(("ok", "corrupt@1", "ok")), run_id="r").result(10) == 3
        (exited,) = rig.seen.of(RunExited)
        assert "returned object, declared is At" in exited.error.message


@BOTH
def test_a_step_without_heartbeat_is_given_up_on_as_hung_and_the_run_restarts(double: Any) -> None:
    with rigged(stop_policy=StopPolicy(idle_timeout_s=0.1)) as rig:
        handle = rig.runtime.start(double, Told(("ok", "hang@1", "ok")), run_id="r")
        assert handle.result(10) == 3
        (exited,) = rig.seen.of(RunExited, "r")
        assert exited.phase is Phase.HUNG
        assert "0.1" in exited.error.message
        (hung,) = rig.seen.of(RunHung, "r")
        assert hung.idle_s > 0.1
        if double is FailableRun:
            assert "_perform" in hung.stack
            assert rig.runtime.health().leaked_threads == 1
            rig.world.release.set()
            wait_until(lambda: rig.runtime.health().leaked_threads == 0)
        assert handle.status().attempt == 2


def test_a_hung_async_step_is_cancelled_so_that_it_does_not_go_on_beside_its_successor() -> None:
    with rigged(stop_policy=StopPolicy(idle_timeout_s=0.1)) as rig:
        handle = rig.runtime.start(AsyncFailableRun, Told(("ok", "hang@1", "wait")), run_id="r")
        wait_until(lambda: handle.status().waiting, 10)
        wait_until(lambda: rig.world.count("r", "cancelled") == 1)


class Beats(Run[int, int, int]):
    def begin(self, count: int) -> int:
        return count

    def step(self, state: int) -> Any:
        for _ in range(state):
            self.context.heartbeat({"still": "here"})
            self.context.sleep(0.02)
        return Done(state)


def test_a_step_that_beats_is_not_hung_however_long_it_takes_and_waiting_is_exempt() -> None:
    with rigged(None, Beats, stop_policy=StopPolicy(idle_timeout_s=1.0)) as rig:
        waiting = rig.waiting(run_id="waits")
        assert rig.runtime.start(Beats, 75).result(30) == 75
        assert not rig.seen.of(RunHung)
        assert waiting.status().attempt == 1


# --- ended from outside ------------------------------------------------------------------------------------------------


@BOTH
def test_cancel_ends_for_good_after_the_callback_in_hand_and_stopping(double: Any) -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        handle = rig.waiting(double)
        handle.cancel("enough", by="me", timeout_s=10)
        assert rig.world.calls[-1] == ("r", "stopping cancel")
        assert handle.outcome(0) == Cancelled("me", "enough")
        with pytest.raises(RunCancelled, match="enough"):
            handle.result(0)
        with pytest.raises(RunEnded):
            handle.tell(Do("ok"))
        with pytest.raises(NotResumable):
            rig.runtime.resume("r")
    assert stored_status(store, "r") is RunStatus.CANCELLED


@BOTH
def test_kill_ends_for_good_without_stopping_and_no_boot_resurrects_it(double: Any) -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        handle = rig.waiting(double)
        handle.kill("enough", by="me", timeout_s=10)
        assert handle.outcome(0) == Killed("me", "enough")
        with pytest.raises(RunKilled, match="enough"):
            handle.result(0)
        assert not [what for _, what in rig.world.calls if what.startswith("stopping")]
    with rigged(store) as rig:
        assert rig.runtime.get("r").outcome(0) == Killed("me", "enough")
        assert not rig.world.calls


@BOTH
def test_stop_rests_until_resumed_and_goes_on_where_it_was(double: Any) -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        handle = rig.waiting(double, Told(("ok", "wait")))
        handle.stop(10)
        assert rig.world.calls[-1] == ("r", "stopping stop")
        with pytest.raises(RunInterrupted, match="stopped"):
            handle.result(10)
    with rigged(store) as rig:
        assert status_of(rig, "r") is RunStatus.STOPPED
        handle = rig.runtime.resume("r")
        wait_until(lambda: handle.status().waiting)
        handle.tell(Do("done"))
        assert handle.result(10) == 2


@BOTH
def test_run_timeout_ends_after_stopping_and_is_not_refreshed_by_restarts(double: Any) -> None:
    policy = RestartPolicy(max_restarts=10**6, backoff=Backoff(initial_s=0.01, factor=1, max_s=0.01, jitter=0))
    with rigged(restart_policy=policy, stop_policy=StopPolicy(run_timeout_s=0.3)) as rig:
        waits = rig.waiting(double, run_id="waits")
        crashes = rig.runtime.start(double, Told(("raise:ValueError",)), run_id="crashes")
        assert waits.outcome(10) == TimedOut()
        assert ("waits", "stopping timeout") in rig.world.calls
        assert crashes.outcome(10) == TimedOut()
        with pytest.raises(RunTimedOut):
            crashes.result(0)


def test_run_timeout_ends_a_run_that_is_backing_off() -> None:
    policy = RestartPolicy(backoff=Backoff(initial_s=30, factor=1, max_s=30, jitter=0))
    with rigged(restart_policy=policy, stop_policy=StopPolicy(run_timeout_s=0.2)) as rig:
        assert rig.runtime.start(FailableRun, Told(("raise:ValueError",)), run_id="r").outcome(10) == TimedOut()


@BOTH
@pytest.mark.parametrize("verb", ["stop", "cancel", "kill"])
def test_a_callback_that_does_not_return_within_the_grace_is_given_up_on_and_can_write_nothing_afterwards(
    double: Any, verb: str
) -> None:
    store, world = MemoryStore(), World()
    hang = "hang" if double is FailableRun else "shrug"
    with rigged(store, world=world, stop_policy=SHORT) as rig:
        handle = rig.runtime.start(double, Told(("ok", hang, "ok", "wait")), run_id="r")
        wait_until(lambda: ("r", "step 1") in world.calls)
        handle.durable(10)
        getattr(handle, verb)(timeout_s=10)
        assert rig.seen.of(RunUnstopped, "r")
        expected = {"stop": RunStatus.STOPPED, "cancel": RunStatus.CANCELLED, "kill": RunStatus.KILLED}[verb]
        assert status_of(rig, "r") is expected
        world.release.set()  # the zombie wakes
        wait_until(lambda: rig.runtime.health().leaked_threads == 0)
        loaded = store.load_snapshot("r")
        assert loaded is None or loaded.snapshot.seq == 2
        assert world.count("r", "step 2") == 0
        assert status_of(rig, "r") is expected


def test_an_async_callback_is_cancelled_when_the_grace_is_over() -> None:
    with rigged(stop_policy=SHORT) as rig:
        handle = rig.runtime.start(AsyncFailableRun, Told(("hang",)), run_id="r")
        wait_until(lambda: rig.world.hanging == 1)
        handle.cancel(timeout_s=10)
        assert rig.world.count("r", "cancelled") == 1
        assert not rig.seen.of(RunUnstopped)


def test_stopping_has_the_grace_and_no_more() -> None:
    with rigged(stop_policy=SHORT) as rig:
        handle = rig.waiting(told=Told(("wait",), stopping="hang"))
        handle.cancel("enough", timeout_s=10)
        assert isinstance(handle.outcome(0), Cancelled)
        assert len(rig.seen.of(RunUnstopped)) == 1


def test_the_first_committed_ending_wins_when_cancel_races_with_completion() -> None:
    store = MemoryStore()
    endings: dict[str, Any] = {}
    with rigged(store) as rig:
        for number in range(60):
            handle = rig.waiting(run_id=f"r{number}")
            threads = [
                threading.Thread(target=handle.cancel, kwargs={"timeout_s": 10}),
                threading.Thread(target=lambda h=handle: _tell(h, "done")),
            ]
            if number % 2:
                threads.reverse()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            endings[handle.run_id] = handle.outcome(10)
    assert all(isinstance(ending, Cancelled | Completed) for ending in endings.values())
    with rigged(store) as rig:
        for run_id, ending in endings.items():
            assert rig.runtime.get(run_id).outcome(0) == ending


def _tell(handle: Any, action: str) -> None:
    try:
        handle.tell(Do(action))
    except RunEnded:
        return


# --- drain -------------------------------------------------------------------------------------------------------------


@BOTH
def test_a_drain_suspends_running_waiting_and_backing_off_runs_and_the_next_boot_resumes_them(double: Any) -> None:
    store = MemoryStore()
    slow = RestartPolicy(backoff=Backoff(initial_s=60, max_s=60))
    with rigged(store, stop_policy=SHORT) as rig:
        waits = rig.waiting(double, run_id="waits")
        hangs = rig.runtime.start(double, Told(("ok", "hang@1", "wait")), run_id="hangs")
        backs = rig.runtime.start(
            double, Told(("ok", "raise:ValueError@1", "wait")), run_id="backs", restart_policy=slow
        )
        rig.seen.wait_for(RunRestarting, "backs")
        wait_until(lambda: rig.world.hanging == 1)
        report = rig.runtime.drain(10.0)
        assert report.suspended == 3
        assert report.unsaved == ()
        assert report.unstopped == (("hangs",) if double is FailableRun else ())
        for handle in (waits, hangs, backs):
            with pytest.raises(RunInterrupted, match="suspended"):
                handle.result(0)
    world = World()
    world.calls.append(("", ""))
    with rigged(store, world=world) as rig:
        for run_id, at in (("waits", 1), ("hangs", 3), ("backs", 3)):
            handle = rig.runtime.get(double, run_id)
            wait_until(lambda handle=handle: handle.status().waiting, 10)
            assert handle.status().strikes == 0
            handle.tell(Do("done"))
            assert handle.result(10) == at
            assert world.count(run_id, "begin") == 0


@pytest.mark.parametrize("action", ["hang", "spin", "sleep:1.5"])
def test_drain_returns_within_its_time_and_half_a_second_whatever_runs_do(action: str) -> None:
    took_s = []
    unsaved = []
    for _ in range(4):
        with rigged(stop_policy=StopPolicy(grace_s=60)) as rig:
            for number in range(4):
                rig.runtime.start(FailableRun, Told((action,)), run_id=f"r{number}")
            rig.runtime.start(AsyncFailableRun, Told(("shrug",)), run_id="a")
            # Two of four, for runs that compute without end keep others of their kind from a thread.
            started = 3 if action == "spin" else 5
            wait_until(
                lambda rig=rig, started=started: (
                    len([call for call in rig.world.calls if call[1] == "step 0"]) >= started
                ),
                10,
            )
            began_s = time.monotonic()
            report = rig.runtime.drain(0.2)
            took_s.append(time.monotonic() - began_s)
            assert len(set(report.unstopped) & {f"r{number}" for number in range(4)}) >= started - 1
            assert report.suspended + len(report.unsaved) == 5, "each is accounted for"
            unsaved.append(len(report.unsaved))
            rig.world.release.set()
    # The machine is shared, and the drain's time is the harder promise: two of four must be in time, and have saved all.
    assert sorted(took_s)[1] < 0.2 + 0.5, took_s
    assert sorted(unsaved)[1] == 0, unsaved


def test_drain_returns_in_time_when_an_async_callback_blocks_the_loop() -> None:
    def took_s() -> float:
        with rigged(stop_policy=StopPolicy(grace_s=60)) as rig:
            rig.runtime.start(AsyncFailableRun, Told(("block",)), run_id="a")
            wait_until(lambda: ("a", "step 0") in rig.world.calls, 10)
            began_s = time.monotonic()
            rig.runtime.drain(0.2)
            ended_s = time.monotonic()
            rig.world.release.set()
        return ended_s - began_s

    in_time(took_s, 0.2 + 0.5)


def test_a_second_shorter_drain_does_not_wait_for_the_first() -> None:
    def took_s() -> float:
        with rigged(stop_policy=StopPolicy(grace_s=60)) as rig:
            rig.runtime.start(FailableRun, Told(("hang",)), run_id="r")
            wait_until(lambda: rig.world.hanging == 1, 10)
            first = rig.runtime._core.drain(60)
            began_s = time.monotonic()
            rig.runtime.drain(0.2)
            ended_s = time.monotonic()
            assert first.wait(10)
            rig.world.release.set()
        return ended_s - began_s

    in_time(took_s, 0.2 + 0.5)


# --- saved or not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
def test_the_last_state_is_in_the_store_once_a_run_rests_whatever_the_durability(durability: Any) -> None:
    store = MemoryStore()
    with rigged(store, save_policy=SavePolicy(durability=durability)) as rig:
        rig.waiting(told=Told(("ok", "ok", "wait"))).stop(10)
        loaded = store.load_snapshot("r")
        assert loaded is not None
        assert loaded.snapshot.seq == 4


def test_each_attempt_makes_one_exit_report_and_each_run_settles_once() -> None:
    with rigged() as rig:
        handles = [
            rig.runtime.start(FailableRun, Told(("ok", "raise:ValueError@1", "raise:SystemExit@2")), run_id=f"r{n}")
            for n in range(50)
        ]
        assert [handle.result(10) for handle in handles] == [3] * 50
        assert len(rig.seen.of(RunExited)) == 100
        wait_until(lambda: len(rig.seen.of(RunSettled)) == 50)


def test_a_thousand_sync_runs_that_each_block_a_tenth_of_a_second_all_finish_and_the_threads_shrink_again() -> None:
    with rigged() as rig:
        began_s = time.monotonic()
        handles = rig.runtime.start_many(FailableRun, {f"r{n:04}": Told(("sleep:0.1",)) for n in range(1000)})
        assert [handle.result(60) for handle in handles] == [1] * 1000
        took_s = time.monotonic() - began_s
        assert took_s < 30  # one after the other it would be 100; benchmarks measure, tests bound
        assert rig.world.count("r0000", "step 0") == 1
        assert len([what for _, what in rig.world.calls if what == "step 0"]) == 1000
        wait_until(lambda: rig.runtime.health().worker_threads <= 16, 15)
