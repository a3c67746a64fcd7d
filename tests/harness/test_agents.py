"""The smaller part of `agents`. Kills at every labelled point are in tests/scenarios/test_agents.py."""

from __future__ import annotations

import pytest

from tests.beside import Ended
from tests.harness.reports import program, reported


@pytest.mark.timeout(300)
@program("agents", 6)
def test_agents_killed_at_random_moments_do_nothing_unsafe_twice_and_end_as_they_would_have(ended: list[Ended]) -> None:
    report = reported(ended)
    assert report.failures == ()
    assert report.count == 6
    assert int(report.figures["effects"]) > 0
