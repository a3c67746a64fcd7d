"""The fixtures, in a pytest of their own: what they give, and that they fail what leaves anything alive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = 'pytest_plugins = ["executus.actors.testing.plugin"]\n'

RUNS = """
import asyncio, threading
import msgspec
from executus.actors import Done, Run, Wait, WaitExpired

class State(msgspec.Struct, frozen=True):
    n: int = 0

class Waits(Run[int, State, int]):
    def begin(self, n):
        return Wait(State(n), timeout_s=60 if n else None)
    def step(self, state):
        return Done(state.n)
    def receive(self, state, message: str | WaitExpired):
        return Done(state.n)
"""


def outcome(tmp_path: Path, test: str) -> tuple[int, str]:
    """The exit code and what pytest printed of one test file."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(RUNS + test)
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-W", "error"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    run = subprocess.run(
        [*command, "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    return run.returncode, run.stdout + run.stderr


def test_a_test_that_ends_what_it_began_passes(tmp_path: Path) -> None:
    code, text = outcome(
        tmp_path,
        """
def test_threads(runtime, tmp_path):
    opened = runtime(tmp_path / "runs.store", runs=[Waits])
    run = opened.start(Waits, 3)
    run.tell("go on")
    assert run.result(timeout_s=5) == 3

def test_virtual(runtime, virtual_clock):
    run = runtime(runs=[Waits]).start(Waits, 3)
    virtual_clock.advance(60)
    assert run.result() == 3

def test_crashes(crash_everywhere):
    report = crash_everywhere(lambda runtime: runtime.start(Waits, 3, run_id="r"), runs=[Waits])
    assert report.ended == "Completed(3)"
""",
    )
    assert code == 0, text
    assert "3 passed" in text


LEFT = {
    "runs": ("RUNTIME.start(Waits, 0, run_id='r')", "run 'r' (Waits)"),
    "threads": (
        "RUNTIME; threading.Thread(target=threading.Event().wait, name='left', daemon=True).start()",
        "thread 'left'",
    ),
    "loops": ("RUNTIME; LEFT.append(asyncio.new_event_loop())", "event loop <"),
    "files": ("RUNTIME; LEFT.append(open(tmp_path / 'left.txt', 'w'))", "left.txt (1)"),
}
if sys.platform != "linux":
    del LEFT["files"]  # only Linux tells what is open


def test_what_is_left_alive_fails_the_test_and_is_named_unless_it_is_meant(tmp_path: Path) -> None:
    lines = [
        "import executus.actors.testing.plugin as plugin",
        "plugin.LEFT_AFTER_S = 0.2",  # these are there for good
        "LEFT = []",
    ]
    for kind, (body, _) in LEFT.items():
        meant = {kind, "files"} if kind == "loops" else {kind}  # a loop has files of its own
        for name, options in (("left", ""), ("meant", f", may_leave={meant}")):
            code = body.replace("RUNTIME", f"runtime(runs=[Waits]{options})")
            lines += [f"def test_{kind}_{name}(runtime, tmp_path):", f"    {code}"]
    lines += ["def test_the_end():", "    [left.close() for left in LEFT]"]
    code, text = outcome(tmp_path, "\n".join(lines) + "\n")
    assert code == 1
    assert f"{len(LEFT) + 1 + len(LEFT)} passed, {len(LEFT)} errors" in text
    for kind, (_, named) in LEFT.items():
        assert f"ERROR at teardown of test_{kind}_left" in text
        assert named in text


def test_of_a_run_that_is_left_the_virtual_clock_tells_as_well(tmp_path: Path) -> None:
    test = "def test_it(virtual_clock, runtime):\n    runtime(runs=[Waits]).start(Waits, 3, run_id='r')\n"
    code, text = outcome(tmp_path, test)
    assert code == 1, text
    assert "run 'r' (Waits) waits for a message, at seq 1" in text


def test_nothing_is_loaded_unasked(tmp_path: Path) -> None:
    program = (
        "import sys; import executus.actors; assert not any('executus.actors.testing' in m for m in sys.modules);"
        "import executus.actors.testing; assert not any(m.split('.')[0] in ('pytest', '_pytest') for m in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
