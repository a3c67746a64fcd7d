"""The single loop through a real runtime: what it says, what is counted, what is continued and what ends it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from executus.actors import (
    AsyncRuntime,
    RunFailed,
    RunHandle,
    SavePolicy,
    StopPolicy,
)
from executus.actors.agents.agent import AgentResult, Budget, Invocation, Limits
from executus.actors.agents.agents import Agents
from executus.actors.agents.audit import RunBegan, RunConcluded, RunResumed, StepTaken
from executus.actors.agents.behaviour import AgentProgress, Attribution, Standing, Transcript
from executus.actors.agents.errors import FatalModelError, InvalidAgent, ModelError, RateLimited
from executus.actors.agents.model import ModelReply, ModelRequest, Tier
from executus.actors.agents.parts import NOTHING, Image, Text, ToolCall, ToolResult, assistant
from executus.actors.agents.scripted import ScriptedModel, call, fail, say
from executus.actors.agents.steering import FollowUp, Steer
from executus.actors.agents.tool import tool
from executus.actors.agents.transcript import problems
from executus.actors.events import RunReported
from executus.actors.outcomes import Cancelled, Failed
from executus.stores import MemoryStore, Operation, Save, Verdict
from tests.agents.house import House, Traces, Trail, Watched, house, worker
from tests.waiting import wait_until

THREE = [call("look", what="a") + call("glance", what="b"), call("launch", what="c"), say("All is well.")]


def results(result: AgentResult) -> list[ToolResult]:
    return [part for message in result.transcript for part in message.parts if isinstance(part, ToolResult)]


# --- what it does


def test_a_conversation_goes_on_until_the_model_asks_for_nothing() -> None:
    with house(THREE) as it:
        result = it.start().result(10)
        assert (result.output, result.status, result.steps) == ("All is well.", "completed", 3)
        assert (result.usage.requests, result.usage.tool_calls) == (3, 3)
        assert [one.text for one in results(result)] == ["look a: done", "glance b: done", "launch c: done"]
        assert [(one.name, one.json) for one in result.notes] == [("launched", '"c"')]
        assert problems(result.transcript) == []
        assert [message.role for message in result.transcript] == [
            "user",
            "assistant",
            "tool",
            "tool",
            "assistant",
            "tool",
            "assistant",
        ]


def test_the_model_sees_system_prompt_tools_images_and_the_transcript_so_far() -> None:
    model = Watched([call("look", what="a"), say("ok")])
    image = Image(b"\x89PNG", "image/png")
    with house(model, worker(system="You look.", tools=("look",))) as it:
        it.start(asked=Invocation(prompt="Look.", images=(image,))).result(10)
    first, second = model.inner.requests
    assert first.system == "You look."
    assert [tool.name for tool in first.tools] == ["look"]
    assert first.messages[0].parts == (Text("Look."), image)
    assert len(second.messages) == 3
    assert (first.step, second.step) == (0, 1)
    assert second.info.subject == "worker"


def test_attribution_is_in_the_record_and_is_found_by_label_and_query() -> None:
    asked = Invocation(prompt="Go.", caller="ann", channel="#ops", guild="home", inputs={"topic": "rain"})  # type: ignore[arg-type]
    model = Watched([say("ok")])
    with house(model) as it, model.held_at(0) as held:
        handle = it.start(asked=asked)
        info = handle.query(Attribution())
        assert (info.caller, info.channel, info.guild, info.inputs) == ("ann", "#ops", "home", (("topic", "rain"),))
        assert (info.run_id, info.root_run_id, info.parent_run_id, info.depth) == ("r", "r", None, 0)
        assert [view.run_id for view in it.runtime.runs(label="channel=#ops")] == ["r"]
        assert handle.query(Standing()) == AgentProgress(steps=0, step_ceiling=40, usage=NOTHING, waiting_for=())
        assert [message.text for message in handle.query(Transcript())] == ["Go."]
        held.let_go()
        handle.result(10)


def test_the_audit_hears_everything_in_order_with_attribution() -> None:
    with house(THREE) as it:
        it.start().result(10)
        assert it.trail.kinds() == [
            "RunBegan", "StepTaken", "ToolAnswered", "ToolAnswered", "StepTaken", "ToolAnswered", "StepTaken", "RunConcluded",
        ]  # fmt: skip
        assert {one.info.run_id for one in it.trail.entries} == {"r"}
        assert [one.step for one in it.trail.of(StepTaken)] == [0, 1, 2]
        assert it.trail.of(RunConcluded)[0].status == "completed"
        assert [event.what for event in it.seen.of(RunReported)] == it.trail.kinds(), "as events of the runtime, too"
        assert it.seen.of(RunReported)[1].facts["subject"] == "worker"


def test_bad_arguments_and_unknown_tools_are_errors_that_the_model_reads() -> None:
    with house([call("look", whot="a") + call("nothing", x=1), say("Sorry.")]) as it:
        result = it.start().result(10)
        bad, unknown = results(result)
        assert bad.is_error
        assert "whot" in bad.text
        assert unknown.is_error
        assert "nothing" in unknown.text
        assert result.output == "Sorry."


def test_a_tool_that_was_not_offered_is_not_called() -> None:
    with house([call("look", what="a"), say("ok")], worker(tools=("put",))) as it:
        assert results(it.start().result(10))[0].is_error
        assert it.traces.done == []


def test_a_tool_that_raises_is_an_error_that_the_model_reads() -> None:
    with house([call("look", what="a"), say("ok")]) as it:
        it.traces.fail["a"] = OSError("the disk is gone")
        result = it.start().result(10)
        assert results(result)[0].is_error
        assert "the disk is gone" in results(result)[0].text


def test_running_out_of_steps_ends_the_run_with_what_was_said_last() -> None:
    with house(
        lambda request: say(f"Thinking {request.step}.") + call("look", what=str(request.step)), worker(step_ceiling=3)
    ) as it:
        result = it.start().result(10)
        assert (result.status, result.steps, result.output) == ("out_of_steps", 3, "Thinking 2.")
        assert problems(result.transcript) == []


# --- what is unknown is said at start


@pytest.mark.parametrize(
    ("agent", "named"),
    [
        (worker(tier="huge"), "unknown tier 'huge'. Registered here: default"),
        (worker(tools=("fly",)), "unknown tool 'fly'"),
        (worker(palette=("agent__nobody",)), "unknown agent 'nobody'"),
        (worker(palette=("skill__nothing",)), "unknown skill 'nothing'"),
        ("nobody", "unknown agent 'nobody'. Registered here: worker"),
    ],
)
def test_what_is_not_registered_is_an_error_at_start_and_nothing_is_left_behind(agent: Any, named: str) -> None:
    with house(THREE) as it:
        with pytest.raises(InvalidAgent, match=named):
            it.start(agent)
        assert it.runtime.runs() == []


# --- steering


def test_a_steer_reaches_the_conversation_before_its_next_step_with_its_images() -> None:
    model, image = Watched(THREE), Image(b"jpeg", "image/jpeg")
    with house(model) as it, model.held_at(1) as held:
        handle = it.start()
        held.wait()
        handle.send(Steer("Look here.", (image,)), message_id="s-1")
        held.let_go()
        result = handle.result(10)
    steered = [message for message in result.transcript if message.origin == "steer"]
    assert [message.parts for message in steered] == [(Text("Look here."), image)]
    assert steered[0] in model.seen(2)
    assert problems(result.transcript) == []
    assert it.trail.kinds().count("Steered") == 1


def test_without_a_prompt_the_conversation_begins_with_what_is_said_first() -> None:
    model = Watched([say("Hello, ann.")])
    with house(model) as it:
        result = it.start(asked=Invocation(caller="ann"), first=Steer("Hello.")).result(10)
    assert [message.text for message in model.seen(0)] == ["Hello."]
    assert [message.text for message in result.transcript] == ["Hello.", "Hello, ann."]


def test_a_follow_up_is_asked_when_the_run_would_end() -> None:
    model = Watched([say("One."), say("Two.")])
    with house(model) as it:
        result = it.start(first=FollowUp("And then?")).result(10)
        assert result.output == "Two."
        assert [message.text for message in result.transcript] == ["Go.", "One.", "And then?", "Two."]


# --- what is over a resume


def test_a_drained_run_goes_on_from_its_transcript_and_runs_no_answered_call_again(store_path: Path) -> None:
    traces, trail = Traces(), Trail()
    model = Watched(THREE)
    with house(model, store=store_path, traces=traces, trail=trail) as it, model.held_at(1) as held:
        it.start(stop_policy=StopPolicy(grace_s=0.05))
        held.wait()
        it.runtime.drain(5)
    assert traces.count("a") == 1
    with house(model, store=store_path, traces=traces, trail=trail) as it:
        result = it.runtime.get("r").result(10)
        assert result.output == "All is well."
        assert (result.steps, result.usage.requests, result.usage.tool_calls) == (3, 3, 3)
        assert (traces.count("a"), traces.count("b"), traces.count("c")) == (1, 1, 1)
        assert [message.text for message in result.transcript if message.role == "user"] == ["Go."]
        assert len(trail.of(RunBegan)) == 1
        assert [one.step for one in trail.of(RunResumed)] == [1]


def test_a_run_whose_tools_are_gone_is_parked_and_goes_on_when_they_are_back(store_path: Path) -> None:
    model = Watched(THREE)
    traces = Traces()
    with house(model, store=store_path, traces=traces) as it, model.held_at(1) as held:
        it.start(stop_policy=StopPolicy(grace_s=0.05))
        held.wait()
        it.runtime.drain(5)
    without = [one for one in traces.tools if one.name != "launch"]
    with house(model, worker(tools=("look",)), store=store_path, tools=without, traces=traces) as it:
        wait_until(lambda: it.runtime.get("r").status().status.value == "parked", 10)
        assert "unknown tool 'launch'" in it.runtime.get("r").status().reason
    with house(model, store=store_path, traces=traces) as it:
        assert it.runtime.get("r").result(10).output == "All is well."


# --- limits


def test_tool_errors_in_a_row_end_the_run_by_name() -> None:
    with house(
        lambda request: call("look", what=f"x{request.step}"), worker(limits=Limits(tool_errors_in_a_row=3))
    ) as it:
        it.traces.fail |= {f"x{n}": ValueError("no") for n in range(9)}
        outcome = it.start().outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.error.type.endswith("TooManyToolErrors")
        assert outcome.restarts == 0
        assert outcome.error.facts["tool_calls"] == 3
        assert len(it.traces.done) == 3


def test_the_same_call_again_and_again_ends_the_run_by_name_however_it_is_spelt() -> None:
    spelt = ['{"what": "a"}', '{"what":"a"}', '{ "what" : "a" }']

    def script(request: Any) -> Any:

        return ModelReply(assistant(ToolCall(f"c{request.step}", "look", spelt[request.step % 3])))

    with house(script, worker(limits=Limits(same_call_in_a_row=4))) as it:
        outcome = it.start().outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.error.type.endswith("RepeatedCall")
        assert it.traces.count("a") == 4


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        (Budget(steps=2), "steps"),
        (Budget(tool_calls=1), "tool_calls"),
        (Budget(tokens=40), "tokens"),
        (Budget(usd=0.001), "usd"),
    ],
)
def test_a_budget_ends_the_run_by_name_before_the_call_that_does_not_fit(budget: Budget, limit: str) -> None:

    script = [call("look", what=str(n)).using(15, 5, 0.001) for n in range(9)]
    model = Tier(model=ScriptedModel(script), usd_in=1.0, usd_out=1.0)
    with house((), worker(budget=budget), models={"default": model}) as it:
        outcome = it.start().outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.error.type.endswith("BudgetExceeded")
        assert outcome.error.facts["limit"] == limit
        assert outcome.error.facts["requests"] <= 2


# --- models that fail


def test_a_transient_error_of_the_model_restarts_the_run_from_its_last_snapshot() -> None:
    script = [call("look", what="a"), fail(ModelError("503"), times=2), say("ok")]
    with house(script) as it:
        handle = it.start()
        assert handle.result(10).output == "ok"
        assert handle.status().restarts == 2
        assert it.traces.count("a") == 1


def test_a_fatal_error_of_the_model_fails_the_run_at_once() -> None:
    with house([fail(FatalModelError("bad key"), times=None)]) as it:
        handle = it.start()
        with pytest.raises(RunFailed, match="bad key"):
            handle.result(10)
        assert handle.status().restarts == 0
        wait_until(lambda: "RunConcluded" in it.trail.kinds(), 10)
        assert it.trail.of(RunConcluded)[0].status == "failed"


def test_a_rate_limit_is_waited_out_within_the_step() -> None:
    with house([fail(RateLimited("slow down", retry_after_s=0.01), times=3), say("ok")]) as it:
        handle = it.start()
        assert handle.result(10).output == "ok"
        assert handle.status().restarts == 0


def test_a_run_that_waits_for_its_provider_ends_at_once_when_it_is_cancelled() -> None:
    reached = threading.Event()

    class Limited:
        async def request(self, request: Any) -> Any:
            reached.set()
            raise RateLimited("tomorrow", retry_after_s=86_400)

    with house(Limited()) as it:
        handle = it.start()
        assert reached.wait(10)
        handle.cancel("enough", timeout_s=10)
        assert isinstance(handle.outcome(10), Cancelled)


def test_a_model_that_blocks_runs_on_a_worker() -> None:
    threads: list[str] = []

    class Blocking:
        def request(self, request: Any) -> Any:

            threads.append(threading.current_thread().name)
            return ModelReply(assistant(Text("from a thread")))

    with house(Blocking()) as it:
        assert it.start().result(10).output == "from a thread"
        assert it.start(run_id="other").result(10).output == "from a thread"
    assert threads
    assert all(name != threading.current_thread().name for name in threads)


# --- how it is saved


def test_durability_is_chosen_for_each_run() -> None:
    def choose(info: Any) -> Any:
        return "none" if info.caller == "ping" else "sync"

    with house([say("pong")], durability=choose) as it:
        it.start(asked=Invocation(caller="ping"), run_id="short").result(10)
        it.start(asked=Invocation(caller="ann"), run_id="long").result(10)
        assert [view.run_id for view in it.runtime.runs()] == ["long"], "the other has left no trace"


def test_a_choice_of_durability_that_raises_harms_nothing() -> None:
    def choose(info: Any) -> Any:
        raise KeyError("no such caller")

    with house([say("pong")], durability=choose) as it:
        assert it.start().result(10).output == "pong"


class Holding(MemoryStore):
    """Takes no save while it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()

    def commit(self, operations: Sequence[Operation], *args: Any, **kwargs: Any) -> list[Verdict]:
        if not self.gate.is_set() and any(isinstance(one, Save) for one in operations):
            self.reached.set()
            assert self.gate.wait(20)
        return super().commit(operations, *args, **kwargs)


@contextmanager
def held_at_the_first_reply(tool_name: str) -> Iterator[tuple[House, Watched, Holding, RunHandle[AgentResult]]]:
    """A run with durability "sync", whose store takes nothing from the first request on."""
    store, model = Holding(), Watched([call(tool_name, what="a"), say("Done.")])

    async def hold(request: ModelRequest) -> None:
        if request.step == 0:
            store.gate.clear()

    model.before = hold
    with house(model, store=store, durability=lambda info: "sync") as it:
        try:
            yield it, model, store, it.start()
        finally:
            store.gate.set()


@pytest.mark.parametrize("name", ["look", "glance"])
def test_with_durability_sync_a_pure_call_does_not_wait_for_the_reply_and_the_next_request_for_both(name: str) -> None:
    with held_at_the_first_reply(name) as (it, model, store, handle):
        wait_until(lambda: handle.status().seq == 3)
        assert it.traces.count("a") == 1
        assert handle.status().durable_seq == 1
        assert len(model.inner.requests) == 1
        store.gate.set()
        assert handle.result(10).output == "Done."
    assert it.traces.count("a") == 1


@pytest.mark.parametrize("name", ["put", "pay", "launch"])
def test_with_durability_sync_a_call_with_an_effect_waits_until_the_reply_is_stored(name: str) -> None:
    with held_at_the_first_reply(name) as (it, _, store, handle):
        assert store.reached.wait(10)
        assert handle.status().seq == 2
        assert it.traces.count("a") == 0
        store.gate.set()
        assert handle.result(10).output == "Done."
    assert it.traces.count("a") == 1


# --- asyncio


def test_on_the_hosts_loop() -> None:
    agents = Agents([worker()], models={"default": ScriptedModel(THREE)}, tools=Traces().tools, critic=None, audit=None)

    async def main() -> None:
        async with AsyncRuntime(None, runs=agents.runs, logger=False) as runtime:
            handle = await agents.start(runtime, "worker", "Go.")
            assert (await handle.result(10)).output == "All is well."

    asyncio.run(main())


def test_a_keyed_call_is_durable_before_it_is_made_so_that_its_key_holds(store_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    @tool(effect="keyed")
    def pay(what: str) -> str:
        """Pay for something."""
        status = it.runtime.get("r").status()
        seen.append((status.durable_seq, status.seq))
        return "paid"

    with house([call("pay", what="a"), say("ok")], worker(tools=("pay",)), store=store_path, tools=[pay]) as it:
        it.start(save_policy=SavePolicy(every_s=3600)).result(10)
    assert seen == [(2, 2)]
