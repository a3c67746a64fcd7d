"""`Toolbox`: registered tools by name; names that models or the palette cannot share are refused."""

from __future__ import annotations

from typing import Any

import pytest

from executus.actors.agents.errors import InvalidAgent
from executus.actors.agents.model import ToolSpec
from executus.actors.agents.tool import Tool, tool
from executus.actors.agents.toolbox import Toolbox


@tool(effect="pure")
def grep(pattern: str) -> str:
    """Find lines."""
    return pattern


def send(to: str) -> None: ...


def test_tools_are_found_by_name_and_plain_functions_become_unsafe_ones() -> None:
    toolbox = Toolbox([grep, send])
    assert toolbox["grep"] is grep
    assert toolbox["send"].effect == "unsafe"
    assert "grep" in toolbox
    assert "other" not in toolbox
    with pytest.raises(KeyError):
        toolbox["other"]


def test_specs_are_what_a_model_sees_in_the_order_asked_for_and_made_once() -> None:
    toolbox = Toolbox([grep, send])
    send_spec, grep_spec = toolbox.specs(["send", "grep"])
    assert grep_spec == ToolSpec("grep", "Find lines.", grep.parameters)
    assert send_spec.name == "send"
    assert toolbox.specs(("grep",))[0] is grep_spec
    assert toolbox.specs([]) == ()


def test_what_is_missing_is_told() -> None:
    assert Toolbox([grep]).missing(["b", "grep", "a", "b"]) == ["b", "a"]
    assert Toolbox().missing(["grep"]) == ["grep"]


@pytest.mark.parametrize("name", ["", "a b", "größe", "a" * 65, "grep\n", "<lambda>", "a.b", "\ud800"])
def test_a_name_that_providers_refuse_is_refused(name: str) -> None:
    misnamed = Tool.of(send, name=name) if name else nameless()
    with pytest.raises(InvalidAgent, match="models take names of 1 to 64 letters"):
        Toolbox([misnamed])


def nameless() -> Tool:
    def function() -> None: ...

    function.__name__ = ""
    return Tool.of(function)


@pytest.mark.parametrize("name", ["agent__x", "skill__x"])
def test_the_palettes_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidAgent, match="are those of agents and skills"):
        Toolbox([Tool.of(send, name=name)])


def test_the_longest_name_and_every_kind_of_letter_are_taken() -> None:
    assert "aZ9_-" + "x" * 59 in Toolbox([Tool.of(send, name="aZ9_-" + "x" * 59)])


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidAgent, match="two tools are named 'grep'"):
        Toolbox([grep, Tool.of(send, name="grep")])


@pytest.mark.parametrize("tools", ["grep", [7], [None]])
def test_what_is_no_tool_is_refused(tools: Any) -> None:
    with pytest.raises(InvalidAgent, match="a tool is made of a function"):
        Toolbox(tools)
