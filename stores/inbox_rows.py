"""The rows of durable messages within one commit: put in order, remembered by id, dropped when they are in the state.

A life that has had a message has a row of its own that says how far its messages have got (`Inbox`). Where that row
cannot be read, it is made again from the rows that are there.
"""

from __future__ import annotations

from msgspec.structs import replace

from executus.stores import codec
from executus.stores.errors import RecordCorrupt, RecordTooLarge
from executus.stores.fencing import Fit, judge_append
from executus.stores.operations import REMEMBERED_IDS, Accepted, Append, Refused
from executus.stores.records import Inbox, Message, RunClaim
from executus.stores.rows import Table, message_id_key, message_key, message_number, range_below
from executus.stores.staging import Staging


def read_inbox(staging: Staging, key: bytes, incarnation: int) -> Inbox:
    """How far a life's messages have got, by its row, or by what there is of messages and ids. Raises StoreTooNew."""
    data = staging.get(Table.INBOXES, key)
    if data is not None:
        try:
            inbox = codec.decode_inbox(data, key)
        except (RecordCorrupt, RecordTooLarge):
            pass
        else:
            return inbox if inbox.incarnation == incarnation else Inbox(incarnation=incarnation)
    return _found_inbox(staging, key, incarnation)


def append(staging: Staging, key: bytes, inbox: Inbox, op: Append, claim: RunClaim) -> tuple[Inbox, Accepted | Refused]:
    """Judge a message and put it behind the others. Raises RecordTooLarge, TypeError; RecordCorrupt on a damaged id."""
    id_key = message_id_key(key, op.message_id)
    remembered = staging.get(Table.MESSAGE_IDS, id_key)
    known = None if remembered is None else codec.decode_message_id(remembered, id_key)
    verdict = judge_append(op, claim, inbox, known)
    if isinstance(verdict, Refused):
        return inbox, verdict
    if verdict is Fit.ALREADY and known is not None:
        return inbox, Accepted(known)
    number = inbox.appended + 1
    message = Message(
        run_id=op.run_id,
        incarnation=op.incarnation,
        number=number,
        message_id=op.message_id,
        body=op.body,
        sent_at_s=op.sent_at_s,
        expires_at_s=op.expires_at_s,
    )
    row_key = message_key(key, number)
    staging.put(Table.MESSAGES, row_key, codec.encode_message(message, row_key))
    staging.put(Table.MESSAGE_IDS, id_key, codec.encode_message_id(number, op.incarnation, id_key))
    return _put(staging, key, replace(inbox, appended=number)), Accepted(number)


def consume(staging: Staging, key: bytes, inbox: Inbox, through: int, *, dropping: int) -> Inbox:
    """The newest state has taken in the messages up to `through`, and every generation those up to `dropping`."""
    consumed = max(inbox.consumed_through, min(through, inbox.appended))
    dropped = max(inbox.dropped_through, min(dropping, consumed))
    if (consumed, dropped) == (inbox.consumed_through, inbox.dropped_through):
        return inbox
    _drop(staging, key, inbox.dropped_through, dropped)
    forgotten = inbox.forgotten_through
    if consumed - forgotten > 2 * REMEMBERED_IDS:
        forgotten = consumed - REMEMBERED_IDS
        _forget(staging, key, forgotten)
    return _put(
        staging,
        key,
        replace(inbox, consumed_through=consumed, dropped_through=dropped, forgotten_through=forgotten),
    )


def drop_messages(staging: Staging, key: bytes, inbox: Inbox, *, consumed_through: int = 0) -> Inbox:
    """The life has ended for good: its messages go, what was consumed stays known by its id."""
    consumed = max(inbox.consumed_through, min(consumed_through, inbox.appended))
    if (consumed, inbox.appended) == (inbox.consumed_through, inbox.dropped_through):
        return inbox
    _drop(staging, key, inbox.dropped_through, inbox.appended)
    return _put(staging, key, replace(inbox, consumed_through=consumed, dropped_through=inbox.appended))


def drop_everything(staging: Staging, key: bytes) -> None:
    """Messages, ids and the row that counts them go."""
    for table in (Table.MESSAGES, Table.MESSAGE_IDS):
        for row_key in staging.keys(table, *range_below(key)):
            staging.put(table, row_key, None)
    staging.put(Table.INBOXES, key, None)


def _put(staging: Staging, key: bytes, inbox: Inbox) -> Inbox:
    staging.put(Table.INBOXES, key, codec.encode_inbox(inbox, key))
    return inbox


def _drop(staging: Staging, key: bytes, after: int, through: int) -> None:
    for number in range(after + 1, through + 1):
        staging.put(Table.MESSAGES, message_key(key, number), None)


def _forget(staging: Staging, key: bytes, through: int) -> None:
    """Once for REMEMBERED_IDS messages: all ids are looked through."""
    for id_key, data in staging.items(Table.MESSAGE_IDS, *range_below(key)):
        try:
            if codec.decode_message_id(data, id_key) <= through:
                staging.put(Table.MESSAGE_IDS, id_key, None)
        except RecordCorrupt:
            continue  # it may be a younger one's: it stays with the run


def _found_inbox(staging: Staging, key: bytes, incarnation: int) -> Inbox:
    """From the rows that are there: what has no message any more was consumed, what comes next is above all."""
    pending = [message_number(row_key) for row_key in staging.keys(Table.MESSAGES, *range_below(key))]
    numbers = list(pending)
    for id_key, data in staging.items(Table.MESSAGE_IDS, *range_below(key)):
        try:
            numbers.append(codec.decode_message_id(data, id_key))
        except RecordCorrupt:
            continue
    appended = max(numbers, default=0)
    gone = min(pending) - 1 if pending else appended
    return Inbox(incarnation=incarnation, appended=appended, consumed_through=gone, dropped_through=gone)
