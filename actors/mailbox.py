"""A mailbox that can be closed, with control before work and a busy slot. Plain machinery: it knows no actors."""

from __future__ import annotations

import threading
from collections import deque
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Final

from executus.actors.errors import MailboxClosed, MailboxFull

IDLE: Final = 0
SCHEDULED: Final = -1
"""The busy slot: `IDLE`, `SCHEDULED`, or the ident of the thread that runs the owner now (never 0 or -1)."""

NOTHING: Final = object()
"""What `take` returns when both lanes are empty: any other object may be a message."""


class Mailbox:
    """Many tellers, one owner that takes; told in order, control ahead of work, nothing accepted is lost.

    Subclasses say how the owner is woken (`_schedule`), in which process it lives (`_check_process`), and which error
    tellers get (`closed_error`).

    **Why no put is missed.** A teller puts, *then* reads `busy`. The owner writes `busy = IDLE`, *then* looks into the
    queue. The queue's own lock orders the two: if the owner's look came first, the teller's read of `busy` comes after
    the owner's write and finds IDLE, so it wakes the owner; otherwise the look finds the message. With the GIL or not.

    **Why nothing gets in after closing.** Closing sets `closed` and `busy = IDLE` under the lock and takes out all that
    is there: the leftovers, which were accepted. A put that comes later finds `busy` IDLE, for a closed mailbox is
    never busy again; so every late teller reaches `_wake`, takes the lock, sees `closed`, removes its own message and
    raises. Not even one bit of this is paid for by a teller to a living owner.
    """

    closed_error: ClassVar[type[MailboxClosed]] = MailboxClosed

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._queue: SimpleQueue[Any] = SimpleQueue()
        # SCHEDULED until `open`: what is told before has its place in the queue and wakes nobody.
        self._busy = SCHEDULED
        # Guards what follows and every write of `_busy`. Never held while calling out.
        self._lock = threading.Lock()
        self._closed = False
        self._control: deque[Any] | None = None
        # The thread in a turn. Unlike the busy slot it outlives closing: the owner's last words are part of its turn.
        self._running: int | None = None
        self._leftovers: list[Any] | None = None
        self._late: list[Any] | None = None

    # --- any thread -----------------------------------------------------------------------------------------------

    def tell(self, message: Any) -> None:
        """Queue `message` behind what was told before.

        Raises MailboxFull at the limit (which concurrent tellers may overshoot by their number), `closed_error` if the
        owner has ended. When this returns, the message is handled or counted among the leftovers.
        """
        if self._limit is not None and self._queue.qsize() >= self._limit:
            raise MailboxFull(str(self), self._limit)
        self._queue.put(message)
        if not self._busy:
            self._wake(message)

    def tell_anyway(self, message: Any) -> None:
        """As `tell`, but never refused for being full. For what must always get through, such as a stop."""
        self._queue.put(message)
        if not self._busy:
            self._wake(message)

    def tell_control(self, message: Any) -> None:
        """Queue `message` ahead of everything told, behind earlier control. Never full; raises `closed_error`."""
        self._check_process()
        # Control is rare and takes the lock: then it needs no argument of its own.
        with self._lock:
            closed, idle = self._closed, not self._busy
            if not closed:
                if self._control is None:
                    self._control = deque()
                self._control.append(message)
                if idle:
                    self._busy = SCHEDULED
        if closed:
            raise self.closed_error(f"{self} not found")
        if idle:
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
        """Begin a turn on `thread`; False if the mailbox was closed meanwhile."""
        # Under the lock, so that a turn and a close from outside are in one order or the other.
        with self._lock:
            if self._closed:
                return False
            self._busy = self._running = thread
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
        with self._lock:
            self._running = None
            if self._closed:
                return
            more = bool(self._control) or not self._queue.empty()
            self._busy = SCHEDULED if more else IDLE
        if more:
            self._schedule()
        elif not self._queue.empty():
            # The look after the write (see the class): the one above came before it and proves nothing.
            self._wake(NOTHING)

    def close(self) -> bool:
        """Take nothing more. False if it was closed before. What was accepted and not taken is in `_leftovers`."""
        with self._lock:
            return self._close()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _wake(self, message: Any) -> None:
        """Schedule an idle owner. Of several that see it idle, the one that gets the lock first does it."""
        self._check_process()
        with self._lock:
            if self._closed:
                refused = self._take_back(message)
            elif self._busy:
                return
            else:
                self._busy = SCHEDULED
                refused = None
        if refused is None:
            self._schedule()
        elif refused:
            raise self.closed_error(f"{self} not found")  # pykka's words

    def _close(self) -> bool:
        """`close`, under the lock."""
        if self._closed:
            return False
        self._closed = True
        self._busy = IDLE
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

    def _schedule(self) -> None:
        """Have the owner's turn run soon, on whatever thread. Called without the lock, with `_busy` SCHEDULED."""
        raise NotImplementedError
