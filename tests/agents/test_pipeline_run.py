"""The pipeline through a real runtime: order, what each phase sees, what is skipped on a resume, and what ends it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from executus.actors import RestartPolicy, SavePolicy, StopPolicy
from executus.actors.agents.agent import Agent, AgentResult, Budget, Invocation, Phase
from executus.actors.agents.audit import PhaseBegan, PhaseEnded
from executus.actors.agents.critic import KillRun, Watch
from executus.actors.agents.errors import FatalModelError, ModelError
from executus.actors.agents.model import ModelRequest
from executus.actors.agents.parts import NOTHING, Image, Text
from executus.actors.agents.phase_context import PhaseContext
from executus.actors.agents.scripted import ScriptedModel, call, fail, say
from executus.actors.agents.steering import FollowUp, Steer
from executus.actors.agents.transcript import problems
from executus.actors.outcomes import Cancelled, Failed, Killed, TimedOut
from tests.agents.house import Traces, Trail, Watched, house
from tests.doubles import NEVER
from tests.waiting import await_until, wait_until


def pipeline(*phases: Phase, **given: Any) -> Agent:
    return Agent(id="worker", tools=("look", "launch"), phases=phases, keep_transcript=True, **given)


def research(**given: Any) -> Phase:
    return Phase(**{"name": "research", "system": "Research.", "prompt": "Find ${prompt}", **given})


def write(**given: Any) -> Phase:
    return Phase(**{"name": "write", "system": "Write.", "prompt": "From: ${research}", **given})


def check(**given: Any) -> Phase:
    return Phase(**{"name": "check", "system": "Check.", "prompt": "Of ${write}", **given})


def by_phase(**scripts: Any) -> Any:
    """A script by the phase's system prompt: a list by step."""

    def script(request: ModelRequest) -> Any:
        entries = scripts[request.system.lower().strip(".")]
        return entries[request.step]

    return script


PLAIN = by_phase(research=[call("look", what="a"), say("facts")], write=[say("a text")], check=[say("it is right")])


def outputs(result: AgentResult) -> list[tuple[str, str, str]]:
    return [(one.name, one.status, one.output) for one in result.phases]


# --- order, prompts, inheritance


def test_phases_run_in_order_and_see_earlier_outputs_by_name() -> None:
    model = Watched(PLAIN)
    with house(model, pipeline(research(), write(), check())) as it:
        result = it.start(asked="rain").result(10)
        assert outputs(result) == [
            ("research", "completed", "facts"),
            ("write", "completed", "a text"),
            ("check", "completed", "it is right"),
        ]
        assert (result.output, result.status) == ("it is right", "completed")
        assert [one.messages[0].text for one in model.inner.requests if one.step == 0] == [
            "Find rain",
            "From: facts",
            "Of a text",
        ]
        assert (result.steps, result.usage.requests, result.usage.tool_calls) == (4, 4, 1)
        assert [one.steps for one in result.phases] == [2, 1, 1]
        assert sum(one.usage.tokens for one in result.phases) == result.usage.tokens
        assert [(one.index, one.name) for one in it.trail.of(PhaseBegan)] == [
            (0, "research"),
            (1, "write"),
            (2, "check"),
        ]
        assert [one.status for one in it.trail.of(PhaseEnded)] == ["completed"] * 3


def test_a_phase_has_its_own_prompt_tier_tools_and_ceiling_and_inherits_the_rest() -> None:
    fast = ScriptedModel([call("look", what="x"), call("look", what="y"), say("never")])
    slow = Watched([say("ok")])
    agent = pipeline(research(tier="fast", step_ceiling=2), write(system=None, tools=()), system="The agent's.")
    with house(slow, agent, models={"fast": fast}) as it:
        result = it.start(asked="rain").result(10)
        assert outputs(result) == [("research", "out_of_steps", ""), ("write", "completed", "ok")]
        assert result.status == "out_of_steps"
    assert (slow.inner.requests[0].system, slow.inner.requests[0].tools) == ("The agent's.", ())
    assert [tool.name for tool in fast.requests[0].tools] == ["look", "launch"]


def test_images_go_to_the_phases_whose_prompt_holds_what_was_asked() -> None:
    model, image = Watched(PLAIN), Image(b"x")
    with house(model, pipeline(research(), write())) as it:
        it.start(asked=Invocation(prompt="rain", images=(image,))).result(10)
    assert model.inner.requests[0].messages[0].parts == (Text("Find rain"), image)
    assert model.inner.requests[-1].messages[0].parts == (Text("From: facts"),)


def test_two_phases_of_one_name_both_run_and_the_name_means_the_later_one() -> None:
    agent = pipeline(research(), research(prompt="Again: ${research}"), write())
    model = Watched(lambda request: say(f"[{request.messages[0].text}]"))
    with house(model, agent) as it:
        assert it.start(asked="rain").result(10).output == "[From: [Again: [Find rain]]]"


# --- functions


def test_a_function_phase_is_called_with_prompt_and_outputs_on_the_loop_or_on_a_worker() -> None:
    seen: list[PhaseContext] = []

    def count(context: PhaseContext) -> str:
        seen.append(context)
        assert threading.current_thread() is not threading.main_thread()
        return f"{len(context.outputs['research'])} letters"

    async def shout(context: PhaseContext) -> str:
        await asyncio.sleep(0)
        return context.prompt.upper()

    agent = pipeline(
        research(), Phase(name="count", function="count"), Phase(name="shout", function="shout", prompt="${count}!")
    )
    with house(PLAIN, agent, functions={"count": count, "shout": shout}) as it:
        result = it.start(asked="rain").result(10)
        assert result.output == "5 LETTERS!"
        assert len(seen[0].idempotency_key) == 40


def test_steering_reaches_a_function_phase_that_takes_it_and_else_the_next_conversation() -> None:
    model = Watched(by_phase(write=[say("a text")]))
    gate = threading.Event()
    taken: list[str] = []

    def first(context: PhaseContext) -> str:
        assert gate.wait(10)
        return "one"

    def second(context: PhaseContext) -> str:
        taken.extend(message.text for message in context.take_steers())
        return "two"

    agent = pipeline(
        Phase(name="first", function="first"), Phase(name="second", function="second"), write(prompt="From: ${first}")
    )
    with house(model, agent, functions={"first": first, "second": second}) as it:
        handle = it.start()
        wait_until(lambda: it.trail.of(PhaseBegan), 10)
        handle.send(Steer("for the second"), message_id="1")
        gate.set()
        result = handle.result(10)
        assert taken == ["for the second"]
        assert [message.origin for message in result.transcript] == ["steer", "prompt", "model"]


def test_a_function_that_returns_no_text_fails_by_name() -> None:
    with house(PLAIN, pipeline(Phase(name="f", function="f")), functions={"f": lambda context: 3}) as it:
        outcome = it.start(restart_policy=NEVER).outcome(10)
        assert isinstance(outcome, Failed)
        assert "phase 'f': its function must return a text, not int" in outcome.error.message


# --- what may fail


def test_an_optional_phase_may_fail_is_recorded_and_not_tried_again() -> None:
    script = by_phase(research=[fail(FatalModelError("no"), times=None)], write=[say("without")])
    with house(script, pipeline(research(optional=True), write())) as it:
        handle = it.start()
        result = handle.result(10)
        assert outputs(result) == [("research", "failed", ""), ("write", "completed", "without")]
        assert result.phases[0].error == "no"
        assert (result.output, result.status) == ("without", "completed")
        assert handle.status().restarts == 0


def test_a_hard_error_in_a_required_phase_ends_the_pipeline() -> None:
    model = Watched(by_phase(research=[fail(FatalModelError("no"), times=None)], write=[say("never")]))
    with house(model, pipeline(research(), write())) as it:
        outcome = it.start().outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.error.type.endswith("FatalModelError")
    assert [one.system for one in model.inner.requests] == ["Research."]


def test_a_transient_error_restarts_within_the_phase() -> None:
    script = by_phase(research=[call("look", what="a"), say("facts")], write=[call("look", what="b"), say("a text")])
    failing = iter([ModelError("503")])

    async def fail_once(request: ModelRequest) -> None:
        if request.system == "Write." and request.step == 1:
            for error in failing:
                raise error

    model = Watched(script)
    model.before = fail_once
    with house(model, pipeline(research(), write())) as it:
        handle = it.start()
        assert handle.result(10).output == "a text"
        assert handle.status().restarts == 1
        assert (it.traces.count("a"), it.traces.count("b")) == (1, 1)


def test_running_out_of_budget_ends_a_phase_with_what_it_has() -> None:
    script = by_phase(research=[say("half") + call("look", what="a"), say("facts")], write=[say("a text")])
    with house(script, pipeline(research(), write(), budget=Budget(steps=1))) as it:
        result = it.start().result(10)
        assert outputs(result) == [("research", "out_of_budget", "half"), ("write", "out_of_budget", "")]
        assert result.status == "out_of_budget"
        assert problems(result.transcript) == []


@pytest.mark.parametrize("how", ["kill", "cancel", "drain", "deadline", "critic"])
def test_an_optional_phase_never_swallows_what_ends_the_run_and_the_next_one_does_not_begin(how: str) -> None:
    class Kills:
        every_s = 0.01
        hard_deadline_s = None

        def judge(self, watch: Watch) -> Any:
            return KillRun("so") if how == "critic" and watch.zone == "model" else None

    model = Watched(by_phase(research=[say("facts")], write=[say("never")]))
    with house(model, pipeline(research(optional=True), write()), critic=Kills()) as it, model.held_at(0) as held:
        options: dict[str, Any] = {
            "stop_policy": StopPolicy(grace_s=0.05, run_timeout_s=0.2 if how == "deadline" else None)
        }
        handle = it.start(**options)
        if how != "critic":
            held.wait()
        match how:
            case "kill":
                handle.kill("so", timeout_s=10)
                assert handle.outcome(10) == Killed("handle", "so")
            case "cancel":
                handle.cancel("so", timeout_s=10)
                assert handle.outcome(10) == Cancelled("handle", "so")
            case "drain":
                it.runtime.drain(5)
                assert handle.status().status.value == "suspended"
            case "deadline":
                assert handle.outcome(10) == TimedOut()
            case _:
                assert handle.outcome(10) == Killed("critic", "so")
        assert [one.name for one in it.trail.of(PhaseBegan)] == ["research"]
        assert it.trail.of(PhaseEnded) == []
    assert [one.system for one in model.inner.requests if one.system == "Write."] == []


# --- over a resume


@pytest.mark.parametrize("resume", ["step", "phase"])
def test_completed_phases_are_skipped_and_the_interrupted_one_goes_on_from_its_step_or_its_start(
    store_path: Path, resume: Any
) -> None:
    script = by_phase(
        research=[call("look", what="a"), say("facts")],
        write=[call("look", what="b"), call("look", what="c"), say("a text")],
        check=[say("it is right")],
    )
    traces, trail, model = Traces(), Trail(), Watched(script)
    agent = pipeline(research(), write(resume=resume), check())
    held_in_write = threading.Event()

    async def hold(request: ModelRequest) -> None:
        if request.system == "Write." and request.step == 1 and not held_in_write.is_set():
            held_in_write.set()
            await asyncio.Event().wait()

    model.before = hold
    with house(model, agent, store=store_path, traces=traces, trail=trail) as it:
        it.start(stop_policy=StopPolicy(grace_s=0.05))
        assert held_in_write.wait(10)
        it.runtime.drain(5)
    with house(model, agent, store=store_path, traces=traces, trail=trail) as it:
        result = it.runtime.get("r").result(10)
    assert outputs(result) == [
        ("research", "completed", "facts"),
        ("write", "completed", "a text"),
        ("check", "completed", "it is right"),
    ]
    assert traces.count("a") == 1
    assert traces.count("b") == (1 if resume == "step" else 2)
    assert traces.count("c") == 1
    asked = [(one.system, one.step) for one in model.inner.requests]
    assert asked.count(("Research.", 0)) == 1
    assert asked.count(("Write.", 0)) == (1 if resume == "step" else 2)
    assert result.steps == (6 if resume == "step" else 7), "what was used before the interruption still counts"
    assert result.usage.requests == result.steps
    assert problems(result.transcript) == []


def test_a_phase_that_begins_anew_makes_no_unsafe_call_again_and_hears_again_what_was_said(store_path: Path) -> None:
    script = by_phase(
        research=[
            call("launch", what="a") + call("pay", what="b"),
            call("launch", what="c"),
            call("pay", what="d"),
            say("facts"),
        ],
    )
    traces, model, steered = Traces(), Watched(script), threading.Event()
    agent = Agent(id="worker", tools=("launch", "pay"), phases=(research(resume="phase"),), keep_transcript=True)

    with house(model, agent, store=store_path, traces=traces) as it:
        handle: Any = None

        async def hold(request: ModelRequest) -> None:
            if request.step == 1 and not steered.is_set():
                await asyncio.to_thread(started.wait)
                await asyncio.to_thread(handle.send, Steer("Mind the dog."), message_id="s")
            if request.step == 3 and not steered.is_set():
                steered.set()
                await asyncio.Event().wait()

        started = threading.Event()
        model.before = hold
        handle = it.start(stop_policy=StopPolicy(grace_s=0.05))
        started.set()
        assert steered.wait(10)
        it.runtime.drain(5)
    with house(model, agent, store=store_path, traces=traces) as it:
        result = it.runtime.get("r").result(10)
    assert (traces.count("a"), traces.count("c")) == (1, 1)
    keys = [(what, key) for name, what, key in traces.done if name == "pay"]
    assert (len(keys), len(set(keys))) == (4, 2), "it pays again, under the keys that it had"
    assert [message.text for message in model.seen() if message.origin == "steer"] == ["Mind the dog."]
    assert problems(model.seen()) == problems(result.transcript) == []
    assert result.steps == 3 + 4


def test_a_function_that_is_repeated_has_its_key_again_whatever_was_said_meanwhile() -> None:
    keys: list[str] = []

    def first(context: PhaseContext) -> str:
        keys.append(context.idempotency_key)
        if len(keys) == 1:
            it.runtime.get("r").send(Steer("Mind the dog."), message_id="s")
            raise OSError("later")
        return "one"

    def second(context: PhaseContext) -> str:
        keys.append(context.idempotency_key)
        return "two"

    agent = pipeline(Phase(name="same", function="first"), Phase(name="same", function="second"))
    with house(PLAIN, agent, functions={"first": first, "second": second}) as it:
        assert it.start().result(10).output == "two"
    assert keys[0] == keys[1] != keys[2]


def test_after_the_last_boundary_no_model_is_asked_again(store_path: Path) -> None:
    model = Watched(by_phase(research=[say("facts")]))
    gate = threading.Event()

    def last(context: PhaseContext) -> str:
        if not gate.is_set():
            raise OSError("later")
        return "end"

    agent = pipeline(research(), Phase(name="last", function="last"))
    with house(model, agent, store=store_path, functions={"last": last}) as it:
        outcome = it.start(restart_policy=RestartPolicy(kind="temporary")).outcome(10)
        assert isinstance(outcome, Failed)
    gate.set()
    with house(model, agent, store=store_path, functions={"last": last}) as it:
        assert it.runtime.resume("r").result(10).output == "end"
    assert len(model.inner.requests) == 1


def test_every_boundary_is_durable_before_the_next_phase_begins(store_path: Path) -> None:
    stored: list[int] = []
    model = Watched(PLAIN)
    with house(model, pipeline(research(), write()), store=store_path) as it:
        handle: Any = None
        started = threading.Event()

        async def look(request: ModelRequest) -> None:
            await await_until(started.is_set, 10)
            stored.append(handle.status().durable_seq)

        model.before = look
        handle = it.start(save_policy=SavePolicy(every_s=3600))
        started.set()
        handle.result(10)
    assert stored[-1] >= 4, "begun, entered, asked, answered, asked: the boundary behind them is stored"


# --- what is the whole run's


def test_a_follow_up_is_asked_when_the_run_would_end_and_not_a_phase() -> None:
    model = Watched(by_phase(research=[say("facts")], write=[say("a text"), say("a better text")]))
    agent = pipeline(research(), write(), Phase(name="file", prompt="${write}", function="file"))
    with house(model, agent, functions={"file": lambda context: f"filed: {context.prompt}"}) as it:
        result = it.start(first=FollowUp("Better.")).result(10)
        assert outputs(result) == [
            ("research", "completed", "facts"),
            ("write", "completed", "a better text"),
            ("file", "completed", "filed: a better text"),
        ]
        assert result.unheard == ()


def test_what_an_interrupted_phase_has_used_is_its_own_when_it_begins_anew() -> None:
    ten = call("look", what="a").using(10, 0)
    script = [ten, [fail(ModelError("gone")), say("facts").using(10, 0)]]
    model = ScriptedModel(lambda request: script[request.step] if request.system == "Research." else say("a text"))
    with house(model, pipeline(research(resume="phase"), write())) as it:
        result = it.start().result(10)
        assert result.phases[0].usage.input_tokens == 30
        assert [one.steps for one in result.phases] == [3, 1]
        assert sum((one.usage for one in result.phases), NOTHING) == result.usage
        assert result.steps == 4


def test_a_function_that_comes_when_the_budget_is_spent_is_not_called_and_ends_no_pipeline() -> None:
    called: list[str] = []
    agent = pipeline(research(), Phase(name="file", function="file"), budget=Budget(wall_s=0.05))
    model = Watched(by_phase(research=[say("facts").after(0.1)]))
    with house(model, agent, functions={"file": lambda context: called.append("file") or "filed"}) as it:
        result = it.start().result(10)
        assert outputs(result) == [("research", "completed", "facts"), ("file", "out_of_budget", "")]
        assert (result.status, called) == ("out_of_budget", [])
