"""One trial in a process of its own: a fork that answers with JSON, or dies, or hangs."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple


class Trial(NamedTuple):
    """What became of it: its answer, or how it died."""

    answer: Any
    death: str = ""


def forked(act: Callable[[], Any], timeout_s: float = 60.0) -> Trial:
    """Run `act` in a fork and return what it returned (through JSON). Call it from a process with one thread."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _answer(act, writer)
    os.close(writer)
    said, in_time = _read_all(reader, time.monotonic() + timeout_s)
    os.close(reader)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if not in_time:
        return Trial(None, f"it hung for {timeout_s:g} s and was killed")
    try:
        kind, answer = json.loads(said)
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


def _read_all(reader: int, deadline_s: float) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    while True:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([reader], [], [], left_s)[0]:
            return b"".join(parts), False
        part = os.read(reader, 65536)
        if not part:
            return b"".join(parts), True
        parts.append(part)
