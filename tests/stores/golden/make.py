"""`python -m tests.stores.golden.make NAME`: a store with a run of every kind, by the code that is installed.

For older code: `git archive COMMIT actors stores | tar x -C OLD/executus`, then PYTHONPATH=OLD.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from executus.actors import Runtime, SavePolicy, StopPolicy
from executus.stores import LmdbReader, LmdbStore
from tests.stores.golden import runs
from tests.stores.golden.runs import RUNS, Keeper, Unknown

try:
    from executus.actors.agents import Standing
except ImportError:  # the code that makes an old store has none
    Standing = None  # type: ignore[assignment, misc]

HERE = Path(__file__).parent


def fill(path: str) -> None:
    """Two boots; the second one dies with its runs."""
    by_name = {getattr(run, "__name__", ""): run for run in RUNS}
    with Runtime(LmdbStore(path), runs=[*RUNS, Unknown], logger=False) as runtime:
        runtime.start(Unknown, 7, run_id="parked", labels={"team": "\u00fc"})
        for run_id in ("waits", "done", "killed", "cancelled", "stopped"):
            runtime.start(Keeper, 1, run_id=run_id).tell(4)
        runtime.get("done").tell(0)
        runtime.get("done").result(10)
        runtime.get("killed").kill("golden")
        runtime.get("cancelled").cancel("golden")
        runtime.get("stopped").stop()
        runtime.start(Keeper, 1, run_id="timed out", stop_policy=StopPolicy(run_timeout_s=0.05)).outcome(10)
        runtime.start(by_name["Fails"], 1, run_id="failed").outcome(10)
        until(lambda: runtime.get("waits").status().durable_seq == 2)
    with Runtime(LmdbStore(path), runs=RUNS, logger=False) as runtime:
        parent = runtime.start(by_name["Parent"], 1, run_id="parent")
        until(lambda: parent.status().durable_seq >= 1)
        until(lambda: sum(view.run_type == "golden.Ends" and view.status == "completed" for view in runtime.runs()))
        runtime.get("waits").tell(10)
        until(lambda: runtime.get("waits").status().durable_seq == 3)
        if "Chat" in by_name:
            chat: Any = runtime.start(by_name["Chat"], 20, run_id="chat")
            for message in ("one", "two", "rewrite", "three"):
                chat.tell(message)
            until(lambda: chat.status().durable_seq == 5)
        stopped: Any = runtime.get("stopped")
        if hasattr(stopped, "send"):
            stopped.send(20, message_id="m1")
            stopped.send(300, message_id="m2")
        if "Sleeper" in by_name:
            until(lambda: not sleeping(runtime, by_name["Sleeper"]))
        if "Album" in by_name:
            album = runtime.start(by_name["Album"], 1, run_id="album")
            until(lambda: album.status().durable_seq == 0 and album.status().waiting)
            working(runtime)
        os._exit(0)


def sleeping(runtime: Runtime, sleeper: Any) -> set[str]:
    """Start those that rest, the one that is due soonest last; return who does not yet."""
    waits = {
        "rests": {},
        "rests long": {"timeout_s": 3.2e9},
        "rests until": {"until_s": 4.1e9},
        "due": {"timeout_s": 5.0},
    }
    for run_id, patience in waits.items():
        runtime.start(sleeper, patience, run_id=run_id, if_exists="return")
    return waits.keys() - {view.run_id for view in runtime.runs(status="passivated")}


def working(runtime: Runtime) -> None:
    """Start agents whose models never answer their second request; of the pipeline's, that of the last phase."""
    runs.hangs.update(("Watch.", "Second."))
    options: Any = {"save_policy": SavePolicy(durability="sync")}
    watcher = runs.AGENTS.start(runtime, "watcher", runs.ASKED, run_id="agent", **options)
    reporter = runs.AGENTS.start(runtime, "reporter", runs.ASKED, run_id="pipeline", **options)
    until(lambda: watcher.query(Standing()).usage.tool_calls == 2)
    until(lambda: reporter.query(Standing()).usage.tool_calls == 4)
    until(lambda: watcher.status().durable_seq == watcher.status().seq)
    until(lambda: reporter.status().durable_seq == reporter.status().seq)


def until(holds: Any) -> None:
    deadline_s = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def contents(path: Path) -> dict[str, Any]:
    """What a store holds of each run, as plain values."""
    reader = LmdbReader(path)
    reader.open()
    try:
        found: dict[str, Any] = {}
        for stored in reader.scan():
            claim = stored.claim
            assert stored.record is not None
            loaded = reader.load_snapshot(claim.run_id)
            outcome = reader.load_outcome(claim.run_id)
            found[claim.run_id] = {
                "run_type": stored.record.run_type,
                "status": claim.status.value,
                "labels": stored.record.labels,
                "input": msgspec.msgpack.decode(stored.record.input),
                "seq": None if loaded is None else loaded.snapshot.seq,
                "state": None if loaded is None else plain(loaded.snapshot.state),
                "result": None if outcome is None else msgspec.msgpack.decode(outcome).get("result"),
                "children": sorted(child for child, _ in reader.children(claim.run_id)),
                "messages": [message.number for message in reader.messages(claim.run_id)]
                if hasattr(reader, "messages")
                else [],
            }
            if dues := getattr(claim, "due_times", ()):
                found[claim.run_id]["dues"] = [[due.at_s, due.by_wall] for due in dues]
        return found
    finally:
        reader.close()


def plain(state: bytes) -> Any:
    """A state as JSON can hold it; places of journals as text."""
    value = msgspec.msgpack.decode(state, ext_hook=lambda code, data: f"{code}:{bytes(data).hex()}")
    return json.loads(json.dumps(value))


def main(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, copy = Path(folder) / "store", Path(folder) / "copy"
        program = f"from tests.stores.golden.make import fill; fill({str(store)!r})"
        subprocess.run([sys.executable, "-c", program], check=True)
        copy.mkdir()
        with lmdb.open(str(store), readonly=True, lock=False, max_dbs=64) as env:
            env.copy(str(copy), compact=True)
        (HERE / f"{name}.mdb.gz").write_bytes(gzip.compress((copy / "data.mdb").read_bytes(), 9, mtime=0))
        (HERE / f"{name}.json").write_text(json.dumps(contents(copy), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
