"""`executus gc`: what retention would delete from a store, and, where it is told to, the deletion of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from executus.actors.console.failures import CommandFailed, ExitCode
from executus.actors.console.ps import owner_line, reading
from executus.actors.console.screen import Screen
from executus.actors.console.values import age
from executus.actors.retention import FOREVER, PRUNED, Keep, RetentionPolicy, expired, is_needed, surplus
from executus.stores import (
    LIVE,
    Accepted,
    CheckpointStore,
    Delete,
    EndedRun,
    LmdbReader,
    LmdbStore,
    RecordCorrupt,
    RecordTooLarge,
    RunClaim,
    RunStatus,
    StoredRun,
    StoreTooNew,
    ended_at_ms,
)

PAGE: Final = 1000
SLICE: Final = 256
"""Deletions of one commit: nobody else's saves wait behind them."""
_KEEP: Final = re.compile(
    r"(?P<status>[a-z_]+)=(?:forever|(?:(?P<age>\d+(?:\.\d+)?)(?P<unit>[smhd]))?(?:/(?P<count>\d+))?)"
)
_UNIT_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Doomed(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is kept no longer, for its age or because there are too many."""

    run_id: str
    run_type: str
    status: RunStatus
    ended_ago_s: float
    why: Literal["age", "count"]


class Collection(msgspec.Struct, frozen=True, kw_only=True):
    """What `gc --json` prints.

    `ended` and `expired` count runs by ending. `needed` are expired ones whose parents have not taken in their ends,
    `unreadable` such of which something is damaged: both stay. `deleted` is 0 unless `applied`. `runs` names them all.
    """

    store: str
    owner_pid: int | None
    applied: bool
    ended: dict[RunStatus, int]
    expired: dict[RunStatus, int]
    needed: list[str]
    unreadable: list[str]
    deleted: int
    used_ratio: float
    runs: list[Doomed]


class _Candidate(msgspec.Struct, frozen=True):
    run: EndedRun
    run_type: str


def gc(store: Path, *, policy: RetentionPolicy, apply: bool) -> Collection:
    """Look at every run, and delete those that go where `apply` says so.

    Raises StoreError: StoreLocked where `apply` is given and a daemon owns the store.
    """
    if not apply:
        with reading(store) as reader:
            return _collect(reader, store, policy, owner_pid=reader.owner_pid)
    with reading(store):
        pass  # there is a store: what opens to write would make one
    writer = LmdbStore(store)
    writer.open()
    try:
        found = _collect(writer, store, policy, owner_pid=None)
        deleted = _delete(writer, found)
        used_ratio = round(writer.info().used_ratio, 6)
        return msgspec.structs.replace(found, applied=True, deleted=deleted, used_ratio=used_ratio)
    finally:
        writer.close()


def policy_of(texts: Sequence[str]) -> RetentionPolicy:
    """The default policy with what is given as `--keep`: `completed=7d/10000`, `failed=30d`, `killed=/100`.

    Raises CommandFailed.
    """
    keeps: dict[str, Keep] = {}
    for text in texts:
        found = _KEEP.fullmatch(text)
        if found is None or found["status"] not in set(PRUNED) or text.endswith("="):
            raise CommandFailed(
                ExitCode.USAGE,
                f"--keep {text!r}: give an ending, an age and a number: completed=7d/10000, failed=30d, killed=/100, "
                f"cancelled=forever. Endings are {', '.join(PRUNED)}.",
            )
        age_s = None if found["age"] is None else float(found["age"]) * _UNIT_S[found["unit"]]
        keeps[found["status"]] = Keep(age_s, None if found["count"] is None else int(found["count"]))
    return RetentionPolicy(**keeps)  # type: ignore[arg-type]


def print_collection(found: Collection, screen: Screen, limit: int) -> None:
    """For people."""
    screen.say(owner_line(found.store, found.owner_pid))
    rows = [(status, str(found.ended[status]), str(found.expired.get(status, 0))) for status in found.ended]
    if rows:
        screen.table(("ended", "runs", "kept no longer"), rows)
    for doomed in found.runs[:limit]:
        why = "too many" if doomed.why == "count" else "too old"
        screen.say(f"    {doomed.run_id}: {doomed.status} {age(doomed.ended_ago_s)} ago, {why}")
    if len(found.runs) > limit:
        screen.say(f"    and {len(found.runs) - limit} more")
    for names, what in ((found.needed, "whose parents still need their ends"), (found.unreadable, "that are damaged")):
        if names:
            screen.say(f"{len(names)} more {what} stay")
    if found.applied:
        screen.say(f"{found.deleted} runs deleted")
    elif found.runs:
        screen.say(f"{len(found.runs)} runs would be deleted; nothing was. To delete them: executus gc --apply")
    else:
        screen.say("nothing to delete")


def _collect(
    store: LmdbReader | LmdbStore, path: Path, policy: RetentionPolicy, *, owner_pid: int | None
) -> Collection:
    now_s = time.time()
    by_status: dict[RunStatus, list[_Candidate]] = {}
    for stored in _all(store):
        if stored.claim.status not in LIVE | {RunStatus.PASSIVATED}:
            by_status.setdefault(stored.claim.status, []).append(_candidate(stored))
    counts = {status: len(by_status[status]) for status in RunStatus if status in by_status}
    runs: list[Doomed] = []
    needed: list[str] = []
    unreadable: list[str] = []
    expired_counts: dict[RunStatus, int] = {}
    for status, candidates in by_status.items():
        keep = policy.keep(status)
        if keep == FOREVER:
            continue
        candidates.sort(key=lambda candidate: (candidate.run.ended_at_ms, candidate.run.run_id))
        too_many = surplus(counts, status, keep)
        gone = expired([candidate.run for candidate in candidates], keep, too_many=too_many, now_s=now_s)
        expired_counts[status] = len(gone)
        for number, candidate in enumerate(candidates[: len(gone)]):
            try:
                if _is_needed(store, candidate):
                    needed.append(candidate.run.run_id)
                    continue
            except (RecordCorrupt, RecordTooLarge, StoreTooNew):
                unreadable.append(candidate.run.run_id)
                continue
            runs.append(
                Doomed(
                    run_id=candidate.run.run_id,
                    run_type=candidate.run_type,
                    status=status,
                    ended_ago_s=round(now_s - candidate.run.ended_at_ms / 1000, 3),
                    why="count" if number < too_many else "age",
                )
            )
    return Collection(
        store=str(path),
        owner_pid=owner_pid,
        applied=False,
        ended=counts,
        expired={status: number for status, number in expired_counts.items() if number},
        needed=needed,
        unreadable=unreadable,
        deleted=0,
        used_ratio=round(store.info().used_ratio, 6),
        runs=runs,
    )


def _delete(store: CheckpointStore, found: Collection) -> int:
    deleted = 0
    for first in range(0, len(found.runs), SLICE):
        claims = [store.load(doomed.run_id) for doomed in found.runs[first : first + SLICE]]
        verdicts = store.commit([Delete(token=stored.claim.token) for stored in claims if stored is not None])
        deleted += sum(isinstance(verdict, Accepted) for verdict in verdicts)
    return deleted


def _all(store: LmdbReader | LmdbStore) -> Iterator[StoredRun]:
    after: str | None = None
    while page := store.scan(after=after, limit=PAGE):
        yield from page
        after = page[-1].claim.run_id


def _candidate(stored: StoredRun) -> _Candidate:
    claim, record = stored.claim, stored.record
    run = EndedRun(claim.run_id, claim.status, ended_at_ms(claim))
    return _Candidate(run, "?" if record is None else record.run_type)


def _is_needed(store: LmdbReader | LmdbStore, candidate: _Candidate) -> bool:
    link = store.parent_link(candidate.run.run_id)
    parent: RunClaim | None = None
    if link is not None:
        stored = store.load(link.run_id)
        parent = None if stored is None else stored.claim
    return is_needed(link, parent)
