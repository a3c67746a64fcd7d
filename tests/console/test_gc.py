"""`executus gc`: says what is kept no longer, deletes it when told to, and never beside a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from executus.actors import FOREVER, Keep
from executus.actors.console.failures import CommandFailed
from executus.actors.console.gc import policy_of
from executus.stores import LmdbStore, ParentLink, RunStatus
from executus.stores.rows import Table
from tests.actors.test_pruning import fill
from tests.console.test_ps_and_show import Daemon, run, run_json
from tests.stores.disks import LmdbDisk, damage

DAY_S = 86_400.0


@pytest.fixture
def store(store_path: Path) -> Iterator[Path]:
    """A store with old and young runs of several endings, one of them a child that its parent still needs."""
    lmdb = LmdbStore(store_path, profile="process")
    fill(lmdb, 5, age_s=10 * DAY_S, name="old")
    fill(lmdb, 5, name="young")
    fill(lmdb, 2, RunStatus.FAILED, age_s=10 * DAY_S, name="failed")
    fill(lmdb, 1, age_s=10 * DAY_S, name="child", parent=ParentLink("failed-0000", 1, "k"))
    return store_path


def names(store: Path) -> list[str]:
    lmdb = LmdbStore(store)
    lmdb.open()
    found = [stored.claim.run_id for stored in lmdb.scan()]
    lmdb.close()
    return found


def test_without_apply_it_says_what_it_would_delete_and_deletes_nothing(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(store)
    found = run_json(capsys, "gc", store)
    assert [(doomed["run_id"], doomed["why"]) for doomed in found["runs"]] == [(f"old-000{n}", "age") for n in range(5)]
    assert (found["needed"], found["deleted"], found["applied"]) == (["child-0000"], 0, False)
    assert (found["ended"], found["expired"]) == ({"completed": 11, "failed": 2}, {"completed": 6})
    code, out, _ = run(capsys, "gc", store)
    assert code == 0
    assert "5 runs would be deleted; nothing was" in out
    assert "1 more whose parents still need their ends stay" in out
    assert names(store) == before


def test_with_apply_it_deletes_just_those(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(store)
    found = run_json(capsys, "gc", store, "--apply")
    assert (found["deleted"], found["applied"]) == (5, True)
    assert names(store) == [name for name in before if not name.startswith("old")]
    assert "nothing to delete" in run(capsys, "gc", store)[1]


def test_keep_changes_what_holds_for_an_ending(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "gc", store, "--keep", "completed=/2", "--keep", "failed=9d")
    assert [doomed["run_id"] for doomed in found["runs"] if doomed["why"] == "count"] == [
        *(f"old-000{n}" for n in range(5)),
        *(f"young-000{n}" for n in range(3)),
    ]
    assert [doomed["run_id"] for doomed in found["runs"] if doomed["why"] == "age"] == ["failed-0000", "failed-0001"]
    assert run_json(capsys, "gc", store, "--keep", "completed=forever")["runs"] == []


def test_a_run_that_is_damaged_stays(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(LmdbDisk(store), Table.RECORDS, "old-0003")
    found = run_json(capsys, "gc", store, "--apply")
    assert (found["unreadable"], found["deleted"]) == (["old-0003"], 4)
    assert "old-0003" in names(store)


def test_beside_a_daemon_it_looks_and_refuses_to_delete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = Daemon(tmp_path / "runs.store")
    try:
        assert run_json(capsys, "gc", daemon.store)["owner_pid"] == daemon.pid
        code, _, err = run(capsys, "gc", daemon.store, "--apply")
        assert code == 3
        assert f"owned by pid {daemon.pid}" in err
    finally:
        daemon.kill()


def test_where_there_is_no_store_none_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "gc", tmp_path / "nothing", "--apply")
    assert (code, (tmp_path / "nothing").exists()) == (3, False)
    assert "there is no store" in err


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("completed=7d/10000", Keep(7 * DAY_S, 10_000)),
        ("completed=90s", Keep(90.0)),
        ("completed=1.5h", Keep(5400.0)),
        ("completed=10m/3", Keep(600.0, 3)),
        ("completed=/100", Keep(None, 100)),
        ("completed=forever", FOREVER),
    ],
)
def test_what_keep_takes(text: str, keep: Keep) -> None:
    assert policy_of([text]).completed == keep


@pytest.mark.parametrize(
    "text", ["completed", "completed=", "completed=7", "stopped=7d", "running=1d", "completed=d", "x"]
)
def test_what_keep_refuses_with_an_example(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="completed=7d/10000"):
        policy_of([text])
    assert run(capsys, "gc", tmp_path, "--keep", text)[0] == 2
