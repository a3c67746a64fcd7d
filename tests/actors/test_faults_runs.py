"""Faults of runs and their supervisor, by the names that reliability.md gives them. Those of boots are in tests/scenarios/test_boots.py,
the matrix of exceptions in test_containment.py, states that cannot be stored in test_saving.py."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from executus.actors import (
    Backoff,
    ExecutusError,
    MailboxFull,
    RestartPolicy,
    Run,
    RunFailed,
    RunFenced,
    RunStatus,
    SavePolicy,
    StopPolicy,
    Wait,
)
from executus.actors.events import RunExited, RunHung, RunRestarting, RunUnstopped
from executus.stores import LmdbStore, MemoryStore
from tests.doubles import NEVER, SHORT, AsyncFailableRun, Do, FailableRun, Told, World, rigged
from tests.scenarios.harness import ROOT, environment
from tests.waiting import wait_until


@pytest.mark.parametrize(
    "error",
    [
        "SystemExit",
        "KeyboardInterrupt",
        "GeneratorExit",
        "CancelledError",
        "MemoryError",
        "RecursionError",
        "ExceptionGroup",
    ],
)
def test_such_an_error_in_any_callback_is_that_runs_only(error: str) -> None:
    with rigged(restart_policy=NEVER) as rig:
        bystander = rig.waiting(run_id="bystander")
        for double in (FailableRun, AsyncFailableRun):
            with pytest.raises(RunFailed):
                rig.runtime.start(double, Told((f"raise:{error}",))).result(10)
        bystander.tell(Do("done"))
        assert bystander.result(10) == 1


def test_str_or_repr_that_raises_gets_a_safe_text() -> None:
    with (
        rigged(restart_policy=NEVER) as rig,
        pytest.raises(RunFailed, match="Unprintable whose __str__ raised ValueError"),
    ):
        rig.runtime.start(FailableRun, Told(("raise:Unprintable",))).result(10)


def test_a_crash_loop_backs_off_then_fails() -> None:
    policy = RestartPolicy(max_restarts=4, backoff=Backoff(initial_s=0.01, factor=2, max_s=1, jitter=0))
    with rigged(restart_policy=policy) as rig:
        with pytest.raises(RunFailed, match="after 4 restarts"):
            rig.runtime.start(FailableRun, Told(("raise:ValueError",)), run_id="r").result(10)
        assert [round(restart.delay_s, 3) for restart in rig.seen.of(RunRestarting)] == [0.01, 0.02, 0.04, 0.08]


def test_a_hung_step_is_told_of_with_its_stack_fenced_and_restarted_within_its_budget() -> None:
    policy = RestartPolicy(max_restarts=2, backoff=Backoff(initial_s=0.001, factor=1, max_s=0.001, jitter=0))
    with rigged(restart_policy=policy, stop_policy=StopPolicy(idle_timeout_s=0.1)) as rig:
        with pytest.raises(RunFailed, match="failed in hung after 2 restarts"):
            rig.runtime.start(FailableRun, Told(("hang",)), run_id="r").result(10)
        assert len(rig.seen.of(RunHung)) == 3
        assert all("in _perform" in hung.stack for hung in rig.seen.of(RunHung))
        assert rig.runtime.health().leaked_threads == 3
        assert not rig.runtime.health().ok
        rig.world.release.set()
        wait_until(lambda: rig.runtime.health().leaked_threads == 0)


class Zombie(Run[int, int, int]):
    """Hangs in its first attempt; when it wakes it tries everything that has effect."""

    def __init__(self, world: World, caught: list[type[BaseException]]) -> None:
        self.world = world
        self.caught = caught

    def begin(self, n: int) -> int:
        return n

    def step(self, state: int) -> Any:
        if self.context.attempt > 1:
            return Wait(state)
        context = self.context
        self.world.hanging += 1
        self.world.release.wait()
        tries: list[Any] = [
            context.heartbeat,
            lambda: context.progress(1),
            lambda: context.sleep(0),
            lambda: context.spawn(FailableRun, Told(), key="k"),
        ]
        for act in tries:
            try:
                act()
            except BaseException as error:
                self.caught.append(type(error))
        self.caught.append(type(context.cancelled))
        return state + 1_000_000

    def receive(self, state: int, message: Do) -> Any:
        return Wait(state)


def test_the_zombie_wakes_and_nothing_of_it_has_effect() -> None:
    from executus.actors import Factory

    store, world, caught = MemoryStore(), World(), list[type[BaseException]]()
    with rigged(
        store,
        Factory(Zombie, world, caught),
        stop_policy=StopPolicy(idle_timeout_s=0.1),
        save_policy=SavePolicy(every_s=0),
    ) as rig:
        handle = rig.runtime.start(Zombie, 7, run_id="z")
        wait_until(lambda: handle.status().waiting and handle.status().attempt == 2)
        world.release.set()
        wait_until(lambda: len(caught) == 5)
        assert caught == [RunFenced] * 4 + [bool]
        wait_until(lambda: rig.runtime.health().leaked_threads == 0)
        handle.tell(Do("save"))
        wait_until(lambda: handle.status().seq == 3)
        assert handle.durable(10) == 3
        loaded = store.load_snapshot("z")
        assert loaded is not None
        assert loaded.snapshot.state == b"\x07"
        assert [view.run_id for view in rig.runtime.runs()] == ["z"]


def test_a_mailbox_flood_is_bounded() -> None:
    with rigged() as rig:
        handle = rig.runtime.start(FailableRun, Told(("hang",)), run_id="r")
        wait_until(lambda: rig.world.hanging == 1)
        refused = 0
        for _ in range(3000):
            try:
                handle.tell(Do("none"))
            except MailboxFull:
                refused += 1
        assert refused == 2000
        assert handle.status().messages == 1000
        rig.world.release.set()
        wait_until(lambda: handle.status().messages == 0 or handle.status().status is not RunStatus.RUNNING)


EXHAUSTED = """
import sys, threading
from tests.doubles import *
from executus.actors.events import *

real, failing = threading.Thread.start, [False]
def start(thread):
    if failing[0]:
        raise RuntimeError("can't start new thread")
    real(thread)
threading.Thread.start = start

def at_open():
    failing[0] = True
    before = threading.active_count()
    for run_class in (FailableRun, AsyncFailableRun):
        try:
            Runtime(None, runs=[run_class], logger=False).open()
        except RuntimeError as error:
            assert "thread" in str(error), error
        else:
            raise AssertionError("it opened")
    assert threading.active_count() == before, threading.enumerate()
    failing[0] = False
    with rigged() as rig:
        assert rig.runtime.start(FailableRun, Told(("ok",))).result(10) == 1

def when_open():
    with rigged(stop_policy=SHORT) as rig:
        failing[0] = True
        handle = rig.runtime.start(FailableRun, Told(("ok", "raise:ValueError@1")), run_id="r")
        threading.Event().wait(0.3)
        health = rig.runtime.health()
        assert not health.ok and "thread" in health.thread_error, health
        (exhausted,) = rig.seen.of(ThreadsExhausted)
        assert exhausted.waiting >= 1 and "thread" in str(exhausted.error), exhausted
        failing[0] = False
        other = rig.runtime.start(FailableRun, Told(("ok",)), run_id="other")
        assert (handle.result(10), other.result(10)) == (2, 1)
        health = rig.runtime.health()
        assert (health.live_runs, health.thread_error, health.ok) == (0, None, True)

{which}()
print("fine")
"""


@pytest.mark.parametrize("which", ["at_open", "when_open"])
def test_threads_exhausted(which: str) -> None:
    """At open: it raises and leaves nothing behind. Later: a run that was started waits for a thread, and is not lost."""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", EXHAUSTED.replace("{which}", which)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("moment", ["start", "final save", "resume", "delete"])
def test_a_kill_during_such_a_moment_is_idempotent_at_the_next_boot(moment: str, store_path: Path) -> None:
    """The process dies inside the commit: before it, or after it and before anybody heard. The next boot goes on either way."""
    for when in ("before", "after"):
        path = store_path.with_name(f"{moment} {when}")
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", DIES, str(path), moment, when],
            cwd=ROOT,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stderr is not None
        with child.stderr:
            text = child.stderr.read()
        assert child.wait(30) == -9, text
        with rigged(LmdbStore(path, profile="process")) as rig:
            views = {view.run_id: view.status for view in rig.runtime.runs()}
            if moment == "start" and when == "before":
                assert views == {}
                handle = rig.runtime.start(FailableRun, Told(("ok", "ok")), run_id="r")
            elif moment == "delete":
                handle = rig.runtime.start(FailableRun, Told(("ok", "ok")), run_id="r", if_exists="replace")
            elif moment == "resume" and when == "before":
                assert views["r"] is RunStatus.STOPPED
                handle = rig.runtime.resume("r")
            else:
                handle = rig.runtime.start(FailableRun, Told(("ok", "ok")), run_id="r", if_exists="return")
            if moment == "resume":
                wait_until(lambda handle=handle: handle.status().waiting)
                handle.tell(Do("done"))
                assert handle.result(10) == 1
            else:
                assert handle.result(10) == 2


DIES = """
import os, signal, sys
from tests.doubles import *
from executus.stores import *

path, moment, when = sys.argv[1:]

def is_it(op):
    match moment:
        case "start": return isinstance(op, Claim) and op.record is not None
        case "final save": return isinstance(op, Settle)
        case "resume": return isinstance(op, Claim) and op.record is None
        case "delete": return isinstance(op, Claim) and op.record is not None and op.expected is not None

class Dying(LmdbStore):
    def commit(self, operations, *args, **kwargs):
        now = any(map(is_it, operations))
        if now and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        verdicts = super().commit(operations, *args, **kwargs)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)
        return verdicts

with rigged(Dying(path, profile="process")) as rig:
    if moment == "resume":
        rig.waiting().stop(10)
        rig.runtime.resume("r")
    if moment == "delete":
        rig.waiting()
        rig.runtime.start(FailableRun, Told(("ok", "ok")), run_id="r", if_exists="replace")
    rig.runtime.start(FailableRun, Told(("ok", "ok")), run_id="r").result(10)
"""


def test_cancel_racing_with_completion_has_one_winner_durably() -> None:
    store = MemoryStore()
    outcomes: dict[str, Any] = {}
    with rigged(store) as rig:
        for number in range(40):
            handle = rig.waiting(run_id=f"r{number}")
            cancel = threading.Thread(target=handle.cancel, kwargs={"timeout_s": 10})
            cancel.start()
            with contextlib.suppress(ExecutusError):
                handle.tell(Do("done"))
            cancel.join()
            outcomes[handle.run_id] = handle.outcome(10)
    assert {type(outcome).__name__ for outcome in outcomes.values()} <= {"Completed", "Cancelled"}
    with rigged(store) as rig:
        assert {run_id: rig.runtime.get(run_id).outcome(0) for run_id in outcomes} == outcomes


def test_an_unstopped_run_is_told_of_with_its_stack() -> None:
    with rigged(stop_policy=SHORT) as rig:
        handle = rig.runtime.start(FailableRun, Told(("hang",)), run_id="r")
        wait_until(lambda: rig.world.hanging == 1)
        began_s = time.monotonic()
        handle.stop(10)
        assert time.monotonic() - began_s < 5
        (unstopped,) = rig.seen.of(RunUnstopped)
        assert "in _perform" in unstopped.stack
        assert unstopped.leaked_threads == 1
        assert not rig.seen.of(RunExited)
