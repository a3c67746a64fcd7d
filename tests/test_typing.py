"""The README's examples and the public surface, as a user's type checker sees them.

mypy and pyright come with `.[dev]`; without them these tests are skipped, `.ci/run` runs them.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "tests" / "typing"
NAMED_BLOCK = re.compile(r"^```python (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def readme_programs(tmp_path: Path) -> Path:
    """A folder with the README's named programs; the example for FastAPI's test client only where that is typed."""
    for name, text in NAMED_BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        if name != "test_app.py":
            (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is in .[dev]")
def test_mypy_strict_accepts_the_examples(tmp_path: Path) -> None:
    files = sorted(map(str, EXAMPLES.glob("*.py")))
    mypy = [sys.executable, "-P", "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), *files]
    run = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"no issues found in {len(files)} source file" in run.stdout


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is in .[dev]")
def test_pyright_strict_accepts_the_examples(tmp_path: Path) -> None:
    examples = shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    # `include` takes relative paths only; anything else is ignored with a warning and checks nothing.
    config = {"typeCheckingMode": "strict", "include": ["examples"]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    pyright = [sys.executable, "-P", "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run(pyright, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    report = json.loads(run.stdout)
    assert report["generalDiagnostics"] == [], run.stdout
    assert report["summary"]["filesAnalyzed"] == len(list(examples.glob("*.py")))


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is in .[dev]")
@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="FastAPI is in .[test]")
def test_mypy_strict_accepts_the_readmes_programs(readme_programs: Path) -> None:
    mypy = [sys.executable, "-P", "-m", "mypy", "--strict", "--cache-dir", str(readme_programs / "cache"), "."]
    run = subprocess.run(mypy, cwd=readme_programs, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is in .[dev]")
@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="FastAPI is in .[test]")
def test_pyright_strict_accepts_the_readmes_programs(readme_programs: Path) -> None:
    config = {"typeCheckingMode": "strict", "include": ["."]}
    (readme_programs / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    pyright = [sys.executable, "-P", "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run(pyright, cwd=readme_programs, capture_output=True, text=True, check=False, timeout=300)
    report = json.loads(run.stdout)
    assert report["generalDiagnostics"] == [], run.stdout
    assert report["summary"]["filesAnalyzed"] == len(list(readme_programs.glob("*.py"))) > 10
