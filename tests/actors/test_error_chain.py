"""An error with what led to it, as data."""

from __future__ import annotations

from collections.abc import Callable

from executus.actors.error_chain import MAX_FRAMES, MAX_LINKS, MAX_MEMBERS, chain_of


def raised(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


def test_causes_and_contexts_come_in_the_order_in_which_python_prints_them_backwards() -> None:
    def fail() -> None:
        try:
            try:
                {}["k"]
            except KeyError:
                int("x")
        except ValueError as error:
            raise RuntimeError("at last") from error

    chain = chain_of(raised(fail))
    assert [(link.relation, link.type) for link in chain] == [
        ("raised", "RuntimeError"),
        ("cause", "ValueError"),
        ("context", "KeyError"),
    ]
    assert chain[0].message == "at last"
    assert chain[0].frames[-1].endswith(" in fail")
    assert f"{__file__}:" in chain[0].frames[-1]


def test_a_suppressed_context_is_left_out() -> None:
    def fail() -> None:
        try:
            {}["k"]
        except KeyError:
            raise ValueError("alone") from None

    assert [link.type for link in chain_of(raised(fail))] == ["ValueError"]


def test_members_of_a_group_are_followed_as_far_as_there_is_room() -> None:
    group = ExceptionGroup("several", [ValueError(str(number)) for number in range(10)])
    chain = chain_of(group)
    assert [link.relation for link in chain] == ["raised", *["member"] * MAX_MEMBERS]
    assert [link.message for link in chain[1:]] == ["0", "1", "2", "3"]


def test_a_chain_that_goes_round_ends() -> None:
    first, second = ValueError("a"), TypeError("b")
    first.__cause__, second.__cause__ = second, first
    assert [link.message for link in chain_of(first)] == ["a", "b"]


def test_a_long_chain_and_a_deep_stack_are_bounded() -> None:
    chain: BaseException = ValueError("first")
    for _ in range(50):
        after = ValueError("then")
        after.__cause__ = chain
        chain = after
    assert len(chain_of(chain)) == MAX_LINKS

    def deep(left: int) -> None:
        if left == 0:
            raise RecursionError
        deep(left - 1)

    (link,) = chain_of(raised(lambda: deep(100)))
    assert len(link.frames) == MAX_FRAMES
    assert len(link.frames) + link.left_out == 103


def test_texts_are_escaped_and_an_error_that_cannot_be_printed_is_told_of() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise SystemExit(3)

    def fail() -> None:
        try:
            raise Mute
        except Mute as error:
            raise ValueError("\x1b[2J\nforged") from error

    first, second = chain_of(raised(fail))
    assert first.message == "\\x1b[2J\\nforged"
    assert "whose __str__ raised SystemExit" in second.message


def test_no_local_variable_is_in_it() -> None:
    def fail() -> None:
        secret = "hunter2"
        raise ValueError(len(secret))

    assert "hunter2" not in str(chain_of(raised(fail)))
