"""Boots of the user's run in forked processes, on a real LMDB store, that end by SIGKILL."""

from __future__ import annotations

import os
import select
import signal
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from executus.actors.future import this_thread
from executus.actors.runtime import Runtime
from executus.actors.testing.dying_store import DeathAt, DyingStore
from executus.actors.testing.plot import Plot, Told
from executus.actors.testing.story import told_on_threads
from executus.stores import LmdbStore

PIPE_BYTES: Final = 65_536


class _Failed(msgspec.Struct, frozen=True, tag=True):
    """What a child says that could not tell the story to its end."""

    error: str


class _Said(msgspec.Struct, frozen=True, tag=True):
    told: Told


_decoder: msgspec.msgpack.Decoder[_Failed | _Said] = msgspec.msgpack.Decoder(_Failed | _Said)


class ChildFailed(AssertionError):
    """A boot in a child process neither came to its end nor died where it was told to."""


class BySigkill:
    """`Place` in forked children: threads, event loop, time and store are real, and so is the death.

    The store's profile is "process", whose commits survive SIGKILL and not a power failure: nobody pulls a plug here.
    """

    how = "sigkill"

    def __init__(self, boot_timeout_s: float) -> None:
        self.boots = 0
        self.steps_repeated: int | None = None
        self._timeout_s = boot_timeout_s
        self._folder = tempfile.TemporaryDirectory(prefix="executus-crashes-")
        self._number = 0

    def renew(self, plot: Plot) -> None:
        """A new folder, with a new store and a new ledger in it."""
        self._number += 1
        self._here().mkdir()
        if plot.effects is not None:
            plot.effects.empty(self._here() / "effects.jsonl")

    def boot(self, plot: Plot, saves: str, death: DeathAt | None) -> Told | None:
        """See Place. Raises ChildFailed with what the child said."""
        self.boots += 1
        store = self._here() / "store"
        data, status = in_child(lambda: _tell(plot, saves, death, store), self._timeout_s)
        if data is None:
            msg = f"a boot did not end within {self._timeout_s:g} s and was killed; boot_timeout_s bounds it"
            raise ChildFailed(msg)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if death is not None and number == signal.SIGKILL:
                return None
            raise ChildFailed(f"a boot was ended by {signal.Signals(number).name}")
        said = _decoder.decode(data) if data else _Failed(f"it exited with {os.waitstatus_to_exitcode(status)}")
        if isinstance(said, _Failed):
            raise ChildFailed(f"a boot failed: {said.error}")
        return said.told

    def close(self) -> None:
        """Remove the stores."""
        self._folder.cleanup()

    def _here(self) -> Path:
        return Path(self._folder.name) / str(self._number)


def _tell(plot: Plot, saves: str, death: DeathAt | None, folder: Path) -> bytes:
    """In the child: one boot. Does not return where it dies."""
    store: Any = DyingStore(LmdbStore(folder, profile="process"), death, _die)
    runtime = Runtime(store, runs=plot.runs(), **plot.options)
    core = runtime._core  # noqa: SLF001 - the story watches its runs from inside
    plot.say_how_to_save(core, saves)
    runtime.open()
    ended = told_on_threads(core, runtime, plot.make_run, plot.drive)
    return msgspec.msgpack.encode(_Said(Told(ended, list(store.commits), core.env.saves_awaited)))


def _die() -> NoReturn:
    while True:
        os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], bytes], timeout_s: float) -> tuple[bytes | None, int]:
    """Do it in a forked child and return (what it returned, its wait status); None where it was not in time.

    The child is left by `os._exit`: nothing of the parent's is flushed or closed twice.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # From 3.12 on Python warns of threads beside a fork. The child touches no lock that another thread may hold but
        # those of the interpreter, which it makes anew.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(reading)
        _be_child(work, writing)
    os.close(writing)
    try:
        data = _read(reading, time.monotonic() + timeout_s)
    finally:
        os.close(reading)
        killed = _end(pid)
    return (data, killed)


def _be_child(work: Callable[[], bytes], writing: int) -> NoReturn:
    try:
        this_thread.wait_instead = None  # the parent's virtual clock, if it has one, is none of ours
        threading.excepthook = threading.__excepthook__  # pytest's would keep what it gets for a report nobody makes
        try:
            data = work()
        except BaseException:  # noqa: BLE001 - the parent raises it
            data = msgspec.msgpack.encode(_Failed(traceback.format_exc()))
        view = memoryview(data)
        while view:
            view = view[os.write(writing, view) :]
    finally:
        os._exit(0)


def _read(reading: int, deadline_s: float) -> bytes | None:
    """All that the child says, to its end. None when time is up."""
    data = b""
    while True:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([reading], [], [], left_s)[0]:
            return None
        piece = os.read(reading, PIPE_BYTES)
        if not piece:
            return data
        data += piece


def _end(pid: int) -> int:
    """Have the child end, and return its wait status."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]
