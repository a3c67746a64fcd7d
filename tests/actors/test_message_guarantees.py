"""What the README says of a plain actor's messages, a test a row of its table."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pykka
import pytest

from executus.actors import Actor, ActorFuture, ActorRef, AskCycle, ChildSpec, ExitReport, MailboxFull, Supervisor
from executus.actors.worker_pool import WorkerPool
from tests.waiting import wait_until

TIMEOUT_S = 20.0


class Diary(Actor):
    """Calls a message that can be called, and writes down the rest."""

    def __init__(self, diary: list[Any] | None = None) -> None:
        super().__init__()
        self.diary: list[Any] = [] if diary is None else diary

    def on_receive(self, message: Any) -> Any:
        if callable(message):
            return message()
        self.diary.append(message)
        return message

    def on_stop(self) -> None:
        self.diary.append("on_stop")


class Small(Diary):
    mailbox_limit = 2


class Gate:
    """A message that blocks its actor until the test opens it, and then may raise."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.inside = threading.Event()
        self.opened = threading.Event()
        self.error = error

    def __call__(self) -> str:
        self.inside.set()
        assert self.opened.wait(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        return "through"


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool()
    yield pool
    assert pool.close()


def ended(ref: ActorRef[Any]) -> ExitReport:
    """Its report; waits for its end."""
    reports: list[ExitReport] = []
    ref.monitor(reports.append)
    wait_until(lambda: reports, TIMEOUT_S)
    return reports[0]


def raising(error: BaseException) -> Callable[[], None]:
    def message() -> None:
        raise error

    return message


# --- order, once ------------------------------------------------------------------------------------------------------


def test_what_one_sender_tells_and_asks_is_handled_in_that_order_and_once(pool: WorkerPool):
    diary: list[Any] = []
    ref = Diary.start_on(pool, diary)

    def send(sender: int) -> None:
        for number in range(500):
            ref.ask((sender, number), block=False) if number % 3 == 0 else ref.tell((sender, number))

    senders = [threading.Thread(target=send, args=(sender,)) for sender in range(4)]
    for thread in senders:
        thread.start()
    for thread in senders:
        thread.join(TIMEOUT_S)
    ref.stop(timeout=TIMEOUT_S)
    for sender in range(4):
        assert [number for who, number in diary[:-1] if who == sender] == list(range(500))
    assert diary[-1] == "on_stop"


def test_a_message_is_the_very_object_that_was_told_and_no_copy(pool: WorkerPool):
    diary: list[Any] = []
    ref = Diary.start_on(pool, diary)
    message = {"mutable": []}
    ref.ask(message, timeout=TIMEOUT_S)
    ref.stop()
    assert diary[0] is message


def test_two_hooks_of_one_actor_never_run_at_once(pool: WorkerPool):
    inside, most = [0], [0]

    def enter() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threading.Event().wait(0.0005)
        inside[0] -= 1

    ref = Diary.start_on(pool)
    others = [Diary.start_on(pool) for _ in range(8)]
    for _ in range(100):
        ref.tell(enter)
        for other in others:
            other.tell(lambda: threading.Event().wait(0.0005))
    for actor in (ref, *others):
        actor.stop(timeout=TIMEOUT_S)
    assert most == [1]


# --- the end ----------------------------------------------------------------------------------------------------------


def test_at_a_crash_what_is_queued_is_counted_and_never_handled_and_its_askers_are_told(pool: WorkerPool):
    diary: list[Any] = []
    ref, gate = Diary.start_on(pool, diary), Gate(ValueError("broken"))
    ref.tell(gate)
    assert gate.inside.wait(TIMEOUT_S)
    ref.tell("told")
    asked = ref.ask("asked", block=False)
    gate.opened.set()
    with pytest.raises(pykka.ActorDeadError, match="ValueError"):
        asked.get(timeout=TIMEOUT_S)
    report = ended(ref)
    assert (report.unhandled, str(report.error)) == (2, "broken")
    assert diary == []
    with pytest.raises(pykka.ActorDeadError):
        ref.tell("late")


def test_at_a_stop_what_was_told_before_is_handled_and_what_comes_behind_is_counted(pool: WorkerPool):
    diary: list[Any] = []
    ref, gate = Diary.start_on(pool, diary), Gate()
    ref.tell(gate)
    assert gate.inside.wait(TIMEOUT_S)
    ref.tell("before")
    stopped = ref.stop(block=False)
    ref.tell("behind")
    asked = ref.ask("behind as well", block=False)
    gate.opened.set()
    assert stopped.get(timeout=TIMEOUT_S)
    with pytest.raises(pykka.ActorDeadError):
        asked.get(timeout=TIMEOUT_S)
    assert diary == ["before", "on_stop"]
    assert ended(ref).unhandled == 2


@pytest.mark.parametrize(("stop", "handled"), [("halt", ["on_stop"]), ("drain", ["queued", "on_stop"])])
def test_a_supervisor_s_stop_goes_ahead_of_the_queue_or_behind_it_as_the_spec_says(
    pool: WorkerPool, stop: Any, handled: list[str]
):
    diary: list[Any] = []
    tree = Supervisor.start_on(pool, children=[ChildSpec("child", (Diary, (diary,)), stop=stop)])
    tree.started().get(timeout=TIMEOUT_S)
    (info,) = tree.which_children().get(timeout=TIMEOUT_S)
    gate = Gate()
    info.ref.tell(gate)
    assert gate.inside.wait(TIMEOUT_S)
    info.ref.tell("queued")
    stopped = tree.stop_child("child")
    tree.which_children().get(timeout=TIMEOUT_S)  # the order before it was heard
    gate.opened.set()
    assert stopped.get(timeout=TIMEOUT_S)
    assert diary == handled
    tree.stop()


def test_a_restart_by_a_supervisor_is_another_actor_with_another_ref_and_an_empty_mailbox(pool: WorkerPool):
    diary: list[Any] = []
    tree = Supervisor.start_on(pool, children=[ChildSpec("child", (Diary, (diary,)))])
    tree.started().get(timeout=TIMEOUT_S)
    (before,) = tree.which_children().get(timeout=TIMEOUT_S)
    gate = Gate(ValueError("broken"))
    before.ref.tell(gate)
    assert gate.inside.wait(TIMEOUT_S)
    before.ref.tell("queued when it crashed")
    gate.opened.set()
    assert ended(before.ref).unhandled == 1

    def restarted() -> bool:
        (now,) = tree.which_children().get(timeout=TIMEOUT_S)
        return now.restarts == 1 and now.ref is not None

    wait_until(restarted, TIMEOUT_S)
    (after,) = tree.which_children().get(timeout=TIMEOUT_S)
    assert after.ref is not before.ref
    with pytest.raises(pykka.ActorDeadError):
        before.ref.tell("to the old ref")
    assert after.ref.ask("to the new one", timeout=TIMEOUT_S) == "to the new one"
    assert diary == ["to the new one"]
    tree.stop()


# --- what an ask's error means ----------------------------------------------------------------------------------------


def test_an_error_of_the_handler_reaches_the_asker_and_the_actor_lives(pool: WorkerPool):
    ref = Diary.start_on(pool)
    with pytest.raises(ZeroDivisionError):
        ref.ask(lambda: 1 / 0, timeout=TIMEOUT_S)
    assert ref.ask("alive", timeout=TIMEOUT_S) == "alive"
    ref.tell(lambda: 1 / 0)
    assert type(ended(ref).error) is ZeroDivisionError


def test_a_message_whose_asker_gave_up_is_handled_all_the_same(pool: WorkerPool):
    diary: list[Any] = []
    ref, gate = Diary.start_on(pool, diary), Gate()
    ref.tell(gate)
    with pytest.raises(pykka.Timeout):
        ref.ask("late", timeout=0.01)
    gate.opened.set()
    ref.stop(timeout=TIMEOUT_S)
    assert diary == ["late", "on_stop"]


def test_a_message_that_closes_a_cycle_of_asks_is_handled_when_its_turn_comes(pool: WorkerPool):
    diary: list[Any] = []
    ref = Diary.start_on(pool, diary)
    with pytest.raises(AskCycle):
        ref.ask(lambda: ref.ask("to myself"), timeout=TIMEOUT_S)
    ref.stop(timeout=TIMEOUT_S)
    assert diary == ["to myself", "on_stop"]


def test_a_reply_that_is_not_there_yet_is_returned_as_a_future_which_the_asker_gets(pool: WorkerPool):
    ref, later = Diary.start_on(pool), ActorFuture[str]()
    reply = ref.ask(lambda: later, timeout=TIMEOUT_S)
    assert not reply.done()
    later.set("now")
    assert reply.get(timeout=TIMEOUT_S) == "now"
    ref.stop()


# --- a full mailbox, control ------------------------------------------------------------------------------------------


def test_a_full_mailbox_takes_nothing_but_stops_and_control(pool: WorkerPool):
    assert Actor.mailbox_limit is None
    diary: list[Any] = []
    ref, gate = Small.start_on(pool, diary), Gate()
    ref.tell(gate)
    assert gate.inside.wait(TIMEOUT_S)
    ref.tell(1)
    ref.tell(2)
    with pytest.raises(MailboxFull):
        ref.tell(3)
    with pytest.raises(MailboxFull):
        ref.ask(4)
    refused = ref.ask(5, block=False)
    assert refused.done()
    with pytest.raises(MailboxFull):
        refused.get()
    stopped = ref.stop(block=False)
    gate.opened.set()
    assert stopped.get(timeout=TIMEOUT_S)
    assert diary == [1, 2, "on_stop"]


def test_a_halt_goes_ahead_of_everything_told_and_of_a_stop(pool: WorkerPool):
    diary: list[Any] = []
    ref, gate = Diary.start_on(pool, diary), Gate()
    ref.tell(gate)
    assert gate.inside.wait(TIMEOUT_S)
    ref.tell("told")
    stopped = ref.stop(block=False)
    assert ref.halt()
    gate.opened.set()
    assert stopped.get(timeout=TIMEOUT_S)
    assert diary == ["on_stop"]
    assert ended(ref).unhandled == 1


def test_an_abandoned_actor_s_message_in_hand_has_an_asker_that_is_told(pool: WorkerPool):
    ref, gate = Diary.start_on(pool), Gate()
    asked = ref.ask(gate, block=False)
    assert gate.inside.wait(TIMEOUT_S)
    assert ref.abandon()
    with pytest.raises(pykka.ActorDeadError):
        asked.get(timeout=TIMEOUT_S)
    assert ended(ref).abandoned
    gate.opened.set()


# --- beside pykka's own actors ----------------------------------------------------------------------------------------


def test_actors_of_pykka_and_ours_tell_and_ask_each_other(pool: WorkerPool):
    class Theirs(pykka.ThreadingActor):
        use_daemon_thread = True

        def on_receive(self, message: Any) -> Any:
            return message() if callable(message) else message

    ours, theirs = Diary.start_on(pool), Theirs.start()
    assert theirs.ask(lambda: ours.ask("from theirs", timeout=TIMEOUT_S), timeout=TIMEOUT_S) == "from theirs"
    assert ours.ask(lambda: theirs.ask("from ours", timeout=TIMEOUT_S), timeout=TIMEOUT_S) == "from ours"
    futures = [ours.ask(1, block=False), theirs.ask(2, block=False)]
    assert pykka.get_all(futures, timeout=TIMEOUT_S) == [1, 2]
    theirs.stop()
    ours.stop()
