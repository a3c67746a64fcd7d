"""Agents killed with SIGKILL at every step boundary and in the middle of every request and call, and then once more."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from tests.scenarios.agent_books import Reference, Tour, judged
from tests.scenarios.agent_stories import STORIES

SAVES: Final = {"each step": None, "seldom": 3600.0}
"""Whether each step is saved before the next one, or nothing but what has to be: then much is done again."""


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    """How each story goes that nobody interrupts; with each of its points, in order."""
    tour = Tour(tmp_path_factory.mktemp("agents") / "undisturbed", {story: story for story in STORIES}, None)
    tour.live(announces=True)
    found = {story: Reference(tour, story) for story in STORIES}
    assert judged(tour, found) == []
    return found


@pytest.fixture(scope="module")
def tours(references: dict[str, Reference], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tour]]:
    """A run for each point of each story, stopped there when its process is killed, and killed elsewhere once more.

    All those of one way of saving live in one process: a single SIGKILL meets each at its own point.
    """
    folder = tmp_path_factory.mktemp("agents")

    def killed_twice(saves: str) -> Tour:
        rng = random.Random(saves)
        points = {
            f"{story}-{number}": (story, point)
            for story, reference in references.items()
            for number, point in enumerate(reference.points)
        }
        tour = Tour(folder / saves, {run_id: story for run_id, (story, _) in points.items()}, SAVES[saves])
        tour.live({run_id: point for run_id, (_, point) in points.items()})
        tour.live({run_id: rng.choice(references[story].points) for run_id, (story, _) in points.items()})
        tour.live()
        return tour

    with ThreadPoolExecutor(len(SAVES)) as both:
        yield dict(zip(SAVES, both.map(killed_twice, SAVES), strict=True))


@pytest.mark.timeout(300)  # the first of them waits for all
@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("saves", SAVES)
def test_wherever_it_is_killed_an_agent_ends_as_it_would_have_and_does_nothing_unsafe_twice(
    saves: str, story: str, references: dict[str, Reference], tours: dict[str, Tour]
) -> None:
    tour, reference = tours[saves], references[story]
    assert judged(tour, references, story) == []
    met = {label for run_id, other in tour.stories.items() if other == story for label in tour.books.stopped[run_id]}
    missed = set(reference.points) - met
    assert len(missed) <= len(reference.points) // 10, f"nobody was killed at {missed}"


@pytest.mark.parametrize("story", STORIES)
def test_the_kills_met_what_is_repeated_and_what_is_not(story: str, tours: dict[str, Tour]) -> None:
    for tour in tours.values():
        mine = [one for one in tour.effects() if one.run_id.startswith(f"{story}-")]
        pure = [(one.run_id, one.what) for one in mine if one.tool == "glance"]
        assert len(pure) > len(set(pure)), "no pure call was repeated"
        keyed = [one.key for one in mine if one.tool == "pay"]
        assert len(keyed) > len(set(keyed)), "no keyed call was repeated"
        assert {what for run_id, _, what in tour.books.unknown if run_id.startswith(f"{story}-")}
        assert len({one.pid for one in mine}) == 3


def test_the_points_are_before_in_the_middle_of_and_behind_everything(references: dict[str, Reference]) -> None:
    single, chief = references["single"].points, references["chief"].points
    for where in ("before", "during", "after"):
        assert sum(f"model single {step} {where}" in single for step in range(6)) == 6
    assert sum(point.startswith("tool") for point in single) == 2 * 9
    assert sum(point.startswith("callback") for point in single) >= 2 * 20
    assert sum("tool fire q inside" in point for point in chief) == 3, "the children have points, too"
    for phase in ("model research 1 during", "function tally inside", "model gamble 1 before", "model write 2 after"):
        assert phase in references["pipeline"].points
        assert phase in references["anew"].points
