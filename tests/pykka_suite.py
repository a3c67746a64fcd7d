"""Does pykka's own test suite pass with our classes in place of its own? `python -m tests.pykka_suite --download`

pykka's source distribution carries its tests. This unpacks it to a temporary folder, puts `Actor` and `ActorFuture` where
its tests take the runtime from, runs them there against the pykka that is installed, and compares what fails with
DIFFERENCES: where we differ on purpose, and why. Exit codes: 0 they are exactly those, 1 they are not, 2 it could not be
run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree as ET

import msgspec

RUN_TIMEOUT_S: Final = 300.0
TEST_TIMEOUT_S: Final = 20


class Difference(NamedTuple):
    """Why we differ, and which test of ours in tests/actors/test_differences_from_pykka.py says how."""

    reason: str
    shown_by: str


_NO_REGISTRY: Final = Difference(
    "no global registry: it costs O(n) an actor and keeps what could not start",
    "test_our_actors_are_in_no_registry_and_whoever_needs_a_list_keeps_one",
)
_BASE_EXCEPTION: Final = Difference(
    "what is no Exception ends the actor it happened in; pykka stops every actor of the process",
    "test_what_is_no_exception_ends_its_actor_alone_and_is_its_failure",
)

DIFFERENCES: Final = {
    "tests/test_actor.py::test_actor_has_an_uuid4_based_urn": Difference(
        "an urn is a number of this process, made when first asked for: most actors are never asked",
        "test_an_urn_is_a_number_of_this_process_and_made_when_asked_for",
    ),
    "tests/test_actor.py::test_on_start_is_called_after_the_actor_is_registered": _NO_REGISTRY,
    "tests/test_actor.py::test_all_actors_are_stopped_on_base_exception": _BASE_EXCEPTION,
    "tests/test_logging.py::test_base_exception_is_logged": _BASE_EXCEPTION,
    "tests/test_registry.py::test_actor_is_registered_when_started": _NO_REGISTRY,
    "tests/test_registry.py::test_actor_is_unregistered_when_stopped": _NO_REGISTRY,
    "tests/test_registry.py::test_all_actors_can_be_stopped_through_registry": _NO_REGISTRY,
    "tests/test_registry.py::test_actors_may_be_looked_up_by_class": _NO_REGISTRY,
    "tests/test_registry.py::test_actors_may_be_looked_up_by_superclass": _NO_REGISTRY,
    "tests/test_registry.py::test_actors_may_be_looked_up_by_class_name": _NO_REGISTRY,
    "tests/test_registry.py::test_actors_may_be_looked_up_by_urn": _NO_REGISTRY,
    "tests/test_registry.py::test_broadcast_sends_message_to_all_actors_if_no_target": _NO_REGISTRY,
    "tests/test_registry.py::test_broadcast_sends_message_to_all_actors_of_given_class": _NO_REGISTRY,
    "tests/test_registry.py::test_broadcast_sends_message_to_all_actors_of_given_class_name": _NO_REGISTRY,
}
"""Every test of pykka 4.5 that fails with our classes."""

# Behind pykka's own conftest.py, so that it replaces the fixture `runtime` there. `mocker` is pytest-mock's; the little
# that the tests use of it needs no plugin.
CONFTEST: Final = """

from unittest import mock as _mock

from executus.actors import Actor as _Actor
from executus.actors import ActorFuture as _ActorFuture


@pytest.fixture(scope="session")
def runtime():
    return Runtime("executus", _Actor, threading.Event, _ActorFuture, time.sleep)


@pytest.fixture
def mocker():
    class Mocker:
        Mock, MagicMock, NonCallableMock = _mock.Mock, _mock.MagicMock, _mock.NonCallableMock

        class patch:
            @staticmethod
            def object(*args, **kwargs):
                patcher = _mock.patch.object(*args, **kwargs)
                patchers.append(patcher)
                return patcher.start()

    patchers = []
    yield Mocker
    for patcher in reversed(patchers):
        patcher.stop()


def pytest_itemcollected(item):
    if "runtime" in item.fixturenames:
        item.user_properties.append(("uses", "our classes"))
"""


class CannotRun(Exception):
    """There is nothing to compare; the text says why."""


class Result(NamedTuple):
    """Of one test: whether it passed, and whether it uses our classes at all."""

    passed: bool
    ours: bool


class Verdict(msgspec.Struct, frozen=True):
    """What pykka's tests said, and how that compares with the list. Tests are named `tests/test_x.py::test_y`."""

    pykka: str
    passed: int
    passed_with_our_classes: int
    """The others that passed are about classes and functions that are not replaced."""
    failed: int
    on_purpose: dict[str, str]
    """Failed, and listed; the reason of each."""
    not_on_purpose: tuple[str, ...]
    """Failed, and not listed."""
    listed_but_passed: tuple[str, ...]
    listed_but_missing: tuple[str, ...]

    @property
    def as_expected(self) -> bool:
        """Whether exactly the listed ones failed."""
        return not (self.not_on_purpose or self.listed_but_passed or self.listed_but_missing)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.pykka_suite", description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--sdist", type=Path, metavar="FILE.tar.gz", help="pykka's source distribution")
    source.add_argument("--download", action="store_true", help="let pip fetch that of the installed version")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="pykka-suite-") as name:
        folder = Path(name)
        try:
            sdist = download(folder / "sdist") if options.download else options.sdist
            verdict = judge(run(unpack(sdist, folder / "unpacked"), folder / "report.xml"))
        except CannotRun as why:
            print(f"pykka's tests could not be run: {why}", file=sys.stderr)
            return 2
    print(msgspec.json.encode(verdict).decode() if options.json else text(verdict))
    return 0 if verdict.as_expected else 1


def download(folder: Path) -> Path:
    """The source distribution of the installed version, by pip. Raises CannotRun."""
    wanted = f"pykka=={importlib.metadata.version('pykka')}"
    pip = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", wanted]
    done = subprocess.run([*pip, "--dest", str(folder)], capture_output=True, text=True, check=False)
    found = list(folder.glob("pykka-*.tar.gz"))
    if done.returncode != 0 or len(found) != 1:
        raise CannotRun(f"pip could not download {wanted}:\n{done.stderr.strip()}")
    return found[0]


def unpack(sdist: Path, folder: Path) -> Path:
    """The unpacked distribution, with our runtime in its tests. Raises CannotRun."""
    try:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise CannotRun(f"{sdist}: {error}") from error
    tops = list(folder.iterdir())
    conftests = list(folder.glob("pykka-*/tests/conftest.py"))
    if len(tops) != 1 or len(conftests) != 1:
        raise CannotRun(f"{sdist}: no source distribution of pykka with its tests")
    installed = f"pykka-{importlib.metadata.version('pykka')}"
    if tops[0].name != installed:
        raise CannotRun(f"{sdist.name} holds the tests of {tops[0].name}; {installed} is installed")
    with conftests[0].open("a", encoding="utf-8") as conftest:
        conftest.write(CONFTEST)
    return tops[0]


def run(project: Path, report: Path) -> dict[str, Result]:
    """Every test by name. Raises CannotRun."""
    # In a process of its own: its package is called `tests`, as ours is. In its own order: a test of the registry leaves
    # an actor there.
    options = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(project)]
    limit = ["--timeout", str(TEST_TIMEOUT_S), "--timeout-method", "signal"]
    pytest = [sys.executable, "-P", "-m", "pytest", *options, *limit, f"--junit-xml={report}", "tests"]
    try:
        done = subprocess.run(pytest, cwd=project, capture_output=True, text=True, check=False, timeout=RUN_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise CannotRun(f"its tests did not end within {RUN_TIMEOUT_S:g} s") from error
    if done.returncode not in {0, 1}:
        raise CannotRun(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    results: dict[str, Result] = {}
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name']}"
        passed = not any(child.tag in {"failure", "error", "skipped"} for child in case)
        ours = case.find("properties/property[@name='uses']") is not None
        before = results.get(name, Result(passed=True, ours=False))  # an error of a fixture's end is a second entry
        results[name] = Result(passed and before.passed, ours or before.ours)
    return results


def judge(results: dict[str, Result]) -> Verdict:
    """Compare with the list."""
    failed = {name for name, result in results.items() if not result.passed}
    return Verdict(
        pykka=importlib.metadata.version("pykka"),
        passed=len(results) - len(failed),
        passed_with_our_classes=sum(result.passed and result.ours for result in results.values()),
        failed=len(failed),
        on_purpose={name: listed.reason for name, listed in DIFFERENCES.items() if name in failed},
        not_on_purpose=tuple(sorted(failed - DIFFERENCES.keys())),
        listed_but_passed=tuple(name for name in DIFFERENCES if name in results and name not in failed),
        listed_but_missing=tuple(name for name in DIFFERENCES if name not in results),
    )


def text(verdict: Verdict) -> str:
    """For people."""
    figures = f"{verdict.passed} passed ({verdict.passed_with_our_classes} use our classes), {verdict.failed} failed"
    lines = [f"pykka {verdict.pykka}'s tests with executus' actors: {figures}"]
    for reason in dict.fromkeys(verdict.on_purpose.values()):
        lines.append(f"on purpose: {reason}")
        lines += [f"    {name}" for name, why in verdict.on_purpose.items() if why == reason]
    lines += [f"NOT ON PURPOSE: {name}" for name in verdict.not_on_purpose]
    lines += [f"LISTED BUT PASSED: {name}" for name in verdict.listed_but_passed]
    lines += [f"LISTED BUT MISSING: {name}" for name in verdict.listed_but_missing]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
