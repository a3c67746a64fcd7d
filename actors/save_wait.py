"""A callback's own wait until the state that it was given is in the store."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from executus.actors.errors import SaveGivenUp, SaveRejected
from executus.actors.future import Promise
from executus.actors.incarnation import fenced_error
from executus.actors.messages import SaveNow

if TYPE_CHECKING:
    from executus.actors.run_actor import RunActor


class SaveWait:
    """One `context.durable()`. Unlike a handle's, it outlasts a store that fails.

    It registers with the slot, *then* looks; the store actor and the supervisor write what it looks at, *then* stir
    those that are registered. So whatever changes while it waits, it looks once more.
    """

    __slots__ = ("_attempt", "_seq", "_slot", "_told")

    def __init__(self, attempt: RunActor) -> None:
        self._attempt = attempt
        self._slot = attempt.slot
        self._seq = attempt.seq if attempt.has_state else 0  # before the first state there is nothing to wait for
        self._told = False

    def block(self) -> Promise[int]:
        """Wait on this thread. What it returns can be awaited, and is there."""
        found: Promise[int] = Promise()
        with self._not_hung():
            while True:
                with self._registered() as stirred:
                    if self._look(found):
                        return found
                    stirred.wait()

    async def on_loop(self) -> int:
        """Wait in a coroutine."""
        found: Promise[int] = Promise()
        with self._not_hung():
            while True:
                with self._registered() as stirred:
                    if self._look(found):
                        return found.result(0)
                    await stirred

    def _look(self, found: Promise[int]) -> bool:
        """Whether it is durable. Raises why it will not be, or why nobody waits for it any more."""
        slot, seq, inc = self._slot, self._seq, self._attempt.inc
        if slot.durable_seq >= seq:
            return found.try_set(slot.durable_seq)
        published = slot.published
        if slot.rejected_seq >= seq or published is None or published.seq < seq:
            msg = f"run {inc.run_id!r}: the state of seq {seq} cannot be stored, see SaveRefused"
            raise SaveRejected(msg) from slot.rejection
        if slot.closed:
            raise fenced_error(inc.run_id, slot.attempt)
        trouble = self._attempt.env.store_trouble
        if inc.causes and trouble is not None:
            raise SaveGivenUp(inc.run_id, seq, str(trouble))
        if not self._told:
            self._told = True
            slot.port.tell(SaveNow(slot))
        return False

    @contextmanager
    def _registered(self) -> Generator[Promise[None], None, None]:
        stirred: Promise[None] = Promise()
        self._slot.waiting_callers.append(stirred)
        try:
            yield stirred
        finally:
            self._slot.waiting_callers.remove(stirred)

    @contextmanager
    def _not_hung(self) -> Generator[None, None, None]:
        """A store that fails must not fail the run: meanwhile no heartbeat is due."""
        attempt, inc = self._attempt, self._attempt.inc
        watched, inc.heartbeat_s = inc.heartbeat_s is not None, None
        try:
            yield
        finally:
            if watched and attempt.seq == self._seq and not self._slot.closed:
                inc.heartbeat_s = attempt.env.clock.now_s()
