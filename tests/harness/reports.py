"""A program run as anybody runs it, in a process of its own, for the tests."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from tests.harness.report import Report
from tests.scenarios.harness import ROOT, environment


def report_of(name: str, count: int, seed: int = 1, timeout_s: float = 300) -> Report:
    """What `python -m tests.harness NAME --count N --seed S --json` prints."""
    command = [sys.executable, "-P", "-m", "tests.harness", name, "--count", str(count), "--seed", str(seed), "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    try:
        return msgspec.json.decode(done.stdout, type=Report)
    except msgspec.MsgspecError:
        raise AssertionError(f"{name} ended with {done.returncode}: {done.stdout}{done.stderr}") from None


def halves_of(name: str, count: int, timeout_s: float = 300) -> Report:
    """Half of it under each of two seeds, side by side. Figures are added up; of the most of anything the larger one is kept."""
    with ThreadPoolExecutor(2) as both:
        halves = list(both.map(partial(report_of, name, count // 2, timeout_s=timeout_s), (1, 2)))
    first, second = (half.figures for half in halves)
    figures: dict[str, float | int | str] = {}
    for figure in first | second:
        ones, others = float(first.get(figure, 0)), float(second.get(figure, 0))
        figures[figure] = max(ones, others) if figure.startswith("most ") else ones + others
    return Report(
        name=name,
        promise=halves[0].promise,
        count=sum(half.count for half in halves),
        failures=tuple(failure for half in halves for failure in half.failures),
        figures=figures,
        took_s=max(half.took_s for half in halves),
        skipped=halves[0].skipped,
    )
