"""What is written of journals, against a store that fails in every way: what is read back is what was saved last."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from executus.actors import Blob, Journal, SaveRejected
from executus.actors.blob import INLINE_BYTES
from executus.actors.journal_keeper import CHUNK_BYTES, GATHER_ROWS, MAX_ITEM_BYTES, MAX_PIECES, JournalKeeper
from executus.actors.state_codec import StateCodec
from executus.stores import MAX_RECORD_BYTES, Layout, MemoryStore, Save, codec
from executus.stores.rows import Table, chunk_base
from tests.stores.making import begin, reclaimed, snapshot


class Page(msgspec.Struct, frozen=True):
    text: str
    images: tuple[Blob, ...] = ()


class Book(msgspec.Struct, frozen=True):
    main: Journal[bytes] = Journal()
    side: Journal[bytes] | None = None
    notes: tuple[Journal[int], ...] = ()
    pages: Journal[Page] = Journal()
    cover: Blob | None = None


LARGE = [bytes([n]) * (INLINE_BYTES + 1) for n in range(4)]
SMALL = b"small"


CODEC = StateCodec(Book, "Book")


class Desk:
    """One run over a store, as its slot and the store actor do it."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.store.open()
        self.token = begin(self.store)
        self.keeper = JournalKeeper()
        self.seq = 0

    def offer(self, state: Book, **facts: object) -> Save:
        data, journals = CODEC.encode(state)
        layouts, chunks = self.keeper.lay_out(journals, seq=self.seq, epoch=self.token.epoch)
        return Save(snapshot=snapshot(self.token, self.seq, data, layouts=layouts), chunks=chunks)

    def save(self, state: Book) -> Save:
        self.seq += 1
        save = self.offer(state)
        assert self.store.commit([save])
        self.keeper.confirm(self.seq)
        return save

    def stored(self) -> Book | None:
        loaded = self.store.load_snapshot("r")
        return None if loaded is None else CODEC.load(loaded)[0]

    def restart_from_store(self) -> Book:
        epoch = self.token.epoch + 1
        self.store.commit([reclaimed(self.token, epoch)])
        self.token = self.token._replace(epoch=epoch)
        self.keeper = JournalKeeper()
        loaded = self.store.load_snapshot("r")
        assert loaded is not None
        state, stored = CODEC.load(loaded)
        self.keeper.restored(stored)
        assert isinstance(state, Book)
        return state

    def blobs(self) -> list[int]:
        """Which of LARGE are in how many rows."""
        rows = [data for _, data in self.store._tables.page(Table.JOURNALS, b"", None, 1 << 62)]
        return [sum(content in data for data in rows) for content in LARGE]

    def rows(self) -> int:
        return len(self.store._tables.page(Table.JOURNALS, b"", None, 1 << 62))


def test_a_save_holds_what_is_new_and_nothing_else() -> None:
    desk, journal = Desk(), Journal[bytes]()
    for n in range(GATHER_ROWS - 1):
        journal = journal.append(b"%03d" % n)
        (chunk,) = desk.save(Book(journal)).chunks
        assert (chunk.position, chunk.count) == (n, 1)
    assert desk.save(Book(journal)).chunks == ()
    assert desk.stored() == Book(journal)


def test_small_rows_are_gathered_into_one_and_both_generations_can_be_read_all_the_time() -> None:
    desk, journal = Desk(), Journal[bytes]()
    for n in range(10 * GATHER_ROWS):
        journal = journal.append(b"%03d" % n)
        desk.save(Book(journal))
        assert desk.stored() == Book(journal)
        assert desk.rows() <= n // GATHER_ROWS + GATHER_ROWS
    assert desk.rows() == 10
    state = desk.restart_from_store()
    assert state == Book(journal)


def test_a_base_goes_when_no_generation_needs_it_and_not_before() -> None:
    desk = Desk()
    old = Journal(b"%d" % n for n in range(100))
    desk.save(Book(old))
    new = old.replaced([b"summary", *old.last(3)])
    desk.save(Book(new))
    assert base_of_newest(desk) != keys_of(desk) == {1, 2}
    desk.save(Book(new.append(b"more")))
    assert keys_of(desk) == base_of_newest(desk)


def base_of_newest(desk: Desk) -> set[int]:
    loaded = desk.store.load_snapshot("r")
    assert loaded is not None
    return {piece.base.number for layout in loaded.snapshot.journals for piece in layout}


def keys_of(desk: Desk) -> set[int]:
    return {chunk_base(key).number for key in keys(desk)}


def keys(desk: Desk) -> list[bytes]:
    return [key for key, _ in desk.store._tables.page(Table.JOURNALS, b"", None, 1 << 62)]


def test_a_branch_shares_what_it_has_in_common_with_what_is_stored() -> None:
    desk, journal = Desk(), Journal(b"%d" % n for n in range(1000)).append(b"x")
    desk.save(Book(journal))
    journal.append(b"lost with a step that crashed")
    save = desk.save(Book(journal.append(b"again")))
    assert [(chunk.position, chunk.count) for chunk in save.chunks] == [(1001, 1)]
    both = Book(journal.append(b"a"), journal.append(b"b"))
    assert sum(chunk.count for chunk in desk.save(both).chunks) == 2
    assert desk.stored() == both


def test_the_first_append_to_a_journal_that_was_made_of_items_writes_them_once() -> None:
    desk, journal = Desk(), Journal(b"%d" % n for n in range(100))
    assert sum(chunk.count for chunk in desk.save(Book(journal)).chunks) == 100
    assert sum(chunk.count for chunk in desk.save(Book(journal.append(b"x"))).chunks) == 1


def test_a_journal_in_many_pieces_is_written_anew_as_one() -> None:
    desk, state = Desk(), Book(Journal([b"0"]))
    desk.save(state)
    for n in range(3 * MAX_PIECES):
        state = desk.restart_from_store()
        state = Book(state.main.append(b"%d" % n))
        save = desk.save(state)
        assert len(save.snapshot.journals[0]) <= MAX_PIECES
        assert desk.stored() == state
    assert desk.rows() <= 2 * MAX_PIECES


def test_chunks_are_split_by_bytes_and_a_large_item_has_one_of_its_own() -> None:
    desk = Desk()
    items = [bytes(CHUNK_BYTES // 3)] * 7 + [bytes(3 * CHUNK_BYTES), b"small"]
    save = desk.save(Book(Journal(items)))
    assert [chunk.count for chunk in save.chunks] == [2, 2, 2, 1, 1, 1]
    assert all(len(chunk.items) < MAX_RECORD_BYTES for chunk in save.chunks)
    assert desk.stored() == Book(Journal(items))


@pytest.mark.parametrize(
    ("item", "why"), [(bytes(MAX_ITEM_BYTES), "takes"), (1 << 70, "cannot be encoded"), (object(), "cannot be encoded")]
)
def test_an_item_that_cannot_be_stored_is_named_and_the_last_good_snapshot_stands(item: object, why: str) -> None:
    desk, journal = Desk(), Journal([b"good"]).append(b"good")
    desk.save(Book(journal))
    bad: Journal[object] = journal.append(item)  # type: ignore[arg-type, assignment]
    with pytest.raises(SaveRejected, match=f"item 2 of a journal {why}"):
        desk.offer(Book(bad))  # type: ignore[arg-type]
    assert desk.stored() == Book(journal)
    desk.save(Book(journal.append(b"good again")))
    assert desk.stored() == Book(journal.append(b"good again"))


def test_a_blob_is_stored_once_by_its_content_wherever_it_stands_and_goes_when_no_generation_needs_it() -> None:
    desk, pages = Desk(), Journal[Page]()
    state = Book(cover=Blob(LARGE[0]))
    desk.save(state)
    for n in range(3 * GATHER_ROWS):
        image = Blob(LARGE[n % 2])
        pages = pages.append(Page(str(n), (image, Blob(SMALL))))
        state = Book(pages=pages, cover=Blob(LARGE[0]))
        desk.save(state)
        assert desk.blobs() == [1, 1 if n else 0, 0, 0]
    assert desk.restart_from_store() == state
    desk.save(state)
    again = desk.restart_from_store()
    assert again == state
    state = Book(pages=again.pages.append(Page("x", (Blob(LARGE[1]), Blob(LARGE[2])))), cover=again.cover)
    assert sum(len(chunk.items) for chunk in desk.save(state).chunks) < 1.1 * len(LARGE[2])
    assert desk.blobs() == [1, 1, 1, 0]
    kept = state.pages.replaced(state.pages.last(1))
    assert all(LARGE[n] not in chunk.items for chunk in desk.save(Book(pages=kept)).chunks for n in range(3))
    desk.save(Book(pages=kept))
    assert desk.blobs() == [0, 1, 1, 0]
    desk.save(Book())
    desk.save(Book())
    assert (desk.blobs(), desk.rows()) == ([0] * 4, 0)


def test_large_items_are_written_once_for_they_are_not_gathered() -> None:
    desk, journal = Desk(), Journal[bytes]()
    for n in range(2 * GATHER_ROWS):
        journal = journal.append(bytes([n]) * (INLINE_BYTES + 1))
        assert sum(chunk.count for chunk in desk.save(Book(journal)).chunks) == 1
    assert desk.stored() == Book(journal)


def test_a_snapshot_that_lacks_a_blob_falls_back() -> None:
    desk = Desk()
    first = Book(pages=Journal([Page("a", (Blob(LARGE[0]),))]))
    desk.save(first)
    desk.save(Book(pages=first.pages.append(Page("b", (Blob(LARGE[1]),)))))
    tables = desk.store._tables
    (key,) = [key for key, data in tables.page(Table.JOURNALS, b"", None, 99) if LARGE[1] in data]
    tables.write({Table.JOURNALS: {key: None}})
    assert desk.stored() == first


def test_what_was_laid_out_before_the_last_is_not_taken_for_stored() -> None:
    desk, journal = Desk(), Journal[bytes]().append(b"1")
    desk.seq = 1
    desk.offer(Book(journal))
    desk.seq = 2
    journal = journal.append(b"2")
    again = desk.offer(Book(journal))
    desk.keeper.confirm(1)
    assert desk.offer(Book(journal)) == again
    assert again.chunks[0].count == 2


def test_what_two_snapshots_did_not_need_is_written_again() -> None:
    desk, short = Desk(), Journal[bytes]().append(b"0")
    desk.save(Book(short))
    long = desk.restart_from_store().main.append(b"1")  # in a piece of its own
    desk.save(Book(long))
    short = long.replaced(long[:1])
    for state in (short, short, long, Journal[bytes](), Journal[bytes](), long):
        desk.save(Book(state))
        assert desk.stored() == Book(state)


def test_what_two_snapshots_of_unknown_outcome_did_not_need_is_written_again() -> None:
    desk, journal, cover = Desk(), Journal([b"0"]), Blob(LARGE[0])
    desk.save(Book(journal, cover=cover))
    for n in range(2):
        desk.seq += 1
        desk.store.commit([desk.offer(Book(Journal([b"%d" % n])))])
        desk.store._fences.clear()
    state = Book(journal.append(b"1"), cover=cover)
    desk.save(state)
    assert desk.stored() == state


class KeepersAgainstAStore(RuleBasedStateMachine):
    """A run that appends, branches, goes back and rewrites, over commits that are applied, are not, or nobody knows.

    After every commit that was applied, known or not, the store holds exactly that state, and behind it the one before.
    """

    @initialize()
    def start(self) -> None:
        self.desk = Desk()
        self.states = [Book()]
        self.applied: list[Book] = []
        self.count = 0

    @property
    def state(self) -> Book:
        return self.states[-1]

    def fresh(self, number: int) -> list[bytes]:
        self.count += number
        return [b"%06d" % (self.count + n) for n in range(number)]

    def go_on(self, **changes: object) -> None:
        self.states.append(msgspec.structs.replace(self.state, **changes))
        self.desk.seq += 1

    @rule(number=st.sampled_from([1, 1, 1, 2, 40]))
    def append(self, number: int) -> None:
        self.go_on(main=self.state.main.extend(self.fresh(number)))

    @rule(number=st.integers(1, 3))
    def append_to_the_side(self, number: int) -> None:
        self.go_on(side=(self.state.side or self.state.main).extend(self.fresh(number)))

    @rule(number=st.integers(0, 3))
    def note(self, number: int) -> None:
        self.go_on(notes=(*self.state.notes[-2:], Journal(range(number))))

    @rule(which=st.lists(st.integers(0, 4), max_size=2))
    def turn_page(self, which: list[int]) -> None:
        images = tuple(Blob([*LARGE, SMALL][n]) for n in which)
        self.go_on(pages=self.state.pages.append(Page("text", images)))

    @rule(which=st.sampled_from([None, *range(5)]), same=st.booleans())
    def new_cover(self, which: int | None, same: bool) -> None:
        held = [image for page in self.state.pages for image in page.images]
        cover = None if which is None else Blob([*LARGE, SMALL][which])
        self.go_on(cover=held[-1] if same and held else cover)

    @rule(number=st.integers(0, 2))
    def rip_pages_out(self, number: int) -> None:
        self.go_on(pages=self.state.pages.replaced(self.state.pages.last(number)))

    @rule()
    def step_that_crashed(self) -> None:
        self.state.pages.append(Page("lost", (Blob(LARGE[0]),)))
        self.state.main.append(b"lost")

    @rule(back=st.integers(1, 3))
    def go_back(self, back: int) -> None:
        earlier = self.states[max(0, len(self.states) - 1 - back)]
        self.go_on(main=earlier.main, side=earlier.side)

    @rule(number=st.integers(0, 3))
    def compact(self, number: int) -> None:
        self.go_on(main=self.state.main.replaced([*self.fresh(1), *self.state.main.last(number)]))

    def commit(self, *, applied: bool, known: bool) -> None:
        save = self.desk.offer(self.state)
        if applied:
            self.desk.store.commit([save])
            if not self.applied or self.applied[-1] is not self.state:
                self.applied.append(self.state)
        if known:
            self.desk.keeper.confirm(self.desk.seq)
        else:
            self.desk.store._fences.clear()

    @precondition(lambda self: self.desk.seq > 0)
    @rule()
    def commit_well(self) -> None:
        self.commit(applied=True, known=True)

    @precondition(lambda self: self.desk.seq > 0)
    @rule(applied=st.booleans())
    def commit_of_unknown_outcome(self, applied: bool) -> None:
        self.commit(applied=applied, known=False)

    @precondition(lambda self: self.desk.seq > 0)
    @rule()
    def restart_from_memory(self) -> None:
        epoch = self.desk.token.epoch + 1
        self.desk.store.commit([reclaimed(self.desk.token, epoch)])
        self.desk.token = self.desk.token._replace(epoch=epoch)

    @precondition(lambda self: self.applied)
    @rule()
    def reboot(self) -> None:
        self.desk.store._fences.clear()
        state = self.desk.restart_from_store()
        assert state == self.applied[-1]
        self.applied[-1] = state
        self.states.append(state)
        loaded = self.desk.store.load_snapshot("r")
        assert loaded is not None
        self.desk.seq = loaded.snapshot.seq

    @invariant()
    def both_generations_are_what_was_saved(self) -> None:
        if not getattr(self, "applied", None):
            return
        assert self.desk.stored() == self.applied[-1]
        tables = self.desk.store._tables
        loaded = self.desk.store.load_snapshot("r")
        assert loaded is not None
        slots = tables.page(Table.SNAPSHOTS, b"", None, 9)
        if len(slots) == 2:
            newest = next(key for key, data in slots if seq_of(data) == loaded.snapshot.seq)
            kept = tables.get(Table.SNAPSHOTS, newest)
            tables.write({Table.SNAPSHOTS: {newest: None}})
            assert self.desk.stored() == self.applied[-2]
            tables.write({Table.SNAPSHOTS: {newest: kept}})

    @invariant()
    def nothing_is_kept_that_no_generation_needs(self) -> None:
        if not getattr(self, "applied", None):
            return
        held = {bytes(blob) for book in self.applied[-2:] for blob in blobs_of(book)}
        assert {content for content, rows in zip(LARGE, self.desk.blobs(), strict=True) if rows} <= held
        slots = self.desk.store._tables.page(Table.SNAPSHOTS, b"", None, 9)
        layouts: list[Layout] = [layout for key, data in slots for layout in codec.decode_snapshot(data, key).journals]
        needed = {piece.base for layout in layouts for piece in layout}
        assert {chunk_base(key) for key in keys(self.desk)} <= needed


def blobs_of(book: Book) -> list[Blob]:
    return [*(image for page in book.pages for image in page.images), *([book.cover] if book.cover else [])]


def seq_of(data: bytes) -> int:
    return codec._FIELDS.unpack_from(data)[7]  # type: ignore[no-any-return]


TestKeepersAgainstAStore = KeepersAgainstAStore.TestCase
TestKeepersAgainstAStore.settings = settings(stateful_step_count=50, max_examples=150, deadline=None)
