"""Trials in processes of their own: forks that answer with JSON, or die, or hang."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Trial(NamedTuple):
    """What became of it: its answer, or how it died."""

    answer: Any
    death: str = ""


def forked(act: Callable[[], Any], timeout_s: float = 60.0) -> Trial:
    """Run `act` in a fork and return what it returned (through JSON). Call it from a process with one thread."""
    (trial,) = side_by_side([act], timeout_s)
    return trial


def side_by_side(acts: Sequence[Callable[[], Any]], timeout_s: float = 60.0, at_once: int = 1) -> list[Trial]:
    """The same for several, `at_once` at a time: for those that wait more than they compute."""
    trials: dict[int, Trial] = {}
    running: dict[int, _Fork] = {}
    left = list(enumerate(acts))
    while left or running:
        while left and len(running) < at_once:
            number, act = left.pop(0)
            running[number] = _Fork(act, timeout_s)
        until_s = min(fork.deadline_s for fork in running.values())
        select.select(list(running.values()), [], [], max(0.0, until_s - time.monotonic()))
        for number, fork in list(running.items()):
            if fork.has_ended():
                trials[number] = fork.trial()
                del running[number]
    return [trials[number] for number in range(len(acts))]


class _Fork:
    """A process that runs `act` and answers through a pipe."""

    def __init__(self, act: Callable[[], Any], timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.deadline_s = time.monotonic() + timeout_s
        self._said = b""
        self._hung = False
        self._reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._reader)
            _answer(act, writer)
        os.close(writer)

    def fileno(self) -> int:
        return self._reader

    def has_ended(self) -> bool:
        """Take in what it says. True when it has said all, or its time is up."""
        while select.select([self], [], [], 0)[0]:
            part = os.read(self._reader, 65536)
            if not part:
                return True
            self._said += part
        self._hung = time.monotonic() >= self.deadline_s
        return self._hung

    def trial(self) -> Trial:
        """What became of it. Its process is gone then."""
        os.close(self._reader)
        if self._hung:
            os.kill(self._pid, signal.SIGKILL)
        status = os.waitpid(self._pid, 0)[1]
        if self._hung:
            return Trial(None, f"it hung for {self.timeout_s:g} s and was killed")
        try:
            kind, answer = json.loads(self._said)
        except ValueError:
            code = os.waitstatus_to_exitcode(status)
            return Trial(None, signal.Signals(-code).name if code < 0 else f"exit {code}")
        return Trial(answer) if kind == "answer" else Trial(None, str(answer))


def _answer(act: Callable[[], Any], writer: int) -> None:
    try:
        said = ["answer", act()]
    except BaseException:
        said = ["error", traceback.format_exc()[-4000:]]
    data = json.dumps(said).encode()
    while data:
        data = data[os.write(writer, data) :]
    os._exit(0)
