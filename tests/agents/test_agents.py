"""The house: what it registers, what it refuses, what it starts with, and what it hears of endings."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from executus.actors import AsyncRuntime, NotRegistered, Runtime, RuntimeNotOpen, StopPolicy
from executus.actors.agents import Agent, Agents, Invocation, Phase, ScriptedModel, Skill, say
from executus.actors.agents.agent import Budget
from executus.actors.agents.agent_run import AgentRun
from executus.actors.agents.audit import RunConcluded
from executus.actors.agents.errors import InvalidAgent
from executus.actors.agents.pipeline_run import PipelineRun
from executus.actors.agents.ports import Ports
from tests.agents.house import Trail, Watched, house, worker
from tests.waiting import wait_until

MODELS = {"default": ScriptedModel([say("ok")])}


def test_it_registers_both_behaviours_beside_others() -> None:
    agents = Agents([Agent(id="a")], models=MODELS)
    assert [factory.run_class for factory in agents.runs] == [AgentRun, PipelineRun]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"agents": [Agent(id="a"), Agent(id="a")]}, "two agents are called 'a'"),
        ({"agents": [], "skills": [Skill(name="s"), Skill(name="s")]}, "two skills are called 's'"),
        ({"agents": [Agent(id="a", tier="huge")]}, "agent 'a': unknown tier 'huge'. Registered here: default"),
        (
            {"agents": [Agent(id="a", phases=(Phase(name="p", function="f"),))]},
            "agent 'a', phase 'p': unknown function 'f'. Registered here: none",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_when_the_house_is_built(given: Any, says: str) -> None:
    with pytest.raises(InvalidAgent, match=says):
        Agents(**{"models": MODELS, **given})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Agent(id=""),
        lambda: Agent(id="a", step_ceiling=0),
        lambda: Agent(id="a", palette=("child",)),
        lambda: Budget(tokens=-1),
        lambda: Budget(usd=float("nan")),
    ],
)
def test_what_makes_no_sense_by_itself_is_refused_when_it_is_made(make: Any) -> None:
    with pytest.raises(InvalidAgent):
        make()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Agents([], models={"default": "openai:gpt-5"}), "not openai:gpt-5. Of a provider's: .*PydanticModel"),  # type: ignore[dict-item]
        (lambda: Agents([], models={"default": ScriptedModel}), "an object with a method `request`, not <class"),  # type: ignore[dict-item]
        (lambda: Agent(id="a", tools="read"), "agent 'a': tools is a tuple of names"),  # type: ignore[arg-type]
        (lambda: Agent(id="a", phases=(Phase(name="p", palette="agent__b"),)), "palette is a tuple of names"),  # type: ignore[arg-type]
        (lambda: Agents([Agent(id="a")], models={"default": ScriptedModel([])}).task("a", {"prompt": "x"}), "an Invocation, not {"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_is_of_another_kind_is_refused_with_what_to_write(make: Any, says: str) -> None:
    with pytest.raises(InvalidAgent, match=says):
        make()


def test_a_runtime_that_knows_no_agents_is_named_with_what_to_write() -> None:
    agents = Agents([worker(tools=())], models={"default": ScriptedModel([say("ok")])})
    with Runtime(None, runs=[], logger=False) as runtime, pytest.raises(NotRegistered, match=r"runs=\[\*agents.runs"):
        agents.start(runtime, "worker", "Go.")

    async def main() -> None:
        async with AsyncRuntime(None, runs=[], logger=False) as runtime:
            with pytest.raises(NotRegistered, match=r"runs=\[\*agents.runs"):
                await agents.start(runtime, "worker", "Go.")

    asyncio.run(main())


def test_an_agent_that_is_not_registered_may_be_given_whole() -> None:
    with house([say("ok")]) as it:
        assert it.start(Agent(id="guest")).result(10).output == "ok"


def test_a_run_without_an_id_gets_one_that_names_the_agent() -> None:
    with Runtime(None, runs=Agents([Agent(id="a")], models=MODELS).runs, logger=False) as runtime:
        agents = Agents([Agent(id="a")], models=MODELS, audit=None)
        assert agents.start(runtime, "a", "Go.").run_id.startswith("a-")


def test_a_policy_that_is_given_goes_before_what_the_house_would_choose() -> None:
    model = Watched([say("ok")])

    class Strict:
        every_s = 1.0
        hard_deadline_s = 0.01

        def judge(self, watch: Any) -> None:
            return None

    with house(model, critic=Strict()) as it, model.held_at(0) as held:
        handle = it.start(stop_policy=StopPolicy(run_timeout_s=60))
        held.wait()
        held.let_go()
        assert handle.result(10).output == "ok"


def test_endings_that_no_run_can_tell_of_itself_are_heard_once() -> None:
    model = Watched([say("ok")])
    with house(model) as it, model.held_at(0) as held:
        handle = it.start()
        held.wait()
        it.agents.attach(it.runtime)
        it.agents.attach(it.runtime)
        handle.kill("so", timeout_s=10)
        wait_until(lambda: it.trail.of(RunConcluded), 10)
        held.let_go()
        it.start(Agent(id="other"), run_id="o").outcome(10)
    assert [one.status for one in it.trail.of(RunConcluded) if one.info.run_id == "r"] == ["killed"]
    assert it.agents.ports.live == {}


def test_two_threads_that_start_at_once_subscribe_once() -> None:
    trail = Trail()
    agents = Agents([worker(tools=())], models=MODELS, audit=trail, critic=None)
    with Runtime(None, runs=agents.runs, logger=False) as runtime:
        barrier = threading.Barrier(4)
        handles: list[Any] = []

        def start() -> None:
            barrier.wait(10)
            handles.append(agents.start(runtime, "worker", "Go."))

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        for handle in handles:
            handle.result(10)
        assert len(runtime.events._subscribers) == 1


def test_a_closed_runtime_starts_nothing() -> None:
    agents = Agents([Agent(id="a")], models=MODELS)
    with pytest.raises(RuntimeNotOpen):
        agents.start(Runtime(None, runs=agents.runs, logger=False), "a", "Go.")


def test_on_an_async_runtime_start_is_awaited() -> None:
    agents = Agents([Agent(id="a")], models=MODELS, audit=None)
    runtime = AsyncRuntime(None, runs=agents.runs, logger=False)
    starting = agents.start(runtime, "a", Invocation(prompt="Go."))
    with pytest.raises(RuntimeNotOpen):
        starting.send(None)


def test_ports_change_nothing_and_cost_nothing_where_they_are_none() -> None:
    agents = Agents([Agent(id="a")], models=MODELS, critic=None, audit=None, compactor=None)
    assert isinstance(agents.ports, Ports)
    assert (agents.ports.critic, agents.ports.audit, agents.ports.compactor) == (None, None, None)
