"""What if disk, map, address space, threads or descriptors run out under a runtime?

Each case opens a whole runtime in a process of its own, takes something away, and looks: the process lives, runs go
on, what is wrong is said (event, health), what was saved stays. Then it gives it back: saving comes back by itself,
every run ends with its result, and the store opens again.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec
import pytest

from executus.actors import (
    Done,
    ExecutusError,
    RestartPolicy,
    Run,
    RunHandle,
    Runtime,
    SavePolicy,
    StartFailed,
    Wait,
    WaitExpired,
)
from executus.actors.events import RunExited, StoreDegraded, StoreRecovered
from executus.stores import LmdbStore, StoreUnavailable
from tests.doubles import SOON, Recorder
from tests.harness.forks import side_by_side
from tests.harness.report import Report
from tests.waiting import wait_until

DISK_BYTES: Final = 4 * 1024**2
PAGE_BYTES: Final = 20_000
"""Of ballast in each state."""
IN_TIME_S: Final = 30.0
AT_ONCE: Final = 4
"""Each case for itself waits for most of its time."""


class Page(msgspec.Struct, frozen=True):
    at: int = 0
    ballast: bytes = bytes(PAGE_BYTES)


class Turn(msgspec.Struct, frozen=True, tag=True):
    """End, or go on with so many bytes of ballast."""

    ballast_bytes: int | None = None


class Diary(Run[int, Page, int]):
    """Writes a page after the other until it is told to end."""

    save_policy = SavePolicy(every_s=0.05)

    def begin(self, _: int) -> Page:
        return Page()

    def step(self, state: Page) -> Any:
        return Wait(msgspec.structs.replace(state, at=state.at + 1), timeout_s=0.005)

    def receive(self, state: Page, message: Turn | WaitExpired) -> Any:
        if not isinstance(message, Turn):
            return state
        if message.ballast_bytes is None:
            return Done(state.at)
        return Page(state.at + 1, bytes(message.ballast_bytes))


class AsyncDiary(Diary):
    """Needs no thread."""

    async def begin(self, number: int) -> Page:
        return super().begin(number)

    async def step(self, state: Page) -> Any:
        return super().step(state)

    async def receive(self, state: Page, message: Turn | WaitExpired) -> Any:
        return super().receive(state, message)


class Hungry(Run[int, int, int]):
    """Wants more memory than there is, until there is enough."""

    restart_policy = RestartPolicy(max_restarts=0)

    def begin(self, wanted_bytes: int) -> int:
        return wanted_bytes

    def step(self, state: int) -> Done[int]:
        return Done(len(bytearray(state)))


class Blocking(Run[int, int, int]):
    """Needs a thread of its own until all of them have one."""

    together: threading.Barrier

    def begin(self, number: int) -> int:
        return number

    def step(self, state: int) -> Done[int]:
        self.together.wait(IN_TIME_S)
        return Done(state)


class Scene:
    """An open runtime in which diaries are written."""

    def __init__(self, runtime: Runtime, seen: Recorder) -> None:
        self.runtime = runtime
        self.seen = seen
        self.diaries: list[RunHandle[int]] = [
            handle
            for diary in (Diary, AsyncDiary)
            for handle in runtime.start_many(diary, {f"{diary.__name__}-{n}": 0 for n in range(3)})
        ]
        self.saved()

    def saved(self) -> None:
        """Everything up to now gets durable."""
        for handle in self.diaries:
            handle.durable(IN_TIME_S)

    def goes_on(self, run_type: str = "") -> None:
        """Every diary (of that type) gets more pages."""
        before = {handle: handle.status().seq for handle in self.diaries if handle.run_id.startswith(run_type)}
        wait_until(
            lambda: all(handle.status().seq > seq + 2 for handle, seq in before.items()), IN_TIME_S, "runs go on"
        )

    def degraded(self, word: str) -> None:
        """The store's trouble is told of, and keeps nobody from going on; what was saved stays."""
        stored = {handle.run_id: handle.status().durable_seq for handle in self.diaries}
        before = len(self.seen.of(StoreRecovered))
        wait_until(lambda: len(self.seen.of(StoreDegraded)) > before, IN_TIME_S, "StoreDegraded")
        told = str(self.seen.of(StoreDegraded)[-1].error)
        assert word in told, told
        wait_until(lambda: not self.runtime.health().ok, IN_TIME_S, "health says so")
        assert self.runtime.health().store_error
        self.goes_on()
        for run_id, seq in stored.items():
            loaded = self.runtime._core.store.load_snapshot(run_id)
            assert loaded is not None
            assert loaded.snapshot.seq >= (seq or 0)

    def recovered(self) -> None:
        """Saving comes back by itself."""
        wait_until(
            lambda: len(self.seen.of(StoreRecovered)) == len(self.seen.of(StoreDegraded)), IN_TIME_S, "StoreRecovered"
        )
        self.saved()
        wait_until(lambda: self.runtime.health().ok, IN_TIME_S, "health")
        assert not self.seen.of(RunExited, "Diary-0")

    def end(self) -> None:
        for handle in self.diaries:
            handle.tell(Turn())
        for handle in self.diaries:
            assert handle.result(IN_TIME_S) > 0


@contextmanager
def scene(folder: Path, *more: type[Run[Any, Any, Any]], **options: Any) -> Iterator[Scene]:
    """Opened, and closed in peace; opened once more, everything is there."""
    store = LmdbStore(folder / "runs.store", **options)
    seen = Recorder()
    policy = RestartPolicy(backoff=SOON)
    runtime = Runtime(store, runs=[Diary, AsyncDiary, *more], restart_policy=policy, logger=False, drain_timeout_s=5)
    runtime.events.subscribe(seen)
    with runtime:
        found = Scene(runtime, seen)
        yield found
        found.end()
    with Runtime(folder / "runs.store", runs=[Diary, AsyncDiary, *more], logger=False) as runtime:
        for handle in found.diaries:
            assert runtime.get(Diary if "Async" not in handle.run_id else AsyncDiary, handle.run_id).result(1) > 0


@contextmanager
def limited(which: int, soft: int) -> Iterator[None]:
    """The soft limit lowered, then as it was."""
    before, hard = resource.getrlimit(which)
    resource.setrlimit(which, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (before, hard))


# --- cases ------------------------------------------------------------------------------------------------------------


def a_disk_of_4_mb_fills_up(folder: Path) -> None:
    mount_small_disk(folder)
    with scene(folder) as found:
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        for handle in found.diaries:  # what is free inside the file lasts for a while: more is wanted
            handle.tell(Turn(100_000))
        found.degraded("no room")
        assert _refused(found.runtime)
        filler.unlink()
        found.recovered()


def mount_small_disk(folder: Path) -> None:
    """A disk that this process alone sees; it goes with it. Raises PermissionError."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, recursive, private = 0x20000, 0x4000, 1 << 18
    for done in (
        lambda: libc.unshare(new_namespace),
        lambda: libc.mount(b"none", b"/", None, recursive | private, None),
        lambda: libc.mount(b"none", str(folder).encode(), b"tmpfs", 0, b"size=%d" % DISK_BYTES),
    ):
        if done() != 0:
            raise PermissionError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _refused(runtime: Runtime) -> bool:
    """A new run is refused with a typed error, after the patience of `start`, and nothing of it is left."""
    try:
        runtime.start(Diary, 0, run_id="one too many")
    except StartFailed:
        return all(view.run_id != "one too many" for view in runtime.runs())
    return False


def a_limit_on_file_size(folder: Path) -> None:
    with scene(folder) as found:
        with limited(resource.RLIMIT_FSIZE, 16_384):
            found.degraded("limit on file size")
            assert _refused(found.runtime)
        found.recovered()


def a_full_map(folder: Path) -> None:
    with scene(folder, map_size_bytes=2 * 1024**2) as found:
        for handle in found.diaries:
            handle.tell(Turn(400_000))
        found.degraded("map size")
        for handle in found.diaries:
            handle.tell(Turn(10))
        found.recovered()


def address_space(folder: Path) -> None:
    with scene(folder, Hungry) as found:
        with limited(resource.RLIMIT_AS, _used_bytes() + 2 * 1024**2):
            hungry = found.runtime.start(Hungry, 1 << 30, run_id="hungry")
            outcome: Any = hungry.outcome(IN_TIME_S)
            assert outcome.error.type == "MemoryError", outcome
            found.goes_on()
            found.saved()
            assert found.runtime.health().store_error is None
        assert found.runtime.resume("hungry").result(IN_TIME_S) == 1 << 30


def _used_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


def threads_at_open(folder: Path) -> None:
    _be_limited()
    with limited(resource.RLIMIT_NPROC, 1):
        before = threading.active_count()
        with pytest.raises(RuntimeError, match="thread"):
            Runtime(folder / "runs.store", runs=[Diary], logger=False).open()
        assert threading.active_count() == before
    with scene(folder):
        pass


def threads_later(folder: Path) -> None:
    """Runs that need more threads than there are wait for them, and what needs a thread waits behind them."""
    _be_limited()
    Blocking.together = threading.Barrier(6)
    with scene(folder, Blocking) as found:
        with limited(resource.RLIMIT_NPROC, 1):
            waiting = found.runtime.start_many(Blocking, {f"b{n}": n for n in range(6)})
            workers: Any = found.runtime._core.env.workers
            wait_until(lambda: workers.start_errors > 0, IN_TIME_S, "no thread is to be had")
            found.goes_on("AsyncDiary")
            assert all(handle.status().status == "running" for handle in waiting)
        assert [handle.result(IN_TIME_S) for handle in waiting] == list(range(6))


def _be_limited() -> None:
    """Root has no limit on processes, nor has who may exceed limits: be somebody else who may not, yet reads root's files."""
    if os.geteuid() != 0:
        return
    os.setresuid(61_231, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    may_exceed = 1 << 24 | 1 << 21
    """CAP_SYS_RESOURCE, CAP_SYS_ADMIN."""
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) != 0:
        raise PermissionError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    sets[0] &= ~may_exceed & 0xFFFFFFFF
    if libc.capset(header, sets) != 0:
        raise PermissionError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def descriptors(folder: Path) -> None:
    with scene(folder) as found:
        open_now = len(list(Path("/proc/self/fd").iterdir()))
        with limited(resource.RLIMIT_NOFILE, open_now - 1):
            found.goes_on()
            found.saved()
            with pytest.raises(StoreUnavailable):
                LmdbStore(folder / "another.store").open()
            assert found.runtime.health().ok
        other = LmdbStore(folder / "another.store")
        other.open()
        other.close()


def descriptors_at_open(folder: Path) -> None:
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    sys.unraisablehook = lambda _: None  # asyncio's loop complains of itself when its own opening failed
    for spare in range(12):
        with limited(resource.RLIMIT_NOFILE, open_now - 1 + spare):
            runtime = Runtime(folder / "runs.store", runs=[Diary, AsyncDiary], logger=False)
            try:
                runtime.open()
            except (ExecutusError, OSError):
                pass
            else:
                runtime.close()
        gc.collect()  # asyncio's loop holds its selector when its own opening failed
        assert len(list(Path("/proc/self/fd").iterdir())) <= open_now, f"descriptors left with {spare} to spare"
        assert threading.active_count() == 1, threading.enumerate()
    with scene(folder):
        pass


CASES: Final[dict[str, Callable[[Path], None]]] = {
    "a disk of 4 MB fills up": a_disk_of_4_mb_fills_up,
    "a limit on file size": a_limit_on_file_size,
    "a full map": a_full_map,
    "address space": address_space,
    "threads, at open": threads_at_open,
    "threads, later": threads_later,
    "descriptors": descriptors,
    "descriptors, at open": descriptors_at_open,
}


def run_case(case: Callable[[Path], None], folder: Path) -> str:
    """How long it took, or why it could not be tried."""
    began_s = time.monotonic()
    folder.mkdir(0o755)
    try:
        case(folder)
    except PermissionError as error:
        return f"skipped: {error}"
    return f"{time.monotonic() - began_s:.1f} s"


def run(count: int, seed: int) -> Report:
    """Every case, `count` times."""
    del seed  # there is no chance in it
    began_s = time.monotonic()
    failures: list[str] = []
    figures: dict[str, float | int | str] = {}
    for _ in range(count):
        with TemporaryDirectory(prefix="executus-limits-") as folder:
            Path(folder).chmod(0o755)
            acts = [partial(run_case, case, Path(folder, str(n))) for n, case in enumerate(CASES.values())]
            trials = side_by_side(acts, 120, AT_ONCE)
        for name, trial in zip(CASES, trials, strict=True):
            if trial.answer is None:
                failures.append(f"{name}: {trial.death}")
                figures[name] = "broken"
            else:
                figures[name] = trial.answer
    return Report(
        name="limits",
        promise=(9,),
        count=count * len(CASES),
        failures=tuple(failures),
        figures=figures,
        took_s=time.monotonic() - began_s,
    )
