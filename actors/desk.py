"""What the run supervisor and its parts share: table, epochs, commits under way, timers.

Touched by the supervisor's thread alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Protocol

from executus.actors.dormitory import Dormitory
from executus.actors.environment import Environment, EpochCounter
from executus.actors.future import Promise
from executus.actors.incarnation import Ending, Incarnation
from executus.actors.messages import Commit, DrainRuns, EndRun, LookAtDue, RetryCommit, TimerElapsed
from executus.actors.outcomes import Exit, ExitEvidence
from executus.actors.save_slot import SaveSlot, StorePort
from executus.stores import TOLD_OF, Claim, Delete, ExecutusError, Operation, RunClaim, SetAside, Settle, Verdict

RETRY_S: Final = 0.2
"""A commit that failed is sent again after this; the store actor spaces its own attempts further apart."""

TimerKind = Literal["backoff", "grace", "run_timeout", "result_grace", "tombstone"]
Verdicts = tuple[Verdict, ...]


class Lifecycle(Protocol):
    """What the supervisor's parts ask of it."""

    def launch(self, inc: Incarnation, source: Any, before: SaveSlot | None = None) -> None:
        """Start an attempt of a run whose claim is held."""
        ...

    def exited(self, inc: Incarnation, evidence: ExitEvidence, result: bytes | None) -> None:
        """An attempt has ended: classify, decide, and follow the decision."""
        ...

    def finish(self, inc: Incarnation, ending: Ending) -> None:
        """The incarnation has ended or rests; tell everybody."""
        ...

    def lost(self, inc: Incarnation, current: RunClaim | None) -> None:
        """The store holds another claim or ending for this run: that one stands."""
        ...

    def restart(self, inc: Incarnation) -> None:
        """Claim a run whose attempt has ended, and go on from memory."""
        ...

    def end_run(self, order: EndRun) -> None:
        """Somebody wants a run to end."""
        ...

    def left(self) -> None:
        """A run has left the table; a drain may be over."""
        ...


class _Pending:
    """A commit under way, kept so that it can be sent again."""

    __slots__ = ("failed", "final", "operations", "then")

    def __init__(
        self,
        operations: tuple[Operation, ...],
        then: Callable[[Verdicts], None],
        failed: Callable[[ExecutusError], bool] | None,
        final: SaveSlot | None,
    ) -> None:
        self.operations = operations
        self.then = then
        self.failed = failed
        self.final = final


class Desk:
    """The supervisor's own working memory. `tell_self` tells the supervisor; `port` is where the store actor is."""

    def __init__(
        self,
        env: Environment,
        port: StorePort,
        table: dict[str, Incarnation],
        dormitory: Dormitory,
        tell_self: Callable[[object], None],
    ) -> None:
        self.env = env
        self.port = port
        self.table = table
        self.dormitory = dormitory
        self.look_asked = False
        self.tell_self = tell_self
        self.epochs = EpochCounter(env.store.boot_epoch)
        self.drain: DrainRuns | None = None
        self.drain_began_s = 0.0
        self._pending: dict[int, _Pending] = {}
        self._tags = itertools.count(1)
        self._timers: dict[tuple[str, str, int], Any] = {}

    # --- commits ------------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a commit is under way, or to be sent again."""
        return bool(self._pending)

    def commit(
        self,
        operations: Sequence[Operation],
        then: Callable[[Verdicts], None],
        *,
        failed: Callable[[ExecutusError], bool] | None = None,
        final: SaveSlot | None = None,
    ) -> None:
        """Have the store actor commit; `then` gets the verdicts.

        `failed` is called at each failure and says whether to give up; without it, or while it says no, the same
        operations are sent again, which is right because the outcome of a failed commit is unknown and every
        operation is idempotent under its token.
        """
        tag = next(self._tags)
        self._pending[tag] = _Pending(tuple(operations), then, failed, final)
        self.send(tag)

    def send(self, tag: int) -> None:
        """Send a commit under way, for the first time or again."""
        pending = self._pending.get(tag)
        if pending is not None:
            self.port.tell(Commit(tag, pending.operations, pending.final))

    def send_all(self) -> None:
        """After a restart of the store actor: send again whatever it has not answered."""
        for tag in list(self._pending):
            self.send(tag)

    def all_failed(self, error: ExecutusError) -> None:
        """The store actor crashed: whatever it has not answered may have happened or not."""
        for tag in list(self._pending):
            self.commit_failed(tag, error)

    def committed(self, tag: int, verdicts: Verdicts) -> None:
        """The store actor's answer. The second answer to an operation that was sent twice changes nothing."""
        pending = self._pending.pop(tag, None)
        if pending is not None:
            pending.then(verdicts)
            # However late the store has taken an ending: whom it has roused, nobody else looks for.
            if any(self._may_have_roused(operation) for operation in pending.operations):
                self.look_soon()

    def _may_have_roused(self, operation: Operation) -> bool:
        match operation:
            case Settle(rouses_children=True):
                return True
            case Settle(rouses=rouses) | SetAside(rouses=rouses):
                return any(run_id not in self.table for run_id in rouses)
            case Claim(claim=claim, record=record, expected=expected):
                return claim.status in TOLD_OF or (record is not None and expected is not None)
            case Delete():
                return True
            case _:
                return False

    def commit_failed(self, tag: int, error: ExecutusError) -> None:
        """The store could not: give up, or try again soon."""
        pending = self._pending.get(tag)
        if pending is None:
            return
        if pending.failed is not None and pending.failed(error):
            self._pending.pop(tag, None)
        else:
            self.tell_later(RETRY_S, RetryCommit(tag))

    # --- timers -------------------------------------------------------------------------------------------------------

    def tell_later(self, delay_s: float, message: object) -> Any:
        """Tell the supervisor after so many seconds."""
        return self.env.timers.call_at(self.env.clock.now_s() + delay_s, lambda: self.tell_self(message))

    def look_soon(self) -> None:
        """Have somebody look whose passivated runs are due: one may have been roused, or another is the first now."""
        if not self.look_asked:
            self.look_asked = True
            self.tell_self(LookAtDue())

    def arm(self, inc: Incarnation, kind: TimerKind, delay_s: float, *, once: bool = False) -> None:
        """Set a run's timer of this kind, in place of one that is set; `once` leaves that one."""
        key = (kind, inc.run_id, inc.incarnation)
        before = self._timers.get(key)
        if before is not None:
            if once:
                return
            before.cancel()
        self._timers[key] = self.tell_later(delay_s, TimerElapsed(kind, inc.claim.token))

    def disarm(self, inc: Incarnation, *kinds: TimerKind) -> None:
        """Cancel a run's timers of these kinds."""
        for kind in kinds:
            timer = self._timers.pop((kind, inc.run_id, inc.incarnation), None)
            if timer is not None:
                timer.cancel()

    def elapsed(self, message: TimerElapsed) -> Incarnation | None:
        """The run whose timer this is, or None for one that was cancelled while its message was under way."""
        inc = self.table.get(message.token.run_id)
        if inc is None or inc.incarnation != message.token.incarnation:
            return None
        return None if self._timers.pop((message.kind, inc.run_id, inc.incarnation), None) is None else inc


def reason_of(exit_: Exit) -> str:
    """The words that go into the record with an ending."""
    error = getattr(exit_, "error", None)
    return f"{exit_.phase.value}: {error}" if error is not None else str(getattr(exit_, "reason", ""))  # type: ignore[union-attr]


def taken(replies: list[Promise[Incarnation]]) -> list[Promise[Incarnation]]:
    """Take out all the promises, so that each is answered once."""
    out = list(replies)
    replies.clear()
    return out
