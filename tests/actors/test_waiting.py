"""Waits, their deadlines, and what is left of them after a restart."""

from __future__ import annotations

from pathlib import Path

import msgspec

from executus.actors import Done, RestartPolicy, Run, Runtime, Wait, WaitExpired
from executus.stores import MemoryStore
from tests.doubles import SOON
from tests.waiting import wait_until


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Any message."""


class Patient(Run[int, int, int]):
    """Waits a moment, and goes on waiting without a deadline when that is over."""

    expired = 0

    def begin(self, number: int) -> Wait[int]:
        return Wait(number, timeout_s=0.001)

    def step(self, number: int) -> Done[int]:
        return Done(number)

    def receive(self, number: int, message: Ping | WaitExpired) -> Done[int] | None:
        if isinstance(message, WaitExpired):
            type(self).expired += 1
            return None
        return Done(number)


def test_a_deadline_that_was_let_pass_does_not_expire_again_after_a_restart(store_path: Path) -> None:
    Patient.expired = 0
    with Runtime(store_path, runs=[Patient], logger=False) as runtime:
        handle = runtime.start(Patient, 7, run_id="p")
        wait_until(lambda: Patient.expired == 1 and handle.status().seq == 2, timeout_s=10, what="the deadline")
    with Runtime(store_path, runs=[Patient], logger=False) as runtime:
        handle = runtime.get(Patient, "p")
        handle.tell(Ping())
        assert handle.result(10) == 7
    assert Patient.expired == 1


class Stumbler(Run[float, float, str]):
    """Waits for so long, and crashes at each ping."""

    restart_policy = RestartPolicy(backoff=SOON)

    def begin(self, seconds: float) -> Wait[float]:
        return Wait(seconds, timeout_s=seconds)

    def step(self, seconds: float) -> Done[str]:
        return Done("stepped")

    def receive(self, seconds: float, message: Ping | WaitExpired) -> Done[str]:
        if isinstance(message, Ping):
            raise ValueError("told to")
        return Done("expired")


def test_a_run_that_a_boot_brought_back_and_that_crashed_since_keeps_its_deadline() -> None:
    """Restarted in process, it goes on from memory."""
    store = MemoryStore()
    with Runtime(store, runs=[Stumbler], logger=False) as runtime:
        handle = runtime.start(Stumbler, 2.0, run_id="p")
        wait_until(lambda: handle.status().durable_seq == 1)
    with Runtime(store, runs=[Stumbler], logger=False) as runtime:
        handle = runtime.get(Stumbler, "p")
        handle.tell(Ping())
        wait_until(lambda: handle.status().attempt == 3, 10)
        assert handle.result(10) == "expired"
