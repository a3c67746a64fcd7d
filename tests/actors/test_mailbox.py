"""The mailbox: closable, control before work, nothing accepted is lost."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from executus.actors.errors import MailboxClosed, MailboxFull
from executus.actors.mailbox import ENDED, NOTHING, Mailbox


class Box(Mailbox):
    """A mailbox whose owner is driven by the test."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__(limit)
        self.scheduled = 0

    def _schedule(self) -> None:
        assert not self._lock.locked(), "never call out under the lock"
        self.scheduled += 1

    def __str__(self) -> str:
        return "a box"


def idle(box: Box) -> bool:
    """Whether the token is there, once, for somebody to take."""
    assert len(box._idle) <= 1
    return bool(box._idle) and box._idle is not ENDED


def opened(limit: int | None = None) -> Box:
    box = Box(limit)
    box.open()
    assert box.enter(1)
    box.leave()
    assert idle(box)
    box.scheduled = 0
    return box


def taken(box: Box) -> list[Any]:
    assert box.enter(1)
    messages: list[Any] = []
    while (message := box.take()) is not NOTHING:
        messages.append(message)
    box.leave()
    return messages


def test_messages_are_taken_in_the_order_told_and_wake_the_owner_once():
    box = opened()
    for n in range(5):
        box.tell(n)
    assert box.scheduled == 1
    assert box.queued() == 5
    assert taken(box) == [0, 1, 2, 3, 4]
    assert box.scheduled == 1
    box.tell(5)
    assert box.scheduled == 2


def test_control_goes_ahead_of_everything_told_and_keeps_its_own_order():
    box = opened()
    box.tell("work 1")
    box.tell_control("control 1")
    box.tell("work 2")
    box.tell_control("control 2")
    assert box.queued() == 4
    assert box.scheduled == 1
    assert taken(box) == ["control 1", "control 2", "work 1", "work 2"]


def test_control_wakes_an_idle_owner():
    box = opened()
    box.tell_control("stop")
    assert box.scheduled == 1
    assert taken(box) == ["stop"]


def test_an_owner_that_leaves_with_messages_waiting_is_scheduled_again():
    box = opened()
    box.tell(1)
    box.tell(2)
    assert box.enter(7)
    assert box._running == 7
    assert box.take() == 1
    box.leave()
    assert box._running is None
    assert (box.scheduled, idle(box)) == (2, False)
    assert taken(box) == [2]
    assert idle(box)


def test_what_is_told_before_opening_waits_for_the_first_turn():
    box = Box()
    box.tell("early")
    box.tell_control("earlier")
    assert box.scheduled == 0
    box.open()
    assert box.scheduled == 1
    assert taken(box) == ["earlier", "early"]


def test_a_full_mailbox_refuses_at_the_teller_and_lets_stops_and_control_through():
    box = opened(limit=2)
    box.tell(1)
    box.tell(2)
    with pytest.raises(MailboxFull, match="a box") as caught:
        box.tell(3)
    assert caught.value.limit == 2
    box.tell_control("c")
    box.tell_anyway("stop")
    assert taken(box) == ["c", 1, 2, "stop"]
    box.tell(4)
    assert taken(box) == [4]


@pytest.mark.parametrize("put", [Mailbox.tell, Mailbox.tell_anyway, Mailbox.tell_control])
def test_a_closed_mailbox_refuses_every_kind_of_message(put: Callable[[Mailbox, Any], None]):
    box = opened()
    assert box.close()
    with pytest.raises(MailboxClosed, match="a box"):
        put(box, 1)
    assert box.queued() == 0
    assert box.scheduled == 0
    assert not box.enter(1)
    assert not box.close()


def test_closing_hands_over_what_was_accepted_and_not_taken():
    box = opened()
    box.tell(1)
    box.tell(2)
    box.tell_control("c")
    assert box.enter(1)
    assert box.take() == "c"
    assert box.take() == 1
    assert box.close()
    assert box._leftovers == [2]
    assert box.take() is NOTHING
    box.leave()
    assert (box.scheduled, idle(box), box._idle is ENDED) == (1, False, True)


def test_any_object_may_be_a_message_also_one_that_compares_strangely():
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("do not compare messages")

        __hash__ = None  # type: ignore[assignment]

        def __bool__(self) -> bool:
            raise RuntimeError("do not ask messages whether they are true")

    box = opened()
    messages = [None, 0, "", queue.Empty(), Odd(), Odd()]
    for message in messages:
        box.tell(message)
    assert all(a is b for a, b in zip(taken(box), messages, strict=True))
    box.close()
    for message in messages:
        with pytest.raises(MailboxClosed):
            box.tell(message)


def test_a_late_message_taken_out_by_another_late_teller_is_still_refused_at_its_own():
    # Both put after closing; the first to get the lock empties the queue. What it found is kept beside for its teller.
    box = opened()
    box.close()
    mine, other = object(), object()
    box._queue.put(other)
    with pytest.raises(MailboxClosed):
        box.tell(mine)
    with pytest.raises(MailboxClosed):
        box._wake(other)
    assert box._late is None


def test_a_teller_whose_message_was_taken_before_closing_is_not_told_otherwise():
    # It put, the owner took the message and ended, and only now it looks for the token.
    box = opened()
    message = object()
    box._queue.put(message)
    del box._idle[0]
    assert taken(box) == [message]
    box.close()
    box._wake(message)


def test_a_message_put_between_the_owner_s_last_look_and_going_idle_wakes_it():
    # Its teller looks for the token while the owner is still in its turn, and leaves the waking to the owner.
    box = opened()
    box.tell("first")
    assert box.enter(1)
    assert box.take() == "first"

    class Interleaved:
        """The box's queue, with a teller that comes right after the first look at it."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner
            self.looked = False

        def empty(self) -> bool:
            was_empty = self.inner.empty()
            if not self.looked:
                self.looked = True
                assert not idle(box)
                box.tell("second")
            return was_empty

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    box._queue = Interleaved(box._queue)  # type: ignore[assignment]
    box.leave()
    assert (box.scheduled, idle(box)) == (2, False)
    assert taken(box) == ["second"]


def test_of_two_tellers_that_find_the_owner_idle_one_schedules_it():
    box = opened()
    box._queue.put(1)
    box._queue.put(2)
    box._wake(1)
    box._wake(2)
    assert box.scheduled == 1
    assert taken(box) == [1, 2]


def test_a_teller_that_takes_the_token_of_a_mailbox_that_has_just_closed_wakes_nobody_for_long():
    # It had read the token before the closing; its message was put before as well, and is among the leftovers.
    box = opened()
    old = box._idle
    message = object()
    box._queue.put(message)
    assert box.close()
    assert box._leftovers == [message]
    del old[0]
    box._schedule()
    assert not box.enter(1)
    for put in (box.tell, box.tell_anyway, box.tell_control):
        with pytest.raises(MailboxClosed):
            put("late")
    assert box.queued() == 0


def test_an_owner_that_leaves_after_its_mailbox_was_closed_brings_no_token_back():
    box = opened()
    box.tell("first")
    assert box.enter(1)
    assert box.take() == "first"
    assert box.close()
    box.leave()
    assert box._idle is ENDED
    assert list(ENDED) == [None]  # it is everybody's
    with pytest.raises(IndexError):
        del box._idle[0]


class Worker:
    """Runs a box's turns on a thread of its own, and counts what it takes."""

    def __init__(self, close_after: int) -> None:
        self.ready = threading.Semaphore(0)
        self.taken: list[Any] = []
        outer = self

        class Driven(Box):
            def _schedule(self) -> None:
                outer.ready.release()

        self.box = Driven()
        self.close_after = close_after
        self.thread = threading.Thread(target=self.work)
        self.thread.start()
        self.box.open()

    def work(self) -> None:
        while self.ready.acquire(timeout=30):
            if not self.box.enter(threading.get_ident()):
                return
            for _ in range(3):
                message = self.box.take()
                if message is NOTHING:
                    break
                self.taken.append(message)
                if len(self.taken) >= self.close_after:
                    assert self.box.close()
                    self.box.leave()
                    return
            self.box.leave()


def test_every_message_that_races_with_closing_is_taken_left_over_or_refused_exactly_once():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for round_ in range(60):
            worker = Worker(close_after=20 + round_)
            accepted: list[list[Any]] = [[], [], []]
            refused: list[list[Any]] = [[], [], []]

            def tell(n: int, worker: Worker = worker, accepted: Any = accepted, refused: Any = refused) -> None:
                for i in range(1000):
                    put = worker.box.tell_control if i % 10 == 9 else worker.box.tell
                    try:
                        put((n, i))
                    except MailboxClosed:
                        refused[n].append((n, i))
                        if len(refused[n]) == 3:
                            return
                    else:
                        accepted[n].append((n, i))

            tellers = [threading.Thread(target=tell, args=(n,)) for n in range(3)]
            for teller in tellers:
                teller.start()
            for teller in tellers:
                teller.join(30)
            worker.thread.join(30)
            assert not worker.thread.is_alive()
            leftovers = worker.box._leftovers or []
            assert sorted(worker.taken + leftovers) == sorted(accepted[0] + accepted[1] + accepted[2])
            assert worker.box.queued() == 0
            assert worker.box._late is None
            for n in range(3):
                work = [m for m in worker.taken + leftovers if m[0] == n and m[1] % 10 != 9]
                assert work == sorted(work), "the work of one teller stays in order"
    finally:
        sys.setswitchinterval(before)


class MailboxMachine(RuleBasedStateMachine):
    """Against the obvious model: two lists and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.box = opened(limit=4)
        self.control: list[int] = []
        self.work: list[int] = []
        self.closed = False
        self.in_turn = False
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number

    @rule()
    def tell(self) -> None:
        n = self.next()
        if self.closed:
            with pytest.raises(MailboxClosed):
                self.box.tell(n)
        elif len(self.work) >= 4:
            with pytest.raises(MailboxFull):
                self.box.tell(n)
        else:
            self.box.tell(n)
            self.work.append(n)

    @rule()
    def tell_control(self) -> None:
        n = self.next()
        if self.closed:
            with pytest.raises(MailboxClosed):
                self.box.tell_control(n)
        else:
            self.box.tell_control(n)
            self.control.append(n)

    @precondition(lambda self: not self.in_turn and not self.box._idle)
    @rule()
    def enter(self) -> None:
        assert self.box.enter(5)
        self.in_turn = True

    @precondition(lambda self: self.in_turn)
    @rule(times=st.integers(1, 3))
    def take(self, times: int) -> None:
        for _ in range(times):
            expected = self.control.pop(0) if self.control else self.work.pop(0) if self.work else NOTHING
            assert self.box.take() == expected

    @precondition(lambda self: self.in_turn)
    @rule()
    def leave(self) -> None:
        self.box.leave()
        self.in_turn = False

    @precondition(lambda self: self.number > 10)
    @rule()
    def close(self) -> None:
        assert self.box.close() is not self.closed
        if not self.closed:
            assert self.box._leftovers == self.control + self.work
        self.closed = True
        self.control, self.work = [], []

    @invariant()
    def an_owner_with_messages_is_awake(self) -> None:
        assert self.box.queued() == len(self.control) + len(self.work)
        if self.control or self.work:
            assert not idle(self.box)
        if self.closed:
            assert self.box._idle is ENDED


TestMailboxMachine = MailboxMachine.TestCase
