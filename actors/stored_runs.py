"""Between the store's records and live incarnations."""

from __future__ import annotations

from typing import Protocol

import msgspec

from executus.actors.boot import BootFacts
from executus.actors.definition import Registry, RunDefinition, encode_next
from executus.actors.environment import Environment
from executus.actors.errors import NotRegistered, NotResumable, OptionsUnreadable, ResultUnreadable, RunNotFound
from executus.actors.incarnation import Ending, Incarnation, Stage, ended_error
from executus.actors.messages import StartOrder
from executus.actors.outcomes import UNDECODABLE, Outcome, Phase, Quarantined, decode_outcome, safe_text
from executus.actors.policies import Policies
from executus.actors.run import Beginning, remaining
from executus.stores import (
    ENDED,
    RESUMABLE,
    Claim,
    LoadedSnapshot,
    RecordCorrupt,
    RunClaim,
    RunRecord,
    RunStatus,
    Save,
    Snapshot,
    StoredRun,
    StoreError,
    StoreTooNew,
    Token,
)


def first_claim(env: Environment, order: StartOrder, epoch: int) -> RunClaim:
    """The claim of a new incarnation, named after its first epoch."""
    timeout_s = order.policies.stop.run_timeout_s
    return RunClaim(
        run_id=order.run_id,
        incarnation=epoch,
        epoch=epoch,
        attempt=1,
        status=RunStatus.RUNNING,
        claimed_at_s=env.clock.wall_s(),
        deadline_at_s=None if timeout_s is None else env.steady_s() + timeout_s,
        remaining_s=timeout_s,
    )


def next_claim(
    env: Environment, claim: RunClaim, epoch: int, *, strikes: int | None = None, afresh: bool = False
) -> RunClaim:
    """The claim of the next attempt, or of one that begins `afresh`. The deadline stays: it is never refreshed."""
    return msgspec.structs.replace(
        claim,
        epoch=epoch,
        attempt=claim.attempt + 1,
        status=RunStatus.RUNNING,
        reason="",
        strikes=claim.strikes if strikes is None else strikes,
        begun=claim.begun + afresh,
        claimed_at_s=env.clock.wall_s(),
        ended_at_s=None,
        remaining_s=remaining(claim.deadline_at_s, claim.remaining_s, env.steady_s()),
    )


def begin_afresh(
    claim: RunClaim,
    expected: Token,
    *,
    seq: int,
    schema_version: int,
    outcome: bytes | None = None,
    consumed_through: int = 0,
) -> tuple[Claim, Save]:
    """Claim, drop the state, and keep where `seq` and messages stood: neither goes back within an incarnation."""
    mark = Snapshot(
        run_id=claim.run_id,
        incarnation=claim.incarnation,
        epoch=claim.epoch,
        seq=seq,
        schema_version=schema_version,
        taken_at_s=claim.claimed_at_s,
        state=b"",
        next=encode_next(Beginning()),
        consumed_through=consumed_through or msgspec.UNSET,
    )
    return Claim(claim=claim, expected=expected, outcome=outcome, drop_snapshots=True), Save(snapshot=mark)


def ending_claim(claim: RunClaim, epoch: int, wall_s: float, status: RunStatus, reason: str) -> RunClaim:
    """A tombstone: a claim that ends the run, so that whatever an older epoch still writes is refused."""
    return msgspec.structs.replace(claim, epoch=epoch, status=status, reason=reason, ended_at_s=wall_s)


def record_of(inc: Incarnation, order: StartOrder) -> RunRecord:
    """What `start` was given, as the store keeps it."""
    return RunRecord(
        run_id=inc.run_id,
        incarnation=inc.incarnation,
        run_type=inc.definition.name,
        input=order.input,
        created_at_s=inc.created_at_s,
        labels=dict(order.labels),
        parent=order.parent,
        root_run_id=inc.root_run_id,
        options=order.options,
    )


def incarnation_of_order(order: StartOrder, claim: RunClaim) -> Incarnation:
    """A new life."""
    inc = Incarnation(
        definition=order.definition,
        claim=claim,
        policies=order.policies,
        labels=order.labels,
        created_at_s=claim.claimed_at_s,
        root_run_id=order.root_run_id or order.run_id,
        parent=order.parent,
        input=order.input,
    )
    inc.delivered_through = 0
    return inc


def policies_of(record: RunRecord, definition: RunDefinition) -> Policies:
    """What `start` was given of policies, or else its type's. Raises OptionsUnreadable."""
    if not record.options:
        return definition.policies
    try:
        return msgspec.msgpack.decode(record.options, type=Policies)
    except UNDECODABLE as error:
        msg = (
            f"run {record.run_id!r}: the policies it was started with cannot be read by this code: {safe_text(error)}. "
            "They were left as they are. Deploy the code that wrote them."
        )
        raise OptionsUnreadable(msg) from error


def incarnation_of_record(
    claim: RunClaim, record: RunRecord, definition: RunDefinition, policies: Policies | None = None
) -> Incarnation:
    """A life that the store knows, under these policies or its own. Raises OptionsUnreadable."""
    return Incarnation(
        definition=definition,
        claim=claim,
        policies=policies_of(record, definition) if policies is None else policies,
        labels=record.labels,
        created_at_s=record.created_at_s,
        root_run_id=record.root_run_id,
        parent=record.parent,
        input=None,
    )


def stored_outcome(env: Environment, claim: RunClaim, definition: RunDefinition) -> Outcome | None:
    """The outcome that the store holds for a run that has ended. Raises RecordCorrupt, ResultUnreadable."""
    if claim.status is RunStatus.QUARANTINED:
        return Quarantined(claim.reason)
    if claim.status not in ENDED:
        return None
    data = env.store.load_outcome(claim.run_id)
    try:
        return None if data is None else decode_outcome(data, definition.result_type)
    except UNDECODABLE as error:
        msg = (
            f"run {claim.run_id!r} is {claim.status.value}; its result does not fit the Result of {definition.name!r} "
            f"as this code declares it: {safe_text(error)}. It was left as it is."
        )
        raise ResultUnreadable(msg) from error


def is_own(inc: Incarnation, current: RunClaim, epoch: int) -> bool:
    """Whether an earlier epoch of this very run is in the way of `epoch`.

    Its commit had failed and had been applied all the same, or a later one has not been taken yet. No other process can
    have claimed it: the store has one owner. The newest epoch goes over what is there.
    """
    goes_on = current.status in {RunStatus.RUNNING, RunStatus.PASSIVATED}
    return goes_on and current.incarnation == inc.incarnation and current.epoch < epoch


def stored_kin(env: Environment, stored: StoredRun) -> tuple[str, ...]:
    """Whom the end of a run at rest concerns: its parent, and its children. Who cannot be read is told by nobody."""
    parent = None if stored.record is None else stored.record.parent
    try:
        children = tuple(child for child, _ in env.store.children(stored.claim.run_id))
    except StoreError:
        children = ()
    return children if parent is None else (parent.run_id, *children)


def sleeping_incarnation(env: Environment, run_id: str) -> Incarnation | None:
    """A run that the store says is passivated; None where it is not.

    Raises StoreError, NotRegistered, OptionsUnreadable.
    """
    stored = env.store.load(run_id)
    if stored is None or stored.claim.status is not RunStatus.PASSIVATED:
        return None
    record, definition = _known(env, stored)
    inc = incarnation_of_record(stored.claim, record, definition)
    inc.stage, inc.phase = Stage.PASSIVATED, Phase.WAITING
    try:
        loaded = env.store.load_snapshot(run_id)
    except (RecordCorrupt, StoreTooNew):
        loaded = None  # whoever restores it says what is wrong
    if loaded is not None:
        inc.restored_seq = loaded.snapshot.seq
    return inc


def resting_incarnation(env: Environment, stored: StoredRun) -> Incarnation:
    """For handles of a run that does not run here. Raises NotRegistered, RecordCorrupt, ResultUnreadable."""
    claim = stored.claim
    record, definition = _known(env, stored)
    try:
        policies = policies_of(record, definition)
    except OptionsUnreadable:
        policies = definition.policies  # it does not run: nobody asks for them
    inc = incarnation_of_record(claim, record, definition, policies)
    inc.stage = Stage.ENDED
    ending = Ending(claim.status, stored_outcome(env, claim, definition), claim.reason)
    inc.letters.close(ended_error(inc.run_id, ending))
    inc.ending.try_set(ending)
    return inc


def _known(env: Environment, stored: StoredRun) -> tuple[RunRecord, RunDefinition]:
    """Raises RecordCorrupt, NotRegistered."""
    claim, record = stored.claim, stored.record
    definition = None if record is None else env.registry.named(record.run_type)
    if record is None:
        msg = (
            f"run {claim.run_id!r} is {claim.status.value}, and its start record cannot be read. It was left as it is."
        )
        raise RecordCorrupt(msg, run_id=claim.run_id, what="record")
    if definition is None:
        msg = (
            f"run {claim.run_id!r} is {claim.status.value} and of type {record.run_type!r}, which is not registered "
            "with this runtime. Add it to runs=[...], or the name to a run's aliases. It was left as it is."
        )
        raise NotRegistered(msg)
    return record, definition


class StoredRuns(Protocol):
    """What of a store is read to plan a boot."""

    def load(self, run_id: str) -> StoredRun | None:
        """See CheckpointStore."""
        ...

    def load_snapshot(self, run_id: str) -> LoadedSnapshot | None:
        """See CheckpointStore."""
        ...


class BootSources(Protocol):
    """The code of a boot, and the store that it opens. An Environment is one."""

    @property
    def registry(self) -> Registry:
        """The run types that the code knows."""
        ...

    @property
    def store(self) -> StoredRuns:
        """What the last process left."""
        ...


def boot_facts(env: BootSources, stored: StoredRun) -> BootFacts:
    """What a boot must know of a live run to plan for it. Reads its snapshot and its parent's claim."""
    claim, record = stored.claim, stored.record
    definition = None if record is None else env.registry.named(record.run_type)
    unreadable, unfit, snapshot = None, None, None
    try:
        loaded = env.store.load_snapshot(claim.run_id)
        snapshot = None if loaded is None else loaded.snapshot
    except RecordCorrupt as error:
        unreadable = str(error)
    except StoreTooNew as error:
        unfit = str(error)
    try:
        if record is not None and definition is not None:
            policies_of(record, definition)
    except OptionsUnreadable as error:
        unfit = str(error)
    link, parent = None if record is None else record.parent, None
    if link is not None:
        try:
            parent = env.store.load(link.run_id)
        except (RecordCorrupt, StoreTooNew):
            link = None
    return BootFacts(
        claim=claim,
        run_type=None if record is None else record.run_type,
        known_schema=None if definition is None else definition.schema_version,
        snapshot_schema=None if snapshot is None else snapshot.schema_version,
        waiting=snapshot is not None and snapshot.waiting,
        unreadable=unreadable,
        unfit=unfit,
        saved_seq=None if snapshot is None else snapshot.seq,
        link=link,
        parent=None if parent is None else parent.claim,
    )


def check_resumable(env: Environment, run_id: str, *, from_input: bool) -> tuple[StoredRun, RunRecord, RunDefinition]:
    """A run that may be resumed by hand. Raises RunNotFound and NotResumable; nothing is changed."""
    stored = env.store.load(run_id)
    if stored is None:
        raise RunNotFound(run_id)
    claim, record = stored.claim, stored.record
    if claim.status not in RESUMABLE:
        msg = (
            f"run {run_id!r} is {claim.status.value}; only stopped, failed and quarantined runs are resumed "
            "by hand. Nothing was changed."
        )
        raise NotResumable(msg)
    if record is None:
        msg = f"run {run_id!r}: its start record cannot be read, so not even its type is known. Nothing was changed."
        raise NotResumable(msg)
    definition = env.registry.named(record.run_type)
    if definition is None:
        msg = f"run {run_id!r} is of type {record.run_type!r}, which is not registered here. Nothing was changed."
        raise NotResumable(msg)
    try:
        policies_of(record, definition)
    except OptionsUnreadable as error:
        raise NotResumable(f"{error} Nothing was changed.") from error
    if not from_input:
        try:
            env.store.load_snapshot(run_id)
        except RecordCorrupt as error:
            msg = (
                f"run {run_id!r}: no generation of its state can be read ({error}). Nothing was changed; "
                f"resume({run_id!r}, from_input=True) begins anew."
            )
            raise NotResumable(msg) from error
    return stored, record, definition
