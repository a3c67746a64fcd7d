"""The smaller part of `decode_fuzz`, and that its canary sings."""

from __future__ import annotations

import subprocess
import sys

from tests.harness.reports import report_of
from tests.scenarios.harness import ROOT, environment


def test_twenty_thousand_hostile_records_are_refused_by_typed_errors_in_bounded_memory_and_run_nothing() -> None:
    report = report_of("decode_fuzz", 20_000)
    assert report.failures == ()
    assert int(report.figures["decoded"]) > 1000
    assert int(report.figures["refused: RecordCorrupt"]) > 1000


SINGS = """
import pickle
from tests.harness.decode_fuzz import CANARY, Canary, pickled
canary, data = Canary(), pickled()
with canary.listening():
    pickle.loads(data)
print(len(canary.sang) > 0, CANARY.exists())
CANARY.unlink()
"""


def test_the_canary_sings_when_something_is_unpickled() -> None:
    command = [sys.executable, "-P", "-c", SINGS]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True True\n", done.stdout + done.stderr
