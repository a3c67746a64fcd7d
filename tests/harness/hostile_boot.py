"""A boot of a whole runtime over a store in which somebody has changed records, with checksums that hold."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import lmdb
import msgspec
from msgspec.structs import replace

from executus.actors import ExecutusError, Factory, Runtime
from executus.stores import LmdbStore, RunClaim, RunRecord, Snapshot, codec
from executus.stores.rows import Table, run_key, snapshot_key
from tests.doubles import THRICE, AsyncFailableRun, Do, FailableRun, Told, World
from tests.waiting import wait_until

HEALTHY = 5
HOSTILE = 40
MAP_BYTES = 256 * 1024**2
EXTREMES = (float("nan"), float("inf"), -1e300, 1e300, -1.0, 0.0)


def fill(folder: Path) -> None:
    """Runs that wait; the daemon closes and suspends them."""
    with Runtime(_store(folder), runs=[Factory(FailableRun, World()), AsyncFailableRun], logger=False) as runtime:
        ids = [f"healthy-{n}" for n in range(HEALTHY)] + [f"hostile-{n}" for n in range(HOSTILE)]
        handles = runtime.start_many(FailableRun, {run_id: Told(("ok", "wait")) for run_id in ids})
        for handle in handles:
            handle.durable(20)
            wait_until(lambda handle=handle: handle.status().waiting, 20)  # type: ignore[misc]


def _store(folder: Path) -> LmdbStore:
    return LmdbStore(folder, profile="process", map_size_bytes=MAP_BYTES)


def plant(folder: Path, rng: random.Random, payloads: list[bytes]) -> None:
    """Change something of each hostile run: what is inside its rows, or what the rows themselves say."""
    with lmdb.open(str(folder), max_dbs=32, map_size=MAP_BYTES) as env:
        tables = {table: env.open_db(table.encode(), create=False) for table in Table}
        with env.begin(write=True) as txn:
            for number in range(HOSTILE):
                key = run_key(f"hostile-{number}")
                payload = rng.choice(payloads)[:100_000]
                match number % 8:
                    case 0 | 1 | 2:
                        slot_keys = [snapshot_key(key, slot) for slot in (0, 1)]
                        for slot_key in slot_keys:
                            data = txn.get(slot_key, db=tables[Table.SNAPSHOTS])
                            if data is not None:
                                old = codec.decode_snapshot(data, slot_key)
                                new = codec.encode_snapshot(_strange_snapshot(old, number % 8, payload, rng), slot_key)
                                txn.put(slot_key, new, db=tables[Table.SNAPSHOTS])
                    case 3 | 4:
                        old_record = codec.decode_record(txn.get(key, db=tables[Table.RECORDS]) or b"", key)
                        data = codec.encode_record(_strange_record(old_record, number % 8, payload, rng), key)
                        txn.put(key, data, db=tables[Table.RECORDS])
                    case 5:
                        old_claim = codec.decode_claim(txn.get(key, db=tables[Table.CLAIMS]) or b"", key)
                        txn.put(key, codec.encode_claim(_strange_claim(old_claim, rng), key), db=tables[Table.CLAIMS])
                    case _:
                        kind, table = rng.choice(((codec.Kind.CLAIM, Table.CLAIMS), (codec.Kind.RECORD, Table.RECORDS)))
                        frame = codec._frame(kind, codec.Stamp(1, 2, 3, 4), key, payload, "hostile")
                        txn.put(key, frame, db=tables[table])


def _strange_snapshot(old: Snapshot, how: int, payload: bytes, rng: random.Random) -> Snapshot:
    match how:
        case 0:
            return replace(old, state=payload)
        case 1:
            return replace(old, next=payload)
        case _:
            waiting = {"type": "wait", "deadline_at_s": rng.choice(EXTREMES), "remaining_s": rng.choice(EXTREMES)}
            return replace(old, taken_at_s=rng.choice(EXTREMES), next=msgspec.msgpack.encode(waiting))


def _strange_record(old: RunRecord, how: int, payload: bytes, rng: random.Random) -> RunRecord:
    if how == 3:
        return replace(old, options=payload)
    strange: tuple[dict[str, Any], ...] = (
        {"input": payload},
        {"run_type": rng.choice(("os.system", "", "\0", "AsyncFailable"))},
        {"created_at_s": rng.choice(EXTREMES)},
        {"root_run_id": ""},
    )
    return replace(old, **rng.choice(strange))


def _strange_claim(old: RunClaim, rng: random.Random) -> RunClaim:
    strange: tuple[dict[str, Any], ...] = (
        {"deadline_at_s": rng.choice(EXTREMES), "remaining_s": rng.choice(EXTREMES)},
        {"strikes": rng.choice((-1, 2**40))},
        {"attempt": rng.choice((-5, 2**60))},
        {"begun": -1},
        {"claimed_at_s": rng.choice(EXTREMES)},
    )
    return replace(old, **rng.choice(strange))


def boot(folder: Path) -> list[Any]:
    """Open; the healthy ones have to come back and end. Counts of what became of the others, and complaints."""
    wrong: list[str] = []
    world = World()
    with Runtime(
        _store(folder),
        runs=[Factory(FailableRun, world), Factory(AsyncFailableRun, world)],
        restart_policy=THRICE,
        logger=False,
        drain_timeout_s=5.0,
    ) as runtime:
        for number in range(HEALTHY):
            handle = runtime.get(FailableRun, f"healthy-{number}")
            wait_until(lambda handle=handle: handle.status().waiting, 20)  # type: ignore[misc]
            handle.tell(Do("done"))
            if handle.result(20) != 2:
                wrong.append(f"healthy-{number} came back changed")
        for number in range(HOSTILE):  # whoever asks for it gets an answer or a typed error
            try:
                runtime.get(f"hostile-{number}").status()
            except (ExecutusError, TypeError):
                continue
        statuses = Counter(view.status.value for view in runtime.runs())
        if not runtime.health().ok:
            wrong.append(f"health: {runtime.health().store_error}")
    return [{f"hostile runs {status}": count for status, count in statuses.items()}, wrong]
