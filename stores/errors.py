"""Errors of executus and of its stores. Each carries its facts as attributes; the text is for people."""

from __future__ import annotations


class ExecutusError(Exception):
    """Base of every error that executus raises on purpose."""


class InvalidRunId(ExecutusError, ValueError):
    """A run id that cannot be stored. Raised before any state changes."""

    def __init__(self, run_id: object, why: str) -> None:
        self.run_id = run_id
        self.why = why
        super().__init__(
            f"run id {run_id!a:.80} is not usable: {why}. Nothing was started. "
            "Use 1 to 200 bytes of UTF-8 text without control characters."
        )


class StoreError(ExecutusError):
    """Base of everything that can go wrong with a store. `path` names it where there is a file."""

    def __init__(self, message: str, *, path: str | None = None) -> None:
        self.path = path
        super().__init__(message)


class StoreUnavailable(StoreError):
    """It cannot be written or read now: an I/O error, a read-only or vanished file. May pass; retry the same write."""


class StoreFull(StoreUnavailable):
    """No room: the map or the disk is full. Saving comes back when room does."""

    def __init__(
        self, message: str, *, path: str | None = None, needed_bytes: int = 0, map_size_bytes: int = 0
    ) -> None:
        self.needed_bytes = needed_bytes
        self.map_size_bytes = map_size_bytes
        super().__init__(message, path=path)


class StoreLocked(StoreError):
    """Another process, or another runtime of this one, owns the store."""

    def __init__(self, message: str, *, path: str | None = None, owner_pid: int | None = None) -> None:
        self.owner_pid = owner_pid
        super().__init__(message, path=path)


class StoreCorrupt(StoreError):
    """The store's file as a whole is damaged or is no store. It was left untouched."""


class StoreTooNew(StoreError):
    """The store, or a record in it, was written in a newer format than this code knows. Left for newer code."""

    def __init__(self, message: str, *, path: str | None = None, found: int = 0, known: int = 0) -> None:
        self.found = found
        self.known = known
        super().__init__(message, path=path)


class StoreClosed(StoreError):
    """The store is not open."""


class StoreForked(StoreError):
    """The store was opened by a parent process. A forked child must open its own runtime on its own store."""


class RecordCorrupt(StoreError):
    """One record's bytes fail their checks (magic, key, checksum, shape). Its bytes were left as they are."""

    def __init__(self, message: str, *, run_id: str, what: str, path: str | None = None) -> None:
        self.run_id = run_id
        self.what = what
        super().__init__(message, path=path)


class RecordTooLarge(StoreError):
    """One record is over the size cap. Nothing of it was written."""

    def __init__(self, message: str, *, run_id: str, what: str, size_bytes: int, cap_bytes: int) -> None:
        self.run_id = run_id
        self.what = what
        self.size_bytes = size_bytes
        self.cap_bytes = cap_bytes
        super().__init__(message)
