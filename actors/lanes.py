"""What a worker pool is made of: workers, lanes for turns that keep one, and which kinds of turns those are."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final

from executus.actors.dispatcher import Job, Turn

SHORT_S: Final = 0.002
BELIEF: Final = 16
"""So many turns shorter than `SHORT_S` in a row bring a kind back from its lane."""
MANY_KINDS: Final = 1024
"""Who gives every actor a kind of its own teaches nothing: from so many on all is forgotten and learned again."""


class Worker:
    """One thread of a pool. It leads, serves in a lane, is idle, or was given up on: always exactly one of these."""

    __slots__ = ("clock_id", "lane", "leaked", "parked", "thread", "turn", "turns")

    def __init__(self) -> None:
        # Written by its own thread, read by others without a lock: who reads an old value is wrong by one turn.
        self.turn: Turn | None = None
        self.turns = 0
        self.clock_id: int | None = None
        # Written under the pool's lock. Its own thread reads `lane` without it, between two turns: an old value costs
        # one turn more in the lane it has left.
        self.lane: Lane | None = None
        self.leaked = False
        # Set before the thread starts: None means that nobody has tried yet.
        self.thread: threading.Thread | None = None
        # Taken while it has nothing to do. Released exactly once for each time it was taken off the list of the idle,
        # or roused as the resting leader; both are done under the pool's lock, by one thread.
        self.parked = threading.Lock()
        self.parked.acquire()

    def is_unstarted(self) -> bool:
        """Whether nobody has tried to start it."""
        return self.thread is None

    def starved_s(self) -> float:
        """How long its thread has been ready to run and was not, for others had the CPU; 0 where that is not told."""
        thread = self.thread
        if thread is None:
            return 0.0
        try:
            with open(f"/proc/self/task/{thread.native_id}/schedstat", "rb") as told:  # noqa: PTH123  # 4 us, not 20
                return int(told.read().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0

    def cpu_s(self) -> float | None:
        """CPU time of its thread; None where that cannot be told."""
        if self.clock_id is None:
            return None
        try:
            return time.clock_gettime(self.clock_id)
        except OSError:  # the thread has ended
            return None


class Lane:
    """Turns of kinds that keep their worker: each worker serves one at a time, up to `limit` at once."""

    __slots__ = ("blocks", "coming", "limit", "name", "serving", "turns")

    def __init__(self, name: str, limit: int, *, blocks: bool = False) -> None:
        self.name = name
        self.blocks = blocks
        self.limit = limit
        # Appended to by anyone, who then takes the pool's lock to see whether a worker is needed. A worker that finds
        # it empty takes that lock to leave and looks again: one of the two sees the other.
        self.turns: deque[Turn] = deque()
        # Under the pool's lock. `serving`: how many workers have this lane. `coming`: the one that is on its way
        # and will look; who it is, so that it is nobody any more when that one is sent elsewhere before it arrives. One
        # wake-up at a time: whoever takes a turn sends for the next worker if there is more.
        self.serving = 0
        self.coming: Worker | None = None

    def wants_one(self) -> bool:
        """Whether another worker is of use. Under the pool's lock."""
        return bool(self.turns) and self.coming is None and self.serving < self.limit

    def take(self) -> Turn | None:
        """Its next turn."""
        try:
            return self.turns.popleft()
        except IndexError:
            return None


class _Habit:
    __slots__ = ("belief", "lane")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.belief = BELIEF


class Habits:
    """Which kinds of turns keep their worker, as far as was seen.

    No lock: each kind is one entry, put there or taken out in one step. Two that change it at once lose one of the two
    observations; the next turn is observed again.
    """

    def __init__(self) -> None:
        self.known: dict[object, _Habit] = {}

    def lane_of(self, turn: Turn) -> Lane | None:
        """Where turns of this kind go; None: to the leader."""
        habit = self._of(turn)
        return None if habit is None else habit.lane

    def learn(self, turn: Turn, lane: Lane) -> None:
        """Turns of this kind go to `lane` from now on. Jobs have no kind: each is another call."""
        kind = _kind(turn)
        if kind is Job:
            return
        if len(self.known) >= MANY_KINDS:
            self.known.clear()
        try:
            self.known[kind] = _Habit(lane)
        except Exception:  # noqa: BLE001  # a kind that cannot be hashed is never learned
            return

    def doubt(self, turn: Turn, took_s: float) -> None:
        """A kind that no longer keeps its worker needs no lane."""
        habit = self._of(turn)
        if habit is None:
            return
        if took_s > SHORT_S:
            habit.belief = BELIEF
            return
        habit.belief -= 1
        if habit.belief <= 0:
            self.known.pop(_kind(turn), None)

    def _of(self, turn: Turn) -> _Habit | None:
        if not self.known:
            return None
        try:
            return self.known.get(_kind(turn))
        except Exception:  # noqa: BLE001  # `kind` is foreign code, and must not cost a worker
            return None


def _kind(turn: Turn) -> object:
    """What turns are told apart by, when it is learned which of them block: their own word, or their class."""
    try:
        kind: object = getattr(turn, "kind", None)
    except Exception:  # noqa: BLE001  # as above
        kind = None
    return type(turn) if kind is None else kind
