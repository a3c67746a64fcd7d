"""Retention at work: sweeps over the ended runs of a store, a few deletions a commit, never one that is needed."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import msgspec

from executus.actors.desk import Desk, Verdicts
from executus.actors.events import RunsPruned, StoreFilling
from executus.actors.messages import Prune
from executus.actors.retention import FILLING_RATIO, FOREVER, PRUNED, Keep, expired, is_needed, may_go, surplus
from executus.stores import (
    Accepted,
    Delete,
    EndedRun,
    ExecutusError,
    InvalidRunId,
    RecordCorrupt,
    RecordTooLarge,
    RunStatus,
    StoreError,
    StoreTooNew,
    Token,
)

SLICE: Final = 16
"""Deletions of one commit: each is ten calls of the engine, and saves wait behind them."""
SLICE_PAUSE_S: Final = 0.05
SOON_S: Final = 1.0
"""After a sweep that had to leave runs that are too many, or a store that is filling, the next one comes so soon."""
LOOKED_PER_PRUNED: Final = 4
"""A sweep looks at so many times as many runs as it may delete: where parents need the rest, it is not for ever."""
FIRST_SHARE: Final = 0.1
"""Of the time between two sweeps: when the first one comes, for daemons that live for less than that."""


class _Place(msgspec.Struct):
    """How far sweeps have got within one status: behind `after`, having passed over so many that stay."""

    after: EndedRun | None = None
    passed: int = 0


class _Sweep(msgspec.Struct):
    """One sweep. `by_age` is False for one that came soon: a wall clock that jumped must not hurry anything."""

    filling: bool
    by_age: bool
    left: list[RunStatus]
    pruned: dict[RunStatus, int] = {}
    looked: int = 0
    needed: int = 0

    @property
    def count(self) -> int:
        return sum(self.pruned.values())


class Pruning:
    """Deletes what is kept no longer: one sweep at a time, slice by slice. On the supervisor's thread."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._env = desk.env
        self._policy = desk.env.retention
        self._places: dict[RunStatus, _Place] = {}
        self._sweep: _Sweep | None = None
        self._by_age = True
        self._was_filling = False
        self.timer: Any = None

    def begin(self) -> None:
        """The store is open: from now on there are sweeps, unless everything is kept for ever."""
        if self.timer is None and any(self._policy.keep(status) != FOREVER for status in PRUNED):
            self._later(self._policy.every_s * FIRST_SHARE)

    def go_on(self) -> None:
        """Begin a sweep, or take the next slice of the present one."""
        if self._desk.drain is not None:
            return
        try:
            sweep = self._sweep
            if sweep is None:
                sweep = self._sweep = self._begun()
            runs = self._slice(sweep, filling=sweep.filling and self._used_ratio() >= FILLING_RATIO)
        except StoreError:  # it cannot be read now: health says so, and the next sweep tries again
            self._ended(None)
            return
        if runs:
            deletions = [Delete(token=token) for _, token in runs]
            self._desk.commit(deletions, partial(self._deleted, runs), failed=self._failed)
        elif self._is_over(sweep):
            self._ended(sweep)
        else:
            self._later(SLICE_PAUSE_S)

    def _is_over(self, sweep: _Sweep) -> bool:
        most = self._policy.max_per_sweep
        return not sweep.left or sweep.count >= most or sweep.looked >= LOOKED_PER_PRUNED * most

    def _begun(self) -> _Sweep:
        ratio = self._used_ratio()
        filling = ratio >= FILLING_RATIO
        if filling and not self._was_filling:
            self._env.events.emit(StoreFilling(used_ratio=ratio))
        self._was_filling = filling
        return _Sweep(filling, self._by_age, [s for s in PRUNED if self._policy.keep(s) != FOREVER])

    def _used_ratio(self) -> float:
        return self._env.store.info().used_ratio

    def _slice(self, sweep: _Sweep, *, filling: bool) -> list[tuple[EndedRun, Token]]:
        """Of the next few that are kept no longer, those that go, with the tokens under which they were looked at.

        Raises StoreError.
        """
        store, policy = self._env.store, self._policy
        while not self._is_over(sweep):
            status = sweep.left[0]
            place = self._places.setdefault(status, _Place())
            keep = policy.keep(status, filling=filling)
            if not (sweep.by_age or filling):
                keep = Keep(None, keep.count)
            too_many = surplus(store.count_ended(), status, keep) - place.passed
            limit = min(SLICE, policy.max_per_sweep - sweep.count)
            oldest = store.ended(status, after=place.after, limit=limit)
            runs = expired(oldest, keep, too_many=too_many, now_s=self._env.clock.wall_s())
            if len(runs) < limit:
                sweep.left.remove(status)
                del self._places[status]
            if runs:
                tokens = [(run, self._token(run, sweep)) for run in runs]
                chosen = [(run, token) for run, token in tokens if token is not None]
                sweep.looked += len(runs)
                place.after = runs[-1]
                place.passed += len(runs) - len(chosen)
                return chosen
        return []

    def _token(self, run: EndedRun, sweep: _Sweep) -> Token | None:
        """Under which this run may be deleted now; None for one that stays. What cannot be read stays."""
        store, table = self._env.store, self._desk.table
        if run.run_id in table:
            return None
        try:
            stored = store.load(run.run_id)
            if stored is None or not may_go(run, stored.claim):
                return None
            link = store.parent_link(run.run_id)
            if link is not None:
                parent, live = store.load(link.run_id), table.get(link.run_id)
                claims = (None if parent is None else parent.claim, None if live is None else live.claim)
                if any(is_needed(link, claim) for claim in claims):
                    sweep.needed += 1
                    return None
            return stored.claim.token
        except (InvalidRunId, RecordCorrupt, RecordTooLarge, StoreTooNew):
            return None

    def _deleted(self, runs: list[tuple[EndedRun, Token]], verdicts: Verdicts) -> None:
        sweep = self._sweep
        if sweep is None:
            return
        for (run, _), verdict in zip(runs, verdicts, strict=True):
            if isinstance(verdict, Accepted):
                sweep.pruned[run.status] = sweep.pruned.get(run.status, 0) + 1
            elif run.status in self._places:
                self._places[run.status].passed += 1
        self._later(SLICE_PAUSE_S)

    def _failed(self, _error: ExecutusError) -> bool:
        self._places.clear()  # whether they went is unknown: the next sweep looks from the beginning
        self._ended(self._sweep)
        return True

    def _ended(self, sweep: _Sweep | None) -> None:
        self._sweep = None
        soon = False
        if sweep is not None and sweep.count:
            pruned = {status.value: number for status, number in sweep.pruned.items()}
            self._env.events.emit(
                RunsPruned(count=sweep.count, pruned=pruned, needed=sweep.needed, filling=sweep.filling)
            )
            soon = sweep.filling or (bool(sweep.left) and self._too_many(sweep.left))
        self._by_age = not soon
        self._later(min(SOON_S, self._policy.every_s) if soon else self._policy.every_s)

    def _too_many(self, statuses: list[RunStatus]) -> bool:
        try:
            counts = self._env.store.count_ended()
        except StoreError:
            return False
        return any(surplus(counts, status, self._policy.keep(status)) for status in statuses)

    def _later(self, delay_s: float) -> None:
        if self._desk.drain is None:
            self.timer = self._desk.tell_later(delay_s, Prune())
