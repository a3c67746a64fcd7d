"""Faults of ids and input, by the names that reliability.md gives them. Nothing is started, nothing is left behind."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from executus.actors import InvalidInput, InvalidRunId, RunExists, RunNotFound
from executus.stores import MAX_RECORD_BYTES, MAX_RUN_ID_BYTES, LmdbStore, MemoryStore
from tests.doubles import FailableRun, Told, rigged

BAD_IDS: dict[str, Any] = {
    "empty": "",
    "over 200 bytes": "x" * (MAX_RUN_ID_BYTES + 1),
    "over 200 bytes in UTF-8": "ä" * (MAX_RUN_ID_BYTES // 2 + 1),
    "NUL": "a\0b",
    "newline": "a\nb",
    "escape": "a\x1b[31m",
    "C1 control": "a\x9bb",
    "line separator": "a\u2028b",
    "lone surrogate": "a\ud800",
    "an int": 7,
    "bytes": b"r",
    "a list": ["r"],
}


@pytest.mark.parametrize("fault", BAD_IDS)
def test_a_bad_run_id_is_refused_before_any_state(fault: str) -> None:
    store = MemoryStore()
    with rigged(store) as rig:
        for verb in (
            lambda: rig.runtime.start(FailableRun, Told(), run_id=BAD_IDS[fault]),
            lambda: rig.runtime.start_many(
                FailableRun, {"good": Told(), BAD_IDS[fault]: Told()} if fault != "a list" else _many_with_a_list()
            ),
            lambda: rig.runtime.get(BAD_IDS[fault]),
            lambda: rig.runtime.resume(BAD_IDS[fault]),
        ):
            with pytest.raises(InvalidRunId) as caught:
                verb()  # type: ignore[operator]
            assert str(caught.value).isprintable()
        assert rig.runtime.runs() == []
        assert rig.world.calls == []


def _many_with_a_list() -> Any:
    raise InvalidRunId([], "a list is no key of a dict")


def test_the_longest_id_is_good() -> None:
    with rigged() as rig:
        assert rig.runtime.start(FailableRun, Told(), run_id="x" * MAX_RUN_ID_BYTES).result(10) == 0


@pytest.mark.parametrize("run_id", ["../x", "/etc/passwd", "a/../../b", "..", "%2e%2e/", "~"])
def test_an_id_is_never_a_path(run_id: str, store_path: Path) -> None:
    outside = {path for path in store_path.parent.parent.rglob("*") if store_path.parent not in path.parents}
    with rigged(LmdbStore(store_path, profile="process")) as rig:
        assert rig.runtime.start(FailableRun, Told(("ok",)), run_id=run_id).result(10) == 1
        assert rig.runtime.get(run_id).run_id == run_id
    inside = {path.name for path in store_path.parent.rglob("*")}
    assert not any("passwd" in name or name == "x" for name in inside)
    assert {path for path in store_path.parent.parent.rglob("*") if store_path.parent not in path.parents} == outside


def test_nfc_and_nfd_spell_the_same_run() -> None:
    nfc, nfd = "café", unicodedata.normalize("NFD", "café")
    assert nfc != nfd
    with rigged() as rig:
        assert rig.runtime.start(FailableRun, Told(("ok",)), run_id=nfd).run_id == nfc
        with pytest.raises(RunExists):
            rig.runtime.start(FailableRun, Told(), run_id=nfc)
        assert rig.runtime.get(nfd).result(10) == rig.runtime.get(nfc).result(10) == 1
        handles = rig.runtime.start_many(FailableRun, {nfc: Told(), nfd: Told()}, if_exists="return")
        assert [handle.result(10) for handle in handles] == [1, 1]


def cycle() -> Any:
    items: list[Any] = []
    items.append(items)
    return items


BAD_INPUTS: dict[str, Any] = {
    "of another type": 7,
    "None": None,
    "a field of another type": Told(steps=(1,)),  # type: ignore[arg-type]
    "a 65-bit int": Told(ballast=1 << 65),  # type: ignore[arg-type]
    "a lone surrogate": Told(ballast="\ud800"),
    "an unknown type": Told(ballast=object()),  # type: ignore[arg-type]
    "a cycle": Told(steps=cycle()),
    "over the cap": Told(ballast="x" * MAX_RECORD_BYTES),
}


@pytest.mark.parametrize("fault", BAD_INPUTS)
def test_an_input_that_does_not_fit_is_refused_and_nothing_is_started(fault: str) -> None:
    with rigged() as rig:
        with pytest.raises(InvalidInput, match="Nothing was started"):
            rig.runtime.start(FailableRun, BAD_INPUTS[fault], run_id="r")
        with pytest.raises(RunNotFound):
            rig.runtime.get("r")
        assert rig.runtime.runs() == []


def test_an_input_over_the_cap_is_refused_with_both_sizes() -> None:
    with rigged() as rig, pytest.raises(InvalidInput, match=r"takes \d{8} bytes, the cap is \d{8}"):
        rig.runtime.start(FailableRun, BAD_INPUTS["over the cap"])


def test_existing_ids_follow_if_exists_and_a_word_it_does_not_know_is_refused() -> None:
    with rigged() as rig:
        rig.waiting()
        with pytest.raises(ValueError, match="if_exists takes"):
            rig.runtime.start(FailableRun, Told(), run_id="r", if_exists="overwrite")  # type: ignore[arg-type]
        with pytest.raises(RunExists, match="if_exists='return'"):
            rig.runtime.start(FailableRun, Told(), run_id="r")


def test_labels_over_their_number_are_refused_and_nothing_is_started() -> None:
    with rigged() as rig:
        with pytest.raises(ValueError, match="label"):
            rig.runtime.start(FailableRun, Told(), run_id="r", labels={str(n): "" for n in range(65)})
        assert (
            rig.runtime.start(FailableRun, Told(("ok",)), run_id="r", labels={str(n): "" for n in range(64)}).result(10)
            == 1
        )
