"""`Run.resuming`: a run looks at its stored state before it goes on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from executus.actors import (
    Done,
    Factory,
    InvalidRunType,
    RestartPolicy,
    Run,
    RunInterrupted,
    RunStatus,
    Runtime,
    SavePolicy,
    Wait,
)
from executus.actors.events import RunExited, RunRestored
from executus.stores import LmdbStore, RecordCorrupt, StoreUnavailable
from tests.doing import BOTH, STORES, moody
from tests.doubles import ERRORS, SOON, Recorder
from tests.waiting import wait_until


class At(msgspec.Struct, frozen=True):
    n: int = 0


class Book:
    """What runs did, in order; `error` is what looking raises."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.error: BaseException | None = None


class Looks(Run[int, At, int]):
    run_type = "Looks"
    save_policy = SavePolicy(durability="sync")
    restart_policy = RestartPolicy(backoff=SOON)

    def __init__(self, book: Book) -> None:
        self.book = book

    def begin(self, n: int) -> Any:
        self.book.calls.append("begin")
        return Wait(At(n))

    def step(self, state: At) -> Any:
        self.book.calls.append("step")
        return Wait(state)

    def receive(self, state: At, message: str) -> Any:
        self.book.calls.append(f"receive {message}")
        if message == "raise":
            raise ValueError("told to")
        return Done(state.n) if message == "done" else Wait(At(state.n + 1))

    def query(self, state: At, question: str) -> int:
        return state.n

    def stopping(self, state: At, reason: str) -> None:
        self.book.calls.append(f"stopping {reason}")

    def resuming(self, state: At) -> None:
        self.book.calls.append(f"resuming {state.n}")
        with pytest.raises(LookupError):
            self.context.run_id  # noqa: B018
        if self.book.error is not None:
            raise self.book.error


class AsyncLooks(Looks):
    async def step(self, state: At) -> Any:
        return super().step(state)

    async def receive(self, state: At, message: str) -> Any:
        return super().receive(state, message)


class Mutable(msgspec.Struct):
    n: int = 0


class LooksAtMutable(Run[int, Mutable, int]):
    run_type = "Looks"
    save_policy = SavePolicy(durability="sync")

    def __init__(self, book: Book) -> None:
        self.book = book

    def begin(self, n: int) -> Any:
        return Wait(Mutable(n))

    def step(self, state: Mutable) -> Any:
        return Wait(state)

    def resuming(self, state: Mutable) -> None:
        self.book.calls.append(f"resuming {state.n}")
        raise ValueError("not with this one")


def made(book: Book, is_async: bool) -> tuple[type[Looks], Factory[Looks]]:
    run_class = AsyncLooks if is_async else Looks
    return run_class, Factory(run_class, book)


@STORES
@BOTH
def test_it_is_called_first_in_an_attempt_that_has_loaded_its_state_and_in_no_other(
    is_async: bool, kind: str, store_path: Path
) -> None:
    store, _ = moody(kind, store_path)
    book = Book()
    run_class, registered = made(book, is_async)
    with Runtime(store, runs=[registered], logger=False) as runtime:
        handle = runtime.start(run_class, 7, run_id="r")
        handle.tell("raise")
        wait_until(lambda: handle.status().attempt == 2 and handle.status().waiting)
        assert book.calls == ["begin", "receive raise"], "a restart in process goes on from memory"
        handle.tell("on")
        wait_until(lambda: handle.status().seq == 2)
        assert handle.durable() == 2
        handle.stop()
        book.calls.clear()
        again = runtime.resume("r")
        wait_until(lambda: again.status().waiting)
        assert book.calls == ["resuming 8"], "resumed by hand"
    assert book.calls == ["resuming 8", "stopping drain"]
    book.calls.clear()
    with Runtime(store, runs=[registered], logger=False) as runtime:
        handle = runtime.get(run_class, "r")
        handle.tell("done")
        assert handle.result(10) == 8
    assert book.calls == ["resuming 8", "receive done"], "and at a boot"


@STORES
@BOTH
@pytest.mark.parametrize(
    "error",
    [
        *(
            ERRORS[name]()
            for name in ("ValueError", "SystemExit", "KeyboardInterrupt", "CancelledError", "Unprintable")
        ),
        StoreUnavailable("its own store is away"),
        RecordCorrupt("its own record", run_id="x", what="record"),
        RecordCorrupt("its own message", run_id="x", what="message"),
    ],
    ids=lambda error: f"{type(error).__name__}-{getattr(error, 'what', '')}",
)
def test_whatever_it_raises_parks_the_run_and_each_boot_tries_again(
    error: BaseException, is_async: bool, kind: str, store_path: Path
) -> None:
    store, _ = moody(kind, store_path)
    book, seen = Book(), Recorder()
    run_class, registered = made(book, is_async)
    with Runtime(store, runs=[registered], logger=False) as runtime:
        runtime.start(run_class, 7, run_id="r").durable()
        before: Any = store.load_snapshot("r")
    book.error = error
    for _ in range(4):  # no strikes: the fourth would be a quarantine
        book.calls.clear()
        runtime = Runtime(store, runs=[registered], logger=False)
        runtime.events.subscribe(seen)
        with runtime:
            handle = runtime.get(run_class, "r")
            with pytest.raises(RunInterrupted, match="this code cannot go on with the stored state") as raised:
                handle.result(10)
            assert raised.value.status is RunStatus.PARKED
            assert type(error).__name__ in str(raised.value)
            with pytest.raises(RunInterrupted):
                handle.query("n?", 10)
            after: Any = store.load_snapshot("r")
            assert after.snapshot == before.snapshot
        assert book.calls == ["resuming 7"]
        assert not seen.of(RunExited)
        assert not seen.of(RunRestored)
    book.error = None
    with Runtime(store, runs=[registered], logger=False) as runtime:
        handle = runtime.get(run_class, "r")
        handle.tell("done")
        assert handle.result(10) == 7


@BOTH
def test_one_that_is_to_be_stopped_is_looked_at_before_stopping_sees_it(is_async: bool, store_path: Path) -> None:
    book = Book()
    run_class, registered = made(book, is_async)
    store, _ = moody("memory", store_path)
    with Runtime(store, runs=[registered], logger=False) as runtime:
        runtime.start(run_class, 7, run_id="r").durable()
        runtime.get("r").stop()
        book.calls.clear()
        book.error = ValueError("not with this one")
        runtime.resume("r")
        with pytest.raises(RunInterrupted, match="parked"):
            runtime.get("r").result(10)
    assert book.calls == ["resuming 7"]


def test_a_state_that_can_change_is_looked_at_as_well(store_path: Path) -> None:
    book = Book()
    for boot in range(2):
        with Runtime(LmdbStore(store_path), runs=[Factory(LooksAtMutable, book)], logger=False) as runtime:
            if boot == 0:
                runtime.start(LooksAtMutable, 7, run_id="r").durable()
            else:
                with pytest.raises(RunInterrupted, match="not with this one"):
                    runtime.get("r").result(10)
    assert book.calls == ["resuming 7"]


def test_a_run_that_begins_from_its_input_is_not_looked_at(store_path: Path) -> None:
    book = Book()
    with Runtime(LmdbStore(store_path), runs=[Factory(Looks, book)], logger=False) as runtime:
        runtime.start(Looks, 7, run_id="r").durable()
        runtime.get("r").stop()
        book.calls.clear()
        handle = runtime.resume("r", from_input=True)
        wait_until(lambda: handle.status().waiting)
    assert book.calls == ["begin", "stopping drain"]


def test_a_passivated_run_is_looked_at_when_it_is_taken_up(store_path: Path) -> None:
    book = Book()
    soon = SavePolicy(passivate_after_s=0.01)
    with Runtime(LmdbStore(store_path), runs=[Factory(Looks, book)], logger=False) as runtime:
        handle = runtime.start(Looks, 7, run_id="r", save_policy=soon)
        wait_until(lambda: handle.status().status is RunStatus.PASSIVATED)
        book.calls.clear()
        handle.tell("done")
        assert handle.result(10) == 7
    assert book.calls == ["resuming 7", "receive done"]


def test_an_async_one_is_refused_at_registration() -> None:
    class Awaits(Looks):
        async def resuming(self, state: At) -> None:  # type: ignore[override]
            pass

    with pytest.raises(InvalidRunType, match="its resuming\\(\\) is async"):
        Runtime(None, runs=[Factory(Awaits, Book())])
