"""Runs that have waited for long rest in the store alone; messages, queries, due times and ends of kin wake them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from executus.actors.admission import Admission
from executus.actors.boot import orphaned
from executus.actors.desk import RETRY_S, Desk, Lifecycle, Verdicts
from executus.actors.dormitory import Dormitory
from executus.actors.events import RunActivated, RunPassivated
from executus.actors.family import Family, parent_ended
from executus.actors.flights import flight_of
from executus.actors.incarnation import Ending, Incarnation, Stage
from executus.actors.interruption import Interruption
from executus.actors.messages import ActivateRun, EndRun
from executus.actors.outcomes import KillRequested, Phase
from executus.actors.run import Waiting, remaining
from executus.actors.run_actor import Source
from executus.actors.stored_runs import is_own, next_claim, sleeping_incarnation
from executus.stores import (
    Accepted,
    Claim,
    Due,
    ExecutusError,
    ParentLink,
    RecordCorrupt,
    Refused,
    RunStatus,
    Settle,
    StoreError,
    StoreTooNew,
)


class Passivation:
    """Lays runs down and takes them up. On the supervisor's thread."""

    def __init__(
        self, desk: Desk, lifecycle: Lifecycle, admission: Admission, interruption: Interruption, family: Family
    ) -> None:
        self._desk = desk
        self._env = desk.env
        self._life = lifecycle
        self._admission = admission
        self._interruption = interruption
        self._family = family
        self._dormitory: Dormitory = desk.dormitory
        self._dormitory.rouse = lambda inc: desk.tell_self(ActivateRun(inc))

    # --- laying down --------------------------------------------------------------------------------------------------

    def is_wanted(self, inc: Incarnation) -> bool:
        """Whether somebody has put something down for it meanwhile."""
        return bool(inc.causes or inc.letters or inc.waiting_for_begin)

    def passivate(self, inc: Incarnation) -> None:
        """Its attempt has ended, with everything saved: commit that it rests.

        A store that cannot take it does not keep the run from its messages: it goes on from memory then.
        """
        if self.is_wanted(inc):
            self._go_on(inc)
            return
        inc.stage = Stage.SETTLING
        operation = Settle(
            token=inc.claim.token,
            status=RunStatus.PASSIVATED,
            ended_at_s=self._env.steady_s(),
            dues=self._dues(inc),
            flight=flight_of(self._env, inc, RunStatus.PASSIVATED),
        )

        def then(verdicts: Verdicts) -> None:
            if inc.stage is not Stage.SETTLING:
                return
            match verdicts[-1]:
                case Accepted():
                    self._passivated(inc, operation.dues)
                case Refused(_, current) if current is not None and is_own(inc, current, inc.claim.epoch):
                    self._go_on(inc)
                case Refused(_, current):
                    self._life.lost(inc, current)

        def failed(_error: ExecutusError) -> bool:
            if inc.stage is Stage.SETTLING:
                self._go_on(inc)
            return True

        self._desk.commit([operation], then, failed=failed, final=inc.slot)

    def _passivated(self, inc: Incarnation, dues: Sequence[Due]) -> None:
        if inc.slot is not None:
            inc.slot.answer_waiters()
        if inc.killed_by is not None or self.is_wanted(inc):  # nothing is let go of yet, so it can go on from memory
            self._go_on(inc)
            return
        children = {key: child for key, child in inc.children.items() if self._lives_in_memory(child)}
        inc.slot, inc.run, inc.input, inc.delivered_through, inc.told_of = None, None, None, None, None
        inc.children, inc.phase = children, Phase.WAITING
        self._desk.disarm(inc, "run_timeout")
        self._dormitory.lay_down(inc)
        self._env.emit(RunPassivated, inc, seq=inc.restored_seq, timed=bool(dues))
        if self.is_wanted(inc):  # now that whoever wants something rouses it: see Dormitory
            self.activate(inc)
        self._desk.look_soon()
        self._life.left()

    def _go_on(self, inc: Incarnation) -> None:
        if inc.killed_by is not None:
            inc.stage = Stage.SETTLING  # its tombstone is under way, and nothing of it runs
        else:
            self._life.restart(inc)

    def _lives_in_memory(self, child_run_id: str) -> bool:
        """Whether that is a child of which the store knows nothing: its end is told by whoever holds the parent."""
        child = self._desk.table.get(child_run_id)
        return child is not None and not child.durable

    def _dues(self, inc: Incarnation) -> tuple[Due, ...]:
        """When it is to be looked at: at the end of its wait, and at that of its run_timeout_s."""
        dues: list[Due] = []
        published = None if inc.slot is None else inc.slot.published
        following = None if published is None else published.next
        if published is not None and published.due_s is not None:
            dues.append(Due(self._env.steady_at(published.due_s)))
        elif isinstance(following, Waiting) and following.moment_s is not None:
            dues.append(Due(following.moment_s, by_wall=True))
        left_s = remaining(inc.claim.deadline_at_s, inc.claim.remaining_s, self._env.steady_s())
        if left_s is not None:
            dues.append(Due(self._env.steady_s() + left_s))
        return tuple(dues)

    # --- taking up ----------------------------------------------------------------------------------------------------

    def find(self, run_id: str) -> Incarnation | None:
        """The passivated run of this id. Raises StoreError, and what `sleeping_incarnation` raises."""
        inc = self._dormitory.find(run_id, lambda: sleeping_incarnation(self._env, run_id))
        return inc if inc is not None and inc.stage is Stage.PASSIVATED else None

    def activate(self, inc: Incarnation) -> None:
        """Claim it and load it. One that was roused twice is activated once."""
        if inc.stage is not Stage.PASSIVATED:
            return
        if inc.run_id in self._desk.table:  # a start holds the id until the store has told it that the run is there
            self._desk.tell_later(RETRY_S, ActivateRun(inc))
            return
        claim = self.risen(inc)
        if claim is not None:
            self.claim([(inc, claim)])

    def end(self, order: EndRun) -> bool:
        """Somebody wants a passivated run to end. False, and nothing is done, for a run that is none.

        A kill is a matter of the store alone; for everything else it is taken up, so that `stopping` is called.
        """
        if order.run_id in self._desk.table:
            asleep = self._dormitory.asleep(order.run_id)
            if asleep is None or asleep.incarnation != order.incarnation:
                return False
            self._desk.tell_later(RETRY_S, order)  # a start holds the id, as in `activate`
            return True
        try:
            inc = self.find(order.run_id)
        except StoreError as error:
            order.reply.try_fail(error)
            return True
        except ExecutusError:  # this code does not know its type
            return False
        if inc is None or inc.incarnation != order.incarnation:
            return False
        inc.ending.add_done_callback(lambda _: order.reply.try_set(None))
        self._dormitory.keep(inc)
        if isinstance(order.cause, KillRequested):
            self._kill(inc, order.cause)
        else:
            inc.record(order.cause)
            self.activate(inc)
        return True

    def suspend(self) -> None:
        """The runtime shuts down: who waits for one of them is told; in the store they rest as before."""
        for inc in self._dormitory.close():
            self._suspend(inc)

    def _suspend(self, inc: Incarnation) -> None:
        self._life.finish(inc, Ending(RunStatus.PASSIVATED, None, "the runtime shuts down"))

    def risen(self, inc: Incarnation) -> Claim | None:
        """Put it into the table; returns the claim that is to be committed. None where it need not, or cannot, rise."""
        if self._desk.drain is not None:
            self._suspend(inc)
            return None
        link = inc.parent
        if link is not None and not inc.causes:
            try:
                is_orphan = self._is_orphan(link)
            except StoreError:
                self._desk.tell_later(RETRY_S, ActivateRun(inc))
                return None
            if is_orphan:
                cause = parent_ended(link)
                if isinstance(cause, KillRequested):
                    self._kill(inc, cause)
                    return None
                inc.record(cause)
        self._dormitory.take_up(inc)
        claim = next_claim(self._env, inc.claim, self._desk.epochs.draw())
        expected, inc.claim, inc.origin = inc.claim.token, claim, Source.STORE
        return Claim(claim=claim, expected=expected)

    def _is_orphan(self, link: ParentLink) -> bool:
        """Whether its parent has ended for good. Raises StoreError."""
        live = self._desk.table.get(link.run_id)
        if live is not None and live.incarnation == link.incarnation:
            return False  # if it is about to end, it looks for its children then
        try:
            parent = self._env.store.load(link.run_id)
        except (RecordCorrupt, StoreTooNew):
            return False  # as at a boot: then nobody knows that it has ended
        return orphaned(link, None if parent is None else parent.claim)

    def _kill(self, inc: Incarnation, cause: KillRequested) -> None:
        """A store that fails keeps it waiting: told that it is dead, nobody may find it passivated."""
        self._dormitory.take_up(inc)
        inc.stage, inc.killed_by = Stage.SETTLING, cause
        inc.ending.add_done_callback(lambda _: self._desk.look_soon())  # it is due no more
        with suppress(ExecutusError):  # whom it does not find now is found orphaned when it wakes
            self._family.find(inc)
        self._interruption.entomb(inc, cause)

    def claim(self, risen: Sequence[tuple[Incarnation, Claim]]) -> None:
        """Commit the claims of those that were taken up, then load each."""

        def then(verdicts: Verdicts) -> None:
            for (inc, _), verdict in zip(risen, verdicts, strict=True):
                if inc.stage is not Stage.CLAIMING:
                    continue
                match verdict:
                    case Accepted():
                        self._env.emit(RunActivated, inc)
                        self._admission.load(inc)
                    case Refused(_, current):
                        self._life.lost(inc, current)
            self._desk.look_soon()

        self._desk.commit([claim for _, claim in risen], then)
