"""`executus backup`, `restore` and `compact`: copies of a store, for people and for scripts."""

from __future__ import annotations

from typing import Final

from executus.actors.console.failures import ExitCode
from executus.actors.console.screen import Screen
from executus.actors.console.values import byte_size
from executus.stores import CopyReport

MOST_DAMAGED: Final = 10
"""So many are named for people."""


def exit_code_of_copy(report: CopyReport) -> ExitCode:
    """0; 1 where the copy is whole and something in it is damaged, as it is in the source."""
    return ExitCode.FAILED if report.damaged else ExitCode.OK


def print_copy(report: CopyReport, screen: Screen, *, verb: str) -> None:
    """For people."""
    if report.moved_aside is not None:
        screen.say(f"what was there lies in {report.moved_aside} now")
    screen.say(
        f"{verb} {report.path}: {report.runs} runs, {report.live} of them live, {byte_size(report.size_bytes)} "
        f"(before {byte_size(report.size_before_bytes)}); every frame was read back"
    )
    for checkup in report.damaged[:MOST_DAMAGED]:
        screen.say(f"damaged as in the source: run {checkup.run_id}: {checkup.damages[0].why}")
    if len(report.damaged) > MOST_DAMAGED:
        screen.say(f"and {len(report.damaged) - MOST_DAMAGED} more; --json has all")
