"""The shipped MemoryStore as a disk that outlives its process, and the faulty way there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from executus.actors.definition import decode_next
from executus.actors.run import Waiting
from executus.stores import (
    Accepted,
    DueRun,
    EndedRun,
    LoadedSnapshot,
    MemoryStore,
    Operation,
    ParentLink,
    RunClaim,
    RunStatus,
    Settle,
    StoredMessage,
    StoredRun,
    StoreFull,
    StoreInfo,
    StoreUnavailable,
    Verdict,
)
from tests.simulation.invariants import Ledger
from tests.simulation.scheduler import Mortal, ProcessDied, Scheduler

Fault = Literal["refused", "full", "unknown", "crash", "crash_after"]
FAULTS: tuple[Fault, ...] = ("refused", "full", "unknown", "crash", "crash_after")


@dataclass(slots=True)
class Weather:
    """How the disk is just now.

    `fault_p` is the chance of each commit to fail with one of `faults`, `read_fault_p` that of each read; `death` kills the process in
    the middle of the next commit, before or after it is applied; `slow_s` is the longest that a commit takes.
    """

    fault_p: float = 0.0
    faults: tuple[Fault, ...] = FAULTS
    read_fault_p: float = 0.0
    death: Literal["before", "after"] | None = None
    slow_s: float = 0.0
    broken_at_s: float = -1e9
    slow_commits: int = 0

    @property
    def is_fair(self) -> bool:
        """Whether a commit is through at once."""
        return not self.slow_s and not self.slow_commits

    def calm(self) -> None:
        """Nothing goes wrong any more."""
        self.fault_p = self.read_fault_p = self.slow_s = 0.0
        self.death = None


class FailingStore:
    """`CheckpointStore` of one simulated process on a disk that outlives it."""

    def __init__(
        self, disk: MemoryStore, process: Mortal, scheduler: Scheduler, weather: Weather, ledger: Ledger
    ) -> None:
        self._disk = disk
        self._process = process
        self._scheduler = scheduler
        self._weather = weather
        self._ledger = ledger
        self._rng = scheduler.rng

    @property
    def boot_epoch(self) -> int:
        return self._disk.boot_epoch

    def open(self) -> None:
        self._reach()
        self._may_fail_reading()
        self._disk.open()

    def close(self) -> None:
        if not self._process.dead:
            self._disk.close()

    def commit(self, operations: Sequence[Operation], go_on: Callable[[], None] = lambda: None) -> list[Verdict]:
        self._reach()
        weather, rng = self._weather, self._rng
        if weather.slow_s:
            weather.slow_commits += 1
            try:
                self._scheduler.park(self._scheduler.now_s + rng.random() * weather.slow_s, None)
            finally:
                weather.slow_commits -= 1
                weather.broken_at_s = self._scheduler.now_s
        else:
            self._scheduler.switch_point()
        death, weather.death = weather.death, None
        if death == "before":
            self._die("before a commit")
        fault = rng.choice(weather.faults) if weather.fault_p and rng.random() < weather.fault_p else None
        if fault is not None:
            weather.broken_at_s = self._scheduler.now_s
            self._ledger.note("disk", f"{fault}: {len(operations)} operations")
        if fault == "refused":
            raise StoreUnavailable("simulated: the disk refuses")
        if fault == "full":
            raise StoreFull("simulated: the disk is full")
        if fault == "crash":
            raise RuntimeError("simulated: the store actor stumbles before a commit")
        for op in operations:
            if isinstance(op, Settle) and op.status is RunStatus.PASSIVATED:
                self._process.tempt(op.token.run_id)  # type: ignore[attr-defined]
        verdicts = self._disk.commit(operations)
        go_on()
        self._ledger.committed(operations, verdicts)
        for op, verdict in zip(operations, verdicts, strict=True):
            if isinstance(op, Settle) and op.status is RunStatus.PASSIVATED and isinstance(verdict, Accepted):
                self._check_dues(op)
        if death == "after":
            self._die("after a commit")
        if fault == "unknown":
            raise StoreUnavailable("simulated: applied, and then the disk did not answer")
        if fault == "crash_after":
            raise RuntimeError("simulated: the store actor stumbles after a commit")
        self._scheduler.switch_point()
        return verdicts

    def _check_dues(self, op: Settle) -> None:
        """Who rests is due when what it waits for is over, by the state that is stored, and no later."""
        loaded = self._disk.load_snapshot(op.token.run_id)
        following = None if loaded is None else decode_next(loaded.snapshot.next)
        if isinstance(following, Waiting) and following.deadline_at_s is not None:
            by_wall, at_s = following.moment_s is not None, following.deadline_at_s
            in_time = any(due.by_wall is by_wall and due.at_s <= at_s + 0.001 for due in op.dues)
            self._ledger.check(in_time, f"{op.token.run_id} rests until {op.dues}, and waits until {at_s}, {by_wall=}")

    def load(self, run_id: str) -> StoredRun | None:
        self._read()
        return self._disk.load(run_id)

    def load_snapshot(self, run_id: str) -> LoadedSnapshot | None:
        self._read()
        return self._disk.load_snapshot(run_id)

    def load_outcome(self, run_id: str) -> bytes | None:
        self._read()
        return self._disk.load_outcome(run_id)

    def load_flight(self, run_id: str) -> bytes | None:
        self._read()
        return self._disk.load_flight(run_id)

    def live(self) -> list[RunClaim]:
        self._read()
        return self._disk.live()

    def damaged(self) -> list[str]:
        self._read()
        return self._disk.damaged()

    def scan(self, *, after: str | None = None, limit: int = 1000) -> list[StoredRun]:
        self._read()
        return self._disk.scan(after=after, limit=limit)

    def children(self, run_id: str) -> list[tuple[str, ParentLink]]:
        self._read()
        return self._disk.children(run_id)

    def ended(self, status: RunStatus, *, after: EndedRun | None = None, limit: int = 1000) -> list[EndedRun]:
        self._read()
        return self._disk.ended(status, after=after, limit=limit)

    def due(self, *, by_wall: bool, after: DueRun | None = None, limit: int = 1000) -> list[DueRun]:
        self._read()
        return self._disk.due(by_wall=by_wall, after=after, limit=limit)

    def count_ended(self) -> dict[RunStatus, int]:
        self._read()
        return self._disk.count_ended()

    def parent_link(self, run_id: str) -> ParentLink | None:
        self._read()
        return self._disk.parent_link(run_id)

    def messages(self, run_id: str) -> list[StoredMessage]:
        self._read()
        return self._disk.messages(run_id)

    def info(self) -> StoreInfo:
        self._read()
        return self._disk.info()

    def _reach(self) -> None:
        if self._process.dead:
            raise ProcessDied

    def _read(self) -> None:
        self._reach()
        self._scheduler.switch_point()
        self._may_fail_reading()

    def _may_fail_reading(self) -> None:
        if self._weather.read_fault_p and self._rng.random() < self._weather.read_fault_p:
            self._weather.broken_at_s = self._scheduler.now_s
            raise StoreUnavailable("simulated: the disk does not read")

    def _die(self, where: str) -> None:
        self._process.die(where)  # type: ignore[attr-defined]
        raise ProcessDied
