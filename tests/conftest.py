"""What holds for every test: nothing stays behind, and examples are the same on every machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from executus.actors.testing.leftovers import Leaks, OpenLoops
from tests.beside import HANG_S, Beside, Ended

LEAK_TIMEOUT_S = 5.0
"""How long threads and files may take to go after a test; a bound against hangs, usually they are gone at once."""

# `ci` is the default: the same examples every time, so that a red test is red for everyone. `explore` looks further.
hypothesis.settings.register_profile("ci", derandomize=True, max_examples=60, deadline=None, print_blob=True)
hypothesis.settings.register_profile("explore", derandomize=False, max_examples=2000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def open_loops() -> Iterator[OpenLoops]:
    loops = OpenLoops()
    with loops.watched():
        yield loops


@pytest.fixture(autouse=True)
def nothing_stays_behind(request: pytest.FixtureRequest, open_loops: OpenLoops) -> Iterator[None]:
    """Fail a test that leaves a thread, an open file or an event loop."""
    allowed = frozenset(kind for marker in request.node.iter_markers("may_leave") for kind in marker.args)
    leaks = Leaks(open_loops, allowed)
    yield
    if left := leaks.found_after(LEAK_TIMEOUT_S):
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


def programs_of(test: pytest.Item) -> tuple[str, ...]:
    """What a test wants to have run: see tests/beside.py."""
    marker = test.get_closest_marker("programs")
    return () if marker is None else marker.args


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who waits for programs comes last, when they have mostly ended, and waits as long as those may take."""
    items.sort(key=lambda test: bool(programs_of(test)))
    for test in items:
        if programs_of(test):
            test.add_marker(pytest.mark.timeout(HANG_S + 60))


@pytest.fixture(scope="session")
def beside(request: pytest.FixtureRequest) -> Iterator[Beside]:
    with Beside(filter(None, map(programs_of, request.session.items))) as process:
        yield process


@pytest.fixture(scope="session", autouse=True)
def programs_begin_with_the_first_test(request: pytest.FixtureRequest) -> None:
    if len(request.session.items) > 1:
        request.getfixturevalue("beside")


@pytest.fixture
def ended(request: pytest.FixtureRequest, beside: Beside) -> list[Ended]:
    """How the test's programs ended."""
    return beside.ended(programs_of(request.node))


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Where a test's store may be; nothing is there yet."""
    return tmp_path / "runs.store"
