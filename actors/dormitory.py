"""Passivated runs of which somebody in this process still holds something: one object for each, as for live ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from weakref import WeakValueDictionary

from executus.actors.incarnation import Incarnation, Stage


class Dormitory:
    """Beside the table of live runs. A passivated run is in it only while a handle of it is held, or somebody waits.

    Why there is one object for a life, whoever looks: who finds none in the table and none here notes that it looks,
    then reads the store, and adds what it has made only if its note is still there. Whoever adds one, or takes one up
    to claim it, removes the note. So what is added is what the store says, and the supervisor, who comes by the same
    way, finds it.

    Why no message and no waiter is passed by: who wants something of a run puts it down (a letter, a query, a cause),
    then reads `rouse`; who lays it down writes `rouse`, then looks what was put down. So one of the two sees the other.
    """

    def __init__(self, table: dict[str, Incarnation]) -> None:
        self._table = table
        self._sleepers: WeakValueDictionary[str, Incarnation] = WeakValueDictionary()
        self._kept: set[Incarnation] = set()
        """Those that somebody waits for who holds no handle: a monitor, a task that only the promise knows."""
        self._looking: dict[str, object] = {}
        self._closed = False
        self._lock = threading.Lock()
        self.rouse: Callable[[Incarnation], None] = _nobody
        """Has the supervisor take it up. On any thread."""

    def lay_down(self, inc: Incarnation) -> None:
        """Take it out of the table; from now on whoever wants something of it has to rouse it."""
        with self._lock:
            self._add(inc)
            if self._table.get(inc.run_id) is inc:
                del self._table[inc.run_id]
            # Who begins to wait says so, then reads the stage: one of the two keeps it.
            if inc.watched or inc.children:
                self._kept.add(inc)

    def take_up(self, inc: Incarnation) -> None:
        """Put it into the table, to be claimed."""
        with self._lock:
            self._table[inc.run_id] = inc
            self._looking.pop(inc.run_id, None)
            inc.stage, inc.rouse = Stage.CLAIMING, None
            self._forget(inc)

    def forget(self, inc: Incarnation) -> None:
        """It has ended."""
        with self._lock:
            inc.rouse = None
            self._forget(inc)

    def keep(self, inc: Incarnation) -> None:
        """Somebody waits for its end who may let go of everything else."""
        inc.watched = True
        if inc.stage is Stage.PASSIVATED:
            with self._lock:
                if inc.stage is Stage.PASSIVATED:
                    self._kept.add(inc)

    def asleep(self, run_id: str) -> Incarnation | None:
        """The passivated run of this id, if somebody holds it."""
        return self._sleepers.get(run_id)

    def close(self) -> list[Incarnation]:
        """The runtime shuts down: nobody is found here any more. Returns those that are here, for their waiters."""
        with self._lock:
            self._closed = True
            return list(self._sleepers.values())

    @property
    def closed(self) -> bool:
        """Whether nobody is found here any more."""
        return self._closed

    def all(self) -> list[Incarnation]:
        """All of them."""
        with self._lock:
            return list(self._sleepers.values())

    def find(self, run_id: str, load: Callable[[], Incarnation | None]) -> Incarnation | None:
        """The object of a run that is live or passivated.

        `load` makes it from the store if the run is passivated there, else returns None. Raises what it raises. Once
        this is closed a passivated run is not found: nobody would wake it.
        """
        note = object()
        while True:
            with self._lock:  # never while the store is read: that may take long
                inc = self._table.get(run_id) or self._sleepers.get(run_id)
                if inc is not None:
                    return inc
                self._looking[run_id] = note
            try:
                inc = load()
            finally:
                with self._lock:
                    unchanged = self._looking.get(run_id) is note
                    if unchanged:
                        del self._looking[run_id]
                        inc = None if self._closed else inc
                        if inc is not None:
                            self._add(inc)
            if unchanged:
                return inc

    def _add(self, inc: Incarnation) -> None:
        self._looking.pop(inc.run_id, None)
        self._sleepers[inc.run_id] = inc
        inc.stage, inc.rouse = Stage.PASSIVATED, self.rouse

    def _forget(self, inc: Incarnation) -> None:
        if self._sleepers.get(inc.run_id) is inc:
            del self._sleepers[inc.run_id]
        self._kept.discard(inc)


def _nobody(_inc: Incarnation) -> None:
    """Before there is a supervisor nothing is passivated."""
