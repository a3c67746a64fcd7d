"""A function's parameters as a schema, and a model's text as keyword arguments: always those, or a ToolError."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from executus.actors.agents.errors import InvalidAgent, ToolError
from executus.actors.agents.tool import Tool, ToolContext

if TYPE_CHECKING:
    from decimal import Decimal


class Place(msgspec.Struct, frozen=True):
    """Where."""

    name: str
    inside: Place | None = None


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Span:
    start: int
    stop: int


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    tricks: list[str]


class Wanted(msgspec.Struct):
    """Its own rule, broken with an error that is no ValueError."""

    key: str

    def __post_init__(self) -> None:
        {"known": 1}[self.key]


def search(
    pattern: Annotated[str, Meta(description="a regular expression", min_length=1)],
    limit: Annotated[int, Meta(ge=1, le=100)] = 10,
    *,
    at: Place | None = None,
    colours: Sequence[Colour] = (),
    mode: Literal["fast", "exact"] = "fast",
) -> str: ...


def test_the_schema_is_one_object_with_docs_bounds_and_defaults() -> None:
    schema = Tool.of(search).parameters
    assert schema == {
        "type": "object",
        "properties": {
            "pattern": {"type": "string", "description": "a regular expression", "minLength": 1},
            "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 10},
            "at": {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}], "default": None},
            "colours": {"type": "array", "items": {"$ref": "#/$defs/Colour"}, "default": []},
            "mode": {"enum": ["exact", "fast"], "default": "fast"},
        },
        "required": ["pattern"],
        "additionalProperties": False,
        "$defs": {
            "Colour": {"title": "Colour", "enum": ["blue", "red"]},
            "Place": {
                "title": "Place",
                "description": "Where.",
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "inside": {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}], "default": None},
                },
                "required": ["name"],
            },
        },
    }
    assert json.loads(json.dumps(schema)) == schema


def refs_in(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["$ref"]} if "$ref" in schema else set()
        return own.union(*map(refs_in, schema.values()))
    return set().union(*map(refs_in, schema)) if isinstance(schema, list) else set()


class Arguments(msgspec.Struct):
    """Named as the class that is generated."""

    text: str


def takes_arguments(arguments: Arguments, pets: list[Cat | Dog], span: Span) -> None: ...


def test_every_reference_of_a_schema_is_defined_in_it_whatever_the_types_are_called() -> None:
    schema = cast("dict[str, Any]", Tool.of(takes_arguments).parameters)
    assert list(schema["properties"]) == ["arguments", "pets", "span"]
    assert len(refs_in(schema)) == 4
    assert refs_in(schema) == {f"#/$defs/{name}" for name in schema["$defs"]}


def test_a_tool_without_parameters_takes_an_empty_object() -> None:
    def now() -> str: ...

    assert Tool.of(now).parameters == {
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": False,
    }
    assert Tool.of(now).bind("") == Tool.of(now).bind(" \n") == Tool.of(now).bind("{}") == {}


def test_arguments_are_decoded_as_the_parameters_types() -> None:
    def book(day: dt.date, span: Span, pets: list[Cat | Dog], at: Place, colour: Colour) -> None: ...

    arguments = {
        "day": "2024-02-29",
        "span": {"start": 1, "stop": 2},
        "pets": [{"type": "Dog", "tricks": ["sit"]}],
        "at": {"name": "a", "inside": {"name": "b"}},
        "colour": "red",
    }
    assert Tool.of(book).bind(json.dumps(arguments)) == {
        "day": dt.date(2024, 2, 29),
        "span": Span(1, 2),
        "pets": [Dog(["sit"])],
        "at": Place("a", Place("b")),
        "colour": Colour.RED,
    }


def test_what_the_model_leaves_out_is_left_to_the_functions_own_default() -> None:
    kept: list[str] = []

    def collect(text: str, into: list[str] = kept) -> None:
        into.append(text)

    one = Tool.of(collect)
    assert one.bind('{"text": "a"}') == {"text": "a"}
    one.function(**one.bind('{"text": "a"}'))
    assert kept == ["a"]


def test_a_default_that_json_cannot_hold_is_left_out_of_the_schema() -> None:
    marker: Any = object()

    def pick(value: int = marker) -> None: ...

    assert Tool.of(pick).parameters["properties"] == {"value": {"type": "integer"}}
    assert Tool.of(pick).bind("") == {}


def test_parameters_that_no_struct_field_could_be_called_work() -> None:
    def odd(self_: int, __struct_fields__: int, größe: int, __post_init__: str, _: bool) -> None: ...  # noqa: PLC2401

    given_ = {"self_": 1, "__struct_fields__": 2, "größe": 3, "__post_init__": "x", "_": True}
    assert Tool.of(odd).bind(json.dumps(given_)) == given_


def test_the_context_is_given_by_the_run_and_no_part_of_the_schema() -> None:
    def noted(text: str, this: ToolContext) -> None: ...
    def perhaps(this: Annotated[ToolContext | None, "the call"] = None) -> None: ...

    assert list(cast("Any", Tool.of(noted).parameters["properties"])) == ["text"]
    assert Tool.of(noted).signature.context == "this"
    assert Tool.of(perhaps).signature.context == "this"
    with pytest.raises(ToolError, match="unknown field `this`"):
        Tool.of(noted).bind('{"text": "a", "this": 1}')


def unresolved(amount: Decimal) -> None: ...
def untyped(text) -> None: ...  # type: ignore[no-untyped-def]
def positional(text: str, /) -> None: ...
def many(*texts: str) -> None: ...
def named(**texts: str) -> None: ...
def live(connection: Path) -> None: ...
def nested(paths: list[Callable[[], None]]) -> None: ...
def untagged(pet: Place | Arguments) -> None: ...
def two_contexts(a: ToolContext, b: ToolContext) -> None: ...
def bad_bound(n: Annotated[str, Meta(ge=1)]) -> None: ...


class WithMethod:
    def method(self, text: str) -> None: ...


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (
            unresolved,
            "tool 'unresolved': its annotations cannot be resolved: name 'Decimal' is not defined.*module level",
        ),
        (untyped, "tool 'untyped': parameter 'text' has no type: annotate it"),
        (WithMethod.method, r"parameter 'self' has no type: a method .* once it is bound: Tool.of\(thing.method\)"),
        (positional, "parameter 'text' is positional-only.*remove the `/`"),
        (many, "parameter 'texts' takes any number of arguments: make it a list"),
        (named, "parameter 'texts' takes arguments of any name: name them, or take a dict"),
        (live, "tool 'live': its parameters cannot be given as JSON: .*Path.*is not supported.*bound method"),
        (nested, "tool 'nested': its parameters cannot be given as JSON: .*Callable"),
        (untagged, "tool 'untagged': .*Add tag=True to each class of the union"),
        (two_contexts, "tool 'two_contexts': one parameter takes the ToolContext, not a and b"),
        (bad_bound, "tool 'bad_bound': its parameters cannot be given as JSON"),
    ],
)
def test_what_a_model_cannot_call_is_refused_at_its_definition_with_advice(function: Any, advice: str) -> None:
    with pytest.raises(InvalidAgent, match=advice):
        Tool.of(function)


def test_the_return_type_need_not_be_known() -> None:
    def priced(text: str) -> Decimal: ...

    assert Tool.of(priced).bind('{"text": "a"}') == {"text": "a"}


EXPECTED = (
    'Expected: {"pattern": string, "limit"?: integer, "at"?: Place | null, "colours"?: array of Colour, '
    '"mode"?: "exact" | "fast"}'
)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("{", "Input data was truncated"),
        ("pattern=a", "JSON is malformed: invalid character (byte 0)"),
        ("[]", "Expected `object`, got `array`"),
        ("null", "Expected `object`, got `null`"),
        ("{}", "Object missing required field `pattern`"),
        ('{"pattern": "a", "size": 1}', "Object contains unknown field `size`"),
        ('{"pattern": 1}', "Expected `str`, got `int` - at `$.pattern`"),
        ('{"pattern": ""}', "Expected `str` of length >= 1 - at `$.pattern`"),
        ('{"pattern": "a", "limit": 1000}', "Expected `int` <= 100 - at `$.limit`"),
        ('{"pattern": "a", "limit": "5"}', "Expected `int`, got `str` - at `$.limit`"),
        ('{"pattern": "a", "limit": 1e999}', "Number out of range - at `$.limit`"),
        ('{"pattern": "a", "at": {"name": "b", "inside": {}}}', "missing required field `name` - at `$.at.inside`"),
        ('{"pattern": "a", "colours": ["red", "green"]}', "Invalid enum value 'green' - at `$.colours[1]`"),
        ('{"pattern": "\ud800"}', "they are no valid Unicode: a surrogate stands alone"),
        ('{"pattern": "\\ud800"}', "Input data was truncated"),
        ('{"pattern": "a", "at": ' + '{"name": "b", "inside": ' * 20_000, "they are nested too deeply"),
        ('{"pattern": "a", "limit": ' + "9" * 10_000 + "}", "- at `$.limit`"),
    ],
)
def test_arguments_that_do_not_fit_are_told_to_the_model_with_what_is_expected(arguments: str, why: str) -> None:
    with pytest.raises(ToolError) as refused:
        Tool.of(search).bind(arguments)
    text = str(refused.value)
    assert text.startswith("The arguments of search do not fit: ")
    assert why in text
    assert text.endswith(EXPECTED)


def test_a_parameters_own_type_may_refuse_with_any_error() -> None:
    def fetch(wanted: Wanted) -> None: ...

    assert Tool.of(fetch).bind('{"wanted": {"key": "known"}}') == {"wanted": Wanted("known")}
    with pytest.raises(ToolError, match=r"KeyError: 'other'. Expected: \{\"wanted\": Wanted\}"):
        Tool.of(fetch).bind('{"wanted": {"key": "other"}}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["pattern", "limit", "at", "colours", "mode", "other"])
NEARLY = st.dictionaries(NAMES, JSON | st.sampled_from(["a", 5, {"name": "b"}, ["red"], "fast"]), max_size=5)
TEXTS = st.text(st.characters(codec=None)) | JSON.map(json.dumps) | NEARLY.map(json.dumps)


@given(TEXTS)
def test_any_text_is_keyword_arguments_or_a_tool_error(text: str) -> None:
    one = Tool.of(search)
    try:
        bound = one.bind(text)
    except ToolError as error:
        str(error).encode()  # storable
        return
    search(**bound)
    assert isinstance(bound["pattern"], str)
    assert 1 <= bound.get("limit", 1) <= 100


@given(
    st.text(min_size=1),
    st.integers(1, 100),
    st.sampled_from([None, Place("a"), Place("a", Place("b"))]),
    st.lists(st.sampled_from(Colour)),
)
def test_what_fits_arrives_as_it_was_meant(pattern: str, limit: int, at: Place | None, colours: list[Colour]) -> None:
    meant = {"pattern": pattern, "limit": limit, "at": at, "colours": colours}
    assert Tool.of(search).bind(msgspec.json.encode(meant).decode()) == meant
