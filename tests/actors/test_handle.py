"""What a user holds of a run: messages, asks, queries, waiters, over restarts and after the end."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest

from executus.actors import (
    Backoff,
    ChildEnded,
    Completed,
    Done,
    Factory,
    InvalidMessage,
    MailboxFull,
    NoReply,
    Reply,
    RestartPolicy,
    Run,
    RunCrashed,
    RunEnded,
    RunInterrupted,
    RunStatus,
    SavePolicy,
    Wait,
    WaitExpired,
    WaitTimeout,
)
from executus.actors.events import RunRestarting
from executus.stores import MemoryStore
from tests.doubles import SHORT, AsyncFailableRun, Do, FailableRun, Told, World, rigged
from tests.waiting import wait_until

BOTH = pytest.mark.parametrize("double", [FailableRun, AsyncFailableRun], ids=["sync", "async"])


@BOTH
def test_messages_are_handled_in_order_and_what_was_queued_survives_a_restart(double: Any) -> None:
    with rigged() as rig:
        handle = rig.runtime.start(double, Told(("hang", "wait")), run_id="r")
        wait_until(lambda: rig.world.hanging == 1)
        for number in range(10):
            handle.tell(Do(f"raise:{'ValueError'}@1" if number == 3 else f"sleep:0.000{number}"))
        rig.world.release.set()
        wait_until(lambda: handle.status().waiting and handle.status().messages == 0 and handle.status().attempt == 2)
        heard = handle.query("heard", 10)
        assert heard == tuple(f"sleep:0.000{number}" for number in range(10) if number != 3)


@BOTH
def test_the_message_in_hand_of_a_crash_is_lost_and_its_asker_gets_run_crashed(double: Any) -> None:
    with rigged() as rig:
        handle = rig.waiting(double)
        with pytest.raises(RunCrashed, match="message in hand"):
            handle.ask(Do("raise:ValueError"), 10)
        assert handle.query("heard", 10) == ()


def test_a_message_in_hand_of_a_run_that_is_given_up_on_is_answered_with_run_crashed() -> None:
    with rigged() as rig:
        handle = rig.waiting(stop_policy=SHORT)
        caught: list[BaseException] = []

        def ask() -> None:
            try:
                handle.ask(Do("hang"), 10)
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: rig.world.hanging == 1)
        handle.cancel(timeout_s=10)
        thread.join(10)
        assert [type(error) for error in caught] == [RunCrashed]


def test_a_full_mailbox_refuses_the_teller_and_takes_the_next_one_when_there_is_room() -> None:
    class Small(FailableRun):
        run_type = "Small"
        mailbox_limit = 3

    world = World()
    with rigged(None, Factory(Small, world)) as rig:
        handle = rig.runtime.start(Small, Told(("hang", "wait")), run_id="r")
        wait_until(lambda: world.hanging == 1)
        for _ in range(3):
            handle.tell(Do("ok"))
        with pytest.raises(MailboxFull) as caught:
            handle.tell(Do("ok"))
        assert caught.value.limit == 3
        with pytest.raises(MailboxFull):
            handle.ask(Do("reply:x"), 10)
        assert handle.status().messages == 3
        world.release.set()
        wait_until(lambda: handle.status().waiting and not handle.status().messages)
        handle.tell(Do("ok"))
        wait_until(lambda: handle.query("heard", 10) == ("ok",) * 4)


def test_an_ask_gets_its_reply_and_one_that_got_none_gets_no_reply() -> None:
    with rigged() as rig:
        handle = rig.waiting()
        assert handle.ask(Do("reply:yes"), 10) == "yes"
        for silent in ("none", "ok"):
            with pytest.raises(NoReply):
                handle.ask(Do(silent), 10)
        assert handle.status().seq == 2 + 3  # a receive that returned None counts as well


class Teller(Run[int, int, int]):
    """Replies with every kind of what comes next."""

    def begin(self, start: int) -> Wait[int]:
        return Wait(start)

    def step(self, state: int) -> Wait[int]:
        return Wait(state + 100)

    def receive(self, state: int, message: Do) -> Any:
        match message.action:
            case "done":
                return Reply("bye", Done(state))
            case "step":
                return Reply("stepping", state)
            case "wait":
                return Reply("waiting", Wait(state + 1))
            case "error":
                return Reply(ValueError("a value like any other"))
            case _:
                return Reply(None)

    def query(self, state: int, question: str) -> int:
        return state


@pytest.mark.parametrize("durability", ["async", "sync"])
def test_a_reply_goes_on_with_whatever_it_names_next(durability: Any) -> None:
    with rigged(None, Teller) as rig:
        handle = rig.runtime.start(Teller, 0, save_policy=SavePolicy(durability=durability))
        assert handle.ask(Do("nothing"), 10) is None
        assert handle.ask(Do("wait"), 10) == "waiting"
        assert handle.query("", 10) == 1
        assert handle.ask(Do("step"), 10) == "stepping"
        wait_until(lambda: handle.query("", 10) == 101)
        assert isinstance(handle.ask(Do("error"), 10), ValueError)
        assert handle.ask(Do("done"), 10) == "bye"
        assert handle.result(10) == 101


def test_with_durability_sync_a_reply_comes_when_its_effect_is_stored() -> None:
    store = MemoryStore()
    with rigged(store, Teller) as rig:
        handle = rig.runtime.start(Teller, 0, run_id="r", save_policy=SavePolicy(durability="sync"))
        for number in range(1, 20):
            handle.ask(Do("wait"), 10)
            loaded = store.load_snapshot("r")
            assert loaded is not None
            assert msgspec.msgpack.decode(loaded.snapshot.state) == number


def test_a_message_of_a_type_that_receive_does_not_declare_is_refused_at_the_door() -> None:
    class Silent(Run[int, int, int]):
        def begin(self, start: int) -> Wait[int]:
            return Wait(start)

        def step(self, state: int) -> int:
            return state

    with rigged(None, Silent) as rig:
        handle = rig.waiting()
        with pytest.raises(InvalidMessage, match="takes Do, not str"):
            handle.tell("do")
        with pytest.raises(InvalidMessage):
            handle.ask(WaitExpired(), 1)
        silent = rig.runtime.start(Silent, 1)
        with pytest.raises(InvalidMessage, match="takes no messages"):
            silent.tell(Do("x"))
        assert handle.status().messages == 0


# --- queries -----------------------------------------------------------------------------------------------------------


@BOTH
def test_a_query_beside_a_hung_step_answers_about_the_last_completed_state(double: Any) -> None:
    with rigged() as rig:
        handle = rig.runtime.start(double, Told(("ok", "ok", "hang")), run_id="r")
        wait_until(lambda: rig.world.hanging == 1)
        assert handle.query("at", 10) == 2


@BOTH
def test_a_query_before_begin_has_returned_waits_for_the_first_state(double: Any) -> None:
    with rigged() as rig:
        handle = rig.runtime.start(double, Told(("wait",), begin="hang"), run_id="r")
        wait_until(lambda: rig.world.hanging == 1)
        with pytest.raises(WaitTimeout):
            handle.query("at", 0.05)
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(handle.query("at", 10)))
        thread.start()
        rig.world.release.set()
        thread.join(10)
        assert answers[0] in {0, 1}


@BOTH
def test_a_query_waiting_for_a_first_state_that_never_comes_is_told_so(double: Any) -> None:
    with rigged(stop_policy=SHORT) as rig:
        handle = rig.runtime.start(double, Told(begin="hang"), run_id="r")
        wait_until(lambda: rig.world.hanging == 1)
        caught: list[BaseException] = []

        def ask() -> None:
            try:
                handle.query("at", 10)
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: bool(handle._inc.waiting_for_begin))
        handle.kill(timeout_s=10)
        thread.join(10)
        assert [type(error) for error in caught] == [RunEnded]


def test_a_query_has_no_context_also_when_it_is_asked_from_inside_a_callback() -> None:
    class Asks(Run[str, int, str]):
        def begin(self, other: str) -> int:
            return 0

        def step(self, state: int) -> Done[str]:
            target = rig.runtime.get(Curious, "other")
            return Done(target.query("", 10))

    class Curious(Run[int, int, int]):
        def begin(self, start: int) -> Wait[int]:
            return Wait(start)

        def step(self, state: int) -> int:
            return state

        def query(self, state: int, question: str) -> str:
            try:
                return self.context.run_id
            except LookupError as error:
                return f"LookupError {error}"

    with rigged(None, Asks, Curious) as rig:
        rig.runtime.start(Curious, 1, run_id="other")
        answer = rig.runtime.start(Asks, "other").result(10)
        assert answer.startswith("LookupError Curious.context is for")


def test_a_query_of_a_run_that_has_ended_or_rests_says_so() -> None:
    with rigged() as rig:
        handle = rig.waiting()
        handle.stop(10)
        with pytest.raises(RunInterrupted):
            handle.query("at", 10)
        other = rig.runtime.start(FailableRun, Told(), run_id="done")
        other.result(10)
        with pytest.raises(RunEnded):
            other.query("at", 10)


# --- over restarts and after the end -----------------------------------------------------------------------------------


@BOTH
def test_a_handle_stays_good_over_restarts(double: Any) -> None:
    with rigged() as rig:
        handle = rig.waiting(double, Told(("wait", "raise:ValueError@1", "raise:ValueError@2", "wait")))
        handle.tell(Do("go"))
        wait_until(lambda: handle.status().attempt == 3 and handle.status().waiting)
        assert handle.status().restarts == 2
        handle.tell(Do("done"))
        assert handle.result(10) == 4


def test_a_handle_of_a_stopped_run_is_good_again_once_it_is_resumed() -> None:
    with rigged() as rig:
        handle = rig.waiting()
        handle.stop(10)
        again = rig.runtime.resume("r")
        wait_until(lambda: again.status().waiting)
        handle.tell(Do("done"))
        assert handle.result(10) == again.result(10) == 1


def test_a_handle_of_a_stopped_run_knows_how_it_ended_after_a_resume_that_it_did_not_see() -> None:
    with rigged() as rig:
        handle, killed = rig.waiting(), rig.waiting(run_id="k")
        handle.stop(10)
        again = rig.runtime.resume("r")
        wait_until(lambda: again.status().waiting)
        again.tell(Do("done"))
        assert again.result(10) == 1
        assert handle.result(10) == 1
        assert handle.status().status is RunStatus.COMPLETED
        killed.stop(10)
        killed.kill("at rest", timeout_s=10)
        assert type(killed.outcome(10)).__name__ == "Killed"


def test_a_late_monitor_still_gets_exactly_one_report_and_restarts_are_no_ends() -> None:
    with rigged() as rig:
        early: list[Any] = []
        late: list[Any] = []
        handle = rig.runtime.start(FailableRun, Told(("raise:ValueError@1", "hang", "ok")), run_id="r")
        wait_until(lambda: rig.world.hanging == 1)
        handle.monitor(early.append)
        assert not early
        rig.world.release.set()
        handle.result(10)
        handle.monitor(late.append)
        wait_until(lambda: early and late)
        assert [ending.outcome for ending in early + late] == [Completed(3)] * 2
        stopped: list[Any] = []
        other = rig.waiting(run_id="s")
        other.monitor(stopped.append)
        other.stop(10)
        wait_until(lambda: len(stopped) == 1)
        assert (stopped[0].status, stopped[0].outcome) == (RunStatus.STOPPED, None)


def test_waiters_askers_and_durables_of_a_run_that_is_suspended_or_stopped_get_run_interrupted() -> None:
    for verb in ("stop", "drain"):
        with rigged() as rig:
            handle = rig.runtime.start(FailableRun, Told(("hang",)), run_id="r")
            wait_until(lambda: rig.world.hanging == 1)
            caught: list[type[BaseException]] = []

            def waits(how: Any) -> None:
                try:
                    how()
                except BaseException as error:
                    caught.append(type(error))

            threads = [
                threading.Thread(target=waits, args=(how,))
                for how in (lambda: handle.result(10), lambda: handle.outcome(10), lambda: handle.ask(Do("ok"), 10))
            ]
            for thread in threads:
                thread.start()
            wait_until(lambda: handle.status().messages == 1)
            ender = threading.Thread(target=lambda: handle.stop(10) if verb == "stop" else rig.runtime.drain(5))
            ender.start()
            wait_until(lambda: bool(handle._inc.causes))
            rig.world.release.set()
            for thread in [*threads, ender]:
                thread.join(10)
            assert caught == [RunInterrupted] * 3


def test_a_result_that_does_not_come_in_time_is_a_wait_timeout_and_the_run_goes_on() -> None:
    with rigged() as rig:
        handle = rig.waiting()
        with pytest.raises(WaitTimeout):
            handle.result(0.01)
        with pytest.raises(TimeoutError):
            handle.outcome(0)
        handle.tell(Do("done"))
        assert handle.result(10) == 1


def test_any_loop_can_await_a_handle_and_a_cancelled_waiter_leaves_nothing_behind() -> None:
    with rigged() as rig:
        handle = rig.waiting()

        async def main() -> int:
            async def wait() -> int:
                return await handle

            waiters = [asyncio.create_task(wait()) for _ in range(5)]
            await asyncio.sleep(0)
            for waiter in waiters[1:]:
                waiter.cancel()
            await asyncio.gather(*waiters[1:], return_exceptions=True)
            assert len(handle._inc.ending._callbacks or ()) == 1
            handle.tell(Do("done"))
            return await waiters[0]

        assert asyncio.run(main()) == 1


def test_tellers_from_many_threads_lose_nothing_and_each_ones_messages_stay_in_order() -> None:
    class Counts(Run[int, dict[str, list[int]], dict[str, list[int]]]):
        def begin(self, start: int) -> Wait[dict[str, list[int]]]:
            return Wait({})

        def step(self, state: dict[str, list[int]]) -> Wait[dict[str, list[int]]]:
            return Wait(state)

        def receive(self, state: dict[str, list[int]], message: Do | ChildEnded) -> Any:
            assert isinstance(message, Do)
            if message.action == "done":
                return Done(state)
            who, _, number = message.action.partition(" ")
            state.setdefault(who, []).append(int(number))
            return Wait(state)

    with rigged(None, Counts, save_policy=SavePolicy(durability="none")) as rig:
        handle = rig.runtime.start(Counts, 0)

        def tell(who: int) -> None:
            for number in range(100):
                handle.tell(Do(f"t{who} {number}"))

        threads = [threading.Thread(target=tell, args=(who,)) for who in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        handle.tell(Do("done"))
        assert handle.result(10) == {f"t{who}": list(range(100)) for who in range(8)}


def test_a_status_shows_what_a_crash_right_now_would_lose() -> None:
    with rigged(save_policy=SavePolicy(every_s=3600)) as rig:
        handle = rig.waiting(told=Told(("ok", "ok", "ok", "wait")))
        wait_until(lambda: handle.status().durable_seq > 0)
        handle.tell(Do("ok"))
        wait_until(lambda: handle.status().seq == 6)
        assert handle.status().durable_seq < 6
        assert handle.durable(10) == 6
        assert handle.status().durable_seq == 6


def test_status_tells_a_backoff_and_the_last_error() -> None:
    with rigged(restart_policy=RestartPolicy(backoff=Backoff(initial_s=60, max_s=60))) as rig:
        handle = rig.runtime.start(FailableRun, Told(("raise:ValueError",)), run_id="r")
        rig.seen.wait_for(RunRestarting)
        wait_until(lambda: handle.status().stage == "backing_off")
        error = handle.status().last_error
        assert error is not None
        assert error.type == "ValueError"
        assert "Failable running" in repr(handle)
        with pytest.raises(WaitTimeout):
            handle.result(0)
