"""Programs run as anybody runs them, in processes of their own, for the tests."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from tests.beside import Ended
from tests.harness.report import Report


def program(name: str, count: int, seeds: Sequence[int] = (1,)) -> pytest.MarkDecorator:
    """Runs `count` trials of a program for a test; with several seeds an equal part under each of them, side by side."""
    part = count // len(seeds)
    return pytest.mark.programs(*(f"-m tests.harness {name} --count {part} --seed {seed} --json" for seed in seeds))


def reported(ended: Sequence[Ended]) -> Report:
    """What the parts said. Figures are added up; of the most of anything the largest is kept."""
    parts = [_report(process) for process in ended]
    figures = dict(parts[0].figures)
    for part in parts[1:]:
        for name, figure in part.figures.items():
            before = figures.get(name, 0)
            figures[name] = max(before, figure) if name.startswith("most ") else before + figure  # type: ignore[operator, type-var]
    return Report(
        name=parts[0].name,
        promise=parts[0].promise,
        count=sum(part.count for part in parts),
        failures=tuple(failure for part in parts for failure in part.failures),
        figures=figures,
        took_s=max(part.took_s for part in parts),
        skipped=parts[0].skipped,
    )


def _report(process: Ended) -> Report:
    try:
        return msgspec.json.decode(process.out, type=Report)
    except msgspec.MsgspecError:
        raise AssertionError(f"it ended with {process.code}: {process.out}{process.err}") from None
