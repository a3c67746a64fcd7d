"""The closed union of writes, and the verdict on each. New kinds of write are new members here, not new doors."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from executus.stores.records import Chunk, Due, RunClaim, RunRecord, RunStatus, Snapshot, Token


class Claim(msgspec.Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Take a run for execution under a newer epoch: compare-and-set on the token that is there now.

    `expected` None: the id must be free. `record` begins a new incarnation: it replaces the record and drops
    snapshots, outcome and child links of the one before. `outcome` is kept with the claim: that of a tombstone (a claim
    with a terminal status), or the last result of a permanent run. `drop_snapshots` makes the execution begin afresh.
    Refused FENCED when the token there is another one or the epoch is not newer than its, EXISTS when `expected` is
    None and the id is taken, MISSING when it is gone, GONE for a child that was deleted after this beginning of its
    parent had taken in its end: a step that is repeated must not begin it once more. The same claim once more (a retry
    after an unknown outcome) is accepted. A claim that is an ending itself is refused SETTLED where the run has ended
    already: the first ending stands. A new record also drops the run's own link to the parent that its old record
    named, all messages with their ids, and its flight record. A claim that ends the run for good drops its messages;
    `drop_snapshots` keeps those that are pending. `flight` takes the place of the flight record that is there, readable
    or not; without one that stays. `rouses` as in Settle; a claim that is an ending rouses its children as well.
    """

    claim: RunClaim
    expected: Token | None
    record: RunRecord | None = None
    outcome: bytes | None = None
    drop_snapshots: bool = False
    flight: bytes | None = None
    rouses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError where the parts belong to different lives: caught where they are put together."""
        life = (self.claim.run_id, self.claim.incarnation)
        if self.record is not None and (self.record.run_id, self.record.incarnation) != life:
            raise ValueError(f"claim of {life} with the record of {(self.record.run_id, self.record.incarnation)}")
        if self.expected is None:
            if self.record is None:
                raise ValueError(f"the first claim of {life} needs its record")
        elif self.expected.run_id != life[0] or (self.record is None and self.expected.incarnation != life[1]):
            raise ValueError(f"claim of {life} expects the token of {self.expected[:2]}")


class Save(msgspec.Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Keep a snapshot as the newest generation; the one before stays as the second, older ones go.

    The run must be there, else MISSING; the snapshot's own (incarnation, epoch) must be the current claim's and that
    claim RUNNING, else FENCED or SETTLED; its seq must be newer than the newest readable generation, else STALE —
    except that the very same (epoch, seq), or the same seq saved by an earlier epoch, is accepted without writing it
    again: it is there. `clears_strikes` sets the claim's strikes to 0 in the same commit. `consumed_children` are ids
    whose end this state has taken in: their links leave `children()`. Messages up to the snapshot's `consumed_through`
    are consumed in the same commit; each leaves `messages()` once the generation before has consumed it as well, so
    that nothing is missing where the newer one turns out to be damaged. `chunks` are what the snapshot's journals have
    that is not stored yet: they are written if it is, and stay until no generation needs their base.
    """

    snapshot: Snapshot
    clears_strikes: bool = False
    consumed_children: tuple[str, ...] = ()
    chunks: tuple[Chunk, ...] = ()


class Settle(msgspec.Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """End an execution: status and outcome, compare-and-set from RUNNING under exactly this token.

    `snapshot`, if given, is saved with its `chunks` under the rules of Save (one that is not newer is left out, not
    refused). COMPLETED drops the snapshots and their chunks. Refused FENCED, SETTLED (another ending was first) or
    MISSING. The same ending once more is accepted. Messages up to `consumed_through` went into the outcome; an ending
    for good (all but FAILED) drops the others. `flight` as in Claim.

    PASSIVATED is no ending: the run rests until one of its `dues`, or until it is claimed again. It is due at once,
    whatever `dues` say, where something is there already that it waits for: a message that is not consumed, a child
    among `children()` that has ended, or its parent has. `rouses` are the ids of others whom an ending concerns, its
    parent and its children: those of them that are passivated become due at once, as does who gets an Append.
    `rouses_children` is for who does not know them: an ending rouses all those that are linked to the run then.
    """

    token: Token
    status: RunStatus
    reason: str = ""
    outcome: bytes | None = None
    snapshot: Snapshot | None = None
    consumed_children: tuple[str, ...] = ()
    consumed_through: int = 0
    chunks: tuple[Chunk, ...] = ()
    ended_at_s: float | None = None
    flight: bytes | None = None
    dues: tuple[Due, ...] = ()
    rouses: tuple[str, ...] = ()
    rouses_children: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for an ending that is none, or a snapshot of another execution."""
        if self.status is RunStatus.RUNNING:
            raise ValueError(f"run {self.token.run_id!r} cannot be settled as running")
        if self.snapshot is not None and self.snapshot.token != self.token:
            raise ValueError(f"settling {self.token} with a snapshot of {self.snapshot.token}")


class SetAside(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Park or quarantine a run that cannot be read: record and snapshots keep their bytes.

    Only claim row and indexes change. `expected` and `flight` as in Claim; the epoch stays. `at_s` (wall) is when a
    quarantined run came to rest. `rouses` as in Settle. Refused FENCED, MISSING, or SETTLED where it has ended for
    good.
    """

    expected: Token
    status: RunStatus
    reason: str
    at_s: float | None = None
    flight: bytes | None = None
    rouses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for a status that sets nothing aside."""
        if self.status not in {RunStatus.PARKED, RunStatus.QUARANTINED}:
            raise ValueError(f"run {self.expected.run_id!r} cannot be set aside as {self.status.value}")


class Append(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Keep a message for this life of a run, behind those that it has: the store gives it the next number, from 1.

    Accepted with its number. An id that the life has taken before is accepted with the number that it got then, and
    changes nothing: at least the last REMEMBERED_IDS consumed ones are known, also when the run has ended, and all that
    are pending. Refused MISSING where the run is gone, FENCED where another life has the id, SETTLED where the run has
    ended, FULL where `limit` messages are pending. What rests without having ended takes messages.
    """

    run_id: str
    incarnation: int
    message_id: str
    body: bytes
    sent_at_s: float
    expires_at_s: float | None = None
    limit: int


class Delete(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Remove everything of a run that is not RUNNING: all its rows, links, messages and their ids.

    Of a child whose end its parent has taken in, and which that may spawn again, it stays known that there was one.
    Refused FENCED under another token, RUNNING while it runs. Deleting what is not there is accepted.
    """

    token: Token


Operation = Claim | Save | Settle | SetAside | Append | Delete

REMEMBERED_IDS: Final = 1000
"""Ids of consumed messages that are remembered for each life; between so many and twice as many are kept."""


class Refusal(enum.StrEnum):
    """Why the store refused one operation. The others of the same commit are not touched by it."""

    EXISTS = "exists"
    MISSING = "missing"
    FENCED = "fenced"
    STALE = "stale"
    SETTLED = "settled"
    RUNNING = "running"
    FULL = "full"
    GONE = "gone"


class Accepted(msgspec.Struct, frozen=True, tag=True, gc=False):
    """The operation is in the commit. `number` is the message's, of an Append."""

    number: int = 0


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The operation was left out of the commit; `current` is the claim that was in its way, if there is one.

    A claim whose row is damaged is in everybody's way: EXISTS or FENCED, with `current` None.
    """

    why: Refusal
    current: RunClaim | None = None


Verdict = Accepted | Refused
ACCEPTED: Final = Accepted()
