"""3,000 seeds of the shipped runtime, and each planted bug found within them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import pytest

from tests.beside import Ended
from tests.simulation.invariants import Violation
from tests.simulation.planted import PLANTED
from tests.simulation.stacks import Stacks
from tests.simulation.world import World

SEEDS = 3_000
LATE = {
    "pending_messages_are_not_loaded": 101,
    "letters_are_looked_for_before_a_run_is_laid_down_and_not_after": 115,
    "older_epoch_accepted": 351,
    "the_letter_in_hand_is_lost_in_a_crash": 899,
    "two_endings": 1022,
    "children_of_an_earlier_beginning_are_the_next_ones": 2424,
}
"""Seeds that find what few others find. They are tried first; where they do not any more, for the workload has changed, all are."""

pytestmark = [
    # A process that dies leaves coroutines behind that had not begun.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.fixture
def stacks() -> Iterator[Stacks]:
    loggers = [logging.getLogger(name) for name in ("executus", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)  # crashes are the material
    with Stacks() as made:
        yield made
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def first_failing(stacks: Stacks, seeds: Iterable[int]) -> tuple[int, str] | None:
    for seed in seeds:
        try:
            World(seed, stacks).run()
        except Violation as violation:
            return seed, str(violation)
    return None


@pytest.mark.programs(  # two processes side by side, as anybody runs them
    *(f"-W ignore -m tests.simulation --seeds {SEEDS // 2} --start {start}" for start in (0, SEEDS // 2))
)
def test_no_seed_violates_a_promise(ended: list[Ended]) -> None:
    for half in ended:
        assert half.code == 0, half.out + half.err
        assert f"{SEEDS // 2} seeds, 0 failed" in half.out


def test_a_seed_replays_event_by_event(stacks: Stacks) -> None:
    def story(seed: int) -> str:
        world = World(seed, stacks)
        world.run()
        return world.report().replace(hex(id(world)), "")

    for seed in range(20):
        assert _without_addresses(story(seed)) == _without_addresses(story(seed))


def _without_addresses(text: str) -> list[str]:
    return [line.partition(" object at ")[0] for line in text.splitlines()]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(stacks: Stacks, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    PLANTED[name](monkeypatch)
    failing = first_failing(stacks, (LATE.get(name, 0), *range(SEEDS)))
    assert failing is not None, f"{name} went unnoticed in {SEEDS} seeds"
    print(f"{name}: seed {failing[0]}")


def test_a_failing_seed_says_how_to_replay_it(stacks: Stacks, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED["no_claim"](monkeypatch)
    failing = first_failing(stacks, range(SEEDS))
    assert failing is not None
    seed, text = failing
    assert text.startswith(f"seed {seed}: ")
    assert text.endswith(f"python -m tests.simulation --seed {seed}")
