"""State that was written once is read by all later code: the store of every layout so far, opened, read whole and booted."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from executus.actors import Completed, Failed, RunStatus, Runtime, TimedOut
from executus.actors.agents import AgentRun, PipelineRun
from executus.actors.agents.transcript import problems
from executus.actors.flight import EndRequest
from executus.actors.flights import load_flight
from executus.stores import LmdbReader, LmdbStore, Settle, StoreTooNew, codec
from executus.stores.rows import Table
from tests.stores.disks import LmdbDisk
from tests.stores.golden.make import contents
from tests.stores.golden.runs import RUNS, UpgradedKeeper
from tests.waiting import wait_until

GOLDEN = Path(__file__).with_name("golden")
NAMES = sorted(path.name.removesuffix(".mdb.gz") for path in GOLDEN.glob("*.mdb.gz"))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def golden(name: str, store_path: Path) -> Path:
    """A copy of the store."""
    store_path.mkdir()
    (store_path / "data.mdb").write_bytes(gzip.decompress((GOLDEN / f"{name}.mdb.gz").read_bytes()))
    return store_path


@pytest.fixture
def expected(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


def test_there_is_one_of_every_layout() -> None:
    assert {"first", "messages-journals", "ended-index", "passivated", "flights", "agents"} <= set(NAMES)


def test_every_frame_can_be_read_and_says_what_it_said(golden: Path, expected: dict[str, Any]) -> None:
    reader = LmdbReader(golden)
    reader.open()
    assert [checkup for checkup in reader.checkup() if checkup.damages] == []
    assert reader.damaged_numbers() == []
    reader.close()
    assert contents(golden) == expected


def test_flight_records_say_what_they_said_and_older_stores_have_none(golden: Path, name: str) -> None:
    reader = LmdbReader(golden)
    reader.open()
    claims = [stored.claim for stored in reader.scan()]
    flights = {claim.run_id: load_flight(reader, claim) for claim in claims}
    reader.close()
    found = {run_id: flight for run_id, flight in flights.items() if flight is not None}
    if name not in {"flights", "agents"}:
        assert found == {}
        return
    assert {run_id: [one.how for one in flight.exits] for run_id, flight in found.items()} == {
        "cancelled": ["cancelled"],
        "failed": ["crashed"],
        "killed": ["killed"],
        "stopped": ["stopped"],
        "timed out": ["timed out"],
    }
    failed = found["failed"]
    assert (failed.version, failed.status, failed.attempt) == (1, "failed", 1)
    assert [(link.type, link.message) for link in failed.chain] == [("ValueError", "told to")]
    assert failed.chain[0].frames[-1].endswith(" in step")
    assert found["killed"].request == EndRequest("kill", "handle", "golden")


def test_reading_changes_no_byte(golden: Path) -> None:
    before = (golden / "data.mdb").read_bytes()
    contents(golden)
    assert (golden / "data.mdb").read_bytes() == before


def test_a_runtime_of_today_resumes_it_and_its_runs_finish(golden: Path, expected: dict[str, Any]) -> None:
    with Runtime(LmdbStore(golden, profile="process"), runs=RUNS, logger=False) as runtime:
        assert {view.run_id for view in runtime.runs()} >= set(expected)
        assert runtime.get("done").outcome(10) == Completed(5)
        assert isinstance(runtime.get("failed").outcome(10), Failed)
        assert isinstance(runtime.get("timed out").outcome(10), TimedOut)
        assert [runtime.get(run_id).status().status for run_id in ("killed", "cancelled", "stopped")] == [
            RunStatus.KILLED,
            RunStatus.CANCELLED,
            RunStatus.STOPPED,
        ]
        waits = runtime.get("waits")
        assert waits.query("n") == 15
        waits.tell(0)
        assert waits.result(10) == 15
        wait_until(lambda: runtime.get("parent").query("n") == 101)  # its child's end was owed
        assert {view.run_id for view in runtime.runs(status="parked")} == {"parked"}
        stopped = runtime.resume("stopped")
        wait_until(lambda: stopped.status().waiting)
        heard = 325 if name_has_messages(expected) else 5
        wait_until(lambda: stopped.query("n") == heard)
        if "chat" in expected:
            chat: Any = runtime.get("chat")
            assert chat.query("all") == ["summary", "one", "two", "three"]
            chat.tell("four")
            chat.tell("end")
            assert chat.result(10) == 5
        if "rests" in expected:
            assert runtime.get("due").result(10) == -1
            resting = runtime.runs(status="passivated")
            assert [view.run_id for view in resting] == ["rests", "rests long", "rests until"]
            for view in resting:
                rests: Any = runtime.get(view.run_id)
                assert rests.query("n", 10) == 0
                rests.tell(7)
                assert rests.result(10) == 7
        if "album" in expected:
            album: Any = runtime.get("album")
            assert album.query("sizes") == [100_000, 100_000, 100_000, 1]
            album.tell("end")
            assert album.result(10) == 3
            agent = runtime.get(AgentRun, "agent").result(10)
            assert (agent.output, agent.steps, agent.usage.tool_calls) == ("sky seen; rocket launched", 2, 2)
            pipeline = runtime.get(PipelineRun, "pipeline").result(10)
            assert [(one.name, one.output) for one in pipeline.phases] == [
                ("first", "sky seen; rocket launched"),
                ("count", "1"),
                ("second", "sky seen; rocket launched"),
            ]
            assert problems(agent.transcript) == problems(pipeline.transcript) == []
    with Runtime(LmdbStore(golden, profile="process"), runs=RUNS, logger=False) as runtime:  # and once more
        assert runtime.get("waits").result(10) == 15
        assert runtime.get("parent").query("n") == 101


def name_has_messages(expected: dict[str, Any]) -> bool:
    """Of the golden stores, those whose code knew `send`."""
    return bool(expected["stopped"].get("messages"))


def test_an_older_schema_is_brought_forward(golden: Path) -> None:
    with Runtime(LmdbStore(golden, profile="process"), runs=[UpgradedKeeper], logger=False) as runtime:
        waits = runtime.get("waits")
        wait_until(lambda: waits.status().waiting)
        assert waits.query("total") == 15
        waits.tell(5)
        waits.tell(0)
        assert waits.result(10) == 20
        assert {view.run_id for view in runtime.runs(status="parked")} >= {"parked", "parent"}


def test_what_rests_in_it_stands_in_the_index_of_ended_runs_once_it_is_opened(
    golden: Path, expected: dict[str, Any]
) -> None:
    store = LmdbStore(golden, profile="process")
    store.open()
    for status in set(RunStatus) - {RunStatus.RUNNING, RunStatus.SUSPENDED, RunStatus.PARKED}:
        ended = sorted(run.run_id for run in store.ended(status))
        assert ended == sorted(run_id for run_id, facts in expected.items() if facts["status"] == status)
    store.close()


def test_who_is_due_in_it_stands_in_the_index_of_due_runs(golden: Path, expected: dict[str, Any]) -> None:
    reader = LmdbReader(golden)
    reader.open()
    for by_wall in (False, True):
        due = {run.run_id: run.at_ms for run in reader.due(by_wall=by_wall)}
        assert due == {
            run_id: math.ceil(at_s * 1000)
            for run_id, facts in expected.items()
            for at_s, is_by_wall in facts.get("dues", [])
            if is_by_wall is by_wall
        }
    reader.close()


def test_opening_it_to_write_is_all_or_nothing(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an older store lacks is made in one transaction, with the boot's number."""
    before = contents(golden)
    monkeypatch.setattr("executus.stores.lmdb_meta.boot_rows", lambda _number: 1 / 0)
    store = LmdbStore(golden, profile="process")
    with pytest.raises(ZeroDivisionError):
        store.open()
    assert contents(golden) == before
    monkeypatch.undo()
    store.open()
    token = next(claim.token for claim in store.live() if claim.run_id == "waits")
    assert store.commit([Settle(token=token, status=RunStatus.SUSPENDED)])
    store.close()


def test_a_store_of_later_code_is_refused_and_left_as_it_is(golden: Path) -> None:
    for key in (b"format-1", b"format-2"):
        later = codec.FORMAT_VERSION + 1
        LmdbDisk(golden).change(Table.META, key, lambda _, key=key, later=later: codec.encode_number(later, key))  # type: ignore[misc]
    before = (golden / "data.mdb").read_bytes()
    for store in (LmdbStore(golden, profile="process"), LmdbReader(golden)):
        with pytest.raises(StoreTooNew):
            store.open()
    assert (golden / "data.mdb").read_bytes() == before
