"""A store that counts commits, and at one of them lets its process die."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from executus.stores import ACCEPTED, CheckpointStore, Claim, Delete, Operation, Save, SetAside, Settle, Verdict

Side = Literal["before", "after"]


class DeathAt(msgspec.Struct, frozen=True):
    """The process dies at that commit, counted from 1: before anything is durable, or after all is.

    After: before anybody has heard of it. With `saved_to` the saves in later commits than that one do not come about,
    of the run types in `throttled`: as where a run is ahead of its throttled saves. Their runs do not notice.
    """

    commit: int
    side: Side
    saved_to: int | None = None
    throttled: frozenset[str] = frozenset()


class DyingStore:
    """A CheckpointStore over another one. `die()` does not return."""

    def __init__(self, disk: CheckpointStore, death: DeathAt | None, die: Callable[[], object]) -> None:
        self.commits: list[str] = []
        """What each commit held, in words."""
        self._disk = disk
        self._death = death
        self._die = die
        self._throttled: set[str] = set()
        """Ids of the runs that may be ahead of their saves."""

    def __getattr__(self, name: str) -> Any:
        """Everything but `commit` is the other store's."""
        return getattr(self._disk, name)

    def commit(self, operations: Sequence[Operation], *rest: Any) -> list[Verdict]:
        """See CheckpointStore."""
        self.commits.append(in_words(operations))
        number = len(self.commits)
        death = self._death
        if death is None:
            return self._disk.commit(operations, *rest)
        if death.commit == number and death.side == "before":
            self._die()
        if death.saved_to is None:
            verdicts = self._disk.commit(operations, *rest)
        else:
            verdicts = self._without_saves(operations, death, number)
        if death.commit == number:
            self._die()
        return verdicts

    def _without_saves(self, operations: Sequence[Operation], death: DeathAt, number: int) -> list[Verdict]:
        assert death.saved_to is not None
        self._throttled.update(
            op.record.run_id
            for op in operations
            if isinstance(op, Claim) and op.record is not None and op.record.run_type in death.throttled
        )
        left_out = [
            number > death.saved_to and isinstance(op, Save) and op.snapshot.run_id in self._throttled
            for op in operations
        ]
        verdicts = iter(self._disk.commit([op for op, out in zip(operations, left_out, strict=True) if not out]))
        return [ACCEPTED if out else next(verdicts) for out in left_out]


def in_words(operations: Sequence[Operation], at_most: int = 4) -> str:
    """What a commit holds, for people."""
    words = [_in_words(operation) for operation in operations]
    more = [f"{len(words) - at_most} more"] if len(words) > at_most else []
    return ", ".join([*words[:at_most], *more])


def _in_words(operation: Operation) -> str:
    match operation:
        case Claim(claim=claim, record=record):
            return f"{'start' if record is not None else f'attempt {claim.attempt} of'} {claim.run_id!r}"
        case Save(snapshot=snapshot):
            return f"save {snapshot.run_id!r} at seq {snapshot.seq}"
        case Settle(token=token, status=status):
            return f"{token.run_id!r} is {status.value}"
        case SetAside(expected=token, status=status):
            return f"{token.run_id!r} is {status.value}"
        case Delete(token=token):
            return f"delete {token.run_id!r}"
        case _:
            return type(operation).__name__.lower()
