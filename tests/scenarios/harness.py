"""A daemon of the tests from outside: tell it, hear it, kill it with SIGKILL."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self

import lmdb
import msgspec

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """For `-P -m tests.…`: the root is named, because -P leaves the current folder out."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": ""}


class Refused(Exception):
    """A command raised in the daemon; the arguments are the error's type and text."""


class Daemon:
    """A process of `tests.scenarios.daemon`, or of another module beside it."""

    def __init__(self, store: Path, *arguments: str, module: str = "daemon") -> None:
        self.lines: list[Any] = []
        self._answers: dict[int, Any] = {}
        self._number = 0
        self._changed = threading.Condition()
        self._ended = False
        self._said = ""
        self._errors = TemporaryFile()  # noqa: SIM115 - closed once it has ended; what it says if it does so unasked
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"tests.scenarios.{module}", str(store), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            cwd=ROOT,
        )
        self._reader = threading.Thread(target=self._read, name="daemon's output", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            parts = msgspec.json.decode(line)
            with self._changed:
                if parts[0] == "answer":
                    self._answers[parts[1]] = parts[2:]
                else:
                    self.lines.append(parts)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, fact: Callable[[], Any], what: str = "", timeout_s: float = 20.0) -> Any:
        """Wait until `fact()` holds of what was heard, and return it. Raises AssertionError."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not (found := fact()):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or self._ended:
                    how = f"the daemon ended with {self.process.wait(30)}" if self._ended else "not in time"
                    raise AssertionError(
                        f"{how}: {what}; heard {self.lines[-20:]}; on stderr: {self._said_of_errors()}"
                    )
                self._changed.wait(left_s)
            return found

    def _said_of_errors(self) -> str:
        if self._errors.closed:
            return self._said
        length = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), 8_000, max(length - 8_000, 0)).decode(errors="replace")

    def opened(self) -> Self:
        self.wait_for(lambda: ["open"] in self.lines, "open")
        return self

    def do(self, verb: str, *args: Any) -> Any:
        """Give a command and return what it returned. Raises Refused with what it raised."""
        number = self._number = self._number + 1
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode([number, verb, *args]) + b"\n")
        self.process.stdin.flush()
        self.wait_for(lambda: number in self._answers, f"the answer to {verb} {args}", 30)
        error, answer, *_ = self._answers.pop(number)
        if error is not None:
            raise Refused(error, answer)
        return answer

    def events(self, name: str, run_id: str | None = None) -> list[dict[str, Any]]:
        return [
            line[2]
            for line in list(self.lines)
            if line[0] == "event" and line[1] == name and run_id in {None, line[2].get("run_id")}
        ]

    def event(self, name: str, run_id: str | None = None) -> dict[str, Any]:
        """The first such event, waited for."""
        found: list[dict[str, Any]] = self.wait_for(lambda: self.events(name, run_id), f"{name} of {run_id}")
        return found[0]

    def said(self, first: str) -> list[Any]:
        return [line[1:] for line in list(self.lines) if line[0] == first]

    def kill(self) -> None:
        """SIGKILL, and read what it still said."""
        self.process.kill()  # not os.kill: the pid of one that has ended may be another process's by now
        self.ended()

    def ended(self) -> int:
        """Wait for its end; what it said is read to the last line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        code = self.process.wait(30)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self._reader.join(30)
        self.process.stdout.close()
        if not self._errors.closed:
            self._said = self._said_of_errors()
            sys.stderr.write(self._said)
            self._errors.close()
        return code

    def __enter__(self) -> Self:
        try:
            return self.opened()
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


@contextlib.contextmanager
def rows_of(store: Path, table: str) -> Iterator[tuple[Any, Any]]:
    """A table of a store that nobody has open, raw: (transaction, database)."""
    with lmdb.open(str(store), max_dbs=16, map_size=1 << 30, subdir=True) as env, env.begin(write=True) as txn:
        yield txn, env.open_db(table.encode(), txn)


def bytes_of(store: Path, table: str, run_id: str) -> dict[bytes, bytes]:
    """The rows of a run, raw."""
    with rows_of(store, table) as (txn, database), txn.cursor(database) as cursor:
        return {bytes(k): bytes(v) for k, v in cursor if bytes(k).split(b"\0")[0] == run_id.encode()}


def damage(store: Path, table: str, run_id: str, newest: int = 2) -> int:
    """Flip a bit of the payload in the run's `newest` newest rows (bytes 28 to 36 of a frame are its seq). How many were flipped."""
    rows = sorted(bytes_of(store, table, run_id).items(), key=lambda row: row[1][28:36])
    with rows_of(store, table) as (txn, database):
        for key, value in rows[-newest:]:
            txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=database)
    return len(rows[-newest:])
