"""For tests of runs: die at every commit, let virtual time pass, call steps as functions. pytest is not needed.

Its fixtures are in `executus.actors.testing.plugin`, loaded on request:
`pytest_plugins = ["executus.actors.testing.plugin"]` in a conftest.py.
"""

from executus.actors.testing.crash_report import CrashEverywhereFailed, CrashPoint, CrashReport
from executus.actors.testing.crashes import crash_everywhere
from executus.actors.testing.effects import Effect, Effects
from executus.actors.testing.machine import TimeStandsStill
from executus.actors.testing.stand_in import Spawned, TestContext, context
from executus.actors.testing.virtual_runtime import VirtualClock, VirtualRuntime

__all__ = [
    "CrashEverywhereFailed",
    "CrashPoint",
    "CrashReport",
    "Effect",
    "Effects",
    "Spawned",
    "TestContext",
    "TimeStandsStill",
    "VirtualClock",
    "VirtualRuntime",
    "context",
    "crash_everywhere",
]
