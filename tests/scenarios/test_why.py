"""`executus why` after real deaths: what a store says of its runs when nobody is left to ask."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from executus.actors.flight import PROCESS_DIED
from tests.scenarios.harness import Daemon, environment
from tests.waiting import wait_until


def why(store: Path, run_id: str) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "executus.actors.console.main", "why", str(store), run_id, "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def exits(found: dict[str, Any]) -> list[tuple[int, str]]:
    return [(one["attempt"], one["how"]) for one in found["flight"]["exits"]]


def test_a_killed_daemons_store_says_where_its_runs_were(store_path: Path) -> None:
    with Daemon(store_path) as daemon:
        daemon.do("start", "Failable", "r", {"steps": ["ok", "raise:ValueError@1", "ok", "hang"]}, {})
        wait_until(lambda: daemon.do("hanging") == 1)
        saved = daemon.do("durable", "r")
        living = why(store_path, "r")
        assert (living["died"], living["owner_pid"]) == (False, daemon.process.pid)
        daemon.kill()
    found = why(store_path, "r")
    assert (found["status"], found["died"], found["owner_pid"]) == ("running", True, None)
    assert (found["attempt"], found["saved_seq"], found["boot"], found["store_boot"]) == (2, saved, 1, 1)
    assert exits(found) == [(1, "crashed")]  # with the claim of its restart; of its death nobody could write
    assert found["flight"]["chain"][0]["type"] == "ValueError"
    assert "the process died" in found["verdict"]


def test_each_death_of_the_process_is_in_the_record_of_the_boot_after_it(store_path: Path) -> None:
    steps = {"steps": ["ok", "hang@1", "hang@2", "wait"]}
    with Daemon(store_path) as daemon:
        daemon.do("start", "Failable", "r", steps, {"save_policy": {"durability": "sync"}})
        wait_until(lambda: daemon.do("hanging") == 1)
        daemon.do("durable", "r")
    with Daemon(store_path) as daemon:
        wait_until(lambda: daemon.do("hanging") == 1)
        assert exits(why(store_path, "r")) == [(1, PROCESS_DIED)]  # beside the daemon that lives
    with Daemon(store_path) as daemon:
        wait_until(lambda: daemon.do("status", "r")["waiting"])
        assert exits(why(store_path, "r")) == [(1, PROCESS_DIED), (2, PROCESS_DIED)]


def test_a_run_that_took_the_process_down_each_time_shows_every_death(store_path: Path) -> None:
    daemon = Daemon(store_path).opened()
    with contextlib.suppress(AssertionError):  # it may be dead before it has answered
        daemon.do("start", "Failable", "r", {"steps": ["ok", "abort"]}, {"save_policy": {"durability": "sync"}})
    daemon.ended()
    for _ in range(10):
        daemon = Daemon(store_path)
        try:
            status = daemon.opened().do("runs")["r"]
        except (AssertionError, OSError):  # dead already
            status = "running"
        if status == "running":
            daemon.ended()
        daemon.kill()
        if status == "quarantined":
            break
    found = why(store_path, "r")
    assert found["status"] == "quarantined"
    assert exits(found) == [(attempt, PROCESS_DIED) for attempt in (1, 2, 3, 4)]
    assert "it was set aside" in found["verdict"]
    assert "died 3 times" in found["verdict"]
