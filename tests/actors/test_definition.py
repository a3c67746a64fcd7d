"""What registration learns and refuses: names, types with advice, codecs, which callbacks are async."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import types
import uuid
from typing import Any, Generic, TypeVar

import msgspec
import pytest

from executus.actors import (
    ChildEnded,
    Done,
    InvalidMessage,
    InvalidRunType,
    RestartPolicy,
    Run,
    SavePolicy,
    SaveRejected,
    StopPolicy,
    WaitExpired,
    WrongReturn,
)
from executus.actors.definition import Registry, RunDefinition
from executus.actors.policies import Policies

T = TypeVar("T")


class A(msgspec.Struct, frozen=True):
    x: int = 0


class B(msgspec.Struct, frozen=True):
    y: int = 0


class TaggedA(msgspec.Struct, frozen=True, tag=True):
    x: int = 0


class TaggedB(msgspec.Struct, frozen=True, tag=True):
    y: int = 0


class Mutable(msgspec.Struct):
    x: int = 0


@dataclasses.dataclass(frozen=True)
class FrozenData:
    x: tuple[int, ...] = ()


@dataclasses.dataclass
class Data:
    x: int = 0


class Colour(enum.Enum):
    RED = "red"


class Tree(msgspec.Struct, frozen=True):
    children: tuple[Tree, ...] = ()


class Forest(msgspec.Struct, frozen=True):
    trees: list[Tree] = []


class Socket:
    """Not a value."""


def run_of(
    state: Any, *, input_: Any = int, result: Any = int, name: str = "Made", **more: Any
) -> type[Run[Any, Any, Any]]:
    body = {"begin": lambda self, value: value, "step": lambda self, state: state, **more}
    made: type[Run[Any, Any, Any]] = types.new_class(
        name, (Run[input_, state, result],), exec_body=lambda members: members.update(body)
    )
    return made


class Base(Run[int, T, int], Generic[T]):
    def begin(self, start: int) -> Any:
        raise NotImplementedError

    def step(self, state: T) -> Any:
        raise NotImplementedError


class Middle(Base[A]): ...


class Leaf(Middle): ...


def test_the_three_types_are_found_through_any_chain_of_bases() -> None:
    definition = RunDefinition(Leaf)
    assert definition.name == "Leaf"
    definition.check_state(A(1), "step")
    with pytest.raises(WrongReturn):
        definition.check_state(B(1), "step")


def test_a_class_without_its_three_types_is_told_how_to_write_them() -> None:
    class Bare(Run):  # type: ignore[type-arg]
        def begin(self, _: Any) -> Any: ...

        def step(self, _: Any) -> Any: ...

    with pytest.raises(InvalidRunType, match=r"Run\[Input, State, Result\]"):
        RunDefinition(Bare)
    with pytest.raises(InvalidRunType, match=r"Run\[Input, State, Result\]"):
        RunDefinition(Base)


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda: run_of(A | B), "tag=True"),
        (lambda: run_of(A, input_=A | B), "tag=True"),
        (lambda: run_of(A, result=A | B), "tag=True"),
        (lambda: run_of(Any), "not admit None or Any"),
        (lambda: run_of(A | None), "not admit None or Any"),
        (lambda: run_of(Socket), "cannot be stored"),
        (lambda: run_of(list[Socket]), "Factory"),
        (lambda: run_of(A, input_=Socket), "cannot be stored"),
        (lambda: run_of(A, result=dict[str, Socket]), "cannot be stored"),
        (lambda: run_of(A, schema_version=0), "schema_version"),
        (lambda: run_of(A, step=Run.step), r"no step\(\)"),
        (lambda: run_of(A, begin=Run.begin), r"no begin\(\)"),
        (lambda: run_of(A, receive=lambda self, state: state), r"receive takes \(self, state, message\)"),
        (lambda: run_of(A, receive=lambda self, state, message: state), "annotate receive's 'message'"),
        (lambda: 7, "runs="),
        (lambda: Socket, "runs="),
    ],
)
def test_what_cannot_be_registered_is_refused_with_advice(make: Any, advice: str) -> None:
    with pytest.raises(InvalidRunType, match=advice):
        RunDefinition(make())


IMMUTABLE = [
    int,
    str,
    bytes,
    float,
    bool,
    A,
    TaggedA | TaggedB,
    FrozenData,
    Colour,
    Tree,
    tuple[int, str],
    tuple[A, ...],
    frozenset[str],
    dt.datetime,
    uuid.UUID,
    decimal.Decimal,
]
MUTABLE = [Mutable, Data, list[int], dict[str, int], set[int], Forest, tuple[list[int], ...], bytearray]


@pytest.mark.parametrize("state", IMMUTABLE, ids=str)
def test_a_deeply_immutable_state_is_handed_on_by_reference(state: Any) -> None:
    assert RunDefinition(run_of(state)).immutable


@pytest.mark.parametrize("state", MUTABLE, ids=str)
def test_a_state_that_can_change_anywhere_is_encoded_at_once(state: Any) -> None:
    assert not RunDefinition(run_of(state)).immutable


@pytest.mark.parametrize(
    ("state", "good", "bad"),
    [
        (A, A(1), B(1)),
        (TaggedA | TaggedB, TaggedB(1), A(1)),
        (int, 1, True),
        (float, 1, "1"),
        (tuple[int, ...], (1,), [1]),
        (dict[str, int], {"a": 1}, [("a", 1)]),
        (A, A(1), None),
        (Colour, Colour.RED, "red"),
        (dt.datetime, dt.datetime(2030, 1, 1, tzinfo=dt.UTC), dt.date(2030, 1, 1)),
    ],
    ids=str,
)
def test_only_the_declared_type_is_taken_as_a_state(state: Any, good: Any, bad: Any) -> None:
    definition = RunDefinition(run_of(state))
    definition.check_state(good, "step")
    with pytest.raises(WrongReturn, match=r"Made\.step returned"):
        definition.check_state(bad, "step")


def test_a_forgotten_return_and_a_subclass_are_told_apart() -> None:
    class Sub(A): ...

    definition = RunDefinition(run_of(A))
    with pytest.raises(WrongReturn, match="forget its return"):
        definition.check_state(None, "step")
    with pytest.raises(WrongReturn, match="come back as its base"):
        definition.check_state(Sub(), "step")
    with pytest.raises(WrongReturn, match=r"Wait\(state\) or Done\(result\)"):
        definition.check_state(7, "step")


def test_equal_states_give_equal_bytes_and_come_back_equal() -> None:
    definition = RunDefinition(run_of(dict[str, frozenset[str]]))
    one = {"b": frozenset("xyz"), "a": frozenset("uvw")}
    two = {"a": frozenset("wvu"), "b": frozenset("zyx")}
    assert definition.states.encode(one) == definition.states.encode(two)
    assert definition.states.decode(*definition.states.encode(one)) == one


@pytest.mark.parametrize(
    "state", [{"a": 1 << 65}, {"a": object()}, {"\ud800": 1}], ids=["65 bits", "object", "surrogate"]
)
def test_a_state_that_cannot_be_encoded_is_save_rejected(state: Any) -> None:
    with pytest.raises(SaveRejected, match="'Made'"):
        RunDefinition(run_of(dict[str, int])).states.encode(state)


class Ask(msgspec.Struct, frozen=True, tag=True):
    what: str


class Answer(msgspec.Struct, frozen=True, tag=True):
    what: str


class Listens(Run[int, int, int]):
    async def begin(self, start: int) -> int:
        return start

    def step(self, state: int) -> int | Done[int]:
        return state

    async def receive(self, state: int, message: Ask | Answer | WaitExpired | ChildEnded) -> int:
        return state


def test_the_runtimes_own_messages_are_no_part_of_the_users_union() -> None:
    definition = RunDefinition(Listens)
    definition.check_message(Ask("x"))
    definition.check_message(Answer("x"))
    for wrong in (WaitExpired(), "x", None, A()):
        with pytest.raises(InvalidMessage, match=r"takes Answer \| Ask"):
            definition.check_message(wrong)
    assert definition.async_callbacks == {"begin", "receive"}


def test_policies_come_from_the_class_or_else_from_the_runtime() -> None:
    defaults = Policies(RestartPolicy(max_restarts=9), SavePolicy(every_s=9), StopPolicy(grace_s=9))
    own = run_of(A, restart_policy=RestartPolicy(max_restarts=1))
    policies = RunDefinition(own, defaults).policies
    assert (policies.restart.max_restarts, policies.save.every_s, policies.stop.grace_s) == (1, 9, 9)


def test_a_registry_finds_by_name_alias_and_class_and_refuses_doubles() -> None:
    one = run_of(A, name="One", aliases=("Uno",))
    registry = Registry([one, run_of(B, name="Two")], Policies())
    assert registry.named("One") is registry.named("Uno") is registry.of(one)
    assert registry.named("Three") is None
    with pytest.raises(LookupError, match="known are: One, Two, Uno"):
        registry.of(Listens)
    with pytest.raises(InvalidRunType, match="two run types carry this name"):
        Registry([one, run_of(B, name="Uno")], Policies())


def test_a_result_is_checked_against_its_declared_type() -> None:
    definition = RunDefinition(run_of(A, result=TaggedA))
    definition.encode_result_check(TaggedA(1))
    for wrong in (1, TaggedB(1), None, object(), 1 << 70):
        with pytest.raises(WrongReturn, match="cannot be kept"):
            definition.encode_result_check(wrong)
