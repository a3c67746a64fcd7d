"""A function's parameters as a JSON schema, and a model's JSON text as its keyword arguments."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, cast

import msgspec

from executus.actors.agents.errors import InvalidAgent, ToolError
from executus.actors.agents.tool_context import ToolContext
from executus.actors.outcomes import UNDECODABLE, safe_text

_REF: Final = "#/$defs/"
_NOT_GIVEN: Final = object()
_REFUSED: Final = {
    inspect.Parameter.POSITIONAL_ONLY: "is positional-only, but a model names its arguments: remove the `/`",
    inspect.Parameter.VAR_POSITIONAL: "takes any number of arguments: make it a list with a name",
    inspect.Parameter.VAR_KEYWORD: "takes arguments of any name: name them, or take a dict",
}


@dataclass(frozen=True, slots=True, eq=False)
class ToolSignature:
    """What a tool takes.

    `parameters` is the schema of an object, complete in itself. `context` names the parameter that gets the
    ToolContext, if there is one; a model never sees it.
    """

    name: str
    parameters: Mapping[str, object]
    context: str | None
    decoder: msgspec.json.Decoder[msgspec.Struct]

    @classmethod
    def of(cls, function: Callable[..., Any], name: str) -> ToolSignature:
        """Read a function's signature. Raises InvalidAgent, with advice, for what a model cannot call."""
        hints, defaults = _parameters_of(function, name)
        contexts = [parameter for parameter, hint in hints.items() if _is_context(hint)]
        if len(contexts) > 1:
            raise InvalidAgent(f"tool {name!r}: one parameter takes the ToolContext, not {' and '.join(contexts)}")
        for parameter in contexts:
            del hints[parameter]
        # Fields are numbered and renamed, because a parameter may have a name that a Struct's field cannot have. What
        # is not given stays out of the call: the function's own defaults apply, mutable ones too.
        left_out = msgspec.field(default_factory=lambda: _NOT_GIVEN)
        fields = [
            (f"p{at}", hint, left_out) if parameter in defaults else (f"p{at}", hint)
            for at, (parameter, hint) in enumerate(hints.items())
        ]
        try:
            arguments = msgspec.defstruct(
                "Arguments",
                cast("list[tuple[str, type, Any]]", fields),
                rename={f"p{at}": parameter for at, parameter in enumerate(hints)},
                forbid_unknown_fields=True,
                kw_only=True,
            )
            decoder = msgspec.json.Decoder(arguments)
            parameters = _schema_of(arguments)
        except Exception as error:
            raise InvalidAgent(f"tool {name!r}: {_advice(error)}") from error
        properties = cast("dict[str, dict[str, object]]", parameters["properties"])
        for parameter in properties.keys() & defaults.keys():
            _add_default(properties[parameter], defaults[parameter])
        return cls(name, parameters, contexts[0] if contexts else None, decoder)

    def bind(self, arguments: str) -> dict[str, Any]:
        """Keyword arguments of a JSON text; empty text is `{}`. Raises ToolError, in words for the model."""
        try:
            # As bytes: a message of msgspec's counts in them.
            given = self.decoder.decode(arguments.encode() if arguments.strip() else b"{}")
        except RecursionError as error:
            raise self._refused("they are nested too deeply") from error
        except UnicodeEncodeError as error:
            raise self._refused("they are no valid Unicode: a surrogate stands alone") from error
        except UNDECODABLE as error:
            raise self._refused(safe_text(error)) from error
        except Exception as error:  # of a parameter's own type, which may check what it is given
            raise self._refused(f"{type(error).__name__}: {safe_text(error)}") from error
        values = zip(given.__struct_encode_fields__, msgspec.structs.astuple(given), strict=True)
        return {parameter: value for parameter, value in values if value is not _NOT_GIVEN}

    def _refused(self, why: str) -> ToolError:
        return ToolError(f"The arguments of {self.name} do not fit: {why}. Expected: {expected(self.parameters)}")


def expected(parameters: Mapping[str, object]) -> str:
    """What a schema asks for, on one line: `{"path": string, "limit"?: integer}`."""
    required = cast("list[str]", parameters.get("required", ()))
    properties = cast("dict[str, dict[str, Any]]", parameters["properties"])
    return (
        "{"
        + ", ".join(f'"{name}"{"" if name in required else "?"}: {_kind(one)}' for name, one in properties.items())
        + "}"
    )


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(msgspec.json.encode(value).decode() for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(_kind(one) for one in schema["anyOf"])
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        return f"array of {_kind(schema['items'])}"
    if "$ref" in schema:
        return cast("str", schema["$ref"]).removeprefix(_REF)
    return cast("str", schema.get("type", "anything"))


def _parameters_of(function: Callable[..., Any], name: str) -> tuple[dict[str, Any], dict[str, object]]:
    """The types of what can be given by name, and the defaults of what need not be. Raises InvalidAgent."""
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError) as error:
        raise InvalidAgent(f"tool {name!r}: its signature cannot be read: {error}. Wrap it in a function") from error
    given: Any = function
    for bound in given.keywords if isinstance(given, functools.partial) else ():
        del parameters[bound]
    for parameter in parameters.values():
        if parameter.kind in _REFUSED:
            raise InvalidAgent(f"tool {name!r}: parameter {parameter.name!r} {_REFUSED[parameter.kind]}")
        if parameter.annotation is parameter.empty:
            advice = "annotate it with its type, which becomes the schema that the model sees"
            if parameter.name in {"self", "cls"}:
                advice = "a method becomes a tool once it is bound: Tool.of(thing.method)"
            raise InvalidAgent(f"tool {name!r}: parameter {parameter.name!r} has no type: {advice}")
    try:
        hints = typing.get_type_hints(
            types.SimpleNamespace(__annotations__={one.name: one.annotation for one in parameters.values()}),
            globalns=getattr(inspect.unwrap(code_of(function)), "__globals__", {}),
            include_extras=True,
        )
    except Exception as error:
        raise InvalidAgent(
            f"tool {name!r}: its annotations cannot be resolved: {safe_text(error)}. Define and import the types of a "
            "tool's parameters at module level, not under TYPE_CHECKING"
        ) from error
    return hints, {one.name: one.default for one in parameters.values() if one.default is not one.empty}


def unbound(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind a partial one."""
    given: Any = function
    inner: Callable[..., Any] = given.func if isinstance(given, functools.partial) else given
    return inner


def code_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind a partial one or behind an object that can be called."""
    inner: Any = unbound(function)
    code: Callable[..., Any] = inner if inspect.isroutine(inner) else type(inner).__call__
    return code


def _is_context(hint: Any) -> bool:
    if typing.get_origin(hint) in {typing.Union, types.UnionType, Annotated}:
        return any(_is_context(one) for one in typing.get_args(hint))
    return hint is ToolContext


def _schema_of(arguments: type[msgspec.Struct]) -> dict[str, object]:
    """The schema of a Struct with its own object on top, where providers want it; other types are in `$defs`."""
    (top,), components = msgspec.json.schema_components([arguments], ref_template=_REF + "{name}")
    schema: dict[str, object] = components.pop(top["$ref"].removeprefix(_REF))
    del schema["title"]
    if components:
        schema["$defs"] = components
    return schema


def _add_default(schema: dict[str, object], default: object) -> None:
    try:
        schema["default"] = msgspec.json.decode(msgspec.json.encode(default))
    except Exception:  # noqa: BLE001 - of any type, whose encoding may raise anything; then the schema names none
        return


def _advice(error: Exception) -> str:
    text = str(error).strip().splitlines()[-1] if str(error) else type(error).__name__
    if "union" in text.lower():
        return f"{safe_text(text)}. Add tag=True to each class of the union"
    return (
        f"its parameters cannot be given as JSON: {safe_text(text)}. Use scalars, containers, Literal, enums, "
        "msgspec Structs, dataclasses; pass live resources by a bound method or functools.partial"
    )
