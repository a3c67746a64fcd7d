"""The pipes between a demo and its daemon, as the daemon sees them: reports go to stdout, stdin says who listens."""

from __future__ import annotations

import os
import threading
from typing import Final

import msgspec

ORPHANED: Final = 3


def report(message: msgspec.Struct) -> None:
    """One write a report, which a pipe takes whole: lines of several threads never mix, and a SIGKILL cuts none."""
    os.write(1, msgspec.json.encode(message) + b"\n")


def end_with_parent() -> None:
    """From now on end this process at once when its parent has gone."""
    threading.Thread(target=_watch, name="demo-parent-watch", daemon=True).start()


def _watch() -> None:
    while os.read(
        0, 4096
    ):  # until the parent is gone. Not sys.stdin: its lock, held here, would abort the interpreter's exit
        pass
    os._exit(ORPHANED)
