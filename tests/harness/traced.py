"""What a program did to the files below a folder, as strace saw it, in order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
TIMEOUT_S: Final = 300.0
"""A bound against hangs."""
CALLS: Final = (
    "openat,write,pwrite64,writev,lseek,ftruncate,fdatasync,fsync,msync,"
    "mkdir,rename,renameat,renameat2,unlink,unlinkat,rmdir"
)


class Write(NamedTuple):
    """Bytes into a file. `synced`: by a descriptor on which the call returns once they are on the disk."""

    file: int
    at: int
    data: bytes
    synced: bool


class Truncate(NamedTuple):
    """A file's new length."""

    file: int
    size: int


class Flush(NamedTuple):
    """Everything that was written to a file is on the disk."""

    file: int


class Link(NamedTuple):
    """A name that a file or folder has now; of a rename `old` is the name that it had."""

    folder: int
    name: str
    file: int
    old: tuple[int, str] | None = None


class Unlink(NamedTuple):
    """A name that is gone."""

    folder: int
    name: str


class FlushFolder(NamedTuple):
    """The names within a folder are on the disk."""

    folder: int


class Mark(NamedTuple):
    """What the program said on its standard output."""

    text: str


class Failed(NamedTuple):
    """A flush or a synced write that was refused: what it was to put on the disk may be there or not, for good."""

    file: int


Action = Write | Truncate | Flush | Link | Unlink | FlushFolder | Mark | Failed


class Recording(NamedTuple):
    """The actions in order, and which numbers are folders; 0 is the folder that was watched."""

    actions: list[Action]
    folders: frozenset[int]


def why_not() -> str:
    """Why nothing can be traced on this machine; empty where it can."""
    if sys.platform != "linux":
        return "strace traces Linux programs only"
    if shutil.which("strace") is None:
        return "strace is not installed"
    try:
        tried = subprocess.run(
            [
                "strace",
                "-f",
                "--seccomp-bpf",
                "-e",
                "trace=fdatasync",
                "-e",
                "inject=fdatasync:error=EIO:when=1",
                "true",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"strace does not work here: {error}"
    return "" if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()[-300:]}"


def environment() -> dict[str, str]:
    """For `-P -m tests.…`: the root is named, because -P leaves the current folder out."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]), "PYTHONDONTWRITEBYTECODE": "1"}


def record(command: Sequence[str], watched: Path, options: Sequence[str] = ()) -> Recording:
    """Run a program of one thread to its end and return what it did below `watched`. Raises RuntimeError."""
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch, "trace")
        done = subprocess.run(
            ["strace", "-y", "-xx", "-s", "100000000", "-e", f"trace={CALLS}", *options, "-o", str(trace), *command],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        if done.returncode:
            raise RuntimeError(f"{command} exited with {done.returncode}: {done.stderr[-2000:]}")
        with trace.open(encoding="ascii", errors="replace") as lines:
            return Reader(watched).read(lines)


def calls_between(command: Sequence[str], call: str, first: str, last: str) -> range:
    """The numbers, from 1, of the calls of this name that a program makes after it has said `first`, before `last`."""
    traced = ["strace", "-s", "100", "-e", f"trace=write,{call}", *command]
    done = subprocess.run(
        traced, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    if done.returncode:
        raise RuntimeError(f"{command} exited with {done.returncode}: {done.stderr[-2000:]}")
    lines, count, since = done.stderr.splitlines(), 0, 0
    for line in lines:
        count += line.startswith(f"{call}(")
        if line.startswith(f'write(1, "{first}\\n'):
            since = count
        elif line.startswith(f'write(1, "{last}'):
            return range(since + 1, count + 1)
    raise RuntimeError(f"{command} did not say {last!r}")


_CALL: Final = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+)(.*)$", re.DOTALL)
_FD: Final = re.compile(r"(\d+|AT_FDCWD)<([^>]*)>")
_TEXT: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_STDOUT: Final = 1


class Reader:
    """Follows names, descriptors and positions."""

    def __init__(self, watched: Path) -> None:
        self._watched = str(watched)
        self._files: dict[str, int] = {self._watched: 0}
        self._folders = {0}
        self._synced: dict[int, bool] = {}
        self._position: dict[int, int] = {}
        self._size: dict[int, int] = {}
        self._number = 0
        self._calls: dict[str, Callable[[str, int], Iterator[Action]]] = {
            "openat": self._open,
            "write": self._write,
            "pwrite64": self._pwrite,
            "writev": self._writev,
            "lseek": self._lseek,
            "ftruncate": self._ftruncate,
            "fdatasync": self._flush,
            "fsync": self._flush,
            "mkdir": self._mkdir,
            "rename": self._rename,
            "renameat": self._rename,
            "renameat2": self._rename,
            "unlink": self._unlink,
            "unlinkat": self._unlink,
            "rmdir": self._unlink,
        }

    def read(self, lines: Iterator[str]) -> Recording:
        actions: list[Action] = []
        for line in lines:
            if (found := _CALL.match(line)) is None:
                continue
            name, arguments, result, said = found.groups()
            if int(result) >= 0 or "INJECTED" in said:
                actions += self._calls[name](arguments, int(result))
        return Recording(actions, frozenset(self._folders))

    def _open(self, arguments: str, result: int) -> Iterator[Action]:
        path = self._path(arguments)
        if path is None:
            return
        self._synced[result] = "O_DSYNC" in arguments or "O_SYNC" in arguments
        self._position[result] = 0
        if path not in self._files and "O_CREAT" in arguments:
            yield self._made(path)
        elif path in self._files and "O_TRUNC" in arguments:
            yield Truncate(self._files[path], 0)

    def _write(self, arguments: str, result: int) -> Iterator[Action]:
        fd, file = self._file(arguments)
        if fd == _STDOUT:
            yield from (Mark(line) for line in _texts(arguments)[0].decode().splitlines())
        elif file is not None:
            yield from self._put(fd, file, self._position[fd], _texts(arguments)[0], result)
            self._position[fd] += max(result, 0)

    def _pwrite(self, arguments: str, result: int) -> Iterator[Action]:
        fd, file = self._file(arguments)
        if file is not None:
            yield from self._put(fd, file, int(arguments.rpartition(",")[2]), _texts(arguments)[0], result)

    def _writev(self, arguments: str, result: int) -> Iterator[Action]:
        fd, file = self._file(arguments)
        if file is not None:
            yield from self._put(fd, file, self._position[fd], b"".join(_texts(arguments)), result)
            self._position[fd] += max(result, 0)

    def _put(self, fd: int, file: int, at: int, data: bytes, result: int) -> Iterator[Action]:
        synced = self._synced.get(fd, False)
        if result >= 0:
            yield Write(file, at, data[:result], synced)
            return
        yield Write(file, at, data, synced=False)  # It was refused, and may be there all the same.
        if synced:
            yield Failed(file)

    def _lseek(self, arguments: str, result: int) -> Iterator[Action]:
        fd, _ = self._file(arguments)
        self._position[fd] = result
        yield from ()

    def _ftruncate(self, arguments: str, result: int) -> Iterator[Action]:
        _, file = self._file(arguments)
        if file is not None and result >= 0:
            yield Truncate(file, int(arguments.rpartition(",")[2]))

    def _flush(self, arguments: str, result: int) -> Iterator[Action]:
        _, file = self._file(arguments)
        if file is None:
            return
        if result < 0:
            yield Failed(file)
        else:
            yield FlushFolder(file) if file in self._folders else Flush(file)

    def _mkdir(self, arguments: str, result: int) -> Iterator[Action]:
        path = self._path(arguments)
        if path is not None and result >= 0:
            made = self._made(path)
            self._folders.add(made.file)
            yield made

    def _rename(self, arguments: str, result: int) -> Iterator[Action]:
        before, after = (os.fsdecode(text) for text in _texts(arguments))
        if result < 0 or before not in self._files:
            return
        file = self._files.pop(before)
        self._files[after] = file
        (old_folder, old_name), (folder, name) = self._place(before), self._place(after)
        yield Link(folder, name, file, (old_folder, old_name))

    def _unlink(self, arguments: str, result: int) -> Iterator[Action]:
        path = self._path(arguments)
        if path is not None and result >= 0 and self._files.pop(path, None) is not None:
            yield Unlink(*self._place(path))

    def _made(self, path: str) -> Link:
        self._number += 1
        self._files[path] = self._number
        folder, name = self._place(path)
        return Link(folder, name, self._number)

    def _place(self, path: str) -> tuple[int, str]:
        folder, _, name = path.rpartition("/")
        return self._files[folder], name

    def _path(self, arguments: str) -> str | None:
        path = os.fsdecode(_texts(arguments)[0])
        if not path.startswith("/") and (within := _FD.match(arguments)) is not None:
            path = f"{_plain(within[2])}/{path}"
        return path if path.startswith(f"{self._watched}/") else None

    def _file(self, arguments: str) -> tuple[int, int | None]:
        found = _FD.match(arguments)
        assert found is not None, arguments[:200]
        return int(found[1]), self._files.get(_plain(found[2]))


def _plain(text: str) -> str:
    return os.fsdecode(bytes.fromhex(text.replace("\\x", ""))) if text.startswith("\\x") else text


def _texts(arguments: str) -> list[bytes]:
    return [bytes.fromhex(text.replace("\\x", "")) for text, _ in _TEXT.findall(arguments)]
