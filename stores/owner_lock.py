"""One process owns a store, and within it one store object. The lock goes with its process, however that ends.

`fcntl.lockf`, not `flock`: a flock stays held by a forked grandchild of a killed owner. The price is that closing *any*
descriptor of the file drops the lock and that a second lock in the same process succeeds; hence the process-wide table,
and the owner's facts in a file of their own, so that nobody opens the lock file to read them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from pathlib import Path
from typing import Final

import msgspec

from executus.stores.errors import StoreLocked
from executus.stores.store_files import DataFile, sync_folder

LOCK_NAME: Final = "owner.lock"
FACTS_NAME: Final = "owner.json"
_MAX_FACTS_BYTES: Final = 4096

_FLOCK: Final = "@hhqqi"
_WORD_BYTES: Final = 8
"""`struct flock` of 64-bit Linux: type, whence, start, length, pid."""

_Inode = tuple[int, int]


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Who opened a store last. `closed` is there once it was closed in peace."""

    pid: int
    boot_id: str
    started_at_ticks: int
    closed: DataFile | None = None


class OwnerLock:
    """Held from `acquire` to `release`. All of it from one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fds: list[int] = []
        self._inode: _Inode | None = None
        self.pid = 0

    def acquire(self) -> Owner | None:
        """Take the lock; returns who had it before, if that is known. Raises StoreLocked, OSError."""
        path = self._folder / LOCK_NAME
        self.pid = os.getpid()
        while True:
            if _holder_here(path) is not None:
                raise _locked_here(self._folder)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            inode = _inode(os.fstat(fd))
            holder = _HELD.setdefault(inode, self)
            if holder.pid != self.pid:
                # The entry came through a fork: it was the parent's, whose lock this process does not share.
                holder = _HELD[inode] = self
            if holder is not self:
                # Closing this descriptor would drop the holder's lock: the holder closes it with its own.
                holder._fds.append(fd)
                raise _locked_here(self._folder)
            self._fds, self._inode = [fd], inode
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                self.release()
                raise self._locked_elsewhere() from None
            except OSError:
                self.release()
                raise
            if _same_file(path, inode):
                return read_owner(self._folder)
            self.release()  # Somebody removed the file between open and lock: lock the one that is there now.

    def release(self) -> None:
        """Give the lock up. In a forked child it was never held and nothing happens."""
        if self._inode is None or self.pid != os.getpid():
            return
        inode, self._inode = self._inode, None
        fds, self._fds = self._fds, []
        _HELD.pop(inode, None)
        for fd in fds:
            os.close(fd)

    def is_in_place(self) -> bool:
        """Is the file that was locked still the one under its name? If not, another process can lock the new one."""
        return self._inode is not None and _same_file(self._folder / LOCK_NAME, self._inode)

    def _locked_elsewhere(self) -> StoreLocked:
        pid = self._pid_of_holder()
        return StoreLocked(
            f"store {str(self._folder)!r} is owned by {f'pid {pid}' if pid else 'another process'}. Nothing was "
            "opened. Stop that process, or give this one a store of its own.",
            path=str(self._folder),
            owner_pid=pid,
        )

    def _pid_of_holder(self) -> int | None:
        # Between taking the lock and writing the facts, the facts are those of the owner before: the system knows.
        try:
            holder = holder_of_lock(self._folder)
        except OSError:
            owner = read_owner(self._folder)
            holder = owner.pid if owner and owner.closed is None and is_running(owner) else None
        return holder or None


_HELD: Final[dict[_Inode, OwnerLock]] = {}
"""Every owner lock of this process; entries that came through a fork carry the parent's pid."""


def refuse_in_owner(folder: Path) -> None:
    """Raise StoreLocked where this very process owns the store: it reads through its own store."""
    if _holder_here(folder / LOCK_NAME) is not None:
        raise _locked_here(folder)


def holder_of_lock(folder: Path, name: str = LOCK_NAME) -> int | None:
    """The pid of who holds the lock now, 0 where that is in another pid namespace; None for nobody.

    `name` may be that of another file of the folder that is locked by `fcntl`.

    Asks the system and takes nothing. Not in the owner's own process: closing the file would drop its lock there.
    Raises OSError where the system does not tell.
    """
    if sys.platform != "linux" or struct.calcsize("P") != _WORD_BYTES:
        raise OSError(errno.ENOTSUP, "the layout of the question is not known for this system")
    try:
        fd = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, question))
    finally:
        os.close(fd)
    return None if kind == fcntl.F_UNLCK else max(pid, 0)


def this_process() -> Owner:
    """The facts of the calling process."""
    return Owner(pid=os.getpid(), boot_id=boot_id(), started_at_ticks=_started_at_ticks(os.getpid()))


def is_running(owner: Owner) -> bool:
    """Does the very process still run? Its pid may be another's by now. Unknown counts as yes."""
    if owner.boot_id != boot_id():
        return False
    ticks = _started_at_ticks(owner.pid)
    return ticks == owner.started_at_ticks


def boot_id() -> str:
    """What changes with every boot of the machine; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def read_owner(folder: Path) -> Owner | None:
    """The last owner, or None where nothing readable says so."""
    try:
        with (folder / FACTS_NAME).open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_FACTS_BYTES), type=Owner)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def write_owner(folder: Path, owner: Owner) -> None:
    """Put the facts in place, all or nothing, durably. Raises OSError."""
    path, new = folder / FACTS_NAME, folder / f"{FACTS_NAME}.new"
    with open(new, "wb", opener=_private) as file:
        file.write(msgspec.json.encode(owner))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(folder)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _locked_here(folder: Path) -> StoreLocked:
    return StoreLocked(
        f"store {str(folder)!r} is open already in this process (pid {os.getpid()}). Nothing was opened. "
        "Share that runtime, or close it first.",
        path=str(folder),
        owner_pid=os.getpid(),
    )


def _holder_here(path: Path) -> OwnerLock | None:
    try:
        holder = _HELD.get(_inode(path.stat()))
    except FileNotFoundError:
        return None
    return holder if holder is not None and holder.pid == os.getpid() else None


def _same_file(path: Path, inode: _Inode) -> bool:
    try:
        return _inode(path.stat()) == inode
    except OSError:
        return False


def _inode(stat: os.stat_result) -> _Inode:
    return stat.st_dev, stat.st_ino


def _started_at_ticks(pid: int) -> int:
    """Field 22 of /proc/pid/stat, 0 where that cannot be read. The command's name before it may hold a ')' too."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(stat.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
