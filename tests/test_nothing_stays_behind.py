"""The guard of conftest.py and of the published fixture sees what it is there to see."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from executus.actors.testing.leftovers import Leaks, OpenLoops, open_files
from tests.waiting import wait_until

NOTHING_ALLOWED: frozenset[str] = frozenset()


def test_a_thread_that_still_runs_is_seen_and_one_that_ended_is_not(open_loops: OpenLoops) -> None:
    leaks = Leaks(open_loops, NOTHING_ALLOWED)
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="left behind", daemon=True)
    thread.start()
    assert leaks.found() == ["thread 'left behind'"]
    release.set()
    thread.join()
    assert leaks.found() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is open")
def test_an_open_file_is_seen_by_its_name(open_loops: OpenLoops, tmp_path: Path) -> None:
    leaks = Leaks(open_loops, NOTHING_ALLOWED)
    with (tmp_path / "open").open("w"):
        assert leaks.found() == [f"open file {tmp_path / 'open'} (1)"]
    assert leaks.found() == []


def test_an_event_loop_is_seen_until_it_is_closed(open_loops: OpenLoops) -> None:
    leaks = Leaks(open_loops, NOTHING_ALLOWED)
    loop = asyncio.new_event_loop()
    assert any(line.startswith("event loop") for line in leaks.found())
    loop.close()
    assert leaks.found() == []


def test_what_a_test_leaves_on_purpose_is_allowed_by_kind(open_loops: OpenLoops, tmp_path: Path) -> None:
    leaks = Leaks(open_loops, frozenset({"files"}))
    with (tmp_path / "open").open("w"):
        assert open_files().total() > 0 or sys.platform != "linux"
        assert leaks.found() == []


def test_waiting_for_what_never_comes_names_the_fact() -> None:
    with pytest.raises(AssertionError, match=r"still not true after 0\.01 s: the moon is full"):
        wait_until(lambda: False, 0.01, "the moon is full")
