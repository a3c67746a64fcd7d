"""serve() under real signals, and under a service manager: READY, STOPPING, and a watchdog that hears a tree that answers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from executus.stores import LmdbReader, RunStatus
from tests.scenarios.harness import Daemon

FACES = ["thread", "loop"]
PERIOD_S = 0.4
"""The manager's patience: two pings in it."""


class Serving(Daemon):
    def opened(self) -> Self:
        super().opened()
        self.do("serving")
        return self


def serving(store: Path, face: str, *told: str, drain_s: float = 60) -> Daemon:
    return Serving(store, face, str(drain_s), *told, module="serving_daemon")


def stored(store: Path) -> dict[str, tuple[RunStatus, int]]:
    """Status and durable seq by id."""
    reader = LmdbReader(store)
    reader.open()
    try:
        runs = {}
        for run in reader.scan():
            loaded = reader.load_snapshot(run.claim.run_id)
            assert loaded is not None
            runs[run.claim.run_id] = (run.claim.status, loaded.snapshot.seq)
        return runs
    finally:
        reader.close()


SEQ = {"wait": 3, "hang": 2, "spin": 2, "shrug": 2}
"""How far a run gets that was told to do this in its second step."""


def when_there(daemon: Daemon, run_id: str) -> None:
    """Wait until it is in its second step, or waits behind it, and what came before is durable."""
    daemon.wait_for(
        lambda: any(e["seq"] == SEQ[run_id] for e in daemon.events("SnapshotSaved", run_id)), f"{run_id} saved"
    )


def suspended(*told: str) -> dict[str, tuple[RunStatus, int]]:
    return {run_id: (RunStatus.SUSPENDED, SEQ[run_id]) for run_id in told}


# ------------------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("face", FACES)
def test_the_first_signal_drains_and_serve_returns_with_the_report(
    face: str, number: signal.Signals, store_path: Path
) -> None:
    with serving(store_path, face, "wait") as daemon:
        when_there(daemon, "wait")
        daemon.process.send_signal(number)
        assert daemon.ended() == 0
        ((report,),) = daemon.said("report")
        assert (report["suspended"], report["unstopped"], report["unsaved"]) == (1, [], [])
        assert daemon.said("left") == [[True]], "the handlers of before are back"
    assert stored(store_path) == suspended("wait")


@pytest.mark.parametrize("face", FACES)
def test_a_drain_gets_the_time_it_was_given_and_no_more(face: str, store_path: Path) -> None:
    with serving(store_path, face, "hang", drain_s=0.2) as daemon:
        when_there(daemon, "hang")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.ended() == 0
        ((report,),) = daemon.said("report")
        assert report["suspended"] == 1
        assert report["took_s"] < 20, "and not the minute of its grace"
    assert stored(store_path) == suspended("hang")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("face", "stubborn"), [("thread", "hang"), ("thread", "spin"), ("loop", "hang")])
def test_sigterm_while_draining_is_forced(face: str, stubborn: str, number: signal.Signals, store_path: Path) -> None:
    with serving(store_path, face, stubborn, "wait") as daemon:
        when_there(daemon, stubborn)
        when_there(daemon, "wait")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.event("RuntimeDraining")
        daemon.event("RunSettled", "wait")
        began_s = time.monotonic()
        daemon.process.send_signal(number)
        assert daemon.ended() == 128 + number
        assert time.monotonic() - began_s < 20, "a minute of grace, and a minute of drain, were cut"
        assert daemon.said("report") == []
        assert daemon.said("left") == [[True]], "the blocks around it were left in order"
    assert stored(store_path) == suspended(stubborn, "wait")
    with serving(store_path, face) as again:
        assert again.event("RunRestored", stubborn)["resumed_from_seq"] == 2


def test_what_keeps_a_forced_process_from_its_exit_dies_of_a_third_signal(store_path: Path) -> None:
    with serving(store_path, "loop", "shrug") as daemon:  # asyncio.run() waits for the task that will not be cancelled
        when_there(daemon, "shrug")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.event("RuntimeDraining")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for(lambda: daemon.said("left"), "left")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.ended() == -signal.SIGTERM
    assert stored(store_path) == suspended("shrug")


@pytest.mark.parametrize("face", FACES)
def test_a_forked_child_of_a_serving_process_dies_of_sigterm_as_any_other(face: str, store_path: Path) -> None:
    with serving(store_path, face, "wait") as daemon:
        assert daemon.do("fork") == signal.SIGTERM
        assert daemon.events("RuntimeDraining") == []
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.ended() == 0


@pytest.mark.parametrize("face", FACES)
def test_a_crash_of_the_run_supervisor_ends_serve_with_an_error(face: str, store_path: Path) -> None:
    with serving(store_path, face, "wait") as daemon:
        daemon.do("crash")
        assert daemon.ended() == 1
        assert daemon.said("report") == []
        assert daemon.said("left") == [[True]]


# ------------------------------------------------------------------------------------------------------------ systemd


class Manager:
    """What systemd is to a service: a datagram socket, of either kind."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def heard(self, timeout_s: float = 20.0) -> str | None:
        """The next state it is told; None where nothing comes in that time."""
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.recv(4096).decode()
        except TimeoutError:
            return None

    def heard_until_quiet(self, quiet_s: float) -> list[str]:
        return list(iter(lambda: self.heard(quiet_s), None))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A manager that is listening; daemons that are started from now on are told of it."""
    kind = getattr(request, "param", "path")
    manager = Manager(f"@executus-{os.getpid()}-{tmp_path.name}" if kind == "abstract" else str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    with contextlib.closing(manager):
        yield manager


@pytest.mark.parametrize("manager", ["path", "abstract"], indirect=True)
@pytest.mark.parametrize("face", FACES)
def test_systemd_hears_ready_once_it_serves_and_stopping_when_the_drain_begins(
    face: str, manager: Manager, store_path: Path
) -> None:
    with serving(store_path, face, "hang") as daemon:
        assert manager.heard() == "READY=1"
        when_there(daemon, "hang")
        daemon.process.send_signal(signal.SIGTERM)
        assert manager.heard() == "STOPPING=1"
        daemon.event("RuntimeDraining")
        daemon.do("release")
        assert daemon.ended() == 0
        assert manager.heard(0.01) is None, "without WATCHDOG_USEC nobody is pinged"


@pytest.mark.parametrize("face", FACES)
def test_the_watchdog_is_pinged_at_half_its_period_while_the_tree_answers(
    face: str, manager: Manager, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", str(int(PERIOD_S * 1e6)))
    with serving(store_path, face, "hang") as daemon:
        assert manager.heard() == "READY=1"
        assert manager.heard() == "WATCHDOG=1", "at once: the manager's time has begun"
        began_s = time.monotonic()
        assert [manager.heard() for _ in range(6)] == ["WATCHDOG=1"] * 6
        assert time.monotonic() - began_s > 6 * PERIOD_S / 2 * 0.8, "not oftener than every half period"
        daemon.process.send_signal(signal.SIGTERM)
        states: list[Any] = [manager.heard() for _ in range(4)]
        assert set(states) == {"STOPPING=1", "WATCHDOG=1"}, "a drain may take longer than the manager's patience"
        daemon.do("release")
        assert daemon.ended() == 0


@pytest.mark.parametrize("who", ["supervisor", "store"])
@pytest.mark.parametrize("face", FACES)
def test_the_watchdog_is_not_pinged_while_the_tree_is_stuck(
    face: str, who: str, manager: Manager, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", str(int(PERIOD_S * 1e6)))
    with serving(store_path, face, "wait") as daemon:
        assert [manager.heard() for _ in range(2)] == ["READY=1", "WATCHDOG=1"]
        daemon.do("stick", who)
        manager.heard_until_quiet(3 * PERIOD_S)  # raises nothing: it does get quiet, for longer than the manager waits
        assert manager.heard(0.01) is None
        daemon.do("unstick")
        assert manager.heard() == "WATCHDOG=1", "it answers again"
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.ended() == 0
