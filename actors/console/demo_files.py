"""The files that the demo reads: which ones of a folder, and who reads which."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from executus.actors.console.failures import CommandFailed, ExitCode

MAX_FILES: Final = 4_000
MAX_BYTES: Final = 40_000_000
"""Together they keep the demo below 15 s on two cores, however large the folder; the standard library is 32 MB."""
MAX_FILE_BYTES: Final = 2_000_000
LEAST_STEPS: Final = 12
"""So many files a run reads at least, so that it has a middle; a small folder's are then read by several runs."""
_HEAD_BYTES: Final = 4_096
_PASSED_OVER: Final = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})


class Selection(msgspec.Struct, frozen=True):
    """Text files of a folder, by their paths within it. `cut` says that there were more than the demo takes."""

    folder: str
    files: tuple[str, ...]
    size_bytes: int
    cut: bool


def default_folder() -> Path:
    """The sources of Python's own standard library: real files that are on every machine."""
    return Path(sysconfig.get_paths()["stdlib"])


def chosen(folder: Path | None) -> Selection:
    """The text files of this folder, or the standard library's. Raises CommandFailed where there are none."""
    suffix = ".py" if folder is None else ""
    folder = (default_folder() if folder is None else folder).absolute()
    if not folder.is_dir():
        raise CommandFailed(
            ExitCode.NOT_FOUND,
            f"{str(folder)!r} is no folder. Name one with text files in it, or none for Python's own sources.",
        )
    selection = select(folder, suffix)
    if not selection.files:
        raise CommandFailed(
            ExitCode.NOT_FOUND,
            f"{str(folder)!r} holds no text files. Name another folder, or none for Python's own sources.",
        )
    return selection


def select(folder: Path, suffix: str = "") -> Selection:
    """The text files below a folder whose names end so, up to the limits. What cannot be read is passed over."""
    files: list[str] = []
    size_bytes = 0
    for path in _walk(folder):
        size = _text_size(path) if path.endswith(suffix) else None
        if size is None:
            continue
        if len(files) == MAX_FILES or size_bytes + size > MAX_BYTES:
            return Selection(str(folder), tuple(files), size_bytes, cut=True)
        files.append(os.path.relpath(path, folder))
        size_bytes += size
    return Selection(str(folder), tuple(files), size_bytes, cut=False)


def deal(files: tuple[str, ...], runs: int) -> list[tuple[str, ...]]:
    """Who reads which: every file once, or, where that is too little, `LEAST_STEPS` files each, in turn."""
    if len(files) >= runs * LEAST_STEPS:
        return [files[i::runs] for i in range(runs)]
    return [tuple(files[(i + k) % len(files)] for k in range(LEAST_STEPS)) for i in range(runs)]


def _walk(folder: Path) -> Iterator[str]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _PASSED_OVER and not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(here, name)  # noqa: PTH118 - ten thousand of them
            if not os.path.islink(path):  # noqa: PTH114
                yield path


def _text_size(path: str) -> int | None:
    """The size of a text file; None for what is none, is empty, too large, or has a name that cannot be stored."""
    try:
        path.encode()
        size = os.stat(path).st_size  # noqa: PTH116
        if not 0 < size <= MAX_FILE_BYTES or not os.path.isfile(path):  # noqa: PTH113
            return None
        with open(path, "rb") as file:  # noqa: PTH123
            return None if b"\0" in file.read(_HEAD_BYTES) else size
    except (OSError, UnicodeEncodeError):
        return None
