"""A store read from outside: beside the daemon that owns it, or after its death. Writes nothing, owns nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from executus.stores import codec, lmdb_env, lmdb_meta, store_files
from executus.stores.errors import StoreClosed, StoreCorrupt, StoreUnavailable
from executus.stores.owner_lock import boot_id, is_running, read_owner, refuse_in_owner
from executus.stores.records import StoreInfo
from executus.stores.row_reader import RowReader
from executus.stores.rows import Rows, Table


class LmdbReader(RowReader):
    """The reading methods of a CheckpointStore over the folder of an LmdbStore, in any process but the owner's.

    `boot_epoch` is that of the last owner. `owner_pid` is the daemon that owned the store when it was opened here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._folder = Path(path).absolute()
        self._gate = threading.Lock()
        self._env: lmdb_env.ReadableEnvironment | None = None
        self.owner_pid: int | None = None

    def open(self) -> None:
        """Open to read.

        Raises StoreUnavailable where there is no store, StoreCorrupt, StoreTooNew; StoreLocked in the owner's process.
        """
        self._check_process()
        if self._env is not None:
            return
        with self._typed_errors():
            self._check_there()
            # LMDB must not be opened twice in one process: closing one drops the locks of the other.
            refuse_in_owner(self._folder)
            store_files.check_header(self._folder)
            self.owner_pid = self._live_owner()
            self._check_after_unclean_exit()
            env = lmdb_env.open_to_read(self._folder, lock=self._takes_slot())
            try:
                with env.read() as rows:
                    lmdb_meta.check_format(rows, self._path)
                    self._boot_epoch = lmdb_meta.last_boot(rows) or 0
            except BaseException:
                env.close()
                raise
        self._env, self._owner_pid = env, os.getpid()

    def close(self) -> None:
        """Let the files go. Idempotent."""
        self._check_process()
        with self._gate:
            env, self._env, self._owner_pid = self._env, None, None
            if env is not None:
                env.close()

    def info(self) -> StoreInfo:
        """See CheckpointStore."""
        self._check_usable()
        with self._view() as rows:
            assert isinstance(rows, lmdb_env.TransactionRows)
            assert self._env is not None
            return StoreInfo(
                kind="lmdb",
                path=self._path,
                boot_epoch=self._boot_epoch,
                format_version=codec.FORMAT_VERSION,
                runs=rows.count(Table.CLAIMS),
                live=rows.count(Table.LIVE),
                used_bytes=rows.used_bytes(),
                map_size_bytes=self._env.map_size_bytes,
            )

    @contextmanager
    def _view(self) -> Generator[Rows, None, None]:
        with self._gate, self._typed_errors():
            if self._env is None:
                raise StoreClosed(f"store {self._path!r} was closed meanwhile. Nothing was read.", path=self._path)
            with self._env.read() as rows:
                yield rows

    def _check_there(self) -> None:
        if not self._folder.exists():
            raise StoreUnavailable(
                f"there is no store at {self._path!r}. Check the path; a runtime makes it when it opens.",
                path=self._path,
            )
        if not (self._folder / store_files.DATA_NAME).is_file():
            raise StoreUnavailable(
                f"{self._path!r} is no store: it has no {store_files.DATA_NAME}. Name the folder given to the runtime.",
                path=self._path,
            )

    def _live_owner(self) -> int | None:
        owner = read_owner(self._folder)
        return owner.pid if owner is not None and owner.closed is None and is_running(owner) else None

    def _check_after_unclean_exit(self) -> None:
        """A file that was not closed in peace is walked in a child first, as by any new owner."""
        last = read_owner(self._folder)
        if self.owner_pid is not None or (last is not None and last.closed == store_files.data_file(self._folder)):
            return
        restarted = last is None or last.boot_id != boot_id()
        try:
            store_files.check_in_child(self._folder, lmdb_env.engine_folder(), machine_restarted=restarted)
        except StoreCorrupt:
            self.owner_pid = self._live_owner()
            if self.owner_pid is None:
                raise
            # A daemon has opened it meanwhile, after the same check: the file was written to under ours.

    def _takes_slot(self) -> bool:
        """Whether to take a slot in the readers' table: needed beside an owner only, had only where one can write."""
        if os.access(self._folder / lmdb_env.LOCK_NAME, os.R_OK | os.W_OK):
            return True
        if self.owner_pid is not None:
            raise StoreUnavailable(
                f"store {self._path!r} is owned by pid {self.owner_pid}, and {lmdb_env.LOCK_NAME} cannot be written: "
                "without a place in it the daemon would write over what is being read. Nothing was read. Try as the "
                "daemon's user, or when the daemon has ended.",
                path=self._path,
            )
        return False

    def _typed_errors(self) -> AbstractContextManager[None]:
        return lmdb_env.typed_errors(self._folder, 0 if self._env is None else self._env.map_size_bytes)

    @property
    def _path(self) -> str:
        return str(self._folder)
