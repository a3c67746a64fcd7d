"""When passivated runs are to be looked at: whose time has come is activated, for the next one a timer is set."""

from __future__ import annotations

from typing import Any, Final

from executus.actors.desk import RETRY_S, Desk
from executus.actors.errors import NotRegistered, OptionsUnreadable
from executus.actors.incarnation import Incarnation
from executus.actors.messages import ActivateRun, LookAtDue
from executus.actors.passivation import Passivation
from executus.stores import (
    Claim,
    DueRun,
    EndedRun,
    InvalidRunId,
    RecordCorrupt,
    RecordTooLarge,
    RunClaim,
    RunStatus,
    SetAside,
    StoreError,
    StoreTooNew,
    due_at_ms,
    ended_at_ms,
)

BATCH: Final = 256
"""Runs that are activated by one commit when their time has come. The next ones follow when it is through."""
EARLY_MS: Final = 0.5
"""Times in the index are whole milliseconds. The attempt waits for the rest itself."""
_DAMAGED: Final = (RecordCorrupt, RecordTooLarge, StoreTooNew, InvalidRunId)


class Alarms:
    """Goes by the store's index of due times, for each of the two clocks. On the supervisor's thread."""

    def __init__(self, desk: Desk, passivation: Passivation) -> None:
        self._desk = desk
        self._env = desk.env
        self._passivation = passivation
        self._timers: dict[bool, tuple[int, Any]] = {}
        self._aside: set[str] = set()
        """Runs that are being set aside, and stand in the index until that is committed."""
        self._ahead = True
        """Whether the store may have runs that were laid down later than now: see `_collect_ahead`."""

    def receive(self, message: ActivateRun | LookAtDue) -> None:
        """Somebody, or the time, wakes passivated runs."""
        match message:
            case ActivateRun(inc):
                self._passivation.activate(inc)
            case LookAtDue():
                self.look(message)

    def look(self, order: LookAtDue) -> None:
        """Activate whose time has come, some at a time, and set the timers for the next one of each clock."""
        self._desk.look_asked = False
        if order.elapsed is not None:
            self._timers.pop(order.elapsed, None)
        if self._desk.drain is not None:
            return
        risen: list[tuple[Incarnation, Claim]] = []
        aside: list[SetAside] = []
        try:
            if self._ahead:
                self._collect_ahead(risen, aside)
            for by_wall in (False, True):
                self._arm(self._collect(risen, aside, by_wall=by_wall), by_wall=by_wall)
        except StoreError:
            self._desk.tell_later(RETRY_S, LookAtDue())
        if risen:
            self._passivation.claim(risen)
        if aside:
            run_ids = {operation.expected.run_id for operation in aside}
            self._desk.commit(aside, lambda _verdicts: self._aside.difference_update(run_ids))

    def _collect(self, risen: list[tuple[Incarnation, Claim]], aside: list[SetAside], *, by_wall: bool) -> int | None:
        """Take up whose time has come by one clock. Returns the time of the next one. Raises StoreError."""
        now_s = self._env.clock.wall_s() if by_wall else self._env.steady_s()
        after: DueRun | None = None
        while page := self._env.store.due(by_wall=by_wall, after=after, limit=BATCH):
            for run in page:
                if run.at_ms > now_s * 1000 + EARLY_MS:
                    return run.at_ms
                if len(risen) >= BATCH:
                    return None  # the commit of these is followed by another look
                self._rise(run, risen, aside, by_wall=by_wall)
            after = page[-1]
        return None

    def _collect_ahead(self, risen: list[tuple[Incarnation, Claim]], aside: list[SetAside]) -> None:
        """Take up those that were laid down later than it is now: the wall clock was set back since, before this boot.

        Loaded, they wait for what they had left and no longer. Raises StoreError.
        """
        after = EndedRun("r", RunStatus.PASSIVATED, int(self._env.steady_s() * 1000) + 1)  # whatever id
        while page := self._env.store.ended(RunStatus.PASSIVATED, after=after, limit=BATCH):
            for run in page:
                if len(risen) >= BATCH:
                    return  # the commit of these is followed by another look
                self._rise(run, risen, aside)
            after = page[-1]
        self._ahead = False

    def _rise(
        self,
        run: DueRun | EndedRun,
        risen: list[tuple[Incarnation, Claim]],
        aside: list[SetAside],
        *,
        by_wall: bool = False,
    ) -> None:
        """Take up a run that the index names, if its claim says so, too. Raises StoreError."""
        run_id = run.run_id
        if run_id in self._desk.table or run_id in self._aside:
            return  # a start that holds the id is followed by another look
        try:
            stored = self._env.store.load(run_id)
        except _DAMAGED:
            return  # executus doctor names it
        if stored is None or not _stands(run, stored.claim, by_wall=by_wall):
            return
        try:
            inc = self._passivation.find(run_id)
        except (NotRegistered, OptionsUnreadable) as error:
            self._aside.add(run_id)
            aside.append(SetAside(expected=stored.claim.token, status=RunStatus.PARKED, reason=str(error)))
            return
        except _DAMAGED:
            return
        claim = None if inc is None else self._passivation.risen(inc)
        if inc is not None and claim is not None:
            risen.append((inc, claim))

    def _arm(self, at_ms: int | None, *, by_wall: bool) -> None:
        armed = self._timers.get(by_wall)
        if armed is not None:
            if armed[0] == at_ms:
                return
            armed[1].cancel()
            del self._timers[by_wall]
        if at_ms is not None:
            self._timers[by_wall] = (at_ms, self._timer(at_ms / 1000, by_wall=by_wall))

    def _timer(self, at_s: float, *, by_wall: bool) -> Any:
        def elapsed() -> None:
            self._desk.tell_self(LookAtDue(elapsed=by_wall))

        timers = self._env.timers
        return timers.call_at_wall(at_s, elapsed) if by_wall else timers.call_at(self._env.now_at(at_s), elapsed)


def _stands(run: DueRun | EndedRun, claim: RunClaim, *, by_wall: bool) -> bool:
    """Whether the claim says of this run what the row of an index does."""
    if claim.status is not RunStatus.PASSIVATED:
        return False
    if isinstance(run, EndedRun):
        return ended_at_ms(claim) == run.ended_at_ms
    return any(due.by_wall is by_wall and due_at_ms(due) == run.at_ms for due in claim.due_times)
