"""Where things stand in a store: tables, keys, and the two small doors through which the rules reach them."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, Protocol

from executus.stores.errors import InvalidRunId
from executus.stores.records import MAX_RUN_ID_BYTES, Base, check_run_id

SEPARATOR: Final = b"\0"
"""Between the parts of a key; no run id holds it."""
SLOTS: Final = (0, 1)
"""Two generations of snapshots a run, written in turn."""


class Table(enum.StrEnum):
    """The tables, by the names under which they are stored."""

    META = "meta"
    CLAIMS = "claims"
    RECORDS = "records"
    SNAPSHOTS = "snapshots"
    OUTCOMES = "outcomes"
    LIVE = "live"
    CHILDREN = "children"
    INBOXES = "inboxes"
    MESSAGES = "messages"
    MESSAGE_IDS = "message-ids"
    JOURNALS = "journals"
    GONE_CHILDREN = "gone-children"
    FLIGHTS = "flights"
    ENDED_COMPLETED = "ended-completed"
    ENDED_FAILED = "ended-failed"
    ENDED_QUARANTINED = "ended-quarantined"
    ENDED_KILLED = "ended-killed"
    ENDED_CANCELLED = "ended-cancelled"
    ENDED_TIMED_OUT = "ended-timed-out"
    ENDED_STOPPED = "ended-stopped"
    PASSIVATED = "passivated"
    DUE = "due"


FIRST_TABLES: Final = frozenset(
    {Table.META, Table.CLAIMS, Table.RECORDS, Table.SNAPSHOTS, Table.OUTCOMES, Table.LIVE, Table.CHILDREN}
)
"""Those that every store has. One written before there were others gets them when it is opened to write."""


Writes = dict[Table, dict[bytes, bytes | None]]
"""What a commit changes, by table and key; None deletes."""


class Rows(Protocol):
    """Reading, within one consistent view. Every value owns its bytes."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value under a key, or None."""
        ...

    def get_many(self, table: Table, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there."""
        ...

    def page(self, table: Table, first: bytes, below: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """At most `limit` pairs in order of key, from `first` on, under `below`."""
        ...

    def keys(self, table: Table, first: bytes, below: bytes | None, limit: int) -> list[bytes]:
        """The keys of such a page. No value is touched: some are megabytes long."""
        ...

    def count(self, table: Table) -> int:
        """How many rows a table has."""
        ...


class WritableRows(Rows, Protocol):
    """The same view with a write of everything at once."""

    def write(self, writes: Writes) -> None:
        """Make the changes part of this transaction."""
        ...


def run_key(run_id: str) -> bytes:
    """The key of a run. Raises InvalidRunId for an id that did not come through `check_run_id`."""
    try:
        if run_id.isascii() and run_id.isprintable() and 0 < len(run_id) <= MAX_RUN_ID_BYTES:
            return run_id.encode()
    except AttributeError:
        pass
    if check_run_id(run_id) != run_id:
        raise InvalidRunId(run_id, "it is not in NFC, pass it through check_run_id first")
    return run_id.encode()


def run_id_of(key: bytes) -> str:
    """The id that a run's key stands for; keys that no longer are UTF-8 come out escaped."""
    return key.decode("utf-8", "backslashreplace")


def snapshot_key(key: bytes, slot: int) -> bytes:
    """The key of one generation of a run."""
    return b"%b\0%d" % (key, slot)


def child_key(parent: bytes, child: bytes) -> bytes:
    """The key of a child's link below its parent."""
    return b"%b\0%b" % (parent, child)


def message_key(key: bytes, number: int) -> bytes:
    """The key of one message of a run; keys are in order of number."""
    return b"%b\0%016x" % (key, number)


def message_number(key: bytes) -> int:
    """The number of the message that stands under this key."""
    return int(key.rpartition(SEPARATOR)[2], 16)


def message_id_key(key: bytes, message_id: str) -> bytes:
    """The key under which an id is remembered."""
    return b"%b\0%b" % (key, blake2b(message_id.encode(), digest_size=16).hexdigest().encode())


def chunk_key(key: bytes, base: Base, position: int | None) -> bytes:
    """The key of a journal's chunk, in order of base and position; None is behind every position of the base."""
    return b"%b\0%016x%08x%b" % (key, *base, b"~" if position is None else b"%016x" % position)


def chunk_base(key: bytes) -> Base:
    """The base of the chunk that stands under this key."""
    numbers = key.rpartition(SEPARATOR)[2]
    return Base(int(numbers[:16], 16), int(numbers[16:24], 16))


def range_below(key: bytes) -> tuple[bytes, bytes]:
    """The first key below a run (its children's links, its messages), and the one below which they all are."""
    return key + b"\0", key + b"\1"
