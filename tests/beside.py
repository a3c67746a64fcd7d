"""Programs that tests wait for run beside the other tests, one after the other in the order of the tests.

A test names what it wants to have run, all at once: `@pytest.mark.programs("-m tests.harness sigkill --json", …)`, and
gets by the fixture `ended` how they ended. Whoever comes first runs them: the process beside the tests, or the test.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import msgspec

from tests.scenarios.harness import ROOT, environment
from tests.waiting import wait_until

HANG_S = 600.0
PLAN = "plan"


class Ended(msgspec.Struct, frozen=True):
    """A program that has come to its end."""

    code: int
    out: str
    err: str


class Beside:
    """The process beside the tests, from outside. `groups`: what is to be run, each group's programs at once."""

    def __init__(self, groups: Iterable[Sequence[str]]) -> None:
        self._scratch = TemporaryDirectory(prefix="executus-beside-")
        self._folder = Path(self._scratch.name)
        self._numbers: dict[tuple[str, ...], int] = {}
        for group in groups:
            self._numbers.setdefault(tuple(group), len(self._numbers))
        (self._folder / PLAN).write_bytes(msgspec.json.encode(list(self._numbers)))
        self._process: subprocess.Popen[bytes] | None = None

    def ended(self, group: Sequence[str]) -> list[Ended]:
        """How these programs ended: those that are under way beside are waited for, others run here and now."""
        if self._process is None:
            return run_all(group)
        number = self._numbers[tuple(group)]
        if taken(self._folder, number):
            return run_all(group)
        answer = answer_of(self._folder, number)
        wait_until(lambda: answer.exists() or self._has_ended(), HANG_S)
        assert answer.exists(), f"the process beside the tests has ended during {group}"
        return msgspec.json.decode(answer.read_bytes(), type=list[Ended])

    def _has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None and self._process.returncode != 0

    def __enter__(self) -> Self:
        if self._numbers:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.beside", str(self._folder)],
                cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # it ends what it runs, and itself
            self._process.wait(30)
        self._scratch.cleanup()


def run_all(group: Sequence[str]) -> list[Ended]:
    """Run these programs side by side, and wait for all of them."""
    with ExitStack() as stack:
        running = [stack.enter_context(_started(line)) for line in group]
        return [_end_of(process) for process in running]


def _started(line: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", *shlex.split(line)],
        cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _end_of(process: subprocess.Popen[str]) -> Ended:
    try:
        out, err = process.communicate(timeout=HANG_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        err += f"\nit hung for {HANG_S:g} s and was killed"
    return Ended(process.returncode, out, err)


def taken(folder: Path, number: int) -> bool:
    """Take a group, if nobody else has taken it."""
    try:
        (folder / f"{number}.taken").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def answer_of(folder: Path, number: int) -> Path:
    return folder / f"{number}.json"


def main(name: str) -> None:
    """The process: what nobody has taken yet, one group after the other. It ends with the tests, whatever becomes of them."""
    folder = Path(name)
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    plan: list[Any] = msgspec.json.decode((folder / PLAN).read_bytes())
    for number, group in enumerate(plan):
        if taken(folder, number):
            written = folder / f"{number}.written"
            written.write_bytes(msgspec.json.encode(run_all(group)))
            written.rename(answer_of(folder, number))


def _end_with_the_tests() -> None:
    os.read(0, 1)  # the pipe from the tests: nothing comes but its end
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
