"""Rounds, medians, noise, the machine's name, and the table.

An absolute figure of a shared machine means little alone.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


class Measured:
    """The figures of one question over the rounds."""

    def __init__(self, name: str, unit: str) -> None:
        self.name = name
        self.unit = unit
        self.values: list[float] = []

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def noise(self) -> float:
        """Half of what lies between the extremes, as a share of the median."""
        return (max(self.values) - min(self.values)) / 2 / self.median if self.median else 0.0

    def row(self) -> list[str]:
        return [
            self.name,
            f"{self.median:,.1f}" if self.median < 100 else f"{self.median:,.0f}",
            self.unit,
            f"±{self.noise:.0%}",
        ]


def interleaved(
    questions: Mapping[str, Callable[[], Mapping[str, tuple[float, str]]]], rounds: int
) -> dict[str, Measured]:
    """Ask every question once a round, so that what disturbs the machine disturbs them alike."""
    measured: dict[str, Measured] = {}
    for number in range(rounds):
        for title, question in questions.items():
            print(f"\rround {number + 1}/{rounds}: {title:<40}", end="", file=sys.stderr, flush=True)
            gc.collect()
            for name, (value, unit) in question().items():
                measured.setdefault(name, Measured(name, unit)).values.append(value)
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)
    return measured


def pin() -> None:
    """Keep this process on one CPU; without that, threads that hand a lock to and fro vary several-fold."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def resident_bytes() -> int:
    """Anonymous resident memory of this process: without the pages of mapped files, which the system may drop."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(fields["RssAnon"].split()[0]) * 1_024


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def report(name: str, measured: Mapping[str, Measured], *, notes: Sequence[str], as_json: bool, save: bool) -> None:
    """Print the findings, and keep them where they can be compared."""
    facts = {
        "benchmark": name,
        "machine": machine(),
        "figures": {m.name: {"median": m.median, "unit": m.unit, "rounds": m.values} for m in measured.values()},
        "notes": list(notes),
    }
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(facts))
        return
    print(table(["figure", "median", "unit", "noise"], [m.row() for m in measured.values()]))
    print()
    for note in notes:
        print(note)
    print("machine:", ", ".join(f"{key} {value}" for key, value in machine().items()))
