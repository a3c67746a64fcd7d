"""One boot of the user's run: start it, drive it while it waits, and say how it ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from executus.actors.core import Core
from executus.actors.errors import RunExists, RunInterrupted
from executus.actors.handle import RunHandle
from executus.actors.incarnation import Incarnation, Stage
from executus.actors.outcomes import Completed, Failed, Phase, safe_text
from executus.actors.run import Waiting
from executus.actors.runtime import Runtime
from executus.actors.testing.machine import Machine, TimeStandsStill, TooManyTurns
from executus.stores import RunStatus

MakeRun = Callable[[Runtime], RunHandle[Any]]
Drive = Callable[[RunHandle[Any]], object]

LOOK_EVERY_S: Final = 0.001
"""How often a story on real threads looks where its run is."""
DRIVEN_AT_MOST: Final = 1_000
"""So often in a row, while no time passes, a run may be told something and wait again."""
JOIN_S: Final = 10.0
"""So long the other runs, its children among them, get to end behind it."""

_encoder = msgspec.msgpack.Encoder(order="deterministic")


class Ended(msgspec.Struct, frozen=True):
    """How a run ended, or in which state it rests: for people, and to compare."""

    what: str
    value: bytes


def told_on_machine(machine: Machine, core: Core, runtime: Runtime, make_run: MakeRun, drive: Drive | None) -> Ended:
    """The story in virtual time: nothing else happens at a moment when the run is driven, or when time passes."""
    run = started(runtime, make_run)
    driven = 0
    while True:
        machine.settle()
        ended = how_it_ended(run)
        if ended is not None:
            runtime.join(JOIN_S)
            return ended
        inc = core.table.get(run.run_id)
        if drive is not None and inc is not None and _waits(inc):
            before = _mark(run)
            over = drive(run) is False
            machine.settle()
            if over and not run_is_over(run):
                return state_of(run, inc)
            if _mark(run) != before:
                driven += 1
                if driven > DRIVEN_AT_MOST:
                    raise TooManyTurns(
                        f"drive() told run {run.run_id!r} something {driven} times in a row and each time it waits "
                        "again: have drive look at run.query(...), and tell nothing, or return False, when it is done"
                    )
                continue
        driven = 0
        if inc is not None and _rests(core):
            return state_of(run, inc)
        due_s = machine.next_due_s()
        if due_s == math.inf:
            raise TimeStandsStill(
                f"{run!r} hangs: nothing is left that could happen, and it has neither ended nor waits"
            )
        machine.advance(max(0.0, due_s - machine.now))


def told_on_threads(core: Core, runtime: Runtime, make_run: MakeRun, drive: Drive | None) -> Ended:
    """The story as it happens. Whoever calls bounds it: it goes on for as long as its run does."""
    run = started(runtime, make_run)
    driven_at: object = None
    while True:
        ended = how_it_ended(run)
        if ended is not None:
            runtime.join(JOIN_S)
            return ended
        inc = core.table.get(run.run_id)
        if inc is not None and _waits(inc):
            if drive is not None and driven_at != _mark(run):
                driven_at = _mark(run)
                if drive(run) is False and not run_is_over(run):
                    return state_of(run, inc)
                continue
            if _rests(core):
                return state_of(run, inc)
        time.sleep(LOOK_EVERY_S)


def started(runtime: Runtime, make_run: MakeRun) -> RunHandle[Any]:
    """The run: made, or after a death the one that is there already."""
    try:
        run = make_run(runtime)
    except RunExists as exists:
        return runtime.get(exists.run_id)
    if not isinstance(cast("object", run), RunHandle):  # it is the user's
        msg = f"make_run returns the handle of the run that it started, not {type(run).__name__}"
        raise TypeError(msg)
    return run


def run_is_over(run: RunHandle[Any]) -> bool:
    """Whether it has ended or rests by an order."""
    return run.status().status is not RunStatus.RUNNING


def how_it_ended(run: RunHandle[Any]) -> Ended | None:
    """The outcome, without what may differ from boot to boot (restarts, tracebacks); None while it lives."""
    if not run_is_over(run):
        return None
    try:
        outcome = run.outcome(0)
    except RunInterrupted as interrupted:
        text = safe_text(interrupted)
        return Ended(text, text.encode())
    if isinstance(outcome, Completed):
        return Ended(f"Completed({_shown(outcome.result)})", _encoder.encode(outcome.result))
    if isinstance(outcome, Failed):
        text = f"Failed({outcome.error.type}: {outcome.error.message}, in {outcome.phase.value})"
        return Ended(text, text.encode())
    return Ended(repr(outcome), _encoder.encode(outcome))


def state_of(run: RunHandle[Any], inc: Incarnation) -> Ended:
    """The state in which it rests."""
    published = None if inc.slot is None else inc.slot.published
    if published is None:
        return Ended(f"run {run.run_id!r} has no state yet", b"")
    states = inc.definition.states
    data, journals = (published.state, published.journals) if published.encoded else states.encode(published.state)
    return Ended(f"waiting with {_shown(states.decode(data, journals))}", states.digest_of_encoded(data, journals))


def _waits(inc: Incarnation) -> bool:
    """Whether it waits for a message or its deadline, and there is none."""
    return inc.stage is Stage.RUNNING and inc.phase is Phase.WAITING and inc.idle and not inc.letters


def _rests(core: Core) -> bool:
    """Whether every run waits for a message without a deadline, and all that is to be saved is saved."""
    return all(_waits_for_ever(inc) for inc in list(core.table.values()))


def _waits_for_ever(inc: Incarnation) -> bool:
    published = None if inc.slot is None else inc.slot.published
    if not _waits(inc) or inc.slot is None or published is None or not isinstance(published.next, Waiting):
        return False
    saved = published.seq <= max(inc.slot.durable_seq, inc.slot.rejected_seq)
    return published.next.deadline_at_s is None and (saved or inc.slot.policy.durability in {"none", "exit"})


def _mark(run: RunHandle[Any]) -> object:
    """Differs when the run has taken in something."""
    view = run.status()
    return (view.status, view.attempt, view.seq, view.messages)


def _shown(value: object, at_most: int = 300) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a repr of the user's
        text = f"a {type(value).__name__}"
    return text if len(text) <= at_most else text[:at_most] + "…"
