"""Durable messages on their way: committed first, then put into the mailbox of a run that is here, in order."""

from __future__ import annotations

from typing import Final

from executus.actors.desk import RETRY_S, Desk, Verdicts
from executus.actors.errors import InboxFull, RunEnded, RunNotFound, RuntimeDraining, SendFailed
from executus.actors.incarnation import UNREAD, Incarnation, Letter, Posted, ended_error
from executus.actors.messages import DeliverStored, Outgoing, SendMessage
from executus.stores import (
    Accepted,
    Append,
    ExecutusError,
    RecordTooLarge,
    Refusal,
    Refused,
    StoreError,
    StoreUnavailable,
)

SEND_PATIENCE_S: Final = 5.0
"""`send` waits so long for a failing store, then raises."""


class Deliveries:
    """On the supervisor's thread.

    Why nothing is lost or put twice between a commit and a load: the verdict on a message and the load of its run are
    both handled here, one after the other. A load puts all that the store has and notes the last number. A verdict that
    comes after it with a number up to that one changes nothing, for the load has seen the message; any other message
    was committed after the load had read, and is put now. Where a number between is missing (its commit was retried, or
    whoever sent it gave up), the store is read for it, so that a mailbox holds them in order and without a gap.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._env = desk.env

    def receive(self, message: SendMessage | DeliverStored) -> None:
        """What the supervisor is told of messages."""
        match message:
            case SendMessage():
                self.send(message)
            case DeliverStored():
                self.deliver(message)

    def send(self, order: SendMessage) -> None:
        """Commit a message. The reply holds its number once it is durable."""
        run_id, reply = order.run_id, order.reply
        live = self._desk.table.get(run_id)
        if self._desk.drain is not None:
            reply.try_fail(RuntimeDraining(f"run {run_id!r} was sent nothing: the runtime is shutting down"))
            return
        if live is not None and live.incarnation == order.incarnation and live.ending.done():
            reply.try_fail(ended_error(run_id, live.ending.result(0)))  # reported; the store has yet to take it
            return

        def then(verdicts: Verdicts) -> None:
            match verdicts[0]:
                case Accepted(number):
                    self.accepted(run_id, order.incarnation, number, order.outgoing)
                    reply.try_set(number)
                case Refused() as refused:
                    reply.try_fail(_refusal(order, refused))

        def failed(error: ExecutusError) -> bool:
            waited_s = self._env.clock.now_s() - asked_s
            if waited_s < SEND_PATIENCE_S and isinstance(error, StoreUnavailable):
                return False
            reply.try_fail(error if isinstance(error, RecordTooLarge) else _send_failed(order, waited_s, error))
            return True

        asked_s = self._env.clock.now_s()
        operation = append_of(run_id, order.incarnation, order.limit, order.outgoing, self._env.clock.wall_s())
        self._desk.commit([operation], then, failed=failed)

    def accepted(self, run_id: str, incarnation: int, number: int, outgoing: Outgoing) -> None:
        """A message is durable under that number: put it into the mailbox, unless it is or was there."""
        inc = self._desk.table.get(run_id)
        if inc is None:
            self._desk.look_soon()  # a passivated run was roused by the commit
        if inc is None or inc.incarnation != incarnation or inc.delivered_through is None:
            return  # whoever loads the run takes it from the store
        if number <= inc.delivered_through:
            return
        if number > inc.delivered_through + 1:
            self.deliver(DeliverStored(run_id, incarnation, inc.delivered_through))
            return
        posted = Posted(number, number - 1, outgoing.message_id, outgoing.expires_at_s)
        _put(inc, [Letter(outgoing.message, posted=posted)])
        inc.delivered_through = number

    def deliver(self, message: DeliverStored) -> None:
        """Put what the store has behind that number; what is there twice then, the attempt hears once."""
        inc = self._desk.table.get(message.run_id)
        if inc is None or inc.incarnation != message.incarnation or inc.delivered_through is None:
            return
        try:
            letters = self._stored(inc, message.behind)
        except StoreError:
            self._desk.tell_later(RETRY_S, message)
            return
        _put(inc, letters)

    def load(self, inc: Incarnation) -> None:
        """Put all that the store has, before the run is launched. Raises StoreError; nothing is put then."""
        if inc.delivered_through is None and inc.durable:
            letters = self._stored(inc, 0)
            inc.delivered_through = 0
            _put(inc, letters)

    def _stored(self, inc: Incarnation, behind: int) -> list[Letter]:
        letters: list[Letter] = []
        before = 0
        for stored in self._env.store.messages(inc.run_id):
            message = stored.message
            if stored.number > behind:
                posted = Posted(
                    stored.number,
                    before,
                    "" if message is None else message.message_id,
                    None if message is None else message.expires_at_s,
                    None if message is None else message.body,
                )
                letters.append(Letter(UNREAD, posted=posted))
            before = stored.number
        return letters


def append_of(run_id: str, incarnation: int, limit: int, outgoing: Outgoing, wall_s: float) -> Append:
    """The operation that makes a message durable."""
    return Append(
        run_id=run_id,
        incarnation=incarnation,
        message_id=outgoing.message_id,
        body=outgoing.body,
        sent_at_s=wall_s,
        expires_at_s=outgoing.expires_at_s,
        limit=limit,
    )


def _put(inc: Incarnation, letters: list[Letter]) -> None:
    for letter in letters:
        try:
            inc.put(letter)
        except ExecutusError:
            return  # it has ended meanwhile
        if letter.posted is not None and inc.delivered_through is not None:
            inc.delivered_through = max(inc.delivered_through, letter.posted.number)


def _refusal(order: SendMessage, refused: Refused) -> ExecutusError:
    run_id, current = order.run_id, refused.current
    match refused.why:
        case Refusal.FULL:
            return InboxFull(run_id, order.limit)
        case Refusal.MISSING:
            return RunNotFound(run_id)
        case _ if current is not None:
            return RunEnded(run_id, current.status, replaced=refused.why is Refusal.FENCED)
        case _:
            return SendFailed(run_id, order.outgoing.message_id, "its record there is damaged")


def _send_failed(order: SendMessage, waited_s: float, error: ExecutusError) -> SendFailed:
    failed = SendFailed(order.run_id, order.outgoing.message_id, f"after {waited_s:.1f} s: {error}")
    failed.__cause__ = error
    return failed
