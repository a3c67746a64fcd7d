"""Where the command writes: rich where it is installed, plain text where not, and nothing but JSON with `--json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from executus.actors.outcomes import escape

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_BAR_CHARS: Final = 40


class Screen(Protocol):
    """Takes texts of any origin: control characters come out escaped, markup as it stands."""

    def say(self, text: str) -> None:
        """A line."""
        ...

    def progress(self, share: float, note: str) -> None:
        """How far a long work is, 0 to 1."""
        ...

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; without heads if they are empty."""
        ...

    def close(self) -> None:
        """Take the progress bar away."""
        ...


def screen_for(*, as_json: bool) -> Screen:
    """The best screen there is."""
    if as_json:
        return SilentScreen()
    if not sys.stdout.isatty():
        return PlainScreen()  # for files and pipes: a row a line, however wide
    try:
        return RichScreen()
    except ImportError:
        return PlainScreen()


class SilentScreen:
    """Says nothing: the JSON object is the only thing on stdout."""

    def say(self, text: str) -> None:
        """See Screen."""

    def progress(self, share: float, note: str) -> None:
        """See Screen."""

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """See Screen."""

    def close(self) -> None:
        """See Screen."""


class PlainScreen:
    """Plain text. The bar is one line that is drawn over itself, and only on a terminal."""

    def __init__(self) -> None:
        self._drawn = ""

    def say(self, text: str) -> None:
        """See Screen."""
        self.close()
        print(escape(text), flush=True)

    def progress(self, share: float, note: str) -> None:
        """See Screen."""
        if not sys.stdout.isatty():
            return
        full = round(share * _BAR_CHARS)
        line = f"[{'#' * full}{'.' * (_BAR_CHARS - full)}] {share:4.0%} {escape(note)}"
        if line != self._drawn:
            print(f"\r{line:<{len(self._drawn)}}", end="", flush=True)
            self._drawn = line

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """See Screen."""
        self.close()
        cells = [[escape(cell) for cell in row] for row in ([heads] if heads else []) + list(rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        sys.stdout.flush()

    def close(self) -> None:
        """See Screen."""
        if self._drawn:
            print(f"\r{'':<{len(self._drawn)}}\r", end="", flush=True)
            self._drawn = ""


class RichScreen:
    """rich's tables and progress bar. Raises ImportError where rich is not installed."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - an extra; the plain screen is the other way

        self._console = Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        """See Screen."""
        self._console.print(self._text(text))

    def progress(self, share: float, note: str) -> None:
        """See Screen."""
        if not self._console.is_terminal:
            return
        bar, task = self._bar, self._task
        if bar is None or task is None:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn  # noqa: PLC0415

            columns = (
                BarColumn(_BAR_CHARS),
                TaskProgressColumn(),
                TextColumn("{task.description}", markup=False),
            )
            self._bar = bar = Progress(*columns, console=self._console, transient=True)
            self._task = task = bar.add_task("", total=1.0)
            bar.start()
        bar.update(task, completed=share, description=escape(note))

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """See Screen."""
        from rich import box  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        self.close()
        table = Table(box=box.ROUNDED if not heads else box.SIMPLE_HEAD, show_header=bool(heads))
        for head in heads or [""] * len(rows[0] if rows else ()):
            table.add_column(head, overflow="fold")
        for row in rows:
            table.add_row(*map(self._text, row))
        self._console.print(table, soft_wrap=False)

    def close(self) -> None:
        """See Screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    @staticmethod
    def _text(text: str) -> Any:
        from rich.text import Text  # noqa: PLC0415

        return Text(escape(text))
