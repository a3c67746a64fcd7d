"""The smaller part of `decode_fuzz`, and that its canary sings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from executus.actors import RunStatus, SavePolicy
from executus.actors.events import RunSettled
from executus.actors.state_codec import StateCodec, plain_state
from executus.stores import LmdbStore, codec
from executus.stores.rows import Table
from tests.beside import Ended
from tests.doubles import rigged
from tests.harness.decode_fuzz import DIARY_PAGES, Diary, kept
from tests.harness.reports import program, reported
from tests.scenarios.harness import ROOT, bytes_of, environment, rows_of
from tests.waiting import wait_until


@program("decode_fuzz", 20_000, seeds=(1, 2))
def test_twenty_thousand_hostile_records_are_refused_by_typed_errors_in_bounded_memory_and_run_nothing(
    ended: list[Ended],
) -> None:
    report = reported(ended)
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


def test_a_state_that_names_one_journal_a_million_times_builds_it_once() -> None:
    pages = [b"\xa1%c\xd6\x4a\x00\x00\x00\x00" % letter for letter in b"ab"]
    twice = b"\x82\xa5pages\xd6\x4a\x00\x00\x00\x01\xa4more\x82" + b"".join(pages)
    state, _ = StateCodec(Diary, "Diary").load(kept(twice, DIARY_PAGES))
    assert state.more["a"] is state.more["b"]
    plain = plain_state(kept(twice, DIARY_PAGES))
    assert plain["more"]["a"] is plain["more"]["b"]


def test_a_run_with_policies_that_this_code_cannot_read_is_parked_and_the_others_start(store_path: Path) -> None:
    with rigged(LmdbStore(store_path, profile="process")) as rig:
        for run_id in ("newer", "other"):
            rig.waiting(run_id=run_id, save_policy=SavePolicy(every_s=0.5)).durable(10)
    record = codec.decode_record(bytes_of(store_path, Table.RECORDS, "newer")[b"newer"], b"newer")
    options = msgspec.msgpack.decode(record.options)
    options["save"]["added_later"] = True
    newer = msgspec.structs.replace(record, options=msgspec.msgpack.encode(options))
    with rows_of(store_path, Table.RECORDS) as (txn, database):
        txn.put(b"newer", codec.encode_record(newer, b"newer"), db=database)
    with rigged(LmdbStore(store_path, profile="process")) as rig:
        wait_until(lambda: rig.runtime.get("other").status().waiting, 10)
        (view,) = rig.runtime.runs(status=RunStatus.PARKED)
        assert view.run_id == "newer"
        (settled,) = rig.seen.of(RunSettled, "newer")
        assert "policies it was started with" in settled.reason
    with rows_of(store_path, Table.RECORDS) as (txn, database):
        assert codec.decode_record(txn.get(b"newer", db=database), b"newer") == newer
        txn.put(b"newer", codec.encode_record(record, b"newer"), db=database)
    with rigged(LmdbStore(store_path, profile="process")) as rig:
        wait_until(lambda: rig.runtime.get("newer").status().waiting, 10)
