"""A seeded life of a store, played the same way on any: the traced one plays it on a disk, the model in memory.

As a program: `python -m tests.harness.workload FOLDER PROFILE SEED COMMITS`; it says on its output what it is about to
do and what was acknowledged, a line each.
"""

from __future__ import annotations

import os
import random
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from executus.stores import (
    EPOCHS_PER_BOOT,
    LIVE,
    Base,
    CheckpointStore,
    Chunk,
    Claim,
    Layout,
    LmdbStore,
    LoadedSnapshot,
    MemoryStore,
    Operation,
    Piece,
    RecordCorrupt,
    RunClaim,
    RunStatus,
    Save,
    Snapshot,
    StoredRun,
    StoreUnavailable,
    Token,
)
from tests.stores.making import append, child_of, deleted, reborn, reclaimed, save, settled, snapshot, started, why

SESSIONS: Final = 3
STATE_SIZES: Final = (10, 300, 300, 3_000, 3_000, 20_000, 60_000)
MOST_RUNS: Final = 12
RETRIES: Final = 10

Value = tuple[Any, ...]
View = dict[str, Value]
"""What can be read of each run, and of the indexes; two stores in the same state have equal views. All of it is as JSON
gives it back."""
NOISE: Final = "noise"
DAMAGED: Final[Value] = ("damaged",)
LIVE_RUNS: Final = "index of live runs"
ENDED_RUNS: Final = "index of ended runs"
RESTING: Final = [status for status in RunStatus if status not in LIVE]


class Said(NamedTuple):
    """`about`: commit `number` is going to be tried; `done`: it is acknowledged; `opened`: with that boot epoch."""

    what: str
    number: int


class Running:
    """What is known of a run that may be saved: its token, and what went into its last snapshot."""

    def __init__(self, token: Token) -> None:
        self.token = token
        self.seq = self.appended = self.consumed = 0
        self.journal: Layout = ()


class Life:
    """Which runs there are, so that what is tried next makes sense."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self.running: dict[str, Running] = {}
        self.ended: dict[str, Token] = {}
        self._begun = 0
        self._bases = 0
        self._epoch = 0

    def boot(self, boot_epoch: int) -> None:
        self._epoch = boot_epoch * EPOCHS_PER_BOOT

    def claims_at_boot(self) -> list[Any]:
        """Everything that was running goes on under a new epoch."""
        operations = []
        for run in self.running.values():
            operations.append(reclaimed(run.token, self._next_epoch()))
            run.token = operations[-1].claim.token
        return operations

    def operations(self) -> list[Any]:
        """What the next commit consists of."""
        chosen = self._choose.sample(sorted(self.running), min(len(self.running), self._choose.randint(0, 5)))
        found = [operation for run_id in chosen for operation in self._of_running(run_id)]
        if self.ended and self._choose.random() < 0.3:
            found.append(self._of_ended(self._choose.choice(sorted(self.ended))))
        if len(self.running) < MOST_RUNS and (not found or self._choose.random() < 0.3):
            found.append(self._new())
        return found

    def _of_running(self, run_id: str) -> Iterator[Any]:
        run = self.running[run_id]
        chance = self._choose.random()
        if chance < 0.3:
            run.appended += 1
            body = b"message %d to %s " % (run.appended, run_id.encode())
            yield append(run.token, f"{run_id}-{run.appended}", body * self._choose.choice((1, 20, 400)))
        if chance > 0.95:
            outcome = b"outcome of %s " % run_id.encode() * self._choose.randint(1, 300)
            yield settled(self._end(run_id), outcome=outcome, ended_at_s=float(run.seq))
        elif chance > 0.92:
            yield settled(self._end(run_id), RunStatus.FAILED, reason="it failed", outcome=b"error")
        elif chance > 0.1:
            yield self._save(run)

    def _end(self, run_id: str) -> Token:
        self.ended[run_id] = self.running.pop(run_id).token
        return self.ended[run_id]

    def _save(self, run: Running) -> Save:
        run.seq += 1
        facts: dict[str, Any] = {}
        run.consumed = self._choose.randint(run.consumed, run.appended)
        if run.consumed:
            facts["consumed_through"] = run.consumed
        chunks = self._grown(run)
        if run.journal:
            facts["layouts"] = (run.journal,)
        state = state_of(run.token, run.seq, self._choose.choice(STATE_SIZES))
        return Save(snapshot=snapshot(run.token, run.seq, state, **facts), chunks=chunks)

    def _grown(self, run: Running) -> tuple[Chunk, ...]:
        """Its journal has some more items, or is written anew, shorter, under another base."""
        chance = self._choose.random()
        if chance < 0.4:
            return ()
        if not run.journal or chance > 0.95:
            self._bases += 1
            piece = Piece(Base(run.token.epoch, self._bases), 0, 0)
        else:
            (piece,) = run.journal
        more = self._choose.randint(1, 20)
        run.journal = (Piece(piece.base, 0, piece.end + more),)
        items = b"%d items from %d on of %d " % (more, piece.end, piece.base.number)
        return (Chunk(base=piece.base, position=piece.end, count=more, items=items * more),)

    def _of_ended(self, run_id: str) -> Any:
        token = self.ended.pop(run_id)
        if self._choose.random() < 0.5:
            return deleted(token)
        operation = reborn(token, self._next_epoch(), input=b"born again")
        self.running[run_id] = Running(operation.claim.token)
        return operation

    def _new(self) -> Any:
        self._begun += 1
        run_id = f"run-{self._begun}"
        if self.running and self._choose.random() < 0.3:
            parent = self.running[self._choose.choice(sorted(self.running))]
            operation = child_of(parent.token, run_id, key=f"k{self._begun}", epoch=self._next_epoch())
        else:
            operation = started(run_id, self._next_epoch(), input=b"input " * self._choose.choice((1, 100, 2000)))
        self.running[run_id] = Running(operation.claim.token)
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
        _commit_noise(store)
        for operations in [first, *(life.operations() for _ in range(commits // SESSIONS))]:
            if operations:
                number += 1
                said(Said("about", number))
                _commit(store, operations)
                said(Said("done", number))
        store.close()
        said(Said("closed", number))


def _commit(store: CheckpointStore, operations: list[Any]) -> None:
    for tried in range(RETRIES):
        try:
            if tried:
                # As in a daemon, what is committed next is not what failed: the pages are the same, their bytes not.
                store.commit([noise(store, tried)])
            verdicts = store.commit(operations)
        except StoreUnavailable:
            if tried == RETRIES - 1:
                raise
        else:
            refused = [verdict for verdict in verdicts if why(verdict) is not None]
            assert not refused, refused
            return


def _commit_noise(store: CheckpointStore) -> None:
    for left in reversed(range(RETRIES)):
        try:
            store.commit([noise_claim(store)])
            return
        except StoreUnavailable:
            if not left:
                raise


def is_noise(operations: Sequence[Operation]) -> bool:
    """Is it a commit for the run that stands in no view?"""
    match operations:
        case [Claim(claim=RunClaim(run_id=run_id))] | [Save(snapshot=Snapshot(run_id=run_id))]:
            return run_id == NOISE
        case _:
            return False


def noise_claim(store: CheckpointStore) -> Claim:
    """Of a run that stands in no view: it is saved only where a commit failed."""
    epoch = (store.boot_epoch + 1) * EPOCHS_PER_BOOT - 1
    stored = store.load(NOISE)
    return started(NOISE, epoch) if stored is None else reclaimed(stored.claim.token, epoch)


def noise(store: CheckpointStore, tried: int) -> Save:
    """Another state each time."""
    stored, loaded = store.load(NOISE), store.load_snapshot(NOISE)
    assert stored is not None
    seq = loaded.snapshot.seq + 1 if loaded else 1
    return save(stored.claim.token, seq, bytes([tried]) * 7_000 * tried)


def state_of(token: Token, seq: int, size: int) -> bytes:
    """Bytes that tell what they are."""
    text = b"%s %d %d %d|" % (token.run_id.encode(), token.incarnation, token.epoch, seq)
    return (text * (size // len(text) + 1))[:size]


def view_of(store: CheckpointStore) -> View:
    """Everything that a boot would read; a run of which something cannot be read has the value DAMAGED."""
    view: View = {run.claim.run_id: _value_of(store, run) for run in store.scan() if run.claim.run_id != NOISE}
    view |= dict.fromkeys(store.damaged(), DAMAGED)
    view[LIVE_RUNS] = (sorted(claim.run_id for claim in store.live() if claim.run_id != NOISE),)
    view[ENDED_RUNS] = ([[status, [run.run_id for run in store.ended(status)]] for status in sorted(RESTING)],)
    return view


def _value_of(store: CheckpointStore, run: StoredRun) -> Value:
    run_id = run.claim.run_id
    try:
        loaded = store.load_snapshot(run_id)
        outcome = store.load_outcome(run_id)
        children = [[child, link.key] for child, link in store.children(run_id)]
        messages = store.messages(run_id)
    except RecordCorrupt:
        return DAMAGED
    if run.record is None or (loaded is not None and loaded.fell_back is not None):
        return DAMAGED
    if any(stored.message is None for stored in messages):
        return DAMAGED
    return (
        [run.claim.incarnation, run.claim.epoch, run.claim.status.value],
        _short(run.record.input),
        None if loaded is None else _shown(loaded),
        None if outcome is None else _short(outcome),
        children,
        [
            [stored.number, stored.message.message_id, _short(stored.message.body)]
            for stored in messages
            if stored.message
        ],
    )


def _shown(loaded: LoadedSnapshot) -> list[Any]:
    kept = loaded.snapshot
    journals = [
        [[*chunk.base, chunk.position, chunk.count, _short(chunk.items)] for chunk in chunks]
        for chunks in loaded.chunks
    ]
    return [kept.epoch, kept.seq, _short(kept.state), kept.consumed, journals]


def empty_view() -> View:
    """That of a store without runs."""
    store = MemoryStore()
    store.open()
    return view_of(store)


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
