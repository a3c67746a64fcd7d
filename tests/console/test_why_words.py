"""The sentence of `executus why`: each status has one, a death is told from work, and nothing is claimed that is not known."""

from __future__ import annotations

from typing import Any

import pytest

from executus.actors.console.why_words import Standing, boot_of, died, verdict
from executus.actors.outcomes import Cancelled, ErrorInfo, Failed, Killed, Outcome, Phase
from executus.stores import EPOCHS_PER_BOOT, RunStatus, Token
from tests.stores.making import claim, snapshot

EPOCH = 3 * EPOCHS_PER_BOOT + 7


def standing(status: RunStatus, outcome: Outcome | None = None, reason: str = "", **facts: Any) -> Standing:
    known: dict[str, Any] = {"owner_pid": None, "store_boot": 3, "snapshot": None, "now_s": 10.0}
    held = claim(epoch=EPOCH, status=status, reason=reason, attempt=2)
    return Standing(claim=held, outcome=outcome, **known | facts)


AT_WORK = snapshot(Token("r", 1, EPOCH), 5, taken_at_s=8.0)
WAITING = snapshot(Token("r", 1, EPOCH), 5, taken_at_s=8.0, waiting=True)


@pytest.mark.parametrize(
    ("facts", "dead"),
    [
        ({"owner_pid": None}, True),
        ({"owner_pid": 77}, False),
        ({"owner_pid": 77, "store_boot": 4}, True),
        ({"owner_pid": None, "store_boot": 4}, True),
    ],
)
def test_a_run_is_dead_with_its_process_when_nobody_owns_the_store_or_it_was_opened_since(
    facts: dict[str, Any], dead: bool
) -> None:
    assert died(standing(RunStatus.RUNNING, **facts)) is dead
    assert not died(standing(RunStatus.SUSPENDED, **facts))


def test_what_a_death_leaves_is_told_from_the_record_alone() -> None:
    assert verdict(standing(RunStatus.RUNNING, snapshot=AT_WORK)) == (
        "the process died while it was at work: it is running under boot 3, and nobody owns the store now. It was in "
        "attempt 2; its last save was seq 5, 2.0 s ago; the next boot resumes it"
    )
    assert "while it waited" in verdict(standing(RunStatus.RUNNING, snapshot=WAITING))
    assert "nothing of it was saved" in verdict(standing(RunStatus.RUNNING))
    later = verdict(standing(RunStatus.RUNNING, snapshot=AT_WORK, owner_pid=7, store_boot=9))
    assert "the store is at boot 9" in later
    assert "it has not been taken up yet" in later


@pytest.mark.parametrize(
    ("status", "outcome", "reason", "said"),
    [
        (RunStatus.FAILED, Failed(ErrorInfo("E", "m"), Phase.STEP, 3), "", "E: m, in step, after 3 restarts"),
        (RunStatus.FAILED, None, "step: E", "it crashed for good: step: E"),
        (RunStatus.KILLED, Killed("ops", "slow"), "slow", "killed by ops: slow"),
        (RunStatus.KILLED, None, "slow", "killed: slow"),
        (RunStatus.CANCELLED, Cancelled("me", "why"), "why", "cancelled by me: why"),
        (RunStatus.CANCELLED, Cancelled("me", "why"), "", "cancelled by me: why"),
        (RunStatus.PARKED, None, "no type", "this code could not take it up: no type; every boot tries again"),
        (RunStatus.QUARANTINED, None, "three deaths", "it was set aside: three deaths"),
        (RunStatus.SUSPENDED, None, "", "the runtime was shut down; the next boot resumes it"),
        (RunStatus.STOPPED, None, "", "it was stopped; it rests until it is resumed by hand"),
        (RunStatus.TIMED_OUT, None, "", "its run_timeout_s elapsed"),
        (RunStatus.COMPLETED, None, "", "it completed in attempt 2"),
    ],
)
def test_each_ending_has_its_sentence(status: RunStatus, outcome: Outcome | None, reason: str, said: str) -> None:
    assert verdict(standing(status, outcome, reason)) == said


@pytest.mark.parametrize("status", list(RunStatus))
def test_every_status_has_a_sentence(status: RunStatus) -> None:
    assert verdict(standing(status))


def test_a_boot_is_read_off_an_epoch() -> None:
    assert boot_of(EPOCH) == 3
