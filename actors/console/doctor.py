"""`executus doctor`: all of a store, beside its daemon or after its death: what is wrong with it, and what to do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

from executus.actors.console.doctor_files import OwnerFacts, look_at_files, owner_facts
from executus.actors.console.doctor_problems import Findings, Kind, Problem, Severity
from executus.actors.console.doctor_runs import Deployment, deployment, print_deployment
from executus.actors.console.failures import ExitCode
from executus.actors.console.ps import owner_line
from executus.actors.console.screen import Screen
from executus.actors.console.user_code import load_runs
from executus.actors.console.values import byte_size
from executus.actors.policies import MAX_STRIKES
from executus.stores import (
    LIVE,
    DamageKind,
    LmdbReader,
    RunCheckup,
    RunStatus,
    StoreCorrupt,
    StoreError,
    StoreInfo,
    StoreLocked,
    StoreTooNew,
    StoreUnavailable,
)
from executus.stores.lmdb_store import REFUSE_NEW_RUNS_RATIO

WARN_USED_RATIO: Final = 0.8
LOW_DISK_BYTES: Final = 256 * 1024 * 1024
FULL_DISK_BYTES: Final = 4 * 1024 * 1024
"""Less free than this and the next commit may find no room."""
LISTED: Final = (
    RunStatus.RUNNING,
    RunStatus.SUSPENDED,
    RunStatus.PARKED,
    RunStatus.QUARANTINED,
    RunStatus.STOPPED,
    RunStatus.FAILED,
)
"""Runs that may go on, by boot or by hand, are named; of the others only the number is told."""

_DAMAGES: Final = {
    DamageKind.CLAIM: Kind.CLAIM_UNREADABLE,
    DamageKind.RECORD: Kind.RECORD_UNREADABLE,
    DamageKind.SNAPSHOT_LOST: Kind.SNAPSHOT_LOST,
    DamageKind.SNAPSHOT_FELL_BACK: Kind.SNAPSHOT_FELL_BACK,
    DamageKind.SNAPSHOT_OLDER: Kind.SNAPSHOT_OLDER,
    DamageKind.OUTCOME: Kind.OUTCOME_UNREADABLE,
    DamageKind.INDEX: Kind.INDEX_WRONG,
    DamageKind.DUE_MISSING: Kind.DUE_MISSING,
    DamageKind.DUE_STALE: Kind.DUE_STALE,
    DamageKind.LINK: Kind.LINK_UNREADABLE,
    DamageKind.MESSAGE: Kind.MESSAGE_UNREADABLE,
    DamageKind.FLIGHT: Kind.FLIGHT_UNREADABLE,
}


class NamedRun(msgspec.Struct, frozen=True):
    """A run of which more than the number is told. `run_type` is None where its record cannot be read."""

    run_id: str
    run_type: str | None
    reason: str


class RunsOfStatus(msgspec.Struct, frozen=True):
    """How many runs are in a status, and the first of them in order of id."""

    count: int
    first: list[NamedRun]


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """`used_ratio` is of the map, beyond which the store cannot grow; `disk_free_bytes` is what its disk has left."""

    used_bytes: int
    map_size_bytes: int
    used_ratio: float
    disk_free_bytes: int


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What `doctor --json` prints.

    `readable` is False where the store could not be read to its end: what follows is then what was seen until there.
    `ok` says that nothing needs a person. `checked_runs` is how many runs were looked at, frame by frame. `runs` has an
    entry for each status that occurs.
    """

    store: str
    ok: bool
    readable: bool
    owner: OwnerFacts
    boot_epoch: int | None
    format_version: int | None
    space: Space | None
    checked_runs: int
    live_runs: int
    runs: dict[RunStatus, RunsOfStatus]
    problems: list[Problem]
    deployment: Deployment | None = None
    """With `--runs`: what that code would make of the live runs."""

    @property
    def exit_code(self) -> ExitCode:
        """0 where nothing needs a person, 1 where something does, 3 where the store cannot be read."""
        if not self.readable:
            return ExitCode.STORE
        return ExitCode.OK if self.ok else ExitCode.FAILED


class _Doctor:
    def __init__(self, store: Path, limit: int, screen: Screen) -> None:
        self._store = store
        self._limit = limit
        self._screen = screen
        self._findings = Findings(limit)
        self._runs: dict[RunStatus, RunsOfStatus] = {}
        self._checked = 0
        self._info: StoreInfo | None = None

    def examine(self) -> Examination:
        owner = owner_facts(self._store)
        look_at_files(self._store, owner, self._findings)
        readable = self._look_inside()
        self._look_at_space()
        problems = self._findings.problems()
        info = self._info
        return Examination(
            store=str(self._store),
            ok=readable and all(problem.severity is Severity.NOTE for problem in problems),
            readable=readable,
            owner=owner,
            boot_epoch=None if info is None else info.boot_epoch,
            format_version=None if info is None else info.format_version,
            space=None if info is None else self._space(info),
            checked_runs=self._checked,
            live_runs=sum(self._runs[status].count for status in self._runs if status in LIVE),
            runs={status: self._runs[status] for status in RunStatus if status in self._runs},
            problems=problems,
        )

    def _look_inside(self) -> bool:
        """Whether the store could be read to its end."""
        reader = LmdbReader(self._store)
        try:
            self._screen.progress(0.0, "checking the file")
            reader.walk()
            reader.open()
            self._info = reader.info()
            for why in reader.damaged_numbers():
                self._findings.add(Kind.NUMBER_UNREADABLE, self._store.name, why)
            for checkup in reader.checkup():
                self._look_at_run(checkup)
        except StoreLocked:
            raise
        except StoreError as error:
            self._findings.add(_kind_of(error), self._store.name, str(error))
            return False
        finally:
            reader.close()
            self._screen.close()
        return True

    def _look_at_run(self, checkup: RunCheckup) -> None:
        for damage in checkup.damages:
            self._findings.add(_DAMAGES[damage.kind], checkup.run_id, damage.why)
        claim = checkup.claim
        if claim is None:
            return
        self._checked += 1
        self._show_progress()
        seen = self._runs.get(claim.status, RunsOfStatus(0, []))
        if claim.status in LISTED and seen.count < self._limit:
            seen.first.append(NamedRun(claim.run_id, checkup.run_type, claim.reason))
        self._runs[claim.status] = RunsOfStatus(seen.count + 1, seen.first)
        if claim.status is RunStatus.PARKED:
            self._findings.add(Kind.PARKED, claim.run_id, claim.reason)
        elif claim.status is RunStatus.QUARANTINED:
            self._findings.add(Kind.QUARANTINED, claim.run_id, claim.reason)
        elif claim.status in LIVE and claim.strikes:
            self._findings.add(Kind.STRIKES, claim.run_id, f"{claim.strikes} of {MAX_STRIKES}")

    def _show_progress(self) -> None:
        assert self._info is not None
        if self._checked % 100 == 0:
            share = min(1.0, self._checked / max(1, self._info.runs))
            self._screen.progress(share, f"{self._checked} of {self._info.runs} runs checked")

    def _look_at_space(self) -> None:
        free_bytes = _free_bytes(self._store)
        if free_bytes < LOW_DISK_BYTES:
            kind = Kind.DISK_FULL if free_bytes < FULL_DISK_BYTES else Kind.DISK_LOW
            self._findings.add(kind, self._store.name, f"{byte_size(free_bytes)} free")
        if self._info is not None and self._info.used_ratio >= WARN_USED_RATIO:
            kind = Kind.MAP_FULL if self._info.used_ratio >= REFUSE_NEW_RUNS_RATIO else Kind.MAP_FILLING
            used = f"{self._info.used_ratio:.0%} of {byte_size(self._info.map_size_bytes)}"
            self._findings.add(kind, self._store.name, used)

    def _space(self, info: StoreInfo) -> Space:
        return Space(
            used_bytes=info.used_bytes,
            map_size_bytes=info.map_size_bytes,
            used_ratio=round(info.used_ratio, 6),
            disk_free_bytes=_free_bytes(self._store),
        )


def doctor(store: Path, *, limit: int, screen: Screen, runs: str | None = None) -> Examination:
    """Look at all of it; writes nothing. At most `limit` runs are named for each status and each problem.

    `runs` is imported, and asked about every live run. A damaged store is a finding. Raises CommandFailed,
    StoreUnavailable where there is no folder, StoreLocked in the owner's process.
    """
    if not store.is_dir():
        raise StoreUnavailable(
            f"there is no store at {str(store)!r}. Check the path; a runtime makes it when it opens.", path=str(store)
        )
    if not os.access(store, os.R_OK | os.X_OK):
        raise StoreUnavailable(
            f"{str(store)!r} cannot be looked into by this user. Call this as the daemon's user.", path=str(store)
        )
    if runs is not None:
        load_runs(runs)  # what cannot be imported is told at once
    found = _Doctor(store, limit, screen).examine()
    if runs is None or not found.readable:
        return found
    judged = deployment(store, runs, limit=limit)
    return msgspec.structs.replace(found, ok=found.ok and judged.ok, deployment=judged)


def print_examination(found: Examination, screen: Screen) -> None:
    """For people."""
    screen.say(owner_line(found.store, found.owner.pid))
    rows = [(status, str(runs.count), _names(runs)) for status, runs in found.runs.items()]
    if rows:
        screen.table(("status", "runs", "which"), rows)
    if found.space is not None:
        space = found.space
        screen.say(
            f"{found.checked_runs} runs checked, {found.live_runs} of them live; {byte_size(space.used_bytes)} used of "
            f"{byte_size(space.map_size_bytes)} ({space.used_ratio:.0%}), "
            f"{byte_size(space.disk_free_bytes)} free on its disk"
        )
    for problem in found.problems:
        screen.say(f"{problem.severity}: {problem.what}")
        for finding in problem.first:
            screen.say(f"    {finding.subject}: {finding.why}" if finding.why else f"    {finding.subject}")
        if problem.count > len(problem.first):
            screen.say(f"    and {problem.count - len(problem.first)} more")
        screen.say(f"    -> {problem.advice}")
    if found.deployment is not None:
        print_deployment(found.deployment, screen)
    if found.ok:
        screen.say("nothing here needs a person")


def _names(runs: RunsOfStatus) -> str:
    names = " ".join(run.run_id for run in runs.first)
    more = runs.count - len(runs.first)
    return f"{names} and {more} more" if names and more else names


def _kind_of(error: StoreError) -> Kind:
    match error:
        case StoreTooNew():
            return Kind.STORE_TOO_NEW
        case StoreCorrupt():
            return Kind.STORE_CORRUPT
        case _:
            return Kind.STORE_UNAVAILABLE


def _free_bytes(store: Path) -> int:
    return shutil.disk_usage(store).free
