"""Journals in the states of runs: what registration says of them, what is saved, and what comes back after every end."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import msgspec
import pytest

from executus.actors import (
    Blob,
    Done,
    InvalidRunType,
    Journal,
    RestartPolicy,
    Run,
    RunHandle,
    RunStatus,
    Runtime,
    SavePolicy,
    StopPolicy,
    Wait,
)
from executus.actors.console.main import main
from executus.actors.definition import RunDefinition
from executus.actors.events import RunExited, SaveRefused
from executus.stores import LmdbStore, MemoryStore, Operation, Save, Settle, StoreUnavailable, Verdict
from executus.stores.rows import Table, chunk_key, run_key
from tests.actors.test_journal_keeper import Desk
from tests.doubles import Recorder
from tests.stores.disks import LmdbDisk, flip_last_bit
from tests.stores.making import snapshot
from tests.waiting import wait_until

T = TypeVar("T")


class Entry(msgspec.Struct, frozen=True):
    role: str
    text: str
    weight: float = 0


class Mutable(msgspec.Struct):
    text: str


# --- registration ------------------------------------------------------------------------------------------------------


class Holder(msgspec.Struct, Generic[T], frozen=True):
    held: Journal[T] = Journal()


@dataclasses.dataclass(frozen=True)
class Data:
    log: Journal[int] = dataclasses.field(default_factory=Journal)


class Named(NamedTuple):
    log: Journal[int]


class Typed(TypedDict):
    log: Journal[int]


class Deep(msgspec.Struct, frozen=True):
    own: Journal[Entry] = Journal()
    maybe: Journal[int] | None = None
    several: tuple[Journal[int], ...] = ()
    named: dict[str, Journal[Entry]] = {}
    held: Holder[Entry] = Holder()
    data: Data = Data()
    pair: Named = Named(Journal())


def run_of(state: Any, input: Any = int, result: Any = int) -> type[Run[Any, Any, Any]]:
    class Some(Run[input, state, result]):
        def begin(self, n: Any) -> Any: ...
        def step(self, state: Any) -> Any: ...

    return Some


class Bare(msgspec.Struct, frozen=True):
    log: Journal


class OfLists(msgspec.Struct, frozen=True):
    log: Journal[list[int]]


class OfMutables(msgspec.Struct, frozen=True):
    log: tuple[Journal[tuple[Mutable, ...]], ...]


class OfJournals(msgspec.Struct, frozen=True):
    log: Journal[Journal[int]]


class Unbound(msgspec.Struct, Generic[T], frozen=True):
    log: Journal[T]


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (Bare, r"name the type of its items, as in Journal\[Message\]"),
        (Unbound, "name the type of its items"),
        (OfLists, "items can change"),
        (OfMutables, "items can change"),
        (Holder[Mutable], "items can change"),
        (OfJournals, "for states alone"),
        (Journal[object], "items can change|cannot be stored"),
    ],
)
def test_a_journal_that_cannot_be_kept_is_refused_with_advice(state: Any, why: str) -> None:
    with pytest.raises(InvalidRunType, match=why):
        RunDefinition(run_of(state))


@pytest.mark.parametrize(("where", "wanted"), [({"input": Holder[int]}, "Input"), ({"result": Journal[int]}, "Result")])
def test_a_journal_is_for_states_alone(where: Any, wanted: str) -> None:
    with pytest.raises(InvalidRunType, match=f"{wanted} holds a Journal, which is for states alone. Use a tuple"):
        RunDefinition(run_of(Holder[int], **where))


@pytest.mark.parametrize(
    ("state", "immutable"),
    [
        (Holder[int], True),
        (Data, True),
        (Named, True),
        (Typed, False),
        (Deep, False),
        (tuple[Journal[Entry], int], True),
    ],
)
def test_a_state_with_journals_is_encoded_late_where_the_rest_of_it_cannot_change(state: Any, immutable: bool) -> None:
    definition = RunDefinition(run_of(state))
    assert definition.immutable == immutable
    assert definition.states.has_journals


def test_journals_anywhere_in_a_state_come_back_in_their_places() -> None:
    codec = RunDefinition(run_of(Deep)).states
    shared = Journal([1, 2])
    state = Deep(
        own=Journal([Entry("a", "b")]),
        maybe=shared,
        several=(shared, shared.append(3), Journal()),
        named={"b": Journal(), "a": Journal([Entry("c", "d")])},
        held=Holder(Journal([Entry("e", "f")])),
        data=Data(Journal([7])),
        pair=Named(Journal([8])),
    )
    data, journals = codec.encode(state)
    assert codec.decode(data, journals) == state
    assert codec.encode(codec.decode(data, journals))[0] == data


# --- runs --------------------------------------------------------------------------------------------------------------


class Chat(msgspec.Struct, frozen=True):
    goal: int
    log: Journal[Entry] = Journal()
    kept: int = 0
    at: int = 0


class Add(msgspec.Struct, frozen=True, tag=True):
    number: int = 1
    text: str = ""
    crash: bool = False


class Compact(msgspec.Struct, frozen=True, tag=True):
    keep: int


KEYS: list[tuple[int, str]] = []


class Talk(Run[int, Chat, int]):
    """Appends one entry a step up to its goal, then waits for what it is told."""

    def begin(self, goal: int) -> Chat:
        return Chat(goal)

    def step(self, state: Chat) -> Chat | Wait[Chat]:
        if state.at >= state.goal:
            return Wait(state)
        entry = Entry("user", f"entry {state.at}")
        return msgspec.structs.replace(state, log=state.log.append(entry), at=state.at + 1)

    def receive(self, state: Chat, message: Add | Compact) -> Any:
        if isinstance(message, Compact):
            log = state.log.replaced([Entry("summary", str(len(state.log))), *state.log.last(message.keep)])
            return Wait(msgspec.structs.replace(state, log=log))
        KEYS.append((len(state.log), self.context.idempotency_key))
        entries = [Entry("told", message.text or f"told {state.at + n}") for n in range(message.number)]
        log = state.log.extend(entries)
        if message.crash:
            raise ValueError("told to")
        return Wait(msgspec.structs.replace(state, log=log, at=state.at + message.number))

    def query(self, state: Chat, question: str) -> Any:
        state.log.append(Entry("query", "is no part of it"))
        return [entry.text for entry in state.log]


class Diary(msgspec.Struct):
    goal: int
    log: Journal[Entry] = Journal()
    notes: list[str] = []


class MutableTalk(Run[int, Diary, int]):
    """The same with a state that it changes in place."""

    def begin(self, goal: int) -> Diary:
        return Diary(goal)

    def step(self, state: Diary) -> Diary | Wait[Diary]:
        if len(state.log) >= state.goal:
            return Wait(state)
        state.log = state.log.append(Entry("user", f"entry {len(state.log)}"))
        state.notes.append("n")
        return state

    def receive(self, state: Diary, message: Add) -> Wait[Diary]:
        state.log = state.log.extend(Entry("told", f"told {len(state.log) + n}") for n in range(message.number))
        if message.crash:
            raise ValueError("told to")
        return Wait(state)

    def query(self, state: Diary, question: str) -> Any:
        state.notes.append("in a copy")
        return [entry.text for entry in state.log]


class Counting(MemoryStore):
    """What of journals and states is handed to the store with each save. Fails while it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[Save | Settle] = []
        self.failing = self.forgetful = False

    def commit(self, operations: Sequence[Operation], *args: Any, **kwargs: Any) -> list[Verdict]:
        if self.failing:
            raise StoreUnavailable("told to fail")
        saved = [op for op in operations if isinstance(op, Save) or (isinstance(op, Settle) and op.snapshot)]
        verdicts = super().commit(operations, *args, **kwargs)
        if self.forgetful and saved:
            self._fences.clear()
            raise StoreUnavailable("told to apply it and not to say so")
        self.saved += saved
        return verdicts

    @property
    def sizes(self) -> list[int]:
        return [
            len(op.snapshot.state) + sum(len(chunk.items) for chunk in op.chunks) for op in self.saved if op.snapshot
        ]

    @property
    def items(self) -> int:
        return sum(chunk.count for op in self.saved for chunk in op.chunks)

    def rows(self) -> int:
        return len(self._tables.page(Table.JOURNALS, b"", None, 1 << 62))


BOTH = pytest.mark.parametrize("talk", [Talk, MutableTalk])
SYNC = SavePolicy(durability="sync")
AT_ONCE = RestartPolicy("transient", max_restarts=9)


def opened(store: Any, **options: Any) -> Runtime:
    runs = options.pop("runs", [Talk, MutableTalk])
    return Runtime(store, runs=runs, logger=False, drain_timeout_s=5.0, restart_policy=AT_ONCE, **options)


def waiting(runtime: Runtime, talk: Any, goal: int) -> RunHandle[Any]:
    handle: RunHandle[Any] = runtime.start(talk, goal, run_id="r")
    wait_until(lambda: handle.status().waiting, 60, "it waits")
    return handle


def durable(handle: RunHandle[Any]) -> None:
    wait_until(lambda: handle.status().durable_seq == handle.status().seq, 10, "all is saved")


def expected(goal: int) -> list[str]:
    return [f"entry {n}" for n in range(goal)]


def test_saving_after_the_ten_thousandth_entry_costs_what_saving_after_the_tenth_did() -> None:
    store = Counting()
    with opened(store, save_policy=SYNC) as runtime:
        handle = waiting(runtime, Talk, 10_100)
        durable(handle)
        begun_s = time.perf_counter()
        assert handle.query("all") == expected(10_100)
        assert time.perf_counter() - begun_s < 5
    sizes = store.sizes
    early, late = sum(sizes[10:74]), sum(sizes[10_000:10_064])
    assert late < 1.2 * early
    assert max(sizes[10_000:]) < 1.2 * max(sizes[:100])
    assert store.items < 2.1 * 10_100
    assert store.rows() < 10_100 / 30 + 40


@BOTH
def test_a_journal_goes_on_from_memory_after_a_crash_and_only_what_is_new_is_written(talk: Any) -> None:
    store = Counting()
    with opened(store) as runtime:
        seen = Recorder()
        runtime.events.subscribe(seen)
        handle = waiting(runtime, talk, 20)
        durable(handle)
        written = store.items
        handle.tell(Add(crash=True))
        seen.wait_for(RunExited, "r")
        handle.tell(Add(3))
        wait_until(lambda: len(handle.query("all")) == 23)
        durable(handle)
        assert handle.query("all")[:20] == expected(20)
        assert handle.status().restarts == 1
        assert store.items - written == 3


@BOTH
def test_a_journal_goes_on_in_the_next_boot_and_only_what_is_new_is_written(talk: Any, store_path: Path) -> None:
    with opened(store_path) as runtime:
        waiting(runtime, talk, 100)
    for boot in range(3):
        with opened(store_path) as runtime:
            handle = runtime.get(talk, "r")
            assert handle.query("all")[:100] == expected(100)
            handle.tell(Add(2))
            wait_until(lambda handle=handle, boot=boot: len(handle.query("all")) == 102 + 2 * boot)


def test_a_query_that_appends_changes_nothing_and_costs_one_copy() -> None:
    store = Counting()
    with opened(store, save_policy=SYNC) as runtime:
        handle = waiting(runtime, Talk, 50)
        for n in range(10):
            assert len(handle.query("all")) == 50 + n
            handle.tell(Add())
            wait_until(lambda n=n: handle.status().durable_seq == 53 + n)
        assert store.items < 50 + 32 + 10 + 32


@BOTH
@pytest.mark.parametrize("how", ["failing", "forgetful"])
def test_a_store_that_fails_and_comes_back_has_every_entry(talk: Any, how: str) -> None:
    store = Counting()
    with opened(store, save_policy=SavePolicy(every_s=0.05)) as runtime:
        handle = waiting(runtime, talk, 40)
        durable(handle)
        for n in range(5):
            setattr(store, how, True)
            handle.tell(Add(n + 1))
            wait_until(lambda: runtime.health().store_error is not None, 10, "the store fails")
            handle.tell(Add(crash=n == 2))
            setattr(store, how, False)
            wait_until(lambda: runtime.health().store_error is None, 10, "the store is well")
            wait_until(lambda: handle.status().waiting)
            durable(handle)
            loaded = store.load_snapshot("r")
            assert loaded is not None
            state, _ = RunDefinition(talk).states.load(loaded)
            assert [entry.text for entry in state.log] == handle.query("all")
        assert len(handle.query("all")) == 40 + 15 + 4


def test_compacting_leaves_no_row_of_what_was_before() -> None:
    store = Counting()
    with opened(store, save_policy=SYNC) as runtime:
        handle = waiting(runtime, Talk, 300)
        before = store.rows()
        for n in range(3):
            handle.tell(Compact(5))
            wait_until(lambda n=n: handle.status().durable_seq == 302 + 1 + n)
        assert len(handle.query("all")) == 6
        assert store.rows() < before / 2
        assert store.rows() <= 2


def test_a_state_that_is_saved_with_the_ending_alone_has_its_journal() -> None:
    store = Counting()
    with opened(store, save_policy=SavePolicy(durability="exit")) as runtime:
        waiting(runtime, Talk, 100)
        assert store.rows() == 0
    assert (len(store.saved), store.items) == (1, 100)
    with opened(store) as runtime:
        assert runtime.get(Talk, "r").query("all") == expected(100)


def test_completing_and_beginning_anew_leave_no_row() -> None:
    class Rounds(Talk):
        restart_policy = RestartPolicy("permanent", max_restarts=1)
        save_policy = SYNC

        def step(self, state: Chat) -> Any:
            return Done(1) if state.at >= state.goal else super().step(state)

    store = Counting()
    with opened(store, runs=[Rounds]) as runtime:
        runtime.start(Rounds, 5, run_id="r").outcome(10)
        assert store.items == 10
        assert store.rows() <= 5  # a spent budget keeps the last snapshot


def test_an_entry_that_cannot_be_stored_is_told_and_the_run_goes_on() -> None:
    store = Counting()
    with opened(store) as runtime:
        seen = Recorder()
        runtime.events.subscribe(seen)
        handle = waiting(runtime, Talk, 3)
        durable(handle)
        handle.tell(Add(text="\ud800"))
        refused = seen.wait_for(SaveRefused, "r")
        assert "item 3 of a journal cannot be encoded" in refused.error.message
        assert handle.status().status is RunStatus.RUNNING
        assert (handle.status().seq, handle.status().durable_seq) == (5 + 1, 5)


def test_the_idempotency_key_is_of_the_entries_and_the_same_after_a_reboot(store_path: Path) -> None:
    def key_after(*told: str) -> str:
        KEYS.clear()
        path = store_path.with_name("-".join(told))
        with opened(path, save_policy=SYNC) as runtime:
            handle = waiting(runtime, Talk, 2)
            for text in told:
                handle.tell(Add(text=text))
                wait_until(lambda text=text: handle.query("all")[-1] == text)
            created = handle.status().created_at_s
            handle.tell(Add(crash=True))
            wait_until(lambda: len(KEYS) == len(told) + 1)
            wait_until(lambda: handle.status().waiting)
        with opened(path, save_policy=SYNC) as runtime:
            handle = runtime.get(Talk, "r")
            handle.tell(Add())
            wait_until(lambda: len(KEYS) == len(told) + 2)
        assert created
        assert len({key for _, key in KEYS}) == len(told) + 2  # the messages differ
        return KEYS[-1][1]

    assert key_after("a") != key_after("b")


def test_a_digest_is_the_same_when_a_state_is_read_back_and_another_for_other_entries() -> None:
    states, desk = RunDefinition(Talk).states, Desk()
    one = Chat(1, Journal([Entry("a", "b", 1)]))  # 1 is read back as 1.0
    data, journals = states.encode(one)
    layouts, chunks = desk.keeper.lay_out(journals, seq=1, epoch=1)
    desk.store.commit([Save(snapshot=snapshot(desk.token, 1, data, layouts=layouts), chunks=chunks)])
    loaded = desk.store.load_snapshot("r")
    assert loaded is not None
    again, _ = states.load(loaded)
    assert states.digest(one) == states.digest(again)
    other = Chat(1, Journal([Entry("a", "c", 1)]))
    assert states.encode(other)[0] == data
    assert states.digest(other) != states.digest(one)


class Book(msgspec.Struct, frozen=True):
    pages: Journal[str]
    goal: int


class NewTalk(Run[int, Book, int]):
    run_type = "Talk"
    schema_version = 2

    def begin(self, goal: int) -> Book:
        return Book(Journal(), goal)

    def step(self, state: Book) -> Wait[Book]:
        return Wait(state)

    def upgrade(self, version: int, raw: Any) -> Book:
        return Book(Journal(entry["text"] for entry in raw["log"]), raw["goal"])

    def query(self, state: Book, question: str) -> Any:
        return list(state.pages)


class OtherTalk(Run[int, Book, int]):
    run_type = "Talk"

    def begin(self, goal: int) -> Book:
        return Book(Journal(), goal)

    def step(self, state: Book) -> Wait[Book]:
        return Wait(state)


def test_upgrade_gets_a_journal_as_a_list(store_path: Path) -> None:
    with opened(store_path) as runtime:
        waiting(runtime, Talk, 40)
    for _ in range(2):
        with opened(store_path, runs=[NewTalk]) as runtime:
            handle = runtime.get(NewTalk, "r")
            assert handle.query("all") == expected(40)


def test_entries_of_another_type_park_the_run_and_stay(store_path: Path) -> None:
    with opened(store_path) as runtime:
        waiting(runtime, Talk, 40)
    with opened(store_path, runs=[OtherTalk]) as runtime:
        wait_until(lambda: runtime.get("r").status().status is RunStatus.PARKED)
    with opened(store_path) as runtime:
        assert runtime.get(Talk, "r").query("all") == expected(40)


def test_a_damaged_chunk_of_the_newest_generation_falls_back(store_path: Path) -> None:
    store = LmdbStore(store_path, profile="process", map_size_bytes=64 * 1024**2)
    with opened(store, save_policy=SYNC) as runtime:
        waiting(runtime, Talk, 10).tell(Add(text="the last"))
        wait_until(lambda: runtime.get(Talk, "r").query("all")[-1] == "the last")
        durable(runtime.get(Talk, "r"))
        loaded = store.load_snapshot("r")
        assert loaded is not None
        last = loaded.chunks[0][-1]
    LmdbDisk(store_path).change(Table.JOURNALS, chunk_key(run_key("r"), last.base, last.position), flip_last_bit)
    with opened(store_path, save_policy=SYNC) as runtime:
        handle = runtime.get(Talk, "r")
        assert handle.query("all") == expected(10)
        handle.tell(Add(text="another"))
        wait_until(lambda: handle.query("all") == [*expected(10), "another"])
        durable(handle)
    with opened(store_path) as runtime:
        assert runtime.get(Talk, "r").query("all") == [*expected(10), "another"]


@pytest.mark.parametrize(("goal", "whole"), [(0, True), (40, True), (5_000, False)])
def test_show_has_the_last_entries(
    goal: int, whole: bool, store_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(store_path) as runtime:
        waiting(runtime, Talk, goal)
    assert main(["show", str(store_path), "r", "--json"]) == 0
    assert main(["show", str(store_path), "r"]) == 0
    out = capsys.readouterr().out
    shown = json.loads(out.split("\n")[0])["snapshot"]["state"]["value"]["log"]
    last = shown if whole else shown["last"]
    if not whole:
        assert (shown["journal"], len(last)) == (goal, 20)
    assert [entry["text"] for entry in last] == expected(goal)[goal - len(last) :]


def test_a_run_that_hangs_is_restarted_from_the_journal_that_it_had() -> None:
    returning = threading.Event()

    class Hanging(Talk):
        stop_policy = StopPolicy(idle_timeout_s=0.1, grace_s=0.1)

        def step(self, state: Chat) -> Any:
            if state.at == 5 and self.context.attempt == 1:
                log = state.log.append(Entry("zombie", "never saved"))
                time.sleep(0.6)
                returning.set()
                return msgspec.structs.replace(state, log=log, at=99)
            return super().step(state)

    store = Counting()
    with opened(store, runs=[Hanging]) as runtime:
        handle = waiting(runtime, Hanging, 9)
        assert handle.query("all") == expected(9)
        durable(handle)
        assert handle.status().attempt == 2
        wait_until(returning.is_set)
        handle.tell(Add(text="after the zombie"))
        wait_until(lambda: handle.query("all") == [*expected(9), "after the zombie"])
        durable(handle)
        loaded = store.load_snapshot("r")
    assert loaded is not None
    assert [entry.text for entry in RunDefinition(Talk).states.load(loaded)[0].log] == [
        *expected(9),
        "after the zombie",
    ]


# --- blobs -------------------------------------------------------------------------------------------------------------


class Picture(msgspec.Struct, frozen=True):
    name: str
    image: Blob


class Album(msgspec.Struct, frozen=True):
    cover: Blob = Blob(b"no cover")
    pictures: Journal[Picture] = Journal()
    thumbs: tuple[Blob, ...] = ()


class Paste(msgspec.Struct, frozen=True, tag=True):
    name: str
    byte: int
    size: int


class Albums(Run[int, Album, int]):
    save_policy = SYNC

    def begin(self, n: int) -> Wait[Album]:
        return Wait(Album())

    def step(self, state: Album) -> Wait[Album]:
        return Wait(state)

    def receive(self, state: Album, message: Paste) -> Wait[Album]:
        KEYS.append((len(state.pictures), self.context.idempotency_key))
        image = Blob(bytes([message.byte]) * message.size)
        pictures = state.pictures.append(Picture(message.name, image))
        return Wait(Album(image, pictures, (*state.thumbs, Blob(image.data[:10]))))

    def query(self, state: Album, question: str) -> Any:
        return (state.cover.data, [(picture.name, picture.image.data) for picture in state.pictures])


@pytest.mark.parametrize("immutable", [True, False])
def test_blobs_come_back_in_the_next_boot_and_are_handed_to_the_store_once(immutable: bool, store_path: Path) -> None:
    class Kept(Albums):
        run_type = "Albums"

    class Changing(Run[int, list[Album], int]):
        run_type = "Albums"
        save_policy = SYNC
        begin = lambda self, n: Wait([Album()])  # noqa: E731
        step = lambda self, state: Wait(state)  # noqa: E731

        def receive(self, state: list[Album], message: Paste) -> Wait[list[Album]]:
            state[0] = Albums.receive(self, state[0], message).state  # type: ignore[arg-type]
            return Wait(state)

        def query(self, state: list[Album], question: str) -> Any:
            return Albums.query(self, state[0], question)  # type: ignore[arg-type]

    kind: Any = Kept if immutable else Changing
    large = 100_000
    store = Counting()
    KEYS.clear()
    with opened(store, runs=[kind]) as runtime:
        handle = runtime.start(kind, 0, run_id="r")
        for n in range(6):
            handle.tell(Paste(str(n), n % 2, large if n < 4 else 10))
        wait_until(lambda: handle.status().durable_seq == 7, 10)
        answer = handle.query("")
    assert sum(store.sizes) < 2 * large + 20_000
    keys = list(KEYS)
    with opened(store, runs=[kind]) as runtime:
        handle = runtime.get(kind, "r")
        assert handle.query("") == answer
        assert answer[1][3] == ("3", b"\1" * large)
        before = sum(store.sizes)
        handle.tell(Paste("6", 1, large))
        wait_until(lambda: handle.status().durable_seq == 8, 10)
        assert sum(store.sizes) - before < 20_000
        assert handle.query("")[0] == b"\1" * large
    assert len({key for _, key in [*keys, *KEYS]}) == 7


def test_upgrade_gets_a_blob_as_bytes_and_show_its_size(store_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Plain(msgspec.Struct, frozen=True):
        cover: bytes
        names: tuple[str, ...]
        images: tuple[bytes, ...]

    class PlainAlbums(Run[int, Plain, int]):
        run_type = "Albums"
        schema_version = 2

        def begin(self, n: int) -> Wait[Plain]: ...

        def step(self, state: Plain) -> Wait[Plain]:
            return Wait(state)

        def upgrade(self, version: int, raw: Any) -> Plain:
            pictures = raw["pictures"]
            return Plain(raw["cover"], tuple(p["name"] for p in pictures), tuple(p["image"] for p in pictures))

        def query(self, state: Plain, question: str) -> Any:
            return state

    with opened(store_path, runs=[Albums]) as runtime:
        handle = runtime.start(Albums, 0, run_id="r")
        handle.tell(Paste("small", 1, 10))
        handle.tell(Paste("large", 2, 100_000))
        wait_until(lambda: handle.status().durable_seq == 3, 10)
    assert main(["show", str(store_path), "r", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["snapshot"]["state"]["value"]
    assert shown["cover"]["blob_bytes"] > 100_000
    assert [picture["image"].get("blob_bytes") for picture in shown["pictures"]] == [10, None]
    with opened(store_path, runs=[PlainAlbums]) as runtime:
        state = runtime.get(PlainAlbums, "r").query("")
    large = b"\2" * 100_000
    assert (state.cover, state.names, state.images) == (large, ("small", "large"), (b"\1" * 10, large))


def test_a_blob_is_a_value() -> None:
    one = Blob(b"x" * 70_000)
    assert one == Blob(b"x" * 70_000) != Blob(b"y")
    assert len({one, Blob(bytes(one)), copy.deepcopy(one), pickle.loads(pickle.dumps(one))}) == 1
    assert (len(one), repr(one), one != b"x") == (70_000, "<Blob of 70000 bytes>", True)
    with pytest.raises(TypeError, match="bytes, not of str"):
        Blob("text")  # type: ignore[arg-type]


@pytest.mark.parametrize(("where", "wanted"), [({"input": Blob}, "Input"), ({"result": tuple[Blob, ...]}, "Result")])
def test_a_blob_is_for_states_and_their_journals_alone(where: Any, wanted: str) -> None:
    with pytest.raises(InvalidRunType, match=f"{wanted} holds a Blob, which is for states"):
        RunDefinition(run_of(Album, **where))
