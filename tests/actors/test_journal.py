"""`Journal[T]` as a value: a plain list that never changes, whoever else appends to what it shares."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
import timeit

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, rule

from executus.actors import Journal
from executus.actors.journal import digest_of, log_of

ITEMS = st.integers(0, 5)


class JournalsAgainstLists(RuleBasedStateMachine):
    """Any number of versions, each appended to at any time: every one stays what it was."""

    versions = Bundle("versions")

    @rule(target=versions, items=st.lists(ITEMS, max_size=4))
    def made(self, items: list[int]) -> tuple[Journal[int], list[int]]:
        return Journal(iter(items)), items

    @rule(target=versions, version=versions, item=ITEMS)
    def appended(self, version: tuple[Journal[int], list[int]], item: int) -> tuple[Journal[int], list[int]]:
        journal, items = version
        return journal.append(item), [*items, item]

    @rule(target=versions, version=versions, more=st.lists(ITEMS, max_size=4))
    def extended(self, version: tuple[Journal[int], list[int]], more: list[int]) -> tuple[Journal[int], list[int]]:
        journal, items = version
        return journal.extend(iter(more)), [*items, *more]

    @rule(target=versions, version=versions, more=st.lists(ITEMS, max_size=4))
    def replaced(self, version: tuple[Journal[int], list[int]], more: list[int]) -> tuple[Journal[int], list[int]]:
        return version[0].replaced(more), more

    @rule(target=versions, version=versions)
    def copied(self, version: tuple[Journal[int], list[int]]) -> object:
        journal, items = version
        again = pickle.loads(pickle.dumps(journal))
        return multiple((copy.copy(journal), items), (copy.deepcopy(journal), items), (again, items))

    @rule(version=versions, at=st.integers(-6, 6), stop=st.integers(-6, 6), step=st.sampled_from([None, 1, 2, -1, -2]))
    def looks_like_its_list(
        self, version: tuple[Journal[int], list[int]], at: int, stop: int, step: int | None
    ) -> None:
        journal, items = version
        assert list(journal) == items
        assert len(journal) == len(items)
        assert bool(journal) == bool(items)
        assert journal[at:stop:step] == tuple(items[at:stop:step])
        assert journal.last(abs(at)) == tuple(items[max(0, len(items) - abs(at)) :])
        assert list(reversed(journal)) == items[::-1]
        assert (at in journal, journal.count(at)) == (at in items, items.count(at))
        if -len(items) <= at < len(items):
            assert journal[at] == items[at]
        else:
            with pytest.raises(IndexError):
                journal[at]

    @rule(one=versions, other=versions)
    def equal_where_the_lists_are(
        self, one: tuple[Journal[int], list[int]], other: tuple[Journal[int], list[int]]
    ) -> None:
        assert (one[0] == other[0]) == (one[1] == other[1])

    @rule(one=versions, other=versions)
    def digests_are_equal_where_the_lists_are(
        self, one: tuple[Journal[int], list[int]], other: tuple[Journal[int], list[int]]
    ) -> None:
        assert (digest_of(one[0], as_bytes) == digest_of(other[0], as_bytes)) == (one[1] == other[1])


def as_bytes(item: int) -> bytes:
    return str(item).encode()


TestJournalsAgainstLists = JournalsAgainstLists.TestCase
TestJournalsAgainstLists.settings = settings(stateful_step_count=30, max_examples=100)


def test_a_journal_is_no_list_and_has_no_hash() -> None:
    assert Journal([1]) != [1]
    with pytest.raises(TypeError, match="unhashable"):
        hash(Journal())
    with pytest.raises(ValueError, match="negative"):
        Journal([1]).last(-1)


def test_a_long_journal_is_told_by_its_length() -> None:
    assert repr(Journal([1, 2])) == "Journal([1, 2])"
    assert repr(Journal(range(11))) == "<Journal of 11 items>"


def test_versions_share_their_items_and_a_branch_has_its_own() -> None:
    first = Journal[int]().append(1)
    second = first.append(2)
    branch = first.append(3)
    assert log_of(second) is log_of(first)
    assert log_of(branch) is not log_of(first)
    assert (list(first), list(second), list(branch)) == ([1], [1, 2], [1, 3])


def test_a_constant_of_the_module_holds_on_to_nothing_that_runs_append_to_it() -> None:
    for constant in (Journal[str](), Journal(["system"])):
        before = len(constant)
        grown = constant.append("of a run")
        assert len(log_of(constant).items) == before
        assert list(grown)[-1] == "of a run"


def test_appending_while_the_items_are_made_is_no_deadlock() -> None:
    journal = Journal[int]().append(0)
    assert list(journal.extend(len(journal.append(n)) for n in range(3))) == [0, 2, 2, 2]
    assert list(journal) == [0]


def test_a_digest_tells_items_apart_that_join_to_the_same_bytes() -> None:
    assert digest_of(Journal(["ab", "c"]), str.encode) != digest_of(Journal(["a", "bc"]), str.encode)


def test_a_digest_goes_by_the_encoding_that_is_asked_for() -> None:
    journal = Journal([1]).append(2)
    wide = digest_of(journal, lambda item: b"%02d" % item)
    assert digest_of(journal, as_bytes) == digest_of(Journal([1, 2]), as_bytes)
    assert digest_of(journal, lambda item: b"%02d" % item) == wide != digest_of(journal, as_bytes)


def test_threads_that_append_to_one_version_never_see_each_others_items_and_readers_see_what_never_changes() -> None:
    shared = Journal[int]().append(-1)
    versions: list[tuple[Journal[int], list[int]]] = []
    barrier = threading.Barrier(4)

    def append(who: int) -> None:
        mine, items = shared, [-1]
        barrier.wait()
        for n in range(2_000):
            mine, items = mine.append(who * 10_000 + n), [*items, who * 10_000 + n]
            if n % 100 == 0:
                versions.append((mine, items))
                other, expected = versions[n // 100 % len(versions)]
                assert list(other) == expected
        versions.append((mine, items))

    threads = [threading.Thread(target=append, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(versions) == 4 * 21
    assert all(list(journal) == items for journal, items in versions)
    assert list(shared) == [-1]


def test_appending_to_a_long_journal_costs_what_appending_to_a_short_one_does() -> None:
    short, long = Journal[int]().append(0), Journal(range(200_000)).append(0)

    def appending(journal: Journal[int]) -> float:
        def some() -> None:
            version = journal.append(1)  # a branch, copied; what follows is not
            begun = timeit.default_timer()
            for n in range(200):
                version = version.append(n)
            took.append(timeit.default_timer() - begun)

        took: list[float] = []
        for _ in itertools.repeat(None, 5):
            some()
        return min(took)

    assert appending(long) < 10 * appending(short)
