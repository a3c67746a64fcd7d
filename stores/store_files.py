"""What can be said of a store's files without the engine: a damaged file must not reach its memory map."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from executus.stores import lmdb_probe
from executus.stores.errors import StoreCorrupt, StoreTooNew, StoreUnavailable

DATA_NAME: Final = "data.mdb"
NEW_PREFIX: Final = "new-store-"

_MAGIC: Final = 0xBEEFC0DE
_ENGINE_FORMAT: Final = 1
"""LMDB 0.9's. LMDB 1.0 writes 3 and puts the magic number 8 bytes further on."""
_MAGIC_PLACES: Final = (16, 24)
_META: Final = struct.Struct("=IIQQI")
"""At 16: magic, version, address, map size, page size (which is the free list's padding field)."""
_TAIL: Final = struct.Struct("=QQ")
"""At 136: last page, transaction id."""
_TAIL_PLACE: Final = 136
_READ_AGAIN: Final = 5
_SMALLEST_PAGE: Final = 512
_LARGEST_PAGE: Final = 65536

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "fuse.cephfs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "smbfs",
    ]
)
_VERIFY_MAX_BYTES: Final = 512 * 1024 * 1024
"""After a kill (not a crash of the machine) nothing above this is walked page by page: 0.3 s for 138 MB, and the page
cache is whole."""
CHECKING: Final = "checking\n"
FOUND_DAMAGE: Final = 3
"""What the child says once it works, and its exit code for a damaged file: see lmdb_probe.py, which imports nothing."""
_DEADLY: Final = frozenset({signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL})
_CHECK_TIMEOUT_S: Final = 60.0
_CHECK_BYTES_PER_S: Final = 20_000_000


class DataFile(msgspec.Struct, frozen=True):
    """How the data file was left; a file that looks otherwise was touched since.

    `header` is a digest of its two header pages, which have no checksum of their own; empty in facts of older code.
    """

    inode: int
    size_bytes: int
    changed_at_ns: int
    header: str = ""


def check_header(folder: Path) -> int:
    """Refuse a data file that is none, or is of another engine's format. Reads only.

    Returns how many bytes it lacks of its last page, usually 0. LMDB counts pages at the end that a transaction has
    taken and given up again, and never writes them; or the file is truncated, and using it would be a SIGBUS of the
    whole process. Only a walk over what is in use tells the two apart, see `check_in_child`.

    Raises StoreCorrupt, StoreTooNew, OSError.
    """
    head, size_bytes = _read_head(folder)
    if len(head) < _TAIL_PLACE + _TAIL.size:
        raise _corrupt(folder, f"{DATA_NAME} is {size_bytes} bytes long, shorter than one page")
    version, page_bytes = _identify(head, folder)
    if version > _ENGINE_FORMAT:
        raise StoreTooNew(
            f"store {str(folder)!r} is written in format {version} of LMDB, this code uses {_ENGINE_FORMAT}. "
            "It was left untouched. Deploy the newer code that wrote it.",
            path=str(folder),
            found=version,
            known=_ENGINE_FORMAT,
        )
    if page_bytes & (page_bytes - 1) or not _SMALLEST_PAGE <= page_bytes <= _LARGEST_PAGE:
        raise _corrupt(folder, f"its page size says {page_bytes}")
    if len(head) < page_bytes + _TAIL_PLACE + _TAIL.size:
        raise _corrupt(folder, f"{DATA_NAME} is {size_bytes} bytes long, shorter than two pages of {page_bytes}")
    first, second = _tail(head, 0), _tail(head, page_bytes)
    for _ in range(_READ_AGAIN):
        if _follow_each_other(first[1], second[1]):
            break
        head, size_bytes = _read_head(folder)  # an owner may have committed while it was being read
        first, second = _tail(head, 0), _tail(head, page_bytes)
    else:
        why = f"its header pages say transactions {first[1]} and {second[1]}, which never stand together"
        raise _corrupt(folder, why)
    last = max(first, second, key=lambda meta: meta[1])[0]
    return max(0, (last + 1) * page_bytes - size_bytes)


def check_file_system(folder: Path) -> None:
    """Refuse a network file system: its locks and memory maps do not hold what LMDB needs. Raises StoreUnavailable."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return  # Not Linux: the system does not tell.
    kind = file_system_of(folder.stat().st_dev, mounts)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StoreUnavailable(
            f"store {str(folder)!r} lies on a network file system ({kind}), where memory maps and locks are not "
            "reliable. Nothing was opened. Use a local disk, or pass allow_network_fs=True at your own risk.",
            path=str(folder),
        )


def file_system_of(device: int, mounts: str) -> str:
    """The type of the file system with that device number, from the text of mountinfo; empty where it is not there."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2:3] == [wanted]:
            return source.split()[0]
    return ""


def check_as_left(folder: Path, engine_folder: str, left: DataFile | None, *, machine_restarted: bool) -> None:
    """Before an owner opens: the header, and a check in a child unless the file is whole and as it was closed in peace.

    Raises as the three that it calls.
    """
    missing_bytes = check_header(folder)
    if missing_bytes or not is_as_left(folder, left):
        check_in_child(folder, engine_folder, machine_restarted=machine_restarted, missing_bytes=missing_bytes)


def check_in_child(folder: Path, engine_folder: str, *, machine_restarted: bool, missing_bytes: int = 0) -> None:
    """Let a short-lived process walk the file and open it: what kills that one would have killed this one.

    `engine_folder` is where the engine's package lies; `missing_bytes` is what `check_header` has returned. Raises
    StoreCorrupt with what was found; StoreUnavailable when the check itself could not be done.
    """
    truncated = f"{DATA_NAME} is truncated: {missing_bytes} bytes are missing; " if missing_bytes else ""
    if not sys.executable:
        _check_here(folder, truncated)
        return
    size_bytes = (folder / DATA_NAME).stat().st_size
    how = "ends" if missing_bytes else "walk" if machine_restarted or size_bytes <= _VERIFY_MAX_BYTES else "open"
    script = Path(__file__).with_name("lmdb_probe.py")
    command = [sys.executable, "-I", "-S", str(script), engine_folder, str(folder), how]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and script
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_CHECK_TIMEOUT_S + size_bytes / _CHECK_BYTES_PER_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreUnavailable(
            f"store {str(folder)!r} was not closed in peace and could not be checked: {error}. It was left untouched.",
            path=str(folder),
        ) from error
    said = done.stdout.decode("utf-8", "replace")
    if not said.startswith(CHECKING):
        _check_here(folder, truncated)
        return
    if done.returncode == FOUND_DAMAGE:
        raise _corrupt(folder, truncated + said.removeprefix(CHECKING).strip())
    if -done.returncode in _DEADLY:
        name = signal.Signals(-done.returncode).name
        raise _corrupt(folder, f"{truncated}reading it killed the process that tried ({name})")
    if done.returncode:
        why = done.stderr.decode("utf-8", "replace").strip()[-500:]
        raise StoreUnavailable(
            f"store {str(folder)!r} was not closed in peace and could not be checked (exit {done.returncode}): {why}. "
            "It was left untouched.",
            path=str(folder),
        )


def _check_here(folder: Path, truncated: str) -> None:
    """Where Python is embedded in another program there is no process to check in: only what must be known is checked.

    The walk reads bytes, and no file makes it fall over.
    """
    if truncated and (problems := lmdb_probe.walked(str(folder), ends=True)):
        raise _corrupt(folder, truncated + "; ".join(problems[:20]))


def data_file(folder: Path) -> DataFile:
    """How the data file looks now. Raises OSError."""
    stat = (folder / DATA_NAME).stat()
    head, _ = _read_head(folder)
    page_bytes = _identify(head, folder)[1]
    digest = hashlib.blake2b(head[: 2 * page_bytes], digest_size=16).hexdigest()
    return DataFile(stat.st_ino, stat.st_size, stat.st_mtime_ns, digest)


def is_as_left(folder: Path, left: DataFile | None) -> bool:
    """Whether nobody has touched the data file since it was closed in peace. Raises StoreCorrupt, OSError.

    Header pages that differ where nobody has written are damage: of two that follow each other all the same, the
    commit before would pass for the last one.
    """
    if left is None:
        return False
    now = data_file(folder)
    if not left.header or now == left:
        return now == msgspec.structs.replace(left, header=now.header)
    if now == msgspec.structs.replace(left, header=now.header):
        raise _corrupt(folder, "its header pages are not those with which it was closed, and nobody has written since")
    return False


def is_file(path: Path, stat: os.stat_result) -> bool:
    """Whether the file under that name is still the one of which `stat` was taken."""
    try:
        return os.path.samestat(path.stat(), stat)
    except OSError:
        return False


def make_folder(folder: Path, mode: int) -> None:
    """Make a folder and those above it that are missing; every name on the way is durable then. Raises OSError.

    A creation that was killed may have left names that are not: so those that were there are flushed as well, as far as
    this user may, up to the root of their file system.
    """
    way = [folder, *folder.parents]
    missing = {place for place in way if not place.exists()}
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    device = folder.stat().st_dev
    for place in way[:-1]:
        if place.parent.stat().st_dev != device:
            break
        try:
            sync_folder(place.parent)
        except OSError:
            if place in missing:
                raise


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _identify(head: bytes, folder: Path) -> tuple[int, int]:
    for place in _MAGIC_PLACES:
        magic, version, _, _, page_bytes = _META.unpack_from(head, place)
        if magic == _MAGIC:
            return version & 0xFFFF, page_bytes
        if magic == int.from_bytes(_MAGIC.to_bytes(4, "big"), "little"):
            raise _corrupt(folder, f"{DATA_NAME} was written on a machine of the other byte order")
    raise _corrupt(folder, f"{DATA_NAME} is no LMDB file")


def _tail(head: bytes, place: int) -> tuple[int, int]:
    last_page, transaction = _TAIL.unpack_from(head, place + _TAIL_PLACE)
    return last_page, transaction


def _read_head(folder: Path) -> tuple[bytes, int]:
    with (folder / DATA_NAME).open("rb") as file:
        return file.read(_LARGEST_PAGE + _TAIL_PLACE + _TAIL.size), os.fstat(file.fileno()).st_size


def _follow_each_other(first: int, second: int) -> bool:
    """Are these the numbers of the last two commits, each in its page? LMDB writes the header pages in turn.

    They have no checksum: a flipped bit in one number passes the commit before for the last one.
    """
    if first == second == 0:
        return True  # never written to
    return first % 2 == 0 and second % 2 == 1 and abs(first - second) == 1


def _corrupt(folder: Path, why: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"store {str(folder)!r} cannot be trusted: {why}. It was left untouched. Restore it from a backup, or move "
        "the folder away to begin anew.",
        path=str(folder),
    )
