"""Durable messages: accepted when committed, heard in order, and once as far as a state goes, whatever crashes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from executus.actors import (
    AsyncRuntime,
    Backoff,
    BlockingCallOnLoop,
    Done,
    InboxFull,
    InvalidMessage,
    MailboxFull,
    NotDurable,
    RestartPolicy,
    Run,
    RunEnded,
    RunExists,
    RunInterrupted,
    RunStatus,
    Runtime,
    RuntimeDraining,
    SavePolicy,
    SendFailed,
    StopPolicy,
    Wait,
    WaitExpired,
)
from executus.actors.events import Event, MessageExpired, MessagesLost
from executus.stores import LmdbStore, MemoryStore, StoreUnavailable, codec
from executus.stores.rows import Table, message_key
from tests.stores.disks import LmdbDisk, flip_last_bit
from tests.waiting import wait_until


class Add(msgspec.Struct, frozen=True, tag=True):
    """Remember this number; crash so many times over it first."""

    number: int
    crashes: int = 0


class Look(msgspec.Struct, frozen=True, tag=True):
    """Take notice, and change nothing."""


class End(msgspec.Struct, frozen=True, tag=True):
    """Be done."""


class Bag(msgspec.Struct):
    """What can be changed."""

    numbers: list[int]


class Heard(msgspec.Struct, frozen=True):
    numbers: tuple[int, ...] = ()
    spoiled: int = 0


SOON = RestartPolicy(max_restarts=100, backoff=Backoff(initial_s=0.001, max_s=0.001))


class Listener(Run[str, Heard, tuple[int, ...]]):
    """Waits for numbers."""

    restart_policy = SOON
    save_policy = SavePolicy(every_s=0.02)
    crashed: ClassVar[dict[int, int]] = {}
    keys: ClassVar[dict[int, list[str]]] = {}
    gate: ClassVar[threading.Event] = threading.Event()

    def begin(self, input: str) -> Any:
        if input == "gated":
            self.gate.wait(10)
        return Wait(Heard())

    def step(self, state: Heard) -> Any:
        return Wait(state)

    def receive(self, state: Heard, message: Add | Look | End | WaitExpired) -> Any:
        match message:
            case Add(number, crashes):
                self.keys.setdefault(number, []).append(self.context.idempotency_key)
                self.crashed[number] = self.crashed.get(number, 0) + 1
                if self.crashed[number] <= crashes:
                    raise SystemExit("with the message in hand")
                return Wait(Heard((*state.numbers, number)))
            case Look():
                return None
            case End():
                return Done(state.numbers)
            case _:
                return state

    def query(self, state: Heard, question: str) -> Any:
        return state.numbers


class AsyncListener(Run[str, Heard, tuple[int, ...]]):
    restart_policy = SOON
    save_policy = SavePolicy(every_s=0.02)

    async def begin(self, input: str) -> Any:
        return Wait(Heard())

    async def step(self, state: Heard) -> Any:
        return Wait(state)

    async def receive(self, state: Heard, message: Add | Look | End) -> Any:
        await asyncio.sleep(0)
        match message:
            case Add(number, crashes):
                if crashes and self.context.attempt <= crashes:
                    raise asyncio.CancelledError
                return Wait(Heard((*state.numbers, number)))
            case Look():
                return None
            case End():
                return Done(state.numbers)


@pytest.fixture(autouse=True)
def afresh() -> None:
    Listener.crashed, Listener.keys, Listener.gate = {}, {}, threading.Event()


def runtime(store: Any, *runs: Any, **options: Any) -> Runtime:
    return Runtime(store, runs=list(runs) or [Listener], logger=False, **options)


def end(run: Any) -> Any:
    run.send(End())
    return run.result(10)


def listening(runtime_: Runtime, *kinds: type[Event]) -> list[Any]:
    seen: list[Any] = []
    runtime_.events.subscribe(lambda event: seen.append(event) if isinstance(event, kinds) else None)
    return seen


# --- order, once ------------------------------------------------------------------------------------------------------


def test_messages_are_heard_in_the_order_in_which_they_were_accepted() -> None:
    with runtime(None) as rt:
        run = rt.start(Listener, "")
        for number in range(50):
            run.send(Add(number))
        assert end(run) == tuple(range(50))


def test_what_many_threads_send_is_heard_once_each_and_each_threads_own_in_order() -> None:
    with runtime(None) as rt:
        run = rt.start(Listener, "")
        senders = [
            threading.Thread(target=lambda n=n: [run.send(Add(100 * n + k)) for k in range(20)])  # type: ignore[misc]
            for n in range(5)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        heard = end(run)
    assert sorted(heard) == [100 * n + k for n in range(5) for k in range(20)]
    for n in range(5):
        assert [number for number in heard if number // 100 == n] == [100 * n + k for k in range(20)]


def test_a_send_returns_the_id_and_an_id_that_was_taken_is_accepted_without_effect() -> None:
    with runtime(None) as rt:
        run = rt.start(Listener, "")
        assert run.send(Add(1), message_id="a") == "a"
        drawn = run.send(Add(2))
        for _ in range(3):
            run.send(Add(9), message_id="a")
            run.send(Add(9), message_id=drawn)
        assert end(run) == (1, 2)


def test_ids_are_known_over_a_reboot_and_after_the_end(store_path: Path) -> None:
    with runtime(store_path) as rt:
        rt.start(Listener, "", run_id="r").send(Add(1), message_id="a")
    with runtime(store_path) as rt:
        run = rt.get("r")
        run.send(Add(1), message_id="a")
        run.send(End(), message_id="end")
        assert run.result(10) == (1,)
        assert run.send(Add(1), message_id="a") == "a"
        assert run.send(End(), message_id="end") == "end"
        with pytest.raises(RunEnded):
            run.send(Add(2), message_id="b")
    with runtime(store_path) as rt:
        assert rt.get("r").send(Add(1), message_id="a") == "a"


def test_a_crash_with_the_message_in_hand_hears_it_again_with_the_same_idempotency_key() -> None:
    with runtime(None) as rt:
        run = rt.start(Listener, "")
        run.send(Add(1))
        run.send(Add(2, crashes=3))
        run.send(Add(3))
        assert end(run) == (1, 2, 3)
    assert len(Listener.keys[2]) == 4
    assert len(set(Listener.keys[2])) == 1


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_message_that_was_accepted_is_in_the_state_of_the_next_boot(store_path: Path, durability: Any) -> None:
    policy = SavePolicy(durability=durability)
    with runtime(store_path) as rt:
        run = rt.start(Listener, "", run_id="r", save_policy=policy)
        for number in range(5):
            run.send(Add(number))
    with runtime(store_path) as rt:
        assert end(rt.get("r")) == (0, 1, 2, 3, 4)


def test_a_state_that_cannot_be_stored_keeps_its_message_for_a_restart() -> None:
    class Blotted(Listener):
        def receive(self, state: Heard, message: Add | Look | End | WaitExpired) -> Any:
            if isinstance(message, Add) and message.number == 2 and self.context.attempt == 1:
                return Wait(Heard((*state.numbers, 2), spoiled=1 << 70))
            if isinstance(message, Look) and self.context.attempt == 1:
                raise ValueError("after a state that no store takes")
            return super().receive(state, message)

    with runtime(None, Blotted) as rt:
        run = rt.start(Blotted, "")
        for message in (Add(1), Add(2), Look()):
            run.send(message)
        assert end(run) == (1, 2)


def test_none_from_receive_consumes_the_message(store_path: Path) -> None:
    with runtime(store_path) as rt:
        run = rt.start(Listener, "", run_id="r")
        run.send(Look())
        run.send(Add(1))
    with runtime(store_path) as rt:
        assert end(rt.get("r")) == (1,)


def test_told_and_sent_messages_share_a_mailbox_and_the_limit_counts_only_the_told() -> None:
    class Small(Listener):
        mailbox_limit = 2

    with runtime(None, Small) as rt:
        run = rt.start(Small, "gated")
        for number in range(5):
            run.send(Add(number))
        run.tell(Add(5))
        run.tell(Add(6))
        with pytest.raises(MailboxFull):
            run.tell(Add(7))
        run.send(End())
        Small.gate.set()
        assert run.result(10) == (0, 1, 2, 3, 4, 5, 6)


# --- resting, ending --------------------------------------------------------------------------------------------------


def test_a_stopped_run_takes_messages_and_hears_them_when_it_is_resumed() -> None:
    with runtime(None) as rt:
        run = rt.start(Listener, "", run_id="r")
        run.send(Add(1))
        run.stop()
        run.send(Add(2))
        with pytest.raises(RunInterrupted):
            run.tell(Add(3))
        assert end(rt.resume("r")) == (1, 2)


def test_a_run_whose_type_is_not_registered_takes_messages_by_an_old_handle_and_hears_them_when_it_is() -> None:
    store = MemoryStore()
    with runtime(store) as rt:
        rt.start(Listener, "", run_id="r").send(Add(1))
    with runtime(store, AsyncListener) as rt:
        assert rt.runs()[0].status is RunStatus.PARKED
    with runtime(store) as rt:
        assert end(rt.get("r")) == (1,)


def test_to_a_run_that_has_ended_a_message_is_refused() -> None:
    with runtime(None) as rt:
        ended = rt.start(Listener, "")
        end(ended)
        killed = rt.start(Listener, "")
        killed.kill()
        failed = rt.start(Listener, "", restart_policy=RestartPolicy("temporary"))
        failed.send(Add(1, crashes=1))
        wait_until(lambda: failed.status().status is RunStatus.FAILED)
        for run, status in ((ended, RunStatus.COMPLETED), (killed, RunStatus.KILLED), (failed, RunStatus.FAILED)):
            with pytest.raises(RunEnded) as refused:
                run.send(Add(1), message_id="x")
            assert refused.value.status is status


def test_a_failed_run_hears_the_message_that_it_failed_over_when_it_is_resumed() -> None:
    with runtime(None) as rt:
        run = rt.start(Listener, "", run_id="r", restart_policy=RestartPolicy("temporary"))
        run.send(Add(1, crashes=1))
        wait_until(lambda: run.status().status is RunStatus.FAILED)
        assert end(rt.resume("r")) == (1,)


def test_a_handle_of_a_life_that_was_replaced_sends_nothing_to_the_next_one() -> None:
    with runtime(None) as rt:
        old = rt.start(Listener, "", run_id="r")
        new = rt.start(Listener, "", run_id="r", if_exists="replace")
        with pytest.raises(RunEnded):
            old.send(Add(1))
        assert end(new) == ()


def test_messages_pending_at_an_ending_for_good_are_reported_lost() -> None:
    with runtime(None) as rt:
        lost = listening(rt, MessagesLost)
        run = rt.start(Listener, "gated", stop_policy=StopPolicy(grace_s=0.05))
        for number in range(3):
            run.send(Add(number))
        run.tell(Add(3))
        run.kill()
        Listener.gate.set()
        assert [(event.count, event.durable) for event in lost] == [(4, 3)]


def test_messages_of_a_run_that_is_killed_at_rest_are_reported_lost() -> None:
    with runtime(None) as rt:
        lost = listening(rt, MessagesLost)
        run = rt.start(Listener, "")
        run.send(Add(1))
        wait_until(lambda: run.query("") == (1,))
        run.stop()
        run.send(Add(2))
        run.send(Add(3))
        run.kill()
        assert [(event.count, event.durable) for event in lost] == [(2, 2)]


def test_messages_pending_at_a_drain_are_not_lost(store_path: Path) -> None:
    with runtime(store_path) as rt:
        lost = listening(rt, MessagesLost)
        run = rt.start(Listener, "gated", run_id="r", stop_policy=StopPolicy(grace_s=0.05))
        for number in range(3):
            run.send(Add(number))
        rt.drain(1.0)
        Listener.gate.set()
        with pytest.raises(RuntimeDraining):
            run.send(Add(9))
        assert lost == []
    with runtime(store_path) as rt:
        assert end(rt.get("r")) == (0, 1, 2)


def test_the_next_round_of_a_permanent_run_hears_what_the_one_before_has_not() -> None:
    rounds: list[tuple[int, ...]] = []

    class Rounds(Listener):
        restart_policy = RestartPolicy("permanent", max_restarts=50, backoff=Backoff(initial_s=0.001, max_s=0.001))

        def receive(self, state: Heard, message: Add | Look | End | WaitExpired) -> Any:
            answer = super().receive(state, message)
            if isinstance(answer, Done):
                rounds.append(state.numbers)
            return answer

    store = MemoryStore()
    with runtime(store, Rounds) as rt:
        run = rt.start(Rounds, "", run_id="r")
        for message in (Add(1), Add(2), End(), Add(3), End(), Add(4)):
            run.send(message)
        wait_until(lambda: len(rounds) == 2 and run.query("") == (4,))
    with runtime(store, Rounds) as rt:
        run = rt.get("r")
        run.send(End())
        wait_until(lambda: len(rounds) == 3)
        run.cancel()
    assert rounds == [(1, 2), (3,), (4,)]


def test_a_run_resumed_from_its_input_hears_what_it_had_not_consumed() -> None:
    with runtime(None) as rt:
        run = rt.start(Listener, "", run_id="r")
        run.send(Add(1))
        wait_until(lambda: run.query("") == (1,))
        run.stop()
        run.send(Add(2))
        assert end(rt.resume("r", from_input=True)) == (2,)


# --- at the door ------------------------------------------------------------------------------------------------------


def test_what_receive_does_not_declare_or_no_store_can_keep_is_refused_at_the_door() -> None:
    class Anything(Run[str, Heard, None]):
        def begin(self, input: str) -> Any:
            return Wait(Heard())

        def step(self, state: Heard) -> Any:
            return Wait(state)

        def receive(self, state: Heard, message: Any) -> Any:
            return None

    with runtime(None, Listener, Anything) as rt:
        run, loose = rt.start(Listener, ""), rt.start(Anything, "")
        for message in ("text", Heard(), Add(1 << 70)):
            with pytest.raises(InvalidMessage):
                run.send(message)
        with pytest.raises(InvalidMessage, match="come back as dict"):
            loose.send(Add(1))
        assert loose.send("text", message_id="a") == "a"
        for message_id in ("", "x" * 1001, "\ud800", 5):
            with pytest.raises(InvalidMessage):
                run.send(Add(1), message_id=message_id)  # type: ignore[arg-type]
        for expires_s in (0, -1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="expires_s"):
                run.send(Add(1), expires_s=expires_s)
        assert end(run) == ()
        loose.kill()


def test_a_message_is_what_was_sent_whatever_its_sender_does_to_it_afterwards() -> None:
    class Keeper(Run[str, Heard, tuple[int, ...]]):
        def begin(self, input: str) -> Any:
            Listener.gate.wait(10)
            return Wait(Heard())

        def step(self, state: Heard) -> Any:
            return Wait(state)

        def receive(self, state: Heard, message: Bag) -> Any:
            return Done(tuple(message.numbers))

    with runtime(None, Keeper) as rt:
        run, bag = rt.start(Keeper, ""), Bag([1, 2])
        run.send(bag)
        bag.numbers.append(3)
        Listener.gate.set()
        assert run.result(10) == (1, 2)


def test_the_inbox_has_a_limit_of_its_own() -> None:
    class Few(Listener):
        inbox_limit = 3

    with runtime(None, Few) as rt:
        run = rt.start(Few, "gated")
        for number in range(3):
            run.send(Add(number), message_id=str(number))
        with pytest.raises(InboxFull) as full:
            run.send(Add(3))
        assert full.value.limit == 3
        run.send(Add(0), message_id="0")
        Few.gate.set()
        wait_until(lambda: run.query("") == (0, 1, 2))
        run.durable()
        run.send(Add(3))
        assert end(run) == (0, 1, 2, 3)


def test_a_message_that_is_not_heard_in_time_is_dropped_and_told_of() -> None:
    with runtime(None) as rt:
        expired = listening(rt, MessageExpired)
        run = rt.start(Listener, "gated")
        run.send(Add(1), message_id="late", expires_s=0.01)
        run.send(Add(2), expires_s=60)
        run.send(Add(3), message_id="late too", expires_s=0.01)
        threading.Event().wait(0.05)
        Listener.gate.set()
        assert end(run) == (2,)
    assert [(event.message_id, event.number) for event in expired] == [("late", 1), ("late too", 3)]


def test_a_run_of_durability_none_refuses_durable_messages() -> None:
    with runtime(None) as rt:
        run = rt.start(Listener, "", save_policy=SavePolicy(durability="none"))
        with pytest.raises(NotDurable):
            run.send(Add(1))
        with pytest.raises(NotDurable):
            rt.start(Listener, "", save_policy=SavePolicy(durability="none"), first=Add(1))
        run.kill()


def test_a_blocking_send_on_a_loop_names_its_twin() -> None:
    async def main() -> None:
        with pytest.raises(BlockingCallOnLoop, match=r"AsyncRunHandle.send"):
            run.send(Add(1))

    with runtime(None) as rt:
        run = rt.start(Listener, "")
        asyncio.run(main())
        assert end(run) == ()


def test_a_store_that_fails_is_waited_for_and_then_send_says_that_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    failing = threading.Event()
    commit = store.commit

    def fail(operations: Any, flushing: Any = None) -> Any:
        if not failing.is_set():
            return commit(operations, flushing)
        commit(operations)
        raise StoreUnavailable("applied, and not said so")

    monkeypatch.setattr(store, "commit", fail)
    monkeypatch.setattr("executus.actors.deliveries.SEND_PATIENCE_S", 0.3)
    with runtime(store) as rt:
        run = rt.start(Listener, "")
        failing.set()
        with pytest.raises(SendFailed) as failed:
            run.send(Add(1), message_id="a")
        assert failed.value.message_id == "a"
        failing.clear()
        assert run.send(Add(1), message_id="a") == "a"
        run.send(Add(2))
        assert end(run) == (1, 2)


def test_a_message_whose_sender_gave_up_is_heard_before_those_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    failing = threading.Event()
    commit = store.commit

    def fail(operations: Any, flushing: Any = None) -> Any:
        verdicts = commit(operations, flushing)
        if failing.is_set():
            raise StoreUnavailable("applied, and not said so")
        return verdicts

    monkeypatch.setattr(store, "commit", fail)
    monkeypatch.setattr("executus.actors.deliveries.SEND_PATIENCE_S", 0.0)
    with runtime(store) as rt:
        run = rt.start(Listener, "")
        failing.set()
        with pytest.raises(SendFailed):
            run.send(Add(1))
        failing.clear()
        run.send(Add(2))
        assert end(run) == (1, 2)


# --- first ------------------------------------------------------------------------------------------------------------


def test_a_first_message_is_committed_with_the_start(store_path: Path) -> None:
    with runtime(store_path) as rt:
        run = rt.start(Listener, "gated", run_id="r", first=Add(1), stop_policy=StopPolicy(grace_s=0.0))
        assert len(run._core.store.messages("r")) == 1
        rt.drain(0.1)
        Listener.gate.set()
    with runtime(store_path) as rt:
        assert end(rt.get("r")) == (1,)


def test_start_with_return_sends_the_first_message_to_the_run_that_is_there_once_for_each_id() -> None:
    def say(number: int, message_id: str) -> Any:
        return rt.start(Listener, "", run_id="r", if_exists="return", first=Add(number), first_id=message_id)

    with runtime(None) as rt:
        for number, message_id in ((1, "a"), (2, "b"), (2, "b"), (1, "a")):
            run = say(number, message_id)
        run.stop()
        say(3, "c")
        say(3, "c")
        rt.resume("r")
        run = say(4, "d")
        assert end(run) == (1, 2, 3, 4)
        assert say(4, "d").result(10) == (1, 2, 3, 4)
        with pytest.raises(RunEnded):
            say(5, "e")
        with pytest.raises(RunExists):
            rt.start(Listener, "", run_id="r", first=Add(6))


def test_starts_that_race_for_an_id_each_get_their_first_message_heard() -> None:
    with runtime(None) as rt:

        def say(number: int) -> None:
            rt.start(Listener, "", run_id="r", if_exists="return", first=Add(number))

        starters = [threading.Thread(target=say, args=(number,)) for number in range(8)]
        for starter in starters:
            starter.start()
        for starter in starters:
            starter.join()
        assert sorted(end(rt.get("r"))) == list(range(8))


def test_a_new_life_hears_its_first_message_and_none_of_the_life_before() -> None:
    with runtime(None) as rt:
        hasty = StopPolicy(grace_s=0.05)
        rt.start(Listener, "gated", run_id="r", first=Add(1), first_id="a", stop_policy=hasty)
        run = rt.start(Listener, "", run_id="r", if_exists="replace", first=Add(2), first_id="a")
        Listener.gate.set()
        assert end(run) == (2,)


def test_a_first_message_that_does_not_fit_starts_nothing() -> None:
    with runtime(None) as rt:
        with pytest.raises(InvalidMessage):
            rt.start(Listener, "", run_id="r", first="text")
        with pytest.raises(ValueError, match="first_id"):
            rt.start(Listener, "", run_id="r", first_id="a")
        assert rt.runs() == []


# --- asyncio ----------------------------------------------------------------------------------------------------------


async def _async_story(store: Path) -> None:
    async with AsyncRuntime(store, runs=[AsyncListener], logger=False) as rt:
        run = await rt.start(AsyncListener, "", run_id="r", first=Add(0), first_id="zero")
        await asyncio.gather(
            *(run.send(Add(number, crashes=int(number == 3)), message_id=str(number)) for number in range(1, 6))
        )
        await run.send(Look())
        assert await run.send(Add(9), message_id="4", timeout_s=5) == "4"
    async with AsyncRuntime(store, runs=[AsyncListener], logger=False) as rt:
        run = await rt.get("r")
        await run.send(Add(9), message_id="zero")
        await run.send(Add(6))
        await run.send(End())
        assert sorted(await run.result(10)) == [0, 1, 2, 3, 4, 5, 6]
        with pytest.raises(RunEnded):
            await run.send(Add(7))


def test_coroutines_send_as_threads_do(store_path: Path) -> None:
    asyncio.run(_async_story(store_path))


def test_a_run_sends_to_another_from_its_step() -> None:
    class Postman(Run[str, Heard, None]):
        def begin(self, input: str) -> Heard:
            return Heard()

        def step(self, state: Heard) -> Any:
            rt.get("r").send(Add(7), message_id=self.context.idempotency_key)
            return Done(None)

    with runtime(None, Listener, Postman) as rt:
        run = rt.start(Listener, "", run_id="r")
        rt.start(Postman, "").result(10)
        assert end(run) == (7,)


# --- what cannot be read ----------------------------------------------------------------------------------------------


def test_a_run_is_parked_over_a_message_that_the_code_can_no_longer_read_and_hears_it_when_it_can(
    store_path: Path,
) -> None:
    class Later(Run[str, Heard, tuple[int, ...]]):
        run_type = "Listener"
        step = Listener.step

        def begin(self, input: str) -> Any:
            return Wait(Heard())

        def receive(self, state: Heard, message: Look | End) -> Any:
            return Done(state.numbers) if isinstance(message, End) else None

    with runtime(store_path) as rt:
        run = rt.start(Listener, "gated", run_id="r", stop_policy=StopPolicy(grace_s=0.05))
        run.send(Add(1), message_id="one")
        rt.drain(1.0)
        Listener.gate.set()
    with runtime(store_path, Later) as rt:
        wait_until(lambda: rt.runs()[0].status is RunStatus.PARKED)
        assert "'one'" in rt.runs()[0].reason
    with runtime(store_path) as rt:
        assert end(rt.get("r")) == (1,)


def test_a_run_is_quarantined_over_a_message_that_is_damaged_and_what_follows_is_not_heard_instead(
    store_path: Path,
) -> None:
    with runtime(store_path) as rt:
        run = rt.start(Listener, "gated", run_id="r", stop_policy=StopPolicy(grace_s=0.05))
        for number in (1, 2, 3):
            run.send(Add(number))
        rt.drain(1.0)
        Listener.gate.set()
    LmdbDisk(store_path).change(Table.MESSAGES, message_key(b"r", 2), flip_last_bit)
    with runtime(store_path) as rt:
        wait_until(lambda: rt.runs()[0].status is RunStatus.QUARANTINED)
        assert "message 2 is damaged" in rt.runs()[0].reason
        assert rt.start(Listener, "", run_id="r", if_exists="replace", first=Add(4)).query("", 5) in {(), (4,)}


def test_where_the_newest_generation_is_damaged_the_messages_in_it_are_heard_again(store_path: Path) -> None:
    with runtime(store_path) as rt:
        run = rt.start(Listener, "", run_id="r")
        for number in (1, 2, 3):
            run.send(Add(number))
            wait_until(lambda: len(run.query("")) == number)
            run.durable()
    damaged = 0
    store = LmdbStore(store_path)
    store.open()
    newest = store.load_snapshot("r")
    store.close()
    assert newest is not None
    disk = LmdbDisk(store_path)
    for key in disk.keys(Table.SNAPSHOTS):

        def spoil(data: bytes, key: bytes = key) -> bytes:
            nonlocal damaged
            if codec.decode_snapshot(data, key).seq == newest.snapshot.seq:
                damaged += 1
                return flip_last_bit(data)
            return data

        disk.change(Table.SNAPSHOTS, key, spoil)
    assert damaged == 1
    with runtime(store_path) as rt:
        assert end(rt.get("r")) == (1, 2, 3)
