"""Typing example: actors, typed proxies in pykka's idiom, futures and trees. tests/actors/test_typed_proxies.py runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, assert_type, cast

import pykka
from pykka.typing import ActorMemberMixin, proxy_field, proxy_method

from executus.actors import Actor, ActorFuture, ActorRef, Backoff, ChildSpec, ExitReport, Supervisor


class Circle(Actor):
    """An actor with an attribute and a method."""

    pi = 3.14

    def area(self, radius: float) -> float:
        """Runs in the actor."""
        assert_type(self.actor_ref.is_alive(), bool)
        return self.pi * radius**2

    def on_receive(self, message: str) -> str:
        """Narrower than what the base allows."""
        return message.upper()


class CircleProxy(ActorMemberMixin, pykka.ActorProxy[Circle]):
    """Describes the proxy of a Circle, which types itself only so far."""

    pi = proxy_field(Circle.pi)
    area = proxy_method(Circle.area)


def proxies(ref: ActorRef[Circle]) -> float:
    """A typed proxy: attributes and methods are futures."""
    assert_type(ref.proxy(), pykka.ActorProxy[Circle])
    proxy = cast("CircleProxy", ref.proxy())
    assert_type(proxy.pi, pykka.Future[float])
    assert_type(proxy.area(2.0), pykka.Future[float])
    assert_type(proxy.on_receive("x"), pykka.Future[Any])
    total: float = proxy.area(2.0).get(timeout=5) + proxy.pi.get(timeout=5)
    stopped = proxy.stop()
    assert_type(stopped, pykka.Future[None])
    stopped.get(timeout=5)
    return total


async def awaited_proxies(ref: ActorRef[Circle]) -> list[float]:
    """The same on an event loop."""
    proxy = cast("CircleProxy", ref.proxy())
    assert_type(await proxy.area(1.0), float)
    return list(await asyncio.gather(proxy.area(1.0), proxy.area(2.0).map(lambda area: area + proxy.pi.get())))


def refs() -> ActorRef[Circle]:
    """What a ref's methods give."""
    ref = Circle.start()
    assert_type(ref, ActorRef[Circle])
    assert_type(ref.ask("x", block=False), ActorFuture[Any])
    assert_type(ref.is_alive(), bool)
    assert_type(ref.stop(), bool)
    assert_type(ref.stop(block=False), ActorFuture[bool])

    def ended(report: ExitReport) -> None:
        assert_type(report.error, BaseException | None)

    ref.monitor(ended)
    return ref


def futures(number: ActorFuture[int], numbers: ActorFuture[Iterable[int]]) -> tuple[str, list[int], list[Any], int]:
    """As pykka types them: what is derived is a `pykka.Future`, and `get` gives Any."""
    assert_type(number.map(str), pykka.Future[str])
    assert_type(numbers.filter(lambda n: n > 1), pykka.Future[Iterable[int]])
    assert_type(number.join(number), pykka.Future[Iterable[Any]])
    add: Callable[[int, int], int] = int.__add__
    assert_type(numbers.reduce(add, 0), pykka.Future[int])
    return (
        number.map(str).get(),
        list(numbers.filter(lambda n: n > 1).get()),
        list(number.join(number).get()),
        numbers.reduce(add, 0).get(),
    )


async def awaited_futures(number: ActorFuture[int], numbers: ActorFuture[Iterable[int]]) -> tuple[int, str, list[int]]:
    """`await` gives the value's type."""
    assert_type(await number, int)
    assert_type(await number.map(str), str)
    return await number, await number.map(str), list(await numbers.filter(lambda n: n > 1))


def trees() -> ActorRef[Any]:
    """A supervisor, and a child of it."""
    tree = Supervisor.start(
        strategy="one_for_all",
        backoff=Backoff(initial_s=0.01),
        children=[ChildSpec("circle", Circle), ChildSpec("other", (Circle, ()), restart="temporary")],
    )
    tree.started().get(timeout=5)
    assert_type(tree.count_children().get(timeout=5), Any)
    child = next(info.ref for info in tree.which_children().get(timeout=5) if info.id == "circle")
    tree.stop()
    return cast("ActorRef[Any]", child)


def wrong(ref: ActorRef[Circle]) -> None:
    """What a checker must refuse: mypy's unused-ignore check proves that it does."""
    proxy = cast("CircleProxy", ref.proxy())
    proxy.area("wide")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ChildSpec("circle", Circle, restart="often")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Supervisor.start(strategy="all")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
