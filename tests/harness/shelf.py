"""A store full of runs whose every byte is known, to be damaged copy by copy."""

from __future__ import annotations

import os
import random
from pathlib import Path

from msgspec.structs import replace

from executus.stores import (
    ACCEPTED,
    EPOCHS_PER_BOOT,
    LmdbStore,
    Operation,
    ParentLink,
    RunClaim,
    RunStatus,
    Save,
    Snapshot,
    Token,
)
from executus.stores.store_files import DATA_NAME
from tests.stores.making import child_of, settled, snapshot, started

RUNS = 40
MAP_BYTES = 256 * 1024**2


class Shelf:
    """The store's folder, closed in peace; its data file as it was at several commits; and what was acknowledged."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.versions: list[bytes] = []
        self.claims: dict[str, RunClaim] = {}
        self.inputs: dict[str, bytes] = {}
        self.snapshots: dict[str, dict[int, Snapshot]] = {}
        self.outcomes: dict[str, bytes] = {}
        self.links: dict[str, list[tuple[str, ParentLink]]] = {}
        self._fill(random.Random(seed))
        self._times = (folder / DATA_NAME).stat()

    @property
    def data(self) -> bytes:
        """The file as it was closed."""
        return self.versions[-1]

    def newest(self, run_id: str) -> int:
        return max(self.snapshots[run_id])

    def put(self, data: bytes, *, silently: bool) -> None:
        """Write a damaged copy in place. Silently: as a disk does it, with the times as they were."""
        path = self.folder / DATA_NAME
        path.write_bytes(data)
        if silently:
            os.utime(path, ns=(self._times.st_atime_ns, self._times.st_mtime_ns))

    def restore(self) -> None:
        """Whole again, and known as closed in peace."""
        self.put(self.data, silently=True)

    # --- filling ------------------------------------------------------------------------------------------------------

    def _fill(self, rng: random.Random) -> None:
        store = LmdbStore(self.folder, profile="process", map_size_bytes=MAP_BYTES)
        store.open()
        tokens: list[Token] = []
        for number in range(RUNS):
            token = Token(f"run-{number:03}", 1, store.boot_epoch * EPOCHS_PER_BOOT + number + 1)
            facts = {"input": rng.randbytes(rng.choice((8, 300, 5000))), "labels": {"n": str(number)}}
            if number % 8 == 7:
                parent = tokens[number - 1]
                start = child_of(parent, token.run_id, key=str(number), epoch=token.epoch)
                assert start.record is not None
                assert start.record.parent is not None
                self.links[parent.run_id] = [(token.run_id, start.record.parent)]
                _accepted(store, replace(start, record=replace(start.record, **facts)))
            else:
                _accepted(store, started(token.run_id, token.epoch, **facts))
            tokens.append(token)
            self.inputs[token.run_id], self.snapshots[token.run_id] = facts["input"], {}
        for _ in range(6):
            for token in rng.sample(tokens, 25):
                self._save(store, token, rng)
            self.versions.append((self.folder / DATA_NAME).read_bytes())
        for token in tokens:
            while len(self.snapshots[token.run_id]) < 2:
                self._save(store, token, rng)
        for token in tokens[5::10]:
            outcome = b"outcome of " + token.run_id.encode() * rng.choice((1, 800))
            _accepted(store, settled(token, RunStatus.FAILED, outcome=outcome))
            self.outcomes[token.run_id] = outcome
        for token in tokens:
            stored = store.load(token.run_id)
            assert stored is not None
            self.claims[token.run_id] = stored.claim
        store.close()
        self.versions.append((self.folder / DATA_NAME).read_bytes())

    def _save(self, store: LmdbStore, token: Token, rng: random.Random) -> None:
        seq = len(self.snapshots[token.run_id]) + 1
        taken = snapshot(token, seq, rng.randbytes(rng.choice((20, 200, 900, 3000, 9000))), next=b"next %d" % seq)
        _accepted(store, Save(snapshot=taken))
        self.snapshots[token.run_id][seq] = taken


def _accepted(store: LmdbStore, operation: Operation) -> None:
    assert store.commit([operation]) == [ACCEPTED]
