"""What the demo's daemon reports, and the ledger in which its parent keeps count. Pure: times come in."""

from __future__ import annotations

import msgspec

# --- what the daemon reports ------------------------------------------------------------------------------------------


class Begun(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A run began from its input."""

    run_id: str


class StepBegun(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A step was begun, at file number `at`. Reported at its start, so that repeating one that was cut off counts."""

    run_id: str
    at: int


class Saved(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Snapshot `seq` was acknowledged as durable."""

    run_id: str
    seq: int


class Restored(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A run has the state back that it had after callback `seq`."""

    run_id: str
    seq: int


class Ended(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A run has ended."""

    run_id: str
    status: str
    durable: bool


Report = Begun | StepBegun | Saved | Restored | Ended


# --- what the parent makes of it --------------------------------------------------------------------------------------


class Kill(msgspec.Struct, kw_only=True):
    """One SIGKILL and what came of it. `newest` has the acknowledged seq of each interrupted run, 0 without one."""

    pid: int
    at_s: float
    share: float
    oldest_snapshot_s: float
    newest: dict[str, int]
    resumed_from: dict[str, int] = {}
    back_after_s: float | None = None

    @property
    def kept(self) -> int:
        """Steps that did not have to be repeated: `begin` is the first callback and no step."""
        return sum(max(0, seq - 1) for seq in self.resumed_from.values())

    @property
    def lost(self) -> list[str]:
        """Runs that came back from something older than what had been acknowledged, or not at all."""
        return sorted(run_id for run_id, seq in self.newest.items() if self.resumed_from.get(run_id, -1) < seq)


class Ledger:
    """Counts over all lives of the daemon. `steps` is the number of files that each run reads."""

    def __init__(self, steps: dict[str, int]) -> None:
        self.steps = steps
        self.kills: list[Kill] = []
        self.ended: dict[str, Ended] = {}
        self.steps_begun = 0
        self.revived: set[str] = set()
        """Runs that did something after their end had been acknowledged: there must be none."""
        self._seen: set[tuple[str, int]] = set()
        self._saved: dict[str, tuple[int, float]] = {}
        self._saved_steps = 0
        self._started_at_s = 0.0

    # --- the daemon's lives ---

    def started(self, now_s: float) -> None:
        """A daemon was started."""
        self._started_at_s = now_s

    def killed(self, pid: int, now_s: float) -> Kill:
        """The daemon was killed, and everything it had reported is in the books."""
        interrupted = [run_id for run_id in self.steps if run_id not in self.ended]
        saved = [self._saved[run_id] for run_id in interrupted if run_id in self._saved]
        kill = Kill(
            pid=pid,
            at_s=now_s,
            share=self.saved_share,
            oldest_snapshot_s=max((now_s - at_s for _, at_s in saved), default=0.0),
            newest={run_id: self._saved.get(run_id, (0, 0.0))[0] for run_id in interrupted},
        )
        self.kills.append(kill)
        return kill

    def take(self, report: Report, now_s: float) -> None:
        """Book a report."""
        run_id = report.run_id
        if run_id in self.ended and self.ended[run_id].durable and not isinstance(report, (Ended, Saved)):
            self.revived.add(run_id)
        match report:
            case Begun():
                self._back(run_id, 0, now_s)
            case StepBegun(_, at):
                self.steps_begun += 1
                self._seen.add((run_id, at))
            case Saved(_, seq):
                self._saved_steps += seq - max(1, self._saved.get(run_id, (0, 0.0))[0])
                self._saved[run_id] = (seq, now_s)
            case Restored(_, seq):
                self._back(run_id, seq, now_s)
            case Ended():
                if run_id not in self.ended and run_id in self.steps:
                    self._saved_steps += self.steps[run_id] + 1 - max(1, self._saved.get(run_id, (0, 0.0))[0])
                self.ended[run_id] = report
                self._back(run_id, self.steps[run_id] + 1, now_s)

    def _back(self, run_id: str, seq: int, now_s: float) -> None:
        """A run has its state back, or its end came from the store."""
        if not self.kills:
            return
        kill = self.kills[-1]
        if run_id in kill.newest and run_id not in kill.resumed_from:
            kill.resumed_from[run_id] = seq
            if len(kill.resumed_from) == len(kill.newest):
                kill.back_after_s = now_s - self._started_at_s

    # --- what it comes to ---

    @property
    def all_back(self) -> bool:
        """Whether every run that the last kill interrupted has its state back."""
        return not self.kills or self.kills[-1].back_after_s is not None

    @property
    def saved_share(self) -> float:
        """The acknowledged part of all the work, 0 to 1."""
        return self._saved_steps / max(1, sum(self.steps.values()))

    @property
    def steps_repeated(self) -> int:
        """Steps that were begun more than once."""
        return self.steps_begun - len(self._seen)

    @property
    def steps_kept(self) -> int:
        """Over all kills and runs: steps behind the snapshot that a run came back from."""
        return sum(kill.kept for kill in self.kills)

    @property
    def snapshots_lost(self) -> int:
        """Over all kills: runs that came back from something older than had been acknowledged, or not at all."""
        return sum(len(kill.lost) for kill in self.kills) + len(self.revived)

    @property
    def recovery_s(self) -> float:
        """The slowest recovery: from the start of the next daemon until the last interrupted run has its state back."""
        return max((kill.back_after_s or 0.0 for kill in self.kills), default=0.0)
