"""How fast actors talk, next to `pykka.ThreadingActor`, and what busy ones cost their neighbours (neighbours.py).

Every figure is asked of both in the same round, pinned to one CPU, for threads that hand a lock to and fro between CPUs
vary several-fold; once more unpinned, for the record. Rates count messages that were handled, not only sent; "told" is
what the tellers alone reach while the actor is busy with something else.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pykka

from benchmarks import neighbours
from benchmarks.harness import RESULTS, Measured, interleaved, machine, resident_bytes, table
from executus.actors.actor import Actor
from executus.actors.worker_pool import WorkerPool

Figures = Mapping[str, tuple[float, str]]

SCALE = "fan-out over 1,000,000 actors / over 1,000"

REQUIRED = {
    "tell, one producer": 8.0,
    "tell, four producers": 8.0,
    "told, one producer": None,
    "told, four producers": None,
    "ask of an idle actor, caller-runs": 15.0,
    "queued ask": 1.3,
    "pipelined asks": 4.0,
    "ping-pong between two actors": 4.5,
    "fan-out over 1,000 actors": 20.0,
    "start and stop, 10,000 actors": 30.0,
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


class Rate(float):
    """A second by the clock; `of_cpu` a second of this process' CPU time, which its neighbours do not change much."""

    of_cpu: float


def rate(count: int, ask: Callable[[], object]) -> Rate:
    began_s, used_s = time.perf_counter(), time.process_time()
    ask()
    found = Rate(count / (time.perf_counter() - began_s))
    found.of_cpu = count / (time.process_time() - used_s)
    return found


def shown(name: str, title: str, found: Rate) -> Figures:
    return {f"{name}: {title}": (found, "/s"), f"{name}, of CPU: {title}": (found.of_cpu, "/s of CPU")}


def telling(on: Side, producers: int, count: int) -> tuple[Rate, Rate]:
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


def asking(on: Side, count: int, *, caller_runs: bool = False) -> Rate:
    """Blocking asks of an idle actor, one after the other; pykka's have no other way than through the queue."""
    ref = on.start(on.actor(on_receive=lambda _self, message: message, caller_runs=caller_runs))
    ref.ask(0)

    def ask_all() -> None:
        for n in range(count):
            ref.ask(n)

    found = rate(count, ask_all)
    ref.stop()
    return found


def pipelined(on: Side, count: int) -> Rate:
    ref = on.start(on.actor(on_receive=lambda _self, message: message))

    def ask_all() -> None:
        for _ in range(count // 1_000):
            for future in [ref.ask(n, block=False) for n in range(1_000)]:
                future.get()

    found = rate(count, ask_all)
    ref.stop()
    return found


def ping_pong(on: Side, count: int) -> Rate:
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


def fan_out(on: Side, actors: int, times: int) -> Rate:
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


def start_and_stop(on: Side, count: int) -> Rate:
    plain = on.actor(on_receive=lambda _self, message: message)

    def live() -> None:
        for _ in range(count // 500):
            for stopped in [ref.stop(block=False) for ref in [on.start(plain) for _ in range(500)]]:
                stopped.get()

    return rate(count, live)


def talking(name: str) -> dict[str, Callable[[], Figures]]:
    """What is asked of one side, by its title."""
    ours = name == "executus"
    asked: dict[str, Callable[[Side], Rate]] = {
        "ask of an idle actor, caller-runs": lambda on: asking(on, 100_000 if ours else 10_000, caller_runs=ours),
        "queued ask": lambda on: asking(on, 20_000 if ours else 10_000),
        "pipelined asks": lambda on: pipelined(on, 50_000 if ours else 10_000),
        "ping-pong between two actors": lambda on: ping_pong(on, 200_000 if ours else 20_000),
        "fan-out over 1,000 actors": lambda on: fan_out(on, 1_000, 100 if ours else 5),
        "start and stop, 10,000 actors": lambda on: start_and_stop(on, 10_000 if ours else 1_000),
    }

    def tell(producers: str, count: int) -> Figures:
        with side(name) as on:
            handled, told = telling(on, count, 400_000 if ours else 100_000)
        return {**shown(name, f"tell, {producers}", handled), **shown(name, f"told, {producers}", told)}

    def one(title: str, question: Callable[[Side], Rate]) -> Figures:
        with side(name) as on:
            return shown(name, title, question(on))

    found: dict[str, Callable[[], Figures]] = {
        "one producer": lambda: tell("one producer", 1),
        "four producers": lambda: tell("four producers", 4),
    }
    for title, question in asked.items():
        found[title] = lambda title=title, question=question: one(title, question)
    return found


def side_by_side() -> dict[str, Callable[[], Figures]]:
    """Each question of both sides, one right after the other: what disturbs the machine then disturbs both."""
    theirs, ours = talking("pykka"), talking("executus")
    return {
        f"{title}, {name}": asked[title] for title in theirs for name, asked in (("pykka", theirs), ("executus", ours))
    }


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
    return {SCALE: (many / few, "of its rate")}


def ratio(theirs: Measured, ours: Measured) -> float:
    return statistics.median(b / a for a, b in zip(theirs.values, ours.values, strict=True))


def rows(measured: Mapping[str, Measured]) -> list[list[str]]:
    """A line a figure: both sides, how many times, and what is wanted."""
    lines: list[list[str]] = []
    for prefix in ("", "unpinned: "):
        for title, wanted in REQUIRED.items():
            theirs, ours = (measured.get(f"{prefix}{name}: {title}") for name in ("pykka", "executus"))
            if theirs is None or ours is None:
                continue
            need = "" if wanted is None or prefix else f">= {wanted:g}x"
            times = ratio(theirs, ours)
            of_cpu = ratio(*(measured[f"{prefix}{name}, of CPU: {title}"] for name in ("pykka", "executus")))
            cells = [f"{m.median / 1_000:,.1f} k/s ±{m.noise:.0%}" for m in (theirs, ours)]
            lines.append([prefix + title, *cells, f"{times:,.1f}x", f"{of_cpu:,.1f}x", need])
    theirs, ours = (measured[f"{name}: resident, idle actor"] for name in ("pykka", "executus"))
    sizes = [f"{m.median:,.0f} bytes ±{m.noise:.0%}" for m in (theirs, ours)]
    lines.append(["resident, idle actor", *sizes, f"1/{theirs.median / ours.median:,.0f}", "", "<= 1,024 bytes"])
    alone = {SCALE: ">= 0.5", **neighbours.REQUIRED}
    for title, need in alone.items():
        for prefix in ("", "unpinned: "):
            if (found := measured.get(prefix + title)) is not None:
                value = f"{found.median:,.3g} {found.unit} ±{found.noise:.0%}"
                lines.append([prefix + title, "", value, "", "", need])
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
        **side_by_side(),
        "weight of pykka's": lambda: weight("pykka"),
        "weight of ours": lambda: weight("executus"),
        "blocking": neighbours.blocking,
    }
    beside: dict[str, Callable[[], Figures]] = {
        "flooded": neighbours.flooded,
        "the loop under sync runs": lambda: neighbours.lag_sync(options.folder),
        "the loop under async runs": lambda: neighbours.lag_async(options.folder),
        "commits": lambda: neighbours.commits(options.folder),
    }
    measured = interleaved(
        questions | {f"{name}, unpinned": lambda ask=ask: unpinned(ask, cpus) for name, ask in beside.items()},
        options.rounds,
    )
    once: dict[str, Callable[[], Figures]] = {
        "a million actors": scale,
        **{f"{name}, unpinned": lambda ask=ask: unpinned(ask, cpus) for name, ask in side_by_side().items()},
    }
    measured |= interleaved(once | beside, 1)
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
    print(table(["figure", "pykka", "executus", "times", "by CPU time", "required"], rows(measured)))
    print()
    print(f"Medians of {options.rounds} rounds, ± half of what lies between their extremes; pinned to one CPU if not")
    print("said otherwise. What was asked once, unpinned for the record or a million actors, shows no noise.")
    print("Times is the median of the rounds' own ratios, for the two sides are asked one right after the other.")
    print(
        "By CPU time the same by seconds of the process' CPU time, which a shared machine's neighbours hardly change."
    )
    print("Rates count handled messages; 'told' is the tellers' own rate to an actor that is busy meanwhile.")
    print("machine:", ", ".join(f"{key} {value}" for key, value in machine().items()))
    return 0
