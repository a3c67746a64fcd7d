"""`Blob`: bytes in a state or in an item of a journal that are stored once, by their content."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from executus.actors.journal import Journal, Log, journal_of

INLINE_BYTES: Final = 64 * 1024
"""What is no larger is stored where it stands: a row of its own is worth it for images and the like."""

INLINE: Final = 0x42
"""msgpack extension type of a blob's bytes."""
REFERENCE: Final = 0x43
"""msgpack extension type of a blob's digest."""


class Blob:
    """Immutable bytes, an image for instance. Equal where the bytes are; hashable.

    Over 64 KiB they are stored once for a run, however often it saves and wherever in its state they are, and dropped
    when no snapshot needs them any more. In memory they are whole.
    """

    __slots__ = ("_log", "data")

    def __init__(self, data: bytes) -> None:
        if not isinstance(data, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]  # at run time anything may come
            raise TypeError(f"a Blob is made of bytes, not of {type(data).__name__}")
        self.data: Final = data
        self._log: Log[bytes] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __bytes__(self) -> bytes:
        return self.data

    def __eq__(self, other: object) -> bool:
        return self.data == other.data if isinstance(other, Blob) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.data)

    def __repr__(self) -> str:
        return f"<Blob of {len(self.data)} bytes>"

    def __copy__(self) -> Blob:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Blob:
        return self

    def __reduce__(self) -> tuple[type[Blob], tuple[bytes]]:
        return (Blob, (self.data,))

    def _kept_as(self) -> Log[bytes]:
        # Two threads may both make it, of the same bytes: either will do, for it is found by its content.
        log = self._log
        if log is None:
            log = self._log = Log([self.data], grows=False, content=hashlib.sha256(self.data).digest())
        return log


# --- for what stores blobs ---


def journal_of_blob(blob: Blob) -> Journal[bytes]:
    """The journal of one item as which a blob is stored; the content of its log is the digest."""
    return journal_of(blob._kept_as(), 1)  # noqa: SLF001 - for its own package


def blob_of_log(log: Log[bytes]) -> Blob:
    """The blob that was read as this log, so that it counts as the one that is stored."""
    blob = Blob(log.items[0])
    blob._log = log  # noqa: SLF001 - its other constructor
    return blob


def encoded_blob(blob: Blob, larger: list[Blob]) -> msgspec.msgpack.Ext:
    """What stands for a blob in an item: its bytes; or its digest, and `larger` gets it."""
    if len(blob) <= INLINE_BYTES:
        return msgspec.msgpack.Ext(INLINE, blob.data)
    larger.append(blob)
    content = blob._kept_as().content  # noqa: SLF001 - for its own package
    assert content is not None
    return msgspec.msgpack.Ext(REFERENCE, content)
