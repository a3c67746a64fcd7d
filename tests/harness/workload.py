"""A seeded life of a store, played the same way on any: the traced one plays it on a disk, the model in memory.

As a program: `python -m tests.harness.workload FOLDER PROFILE SEED COMMITS`; it says on its output what it is about to
do and what was acknowledged, a line each.
"""

from __future__ import annotations

import os
import random
import sys
import zlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from executus.stores import (
    EPOCHS_PER_BOOT,
    CheckpointStore,
    LmdbStore,
    RecordCorrupt,
    RunStatus,
    StoreUnavailable,
    Token,
)
from tests.stores.making import child_of, deleted, reborn, reclaimed, save, settled, started, why

SESSIONS: Final = 3
STATE_SIZES: Final = (10, 300, 300, 3_000, 3_000, 20_000, 60_000)
MOST_RUNS: Final = 12
RETRIES: Final = 10

Value = tuple[Any, ...]
View = dict[str, Value]
"""What can be read of each run; two stores in the same state have equal views."""


class Said(NamedTuple):
    """`about`: commit `number` is going to be tried; `done`: it is acknowledged; `opened`: with that boot epoch."""

    what: str
    number: int


class Life:
    """Which runs there are, so that what is tried next makes sense."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self.running: dict[str, tuple[Token, int]] = {}
        self.ended: dict[str, Token] = {}
        self._begun = 0
        self._epoch = 0

    def boot(self, boot_epoch: int) -> None:
        self._epoch = boot_epoch * EPOCHS_PER_BOOT

    def claims_at_boot(self) -> list[Any]:
        """Everything that was running goes on under a new epoch."""
        operations = []
        for run_id, (token, seq) in self.running.items():
            operations.append(reclaimed(token, self._next_epoch()))
            self.running[run_id] = (operations[-1].claim.token, seq)
        return operations

    def operations(self) -> list[Any]:
        """What the next commit consists of: each run at most once."""
        chosen = self._choose.sample(sorted(self.running), min(len(self.running), self._choose.randint(0, 5)))
        found = [self._of_running(run_id) for run_id in chosen]
        if self.ended and self._choose.random() < 0.3:
            found.append(self._of_ended(self._choose.choice(sorted(self.ended))))
        if len(self.running) < MOST_RUNS and (not found or self._choose.random() < 0.3):
            found.append(self._new())
        return found

    def _of_running(self, run_id: str) -> Any:
        token, seq = self.running[run_id]
        chance = self._choose.random()
        if chance < 0.05:
            del self.running[run_id]
            self.ended[run_id] = token
            return settled(token, outcome=b"outcome of %s " % run_id.encode() * self._choose.randint(1, 300))
        if chance < 0.08:
            del self.running[run_id]
            self.ended[run_id] = token
            return settled(token, RunStatus.FAILED, reason="it failed", outcome=b"error")
        self.running[run_id] = (token, seq + 1)
        return save(token, seq + 1, state_of(token, seq + 1, self._choose.choice(STATE_SIZES)))

    def _of_ended(self, run_id: str) -> Any:
        token = self.ended.pop(run_id)
        if self._choose.random() < 0.5:
            return deleted(token)
        operation = reborn(token, self._next_epoch(), input=b"born again")
        self.running[run_id] = (operation.claim.token, 0)
        return operation

    def _new(self) -> Any:
        self._begun += 1
        run_id = f"run-{self._begun}"
        if self.running and self._choose.random() < 0.3:
            parent, _ = self.running[self._choose.choice(sorted(self.running))]
            operation = child_of(parent, run_id, key=f"k{self._begun}", epoch=self._next_epoch())
        else:
            operation = started(run_id, self._next_epoch(), input=b"input " * self._choose.choice((1, 100, 2000)))
        self.running[run_id] = (operation.claim.token, 0)
        return operation

    def _next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch


def play(store: CheckpointStore, seed: int, commits: int, said: Callable[[Said], None]) -> None:
    """Open, commit, close, three times over. A commit that fails is made again, as the store actor does."""
    life = Life(random.Random(seed))
    number = 0
    for _ in range(SESSIONS):
        store.open()
        said(Said("opened", store.boot_epoch))
        life.boot(store.boot_epoch)
        first = life.claims_at_boot()
        for operations in [first, *(life.operations() for _ in range(commits // SESSIONS))]:
            if operations:
                number += 1
                said(Said("about", number))
                _commit(store, operations)
                said(Said("done", number))
        store.close()
        said(Said("closed", number))


def _commit(store: CheckpointStore, operations: list[Any]) -> None:
    for left in reversed(range(RETRIES)):
        try:
            verdicts = store.commit(operations)
        except StoreUnavailable:
            if not left:
                raise
        else:
            refused = [verdict for verdict in verdicts if why(verdict) is not None]
            assert not refused, refused
            return


def state_of(token: Token, seq: int, size: int) -> bytes:
    """Bytes that tell what they are."""
    text = b"%s %d %d %d|" % (token.run_id.encode(), token.incarnation, token.epoch, seq)
    return (text * (size // len(text) + 1))[:size]


def view_of(store: CheckpointStore) -> View:
    """Everything that a boot would read; a run of which something cannot be read has the value ("damaged",)."""
    runs = {run.claim.run_id: run for run in store.scan()}
    view: View = {}
    for run_id, run in runs.items():
        try:
            loaded = store.load_snapshot(run_id)
            outcome = store.load_outcome(run_id)
            children = [[child, link.key] for child, link in store.children(run_id)]
        except RecordCorrupt:
            view[run_id] = ("damaged",)
            continue
        if run.record is None or (loaded is not None and loaded.fell_back is not None):
            view[run_id] = ("damaged",)
            continue
        view[run_id] = (
            run.claim.incarnation,
            run.claim.epoch,
            run.claim.status.value,
            _short(run.record.input),
            None if loaded is None else [loaded.snapshot.epoch, loaded.snapshot.seq, _short(loaded.snapshot.state)],
            None if outcome is None else _short(outcome),
            children,
        )
    view["live"] = (sorted(claim.run_id for claim in store.live()),)
    for run_id in store.damaged():
        view[run_id] = ("damaged",)
    return view


def _short(data: bytes) -> list[int]:
    return [len(data), zlib.crc32(data)]


def say(said: Said) -> None:
    os.write(1, f"{said.what} {said.number}\n".encode())


def main(folder: str, profile: Any, seed: str, commits: str) -> None:
    play(
        LmdbStore(folder, profile=profile),
        int(seed),
        int(commits),
        say,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
