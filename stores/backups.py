"""Copies of a store: a backup beside the daemon that writes it, a restore of one, a compaction of a store at rest.

Each copy is one consistent view of the source, compacted. It is made under another name, opened and read to its end
like a store that was not closed in peace, made durable, and only then renamed into place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from executus.stores import lmdb_env, lmdb_meta, store_files
from executus.stores.checkup import RunCheckup
from executus.stores.errors import StoreCorrupt, StoreLocked, StoreUnavailable
from executus.stores.lmdb_reader import LmdbReader
from executus.stores.owner_lock import LOCK_NAME, OwnerLock, holder_of_lock, this_process, write_owner
from executus.stores.records import StoreInfo
from executus.stores.rows import Table

FILE_MODE: Final = 0o600
BOOTS_SKIPPED: Final = 1 << 16
"""A restored store counts its boots from so much later: no epoch that was drawn after the backup comes again."""
_SETTINGS: Final = lmdb_env.Settings("power", 64 * 1024**3)


class CopyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was copied. `boot_epoch` is the number of the last boot in the copy.

    `damaged` are runs of which something cannot be read, in the source as in the copy. `moved_aside` is where the store
    lies whose place a restore has taken.
    """

    path: str
    runs: int
    live: int
    boot_epoch: int
    size_bytes: int
    size_before_bytes: int
    damaged: list[RunCheckup]
    moved_aside: str | None = None


def backup(store: str | os.PathLike[str], to: str | os.PathLike[str], *, force: bool = False) -> CopyReport:
    """Copy a store into the folder `to`, beside the daemon that writes it or without one.

    The copy holds all that was committed when it began. While it is made the daemon reuses no page that it reads, so
    its file may grow. `to` must not be there, or with `force` it must be a backup, which is replaced when the new one
    is whole. Raises StoreUnavailable, StoreFull, StoreCorrupt (also where the copy does not hold what it should: then
    nothing is left of it), StoreTooNew; StoreLocked in the process that owns the store: call it from another one.
    """
    source, target = Path(store).absolute(), Path(to).absolute()
    _check_place(target, force=force)
    with _unfinished(target) as new:
        report = _copy(source, new, target)
        replaced = _aside(target) if target.exists() else None
        _into_place(new, target)
        if replaced is not None:
            shutil.rmtree(replaced)
        return report


def restore(source: str | os.PathLike[str], store: str | os.PathLike[str], *, force: bool = False) -> CopyReport:
    """Make a store of a backup, which stays as it is; the next runtime that opens it resumes what was live then.

    What was done after the backup is done again, with the idempotency keys that it had; runs that were started after it
    are unknown. `store` must not be there, or with `force` it is moved aside, which is refused while a daemon owns it.
    Raises as `backup`, and StoreLocked.
    """
    backed_up, target = Path(source).absolute(), Path(store).absolute()
    _check_place(target, force=force)
    with _unfinished(target) as new:
        report = _copy(backed_up, new, target)
        boot_epoch = report.boot_epoch + BOOTS_SKIPPED
        with lmdb_env.typed_errors(target, 0), _opened(new) as env:
            with env.write() as rows:
                rows.write({Table.META: lmdb_meta.boot_rows(boot_epoch)})
            env.sync()
        (new / lmdb_env.LOCK_NAME).unlink()
        moved = _aside(target) if target.exists() else None
        _into_place(new, target)
        return msgspec.structs.replace(report, boot_epoch=boot_epoch, moved_aside=None if moved is None else str(moved))


def compact(store: str | os.PathLike[str]) -> CopyReport:
    """Give back the room that deleted runs and old snapshots left in a store's file. No daemon may own it.

    Raises as `backup`, and StoreLocked beside a daemon, or another process that has it open to read: a backup is a
    compacted copy as well.
    """
    folder = Path(store).absolute()
    _check_source(folder)
    lock = OwnerLock(folder)
    previous = lock.acquire()
    try:
        for leftover in folder.glob(f"{store_files.NEW_PREFIX}*"):
            shutil.rmtree(leftover)
        new = folder / f"{store_files.NEW_PREFIX}{os.getpid()}"
        try:
            with lmdb_env.typed_errors(folder, 0):
                engine_folder, closed = lmdb_env.engine_folder(), previous.closed if previous else None
                store_files.check_as_left(folder, engine_folder, closed, machine_restarted=True)
                report = _copy_at_rest(folder, new)
                _refuse_beside_readers(folder)
                (new / store_files.DATA_NAME).replace(folder / store_files.DATA_NAME)
                # A copy counts its transactions anew: whoever opens it must not take their number from the old file.
                (folder / lmdb_env.LOCK_NAME).unlink(missing_ok=True)
                store_files.sync_folder(folder)
                write_owner(folder, msgspec.structs.replace(this_process(), closed=store_files.data_file(folder)))
            return report
        finally:
            shutil.rmtree(new, ignore_errors=True)
    finally:
        lock.release()


def _refuse_beside_readers(folder: Path) -> None:
    """Who reads the old file while the new one is in its place would share LMDB's lock file with its next owner."""
    reader_pid = _holder(folder, lmdb_env.LOCK_NAME)
    if reader_pid is not None:
        raise StoreLocked(
            f"store {str(folder)!r} is being read by pid {reader_pid}. Nothing was changed. Try again when it is done.",
            path=str(folder),
            owner_pid=reader_pid,
        )


def _copy(source: Path, new: Path, target: Path) -> CopyReport:
    """Copy a store, whoever owns it, into the folder `new`, which this makes."""
    _check_source(source)
    reader = LmdbReader(source)
    reader.open()
    try:
        with lmdb_env.typed_errors(target, 0):
            return _copy_by(reader.copy_to, source, new, target)
    finally:
        reader.close()


def _copy_at_rest(folder: Path, new: Path) -> CopyReport:
    """The same within the owner's lock."""
    env = lmdb_env.open_to_read(folder, lock=True)
    try:
        with env.read() as rows:
            lmdb_meta.check_format(rows, str(folder))
        return _copy_by(env.copy_to, folder, new, folder)
    finally:
        env.close()


def _copy_by(copy_to: Callable[[Path], tuple[int, int]], source: Path, new: Path, target: Path) -> CopyReport:
    """Copy, make it durable, and read it to its end."""
    store_files.make_folder(new, lmdb_env.FOLDER_MODE)
    before_bytes = (source / store_files.DATA_NAME).stat().st_size
    runs, live = copy_to(new)
    data = new / store_files.DATA_NAME
    data.chmod(FILE_MODE)
    _sync_file(data)
    store_files.sync_folder(new)
    damaged, found = _read_back(new)
    if (found.runs, found.live) != (runs, live):
        raise StoreCorrupt(
            f"the copy of store {str(source)!r} holds {found.runs} runs, {found.live} of them live, instead of {runs} "
            f"and {live}. It was removed again; the store is as it was. Check the disk of {str(target)!r}.",
            path=str(target),
        )
    return CopyReport(
        path=str(target),
        runs=runs,
        live=live,
        boot_epoch=found.boot_epoch,
        size_bytes=data.stat().st_size,
        size_before_bytes=before_bytes,
        damaged=damaged,
    )


def _read_back(new: Path) -> tuple[list[RunCheckup], StoreInfo]:
    """Walk the copy's pages in a process of its own, then open every frame of it."""
    reader = LmdbReader(new)
    reader.open()
    try:
        damaged = [checkup for checkup in reader.checkup() if checkup.damages]
        return damaged, reader.info()
    finally:
        reader.close()
        (new / lmdb_env.LOCK_NAME).unlink(missing_ok=True)


@contextmanager
def _unfinished(target: Path) -> Generator[Path, None, None]:
    """A name beside the target for what is not whole yet; nothing is left there."""
    new = target.with_name(f".{target.name}.new-{os.getpid()}")
    try:
        shutil.rmtree(new, ignore_errors=True)
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def _opened(folder: Path) -> Generator[lmdb_env.OpenEnvironment, None, None]:
    env = lmdb_env.open_environment(folder, _SETTINGS)
    try:
        yield env
    finally:
        env.close()


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _into_place(new: Path, target: Path) -> None:
    with lmdb_env.typed_errors(target, 0):
        new.rename(target)
        store_files.sync_folder(target.parent)


def _aside(target: Path) -> Path:
    """Move what is there to a name that is free. Nobody may own it."""
    with lmdb_env.typed_errors(target, 0):
        number = 1
        while (aside := target.with_name(f"{target.name}.before-{number}")).exists():
            number += 1
        target.rename(aside)
        return aside


def _check_source(source: Path) -> None:
    if not (source / store_files.DATA_NAME).is_file():
        raise StoreUnavailable(
            f"{str(source)!r} is no store: it has no {store_files.DATA_NAME}. Name the folder given to the runtime, or "
            "that of a backup.",
            path=str(source),
        )


def _check_place(target: Path, *, force: bool) -> None:
    """Refuse to write over what is there, unless it is a store that nobody has open and the caller insists."""
    if not target.exists() and not target.is_symlink():
        return
    if not force or not (target / store_files.DATA_NAME).is_file():
        raise StoreUnavailable(
            f"{str(target)!r} is there already. Nothing was written. Name another folder"
            + ("." if force else ", or force it, if it is an old copy."),
            path=str(target),
        )
    owner_pid = _holder(target, LOCK_NAME)
    if owner_pid is not None:
        raise StoreLocked(
            f"store {str(target)!r} is owned by pid {owner_pid}. Nothing was written. Stop that process first.",
            path=str(target),
            owner_pid=owner_pid,
        )


def _holder(folder: Path, name: str) -> int | None:
    try:
        return holder_of_lock(folder, name)
    except OSError:
        return None  # the system does not tell
