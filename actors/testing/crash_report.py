"""What `crash_everywhere` did and found: points, a report, and the failure with its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec

from executus.actors.testing.dying_store import Side
from executus.actors.testing.story import Ended


class CrashPoint(msgspec.Struct, frozen=True):
    """Where a process died: at a commit of the undisturbed run, in one way of saving. `holds` says what is in it.

    `saved_to` is the last commit with a save, where the run went on ahead of its saves from there.
    """

    saves: str
    commit: int
    side: Side
    holds: str
    saved_to: int | None = None

    def __str__(self) -> str:
        return f"died {self.side} commit {self.commit} [{self.holds}], saved {self.saves}"


class CrashReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was tried. All of it came out as without a crash, or CrashEverywhereFailed would have been raised.

    `not_reached`: points whose commit did not come about again; on real threads commits gather differently each time.
    `steps_repeated` counts callbacks that were completed and not yet durable; None where nobody was left to count.
    """

    how: str
    ended: str
    points: tuple[CrashPoint, ...]
    not_reached: tuple[CrashPoint, ...]
    boots: int
    steps_repeated: int | None
    took_s: float

    def __str__(self) -> str:
        repeated = "" if self.steps_repeated is None else f", {self.steps_repeated} steps repeated"
        return (
            f"{self.how}: died at {len(self.points)} points, booted {self.boots} times{repeated}, in "
            f"{self.took_s:.1f} s; each time: {self.ended}"
        )


class CrashEverywhereFailed(AssertionError):
    """A crash changed what the run does. `failures` says where, and what was different there."""

    def __init__(self, failures: Mapping[CrashPoint, list[str]], tried: int) -> None:
        self.failures = dict(failures)
        shown = list(self.failures.items())
        lines = [f"{len(shown)} of {tried} crashes changed what the run does"]
        for point, differences in shown[:5]:
            lines += [f"  {point}:", *(f"    {difference}" for difference in differences)]
        if len(shown) > 5:  # noqa: PLR2004 - a page of them helps nobody; `failures` has the rest
            lines.append(f"  and {len(shown) - 5} more points")
        super().__init__("\n".join(lines))


def differences(
    expected: Ended,
    effects: Counter[str],
    came: Ended,
    came_effects: Counter[str],
    at_most: int | Mapping[str, int] | None,
) -> list[str]:
    """What is not as it was without a crash."""
    found: list[str] = []
    if came.value != expected.value:
        found.append(f"it ended otherwise: {came.what}; without a crash: {expected.what}")
    for name in sorted({*effects, *came_effects}):
        undisturbed, times = effects[name], came_effects[name]
        declared = at_most.get(name, 0) if isinstance(at_most, Mapping) else (at_most or 0)
        allowed = max(undisturbed, declared)
        if times > allowed:
            found.append(
                f"effect {name!r} took place {times} times, allowed are {allowed}; without a crash: {undisturbed}"
            )
        elif times < undisturbed:
            found.append(f"effect {name!r} took place {times} times, it was lost; without a crash: {undisturbed}")
    return found
