"""The one place that imports by name: what whoever typed the command named, and nothing that stands in a store."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from executus.actors.console.failures import CommandFailed, ExitCode
from executus.actors.definition import Registry
from executus.actors.outcomes import safe_text
from executus.actors.policies import Policies


def load_runs(name: str) -> Registry:
    """Import `module:attribute`, from the current folder as well, and register what it lists. Raises CommandFailed."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise CommandFailed(ExitCode.USAGE, f"--runs {name!r}: give module:NAME, the list that your Runtime is given.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        runs: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            runs = getattr(runs, part)
        return Registry(runs, Policies())
    except Exception as error:  # whatever a user's module raises when it is imported
        raise CommandFailed(
            ExitCode.USAGE, f"--runs {name!r} cannot be used: {type(error).__name__}: {safe_text(error)}"
        ) from error
