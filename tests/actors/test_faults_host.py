"""Faults of the host, by the names that reliability.md gives them. What a process does to itself happens in processes of its own."""

from __future__ import annotations

import asyncio
import io
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import structlog

from executus.actors import (
    AsyncRuntime,
    Done,
    ErrorInfo,
    Factory,
    Failed,
    RestartPolicy,
    Run,
    RunStatus,
    Runtime,
    RuntimeDraining,
    SavePolicy,
    StopPolicy,
)
from executus.actors.clock import SystemClock
from executus.actors.events import RunExited
from executus.actors.future import late_replies
from executus.stores import LmdbStore, MemoryStore
from tests.doubles import NEVER, SOON, AsyncFailableRun, Do, FailableRun, Recorder, Told, World, rigged
from tests.scenarios.harness import ROOT, environment
from tests.waiting import wait_until


def run_program(program: str, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own; a warning is an error there, too."""
    return subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", program, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def assert_fine(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.stdout.splitlines()[-1:], done.returncode) == (["fine"], 0), done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "Warning" not in done.stderr, done.stderr


# --- clocks ------------------------------------------------------------------------------------------------------------


class Jumping(SystemClock):
    """A wall clock that somebody sets."""

    def __init__(self) -> None:
        self.jump_s = 0.0
        self.looks = 0

    def wall_s(self) -> float:
        self.looks += 1
        return super().wall_s() + self.jump_s

    def let_look(self) -> None:
        """Return when the timers' thread has looked at it a few more times."""
        enough = self.looks + 10
        wait_until(lambda: self.looks >= enough)


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0], ids=["back", "forward"])
def test_wall_clock_jumps_leave_throttles_timeouts_and_waits_as_they_are(jump_s: float) -> None:
    clock, world = Jumping(), World()
    store = MemoryStore()
    runtime = Runtime(
        store,
        runs=[Factory(FailableRun, world)],
        restart_policy=RestartPolicy(backoff=SOON),
        save_policy=SavePolicy(every_s=0.1),
        stop_policy=StopPolicy(run_timeout_s=3600),
        logger=False,
    )
    runtime._core._clock = clock
    seen = Recorder()
    runtime.events.subscribe(seen)
    with runtime:
        times_out = runtime.start(
            FailableRun, Told(("wait",)), run_id="times out", stop_policy=StopPolicy(run_timeout_s=0.6)
        )
        waits = runtime.start(FailableRun, Told(("wait:0.4", "wait")), run_id="waits")
        long = runtime.start(FailableRun, Told(("wait:3600",)), run_id="long")
        crashes = runtime.start(FailableRun, Told(("wait", "raise:ValueError@1", "wait")), run_id="crashes")
        wait_until(lambda: all(handle.status().waiting for handle in (times_out, waits, long, crashes)))
        clock.jump_s = jump_s
        crashes.tell(Do("go"))
        wait_until(lambda: crashes.status().attempt == 2 and crashes.status().waiting)
        wait_until(lambda: crashes.status().durable_seq == crashes.status().seq)
        wait_until(lambda: waits.status().seq == 4)
        assert type(times_out.outcome(10)).__name__ == "TimedOut"
        assert long.status().waiting
        assert long.status().seq == 2
        assert crashes.status().status is RunStatus.RUNNING
        crashes.tell(Do("done"))
        assert crashes.result(10) == 3


def test_a_wall_clock_that_jumped_forward_does_not_expire_the_wait_of_a_run_that_crashed_and_restarted() -> None:
    clock, world = Jumping(), World()
    runtime = Runtime(
        None, runs=[Factory(FailableRun, world)], restart_policy=RestartPolicy(backoff=SOON), logger=False
    )
    runtime._core._clock = clock
    with runtime:
        handle = runtime.start(FailableRun, Told(("wait:3600",)), run_id="r")
        wait_until(lambda: handle.status().waiting)
        clock.jump_s = 86_400.0
        handle.tell(Do("raise:ValueError"))
        wait_until(lambda: handle.status().attempt == 2 and handle.status().waiting)
        handle.tell(Do("none"))
        wait_until(lambda: handle.status().seq == 3)
        assert world.count("r", "receive WaitExpired") == 0
        handle.kill(timeout_s=10)


def test_wall_clock_jumps_let_a_moment_come_when_the_clock_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executus.actors.clock.WALL_LOOK_S", 0.02)
    clock, world = Jumping(), World()
    runtime = Runtime(None, runs=[Factory(FailableRun, world)], logger=False)
    runtime._core._clock = clock
    with runtime:
        tomorrow = runtime.start(FailableRun, Told(("until:86400",)), run_id="tomorrow")
        soon = runtime.start(FailableRun, Told(("until:0.5",)), run_id="soon")
        wait_until(lambda: tomorrow.status().waiting and soon.status().waiting)
        due_s = clock.wall_s() + 0.5
        clock.jump_s = -3600.0
        wait_until(lambda: clock.wall_s() + 3600 > due_s)
        clock.let_look()
        assert world.count("soon", "receive WaitExpired") == 0
        clock.jump_s = 3600.0
        wait_until(lambda: world.count("soon", "receive WaitExpired") == 1)
        assert world.count("tomorrow", "receive WaitExpired") == 0
        clock.jump_s = 86_400.0
        wait_until(lambda: world.count("tomorrow", "receive WaitExpired") == 1)


def test_suspend_moves_no_timeout_and_lets_a_moment_come_that_has_passed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A suspended machine's monotonic clock stands still, and its wall clock goes on: to a process it has jumped ahead."""
    monkeypatch.setattr("executus.actors.clock.WALL_LOOK_S", 0.02)
    clock, world = Jumping(), World()
    runtime = Runtime(
        None,
        runs=[Factory(FailableRun, world)],
        restart_policy=RestartPolicy(backoff=SOON),
        stop_policy=StopPolicy(run_timeout_s=7200),
        logger=False,
    )
    runtime._core._clock = clock
    with runtime:
        timeout = runtime.start(FailableRun, Told(("wait:3600", "wait")), run_id="timeout")
        moment = runtime.start(FailableRun, Told(("until:3600", "wait")), run_id="moment")
        wait_until(lambda: timeout.status().waiting and moment.status().waiting)
        clock.jump_s = 86_400.0
        wait_until(lambda: world.count("moment", "receive WaitExpired") == 1)
        timeout.tell(Do("raise:ValueError"))  # what is left of its time is the same for its next attempt
        wait_until(lambda: timeout.status().attempt == 2 and timeout.status().waiting)
        timeout.stop(10)
        again = runtime.resume("timeout")  # and read from the store
        wait_until(lambda: again.status().attempt == 3 and again.status().waiting)
        runtime.start(FailableRun, Told(("until:864000",)), run_id="later")
        clock.let_look()
        assert world.count("timeout", "receive WaitExpired") == 0
        assert again.status().status is RunStatus.RUNNING


def test_a_moment_that_passed_while_no_process_was_there_comes_at_the_next_boot(store_path: Path) -> None:
    clock, world = Jumping(), World()
    for boot in range(2):
        runtime = Runtime(store_path, runs=[Factory(FailableRun, world)], logger=False)
        runtime._core._clock = clock
        with runtime:
            if boot == 0:
                handle = runtime.start(FailableRun, Told(("until:3600", "wait")), run_id="r")
                wait_until(lambda h=handle: h.status().waiting)
                clock.jump_s = 3601.0
            wait_until(lambda boot=boot: world.count("r", "receive WaitExpired") == boot)


# --- forks -------------------------------------------------------------------------------------------------------------

FORKS = """
import os, sys, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later: forks beside threads
from tests.doubles import *
from executus.actors import *
from executus.stores import *

path, how = sys.argv[1:]
store = LmdbStore(path, profile="process")
with rigged(store) as rig:
    handle = rig.waiting()
    handle.durable(10)
    before = os.stat(os.path.join(path, "data.mdb")).st_mtime_ns
    pid = os.fork()
    if pid == 0:
        verbs = [
            lambda: rig.runtime.start(FailableRun, Told(), run_id="child's"), lambda: rig.runtime.get("r"), rig.runtime.runs,
            rig.runtime.health, lambda: rig.runtime.drain(1), lambda: rig.runtime.resume("r"), lambda: rig.runtime.join(1),
            lambda: handle.tell(Do("done")), lambda: handle.ask(Do("reply:x"), 1), lambda: handle.query("at", 1), handle.status,
            lambda: handle.result(1), lambda: handle.outcome(1), lambda: handle.stop(1), lambda: handle.cancel(timeout_s=1),
            lambda: handle.kill(timeout_s=1), lambda: handle.durable(1), lambda: handle.monitor(print),
            lambda: store.commit([object()]),
        ]
        code = 0
        for n, verb in enumerate(verbs):
            try:
                verb()
            except (RuntimeForked, StoreForked):
                continue
            except BaseException as error:
                os.write(2, f"verb {n}: {error!r}".encode())
            code = n + 1
        rig.runtime.close()
        if how == "exit":
            sys.exit(code)  # atexit runs here, too
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"the child says {code}"
    assert os.stat(os.path.join(path, "data.mdb")).st_mtime_ns == before
    handle.tell(Do("done"))
    assert handle.result(10) == 1
    assert [view.run_id for view in rig.runtime.runs()] == ["r"]
print("fine")
"""


@pytest.mark.parametrize("how", ["_exit", "exit"])
def test_fork_every_verb_is_runtime_forked_in_the_child_nothing_is_written_and_the_parent_goes_on(
    how: str, store_path: Path
) -> None:
    began_s = time.monotonic()
    assert_fine(
        run_program(FORKS.replace("sys.exit(code)", "os._exit(code) if code else sys.exit(0)"), str(store_path), how)
    )
    assert time.monotonic() - began_s < 30


CHILD_OPENS = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from tests.doubles import *
with rigged() as rig:
    rig.waiting()
    pid = os.fork()
    if pid == 0:
        with rigged(sys.argv[1]) as own:
            own.runtime.start(AsyncFailableRun, Told(("ok",)), run_id="r").result(10)
            code = own.runtime.start(FailableRun, Told(("ok", "ok"))).result(10)
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
print("fine")
"""


def test_fork_a_child_opens_a_runtime_of_its_own_on_a_store_of_its_own(store_path: Path) -> None:
    assert_fine(run_program(CHILD_OPENS, str(store_path)))


# --- draining, exit ----------------------------------------------------------------------------------------------------


def test_start_while_draining_is_refused() -> None:
    with rigged(stop_policy=StopPolicy(grace_s=60)) as rig:
        rig.runtime.start(FailableRun, Told(("hang",)), run_id="r")
        wait_until(lambda: rig.world.hanging == 1)
        drain = rig.runtime._core.drain(20)
        with pytest.raises(RuntimeDraining, match="not started"):
            rig.runtime.start(FailableRun, Told(), run_id="new")
        with pytest.raises(RuntimeDraining):
            rig.runtime.start_many(FailableRun, {"a": Told(), "b": Told()})
        rig.world.release.set()
        assert drain.result(10).suspended == 1


EXITS = """
import sys, time
from tests.doubles import *
how, path = sys.argv[1:]
world = World()
runtime = Runtime(path or None, runs=[Factory(FailableRun, world), Factory(AsyncFailableRun, world)], logger=False, stop_policy=StopPolicy(grace_s=60))
runtime.open()
match how:
    case "idle":
        pass
    case "waiting":
        handles = [runtime.start(double, Told(("wait",)), run_id=double.run_type) for double in (FailableRun, AsyncFailableRun)]
        while not all(handle.status().waiting for handle in handles):
            time.sleep(0.001)
    case "hang" | "spin":
        for n in range(3):
            runtime.start(FailableRun, Told((how,)))
        runtime.start(AsyncFailableRun, Told(("shrug",)))
        while world.hanging < (3 if how == "hang" else 2):  # two that compute without end keep a third from its thread
            time.sleep(0.001)
    case "block":
        runtime.start(AsyncFailableRun, Told(("block",)), run_id="b")
        while ("b", "step 0") not in world.calls:
            time.sleep(0.001)
    case "busy":
        for n in range(20):
            runtime.start(FailableRun, Told(("sleep:0.01",) * 1000))
print("fine", flush=True)
print(time.monotonic(), file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("store", ["", "disk"], ids=["in memory", "on disk"])
@pytest.mark.parametrize("how", ["idle", "waiting", "hang", "spin", "block", "busy"])
def test_interpreter_exit_with_live_runs_takes_less_than_two_seconds(how: str, store: str, tmp_path: Path) -> None:
    bound_s = 4.0 if how == "spin" else 2.0  # three threads that spin take the interpreter from the drain
    lives = (_exit_s(how, str(tmp_path / f"{n}.store") if store else "") for n in range(3))
    assert any(took_s < bound_s for took_s in lives)  # the machine is shared: one of three must be in time


def _exit_s(how: str, path: str) -> float:
    with subprocess.Popen(
        [sys.executable, "-P", "-W", "error", "-c", EXITS, how, path],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline()
        began_s = time.monotonic()
        assert process.wait(30) == 0
        took_s = time.monotonic() - began_s
        rest = process.stderr.read()
    assert said == "fine\n", rest
    assert "Traceback" not in rest, rest
    return took_s


def test_interpreter_exit_suspends_waiting_runs_so_that_no_strike_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "runs.store"
    assert_fine_exit(run_program(EXITS, "waiting", str(path)))
    store = LmdbStore(path, profile="process")
    store.open()
    try:
        statuses = {claim.run_id: claim.status for claim in store.live()}
    finally:
        store.close()
    assert statuses == {"Failable": RunStatus.SUSPENDED, "AsyncFailable": RunStatus.SUSPENDED}


def assert_fine_exit(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr
    assert "Traceback" not in done.stderr, done.stderr


FORKED_EXIT = """
import os, sys, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from tests.doubles import *
world = World()
runtime = Runtime(None, runs=[Factory(FailableRun, world)], logger=False)
runtime.open()
runtime.start(FailableRun, Told(("hang",)))
while not world.hanging:
    time.sleep(0.001)
pid = os.fork()
if pid == 0:
    sys.exit(0)
began_s = time.monotonic()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert time.monotonic() - began_s < 2
world.release.set()
runtime.close()
print("fine")
"""


def test_interpreter_exit_in_a_forked_child_does_not_block() -> None:
    assert_fine(run_program(FORKED_EXIT))


# --- event loops -------------------------------------------------------------------------------------------------------


def test_an_event_loop_closed_before_a_reply_is_counted_without_a_storm_of_tracebacks(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with rigged() as rig:
        handle = rig.waiting()
        before = late_replies.count
        loop = asyncio.new_event_loop()

        async def wait() -> None:
            await handle

        tasks = [loop.create_task(wait()) for _ in range(5)]
        loop.run_until_complete(asyncio.sleep(0))
        pending = list(handle._inc.ending._callbacks or ())
        assert len(pending) == 5
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # a loop closed over its tasks is the fault
        loop.close()
        handle.tell(Do("done"))
        assert handle.result(10) == 1
        wait_until(lambda: late_replies.count == before + 5)
        for task in tasks:
            task.get_coro().close()  # type: ignore[union-attr]
    assert "Traceback" not in capfd.readouterr().err


def test_a_host_loop_closed_under_its_runtime_harms_no_close_of_it_from_a_thread() -> None:
    world = World()
    runtime = AsyncRuntime(None, runs=[Factory(FailableRun, world), Factory(AsyncFailableRun, world)], logger=False)

    async def main() -> None:
        await runtime.open()
        await runtime.start(FailableRun, Told(("wait",)), run_id="r")

    asyncio.run(main())  # it is not closed there
    report = runtime._core.close(1.0)
    assert report is not None
    assert report.unsaved == ()


# --- logs --------------------------------------------------------------------------------------------------------------


def test_a_log_sink_that_is_closed_or_raises_leaves_runs_unaffected() -> None:
    stream = io.StringIO()
    logger = structlog.wrap_logger(structlog.PrintLogger(stream))
    stream.close()
    with rigged(logger=logger) as rig:
        assert rig.runtime.start(FailableRun, Told(("ok", "raise:ValueError@1"))).result(10) == 2
        assert rig.runtime.health().event_failures > 0


def test_newline_and_escape_in_user_text_are_escaped_in_every_log_line(caplog: pytest.LogCaptureFixture) -> None:
    class Forger(Run[str, int, int]):
        def begin(self, text: str) -> int:
            raise ValueError(f"first\n2026 INFO forged \x1b[31m{text}")

        def step(self, state: int) -> int:
            return state

    with caplog.at_level(logging.DEBUG, "executus"), Runtime(None, runs=[Forger], restart_policy=NEVER) as runtime:
        handle = runtime.start(Forger, "x", labels={"a": "b\nc"})
        outcome = handle.outcome(10)
        handle2 = runtime.start(Forger, "x")
        handle2.outcome(10)
    assert isinstance(outcome, Failed)
    assert "\n" not in outcome.error.message
    ours = [record for record in caplog.records if record.name == "executus"]
    assert any("RunExited" in record.getMessage() for record in ours)
    for record in ours:
        first, *others = record.getMessage().split("\n")
        assert first.isprintable()
        assert all(line.isprintable() and line.startswith("    ") for line in others), (
            others
        )  # a traceback's lines, set in


def test_tracebacks_hold_no_local_variables_and_states_are_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Secretive(Run[str, str, str]):
        def begin(self, password: str) -> str:
            return password

        def step(self, state: str) -> Any:
            token = state.upper()
            if self.context.attempt == 1:
                raise ValueError(len(token))
            return Done("ok")

    seen = Recorder()
    with (
        caplog.at_level(logging.DEBUG),
        Runtime(None, runs=[Secretive], restart_policy=RestartPolicy(backoff=SOON)) as runtime,
    ):
        runtime.events.subscribe(seen)
        assert runtime.start(Secretive, "hunter2").result(10) == "ok"
    (exited,) = seen.of(RunExited)
    assert "in step" in exited.error.traceback
    everything = repr(seen.events) + caplog.text
    assert "hunter2" not in everything
    assert "HUNTER2" not in everything
    assert isinstance(exited.error, ErrorInfo)


# --- nothing global ----------------------------------------------------------------------------------------------------

GLOBALS = """
import asyncio, atexit, gc, locale, logging, multiprocessing, os, signal, socket, sys, threading, warnings

def facts():
    return {
        "signals": {s: signal.getsignal(s) for s in signal.valid_signals()},
        "wakeup fd": signal.set_wakeup_fd(-1),
        "root logging": (logging.root.level, list(logging.root.handlers), logging.lastResort, logging.raiseExceptions, logging.getLoggerClass()),
        "our loggers": [(n, logging.getLogger(n).level, list(logging.getLogger(n).handlers), logging.getLogger(n).propagate) for n in ("executus", "executus.actors", "pykka")],
        "start method": multiprocessing.get_start_method(allow_none=True),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "cwd": os.getcwd(),
        "umask": (lambda mask: (os.umask(mask), mask)[1])(os.umask(0)),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook, sys.stdout, sys.stderr),
        "switch interval": sys.getswitchinterval(),
        "recursion limit": sys.getrecursionlimit(),
        "int digits": sys.get_int_max_str_digits(),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "policy": type(asyncio.get_event_loop_policy()).__name__ if sys.version_info < (3, 14) else "",
        "warnings": list(warnings.filters),
        "locale": locale.setlocale(locale.LC_ALL),
        "default timeout": socket.getdefaulttimeout(),
        "threads": sorted(t.name for t in threading.enumerate()),
        "trace": (sys.gettrace(), sys.getprofile(), threading.gettrace()),
        "nice": os.nice(0),
    }

import structlog, pykka, msgspec, lmdb  # theirs is theirs
before = facts()
structlog_before = structlog.is_configured(), structlog.get_config()
import executus.actors, executus.stores
def check(when):
    now = facts()
    for name in before:
        assert now[name] == before[name], (when, name, before[name], now[name])
    assert (structlog.is_configured(), structlog.get_config()) == structlog_before, when
check("import")
from executus.actors import *
class Small(Run[int, int, int]):
    async def begin(self, n): return n
    def step(self, state): return Done(state)
runtime = Runtime(sys.argv[1], runs=[Small])
threads = before.pop("threads")
with runtime:
    assert runtime.start(Small, 7).result(10) == 7
    check("open")
before["threads"] = threads
check("close")

async def main():
    async with AsyncRuntime(None, runs=[Small]) as runtime:
        assert await (await runtime.start(Small, 8)) == 8
asyncio.run(main())
before.pop("policy")
check("the async face")
print("fine")
"""


def test_import_open_and_close_change_no_signal_handler_logging_start_method_environment_path_or_other_global(
    store_path: Path,
) -> None:
    done = run_program(GLOBALS, str(store_path))
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr
    assert done.stderr == ""


def test_newline_and_escape_in_user_text_are_escaped_in_the_boundarys_own_log_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Forger(Run[str, int, int]):
        def begin(self, text: str) -> int:
            raise ValueError(f"first\n2026 INFO forged \x1b[31m{text}")

        def step(self, state: int) -> int:
            return state

    with caplog.at_level(logging.DEBUG), Runtime(None, runs=[Forger], restart_policy=NEVER, logger=False) as runtime:
        runtime.start(Forger, "x").outcome(10)
    formatter = logging.Formatter("%(message)s")
    text = "\n".join(formatter.format(record) for record in caplog.records if record.name.startswith("executus"))
    assert "Traceback" in text or "forged" in text  # it is told of at all
    assert "\x1b" not in text
    assert not any(line.startswith("2026") for line in text.split("\n"))
