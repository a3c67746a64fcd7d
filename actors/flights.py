"""Flight records in the making: what goes into the store with the commits that end, restart or set aside a run.

On the supervisor's thread, off the path of runs that go well: those have no ring, and nothing is written for them.
"""

from __future__ import annotations

from typing import Protocol

from executus.actors.boot import BootFacts
from executus.actors.environment import Environment
from executus.actors.flight import (
    PROCESS_DIED,
    AttemptExit,
    EndRequest,
    FlightRecord,
    Heartbeat,
    ProgressMade,
    decode_flight,
    encode_flight,
    how_of,
)
from executus.actors.flight_ring import FlightRing, ring_of
from executus.actors.incarnation import Incarnation, Progress
from executus.actors.outcomes import (
    UNDECODABLE,
    CancelRequested,
    Cause,
    Completed,
    Crashed,
    DrainRequested,
    Exit,
    ExitEvidence,
    Killed,
    KillRequested,
    Passivated,
    RunTimeoutElapsed,
    StopRequested,
    Suspended,
    safe_text,
)
from executus.stores import ExecutusError, RunClaim, RunStatus


class StoredFlights(Protocol):
    """What of a store is read here."""

    def load_flight(self, run_id: str) -> bytes | None:
        """See CheckpointStore."""
        ...


def note_exit(env: Environment, inc: Incarnation, evidence: ExitEvidence, exit_: Exit) -> None:
    """An attempt has ended. One that ended as most do leaves no trace, unless there is something to tell of its run."""
    if not inc.durable or isinstance(exit_, (Killed, Passivated)):  # a kill was noted before its tombstone
        return
    if inc.flight is None and (isinstance(exit_, Completed) or (isinstance(exit_, Suspended) and not _has_news(inc))):
        return
    ring = ring_of(inc)
    if evidence.causes and not isinstance(exit_, (Completed, Crashed)):
        ring.requested(request_of(evidence.causes[0]))
    ring.ended(_exit(env, inc, exit_, evidence), evidence.chain)


def note_kill(env: Environment, inc: Incarnation, cause: KillRequested) -> None:
    """It is going to be killed: where its thread is now, before the tombstone is committed and the signal given."""
    if not inc.durable:
        return
    ring, now_s = ring_of(inc), env.clock.wall_s()
    ring.requested(request_of(cause))
    if inc.attempt_ref is not None:
        ring.saw_stack(now_s, "it was killed", env.stack_of(inc.attempt_ref.running_thread()))
    ring.ended(_exit(env, inc, Killed(cause.by, cause.reason), ExitEvidence(phase=inc.phase)))


def flight_of(env: Environment, inc: Incarnation, status: RunStatus) -> bytes | None:
    """What to store with the commit that makes this of the run; None where there is nothing to add to what is stored.

    Reads what is stored the first time.
    """
    ring = inc.flight
    if ring is None or not inc.durable:
        return None
    _read_earlier(env.store, ring, inc.claim)
    slot, now_s, wall_s = inc.slot, env.clock.now_s(), env.clock.wall_s()
    if slot is not None and slot.rejection is not None:
        ring.refused_by_store(slot.rejected_seq, str(slot.rejection))
    trouble = env.store_trouble
    return encode_flight(
        ring.record(
            inc.claim,
            wall_s,
            status.value,
            seq=_reached(inc),
            durable_seq=0 if slot is None else slot.durable_seq,
            heartbeat=None if inc.beat is None else Heartbeat(wall_s - (now_s - inc.beat[0]), inc.beat[1]),
            progress=None if inc.progress is None else _progress(inc.progress),
            store_trouble="" if trouble is None else str(trouble),
        )
    )


def ring_of_dead(env: Environment, facts: BootFacts) -> FlightRing:
    """Of a run that a boot finds as the last process left it: what is stored, and that the process died."""
    ring, claim = FlightRing(), facts.claim
    _read_earlier(env.store, ring, claim)
    ring.ended(
        AttemptExit(
            attempt=claim.attempt,
            epoch=claim.epoch,
            at_s=env.clock.wall_s(),
            how=PROCESS_DIED,
            phase="waiting" if facts.waiting else "",
            seq=facts.saved_seq,
        )
    )
    return ring


def flight_of_dead(env: Environment, ring: FlightRing, facts: BootFacts, status: RunStatus) -> bytes:
    """What to store of it with the commit that makes this of it."""
    saved = facts.saved_seq or 0
    record = ring.record(facts.claim, env.clock.wall_s(), status.value, seq=saved, durable_seq=saved)
    return encode_flight(record)


def load_flight(store: StoredFlights, claim: RunClaim) -> FlightRecord | None:
    """The stored record of this life, None without one. Raises ExecutusError, and what is UNDECODABLE."""
    data = store.load_flight(claim.run_id)
    record = None if data is None else decode_flight(data)
    return record if record is not None and record.incarnation == claim.incarnation else None


def request_of(cause: Cause) -> EndRequest:
    """Who wanted it."""
    match cause:
        case KillRequested(by, reason):
            return EndRequest("kill", by, reason)
        case CancelRequested(by, reason):
            return EndRequest("cancel", by, reason)
        case StopRequested():
            return EndRequest("stop")
        case DrainRequested():
            return EndRequest("drain", reason="the runtime shuts down")
        case RunTimeoutElapsed():
            return EndRequest("time-out", reason="its run_timeout_s is over")


def _read_earlier(store: StoredFlights, ring: FlightRing, claim: RunClaim) -> None:
    if ring.read_earlier:
        return
    try:
        ring.after(load_flight(store, claim))
    except (ExecutusError, *UNDECODABLE) as error:
        ring.after(None, f"what was recorded before cannot be read: {safe_text(error)}")


def _has_news(inc: Incarnation) -> bool:
    """Whether a run that is going to rest has told of itself, or could not be saved."""
    slot = inc.slot
    refused = slot is not None and slot.rejection is not None and slot.rejected_seq > slot.durable_seq
    return refused or inc.beat is not None


def _exit(env: Environment, inc: Incarnation, exit_: Exit, evidence: ExitEvidence) -> AttemptExit:
    error = exit_.error if isinstance(exit_, Crashed) else evidence.error
    frames = evidence.chain[0].frames if evidence.chain else ()
    return AttemptExit(
        attempt=inc.claim.attempt,
        epoch=inc.claim.epoch,
        at_s=env.clock.wall_s(),
        how=how_of(exit_),
        phase=evidence.phase.value,
        seq=_reached(inc),
        error="" if error is None else str(error),
        where=frames[-1] if frames else "",
        reason=str(getattr(exit_, "reason", "")),
    )


def _reached(inc: Incarnation) -> int:
    published = None if inc.slot is None else inc.slot.published
    return inc.restored_seq if published is None else max(inc.restored_seq, published.seq)


def _progress(made: Progress) -> ProgressMade:
    return ProgressMade(_number(made.done), _number(made.total), _text(made.note))


def _text(value: object) -> str:
    return str.__str__(value) if isinstance(value, str) else type(value).__name__


def _number(value: object) -> float | None:
    """What msgpack can hold; whatever else a callback passed is not asked for its own idea of a number."""
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        try:
            return int.__float__(value)
        except OverflowError:
            return None
    return None
