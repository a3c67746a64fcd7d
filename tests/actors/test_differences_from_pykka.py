"""Where our actors differ from pykka's on purpose: how, and in each docstring why.

Everything else is as in pykka: `python -m tests.pykka_suite` runs pykka's own tests with our classes. The hooks, refs,
asks, proxies and futures that pykka users know are not repeated here.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pykka
import pytest

from executus.actors import Actor, ActorRef, AskCycle, ExitReport, MailboxFull, RuntimeForked
from tests import pykka_suite
from tests.waiting import ticks, wait_until

TIMEOUT_S = 10.0


class Behaviour:
    """Mixed into an actor of either kind: calls a message that can be called, and keeps a diary of its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.diary: list[Any] = []

    def on_start(self) -> None:
        self.diary.append("on_start")

    def on_receive(self, message: Any) -> Any:
        return message() if callable(message) else message

    def on_stop(self) -> None:
        self.diary.append("on_stop")

    def on_failure(self, kind: Any, error: Any, traceback: Any) -> None:
        self.diary.append(("on_failure", kind))


class Ours(Behaviour, Actor):
    pass


class Theirs(Behaviour, pykka.ThreadingActor):
    use_daemon_thread = True  # a test that fails must not keep the interpreter from exiting


@pytest.fixture
def theirs() -> Iterator[pykka.ActorRef[Theirs]]:
    ref = Theirs.start()
    yield ref
    ref.stop(block=True, timeout=TIMEOUT_S)


@pytest.fixture
def ours() -> Iterator[ActorRef[Ours]]:
    ref = Ours.start()
    yield ref
    ref.stop(timeout=TIMEOUT_S)


def raising(error: BaseException) -> Callable[[], None]:
    def message() -> None:
        raise error

    return message


def ended(ref: ActorRef[Any]) -> ExitReport:
    """Its report; waits for its end."""
    reports: list[ExitReport] = []
    ref.monitor(reports.append)
    wait_until(lambda: reports, TIMEOUT_S)
    return reports[0]


# --- what pykka's own tests run into ----------------------------------------------------------------------------------


def test_our_actors_are_in_no_registry_and_whoever_needs_a_list_keeps_one(
    ours: ActorRef[Ours], theirs: pykka.ActorRef[Theirs]
):
    """A list for the whole process costs a search at every stop, and one user's `stop_all` ends another's actors.

    Who needs to find or stop actors together has a Supervisor, whose children have ids.
    """
    assert ours.is_alive()
    assert pykka.ActorRegistry.get_all() == [theirs]
    assert pykka.ActorRegistry.get_by_urn(ours.actor_urn) is None
    assert pykka.ActorRegistry.get_by_class(Ours) == []
    pykka.ActorRegistry.stop_all(timeout=TIMEOUT_S)
    assert ours.is_alive()


def test_an_urn_is_a_number_of_this_process_and_made_when_asked_for(
    ours: ActorRef[Ours], theirs: pykka.ActorRef[Theirs]
):
    """A uuid and its text for an actor that nobody asks for its name is wasted; there may be a million."""
    assert theirs.actor_urn.startswith("urn:uuid:")
    assert "_urn" not in vars(ours)
    assert ours.actor_urn.startswith("urn:executus:")
    assert ours.actor_urn.rpartition(":")[2].isdecimal()
    assert ours.ask(lambda: "told by its name") == "told by its name"
    assert str(ours) == f"Ours ({ours.actor_urn})"


NO_EXCEPTIONS = [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), BaseException()]


@pytest.mark.parametrize("error", NO_EXCEPTIONS, ids=lambda e: type(e).__name__)
def test_what_is_no_exception_ends_its_actor_alone_and_is_its_failure(error: BaseException):
    """One cancelled asyncio task in one actor stops every actor of the process in pykka, and calls `on_stop` for it.

    Here it is a crash like any other: of that actor, with `on_failure`, in its report, for its supervisor.
    """
    bystander, culprit, actors = Ours.start(), Ours.start(), list[Ours]()
    actors.append(culprit._actor_weakref())
    culprit.tell(raising(error))
    assert ended(culprit).error is error
    assert actors[0].diary == ["on_start", ("on_failure", type(error))]
    assert bystander.ask("still here", timeout=TIMEOUT_S) == "still here"
    bystander.stop()


def test_what_is_no_exception_stops_all_of_pykka_s_actors():
    bystander, culprit = Theirs.start(), Theirs.start()
    actor = culprit._actor_weakref()
    culprit.tell(raising(asyncio.CancelledError()))
    wait_until(lambda: not bystander.is_alive(), TIMEOUT_S)
    assert actor is not None
    assert actor.diary == ["on_start", "on_stop"]


def test_every_listed_difference_is_shown_by_a_test_here_and_says_why():
    for difference in pykka_suite.DIFFERENCES.values():
        assert difference.shown_by in globals()
        assert len(difference.reason) > 40
        assert "\n" not in difference.reason


# --- what they do not try ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", NO_EXCEPTIONS, ids=lambda e: type(e).__name__)
def test_who_asks_for_what_is_no_exception_is_told_that_the_actor_died_of_it(error: BaseException):
    """In pykka the asker waits for ever. Raised at the asker, a SystemExit would end the asker as well."""
    ref = Ours.start()
    with pytest.raises(pykka.ActorDeadError, match=type(error).__name__) as caught:
        ref.ask(raising(error), timeout=TIMEOUT_S)
    assert caught.value.__cause__ is error
    assert ended(ref).error is error


def test_a_start_that_fails_is_reported_and_answers_who_asked():
    """pykka logs an Exception of `on_start` and nobody else learns of it; of a SystemExit there it leaves a zombie."""

    class Unlucky(Actor):
        def on_start(self) -> None:
            raise SystemExit(3)

    ref = Unlucky.start()
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("anything", timeout=TIMEOUT_S)
    report = ended(ref)
    assert (type(report.error), report.phase) == (SystemExit, "starting")
    assert not ref.is_alive()
    assert not ref.stop()


def test_an_actor_has_no_thread_of_its_own_and_use_daemon_thread_means_nothing(theirs: pykka.ActorRef[Theirs]):
    """A thread each costs 22 KB and 0.1 ms; a few workers run all actors, and all of them are daemons.

    So nothing of an actor may hang on its thread: a `threading.local` is the worker's, and a thread's name says nothing.
    One at a time it is all the same: two hooks of one actor never run at once.
    """

    class Stubborn(Actor):
        use_daemon_thread: ClassVar[bool] = False

        def on_receive(self, message: Any) -> threading.Thread:
            return threading.current_thread()

    their_thread = theirs.ask(threading.current_thread)
    assert their_thread.name.startswith("Theirs")
    refs = [Stubborn.start() for _ in range(200)]
    threads = {ref.ask("where?", timeout=TIMEOUT_S) for ref in refs}
    assert len(threads) < 20
    assert all(thread.daemon for thread in threads)
    assert not any(thread.name.startswith("Stubborn") for thread in threads)
    for ref in refs:
        ref.stop(block=False)


def test_there_is_no_inbox_to_put_into(ours: ActorRef[Ours], theirs: pykka.ActorRef[Theirs]):
    """pykka's `actor_inbox` is a queue that anyone may fill or empty. Ours can be closed, so it is behind the ref."""
    assert theirs.actor_inbox.empty()
    assert not hasattr(ours, "actor_inbox")
    assert ours.queued() == 0


def test_a_tell_to_a_full_mailbox_raises_and_does_not_block():
    """pykka says that a full inbox blocks the teller. A worker that is blocked so cannot empty anybody's mailbox."""

    class Small(Ours):
        mailbox_limit = 2

    ref, opened = Small.start(), threading.Event()
    ref.ask("started")
    inside = threading.Event()
    ref.tell(lambda: (inside.set(), opened.wait(TIMEOUT_S)))
    assert inside.wait(TIMEOUT_S)
    ref.tell(1)
    ref.tell(2)
    with pytest.raises(MailboxFull) as full:
        ref.tell(3)
    assert full.value.limit == 2
    with pytest.raises(MailboxFull):
        ref.ask(3)
    stopped = ref.stop(block=False)  # gets through
    opened.set()
    assert stopped.get(timeout=TIMEOUT_S)


def test_actor_stopped_is_set_when_the_actor_has_ended_and_not_before_its_on_stop():
    """In pykka it is the flag that ends the loop, set before `on_stop`. Here `is_alive` says that; the event says: over.

    Each reading makes an event of its own: most actors are never asked for one.
    """
    seen: list[bool] = []
    events: list[threading.Event] = []

    class Ending(Ours):
        def on_stop(self) -> None:
            seen.extend([self.actor_ref.is_alive(), events[0].is_set()])

    class TheirEnding(Theirs):
        def on_stop(self) -> None:
            seen.extend([self.actor_ref.is_alive(), self.actor_ref.actor_stopped.is_set()])

    ref = Ending.start()
    events.append(ref.actor_stopped)
    assert ref.actor_stopped is not events[0]
    ref.stop()
    assert events[0].wait(TIMEOUT_S)
    TheirEnding.start().stop(block=True)
    assert seen == [False, False, False, True]


def test_stopping_oneself_in_the_last_hook_is_harmless():
    """In pykka `self.stop()` of an actor that ends already raises ActorDeadError in it."""
    diary: list[str] = []

    class Twice(Actor):
        def on_stop(self) -> None:
            self.stop()
            diary.append("on_stop")

    ref = Twice.start()
    ref.stop()
    assert ended(ref).error is None
    assert diary == ["on_stop"]

    class TheirTwice(Theirs):
        def on_stop(self) -> None:
            try:
                self.stop()
            except pykka.ActorDeadError:
                diary.append("dead")

    TheirTwice.start().stop(block=True)
    assert diary == ["on_stop", "dead"]


def test_waiting_for_oneself_raises_where_pykka_waits_for_ever(ours: ActorRef[Ours]):
    """Nobody else can ever answer, so the cycle of asks is found by whoever closes it."""
    with pytest.raises(AskCycle):
        ours.ask(lambda: ours.ask("me"), timeout=TIMEOUT_S)
    assert ours.ask("alive") == "alive"


def test_a_time_out_is_python_s_as_well_as_pykka_s(ours: ActorRef[Ours]):
    """`except TimeoutError` is what the rest of a program says."""
    opened = threading.Event()
    ours.tell(lambda: opened.wait(TIMEOUT_S))
    for expected in (pykka.Timeout, TimeoutError):
        with pytest.raises(expected):
            ours.ask("late", timeout=0.001)
    opened.set()
    assert not issubclass(pykka.Timeout, TimeoutError)


def test_await_lets_the_event_loop_go_on(ours: ActorRef[Ours], theirs: pykka.ActorRef[Theirs]):
    """pykka's `await future` blocks the loop's thread until the reply is there."""

    async def ticks_during(ref: pykka.ActorRef[Any]) -> int:
        begun, opened, count = threading.Event(), threading.Event(), 0

        async def tick() -> None:
            nonlocal count
            while True:
                await ticks(0.001)
                count += 1
                if count == 5:
                    opened.set()

        def message() -> None:
            begun.set()
            opened.wait(0.3)

        ticking = asyncio.create_task(tick())
        await ticks(0)
        future = ref.ask(message, block=False)
        begun.wait(TIMEOUT_S)
        count = 0
        await future
        result = count
        ticking.cancel()
        return result

    assert asyncio.run(ticks_during(ours)) >= 5
    assert asyncio.run(ticks_during(theirs)) == 0


def test_an_actor_that_nobody_can_reach_any_more_is_garbage():
    """In pykka its thread and the registry keep it for ever. Nobody could tell it anything, so no `on_stop` is called.

    Who wants it to stop in order keeps the ref, or has it supervised.
    """
    diary: list[str] = []

    class Forgotten(Actor):
        def on_stop(self) -> None:
            diary.append("on_stop")

    ref = Forgotten.start()
    ref.ask("started")
    actor = weakref.ref(ref._actor_weakref())

    def gone() -> bool:
        gc.collect()
        return actor() is None

    assert not gone()
    del ref
    wait_until(gone, TIMEOUT_S)
    assert diary == []


def test_crashes_are_logged_by_executus_and_not_by_pykka(caplog: pytest.LogCaptureFixture):
    """A log says whose code it was; messages that nobody handles are still said by pykka, whose `on_receive` it is."""
    ref = Ours.start()
    ref.tell(raising(ValueError("broken")))
    ended(ref)
    (record,) = (record for record in caplog.records if record.getMessage() == f"Unhandled exception in {ref}:")
    assert record.name.startswith("executus")
    silent = Actor.start()
    silent.tell("nobody handles this")
    silent.stop()
    (record,) = (record for record in caplog.records if "Unexpected message" in record.getMessage())
    assert record.name == "pykka"


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_in_a_forked_child_a_ref_says_that_its_actor_stayed_behind(ours: ActorRef[Ours]):
    """The threads of pykka's actors are not in the child, where they look alive and never answer."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            ours.ask("there?", timeout=1)
        except RuntimeForked:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert ours.ask("here", timeout=TIMEOUT_S) == "here"
