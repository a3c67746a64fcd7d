"""One commit in the making: operations in, verdicts and row changes out. Touches no disk; reads through `Rows`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, assert_never

from msgspec import UNSET
from msgspec.structs import replace

from executus.stores import codec
from executus.stores.due_rows import PRESENT, due_keys
from executus.stores.ended_rows import ended_row
from executus.stores.errors import RecordCorrupt, RecordTooLarge, StoreTooNew
from executus.stores.fencing import (
    Fit,
    Newest,
    judge_claim,
    judge_damaged,
    judge_delete,
    judge_life,
    judge_seq,
    judge_set_aside,
    judge_settle,
    judge_writer,
)
from executus.stores.inbox_rows import append, consume, drop_everything, drop_messages, read_inbox
from executus.stores.journal_rows import NO_BASES, Bases, bases_of, drop_all, drop_unneeded, put_chunks, read_chunks
from executus.stores.operations import (
    ACCEPTED,
    Append,
    Claim,
    Delete,
    Operation,
    Refusal,
    Refused,
    Save,
    SetAside,
    Settle,
    Verdict,
)
from executus.stores.records import (
    ENDED,
    ENDED_FOR_GOOD,
    LIVE,
    ROUSED,
    TOLD_OF,
    Chunk,
    Inbox,
    ParentLink,
    RunClaim,
    RunStatus,
    Snapshot,
)
from executus.stores.rows import (
    SEPARATOR,
    SLOTS,
    Rows,
    Table,
    child_key,
    range_below,
    run_id_of,
    run_key,
    snapshot_key,
)
from executus.stores.staging import Staging


class Fence(NamedTuple):
    """What a run's next write is checked against. `inbox` None was not read.

    `newest` counts only once it was read, as does `bases`: what the journals of the generation in each slot stand in.
    """

    claim: RunClaim
    newest: Newest | None = None
    newest_was_read: bool = False
    inbox: Inbox | None = None
    bases: tuple[Bases, Bases] = NO_BASES


class Batch:
    """Judges operations one after the other, each seeing the effects of those before.

    `known` are the fences that the store holds in memory; what a run's fence is afterwards stands in `fences`
    (None: the run is gone). Nothing of `known` is changed: a batch that fails leaves no trace.
    """

    def __init__(self, rows: Rows, known: Mapping[str, Fence]) -> None:
        self._staging = Staging(rows)
        self._known = known
        self.fences: dict[str, Fence | None] = {}
        self.writes = self._staging.writes
        self._get = self._staging.get
        self._put = self._staging.put

    def apply(self, operations: Sequence[Operation]) -> list[Verdict]:
        """Raises RecordTooLarge, InvalidRunId, TypeError or ValueError at the first operation that cannot be stored."""
        return [self._apply(operation) for operation in operations]

    def _apply(self, op: Operation) -> Verdict:
        try:
            match op:
                case Save():
                    verdict = self._save(op)
                case Settle():
                    verdict = self._settle(op)
                case Claim():
                    verdict = self._claim(op)
                case SetAside():
                    verdict = self._set_aside(op)
                case Append():
                    return self._append(op)
                case Delete():
                    verdict = self._delete(op)
                case _:
                    assert_never(op)
        except (RecordCorrupt, StoreTooNew):
            return judge_damaged(op)
        return verdict if isinstance(verdict, Refused) else ACCEPTED

    def _claim(self, op: Claim) -> Fit | Refused:
        claim = op.claim
        key = run_key(claim.run_id)
        before = self._fence(claim.run_id, key)
        verdict = judge_claim(op, before.claim if before else None)
        if verdict is not Fit.APPLY:
            return verdict
        if before is None and self._is_gone_child(op, key):
            return Refused(Refusal.GONE)
        after = before._replace(claim=claim) if before else _fresh(claim)
        if before and (op.record is not None or op.drop_snapshots):
            self._drop_snapshots(key, before)
            after = Fence(claim, newest_was_read=True, inbox=before.inbox)
        if op.record is not None:
            data = codec.encode_record(op.record, key)
            if before:
                self._put(Table.OUTCOMES, key, None)
                self._put(Table.FLIGHTS, key, None)
                self._drop_links(key)
                drop_everything(self._staging, key)
                after = _fresh(claim)
            self._put(Table.RECORDS, key, data)
            if op.record.parent is not None:
                link = child_key(run_key(op.record.parent.run_id), key)
                self._put(Table.CHILDREN, link, codec.encode_link(op.record.parent, link))
                if self._get(Table.GONE_CHILDREN, link) is not None:  # of an earlier beginning
                    self._put(Table.GONE_CHILDREN, link, None)
        if op.outcome is not None:
            self._put_outcome(claim, key, op.outcome)
        if op.flight is not None:
            self._put_flight(claim, key, op.flight)
        if claim.status in ENDED_FOR_GOOD:
            after = after._replace(inbox=drop_messages(self._staging, key, self._inbox(key, after)))
        self._put_claim(key, after, before.claim if before else None)
        if claim.status in TOLD_OF:  # a tombstone: of a run at rest nobody may know the children
            self._rouse([*op.rouses, *self._linked(key)])
        return verdict

    def _save(self, op: Save) -> Fit | Refused:
        snapshot = op.snapshot
        key = run_key(snapshot.run_id)
        fence = self._fence(snapshot.run_id, key)
        verdict = judge_writer(snapshot.token, fence.claim if fence else None)
        if verdict is not Fit.APPLY or fence is None:
            return verdict
        fence, verdict = self._put_snapshot(key, fence, snapshot, op.chunks)
        if isinstance(verdict, Refused):
            return verdict
        self.fences[snapshot.run_id] = fence
        if op.clears_strikes and fence.claim.strikes:
            cleared = fence._replace(claim=replace(fence.claim, strikes=0))
            self._put_claim(key, cleared, fence.claim)
        self._consume(key, op.consumed_children)
        return verdict

    def _settle(self, op: Settle) -> Fit | Refused:
        key = run_key(op.token.run_id)
        fence = self._fence(op.token.run_id, key)
        same_outcome = op.outcome is None or fence is None or self._holds_outcome(key, op.outcome)
        verdict = judge_settle(op, fence.claim if fence else None, same_outcome=same_outcome)
        if verdict is not Fit.APPLY or fence is None:
            return verdict
        before = fence.claim
        if op.status is RunStatus.COMPLETED:
            self._drop_snapshots(key, fence)
            fence = Fence(before, newest_was_read=True, inbox=fence.inbox)
        elif op.snapshot is not None:
            fence, _ = self._put_snapshot(key, fence, op.snapshot, op.chunks)
        if op.status in ENDED_FOR_GOOD:
            consumed = max(op.consumed_through, op.snapshot.consumed if op.snapshot else 0)
            inbox = drop_messages(self._staging, key, self._inbox(key, fence), consumed_through=consumed)
            fence = fence._replace(inbox=inbox)
        if op.outcome is not None:
            self._put_outcome(before, key, op.outcome)
        if op.flight is not None:
            self._put_flight(before, key, op.flight)
        self._consume(key, op.consumed_children)
        settled = replace(before, status=op.status, reason=op.reason, ended_at_s=op.ended_at_s)
        if op.status is RunStatus.PASSIVATED:
            dues = (ROUSED, *op.dues) if self._has_news(key, fence) else op.dues
            settled = replace(settled, dues=dues or UNSET)
        self._put_claim(key, fence._replace(claim=settled), before)
        if op.status in TOLD_OF and (op.rouses or op.rouses_children):
            self._rouse([*op.rouses, *(self._linked(key) if op.rouses_children else ())])
        return verdict

    def _set_aside(self, op: SetAside) -> Fit | Refused:
        key = run_key(op.expected.run_id)
        fence = self._fence(op.expected.run_id, key)
        verdict = judge_set_aside(op, fence.claim if fence else None)
        if verdict is Fit.APPLY and fence is not None:
            aside = replace(fence.claim, status=op.status, reason=op.reason)
            if op.at_s is not None and op.status not in LIVE:
                aside = replace(aside, ended_at_s=op.at_s)
            if op.flight is not None:
                self._put_flight(aside, key, op.flight)
            self._put_claim(key, fence._replace(claim=aside), fence.claim)
            if op.rouses and op.status in TOLD_OF:
                self._rouse(op.rouses)
        return verdict

    def _append(self, op: Append) -> Verdict:
        key = run_key(op.run_id)
        fence = self._fence(op.run_id, key)
        claim = judge_life(op, fence.claim if fence else None)
        if isinstance(claim, Refused) or fence is None:
            assert isinstance(claim, Refused)
            return claim
        inbox, verdict = append(self._staging, key, self._inbox(key, fence), op, claim)
        self.fences[op.run_id] = fence._replace(inbox=inbox)
        if claim.status is RunStatus.PASSIVATED and inbox.pending and not isinstance(verdict, Refused):
            self._rouse((op.run_id,))
        return verdict

    # --- passivated runs ---

    def _rouse(self, run_ids: Sequence[str]) -> None:
        """Those of them that are passivated become due at once. One whose claim is damaged nobody can wake."""
        for run_id in run_ids:
            key = run_key(run_id)
            try:
                fence = self._fence(run_id, key)
            except (RecordCorrupt, StoreTooNew):
                continue
            if fence is not None and fence.claim.status is RunStatus.PASSIVATED:
                dues = (ROUSED, *(due for due in fence.claim.due_times if due != ROUSED))
                self._put_claim(key, fence._replace(claim=replace(fence.claim, dues=dues)), fence.claim)

    def _has_news(self, key: bytes, fence: Fence) -> bool:
        """Whether something waits already for a run that is to be passivated.

        Who brought it looked for a passivated run, and found one that still ran: of the two, one sees the other.
        """
        if self._inbox(key, fence).pending:
            return True
        for child in self._children_of(key, fence.claim):
            claim = self._readable_claim(child)
            if claim is not None and claim.status in TOLD_OF:
                return True
        try:
            data = self._get(Table.RECORDS, key)
            link = codec.decode_record(data, key).parent if data is not None else None
            parent = None if link is None else self._get(Table.CLAIMS, run_key(link.run_id))
            claim = None if link is None or parent is None else codec.decode_claim(parent, run_key(link.run_id))
        except (RecordCorrupt, RecordTooLarge, StoreTooNew):
            return False  # as for a boot: then nobody knows that it has ended
        if link is None:
            return False
        return claim is None or claim.incarnation != link.incarnation or claim.status in ENDED

    def _children_of(self, key: bytes, claim: RunClaim) -> Iterator[bytes]:
        """The keys of the children whose ends it is still to be told of: not those of an earlier beginning."""
        for link_key, data in self._staging.items(Table.CHILDREN, *range_below(key)):
            try:
                link = codec.decode_link(data, link_key)
            except (RecordCorrupt, RecordTooLarge, StoreTooNew):
                continue
            if (link.incarnation, link.begun) == (claim.incarnation, claim.begun):
                yield link_key.partition(SEPARATOR)[2]

    def _readable_claim(self, key: bytes) -> RunClaim | None:
        data = self._get(Table.CLAIMS, key)
        try:
            return None if data is None else codec.decode_claim(data, key)
        except (RecordCorrupt, RecordTooLarge, StoreTooNew):
            return None

    def _delete(self, op: Delete) -> Fit | Refused:
        key = run_key(op.token.run_id)
        fence = self._fence(op.token.run_id, key)
        verdict = judge_delete(op, fence.claim if fence else None)
        if verdict is Fit.APPLY:
            self._drop_snapshots(key, fence)
            self._leave_to_parent(key)
            self._drop_links(key)
            drop_everything(self._staging, key)
            for table in (Table.CLAIMS, Table.RECORDS, Table.OUTCOMES, Table.LIVE, Table.FLIGHTS):
                self._put(table, key, None)
            self._move_in_index(fence.claim if fence else None, None)
            self.fences[op.token.run_id] = None
        return verdict

    def _fence(self, run_id: str, key: bytes) -> Fence | None:
        if run_id in self.fences:
            return self.fences[run_id]
        fence = self._known.get(run_id)
        if fence is None:
            data = self._get(Table.CLAIMS, key)
            if data is None:
                if self._get(Table.RECORDS, key) is not None:  # a flipped bit in its key hides the claim: not a free id
                    raise RecordCorrupt("its claim is not there", run_id=run_id, what="claim")
                return None
            fence = self.fences[run_id] = Fence(codec.decode_claim(data, key))
        return fence

    def _put_claim(self, key: bytes, fence: Fence, before: RunClaim | None) -> None:
        claim = fence.claim
        if claim.dues is not UNSET and claim.status is not RunStatus.PASSIVATED:
            claim = replace(claim, dues=UNSET)
            fence = fence._replace(claim=claim)
        self._put(Table.CLAIMS, key, codec.encode_claim(claim, key))
        is_live, was_live = claim.status in LIVE, before is not None and before.status in LIVE
        if is_live != was_live:
            # Ten per cent of a commit when it is written with every save.
            self._put(Table.LIVE, key, b"\1" if is_live else None)
        if not (is_live and (was_live or before is None)):
            self._move_in_index(before, claim)
        self.fences[claim.run_id] = fence

    def _move_in_index(self, before: RunClaim | None, after: RunClaim | None) -> None:
        """Keep the indexes of ended and of due runs: where it stood, and where it stands now."""
        was = None if before is None else ended_row(before)
        now = None if after is None else ended_row(after)
        if was != now and was is not None:
            self._put(was.table, was.key, None)
        if was != now and now is not None:
            self._put(now.table, now.key, PRESENT)
        was_due = due_keys(before) if before is not None else ()
        now_due = due_keys(after) if after is not None else ()
        for key in was_due:
            if key not in now_due:
                self._put(Table.DUE, key, None)
        for key in now_due:
            if key not in was_due:
                self._put(Table.DUE, key, PRESENT)

    def _put_snapshot(
        self, key: bytes, fence: Fence, snapshot: Snapshot, chunks: Sequence[Chunk]
    ) -> tuple[Fence, Fit | Refused]:
        newest, bases = fence.newest, fence.bases
        if not fence.newest_was_read:
            newest, bases = self._read_newest(key, fence.claim.incarnation)
        verdict = judge_seq(snapshot.seq, newest, fence.claim)
        if verdict is Fit.APPLY:
            # Never over the newest readable generation, so that a torn or damaged write leaves one to go back to.
            slot = 1 - newest.slot if newest else 0
            slot_key = snapshot_key(key, slot)
            self._put(Table.SNAPSHOTS, slot_key, codec.encode_snapshot(snapshot, slot_key))
            if chunks:
                put_chunks(self._staging, key, snapshot, chunks)
            if bases != NO_BASES or snapshot.journals:
                needed, before, other = bases_of(snapshot), bases[slot], bases[1 - slot]
                drop_unneeded(self._staging, key, before, needed, other)
                bases = (other, needed) if slot else (needed, other)
            written = Newest(snapshot.seq, slot, snapshot.consumed)
            inbox = fence.inbox
            if written.consumed:
                kept = newest.consumed if newest else 0
                inbox = consume(self._staging, key, self._inbox(key, fence), written.consumed, dropping=kept)
            return Fence(fence.claim, written, newest_was_read=True, inbox=inbox, bases=bases), verdict
        return Fence(fence.claim, newest, newest_was_read=True, inbox=fence.inbox, bases=bases), verdict

    def _inbox(self, key: bytes, fence: Fence) -> Inbox:
        return fence.inbox if fence.inbox is not None else read_inbox(self._staging, key, fence.claim.incarnation)

    def _read_newest(self, key: bytes, incarnation: int) -> tuple[Newest | None, tuple[Bases, Bases]]:
        newest: Newest | None = None
        bases: list[Bases] = list(NO_BASES)
        for slot in SLOTS:
            slot_key = snapshot_key(key, slot)
            data = self._get(Table.SNAPSHOTS, slot_key)
            if data is None:
                continue
            bases[slot] = None
            try:
                snapshot = codec.decode_snapshot(data, slot_key)
                bases[slot] = bases_of(snapshot)
                read_chunks(self._staging.items, key, snapshot)
            except (RecordCorrupt, RecordTooLarge, StoreTooNew):
                continue
            if snapshot.incarnation == incarnation and (newest is None or snapshot.seq > newest.seq):
                newest = Newest(snapshot.seq, slot, snapshot.consumed)
        return newest, (bases[0], bases[1])

    def _drop_snapshots(self, key: bytes, fence: Fence | None) -> None:
        for slot in SLOTS:
            self._put(Table.SNAPSHOTS, snapshot_key(key, slot), None)
        if fence is None or not fence.newest_was_read or fence.bases != NO_BASES:
            drop_all(self._staging, key)

    def _put_outcome(self, claim: RunClaim, key: bytes, outcome: bytes) -> None:
        stamp = codec.Stamp(claim.incarnation, claim.epoch)
        self._put(Table.OUTCOMES, key, codec.encode_outcome(outcome, stamp, key, claim.run_id))

    def _put_flight(self, claim: RunClaim, key: bytes, flight: bytes) -> None:
        stamp = codec.Stamp(claim.incarnation, claim.epoch)
        self._put(Table.FLIGHTS, key, codec.encode_flight(flight, stamp, key, claim.run_id))

    def _holds_outcome(self, key: bytes, outcome: bytes) -> bool:
        data = self._get(Table.OUTCOMES, key)
        try:
            return data is not None and codec.decode_outcome(data, key) == outcome
        except (RecordCorrupt, RecordTooLarge):
            return False

    def _consume(self, parent: bytes, children: Sequence[str]) -> None:
        for child in children:
            self._put(Table.CHILDREN, child_key(parent, run_key(child)), None)

    def _leave_to_parent(self, key: bytes) -> None:
        """A parent that goes on, and has taken in the end of this child, may spawn it again when it repeats a step."""
        data = self._get(Table.RECORDS, key)
        try:
            parent = codec.decode_record(data, key).parent if data is not None else None
        except (RecordCorrupt, RecordTooLarge, StoreTooNew):
            return
        if parent is None:
            return
        link = child_key(run_key(parent.run_id), key)
        if self._get(Table.CHILDREN, link) is None and self._goes_on(parent):
            self._put(Table.GONE_CHILDREN, link, codec.encode_link(parent, link))

    def _goes_on(self, parent: ParentLink) -> bool:
        try:
            fence = self._fence(parent.run_id, run_key(parent.run_id))
        except (RecordCorrupt, StoreTooNew):
            return True  # nobody knows that it has ended
        if fence is None or (fence.claim.incarnation, fence.claim.begun) != (parent.incarnation, parent.begun):
            return False
        return fence.claim.status not in ENDED_FOR_GOOD

    def _is_gone_child(self, op: Claim, key: bytes) -> bool:
        parent = None if op.record is None else op.record.parent
        if parent is None:
            return False
        link = child_key(run_key(parent.run_id), key)
        data = self._get(Table.GONE_CHILDREN, link)
        if data is None:
            return False
        gone = codec.decode_link(data, link)
        return (gone.incarnation, gone.begun) == (parent.incarnation, parent.begun)

    def _drop_links(self, key: bytes) -> None:
        """Drop the links of a run's children, who are orphans then, and its own to its parent."""
        self._rouse(self._linked(key))
        for link in [*self._links_below(*range_below(key)), *self._own_links(key)]:
            self._put(Table.CHILDREN, link, None)
        for link in self._staging.keys(Table.GONE_CHILDREN, *range_below(key)):
            self._put(Table.GONE_CHILDREN, link, None)

    def _own_links(self, key: bytes) -> list[bytes]:
        data = self._get(Table.RECORDS, key)
        try:
            parent = codec.decode_record(data, key).parent if data is not None else None
            return [child_key(run_key(parent.run_id), key)] if parent else []
        except (RecordCorrupt, RecordTooLarge, StoreTooNew):
            # Only the damaged record knew the parent: look through all links instead.
            return [link for link in self._links_below(b"", None) if link.endswith(SEPARATOR + key)]

    def _linked(self, key: bytes) -> list[str]:
        """The ids of a run's children, of whatever beginning."""
        return [run_id_of(link.partition(SEPARATOR)[2]) for link in self._links_below(*range_below(key))]

    def _links_below(self, first: bytes, below: bytes | None) -> list[bytes]:
        return self._staging.keys(Table.CHILDREN, first, below)


def _fresh(claim: RunClaim) -> Fence:
    """Of a new life: it has no generation and no message."""
    return Fence(claim, newest_was_read=True, inbox=Inbox(incarnation=claim.incarnation))
