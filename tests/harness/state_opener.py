"""Opens one store after the other, as a daemon would after a loss of power, and says what it finds.

As a program it reads a line and answers with a line. That it dies is an answer as well: the check of a doubtful file
runs in a child of its own, here as in any daemon. Here that child goes on to the next file, which costs a hundredth of
a new interpreter, except where `whole` asks for the real thing.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from unittest import mock

import lmdb.verify  # noqa: F401 - imported before the fork
import msgspec

from executus.stores import LmdbStore, StoreError, lmdb_probe
from tests.harness.traced import ROOT, environment
from tests.harness.workload import View, view_of
from tests.stores.making import begin, save

ANSWER_TIMEOUT_S: Final = 60.0
"""A bound against hangs."""


class Asked(msgspec.Struct, frozen=True):
    """Open the store in that folder. `whole`: check it by an interpreter of its own."""

    folder: str
    profile: str
    whole: bool


class Found(msgspec.Struct, frozen=True):
    """What was found: a view and the boot's number; or why it was refused, or could not be read, or not be written."""

    view: View = {}
    boot: int = 0
    refused: str = ""
    unreadable: str = ""
    unwritable: str = ""
    died: str = ""


class Opener:
    """The process from outside; a new one is made when it died."""

    def __init__(self) -> None:
        self.deaths = 0
        self._process: subprocess.Popen[bytes] | None = None

    def find(self, folder: Path, profile: str, *, whole: bool = False) -> Found:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.harness.state_opener"],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(Asked(str(folder), profile, whole)) + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        line = self._process.stdout.readline() if ready else b""
        if line.endswith(b"\n"):
            return msgspec.json.decode(line, type=Found)
        self.deaths += 1
        return Found(died=f"it {'exited with ' + str(self.close()) if ready else 'hung'}")

    def close(self) -> int:
        """End the process; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Prober:
    """Runs the probe in a fork of this process, for as long as that lives; a process of its own a file costs 3 ms."""

    def __init__(self) -> None:
        self._child = 0
        self._asking = self._answers = -1

    def run(self, command: list[str], **_options: Any) -> subprocess.CompletedProcess[bytes]:
        """In place of `subprocess.run`."""
        assert command[3] == lmdb_probe.__file__, command
        if not self._child:
            self._fork()
        os.write(self._asking, msgspec.json.encode(command[4:]) + b"\n")
        said = b""
        while not said.endswith(b"\0"):
            more = os.read(self._answers, 65536)
            if not more:
                return subprocess.CompletedProcess(command, self._wait(), said, b"")
            said += more
        output, exit_code, _ = said.rsplit(b"\0", 2)
        return subprocess.CompletedProcess(command, int(exit_code), output, b"")

    def _fork(self) -> None:
        asked, self._asking = os.pipe()
        self._answers, answering = os.pipe()
        self._child = os.fork()
        if self._child:
            os.close(asked)
            os.close(answering)
            return
        try:
            os.close(self._asking)
            os.close(self._answers)
            os.dup2(answering, 1)
            with os.fdopen(asked) as lines:
                for line in lines:
                    code = lmdb_probe.main(*msgspec.json.decode(line, type=tuple[str, str, str]))
                    sys.path.pop()
                    sys.stdout.flush()
                    os.write(answering, b"\0%d\0" % code)
        finally:
            os._exit(1)

    def _wait(self) -> int:
        os.close(self._asking)
        os.close(self._answers)
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        return os.waitstatus_to_exitcode(status)


def look(asked: Asked) -> Found:
    """Open it, read everything, write something, close it."""
    store = LmdbStore(asked.folder, profile=asked.profile)  # type: ignore[arg-type]
    try:
        store.open()
    except StoreError as error:
        return Found(refused=f"{type(error).__name__}: {error}")
    boot = store.boot_epoch
    try:
        view = view_of(store)
    except StoreError as error:
        return Found(boot=boot, unreadable=f"{type(error).__name__}: {error}")
    try:
        token = begin(store, "after the crash")
        store.commit([save(token, 1, b"new" * 5000)])
        loaded = store.load_snapshot("after the crash")
        assert loaded is not None
        assert loaded.snapshot.state == b"new" * 5000
        store.close()
    except (StoreError, AssertionError) as error:
        return Found(view=view, boot=boot, unwritable=f"{type(error).__name__}: {error}")
    finally:
        store.close()
    return Found(view=view, boot=boot)


def main() -> None:
    out = os.dup(1)
    run, prober = subprocess.run, Prober()
    for line in sys.stdin:
        asked = msgspec.json.decode(line, type=Asked)
        with mock.patch.object(subprocess, "run", run if asked.whole else prober.run):
            found = look(asked)
        os.write(out, msgspec.json.encode(found) + b"\n")


if __name__ == "__main__":
    main()
