"""Supervision trees, tested as OTP tests its own: a matrix of restart kind, exit and strategy, and what bystanders see.

Most tests drive every turn and the time by hand, so each runs in one order that can be read; the last ones use threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import itertools
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pykka
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executus.actors.actor import Actor, ActorEnded, ActorRef, ExitReport
from executus.actors.child_spec import ChildSpec, Strategy
from executus.actors.dispatcher import Turn
from executus.actors.errors import (
    ChildExists,
    ChildNotFound,
    ChildNotStopped,
    ChildStartFailed,
    DispatcherClosed,
    RestartIntensityReached,
)
from executus.actors.future import Promise
from executus.actors.nursery import Nursery
from executus.actors.policies import Backoff
from executus.actors.tree import Supervisor
from executus.actors.tree_ref import ChildCounts, ChildState, SupervisorRef
from executus.actors.worker_pool import WorkerPool
from tests.waiting import wait_until

STRATEGIES: tuple[Strategy, ...] = ("one_for_one", "one_for_all", "rest_for_one")
KINDS = ("permanent", "transient", "temporary")


class Crash(Exception):
    pass


class Strange(BaseException):
    """No Exception."""


# --- a world by hand --------------------------------------------------------------------------------------------------


class Timer:
    def __init__(self, fn: Callable[[], None]) -> None:
        self.fn: Callable[[], None] | None = fn

    def cancel(self) -> None:
        self.fn = None


class World:
    """Dispatcher, clock and timers in one, and the diary of all children. Turns run one by one, when the test says so."""

    def __init__(self) -> None:
        self.at_s = 100.0
        self.ready: list[Any] = []
        self.timers: list[tuple[float, int, Timer]] = []
        self.numbers = itertools.count()
        self.diary: list[tuple[str, str]] = []
        self.held: set[str] = set()
        """Children that get no turns, as if they hung: what they were told waits."""
        self.fail_construct: dict[str, list[BaseException]] = {}
        self.fail_start: dict[str, list[BaseException]] = {}
        self.fail_stop: dict[str, list[BaseException]] = {}

    # dispatcher

    def schedule(self, turn: Turn) -> None:
        assert turn not in self.ready, "scheduled twice"
        self.ready.append(turn)

    def submit(self, fn: Callable[[], Any]) -> Promise[Any]:
        raise NotImplementedError

    # clock and timers

    def now_s(self) -> float:
        return self.at_s

    def wall_s(self) -> float:
        raise NotImplementedError

    def call_at(self, when_s: float, fn: Callable[[], None]) -> Timer:
        timer = Timer(fn)
        heapq.heappush(self.timers, (when_s, next(self.numbers), timer))
        return timer

    def pending(self) -> list[float]:
        """In how many seconds what timers are due."""
        return sorted(round(when_s - self.at_s, 6) for when_s, _, timer in self.timers if timer.fn is not None)

    # the test's hands

    def step(self) -> bool:
        for index, turn in enumerate(self.ready):
            actor = turn._actor_weakref()
            if getattr(actor, "name", None) not in self.held:
                self.ready.pop(index).run_turn()
                return True
        return False

    def run(self, at_most: int = 20_000) -> None:
        for _ in range(at_most):
            if not self.step():
                return
        raise AssertionError(f"still turns to run after {at_most}")

    def pass_s(self, seconds: float) -> None:
        """Let time pass and run what comes of it, in order."""
        until_s = self.at_s + seconds
        self.run()
        while self.timers and self.timers[0][0] <= until_s:
            self.at_s, _, timer = heapq.heappop(self.timers)
            fn, timer.fn = timer.fn, None
            if fn is not None:
                fn()
            self.run()
        self.at_s = until_s

    def what(self) -> list[str]:
        """The diary since it was last looked at: `+a` started, `-a` stopped, `!a` crashed."""
        found = [sign + name for sign, name in self.diary]
        self.diary.clear()
        return found


class Kid(Actor):
    """Does what the world or a message says."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__()
        self.world = world
        self.name = name
        self._fail(world.fail_construct)

    def _fail(self, when: dict[str, list[BaseException]]) -> None:
        if when.get(self.name):
            raise when[self.name].pop(0)

    def on_start(self) -> None:
        self._fail(self.world.fail_start)
        self.world.diary.append(("+", self.name))

    def on_stop(self) -> None:
        self.world.diary.append(("-", self.name))
        self._fail(self.world.fail_stop)

    def on_failure(self, *info: Any) -> None:
        self.world.diary.append(("!", self.name))

    def on_receive(self, message: Any) -> Any:
        return message() if callable(message) else message


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def reports() -> list[ExitReport]:
    return []


def kid(world: World, name: str, restart: Any = "permanent", **more: Any) -> ChildSpec:
    return ChildSpec(name, (Kid, (world, name)), restart, **more)


def kids(world: World, names: str, restart: Any = "permanent") -> list[ChildSpec]:
    return [kid(world, name, restart) for name in names]


def start(world: World, children: list[ChildSpec], **options: Any) -> SupervisorRef:
    """A supervisor in the world, with its children started if they can be."""
    tree = Supervisor.start_on(world, children=children, clock=world, timers=world, rng=random.Random(1), **options)
    world.run()
    return tree


def inside(child_id: str, children: list[ChildSpec], **options: Any) -> ChildSpec:
    """A supervisor as a child: named by its class, so it gets dispatcher, clock and timers of its parent."""
    more = {key: options.pop(key) for key in ("restart", "stop_timeout_s") if key in options}
    return ChildSpec(child_id, (Supervisor, (), {"children": children, **options}), kind="supervisor", **more)


def refs(world: World, tree: SupervisorRef) -> dict[str, ActorRef[Any] | None]:
    future = tree.which_children()
    world.run()
    return {info.id: info.ref for info in future.get(timeout=0)}


def states(world: World, tree: SupervisorRef) -> dict[str, str]:
    future = tree.which_children()
    world.run()
    return {info.id: str(info.state) for info in future.get(timeout=0)}


def child(world: World, tree: SupervisorRef, name: str) -> Any:
    ref = refs(world, tree)[name]
    assert ref is not None
    return ref


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def crash(world: World, tree: SupervisorRef, name: str, error: BaseException | None = None) -> None:
    """Tell a child to crash, and run what comes of it, without letting time pass."""
    child(world, tree, name).tell(raising(error or Crash(name)))
    world.run()


def ended(tree: SupervisorRef) -> list[ExitReport]:
    """The report of a supervisor that has ended."""
    found: list[ExitReport] = []
    tree.monitor(found.append)
    return found


# --- the matrix -------------------------------------------------------------------------------------------------------


def _told(error: BaseException) -> Callable[[World, ActorRef[Any]], None]:
    return lambda _world, ref: ref.tell(raising(error))


def _fails_to_stop(world: World, ref: ActorRef[Any]) -> None:
    world.fail_stop["b"] = [Crash("in on_stop")]
    ref.halt()


def _fails_to_start(world: World, ref: ActorRef[Any]) -> None:
    world.fail_start["b"] = [Crash("in on_start")]
    ref.tell(raising(Crash("first")))


def _fails_to_construct(world: World, ref: ActorRef[Any]) -> None:
    world.fail_construct["b"] = [Strange("in the constructor")]
    ref.tell(raising(Crash("first")))


# How it ends; whether that is normal; how many restarts it takes until it runs again.
EXITS: dict[str, tuple[Callable[[World, ActorRef[Any]], object], bool, int]] = {
    "stop": (lambda _world, ref: ref.stop(block=False), True, 1),
    "halt": (lambda _world, ref: ref.halt(), True, 1),
    "Exception": (_told(Crash("b")), False, 1),
    "SystemExit(0)": (_told(SystemExit(0)), False, 1),
    "KeyboardInterrupt": (_told(KeyboardInterrupt()), False, 1),
    "CancelledError": (_told(asyncio.CancelledError()), False, 1),
    "BaseException": (_told(Strange()), False, 1),
    "error in on_stop": (_fails_to_stop, False, 1),
    "abandoned": (lambda _world, ref: ref.abandon(), False, 1),
    "fails on_start when restarted": (_fails_to_start, False, 2),
    "fails to construct when restarted": (_fails_to_construct, False, 2),
}


@pytest.mark.parametrize("exceeded", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("exit_", EXITS)
@pytest.mark.parametrize("restart", KINDS)
def test_restart_kind_by_exit_by_strategy_by_intensity(
    world: World, reports: list[ExitReport], *, restart: str, exit_: str, strategy: Strategy, exceeded: bool
):
    end, normal, restarts = EXITS[exit_]
    specs = [kid(world, "a"), kid(world, "b", restart), kid(world, "c")]
    tree = start(world, specs, strategy=strategy, max_restarts=restarts - exceeded, on_exit=reports.append)
    before = refs(world, tree)
    assert world.what() == ["+a", "+b", "+c"]
    bystanders: list[ExitReport] = []
    for name in "ac":
        child(world, tree, name).monitor(bystanders.append)
    subject = child(world, tree, "b")
    subject.monitor(reports.append)

    end(world, subject)
    world.run()

    assert [report.actor for report in reports].count(str(subject)) == 1, "one report for each monitor"
    if restart == "temporary" or (restart == "transient" and normal):
        assert tree.is_alive()
        expected = {"a": "running", "b": "stopped", "c": "running"}
        if restart == "temporary":
            del expected["b"]
        assert states(world, tree) == expected
        assert refs(world, tree) == {**before, "b": None} if restart == "transient" else bystanders == []
    elif exceeded:
        assert not tree.is_alive()
        error = reports[-1].error
        assert isinstance(error, RestartIntensityReached)
        assert (error.child_id, error.max_restarts, error.within_s) == ("b", restarts - 1, 5.0)
        assert not any(ref.is_alive() for ref in before.values() if ref is not None)
        assert len(bystanders) == 2
    else:
        after = refs(world, tree)
        assert states(world, tree) == {"a": "running", "b": "running", "c": "running"}
        for name in "abc":
            assert (after[name] is not before[name]) == (name in affected(strategy)), name
        assert len(bystanders) == len(set(affected(strategy)) & set("ac"))
        stops = [word for word in world.what() if word in {"-a", "-c"}]
        assert stops[:2] == [f"-{name}" for name in reversed(affected(strategy)) if name in "ac"][:2]

    tree.stop(block=False)
    world.run()
    assert not tree.is_alive()
    assert world.pending() == []


def affected(strategy: Strategy) -> str:
    return {"one_for_one": "b", "one_for_all": "abc", "rest_for_one": "bc"}[strategy]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_child_that_escalates_takes_all_along_the_last_first(world: World, strategy: Strategy):
    tree = start(world, kids(world, "abc"), strategy=strategy, max_restarts=0)
    world.what()
    crash(world, tree, "b")
    assert world.what() == ["!b", "-c", "-a"]
    assert not tree.is_alive()


# --- starting ---------------------------------------------------------------------------------------------------------


def test_children_start_one_after_the_other_each_after_the_on_start_of_the_one_before(world: World):
    world.held = {"b"}
    tree = start(world, kids(world, "abc"))
    assert world.what() == ["+a"]
    assert states(world, tree) == {"a": "running", "b": "starting", "c": "waiting"}
    assert not tree.started().done()
    world.held.clear()
    world.run()
    assert world.what() == ["+b", "+c"]
    assert tree.started().get(timeout=0) is None


def test_a_supervisor_without_children_has_started_and_waits_for_some(world: World):
    tree = start(world, [])
    assert tree.started().done()
    assert refs(world, tree) == {}
    tree.stop(block=False)
    world.run()
    assert ended(tree)[0].error is None


@pytest.mark.parametrize("where", ["fail_construct", "fail_start"])
@pytest.mark.parametrize("error", [Crash("no"), SystemExit(1)])
def test_a_child_that_cannot_be_started_ends_its_new_supervisor_and_those_started_before_it_backwards(
    world: World, where: str, error: BaseException
):
    getattr(world, where)["c"] = [error]
    tree = start(world, kids(world, "abcd"))
    assert world.what() == ["+a", "+b", "-b", "-a"]
    (report,) = ended(tree)
    assert isinstance(report.error, ChildStartFailed)
    assert report.error.child_id == "c"
    assert report.error.__cause__ is error
    with pytest.raises(ChildStartFailed, match=r"child 'c' of Supervisor .* could not be started: .* was raised\. The"):
        tree.started().get(timeout=0)


def test_the_first_child_may_be_the_one_that_fails(world: World):
    world.fail_construct["a"] = [Crash("no")]
    tree = start(world, kids(world, "ab"))
    assert world.what() == []
    assert isinstance(ended(tree)[0].error, ChildStartFailed)


def test_a_child_given_up_on_before_it_has_started_could_not_be_started(world: World):
    world.held = {"b"}
    tree = start(world, kids(world, "ab"))
    child(world, tree, "b").abandon()
    world.run()
    with pytest.raises(ChildStartFailed, match="ended before its on_start was through"):
        tree.started().get(timeout=0)
    assert world.what() == ["+a", "-a"]


def test_a_start_function_that_returns_no_ref_could_not_be_started(world: World):
    tree = start(world, [ChildSpec("a", lambda: 3)])  # type: ignore[arg-type, return-value]
    error = ended(tree)[0].error
    assert error is not None
    assert isinstance(error.__cause__, TypeError)


def test_a_child_is_started_whatever_it_was_told_before_and_sees_no_strange_message(world: World):
    heard: list[object] = []

    class Listener(Kid):
        def __init__(self, world: World, name: str) -> None:
            super().__init__(world, name)
            self.actor_ref.tell(lambda: heard.append("first"))

        def on_receive(self, message: Any) -> Any:
            assert callable(message)
            message()

    tree = start(world, [ChildSpec("a", (Listener, (world, "a")))])
    assert heard == ["first"]
    assert tree.started().done()


def test_a_child_that_crashes_while_later_ones_start_is_restarted_first(world: World):
    world.held = {"b"}
    tree = start(world, kids(world, "abc"))
    crash(world, tree, "a")
    assert world.what() == ["+a", "!a", "+a"]
    world.held.clear()
    world.run()
    assert world.what() == ["+b", "+c"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"strategy": "all_for_none"}, "strategy takes 'one_for_one', 'one_for_all', 'rest_for_one'"),
        ({"max_restarts": -1}, "max_restarts must not be negative"),
        ({"within_s": 0}, "within_s must be greater than 0"),
    ],
)
def test_a_supervisor_that_means_nothing_is_refused_where_it_is_made(world: World, options: Any, text: str):
    with pytest.raises(ValueError, match=text):
        Supervisor.start_on(world, **options)
    with pytest.raises(ValueError, match="two children have the id 'a'"):
        Supervisor.start_on(world, children=kids(world, "aa"))
    assert world.ready == []


def test_a_message_that_no_supervisor_knows_is_noted_and_harms_nobody(world: World, caplog: pytest.LogCaptureFixture):
    tree = start(world, kids(world, "a"))
    tree.tell("what is this?")
    answer = tree.ask("and this?", block=False)
    world.run()
    assert answer.get(timeout=0) is None
    assert tree.is_alive()
    assert "what is this?" in caplog.text


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("how", ["stop", "halt"])
def test_a_supervisor_stops_its_children_backwards_each_after_the_on_stop_of_the_one_behind(
    world: World, strategy: Strategy, how: str
):
    tree = start(world, kids(world, "abc"), strategy=strategy)
    world.what()
    world.held = {"b"}
    stopped = tree.stop(block=False) if how == "stop" else tree.halt()
    world.run()
    assert world.what() == ["-c"]
    assert states(world, tree) == {"a": "stopping", "b": "stopping", "c": "stopped"}
    assert tree.is_alive()
    world.held.clear()
    world.run()
    assert world.what() == ["-b", "-a"]
    assert not tree.is_alive()
    assert stopped is True or stopped.get(timeout=0) is True
    assert ended(tree)[0].error is None
    assert tree.unstopped == ()
    assert world.pending() == [], "no timer is left"
    assert tree.halt() is False
    assert tree.stop() is False


def test_stopping_twice_is_stopping_once(world: World):
    tree = start(world, kids(world, "ab"))
    first, second = tree.stop(block=False), tree.stop(block=False)
    tree.halt()
    world.run()
    assert first.get(timeout=0) is second.get(timeout=0) is True
    assert world.what() == ["+a", "+b", "-b", "-a"]


def test_a_child_that_hangs_is_given_up_on_when_its_time_is_over_and_the_others_stop(
    world: World, caplog: pytest.LogCaptureFixture
):
    tree = start(world, [kid(world, "a"), kid(world, "b", stop_timeout_s=2.0), kid(world, "c")])
    hung = child(world, tree, "b")
    found: list[ExitReport] = []
    hung.monitor(found.append)
    world.held = {"b"}
    world.what()
    tree.halt()
    world.pass_s(1.9)
    assert world.what() == ["-c"]
    assert tree.unstopped == ()
    world.pass_s(0.1)
    assert world.what() == ["-a"]
    assert not tree.is_alive()
    assert tree.unstopped == ("b",)
    assert [report.abandoned for report in found] == [True]
    assert "did not stop within 2.0 s and was given up on" in caplog.text
    world.held.clear()
    world.run()
    assert world.what() == [], "what was given up on has no effect when it goes on"
    assert len(found) == 1


def test_a_child_may_take_for_ever_to_stop_if_its_spec_says_so(world: World):
    tree = start(world, [kid(world, "a", stop_timeout_s=None)])
    world.held = {"a"}
    tree.halt()
    world.pass_s(1e6)
    assert tree.is_alive()
    world.held.clear()
    world.run()
    assert not tree.is_alive()


def test_a_child_that_drains_handles_what_it_was_told_before_and_one_that_halts_does_not(world: World):
    heard: list[str] = []
    tree = start(world, [kid(world, "drains", stop="drain"), kid(world, "halts", stop="halt")])
    children = refs(world, tree)
    world.what()
    world.held = set(children)
    for name, ref in children.items():
        assert ref is not None
        for n in range(100):  # more than a turn takes
            ref.tell(lambda word=f"{name} {n}": heard.append(word))
    tree.halt()
    world.run()
    world.held.clear()
    world.run()
    assert heard == [f"drains {n}" for n in range(100)]
    assert world.what() == ["-halts", "-drains"]
    assert not tree.is_alive()


def test_a_child_that_drains_for_too_long_is_given_up_on(world: World):
    tree = start(world, [kid(world, "a", stop="drain", stop_timeout_s=2.0)])
    ref = child(world, tree, "a")
    world.held = {"a"}
    ref.tell("still to do")
    tree.halt()
    world.pass_s(2.0)
    assert tree.unstopped == ("a",)
    assert not tree.is_alive()


def test_a_supervisor_that_drains_takes_orders_given_before_and_its_children_stop_backwards(world: World):
    sub = ChildSpec("sub", (Supervisor, (), {"children": kids(world, "xy")}), kind="supervisor", stop="drain")
    tree = start(world, [sub])
    below = child(world, tree, "sub")
    world.what()
    started = below.start_child(kid(world, "z"))
    tree.halt()
    world.run()
    assert started.done()
    assert world.what()[-2:] == ["-y", "-x"]
    assert not tree.is_alive()


def test_time_to_stop_is_counted_for_each_child_from_when_it_is_told(world: World):
    tree = start(world, [kid(world, name, stop_timeout_s=1.0) for name in "abc"])
    world.held = set("abc")
    tree.halt()
    world.pass_s(0.99)
    assert tree.unstopped == ()
    world.pass_s(0.01)
    assert tree.unstopped == ("c",)
    world.pass_s(1.0)
    assert tree.unstopped == ("c", "b")
    world.pass_s(1.0)
    assert tree.unstopped == ("c", "b", "a")
    assert not tree.is_alive()


@pytest.mark.parametrize("exit_", EXITS)
def test_a_child_that_dies_while_it_is_being_stopped_is_not_restarted(world: World, exit_: str):
    tree = start(world, kids(world, "ab"), max_restarts=0)
    subject = child(world, tree, "b")
    world.held = {"b"}
    tree.halt()
    world.run()
    EXITS[exit_][0](world, subject)
    world.held.clear()
    world.run()
    (report,) = ended(tree)
    assert report.error is None
    assert tree.unstopped == ()


def test_a_child_that_dies_while_it_waits_for_its_turn_to_stop_is_not_restarted(world: World):
    tree = start(world, kids(world, "ab"), max_restarts=0)
    first = child(world, tree, "a")
    world.held = {"b"}
    tree.halt()
    world.run()
    first.tell(raising(Crash("a")))
    world.held.clear()
    world.run()
    assert ended(tree)[0].error is None


def test_a_time_that_is_over_in_the_moment_in_which_the_child_ends_changes_nothing(world: World):
    tree = start(world, kids(world, "ab"))
    tree.halt()
    while ("-", "b") not in world.diary:
        world.step()
    _, _, timer = world.timers.pop()
    assert timer.fn is not None
    timer.fn()
    world.run()
    assert ended(tree)[0].error is None
    assert tree.unstopped == ()


def test_of_two_reasons_to_end_the_first_counts(world: World):
    tree = start(world, kids(world, "ab"), max_restarts=0)
    world.held = {"b"}
    crash(world, tree, "a")
    tree.halt()
    world.held.clear()
    world.run()
    assert isinstance(ended(tree)[0].error, RestartIntensityReached)


def test_a_supervisor_stopped_while_it_starts_stops_what_is_there_and_starts_nothing_more(world: World):
    world.held = {"b"}
    tree = start(world, kids(world, "abc"))
    tree.halt()
    world.run()
    world.held.clear()
    world.run()
    assert world.what() == ["+a", "+b", "-b", "-a"]
    assert ended(tree)[0].error is None
    with pytest.raises(ActorEnded):
        tree.started().get(timeout=0)


def test_a_supervisor_stopped_before_its_first_turn_starts_nothing_more_than_its_first_child(world: World):
    tree = Supervisor.start_on(world, children=kids(world, "abc"), clock=world, timers=world)
    tree.halt()
    world.run()
    assert world.what() == ["+a", "-a"]


# --- restarts in company ----------------------------------------------------------------------------------------------


def test_one_for_all_stops_backwards_and_starts_in_order(world: World):
    tree = start(world, kids(world, "abcd"), strategy="one_for_all")
    world.what()
    crash(world, tree, "b")
    assert world.what() == ["!b", "-d", "-c", "-a", "+a", "+b", "+c", "+d"]


def test_rest_for_one_leaves_those_before_it_alone(world: World):
    tree = start(world, kids(world, "abcd"), strategy="rest_for_one")
    world.what()
    crash(world, tree, "b")
    assert world.what() == ["!b", "-d", "-c", "+b", "+c", "+d"]


def test_the_others_are_started_again_only_when_the_last_has_stopped(world: World):
    tree = start(world, kids(world, "abc"), strategy="one_for_all")
    world.what()
    world.held = {"a"}
    crash(world, tree, "b")
    assert world.what() == ["!b", "-c"]
    assert states(world, tree) == {"a": "stopping", "b": "waiting", "c": "waiting"}
    world.held.clear()
    world.run()
    assert world.what() == ["-a", "+a", "+b", "+c"]


def test_a_bystander_that_hangs_is_given_up_on_and_replaced(world: World):
    tree = start(world, [kid(world, "a", stop_timeout_s=1.0), kid(world, "b")], strategy="one_for_all")
    hung = child(world, tree, "a")
    world.held = {"a"}
    crash(world, tree, "b")
    world.pass_s(1.0)
    world.held.clear()
    world.run()
    assert tree.unstopped == ("a",)
    assert refs(world, tree)["a"] is not hung
    assert states(world, tree) == {"a": "running", "b": "running"}
    assert world.what() == ["+a", "+b", "!b", "+a", "+b"]


def test_a_bystander_that_crashes_while_it_is_being_stopped_costs_no_restart(world: World):
    tree = start(world, kids(world, "abc"), strategy="one_for_all", max_restarts=1)
    world.what()
    for name, ref in refs(world, tree).items():
        assert ref is not None
        ref.tell(raising(Crash(name)))
    world.run()
    assert world.what() == ["!a", "!b", "!c", "+a", "+b", "+c"]
    assert states(world, tree) == dict.fromkeys("abc", "running")


def test_temporary_bystanders_are_stopped_and_forgotten_and_ended_ones_stay_so(world: World):
    specs = [kid(world, "a"), kid(world, "once", "temporary"), kid(world, "job", "transient"), kid(world, "off")]
    tree = start(world, specs, strategy="one_for_all")
    child(world, tree, "job").halt()
    tree.stop_child("off")
    world.run()
    world.what()
    crash(world, tree, "a")
    assert world.what() == ["!a", "-once", "+a"]
    assert states(world, tree) == {"a": "running", "job": "stopped", "off": "stopped"}


def test_transient_bystanders_are_restarted_though_they_were_stopped_normally(world: World):
    tree = start(world, [kid(world, "a"), kid(world, "b", "transient")], strategy="one_for_all")
    world.what()
    crash(world, tree, "a")
    assert world.what() == ["!a", "-b", "+a", "+b"]


def test_a_restart_that_fails_counts_and_is_tried_again(world: World):
    world.fail_start["b"] = []
    tree = start(world, kids(world, "abc"), strategy="one_for_all", max_restarts=3)
    world.what()
    world.fail_start["b"] = [Crash("1"), Crash("2")]
    crash(world, tree, "b")
    assert world.what() == ["!b", "-c", "-a", "+a", "-a", "+a", "-a", "+a", "+b", "+c"]
    assert states(world, tree) == dict.fromkeys("abc", "running")
    world.fail_start["b"] = [Crash("3")]
    crash(world, tree, "b")
    error = ended(tree)[0].error
    assert isinstance(error, RestartIntensityReached)
    assert str(error.__cause__) == "b"


def test_in_one_for_one_a_restart_that_hangs_holds_up_nobody(world: World):
    tree = start(world, kids(world, "abc"))
    world.held = {"a"}
    world.held.clear()
    child(world, tree, "a").tell(raising(Crash("a")))
    while "!a" not in [sign + name for sign, name in world.diary]:
        world.step()
    world.held = {"a"}
    world.run()
    assert states(world, tree)["a"] == "starting"
    world.what()
    crash(world, tree, "b")
    tree.stop_child("c")
    world.run()
    assert world.what() == ["!b", "+b", "-c"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("exit_", [name for name, (_, _, restarts) in EXITS.items() if restarts == 1])
@pytest.mark.parametrize("first", ["stop_child", "exit"])
def test_of_stop_child_and_an_end_at_the_same_time_the_child_stays_stopped_and_no_bystander_notices(
    world: World, strategy: Strategy, exit_: str, first: str
):
    tree = start(world, kids(world, "abc"), strategy="one_for_one" if first == "exit" else strategy, max_restarts=1)
    before = refs(world, tree)
    subject = child(world, tree, "b")
    world.held = {"b"}
    if first == "exit":
        EXITS[exit_][0](world, subject)
    stopped = tree.stop_child("b")
    world.run()
    if first == "stop_child":
        EXITS[exit_][0](world, subject)
    world.held.clear()
    world.run()
    assert stopped.get(timeout=0) is (exit_ != "abandoned" or first == "exit")
    assert refs(world, tree) == {**before, "b": None}
    again = tree.restart_child("b")
    world.run()
    assert again.get(timeout=0).is_alive()
    assert tree.is_alive()


def test_one_before_the_group_that_ends_while_the_group_is_being_stopped_takes_the_group_along(world: World):
    tree = start(world, kids(world, "abcd"), strategy="rest_for_one", max_restarts=2)
    world.held = {"c"}
    crash(world, tree, "b")
    crash(world, tree, "a")
    assert world.what() == ["+a", "+b", "+c", "+d", "!b", "-d", "!a"]
    world.held.clear()
    world.run()
    assert world.what() == ["-c", "+a", "+b", "+c", "+d"]
    assert states(world, tree) == dict.fromkeys("abcd", "running")


def test_one_of_the_group_that_could_not_be_started_again_has_those_before_it_stopped_first(world: World):
    tree = start(world, kids(world, "abcd"), strategy="rest_for_one", max_restarts=2)
    world.what()
    world.fail_start["c"] = [Crash("c")]
    crash(world, tree, "b")
    assert world.what() == ["!b", "-d", "-c", "+b", "+c", "+d"]


@pytest.mark.parametrize("where", ["top", "below"])
def test_a_supervisor_that_crashes_itself_leaves_no_child_alive(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str
):
    tree = start(world, [kid(world, "a"), inside("sub", kids(world, "xy")), kid(world, "b")], max_restarts=1)
    sub = child(world, tree, "sub")
    world.what()
    with monkeypatch.context() as patch:
        patch.setattr(Nursery, "counts", raising(Strange()))
        counted = (tree if where == "top" else sub).count_children()
        world.run()
    with pytest.raises(pykka.ActorDeadError):
        counted.get(timeout=0)
    if where == "top":
        assert isinstance(ended(tree)[0].error, TypeError | Strange)
        assert sorted(world.what()) == ["-a", "-b", "-x", "-y"]
    else:
        assert states(world, tree) == {"a": "running", "sub": "running", "b": "running"}
        assert sorted(world.what()) == ["+x", "+y", "-x", "-y"]


# --- intensity and backoff --------------------------------------------------------------------------------------------


def test_restarts_that_are_far_enough_apart_go_on_for_ever(world: World):
    tree = start(world, kids(world, "a"), max_restarts=2, within_s=10.0)
    for _ in range(20):
        crash(world, tree, "a")
        world.pass_s(5.0)
    assert states(world, tree) == {"a": "running"}
    crash(world, tree, "a")
    crash(world, tree, "a")
    assert not tree.is_alive()


def test_without_a_limit_a_child_is_restarted_for_ever_and_its_failures_take_no_room(world: World):
    tree = start(world, kids(world, "ab"), max_restarts=None, backoff=Backoff(initial_s=1.0, factor=2.0, max_s=5.0))
    actor: Any = tree._actor_weakref()
    for _ in range(50):
        crash(world, tree, "a")
        world.pass_s(6.0)
    assert states(world, tree) == {"a": "running", "b": "running"}
    assert actor._restarts_s == ()


def test_restarts_of_different_children_count_together(world: World):
    tree = start(world, kids(world, "abcd"), max_restarts=3)
    for name in "abc":
        crash(world, tree, name)
        assert tree.is_alive()
    crash(world, tree, "d")
    assert not tree.is_alive()


@pytest.mark.parametrize("where", ["fail_construct", "fail_start"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_restart_storm_is_bounded(world: World, strategy: Strategy, where: str):
    tree = start(world, kids(world, "ab"), strategy=strategy, max_restarts=50)
    getattr(world, where)["a"] = [Crash(str(n)) for n in range(1000)]
    crash(world, tree, "a")
    assert not tree.is_alive()
    assert len(getattr(world, where)["a"]) == 950, "50 restarts, then it gave up"


def test_in_a_storm_without_a_bound_orders_are_heard(world: World):
    tree = start(world, kids(world, "ab"), max_restarts=10**9)
    world.fail_construct["a"] = [Crash("again")] * 100_000
    child(world, tree, "a").tell(raising(Crash("a")))
    for _ in range(10):
        world.step()
    stopped = tree.stop_child("a")
    for _ in range(10):
        world.step()
    assert stopped.get(timeout=0) is True
    world.run()
    assert states(world, tree) == {"a": "stopped", "b": "running"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trying_again_for_ever_takes_no_more_room(world: World, strategy: Strategy):
    backoff = Backoff(initial_s=10.0, factor=1.0, max_s=10.0)
    tree = start(world, kids(world, "abc"), strategy=strategy, backoff=backoff)
    actor: Any = tree._actor_weakref()
    nursery = actor._nursery
    world.fail_start["a"] = [Crash(str(n)) for n in range(500)]
    crash(world, tree, "a")
    world.pass_s(3600.0)
    assert len(world.fail_start["a"]) < 200
    assert states(world, tree)["a"] == "waiting"
    assert max(len(nursery._starts._heap), len(nursery._stops._heap)) <= 3
    assert max(len(nursery._delays), len(actor._restarts_s), len(nursery._lives)) <= 3
    world.fail_start.clear()
    world.pass_s(60.0)
    assert states(world, tree) == dict.fromkeys("abc", "running")


def test_a_backoff_is_waited_for_and_grows_until_a_good_run(world: World):
    backoff = Backoff(initial_s=1.0, factor=2.0, max_s=10.0, jitter=0.0)
    tree = start(world, kids(world, "ab"), backoff=backoff, max_restarts=100, within_s=60.0)
    world.what()
    for delay_s in (1.0, 2.0, 4.0, 8.0, 10.0, 10.0):
        crash(world, tree, "a")
        assert states(world, tree) == {"a": "waiting", "b": "running"}
        assert world.pending() == [delay_s]
        world.pass_s(delay_s - 0.01)
        assert world.what() == ["!a"]
        world.pass_s(0.01)
        assert world.what() == ["+a"]
    world.pass_s(60.0)
    crash(world, tree, "a")
    assert world.pending() == [1.0]
    crash(world, tree, "b")
    assert world.pending() == [1.0, 1.0], "another child's failures are not its own"
    world.pass_s(1.0)
    crash(world, tree, "a")
    assert world.pending() == [2.0]


def test_a_backoff_jitters_by_the_random_source_that_was_given(world: World):
    backoff = Backoff(initial_s=1.0, factor=1.0, max_s=1.0, jitter=0.5)
    tree = start(world, kids(world, "a"), backoff=backoff, max_restarts=1000)
    delays = []
    for _ in range(50):
        crash(world, tree, "a")
        (delay_s,) = world.pending()
        delays.append(delay_s)
        world.pass_s(2.0)
    assert 0.5 <= min(delays) < 0.7
    assert 1.3 < max(delays) <= 1.5
    expected = random.Random(1)
    assert delays == [pytest.approx(backoff.delay_s(0, expected.random()), abs=1e-5) for _ in delays]


@pytest.mark.parametrize(("strategy", "others"), [("one_for_all", ["-c", "-a"]), ("rest_for_one", ["-c"])])
def test_the_others_wait_for_the_backoff_as_well(world: World, strategy: Strategy, others: list[str]):
    backoff = Backoff(initial_s=1.0, factor=1.0, max_s=1.0, jitter=0.0)
    tree = start(world, kids(world, "abc"), strategy=strategy, backoff=backoff)
    world.what()
    crash(world, tree, "b")
    world.pass_s(0.9)
    assert world.what() == ["!b", *others]
    world.pass_s(0.1)
    assert world.what() == [f"+{word[-1]}" for word in sorted({"!b", *others}, key=lambda word: word[-1])]


def test_a_supervisor_stopped_during_a_backoff_starts_nothing_and_leaves_no_timer(world: World):
    tree = start(world, kids(world, "ab"), backoff=Backoff())
    crash(world, tree, "a")
    tree.halt()
    world.run()
    assert world.pending() == []
    world.pass_s(100.0)
    assert world.what() == ["+a", "+b", "!a", "-b"]
    assert ended(tree)[0].error is None


def test_a_child_stopped_during_its_backoff_stays_stopped_and_can_be_restarted(world: World):
    tree = start(world, kids(world, "a"), backoff=Backoff())
    crash(world, tree, "a")
    stopped = tree.stop_child("a")
    world.run()
    assert stopped.get(timeout=0) is True
    again = tree.restart_child("a")
    world.run()
    assert again.get(timeout=0).is_alive()
    world.pass_s(100.0)
    assert world.what() == ["+a", "!a", "+a"], "the backoff that is over now changes nothing"


def test_a_backoff_of_before_does_not_cut_the_present_one_short(world: World):
    tree = start(world, kids(world, "a"), backoff=Backoff(initial_s=1.0, factor=2.0, max_s=9.0, jitter=0.0))
    crash(world, tree, "a")
    world.pass_s(0.5)
    tree.stop_child("a")
    tree.restart_child("a")
    crash(world, tree, "a")
    world.what()
    world.pass_s(1.9)
    assert world.what() == []
    world.pass_s(0.1)
    assert world.what() == ["+a"]


# --- dynamic children -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_child_is_started_stopped_restarted_and_deleted_by_its_id(world: World, strategy: Strategy):
    tree = start(world, kids(world, "a"), strategy=strategy)
    started = tree.start_child(kid(world, "b"))
    assert not started.done()
    world.run()
    first = started.get(timeout=0)
    assert refs(world, tree)["b"] is first

    stopped = tree.stop_child("b")
    world.run()
    assert stopped.get(timeout=0) is True
    assert not first.is_alive()
    assert states(world, tree) == {"a": "running", "b": "stopped"}
    stopped_again = tree.stop_child("b")
    restarted = tree.restart_child("b")
    world.run()
    assert stopped_again.get(timeout=0) is True
    second = restarted.get(timeout=0)
    assert second is not first
    assert second.is_alive()

    tree.stop_child("b")
    deleted = tree.delete_child("b")
    world.run()
    assert deleted.get(timeout=0) is None
    assert states(world, tree) == {"a": "running"}
    assert world.what() == ["+a", "+b", "-b", "+b", "-b"]
    again = tree.start_child(kid(world, "b"))
    world.run()
    assert again.get(timeout=0).is_alive()


def test_a_child_that_was_added_is_supervised_like_the_others(world: World):
    tree = start(world, kids(world, "a"), strategy="rest_for_one")
    tree.start_child(kid(world, "b"))
    world.run()
    crash(world, tree, "a")
    assert world.what() == ["+a", "+b", "!a", "-b", "+a", "+b"]
    tree.halt()
    world.run()
    assert world.what() == ["-b", "-a"]


def test_what_cannot_be_done_is_answered_with_what_is_the_case(world: World):
    tree = start(world, kids(world, "a"))
    cases: list[tuple[Any, type[Exception]]] = [
        (tree.start_child(kid(world, "a")), ChildExists),
        (tree.start_child("a"), TypeError),  # type: ignore[arg-type]
        (tree.stop_child("x"), ChildNotFound),
        (tree.restart_child("x"), ChildNotFound),
        (tree.restart_child("a"), ChildNotStopped),
        (tree.delete_child("x"), ChildNotFound),
        (tree.delete_child("a"), ChildNotStopped),
    ]
    world.run()
    for future, error in cases:
        with pytest.raises(error):
            future.get(timeout=0)
    assert tree.is_alive()
    assert world.what() == ["+a"]


def test_a_child_in_backoff_is_neither_restarted_nor_deleted_by_hand(world: World):
    tree = start(world, kids(world, "a"), backoff=Backoff())
    crash(world, tree, "a")
    for order in (tree.restart_child("a"), tree.delete_child("a")):
        world.run()
        with pytest.raises(ChildNotStopped, match=r"child 'a' of Supervisor .* is waiting; nothing was changed"):
            order.get(timeout=0)


@pytest.mark.parametrize("where", ["fail_construct", "fail_start"])
@pytest.mark.parametrize("restart", KINDS)
def test_an_added_child_that_cannot_be_started_is_not_kept_and_costs_no_restart(world: World, where: str, restart: str):
    tree = start(world, kids(world, "a"), max_restarts=0)
    error = Crash("no")
    getattr(world, where)["b"] = [error]
    started = tree.start_child(kid(world, "b", restart))
    world.run()
    with pytest.raises(ChildStartFailed, match="was not taken in") as caught:
        started.get(timeout=0)
    assert caught.value.__cause__ is error
    assert states(world, tree) == {"a": "running"}


@pytest.mark.parametrize("where", ["fail_construct", "fail_start"])
def test_a_child_that_cannot_be_restarted_by_hand_stays_stopped(world: World, where: str):
    tree = start(world, kids(world, "a"), max_restarts=0)
    tree.stop_child("a")
    world.run()
    getattr(world, where)["a"] = [Crash("no")]
    again = tree.restart_child("a")
    world.run()
    with pytest.raises(ChildStartFailed, match="stays stopped"):
        again.get(timeout=0)
    assert states(world, tree) == {"a": "stopped"}


def test_a_temporary_child_is_forgotten_when_it_is_stopped(world: World):
    tree = start(world, kids(world, "a", "temporary"))
    stopped = tree.stop_child("a")
    world.run()
    assert stopped.get(timeout=0) is True
    assert states(world, tree) == {}


def test_stop_child_says_that_it_had_to_give_up(world: World):
    tree = start(world, [kid(world, "a", stop_timeout_s=1.0), kid(world, "b")])
    world.held = {"a"}
    stopped = tree.stop_child("a")
    second = tree.stop_child("a")
    world.pass_s(1.0)
    assert stopped.get(timeout=0) is second.get(timeout=0) is False
    assert tree.unstopped == ("a",)
    assert states(world, tree) == {"a": "stopped", "b": "running"}


def test_a_child_stopped_before_it_has_started_fails_who_asked_for_it(world: World):
    tree = start(world, kids(world, "a"))
    world.held = {"b"}
    started = tree.start_child(kid(world, "b"))
    stopped = tree.stop_child("b")
    world.run()
    world.held.clear()
    world.run()
    with pytest.raises(ChildStartFailed, match="stopped before it had started"):
        started.get(timeout=0)
    assert stopped.get(timeout=0) is True
    assert world.what() == ["+a", "+b", "-b"]


def test_a_child_that_is_added_during_a_restart_in_company_waits_for_it(world: World):
    tree = start(world, kids(world, "ab"), strategy="one_for_all")
    world.held = {"b"}
    crash(world, tree, "a")
    started = tree.start_child(kid(world, "c"))
    world.run()
    assert not started.done()
    world.held.clear()
    world.run()
    assert started.get(timeout=0).is_alive()
    assert world.what() == ["+a", "+b", "!a", "-b", "+a", "+b", "+c"]


def test_stopping_a_bystander_during_a_restart_in_company_leaves_it_stopped(world: World):
    tree = start(world, kids(world, "ab"), strategy="one_for_all")
    world.held = {"b"}
    crash(world, tree, "a")
    stopped = tree.stop_child("b")
    world.held.clear()
    world.run()
    assert stopped.get(timeout=0) is True
    assert states(world, tree) == {"a": "running", "b": "stopped"}


def test_a_child_added_while_a_group_restarts_is_given_to_who_asked_when_it_runs(world: World):
    tree = start(world, kids(world, "a"), strategy="one_for_all")
    world.held = {"b"}
    started = tree.start_child(kid(world, "b"))
    world.run()
    crash(world, tree, "a")
    assert not started.done()
    world.held.clear()
    world.run()
    assert started.get(timeout=0) is refs(world, tree)["b"]
    assert world.what() == ["+a", "!a", "+b", "-b", "+a", "+b"]


def test_children_are_counted_and_listed_in_the_order_of_their_starts(world: World):
    tree = start(world, [kid(world, "b"), inside("sub", []), kid(world, "a", "transient")])
    child(world, tree, "a").halt()
    crash(world, tree, "b")
    counts, listed = tree.count_children(), tree.which_children()
    world.run()
    assert counts.get(timeout=0) == ChildCounts(specs=3, active=2, supervisors=1, workers=2)
    assert [(info.id, info.state, info.kind, info.restart, info.restarts) for info in listed.get(timeout=0)] == [
        ("b", ChildState.RUNNING, "worker", "permanent", 1),
        ("sub", ChildState.RUNNING, "supervisor", "permanent", 0),
        ("a", ChildState.STOPPED, "worker", "transient", 0),
    ]


@pytest.mark.parametrize("moment", ["before", "while", "after"])
def test_an_order_to_a_supervisor_that_ends_is_answered(world: World, moment: str):
    tree = start(world, kids(world, "a"))
    world.held = {"a"}
    orders: list[Any] = []

    def give_orders() -> None:
        orders.extend([tree.start_child(kid(world, "b")), tree.stop_child("a"), tree.restart_child("a")])
        orders.extend([tree.delete_child("a"), tree.which_children(), tree.count_children()])

    if moment == "before":
        give_orders()
    tree.halt()
    if moment == "while":
        world.run()
        give_orders()
    world.run()
    world.held.clear()
    world.run()
    if moment == "after":
        give_orders()
    assert not tree.is_alive()
    assert all(order.done() for order in orders)
    for order in orders[:4]:
        with pytest.raises(pykka.ActorDeadError):
            order.get(timeout=0)


# --- trees ------------------------------------------------------------------------------------------------------------


def test_a_supervisor_under_a_supervisor_has_started_when_its_children_have(world: World):
    world.held = {"x"}
    tree = start(world, [kid(world, "a"), inside("sub", kids(world, "xy")), kid(world, "b")])
    assert states(world, tree) == {"a": "running", "sub": "starting", "b": "waiting"}
    world.held.clear()
    world.run()
    assert world.what() == ["+a", "+x", "+y", "+b"]
    assert tree.started().done()
    tree.stop(block=False)
    world.run()
    assert world.what() == ["-b", "-y", "-x", "-a"]


def test_a_leaf_that_cannot_be_started_fails_the_whole_tree_with_the_way_to_it(world: World):
    cause = world.fail_start["y"] = [Crash("no")]
    first = cause[0]
    tree = start(world, [kid(world, "a"), inside("sub", kids(world, "xy")), kid(world, "b")])
    assert world.what() == ["+a", "+x", "-x", "-a"]
    error = ended(tree)[0].error
    assert isinstance(error, ChildStartFailed)
    assert error.child_id == "sub"
    assert isinstance(error.__cause__, ChildStartFailed)
    assert error.__cause__.child_id == "y"
    assert error.__cause__.__cause__ is first


def test_a_supervisor_that_escalates_is_restarted_with_all_its_children_by_its_own(world: World):
    tree = start(world, [kid(world, "a"), inside("sub", kids(world, "xy"), max_restarts=1)], max_restarts=1)
    first = child(world, tree, "sub")
    world.what()
    crash(world, first, "x")
    assert world.what() == ["!x", "+x"]
    crash(world, first, "x")
    assert world.what() == ["!x", "-y", "+x", "+y"], "a, a bystander, noticed nothing"
    second = child(world, tree, "sub")
    assert second is not first
    assert isinstance(ended(first)[0].error, RestartIntensityReached)
    assert states(world, second) == {"x": "running", "y": "running"}


def test_escalation_goes_up_the_tree_until_somebody_may_restart(world: World, reports: list[ExitReport]):
    inner = inside("inner", kids(world, "xy"), max_restarts=0)
    middle = inside("middle", [inner, kid(world, "m")], max_restarts=0)
    tree = start(world, [kid(world, "a"), middle], max_restarts=1, on_exit=reports.append)
    world.what()
    crash(world, child(world, child(world, tree, "middle"), "inner"), "x")
    assert world.what() == ["!x", "-y", "-m", "+x", "+y", "+m"]
    assert reports == []
    crash(world, child(world, child(world, tree, "middle"), "inner"), "y")
    assert world.what() == ["!y", "-x", "-m", "-a"]
    (report,) = reports
    error = report.error
    path = []
    while isinstance(error, RestartIntensityReached):
        path.append(error.child_id)
        error = error.__cause__  # type: ignore[assignment]
    assert path == ["middle", "inner", "y"]
    assert isinstance(error, Crash)


def test_a_supervisor_that_hangs_in_its_stop_is_given_up_on_with_all_below_it(world: World):
    sub = inside("sub", [kid(world, "x"), kid(world, "y", stop_timeout_s=None), kid(world, "z")], stop_timeout_s=3.0)
    tree = start(world, [kid(world, "a"), sub])
    below = refs(world, child(world, tree, "sub"))
    world.what()
    world.held = {"y"}
    tree.halt()
    world.pass_s(2.9)
    assert world.what() == ["-z"]
    world.pass_s(0.1)
    assert world.what() == ["-a"]
    assert not tree.is_alive()
    assert set(tree.unstopped) == {"sub", "sub/y", "sub/x"}
    assert not any(ref.is_alive() for ref in below.values() if ref is not None)
    world.held.clear()
    world.run()
    assert world.what() == []


def test_giving_up_goes_down_the_whole_tree(world: World):
    lower = inside("lower", [kid(world, "x"), kid(world, "y")])
    tree = start(world, [inside("upper", [lower], stop_timeout_s=1.0)])
    world.held = {"y"}
    tree.halt()
    world.pass_s(1.0)
    assert set(tree.unstopped) == {"upper", "upper/lower", "upper/lower/y", "upper/lower/x"}
    world.held.clear()
    world.run()
    assert world.what() == ["+x", "+y"]


def test_what_a_supervisor_below_gave_up_on_is_in_the_report_of_those_above(world: World):
    sub = inside("sub", [kid(world, "x", stop_timeout_s=1.0)])
    tree = start(world, [inside("mid", [sub])])
    world.held = {"x"}
    tree.halt()
    world.pass_s(1.0)
    assert not tree.is_alive()
    assert tree.unstopped == ("mid/sub/x",)


def test_children_of_a_supervisor_that_is_given_up_on_do_not_outlive_it(world: World):
    tree = start(world, kids(world, "ab"))
    found = refs(world, tree)
    order = tree.start_child(kid(world, "c"))
    tree.abandon()
    assert not any(ref.is_alive() for ref in found.values() if ref is not None)
    world.run()
    with pytest.raises(pykka.ActorDeadError):
        order.get(timeout=0)
    assert world.what() == ["+a", "+b"]


def test_children_of_a_supervisor_whose_dispatcher_closes_are_stopped(world: World):
    other = World()
    other.diary = world.diary
    specs = [ChildSpec(name, lambda name=name: Kid.start_on(other, world, name)) for name in "ab"]  # type: ignore[misc]
    tree = Supervisor.start_on(world, children=specs, clock=world, timers=world)
    for _ in range(20):
        world.run()
        other.run()
    assert tree.started().done()
    tree.which_children()
    world.ready.remove(tree)
    tree.turn_refused(DispatcherClosed("closed"))
    other.run()
    assert world.what() == ["+a", "+b", "-b", "-a"]


def test_a_supervisor_given_up_on_while_a_constructor_runs_keeps_nothing_of_it(world: World):
    made: list[ActorRef[Any]] = []

    def abandon_and_start() -> ActorRef[Any]:
        tree.abandon()
        made.append(Kid.start_on(world, world, "late"))
        return made[0]

    tree = Supervisor.start_on(
        world, children=[ChildSpec("late", abandon_and_start), kid(world, "b")], clock=world, timers=world
    )
    world.run()
    assert not made[0].is_alive()
    assert world.what() == []


# --- monitors ---------------------------------------------------------------------------------------------------------


def test_every_monitor_early_or_late_gets_one_report_of_a_supervisor(world: World):
    found: list[tuple[str, ExitReport]] = []
    tree = Supervisor.start_on(
        world,
        children=kids(world, "ab"),
        clock=world,
        timers=world,
        on_exit=lambda report: found.append(("on_exit", report)),
    )
    tree.monitor(lambda report: found.append(("early", report)))
    world.run()
    tree.stop(block=False)
    world.run()
    tree.monitor(lambda report: found.append(("late", report)))
    assert sorted(name for name, _ in found) == ["early", "late", "on_exit"]
    assert len({id(report) for _, report in found}) == 1


def test_a_late_monitor_of_a_child_gets_one_report_and_its_supervisor_has_acted_once(world: World):
    tree = start(world, kids(world, "a"))
    first = child(world, tree, "a")
    crash(world, tree, "a")
    found: list[ExitReport] = []
    first.monitor(found.append)
    world.run()
    assert len(found) == 1
    assert world.what() == ["+a", "!a", "+a"]


def test_orders_for_one_child_are_done_as_they_came(world: World):
    tree = start(world, [kid(world, "a"), kid(world, "t", "temporary")], strategy="one_for_all")
    world.held = {"a"}
    orders = [tree.stop_child("a"), tree.restart_child("a"), tree.stop_child("a"), tree.delete_child("a")]
    more = [tree.stop_child("t"), tree.start_child(kid(world, "t")), tree.start_child(kid(world, "t"))]
    world.run()
    assert not any(order.done() for order in orders)
    world.held.clear()
    world.run()
    assert [order.get(timeout=0) for order in (orders[0], orders[2], orders[3], more[0])] == [True, True, None, True]
    with pytest.raises(ChildStartFailed, match="stopped before it had started"):
        orders[1].get(timeout=0)
    assert more[1].get(timeout=0).is_alive()
    assert states(world, tree) == {"t": "running"}
    with pytest.raises(ChildExists):
        more[2].get(timeout=0)


def test_news_of_a_former_life_changes_nothing(world: World):
    tree = start(world, [kid(world, "a", stop_timeout_s=1.0)], max_restarts=10)
    for _ in range(3):
        stopped, again = tree.stop_child("a"), tree.restart_child("a")
        world.run()
        assert stopped.get(timeout=0) is True
        assert again.get(timeout=0).is_alive()
    world.pass_s(100.0)
    assert states(world, tree) == {"a": "running"}
    assert tree.unstopped == ()


def test_a_start_function_that_returns_a_dead_ref_cannot_make_a_supervisor_go_round_for_ever(world: World):
    dead = Kid.start_on(world, world, "dead")
    dead.stop(block=False)
    world.run()
    tree = start(world, [ChildSpec("a", lambda: dead)], max_restarts=5)
    assert not tree.is_alive()
    assert isinstance(ended(tree)[0].error, RestartIntensityReached)


# --- any sequence -----------------------------------------------------------------------------------------------------

ACTIONS = st.one_of(
    st.tuples(st.just("crash"), st.sampled_from("abcd")),
    st.tuples(st.just("halt"), st.sampled_from("abcd")),
    st.tuples(st.just("abandon"), st.sampled_from("abcd")),
    st.tuples(st.just("hold"), st.sampled_from("abcd")),
    st.tuples(st.just("free"), st.sampled_from("abcd")),
    st.tuples(st.just("fail_start"), st.sampled_from("abcd")),
    st.tuples(st.just("fail_construct"), st.sampled_from("abcd")),
    st.tuples(st.just("start_child"), st.sampled_from("abcd")),
    st.tuples(st.just("stop_child"), st.sampled_from("abcd")),
    st.tuples(st.just("restart_child"), st.sampled_from("abcd")),
    st.tuples(st.just("delete_child"), st.sampled_from("abcd")),
    st.tuples(st.just("steps"), st.integers(1, 6)),
    st.tuples(st.just("pass"), st.sampled_from([0.1, 1.0, 7.0])),
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    strategy=st.sampled_from(STRATEGIES),
    restarts=st.lists(st.sampled_from(KINDS), min_size=4, max_size=4),
    backoff=st.sampled_from([None, Backoff(initial_s=0.5, factor=2.0, max_s=3.0)]),
    max_restarts=st.integers(0, 6),
    actions=st.lists(ACTIONS, max_size=40),
)
def test_whatever_happens_each_id_lives_once_every_order_is_answered_and_nothing_is_left(  # noqa: PLR0915
    strategy: Strategy, restarts: list[str], backoff: Backoff | None, max_restarts: int, actions: list[tuple[str, Any]]
):
    logging.disable(logging.CRITICAL)  # hundreds of crashes on purpose
    world = World()
    alive: dict[str, set[Kid]] = {name: set() for name in "abcd"}
    lives: list[ActorRef[Any]] = []
    kinds = dict(zip("abcd", restarts, strict=True))

    class Watched(Kid):
        def __init__(self, world: World, name: str) -> None:
            super().__init__(world, name)
            assert all(not other.actor_ref.is_alive() for other in alive[name]), f"two live {name}"
            alive[name] = {self}
            lives.append(self.actor_ref)

    def spec(name: str) -> ChildSpec:
        return ChildSpec(name, (Watched, (world, name)), kinds[name], stop_timeout_s=2.0)  # type: ignore[arg-type]

    tree = Supervisor.start_on(
        world, children=[spec(name) for name in "abc"], strategy=strategy, backoff=backoff,
        max_restarts=max_restarts, clock=world, timers=world, rng=random.Random(0),
    )  # fmt: skip
    reports: list[ExitReport] = []
    tree.monitor(reports.append)
    orders: list[Any] = []
    for action, what in actions:
        match action:
            case "crash" | "halt" | "abandon":
                for one in alive[what]:
                    if action == "crash":
                        if one.actor_ref.is_alive():
                            one.actor_ref.tell(raising(Crash(what)))
                    else:
                        getattr(one.actor_ref, action)()
            case "hold":
                world.held.add(what)
            case "free":
                world.held.discard(what)
            case "fail_start" | "fail_construct":
                getattr(world, action).setdefault(what, []).append(Crash(action))
            case "start_child":
                orders.append(tree.start_child(spec(what)))
            case "stop_child" | "restart_child" | "delete_child":
                orders.append(getattr(tree, action)(what))
            case "steps":
                for _ in range(what):
                    world.step()
            case _:
                world.pass_s(what)

    world.held.clear()
    world.fail_start.clear()
    world.fail_construct.clear()
    world.pass_s(100.0)
    if tree.is_alive():
        listed = tree.which_children()
        world.run()
        rows = listed.get(timeout=0)
        assert {str(row.state) for row in rows} <= {"running", "stopped"}, "left to itself it comes to rest"
        assert all((row.ref is not None and row.ref.is_alive()) == (row.state == "running") for row in rows)
        assert tree.started().done()
        assert all(order.done() for order in orders)
        tree.stop(block=False)
        world.pass_s(100.0)
    logging.disable(logging.NOTSET)
    assert len(reports) == 1
    assert not any(ref.is_alive() for ref in lives)
    assert all(order.done() for order in orders)
    assert world.pending() == []
    assert world.ready == []


# --- with threads -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool()
    yield pool
    pool.close()


class Plain(Actor):
    def on_receive(self, message: Any) -> Any:
        return message() if callable(message) else message


def test_a_tree_on_threads_starts_restarts_and_stops(pool: WorkerPool):
    sub = ChildSpec("sub", (Supervisor, (), {"children": [ChildSpec("x", Plain), ChildSpec("y", Plain)]}))
    tree = Supervisor.start_on(pool, children=[ChildSpec("a", Plain), sub], strategy="one_for_all")
    tree.started().get(timeout=10)
    first = {info.id: info.ref for info in tree.which_children().get(timeout=10)}
    assert first["a"] is not None
    first["a"].tell(raising(Crash("a")))

    def all_new() -> bool:
        now = {info.id: info for info in tree.which_children().get(timeout=10)}
        return all(info.state == "running" and info.ref is not first[name] for name, info in now.items())

    wait_until(all_new)
    assert tree.stop(timeout=10) is True
    assert not tree.is_alive()


def test_a_child_that_hangs_on_a_thread_is_given_up_on_and_reported_and_stop_returns(pool: WorkerPool):
    release, inside_ = threading.Event(), threading.Event()

    class Hangs(Plain):
        def on_stop(self) -> None:
            inside_.set()
            release.wait(30)

    tree = Supervisor.start_on(
        pool, children=[ChildSpec("a", Plain), ChildSpec("hung", Hangs, stop_timeout_s=0.05), ChildSpec("b", Plain)]
    )
    tree.started().get(timeout=10)
    began_s = time.monotonic()
    assert tree.stop(timeout=10) is True
    assert time.monotonic() - began_s < 5
    assert inside_.is_set()
    assert tree.unstopped == ("hung",)
    release.set()


def test_a_supervisor_is_never_held_up_by_a_child_that_hangs_while_it_starts(pool: WorkerPool):
    release = threading.Event()

    class Slow(Plain):
        def on_start(self) -> None:
            release.wait(30)

    tree = Supervisor.start_on(pool, children=[ChildSpec("a", Plain), ChildSpec("slow", Slow, stop_timeout_s=0.05)])
    states_ = {info.id: info.state for info in tree.which_children().get(timeout=5)}
    assert states_["slow"] in {ChildState.WAITING, ChildState.STARTING}
    assert tree.stop(timeout=10) is True
    assert tree.unstopped in {("slow",), ()}
    release.set()


def test_a_child_may_use_its_own_supervisor(pool: WorkerPool):
    answers: list[Any] = []

    class Manager(Plain):
        def on_receive(self, message: Any) -> Any:
            ref = tree.start_child(ChildSpec("made", Plain)).get(timeout=10)
            answers.append(ref.ask("hello", timeout=10))
            return tree.stop_child("made").get(timeout=10)

    tree = Supervisor.start_on(pool, children=[ChildSpec("manager", Manager)])
    tree.started().get(timeout=10)
    (manager,) = tree.which_children().get(timeout=10)
    assert manager.ref is not None
    assert manager.ref.ask("go", timeout=10) is True
    assert answers == ["hello"]
    tree.stop(timeout=10)


def test_orders_are_awaited_on_an_event_loop(pool: WorkerPool):
    async def main() -> list[str]:
        tree = Supervisor.start_on(pool, children=[ChildSpec("a", Plain)])
        await tree.started()
        ref = await tree.start_child(ChildSpec("b", Plain))
        assert await ref.ask("hello", block=False) == "hello"
        names = [info.id for info in await tree.which_children()]
        assert await tree.stop(block=False)
        return names

    assert asyncio.run(main()) == ["a", "b"]


def test_start_uses_the_default_dispatcher_and_the_systems_time():
    tree = Supervisor.start(children=[ChildSpec("a", Plain.start)], backoff=Backoff(initial_s=0.001, max_s=0.001))
    tree.started().get(timeout=10)
    (info,) = tree.which_children().get(timeout=10)
    assert info.ref is not None
    info.ref.tell(raising(Crash("a")))
    wait_until(lambda: tree.which_children().get(timeout=10)[0].restarts == 1)
    wait_until(lambda: tree.which_children().get(timeout=10)[0].state == "running")
    assert tree.stop(timeout=10)


def test_many_threads_may_give_orders_and_every_one_is_answered_though_it_stops_meanwhile(pool: WorkerPool):
    tree = Supervisor.start_on(pool)
    tree.started().get(timeout=10)
    answered: list[int] = []
    began = threading.Barrier(5)

    def client(number: int) -> None:
        began.wait(10)
        for n in range(200):
            name = f"{number}-{n}"
            for order in (tree.start_child(ChildSpec(name, Plain)), tree.stop_child(name), tree.delete_child(name)):
                with contextlib.suppress(pykka.ActorDeadError, ChildNotFound, ChildNotStopped, ChildStartFailed):
                    order.get(timeout=30)
                answered.append(1)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    began.wait(10)
    wait_until(lambda: len(answered) > 600, 30)
    assert tree.stop(timeout=30)
    for thread in threads:
        thread.join(60)
    assert len(answered) == 4 * 200 * 3
    assert tree.unstopped == ()


def test_crashes_from_many_threads_leave_each_child_alive_once(pool: WorkerPool):
    tree = Supervisor.start_on(pool, children=[ChildSpec(str(n), Plain) for n in range(10)], max_restarts=10**6)
    tree.started().get(timeout=10)

    def crasher(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(100):
            info = rng.choice(tree.which_children().get(timeout=30))
            if info.ref is not None:
                with contextlib.suppress(pykka.ActorDeadError):
                    info.ref.tell(raising(Crash("x")))

    def answers(ref: ActorRef[Any] | None) -> bool:
        try:
            return ref is not None and ref.ask("hello", timeout=10) == "hello"
        except pykka.ActorDeadError:  # of a crash that was told before
            return False

    logging.disable(logging.CRITICAL)
    try:
        threads = [threading.Thread(target=crasher, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        wait_until(lambda: all(answers(info.ref) for info in tree.which_children().get(timeout=10)), 30)
    finally:
        logging.disable(logging.NOTSET)
    assert tree.count_children().get(timeout=10).active == 10
    assert tree.stop(timeout=30)


def test_ten_thousand_children_start_and_stop_without_a_search_for_each(pool: WorkerPool):
    tree = Supervisor.start_on(pool, children=[ChildSpec(str(n), Plain) for n in range(10_000)])
    tree.started().get(timeout=60)
    assert tree.count_children().get(timeout=10).active == 10_000
    assert tree.stop(timeout=60)


def test_a_supervisor_that_has_ended_is_garbage_with_all_its_children(world: World):
    tree = start(world, kids(world, "ab"))
    gone = [weakref.ref(tree._actor_weakref()), *(weakref.ref(ref) for ref in refs(world, tree).values())]  # type: ignore[type-var]
    tree.stop(block=False)
    world.run()
    world.timers.clear()
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]
