"""What is shipped is what the folders hold: pyproject's list, the wheel and the folders agree, and bare names are refused."""

from __future__ import annotations

import ast
import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("actors", "stores")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS_NEEDED = 77


def shipped_files() -> set[str]:
    """Every file that an installation must have, by its path below site-packages."""
    sources = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return {
        f"executus/{path.relative_to(ROOT).as_posix()}"
        for path in sources
        if path.suffix in {".py", ".pyi"} or path.name == "py.typed"
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel, built from a clean copy: a second build in a dirty tree would ship deleted modules out of build/lib."""
    if int(importlib.metadata.version("setuptools").split(".")[0]) < SETUPTOOLS_NEEDED:
        pytest.skip(f"building the wheel needs setuptools>={SETUPTOOLS_NEEDED}: pip install '.[test]'")
    copy = tmp_path_factory.mktemp("clean")
    for name in ("pyproject.toml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    built = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(built), str(copy)]
    run = subprocess.run(build, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    (file,) = built.glob("*.whl")
    return zipfile.Path(file)


def contents(wheel: zipfile.Path) -> set[str]:
    return {name for name in wheel.root.namelist() if ".dist-info/" not in name and not name.endswith("/")}


def test_the_wheel_holds_exactly_the_files_of_the_folders(wheel: zipfile.Path) -> None:
    assert contents(wheel) == shipped_files()


def test_the_wheel_is_typed_and_leaves_the_namespace_open(wheel: zipfile.Path) -> None:
    assert {"executus/actors/py.typed", "executus/stores/py.typed"} <= contents(wheel)
    assert "executus/__init__.py" not in contents(wheel)


def test_the_wheel_says_pyprojects_version_extras_and_command(wheel: zipfile.Path) -> None:
    (dist_info,) = {name.split("/")[0] for name in wheel.root.namelist() if ".dist-info/" in name}
    metadata = Parser().parsestr(wheel.root.read(f"{dist_info}/METADATA").decode())
    project = PYPROJECT["project"]
    assert metadata["Version"] == project["version"]
    extras = set(metadata.get_all("Provides-Extra", []))
    assert extras == set(project["optional-dependencies"]) == {"cli", "llm", "test", "dev"}
    commands = wheel.root.read(f"{dist_info}/entry_points.txt").decode()
    assert "executus = executus.actors.console.main:main" in commands


def test_every_package_is_listed_and_every_listed_one_exists() -> None:
    folders = {file.parent.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    assert {"executus." + ".".join(folder.parts) for folder in folders} == set(
        PYPROJECT["tool"]["setuptools"]["packages"]
    )
    assert all((ROOT / folder / "__init__.py").exists() for folder in folders)


def test_the_version_is_written_once() -> None:
    for file in (ROOT / name for folder in FOLDERS for name in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [t.id for t in getattr(node, "targets", ()) if isinstance(t, ast.Name)]
            assert "__version__" not in names, f"{file}: ask importlib.metadata.version('executus')"


def refused(code: str, *, cwd: Path) -> str:
    """The last line on stderr of a Python that was started in `cwd` and had to fail."""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 1, run.stdout + run.stderr
    return run.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("folder", FOLDERS)
def test_importing_a_folder_by_its_bare_name_is_refused_with_one_clear_line(folder: str) -> None:
    line = refused(f"import {folder}", cwd=ROOT)
    assert line.startswith(f"ImportError: import 'executus.{folder}', not '{folder}'")


def test_a_module_below_a_bare_name_is_refused_as_well() -> None:
    assert "import 'executus.stores', not 'stores'" in refused("import stores.records", cwd=ROOT)


def test_the_root_itself_does_not_shadow_the_installed_package() -> None:
    code = "import executus.actors, executus.stores; print(executus.stores.__name__)"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stdout.strip()) == (0, "executus.stores"), run.stderr
