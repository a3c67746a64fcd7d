"""The diagram cannot lie: import contracts, and what no file may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
SHIPPED = sorted(file for folder in ("actors", "stores") for file in (ROOT / folder).rglob("*.py"))

# Bytes from a store must never become code or a type of their own choosing; msgspec decodes into types known beforehand.
BANNED_MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
BANNED_CALLS = {
    "eval", "exec", "compile", "__import__",
    "importlib.import_module", "importlib.__import__", "pkgutil.resolve_name", "runpy.run_module", "runpy.run_path",
}  # fmt: skip

SLEEPS = {"time.sleep", "asyncio.sleep"}


def test_imports_follow_the_layers() -> None:
    # A child process: the linter edits sys.path and the logging configuration of whoever calls it.
    program = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    )
    command = [sys.executable, "-P", "-c", program]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "8 kept, 0 broken" in run.stdout, "a contract was added or lost: say so here as well\n" + run.stdout


def names_of_imports(tree: ast.AST) -> dict[str, str]:
    """Local name -> full name, for everything a file imports anywhere."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """`t.sleep` after `import time as t` -> `time.sleep`; empty for what is no dotted name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        prefix = full_name(node.value, names)
        return f"{prefix}.{node.attr}" if prefix else ""
    return ""


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "."


def dangers(source: str) -> list[str]:
    """Each way in which a file could turn stored bytes or stored names into code."""
    tree = ast.parse(source)
    names = names_of_imports(tree)
    found = [
        f"line {line}: imports {module}"
        for line, module in imported_modules(tree)
        if module.split(".")[0] in BANNED_MODULES or module == "."
    ]
    for node in ast.walk(tree):
        # The bare name counts too: `load = eval` is a call in waiting.
        if isinstance(node, ast.Name | ast.Attribute) and full_name(node, names) in BANNED_CALLS:
            found.append(f"line {node.lineno}: {full_name(node, names)}")
    return found


TYPED_NAMES = "actors/console/user_code.py"
"""Imports the module that `executus doctor --runs` was given on its command line."""


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_shipped_file_unpickles_evaluates_or_imports_by_stored_name(file: Path) -> None:
    found = [danger.partition(": ")[2] for danger in dangers(file.read_text(encoding="utf-8"))]
    assert found == (["importlib.import_module"] if str(file.relative_to(ROOT)) == TYPED_NAMES else [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import marshal as m",
        "from shelve import open",
        "eval('1')",
        "load = eval",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module as by_name\nby_name(stored)",
        "from . import errors",
    ],
)
def test_the_ban_sees_what_it_bans(source: str) -> None:
    assert dangers(source) != []


def test_the_ban_lets_re_compile_and_metadata_pass() -> None:
    assert dangers("import re, importlib.metadata\nre.compile('x')\nimportlib.metadata.version('executus')") == []


def naps(source: str) -> list[str]:
    """Where a test waits for time instead of facts.

    Inside a class it is the behaviour of a double (a run whose step blocks); sleep(0) lets others run and waits for nothing.
    """
    tree = ast.parse(source)
    names = names_of_imports(tree)
    found: list[str] = []

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.ClassDef):
            return
        if isinstance(node, ast.Call) and full_name(node.func, names) in SLEEPS:
            match node.args:
                case [ast.Constant(value=0)]:
                    pass
                case _:
                    found.append(
                        f"line {node.lineno}: {full_name(node.func, names)}: wait for a fact, tests.waiting.wait_until"
                    )
        for child in ast.iter_child_nodes(node):
            look(child)

    look(tree)
    return found


@pytest.mark.parametrize(
    "file",
    sorted([*TESTS.rglob("test_*.py"), *TESTS.rglob("conftest.py")]),
    ids=lambda file: str(file.relative_to(TESTS)),
)
def test_tests_wait_for_facts(file: Path) -> None:
    assert naps(file.read_text(encoding="utf-8")) == []


def test_the_nap_ban_sees_aliases_and_lets_doubles_block() -> None:
    assert naps("from time import sleep as nap\ndef test_x():\n    nap(0.5)") != []
    assert naps("import asyncio\nasync def test_x():\n    await asyncio.sleep(0)") == []
    assert naps("import time\nclass Blocks:\n    def step(self, state):\n        time.sleep(0.1)") == []
