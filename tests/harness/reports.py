"""A program run as anybody runs it, in a process of its own, for the tests."""

from __future__ import annotations

import subprocess
import sys

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
