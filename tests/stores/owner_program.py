"""A daemon that owns a store. Arguments: folder, then `hold`, `fork` (hold, with a child alive) or `save` (until killed)."""

from __future__ import annotations

import os
import sys
from itertools import count

from executus.stores import (
    EPOCHS_PER_BOOT,
    Accepted,
    Claim,
    LmdbStore,
    RunClaim,
    RunRecord,
    RunStatus,
    Save,
    Snapshot,
    Token,
)


def main(folder: str, how: str) -> None:
    store = LmdbStore(folder)
    store.open()
    if how == "fork" and os.fork() == 0:
        sys.stdin.read()  # Until the test closes the pipe: longer than the parent lives.
        os._exit(0)
    if how == "save":
        save_until_killed(store)
    print("ready", flush=True)
    sys.stdin.read()


def save_until_killed(store: LmdbStore) -> None:
    before = store.load("r")
    incarnation, expected = (1, None) if before is None else (before.claim.incarnation, before.claim.token)
    token = Token("r", incarnation, store.boot_epoch * EPOCHS_PER_BOOT)
    claim = RunClaim(run_id="r", incarnation=incarnation, epoch=token.epoch, attempt=1, status=RunStatus.RUNNING)
    record = None
    if before is None:
        record = RunRecord(run_id="r", incarnation=1, run_type="T", input=b"", created_at_s=0.0, root_run_id="r")
    loaded = store.load_snapshot("r")
    print("resumed", loaded.snapshot.seq if loaded else 0, flush=True)
    store.commit([Claim(claim=claim, expected=expected, record=record)])
    for seq in count(loaded.snapshot.seq + 1 if loaded else 1):
        snapshot = Snapshot(
            run_id="r", incarnation=incarnation, epoch=token.epoch, seq=seq, schema_version=1, taken_at_s=0.0,
            state=b"%d " % seq * 300, next=b"",
        )  # fmt: skip
        (verdict,) = store.commit([Save(snapshot=snapshot)])
        assert isinstance(verdict, Accepted), verdict
        print("acknowledged", seq, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
