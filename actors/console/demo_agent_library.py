"""What the demo's agents know of a folder of text files: where a text stands in it, and what they make of that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

MOST: Final = 3
"""So many files are named."""
QUOTE_CHARS: Final = 80


class Place(msgspec.Struct, frozen=True):
    """A file in which the text stands: in so many lines, the first of them this one, counted from 1."""

    file: str
    lines: int
    first: int


class Hits(msgspec.Struct, frozen=True):
    """In how many lines of how many files the text stands, and in which it stands most often."""

    lines: int
    files: int
    most: tuple[Place, ...]


class Claim(msgspec.Struct, frozen=True):
    """A place, and what stands there."""

    place: Place
    quote: str


class Finding(msgspec.Struct, frozen=True):
    """Hits with quotations: the librarian's answer."""

    hits: Hits
    claims: tuple[Claim, ...]


class Library(msgspec.Struct, frozen=True):
    """A folder, and the paths in it that count."""

    folder: str
    files: tuple[str, ...]

    def grep(self, text: str) -> Hits:
        """Every line of every file is looked at."""
        places = [place for file in self.files if (place := self._place(file, text)) is not None]
        most = sorted(places, key=lambda place: (-place.lines, place.file))[:MOST]
        return Hits(sum(place.lines for place in places), len(places), tuple(most))

    def line(self, file: str, number: int) -> str:
        """A line without the spaces around it, cut where it is long. Raises LookupError."""
        if file not in self.files:
            raise LookupError(f"there is no file {file!r}")
        for at, line in enumerate(self._lines(file), 1):
            if at == number:
                return line.strip()[:QUOTE_CHARS]
        raise LookupError(f"{file!r} has no line {number}")

    def finding(self, text: str) -> Finding:
        """All of it, in a plain loop: what the agents must come to."""
        hits = self.grep(text)
        return Finding(hits, tuple(Claim(place, self.line(place.file, place.first)) for place in hits.most))

    def _place(self, file: str, text: str) -> Place | None:
        found = [number for number, line in enumerate(self._lines(file), 1) if text in line]
        return Place(file, len(found), found[0]) if found else None

    def _lines(self, file: str) -> Iterator[str]:
        with Path(self.folder, file).open(encoding="utf-8", errors="replace") as lines:
            yield from lines


def report_of(text: str, files: int, finding: Finding, right: int) -> str:
    """The report that is asked for; so many of its quotations were found to be right."""
    hits = finding.hits
    most = [
        f"{number}. {claim.place.file}: {claim.place.lines}, the first in line {claim.place.first}: {claim.quote}"
        for number, claim in enumerate(finding.claims, 1)
    ]
    return "\n".join(
        (
            f"{text!r} stands in {hits.lines} lines of {hits.files} of {files} files. Most often in",
            *most,
            f"Of {len(finding.claims)} quotations the editor found {right} to be right.",
        )
    )
