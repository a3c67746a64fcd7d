"""The store's own numbers, its format and its last boot; two copies of each: one flipped bit must not cost a store."""

from __future__ import annotations

from typing import Final

from executus.stores import codec
from executus.stores.errors import RecordCorrupt, RecordTooLarge, StoreCorrupt, StoreTooNew
from executus.stores.records import EPOCHS_PER_BOOT
from executus.stores.rows import SEPARATOR, Rows, Table

_FORMAT: Final = "format"
_BOOT: Final = "boot"
_PAGE: Final = 1000


def first_rows() -> dict[bytes, bytes | None]:
    """What an empty store begins with."""
    return _numbered(_FORMAT, codec.FORMAT_VERSION) | boot_rows(0)


def boot_rows(boot_epoch: int) -> dict[bytes, bytes | None]:
    """The rows that say which boot was the last."""
    return _numbered(_BOOT, boot_epoch)


def last_boot(rows: Rows) -> int | None:
    """The number of the last boot; None where no copy can be read."""
    return _read_number(rows, _BOOT)


def last_claiming_boot(rows: Rows) -> int:
    """The last boot under which a run was claimed that is still there, 0 without any. Reads every claim."""
    last, first = 0, b""
    while page := rows.page(Table.CLAIMS, first, None, _PAGE):
        for key, data in page:
            try:
                last = max(last, codec.decode_claim(data, key).epoch // EPOCHS_PER_BOOT)
            except (RecordCorrupt, RecordTooLarge, StoreTooNew):
                continue
        first = page[-1][0] + SEPARATOR
    return last


def check_format(rows: Rows, path: str) -> None:
    """Refuse what this code cannot read; it is left as it is. Raises StoreCorrupt, StoreTooNew."""
    found = _read_number(rows, _FORMAT)
    if found is None:
        raise StoreCorrupt(
            f"store {path!r}: no copy of its format row can be read. It was left untouched. "
            "Restore it from a backup, or move the folder away to begin anew.",
            path=path,
        )
    if found > codec.FORMAT_VERSION:
        raise StoreTooNew(
            f"store {path!r} is in format {found}, this code knows up to {codec.FORMAT_VERSION}. It was left "
            "untouched. Deploy the newer code that wrote it.",
            path=path,
            found=found,
            known=codec.FORMAT_VERSION,
        )


def damaged_copies(rows: Rows) -> list[str]:
    """Which copies of the numbers cannot be read, and why. One of each is enough."""
    found: list[str] = []
    for key in [*_numbered(_FORMAT, 0), *_numbered(_BOOT, 0)]:
        data = rows.get(Table.META, key)
        try:
            if data is None:
                found.append(f"{key.decode()} is not there")
            else:
                codec.decode_number(data, key)
        except (RecordCorrupt, RecordTooLarge, StoreTooNew) as error:
            found.append(str(error))
    return found


def _numbered(name: str, number: int) -> dict[bytes, bytes | None]:
    keys = [f"{name}-{copy}".encode() for copy in (1, 2)]
    return {key: codec.encode_number(number, key) for key in keys}


def _read_number(rows: Rows, name: str) -> int | None:
    numbers: list[int] = []
    for key in _numbered(name, 0):
        data = rows.get(Table.META, key)
        try:
            if data is not None:
                numbers.append(codec.decode_number(data, key))
        except RecordCorrupt:
            continue
    return max(numbers, default=None)
