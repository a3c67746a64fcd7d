"""What holds for every test: nothing stays behind, and examples are the same on every machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from executus.actors.testing.leftovers import Leaks, OpenLoops

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


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Where a test's store may be; nothing is there yet."""
    return tmp_path / "runs.store"
