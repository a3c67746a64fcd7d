"""`crash_everywhere`: die at every commit of a run, boot again, and compare with how it ends undisturbed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from executus.actors.handle import refuse_on_loop
from executus.actors.runtime import Registrable
from executus.actors.testing.by_sigkill import BySigkill
from executus.actors.testing.crash_report import CrashEverywhereFailed, CrashPoint, CrashReport, differences
from executus.actors.testing.dying_store import DeathAt, Side
from executus.actors.testing.effects import Effects
from executus.actors.testing.in_process import InProcess
from executus.actors.testing.plot import AS_DECLARED, EACH_STEP, Place, Plot, Told
from executus.actors.testing.story import Drive, MakeRun


def crash_everywhere(
    make_run: MakeRun,
    *,
    runs: Iterable[Registrable] | Callable[[], Iterable[Registrable]],
    drive: Drive | None = None,
    effects: Effects | None = None,
    at_most: int | Mapping[str, int] | None = None,
    how: Literal["in-process", "sigkill"] = "in-process",
    limit: int | None = None,
    reset: Callable[[], object] | None = None,
    boot_timeout_s: float = 60.0,
    **options: Any,
) -> CrashReport:
    """Let the process of a run die at every commit, boot again, and raise CrashEverywhereFailed if that shows.

    The run is played undisturbed first, to learn its commits, its end and its effects. Then, for each commit, the
    process dies right before it is durable, and another time right after, before anybody has heard of it; a second
    process boots on the same store and goes on to the end. The outcome must be the same (of a run that rests waiting,
    its state), and each effect must have taken place as often as undisturbed: never fewer times, and never more than
    that or than `at_most` declares, for all names or for each. In three ways of saving: each step is committed before
    the next one, so that the run is resumed from each of its states; as before, but from some commit on the run is
    ahead of its saves until it dies at its end, so that as many steps repeat as may (not where "sync" is declared, or
    a callback waits for `context.durable()`); and as its class declares.

    `make_run(runtime)` starts the run under an id of its own and returns the handle. It is called in every boot; where
    the run is there already, RunExists stands for its handle. `runs` are those to register; a function makes them anew
    for each boot. `drive(run)` is called whenever the run waits for a message (in process: when nothing else can happen
    before time passes): it may tell, ask and query; False says that the story is over. `effects` is the ledger that the
    runs were given. `reset()` is called before each life of the run, to put back what else is outside. `limit` bounds
    the points tried, evenly spread. `options` are those of Runtime, such as policies.

    "in-process" plays on one thread and in virtual time, over a memory that outlives the process: the same each time,
    hundreds of points in seconds. What it cannot show: memory of the interpreter that outlives a step but not a process
    (a module's globals, what a Factory holds; give `runs` as a function), threads beside each other, and real sockets
    or files; `finally` blocks of callbacks that are in the middle of a sleep do run, with a ledger that takes nothing
    any more. "sigkill" forks a child for each boot, with real threads, loop, time and an LMDB store, which kills itself
    with SIGKILL: tens of points in seconds; commits gather a little differently each time, and a boot that takes longer
    than `boot_timeout_s` fails.
    """
    refuse_on_loop("crash_everywhere()", "a plain `def` test")
    began_s = time.monotonic()
    plot = Plot(make_run=make_run, make_runs=runs, drive=drive, effects=effects, options={"logger": False, **options})
    place: Place = InProcess() if how == "in-process" else BySigkill(boot_timeout_s)
    try:
        trials = _Trials(place, plot, reset, at_most)
        points = _spread(trials.points(), limit)
        for point in points:
            trials.crash_at(point)
    finally:
        place.close()
        if effects is not None:
            effects.empty()
    if trials.failures:
        raise CrashEverywhereFailed(trials.failures, len(points))
    return CrashReport(
        how=how,
        ended=trials.expected.ended.what,
        points=tuple(point for point in points if point not in trials.not_reached),
        not_reached=tuple(trials.not_reached),
        boots=place.boots,
        steps_repeated=place.steps_repeated,
        took_s=time.monotonic() - began_s,
    )


class _Trials:
    """The undisturbed lives, and those that are compared with them."""

    def __init__(
        self,
        place: Place,
        plot: Plot,
        reset: Callable[[], object] | None,
        at_most: int | Mapping[str, int] | None,
    ) -> None:
        self.failures: dict[CrashPoint, list[str]] = {}
        self.not_reached: list[CrashPoint] = []
        self._place = place
        self._plot = plot
        self._reset = reset
        self._at_most = at_most
        self._throttled = plot.throttled()
        self.expected = self._undisturbed(AS_DECLARED)
        self._effects = self._counts()

    def points(self) -> list[CrashPoint]:
        """Every commit of the undisturbed run, before and after, in both ways of saving."""
        each = self._undisturbed_again(EACH_STEP)
        declared = self._undisturbed_again(AS_DECLARED).commits
        # Who waits for a save is not ahead of it: to lose one behind his back would be a lie that no store tells.
        ahead = [] if each.saves_awaited else self._ahead_of_saves(each.commits)
        return [*_each_commit(EACH_STEP, each.commits), *ahead, *_each_commit(AS_DECLARED, declared)]

    def _ahead_of_saves(self, commits: list[str]) -> list[CrashPoint]:
        """After each commit, the run goes on without another save, to its end, and dies before that is durable."""
        if not self._throttled:
            return []
        last = len(commits)
        return [
            CrashPoint(f"nothing after commit {number} [{holds}]", last, "before", commits[-1], saved_to=number)
            for number, holds in enumerate(commits[:-2], 1)
        ]

    def crash_at(self, point: CrashPoint) -> None:
        """One life with a death in it."""
        self._renew()
        try:
            saves = AS_DECLARED if point.saves == AS_DECLARED else EACH_STEP
            death = DeathAt(point.commit, point.side, point.saved_to, self._throttled)
            told = self._place.boot(self._plot, saves, death)
            if told is not None:
                self.not_reached.append(point)
            else:
                told = self._place.boot(self._plot, saves, None)
            assert told is not None, "nobody told it to die"
        except Exception as error:  # noqa: BLE001 - whatever the user's code does after a crash is a finding
            self.failures[point] = [f"the boot after it failed: {type(error).__name__}: {error}"]
            return
        found = differences(self.expected.ended, self._effects, told.ended, self._counts(), self._at_most)
        if found:
            self.failures[point] = found

    def _undisturbed(self, saves: str) -> Told:
        self._renew()
        told = self._place.boot(self._plot, saves, None)
        assert told is not None, "nobody told it to die"
        return told

    def _undisturbed_again(self, saves: str) -> Told:
        """Raises AssertionError where nothing can be compared."""
        told = self._undisturbed(saves)
        found = differences(self.expected.ended, self._effects, told.ended, self._counts(), None)
        if found:
            msg = "undisturbed the run does not do the same each time, so no crash can be told by it:\n  "
            raise AssertionError(msg + "\n  ".join(found))
        return told

    def _renew(self) -> None:
        if self._reset is not None:
            self._reset()
        self._place.renew(self._plot)

    def _counts(self) -> Counter[str]:
        return Counter() if self._plot.effects is None else self._plot.effects.counts()


def _each_commit(saves: str, commits: list[str]) -> list[CrashPoint]:
    sides: tuple[Side, Side] = ("before", "after")
    return [CrashPoint(saves, number, side, holds) for number, holds in enumerate(commits, 1) for side in sides]


def _spread(points: list[CrashPoint], limit: int | None) -> list[CrashPoint]:
    """So many of them, the first and the last among them."""
    if limit is None or limit >= len(points):
        return points
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    if limit == 1:
        return points[-1:]
    return [points[round(index * (len(points) - 1) / (limit - 1))] for index in range(limit)]
