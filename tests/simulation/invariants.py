"""What must hold, checked from what was acknowledged, committed and called; never from what the code under test believes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from executus.actors.events import Event, RunEvent, RunRestored, SnapshotSaved
from executus.actors.incarnation import Ending, Incarnation
from executus.actors.outcomes import Completed
from executus.actors.throttle import GRID_S
from executus.stores import (
    ENDED,
    LIVE,
    RESUMABLE,
    Accepted,
    Append,
    Claim,
    Delete,
    MemoryStore,
    Operation,
    RunStatus,
    Save,
    SetAside,
    Settle,
    Verdict,
)

if TYPE_CHECKING:
    from tests.simulation.world import Process

Life = tuple[str, int]
"""Run id and incarnation."""


class Violation(AssertionError):
    """Something that must hold did not."""


@dataclass(slots=True)
class Row:
    """What the disk holds of a run, as the accepted operations say."""

    incarnation: int
    epoch: int
    status: RunStatus
    begun: int = 0


class Owed(NamedTuple):
    """The beginning of a parent to which the end of a child is owed, until a stored state has taken it in."""

    run_id: str
    incarnation: int
    begun: int


@dataclass(slots=True)
class Report:
    """An ending that somebody was told."""

    ending: Ending
    proven: bool
    boot: int


class Ledger:
    """Everything that happened, and what must not have."""

    def __init__(self, disk: MemoryStore, now_s: Callable[[], float]) -> None:
        self.disk = disk
        self.now_s = now_s
        self.notes: list[tuple[float, str, str]] = []
        self.violations: list[str] = []
        self.boot = 0
        self.rows: dict[str, Row] = {}
        self.deleted: set[Life] = set()
        """By retention, or because their start was given up."""
        self.owed: dict[str, Owed] = {}
        """By child."""
        self.stored: dict[Life, int] = {}
        self.acknowledged: dict[Life, int] = {}
        self.life_of: dict[int, Life] = {}
        """By epoch."""
        self.resumable: set[str] = set()
        """Runs that somebody asked to resume by hand."""
        self.restarted_from_input: set[Life] = set()
        self.reports: dict[Life, Report] = {}
        self.kill_ordered_s: dict[Life, tuple[float, float]] = {}
        """When, and the grace."""
        self.first_seq: dict[int, int] = {}
        """By epoch: where the execution that has called under it began."""
        self.attempt_of: dict[int, tuple[int, int]] = {}
        """By epoch: the process and the attempt that has it."""
        self.last_seq: dict[int, tuple[int, str]] = {}
        self.newest_epoch: dict[Life, int] = {}
        self.keys: dict[tuple[Any, ...], str] = {}
        self.actions: dict[str, tuple[Any, ...]] = {}
        self.unsaved: dict[Life, list[tuple[int, float]]] = {}
        """Published and not stored yet: seq, and when it was first seen."""
        self.waited_for: dict[Life, int] = {}
        """The last seq that the run, with durability "sync", may not go ahead of."""
        self.callbacks = 0
        self.appended: dict[Life, dict[str, int]] = {}
        """Durable messages that the disk has taken, by id: their numbers."""
        self.sent: dict[Life, dict[str, int]] = {}
        """Those that their sender was told to be durable: how many callbacks the run had been called for then."""
        self.refused: set[str] = set()
        """Those that their sender was told to be refused, by id."""
        self.passing: set[str] = set()
        """Those that need not be in a state: they expire, or touch nothing."""
        self.calls: dict[Life, int] = {}

    # --- what is told -------------------------------------------------------------------------------------------------

    def note(self, who: str, what: str) -> None:
        """Keep a line for the log of a failing seed."""
        self.notes.append((self.now_s(), who, what))

    def violated(self, what: str) -> None:
        """Something that must hold does not."""
        self.note("VIOLATION", what)
        self.violations.append(what)

    def check(self, holds: bool, what: str) -> None:
        """Note a violation unless it holds."""
        if not holds:
            self.violated(what)

    # --- the disk -----------------------------------------------------------------------------------------------------

    def committed(self, operations: Sequence[Operation], verdicts: Sequence[Verdict]) -> None:
        """The disk has applied these."""
        for op, verdict in zip(operations, verdicts, strict=True):
            accepted = isinstance(verdict, Accepted)
            self.note("disk", f"{_short(op)} {'' if accepted else f'REFUSED {verdict.why.value}'}")  # type: ignore[union-attr]
            if isinstance(op, Append) and isinstance(verdict, Accepted):
                self._appended(op, verdict.number)
            elif accepted:
                self._applied(op)

    def _applied(self, op: Operation) -> None:
        match op:
            case Claim():
                self._claimed(op)
            case Save():
                self._saved(op.snapshot.run_id, op.snapshot.incarnation, op.snapshot.epoch, op.snapshot.seq)
                self._taken_in(op.consumed_children)
            case Settle():
                self._settled(op)
                self._taken_in(op.consumed_children)
            case SetAside():
                self.rows[op.expected.run_id].status = op.status
            case Delete():
                self._deleted(op)

    def _appended(self, op: Append, number: int) -> None:
        numbers = self.appended.setdefault((op.run_id, op.incarnation), {})
        known = numbers.setdefault(op.message_id, number)
        self.check(known == number, f"{op.run_id}: message {op.message_id} got the number {number} after {known}")
        self.check(number <= len(numbers), f"{op.run_id}: message {op.message_id} got the number {number}, too high")

    def acknowledge_message(self, life: Life, name: str) -> None:
        """A sender was told that its message is durable."""
        self.check(
            name in self.appended.get(life, {}), f"{life}: {name} is reported as sent, the disk does not have it"
        )
        self.sent.setdefault(life, {}).setdefault(name, self.calls.get(life, 0))

    def heard(self, life: Life, heard: Sequence[str]) -> None:
        """What a state has heard of durable messages: in order, once, and of those that must be there none is missing."""
        numbers = self.appended.get(life, {})
        durable = [name for name in heard if name in numbers]
        order = [numbers[name] for name in durable]
        self.check(order == sorted(set(order)), f"{life} heard durable messages twice or not in order: {durable}")
        refused = self.refused & set(heard)
        self.check(not refused, f"{life} heard what its senders were told to be refused: {refused}")
        if life in self.restarted_from_input:
            return
        last = max(order, default=0)
        missing = [name for name, number in numbers.items() if number < last and name not in (*durable, *self.passing)]
        self.check(not missing, f"{life} heard {durable}, and not {missing} before the last of them")

    def _claimed(self, op: Claim) -> None:
        claim = op.claim
        life = (claim.run_id, claim.incarnation)
        before = self.rows.get(claim.run_id)
        self.life_of[claim.epoch] = life
        if before is not None and (before.incarnation, before.epoch, before.status) == (
            *life[1:],
            claim.epoch,
            claim.status,
        ):
            return  # a retry
        if before is not None:
            self.check(
                claim.epoch > before.epoch,
                f"{life} was claimed under epoch {_e(claim.epoch)}, not newer than {_e(before.epoch)}",
            )
            if op.record is None:
                self.check(before.incarnation == claim.incarnation, f"{life} claimed over another incarnation")
            if op.record is None and claim.status is RunStatus.RUNNING:
                by_hand = before.status in RESUMABLE and claim.run_id in self.resumable
                self.check(
                    before.status in {*LIVE, RunStatus.PASSIVATED} or by_hand,
                    f"{life} was {before.status.value} and has been resurrected",
                )
            if op.record is None and claim.status is RunStatus.KILLED:
                self.check(
                    before.status not in ENDED or before.status is RunStatus.FAILED,
                    f"{life} had ended as {before.status.value}; a tombstone was put over it",
                )
        self.rows[claim.run_id] = Row(claim.incarnation, claim.epoch, claim.status, claim.begun)
        if op.record is not None:
            self.stored[life] = 0
            self.owed.pop(claim.run_id, None)
            link = op.record.parent
            if link is not None:
                self.owed[claim.run_id] = Owed(link.run_id, link.incarnation, link.begun)
        elif op.drop_snapshots:
            self.restarted_from_input.add(life)

    def _taken_in(self, children: Sequence[str]) -> None:
        for child in children:
            self.owed.pop(child, None)

    def _deleted(self, op: Delete) -> None:
        run_id = op.token.run_id
        row = self.rows.pop(run_id, None)
        if row is None:
            return  # a retry
        self.check(
            row.status not in {*LIVE, RunStatus.PASSIVATED}, f"{run_id} was {row.status.value} and has been deleted"
        )
        self.deleted.add((run_id, row.incarnation))
        link = self.owed.pop(run_id, None)
        parent = None if link is None else self.rows.get(link.run_id)
        if link is not None and parent is not None and (parent.incarnation, parent.begun) == link[1:]:
            ended = parent.status in ENDED - RESUMABLE
            self.check(ended, f"{run_id} was deleted, and its parent {parent} has not taken in its end")

    def _fence(self, run_id: str, incarnation: int, epoch: int, what: str) -> None:
        row = self.rows.get(run_id)
        self.check(
            row is not None and (row.incarnation, row.epoch, row.status) == (incarnation, epoch, RunStatus.RUNNING),
            f"{what} of {run_id} under epoch {_e(epoch)} was accepted while the disk holds {row}",
        )

    def _saved(self, run_id: str, incarnation: int, epoch: int, seq: int) -> None:
        self._fence(run_id, incarnation, epoch, f"a save (seq {seq})")
        life = (run_id, incarnation)
        for other, began in self.first_seq.items():
            if other > epoch and self.life_of.get(other) == life:
                self.check(
                    seq <= began,
                    f"{life}: epoch {_e(epoch)} saved seq {seq} after epoch {_e(other)} had gone on from {began}",
                )
        loaded = self.disk.load_snapshot(run_id)
        there = 0 if loaded is None else loaded.snapshot.seq
        self.check(
            there >= self.stored.get(life, 0),
            f"{life}: the stored seq went back to {there}",
        )
        self.stored[life] = there

    def _settled(self, op: Settle) -> None:
        token = op.token
        row = self.rows[token.run_id]
        if (row.incarnation, row.epoch, row.status) == (token.incarnation, token.epoch, op.status):
            return  # a retry
        self._fence(token.run_id, token.incarnation, token.epoch, f"an ending ({op.status.value})")
        if op.snapshot is not None and op.status is not RunStatus.COMPLETED:
            self._saved(token.run_id, token.incarnation, token.epoch, op.snapshot.seq)
        row.status = op.status

    # --- what the runtime says ----------------------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        """A subscriber."""
        self.note("event", _event_text(event))
        if isinstance(event, SnapshotSaved):
            self.acknowledge(self.life_of[event.epoch], event.seq, "SnapshotSaved")
        if isinstance(event, RunRestored):
            life = self.life_of.get(event.epoch)
            if life is not None:
                self.check(
                    event.resumed_from_seq >= self.acknowledged.get(life, 0),
                    f"{life} resumed from {event.resumed_from_seq}, behind the acknowledged {self.acknowledged.get(life, 0)}",
                )
        if isinstance(event, RunEvent) and type(event).__name__ in {"RunResumed", "RunActivated"}:
            self.reports.pop(self.life_of[event.epoch], None)

    def acknowledge(self, life: Life, seq: int, how: str) -> None:
        """Somebody was told that this seq is durable."""
        row = self.rows.get(life[0])
        if row is None or row.incarnation != life[1]:
            return
        if row.status is RunStatus.COMPLETED:  # which dropped the snapshots
            return
        self.check(
            self.stored.get(life, 0) >= seq,
            f"{life}: {how} says seq {seq} is durable, the disk has {self.stored.get(life, 0)}",
        )
        self.acknowledged[life] = max(self.acknowledged.get(life, 0), seq)

    def child_ended(self, context: Any, known: Sequence[tuple[str, int]], key: str) -> None:
        """A parent receives the end of a child."""
        self.check(
            key not in [known_key for known_key, _ in known] or f"{context.run_id}/{key}" in self.resumable,
            f"{context.run_id} was told of the end of {key!r} again, which its state has taken in",
        )

    def told(self, process: Process, inc: Incarnation, ending: Ending) -> None:
        """A monitor was told of an ending."""
        life = (inc.run_id, inc.incarnation)
        self.note("monitor", f"{life[0]} {ending.status.value} {_outcome_text(ending)}")
        row = self.rows.get(life[0])
        if ending.reason == "it was not started":
            return  # somebody found it while it was being claimed
        if process.closing or (row is not None and row.incarnation > life[1]):
            return  # an old handle of what nobody can look up any more
        if life in self.deleted and ending.outcome is None:
            return  # and one of a run that rested, came back, ended and was deleted: how, nobody can look up
        proven = self._proves(life, ending, inc.durable)
        if not proven:
            self.check(
                process.may_be_unproven(inc),
                f"{life}: reported as {ending.status.value}; the disk says {self.rows.get(life[0])}",
            )
            if isinstance(ending.outcome, Completed):
                self.check(
                    not ending.outcome.durable,
                    f"{life}: a result is reported as durable, and the disk does not have it",
                )
        before = self.reports.get(life)
        rested = before is not None and (before.ending.outcome is None or before.ending.status is RunStatus.QUARANTINED)
        if before is not None and not rested and (before.boot == self.boot or before.proven):
            self.check(
                _same(before.ending, ending),
                f"{life}: two endings were reported: {_outcome_text(before.ending)}, {_outcome_text(ending)}",
            )
        if before is None or not before.proven:
            self.reports[life] = Report(ending, proven, self.boot)

    def _proves(self, life: Life, ending: Ending, durable: bool) -> bool:
        row = self.rows.get(life[0])
        if not durable:
            return True
        if row is None:
            return any(run_id == life[0] and incarnation >= life[1] for run_id, incarnation in self.deleted)
        if ending.outcome is None and row.status in {RunStatus.KILLED, RunStatus.CANCELLED}:
            return True  # it rested, and in the same commit it was killed at rest
        return row.incarnation > life[1] or (row.incarnation == life[1] and row.status is ending.status)

    # --- callbacks ----------------------------------------------------------------------------------------------------

    def called(self, context: Any, callback: str, state: Any, message: object) -> None:
        """A user's callback begins."""
        inc = context._incarnation
        life, epoch, seq = (inc.run_id, inc.incarnation), context.epoch, context._attempt.seq
        self.callbacks += 1
        self.calls[life] = self.calls.get(life, 0) + 1
        self.note(inc.run_id, f"{callback} epoch {_e(epoch)} seq {seq} at {getattr(state, 'at', '-')} {message or ''}")
        self.life_of[epoch] = life
        self._check_over(life, callback)
        self.heard(life, getattr(state, "heard", ()))
        attempt = (self.boot, context.attempt)
        had = self.attempt_of.setdefault(epoch, attempt)
        self.check(
            had == attempt, f"{life}: epoch {_e(epoch)} belongs to two executions: (boot, attempt) {had} and {attempt}"
        )
        if epoch not in self.first_seq:
            self._execution_begins(life, epoch, seq)
            # A permanent run's next round, and one that was to begin anew, begin where the one before ended.
            again = callback == "begin" and life not in self.restarted_from_input
            self.check(
                not again or not self.acknowledged.get(life), f"{life}: begins again although a state was acknowledged"
            )
        newest = self.newest_epoch[life]
        self.check(
            epoch == newest, f"{life}: {callback} was called under epoch {_e(epoch)}, epoch {_e(newest)} is executing"
        )
        last = self.last_seq.get(epoch)
        if last is not None:
            # "stopping" also comes after a callback that never completed, for its children could not be started.
            fits = seq == last[0] + 1 or (callback == "stopping" and seq == last[0])
            self.check(fits, f"{life}: seq went from {last[0]} to {seq} with one callback")
        self.last_seq[epoch] = (seq, callback)
        if inc.policies.save.durability == "sync":
            # `stopping` waits for nothing: what it is shown may be lost, and a later life knows nothing of it.
            if callback in {"step", "receive"} and not context._attempt.run.may_go_ahead(state):
                self.waited_for[life] = seq
            # A Done counts as well, and what it leaves for the next round of a permanent run is no snapshot.
            self.check(
                self.stored.get(life, 0) >= self.waited_for.get(life, 0) or callback in {"stopping", "begin"},
                f"{life}: sync, at seq {seq}, and seq {self.waited_for.get(life, 0)} is not on the disk",
            )
        if not getattr(state, "blot", 0):  # what cannot be encoded has no digest
            self._check_key((life, seq, callback, repr(state), repr(message)), context.idempotency_key)

    def _execution_begins(self, life: Life, epoch: int, seq: int) -> None:
        acknowledged = self.acknowledged.get(life, 0)
        self.check(seq >= acknowledged, f"{life}: goes on at seq {seq}, behind the acknowledged {acknowledged}")
        self.check(
            epoch > self.newest_epoch.get(life, 0),
            f"{life}: epoch {_e(epoch)} is not newer than {_e(self.newest_epoch.get(life, 0))}",
        )
        self.newest_epoch[life] = epoch
        self.first_seq[epoch] = seq

    def _check_over(self, life: Life, callback: str) -> None:
        report = self.reports.get(life)
        row = self.rows.get(life[0])
        if report is not None and (report.proven or report.boot == self.boot):
            self.violated(f"{life}: {callback} was called after its ending was reported: {report.ending.status.value}")
        if row is not None and row.incarnation > life[1]:
            self.violated(f"{life}: {callback} was called, the disk holds a newer incarnation")

    def _check_key(self, action: tuple[Life, int, str, str, str], key: str) -> None:
        life, seq, callback, _, _ = action
        if callback == "stopping":
            return
        known = self.keys.setdefault(action, key)
        self.check(known == key, f"{life}: the same action at seq {seq} has another idempotency key: {action}")
        other = self.actions.setdefault(key, action)
        self.check(other == action, f"{life}: two actions have one idempotency key: {other} and {action}")

    # --- the trailing save --------------------------------------------------------------------------------------------

    def before_time_passes(self, process: Process | None, healthy_since_s: float) -> None:
        """At each moment of virtual time: what is published and not stored must not be too old."""
        if process is None or process.dead:
            return
        now_s = self.now_s()
        for inc in process.core.table.values():
            slot = inc.slot
            if slot is None or slot.closed or slot.published is None or inc.policies.save.durability != "async":
                continue
            life = (inc.run_id, inc.incarnation)
            queue = self.unsaved.setdefault(life, [])
            stored = self.stored.get(life, 0)
            while queue and (queue[0][0] <= max(stored, slot.rejected_seq)):
                queue.pop(0)
            if slot.published.seq > max(stored, slot.rejected_seq) and (not queue or queue[-1][0] < slot.published.seq):
                queue.append((slot.published.seq, now_s))
            if queue:
                limit_s = (
                    max(queue[0][1], healthy_since_s, process.launched_s(inc)) + inc.policies.save.interval_s + GRID_S
                )
                self.check(
                    now_s <= limit_s + 1e-6,
                    f"{life}: seq {queue[0][0]} was published at {queue[0][1]:.3f} and is not stored at {now_s:.3f}",
                )


def _same(a: Ending, b: Ending) -> bool:
    if isinstance(a.outcome, Completed) and isinstance(b.outcome, Completed):
        return bool(a.outcome.result == b.outcome.result)
    return (a.status, type(a.outcome)) == (b.status, type(b.outcome))


def _e(epoch: int) -> str:
    return f"{epoch >> 32}.{epoch & 0xFFFFFFFF}"


def _short(op: Operation) -> str:
    match op:
        case Claim(claim=claim):
            parts = [
                f"Claim {claim.run_id} {_e(claim.epoch)} {claim.status.value}",
                "" if op.expected is None else f"over {_e(op.expected.epoch)}",
                "new" if op.record is not None else "",
                "afresh" if op.drop_snapshots else "",
                f"strikes {claim.strikes}" if claim.strikes else "",
            ]
            return " ".join(part for part in parts if part)
        case Save(snapshot=snapshot):
            consumed = f" consumed {snapshot.consumed}" if snapshot.consumed else ""
            return f"Save {snapshot.run_id} {_e(snapshot.epoch)} seq {snapshot.seq}{consumed}"
        case Settle():
            return f"Settle {op.token.run_id} {_e(op.token.epoch)} {op.status.value}" + (
                "" if op.snapshot is None else f" seq {op.snapshot.seq}"
            )
        case SetAside():
            return f"SetAside {op.expected.run_id} {op.status.value} {op.reason}"
        case Append():
            return f"Append {op.run_id} {op.message_id}"
        case Delete():
            return f"Delete {op.token.run_id}"


def _event_text(event: Event) -> str:
    fields = []
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if name in {"run_type", "stack"} or value in {"", None}:
            continue
        fields.append(f"{name}={_e(value)}" if name == "epoch" else f"{name}={value}")
    return f"{type(event).__name__} {' '.join(fields)}"


def _outcome_text(ending: Ending) -> str:
    outcome = ending.outcome
    return f"{ending.status.value}{'' if outcome is None else f' {type(outcome).__name__}'}{'' if not ending.reason else f' ({ending.reason})'}"
