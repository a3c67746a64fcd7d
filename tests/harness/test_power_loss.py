"""The smaller part of `power_loss`, and that it would see what it looks for."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.harness import nth_failure, power_loss, traced
from tests.harness.crash_states import Disk, Grain, marks_until
from tests.harness.power_loss import PROFILES, Profile
from tests.harness.traced import Flush, FlushFolder, Link, Write

STATES = 250


@pytest.fixture(scope="module")
def strace() -> None:
    if why := traced.why_not():
        pytest.skip(why)


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("profile", PROFILES)
def test_after_a_power_loss_there_is_what_the_profile_promises(profile: Profile) -> None:
    losses = power_loss.lose_power(profile, STATES, seed=1)
    assert losses.failures == []
    assert losses.kinds.total() == STATES
    assert losses.distinct > STATES / 2


@pytest.mark.usefixtures("strace")
def test_a_power_loss_soon_after_a_refused_write_or_flush_loses_nothing_either() -> None:
    losses = power_loss.lose_power_on_a_failing_disk(100, seed=1)
    assert losses.failures == []
    assert losses.kinds == {"whole": 100}


@pytest.mark.usefixtures("strace")
def test_a_store_that_does_not_flush_is_seen_to_lose_what_was_acknowledged() -> None:
    losses = power_loss.lose_power("process", 60, seed=2, held_to="power")
    assert losses.kinds["whole"] < 60
    assert len(losses.failures) == 60 - losses.kinds["whole"]


@pytest.mark.usefixtures("strace")
def test_a_store_that_acknowledges_before_the_last_flush_is_seen_to_lose_the_last_commit() -> None:
    losses = power_loss.lose_power("power-1", 60, seed=3, held_to="power")
    assert losses.kinds["last commit lost"] == len(losses.failures) > 0


# ------------------------------------------------------------------------------------------- the disk that is assumed

FOLDER, FILE = 0, 1


def contents(*actions: traced.Action, grain: Grain = "sectors", in_flight: bool = False) -> set[bytes | None]:
    """What a file may hold when the power goes after these actions, as far as 2,000 tries show; None: it is not there."""
    disk = Disk(frozenset({FOLDER}))
    for action in (Link(FOLDER, "f", FILE), FlushFolder(FOLDER), *actions):
        disk.begin(action)
        if not in_flight or action is not actions[-1]:
            disk.end(action)
    return {disk.crash(random.Random(seed), grain).get("f") for seed in range(2000)}


def write(at: int, data: bytes, *, synced: bool = False) -> Write:
    return Write(FILE, at, data, synced)


def test_what_was_flushed_is_there_and_what_was_not_may_be() -> None:
    assert contents(write(0, b"old"), Flush(FILE), write(0, b"new")) == {b"old", b"new"}
    assert contents(write(0, b"old"), write(0, b"new"), Flush(FILE)) == {b"new"}


def test_a_flush_that_has_not_returned_promises_nothing() -> None:
    assert contents(write(0, b"x"), Flush(FILE), in_flight=True) == {b"", b"\0", b"x"}


def test_two_sectors_land_each_for_itself_and_one_as_a_whole() -> None:
    old, new = b"a" * 512 + b"b" * 512, b"c" * 512 + b"d" * 512
    states = {old, new, old[:512] + new[512:], new[:512] + old[512:]}
    assert contents(write(0, old), Flush(FILE), write(0, new)) == states
    assert contents(write(0, old), Flush(FILE), write(0, new), grain="operations") == {old, new}


def test_a_synced_write_is_there_alone() -> None:
    states = contents(write(0, bytes(1024)), Flush(FILE), write(0, b"x" * 512), write(512, b"y" * 512, synced=True))
    assert states == {bytes(512) + b"y" * 512, b"x" * 512 + b"y" * 512}


def test_what_a_failed_flush_left_out_no_later_flush_brings_to_the_disk() -> None:
    before = (write(0, b"old"), Flush(FILE), write(0, b"new"), traced.Failed(FILE), Flush(FILE))
    assert contents(*before) == {b"old", b"new"}
    assert contents(*before, write(0, b"end"), Flush(FILE)) == {b"end"}


def test_a_name_is_there_once_its_folder_was_flushed() -> None:
    disk = Disk(frozenset({FOLDER}))
    made, renamed = Link(FOLDER, "new", FILE), Link(FOLDER, "f", FILE, (FOLDER, "new"))
    for action in (made, write(0, b"x"), Flush(FILE), renamed):
        disk.begin(action)
        disk.end(action)
    states = {frozenset(disk.crash(random.Random(seed), "sectors").items()) for seed in range(200)}
    assert states == {frozenset(), frozenset({("new", b"x")}), frozenset({("f", b"x")})}
    disk.end(FlushFolder(FOLDER))
    assert {tuple(disk.crash(random.Random(seed), "sectors")) for seed in range(200)} == {("f",)}


@pytest.mark.usefixtures("strace")
def test_a_recording_is_read_as_it_happened() -> None:
    recording = power_loss.record_life("power", seed=4)
    marks = marks_until(recording.actions)
    assert [what for what, _ in marks][:3] == ["opened", "about", "done"]
    assert marks[-1][0] == "closed"
    flushes = [action for action in recording.actions if isinstance(action, Flush)]
    assert len(flushes) >= marks[-1][1]


@pytest.mark.parametrize("program", [power_loss, nth_failure])
def test_where_nothing_can_be_traced_the_report_says_so_and_why(
    program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    report = program.run(5, 1)
    assert (report.count, report.failures, report.kept) == (0, (), False)
    assert "strace is not installed" in report.text()

    (tmp_path / "strace").write_text("#!/bin/sh\necho 'ptrace: Operation not permitted' >&2; exit 1\n")
    (tmp_path / "strace").chmod(0o755)
    assert "may not trace here: ptrace: Operation not permitted" in program.run(5, 1).skipped
