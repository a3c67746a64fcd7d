"""An idle actor's turn on its asker's own thread: when, and above all when not."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pykka
import pytest

from executus.actors.actor import MOST_NESTED, Actor, ActorRef, ExitReport
from executus.actors.async_run_actor import AsyncRunActor
from executus.actors.dispatcher import LoopDispatcher, ThreadDispatcher, Turn
from executus.actors.errors import AskCycle
from executus.actors.future import Promise
from executus.actors.run_actor import RunActor
from executus.actors.store_actor import StoreActor
from executus.actors.worker_pool import WorkerPool
from tests.waiting import wait_until

here = threading.get_ident


class Lent(Actor):
    """Calls what it is told and keeps a diary; its turns may run on its askers' threads."""

    caller_runs: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.diary: list[Any] = []

    def on_receive(self, message: Any) -> Any:
        self.diary.append(message)
        return message() if callable(message) else message


class Kept(Lent):
    caller_runs: ClassVar[bool] = False


class Gate:
    def __init__(self) -> None:
        self.inside = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> int:
        self.inside.set()
        assert self.opened.wait(30)
        return here()


class ByHand:
    """A dispatcher without threads: the test runs the turns. As a simulation does it."""

    def __init__(self) -> None:
        self.ready: list[Turn] = []

    def schedule(self, turn: Turn) -> None:
        self.ready.append(turn)

    def submit(self, fn: Callable[[], Any]) -> Promise[Any]:
        raise NotImplementedError


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool()
    yield pool
    assert pool.close()


def idle(pool: Any, kind: type[Actor] = Lent, **options: Any) -> ActorRef[Any]:
    """An actor that has started and waits."""
    ref = kind.start_on(pool, **options)
    wait_until(lambda: ref._idle)
    return ref


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


# --- when -------------------------------------------------------------------------------------------------------------


def test_an_idle_actor_answers_on_its_asker_s_thread(pool: WorkerPool):
    ref = idle(pool)
    assert ref.ask(here) == here()
    assert ref.ask(ref.running_thread) == here()
    assert ref.running_thread() is None
    assert ref.ask("again") == "again"
    assert ref._actor_weakref().diary[2] == "again"
    ref.stop()


def test_also_on_a_worker_s_thread_that_runs_another_actor(pool: WorkerPool):
    ref, other = idle(pool), idle(pool, Kept)
    asker, answerer = other.ask(lambda: (here(), ref.ask(here)))
    assert asker == answerer != here()
    for each in (ref, other):
        each.stop()


def test_what_is_told_meanwhile_is_handled_afterwards_by_the_pool(pool: WorkerPool):
    ref = idle(pool)
    ref.ask(lambda: [ref.tell(n) for n in range(200)])
    assert ref.ask("the last", timeout=5) == "the last"
    assert ref._actor_weakref().diary[1:-1] == list(range(200))
    ref.stop()


# --- when not ---------------------------------------------------------------------------------------------------------


def test_never_unless_the_class_says_so(pool: WorkerPool):
    ref = idle(pool, Kept)
    assert ref.ask(here) != here()
    ref.stop()


def test_never_with_a_time_out(pool: WorkerPool):
    ref = idle(pool)
    assert ref.ask(here, timeout=5) != here()
    ref.stop()


def test_never_for_a_future(pool: WorkerPool):
    ref = idle(pool)
    assert ref.ask(here, block=False).get(timeout=5) != here()
    ref.stop()


def test_never_on_the_thread_of_a_running_event_loop(pool: WorkerPool):
    ref = idle(pool)

    async def main() -> int:
        return ref.ask(here)  # it blocks the loop, which is the asker's fault

    assert asyncio.run(main()) != here()
    assert ref.ask(here) == here()
    ref.stop()


def test_never_for_an_actor_on_anything_but_a_worker_pool(pool: WorkerPool):
    thread = ThreadDispatcher()
    ref = idle(thread)
    assert ref.ask(here) != here()
    ref.stop()
    assert thread.close()
    hand = ByHand()  # as a simulation
    simulated = Lent.start_on(hand)
    hand.ready.pop().run_turn()
    with pytest.raises(pykka.Timeout):
        simulated.ask(here, timeout=0)
    assert simulated.ask(here, block=False).done() is False
    assert not simulated._lends

    async def main() -> None:
        ref = Lent.start_on(LoopDispatcher(asyncio.get_running_loop(), pool))
        loop_thread = here()
        await ref.ask("started", block=False)
        assert await asyncio.to_thread(ref.ask, here) == loop_thread
        await ref.stop(block=False)

    asyncio.run(main())


@pytest.mark.parametrize("kind", [RunActor, AsyncRunActor, StoreActor])
def test_never_for_runs_and_the_store(kind: type[Actor]):
    assert kind.caller_runs is False


def test_never_while_it_is_busy(pool: WorkerPool):
    ref = idle(pool)
    gate = Gate()
    ref.tell(gate)
    assert gate.inside.wait(5)
    answers: list[int] = []
    asker = threading.Thread(target=lambda: answers.append(ref.ask(here)))
    asker.start()
    wait_until(ref.queued)
    gate.opened.set()
    asker_s = asker.ident
    asker.join(10)
    assert len(answers) == 1
    assert answers[0] != asker_s
    ref.stop()


def test_never_before_its_on_start(pool: WorkerPool):
    gate = Gate()

    class Slow(Lent):
        def on_start(self) -> None:
            gate()

    ref = Slow.start_on(pool)
    assert gate.inside.wait(5)
    future = Promise[int]()
    asker = threading.Thread(target=lambda: future.try_set(ref.ask(here)))
    asker.start()
    wait_until(ref.queued)
    gate.opened.set()
    asker.join(10)
    assert future.result(0) != asker.ident
    ref.stop()


def test_never_after_the_pool_has_closed():
    pool = WorkerPool()
    ref = idle(pool)
    actor = ref._actor_weakref()
    assert pool.close()
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("x")
    assert actor.diary == []


def test_never_deeper_than_the_stack_bears(pool: WorkerPool):
    refs = [idle(pool) for _ in range(MOST_NESTED + 10)]

    def down(level: int) -> list[int]:
        mine = here()
        return [mine, *(refs[level + 1].ask(lambda: down(level + 1)) if level + 1 < len(refs) else [])]

    threads = refs[0].ask(lambda: down(0))
    assert len(threads) == len(refs)
    assert threads[:MOST_NESTED] == [here()] * MOST_NESTED
    assert here() not in threads[MOST_NESTED:]
    assert refs[0].ask(here) == here()  # and the count is back where it was
    for ref in refs:
        ref.stop()


# --- order, control ---------------------------------------------------------------------------------------------------


def test_what_was_told_before_comes_first_also_if_its_teller_has_not_woken_the_actor_yet(pool: WorkerPool):
    ref = idle(pool)
    diary = ref._actor_weakref().diary
    ref._queue.put("told")  # a teller between its put and its look at the token
    assert ref.ask("asked") == "asked"
    assert diary == ["told", "asked"]
    ref.stop()


def test_a_teller_s_own_order_holds_whatever_races(pool: WorkerPool):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        refs = [idle(pool) for _ in range(3)]

        def tell_then_ask(name: int) -> None:
            for n in range(300):
                for ref in refs:
                    ref.tell((name, 2 * n))
                    assert ref.ask((name, 2 * n + 1)) == (name, 2 * n + 1)

        threads = [threading.Thread(target=tell_then_ask, args=(name,)) for name in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for ref in refs:
            diary = ref._actor_weakref().diary
            for name in range(3):
                assert [n for who, n in diary if who == name] == list(range(600))
    finally:
        sys.setswitchinterval(before)
    for ref in refs:
        ref.stop()


def test_one_turn_at_a_time_however_many_ask_and_tell(pool: WorkerPool):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    class Alone(Actor):
        caller_runs: ClassVar[bool] = True
        inside = False
        handled = 0

        def on_receive(self, _message: Any) -> int:
            assert not self.inside
            self.inside = True
            self.handled = self.handled + 1
            self.inside = False
            return self.handled

    try:
        ref = idle(pool, Alone)

        def hammer(n: int) -> None:
            for i in range(500):
                if (i + n) % 3:
                    ref.ask(i)
                else:
                    ref.tell(i)

        threads = [threading.Thread(target=hammer, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert ref.ask("how many") == 2001
    finally:
        sys.setswitchinterval(before)
    ref.stop()


def test_control_goes_first_also_if_it_has_not_woken_the_actor_yet(pool: WorkerPool):
    from collections import deque

    from executus.actors.cell import Halt

    ref = idle(pool)
    actor = ref._actor_weakref()
    ref._control = deque([Halt()])
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("too late")
    assert actor.diary == []


def test_an_asker_without_pause_does_not_keep_control_away(pool: WorkerPool):
    ref = idle(pool)
    halted = threading.Thread(target=ref.halt)
    asked = 0
    with pytest.raises(pykka.ActorDeadError):
        while asked < 10_000_000:
            ref.ask(asked)
            asked += 1
            if asked == 1000:
                halted.start()
    halted.join(5)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_is_the_asker_s_and_the_actor_lives(pool: WorkerPool):
    ref = idle(pool)
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        ref.ask(raising(error))
    assert caught.value is error
    assert ref.ask(here) == here()
    ref.stop()


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), asyncio.CancelledError()], ids=repr)
def test_what_is_no_exception_ends_the_actor_and_is_not_raised_at_the_asker(pool: WorkerPool, error: BaseException):
    reports: list[ExitReport] = []
    ref = idle(pool, on_exit=reports.append)
    with pytest.raises(pykka.ActorDeadError, match=type(error).__name__) as caught:
        ref.ask(raising(error))
    assert caught.value.__cause__ is error
    assert [report.error for report in reports] == [error]


def test_a_keyboard_interrupt_in_the_handler_is_the_caller_s_and_ends_the_actor_whose_state_it_tore(pool: WorkerPool):
    reports: list[ExitReport] = []
    ref = idle(pool, on_exit=reports.append)
    pending: list[Any] = []

    def interrupted() -> None:
        pending.append(ref.ask("behind", block=False))
        signal.raise_signal(signal.SIGINT)

    # As in a terminal: a shell's background job, as these tests may be one, ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            ref.ask(interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [type(report.error) for report in reports] == [KeyboardInterrupt]
    assert reports[0].unhandled == 1
    with pytest.raises(pykka.ActorDeadError):
        pending[0].get(timeout=0)
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("x")
    assert idle(pool).ask(here) == here()


@pytest.mark.parametrize("moment", ["before the handler", "after the handler"])
def test_a_keyboard_interrupt_beside_the_handler_is_nothing_to_the_actor(pool: WorkerPool, moment: str):
    ref = idle(pool)
    inner = ref._queue

    class Interrupted:
        """The inbox, with Ctrl-C pressed while it is asked whether it is empty."""

        def __init__(self) -> None:
            self.calls = 0

        def empty(self) -> bool:
            self.calls += 1
            if self.calls == (1 if moment.startswith("before") else 2):
                ref._queue = inner
                raise KeyboardInterrupt
            return inner.empty()

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    ref._queue = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        ref.ask("interrupted")
    assert ref.ask(here) == here()
    assert len(ref._idle) == 1
    ref.stop()


def test_one_that_is_given_up_on_in_its_asker_s_hands_is_dead_and_its_answer_is_none(pool: WorkerPool):
    reports: list[ExitReport] = []
    ref = idle(pool, on_exit=reports.append)
    gate = Gate()
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            ref.ask(gate)
        except BaseException as error:
            errors.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    assert gate.inside.wait(5)
    assert ref.abandon()
    assert [report.abandoned for report in reports] == [True]
    assert pool.leaked() == 0  # the thread is the asker's
    gate.opened.set()
    asker.join(5)
    assert [isinstance(error, pykka.ActorDeadError) for error in errors] == [True]
    assert len(reports) == 1
    with pytest.raises(pykka.ActorDeadError):
        ref.tell("x")


# --- cycles -----------------------------------------------------------------------------------------------------------


def test_a_circle_of_asks_on_one_thread_raises(pool: WorkerPool):
    a, b = idle(pool), idle(pool)
    with pytest.raises(AskCycle):
        a.ask(lambda: a.ask("myself"))
    with pytest.raises(AskCycle):
        a.ask(lambda: b.ask(lambda: a.ask("round")))
    assert (a.ask("alive"), b.ask("alive")) == ("alive", "alive")
    for ref in (a, b):
        ref.stop()


def test_a_circle_over_two_threads_raises_instead_of_hanging(pool: WorkerPool):
    for _ in range(20):
        refs = [idle(pool), idle(pool)]
        both_inside = threading.Barrier(2)
        ended: list[str] = []

        def cross(n: int, refs: list[ActorRef[Any]] = refs, barrier: Any = both_inside, ended: Any = ended) -> None:
            def inside() -> Any:
                barrier.wait(10)
                return refs[1 - n].ask("from the other")

            try:
                ended.append(refs[n].ask(inside))
            except AskCycle:
                ended.append("cycle")

        threads = [threading.Thread(target=cross, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(ended) == 2
        assert "cycle" in ended
        for ref in refs:
            ref.stop()
