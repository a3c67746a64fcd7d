"""The daemon of the SIGKILL loop: sync, async, waiting, journal and parent/child runs that report every step before they do it.

Arguments: the store, the generation of runs to work on, and where to kill itself (`saved:3`: when it says so for the third
time) or nothing. It ends when they have all ended, if it is not killed before.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from typing import Any

import msgspec

from executus.actors import ChildEnded, Done, Journal, RestartPolicy, Run, Runtime, SavePolicy, Wait, WaitExpired
from executus.actors.events import Event, RunRestored, RunResumed, RunSettled, RunStarted, RuntimeOpened, SnapshotSaved
from executus.stores import LmdbStore
from tests.doubles import SOON

STEPS = 40
STEP_S = 0.004
EVERY_S = 0.05
EACH = 6
PARENTS = 2
CHILDREN = 4

Ledger = tuple[int, ...]


class State(msgspec.Struct, frozen=True):
    """Squares so far: a state that grows, so that a lost or repeated step shows in the result."""

    squares: Ledger = ()


class Line(msgspec.Struct, frozen=True, array_like=True):
    """What the daemon says: kind, run, seq or attempt, an idempotency key, and the machine's monotonic time."""

    kind: str
    run_id: str = ""
    number: int = 0
    key: str = ""
    at_s: float = 0.0


class Death:
    """Where this daemon kills itself."""

    kind = ""
    left = 0
    lock = threading.Lock()


def say(kind: str, run_id: str = "", number: int = 0, key: str = "") -> None:
    os.write(1, msgspec.json.encode(Line(kind, run_id, number, key, time.monotonic())) + b"\n")
    if kind == Death.kind:
        with Death.lock:
            Death.left -= 1
            if Death.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class Squares(Run[int, State, int]):
    """Steps that block."""

    save_policy = SavePolicy(every_s=EVERY_S)

    def begin(self, steps: int) -> State:
        return State()

    def act(self, state: State) -> Any:
        at = len(state.squares)
        say("step", self.context.run_id, at, self.context.idempotency_key)
        return Done(sum(state.squares)) if at == STEPS else State((*state.squares, at * at))

    def step(self, state: State) -> Any:
        time.sleep(STEP_S)
        return self.act(state)


class AsyncSquares(Squares):
    async def begin(self, steps: int) -> State:
        return State()

    async def step(self, state: State) -> Any:
        await asyncio.sleep(STEP_S)
        return self.act(state)


class WaitingSquares(Squares):
    """Every step is a wait that expires."""

    def begin(self, steps: int) -> Any:
        return Wait(State(), timeout_s=STEP_S)

    def receive(self, state: State, message: WaitExpired) -> Any:
        after = self.act(state)
        return after if isinstance(after, Done) else Wait(after, timeout_s=STEP_S)


class Page(msgspec.Struct, frozen=True):
    number: int
    square: int
    text: str


class Book(msgspec.Struct, frozen=True):
    """The squares so far in a journal: the last of them, and what those before came to."""

    pages: Journal[Page] = Journal()
    at: int = 0
    torn_out: int = 0


class JournalSquares(Run[int, Book, int]):
    """Steps with a journal, which is looked through at every step and now and then begun anew."""

    save_policy = SavePolicy(every_s=EVERY_S, every_steps=3)

    def begin(self, steps: int) -> Book:
        return Book()

    async def step(self, book: Book) -> Any:
        await asyncio.sleep(STEP_S)
        numbers = [page.number for page in book.pages]
        assert numbers == list(range(book.at - len(numbers), book.at)), f"pages {numbers} at {book.at}"
        assert all(page == page_of(page.number) for page in book.pages), "a page has changed"
        say("step", self.context.run_id, book.at, self.context.idempotency_key)
        if book.at == STEPS:
            return Done(book.torn_out + sum(page.square for page in book.pages))
        pages = book.pages.append(page_of(book.at))
        if book.at % 17 != 16:
            return Book(pages, book.at + 1, book.torn_out)
        kept = pages.last(4)
        torn_out = book.torn_out + sum(page.square for page in pages) - sum(page.square for page in kept)
        return Book(pages.replaced(kept), book.at + 1, torn_out)


def page_of(number: int) -> Page:
    return Page(number, number * number, str(number) * 200)


class SumOfChildren(Run[int, dict[str, int], int]):
    save_policy = SavePolicy(every_s=EVERY_S)

    def begin(self, children: int) -> Any:
        for number in range(children):
            self.context.spawn(AsyncSquares if number % 2 else Squares, 0, key=str(number))
        return Wait({})

    def step(self, state: dict[str, int]) -> Any:
        return state

    def receive(self, state: dict[str, int], message: ChildEnded) -> Any:
        results = {**state, message.key: message.outcome.result}  # type: ignore[union-attr]
        return Done(sum(results.values())) if len(results) == CHILDREN else Wait(results)


def report(event: Event) -> None:
    match event:
        case RuntimeOpened(resumed=resumed):
            say("comes back", "", resumed)
        case SnapshotSaved(run_id=run_id, seq=seq):
            say("saved", run_id, seq)
        case RunRestored(run_id=run_id, resumed_from_seq=seq):
            say("restored", run_id, seq)
        case RunStarted(run_id=run_id, attempt=attempt) | RunResumed(run_id=run_id, attempt=attempt):
            say("attempt", run_id, attempt)
        case RunSettled(run_id=run_id, status=status):
            say(f"settled {status.value}", run_id)
        case _:
            pass


def main(path: str, generation: str, death: str = "") -> None:
    Death.kind, _, times = death.partition(":")
    Death.left = int(times or 0)
    runtime = Runtime(
        LmdbStore(path, profile="process"),
        runs=[Squares, AsyncSquares, WaitingSquares, JournalSquares, SumOfChildren],
        restart_policy=RestartPolicy(backoff=SOON),
        logger=False,
    )
    runtime.events.subscribe(report)
    runtime.open()
    say("open")
    for run_class in (Squares, AsyncSquares, WaitingSquares, JournalSquares):
        runtime.start_many(
            run_class, {f"{generation}-{run_class.__name__}-{n}": 0 for n in range(EACH)}, if_exists="return"
        )
    runtime.start_many(
        SumOfChildren, {f"{generation}-parent-{n}": CHILDREN for n in range(PARENTS)}, if_exists="return"
    )
    runtime.join()
    for view in runtime.runs():
        say(f"ended {view.status.value}", view.run_id, runtime.get(view.run_id).result(0))
    say("all done")
    runtime.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
