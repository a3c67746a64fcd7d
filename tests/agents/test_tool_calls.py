"""Calls of tools: each becomes a result that can be stored and read; what is no Exception passes on, others ended first."""

from __future__ import annotations

import asyncio
import enum
import itertools
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executus.actors.agents.errors import ToolError
from executus.actors.agents.parts import Image, ToolCall, ToolResult
from executus.actors.agents.tool import Tool, ToolContext, tool
from executus.actors.agents.tool_calls import (
    MAX_TOGETHER,
    answer,
    effect_after_interruption,
    groups,
    kind_of,
    run_group,
    tool_key,
)
from executus.actors.agents.toolbox import Toolbox
from tests.agents.tool_parts import a_context, a_run
from tests.waiting import await_until

MANY = 10_000


def a_call(name: str, arguments: str = "{}", call_id: str = "c1") -> ToolCall:
    return ToolCall(call_id, name, arguments)


async def on_a_thread(function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
    return await asyncio.to_thread(function, *args, **kwargs)


def answered(
    function: Callable[..., Any], arguments: str = "{}", *, context: ToolContext | None = None, chars: int = MANY
) -> ToolResult:
    """The result of one call."""
    one = function if isinstance(function, Tool) else Tool.of(function)
    given = context or a_context()
    return asyncio.run(answer(one, a_call(one.name, arguments), lambda call: given, on_a_thread, chars))


class Point(msgspec.Struct):
    x: int


class Mood(str, enum.Enum):  # noqa: UP042 - its str() is `Mood.GOOD`
    GOOD = "good"


class Loud(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("not this way")


# --- what a tool returns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as\nit is", "as\nit is"),
        ("", ""),
        (None, "ok"),
        (0, "0"),
        (True, "true"),
        (["a", Point(1)], '["a",{"x":1}]'),
        ({"ä": 1.5}, '{"ä":1.5}'),
        ({1: 2}, '{"1":2}'),
        (Mood.GOOD, "good"),
        (Loud("hey"), "hey"),
        ("caf\udce9", "caf\\udce9"),
        (["caf\udce9", Point(1)], '["caf\\udce9", {"x": 1}]'),
    ],
)
def test_what_a_tool_returns_becomes_a_text_that_can_be_stored(value: object, text: str) -> None:
    def gives() -> Any:
        return value

    async def gives_too() -> Any:
        return value

    assert answered(gives) == ToolResult("c1", "gives", text)
    assert answered(gives_too) == ToolResult("c1", "gives_too", text)
    text.encode()


@given(st.recursive(st.text(st.characters(codec=None)) | st.integers(), st.lists))
def test_lists_of_any_text_are_json_that_can_be_stored(value: Any) -> None:
    def gives() -> Any:
        return [value]

    result = answered(gives)
    assert not result.is_error
    result.text.encode()
    assert json.loads(result.text) == json.loads(json.dumps([value]))


def endless() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("make", "why"), [(object, "type object"), (endless, "type list"), (lambda: {(1, 2): 3}, "type dict")]
)
def test_what_cannot_be_put_into_json_is_an_error_that_says_the_call_took_place(make: Any, why: str) -> None:
    def gives() -> Any:
        return make()

    result = answered(gives)
    assert result.is_error
    assert result.text.startswith(f"The call took place, but what it returned, of {why}, cannot be put into JSON: ")


def test_a_long_result_is_cut_visibly() -> None:
    def long(n: int) -> str:
        return "ä" * n

    def fails(n: int) -> str:
        raise ToolError("e" * n)

    assert answered(long, '{"n": 10}', chars=10).text == "ä" * 10
    assert answered(long, '{"n": 11}', chars=10).text == "ä" * 10 + "… [cut: 10 of 11 characters]"
    assert answered(fails, '{"n": 11}', chars=10).text == "e" * 10 + "… [cut: 10 of 11 characters]"


# --- how it is called -------------------------------------------------------------------------------------------------


def test_sync_tools_run_on_a_worker_thread_and_async_ones_on_the_loop() -> None:
    def sync() -> bool:
        return threading.current_thread() is threading.main_thread()

    async def on_loop() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert answered(sync).text == "false"
    assert answered(on_loop).text == "true"


def test_a_coroutine_function_behind_a_plain_wrapper_is_awaited() -> None:
    async def inner(text: str) -> str:
        await asyncio.sleep(0)
        return text

    def wrapper(text: str) -> Awaitable[str]:
        return inner(text)

    assert answered(wrapper, '{"text": "a"}').text == "a"


def test_parameters_of_any_name_reach_the_tool() -> None:
    def odd(function: int, func: int, args: int, kwargs: int) -> int:
        return function + func + args + kwargs

    assert answered(odd, '{"function": 1, "func": 2, "args": 3, "kwargs": 4}').text == "10"


def test_a_tool_that_wants_its_context_gets_it() -> None:
    def notes(text: str, this: ToolContext) -> str:
        this.note("seen", text)
        this.attach_images(Image(b"PNG"))
        return this.idempotency_key

    context = a_context("c1")
    assert answered(notes, '{"text": "a"}', context=context).text == "key-of-c1"
    assert [note.json for note in context.noted] == ['"a"']
    assert context.attached == (Image(b"PNG"),)
    with pytest.raises(ToolError, match="this call is over"):
        context.note("late", 1)


def test_arguments_that_do_not_fit_are_an_error_result_and_the_tool_is_not_called() -> None:
    called: list[int] = []

    def count(n: int) -> None:
        called.append(n)

    result = answered(count, '{"n": "one"}')
    assert result.is_error
    assert result.text == (
        'The arguments of count do not fit: Expected `int`, got `str` - at `$.n`. Expected: {"n": integer}'
    )
    assert called == []


# --- what it raises ---------------------------------------------------------------------------------------------------


class Nameless(Exception):
    def __str__(self) -> str:
        raise SystemExit


GROUP = ExceptionGroup("two failed", [ValueError("a"), ExceptionGroup("inner", [ToolError("b"), OSError()])])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ToolError("no such file\ntry: ls"), "no such file\ntry: ls"),
        (ToolError("caf\udce9"), "caf\\udce9"),
        (ToolError(), "ToolError"),
        (ValueError("a\x1b[31m"), "ValueError: a\\x1b[31m"),
        (KeyError("k"), "KeyError: 'k'"),
        (OSError(), "OSError"),
        (StopAsyncIteration("x"), "StopAsyncIteration: x"),
        (TimeoutError(), "TimeoutError"),
        (MemoryError(), "MemoryError"),
        (Nameless(), "Nameless: <Nameless whose __str__ raised SystemExit>"),
        (GROUP, "ExceptionGroup: two failed (2 sub-exceptions)\n- ValueError: a\n- b\n- OSError"),
    ],
)
def test_an_exception_is_an_error_result(error: Exception, text: str) -> None:
    def fails() -> None:
        raise error

    async def fails_too() -> None:
        raise error

    assert answered(fails) == ToolResult("c1", "fails", text, is_error=True)
    assert answered(fails_too) == ToolResult("c1", "fails_too", text, is_error=True)


def test_an_iterator_that_is_spent_is_an_error_result_and_no_hang() -> None:
    def next_of_nothing() -> object:
        return next(iter(()))

    async def next_of_nothing_too() -> object:
        return next(iter(()))

    assert answered(next_of_nothing).text == "RuntimeError: the tool raised StopIteration"
    assert answered(next_of_nothing_too).text == "RuntimeError: coroutine raised StopIteration"


def test_of_a_large_group_the_first_errors_are_told() -> None:
    def fails() -> None:
        raise ExceptionGroup("many", [ValueError(at) for at in range(1000)])

    lines = answered(fails).text.splitlines()
    assert lines[0] == "ExceptionGroup: many (1000 sub-exceptions)"
    assert lines[1:] == [f"- ValueError: {at}" for at in range(10)]


class Lines:
    """A logger that keeps what it is told, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.error = error

    def info(self, event: str, **fields: Any) -> None:
        if self.error is not None:
            raise self.error
        self.lines.append((event, fields))


class LoggedContext(ToolContext):
    lines: Lines

    @property
    def log(self) -> Lines:
        return self.lines


def logged(lines: Lines) -> ToolContext:
    context = LoggedContext(a_run(), a_context().info, call_id="c1", idempotency_key="k")
    context.lines = lines
    return context


def fails_with_a_secret(secret: str) -> None:
    raise ValueError("bad\nvalue")


def test_an_error_is_logged_with_its_traceback_and_without_the_arguments() -> None:
    lines = Lines()
    answered(fails_with_a_secret, '{"secret": "hunter2"}', context=logged(lines))
    (event, fields), *others = lines.lines
    assert (event, others) == ("a tool failed", [])
    assert (fields["tool"], fields["call_id"], fields["error"]) == ("fails_with_a_secret", "c1", "bad\\nvalue")
    assert "in fails_with_a_secret" in fields["exception"]
    assert "hunter2" not in str(fields)


def test_a_log_that_raises_harms_nothing() -> None:
    result = answered(fails_with_a_secret, '{"secret": ""}', context=logged(Lines(OSError("closed"))))
    assert result.text == "ValueError: bad\\nvalue"


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit(), BaseExceptionGroup("b", [SystemExit(1)])])
def test_what_is_no_exception_passes_on_and_the_call_is_over(error: BaseException) -> None:
    async def fails(this: ToolContext) -> None:
        raise error

    async def caught() -> BaseException | None:
        try:
            await answer(Tool.of(fails), a_call("fails"), lambda call: context, on_a_thread, MANY)
        except BaseException as caught:
            return caught
        return None

    context = a_context()
    assert asyncio.run(caught()) is error
    with pytest.raises(ToolError, match="this call is over"):
        context.note("late", 1)


def test_a_thread_that_was_given_up_on_can_note_nothing_more() -> None:
    context = a_context()
    cancelled, ended = threading.Event(), threading.Event()
    told: list[str] = []

    def stubborn(this: ToolContext) -> None:
        this.note("in time", 1)
        cancelled.wait(30)
        try:
            this.note("late", 2)
        except ToolError as error:
            told.append(str(error))
        ended.set()

    async def cancel_it() -> None:
        task = asyncio.create_task(
            answer(Tool.of(stubborn), a_call("stubborn"), lambda call: context, on_a_thread, MANY)
        )
        await await_until(lambda: context.noted)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert context.cancelled
        cancelled.set()
        await await_until(ended.is_set)

    asyncio.run(cancel_it())
    assert [note.name for note in context.noted] == ["in time"]
    assert len(told) == 1


# --- groups -----------------------------------------------------------------------------------------------------------


def box() -> Toolbox:
    def look() -> None: ...
    def put() -> None: ...
    def pay() -> None: ...
    def mail() -> None: ...

    effects: dict[Any, Any] = {look: "pure", put: "idempotent", pay: "keyed", mail: "unsafe"}
    return Toolbox(Tool.of(function, effect=effect) for function, effect in effects.items())


def test_calls_are_cut_where_an_unsafe_one_or_the_palette_begins_or_ends() -> None:
    names = ["look", "put", "mail", "mail", "agent__a", "skill__b", "unknown", "pay", "mail", "agent__a"]
    calls = [a_call(name, call_id=str(at)) for at, name in enumerate(names)]
    cut = [[call.name for call in group] for group in groups(calls, box())]
    assert cut == [
        ["look", "put"],
        ["mail"],
        ["mail"],
        ["agent__a", "skill__b"],
        ["unknown", "pay"],
        ["mail"],
        ["agent__a"],
    ]
    assert list(groups([], box())) == []


@given(
    st.lists(st.sampled_from(["look", "look", "put", "pay", "mail", "agent__a", "skill__b", "unknown"]), max_size=60)
)
def test_groups_keep_every_call_in_order_and_an_unsafe_one_alone(names: list[str]) -> None:
    calls = tuple(a_call(name, call_id=str(at)) for at, name in enumerate(names))
    found = list(groups(calls, box()))
    assert tuple(itertools.chain(*found)) == calls
    kinds = [[kind_of(call, box()) for call in group] for group in found]
    assert all(len(set(group)) == 1 for group in kinds)
    assert all(len(group) == 1 for group in kinds if "unsafe" in group)
    assert all(
        a[0] == "unsafe" or a[0] != b[0] or (a[0] == "other" and len(a) == MAX_TOGETHER)
        for a, b in itertools.pairwise(kinds)
    )
    assert all(len(group) <= MAX_TOGETHER for group in kinds if "other" in group)


def test_all_but_unsafe_calls_run_again_after_an_interruption() -> None:
    assert [effect_after_interruption(effect) for effect in ("pure", "idempotent", "keyed", "unsafe")] == [
        *["run_again"] * 3,
        "unknown",
    ]


def run(calls: list[ToolCall], toolbox: Toolbox, offered: tuple[str, ...] | None = None) -> tuple[ToolResult, ...]:
    return asyncio.run(in_group(calls, toolbox, offered))


async def in_group(
    calls: list[ToolCall],
    toolbox: Toolbox,
    offered: tuple[str, ...] | None = None,
    contexts: dict[str, ToolContext] | None = None,
) -> tuple[ToolResult, ...]:
    known = {} if contexts is None else contexts

    def context_of(call: ToolCall) -> ToolContext:
        return known.setdefault(call.id, a_context(call.id))

    names = tuple(call.name for call in calls) if offered is None else offered
    return await run_group(calls, toolbox, names, context_of, run_sync=on_a_thread, result_chars=MANY)


def test_pure_calls_run_side_by_side_on_loop_and_threads_with_results_in_order() -> None:
    both = threading.Barrier(2)
    met = asyncio.Event()

    @tool(effect="pure")
    def sync(n: int) -> int:
        both.wait(30)  # passes once the other sync call is there, too
        return n

    @tool(effect="pure")
    async def first(n: int) -> int:
        await asyncio.wait_for(met.wait(), 30)
        return n

    @tool(effect="pure")
    async def last(n: int) -> int:
        met.set()
        return n

    names = ["first", "sync", "sync", "last"]
    calls = [a_call(name, f'{{"n": {at}}}', call_id=f"c{at}") for at, name in enumerate(names)]
    results = run(calls, Toolbox([sync, first, last]))
    assert [(one.call_id, one.text) for one in results] == [("c0", "0"), ("c1", "1"), ("c2", "2"), ("c3", "3")]


def test_calls_that_leave_something_behind_run_one_after_the_other() -> None:
    running: list[str] = []
    order: list[str] = []

    async def alone(name: str) -> None:
        assert running == []
        running.append(name)
        for _ in range(5):
            await asyncio.sleep(0)
        running.remove(name)
        order.append(name)

    @tool(effect="idempotent")
    async def put(name: str) -> None:
        await alone(name)

    @tool(effect="keyed")
    async def pay(name: str) -> None:
        await alone(name)

    names = ["put", "pay", "put", "pay"]
    calls = [a_call(name, f'{{"name": "{at}"}}', call_id=f"c{at}") for at, name in enumerate(names)]
    assert [one.text for one in run(calls, Toolbox([put, pay]))] == ["ok"] * 4
    assert order == ["0", "1", "2", "3"]


def test_a_tool_that_there_is_not_or_that_is_not_offered_is_not_called() -> None:
    called: list[str] = []

    def mail(to: str) -> None:
        called.append(to)

    @tool(effect="pure")
    def look() -> str:
        return "seen"

    calls = [a_call("mail", '{"to": "a"}', "c1"), a_call("look", call_id="c2"), a_call("other", call_id="c3")]
    first, second, third = run(calls, Toolbox([mail, look]), ("look", "not_registered"))
    assert first == ToolResult("c1", "mail", "There is no tool 'mail'. There are: look", is_error=True)
    assert second == ToolResult("c2", "look", "seen")
    assert third.text == "There is no tool 'other'. There are: look"
    assert run(calls[2:], Toolbox())[0].text == "There is no tool 'other'. There are: none"
    assert called == []


class Ward:
    """Pure async tools that report what becomes of them."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.ended: list[str] = []
        self.begun: list[str] = []

    async def wait(self, name: str) -> None:
        """Wait for ever, and take a while to end."""
        self.waiting.append(name)
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            self.ended.append(name)

    def toolbox(self, error: BaseException | None = None) -> Toolbox:
        async def fail(name: str) -> None:
            await await_until(lambda: len(self.waiting) == 2)
            assert error is not None
            raise error

        def put(name: str) -> None:
            self.begun.append(name)

        return Toolbox(
            [Tool.of(self.wait, effect="pure"), Tool.of(fail, effect="pure"), Tool.of(put, effect="idempotent")]
        )


def named(*names: str) -> list[ToolCall]:
    return [a_call(name, f'{{"name": "{at}"}}', call_id=f"c{at}") for at, name in enumerate(names)]


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseExceptionGroup("b", [SystemExit()]),
    ],
)
def test_what_is_no_exception_ends_the_others_first_and_no_call_after_them_begins(error: BaseException) -> None:
    ward = Ward()
    contexts: dict[str, ToolContext] = {}

    async def caught() -> BaseException | None:
        try:
            await in_group(named("wait", "fail", "wait", "put"), ward.toolbox(error), contexts=contexts)
        except BaseException as caught:
            assert sorted(ward.ended) == ["0", "2"]
            assert len(asyncio.all_tasks()) == 1
            return caught
        return None

    assert asyncio.run(caught()) is error  # the loop has outlived it
    assert ward.begun == []
    assert all(context.cancelled for context in contexts.values())


def test_a_cancelled_group_cancels_its_calls_and_waits_for_them() -> None:
    ward = Ward()

    async def cancel_it() -> None:
        task = asyncio.create_task(in_group(named("wait", "wait", "put"), ward.toolbox()))
        await await_until(lambda: len(ward.waiting) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(ward.ended) == ["0", "1"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(cancel_it())
    assert ward.begun == []


def test_an_exception_of_one_leaves_the_others_alone() -> None:
    @tool(effect="pure")
    async def fail() -> None:
        raise ValueError("no")

    @tool(effect="pure")
    async def look() -> str:
        for _ in range(5):
            await asyncio.sleep(0)
        return "seen"

    calls = [a_call("look", call_id="a"), a_call("fail", call_id="b"), a_call("look", call_id="c")]
    assert [one.text for one in run(calls, Toolbox([fail, look]))] == ["seen", "ValueError: no", "seen"]


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="Python 3.12 has eager tasks")
def test_a_loop_with_eager_tasks_begins_no_call_after_the_one_that_failed() -> None:
    begun: list[str] = []

    @tool(effect="pure")
    async def fail() -> None:
        raise SystemExit(4)

    @tool(effect="pure")
    async def look() -> None:
        begun.append("look")

    async def caught() -> object:
        asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - not in 3.11
        try:
            await in_group([a_call("fail", call_id="a"), a_call("look", call_id="b")], Toolbox([fail, look]))
        except SystemExit as exit_:
            return exit_.code
        return None

    assert asyncio.run(caught()) == 4
    assert begun == []


# --- keys -------------------------------------------------------------------------------------------------------------


KEYS = st.tuples(st.text(), st.integers(0, 99), st.integers(0, 99), st.text(), st.text(st.characters(codec=None)))


@given(KEYS, KEYS)
def test_a_key_is_the_same_for_the_same_call_and_another_for_every_other(
    one: tuple[str, int, int, str, str], other: tuple[str, int, int, str, str]
) -> None:
    def key(parts: tuple[str, int, int, str, str], call_id: str = "c1") -> str:
        life, place, index, name, arguments = parts
        return tool_key(life, place, index, a_call(name, arguments, call_id))

    assert key(one) == key(one, call_id="another answer of the same model")
    assert (key(one) == key(other)) == (one == other)
    assert len(key(one)) == 40


def test_parts_of_a_key_cannot_pass_for_each_other_and_keys_stay_what_they_are() -> None:
    def key(life: str, place: int, index: int, name: str, arguments: str) -> str:
        return tool_key(life, place, index, a_call(name, arguments))

    alike = [
        ("a", 1, 11, "b", "c"),
        ("a", 11, 1, "b", "c"),
        ("a1", 1, 1, "b", "c"),
        ("a", 1, 11, "bc", ""),
        ("a", 1, 11, "", "bc"),
    ]
    assert len({key(*parts) for parts in alike}) == len(alike)
    assert key("run-1:7", 3, 0, "pay", '{"eur": 5}') == "a0d4782a3f9353cffdf21c229e6e03b71ad25a92"
