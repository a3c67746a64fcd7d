"""What actor.py takes for granted about pykka. When one of these fails after an upgrade, look there first."""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import queue
import re
import subprocess
import sys
import typing
from typing import Any

import pykka
import pytest
from pykka import _actor, _introspection, _proxy, _ref, messages

from executus.actors.actor import Actor, ActorFuture, ActorRef


def source(thing: Any) -> str:
    return inspect.getsource(thing)


def test_pykka_is_the_version_that_was_read():
    major, minor = map(int, importlib.metadata.version("pykka").split(".")[:2])
    assert (major, minor) >= (4, 5)
    assert major < 5


def test_importing_pykka_adds_a_null_handler_and_starts_nothing():
    assert [type(handler) for handler in logging.getLogger("pykka").handlers] == [logging.NullHandler]
    program = "import threading, executus.actors.actor, pykka.typing; print(threading.active_count())"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "1\n"


# --- the methods that are overridden exist and have the shape that is overridden --------------------------------------


@pytest.mark.parametrize(
    "name", ["__init__", "start", "stop", "_create_actor_inbox", "_create_future", "_start_actor_loop"]
)
def test_what_actor_overrides_is_there(name: str):
    assert name in vars(pykka.Actor)


def test_exactly_three_methods_of_pykka_s_actor_are_abstract():
    assert pykka.Actor.__abstractmethods__ == {"_create_actor_inbox", "_create_future", "_start_actor_loop"}


@pytest.mark.parametrize("name", ["__init__", "is_alive", "tell", "ask", "stop", "proxy", "__str__", "__repr__"])
def test_what_the_ref_overrides_or_inherits_is_there(name: str):
    assert name in vars(pykka.ActorRef)


@pytest.mark.parametrize(
    "name", ["get", "set", "set_exception", "set_get_hook", "__await__", "map", "filter", "join", "reduce"]
)
def test_what_the_future_overrides_or_inherits_is_there(name: str):
    assert name in vars(pykka.Future)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ActorRef.ask, pykka.ActorRef.ask),
        (ActorRef.stop, pykka.ActorRef.stop),
        (ActorRef.tell, pykka.ActorRef.tell),
        (ActorFuture.get, pykka.Future.get),
        (ActorFuture.set, pykka.Future.set),
        (ActorFuture.set_exception, pykka.Future.set_exception),
        (ActorFuture.set_get_hook, pykka.Future.set_get_hook),
        (Actor.start, pykka.Actor.start),
        (Actor.stop, pykka.Actor.stop),
    ],
    ids=lambda function: function.__qualname__,
)
def test_our_calls_take_what_pykka_s_take(ours: Any, theirs: Any):
    def shape(function: Any) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    assert shape(ours) == shape(theirs)


def test_no_public_method_of_pykka_s_was_missed():
    # A new one would run on state that our classes do not have.
    def public(cls: type) -> set[str]:
        return {name for name, value in vars(cls).items() if callable(value) and not name.startswith("_")}

    assert public(pykka.ActorRef) == {"is_alive", "tell", "ask", "stop", "proxy"}
    assert public(pykka.Future) == {"get", "set", "set_exception", "set_get_hook", "filter", "join", "map", "reduce"}
    assert public(pykka.Actor) == {"stop", "on_start", "on_stop", "on_failure", "on_receive"}
    assert isinstance(vars(pykka.Actor)["start"], classmethod)


# --- state that pykka's inherited code reads --------------------------------------------------------------------------


def test_proxies_reach_the_actor_through_is_alive_and_actor_weakref_alone():
    text = source(_proxy)
    assert "actor_ref._actor_weakref()" in text
    assert "actor_ref.is_alive()" in text
    code = source(_proxy.ActorProxy.__init__) + source(_proxy.ActorProxy.__getattr__)
    code += source(_proxy.ActorProxy.__setattr__) + source(_proxy.CallableProxy)
    called = set(re.findall(r"^ +(?!>>>)[^#`\n]*actor_ref\.(\w+)\(", code, re.MULTILINE))
    assert called == {"is_alive", "_actor_weakref", "ask", "tell"}


def test_the_ref_s_inherited_text_reads_only_class_and_urn():
    assert source(_ref.ActorRef.__str__).count("self.") == 2
    assert "actor_class.__name__" in source(_ref.ActorRef.__str__)
    assert "actor_urn" in source(_ref.ActorRef.__str__)


def test_a_future_derived_by_pykka_is_made_without_arguments_and_given_a_hook():
    for method in (pykka.Future.map, pykka.Future.filter, pykka.Future.join, pykka.Future.reduce):
        text = source(method)
        assert "self.__class__()" in text
        assert "set_get_hook(" in text
        assert "self._get_hook" not in text


def test_pykka_s_future_has_an_init_that_only_sets_what_our_get_does_not_read():
    bare: pykka.Future[Any] = pykka.Future()
    assert set(vars(bare)) == {"_get_hook", "_get_hook_result"}


def test_the_actor_s_inherited_hooks_read_no_state():
    for hook in (pykka.Actor.on_start, pykka.Actor.on_stop, pykka.Actor.on_failure, pykka.Actor.on_receive):
        lines = [line for line in source(hook).split('"""')[-1].splitlines() if "self." in line]
        assert lines == []


def test_handle_receive_knows_stop_and_the_three_proxy_messages_and_nothing_else():
    text = source(_actor.Actor._handle_receive)
    checked = {part.split(")")[0] for part in text.split("isinstance(message, messages.")[1:]}
    assert checked == {"_ActorStop", "ProxyCall", "ProxyGetAttr", "ProxySetAttr"}


def test_the_messages_are_these_and_compare_by_exact_type():
    kinds = {
        name
        for name, value in vars(messages).items()
        if isinstance(value, type) and issubclass(value, tuple) and value.__module__ == "pykka.messages"
    }
    assert kinds == {"_ActorStop", "ProxyCall", "ProxyGetAttr", "ProxySetAttr"}
    assert messages._ActorStop() == ()


def test_proxies_introspect_classes_and_instances_without_calling_properties():
    # Our `actor_stopped` makes an event when asked for; a proxy that asked would make one each time.
    class Probe(Actor):
        @property
        def costly(self) -> int:
            raise AssertionError("called")

    actor = Probe()
    attributes = _introspection.introspect_attrs(root=actor, proxy=typing.cast("Any", object()))
    assert ("costly",) in attributes
    assert ("actor_stopped",) in attributes
    assert actor.actor_ref._monitors == ()


def test_pykka_s_errors_are_plain_exceptions_that_ours_can_join():
    assert pykka.ActorDeadError.__bases__ == (Exception,)
    assert pykka.Timeout.__bases__ == (Exception,)


def test_a_future_settled_twice_raises_queue_full_in_pykka():
    future: pykka.ThreadingFuture[int] = pykka.ThreadingFuture()
    future.set(1)
    with pytest.raises(queue.Full):
        future.set(2)
    with pytest.raises(queue.Full):
        future.set_exception((None, ValueError(), None))
    with pytest.raises(queue.Full):
        future.set_get_hook(lambda _: 1)


# --- that nothing of pykka's global machinery is used -----------------------------------------------------------------


def test_our_actors_are_not_in_pykka_s_registry():
    ref = Actor.start()
    assert pykka.ActorRegistry.get_all() == []
    ref.stop()


def test_the_hazards_that_the_seam_mends_are_still_there():
    # If pykka mends one, ours can go.
    loop = source(_actor.Actor._actor_loop_running)
    assert "ActorRegistry.stop_all()" in loop
    assert "except BaseException" not in source(_actor.Actor._actor_loop_setup)
    assert "yield\n" in source(pykka.Future.__await__)
    assert isinstance(vars(pykka.ThreadingActor)["use_daemon_thread"], bool)
    assert not pykka.ThreadingActor.use_daemon_thread
    assert isinstance(pykka.ActorRegistry._actor_refs, list)


def test_generic_classes_of_pykka_leave_room_for_ours():
    # Mailbox and Promise come first in the order of bases; pykka's classes have no slots that could clash.
    assert ActorRef.__mro__.index(pykka.ActorRef) > 1
    assert ActorFuture.__mro__.index(pykka.Future) > 1
    assert "__slots__" not in vars(pykka.ActorRef)
    assert "__slots__" not in vars(pykka.Future)
