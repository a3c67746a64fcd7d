"""What the service manager is told; serve() under one that listens is in tests/scenarios/test_serving.py."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from executus.actors import systemd

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@pytest.fixture(autouse=True)
def no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that runs these tests is not to hear of them."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@executus-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1) if request.param == "abstract" else address)
        manager.settimeout(10)
        yield manager


def test_the_manager_hears_what_it_is_told(manager: socket.socket) -> None:
    assert systemd.notify("READY=1")
    assert manager.recv(100) == b"READY=1"


def test_without_a_manager_nothing_is_sent_and_nothing_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    assert not systemd.notify("READY=1")
    assert caplog.records == []


@pytest.mark.parametrize(
    "address", ["/nowhere/notify", "@nobody-listens", "vsock:2:1234", "no\udcffaddress", "/" * 300]
)
def test_a_manager_that_cannot_be_told_is_logged_and_raises_nothing(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.notify("READY=1")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize(
    ("usec", "pid", "expected_s"),
    [
        ("30000000", "", 30.0),
        ("30000000", "mine", 30.0),
        ("500000", "", 0.5),
        ("30000000", "1", None),  # the watchdog of another process, inherited
        ("30000000", "x", None),
        ("", "", None),
        ("0", "", None),
        ("-5", "", None),
        ("soon", "", None),
    ],
)
def test_the_watchdogs_period_is_this_process_own_or_none(
    usec: str, pid: str, expected_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "mine" else pid)
    assert systemd.watchdog_s() is None, "nobody to ping"
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    assert systemd.watchdog_s() == expected_s
