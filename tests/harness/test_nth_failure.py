"""The smaller part of `nth_failure`, and that it would see what it looks for."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from tests.harness import nth_failure, traced
from tests.harness.enduring import digest_of
from tests.harness.nth_failure import FAULTS, KILLED, WAYS, Mark, Seen, Trial, Way
from tests.harness.power_loss import fast_folder
from tests.harness.state_opener import Found
from tests.harness.traced import Failed, Flush, Recording, Write
from tests.harness.workload import empty_view

KINDS = sum(map(len, FAULTS.values()))
TRIALS: dict[Way, int] = {"store": KINDS, "daemon": KINDS // 2}
SEED = 1


@pytest.fixture(scope="module")
def strace() -> None:
    if why := traced.why_not():
        pytest.skip(why)


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("way", WAYS)
def test_whichever_call_fails_the_process_lives_and_nothing_acknowledged_is_lost(way: Way) -> None:
    trials = [trial for trial in nth_failure.every_trial(SEED) if trial.way == way]
    failures: list[str] = []
    calls = 0
    for trial, seen, broken in nth_failure.attempts(nth_failure.chosen(trials, TRIALS[way], SEED), SEED):
        failures += [f"{trial}: {what}" for what in broken]
        calls += seen.said.count(None)
    assert failures == []
    assert calls >= TRIALS[way] / 2


@pytest.mark.usefixtures("strace")
def test_a_header_page_that_was_refused_and_taken_back_is_flushed_before_anything_is_written_over() -> None:
    recording = recording_with_a_refused_header()
    at = next(number for number, action in enumerate(recording.actions) if isinstance(action, Failed))
    after = [action for action in recording.actions[at + 1 :] if isinstance(action, (Write, Flush))]
    taken_back, flush = after[:2]
    assert isinstance(taken_back, Write)
    assert taken_back.at < 8192
    assert isinstance(flush, Flush)


def recording_with_a_refused_header() -> Recording:
    """The first header page's write after the store was made that is a `pwrite64` with that number."""
    for number in range(50, 80):
        with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
            folder = Path(name)
            command = [sys.executable, "-P", "-m", "tests.harness.workload", str(folder / "s"), "power", "1", "30"]
            recording = traced.record(command, folder, ["-e", f"inject=pwrite64:error=EIO:when={number}"])
        if any(isinstance(action, Failed) for action in recording.actions):
            return recording
    raise AssertionError("no header page was written by pwrite64")


# ------------------------------------------------------------------------------------------------ what it would see

EMPTY = empty_view()
VIEW = EMPTY | {"run-1": ([1, 1, "running"], [0, 0], None, None, [], [])}
OPENED, ABOUT, DONE = Mark("opened", 1, 0), Mark("about", 1, digest_of(VIEW)), Mark("done", 1, digest_of(VIEW))
FAILED, CLOSED = Mark("failed", 1, 0), Mark("closed", 1, 0)
EIO = Trial("store", "pwrite64", "EIO", 1)


def broken(*said: Mark | None, code: int = 0, found: Found, trial: Trial = EIO) -> str:
    return "; ".join(nth_failure.broken_by(trial, Seen(code, said, ""), found))


def test_a_commit_that_fails_aloud_and_comes_back_breaks_nothing() -> None:
    assert not broken(OPENED, ABOUT, None, FAILED, ABOUT, DONE, CLOSED, found=Found(view=VIEW))


def test_a_process_that_dies_of_a_failed_call_is_seen() -> None:
    assert "did not live" in broken(OPENED, ABOUT, None, code=1, found=Found(view=VIEW))


def test_a_commit_that_hides_a_failed_call_is_seen() -> None:
    assert "was not told" in broken(OPENED, ABOUT, None, DONE, CLOSED, found=Found(view=VIEW))


def test_an_acknowledged_commit_that_is_gone_is_seen() -> None:
    killed = Trial("store", "fdatasync", KILLED, 1)
    assert "neither the last" in broken(OPENED, ABOUT, DONE, code=-9, found=Found(view=EMPTY), trial=killed)
    assert not broken(OPENED, ABOUT, code=-9, found=Found(view=EMPTY), trial=killed)
    assert not broken(OPENED, ABOUT, code=-9, found=Found(view=VIEW), trial=killed)


def test_a_store_that_cannot_be_opened_afterwards_is_seen() -> None:
    assert "could not be used" in broken(OPENED, ABOUT, DONE, CLOSED, found=Found(refused="StoreCorrupt: no"))


def test_a_daemon_that_does_not_say_that_its_store_fails_is_seen() -> None:
    daemon = Trial("daemon", "writev", "EIO", 1)
    closing, degraded, recovered = Mark("closing", 0, 0), Mark("degraded", 0, 0), Mark("recovered", 0, 0)
    view = Found(view=EMPTY)
    assert "was not told" in broken(OPENED, None, closing, CLOSED, found=view, trial=daemon)
    assert "did not come back" in broken(OPENED, None, degraded, closing, CLOSED, found=view, trial=daemon)
    assert not broken(OPENED, None, degraded, None, recovered, closing, CLOSED, found=view, trial=daemon)


def test_a_daemons_run_behind_what_it_was_told_is_durable_is_seen() -> None:
    daemon = Trial("daemon", "writev", KILLED, 1)
    durable, ended = Mark("durable:r", 5, 0), Mark("ended:r", 0, 0)
    behind = {"r": ([1, 1, "running"], [0, 0], [1, 4, [0, 0], 0, []], None, [], [])}
    assert "is gone" in broken(OPENED, durable, code=-9, found=Found(view=EMPTY), trial=daemon)
    assert "durable up to 5" in broken(OPENED, durable, code=-9, found=Found(view=behind), trial=daemon)
    assert "had ended" in broken(OPENED, ended, code=-9, found=Found(view=behind), trial=daemon)
