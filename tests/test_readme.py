"""The README is true: every Python block runs as a program, prints what it shows, and every name and default in it exists.

A block is fenced as ```python, or ```python NAME.py, under which name later blocks import it. What it prints is shown by
`# -> …` comments or by a ```text block right behind it, and must be exactly that. A comment `<!-- SIGTERM after: TEXT -->`
before a block ends the program so, once it has printed TEXT.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

import executus.actors
import executus.stores
from executus.actors import Backoff, RestartPolicy, SavePolicy, StopPolicy, events

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
HANG_S = 60.0
PYTEST = ["-q", "--no-header", "--no-summary", "-p", "no:randomly", "-p", "no:cacheprovider", "--rootdir", ".", "-c", "/dev/null"]

FENCE = re.compile(
    r"(?:^<!-- SIGTERM after: (?P<cue>.+?) -->\n)?^```(?P<kind>\w*)(?: (?P<name>\S+))?\n(?P<text>.*?)^```\n", re.M | re.S
)


class Block(NamedTuple):
    """A fenced block; `line` is that of its fence in the README."""

    kind: str
    name: str | None
    text: str
    line: int
    cue: str | None
    shown: str | None

    def __str__(self) -> str:
        return self.name or f"line-{self.line}"


def blocks() -> list[Block]:
    found = list(FENCE.finditer(README))
    behind = {m.start(): m for m in found}
    result: list[Block] = []
    for match in found:
        follower = behind.get(match.end() + 1)
        shown = follower["text"] if follower is not None and follower["kind"] == "text" else None
        line = README.count("\n", 0, match.start("kind")) + 1
        result.append(Block(match["kind"], match["name"], match["text"], line, match["cue"], shown))
    return result


BLOCKS = blocks()
PROGRAMS = [block for block in BLOCKS if block.kind == "python"]


def expected_output(block: Block) -> str:
    """What the block shows: the text behind it, or its `# ->` comments in order."""
    if block.shown is not None:
        return block.shown
    return "".join(f"{line}\n" for line in re.findall(r"# -> (.*)$", block.text, re.M))


def is_a_test(block: Block) -> bool:
    """Whether pytest runs it."""
    return (block.name or "").startswith("test_")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a block runs: every named block before it as a file, a folder of three books, and an inbox with one folder."""
    for block in PROGRAMS:
        if block.name is not None:
            (tmp_path / block.name).write_text(block.text, encoding="utf-8")
    for parent in (tmp_path / "books", tmp_path / "inbox" / "monday"):
        parent.mkdir(parents=True)
        for number in (1, 2, 3):
            (parent / f"{number}.txt").write_text("call me ishmael\n" * 10 * number, encoding="utf-8")
    return tmp_path


def run_program(block: Block, folder: Path) -> tuple[int, str, str]:
    """Run it in `folder` to its end; with a cue, SIGTERM it when that was printed. Exit code, stdout, stderr."""
    file = folder / (block.name or "program.py")
    file.write_text(block.text, encoding="utf-8")
    # -P: the clone's own folders must not be importable by chance; the examples' folder is put there on purpose.
    code = f"import sys, runpy; sys.path.insert(0, {str(folder)!r}); runpy.run_path({str(file)!r}, run_name='__main__')"
    # Starlette's test client wants a successor of httpx that FastAPI's own documentation does not name yet.
    warnings = ["-W", "error", "-W", "ignore:Using `httpx` with"]
    if is_a_test(block):
        code = f"import sys, pytest; sys.path.insert(0, {str(folder)!r}); sys.exit(pytest.main({[*PYTEST, str(file)]!r}))"
    command = [sys.executable, "-P", "-X", "dev", *warnings, "-c", code]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(HANG_S, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            printed = ""
            while block.cue is not None and block.cue not in printed:
                line = process.stdout.readline()
                if not line:
                    break
                printed += line
            if block.cue is not None:
                process.send_signal(signal.SIGTERM)
            rest, errors = process.communicate()
        finally:
            watchdog.cancel()
            watchdog.join()
    return process.returncode, printed + rest, errors


def test_the_readme_has_python_blocks() -> None:
    assert len(PROGRAMS) > 12
    assert {block.kind for block in BLOCKS} <= {"python", "text", "sh"}, "a block of a kind that nothing checks"
    assert README.count("\n```") == 2 * len(BLOCKS), "a fence that the pattern did not find"


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_a_block_runs_and_prints_what_it_shows(block: Block, folder: Path) -> None:
    code, output, errors = run_program(block, folder)
    assert code == 0, f"README.md line {block.line}:\n{output}{errors}"
    if is_a_test(block):
        return  # pytest has said that its asserts hold
    assert output == expected_output(block), f"README.md line {block.line}\n{errors}"
