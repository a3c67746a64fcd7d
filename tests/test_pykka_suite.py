"""The program that runs pykka's own tests: it tells exactly the listed failures from any other."""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
import tarfile
from pathlib import Path

import pytest

from tests import pykka_suite

TOP = f"pykka-{importlib.metadata.version('pykka')}"
LISTED, *OTHERS_LISTED = pykka_suite.DIFFERENCES

CONFTEST = """
import threading, time
from dataclasses import dataclass
import pytest

@dataclass
class Runtime:
    name: str
    actor_class: type
    event_class: type
    future_class: type
    sleep_func: object

@pytest.fixture(scope="session")
def runtime():
    raise AssertionError("was not replaced")
"""

GOOD = """
def test_it_is_our_runtime(runtime, mocker):
    assert runtime.actor_class.__module__ == runtime.future_class.__module__ == "executus.actors.actor"
    ref = runtime.actor_class.start()
    mocker.patch.object(runtime.actor_class, "on_receive", new=mocker.Mock(return_value=3))
    assert ref.ask("?") == 3
    ref.stop()

def test_it_is_about_something_else(): pass
"""

BAD = "def test_it(runtime): assert runtime.name == 'another'\n"


def sdist(folder: Path, *, listed_fail: bool = True, top: str = TOP, **more: str) -> Path:
    """A source distribution whose listed tests are there, and fail or not; `more` are test files by name."""
    files = {"conftest": CONFTEST, "__init__": "", "test_good": GOOD, **more}
    for test in pykka_suite.DIFFERENCES:
        path, name = test.split("::")
        body = f"def {name}(): assert {not listed_fail}\n"
        files[Path(path).stem] = files.get(Path(path).stem, "") + body
    path = folder / f"{top}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for stem, text in files.items():
            member = tarfile.TarInfo(f"{top}/tests/{stem}.py")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def judged(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, pykka_suite.Verdict]:
    code = pykka_suite.main(["--sdist", str(file), "--json"])
    return code, pykka_suite.Verdict(**json.loads(capsys.readouterr().out))


def test_it_is_content_when_exactly_the_listed_tests_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, verdict = judged(sdist(tmp_path), capsys)
    assert code == 0
    assert (verdict.passed, verdict.failed) == (2, len(pykka_suite.DIFFERENCES))
    assert verdict.passed_with_our_classes == 1
    assert verdict.on_purpose.keys() == pykka_suite.DIFFERENCES.keys()


def test_the_readme_says_how_many_differ() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (total, passed, others) = re.findall(r"own (\d+)\ntests (\d+) pass so; the (\d+) others", readme)[0]
    assert int(total) == int(passed) + int(others)
    assert int(others) == len(pykka_suite.DIFFERENCES)


def test_a_failure_that_is_not_listed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, verdict = judged(sdist(tmp_path, test_bad=BAD), capsys)
    assert code == 1
    assert list(verdict.not_on_purpose) == ["tests/test_bad.py::test_it"]


def test_a_listed_test_that_passes_or_is_gone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, verdict = judged(sdist(tmp_path, listed_fail=False), capsys)
    assert code == 1
    assert list(verdict.listed_but_passed) == list(pykka_suite.DIFFERENCES)
    gone = pykka_suite.judge(dict.fromkeys(OTHERS_LISTED, pykka_suite.Result(passed=False, ours=True)))
    assert gone.listed_but_missing == (LISTED,)
    assert not gone.as_expected
    assert f"LISTED BUT MISSING: {LISTED}" in pykka_suite.text(gone)


def test_what_is_no_source_distribution_of_the_installed_version_cannot_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.tar.gz").write_bytes(b"no archive")
    for file, why in [
        (tmp_path / "no.tar.gz", "no.tar.gz"),
        (tmp_path / "none.tar.gz", "none.tar.gz"),
        (sdist(tmp_path, top="pykka-1.0"), "is installed"),
        (sdist(tmp_path, top="else-1.0"), "no source distribution"),
        (sdist(tmp_path, test_broken="syntax error"), "pytest ended with"),
    ]:
        assert pykka_suite.main(["--sdist", str(file)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert why in printed.err
