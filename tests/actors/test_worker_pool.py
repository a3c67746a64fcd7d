"""The worker pool: one leader, lanes for what blocks or computes, a monitor that sees which is which."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from executus.actors import pool_monitor, worker_pool
from executus.actors.dispatcher import TurnBudget
from executus.actors.errors import DispatcherClosed
from executus.actors.future import Promise
from executus.actors.lanes import BELIEF, MANY_KINDS, Habits, Lane, Worker
from executus.actors.pool_monitor import COMPUTING_S, TICK_S, Look, is_blocked, is_computing, was_computing
from executus.actors.worker_pool import WorkerPool
from tests.waiting import wait_until


class Turn:
    """A turn that is told what to do and remembers."""

    kind: object = None

    def __init__(self, do: Callable[[], object] = lambda: None, kind: object = None) -> None:
        self.do = do
        self.kind = kind
        self.ran_on: list[str] = []
        self.refusals: list[BaseException] = []

    def run_turn(self) -> None:
        self.ran_on.append(threading.current_thread().name)
        self.do()

    def turn_refused(self, error: BaseException) -> None:
        self.refusals.append(error)


class Nap:
    """Blocks its thread for a while, as a turn does that waits for a disk."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> None:
        time.sleep(self.seconds)


class Gate:
    """Turns that block here, and do not say so, until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.inside = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.inside += 1
        assert self.opened.wait(30)


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool()
    yield pool
    assert pool.close()


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor that judges nobody: only what is done by hand happens."""
    monkeypatch.setattr(WorkerPool, "_judge", lambda *_: None)


def settled(pool: WorkerPool) -> bool:
    return pool._resting and not pool.queued() and not pool._blocking.serving and not pool._computing.serving


def learned(pool: WorkerPool, turn: Turn) -> str | None:
    lane = pool._habits.lane_of(turn)
    return None if lane is None else lane.name


# --- short turns ------------------------------------------------------------------------------------------------------


def test_a_pool_starts_no_thread_before_it_has_work():
    before = threading.active_count()
    pool = WorkerPool()
    assert (threading.active_count(), pool.threads()) == (before, 0)
    turn = Turn()
    pool.schedule(turn)
    wait_until(lambda: turn.ran_on)
    assert pool.threads() == 1
    assert pool.close()
    wait_until(lambda: threading.active_count() == before)


@pytest.mark.usefixtures("unwatched")
def test_short_turns_run_in_order_on_one_thread(pool: WorkerPool):
    order: list[int] = []
    turns = [Turn(lambda n=n: order.append(n)) for n in range(2000)]  # type: ignore[misc]
    for turn in turns:
        pool.schedule(turn)
    wait_until(lambda: turns[-1].ran_on, 20)
    assert order == list(range(2000))
    assert len({turn.ran_on[0] for turn in turns}) == pool.threads() == 1


def test_the_budget_keeps_a_flooded_actor_from_starving_others():
    assert WorkerPool.budget == TurnBudget(64, 0.001)
    assert TurnBudget().seconds is None  # a simulated dispatcher reads no clock


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="max_threads of at least 4"):
        WorkerPool(max_threads=3)


# --- turns that block -------------------------------------------------------------------------------------------------


def test_a_leader_stuck_in_a_turn_hands_on_and_its_kind_is_learned(pool: WorkerPool):
    gate = Gate()
    stuck = Turn(gate, "blocks")
    pool.schedule(stuck)
    wait_until(lambda: gate.inside == 1)
    other = Turn()
    pool.schedule(other)
    wait_until(lambda: other.ran_on)
    assert not gate.opened.is_set()
    assert learned(pool, stuck) == "blocking"
    assert other.ran_on != stuck.ran_on
    gate.opened.set()


def test_turns_that_block_are_given_more_threads_until_all_run(pool: WorkerPool):
    gate = Gate()
    for _ in range(200):
        pool.schedule(Turn(gate))
    wait_until(lambda: gate.inside == 200, 20)
    assert (pool.threads() >= 200, pool.queued()) == (True, 0)
    gate.opened.set()


def test_a_thousand_turns_that_block_a_tenth_of_a_second_run_side_by_side(pool: WorkerPool):
    # Measured 0.15 s; that they do not queue up is shown by how many are in there at once, not by the clock.
    inside, most = 0, 0
    lock = threading.Lock()
    nap = Nap(0.1)

    def counted() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        nap()
        with lock:
            inside -= 1

    turns = [Turn(counted) for _ in range(1000)]
    for turn in turns:
        pool.schedule(turn)
    wait_until(lambda: inside == 0 and all(turn.ran_on for turn in turns), 60)
    assert most > 200


@pytest.mark.usefixtures("unwatched")
def test_a_turn_that_waits_for_a_promise_hands_on_at_once(pool: WorkerPool):
    promise: Promise[str] = Promise()
    waiting = Turn(lambda: promise.result(30))
    other = Turn(lambda: promise.try_set("from another turn"))
    pool.schedule(waiting)
    pool.schedule(other)
    wait_until(lambda: other.ran_on)
    assert other.ran_on != waiting.ran_on


@pytest.mark.usefixtures("unwatched")
def test_a_look_at_a_promise_hands_nothing_on(pool: WorkerPool):
    settled_one: Promise[int] = Promise()
    settled_one.try_set(1)
    open_one: Promise[int] = Promise()
    turns = [Turn(lambda: (settled_one.result(30), open_one.wait(0))) for _ in range(10)]
    for turn in turns:
        pool.schedule(turn)
    wait_until(lambda: turns[-1].ran_on)
    assert pool.threads() == 1


def test_a_kind_that_waits_long_is_learned_although_it_handed_on_by_itself(pool: WorkerPool):
    promise: Promise[None] = Promise()
    waiting = Turn(lambda: promise.wait(30), "waits")
    pool.schedule(waiting)
    wait_until(lambda: learned(pool, waiting) == "blocking")
    promise.try_set(None)


def test_a_learned_kind_is_unlearned_after_short_turns(pool: WorkerPool):
    turn = Turn(kind="once it blocked")
    pool._habits.learn(turn, pool._blocking)
    for _ in range(BELIEF):
        before = len(turn.ran_on)
        pool.schedule(turn)
        wait_until(lambda before=before: len(turn.ran_on) > before and settled(pool))  # type: ignore[misc]
    assert learned(pool, turn) is None
    pool.schedule(turn)
    wait_until(lambda: len(turn.ran_on) == BELIEF + 1)
    leader = pool._leader
    assert leader is not None
    assert leader.thread is not None
    assert turn.ran_on[-1] == leader.thread.name


def test_a_long_turn_renews_the_belief():
    habits, lane, turn = Habits(), Lane("blocking", 9), Turn(kind="k")
    habits.learn(turn, lane)
    for _ in range(3):
        for _ in range(BELIEF - 1):
            habits.doubt(turn, 0.0)
        habits.doubt(turn, 1.0)
    assert habits.lane_of(turn) is lane
    for _ in range(BELIEF):
        habits.doubt(turn, 0.0)
    assert habits.lane_of(turn) is None


def test_kinds_that_cannot_be_told_or_hashed_cost_nothing(pool: WorkerPool):
    class Untold(Turn):
        @property
        def kind(self) -> object:
            raise ValueError("foreign code")

        @kind.setter
        def kind(self, _: object) -> None: ...

    gate = Gate()
    pool._habits.learn(Turn(kind="so that there is something to look up"), pool._blocking)
    turns = [Turn(gate, kind=["unhashable"]), Untold(gate)]
    for turn in turns:
        pool.schedule(turn)
    wait_until(lambda: gate.inside == 2)
    gate.opened.set()
    wait_until(lambda: settled(pool))


def test_kinds_without_number_are_forgotten_rather_than_kept():
    habits, lane = Habits(), Lane("blocking", 9)
    for n in range(3 * MANY_KINDS):
        habits.learn(Turn(kind=object()), lane)
        assert len(habits.known) <= MANY_KINDS, n


def test_growth_stops_at_max_threads_and_the_rest_waits():
    pool = WorkerPool(max_threads=8)
    gate = Gate()
    turns = [Turn(gate) for _ in range(20)]
    for turn in turns:
        pool.schedule(turn)
    wait_until(lambda: gate.inside >= 5)
    short = Turn(kind="another")
    pool.schedule(short)
    wait_until(lambda: short.ran_on)  # the lanes leave one thread to the leader
    assert pool.threads() <= 8
    gate.opened.set()
    wait_until(lambda: gate.inside == 20)
    assert pool.close()


def test_a_leader_stuck_when_no_thread_is_left_is_relieved_by_the_first_lane_worker_that_ends_its_turn():
    pool = WorkerPool(max_threads=4)
    gates = [Gate() for _ in range(4)]
    turns = [Turn(gate, kind=n) for n, gate in enumerate(gates)]
    for turn, gate in zip(turns, gates, strict=True):  # one after the other: each becomes the leader and gets stuck
        pool.schedule(turn)
        wait_until(lambda gate=gate: gate.inside)  # type: ignore[misc]
    assert pool.threads() == 4
    others = [Turn(kind="short") for _ in range(3)]
    for turn in others:
        pool.schedule(turn)
    blocked = Turn(gates[0], kind=0)
    pool._enter(pool._blocking, blocked)
    wait_until(lambda: pool._relief is not None)
    gates[0].opened.set()
    wait_until(lambda: all(turn.ran_on for turn in others) and blocked.ran_on)
    for gate in gates:
        gate.opened.set()
    wait_until(lambda: settled(pool))
    assert pool.close()


def test_workers_end_when_they_are_idle_also_while_there_is_a_trickle_of_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_pool, "IDLE_S", 0.1)
    pool = WorkerPool()
    gate = Gate()
    for _ in range(50):
        pool.schedule(Turn(gate))
    wait_until(lambda: gate.inside == 50)
    gate.opened.set()

    def few() -> bool:
        pool.submit(lambda: None).result(5)
        return pool.threads() <= 4

    wait_until(few, 20)
    wait_until(lambda: pool.threads() == 1)  # the leader stays
    assert pool.close()


# --- turns that compute -----------------------------------------------------------------------------------------------


class Clocks:
    """CPU clocks as the test wants them: on a busy machine real ones show less than a turn would use on an idle one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
        monkeypatch.setattr(Worker, "cpu_s", lambda _: time.monotonic() * share)
        monkeypatch.setattr("executus.actors.worker_pool.time.thread_time", lambda: time.monotonic() * share)


def test_turns_that_compute_get_two_workers_beside_the_leader_and_never_shut_the_others_out(
    monkeypatch: pytest.MonkeyPatch,
):
    Clocks(monkeypatch, share=1.0)
    pool = WorkerPool()
    gate = Gate()  # by their clocks they compute
    turns = [Turn(gate, "computes") for _ in range(50)]
    for turn in turns:
        pool.schedule(turn)
    wait_until(lambda: gate.inside >= 2)
    for _ in range(20):
        short = Turn()
        pool.schedule(short)
        wait_until(lambda short=short: short.ran_on)  # type: ignore[misc]
    assert gate.inside <= 3  # the leader that was stuck first, and two
    assert pool.threads() <= 4
    assert learned(pool, turns[0]) == "computing"
    gate.opened.set()
    wait_until(lambda: gate.inside == 50)
    assert pool.threads() <= 4
    assert pool.close()


def test_turns_that_compute_without_end_do_not_keep_their_kind_from_running_for_ever(monkeypatch: pytest.MonkeyPatch):
    Clocks(monkeypatch, share=1.0)
    monkeypatch.setattr(worker_pool, "PATIENCE_S", 0.02)
    pool = WorkerPool()
    gate = Gate()
    turns = [Turn(gate, "computes") for _ in range(6)]
    for turn in turns:
        pool.schedule(turn)
    wait_until(lambda: gate.inside == 6)
    gate.opened.set()
    wait_until(lambda: settled(pool))
    assert pool._computing.limit == worker_pool.COMPUTING_WORKERS
    assert pool.close()


def test_a_kind_that_was_taken_to_block_and_computes_changes_its_lane(monkeypatch: pytest.MonkeyPatch):
    Clocks(monkeypatch, share=1.0)
    pool = WorkerPool()
    turns = [Turn(Nap(COMPUTING_S * 1.5), "computes") for _ in range(3)]
    pool._habits.learn(turns[0], pool._blocking)
    for turn in turns:
        pool.schedule(turn)
    wait_until(lambda: learned(pool, turns[0]) == "computing")
    wait_until(lambda: all(turn.ran_on for turn in turns))
    assert pool.close()


def test_a_computing_worker_that_blocks_makes_room_for_another(monkeypatch: pytest.MonkeyPatch):
    Clocks(monkeypatch, share=0.0)
    pool = WorkerPool()
    gate = Gate()
    turns = [Turn(gate, "not any more") for _ in range(6)]
    pool._habits.learn(turns[0], pool._computing)
    for turn in turns:
        pool.schedule(turn)
    wait_until(lambda: gate.inside == 6)
    assert learned(pool, turns[0]) == "blocking"
    gate.opened.set()
    wait_until(lambda: settled(pool))  # and no lane counts one that has left it
    assert pool.close()


@pytest.mark.usefixtures("unwatched")
def test_a_computing_worker_that_waits_for_a_promise_makes_room_at_once():
    pool = WorkerPool()
    promise: Promise[None] = Promise()
    turns = [Turn(lambda: promise.wait(30), "computes, then waits") for _ in range(6)]
    pool._habits.learn(turns[0], pool._computing)
    for turn in turns:
        pool.schedule(turn)
    wait_until(lambda: all(turn.ran_on for turn in turns))
    promise.try_set(None)
    wait_until(lambda: settled(pool))
    assert pool.close()


@pytest.mark.usefixtures("unwatched")
def test_a_worker_sent_elsewhere_before_it_arrives_is_not_waited_for_for_ever(pool: WorkerPool):
    # The monitor judged it by a turn that it has ended since, and moved it. Its lane took it to be coming still, sent
    # for nobody any more, and its turns waited for ever.
    pool.schedule(Turn())
    wait_until(lambda: settled(pool))  # there is a leader
    pool.submit(lambda: None).result(5)
    wait_until(lambda: pool._idle)
    with pool._lock:
        sent = pool._fill(pool._computing)
        assert sent is not None
        assert pool._computing.coming is sent
        pool._leave(sent)
        pool._join(sent, pool._blocking)
    turns = [Turn(kind="computes") for _ in range(3)]
    pool._habits.learn(turns[0], pool._computing)
    for turn in turns:
        pool.schedule(turn)
    wait_until(lambda: all(turn.ran_on for turn in turns))
    wait_until(lambda: settled(pool))


def test_who_uses_no_cpu_is_blocked_and_who_waits_for_the_gil_is_given_time():
    assert is_blocked(0.0, TICK_S * 2, contenders=0)
    assert not is_blocked(0.0, TICK_S * 1.5, contenders=0)
    assert not is_blocked(0.0, TICK_S * 7, contenders=2)
    assert is_blocked(0.0, TICK_S * 8, contenders=2)
    assert not is_blocked(TICK_S, TICK_S * 2, contenders=0)
    assert is_blocked(None, TICK_S * 2, contenders=0)  # where it cannot be told
    assert is_computing(0.03, 0.2)
    assert not is_computing(0.03, 5.0)  # an answer that took long to come and some work to read
    assert not is_computing(0.01, 0.01)
    assert not is_computing(None, 5.0)


def test_a_turn_that_computed_among_many_is_told_by_what_the_process_computed_meanwhile():
    # One of 400 that compute 5 ms each: it took 2 s, and the process computed all the while.
    assert was_computing(0.005, 2.0, process_s=2.0, starved_share=0.0)
    # The same where other processes had four fifths of the CPU.
    assert was_computing(0.005, 10.0, process_s=2.0, starved_share=0.8)
    # An answer that took half a second to come, and 5 ms to read, beside a few like it.
    assert not was_computing(0.005, 0.5, process_s=0.1, starved_share=0.0)
    # One that hardly computes keeps nobody waiting, whatever the others do.
    assert not was_computing(0.001, 2.0, process_s=2.0, starved_share=0.0)


def test_time_in_which_a_turn_only_lacked_a_cpu_is_no_sign_that_it_blocks(monkeypatch: pytest.MonkeyPatch):
    starved_s = 0.0
    monkeypatch.setattr(Worker, "starved_s", lambda _: starved_s)
    monkeypatch.setattr(Worker, "cpu_s", lambda _: 0.0)
    worker = Worker()
    look = Look(worker)
    look.at_s -= 1.0
    starved_s = 0.999
    used_s, over_s = look.since(worker)
    assert not is_blocked(used_s, over_s, contenders=0)
    starved_s = 0.5
    used_s, over_s = look.since(worker)
    assert is_blocked(used_s, over_s, contenders=0)


def test_how_long_a_thread_lacked_a_cpu_is_read_where_the_system_tells_it(pool: WorkerPool):
    pool.submit(lambda: None).result(5)
    with pool._lock:
        workers = list(pool._workers)
    assert all(worker.starved_s() >= 0.0 for worker in workers)
    assert Worker().starved_s() == 0.0


def test_the_cpu_clock_of_a_worker_shows_what_it_computes(pool: WorkerPool):
    if not hasattr(time, "pthread_getcpuclockid"):
        pytest.skip("the system does not tell the CPU time of another thread")

    def burn() -> None:
        until_s = time.thread_time() + 0.05
        while time.thread_time() < until_s:
            pass

    burning = Turn(burn)
    pool.schedule(Turn())
    wait_until(lambda: settled(pool))
    leader = pool._leader
    assert leader is not None
    before_s = leader.cpu_s()
    pool.schedule(burning)
    wait_until(lambda: burning.ran_on and leader.turn is None, 20)
    after_s = leader.cpu_s()
    assert before_s is not None
    assert after_s is not None
    assert 0.05 <= after_s - before_s < 1


# --- no wake-up is lost: the windows that a race rarely hits, by hand -------------------------------------------------


@pytest.mark.usefixtures("unwatched")
def test_a_turn_that_comes_while_the_leader_lies_down_is_found():
    pool, worker, turn = WorkerPool(), Worker(), Turn()
    pool._leader, pool._resting = worker, False
    pool._ready.append(turn)  # by one who read `_resting` just before it is set
    assert pool._rest(worker) is turn
    assert not pool._resting


@pytest.mark.usefixtures("unwatched")
def test_a_turn_that_comes_while_the_last_worker_leaves_a_lane_is_served(pool: WorkerPool):
    turn = Turn()
    worker, lane = Worker(), pool._blocking
    with pool._lock:
        pool._join(worker, lane)
    lane.limit = 1  # so that who brings it finds no room
    take, looked = pool._take, []

    def late(worker: Worker, lane: Lane, *, arriving: bool) -> Any:
        found = take(worker, lane, arriving=arriving)
        if not looked:
            looked.append(True)
            pool._enter(lane, turn)
        return found

    pool._take = late  # type: ignore[method-assign]
    pool._serve(worker, lane)
    wait_until(lambda: turn.ran_on)


@pytest.mark.usefixtures("unwatched")
def test_the_role_of_a_leader_that_has_gone_to_rest_is_not_handed_on(pool: WorkerPool):
    pool.schedule(Turn())
    wait_until(lambda: settled(pool))
    leader = pool._leader
    assert leader is not None
    pool._hand_on(leader, pool._blocking)  # by a monitor that saw it in its turn just before
    pool._relief = pool._blocking
    pool._relieve_leader(leader)
    assert pool._leader is leader
    turn = Turn()
    pool.schedule(turn)
    wait_until(lambda: turn.ran_on)
    wait_until(lambda: settled(pool))


def test_a_worker_taken_while_its_idle_time_runs_out_takes_the_role():
    pool, worker = WorkerPool(), Worker()
    pool._workers.add(worker)
    taken: list[bool] = []

    class Parked:
        """Times out, and is released just then."""

        def acquire(self, timeout: float = -1) -> bool:
            if timeout >= 0:
                with pool._lock:
                    assert pool._fill(None) is worker
                taken.append(True)
                return False
            return True

        def release(self) -> None: ...

    worker.parked = Parked()  # type: ignore[assignment]
    pool._leader = Worker()  # there is another; it hands on
    assert pool._next_post(worker)
    assert taken
    assert pool._leader is worker
    pool._leader = None
    pool._workers.clear()
    assert pool.close()


# --- threads that are given up on or cannot be had --------------------------------------------------------------------


@pytest.mark.parametrize("where", ["leading", "blocking", "computing"])
def test_an_abandoned_turn_is_counted_as_leaked_and_its_thread_replaced(where: str, pool: WorkerPool):
    gate = Gate()
    stuck, waiting = Turn(gate, "stuck"), Turn(kind="stuck")
    if where != "leading":
        pool._habits.learn(stuck, pool._blocking if where == "blocking" else pool._computing)
    for lane in pool._lanes:
        lane.limit = 1
    pool.schedule(stuck)
    wait_until(lambda: gate.inside == 1)
    pool.schedule(waiting)
    pool.abandoned(stuck)
    wait_until(lambda: waiting.ran_on)
    assert pool.leaked() == 1
    pool.abandoned(stuck)
    assert pool.leaked() == 1
    gate.opened.set()
    wait_until(lambda: pool.leaked() == 0)
    wait_until(lambda: settled(pool))


def test_abandoning_a_turn_that_is_not_running_changes_nothing(pool: WorkerPool):
    turn = Turn()
    pool.schedule(turn)
    wait_until(lambda: turn.ran_on and settled(pool))
    pool.abandoned(turn)
    pool.abandoned(Turn())
    assert pool.leaked() == 0
    assert pool.submit(lambda: 1).result(5) == 1


@pytest.mark.parametrize("stuck_is", ["in its turn", "abandoned"])
def test_a_stuck_leader_is_replaced_as_soon_as_threads_can_be_had_again(stuck_is: str, monkeypatch: pytest.MonkeyPatch):
    told: list[BaseException] = []

    def tell(error: BaseException) -> None:
        told.append(error)
        raise SystemExit("the report fails as well")

    pool = WorkerPool(on_start_error=tell)
    gate = Gate()
    stuck = Turn(gate, "stuck")
    pool.schedule(stuck)
    start = threading.Thread.start

    def exhausted(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    wait_until(lambda: gate.inside == 1 and pool._monitor._thread is not None)
    monkeypatch.setattr(threading.Thread, "start", exhausted)
    if stuck_is == "abandoned":
        pool.abandoned(stuck)
    turns = [Turn() for _ in range(5)]
    for turn in turns:
        pool.schedule(turn)
    job = pool.submit(lambda: "a lane's turn")
    wait_until(lambda: pool.start_errors > 3)  # each tick tries again
    monkeypatch.setattr(threading.Thread, "start", start)
    wait_until(lambda: all(turn.ran_on for turn in turns))
    assert job.result(5) == "a lane's turn"
    assert isinstance(told[0], RuntimeError)
    gate.opened.set()
    wait_until(lambda: settled(pool))
    assert pool.close()


def test_a_leader_that_found_no_successor_leads_on_when_its_turn_ends(monkeypatch: pytest.MonkeyPatch):
    pool = WorkerPool()
    gate = Gate()
    pool.schedule(Turn(gate, "stuck"))
    wait_until(lambda: gate.inside == 1 and pool._monitor._thread is not None)
    monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start")))
    turn = Turn()
    pool.schedule(turn)
    wait_until(lambda: pool.start_errors > 0)
    gate.opened.set()
    wait_until(lambda: turn.ran_on)  # without a second thread ever
    assert pool.threads() == 1
    monkeypatch.undo()
    assert pool.close()


def test_a_pool_that_could_not_start_even_its_first_thread_recovers(monkeypatch: pytest.MonkeyPatch):
    pool = WorkerPool()
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start")))
    first, job = Turn(), pool.submit(lambda: 1)
    pool.schedule(first)
    assert not first.ran_on
    monkeypatch.setattr(threading.Thread, "start", start)
    second = Turn()
    pool.schedule(second)
    wait_until(lambda: first.ran_on and second.ran_on)
    assert job.result(5) == 1  # the monitor is there as well, and saw to it
    assert pool.close()


def test_a_start_that_was_interrupted_is_the_callers_and_costs_the_pool_nothing(monkeypatch: pytest.MonkeyPatch):
    pool = WorkerPool()
    start = threading.Thread.start
    interrupted: list[str] = []

    def ctrl_c(thread: threading.Thread) -> None:
        if not interrupted and not thread.name.endswith("monitor"):
            interrupted.append(thread.name)
            raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", ctrl_c)
    turn = Turn()
    with pytest.raises(KeyboardInterrupt):
        pool.schedule(turn)
    wait_until(lambda: turn.ran_on)
    assert pool.close()


def test_a_worker_that_nobody_came_to_start_is_started_by_the_monitor(pool: WorkerPool):
    pool.schedule(Turn())
    wait_until(lambda: settled(pool))
    with pool._lock:  # as by one whose `schedule` ends here, with a KeyboardInterrupt
        sent = pool._fill(pool._blocking)
    assert sent is not None
    assert pool.submit(lambda: 1).result(5) == 1


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unwatched")
def test_close_is_bounded_and_refuses_what_did_not_run():
    pool = WorkerPool(max_threads=4)
    gate = Gate()
    pool.schedule(Turn(gate))
    stuck = pool.submit(gate)
    wait_until(lambda: gate.inside == 2)
    waiting = [Turn() for _ in range(3)]
    for turn in waiting:
        pool.schedule(turn)
    job = pool.submit(lambda: 1)  # one thread for what blocks, and that is taken
    assert not pool.close(0.05)
    assert [len(turn.refusals) for turn in waiting] == [1, 1, 1]
    assert isinstance(waiting[0].refusals[0], DispatcherClosed)
    with pytest.raises(DispatcherClosed):
        job.result(5)
    gate.opened.set()
    wait_until(pool.close)
    stuck.result(5)


def test_a_turn_that_comes_while_the_pool_closes_is_refused():
    pool, turn = WorkerPool(), Turn()

    def close_meanwhile() -> None:
        assert pool.close()

    pool._rouse = close_meanwhile  # type: ignore[method-assign]  # between the append and the look at `_closed`
    pool.schedule(turn)
    assert (len(turn.refusals), turn.ran_on, pool.queued()) == (1, [], 0)


def test_closing_while_a_thread_starts_waits_for_that_thread(monkeypatch: pytest.MonkeyPatch):
    pool = WorkerPool()
    start = threading.Thread.start
    starting, go_on = threading.Event(), threading.Event()

    def slow(thread: threading.Thread) -> None:
        if thread.name.startswith("executus-worker") and not thread.name.endswith("monitor"):
            starting.set()
            assert go_on.wait(20)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", slow)
    turn = Turn()
    scheduler = threading.Thread(target=pool.schedule, args=(turn,))
    scheduler.start()
    assert starting.wait(20)
    assert not pool.close(0.01)
    go_on.set()
    assert pool.close(20)
    scheduler.join()
    assert (len(turn.refusals), turn.ran_on) == (1, [])


# --- the monitor ------------------------------------------------------------------------------------------------------


def test_the_monitor_sleeps_when_there_is_nothing_to_do_and_wakes_with_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool_monitor, "QUIET_TICKS", 2)
    pool = WorkerPool()
    for n in range(3):
        gate = Gate()
        for _ in range(8):
            pool.schedule(Turn(gate, kind=n))
        wait_until(lambda gate=gate: gate.inside == 8)  # type: ignore[misc]
        gate.opened.set()
        wait_until(pool._monitor.is_asleep)
    assert pool.close()


def test_a_monitor_that_stumbles_goes_on(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch):
    judge = pool._judge
    stumbled = threading.Event()

    def stumble(*args: Any) -> None:
        if not stumbled.is_set():
            stumbled.set()
            raise SystemExit("the monitor must not die")
        judge(*args)

    monkeypatch.setattr(pool, "_judge", stumble)
    gate = Gate()
    for _ in range(20):
        pool.schedule(Turn(gate))
    wait_until(lambda: gate.inside == 20)
    assert stumbled.is_set()
    gate.opened.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_monitor_that_died_is_replaced_when_the_leader_is_next_roused(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
):
    pool.schedule(Turn())
    wait_until(lambda: pool._monitor._thread is not None and settled(pool))
    with monkeypatch.context() as patch:
        patch.setattr(pool_monitor, "log_contained", lambda *_: (_ for _ in ()).throw(SystemExit))  # dies, silently
        patch.setattr(pool._monitor, "_tick", lambda: 1 / 0)
        pool._monitor.wake()
        dead = pool._monitor._thread
        assert dead is not None
        wait_until(lambda: not dead.is_alive())
    gate = Gate()
    for _ in range(5):
        pool.schedule(Turn(gate))
    wait_until(lambda: gate.inside == 5)
    gate.opened.set()
