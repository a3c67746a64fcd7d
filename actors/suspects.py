"""Runs that the last processes may have died of come back a few at a time, so that they do not strike each other out.

A run that takes the process down does so to all the others that have not got a save through since the boot. Resumed
together, each of its three deaths would be a strike for every one of them, and after the third they would all be
quarantined. So a run that has a strike already waits until those before it have shown that they are not the one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from executus.actors.boot import cohort
from executus.actors.desk import Desk
from executus.actors.incarnation import Incarnation, Stage
from executus.actors.messages import AdmitSuspects
from executus.stores import Claim, Operation, RunStatus

LOOK_S: Final = 0.02
SUSPICION_S: Final = 1.0
"""A run that has been at work for so long without harm lets the next ones in, although nothing of it was saved yet."""

Claims = Sequence[tuple[Incarnation, Operation]]


class Suspects:
    """The queue of runs with strikes. On the supervisor's thread."""

    def __init__(self, desk: Desk, claim: Callable[[Claims], None]) -> None:
        self._desk = desk
        self._claim = claim
        self._queue: list[tuple[Incarnation, Claim]] = []
        self._admitted: list[Incarnation] = []
        self._admitted_at_s = 0.0

    def hold(self, inc: Incarnation, claim: Claim) -> None:
        """Keep a run back; its claim, with the strike in it, is committed when its turn comes."""
        self._queue.append((inc, claim))

    def admit(self) -> None:
        """Let the next ones in, if those before them are cleared; look again later while there are more."""
        if not self._queue:
            return
        now_s = self._desk.env.clock.now_s()
        if now_s - self._admitted_at_s >= SUSPICION_S or all(_is_cleared(inc) for inc in self._admitted):
            self._queue.sort(key=lambda held: held[1].claim.strikes)
            count = cohort([claim.claim.strikes for _, claim in self._queue])
            group, self._queue = self._queue[:count], self._queue[count:]
            self._admitted, self._admitted_at_s = [inc for inc, _ in group], now_s
            self._claim(group)
        if self._queue:
            self._desk.tell_later(LOOK_S, AdmitSuspects())

    def suspend(self) -> None:
        """The runtime shuts down: those still kept back rest in the store as they are, without another strike."""
        held, self._queue = self._queue, []
        group: list[tuple[Incarnation, Operation]] = []
        for inc, claim in held:
            resting = msgspec.structs.replace(
                claim.claim, status=RunStatus.SUSPENDED, strikes=max(0, claim.claim.strikes - 1)
            )
            inc.claim = resting
            group.append((inc, msgspec.structs.replace(claim, claim=resting)))
        if group:
            self._claim(group)


def _is_cleared(inc: Incarnation) -> bool:
    """It has a save through, waits, or has ended or crashed without harm."""
    return (
        inc.stage not in {Stage.CLAIMING, Stage.RUNNING} or inc.idle or (inc.slot is not None and inc.slot.strikes == 0)
    )
