"""Lives of the daemon of agents from outside, and what is wrong with what it did in them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tests.scenarios.agent_daemon import Ended, Plan
from tests.scenarios.agent_stories import KEYED, PHASES, STEERS, UNSAFE, Effect, EffectLog
from tests.scenarios.harness import Daemon


class Books:
    """What the daemons said of their runs, over all their lives."""

    def __init__(self) -> None:
        self.lives = 0
        self.results: dict[str, Ended] = {}
        self.points: dict[str, list[str]] = defaultdict(list)
        self.stopped: dict[str, list[str]] = defaultdict(list)
        self.asked: dict[str, list[str]] = defaultdict(list)
        self.started: Counter[str] = Counter()
        self.unknown: set[tuple[str, str, str]] = set()
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self._stood: dict[str, tuple[int, int, int]] = {}

    def enter(self, lines: Iterable[list[Any]], *, each_step: bool) -> None:
        """One life's lines. With each step saved before the next one, counters never go back."""
        self.lives += 1
        for kind, *facts in lines:
            self.counts[kind] += 1
            match kind, *facts:
                case "ended", run_id, result:
                    self.results[run_id] = msgspec.convert(result, Ended)
                case "point", run_id, label:
                    self.points[run_id].append(label)
                case "stopped", run_id, label:
                    self.stopped[run_id].append(label)
                case "asked", run_id, who, _:
                    self.asked[run_id].append(who)
                case "started", run_id:
                    self.started[run_id] += 1
                case "unknown", run_id, tool, what:
                    self.unknown.add((run_id, tool, what))
                case "stands", run_id, attempt, steps, requests:
                    stood, self._stood[run_id] = self._stood.get(run_id, (0, 0, 0)), (attempt, steps, requests)
                    if each_step and any(now < before for now, before in zip(self._stood[run_id], stood, strict=True)):
                        self.wrong.append(f"{run_id} stood at {stood}, and then at {self._stood[run_id]}")
                case "exited", run_id, error:
                    self.wrong.append(f"{run_id} raised {error}")
                case "wrong", run_id, what:
                    self.wrong.append(f"{run_id}, {what}")
                case _:
                    pass


class Tour:
    """A daemon's lives on one store. `stories` by run id; a run is stopped once in a life, where it is told to."""

    def __init__(self, folder: Path, stories: Mapping[str, str], every_s: float | None, pause_s: float = 0.0) -> None:
        folder.mkdir(parents=True)
        self.stories = dict(stories)
        self.books = Books()
        self._folder = folder
        self._every_s = every_s
        self._pause_s = pause_s

    def opened(self, stops: Mapping[str, str] | None = None, *, announces: bool = False) -> Daemon:
        """A new life."""
        plan = Plan(
            stories=self.stories,
            stops=dict(stops or {}),
            every_s=self._every_s,
            pause_s=self._pause_s,
            announces=announces,
        )
        file = self._folder / f"plan-{self.books.lives}.json"
        file.write_bytes(msgspec.json.encode(plan))
        return Daemon(self._folder / "store", str(self._effects), str(file), module="agent_daemon")

    def live(self, stops: Mapping[str, str] | None = None, *, announces: bool = False) -> None:
        """A life that ends by SIGKILL when each run has stopped where it was told to, or has ended before."""
        daemon = self.opened(stops, announces=announces)
        try:
            self.wait(daemon)
        finally:
            daemon.kill()
            self.enter(daemon)

    def wait(self, daemon: Daemon, timeout_s: float = 120) -> None:
        """Until each run has stopped or ended."""
        settled: set[str] = set()
        read = 0

        def all_settled() -> bool:
            nonlocal read
            while read < len(daemon.lines):
                kind, *facts = daemon.lines[read]
                read += 1
                if kind in {"ended", "stopped"}:
                    settled.add(facts[0])
            return settled >= self.stories.keys()

        try:
            daemon.wait_for(all_settled, "", timeout_s)
        except AssertionError as error:
            left = sorted(self.stories.keys() - settled)
            last = {run_id: [line for line in daemon.lines if run_id in line][-4:] for run_id in left[:5]}
            raise AssertionError(f"{len(left)} runs neither stopped nor ended: {left[:20]}; {last}") from error

    def enter(self, daemon: Daemon) -> None:
        """The lines of a life that is over."""
        self.books.enter(daemon.lines, each_step=self._every_s is None)

    def effects(self) -> list[Effect]:
        """What was done to the world."""
        return EffectLog.read(self._effects)

    @property
    def _effects(self) -> Path:
        return self._folder / "effects.jsonl"


class Reference:
    """How a story goes that nobody interrupts."""

    def __init__(self, tour: Tour, run_id: str) -> None:
        self.result = tour.books.results[run_id]
        self.points = tour.books.points[run_id]
        self.effects = Counter(_deed(one) for one in tour.effects() if root_of(one.run_id) == run_id)
        self.runs = sorted(_within(one) for one in tour.books.asked if root_of(one) == run_id)


def judged(tour: Tour, references: Mapping[str, Reference], only: str = "") -> list[str]:
    """What is wrong with a tour that has come to its end, or with one story of it; a sentence each."""
    wrong = list(tour.books.wrong)
    effects: dict[str, list[Effect]] = defaultdict(list)
    for effect in tour.effects():
        effects[root_of(effect.run_id)].append(effect)
    for run_id, story in tour.stories.items():
        if only not in {"", story}:
            continue
        found = _judged_run(tour.books, run_id, references[story], effects[run_id], anew=story == "anew")
        wrong += [f"{run_id}, stopped at {tour.books.stopped.get(run_id)}: {one}" for one in found]
    return wrong


def _judged_run(books: Books, run_id: str, reference: Reference, effects: list[Effect], *, anew: bool) -> list[str]:
    if run_id not in books.results:
        return ["it has not ended"]
    return [
        *_of_result(books.results[run_id], reference.result, anew=anew),
        *_of_effects(books, run_id, effects, reference),
        *_of_stops(books, run_id),
        *_of_order(books.asked[run_id]),
        *_of_children(books, run_id, reference),
    ]


def _of_result(result: Ended, expected: Ended, *, anew: bool) -> list[str]:
    """A phase that begins anew takes more; what was said to it stands in each of its tries."""
    wrong = list(result.wrong)
    if (result.output, result.status) != (expected.output, expected.status):
        wrong.append(f"it said {result.status}, {result.output!r}")
    if result.phases != expected.phases:
        wrong.append(f"its phases are {result.phases}")
    for text in STEERS:
        times = result.heard.get(text, 0)
        if not times or (times > 1 and not anew):
            wrong.append(f"{text!r} is heard {times} times")
    used, least = result.used, expected.used
    if used != least if not anew else any(one < other for one, other in zip(used, least, strict=True)):
        wrong.append(f"steps, requests and calls are {used} instead of {least}")
    return wrong


def _of_effects(books: Books, run_id: str, effects: list[Effect], reference: Reference) -> list[str]:
    wrong: list[str] = []
    done = Counter(map(_deed, effects))
    unknown = {(_within(one), tool, what) for one, tool, what in books.unknown if root_of(one) == run_id}
    for deed in reference.effects.keys() | done.keys():
        _, tool, what = deed
        most = 1 if tool in UNSAFE else done[deed]
        least = 0 if deed in unknown else 1
        if deed not in reference.effects or not least <= done[deed] <= most:
            wrong.append(f"{tool} {what} took place {done[deed]} times")
    keys: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    by_deed: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for effect in effects:
        keys[effect.key].add(_deed(effect))
        by_deed[_deed(effect)].add(effect.key)
    wrong += [f"{deed} share a key" for deed in keys.values() if len(deed) > 1]
    wrong += [f"{deed} had the keys {had}" for deed, had in by_deed.items() if len(had) > 1 and deed[1] in KEYED]
    return wrong


def _of_stops(books: Books, run_id: str) -> list[str]:
    """Where it was killed inside an unsafe call, the model was told so."""
    wrong: list[str] = []
    for label in books.stopped[run_id]:
        child, _, inside = label.rpartition("tool ")
        tool, what, where, *_ = [*inside.split(" "), "", ""]
        if tool in UNSAFE and where == "inside":
            call = ("/".join(filter(None, (run_id, child.strip()))), tool, what)
            if call not in books.unknown:
                wrong.append(f"nobody was told that the outcome of {call} is unknown")
    return wrong


def _of_order(asked: list[str]) -> list[str]:
    """A phase that is over is not run again."""
    places = [PHASES.index(who) for who in asked if who in PHASES]
    return [] if places == sorted(places) else [f"its phases were asked in the order {asked}"]


def _of_children(books: Books, run_id: str, reference: Reference) -> list[str]:
    mine = [one for one in books.asked if root_of(one) == run_id]
    wrong = [f"{one} was started {books.started[one]} times" for one in mine if books.started[one] > 1]
    if sorted(map(_within, mine)) != reference.runs:
        wrong.append(f"its runs are {mine}")
    return wrong


def root_of(run_id: str) -> str:
    """The run that a user has started."""
    return run_id.partition("/")[0]


def _within(run_id: str) -> str:
    """Which child it is: the place in the transcript is left out, as a steer may come before the call or behind it."""
    return run_id.partition("/")[2].partition("-")[2]


def _deed(effect: Effect) -> tuple[str, str, str]:
    return _within(effect.run_id), effect.tool, effect.what
