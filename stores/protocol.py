"""The contract of every store. Each sentence below is a test in `executus.stores.testing`, over every store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from executus.stores.operations import Operation, Verdict
from executus.stores.records import (
    DueRun,
    EndedRun,
    LoadedSnapshot,
    ParentLink,
    RunClaim,
    RunStatus,
    StoredMessage,
    StoredRun,
    StoreInfo,
)


class CheckpointStore(Protocol):
    """Keeps claims, records, snapshots, outcomes and messages of runs.

    `open`, `commit` and `close` are called by one thread, the writer. Everything else may be called by any thread while
    the store is open, sees the last commit, and returns values that own their bytes.
    Every method but `open` and `close` raises StoreClosed on a store that is not open, and every one raises StoreForked
    in a child of the process that opened it. Ids come out of `check_run_id`: any other raises InvalidRunId.
    """

    @property
    def boot_epoch(self) -> int:
        """This opening's number: greater than that of every opening before, committed before `open` returns."""
        ...

    def open(self) -> None:
        """Take ownership and draw a boot epoch.

        Raises StoreLocked (on a store that is open, too), StoreCorrupt, StoreTooNew, StoreUnavailable, StoreFull.
        """
        ...

    def close(self) -> None:
        """Give up ownership. Idempotent. What was committed stays."""
        ...

    def commit(self, operations: Sequence[Operation], flushing: Callable[[], None] | None = None) -> list[Verdict]:
        """Apply the operations in order, in one atomic transaction, and return a verdict for each.

        `flushing` is called when everything is handed to the engine and only the disk's flush is left: from there on
        the commit needs the interpreter no more. It must not raise.

        A later operation sees the effects of the earlier ones. A refused one changes nothing and hinders no other. When
        this returns, what was accepted is durable to the store's profile. When it raises StoreUnavailable (StoreFull
        among them) the outcome is unknown: all of the accepted operations happened or none did, and the same call may
        be made again. Raises RecordTooLarge, InvalidRunId, TypeError (what should be bytes is not) or ValueError (too
        many labels, a number that fits no frame) before anything is written; the other operations may be committed
        without it. So does StoreFull where it refuses new incarnations to keep room for those that live.
        """
        ...

    def load(self, run_id: str) -> StoredRun | None:
        """The claim and record of a run, or None where there is none.

        A damaged record is None inside; a damaged claim raises RecordCorrupt.
        """
        ...

    def load_snapshot(self, run_id: str) -> LoadedSnapshot | None:
        """The newest readable snapshot of the current incarnation, or None where none was saved.

        With the chunks of its journals. A generation that is damaged, or lacks an item of a journal, is passed over for
        the older one, which `fell_back` tells. Raises RecordCorrupt when something was saved and no generation, or not
        the claim, can be read.
        """
        ...

    def load_outcome(self, run_id: str) -> bytes | None:
        """The outcome kept by the last Settle or Claim that carried one, or None. Raises RecordCorrupt."""
        ...

    def load_flight(self, run_id: str) -> bytes | None:
        """The flight record kept by the last Claim, Settle or SetAside that carried one, or None. Raises RecordCorrupt.

        Nothing else depends on it: a damaged one is in nobody's way.
        """
        ...

    def live(self) -> list[RunClaim]:
        """The claims of all runs in a LIVE status, in order of id; costs what is live, not what was ever stored.

        A live run whose claim is damaged is left out here and named by `damaged()`.
        """
        ...

    def damaged(self) -> list[str]:
        """Ids in the live index whose claim row cannot be read."""
        ...

    def scan(self, *, after: str | None = None, limit: int = 1000) -> list[StoredRun]:
        """A page of all runs in order of id, beginning behind `after`. Damaged claims are left out."""
        ...

    def children(self, run_id: str) -> list[tuple[str, ParentLink]]:
        """(Child id, link) of a run's children whose end it has not taken in, in order of id, of any incarnation."""
        ...

    def messages(self, run_id: str) -> list[StoredMessage]:
        """The messages of a run's current life, in order of number, that not every readable generation has consumed.

        So the newest snapshot may have consumed the first of them: its `consumed_through` says so. A damaged one is
        None inside.
        """
        ...

    def ended(self, status: RunStatus, *, after: EndedRun | None = None, limit: int = 1000) -> list[EndedRun]:
        """A page of the runs in a status that is not LIVE, the longest ended first, beginning behind `after`.

        Costs the page, not the store. Of a quarantined or stopped run the time is that of its coming to rest; where the
        store was not told, that of its last claim. A run whose claim is damaged may be left out.
        """
        ...

    def count_ended(self) -> dict[RunStatus, int]:
        """How many runs are in each status that is not LIVE; costs the same for any number."""
        ...

    def due(self, *, by_wall: bool, after: DueRun | None = None, limit: int = 1000) -> list[DueRun]:
        """A page of the passivated runs by their due times of one kind, the earliest first, beginning behind `after`.

        Costs the page, not the store. A run whose claim or row is damaged may be left out.
        """
        ...

    def parent_link(self, run_id: str) -> ParentLink | None:
        """A run's link to its parent while `children()` of that parent names it; else None. Raises RecordCorrupt."""
        ...

    def info(self) -> StoreInfo:
        """Facts for health checks."""
        ...
