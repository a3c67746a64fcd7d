"""Parents and children: who is told of whose end, and what becomes of children when their parent has ended for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from executus.actors.desk import Desk
from executus.actors.future import Promise
from executus.actors.incarnation import Incarnation, Letter
from executus.actors.messages import EndRun, StartOrder
from executus.actors.outcomes import CancelRequested, KillRequested, Outcome
from executus.actors.run import ChildEnded
from executus.actors.stored_runs import resting_incarnation
from executus.stores import LIVE, ExecutusError, ParentLink, RunStatus

TO_END: Final = LIVE | {RunStatus.PASSIVATED}


class Family:
    """The parent's side of children. On the supervisor's thread."""

    def __init__(self, desk: Desk, end_run: Callable[[EndRun], None]) -> None:
        self._desk = desk
        self._end_run = end_run

    def adopt(self, parent: Incarnation, key: str, child: Incarnation, *, begun_here: bool) -> bool:
        """Note a child with its parent.

        False when its id is held by a child of an earlier life or round, or by a run that is nobody's. Raises
        StoreError. A parent that spawns a child again which has ended, repeating a step after a crash, may have taken
        in that end; one that has begun in this process has no older state that could have.
        """
        if not _is_child_of(child, parent):
            return False
        parent.children[key] = child.run_id
        if child.ending.done():
            ending = child.ending.result(0)
            if ending.outcome is not None and self._is_owed(parent, child, begun_here=begun_here):
                _deliver(parent, key, child.run_id, ending.outcome)
        return True

    def is_past(self, parent: Incarnation, order: StartOrder) -> bool:
        """Whether this child, of which no store knows, has ended and its parent was told.

        The parent repeats a step after a crash: with the end in its mailbox, or in the state that it goes on from.
        """
        unsaved = order.policies.save.durability == "none"
        return unsaved and order.run_id in (parent.told_of or ()) and order.run_id not in self._desk.table

    def begins_afresh(self, inc: Incarnation) -> None:
        """A run begins from its input again: the children that it had are none of its new life's, but end with it."""
        inc.letters.drop_ends()
        inc.told_of = None

    def ended(self, inc: Incarnation, outcome: Outcome) -> None:
        """A run has ended for good: tell its parent, and end its children as they were told to."""
        link = inc.parent
        if link is not None:
            parent = self._desk.table.get(link.run_id)
            if parent is None and not inc.durable:  # the store does not know of it: the parent is kept for it
                parent = self._desk.dormitory.asleep(link.run_id)
            if parent is not None and _is_child_of(inc, parent):
                _deliver(parent, link.key, inc.run_id, outcome)
        for child_run_id in list(inc.children.values()):
            child = self._desk.table.get(child_run_id)
            if child is not None and child.parent is not None and child.parent.incarnation == inc.incarnation:
                self._end_run(EndRun(child.run_id, child.incarnation, parent_ended(child.parent), Promise()))

    def _is_owed(self, parent: Incarnation, child: Incarnation, *, begun_here: bool) -> bool:
        """Whether the parent was not told of the end of this child before, by this process or in its stored state."""
        if child.run_id in (parent.told_of or ()):
            return False
        if begun_here or not (parent.durable and child.durable):
            return True
        return any(child_run_id == child.run_id for child_run_id, _ in self._desk.env.store.children(parent.run_id))

    def find(self, inc: Incarnation) -> None:
        """Derive from the store which children a resumed parent has, and which ends it has not taken in yet.

        Raises StoreError, and NotRegistered or ResultUnreadable for a child whose end this code cannot read.
        """
        store = self._desk.env.store
        for child_run_id, link in store.children(inc.run_id):
            if link.incarnation != inc.incarnation:
                continue
            inc.children[link.key] = child_run_id
            if link.begun != inc.claim.begun:
                continue
            stored = store.load(child_run_id)
            if stored is None or child_run_id in self._desk.table or stored.claim.status in TO_END:
                continue  # what is live goes on or is parked: its end is still to come
            ended = resting_incarnation(self._desk.env, stored).ending.result(0)
            if ended.outcome is not None:
                _deliver(inc, link.key, child_run_id, ended.outcome)


def parent_ended(link: ParentLink) -> CancelRequested | KillRequested:
    """Why a child ends whose parent has ended for good."""
    cause = KillRequested if link.on_parent_end == "kill" else CancelRequested
    return cause(f"parent {link.run_id!r}", "its parent ended")


def _is_child_of(child: Incarnation, parent: Incarnation) -> bool:
    """Whether the parent spawned it since it began: of an earlier life or round it is a stranger's."""
    link = child.parent
    return link is not None and (link.run_id, link.incarnation, link.begun) == (
        parent.run_id,
        parent.incarnation,
        parent.claim.begun,
    )


def _deliver(parent: Incarnation, key: str, child_run_id: str, outcome: Outcome) -> None:
    """Put ChildEnded into the parent's mailbox, once: the same end may be derived from here and from the store."""
    if parent.letters.holds_child(child_run_id):
        return
    try:
        parent.put(Letter(ChildEnded(key, child_run_id, outcome), own=True))
    except ExecutusError:
        return  # the parent has ended meanwhile; nobody is left to tell
    if parent.told_of is None:
        parent.told_of = set()
    parent.told_of.add(child_run_id)
