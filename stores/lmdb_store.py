"""The durable store: runs in one LMDB environment, owned by one process. Keys, transactions, space, durability.

Layout: one named table each for meta, claims, records, snapshots (two slots a run), outcomes, live, children, inboxes,
messages, their ids and more, see `rows.py`. The thread that opens is the one that writes and closes. Readers hold
`_gate`, so that the environment is never closed under them; the writer does not, so that no reader delays a commit.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, Literal

from msgspec.structs import replace

from executus.stores import codec, ended_rows, lmdb_env, lmdb_meta, store_files
from executus.stores.errors import (
    StoreClosed,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
)
from executus.stores.operations import Claim, Operation
from executus.stores.owner_lock import OwnerLock, boot_id, this_process, write_owner
from executus.stores.records import StoreInfo
from executus.stores.row_store import RowStore
from executus.stores.rows import Rows, Table, WritableRows

Profile = Literal["power", "power-1", "process"]

REFUSE_NEW_RUNS_RATIO: Final = 0.9
"""Above it a new incarnation is refused: near full even a delete needs pages, and those that live must go on saving."""
READER_CHECK_EVERY_S: Final = 60.0
REOPENINGS: Final = 3


class LmdbStore(RowStore):
    """A CheckpointStore in the folder `path`, which is made where it is missing.

    `profile`: "power" survives power loss; "power-1" may then lose the last commit, never more; "process" survives kill
    -9 and no more: after a power loss the store may be what it was some commits ago, be refused as damaged, have runs
    that are named as damaged, or, seldom, hold records of different commits. `python -m tests.harness power_loss` tells
    how often. `map_size_bytes` bounds the store's growth, costs address space only, and is halved where that is short.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        profile: Profile = "power",
        map_size_bytes: int = 64 * 1024**3,
        allow_network_fs: bool = False,
    ) -> None:
        super().__init__()
        self._folder = Path(path).absolute()
        self._settings = lmdb_env.Settings(profile, map_size_bytes)
        self._allow_network_fs = allow_network_fs
        self._lock = OwnerLock(self._folder)
        self._gate = threading.Lock()
        self._env: lmdb_env.OpenEnvironment | None = None
        self._next_reader_check_s = 0.0
        self._reopenings = 0

    def open(self) -> None:
        """See CheckpointStore."""
        self._check_process()
        if self._owner_pid is not None:
            raise StoreLocked(
                f"store {self._path!r} is open already. Close it first.", path=self._path, owner_pid=os.getpid()
            )
        with self._typed_errors():
            self._make_folder()
            if not self._allow_network_fs:
                store_files.check_file_system(self._folder)
            previous = self._lock.acquire()
            try:
                self._clear_leftovers()
                if not (self._folder / store_files.DATA_NAME).exists():
                    lmdb_env.create(self._folder, lmdb_meta.first_rows())
                else:
                    store_files.check_as_left(
                        self._folder,
                        lmdb_env.engine_folder(),
                        previous.closed if previous else None,
                        machine_restarted=previous is None or previous.boot_id != boot_id(),
                    )
                # Durable before the first write: a marker of a clean close must never survive one.
                write_owner(self._folder, this_process())
                self._owner_pid = os.getpid()
                self._open_environment()
                self._boot_epoch = self._draw_boot_epoch()
            except BaseException:
                self._owner_pid = None
                self._close_environment()
                self._lock.release()
                raise
        self._fences.clear()
        self._reopenings = 0
        self._next_reader_check_s = time.monotonic() + READER_CHECK_EVERY_S

    def close(self) -> None:
        """See CheckpointStore."""
        self._check_process()
        if self._owner_pid is None:
            return
        self._owner_pid = None
        try:
            if self._env is not None and self._is_in_place():
                with self._typed_errors():
                    self._env.sync()
                self._close_environment()
                write_owner(self._folder, replace(this_process(), closed=store_files.data_file(self._folder)))
        except (StoreError, OSError):
            pass  # Without the marker the next opening checks the file: slower, and right.
        finally:
            self._close_environment()
            self._lock.release()

    def info(self) -> StoreInfo:
        """See CheckpointStore."""
        self._check_usable()
        with self._view() as rows:
            assert isinstance(rows, lmdb_env.TransactionRows)
            return StoreInfo(
                kind="lmdb",
                path=self._path,
                boot_epoch=self._boot_epoch,
                format_version=codec.FORMAT_VERSION,
                runs=rows.count(Table.CLAIMS),
                live=rows.count(Table.LIVE),
                used_bytes=rows.used_bytes(),
                map_size_bytes=self._environment().map_size_bytes,
            )

    @contextmanager
    def _view(self) -> Generator[Rows, None, None]:
        with self._gate, self._typed_errors(), self._environment().read() as rows:
            yield rows

    @contextmanager
    def _transaction(self, operations: Sequence[Operation]) -> Generator[WritableRows, None, None]:
        self._check_files()
        try:
            if self._env is None and self._reopenings <= REOPENINGS:
                self._open_environment()  # A try before this one failed: the fault may be gone.
            with self._typed_errors():
                self._check_readers()
                self._check_room(operations)
                with self._environment().write() as rows:
                    yield rows
        except StoreUnavailable as error:
            if isinstance(error, lmdb_env.Panicked) or self._gave_up():
                self._reopen()
            raise
        self._reopenings = 0

    def _typed_errors(self) -> AbstractContextManager[None]:
        return lmdb_env.typed_errors(self._folder, self._settings.map_size_bytes)

    def _environment(self) -> lmdb_env.OpenEnvironment:
        env = self._env
        if env is None and self._owner_pid is None:
            raise StoreClosed(
                f"store {self._path!r} was closed meanwhile. Nothing was read or written.", path=self._path
            )
        if env is None:
            raise StoreUnavailable(
                f"store {self._path!r} is down: LMDB gave up more than {REOPENINGS} times in a row, or could not be "
                "opened anew. Close the store and open it again.",
                path=self._path,
            )
        return env

    def _gave_up(self) -> bool:
        """A commit failed: has LMDB given the environment up with it? Then nothing can be read either."""
        try:
            with self._view():
                return False
        except StoreError as error:
            return isinstance(error, lmdb_env.Panicked)

    def _reopen(self) -> None:
        self._fences.clear()
        self._close_environment()
        self._reopenings += 1
        if self._reopenings <= REOPENINGS:
            self._open_environment()

    def _open_environment(self) -> None:
        with self._gate, self._typed_errors():
            env = lmdb_env.open_environment(self._folder, self._settings)
            try:
                # What the system holds of the file goes to the disk before anything is written over. Without that, a
                # header page that was refused, and that LMDB took back, could still be there when the power goes.
                env.sync()
                with env.read() as rows:
                    lmdb_meta.check_format(rows, self._path)
                env.make_missing_tables()
            except BaseException:
                env.close()
                raise
            self._env = env

    def _close_environment(self) -> None:
        with self._gate:
            env, self._env = self._env, None
            if env is not None:
                env.close()

    def _make_folder(self) -> None:
        # Where there is a data file, whoever made it saw to the names that lead to it.
        if not (self._folder / store_files.DATA_NAME).exists():
            store_files.make_folder(self._folder, lmdb_env.FOLDER_MODE)

    def _clear_leftovers(self) -> None:
        """Remove what a creation left behind that was killed. The lock is held: nobody else is creating."""
        for leftover in self._folder.glob(f"{store_files.NEW_PREFIX}*"):
            shutil.rmtree(leftover)

    def _check_files(self) -> None:
        if not self._is_in_place():
            raise StoreUnavailable(
                f"store {self._path!r} was removed or replaced while it was open. Nothing was written to what is there "
                "now. Put the folder back, or close the store and open it again to begin anew.",
                path=self._path,
            )
        if self._env is not None and not self._env.lock_is_in_place():
            # Nobody else can hold the environment while the owner's lock is held: a new lock file is safe.
            self._close_environment()
            self._open_environment()

    def _is_in_place(self) -> bool:
        return self._lock.is_in_place() and (self._env is None or self._env.data_is_in_place())

    def _check_readers(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_reader_check_s:
            self._next_reader_check_s = now_s + READER_CHECK_EVERY_S
            self._environment().drop_dead_readers()

    def _check_room(self, operations: Sequence[Operation]) -> None:
        if not any(isinstance(op, Claim) and op.record is not None for op in operations):
            return
        environment = self._environment()
        if environment.reached_bytes() < REFUSE_NEW_RUNS_RATIO * environment.map_size_bytes:
            return
        with environment.read() as rows:
            used_bytes = rows.used_bytes()
        if used_bytes >= REFUSE_NEW_RUNS_RATIO * environment.map_size_bytes:
            raise StoreFull(
                f"store {self._path!r}: {used_bytes} of {environment.map_size_bytes} bytes are in use, new runs are "
                f"refused above {REFUSE_NEW_RUNS_RATIO:.0%}. Nothing was written. Delete runs, or raise "
                "map_size_bytes.",
                path=self._path,
                map_size_bytes=environment.map_size_bytes,
            )

    def _draw_boot_epoch(self) -> int:
        environment = self._environment()
        environment.drop_dead_readers()
        with environment.write() as rows:
            if not ended_rows.is_complete(rows):
                ended_rows.rebuild(rows)
            last = lmdb_meta.last_boot(rows)
            if last is None:
                # Each boot was a transaction of its own, so their number is no less than that of any boot; a copy
                # counts its transactions anew, and there the claims tell.
                last = max(environment.last_transaction(), lmdb_meta.last_claiming_boot(rows))
            rows.write({Table.META: lmdb_meta.boot_rows(last + 1)})
        if self._settings.profile != "power":
            environment.sync()  # Once an opening: a number that was drawn never comes again, in no profile.
        return last + 1

    @property
    def _path(self) -> str:
        return str(self._folder)
