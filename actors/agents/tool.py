"""A tool: a typed Python function that a model may call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, ParamSpec, Self, TypeVar, get_args, overload

from executus.actors.agents.errors import InvalidAgent
from executus.actors.agents.tool_context import ToolContext
from executus.actors.agents.tool_signature import ToolSignature, code_of, unbound
from executus.actors.outcomes import safe_text

__all__ = ["Effect", "Tool", "ToolContext", "ToolFunction", "tool"]

P = ParamSpec("P")
R = TypeVar("R")

Effect = Literal["pure", "idempotent", "keyed", "unsafe"]
"""What a call leaves behind, and so what becomes of one that a crash interrupted.

`pure`: nothing; it may also run beside others. `idempotent`: the same as once, however often. `keyed`: once for each
`context.idempotency_key`. These three run again. `unsafe`: once more each time; it never runs again by itself.
"""
EFFECTS: Final[tuple[str, ...]] = get_args(Effect)


@dataclass(frozen=True, slots=True, eq=False)
class Tool:
    """A function with a name, a description and a JSON schema for the model, and its effect. Made by `of` or `@tool`.

    `def` runs on a worker thread and may block, `async def` on the event loop. A parameter annotated `ToolContext` gets
    that; the model sees the others. What the function returns becomes the result's text, what it raises an error that
    the model sees.
    """

    name: str
    description: str
    effect: Effect
    is_async: bool
    function: Callable[..., Any]
    signature: ToolSignature

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        *,
        effect: Effect = "unsafe",
        name: str | None = None,
        description: str | None = None,
    ) -> Self:
        """A tool of a function, bound method, partial function or callable object.

        Its name is the function's, its description the first paragraph of the docstring, its effect the worst that it
        may be. Raises InvalidAgent for a signature that a model cannot call.
        """
        given: Any = function
        if isinstance(given, Tool | type) or not callable(given):
            raise InvalidAgent(f"a tool is made of a function, not of {safe_text(function)}")
        code = code_of(function)
        name = name or getattr(unbound(function), "__name__", None)
        if name is None:
            raise InvalidAgent(f"a tool of {type(function).__qualname__} needs a name: Tool.of(..., name=...)")
        if effect not in EFFECTS:
            raise InvalidAgent(f"tool {name!r}: its effect is one of {', '.join(EFFECTS)}, not {effect!r}")
        if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
            raise InvalidAgent(f"tool {name!r}: it yields; a tool returns its result whole")
        if description is None:
            description = _first_paragraph(inspect.getdoc(code) or "")
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(code)
        return cls(name, description, effect, is_async, function, ToolSignature.of(function, name))

    @property
    def parameters(self) -> Mapping[str, object]:
        """The JSON schema of its arguments."""
        return self.signature.parameters

    @property
    def wants_context(self) -> bool:
        """Whether one of its parameters is the ToolContext."""
        return self.signature.context is not None

    def bind(self, arguments: str) -> dict[str, Any]:
        """A model's JSON text as keyword arguments, the context's not among them. Raises ToolError and nothing else."""
        return self.signature.bind(arguments)


class ToolFunction(Tool, Generic[P, R]):
    """A tool that can still be called as the function that it is."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function."""
        result: R = self.function(*args, **kwargs)
        return result

    @property
    def __wrapped__(self) -> Callable[P, R]:
        """The function, for `inspect.signature` and help."""
        return self.function


@overload
def tool(function: Callable[P, R], /) -> ToolFunction[P, R]: ...


@overload
def tool(
    *, effect: Effect = "unsafe", name: str | None = None, description: str | None = None
) -> Callable[[Callable[P, R]], ToolFunction[P, R]]: ...


def tool(
    function: Callable[P, R] | None = None,
    /,
    *,
    effect: Effect = "unsafe",
    name: str | None = None,
    description: str | None = None,
) -> ToolFunction[P, R] | Callable[[Callable[P, R]], ToolFunction[P, R]]:
    """Declare a function as a tool: `@tool` or `@tool(effect="pure")`. See `Tool.of`."""

    def declared(function: Callable[P, R]) -> ToolFunction[P, R]:
        return ToolFunction[P, R].of(function, effect=effect, name=name, description=description)

    return declared if function is None else declared(function)


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n", 1)[0].split())
