"""Bugs planted into the shipped code, to prove that the simulator would find them. Patches of tests, no switches of the product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from executus.actors import admission, journal_keeper, passivation, pruning, save_slot, store_actor, supervisor
from executus.actors.deliveries import Deliveries
from executus.actors.dormitory import Dormitory
from executus.actors.family import Family
from executus.actors.incarnation import Incarnation, Letter, Letters, Stage
from executus.actors.interruption import Interruption
from executus.actors.journal_keeper import JournalKeeper
from executus.actors.outcomes import KillRequested
from executus.actors.passivation import Passivation
from executus.actors.run_actor import RunActor
from executus.actors.runtime_tree import RuntimeTree
from executus.actors.save_slot import SaveSlot
from executus.actors.store_actor import StoreActor
from executus.actors.throttle import NEVER
from executus.actors.tree import Supervisor
from executus.stores import ENDED, RunClaim, RunStatus, Token, batch, inbox_rows
from executus.stores.fencing import Fit, judge_writer


def no_claim(patch: pytest.MonkeyPatch) -> None:
    """A restart and a boot go on under the epoch that is there."""
    original = supervisor.next_claim

    def same_epoch(env: Any, claim: RunClaim, _epoch: int, **more: Any) -> RunClaim:
        return original(env, claim, claim.epoch, **more)

    patch.setattr(supervisor, "next_claim", same_epoch)
    patch.setattr(admission, "next_claim", same_epoch)
    patch.setattr(passivation, "next_claim", same_epoch)


def older_epoch_accepted(patch: pytest.MonkeyPatch) -> None:
    """The store asks a writer for its incarnation and not for its epoch."""

    def judge(token: Token, current: RunClaim | None) -> Any:
        if current is not None and current.incarnation == token.incarnation:
            return Fit.APPLY
        return judge_writer(token, current)

    patch.setattr(batch, "judge_writer", judge)


def journals_taken_for_stored_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """What was laid out of a journal counts as stored, whatever becomes of the commit."""
    original = JournalKeeper.lay_out

    def lay_out(self: JournalKeeper, journals: Any, *, seq: int, epoch: int) -> Any:
        laid_out = original(self, journals, seq=seq, epoch=epoch)
        self.confirm(seq)
        return laid_out

    patch.setattr(JournalKeeper, "lay_out", lay_out)


def branches_of_journals_are_not_told_apart(patch: pytest.MonkeyPatch) -> None:
    """A journal that was not seen before counts as the stored one gone on with."""
    patch.setattr(journal_keeper, "_common", lambda one, other, most: min(len(one), len(other), most))


def chunks_of_old_bases_stay(patch: pytest.MonkeyPatch) -> None:
    """Nobody drops the base that no generation needs any more."""
    patch.setattr(batch, "drop_unneeded", lambda *_: None)


def acknowledged_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """Saves are acknowledged when they are handed to the store."""
    original = StoreActor._commit

    def commit(self: StoreActor, members: list[Any]) -> Any:
        for member in members:
            if member.slot is not None and member.published is not None:
                member.slot.acknowledge(member.published.seq)
                self._emit_saved(member.slot, member.published.seq)
        return original(self, members)

    patch.setattr(StoreActor, "_commit", commit)


def lost_trailing_save(patch: pytest.MonkeyPatch) -> None:
    """A save that is not due when it is offered is forgotten: the next one will do."""
    original = store_actor.due_at

    def due_at(policy: Any, *, saved_at_s: float | None, steps_since: int, now_s: float) -> float:
        due_s = original(policy, saved_at_s=saved_at_s, steps_since=steps_since, now_s=now_s)
        return due_s if due_s <= now_s else NEVER

    patch.setattr(store_actor, "due_at", due_at)
    patch.setattr(save_slot.SaveSlot, "publish", _publish_always)


def _publish_always(self: SaveSlot, published: Any) -> None:
    self.published = published
    self.dirty = True
    self.port.tell(save_slot.OfferSave(self))


def tombstone_after_the_signal(patch: pytest.MonkeyPatch) -> None:
    """A kill signals first and commits then."""
    original = Interruption.entomb

    def entomb(self: Interruption, inc: Incarnation, cause: KillRequested) -> None:
        self._signal_kill(inc, cause)
        original(self, inc, cause)

    patch.setattr(Interruption, "entomb", entomb)


def a_zombie_is_not_fenced(patch: pytest.MonkeyPatch) -> None:
    """An attempt that was given up on may go on publishing."""
    patch.setattr(SaveSlot, "close", lambda self: self.published)


def childrens_ends_not_derived(patch: pytest.MonkeyPatch) -> None:
    """What ended while its parent was away is not looked for."""
    patch.setattr(Family, "find", lambda _self, _inc: None)


def killed_runs_come_back(patch: pytest.MonkeyPatch) -> None:
    """A tombstone is written as a claim that still runs."""
    original = Interruption._commit_tombstone

    def commit(self: Interruption, inc: Incarnation, cause: KillRequested, expected: Token) -> None:
        from executus.actors import interruption

        ending = interruption.ending_claim

        def running(*arguments: Any) -> RunClaim:
            return msgspec.structs.replace(ending(*arguments), status=RunStatus.RUNNING, ended_at_s=None)

        interruption.ending_claim = running
        try:
            original(self, inc, cause, expected)
        finally:
            interruption.ending_claim = ending

    patch.setattr(Interruption, "_commit_tombstone", commit)


def children_of_an_earlier_beginning_are_the_next_ones(patch: pytest.MonkeyPatch) -> None:
    """A new beginning, by hand or in the next round, is not told apart from the one before."""
    original = supervisor.next_claim

    def same_round(env: Any, claim: RunClaim, epoch: int, *, afresh: bool = False, **more: Any) -> RunClaim:
        del afresh
        return original(env, claim, epoch, **more)

    patch.setattr(supervisor, "next_claim", same_round)
    patch.setattr(admission, "next_claim", same_round)


def two_endings(patch: pytest.MonkeyPatch) -> None:
    """The second ending of a race is accepted as well."""

    def judge(op: Any, current: RunClaim | None, *, same_outcome: bool) -> Any:
        if current is not None and current.incarnation == op.token.incarnation and current.status in ENDED:
            return Fit.APPLY
        from executus.stores.fencing import judge_settle

        return judge_settle(op, current, same_outcome=same_outcome)

    patch.setattr(batch, "judge_settle", judge)


def a_store_that_comes_back_is_not_announced(patch: pytest.MonkeyPatch) -> None:
    """What a crashed store actor had not answered is not sent to the next one."""
    patch.setattr(RuntimeTree, "_store_started", lambda _self, _started: None)


def a_crashed_store_is_not_restarted(patch: pytest.MonkeyPatch) -> None:
    """The supervisor of the store forgets its child."""
    original = Supervisor.failed

    def failed(self: Supervisor, child: Any, how: Any, error: BaseException | None) -> None:
        if child.spec.id == "actor":
            self._nursery.rest(child)
        else:
            original(self, child, how, error)

    patch.setattr(Supervisor, "failed", failed)


def a_child_whose_end_is_needed_is_deleted(patch: pytest.MonkeyPatch) -> None:
    """Retention does not ask whether the parent has taken in the end."""
    patch.setattr(pruning, "is_needed", lambda _link, _parent: False)


def consumed_when_taken(patch: pytest.MonkeyPatch) -> None:
    """A durable message is consumed with the next save after it was taken, whatever state that save holds."""
    taken: dict[str, int] = {}
    take, snapshot = Letters.take, SaveSlot.snapshot

    def take_and_note(self: Letters) -> Letter | None:
        letter = take(self)
        if letter is not None and letter.posted is not None:
            taken[self.who] = letter.posted.number
        return letter

    def consume_all(self: SaveSlot, published: Any, wall_s: float) -> Any:
        saved, chunks = snapshot(self, published, wall_s)
        through = taken.get(self.token.run_id, 0)
        return msgspec.structs.replace(saved, consumed_through=max(saved.consumed, through) or msgspec.UNSET), chunks

    patch.setattr(Letters, "take", take_and_note)
    patch.setattr(SaveSlot, "snapshot", consume_all)


def ids_of_messages_are_not_known(patch: pytest.MonkeyPatch) -> None:
    """A message that is sent again is a new one."""
    original = inbox_rows.judge_append
    patch.setattr(inbox_rows, "judge_append", lambda op, claim, inbox, _known: original(op, claim, inbox, None))


def pending_messages_are_not_loaded(patch: pytest.MonkeyPatch) -> None:
    """A run that comes back hears what is sent from then on."""

    def load(_self: Deliveries, inc: Incarnation) -> None:
        inc.delivered_through = 0

    patch.setattr(Deliveries, "load", load)


def the_letter_in_hand_is_lost_in_a_crash(patch: pytest.MonkeyPatch) -> None:
    """What was told and what was sent are treated alike when an attempt crashes with it."""
    put_back = Letters.put_back

    def only_others(self: Letters, letter: Letter) -> None:
        if letter.posted is None:
            put_back(self, letter)

    patch.setattr(Letters, "put_back", only_others)


def letters_are_looked_for_before_a_run_is_laid_down_and_not_after(patch: pytest.MonkeyPatch) -> None:
    """What a teller puts down while the commit of a passivation is under way is not seen."""
    original = Passivation.is_wanted

    def is_wanted(self: Passivation, inc: Incarnation) -> bool:
        return inc.stage not in {Stage.SETTLING, Stage.PASSIVATED} and original(self, inc)

    patch.setattr(Passivation, "is_wanted", is_wanted)


def kin_that_is_passivated_is_not_roused(patch: pytest.MonkeyPatch) -> None:
    """An ending leaves the due times of parent and children as they are."""
    patch.setattr(batch.Batch, "_rouse", lambda _self, _run_ids: None)


def a_passivated_run_has_two_objects(patch: pytest.MonkeyPatch) -> None:
    """Whoever looks for one makes one."""

    def find(self: Dormitory, run_id: str, load: Callable[[], Incarnation | None]) -> Incarnation | None:
        inc = self._table.get(run_id) or load()
        if inc is not None and inc.stage is Stage.PASSIVATED:
            inc.rouse = self.rouse
        return inc

    patch.setattr(Dormitory, "find", find)


def who_was_loaded_forgets_its_deadline(patch: pytest.MonkeyPatch) -> None:
    """The deadline of a stored Wait is not kept with the state that is loaded."""
    original = RunActor._load

    def load(self: Any) -> Any:
        published, fell_back = original(self)
        return None if published is None else msgspec.structs.replace(published, due_s=None), fell_back

    patch.setattr(RunActor, "_load", load)


def every_state_is_gone_ahead_of(patch: pytest.MonkeyPatch) -> None:
    """With durability "sync" nothing waits for its commit, but for answers."""
    patch.setattr(RunActor, "_goes_ahead", lambda self, _state, _following: self.answer is None)


PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    plant.__name__: plant
    for plant in (
        no_claim,
        older_epoch_accepted,
        acknowledged_before_the_commit,
        lost_trailing_save,
        tombstone_after_the_signal,
        a_zombie_is_not_fenced,
        childrens_ends_not_derived,
        killed_runs_come_back,
        children_of_an_earlier_beginning_are_the_next_ones,
        two_endings,
        consumed_when_taken,
        ids_of_messages_are_not_known,
        pending_messages_are_not_loaded,
        the_letter_in_hand_is_lost_in_a_crash,
        a_store_that_comes_back_is_not_announced,
        a_crashed_store_is_not_restarted,
        a_child_whose_end_is_needed_is_deleted,
        journals_taken_for_stored_before_the_commit,
        branches_of_journals_are_not_told_apart,
        chunks_of_old_bases_stay,
        letters_are_looked_for_before_a_run_is_laid_down_and_not_after,
        kin_that_is_passivated_is_not_roused,
        a_passivated_run_has_two_objects,
        who_was_loaded_forgets_its_deadline,
        every_state_is_gone_ahead_of,
    )
}
