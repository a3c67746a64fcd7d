"""Mistakes that users make, and what they read then: refused at the door, in words, and at nobody else's cost."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from executus.actors import (
    ChildEnded,
    Done,
    Failed,
    InvalidRunType,
    NotRegistered,
    RestartPolicy,
    ResultUnreadable,
    Run,
    RunFailed,
    RunStatus,
    Runtime,
    SavePolicy,
    Wait,
)
from executus.stores import MAX_LABELS, StoreLocked
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


class State(msgspec.Struct, frozen=True):
    n: int = 0


class Quick(Run[int, State, int]):
    def begin(self, value: int) -> Done[int]:
        return Done(value)

    def step(self, state: State) -> State:
        return state


class QuickWithAnotherResult(Run[int, State, str]):
    run_type = "Quick"

    def begin(self, value: int) -> Done[str]:
        return Done(str(value))

    def step(self, state: State) -> State:
        return state


class Idle(Run[int, State, int]):
    def begin(self, value: int) -> Wait[State]:
        return Wait(State(value))

    def step(self, state: State) -> Wait[State]:
        return Wait(state)


class Parent(Run[int, State, int]):
    save_policy = SavePolicy(every_s=3600)

    def begin(self, value: int) -> Wait[State]:
        self.context.spawn(Quick, value, key="quick")
        self.context.spawn(Idle, value, key="idle")
        return Wait(State())

    def step(self, state: State) -> Wait[State]:
        return Wait(state)

    def receive(self, state: State, message: ChildEnded) -> Wait[State]:
        return Wait(State(state.n + 1))


class Raises(Run[int, State, bytes]):
    restart_policy = RestartPolicy(kind="temporary")

    def begin(self, size: int) -> State | Done[bytes]:
        return Done(b"x" * size) if size else State()

    def step(self, state: State) -> State:
        raise ValueError("boom")


class Forgets(Run[int, State, int]):
    restart_policy = RestartPolicy(kind="temporary")

    def begin(self, value: int) -> State:
        return State(value)

    def step(self, state: State) -> State:  # type: ignore[return]
        State(state.n + 1)


# --- at the door ------------------------------------------------------------------------------------------------------


def test_a_misspelt_policy_is_refused_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="kind takes 'transient', 'permanent', 'temporary', not 'forever'"):
        RestartPolicy(kind="forever")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"durability takes 'sync', .* not 'synch'"):
        SavePolicy(durability="synch")  # type: ignore[arg-type]


def test_a_run_class_outside_of_a_list_is_refused_with_the_list_to_write() -> None:
    with pytest.raises(InvalidRunType, match=re.escape("runs=[MyRun]")):
        Runtime(None, runs=Quick)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ({str(n): "" for n in range(MAX_LABELS + 1)}, ValueError),
        ({"team": "\ud800"}, ValueError),
        ({"team": 1}, TypeError),
    ],
    ids=["too many", "lone surrogate", "no text"],
)
def test_labels_that_no_store_can_keep_are_refused_before_the_store_sees_them(labels: Any, error: type) -> None:
    with Runtime(None, runs=[Quick], logger=False) as runtime:
        with pytest.raises(error, match="Nothing was started"):
            runtime.start(Quick, 1, labels=labels)
        assert runtime.runs() == []
        assert runtime.start(Quick, 1).result(10) == 1


def test_a_result_over_the_cap_is_a_crash_with_both_sizes(store_path: Path) -> None:
    with Runtime(store_path, runs=[Raises], logger=False) as runtime:
        outcome = runtime.start(Raises, 16 << 20).outcome(30)
        assert isinstance(outcome, Failed)
        assert "result takes 16777221 bytes, the cap is 16711680" in outcome.error.message
        assert runtime.join(5), "it is not retried for ever"


# --- what a crash says ------------------------------------------------------------------------------------------------


def test_a_crash_is_logged_once_with_the_users_frames_and_not_the_runtimes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Runtime(None, runs=[Raises]) as runtime, pytest.raises(RunFailed):
        runtime.start(Raises, 0, run_id="r").result(10)
    (crash,) = [
        record.getMessage()
        for record in caplog.records
        if "boom" in record.getMessage() and "Traceback" in record.getMessage()
    ]
    assert crash.startswith("event='RunExited' run_id='r'")
    assert f'File "{__file__}"' in crash
    assert crash.count("  File ") == 1
    assert all(line.startswith("    ") for line in crash.splitlines()[1:]), (
        "no text in it can pass for a line of the log"
    )
    assert not [record for record in caplog.records if record.getMessage().startswith("Unhandled")]


def test_a_step_that_forgets_its_return_is_asked_so() -> None:
    with Runtime(None, runs=[Forgets], logger=False) as runtime, pytest.raises(RunFailed) as raised:
        runtime.start(Forgets, 1, run_id="r").result(10)
    first, second, *_ = str(raised.value).splitlines()
    assert first.endswith("WrongReturn: Forgets.step returned None, declared is State: did it forget its return?")
    assert second == "Its last snapshot is kept; resume('r') continues from it."


# --- what another release left ----------------------------------------------------------------------------------------


def test_get_says_which_type_is_missing_or_which_result_does_not_fit(store_path: Path) -> None:
    with Runtime(store_path, runs=[Quick], logger=False) as runtime:
        runtime.start(Quick, 1, run_id="q").result(10)
    with (
        Runtime(store_path, runs=[], logger=False) as runtime,
        pytest.raises(NotRegistered, match="of type 'Quick', which is not registered"),
    ):
        runtime.get("q")
    with (
        Runtime(store_path, runs=[QuickWithAnotherResult], logger=False) as runtime,
        pytest.raises(ResultUnreadable, match="Expected `str`, got `int`"),
    ):
        runtime.get("q")


def test_what_was_parked_shows_as_parked_as_soon_as_the_runtime_is_open(store_path: Path) -> None:
    with Runtime(store_path, runs=[Idle], logger=False) as runtime:
        runtime.start_many(Idle, {f"r{n:03}": n for n in range(300)})
    with Runtime(store_path, runs=[], logger=False) as runtime:
        assert len(runtime.runs(status=RunStatus.PARKED)) == 300


def die_before_the_parent_is_saved(store_path: str) -> None:
    with Runtime(store_path, runs=[Parent, Quick, Idle], logger=False) as runtime:
        parent = runtime.start(Parent, 1, run_id="p")
        parent.durable(10)
        wait_until(lambda: runtime.runs(status="completed") and parent.status().seq == 2)
        os._exit(9)


def test_a_child_whose_end_this_code_cannot_read_parks_its_parent_alone(store_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {__name__} import die_before_the_parent_is_saved as die; die({str(store_path)!r})"
    died = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert died.returncode == 9, died.stderr
    for runs in ([Parent, Idle, QuickWithAnotherResult], [Parent, Idle]):
        with Runtime(store_path, runs=runs, logger=False) as runtime:  # type: ignore[arg-type]
            wait_until(lambda runtime=runtime: runtime.runs(status="parked"))  # type: ignore[misc]
            (parked,) = runtime.runs(status="parked")
            assert (parked.run_id, parked.reason[:22]) == ("p", "of a child: run 'p/qui")
            assert runtime.start(Idle, 1, run_id="other", if_exists="return").status().status is RunStatus.RUNNING
    with Runtime(store_path, runs=[Parent, Quick], logger=False) as runtime:  # a live child that is parked parks nobody
        wait_until(lambda: runtime.get(Parent, "p").status().seq >= 2)
        assert {view.run_id for view in runtime.runs(status="parked")} == {"p/idle", "other"}


def test_a_runtime_that_failed_to_open_has_let_its_store_go(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from executus.actors.admission import Admission

    def refuses(*_: object) -> None:
        raise RuntimeError("no boot today")

    with monkeypatch.context() as patch:
        patch.setattr(Admission, "recover", refuses)
        with pytest.raises(RuntimeError, match="no boot today"):
            Runtime(store_path, runs=[Quick], logger=False).open()
    with (
        Runtime(store_path, runs=[Quick], logger=False),
        pytest.raises(StoreLocked, match="open already in this process"),
    ):
        Runtime(store_path, runs=[Quick]).open()
