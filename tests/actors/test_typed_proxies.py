"""tests/typing/actors.py does at run time what it says to type checkers; futures give the same got, mapped and awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from executus.actors import ActorFuture
from tests.typing import actors as example


def settled() -> tuple[ActorFuture[int], ActorFuture[Iterable[int]]]:
    number: ActorFuture[int] = ActorFuture()
    numbers: ActorFuture[Iterable[int]] = ActorFuture()
    number.set(3)
    numbers.set([1, 2, 3])
    return number, numbers


def test_a_typed_proxy_reads_attributes_calls_methods_and_stops():
    ref = example.Circle.start()
    ended = ref.actor_stopped
    assert example.proxies(ref) == pytest.approx(3.14 * 4 + 3.14)
    assert ended.wait(5)


def test_a_typed_proxy_s_futures_are_awaited_alone_mapped_and_together():
    ref = example.Circle.start()
    assert asyncio.run(example.awaited_proxies(ref)) == pytest.approx([3.14, 3.14 * 4 + 3.14])
    ref.stop()


def test_a_ref_that_was_stopped_twice_is_dead():
    assert not example.refs().is_alive()


def test_futures_derive_filtered_mapped_joined_and_reduced_ones():
    assert example.futures(*settled()) == ("3", [2, 3], [3, 3], 6)


def test_derived_futures_are_awaited_like_others():
    assert asyncio.run(example.awaited_futures(*settled())) == (3, "3", [2, 3])


def test_every_derived_future_is_one_of_ours_and_await_raises_what_made_it_fail():
    number, numbers = settled()
    derived = [number.map(str), numbers.filter(bool), number.join(number), numbers.reduce(int.__add__, 0)]
    assert {type(future) for future in derived} == {ActorFuture}

    failing: ActorFuture[int] = ActorFuture()
    failing.set_exception((ValueError, ValueError("broken"), None))

    async def awaited() -> None:
        for future in (failing, failing.map(str), number.map(lambda n: n / 0), number.join(failing)):
            with pytest.raises((ValueError, ZeroDivisionError)):
                await future

    asyncio.run(awaited())


def test_a_child_of_the_example_s_tree_ended_with_it():
    assert not example.trees().is_alive()
