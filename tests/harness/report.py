"""What a program of the harness hands back."""

from __future__ import annotations

import msgspec


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run of one program.

    `promise` are the numbers of the promises that it proves. `count` is how many trials were made, `failures` has a
    sentence for each that broke a promise. `figures` are what was counted and measured. `skipped` says why nothing
    could be tried on this machine; it is empty otherwise.
    """

    name: str
    promise: tuple[int, ...]
    count: int
    failures: tuple[str, ...]
    figures: dict[str, float | int | str]
    took_s: float
    skipped: str = ""

    @property
    def kept(self) -> bool:
        """Was everything tried, and nothing broken?"""
        return not self.failures and not self.skipped

    def text(self) -> str:
        """For a reader at a terminal."""
        promises = ", ".join(map(str, self.promise))
        lines = [f"{self.name}: promise {promises}, {self.count} trials in {self.took_s:.1f} s"]
        if self.skipped:
            lines.append(f"  skipped: {self.skipped}")
        width = max(map(len, self.figures), default=0)
        lines += [f"  {name:<{width}}  {_shown(value)}" for name, value in self.figures.items()]
        lines += [f"  BROKEN: {failure}" for failure in self.failures]
        if self.kept:
            lines.append("  kept")
        return "\n".join(lines)


def _shown(value: float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
