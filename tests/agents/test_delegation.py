"""Agents that call agents and skills: children, their budgets, their ends, and what a killed or resumed parent does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executus.actors import SavePolicy, StopPolicy
from executus.actors.agents.agent import (
    UNLIMITED,
    Agent,
    AgentResult,
    Budget,
    Invocation,
    Limits,
    Phase,
    RunInfo,
    Skill,
    Task,
)
from executus.actors.agents.audit import ChildSettled, Delegated
from executus.actors.agents.behaviour import Standing
from executus.actors.agents.conversation import Conversation, Delegation, Setup, all_of, child_ended
from executus.actors.agents.delegation import key_of, plan, read, settled_early, status_of
from executus.actors.agents.errors import FatalModelError
from executus.actors.agents.parts import NOTHING, ToolCall, ToolResult, Usage, assistant
from executus.actors.agents.scripted import ScriptedModel, call, fail, say
from executus.actors.agents.steering import Steer
from executus.actors.agents.transcript import problems
from executus.actors.journal import Journal
from executus.actors.outcomes import Cancelled, Completed, ErrorInfo, Failed, Killed, Quarantined, TimedOut
from executus.actors.outcomes import Phase as RunPhase
from tests.agents.house import Traces, Trail, Watched, house, info_of, worker
from tests.waiting import wait_until

CHILD = Agent(id="child", tier="child", tools=("look",))
BOTH = call("agent__child", prompt="this") + call("skill__sum", prompt="that")


A_CALL = ToolCall("1", "agent__child", '{"prompt": "this"}')


def parent(**given: Any) -> Agent:
    return worker(**{"palette": ("agent__child", "skill__sum"), **given})


def results(result: AgentResult) -> list[ToolResult]:
    return [part for message in result.transcript for part in message.parts if isinstance(part, ToolResult)]


# --- plainly


def test_each_call_is_a_child_run_with_its_parent_and_root_and_comes_back_as_a_result() -> None:
    child = Watched(lambda request: say(f"{request.info.subject}: {request.messages[0].text}"))
    with house(
        [BOTH, say("done")],
        parent(),
        CHILD,
        models={"child": child},
        skills=[Skill(name="sum", instructions="Add.", tier="child")],
    ) as it:
        asked = Invocation(prompt="Go.", caller="ann", channel="#ops")
        result = it.start(asked=asked).result(10)
        assert [one.text for one in results(result)] == ["child: this", "skill__sum: that"]
        assert problems(result.transcript) == []
        children = [view for view in it.runtime.runs() if view.parent_run_id == "r"]
        assert len(children) == 2
        assert {view.root_run_id for view in children} == {"r"}
        infos = [request.info for request in child.inner.requests]
        assert {(info.caller, info.channel, info.depth, info.root_run_id) for info in infos} == {
            ("ann", "#ops", 1, "r")
        }
        assert {request.system for request in child.inner.requests} == {"", "Add."}
        assert result.usage.requests == 4, "the children's requests count"
        assert result.steps == 4
        assert len(it.trail.of(Delegated)) == 2
        assert [one.status for one in it.trail.of(ChildSettled)] == ["completed", "completed"]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Completed(AgentResult(output="", status="out_of_steps", usage=NOTHING, steps=1)), "out_of_steps"),
        (Completed("text"), "completed"),
        (Failed(ErrorInfo("ValueError", "no"), RunPhase.STEP, 0), "failed"),
        (Killed("critic", "hung"), "killed"),
        (Cancelled("ann", "enough"), "cancelled"),
        (TimedOut(), "timed_out"),
        (Quarantined("three boots"), "quarantined"),
    ],
)
def test_the_audit_calls_an_end_as_everybody_does(outcome: Any, status: str) -> None:
    assert status_of(outcome) == status


def test_an_agent_with_phases_can_be_called() -> None:
    child = Agent(id="child", tier="child", phases=(Phase(name="one"), Phase(name="two", prompt="and ${one}")))
    model = ScriptedModel(lambda request: say(f"[{request.messages[0].text}]"))
    with house(
        [call("agent__child", prompt="x"), say("done")],
        parent(palette=("agent__child",)),
        child,
        models={"child": model},
    ) as it:
        assert results(it.start().result(10))[0].text == "[and [x]]"


def test_a_skill_takes_tier_and_tools_from_its_caller_where_it_names_none() -> None:
    model = Watched(
        lambda request: say("ok") if request.system == "Add." or request.step else call("skill__sum", prompt="x")
    )
    with house(
        model, parent(palette=("skill__sum",), tools=("look", "put")), skills=[Skill(name="sum", instructions="Add.")]
    ) as it:
        it.start().result(10)
    added = next(request for request in model.inner.requests if request.system == "Add.")
    assert [tool.name for tool in added.tools] == ["look", "put"]


def test_bad_arguments_and_names_outside_the_palette_are_errors_that_the_model_reads() -> None:
    script = [call("agent__child", question="?") + call("agent__other", prompt="x"), say("done")]
    with house(
        script, parent(palette=("agent__child",)), CHILD, Agent(id="other"), models={"child": ScriptedModel([say("!")])}
    ) as it:
        bad, unknown = results(it.start().result(10))
        assert (bad.is_error, unknown.is_error) == (True, True)
        assert "question" in bad.text
        assert "there is no 'agent__other'" in unknown.text


def test_fan_out_and_depth_are_capped() -> None:
    many = sum((call("agent__child", prompt=str(n)) for n in range(1, 5)), call("agent__child", prompt="0"))
    limits = Limits(fan_out=3)
    with house(
        [many, say("done")],
        parent(limits=limits, palette=("agent__child",)),
        CHILD,
        models={"child": ScriptedModel([say("!")])},
    ) as it:
        answers = results(it.start().result(10))
        assert [one.text for one in answers[:3]] == ["!"] * 3
        assert all("3 calls of agents in one message are the most" in one.text for one in answers[3:])
    apart = many + call("look", what="a") + call("agent__child", prompt="one more")
    with house(
        [apart, say("done")],
        parent(limits=limits, palette=("agent__child",)),
        CHILD,
        models={"child": ScriptedModel([say("!")])},
    ) as it:
        it.start().result(10)
        assert len([view for view in it.runtime.runs() if view.parent_run_id == "r"]) == 3, "a tool's call between them"
    itself = worker(palette=("agent__worker",), limits=Limits(depth=2))
    deep = ScriptedModel([call("agent__worker", prompt="deeper"), say("up")])
    with house(deep, itself) as it:
        it.start().result(10)
        assert sorted(view.run_id.count("/") for view in it.runtime.runs()) == [0, 1, 2]


# --- ends


@pytest.mark.parametrize(
    ("child", "says"),
    [
        ([fail(FatalModelError("bad key"), times=None)], "agent__child failed: FatalModelError: bad key"),
        (
            [call("look", what="x"), call("look", what="y"), call("look", what="z")],
            "agent__child failed: BudgetExceeded",
        ),
    ],
)
def test_a_child_that_fails_or_trips_its_budget_comes_back_as_a_result(child: Any, says: str) -> None:
    agent = Agent(id="child", tier="child", tools=("look",), budget=Budget(steps=2))
    with house(
        [call("agent__child", prompt="x"), say("I see.")],
        parent(palette=("agent__child",)),
        agent,
        models={"child": ScriptedModel(child)},
    ) as it:
        result = it.start().result(10)
        assert result.output == "I see."
        assert results(result)[0].is_error
        assert results(result)[0].text.startswith(says)


def test_a_child_killed_by_an_operator_comes_back_as_a_result() -> None:
    child = Watched([say("never")])
    with (
        house(
            [call("agent__child", prompt="x"), say("I see.")],
            parent(palette=("agent__child",)),
            CHILD,
            models={"child": child},
        ) as it,
        child.held_at(0) as held,
    ):
        handle = it.start()
        held.wait()
        wait_until(lambda: handle.query(Standing()).waiting_for, 10)  # the child may be faster than its parent's state
        (child_id,) = handle.query(Standing()).waiting_for
        it.runtime.get(child_id).kill("stop it", by="ann", timeout_s=10)
        result = handle.result(10)
        assert results(result)[0].text == "agent__child was killed by ann: stop it"


def test_a_killed_parent_kills_its_children() -> None:
    child = Watched([say("never")])
    with (
        house(
            [call("agent__child", prompt="x"), say("never")],
            parent(palette=("agent__child",)),
            CHILD,
            models={"child": child},
        ) as it,
        child.held_at(0) as held,
    ):
        handle = it.start()
        held.wait()
        wait_until(lambda: handle.query(Standing()).waiting_for, 10)  # the child may be faster than its parent's state
        (child_id,) = handle.query(Standing()).waiting_for
        handle.kill("enough", timeout_s=10)
        assert isinstance(it.runtime.get(child_id).outcome(10), Killed)


def test_steers_reach_a_parent_that_waits_for_its_children_when_they_are_back() -> None:
    child = Watched([say("here")])
    model = Watched([call("agent__child", prompt="x"), say("done")])
    with (
        house(model, parent(palette=("agent__child",)), CHILD, models={"child": child}) as it,
        child.held_at(0) as held,
    ):
        handle = it.start()
        held.wait()
        handle.send(Steer("Hurry."), message_id="1")
        held.let_go()
        result = handle.result(10)
        assert [message.origin for message in result.transcript] == ["prompt", "model", "tool", "steer", "model"]
        assert problems(result.transcript) == []


def test_an_agent_whose_phases_want_inputs_that_no_call_gives_is_an_error_that_the_model_reads() -> None:
    child = Agent(id="child", tier="child", phases=(Phase(name="one", prompt="About ${topic}"),))
    script = [call("agent__child", prompt="x"), say("I see.")]
    with house(script, parent(palette=("agent__child",)), child, models={"child": ScriptedModel([])}) as it:
        result = it.start().result(10)
        assert result.output == "I see."
        assert "not called" in results(result)[0].text
        assert "${topic}" in results(result)[0].text


# --- over a resume


def test_a_resumed_parent_finds_its_child_and_its_result(store_path: Path) -> None:
    child, model = (
        Watched([call("look", what="a"), say("here")]),
        Watched([call("agent__child", prompt="x"), say("done")]),
    )
    traces, trail = Traces(), Trail()
    options: dict[str, Any] = {"models": {"child": child}, "store": store_path, "traces": traces, "trail": trail}
    with house(model, parent(palette=("agent__child",)), CHILD, **options) as it, child.held_at(1) as held:
        it.start(stop_policy=StopPolicy(grace_s=0.05))
        held.wait()
        it.runtime.drain(5)
    with house(model, parent(palette=("agent__child",)), CHILD, **options) as it:
        result = it.runtime.get("r").result(10)
        assert [one.text for one in results(result)] == ["here"]
        assert len([view for view in it.runtime.runs() if view.parent_run_id == "r"]) == 1
    assert traces.count("a") == 1
    assert result.steps == 4
    assert len(trail.of(Delegated)) == 1


@pytest.mark.parametrize(("chosen", "own", "childs"), [("sync", "sync", "sync"), ("none", "none", "none")])
def test_the_choice_of_durability_reaches_children_as_well(
    chosen: Any, own: str, childs: str, store_path: Path
) -> None:
    infos: list[RunInfo] = []

    def choose(info: RunInfo) -> Any:
        infos.append(info)
        return chosen

    child = Watched([say("here")])
    script = [call("agent__child", prompt="x"), say("done")]
    agent = parent(palette=("agent__child",))
    with house(script, agent, CHILD, models={"child": child}, store=store_path, durability=choose) as it:
        handle = it.start()
        assert handle.result(10).output == "done"
        stored = [view.run_id for view in it.runtime.runs()]
        assert len(stored) == (0 if childs == "none" else 2)
    assert [(info.subject, info.depth) for info in infos] == [("worker", 0), ("child", 1)][: 1 if own == "none" else 2]


def test_a_child_of_a_saved_run_is_saved_whatever_is_chosen(store_path: Path) -> None:
    child = Watched([say("here")])
    script = [call("agent__child", prompt="x"), say("done")]

    def choose(info: RunInfo) -> Any:
        return "none" if info.depth else "async"

    options: dict[str, Any] = {"models": {"child": child}, "store": store_path, "durability": choose}
    with house(script, parent(palette=("agent__child",)), CHILD, **options) as it:
        it.start().result(10)
        assert len(it.runtime.runs()) == 2


# --- budget of the tree


def test_a_parents_budget_is_shared_with_its_children_and_settled_with_what_they_used() -> None:
    child = ScriptedModel([call("look", what="a").using(10, 10), say("here").using(10, 10)])
    script = [
        call("agent__child", prompt="x").using(10, 10),
        call("agent__child", prompt="y").using(10, 10),
        say("done").using(10, 10),
    ]
    model = Watched(script)
    with house(
        model, parent(palette=("agent__child",), budget=Budget(tokens=2_000, steps=20)), CHILD, models={"child": child}
    ) as it:
        result = it.start().result(10)
        assert result.usage.tokens == 3 * 20 + 2 * 40
        assert result.steps == 3 + 2 * 2


def test_a_child_gets_a_share_of_what_is_left_and_its_parent_keeps_the_rest() -> None:
    child = ScriptedModel([call("look", what=str(n)) for n in range(50)])
    with house(
        [BOTH, say("done")],
        parent(budget=Budget(steps=10)),
        CHILD,
        models={"child": child},
        skills=[Skill(name="sum", tier="child", step_ceiling=50)],
    ) as it:
        result = it.start().result(10)
        assert [one.is_error for one in results(result)] == [True, True]
        assert result.output == "done"
        assert result.steps <= 10


def test_too_little_left_for_a_child_is_an_error_that_the_model_reads() -> None:
    with house(
        [call("agent__child", prompt="x"), say("done")],
        parent(palette=("agent__child",), budget=Budget(steps=2)),
        CHILD,
        models={"child": ScriptedModel([say("!")])},
    ) as it:
        result = it.start().result(10)
        assert "too little is left of the budget" in results(result)[0].text
        assert result.output == "done"


def test_a_budget_of_time_does_not_wait_for_children_and_leaves_a_legal_transcript() -> None:
    child = Watched([say("too late")])
    model = ScriptedModel([call("agent__child", prompt="x"), say("never")])
    agent = parent(palette=("agent__child",), budget=Budget(wall_s=0.3))
    with house(model, agent, CHILD, models={"child": child}) as it, child.held_at(0):
        outcome = it.start().outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.error.type.endswith("BudgetExceeded")
        (child_id,) = [view.run_id for view in it.runtime.runs() if view.parent_run_id == "r"]
        assert isinstance(it.runtime.get(child_id).outcome(10), Killed), "its parent has ended"


# --- pure


def setup(**given: Any) -> Setup:
    return Setup(run_id="r", task=Task(parent(**given), Invocation()), life="life", started_at_s=0.0)


def test_a_childs_key_is_the_same_for_the_same_call_at_the_same_place_and_no_other() -> None:
    one = ToolCall("c", "agent__child", '{"prompt": "x"}')
    assert key_of(4, one) == key_of(4, one)
    others = [
        key_of(5, one),
        key_of(4, ToolCall("d", one.name, one.arguments)),
        key_of(4, ToolCall("c", one.name, "{}")),
    ]
    assert len({key_of(4, one), *others}) == 4


@pytest.mark.parametrize(
    ("outcome", "text", "used"),
    [
        (Killed("ann", "so"), "agent__child was killed by ann: so", 70),
        (Cancelled("ann", "so"), "agent__child was cancelled by ann: so", 70),
        (TimedOut(), "agent__child ran out of time", 70),
        (Quarantined("bad"), "agent__child was quarantined: bad", 70),
        (Failed(ErrorInfo("x.Boom", "no"), RunPhase.STEP, 1), "agent__child failed: Boom: no", 70),
        (Completed(AgentResult(output="fine", status="completed", usage=Usage(5, 6), steps=2)), "fine", 11),
        (
            Completed(AgentResult(output="so far", status="out_of_steps", usage=NOTHING, steps=2)),
            "[out_of_steps] so far",
            0,
        ),
    ],
)
def test_what_is_read_of_each_end_and_what_counts_as_used(outcome: Any, text: str, used: int) -> None:
    answer, usage, _ = read(ToolCall("c", "agent__child"), outcome, Budget(tokens=70), 100)
    assert answer.text == text
    assert usage.tokens == used
    assert answer.is_error == (not isinstance(outcome, Completed))


def test_a_long_answer_is_cut_visibly() -> None:
    answer, _, _ = read(
        ToolCall("c", "agent__child"),
        Completed(AgentResult(output="x" * 50, status="completed", usage=NOTHING, steps=1)),
        UNLIMITED,
        10,
    )
    assert answer.text == "x" * 10 + "… [cut: 10 of 50 characters]"


@given(st.permutations(range(4)))
def test_results_enter_the_transcript_in_the_order_of_the_calls_whatever_order_children_end_in(
    order: list[int],
) -> None:
    calls = tuple(ToolCall(f"c{n}", "agent__child") for n in range(4))
    conversation = Conversation(
        ceiling=9,
        transcript=Journal([assistant(*calls)]),
        delegations=tuple(Delegation(one, f"k{n}", f"r/{n}", UNLIMITED) for n, one in enumerate(calls)),
    )
    for at, n in enumerate(order):
        assert len(conversation.transcript) == 1
        conversation = child_ended(conversation, f"k{n}", ToolResult(f"c{n}", "agent__child", str(n)), Usage(1), 1)
        assert bool(conversation.delegations) == (at < 3)
    assert [message.text for message in conversation.transcript[1:]] == ["0", "1", "2", "3"]
    assert (conversation.usage.input_tokens, conversation.usage.tool_calls, conversation.total_steps) == (4, 4, 4)


def test_what_is_set_aside_never_exceeds_what_is_left() -> None:
    calls = [ToolCall(f"c{n}", "agent__child", '{"prompt": "x"}') for n in range(3)]
    conversation = Conversation(ceiling=9, transcript=Journal([assistant(*calls)]))
    planned = plan(calls, conversation, setup(), info_of(), Budget(tokens=100, steps=9, usd=1.0), lambda name: CHILD)
    budgets = [task.budget for _, _, task in planned.children]
    assert sum(one.tokens or 0 for one in budgets) <= 75
    assert sum(one.steps or 0 for one in budgets) <= 9
    assert all_of(budgets[0]).tokens == budgets[0].tokens


# --- over a resume, in another order


def test_a_child_that_ended_before_its_resumed_parent_came_back_to_the_call_is_not_waited_for(
    store_path: Path, tmp_path: Path
) -> None:
    model, child = Watched([call("agent__child", prompt="this"), say("done")]), Watched([say("a child's word")])
    copy = tmp_path / "copy.store"
    options: Any = {"runtime_options": {"save_policy": SavePolicy(every_s=3600)}, "models": {"child": child}}
    with house(model, parent(), CHILD, store=store_path, skills=[Skill(name="sum")], **options) as it:
        with model.held_at(1) as held:
            it.start()
            held.wait()  # it has heard of its child's end, and nothing of that is saved
            shutil.copytree(store_path, copy)
        assert it.runtime.get("r").result(10).output == "done"
    with house(model, parent(), CHILD, store=copy, skills=[Skill(name="sum")], **options) as it:
        result = it.runtime.get("r").result(10)
        assert [one.text for one in results(result)] == ["a child's word"]
        assert problems(result.transcript) == []
        assert (result.steps, result.usage.requests) == (3, 3), "what the child has used is counted"
    assert len(child.inner.requests) == 1


def test_an_end_that_came_early_and_tells_nothing_of_its_use_counts_as_all_that_was_set_aside() -> None:
    reserved = Budget(tokens=7, steps=2)
    told = Delegation(A_CALL, "k", "c", UNLIMITED, ToolResult("1", "agent__child", "ok"), Usage(1, 1, requests=1), 1)
    assert settled_early(told, reserved) == (told.answer, told.used, 1)
    killed = read(A_CALL, Killed("operator", "enough"), UNLIMITED, 100)
    early = Delegation(A_CALL, "k", "c", UNLIMITED, *killed)
    assert settled_early(early, reserved) == (killed[0], Usage(input_tokens=7), 2)
