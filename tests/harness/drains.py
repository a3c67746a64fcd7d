"""Does a drain return within its time and half a second, whatever the runs do?

Each trial opens a runtime in a process of its own, fills it with runs that hang, block, spin, swallow their
cancellation or work, waits until they are at it, and drains.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from executus.actors import Factory, Runtime, StopPolicy
from executus.stores import LmdbStore
from tests.doubles import AsyncFailableRun, FailableRun, Told, World
from tests.harness.forks import forked
from tests.harness.report import Report
from tests.waiting import wait_until

SLACK_S: Final = 0.5
TRIES: Final = 2
"""The machine is shared: a drain that was late is tried once more, and is late if that is late too."""

SYNC: Final = {
    "hangs": Told(("ok", "hang")),
    "hangs while stopping": Told(("ok", "wait"), stopping="hang"),
    "spins": Told(("ok", "spin")),
    "blocks for long": Told(("ok", "sleep:30")),
    "steps along": Told(("sleep:0.002",) * 5000),
    "waits": Told(("ok", "wait")),
    "crashes": Told(("ok", "raise:ValueError")),
}
ASYNC: Final = {
    "hangs, async": Told(("ok", "hang")),
    "swallows its cancellation": Told(("ok", "shrug")),
    "hangs while stopping, async": Told(("ok", "wait"), stopping="hang"),
    "blocks the loop": Told(("ok", "block")),
    "spins on the loop": Told(("ok", "spin")),
    "waits, async": Told(("ok", "wait")),
}
AT_MOST: Final = {"spins": 1, "blocks the loop": 1, "spins on the loop": 1}
"""Who spins shares the interpreter with the drain, and a loop can be blocked only once."""


def chosen(rng: random.Random) -> dict[str, int]:
    """How many of which."""
    names = rng.sample([*SYNC, *ASYNC], rng.randint(2, 8))
    if "spins on the loop" in names and "blocks the loop" in names:
        names.remove("spins on the loop")
    return {name: rng.randint(1, AT_MOST.get(name, 5)) for name in names}


def drain(folder: str, crowd: dict[str, int], timeout_s: float, grace_s: float) -> list[Any]:
    """How long it took, and how many runs it gave up on. The process ends right after."""
    world = World()
    runtime = Runtime(
        LmdbStore(Path(folder) / "runs.store", profile="process"),
        runs=[Factory(FailableRun, world), Factory(AsyncFailableRun, world)],
        stop_policy=StopPolicy(grace_s=grace_s),
        logger=False,
    )
    runtime.open()
    # The loop is blocked last: nothing of it would begin after that.
    for name in sorted(crowd, key=lambda name: ("loop" in name, name == "spins")):
        double: Any = FailableRun if name in SYNC else AsyncFailableRun
        told = SYNC.get(name) or ASYNC[name]
        for number in range(crowd[name]):
            run_id = f"{name} {number}"
            runtime.start(double, told, run_id=run_id)
            wait_until(partial(_is_at_it, world, run_id), 30, run_id)
    began_s = time.monotonic()
    report = runtime.drain(timeout_s)
    return [time.monotonic() - began_s, len(report.unstopped)]


def _is_at_it(world: World, run_id: str) -> bool:
    return (run_id, "step 1") in world.calls


def run(count: int, seed: int) -> Report:
    """`count` drains, of all kinds of crowds."""
    began_s = time.monotonic()
    rng = random.Random(seed)
    failures: list[str] = []
    late_by_s: list[float] = []
    seen, tried_again, given_up = Counter[str](), 0, 0
    for number in range(count):
        crowd = chosen(rng)
        timeout_s, grace_s = rng.choice((0.0, 0.1, 0.3, 1.0)), rng.choice((0.05, 60.0))
        seen.update(crowd)
        what = f"drain {number} of {crowd} within {timeout_s:g} s, grace {grace_s:g} s"
        for attempt in range(TRIES):
            with TemporaryDirectory(prefix="executus-drains-") as folder:
                trial = forked(partial(drain, folder, crowd, timeout_s, grace_s), 120)
            if trial.answer is None:
                failures.append(f"{what}: {trial.death}")
                break
            took_s, unstopped = trial.answer
            if took_s <= timeout_s + SLACK_S:
                late_by_s.append(took_s - timeout_s)
                given_up += unstopped
                break
            tried_again += 1
            if attempt == TRIES - 1:
                failures.append(f"{what}: it took {took_s:.2f} s")
    figures: dict[str, float | int | str] = {f"runs: {name}": number for name, number in sorted(seen.items())}
    figures["runs given up on"] = given_up
    figures["drains tried again"] = tried_again
    figures["latest after its time, s"] = max(late_by_s, default=0.0)
    figures["median after its time, s"] = sorted(late_by_s)[len(late_by_s) // 2] if late_by_s else 0.0
    return Report(
        name="drains",
        promise=(10,),
        count=count,
        failures=tuple(failures),
        figures=figures,
        took_s=time.monotonic() - began_s,
    )
