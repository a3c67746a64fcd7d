"""What does a damaged file do? Exact bytes or a typed error, never wrong state, never the daemon's death.

Each trial damages a copy of a store whose every byte is known and has it opened, read and written to in a process of
its own. Half of the damages are silent, as a disk makes them: the file looks as it was when it was closed in peace.
A tenth of the trials damage the newest generation of one run, which has to fall back to the one before, and say so.
"""

from __future__ import annotations

import random
import re
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count as numbers
from pathlib import Path
from typing import Any

import lmdb
from msgspec.structs import replace

from executus.stores import (
    EPOCHS_PER_BOOT,
    LIVE,
    Accepted,
    Claim,
    Delete,
    LmdbStore,
    Operation,
    RunStatus,
    StoreError,
    Token,
)
from executus.stores.rows import Table, child_key, run_key, snapshot_key
from executus.stores.store_files import DATA_NAME
from tests.harness.forks import forked
from tests.harness.report import Report
from tests.harness.shelf import MAP_BYTES, Shelf
from tests.stores.making import save, started

PAGE = 4096
SECTOR = 512
WRITTEN_TO = 8
"""Of so many runs a new snapshot is saved after the reading: a daemon does not only read."""

HIDDEN = "rows hidden by a bit flipped in their key, which only the doctor finds"
"""Of snapshots, outcomes and links; claims and live rows are missed by what else there is of their run."""

Damage = Callable[[Shelf, random.Random], bytes]


# --- damages: from the shelf to the bytes of a data file --------------------------------------------------------------


def bit_flip(shelf: Shelf, rng: random.Random) -> bytes:
    data = bytearray(shelf.data)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def bit_flip_in_a_head(shelf: Shelf, rng: random.Random) -> bytes:
    """In what LMDB itself needs: a page's header, or the offsets behind it."""
    data = bytearray(shelf.data)
    data[rng.randrange(len(data) // PAGE) * PAGE + rng.randrange(48)] ^= 1 << rng.randrange(8)
    return bytes(data)


def bit_flip_in_a_meta_page(shelf: Shelf, rng: random.Random) -> bytes:
    data = bytearray(shelf.data)
    data[rng.randrange(2) * PAGE + rng.randrange(160)] ^= 1 << rng.randrange(8)
    return bytes(data)


def bit_flip_in_a_key(shelf: Shelf, rng: random.Random) -> bytes:
    """A row that stands under a name that nobody asks for: to LMDB it is not there."""
    data = bytearray(shelf.data)
    places = [place.start() for place in re.finditer(rb"run-0\d\d", shelf.data)]
    data[rng.choice(places) + rng.randrange(7)] ^= 1 << rng.randrange(8)
    return bytes(data)


def bit_flips(shelf: Shelf, rng: random.Random) -> bytes:
    data = bytearray(shelf.data)
    for _ in range(rng.randint(2, 200)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def zeroed_sectors(shelf: Shelf, rng: random.Random) -> bytes:
    data = bytearray(shelf.data)
    length = SECTOR * rng.choice((1, 1, 1, 4, 8, 32))
    at = rng.randrange(len(data) // SECTOR) * SECTOR
    data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)


def garbage_sector(shelf: Shelf, rng: random.Random) -> bytes:
    data = bytearray(shelf.data)
    at = rng.randrange(len(data) // SECTOR) * SECTOR
    data[at : at + SECTOR] = rng.randbytes(SECTOR)
    return bytes(data)


def truncation(shelf: Shelf, rng: random.Random) -> bytes:
    length = rng.randrange(len(shelf.data))
    return shelf.data[: length - length % rng.choice((1, SECTOR, PAGE))]


def swapped_pages(shelf: Shelf, rng: random.Random) -> bytes:
    """Two pages in each other's place; half the time with their numbers put right, so that each looks at home."""
    data = bytearray(shelf.data)
    a, b = (number * PAGE for number in rng.sample(range(2, len(data) // PAGE), 2))
    data[a : a + PAGE], data[b : b + PAGE] = data[b : b + PAGE], data[a : a + PAGE]
    if rng.random() < 0.5:
        struct.pack_into("=Q", data, a, a // PAGE)
        struct.pack_into("=Q", data, b, b // PAGE)
    return bytes(data)


def stale_page(shelf: Shelf, rng: random.Random) -> bytes:
    """A write that never arrived: a page as it was at an earlier commit, whole and valid."""
    old, data = rng.choice(shelf.versions[:-1]), bytearray(shelf.data)
    changed = [
        at for at in range(2 * PAGE, min(len(old), len(data)), PAGE) if old[at : at + PAGE] != data[at : at + PAGE]
    ]
    for at in rng.sample(changed, min(len(changed), rng.choice((1, 1, 3)))):
        data[at : at + PAGE] = old[at : at + PAGE]
    return bytes(data)


def foreign_file(shelf: Shelf, rng: random.Random) -> bytes:
    match rng.randrange(6):
        case 0:
            return b"These are notes, and no store.\n" * rng.randint(0, 3000)
        case 1:
            return rng.randbytes(rng.choice((0, 1, 100, 5000, 100_000)))
        case 2:
            return _another_lmdb(rng)
        case 3:  # the other byte order
            data = bytearray(shelf.data)
            for at in (0, PAGE):
                data[at + 16 : at + 20] = data[at + 16 : at + 20][::-1]
            return bytes(data)
        case 4:  # the engine's next format
            data = bytearray(shelf.data)
            for at in (0, PAGE):
                struct.pack_into("=I", data, at + 20, rng.randint(2, 9))
            return bytes(data)
        case _:
            return b"SQLite format 3\0" + rng.randbytes(20_000)


def _another_lmdb(rng: random.Random) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        with lmdb.open(folder, max_dbs=8, lib_version=0) as env, env.begin(write=True) as txn:
            for name in rng.sample([table.encode() for table in Table], rng.randrange(3)):
                txn.put(b"claims", rng.randbytes(50), db=env.open_db(name, txn))
            txn.put(b"a row of", b"somebody else")
        return (Path(folder) / DATA_NAME).read_bytes()


DAMAGES: dict[str, Damage] = {
    "a flipped bit": bit_flip,
    "a flipped bit in a page's head": bit_flip_in_a_head,
    "a flipped bit in a meta page": bit_flip_in_a_meta_page,
    "a flipped bit in a key": bit_flip_in_a_key,
    "many flipped bits": bit_flips,
    "zeroed sectors": zeroed_sectors,
    "a sector of garbage": garbage_sector,
    "a truncation": truncation,
    "swapped pages": swapped_pages,
    "a stale page": stale_page,
    "a foreign file": foreign_file,
}


# --- one trial --------------------------------------------------------------------------------------------------------


class Examination:
    """Opens a damaged store, reads all of it, writes to it, and notes what was not as it should be."""

    def __init__(self, shelf: Shelf, *, stale: bool) -> None:
        self.shelf = shelf
        self.stale = stale
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.store = LmdbStore(shelf.folder, profile="process", map_size_bytes=MAP_BYTES)

    def made(self) -> list[Any]:
        """Counts and complaints."""
        try:
            self.store.open()
        except StoreError as error:
            self.counts[f"refused: {type(error).__name__}"] += 1
            return [dict(self.counts), self.wrong]
        try:
            readable = [run_id for run_id in self.shelf.claims if self._read(run_id)]
            self._lists()
            self._write(readable[:: max(1, len(readable) // WRITTEN_TO)])
        finally:
            self.store.close()
        kind = "exact" if self.counts.total() == self.counts["runs exact"] else "opened, with losses told of"
        self.counts[kind] += 1
        return [dict(self.counts), self.wrong]

    def _read(self, run_id: str) -> bool:
        """One run. Whether everything of it came back as it was."""
        whole = [self._typed(run_id, check) for check in (self._claim, self._snapshot, self._outcome, self._children)]
        self.counts["runs exact" if all(whole) else "runs with a typed loss"] += 1
        return all(whole)

    def _typed(self, run_id: str, check: Callable[[str], bool]) -> bool:
        try:
            return check(run_id)
        except StoreError as error:
            self.counts[f"told: {type(error).__name__}"] += 1
            return False

    def _claim(self, run_id: str) -> bool:
        stored, expected = self.store.load(run_id), self.shelf.claims[run_id]
        if stored is None:
            self.wrong.append(f"{run_id} has vanished")
            return False
        if stored.claim != expected and not self.stale:
            self.wrong.append(f"{run_id}: wrong claim {stored.claim}")
        if stored.record is None:
            return False
        if stored.record.input != self.shelf.inputs[run_id]:
            self.wrong.append(f"{run_id}: wrong input")
        return stored.claim == expected

    def _snapshot(self, run_id: str) -> bool:
        loaded, newest = self.store.load_snapshot(run_id), self.shelf.newest(run_id)
        if loaded is None:
            self._behind(run_id, "its state is gone without a word")
            return False
        if loaded.snapshot != self.shelf.snapshots[run_id].get(loaded.snapshot.seq):
            self.wrong.append(f"{run_id}: wrong bytes for seq {loaded.snapshot.seq}")
        if loaded.snapshot.seq == newest:
            return True
        if loaded.fell_back is None:
            self._behind(run_id, f"seq {loaded.snapshot.seq} instead of {newest} without a word")
        elif loaded.snapshot.seq != newest - 1:
            self._behind(run_id, f"fell back to seq {loaded.snapshot.seq} from {newest}")
        self.counts["fell back"] += 1
        return False

    def _behind(self, run_id: str, what: str) -> None:
        """An older state, whole and valid. Of a write that never arrived nothing on the disk can tell."""
        keys = [snapshot_key(run_key(run_id), slot) for slot in (0, 1)]
        if self.stale:
            self.counts["older states, whole, after a lost write"] += 1
        elif self._is_hidden(Table.SNAPSHOTS, keys):
            self.counts[HIDDEN] += 1
        else:
            self.wrong.append(f"{run_id}: {what}")

    def _is_hidden(self, table: Table, keys: list[bytes]) -> bool:
        """Is one of these rows not there? Under a key with a flipped bit it is whole, and nobody asks for it."""
        with self.store._view() as rows:
            return any(rows.get(table, key) is None for key in keys)

    def _outcome(self, run_id: str) -> bool:
        found, expected = self.store.load_outcome(run_id), self.shelf.outcomes.get(run_id)
        if found is None and expected is not None and self._is_hidden(Table.OUTCOMES, [run_key(run_id)]):
            self.counts[HIDDEN] += 1
        elif found != expected and not (self.stale and found is None):
            self.wrong.append(f"{run_id}: wrong outcome, {found!r:.60} instead of {expected!r:.60}")
        return found == expected

    def _children(self, run_id: str) -> bool:
        found, expected = self.store.children(run_id), self.shelf.links.get(run_id, [])
        hidden = [child_key(run_key(run_id), run_key(child)) for child, _ in expected]
        if not found and self._is_hidden(Table.CHILDREN, hidden):
            self.counts[HIDDEN] += 1
        elif found != expected and not self.stale:
            self.wrong.append(f"{run_id}: wrong children {found} instead of {expected}")
        return found == expected

    def _lists(self) -> None:
        try:
            live = {claim.run_id for claim in self.store.live()}
            named = live | set(self.store.damaged())
            scanned = {stored.claim.run_id for stored in self.store.scan()}
        except StoreError as error:
            self.counts[f"told: {type(error).__name__}"] += 1
            return
        expected = {run_id for run_id, claim in self.shelf.claims.items() if claim.status in LIVE}
        if not self.stale:
            self.wrong += [f"{run_id} is live, and no list says so" for run_id in sorted(expected - named)]
            self.wrong += [f"{run_id} is in the list of what lives" for run_id in sorted(live - expected)]
        self.wrong += [f"{run_id} was never started" for run_id in sorted(scanned - self.shelf.claims.keys())]

    def _write(self, run_ids: list[str]) -> None:
        epochs = (self.store.boot_epoch * EPOCHS_PER_BOOT + number for number in numbers(1))
        saved: dict[str, bytes] = {}
        operations: list[Operation] = [started("new", next(epochs), input=bytes(5000))]
        for run_id in run_ids:
            claim = self.shelf.claims[run_id]
            if claim.status is not RunStatus.RUNNING:
                operations.append(Delete(token=claim.token))
                continue
            token = Token(run_id, claim.incarnation, next(epochs))
            again = replace(claim, epoch=token.epoch, attempt=claim.attempt + 1)
            saved[run_id] = bytes([len(saved)]) * 3000
            operations += [
                Claim(claim=again, expected=claim.token),
                save(token, self.shelf.newest(run_id) + 1, saved[run_id]),
            ]
        try:
            verdicts = self.store.commit(operations)
        except StoreError as error:
            self.counts[f"a commit was refused: {type(error).__name__}"] += 1
            return
        if not all(isinstance(verdict, Accepted) for verdict in verdicts):
            self.wrong.append(f"a commit was refused in part: {verdicts}")
        for run_id, state in saved.items():
            loaded = self.store.load_snapshot(run_id)
            if loaded is None or loaded.snapshot.state != state:
                self.wrong.append(f"{run_id}: what was committed just now does not come back")


def _falls_back(shelf: Shelf, run_id: str) -> list[Any]:
    """Open a store in which the newest generation of a run is damaged."""
    store = LmdbStore(shelf.folder, profile="process", map_size_bytes=MAP_BYTES)
    store.open()
    try:
        loaded = store.load_snapshot(run_id)
        before = shelf.snapshots[run_id][shelf.newest(run_id) - 1]
        wrong: list[str] = []
        if loaded is None or loaded.snapshot != before:
            wrong.append(f"{run_id}: not the generation before")
        elif loaded.fell_back is None:
            wrong.append(f"{run_id}: fell back without a word")
        return [{"generations that fell back to the one before": not wrong}, wrong]
    finally:
        store.close()


def _damage_newest(shelf: Shelf, run_id: str, rng: random.Random) -> None:
    newest = shelf.snapshots[run_id][shelf.newest(run_id)]
    with lmdb.open(str(shelf.folder), max_dbs=16, map_size=MAP_BYTES) as env:
        table = env.open_db(Table.SNAPSHOTS.encode(), create=False)
        with env.begin(db=table, write=True) as txn:
            keys = [snapshot_key(run_key(run_id), slot) for slot in (0, 1)]
            key = next(key for key in keys if newest.state in (txn.get(key) or b""))
            data = bytearray(txn.get(key) or b"")
            match rng.randrange(3):
                case 0:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                case 1:
                    del data[rng.randrange(len(data)) :]
                case _:
                    at = rng.randrange(len(data))
                    data[at : at + SECTOR] = bytes(len(data[at : at + SECTOR]))
                    data[-1] ^= 1
            txn.put(key, bytes(data))


# --- all of them ------------------------------------------------------------------------------------------------------


def run(count: int, seed: int) -> Report:
    """A tenth of `count` trials damage the newest generation of a run, the others the file anyhow."""
    began_s = time.monotonic()
    rng = random.Random(seed)
    figures: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="executus-corruption-") as folder:
        shelf = Shelf(Path(folder) / "runs.store", seed)
        for number in range(count):
            if number % 10 == 9:
                run_id = rng.choice(sorted(shelf.claims))
                what, silently = f"the newest snapshot of {run_id}", False
                shelf.restore()
                _damage_newest(shelf, run_id, rng)
                trial = forked(partial(_falls_back, shelf, run_id))
            else:
                what = sorted(DAMAGES)[number % len(DAMAGES)] if number < len(DAMAGES) else rng.choice(sorted(DAMAGES))
                silently = rng.random() < 0.5
                shelf.put(DAMAGES[what](shelf, rng), silently=silently)
                # Of header pages that somebody else has written since, the older may pass for the last: see the README.
                stale = what == "a stale page" or (what == "a flipped bit in a meta page" and not silently)
                trial = forked(Examination(shelf, stale=stale).made)
            where = f"trial {number}, {what}{', silently' if silently else ''}"
            if trial.answer is None:
                failures.append(f"{where}: the process died: {trial.death}")
                figures["deaths"] += 1
                continue
            counts, wrong = trial.answer
            figures.update(counts)
            failures += [f"{where}: {complaint}" for complaint in wrong]
    return Report(
        name="corruption",
        promise=(3, 4),
        count=count,
        failures=tuple(failures),
        figures=dict(sorted(figures.items())),
        took_s=time.monotonic() - began_s,
    )
