"""Who waits for whom, so that asks that would wait for each other are refused instead of hanging."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Protocol

from executus.actors.errors import AskCycle

_FAR: Final = 1000
"""The arrows change while they are followed; no chain of ours is that long."""


class Awaited(Protocol):
    """Somebody whose reply is waited for."""

    def running_thread(self) -> int | None:
        """The thread in its turn now, or None."""
        ...


_waits: Final[dict[int, Awaited]] = {}
"""The arrows: whom each waiting thread waits for. Written by that thread alone, and only while it is going to wait."""


class WaitingFor:
    """Thread `thread` waits for `target`. Entering raises AskCycle if that leads back to a turn on this very thread.

    The arrows: a thread waits for an actor, an actor's turn is on a thread. So an actor needs no note of its own, and a
    turn costs nothing for this, also where one thread runs several turns inside each other.

    Each waiter writes its own arrow before it follows the others'. Two that close a cycle at the same time may both see
    it and both raise; at worst, on a machine that delays writes, neither does and the time-out decides.
    """

    __slots__ = ("_target", "_thread")

    def __init__(self, target: Awaited, thread: int) -> None:
        self._target = target
        self._thread = thread

    def __enter__(self) -> None:
        me = self._thread
        _waits[me] = seen = self._target
        for _ in range(_FAR):
            thread = seen.running_thread()
            if thread is None:
                return
            if thread == me:
                del _waits[me]
                raise AskCycle(
                    f"{seen} would wait for {self._target}, which waits for {seen}: neither could ever go on"
                )
            following = _waits.get(thread)
            if following is None:
                return
            seen = following

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _waits.pop(self._thread, None)
