"""A phase's prompt: `${name}` and nothing else is replaced; a bare `$` stays text. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PLACE = re.compile(r"\$\{([^{}]*)\}")


def names_in(template: str) -> list[str]:
    """The names that a template wants, in order, each as often as it stands there."""
    return [match[1] for match in _PLACE.finditer(template)]


def rendered(template: str, values: Mapping[str, object]) -> str:
    """The template with its places filled; what is filled in is not looked at again. Raises KeyError."""
    return _PLACE.sub(lambda match: str(values[match[1]]), template)
