"""Reading a user's types: what a Run's Input, State, Result and messages are, whether they can be stored, and how."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import inspect
import types as pytypes
import typing
import uuid
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect as types

from executus.actors.blob import Blob
from executus.actors.errors import InvalidRunType
from executus.actors.journal import Journal
from executus.actors.outcomes import safe_text
from executus.actors.run import Run


def run_class_of(make: Any) -> type[Run[Any, Any, Any]]:
    """The Run class that a registration makes instances of. Raises InvalidRunType."""
    if isinstance(make, type):
        found: Any = make
    else:
        found = getattr(make, "run_class", None)
        if found is None and callable(make):
            found = type(make())  # a plain zero-argument callable: one instance tells its class
    if not (isinstance(found, type) and issubclass(found, Run)):
        raise InvalidRunType(
            safe_text(make), "runs=[...] takes Run classes, Factory(RunClass, …) or callables that return a Run"
        )
    return typing.cast("Any", found)  # type: ignore[no-any-return]


def type_arguments(run_class: type, name: str) -> tuple[Any, Any, Any]:
    """Input, State and Result, through any chain of generic bases."""
    arguments = _arguments_of(run_class, {})
    if arguments is None or any(isinstance(a, TypeVar) for a in arguments):
        raise InvalidRunType(name, f"write class {run_class.__name__}(Run[Input, State, Result]) with your three types")
    return arguments


def _arguments_of(cls: type, bound: dict[Any, Any]) -> tuple[Any, Any, Any] | None:
    for base in getattr(cls, "__orig_bases__", ()):
        origin = typing.get_origin(base)
        args = tuple(bound.get(a, a) for a in typing.get_args(base))
        if origin is Run:
            return typing.cast("tuple[Any, Any, Any]", args)
        if origin is not None and issubclass(origin, Run):
            generic = typing.cast("Any", origin)
            found = _arguments_of(generic, dict(zip(getattr(generic, "__parameters__", ()), args, strict=False)))
            if found is not None:
                return found
    for plain in cls.__bases__:
        if issubclass(plain, Run) and plain is not Run:
            found = _arguments_of(typing.cast("Any", plain), bound)
            if found is not None:
                return found
    return None


def message_type_of(run_class: type[Run[Any, Any, Any]], name: str) -> Any:
    """The annotation of receive's message; None where receive is not defined."""
    function: Any = run_class.receive
    if function is getattr(Run, "receive"):  # noqa: B009 - its type has the user's parameters, which are not known here
        return None
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) != 3:  # noqa: PLR2004 - self, state, message
        raise InvalidRunType(name, "receive takes (self, state, message)")
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise InvalidRunType(
            name, f"receive's annotations cannot be resolved: {error}. Define message types at module level"
        ) from error
    annotation = hints.get(parameters[2].name)
    if annotation is None:
        raise InvalidRunType(
            name, f"annotate receive's {parameters[2].name!r} with the messages it takes, for example Approve | Reject"
        )
    return without_own(annotation)


def without_own(annotation: Any) -> Any:
    """The user's own members of a message annotation.

    The runtime's (WaitExpired, ChildEnded) are delivered apart from them.
    """
    members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    users = [m for m in members if getattr(m, "__module__", "") != Run.__module__]
    if not users:
        return None
    first, *others = users
    union = typing.cast("Any", typing.Union)
    return union[tuple(users)] if others else first  # built at run time: `|` takes no tuple


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in {typing.Union, pytypes.UnionType}


def decoder_of(kind: Any, what: str, name: str, known: tuple[type, ...] = ()) -> msgspec.msgpack.Decoder[Any]:
    """A decoder for a user's type, after checks that msgspec makes late or not at all.

    `known` are classes of ours that it may hold. Raises InvalidRunType with advice.
    """
    try:
        info = types.type_info(kind)
        decoder = msgspec.msgpack.Decoder(kind)
    except (TypeError, NameError) as error:
        advice = ""
        if "union" in str(error).lower():
            advice = ". Untagged Structs in a union: add tag=True to each class"
        raise InvalidRunType(name, f"{what} {kind!r} cannot be stored: {error}{advice}") from error
    unknown = _first_custom(info, set(), known)
    if unknown is Journal:
        raise InvalidRunType(name, f"{what} holds a Journal, which is for states alone. Use a tuple there")
    if unknown is Blob:
        raise InvalidRunType(
            name, f"{what} holds a Blob, which is for states and their journals alone. Use bytes there"
        )
    if unknown is not None:
        raise InvalidRunType(
            name,
            f"{what} holds {unknown.__module__}.{unknown.__qualname__}, which cannot be stored. Use "
            "msgspec Structs, dataclasses, "
            "enums, containers and scalars; pass live resources through Factory(...)",
        )
    return decoder


def journal_items(state_type: Any, name: str) -> dict[Any, Any]:
    """The types of items of all journals in a state, by their `Journal[T]`; and Blob where there is one.

    Raises InvalidRunType where T is not named, is not immutable, or holds a journal itself.
    """
    found: dict[Any, Any] = {}
    _find_journals(state_type, {}, found, set())
    for journal, item in found.items():
        if journal is Blob:
            continue
        if item is None or isinstance(item, TypeVar):
            raise InvalidRunType(name, f"State holds {journal!r}: name the type of its items, as in Journal[Message]")
        decoder_of(item, f"a Journal in State (its items {item!r})", name, (Blob,))
        if not is_immutable(types.type_info(item), set()):
            raise InvalidRunType(
                name,
                f"State holds {journal!r}, whose items can change: what is appended to a journal is saved once. Use "
                "frozen Structs, tuples and scalars",
            )
    return found


def _find_journals(kind: Any, bound: dict[Any, Any], found: dict[Any, Any], seen: set[Any]) -> None:
    """Walk a type's annotations: msgspec's own description of a type leaves out what a Journal holds."""
    kind = bound.get(kind, kind) if isinstance(kind, TypeVar) else getattr(kind, "__value__", kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Journal or origin is Journal:
        found[kind] = bound.get(arguments[0], arguments[0]) if arguments else None
        return
    if kind is Blob:
        found[Blob] = Blob
    if kind is Blob or origin is typing.Literal:
        return
    for argument in arguments:
        _find_journals(argument, bound, found, seen)
    cls = origin or kind
    if not isinstance(cls, type) or kind in seen or not _has_fields(cls):
        return
    seen.add(kind)
    inner = dict(zip(getattr(cls, "__parameters__", ()), (bound.get(a, a) for a in arguments), strict=False))
    for annotation in typing.get_type_hints(cls).values():
        _find_journals(annotation, inner, found, seen)


def _has_fields(cls: type) -> bool:
    plain: Any = cls
    return (
        issubclass(plain, msgspec.Struct)
        or dataclasses.is_dataclass(plain)
        or hasattr(plain, "__total__")
        or (issubclass(cls, tuple) and hasattr(plain, "_fields"))
    )


def _parts(info: types.Type) -> list[types.Type]:
    """The types directly inside a type."""
    match info:
        case types.StructType() | types.DataclassType() | types.NamedTupleType() | types.TypedDictType():
            return [field.type for field in info.fields]
        case types.UnionType():
            return list(info.types)
        case types.TupleType():
            return list(info.item_types)
        case types.DictType():
            return [info.key_type, info.value_type]
        case types.ListType() | types.SetType() | types.FrozenSetType() | types.VarTupleType() | types.CollectionType():
            return [info.item_type]
        case types.Metadata():
            return [info.type]
        case _:
            return []


def _first_custom(info: types.Type, seen: set[Any], known: tuple[type, ...]) -> type | None:
    if isinstance(info, types.CustomType):
        return None if info.cls in known else info.cls
    if _entered(info, seen):
        return None
    return next((found for part in _parts(info) if (found := _first_custom(part, seen, known)) is not None), None)


def _entered(info: types.Type, seen: set[Any]) -> bool:
    """Whether this class has been walked before: Structs may refer to themselves."""
    cls = getattr(info, "cls", None)
    if cls is None:
        return False
    if cls in seen:
        return True
    seen.add(cls)
    return False


_MUTABLE: Final = (
    types.ListType,
    types.SetType,
    types.DictType,
    types.CollectionType,
    types.TypedDictType,
    types.ByteArrayType,
    types.MemoryViewType,
    types.AnyType,
    types.CustomType,
)


def is_immutable(info: types.Type, seen: set[Any]) -> bool:
    """Whether no value of this type can change.

    Frozen Structs and dataclasses, tuples, frozensets, scalars, all the way down.
    """
    if isinstance(info, types.CustomType) and info.cls in {Journal, Blob}:
        return True  # a journal's items are, see journal_items
    if type(info) in _MUTABLE:  # exactly: to msgspec a tuple of any length is a kind of Collection
        return False
    if isinstance(info, types.StructType) and not _plain_class(info.cls).__struct_config__.frozen:
        return False
    if isinstance(info, types.DataclassType) and not _is_frozen_dataclass(_plain_class(info.cls)):
        return False
    if _entered(info, seen):
        return True
    return all(is_immutable(part, seen) for part in _parts(info))


def _plain_class(cls: Any) -> Any:
    """The class itself of a generic one with its parameters filled in, `Page[int]`."""
    return typing.get_origin(cls) or cls


def _is_frozen_dataclass(cls: Any) -> bool:
    return dataclasses.is_dataclass(cls) and bool(getattr(cls, "__dataclass_params__").frozen)  # noqa: B009 - unknown to type checkers


_SCALARS: Final[dict[type, type]] = {
    types.NoneType: type(None),
    types.BoolType: bool,
    types.IntType: int,
    types.StrType: str,
    types.BytesType: bytes,
    types.ListType: list,
    types.SetType: set,
    types.FrozenSetType: frozenset,
    types.VarTupleType: tuple,
    types.TupleType: tuple,
    types.DictType: dict,
    types.TypedDictType: dict,
    types.ByteArrayType: bytearray,
}


def exact_classes(info: types.Type) -> frozenset[type]:
    """The exact classes that values of this type have; empty where that cannot be said (Any)."""
    match info:
        case types.Metadata():
            return exact_classes(info.type)
        case types.UnionType():
            parts = [exact_classes(part) for part in info.types]
            return frozenset(kind for part in parts for kind in part) if all(parts) else frozenset()
        case types.StructType() | types.DataclassType() | types.NamedTupleType() | types.EnumType():
            return frozenset({typing.cast("type", typing.get_origin(info.cls) or info.cls)})
        case types.FloatType():
            return frozenset({float, int})  # 1 is a float to everybody but the interpreter
        case types.LiteralType():
            return frozenset(type(v) for v in info.values)
        case (
            types.DateTimeType()
            | types.DateType()
            | types.TimeType()
            | types.TimeDeltaType()
            | types.UUIDType()
            | types.DecimalType()
        ):
            return _library_class(info)
        case _:
            kind = _SCALARS.get(type(info))
            return frozenset() if kind is None else frozenset({kind})


def _library_class(info: types.Type) -> frozenset[type]:
    named: dict[type[types.Type], type] = {
        types.DateTimeType: dt.datetime,
        types.DateType: dt.date,
        types.TimeType: dt.time,
        types.TimeDeltaType: dt.timedelta,
        types.UUIDType: uuid.UUID,
        types.DecimalType: decimal.Decimal,
    }
    return frozenset({named[type(info)]})
