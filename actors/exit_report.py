"""How an actor ended, and telling its monitors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from executus.actors.clock import log_contained

Phase = Literal["starting", "running", "stopping"]


class ExitReport(msgspec.Struct, frozen=True):
    """How an actor ended. Given to every monitor exactly once.

    `error` is what a hook raised in `phase`, or None. `abandoned`: it was given up on while in a hook that did not
    return. `unhandled` counts what was accepted and never handled; those of it that were asked got ActorDeadError.
    """

    actor: str
    error: BaseException | None
    phase: Phase
    abandoned: bool
    unhandled: int


def deliver(report: ExitReport, monitors: Iterable[Callable[[ExitReport], object]]) -> None:
    """Call each monitor; what one of them raises is contained."""
    for monitor in monitors:
        try:
            monitor(report)
        except BaseException:  # noqa: BLE001  # the boundary: a monitor is not part of the actor that ended
            log_contained(f"a monitor of {report.actor} raised")
