"""`Tool`: a typed function with a name, a description and an effect, still callable as the function that it is."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest

from executus.actors.agents.errors import InvalidAgent
from executus.actors.agents.tool import Tool, ToolContext, tool


@tool(effect="pure")
def grep(pattern: str, folder: str = ".") -> str:
    """Find lines that
    match a pattern.

    The second paragraph is for people.
    """
    return f"{pattern} in {folder}"


@tool
async def send_mail(to: str) -> None:
    """Send a mail."""


class Library:
    """Books."""

    def __init__(self, *titles: str) -> None:
        self.titles = titles

    def find(self, word: str) -> list[str]:
        """Titles with a word."""
        return [title for title in self.titles if word in title]

    async def lend(self, title: str, context: ToolContext) -> str:
        return title

    def __call__(self, at: int) -> str:
        """The title at a place."""
        return self.titles[at]


def test_a_declared_tool_has_name_description_and_effect_and_can_be_called_as_its_function() -> None:
    assert (grep.name, grep.effect, grep.is_async, grep.wants_context) == ("grep", "pure", False, False)
    assert grep.description == "Find lines that match a pattern."
    assert grep("a", folder="b") == "a in b"
    assert list(inspect.signature(grep).parameters) == ["pattern", "folder"]


def test_an_undeclared_effect_is_taken_for_unsafe() -> None:
    assert send_mail.effect == "unsafe"
    assert Tool.of(print_it).effect == "unsafe"
    assert send_mail.is_async


def print_it(text: str) -> None: ...


def test_name_and_description_may_be_given() -> None:
    named = tool(name="search", description="Looks for it.")(print_it)
    assert (named.name, named.description) == ("search", "Looks for it.")
    assert Tool.of(print_it).description == ""


def test_a_bound_method_is_a_tool() -> None:
    library = Library("a red book", "a blue one")
    find = Tool.of(library.find, effect="pure")
    assert (find.name, find.description, find.is_async) == ("find", "Titles with a word.", False)
    assert find.function(**find.bind('{"word": "red"}')) == ["a red book"]
    assert Tool.of(library.lend).is_async
    assert Tool.of(library.lend).wants_context


def test_a_callable_object_is_a_tool_once_it_is_named() -> None:
    library = Library("first")
    title = Tool.of(library, name="title")
    assert title.description == "The title at a place."
    assert title.function(**title.bind('{"at": 0}')) == "first"
    with pytest.raises(InvalidAgent, match=r"a tool of Library needs a name: Tool.of\(..., name=...\)"):
        Tool.of(library)


def test_what_a_partial_function_has_bound_is_hidden_from_the_model() -> None:
    positional = Tool.of(functools.partial(Library.find, Library("x", "y")))
    assert positional.name == "find"
    assert list(properties_of(positional)) == ["word"]

    by_name = Tool.of(functools.partial(grep.function, folder="/etc"))
    assert list(properties_of(by_name)) == ["pattern"]
    assert by_name.function(**by_name.bind('{"pattern": "a"}')) == "a in /etc"
    assert Tool.of(functools.partial(send_mail.function)).is_async


def properties_of(one: Tool) -> dict[str, Any]:
    return cast("dict[str, Any]", one.parameters["properties"])


def test_a_wrapped_function_keeps_its_parameters() -> None:
    @functools.wraps(print_it)
    def counted(*args: object, **kwargs: object) -> None:
        return print_it(*args, **kwargs)

    assert list(properties_of(Tool.of(counted))) == ["text"]


def test_a_tool_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        grep.effect = "unsafe"  # type: ignore[misc]


@pytest.mark.parametrize("what", [7, "grep", Library, grep, None])
def test_what_is_no_function_is_refused(what: Any) -> None:
    with pytest.raises(InvalidAgent, match="a tool is made of a function"):
        Tool.of(what)


def test_an_unknown_effect_is_refused() -> None:
    with pytest.raises(InvalidAgent, match="its effect is one of pure, idempotent, keyed, unsafe, not 'safe'"):
        Tool.of(print_it, effect=cast("Any", "safe"))


def yields(n: int) -> Iterator[int]:
    yield n


async def yields_too(n: int) -> AsyncIterator[int]:
    yield n


@pytest.mark.parametrize("function", [yields, yields_too])
def test_a_generator_is_refused(function: Any) -> None:
    with pytest.raises(InvalidAgent, match="it yields; a tool returns its result whole"):
        Tool.of(function)
