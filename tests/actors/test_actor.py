"""The pykka seam. Each hazard of pykka that it mends has a test that names it."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pykka
import pytest

from executus.actors.actor import (
    Actor,
    ActorEnded,
    ActorFuture,
    ActorRef,
    AskTimeout,
    ExitReport,
    default_dispatcher,
)
from executus.actors.dispatcher import Dispatcher, LoopDispatcher, ThreadDispatcher, Turn
from executus.actors.errors import AskCycle, DispatcherClosed, MailboxClosed, MailboxFull, RuntimeForked
from executus.actors.future import Promise
from executus.actors.worker_pool import WorkerPool
from tests.waiting import wait_until

TWELVE = [
    ValueError("value"),
    KeyError("key"),
    OSError(5, "io"),
    MemoryError(),
    RecursionError("deep"),
    StopIteration(1),
    ExceptionGroup("group", [ValueError("inner")]),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError(),
    BaseExceptionGroup("base group", [SystemExit(1)]),
]
"""The twelve: five of every day, three that machinery likes to swallow, four that are no Exception."""

NO_EXCEPTIONS = [error for error in TWELVE if not isinstance(error, Exception)]


class Obedient(Actor):
    """Does what it is told: calls a message that can be called, echoes the rest, and keeps a diary."""

    def __init__(self, **hooks: Callable[[], object]) -> None:
        super().__init__()
        self.hooks = hooks
        self.diary: list[Any] = []

    def _hook(self, name: str) -> None:
        self.diary.append(name)
        if name in self.hooks:
            self.hooks[name]()

    def on_start(self) -> None:
        self._hook("on_start")

    def on_stop(self) -> None:
        self._hook("on_stop")

    def on_failure(self, *info: Any) -> None:
        self._hook("on_failure")

    def on_receive(self, message: Any) -> Any:
        self.diary.append(message)
        return message() if callable(message) else message


class Plain(Actor):
    def on_receive(self, message: Any) -> Any:
        return message() if callable(message) else message

    def double(self, n: int) -> int:
        return 2 * n


class Gate:
    """A message that blocks its actor until the test opens it."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> str:
        self.inside.set()
        assert self.opened.wait(30)
        return "through"


class Nap:
    """A message that takes two milliseconds."""

    def __call__(self) -> None:
        time.sleep(0.002)


class ByHand:
    """A dispatcher without threads: the test runs the turns. As a simulation does it."""

    def __init__(self) -> None:
        self.ready: list[Turn] = []

    def schedule(self, turn: Turn) -> None:
        assert turn not in self.ready, "scheduled twice"
        self.ready.append(turn)

    def submit(self, fn: Callable[[], Any]) -> Promise[Any]:
        raise NotImplementedError

    def step(self) -> None:
        self.ready.pop(0).run_turn()

    def run(self) -> None:
        while self.ready:
            self.step()


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool()
    yield pool
    assert pool.close()


@pytest.fixture
def by_hand() -> ByHand:
    return ByHand()


@pytest.fixture
def reports() -> list[ExitReport]:
    return []


def actor_of(ref: ActorRef[Any]) -> Any:
    actor = ref._actor_weakref()
    assert actor is not None
    return actor


# --- pykka's API ------------------------------------------------------------------------------------------------------


def test_an_actor_answers_asks_and_proxies_and_stops(pool: WorkerPool):
    ref = Plain.start_on(pool)
    assert isinstance(ref, pykka.ActorRef)
    assert ref.is_alive()
    assert ref.ask("hello") == "hello"
    assert ref.ask("later", block=False).get(timeout=5) == "later"
    assert ref.proxy().double(21).get(timeout=5) == 42
    assert ref.stop() is True
    assert not ref.is_alive()
    assert ref.stop() is False


def test_start_uses_a_default_dispatcher_of_daemon_threads():
    ref = Plain.start()
    assert ref.ask(lambda: threading.current_thread().daemon, timeout=5)
    assert default_dispatcher() is default_dispatcher()
    ref.stop()


def test_arguments_go_to_the_constructor_also_one_named_on_exit(pool: WorkerPool):
    class Named(Plain):
        def __init__(self, value: int, *, on_exit: str = "none") -> None:
            super().__init__()
            self.values = (value, on_exit)

    plain = Named.start(1, on_exit="mine")
    assert plain.proxy().values.get(timeout=5) == (1, "mine")
    plain.stop()


def test_hooks_run_in_order_and_messages_in_the_order_told(by_hand: ByHand):
    ref = Obedient.start_on(by_hand)
    actor = actor_of(ref)
    for n in range(5):
        ref.tell(n)
    ref.stop(block=False)
    ref.tell("after the stop")
    by_hand.run()
    assert actor.diary == ["on_start", 0, 1, 2, 3, 4, "on_stop"]


def test_start_does_not_wait_for_on_start(by_hand: ByHand):
    ref = Obedient.start_on(by_hand)
    assert actor_of(ref).diary == []
    assert ref.is_alive()


def test_what_the_constructor_raises_is_raised_by_start(by_hand: ByHand):
    class Broken(Actor):
        def __init__(self) -> None:
            raise ValueError("no")

    class Forgetful(Actor):
        def __init__(self) -> None:
            pass

    with pytest.raises(ValueError, match="no"):
        Broken.start_on(by_hand)
    with pytest.raises(AssertionError, match="super"):
        Forgetful.start_on(by_hand)
    assert by_hand.ready == []


def test_an_actor_may_tell_itself_while_it_is_constructed(by_hand: ByHand):
    class Eager(Obedient):
        def __init__(self) -> None:
            super().__init__()
            self.actor_ref.tell("first")
            self.actor_ref.tell_control("control")

    ref = Eager.start_on(by_hand)
    actor = actor_of(ref)
    ref.tell("second")
    by_hand.run()
    assert actor.diary == ["on_start", "control", "first", "second"]


def test_an_actor_that_stops_itself_handles_first_what_is_queued(by_hand: ByHand):
    ref = Obedient.start_on(by_hand)
    actor = actor_of(ref)
    ref.tell(actor.stop)
    ref.tell("queued before the stop")
    by_hand.run()
    assert actor.diary[2:] == ["queued before the stop", "on_stop"]
    actor.stop()


def test_refs_have_names_of_their_own_that_stay(by_hand: ByHand):
    refs = [Plain.start_on(by_hand) for _ in range(100)]
    assert len({ref.actor_urn for ref in refs}) == 100
    assert refs[0].actor_urn == refs[0].actor_urn == actor_of(refs[0]).actor_urn
    assert "Plain" in str(refs[0])
    assert "Plain" in repr(refs[0])


def test_actor_stopped_is_an_event_as_in_pykka(pool: WorkerPool):
    ref = Plain.start_on(pool)
    stopped = ref.actor_stopped
    assert not stopped.is_set()
    ref.stop(block=False)
    assert stopped.wait(5)
    assert ref.actor_stopped.is_set()


def test_a_future_may_be_told_as_a_message_like_anything_else(pool: WorkerPool):
    ref = Plain.start_on(pool)
    gate = Gate()
    pending = ref.ask(gate, block=False)
    echo = ref.ask(pending, block=False)
    gate.opened.set()
    assert echo.get(timeout=5) is pending
    ref.stop()


# --- futures ----------------------------------------------------------------------------------------------------------


def test_futures_map_filter_join_and_reduce_as_in_pykka():
    one: ActorFuture[Any] = ActorFuture()
    two: ActorFuture[Any] = ActorFuture()
    mapped = one.map(lambda values: [2 * value for value in values])
    filtered = one.filter(lambda value: value > 1)
    joined = one.join(two)
    reduced = one.reduce(lambda a, b: a + b, 10)
    one.set([1, 2, 3])
    two.set("x")
    assert mapped.get() == [2, 4, 6]
    assert filtered.get() == [2, 3]
    assert joined.get() == [[1, 2, 3], "x"]
    assert reduced.get() == 16
    assert isinstance(mapped, ActorFuture)
    assert mapped.done()


def test_a_future_s_hook_runs_once_for_all_who_get():
    calls: list[float | None] = []
    gate = Gate()

    def hook(timeout: float | None) -> str:
        calls.append(timeout)
        return gate()

    future: ActorFuture[str] = ActorFuture()
    future.set_get_hook(hook)
    assert not future.done()
    got: list[str] = []
    getters = [threading.Thread(target=lambda: got.append(future.get())) for _ in range(3)]
    for getter in getters:
        getter.start()
    assert gate.inside.wait(5)
    with pytest.raises(pykka.Timeout):
        future.get(timeout=0.01)
    gate.opened.set()
    for getter in getters:
        getter.join(5)
    assert (got, calls) == (["through"] * 3, [None])
    assert "done" in repr(future)


def test_a_settled_future_refuses_a_second_result_as_in_pykka():
    import queue

    future: ActorFuture[int] = ActorFuture()
    future.set(1)
    for again in (lambda: future.set(2), lambda: future.set_exception((None, ValueError(), None)), future.set_get_hook):
        with pytest.raises(queue.Full):
            again(lambda _: 1) if again == future.set_get_hook else again()  # type: ignore[call-arg]
    assert future.get() == 1


def test_set_exception_takes_the_one_in_hand():
    future: ActorFuture[int] = ActorFuture()
    try:
        raise KeyError("mine")
    except KeyError:
        future.set_exception()
    with pytest.raises(KeyError, match="mine"):
        future.get()
    by_type: ActorFuture[int] = ActorFuture()
    by_type.set_exception((ValueError, None, None))
    with pytest.raises(ValueError):  # noqa: PT011  # it has no text
        by_type.get()
    of_none: ActorFuture[int] = ActorFuture()
    of_none.set_exception()
    with pytest.raises(RuntimeError, match="without an exception"):
        of_none.get()


def test_a_time_out_is_pykka_s_and_python_s():
    future: ActorFuture[int] = ActorFuture()
    with pytest.raises(AskTimeout) as caught:
        future.get(timeout=0.001)
    assert isinstance(caught.value, pykka.Timeout)
    assert isinstance(caught.value, TimeoutError)


def test_the_event_loop_goes_on_while_a_coroutine_awaits_an_actor(pool: WorkerPool):
    async def main() -> None:
        ref = Plain.start_on(pool)
        gate = Gate()

        async def open_later() -> None:
            while not gate.inside.is_set():  # an Event of threads
                await asyncio.sleep(0)
            gate.opened.set()

        opening = asyncio.create_task(open_later())
        assert await ref.ask(gate, block=False) == "through"  # would wait for ever if awaiting stopped the loop
        await opening
        # One with a hook: it blocks a thread of its own, never the loop.
        gate = Gate()
        opening = asyncio.create_task(open_later())
        assert await ref.ask(gate, block=False).map(len) == len("through")
        await opening
        assert await ref.stop(block=False) is True
        with pytest.raises(pykka.ActorDeadError):
            await ref.ask(1, block=False)

    asyncio.run(main())


def test_done_callbacks_of_replies_run_exactly_once(pool: WorkerPool):
    ref = Plain.start_on(pool)
    seen: list[Any] = []
    future = ref.ask("x", block=False)
    future.add_done_callback(seen.append)
    mapped = future.map(str.upper)
    mapped.add_done_callback(lambda done: seen.append(done.get()))
    wait_until(lambda: len(seen) == 2)
    assert set(map(str, seen)) == {str(future), "X"}
    ref.stop()


# --- hazard: one actor's error stops others, or leaves a zombie -------------------------------------------------------


@pytest.mark.parametrize("hook", ["on_start", "on_receive", "on_stop", "on_failure"])
@pytest.mark.parametrize("error", TWELVE, ids=lambda error: type(error).__name__)
def test_whatever_a_hook_raises_ends_that_actor_alone_with_one_report(
    pool: WorkerPool, reports: list[ExitReport], hook: str, error: BaseException
):
    bystanders = [Plain.start_on(pool) for _ in range(5)]
    hooks = {} if hook == "on_receive" else {hook: raising(error)}
    ref = Obedient.start_on(pool, on_exit=reports.append, **hooks)
    actor = actor_of(ref)
    first = ZeroDivisionError("first") if hook == "on_failure" else error
    if hook in {"on_receive", "on_failure"}:
        ref.tell(raising(first))
    ref.stop(block=False)
    wait_until(lambda: reports)
    phase = {"on_start": "starting", "on_stop": "stopping"}.get(hook, "running")
    assert reports == [ExitReport(str(ref), first, phase, abandoned=False, unhandled=0)]  # type: ignore[arg-type]
    assert reports[0].error is first
    assert not ref.is_alive()
    with pytest.raises(pykka.ActorDeadError):
        ref.tell("x")
    assert ref.stop(timeout=5) is False
    assert [bystander.ask("alive", timeout=5) for bystander in bystanders] == ["alive"] * 5
    assert ("on_failure" in actor.diary) == (hook in {"on_receive", "on_failure"})  # as pykka calls it
    assert ("on_stop" in actor.diary) == (hook == "on_stop")
    for bystander in bystanders:
        bystander.stop()
    assert len(reports) == 1


@pytest.mark.parametrize("error", TWELVE, ids=lambda error: type(error).__name__)
def test_an_error_under_ask_goes_to_the_asker(pool: WorkerPool, reports: list[ExitReport], error: BaseException):
    ref = Obedient.start_on(pool, on_exit=reports.append)
    future = ref.ask(raising(error), block=False)
    if isinstance(error, Exception):
        with pytest.raises(type(error)) as caught:
            future.get(timeout=5)
        assert caught.value is error
        assert ref.ask("lives on", timeout=5) == "lives on"
        ref.stop()
        wait_until(lambda: reports)
        assert reports[0].error is None
    else:
        # Not raised at the asker, whom it would end as well: it gets ActorDeadError from it.
        with pytest.raises(pykka.ActorDeadError, match=type(error).__name__) as dead:
            future.get(timeout=5)
        assert dead.value.__cause__ is error
        wait_until(lambda: reports)
        assert reports[0].error is error


def test_on_failure_gets_what_was_raised(pool: WorkerPool):
    got: list[Any] = []

    class Failing(Plain):
        def on_failure(self, *info: Any) -> None:
            got.append(info)

    error = ValueError("x")
    ref = Failing.start_on(pool)
    ref.tell(raising(error))
    wait_until(lambda: got)
    assert got == [(ValueError, error, error.__traceback__)]
    assert error.__traceback__ is not None


@pytest.mark.parametrize("error", TWELVE, ids=lambda error: type(error).__name__)
def test_what_monitors_raise_hurts_neither_the_pool_nor_the_next_monitor(
    pool: WorkerPool, reports: list[ExitReport], error: BaseException
):
    ref = Plain.start_on(pool, on_exit=raising(error))  # type: ignore[arg-type]  # it fails before it looks at arguments
    ref.monitor(lambda _: raising(error)())
    ref.monitor(reports.append)
    assert ref.stop(timeout=5)
    wait_until(lambda: reports)
    ref.monitor(lambda _: raising(error)())
    assert Plain.start_on(pool).ask("alive", timeout=5) == "alive"


def test_an_error_whose_text_raises_does_not_break_the_report(pool: WorkerPool, reports: list[ExitReport]):
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise SystemExit("not even this")

        __repr__ = __str__

    ref = Plain.start_on(pool, on_exit=reports.append)
    ref.tell(raising(Unspeakable()))
    wait_until(lambda: reports)
    assert isinstance(reports[0].error, Unspeakable)


def test_a_late_monitor_gets_the_report_at_once_and_each_monitor_gets_it_once(
    pool: WorkerPool, reports: list[ExitReport]
):
    ref = Plain.start_on(pool)
    ref.monitor(reports.append)
    ref.monitor(reports.append)
    ref.stop()
    wait_until(lambda: len(reports) == 2)
    ref.monitor(reports.append)
    assert reports == [reports[0]] * 3
    assert ref._monitors == ()
    assert reports[0] == ExitReport(str(ref), None, "stopping", abandoned=False, unhandled=0)


def test_a_monitor_that_races_with_the_end_gets_exactly_one_report(pool: WorkerPool):
    for _ in range(300):
        ref = Plain.start_on(pool)
        got: list[ExitReport] = []
        ref.stop(block=False)
        ref.monitor(got.append)
        wait_until(lambda got=got: got)  # type: ignore[misc]
        assert len(got) == 1


# --- hazard: asks race with the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["stop", "halt", "crash", "abandon"])
def test_every_ask_that_races_with_the_end_is_answered(pool: WorkerPool, end: str):
    """5,000 asks for each way to end, from three threads, with the switch interval as short as it gets."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    rng = random.Random(end)
    try:
        futures: list[ActorFuture[Any]] = []
        rounds = 0
        while len(futures) < 5000:
            rounds += 1
            got: list[ExitReport] = []
            ref = Plain.start_on(pool, on_exit=got.append)
            stop_asking = threading.Event()
            mine: list[list[ActorFuture[Any]]] = [[], []]

            def ask(out: list[Any], ref: ActorRef[Plain] = ref, stop_asking: threading.Event = stop_asking) -> None:
                while not stop_asking.is_set() and len(out) < 400:
                    out.append(ref.ask(len(out), block=False))

            askers = [threading.Thread(target=ask, args=(out,)) for out in mine]
            for asker in askers:
                asker.start()
            for _ in range(rng.randrange(60)):
                futures.append(ref.ask("x", block=False))
            match end:
                case "stop":
                    futures.append(ref.stop(block=False))
                case "halt":
                    ref.halt()
                case "crash":
                    ref.tell(raising(SystemExit(1)))
                case _:
                    ref.abandon()
            for _ in range(10):
                futures.append(ref.ask("late", block=False))
            wait_until(lambda got=got: got)  # type: ignore[misc]
            stop_asking.set()
            for asker in askers:
                asker.join(10)
            futures += mine[0] + mine[1]
            assert len(got) == 1
            assert ref.queued() == 0
        unanswered = [future for future in futures if not future.wait(10)]
        assert unanswered == []
        assert rounds > 3
    finally:
        sys.setswitchinterval(before)


def test_every_tell_that_races_with_the_end_is_handled_counted_or_refused(pool: WorkerPool):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for round_ in range(100):
            handled: list[int] = []
            got: list[ExitReport] = []

            class Counting(Actor):
                def on_receive(self, message: Any, handled: list[int] = handled, limit: int = 5 + round_) -> None:
                    handled.append(message)
                    if len(handled) == limit:
                        self.actor_ref.halt()

            ref = Counting.start_on(pool, on_exit=got.append)
            accepted = 0
            for n in range(100_000):
                try:
                    ref.tell(n)
                except pykka.ActorDeadError:
                    break
                accepted += 1
            wait_until(lambda got=got: got)  # type: ignore[misc]
            assert len(handled) + got[0].unhandled == accepted
    finally:
        sys.setswitchinterval(before)


def test_a_tell_that_ends_its_actor_is_not_refused_for_it(pool: WorkerPool):
    # The actor may have handled the message and ended before the teller looks whether it must wake it.
    for _ in range(500):
        ref = Plain.start_on(pool)
        ref.tell(raising(SystemExit(0)))


def test_what_is_queued_at_the_end_is_answered_and_counted(by_hand: ByHand, reports: list[ExitReport]):
    ref = Obedient.start_on(by_hand, on_exit=reports.append)
    ref.tell(raising(ValueError("x")))
    for n in range(3):
        ref.tell(n)
    ref.tell_control("control comes first, and is handled")
    asked = ref.ask("x", block=False)
    stopped = ref.stop(block=False)
    by_hand.run()
    assert reports[0].unhandled == 4  # three tells and an ask; to stop is done
    with pytest.raises(pykka.ActorDeadError, match="ValueError"):
        asked.get(timeout=0)
    assert stopped.get(timeout=0) is True


def test_a_dead_actor_refuses_in_pykka_s_terms_and_ours(pool: WorkerPool):
    ref = Plain.start_on(pool)
    ref.stop()
    for refused in (ref.tell, ref.tell_control):
        with pytest.raises(ActorEnded) as caught:
            refused("x")
        assert isinstance(caught.value, pykka.ActorDeadError)
        assert isinstance(caught.value, MailboxClosed)
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("x")
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("x", block=False).get()
    with pytest.raises(pykka.ActorDeadError):
        ref.proxy()
    assert ref.stop(block=False).get() is False
    assert ref.halt() is False
    assert ref.abandon() is False


def test_an_actor_is_dead_to_tellers_from_the_moment_it_stops(pool: WorkerPool, reports: list[ExitReport]):
    gate = Gate()
    ref = Obedient.start_on(pool, on_exit=reports.append, on_stop=gate)
    stopped = ref.stop(block=False)
    assert gate.inside.wait(5)
    assert not ref.is_alive()
    with pytest.raises(pykka.ActorDeadError):
        ref.tell("x")
    assert not stopped.done()  # told only when on_stop is through
    assert reports == []
    gate.opened.set()
    assert stopped.get(timeout=5) is True
    wait_until(lambda: reports)


# --- hazard: stop queues behind the inbox -----------------------------------------------------------------------------


def test_stop_queues_behind_what_was_told_and_halt_goes_ahead(by_hand: ByHand, reports: list[ExitReport]):
    stopped, halted = Obedient.start_on(by_hand), Obedient.start_on(by_hand, on_exit=reports.append)
    diaries = [actor_of(ref).diary for ref in (stopped, halted)]
    futures: list[ActorFuture[Any]] = []
    for ref in (stopped, halted):
        for n in range(3):
            ref.tell(n)
        futures.append(ref.ask("asked", block=False))
    stopped.stop(block=False)
    assert halted.halt()
    by_hand.run()
    assert diaries == [["on_start", 0, 1, 2, "asked", "on_stop"], ["on_start", "on_stop"]]
    assert futures[0].get(timeout=0) == "asked"
    with pytest.raises(pykka.ActorDeadError):
        futures[1].get(timeout=0)
    assert reports[0].unhandled == 4


def test_control_reaches_a_busy_actor_ahead_of_everything_told(pool: WorkerPool):
    ref = Obedient.start_on(pool)
    actor = actor_of(ref)
    gate = Gate()
    ref.tell(gate)
    assert gate.inside.wait(5)
    for n in range(100):
        ref.tell(n)
    for control in ("first", "second"):
        ref.tell_control(control)
    gate.opened.set()
    assert ref.ask("last", timeout=5) == "last"
    assert actor.diary == ["on_start", gate, "first", "second", *range(100), "last"]
    ref.stop()


# --- bounded mailboxes ------------------------------------------------------------------------------------------------


def test_a_full_mailbox_is_an_error_at_the_teller_and_lets_the_end_through(pool: WorkerPool, reports: list[ExitReport]):
    class Bounded(Obedient):
        mailbox_limit: ClassVar[int | None] = 2

    ref = Bounded.start_on(pool, on_exit=reports.append)
    gate = Gate()
    ref.tell(gate)
    assert gate.inside.wait(5)
    ref.tell(1)
    ref.tell(2)
    with pytest.raises(MailboxFull, match="Bounded"):
        ref.tell(3)
    with pytest.raises(MailboxFull):
        ref.ask(3)
    with pytest.raises(MailboxFull):
        ref.ask(3, block=False).get()
    ref.tell_control("control")
    stopping = ref.stop(block=False)
    assert ref.is_alive()
    gate.opened.set()
    assert stopping.get(timeout=5) is True
    wait_until(lambda: reports)
    assert reports[0].unhandled == 0


# --- abandon ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ["asked", "told"])
@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_an_abandoned_actor_is_dead_at_once_and_nothing_of_the_stuck_call_has_effect(
    pool: WorkerPool, reports: list[ExitReport], ends: str, sent: str
):
    gate = Gate()

    def stuck() -> str:
        gate()
        if ends == "raises":
            raise ValueError("too late")
        return "too late"

    ref = Obedient.start_on(pool, on_exit=reports.append)
    actor = actor_of(ref)
    asked = [ref.ask(stuck, block=False)] if sent == "asked" else []
    if sent == "told":
        ref.tell(stuck)
    assert gate.inside.wait(5)
    stuck_thread = ref.running_thread()
    assert stuck_thread in sys._current_frames()
    queued = ref.ask("queued", block=False)
    ref.tell("told")
    assert ref.abandon() is True
    assert ref.abandon() is False
    assert not ref.is_alive()
    assert reports == [ExitReport(str(ref), None, "running", abandoned=True, unhandled=2)]
    for future in (*asked, queued):
        with pytest.raises(pykka.ActorDeadError):
            future.get(timeout=0)
    assert pool.leaked() == 1
    assert Plain.start_on(pool).ask("the pool goes on", timeout=5)
    gate.opened.set()
    wait_until(lambda: pool.leaked() == 0)
    wait_until(lambda: stuck_thread not in sys._current_frames())
    assert ref.running_thread() is None
    assert actor.diary == ["on_start", stuck]
    assert len(reports) == 1


@pytest.mark.parametrize("hook", ["on_start", "on_stop", "on_failure"])
def test_an_actor_stuck_in_any_hook_can_be_abandoned(pool: WorkerPool, reports: list[ExitReport], hook: str):
    gate = Gate()
    ref = Obedient.start_on(pool, on_exit=reports.append, **{hook: gate})
    error = ValueError("x")
    if hook == "on_failure":
        ref.tell(raising(error))
    stopped = ref.stop(block=False)
    assert gate.inside.wait(5)
    assert ref.running_thread() is not None
    assert ref.abandon() is True
    assert stopped.get(timeout=0) is True
    phase = {"on_start": "starting", "on_stop": "stopping"}.get(hook, "running")
    assert [(r.phase, r.abandoned) for r in reports] == [(phase, True)]
    assert reports[0].error is (error if hook == "on_failure" else None)
    gate.opened.set()
    wait_until(lambda: pool.leaked() == 0)
    assert len(reports) == 1


def test_an_abandoned_idle_actor_costs_no_thread(pool: WorkerPool, reports: list[ExitReport]):
    ref = Obedient.start_on(pool, on_exit=reports.append)
    actor = actor_of(ref)
    ref.ask("x")
    wait_until(lambda: ref.running_thread() is None)
    assert ref.abandon()
    assert (pool.leaked(), reports[0].abandoned) == (0, True)
    assert "on_stop" not in actor.diary


def test_an_actor_abandoned_before_its_first_turn_never_starts(by_hand: ByHand, reports: list[ExitReport]):
    ref = Obedient.start_on(by_hand, on_exit=reports.append)
    actor = actor_of(ref)
    ref.tell(1)
    assert ref.abandon()
    by_hand.run()
    assert actor.diary == []
    assert (reports[0].phase, reports[0].unhandled) == ("starting", 1)


def test_an_ask_taken_when_its_actor_is_abandoned_is_answered(by_hand: ByHand):
    ref = Obedient.start_on(by_hand)
    by_hand.run()
    actor = actor_of(ref)
    future = ref.ask("x", block=False)
    taken = ref.take()
    ref.abandon()  # between taking the ask and having it in hand
    assert ref._answer(actor, taken) is False
    with pytest.raises(pykka.ActorDeadError):
        future.get(timeout=0)
    assert "x" not in actor.diary


def test_an_actor_may_be_abandoned_on_a_dispatcher_that_cannot_replace_threads(reports: list[ExitReport]):
    thread = ThreadDispatcher()
    gate = Gate()
    ref = Obedient.start_on(thread, on_exit=reports.append)
    ref.tell(gate)
    assert gate.inside.wait(5)
    assert ref.abandon()
    assert reports[0].abandoned
    gate.opened.set()
    assert thread.close()


# --- hazard: a thread an actor; one flooded actor starves others ------------------------------------------------------


def test_ten_thousand_actors_share_a_few_threads(pool: WorkerPool):
    refs = [Plain.start_on(pool) for _ in range(10_000)]
    futures = [ref.ask(n, block=False) for n, ref in enumerate(refs)]
    assert [future.get(timeout=30) for future in futures] == list(range(10_000))
    assert pool.threads() < 200  # a bound that holds on a busy machine, where computing may look like blocking
    for future in [ref.stop(block=False) for ref in refs]:
        assert future.get(timeout=30)


def test_a_flooded_actor_leaves_turns_to_others(by_hand: ByHand):
    flooded, other = Obedient.start_on(by_hand), Obedient.start_on(by_hand)
    diary = actor_of(other).diary
    for n in range(1000):
        flooded.tell(n)
    other.tell("mine")
    by_hand.step()
    by_hand.step()
    assert diary == ["on_start", "mine"]
    assert flooded.queued() > 900


def test_a_turn_is_bounded_in_time_as_well(by_hand: ByHand):
    from executus.actors.dispatcher import TurnBudget

    by_hand.budget = TurnBudget(messages=64, seconds=0.001)  # type: ignore[attr-defined]
    ref = Plain.start_on(by_hand)
    for _ in range(10):
        ref.tell(Nap())
    by_hand.step()
    assert ref.queued() == 9


def test_an_actor_and_its_state_go_when_it_has_ended(pool: WorkerPool):
    ref = Plain.start_on(pool)
    gone = weakref.ref(actor_of(ref))
    ref.stop()

    def is_gone() -> bool:
        gc.collect()
        return gone() is None

    wait_until(is_gone)
    assert not ref.is_alive()


def test_starting_and_stopping_leaves_no_memory_behind(pool: WorkerPool):
    def rounds(n: int) -> int:
        for _ in range(n):
            refs = [Plain.start_on(pool) for _ in range(100)]
            for future in [ref.stop(block=False) for ref in refs]:
                future.get(timeout=5)
        gc.collect()
        return len(gc.get_objects())

    rounds(2)
    before = rounds(1)
    assert rounds(20) - before < 500


# --- hazard: asks that wait for each other ----------------------------------------------------------------------------


def test_a_blocking_ask_of_oneself_raises_at_once(pool: WorkerPool):
    ref = Plain.start_on(pool)
    with pytest.raises(AskCycle):
        ref.ask(lambda: ref.ask("x"), timeout=5)
    with pytest.raises(AskCycle):
        ref.ask(lambda: ref.proxy().double(1).get(), timeout=5)
    assert ref.ask(lambda: ref.ask("x", block=False), timeout=5).get(timeout=5) == "x"
    ref.stop()


def test_a_thread_that_ran_an_actor_is_not_taken_for_it_afterwards(by_hand: ByHand):
    ref = Plain.start_on(by_hand)
    by_hand.run()
    with pytest.raises(AskTimeout):  # and no AskCycle: it is this test that asks
        ref.ask("x", timeout=0.01)


def test_a_circle_of_blocking_asks_raises_instead_of_hanging(pool: WorkerPool):
    a, b, c = (Plain.start_on(pool) for _ in range(3))
    with pytest.raises(AskCycle):
        a.ask(lambda: b.ask(lambda: c.ask(lambda: a.ask("x"))), timeout=30)
    assert [ref.ask("alive", timeout=5) for ref in (a, b, c)] == ["alive"] * 3
    assert a.ask(lambda: b.ask(lambda: c.ask("a chain is fine")), timeout=5) == "a chain is fine"
    for ref in (a, b, c):
        ref.stop()


def test_actors_that_block_in_asks_get_the_threads_they_need(pool: WorkerPool):
    last = Plain.start_on(pool)
    chain = [last]
    for _ in range(20):
        ref, target = Plain.start_on(pool), chain[-1]
        chain.append(ref)

        def forward(n: int = len(chain) - 1) -> Any:
            return chain[n - 1].ask(forwards[n - 1]) if n else "end"

        del target, forward
    forwards: list[Callable[[], Any]] = [lambda: "end"]
    for n in range(1, len(chain)):
        forwards.append(lambda n=n: chain[n - 1].ask(forwards[n - 1]))  # type: ignore[misc]
    assert chain[-1].ask(forwards[-1], timeout=30) == "end"
    for ref in chain:
        ref.stop()


# --- hazard: exit, fork, dispatchers that end -------------------------------------------------------------------------


@pytest.mark.parametrize("work", ["threading.Event().wait()", "[0 for _ in iter(int, 1)]"], ids=["wait", "spin"])
def test_the_interpreter_exits_with_busy_actors_and_waiting_askers(work: str):
    program = f"""
import threading
from executus.actors.actor import Actor
busy = threading.Event()
class Busy(Actor):
    def on_receive(self, message):
        busy.set()
        {work}
refs = [Busy.start() for _ in range(5)]
for ref in refs:
    ref.tell("go")
idle = Busy.start()
asker = threading.Thread(target=refs[0].ask, args=("never answered",), daemon=True)
asker.start()
assert busy.wait(20)
print("leaving")
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_instead_of_waiting_for_ever_and_may_have_actors_of_its_own(pool: WorkerPool):
    ref = Plain.start_on(pool)
    gate = Gate()
    busy = Plain.start_on(pool)
    busy.tell(gate)
    assert gate.inside.wait(5)
    pending = busy.ask("pending", block=False)
    default_dispatcher()
    assert ref.ask("parent", timeout=5) == "parent"
    wait_until(lambda: ref.running_thread() is None)
    calls: list[Callable[[], object]] = [
        lambda: ref.tell("x"),
        lambda: ref.tell_control("x"),
        lambda: ref.ask("x"),
        lambda: busy.ask("x", block=False),
        ref.stop,
        pending.get,
        lambda: Plain.start_on(pool),
        lambda: ref.monitor(print),
        busy.abandon,
    ]
    pid = os.fork()
    if pid == 0:
        try:
            for number, call in enumerate(calls):
                try:
                    call()
                except RuntimeForked:
                    continue
                os._exit(100 + number)
            os._exit(7 if Plain.start().ask("child", timeout=20) == "child" else 99)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    gate.opened.set()
    assert pending.get(timeout=5) == "pending"
    ref.stop()
    busy.stop()


def test_a_dispatcher_that_takes_no_turns_makes_a_dead_actor_with_a_report(reports: list[ExitReport]):
    pool = WorkerPool()
    pool.close()
    ref = Plain.start_on(pool, on_exit=reports.append)
    assert not ref.is_alive()
    assert isinstance(reports[0].error, DispatcherClosed)
    assert reports[0].phase == "starting"
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("x")


def test_a_dispatcher_that_fails_ends_the_actor_it_could_not_run(by_hand: ByHand, reports: list[ExitReport]):
    ref = Obedient.start_on(by_hand, on_exit=reports.append)
    by_hand.run()

    def broken(turn: Turn) -> None:
        raise SystemExit("broken dispatcher")

    by_hand.schedule = broken  # type: ignore[method-assign]
    future = ref.ask("x", block=False)
    with pytest.raises(pykka.ActorDeadError):
        future.get(timeout=0)
    assert isinstance(reports[0].error, SystemExit)
    assert reports[0].unhandled == 1


def test_closing_a_pool_ends_the_actors_that_waited_for_a_turn(
    reports: list[ExitReport], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(WorkerPool, "_judge", lambda *_: None)  # the stuck leader finds no successor
    pool = WorkerPool()
    gate = Gate()
    busy = Plain.start_on(pool, on_exit=reports.append)
    busy.tell(gate)
    assert gate.inside.wait(5)
    waiting = Plain.start_on(pool, on_exit=reports.append)
    asked = [ref.ask("x", block=False) for ref in (waiting, busy)]
    pool.close(0.01)
    assert isinstance(reports[0].error, DispatcherClosed)
    with pytest.raises(pykka.ActorDeadError):
        asked[0].get(timeout=0)
    gate.opened.set()
    # The busy one goes on as long as its turn lasts; then it gets no other and ends as well, or has answered.
    assert asked[1].wait(5)
    with pytest.raises(pykka.ActorDeadError):
        busy.ask("x", timeout=5)
    wait_until(lambda: len(reports) == 2)


def test_an_event_loop_that_closes_ends_its_actors_and_answers_their_askers(
    pool: WorkerPool, reports: list[ExitReport]
):
    loop = asyncio.new_event_loop()
    dispatcher: Dispatcher = LoopDispatcher(loop, pool)
    idle, scheduled = (Plain.start_on(dispatcher, on_exit=reports.append) for _ in range(2))
    while not (idle._idle and scheduled._idle):
        loop.run_until_complete(asyncio.sleep(0))
    pending = scheduled.ask("x", block=False)
    loop.close()
    with pytest.raises(pykka.ActorDeadError):
        pending.get(timeout=5)
    with pytest.raises(pykka.ActorDeadError):
        idle.ask("x", timeout=5)
    wait_until(lambda: len(reports) == 2)
    assert all(isinstance(report.error, DispatcherClosed) for report in reports)


def test_actors_on_the_loop_run_on_its_thread_beside_coroutines(pool: WorkerPool):
    async def main() -> None:
        here = threading.get_ident()
        ref = Plain.start_on(LoopDispatcher(asyncio.get_running_loop(), pool))
        assert await ref.ask(threading.get_ident, block=False) == here
        assert await asyncio.to_thread(ref.ask, threading.get_ident) == here
        assert await ref.stop(block=False)

    asyncio.run(main())


# --- running_thread ---------------------------------------------------------------------------------------------------


def test_running_thread_tells_where_a_turn_is_and_nothing_between_turns(pool: WorkerPool):
    ref = Obedient.start_on(pool)
    gate = Gate()
    ref.tell(gate)
    assert gate.inside.wait(5)
    frames = sys._current_frames()
    stack = frames[ref.running_thread() or 0]
    functions: list[str] = []
    while stack is not None:
        functions.append(stack.f_code.co_name)
        stack = stack.f_back  # type: ignore[assignment]
    assert "run_turn" in functions
    del frames, stack
    gate.opened.set()
    wait_until(lambda: ref.running_thread() is None)
    assert ref.is_alive()
    ref.stop()


# --- with a seeded scheduler ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_actors_run_the_same_way_under_the_same_seed_without_any_thread(seed: int):
    def story() -> list[Any]:
        rng = random.Random(seed)
        hand = ByHand()
        log: list[Any] = []

        class Node(Actor):
            def __init__(self, name: int) -> None:
                super().__init__()
                self.name = name

            def on_receive(self, message: Any) -> None:
                log.append((self.name, message))
                if message:
                    nodes[rng.randrange(5)].tell(message - 1)
                elif rng.random() < 0.2:
                    raise ValueError("crash")

            def on_stop(self) -> None:
                log.append((self.name, "stop"))

        nodes = [Node.start_on(hand, n, on_exit=lambda report, n=n: log.append((n, report.phase))) for n in range(5)]  # type: ignore[misc]
        for _ in range(40):
            ref = rng.choice(nodes)
            try:
                rng.choice([lambda: ref.tell(3), lambda: ref.tell_control(0), ref.halt])()
            except pykka.ActorDeadError:
                log.append("dead")
            for _ in range(rng.randrange(3)):
                if hand.ready:
                    hand.ready.pop(rng.randrange(len(hand.ready))).run_turn()
        hand.run()
        return log

    assert story() == story()


# --- started ----------------------------------------------------------------------------------------------------------


def test_started_holds_when_on_start_has_returned_whatever_was_told_before_and_no_on_receive_sees_it(by_hand: ByHand):
    ref = Obedient.start_on(by_hand)
    ref.tell("first")
    early = ref.started()
    assert not early.done()
    actor = ref._actor_weakref()
    by_hand.run()
    late = ref.started()
    by_hand.run()
    assert early.get(timeout=0) is late.get(timeout=0) is None
    assert actor is not None
    assert actor.diary == ["on_start", "first"]


@pytest.mark.parametrize("error", TWELVE, ids=repr)
def test_started_fails_if_on_start_raised(by_hand: ByHand, error: BaseException):
    ref = Obedient.start_on(by_hand, on_start=raising(error))
    early = ref.started()
    by_hand.run()
    for started in (early, ref.started()):
        with pytest.raises(pykka.ActorDeadError) as caught:
            started.get(timeout=0)
        assert caught.value is not error
    assert early.error() is not None
    assert early.error().__cause__ is error  # type: ignore[union-attr]


def test_started_of_one_that_has_started_and_ended_holds(by_hand: ByHand):
    ref = Obedient.start_on(by_hand)
    by_hand.run()
    ref.halt()
    behind_the_halt = ref.started()
    by_hand.run()
    assert behind_the_halt.get(timeout=0) is ref.started().get(timeout=0) is None


def test_started_fails_for_one_that_was_given_up_on_in_its_on_start(pool: WorkerPool):
    gate = Gate()
    ref = Obedient.start_on(pool, on_start=gate)
    started = ref.started()
    assert gate.inside.wait(10)
    ref.abandon()
    for one in (started, ref.started()):
        with pytest.raises(pykka.ActorDeadError):
            one.get(timeout=10)
    gate.opened.set()
    wait_until(lambda: ref.running_thread() is None)
    with pytest.raises(pykka.ActorDeadError):
        ref.started().get(timeout=10)
