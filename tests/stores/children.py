"""Processes for tests: a daemon that owns a store, and a piece of the test itself in a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = Path(__file__).with_name("owner_program.py")


@contextmanager
def owner_of(folder: Path, how: str = "hold") -> Iterator[subprocess.Popen[str]]:
    """A daemon that has opened the store, or is saving; killed at the end."""
    command = [sys.executable, "-P", str(PROGRAM), str(folder), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            if how != "save":
                assert daemon.stdout is not None
                assert daemon.stdout.readline() == "ready\n"
            yield daemon
        finally:
            daemon.kill()


def in_fork(act: Callable[[], None]) -> None:
    """Run `act` in a fork, whose limits, user and descriptors are its own; what it raises fails the test."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            act()
            code = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-60_000:])
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"exit {code}\n{text}"
