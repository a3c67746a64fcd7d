"""The demo's daemon as its parent sees it: a process that is started, listened to and killed with SIGKILL."""

from __future__ import annotations

import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Final, Generic, TypeVar

import msgspec

from executus.actors.console.failures import CommandFailed, ExitCode

SILENCE_S: Final = 30.0
"""A daemon that reports nothing for so long hangs; usually there are thousands of reports a second."""

R = TypeVar("R")


class DaemonProcess(Generic[R]):
    """One life of a daemon, which is this module run as a program: its job goes in, and reports of a type come out.

    `reports` gives what it says, in order, in the batches in which it comes.
    """

    def __init__(self, program: ModuleType, job: msgspec.Struct, report_type: Any, stderr: Path) -> None:
        self._decoder: msgspec.json.Decoder[R] = msgspec.json.Decoder(report_type)
        self._stderr = stderr
        # -P: a folder named `executus` in the working directory must not shadow the installed package.
        command = [sys.executable, "-P", "-m", program.__name__]
        with stderr.open("ab") as errors:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, bufsize=0)  # noqa: S603
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self._stdin: IO[bytes] = self._process.stdin
        self._stdout: IO[bytes] = self._process.stdout
        self._tail = b""
        try:
            self._send(msgspec.json.encode(job) + b"\n")
        except BrokenPipeError:
            self.close()
            raise self._failed("ended before it took its job") from None

    def reports(self) -> Iterator[list[R]]:
        """Batches until the daemon's end. Raises CommandFailed when it is silent for too long."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(SILENCE_S):
                    raise self._failed(f"said nothing for {SILENCE_S:g} s")
                data = self._stdout.read(65_536)
                if not data:
                    return
                *lines, self._tail = (self._tail + data).split(b"\n")
                yield [self._decoder.decode(line) for line in lines]

    def kill(self) -> list[R]:
        """SIGKILL. Returns what it had still reported: the kernel keeps that, and it counts."""
        self._process.kill()
        last = [report for batch in self.reports() for report in batch]
        code = self._process.wait()
        if code != -signal.SIGKILL:
            raise self._failed(f"was to be killed but ended by itself (exit {code})")
        return last

    def wait(self) -> None:
        """Wait for its end in peace. Raises CommandFailed for any other."""
        try:
            code = self._process.wait(SILENCE_S)
        except subprocess.TimeoutExpired:
            raise self._failed(f"had finished but did not end within {SILENCE_S:g} s") from None
        if code:
            raise self._failed(f"ended with exit {code}")

    def close(self) -> None:
        """See that nothing of it is left. Idempotent."""
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._stdin.write(view) :]

    def _failed(self, what: str) -> CommandFailed:
        said = self._stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return CommandFailed(
            ExitCode.FAILED, f"the demo's daemon (pid {self.pid}) {what}" + (f": {said[-1]}" if said else "")
        )
