"""A host that embeds a runtime, and ends in one of many ways. Arguments: how it ends, its crowd of runs, the store or nothing.

It says "fine" when it is about to end; how it ends after that is the parent's to judge.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, Final, NoReturn

from executus.actors import AsyncRuntime, Factory, RestartPolicy, Runtime, RuntimeForked
from executus.stores import StoreLocked
from tests.doubles import SOON, AsyncFailableRun, FailableRun, Told, World
from tests.waiting import await_until, wait_until

CROWDS: Final[dict[str, list[tuple[Any, Told]]]] = {
    "idle": [],
    "waiting": [(FailableRun, Told(("wait",))), (AsyncFailableRun, Told(("wait",)))],
    "hanging": [(FailableRun, Told(("hang",)))] * 3 + [(AsyncFailableRun, Told(("hang",)))] * 3,
    "shrugging": [(AsyncFailableRun, Told(("shrug",)))] * 3,
    "busy": [(FailableRun, Told(("sleep:0.005",) * 2000))] * 5 + [(AsyncFailableRun, Told(("ok",) * 5000))] * 5,
}


class Host:
    """One process, one runtime."""

    def __init__(self, crowd: str, path: str) -> None:
        self.crowd = CROWDS[crowd]
        self.path = path or None
        self.world = World()
        self.options: dict[str, Any] = {
            "runs": [Factory(FailableRun, self.world), Factory(AsyncFailableRun, self.world)],
            "restart_policy": RestartPolicy(backoff=SOON),
            "drain_timeout_s": 0.5,
            "logger": False,
        }

    def runtime(self, path: str | None = None) -> Runtime:
        return Runtime(path or self.path, **self.options)

    def opened(self) -> Runtime:
        runtime = self.runtime().open()
        self.gather(runtime)
        return runtime

    def gather(self, runtime: Runtime) -> None:
        """Wait until every run has begun its first step."""
        for number, (double, told) in enumerate(self.crowd):
            runtime.start(double, told, run_id=f"r{number}")
        wait_until(self._all_at_it, 20)

    def _all_at_it(self) -> bool:
        return all((f"r{number}", "step 0") in self.world.calls for number in range(len(self.crowd)))

    async def gather_async(self, runtime: AsyncRuntime) -> None:
        for number, (double, told) in enumerate(self.crowd):
            await runtime.start(double, told, run_id=f"r{number}")
        await await_until(self._all_at_it, 20)


def fine() -> None:
    """From here on the parent looks at its clock."""
    os.write(1, b"fine\n")


# --- ways to end ------------------------------------------------------------------------------------------------------


def falls_off_the_end(host: Host) -> None:
    globals()["kept"] = host.opened()
    fine()


def closes(host: Host) -> None:
    with host.runtime() as runtime:
        host.gather(runtime)
        fine()


def exits_inside(host: Host) -> None:
    with host.runtime() as runtime:
        host.gather(runtime)
        fine()
        sys.exit(7)


def raises_inside(host: Host) -> None:
    with host.runtime() as runtime:
        host.gather(runtime)
        fine()
        raise LookupError("the host's own")


def waits_for_a_signal(host: Host) -> None:
    """The signals are the host's: SIGTERM kills it, SIGINT is a KeyboardInterrupt that leaves the block."""
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with host.runtime() as runtime:
        host.gather(runtime)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
        fine()
        signal.pause()


def its_fork_exits(host: Host) -> None:
    globals()["kept"] = host.opened()
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    _expect_child(pid)
    fine()


def its_fork_falls_off_the_end(host: Host) -> None:
    globals()["kept"] = host.opened()
    pid = os.fork()
    if pid == 0:
        return
    _expect_child(pid)
    fine()


def its_fork_closes_what_it_inherited(host: Host) -> None:
    with host.runtime() as runtime:
        host.gather(runtime)
        pid = os.fork()
        if pid:
            _expect_child(pid)
            fine()


def multiprocesses(host: Host, method: str) -> None:
    runtime = host.opened()
    context = multiprocessing.get_context(method)
    process = context.Process(target=time.monotonic)
    process.start()
    process.join(20)
    assert process.exitcode == 0, process.exitcode
    fine()
    runtime.close()


def forks_workers_after_opening(host: Host) -> None:
    """As a pre-forking server does that loads its application first: what is the master's is refused in each worker."""
    runtime = host.opened()
    pids: list[int] = []
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            _work(host, runtime, f"{host.path}-{number}" if host.path else None)
        pids.append(pid)
    for pid in pids:
        _expect_child(pid, 20)
    assert runtime.start(FailableRun, Told(("ok",))).result(20) == 1
    fine()
    runtime.close()


def _work(host: Host, inherited: Runtime, path: str | None) -> NoReturn:
    code = 1
    try:
        try:
            inherited.start(FailableRun, Told())
        except RuntimeForked:
            inherited.close()
            with Runtime(path, **host.options) as own:
                code = 0 if own.start(FailableRun, Told(("ok",))).result(20) == 1 else 2
    finally:
        os._exit(code)


def workers_open_one_store(host: Host) -> None:
    """Workers that open after the fork: one has the store, the other is told who."""
    ready, go = os.pipe()
    pids = [_opening_worker(host, ready, go) for _ in range(2)]
    os.close(go)  # both have tried when nobody holds the other end any more
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
    assert codes == ([0, 5] if host.path else [0, 0]), codes
    fine()


def _opening_worker(host: Host, ready: int, go: int) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with host.runtime() as runtime:
                os.close(go)
                os.read(ready, 1)
                code = 0 if runtime.start(FailableRun, Told(("ok",))).result(20) == 1 else 2
        except StoreLocked as locked:
            code = 5 if locked.owner_pid else 6
        finally:
            os._exit(code)
    return pid


def is_opened_in_a_thread(host: Host) -> None:
    thread = threading.Thread(target=lambda: globals().update(kept=host.opened()))
    thread.start()
    thread.join()
    fine()


def lives_in_a_daemon_thread(host: Host) -> None:
    at_it = threading.Event()

    def serve() -> None:
        with host.runtime() as runtime:
            host.gather(runtime)
            at_it.set()
            threading.Event().wait()

    threading.Thread(target=serve, daemon=True).start()
    at_it.wait(20)
    fine()


def closes_async(host: Host) -> None:
    async def main() -> None:
        async with AsyncRuntime(host.path, **host.options) as runtime:
            await host.gather_async(runtime)
            fine()

    asyncio.run(main())


def closes_its_loop_early(host: Host) -> None:
    async def main() -> None:
        globals()["kept"] = runtime = AsyncRuntime(host.path, **host.options)
        await runtime.open()
        await host.gather_async(runtime)

    asyncio.run(main())
    fine()


def is_cancelled_inside(host: Host) -> None:
    inside_now = asyncio.Event()

    async def inside() -> None:
        async with AsyncRuntime(host.path, **host.options) as runtime:
            await host.gather_async(runtime)
            inside_now.set()
            fine()
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(inside())
        await inside_now.wait()
        task.cancel()
        await asyncio.wait([task], timeout=20)
        assert task.cancelled()

    asyncio.run(main())


ENDINGS: Final[dict[str, Callable[[Host], None]]] = {
    "falls off the end": falls_off_the_end,
    "closes": closes,
    "exits inside": exits_inside,
    "raises inside": raises_inside,
    "SIGTERM": waits_for_a_signal,
    "SIGINT": waits_for_a_signal,
    "SIGKILL": waits_for_a_signal,
    "its fork exits": its_fork_exits,
    "its fork falls off the end": its_fork_falls_off_the_end,
    "its fork closes what it inherited": its_fork_closes_what_it_inherited,
    "multiprocessing by fork": lambda host: multiprocesses(host, "fork"),
    "multiprocessing by spawn": lambda host: multiprocesses(host, "spawn"),
    "forks workers after opening": forks_workers_after_opening,
    "workers open one store": workers_open_one_store,
    "is opened in a thread": is_opened_in_a_thread,
    "lives in a daemon thread": lives_in_a_daemon_thread,
    "closes, async": closes_async,
    "closes its loop early": closes_its_loop_early,
    "is cancelled inside": is_cancelled_inside,
}


def _expect_child(pid: int, timeout_s: float = 2.5) -> None:
    """Ended with 0, in time."""
    deadline_s = time.monotonic() + timeout_s
    while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < deadline_s, "the fork's exit blocks"
        time.sleep(0.005)
    assert found[1] == 0, found


def main(ending: str, crowd: str, path: str) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later: forks beside threads
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal: a shell's background job ignores it
    ENDINGS[ending](Host(crowd, path))


if __name__ == "__main__":
    main(*sys.argv[1:])
