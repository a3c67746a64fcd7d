"""The tools that are registered, by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from executus.actors.agents.agent import AGENT, SKILL
from executus.actors.agents.errors import InvalidAgent
from executus.actors.agents.model import ToolSpec
from executus.actors.agents.tool import Tool

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class Toolbox:
    """Tools by name; a plain function becomes one, of effect unsafe.

    Raises InvalidAgent for two of one name, for a name that providers refuse, and for one of the palette's.
    """

    __slots__ = ("_specs", "_tools")

    def __init__(self, tools: Iterable[Tool | Callable[..., Any]] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for given in tools:
            tool = given if isinstance(given, Tool) else Tool.of(given)
            if not _NAME.fullmatch(tool.name):
                raise InvalidAgent(
                    f"tool {tool.name!r}: models take names of 1 to 64 letters, digits, _ and -. Give it one by name="
                )
            if tool.name.startswith((AGENT, SKILL)):
                raise InvalidAgent(f"tool {tool.name!r}: names with {AGENT} and {SKILL} are those of agents and skills")
            if tool.name in self._tools:
                raise InvalidAgent(f"two tools are named {tool.name!r}: give one of them another by name=")
            self._tools[tool.name] = tool
        self._specs = {one.name: ToolSpec(one.name, one.description, one.parameters) for one in self._tools.values()}

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    @property
    def names(self) -> list[str]:
        """All of them, as they were given."""
        return list(self._tools)

    def specs(self, names: Iterable[str]) -> tuple[ToolSpec, ...]:
        """The tools of these names as a model sees them, in this order. Raises KeyError; see `missing`."""
        return tuple(self._specs[name] for name in names)

    def missing(self, names: Iterable[str]) -> list[str]:
        """The names that no tool here has, in their order, each once."""
        return [name for name in dict.fromkeys(names) if name not in self._tools]
