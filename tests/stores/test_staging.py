"""The changes of a commit in the making, over what is stored."""

from __future__ import annotations

import random
import time

from executus.stores.rows import Rows, Table, range_below, run_key
from executus.stores.staging import Staging
from tests.waiting import in_time


class Stored:
    """A table's rows, in order."""

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self.rows = dict(sorted(rows.items()))

    def get(self, table: Table, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def keys(self, table: Table, first: bytes, below: bytes | None, limit: int) -> list[bytes]:
        return [key for key, _ in self.page(table, first, below, limit)]

    def page(self, table: Table, first: bytes, below: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        return [(key, value) for key, value in self.rows.items() if first <= key and (below is None or key < below)]


def staging(rows: dict[bytes, bytes]) -> Staging:
    stored: Rows = Stored(rows)  # type: ignore[assignment]
    return Staging(stored)


def test_a_range_shows_what_is_stored_with_every_change_made_so_far_and_changes_made_in_between() -> None:
    rng = random.Random(4)
    keys = [b"%d" % number for number in range(60)]
    rows = dict.fromkeys(rng.sample(keys, 30), b"stored")
    staged, expected = staging(rows), dict(rows)
    for number in range(400):
        key = rng.choice(keys)
        if rng.random() < 0.6:
            value = None if rng.random() < 0.4 else b"%d" % number
            staged.put(Table.JOURNALS, key, value)
            expected.pop(key, None)
            if value is not None:
                expected[key] = value
        first, below = sorted(rng.sample(keys, 2))
        end = rng.choice((below, None))
        found = list(staged.items(Table.JOURNALS, first, end))
        wanted = {key: value for key, value in expected.items() if first <= key and (end is None or key < end)}
        assert dict(found) == wanted
        assert len(found) == len(wanted)
        assert staged.keys(Table.JOURNALS, first, end) == [key for key, _ in found]


def test_rows_may_be_changed_while_a_range_is_gone_through() -> None:
    staged = staging({b"a": b"1", b"b": b"2"})
    for key, _ in staged.items(Table.JOURNALS, b"a", None):
        staged.put(Table.JOURNALS, key, None)
        staged.put(Table.JOURNALS, key + b"-new", b"3")
    assert dict(staged.items(Table.JOURNALS, b"a", None)) == {b"a-new": b"3", b"b-new": b"3"}


def test_a_thousand_runs_that_drop_their_rows_in_one_commit_do_not_look_through_each_others() -> None:
    def times_as_long() -> float:
        return per_run_s(2_000) / per_run_s(100)

    in_time(times_as_long, 10)  # it was 25


def per_run_s(runs: int) -> float:
    """What it takes one of so many runs to put ten rows, look for them and drop them, all in one commit."""
    staged = staging({})
    began_s = time.thread_time()
    for number in range(runs):
        key = run_key(f"run-{number}")
        for position in range(10):
            staged.put(Table.JOURNALS, b"%b\0%d" % (key, position), b"item")
        for row in staged.keys(Table.JOURNALS, *range_below(key)):
            staged.put(Table.JOURNALS, row, None)
    return (time.thread_time() - began_s) / runs
