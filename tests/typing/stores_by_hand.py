"""Typing example: reading a store by hand. Every assert_type is what a user's editor shows."""

from __future__ import annotations

from typing import assert_never, assert_type

from executus.stores.operations import Accepted, Delete, Operation, Refused, Verdict
from executus.stores.protocol import CheckpointStore
from executus.stores.records import RunClaim, StoredRun, Token


def forget_ended(store: CheckpointStore, run_id: str) -> bool:
    """Delete a run that no longer runs; False where it was refused."""
    stored = store.load(run_id)
    assert_type(stored, StoredRun | None)
    if stored is None:
        return False
    claim = stored.claim
    assert_type(claim, RunClaim)
    assert_type(claim.token, Token)
    operations: list[Operation] = [Delete(token=claim.token)]
    verdict: Verdict = store.commit(operations)[0]
    match verdict:
        case Accepted():
            return True
        case Refused():
            return False
        case _:
            assert_never(verdict)
