"""Does a host that embeds a runtime end as it would without it: in time, with its own exit code, without a word?

A matrix of processes: ways to end, crowds of runs, with and without a store. That no signal handler, logging
configuration, start method or other global changes is in tests/actors/test_faults_host.py, which compares them before
and after; so is what spins: it takes the interpreter from the exit itself.
"""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from executus.stores import LmdbStore, RunStatus
from tests.harness.host_program import CROWDS, ENDINGS
from tests.harness.report import Report
from tests.scenarios.harness import ROOT, environment

EXIT_S: Final = 2.0
CLOSE_S: Final = 3.5
"""A close drains for half a second here, gives what does not end by itself two more, and then the process ends."""
AT_ONCE: Final = 3
"""Processes: most of their time they wait."""
TRIES: Final = 3
"""The machine is shared: who ended late is tried again by itself, and is late if it is late each time."""
CODES: Final = {
    "exits inside": 7,
    "raises inside": 1,
    "SIGTERM": -signal.SIGTERM,
    "SIGINT": -signal.SIGINT,
    "SIGKILL": -signal.SIGKILL,
}
"""Where it is not 0."""
OWN_TRACEBACKS: Final = {"raises inside": "LookupError: the host's own", "SIGINT": "KeyboardInterrupt"}
DIES: Final = frozenset({"SIGTERM", "SIGKILL"})
CLOSES: Final = frozenset(ENDINGS) - {
    "falls off the end",
    "SIGTERM",
    "SIGKILL",
    "its fork exits",
    "its fork falls off the end",
    "is opened in a thread",
    "lives in a daemon thread",
    "closes its loop early",
}
WITHOUT_RUNS: Final = frozenset({"workers open one store"})
Case = tuple[str, str, bool]


def cases(rng: random.Random, count: int) -> list[Case]:
    """Every ending at least once where there is room, then whatever else the matrix has."""
    matrix = [
        (ending, crowd, stored)
        for ending, crowd, stored in itertools.product(ENDINGS, CROWDS, (True, False))
        if ending not in WITHOUT_RUNS or crowd == "idle"
    ]
    rng.shuffle(matrix)
    first = list({ending: (ending, crowd, stored) for ending, crowd, stored in matrix}.values())
    rng.shuffle(first)
    rest = [case for case in matrix if case not in first]
    return list(itertools.islice(itertools.cycle([*first, *rest]), count))


def end(case: Case, folder: Path) -> tuple[float, str]:
    """How long the end took, and what was wrong with it."""
    ending, crowd, stored = case
    path = folder / "runs.store"
    command = [sys.executable, "-P", "-W", "error", "-m", "tests.harness.host_program"]
    with subprocess.Popen(
        [*command, ending, crowd, str(path) if stored else ""],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            said = process.stdout.readline()
            began_s = time.monotonic()
            if ending.startswith("SIG"):
                process.send_signal(signal.Signals[ending])
            code = process.wait(30)
            took_s = time.monotonic() - began_s
        except subprocess.TimeoutExpired:
            process.kill()
            return 30.0, "it hung"
        errors = process.stderr.read()
    if said != "fine\n":
        return took_s, f"it never got there: {errors[-1500:]}"
    if code != CODES.get(ending, 0):
        return took_s, f"exit {code}: {errors[-1500:]}"
    if errors.count("Traceback") != (ending in OWN_TRACEBACKS) or OWN_TRACEBACKS.get(ending, "") not in errors:
        return took_s, f"it said: {errors[-1500:]}"
    return took_s, _left_behind(path, ending) if stored and ending not in WITHOUT_RUNS else ""


def _left_behind(path: Path, ending: str) -> str:
    """The store opens, and its runs are suspended, so that no strike is counted; or running where it was killed."""
    store = LmdbStore(path, profile="process")
    store.open()
    try:
        left = {claim.status for claim in store.live()}
    finally:
        store.close()
    wanted = RunStatus.RUNNING if ending in DIES else RunStatus.SUSPENDED
    return "" if left <= {wanted} else f"runs are left as {left}, not {wanted}"


def _tried(case: Case) -> tuple[Case, float, str]:
    """How long the end took, and what was wrong with it."""
    with TemporaryDirectory(prefix="executus-embedding-") as folder:
        return case, *end(case, Path(folder))


def _bound_s(case: Case) -> float:
    return CLOSE_S if case[0] in CLOSES else EXIT_S


def _named(case: Case) -> str:
    return f"{case[0]}, {case[1]}, {'on disk' if case[2] else 'in memory'}"


def run(count: int, seed: int) -> Report:
    """`count` processes of the matrix."""
    began_s = time.monotonic()
    failures: list[str] = []
    took: dict[str, float] = {}
    late = 0
    left = cases(random.Random(seed), count)
    for tries in range(TRIES):
        with ThreadPoolExecutor(1 if tries else AT_ONCE) as several:
            tried = list(several.map(_tried, left))
        left = [case for case, took_s, wrong in tried if took_s > _bound_s(case) and not wrong]
        late += len(left)
        for case, took_s, wrong in tried:
            if wrong:
                failures.append(f"{_named(case)}: {wrong}")
            elif took_s <= _bound_s(case) or tries == TRIES - 1:
                took[case[0]] = max(took.get(case[0], 0.0), took_s)
    failures += [f"{_named(case)}: its end took {took[case[0]]:.2f} s" for case in left]
    return Report(
        name="embedding",
        promise=(11, 12),
        count=count,
        failures=tuple(failures),
        figures={f"longest, s: {ending}": took_s for ending, took_s in sorted(took.items())} | {"tried again": late},
        took_s=time.monotonic() - began_s,
    )
