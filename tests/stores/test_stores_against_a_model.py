"""Every store against a plain model: the rules written a second time, in the most naive way there is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from executus.stores import (
    ENDED,
    ENDED_FOR_GOOD,
    LIVE,
    ROUSED,
    TOLD_OF,
    Append,
    Base,
    CheckpointStore,
    Chunk,
    Claim,
    Delete,
    Due,
    MemoryStore,
    Operation,
    ParentLink,
    Piece,
    RecordCorrupt,
    RunClaim,
    RunRecord,
    RunStatus,
    Save,
    SetAside,
    Settle,
    Snapshot,
    Token,
    codec,
)
from executus.stores.rows import Table, chunk_base, chunk_key, range_below, run_key
from tests.stores.disks import Disk, LmdbDisk, MemoryDisk, damage, flip_last_bit
from tests.stores.making import claim, record, snapshot, why

IDS = ("a", "ab", "b")
ROUSES = ((), (), ("a",), ("ab", "b"), ("nobody",))


class Life:
    """All that is kept of one run."""

    def __init__(self, claim: RunClaim, record: RunRecord | None) -> None:
        self.claim = claim
        self.record = record
        self.generations: list[tuple[Snapshot, bool]] = []
        """(snapshot, readable), oldest first, at most two."""
        self.outcome: bytes | None = None
        self.flight: bytes | None = None
        self.ids: dict[str, int] = {}
        self.consumed = 0
        self.gone = 0
        """Messages up to here have left: consumed by both generations, or dropped at an ending."""

    def consume(self, through: int, before: int) -> None:
        self.consumed = max(self.consumed, min(through, len(self.ids)))
        self.gone = max(self.gone, min(before, self.consumed))

    def end(self, through: int = 0) -> None:
        self.consume(through, 0)
        self.gone = len(self.ids)

    def pending(self) -> int:
        return len(self.ids) - max(self.consumed, self.gone)

    def readable(self) -> list[Snapshot]:
        return [snapshot for snapshot, readable in self.generations if readable]

    def keep(self, snapshot: Snapshot) -> str:
        newest = max((kept.seq for kept in self.readable()), default=-1)
        if snapshot.seq == newest:
            return "already"
        if snapshot.seq < newest:
            return "stale"
        last = self.readable()[-1:]
        if snapshot.consumed:
            self.consume(snapshot.consumed, last[0].consumed if last else 0)
        self.generations = [(kept, True) for kept in last] + [(snapshot, True)]
        return "kept"


class Model:
    def __init__(self) -> None:
        self.gone: dict[tuple[str, str], ParentLink] = {}
        self.lives: dict[str, Life] = {}
        self.links: dict[tuple[str, str], ParentLink] = {}

    def apply(self, op: Operation) -> str | None:
        match op:
            case Claim():
                return self.claim(op)
            case Save():
                return self.save(op)
            case Settle():
                return self.settle(op)
            case SetAside():
                return self.set_aside(op)
            case Append():
                return self.append(op)
            case Delete():
                return self.delete(op)

    def claim(self, op: Claim) -> str | None:
        run_id = op.claim.run_id
        life = self.lives.get(run_id)
        if life is None and op.expected is not None:
            return "missing"
        if life is not None:
            if (life.claim.token, life.claim.status) == (op.claim.token, op.claim.status):
                return None
            if op.expected is None:
                return "exists"
            if life.claim.token != op.expected or op.claim.epoch <= life.claim.epoch:
                return "fenced"
            if op.claim.status in ENDED and life.claim.status in ENDED:
                return "settled"
        parent = op.record.parent if op.record is not None else None
        if life is None and parent is not None and self.gone.get((parent.run_id, run_id)) == parent:
            return "gone"
        if op.record is not None:
            self.forget(run_id)
            life = self.lives[run_id] = Life(op.claim, op.record)
            if op.record.parent is not None:
                self.links[op.record.parent.run_id, run_id] = op.record.parent
                self.gone.pop((op.record.parent.run_id, run_id), None)
        assert life is not None
        life.claim = op.claim
        self.rouse((*op.rouses, *(child for parent, child in self.links if parent == run_id)), op.claim.status)
        if op.drop_snapshots:
            life.generations = []
        if op.outcome is not None:
            life.outcome = op.outcome
        if op.flight is not None:
            life.flight = op.flight
        if op.claim.status in ENDED_FOR_GOOD:
            life.end()
        return None

    def append(self, op: Append) -> str | None:
        life = self.lives.get(op.run_id)
        if life is None:
            return "missing"
        if life.claim.incarnation != op.incarnation:
            return "fenced"
        known = life.ids.get(op.message_id)
        if known is not None and (known <= life.consumed or life.claim.status not in ENDED_FOR_GOOD):
            self.rouse((op.run_id,) if life.pending() else ())
            return None
        if life.claim.status in ENDED:
            return "settled"
        if life.pending() >= op.limit:
            return "full"
        life.ids[op.message_id] = len(life.ids) + 1
        self.rouse((op.run_id,))
        return None

    def rouse(self, run_ids: Iterable[str], ending: RunStatus = RunStatus.COMPLETED) -> None:
        for run_id in run_ids:
            life = self.lives.get(run_id)
            if life is not None and life.claim.status is RunStatus.PASSIVATED and ending in TOLD_OF:
                dues = (ROUSED, *(due for due in life.claim.due_times if due != ROUSED))
                life.claim = replace(life.claim, dues=dues)

    def has_news(self, run_id: str, life: Life) -> bool:
        for (parent, child), link in self.links.items():
            ours = parent == run_id and (link.incarnation, link.begun) == (life.claim.incarnation, life.claim.begun)
            if ours and child in self.lives and self.lives[child].claim.status in TOLD_OF:
                return True
        if life.pending():
            return True
        link = life.record.parent if life.record else None
        above = self.lives.get(link.run_id) if link else None
        return link is not None and (
            above is None or above.claim.incarnation != link.incarnation or above.claim.status in ENDED
        )

    def writer(self, token: Token) -> str | None:
        life = self.lives.get(token.run_id)
        if life is None:
            return "missing"
        if life.claim.token != token:
            return "fenced"
        return None if life.claim.status is RunStatus.RUNNING else "settled"

    def save(self, op: Save) -> str | None:
        refused = self.writer(op.snapshot.token)
        if refused:
            return refused
        life = self.lives[op.snapshot.run_id]
        if life.keep(op.snapshot) == "stale":
            return "stale"
        if op.clears_strikes:
            life.claim = replace(life.claim, strikes=0)
        self.consume(op.snapshot.run_id, op.consumed_children)
        return None

    def settle(self, op: Settle) -> str | None:
        refused = self.writer(op.token)
        if refused == "settled":
            life = self.lives[op.token.run_id]
            same = (life.claim.status, life.claim.reason, life.claim.ended_at_s) == (
                op.status,
                op.reason,
                op.ended_at_s,
            )
            if same and op.outcome in (None, life.outcome):
                return None
        if refused:
            return refused
        life = self.lives[op.token.run_id]
        if op.snapshot is not None:
            life.keep(op.snapshot)
        if op.status is RunStatus.COMPLETED:
            life.generations = []
        if op.outcome is not None:
            life.outcome = op.outcome
        if op.flight is not None:
            life.flight = op.flight
        if op.status in ENDED_FOR_GOOD:
            life.end(op.consumed_through)
        self.consume(op.token.run_id, op.consumed_children)
        life.claim = replace(life.claim, status=op.status, reason=op.reason, ended_at_s=op.ended_at_s)
        if op.status is RunStatus.PASSIVATED:
            dues = (ROUSED, *op.dues) if self.has_news(op.token.run_id, life) else op.dues
            life.claim = replace(life.claim, dues=dues or msgspec.UNSET)
        self.rouse(op.rouses, op.status)
        return None

    def set_aside(self, op: SetAside) -> str | None:
        life = self.lives.get(op.expected.run_id)
        if life is None:
            return "missing"
        if life.claim.token != op.expected:
            return "fenced"
        for_good = {RunStatus.COMPLETED, RunStatus.KILLED, RunStatus.CANCELLED, RunStatus.TIMED_OUT}
        if life.claim.status in for_good:
            return "settled"
        # What is set aside in the same words already is left as it is.
        if op.flight is not None and (life.claim.status, life.claim.reason) != (op.status, op.reason):
            life.flight = op.flight
        life.claim = replace(life.claim, status=op.status, reason=op.reason, dues=msgspec.UNSET)
        self.rouse(op.rouses, op.status)
        return None

    def delete(self, op: Delete) -> str | None:
        life = self.lives.get(op.token.run_id)
        if life is None:
            return None
        if life.claim.token != op.token:
            return "fenced"
        if life.claim.status is RunStatus.RUNNING:
            return "running"
        link = life.record.parent if life.record else None
        known = self.lives.get(link.run_id) if link else None
        if link and known and (link.run_id, op.token.run_id) not in self.links:
            same = (known.claim.incarnation, known.claim.begun) == (link.incarnation, link.begun)
            if same and known.claim.status not in ENDED_FOR_GOOD:
                self.gone[link.run_id, op.token.run_id] = link
        self.forget(op.token.run_id)
        return None

    def forget(self, run_id: str) -> None:
        life = self.lives.pop(run_id, None)
        if life is None:
            return
        self.rouse([child for parent, child in self.links if parent == run_id])
        own = (life.record.parent.run_id, run_id) if life.record and life.record.parent else None
        self.links = {pair: link for pair, link in self.links.items() if pair[0] != run_id and pair != own}
        self.gone = {pair: link for pair, link in self.gone.items() if pair[0] != run_id}

    def consume(self, parent: str, children: tuple[str, ...]) -> None:
        for child in children:
            self.links.pop((parent, child), None)


class StoresAgainstAModel(RuleBasedStateMachine):
    """Any sequence of commits, reboots and flipped bits: the same verdicts, and the same things to read."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.model = Model()
        self.disks: list[Disk] = [MemoryDisk(), LmdbDisk(self.folder)]
        self.stores: list[CheckpointStore] = [disk.store() for disk in self.disks]
        self.epoch = 0
        self.sent = 0
        self.bases = 0
        self.flown = 0

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        shutil.rmtree(self.folder)

    @initialize()
    def boot(self) -> None:
        for store in self.stores:
            store.open()

    @rule(data=st.data(), size=st.integers(1, 6))
    def commit(self, data: st.DataObject, size: int) -> None:
        operations = [self.draw_operation(data) for _ in range(size)]
        expected = [self.model.apply(op) for op in operations]
        for store in self.stores:
            assert [why(verdict) for verdict in store.commit(operations)] == expected

    @rule(data=st.data())
    def reboot(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(IDS))
        life = self.model.lives.get(run_id)
        bad = data.draw(st.sampled_from([None, *range(len(life.generations))])) if life else None
        for disk, store in zip(self.disks, self.stores, strict=True):
            store.close()
            if life is not None and bad is not None and life.generations[bad][1]:
                damage(disk, Table.SNAPSHOTS, run_id, slot=self.slot_of(disk, run_id, life.generations[bad][0]))
            store.open()
        if life is not None and bad is not None:
            life.generations[bad] = (life.generations[bad][0], False)

    @rule(data=st.data())
    def reboot_with_a_damaged_chunk(self, data: st.DataObject) -> None:
        pieces = [
            (run_id, piece)
            for run_id, life in sorted(self.model.lives.items())
            for kept in life.readable()
            for layout in kept.journals
            for piece in layout
        ]
        if not pieces:
            return
        run_id, bad = data.draw(st.sampled_from(pieces))
        for disk, store in zip(self.disks, self.stores, strict=True):
            store.close()
            disk.change(Table.JOURNALS, chunk_key(run_key(run_id), bad.base, bad.first), flip_last_bit)
            store.open()
        life = self.model.lives[run_id]
        life.generations = [
            (kept, readable and all(bad not in layout for layout in kept.journals))
            for kept, readable in life.generations
        ]

    def slot_of(self, disk: Disk, run_id: str, wanted: Snapshot) -> int:
        found: list[int] = []
        for slot in (0, 1):
            key = f"{run_id}\0{slot}".encode()
            if key not in disk.keys(Table.SNAPSHOTS):
                continue

            def look(data: bytes, slot: int = slot, key: bytes = key) -> bytes:
                with suppress(RecordCorrupt):
                    if codec.decode_snapshot(data, key) == wanted:
                        found.append(slot)
                return data

            disk.change(Table.SNAPSHOTS, key, look)
        (slot,) = found
        return slot

    def draw_operation(self, data: st.DataObject) -> Operation:
        draw = data.draw
        run_id = draw(st.sampled_from(IDS))
        life = self.model.lives.get(run_id)
        token = life.claim.token if life else Token(run_id, 1, 1)
        if draw(st.integers(0, 4)) == 0:
            token = token._replace(epoch=max(0, token.epoch - 1))
        kinds = [
            "claim",
            "claim",
            "save",
            "save",
            "save",
            "settle",
            "set aside",
            "delete",
            "append",
            "append",
            "append",
        ]
        kind = draw(st.sampled_from(kinds))
        match kind:
            case "claim":
                return self.draw_claim(draw, token, is_there=life is not None)
            case "save":
                taken = self.draw_snapshot(draw, token)
                return Save(
                    snapshot=taken,
                    chunks=self.new_chunks(taken),
                    clears_strikes=draw(st.booleans()),
                    consumed_children=draw(st.sampled_from([(), ("b",), ("a", "ab")])),
                )
            case "settle":
                last = self.draw_snapshot(draw, token) if draw(st.booleans()) else None
                return Settle(
                    token=token,
                    status=draw(st.sampled_from([status for status in RunStatus if status is not RunStatus.RUNNING])),
                    reason=draw(st.sampled_from(["", "x"])),
                    outcome=draw(st.sampled_from([None, b"", b"1", b"2"])),
                    snapshot=last,
                    chunks=() if last is None else self.new_chunks(last),
                    consumed_children=draw(st.sampled_from([(), ("a",)])),
                    consumed_through=draw(st.integers(0, 4)),
                    flight=self.draw_flight(draw),
                    dues=draw(
                        st.sampled_from(
                            [(), (Due(5.0),), (Due(7.5, by_wall=True),), (Due(9.0), Due(2.0, by_wall=True))]
                        )
                    ),
                    rouses=draw(st.sampled_from(ROUSES)),
                )
            case "append":
                self.sent += 1
                return Append(
                    run_id=run_id,
                    incarnation=token.incarnation,
                    message_id=draw(st.sampled_from(["m1", "m2", f"new {self.sent}", f"other {self.sent}"])),
                    body=b"body",
                    sent_at_s=1.0,
                    limit=draw(st.sampled_from([1, 3, 9])),
                )
            case "set aside":
                status = draw(st.sampled_from([RunStatus.PARKED, RunStatus.QUARANTINED]))
                return SetAside(
                    expected=token,
                    status=status,
                    reason="x",
                    flight=self.draw_flight(draw),
                    rouses=draw(st.sampled_from(ROUSES)),
                )
            case _:
                return Delete(token=token)

    def draw_claim(self, draw: Any, token: Token, *, is_there: bool) -> Claim:
        self.epoch += draw(st.integers(0, 2))
        facts: dict[str, Any] = {"strikes": draw(st.integers(0, 3))}
        if draw(st.integers(0, 5)) == 0:
            facts["status"] = RunStatus.KILLED
        first = draw(st.booleans()) != is_there
        reborn = first or draw(st.booleans())
        incarnation = token.incarnation + 1 if reborn else token.incarnation
        parent = draw(
            st.sampled_from([None, *(ParentLink(parent, 1, "k") for parent in IDS if parent != token.run_id)])
        )
        return Claim(
            claim=claim(token.run_id, self.epoch, incarnation, **facts),
            expected=None if first else token,
            record=record(token.run_id, incarnation, parent=parent) if reborn else None,
            outcome=draw(st.sampled_from([None, b"1"])),
            flight=self.draw_flight(draw),
            drop_snapshots=draw(st.integers(0, 4)) == 0,
            rouses=draw(st.sampled_from(ROUSES)),
        )

    def draw_flight(self, draw: Any) -> bytes | None:
        self.flown += 1
        return draw(st.sampled_from([None, None, b"flight %d" % self.flown]))  # type: ignore[no-any-return]

    def draw_snapshot(self, draw: Any, token: Token) -> Snapshot:
        life = self.model.lives.get(token.run_id)
        last = max((kept.seq for kept, _ in life.generations), default=0) if life else 0
        seq = max(0, last + draw(st.integers(-1, 2)))
        # As a run does: what a state has taken in, the next one has as well.
        held = max((kept.consumed for kept in life.readable()), default=0) if life else 0
        through = draw(st.sampled_from([held, held, held + 1, held + 2]))
        facts: dict[str, Any] = {"consumed_through": through} if through else {}
        readable = life.readable()[-1:] if life else []
        layout = readable[0].journals[0] if readable and readable[0].journals else ()
        match draw(st.sampled_from(["append", "append", "as it was", "anew", "none"])):
            case "append":
                facts["layouts"] = ((*layout, self.new_piece(draw, layout[-1].end if layout else 0)),)
            case "as it was":
                facts["layouts"] = (layout,)
            case "anew":
                facts["layouts"] = ((self.new_piece(draw, 0),),)
            case _:
                pass
        return snapshot(token, seq, b"<state %d %d %d>" % (token.incarnation, token.epoch, seq), **facts)

    def new_piece(self, draw: Any, first: int) -> Piece:
        self.bases += 1
        return Piece(Base(7, self.bases), first, first + draw(st.integers(1, 3)))

    def new_chunks(self, snapshot: Snapshot) -> tuple[Chunk, ...]:
        return tuple(
            chunk_of(piece) for layout in snapshot.journals for piece in layout[-1:] if piece.base.number == self.bases
        )

    @invariant()
    def reads_are_the_same(self) -> None:
        if not self.is_open():
            return
        lives = self.model.lives
        for store in self.stores:
            assert [(stored.claim, stored.record) for stored in store.scan(limit=2)] == [
                (lives[run_id].claim, lives[run_id].record) for run_id in sorted(lives)
            ][:2]
            assert store.live() == [
                lives[run_id].claim for run_id in sorted(lives) if lives[run_id].claim.status in LIVE
            ]
            assert store.damaged() == []
            for status in set(RunStatus) - LIVE:
                resting = [run_id for run_id, life in lives.items() if life.claim.status is status]
                assert sorted(run.run_id for run in store.ended(status)) == sorted(resting)
                assert store.count_ended()[status] == len(resting)
            for by_wall in (False, True):
                assert [(run.at_ms, run.run_id) for run in store.due(by_wall=by_wall)] == sorted(
                    (int(due.at_s * 1000), run_id)
                    for run_id, life in lives.items()
                    for due in life.claim.due_times
                    if due.by_wall is by_wall
                )
            for run_id in IDS:
                self.check_run(store, run_id, lives.get(run_id))

    def is_open(self) -> bool:
        try:
            return all(store.boot_epoch for store in self.stores)
        except Exception:
            return False

    def check_run(self, store: CheckpointStore, run_id: str, life: Life | None) -> None:
        links = [(child, link) for (parent, child), link in sorted(self.model.links.items()) if parent == run_id]
        assert store.children(run_id) == links
        stored = store.load(run_id)
        if life is None:
            assert stored is store.load_snapshot(run_id) is store.load_outcome(run_id) is None
            assert store.load_flight(run_id) is None
            assert store.messages(run_id) == []
            return
        assert stored is not None
        assert (stored.claim, stored.record) == (life.claim, life.record)
        assert store.load_outcome(run_id) == life.outcome
        assert store.load_flight(run_id) == life.flight
        expected = {number: name for name, number in life.ids.items() if number > life.gone}
        messages = {stored.number: stored.message and stored.message.message_id for stored in store.messages(run_id)}
        assert list(messages.items()) == list(expected.items())
        try:
            loaded = store.load_snapshot(run_id)
        except RecordCorrupt:
            assert life.generations
            assert not life.readable()
            return
        assert (loaded.snapshot if loaded else None) == max(life.readable(), key=lambda kept: kept.seq, default=None)
        if loaded is not None:
            assert loaded.chunks == tuple(tuple(map(chunk_of, layout)) for layout in loaded.snapshot.journals)
            last_written_is_readable = life.generations[-1][1]
            assert bool(loaded.fell_back) == (not last_written_is_readable)

        if isinstance(store, MemoryStore) and len(life.readable()) != 1:
            page = store._tables.page(Table.JOURNALS, *range_below(run_key(run_id)), 1 << 62)
            needed = {piece.base for kept in life.readable() for layout in kept.journals for piece in layout}
            assert {chunk_base(key) for key, _ in page} == needed


def chunk_of(piece: Piece) -> Chunk:
    items = b"%d of %d" % (piece.first, piece.base.number)
    return Chunk(base=piece.base, position=piece.first, count=piece.end - piece.first, items=items)


TestStoresAgainstAModel = StoresAgainstAModel.TestCase
TestStoresAgainstAModel.settings = settings(
    stateful_step_count=20, max_examples=60, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
