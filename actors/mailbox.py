"""A mailbox that can be closed, with control before work and an idle token. Plain machinery: it knows no actors."""

from __future__ import annotations

import threading
from collections import deque
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Final, SupportsIndex

from executus.actors.errors import MailboxClosed, MailboxFull, RuntimeForked
from executus.actors.forks import forks

NOTHING: Final = object()
"""What `take` returns when both lanes are empty: any other object may be a message."""


class _Ended(list[None]):
    """The idle token of an owner that has ended: it always looks idle, and nobody gets it."""

    def __delitem__(self, _: SupportsIndex | slice) -> None:
        raise IndexError

    def append(self, _: None) -> None:
        return


ENDED: Final = _Ended([None])


class Mailbox:
    """Many tellers, one owner that takes; told in order, control ahead of work, nothing accepted is lost.

    Subclasses say how the owner is woken (`_schedule`) and which error tellers get (`closed_error`).

    **The idle token** is a list that holds one entry while the owner is idle and none while it is scheduled or in its
    turn. Whoever takes the entry out has the owner's turn to give: to the dispatcher, or to itself. Taking it out and
    putting it back are one step each, with the GIL or without, and cost 20 ns; a lock around a busy flag cost 150 ns,
    twice a turn.

    **Why no put is missed.** A teller puts, *then* looks whether the token is there. The owner puts the token back,
    *then* looks into the queue. The queue's own lock orders the two: if the owner's look came first, the teller's look
    at the token comes after its return and finds it, so it wakes the owner; otherwise the owner's look finds the
    message. Control is appended, *then* taking the token is tried; the owner puts the token back, *then* looks at the
    control lane: the same argument, by the token list's own lock. With the GIL or not.

    **Why nothing gets in after closing.** Closing sets `closed`, replaces the token by `ENDED`, which is always there,
    and takes out all that is in the queue: the leftovers, which were accepted. If the look of a teller came too early
    to see `ENDED`, its put came before the taking out, by the queue's lock, and is among the leftovers. A later one
    finds `ENDED`; so it reaches `_wake`, takes the lock, removes its own message and raises. A teller to a living owner
    pays nothing for this. Who had read the old token may still take that: then a turn is scheduled that finds the
    mailbox closed, and nothing else comes of it.
    """

    __slots__ = (
        "_born",
        "_closed",
        "_control",
        "_idle",
        "_late",
        "_leftovers",
        "_limit",
        "_lock",
        "_queue",
        "_running",
    )
    # Slots: an actor is little more than its mailbox, and there may be a million of them.

    closed_error: ClassVar[type[MailboxClosed]] = MailboxClosed

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._queue: SimpleQueue[Any] = SimpleQueue()
        # Empty until `open` and its first turn: what is told before has its place in the queue and wakes nobody.
        self._idle: list[None] = []
        # Guards `_control` being made and taken apart, closing, and what is late. Never held while calling out.
        self._lock = threading.Lock()
        self._closed = False
        self._control: deque[Any] | None = None
        # The thread in a turn. Unlike the token it outlives closing: the owner's last words are part of its turn.
        self._running: int | None = None
        self._leftovers: list[Any] | None = None
        self._late: list[Any] | None = None
        self._born = forks.count

    # --- any thread -----------------------------------------------------------------------------------------------

    def tell(self, message: Any) -> None:
        """Queue `message` behind what was told before.

        Raises MailboxFull at the limit (which concurrent tellers may overshoot by their number), `closed_error` if the
        owner has ended, RuntimeForked in a forked child. When this returns, the message is handled or counted among the
        leftovers.
        """
        if self._limit is not None and self._queue.qsize() >= self._limit:
            raise MailboxFull(str(self), self._limit)
        self._queue.put(message)
        if self._idle:
            self._wake(message)

    def tell_anyway(self, message: Any) -> None:
        """As `tell`, but never refused for being full. For what must always get through, such as a stop."""
        self._queue.put(message)
        if self._idle:
            self._wake(message)

    def tell_control(self, message: Any) -> None:
        """Queue `message` ahead of everything told, behind earlier control. Never full; raises `closed_error`."""
        self._check_process()
        # Control is rare and takes the lock: then it needs no argument of its own for closing.
        with self._lock:
            closed = self._closed
            if not closed:
                if self._control is None:
                    self._control = deque()
                self._control.append(message)
        if closed:
            raise self.closed_error(f"{self} not found")
        try:
            del self._idle[0]
        except IndexError:
            return
        self._schedule()

    def queued(self) -> int:
        """How many messages wait, control included. A snapshot: it may be over when you read it."""
        control = self._control
        return self._queue.qsize() + (len(control) if control is not None else 0)

    # --- the owner ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Let the owner be scheduled: once, before its first turn."""
        self._schedule()

    def enter(self, thread: int) -> bool:
        """Begin a turn on `thread`; False if the mailbox was closed meanwhile.

        Not under the lock. Who closes it from outside at this very moment finds the turn begun or not; a turn that did
        not see it finds nothing to take, and ends as one that was closed in its midst.
        """
        if self._closed:
            return False
        self._running = thread
        return True

    def take(self) -> Any:
        """The next message, or NOTHING. Only within a turn."""
        if self._control:
            with self._lock:  # `close` takes the lane apart under the same lock
                if self._control:
                    return self._control.popleft()
        try:
            return self._queue.get_nowait()
        except Empty:
            return NOTHING

    def leave(self) -> None:
        """End a turn: go idle, or be scheduled again if there is more."""
        self._running = None
        if self._control or not self._queue.empty():
            if not self._closed:
                self._schedule()
            return
        self._idle.append(None)
        # The look after the token is back (see the class): the one above came before it and proves nothing.
        if self._control or not self._queue.empty():
            self._wake(NOTHING)

    def close(self) -> bool:
        """Take nothing more. False if it was closed before. What was accepted and not taken is in `_leftovers`."""
        with self._lock:
            return self._close()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _wake(self, message: Any) -> None:
        """Schedule an idle owner. Of several that see it idle, the one that takes the token does it."""
        self._check_process()
        try:
            del self._idle[0]
        except IndexError:
            if self._idle is ENDED:
                self._refuse_late(message)
            return
        self._schedule()

    def _refuse_late(self, message: Any) -> None:
        with self._lock:
            refused = self._take_back(message)
        if refused:
            raise self.closed_error(f"{self} not found")  # pykka's words

    def _close(self) -> bool:
        """`close`, under the lock."""
        if self._closed:
            return False
        self._closed = True
        self._idle = ENDED
        self._leftovers = list(self._control or ())
        self._control = None
        self._empty_into(self._leftovers)
        return True

    def _take_back(self, message: Any) -> bool:
        """Whether `message` came after closing; then it is out again. Under the lock.

        Another late teller may have emptied the queue first and put our message beside; we find it there. If it is in
        neither place, it was accepted: handled, or among the leftovers. By identity: what is told twice is there twice.
        """
        late = self._late if self._late is not None else []
        self._empty_into(late)
        for index, other in enumerate(late):
            if other is message:
                del late[index]
                self._late = late or None
                return True
        self._late = late or None
        return False

    def _empty_into(self, target: list[Any]) -> None:
        # Ends: each of the tellers that put meanwhile goes on to `_wake` and waits there for our lock.
        try:
            while True:
                target.append(self._queue.get_nowait())
        except Empty:
            return

    def _check_process(self) -> None:
        """Raise where the owner cannot run for this caller, before the lock, which a thread left behind may hold."""
        if self._born != forks.count:
            raise RuntimeForked(f"{self} belongs to the parent process; this is a forked child")

    def _schedule(self) -> None:
        """Have the owner's turn run soon, on whatever thread. Called without the lock, by who took the idle token."""
        raise NotImplementedError
