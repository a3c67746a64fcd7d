"""What is persisted of a run: its record, its claim, its snapshots. Values only; stores know no type of the actors."""

from __future__ import annotations

import enum
import unicodedata
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from executus.stores.errors import InvalidRunId

MAX_RUN_ID_BYTES: Final = 200
MAX_RECORD_BYTES: Final = 16 * 1024 * 1024
"""The most that one stored value may hold; checked before encoding is accepted and before decoding is tried."""

MAX_FLIGHT_BYTES: Final = 8_064
"""The most that a flight record may hold: with its frame and LMDB's page header it takes two pages, 8 KiB."""

MAX_LABELS: Final = 64
"""The most labels of a run; checked before encoding, and by the decoder before it makes room for them."""

EPOCHS_PER_BOOT: Final = 1 << 32
"""An epoch is `boot_epoch * EPOCHS_PER_BOOT + n`: the boot epoch is committed when the store opens, so that
epochs drawn in memory never repeat and need no write of their own."""


class RunStatus(enum.StrEnum):
    """Where a run stands in the store."""

    RUNNING = "running"
    SUSPENDED = "suspended"
    PASSIVATED = "passivated"
    PARKED = "parked"
    STOPPED = "stopped"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    COMPLETED = "completed"
    KILLED = "killed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


LIVE: Final = frozenset({RunStatus.RUNNING, RunStatus.SUSPENDED, RunStatus.PARKED})
"""What a boot looks at; these and no others stand in the live index."""

RESUMABLE: Final = frozenset({RunStatus.STOPPED, RunStatus.FAILED, RunStatus.QUARANTINED})
"""What `resume()` by hand brings back."""

ENDED: Final = frozenset(
    {RunStatus.COMPLETED, RunStatus.KILLED, RunStatus.CANCELLED, RunStatus.TIMED_OUT, RunStatus.FAILED}
)
"""Ended with an outcome for whoever waits."""

TOLD_OF: Final = ENDED | {RunStatus.QUARANTINED}
"""What a parent is told of."""

ENDED_FOR_GOOD: Final = ENDED - RESUMABLE
"""Ended, and not brought back by hand either: its messages go."""


class Token(NamedTuple):
    """The fencing token: which execution of which life of which id may write."""

    run_id: str
    incarnation: int
    epoch: int


class ParentLink(msgspec.Struct, frozen=True, gc=False):
    """Who spawned a run, under which key, and what becomes of it when the parent has ended for good.

    `begun` is the parent's at that time: a child of an earlier beginning is none of the present one's.
    """

    run_id: str
    incarnation: int
    key: str
    on_parent_end: Literal["cancel", "kill"] = "cancel"
    begun: int = 0


class Due(msgspec.Struct, frozen=True, array_like=True):
    """When a passivated run is to be looked at: a moment of the wall clock, or the end of a duration that is counted.

    The store only sorts them; what time it is, and by which clock, is the reader's to say.
    """

    at_s: float
    by_wall: bool = False


ROUSED: Final = Due(0.0)
"""Due at once: something has happened that a passivated run is to be told of."""


class DueRun(msgspec.Struct, frozen=True):
    """A passivated run and one of its due times, in whole milliseconds, as the index of those has them."""

    run_id: str
    at_ms: int


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What `start` was given. Written once for an incarnation and never changed.

    `input` and `options` are opaque to the store. `created_at_s` is wall time.
    """

    run_id: str
    incarnation: int
    run_type: str
    input: bytes
    created_at_s: float
    labels: Annotated[dict[str, str], msgspec.Meta(max_length=MAX_LABELS)] = {}
    parent: ParentLink | None = None
    root_run_id: str
    options: bytes = b""


class RunClaim(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who may write for a run now, and where the run stands. A small row, rewritten at each claim and settling.

    `epoch` is the fencing token's; `attempt` counts executions from 1; `strikes` counts boots that found
    the run dead in the process's death without durable progress since. `begun` counts its beginnings from its input
    after the first: rounds of a permanent run, and those by hand. `deadline_at_s` and `remaining_s` (as of
    `claimed_at_s`) bound the whole incarnation; both None when there is no run time-out.
    """

    run_id: str
    incarnation: int
    epoch: int
    attempt: int
    status: RunStatus
    reason: str = ""
    strikes: int = 0
    begun: int = 0
    claimed_at_s: float = 0.0
    ended_at_s: float | None = None
    deadline_at_s: float | None = None
    remaining_s: float | None = None
    dues: tuple[Due, ...] | msgspec.UnsetType = msgspec.UNSET
    """Of a passivated run, when it is to be looked at; unset where it is not passivated or waits without an end."""

    @property
    def due_times(self) -> tuple[Due, ...]:
        """`dues`, empty where they are unset."""
        return () if self.dues is msgspec.UNSET else self.dues

    @property
    def token(self) -> Token:
        """The token that every write of this execution carries."""
        return Token(self.run_id, self.incarnation, self.epoch)


class Base(NamedTuple):
    """Under what chunks of a journal stand within their run: the epoch that began it, and a number of that epoch's."""

    epoch: int
    number: int


class Piece(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Items `first` to `end`, `end` not among them, of a journal: they stand in the chunks of `base`."""

    base: Base
    first: int
    end: int


Layout = tuple[Piece, ...]
"""Where the items of one journal stand: pieces that join, from 0 to its length."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`count` items of a journal from `position` on, opaque to the store: one row, found by base and position.

    `replaces` are positions of earlier chunks of this base whose items are in this one: their rows go. Not stored.
    """

    base: Base
    position: int
    count: int
    items: bytes
    replaces: tuple[int, ...] = ()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One checkpoint: the state after callback number `seq` and what comes next, both opaque to the store.

    `waiting` says that the run was idle in a `Wait`, so that a death meanwhile is not its fault. `consumed_through` is
    the number of the last durable message whose effect is in the state; unset where there is none, and then not stored.
    """

    run_id: str
    incarnation: int
    epoch: int
    seq: int
    schema_version: int
    taken_at_s: float
    state: bytes
    next: bytes
    waiting: bool = False
    consumed_through: int | msgspec.UnsetType = msgspec.UNSET
    layouts: tuple[Layout, ...] | msgspec.UnsetType = msgspec.UNSET
    """Of each journal in the state, in the order in which `state` counts them; unset where there is none."""

    @property
    def token(self) -> Token:
        """The token under which it was taken."""
        return Token(self.run_id, self.incarnation, self.epoch)

    @property
    def consumed(self) -> int:
        """`consumed_through`, 0 where it is unset."""
        return 0 if self.consumed_through is msgspec.UNSET else self.consumed_through

    @property
    def journals(self) -> tuple[Layout, ...]:
        """`layouts`, empty where they are unset."""
        return () if self.layouts is msgspec.UNSET else self.layouts


class StoredRun(msgspec.Struct, frozen=True):
    """A run as the store holds it, without its snapshots. `record` is None where its bytes are unreadable."""

    claim: RunClaim
    record: RunRecord | None


class EndedRun(msgspec.Struct, frozen=True):
    """A run that does not run any more, by the index of those. `ended_at_ms` is wall time."""

    run_id: str
    status: RunStatus
    ended_at_ms: int


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A durable message for one life of a run. `number` counts them from 1; `body` is opaque to the store.

    `sent_at_s` and `expires_at_s` are wall time; None never expires.
    """

    run_id: str
    incarnation: int
    number: int
    message_id: str
    body: bytes
    sent_at_s: float
    expires_at_s: float | None = None


class StoredMessage(msgspec.Struct, frozen=True):
    """A message as the store holds it. `message` is None where its bytes are unreadable."""

    number: int
    message: Message | None


class Inbox(msgspec.Struct, frozen=True, kw_only=True):
    """How far the messages of one life have got, by number.

    `appended` is the last one's. Those up to `consumed_through` are in the newest state, those up to `dropped_through`
    are gone, of those up to `forgotten_through` the ids as well.
    """

    incarnation: int
    appended: int = 0
    consumed_through: int = 0
    dropped_through: int = 0
    forgotten_through: int = 0

    @property
    def pending(self) -> int:
        """How many are still to be consumed."""
        return self.appended - max(self.consumed_through, self.dropped_through)


class LoadedSnapshot(msgspec.Struct, frozen=True):
    """The newest readable generation. `fell_back` says why it is not the newest written one, or is None.

    `chunks` are those of each of its journals, in order of position. Of two that hold an item the later one counts, and
    what is behind a journal's length is not its own.
    """

    snapshot: Snapshot
    fell_back: str | None = None
    chunks: tuple[tuple[Chunk, ...], ...] = ()


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a store for health checks. Sizes in bytes; `used_ratio` is of the map, 0 to 1."""

    kind: str
    path: str | None
    boot_epoch: int
    format_version: int
    runs: int
    live: int
    used_bytes: int
    map_size_bytes: int

    @property
    def used_ratio(self) -> float:
        """The share of the map in use."""
        return self.used_bytes / self.map_size_bytes if self.map_size_bytes else 0.0


def check_run_id(run_id: object) -> str:
    """Return the id in NFC, the form under which it is stored. Raises InvalidRunId, before any state changes."""
    if not isinstance(run_id, str):
        raise InvalidRunId(run_id, f"it is a {type(run_id).__name__}, not a str")
    normal = unicodedata.normalize("NFC", run_id)
    if not normal:
        raise InvalidRunId(run_id, "it is empty")
    try:
        size = len(normal.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidRunId(run_id, "it holds a lone surrogate, which is not valid UTF-8") from None
    if size > MAX_RUN_ID_BYTES:
        raise InvalidRunId(run_id, f"it is {size} bytes long, the most is {MAX_RUN_ID_BYTES}")
    for char in normal:
        if unicodedata.category(char) in {"Cc", "Zl", "Zp"}:
            raise InvalidRunId(run_id, f"it holds the control character {char!a}")
    return normal
