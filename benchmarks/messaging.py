"""How fast actors talk, next to `pykka.ThreadingActor`, and what turns that block cost the others.

Every figure is asked of both in the same round, pinned to one CPU, for threads that hand a lock to and fro between CPUs
vary several-fold; once more unpinned, for the record. Rates count messages that were handled, not only sent; "told" is
what the tellers alone reach while the actor is busy with something else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pykka

from benchmarks.harness import RESULTS, Measured, interleaved, machine, resident_bytes, table
from executus.actors.actor import Actor
from executus.actors.worker_pool import WorkerPool

Figures = Mapping[str, tuple[float, str]]

REQUIRED = {
    "tell, one producer": 8.0,
    "tell, four producers": 8.0,
    "told, one producer": None,
    "told, four producers": None,
    "ask, idle, queued": 1.3,
    "asks, pipelined": 4.0,
    "ping-pong": 4.5,
    "fan-out over 1,000": 20.0,
    "start and stop": 30.0,
}
"""How many times pykka's rate issue 3 wants."""


class Side:
    """pykka's actors or ours: the same API, started in different places."""

    def __init__(self, name: str, base: Any, pool: WorkerPool | None) -> None:
        self.name = name
        self.base = base
        self.pool = pool

    def start(self, actor_class: Any, *args: Any) -> Any:
        return actor_class.start(*args) if self.pool is None else actor_class.start_on(self.pool, *args)

    def actor(self, **members: Any) -> Any:
        return type("Measured", (self.base,), members)


@contextmanager
def side(name: str) -> Iterator[Side]:
    if name == "pykka":
        yield Side(name, pykka.ThreadingActor, None)
        pykka.ActorRegistry.stop_all()
        return
    pool = WorkerPool()
    yield Side(name, Actor, pool)
    pool.close()


def rate(count: int, ask: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    ask()
    return count / (time.perf_counter() - began_s)


def telling(on: Side, producers: int, count: int) -> tuple[float, float]:
    """Rates of what is handled, and of what is told to an actor that is busy meanwhile."""
    ref = on.start(on.actor(on_receive=lambda _self, message: message))

    def produce() -> None:
        tell = ref.tell
        for n in range(count // producers):
            tell(n)

    def all_produce() -> None:
        if producers == 1:
            produce()
            return
        threads = [threading.Thread(target=produce) for _ in range(producers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def until_handled() -> None:
        all_produce()
        ref.ask("the last")

    handled = rate(count, until_handled)
    ref.stop()
    gate = threading.Event()
    ref = on.start(on.actor(on_receive=lambda _self, _message: gate.wait()))
    ref.tell("busy")
    told = rate(count, all_produce)
    # What waits is handled by others in `until_handled`; here it only has to go.
    gate.set()
    ref.stop()
    return handled, told


def asking(on: Side, count: int) -> float:
    ref = on.start(on.actor(on_receive=lambda _self, message: message))
    ref.ask(0)

    def ask_all() -> None:
        for n in range(count):
            ref.ask(n)

    found = rate(count, ask_all)
    ref.stop()
    return found


def pipelined(on: Side, count: int) -> float:
    ref = on.start(on.actor(on_receive=lambda _self, message: message))

    def ask_all() -> None:
        for _ in range(count // 1_000):
            for future in [ref.ask(n, block=False) for n in range(1_000)]:
                future.get()

    found = rate(count, ask_all)
    ref.stop()
    return found


def ping_pong(on: Side, count: int) -> float:
    done = threading.Event()

    def hit(_self: Any, message: tuple[int, Any, Any]) -> None:
        left, me, other = message
        if left:
            other.tell((left - 1, other, me))
        else:
            done.set()

    player = on.actor(on_receive=hit)
    one, two = on.start(player), on.start(player)

    def play() -> None:
        one.tell((count, one, two))
        done.wait()

    found = rate(count, play)
    one.stop()
    two.stop()
    return found


def fan_out(on: Side, actors: int, times: int) -> float:
    """One message to each of `actors`, then wait until all are handled; `times` over. Starting them is not measured."""
    # Counted by appends: they need no lock under any number of threads.
    handled: list[None] = []
    wanted = actors
    done = threading.Event()

    def receive(_self: Any, message: str) -> None:
        if message == "count":
            handled.append(None)
            if len(handled) >= wanted:
                done.set()

    leaf = on.actor(on_receive=receive)
    refs = [on.start(leaf) for _ in range(actors)]
    for future in [ref.ask("started?", block=False) for ref in refs]:
        future.get()

    def tell_all() -> None:
        nonlocal wanted
        for number in range(times):
            wanted = actors * (number + 1)
            done.clear()
            for ref in refs:
                ref.tell("count")
            done.wait()

    found = rate(actors * times, tell_all)
    for future in [ref.stop(block=False) for ref in refs]:
        future.get()
    return found


def start_and_stop(on: Side, count: int) -> float:
    plain = on.actor(on_receive=lambda _self, message: message)

    def live() -> None:
        for _ in range(count // 500):
            for stopped in [ref.stop(block=False) for ref in [on.start(plain) for _ in range(500)]]:
                stopped.get()

    return rate(count, live)


def talking(name: str) -> Figures:
    """All rates of one side, in one round."""
    ours = name == "executus"
    found: dict[str, float] = {}
    for title, producers in (("one producer", 1), ("four producers", 4)):
        with side(name) as on:
            found[f"tell, {title}"], found[f"told, {title}"] = telling(on, producers, 400_000 if ours else 100_000)
    asked = {
        "ask, idle, queued": lambda on: asking(on, 10_000),
        "asks, pipelined": lambda on: pipelined(on, 50_000 if ours else 10_000),
        "ping-pong": lambda on: ping_pong(on, 200_000 if ours else 30_000),
        "fan-out over 1,000": lambda on: fan_out(on, 1_000, 100 if ours else 10),
        "start and stop": lambda on: start_and_stop(on, 10_000 if ours else 1_000),
    }
    for title, question in asked.items():
        with side(name) as on:
            found[title] = question(on)
    return {f"{name}: {title}": (value, "/s") for title, value in found.items()}


def weight(name: str) -> Figures:
    """Resident memory of an idle actor, in a process of its own: freed memory would hide it."""
    program = f"from benchmarks.messaging import weigh; weigh({name!r})"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    return {f"{name}: resident, idle actor": (float(done.stdout), "bytes")}


def weigh(name: str) -> None:
    """In that process."""
    count = 1_000 if name == "pykka" else 100_000
    with side(name) as on:
        plain = on.actor(on_receive=lambda _self, message: message)
        on.start(plain).ask(0)
        before = resident_bytes()
        refs = [on.start(plain) for _ in range(count)]
        for ref in refs:
            ref.ask(0)
        print((resident_bytes() - before) / count)
        sys.stdout.flush()
        os._exit(0)


def scale() -> Figures:
    """The rate of a fan-out over a million actors, next to that over a thousand."""
    with side("executus") as on:
        few = fan_out(on, 1_000, 300)
    with side("executus") as on:
        many = fan_out(on, 1_000_000, 1)
    return {"fan-out over 1,000,000 / over 1,000": (many / few, "of its rate")}


def blocking() -> Figures:
    """1,000 turns that each block for 100 ms, and what that costs the messages of an actor beside them."""
    with side("executus") as on:
        handled: list[None] = []

        class Blocks(Actor):
            def on_receive(self, _message: Any) -> None:
                time.sleep(0.1)
                handled.append(None)

        class Beside(Actor):
            late: ClassVar[list[float]] = []

            def on_receive(self, sent_s: float) -> None:
                self.late.append(time.perf_counter() - sent_s)

        Beside.late = []
        refs = [Blocks.start_on(on.pool) for _ in range(1_000)]
        beside = Beside.start_on(on.pool)
        began_s = time.perf_counter()
        for ref in refs:
            ref.tell("block")
        while len(handled) < 1_000:
            beside.tell(time.perf_counter())
            time.sleep(0.001)
        took_s = time.perf_counter() - began_s
        beside.ask(time.perf_counter())
        late = sorted(Beside.late)
        threads = on.pool.threads() if on.pool is not None else 0
    return {
        "1,000 turns that block 100 ms": (took_s, "s"),
        "p99 of other messages meanwhile": (late[int(len(late) * 0.99)] * 1_000, "ms"),
        "threads meanwhile": (threads, "threads"),
    }


ALONE = {
    "fan-out over 1,000,000 / over 1,000": ">= 0.5",
    "1,000 turns that block 100 ms": "<= 0.3",
    "p99 of other messages meanwhile": "<= 20",
    "threads meanwhile": "",
}


def rows(measured: Mapping[str, Measured]) -> list[list[str]]:
    """A line a figure: both sides, how many times, and what is wanted."""
    lines: list[list[str]] = []
    for prefix in ("", "unpinned: "):
        for title, wanted in REQUIRED.items():
            theirs, ours = (measured.get(f"{prefix}{name}: {title}") for name in ("pykka", "executus"))
            if theirs is None or ours is None:
                continue
            need = "" if wanted is None or prefix else f">= {wanted:g}x"
            times = ours.median / theirs.median
            cells = [f"{m.median / 1_000:,.1f} k/s ±{m.noise:.0%}" for m in (theirs, ours)]
            lines.append([prefix + title, *cells, f"{times:,.1f}x", need])
    theirs, ours = (measured[f"{name}: resident, idle actor"] for name in ("pykka", "executus"))
    sizes = [f"{m.median:,.0f} bytes ±{m.noise:.0%}" for m in (theirs, ours)]
    lines.append(["resident, idle actor", *sizes, f"1/{theirs.median / ours.median:,.0f}", "<= 1,024 bytes"])
    for title, need in ALONE.items():
        alone = measured[title]
        lines.append([title, "", f"{alone.median:,.3g} {alone.unit} ±{alone.noise:.0%}", "", need])
    return lines


def unpinned(question: Callable[[], Figures], cpus: set[int]) -> Figures:
    """The same with all CPUs: every thread of a question is started within it and inherits them."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        return {f"unpinned: {name}": value for name, value in question().items()}
    finally:
        os.sched_setaffinity(0, mine)


def main(options: Any) -> int:
    """Ask all of it, `options.rounds` times."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    questions: dict[str, Callable[[], Figures]] = {
        "pykka": lambda: talking("pykka"),
        "executus": lambda: talking("executus"),
        "weight of pykka's": lambda: weight("pykka"),
        "weight of ours": lambda: weight("executus"),
        "blocking": blocking,
    }
    measured = interleaved(questions, options.rounds)
    once: dict[str, Callable[[], Figures]] = {
        "a million actors": scale,
        "unpinned pykka": lambda: unpinned(lambda: talking("pykka"), cpus),
        "unpinned executus": lambda: unpinned(lambda: talking("executus"), cpus),
    }
    measured |= interleaved(once, 1)
    facts = {
        "benchmark": "messaging",
        "machine": machine(),
        "figures": {name: {"median": m.median, "unit": m.unit, "rounds": m.values} for name, m in measured.items()},
        "table": rows(measured),
    }
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "messaging.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(facts))
        return 0
    print(table(["figure", "pykka", "executus", "times", "required"], rows(measured)))
    print()
    print("Rates count handled messages; 'told' is the tellers' own rate to an actor that is busy meanwhile.")
    print("machine:", ", ".join(f"{key} {value}" for key, value in machine().items()))
    return 0
