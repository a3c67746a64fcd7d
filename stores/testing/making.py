"""Values for tests of stores, with whatever does not matter filled in."""

from __future__ import annotations

from typing import Any

from executus.stores import (
    EPOCHS_PER_BOOT,
    Accepted,
    Append,
    CheckpointStore,
    Claim,
    Delete,
    ParentLink,
    Refusal,
    Refused,
    RunClaim,
    RunRecord,
    RunStatus,
    Save,
    SetAside,
    Settle,
    Snapshot,
    Token,
    Verdict,
)


def record(run_id: str = "r", incarnation: int = 1, **facts: Any) -> RunRecord:
    values: dict[str, Any] = {
        "run_id": run_id,
        "incarnation": incarnation,
        "run_type": "T",
        "input": b"input",
        "created_at_s": 1.0,
        "root_run_id": run_id,
    }
    return RunRecord(**values | facts)


def claim(run_id: str = "r", epoch: int = 1, incarnation: int = 1, **facts: Any) -> RunClaim:
    values: dict[str, Any] = {
        "run_id": run_id,
        "incarnation": incarnation,
        "epoch": epoch,
        "attempt": 1,
        "status": RunStatus.RUNNING,
    }
    return RunClaim(**values | facts)


def snapshot(token: Token, seq: int, state: bytes | None = None, **facts: Any) -> Snapshot:
    values: dict[str, Any] = {
        "run_id": token.run_id,
        "incarnation": token.incarnation,
        "epoch": token.epoch,
        "seq": seq,
        "schema_version": 1,
        "taken_at_s": 2.0,
        "state": state if state is not None else b"state %d" % seq,
        "next": b"next",
    }
    return Snapshot(**values | facts)


def save(
    token: Token, seq: int, state: bytes | None = None, *, consumed_through: int | None = None, **options: Any
) -> Save:
    facts = {} if consumed_through is None else {"consumed_through": consumed_through}
    return Save(snapshot=snapshot(token, seq, state, **facts), **options)


def started(run_id: str = "r", epoch: int = 1, incarnation: int = 1, **facts: Any) -> Claim:
    """The first claim of a run."""
    return Claim(claim=claim(run_id, epoch, incarnation), expected=None, record=record(run_id, incarnation, **facts))


def child_of(parent: Token, run_id: str, key: str = "k", epoch: int = 1) -> Claim:
    link = ParentLink(parent.run_id, parent.incarnation, key)
    return started(run_id, epoch, parent=link, root_run_id=parent.run_id)


def reclaimed(before: Token, epoch: int, **options: Any) -> Claim:
    """The next execution of the same life."""
    return Claim(claim=claim(before.run_id, epoch, before.incarnation, attempt=2), expected=before, **options)


def reborn(before: Token, epoch: int, **facts: Any) -> Claim:
    """The next life of the same id."""
    incarnation = before.incarnation + 1
    return Claim(
        claim=claim(before.run_id, epoch, incarnation),
        expected=before,
        record=record(before.run_id, incarnation, **facts),
    )


def settled(token: Token, status: RunStatus = RunStatus.COMPLETED, **facts: Any) -> Settle:
    return Settle(token=token, status=status, **facts)


def append(token: Token, message_id: str, body: bytes = b"body", *, limit: int = 100, **facts: Any) -> Append:
    """A message for the life of this token."""
    return Append(
        run_id=token.run_id,
        incarnation=token.incarnation,
        message_id=message_id,
        body=body,
        sent_at_s=3.0,
        limit=limit,
        **facts,
    )


def numbered(store: CheckpointStore, *operations: Append) -> list[int | Refusal]:
    """Commit each message by itself; the number that it got, or why it was refused."""
    verdicts = [store.commit([operation])[0] for operation in operations]
    return [verdict.number if isinstance(verdict, Accepted) else verdict.why for verdict in verdicts]


def pending(store: CheckpointStore, run_id: str = "r") -> list[int]:
    return [stored.number for stored in store.messages(run_id)]


def set_aside(token: Token, status: RunStatus = RunStatus.QUARANTINED, reason: str = "unreadable") -> SetAside:
    return SetAside(expected=token, status=status, reason=reason)


def deleted(token: Token) -> Delete:
    return Delete(token=token)


def why(verdict: Verdict) -> Refusal | None:
    """What a verdict says, in short: None is accepted."""
    return verdict.why if isinstance(verdict, Refused) else None


def commit_one(store: CheckpointStore, *operations: Any) -> Refusal | None:
    """Commit each operation by itself and return what was said of the last."""
    verdict: Refusal | None = None
    for operation in operations:
        verdict = why(store.commit([operation])[0])
    return verdict


def begin(store: CheckpointStore, run_id: str = "r", **facts: Any) -> Token:
    """Start a run under an epoch of this boot and return its token."""
    epoch = store.boot_epoch * EPOCHS_PER_BOOT + 1
    assert commit_one(store, started(run_id, epoch, **facts)) is None
    return Token(run_id, 1, epoch)
