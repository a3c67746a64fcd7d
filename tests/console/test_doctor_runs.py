"""`executus doctor --runs`: what the next boot of some code would make of each live run, and that it is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from executus.actors import Done, RestartPolicy, Run, RunStatus, Runtime, SavePolicy, Wait
from executus.stores import LmdbStore, StoreUnavailable
from executus.stores.rows import Table
from tests.console.test_ps_and_show import run, run_json
from tests.stores.disks import LmdbDisk, damage
from tests.waiting import wait_until

CALLED: list[str] = []


class At(msgspec.Struct, frozen=True):
    n: int


class Waits(Run[int, At, int]):
    """The code that wrote the store."""

    run_type = "Waits"
    save_policy = SavePolicy(durability="sync")

    def begin(self, n: int) -> Wait[At]:
        return Wait(At(n))

    def step(self, state: At) -> Done[int]:
        return Done(state.n)

    def receive(self, state: At, message: int) -> Wait[At]:
        return Wait(At(state.n + message))


class AtTwo(msgspec.Struct, frozen=True):
    count: int


class Upgraded(Run[int, AtTwo, int]):
    run_type = "Waits"
    schema_version = 2

    def begin(self, n: int) -> AtTwo:
        CALLED.append("begin")
        return AtTwo(n)

    def step(self, state: AtTwo) -> Wait[AtTwo]:
        CALLED.append("step")
        return Wait(state)

    def receive(self, state: AtTwo, message: int) -> Wait[AtTwo]:
        CALLED.append("receive")
        return Wait(state)

    def upgrade(self, version: int, raw: Any) -> AtTwo:
        CALLED.append("upgrade")
        if raw["n"] == 2:
            raise ValueError("two is not to be upgraded")
        return AtTwo(raw["n"])


class Changed(Run[int, AtTwo, int]):
    """Another state under the same schema: a deploy that somebody will regret."""

    run_type = "Waits"

    def begin(self, n: int) -> AtTwo:
        return AtTwo(n)

    def step(self, state: AtTwo) -> Wait[AtTwo]:
        return Wait(state)


class Looks(Waits):
    """The same, and looks at what it is given; it wants nothing of its context, nor of its instance."""

    def __init__(self) -> None:
        CALLED.append("made")

    def resuming(self, state: At) -> None:
        CALLED.append("resuming")
        with pytest.raises(LookupError):
            self.context.run_id  # noqa: B018
        if state.n == 2:
            raise StoreUnavailable("two is not to be gone on with")


class LooksAtUpgraded(Upgraded):
    def resuming(self, state: AtTwo) -> None:
        CALLED.append("resuming")
        if state.count == 3:
            raise SystemError("nor three")


class Older(Waits):
    schema_version = 1


class Newer(Waits):
    schema_version = 5


SAME, UPGRADED, CHANGED, OTHERS = [Waits], [Upgraded], [Changed], [Upgraded]
LOOKS, LOOKS_AT_UPGRADED = [Looks], [LooksAtUpgraded]
NEWER: list[Any] = [Newer]
NOTHING: list[Any] = []
RUNS = "tests.console.test_doctor_runs:"


@pytest.fixture
def store(store_path: Path) -> Path:
    """Three waiting runs that a drain has suspended, and one that ended."""
    with Runtime(LmdbStore(store_path, profile="process"), runs=[Waits], logger=False) as runtime:
        runtime.start_many(Waits, {"one": 1, "two": 2, "three": 3})
        runtime.start(Waits, 1, run_id="ended").kill("done with it")
        wait_until(lambda: all(view.waiting and view.durable_seq for view in runtime.runs(status="running")))
    return store_path


def judged(capsys: pytest.CaptureFixture[str], store: Path, runs: str) -> tuple[dict[str, int], dict[str, str]]:
    code, out, err = run(capsys, "doctor", store, "--runs", RUNS + runs, "--json")
    assert err == ""
    found = msgspec.json.decode(out)
    assert (code == 0) is found["ok"] is (set(found["deployment"]["counts"]) <= {"resumable", "upgradable"})
    return found["deployment"]["counts"], {each["run_id"]: each["verdict"] for each in found["deployment"]["first"]}


def booted(store: Path, runs: list[Any]) -> dict[str, int]:
    """How many runs a boot of that code really takes up and parks."""
    restart = RestartPolicy(kind="temporary")
    with Runtime(LmdbStore(store), runs=runs, logger=False, restart_policy=restart) as runtime:
        names = ("one", "two", "three")

        def statuses() -> list[RunStatus]:
            views = {view.run_id: view for view in runtime.runs()}
            return [views[name].status for name in names]

        wait_until(
            lambda: all(
                view.status is RunStatus.PARKED or view.seq or view.waiting
                for view in runtime.runs()
                if view.run_id in names
            )
        )
        found = statuses()
        return {"parked": found.count(RunStatus.PARKED), "up": found.count(RunStatus.RUNNING)}


@pytest.mark.parametrize(
    ("runs", "counts", "named"),
    [
        ("SAME", {"resumable": 3}, {}),
        ("UPGRADED", {"upgradable": 2, "parked": 1}, {"one": "upgradable", "three": "upgradable", "two": "parked"}),
        ("LOOKS", {"resumable": 2, "parked": 1}, {"two": "parked"}),
        (
            "LOOKS_AT_UPGRADED",
            {"upgradable": 1, "parked": 2},
            {"one": "upgradable", "three": "parked", "two": "parked"},
        ),
        ("CHANGED", {"parked": 3}, {"one": "parked", "three": "parked", "two": "parked"}),
        ("NOTHING", {"parked": 3}, {"one": "parked", "three": "parked", "two": "parked"}),
        ("NEWER", {"parked": 3}, {"one": "parked", "three": "parked", "two": "parked"}),
    ],
)
def test_what_it_says_is_what_a_boot_of_that_code_does(
    store: Path, capsys: pytest.CaptureFixture[str], runs: str, counts: dict[str, int], named: dict[str, str]
) -> None:
    assert judged(capsys, store, runs) == (counts, named)
    up = counts.get("resumable", 0) + counts.get("upgradable", 0)
    assert booted(store, globals()[runs]) == {"parked": counts.get("parked", 0), "up": up}


def test_a_snapshot_of_a_newer_schema_is_parked_with_both_numbers(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Runtime(LmdbStore(store), runs=UPGRADED, logger=False) as runtime:
        handle = runtime.get("one")
        handle.tell(1)
        wait_until(lambda: handle.status().seq == 2)
        handle.durable()
    code, out, _ = run(capsys, "doctor", store, "--runs", f"{RUNS}SAME")
    assert code == 1
    assert "its snapshot has schema 2, this code knows 1" in out
    assert "2 resumable, 1 parked" in out


@pytest.mark.parametrize(
    ("runs", "called"), [("UPGRADED", {"upgrade"}), ("LOOKS_AT_UPGRADED", {"upgrade", "resuming"}), ("SAME", set())]
)
def test_no_callback_is_called_but_upgrade_and_resuming_and_nothing_is_written(
    store: Path, capsys: pytest.CaptureFixture[str], runs: str, called: set[str]
) -> None:
    CALLED.clear()
    before = (store / "data.mdb").read_bytes()
    judged(capsys, store, runs)
    assert set(CALLED) == called
    assert (store / "data.mdb").read_bytes() == before


def test_what_cannot_be_read_is_quarantined(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(LmdbDisk(store), Table.SNAPSHOTS, "one", 0)
    damage(LmdbDisk(store), Table.RECORDS, "two")
    assert judged(capsys, store, "SAME")[1] == {"one": "quarantined", "two": "quarantined"}


@pytest.mark.parametrize("runs", ["nowhere", "nowhere:RUNS", f"{RUNS}MISSING", f"{RUNS}CALLED", f"{RUNS}Waits", ":x"])
def test_code_that_cannot_be_used_is_a_usage_error(store: Path, capsys: pytest.CaptureFixture[str], runs: str) -> None:
    CALLED[:] = ["not a run"]
    code, _, err = run(capsys, "doctor", store, "--runs", runs)
    assert (code, err.startswith("executus: --runs ")) == (2, True)


def test_without_runs_it_says_nothing_of_them(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "doctor", store)["deployment"] is None
