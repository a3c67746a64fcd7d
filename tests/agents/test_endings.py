"""The decision table of agents' runs, each row through a real runtime over LMDB: what happened, the record, what follows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from executus.actors import RunStatus, StopPolicy
from executus.actors.agents.agent import Agent, Budget, Invocation, Limits, Phase
from executus.actors.agents.audit import RunConcluded
from executus.actors.agents.budget import estimate_tokens
from executus.actors.agents.critic import KillRun, Watch
from executus.actors.agents.errors import FatalModelError, ModelError
from executus.actors.agents.model import ModelReply, Tier
from executus.actors.agents.parts import Message, ToolCall, assistant
from executus.actors.agents.scripted import ScriptedModel, call, fail, say
from executus.actors.agents.shortening import Shortening
from executus.actors.agents.steering import FollowUp, Steer
from executus.actors.agents.tool import tool
from executus.actors.agents.tool_calls import MAX_TOGETHER
from executus.actors.outcomes import Cancelled, Completed, Failed, Killed, TimedOut
from executus.stores import MemoryStore, StoreUnavailable
from tests.agents.house import House, Traces, Trail, Watched, house, worker
from tests.waiting import wait_until

STEPS = [call("look", what="a"), call("look", what="b"), say("done")]


def concluded(it: House) -> str:
    wait_until(lambda: it.trail.of(RunConcluded), 10)
    (entry,) = it.trail.of(RunConcluded)
    return str(entry.status)


def test_success(store_path: Path) -> None:
    with house(STEPS, store=store_path) as it:
        handle = it.start()
        assert isinstance(handle.outcome(10), Completed)
        assert handle.status().status is RunStatus.COMPLETED
        assert concluded(it) == "completed"


def test_a_shutdown_suspends_it_and_the_next_boot_resumes_it(store_path: Path) -> None:
    model, traces = Watched(STEPS), Traces()
    with house(model, store=store_path, traces=traces) as it, model.held_at(1) as held:
        handle = it.start(stop_policy=StopPolicy(grace_s=0.05))
        held.wait()
        it.runtime.drain(5)
        assert handle.status().status is RunStatus.SUSPENDED
        assert concluded(it) == "suspended"
    with house(model, store=store_path, traces=traces) as it:
        assert it.runtime.get("r").result(10).output == "done"
        assert concluded(it) == "completed"
    assert traces.count("a") == 1


def test_a_kill_of_the_critics_is_terminal(store_path: Path) -> None:
    class Kills:
        every_s = 1.0
        hard_deadline_s = None

        def judge(self, watch: Watch) -> Any:
            return KillRun("no good") if watch.step == 2 else None

    with house(STEPS, store=store_path, critic=Kills()) as it:
        assert it.start().outcome(10) == Killed("critic", "no good")
        assert concluded(it) == "killed"
    with house(STEPS, store=store_path) as it:
        assert it.runtime.get("r").status().status is RunStatus.KILLED


def test_a_kill_of_an_operators_is_terminal(store_path: Path) -> None:
    model = Watched(STEPS)
    with house(model, store=store_path) as it, model.held_at(1) as held:
        handle = it.start()
        held.wait()
        handle.kill("stop it", by="ann", timeout_s=10)
        assert handle.outcome(10) == Killed("ann", "stop it")
        assert concluded(it) == "killed"


def test_a_cancel_of_the_callers_is_terminal(store_path: Path) -> None:
    model = Watched(STEPS)
    with house(model, store=store_path) as it, model.held_at(1) as held:
        handle = it.start(stop_policy=StopPolicy(grace_s=0.05))
        held.wait()
        handle.cancel("changed my mind", by="ann", timeout_s=10)
        assert handle.outcome(10) == Cancelled("ann", "changed my mind")
        assert concluded(it) == "cancelled"


def test_the_runs_deadline_times_it_out(store_path: Path) -> None:
    model = Watched(STEPS)
    with house(model, store=store_path) as it, model.held_at(1):
        handle = it.start(stop_policy=StopPolicy(run_timeout_s=0.2, grace_s=0.05))
        assert handle.outcome(10) == TimedOut()
        assert concluded(it) == "timed_out"


def test_a_fatal_error_of_the_model_fails_it_and_it_can_be_resumed_by_hand(store_path: Path) -> None:
    traces = Traces()
    with house([STEPS[0], fail(FatalModelError("no credit")), *STEPS[1:]], store=store_path, traces=traces) as it:
        outcome = it.start().outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.restarts == 0
        assert outcome.error.facts["requests"] == 1
        assert concluded(it) == "failed"
        assert it.runtime.resume("r").result(10).output == "done"
    assert traces.count("a") == 1


def test_a_transient_error_of_the_model_restarts_it_with_backoff_from_the_last_snapshot(store_path: Path) -> None:
    with house([STEPS[0], fail(ModelError("503"), times=2), *STEPS[1:]], store=store_path) as it:
        handle = it.start()
        assert handle.result(10).output == "done"
        assert handle.status().restarts == 2
        assert it.traces.count("a") == 1
        assert concluded(it) == "completed"


def test_a_model_that_stays_away_fails_it_when_its_restarts_are_spent(store_path: Path) -> None:
    with house([fail(ModelError("503"), times=None)], store=store_path) as it:
        outcome = it.start().outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.restarts == 3
        assert outcome.error.type.endswith("ModelError")


def test_an_error_before_the_first_step_fails_it(store_path: Path) -> None:
    with house(STEPS, store=store_path) as it:
        task = it.agents.task("worker", "Go.")
        broken = type(task)(worker(tools=("gone",)), Invocation(prompt="Go."))
        handle = it.runtime.start(it.agents.runs[0].run_class, broken, run_id="r")  # past the house's door
        outcome = handle.outcome(10)
        assert isinstance(outcome, Failed)
        assert outcome.phase.value == "begin"
        assert "unknown tool 'gone'" in outcome.error.message


# --- a crash in each port


@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), MemoryError()]
)
def test_whatever_a_model_raises_restarts_the_run_and_harms_no_other(error: BaseException) -> None:
    with house([fail(error, times=1), say("done")]) as it:
        others = [it.start(run_id=f"o{n}", agent=worker(id=f"other{n}", tools=())) for n in range(3)]
        handle = it.start()
        assert handle.result(10).output == "done"
        assert handle.status().restarts == 1
        assert all(one.result(10).output == "done" for one in others)


@pytest.mark.parametrize("error", [RuntimeError("boom"), OSError("disk")])
def test_an_exception_of_a_tool_is_a_result(error: BaseException) -> None:
    with house(STEPS) as it:
        it.traces.fail["a"] = error
        handle = it.start()
        assert handle.result(10).output == "done"
        assert handle.status().restarts == 0


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_what_is_no_exception_from_a_tool_restarts_the_run(error: BaseException) -> None:
    with house(STEPS) as it:
        it.traces.fail_once["a"] = error
        handle = it.start()
        assert handle.result(10).output == "done"
        assert handle.status().restarts == 1
        assert it.traces.count("a") == 2


class Raises:
    """A port whose every method raises."""

    every_s = 0.01
    hard_deadline_s = None
    threshold = 0.0

    def judge(self, watch: Any) -> Any:
        raise RuntimeError("critic")

    def record(self, entry: Any) -> None:
        raise RuntimeError("audit")

    def compact(self, messages: Any, limit_tokens: int, info: Any) -> Any:
        raise RuntimeError("compactor")


@pytest.mark.parametrize("port", ["critic", "audit", "compactor"])
def test_a_port_that_raises_harms_nothing(port: str) -> None:
    with house(STEPS, **{port: Raises()}) as it:
        handle = it.start()
        assert handle.result(10).output == "done"
        assert handle.status().restarts == 0


def test_a_compactor_that_makes_an_illegal_transcript_is_not_heard() -> None:
    class Careless:
        threshold = 0.0

        def compact(self, messages: Any, limit_tokens: int, info: Any) -> Any:
            return tuple(message for message in messages if message.role != "tool")

    model = Watched(STEPS)
    with house(model, compactor=Careless()) as it:
        assert it.start().result(10).output == "done"
    assert len(model.seen()) == 5


def test_what_a_compactor_leaves_out_is_saved_all_the_same() -> None:
    class Last:
        threshold = 0.0

        async def compact(self, messages: Any, limit_tokens: int, info: Any) -> Any:
            return (messages[0], *messages[-2:]) if len(messages) > 3 else messages

    model = Watched(STEPS)
    with house(model, compactor=Last()) as it:
        assert len(it.start().result(10).transcript) == 6
    assert len(model.seen()) == 3


def test_a_store_that_does_not_take_a_new_run_degrades_it_with_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executus.actors.admission.START_PATIENCE_S", 0.2)

    class Refuses(MemoryStore):
        refuses = False

        def commit(self, *operations: Any, **options: Any) -> Any:
            if self.refuses:
                raise StoreUnavailable("the disk is full")
            return super().commit(*operations, **options)

    store = Refuses()
    with house(STEPS, store=store) as it:
        store.refuses = True
        handle = it.start()
        assert handle.result(10).output == "done"
        store.refuses = False
    assert "runs without being saved" in caplog.text


# --- what an end leaves


def test_what_no_model_has_heard_comes_with_the_result() -> None:
    model = Watched([call("look", what="a")])
    with house(model, worker(step_ceiling=1)) as it, model.held_at(0) as held:
        handle = it.start()
        held.wait()
        handle.send(Steer("Wait!"))
        handle.send(FollowUp("And then?"))
        held.let_go()
        result = handle.result(10)
        assert result.status == "out_of_steps"
        assert [(message.origin, message.text) for message in result.unheard] == [
            ("steer", "Wait!"),
            ("follow_up", "And then?"),
        ]


def test_a_transcript_too_large_for_a_record_is_left_out_of_the_result_and_the_answer_is_not_lost() -> None:
    @tool(effect="pure")
    def read(at: int) -> str:
        return "x" * 900_000

    script = [*(call("read", at=n) for n in range(20)), say("All read.")]
    with house(script, worker(tools=("read",), limits=Limits(result_chars=1_000_000)), tools=[read]) as it:
        result = it.start().result(20)
        assert (result.output, result.steps, result.transcript) == ("All read.", 21, ())


@pytest.mark.parametrize("budget", [Budget(tokens=400), Budget(wall_s=0.05)])
def test_an_answer_that_took_more_than_was_left_is_an_answer(budget: Budget) -> None:
    with house([say("The answer.").using(300, 300).after(0.1)], worker(budget=budget)) as it:
        result = it.start().result(10)
        assert (result.output, result.status) == ("The answer.", "completed")


def test_what_the_model_is_shown_counts_against_the_budget_and_not_what_a_compactor_left_out() -> None:
    script = [*(call("look", what=str(at) * 20_000).using(10, 10) for at in range(4)), say("done").using(10, 10)]
    with house(script, worker(budget=Budget(tokens=15_000)), compactor=Shortening(threshold=0.05)) as it:
        assert it.start().result(10).output == "done"


def test_a_compactor_is_asked_when_the_conversation_is_too_long_and_only_then() -> None:
    seen: list[tuple[int, int]] = []

    class Counts:
        threshold = 0.5

        def compact(self, messages: tuple[Message, ...], limit_tokens: int, info: object) -> tuple[Message, ...]:
            seen.append((len(messages), estimate_tokens(messages)))
            assert seen[-1][1] > limit_tokens
            return messages

    model = ScriptedModel(
        lambda request: call("look", what=str(request.step) * 400) if request.step < 8 else say("y" * 4_000)
    )
    phases = (Phase(name="a"), Phase(name="b", prompt="Now ${a}"))
    agent = worker(tools=("look",), phases=phases)
    tier = Tier(model=model, context_tokens=2_000)
    with house((), agent, models={"default": tier}, compactor=Counts()) as it:
        it.start().result(10)
    fixed = estimate_tokens((), "", model.requests[0].tools)
    shown = [(len(request.messages), estimate_tokens(request.messages)) for request in model.requests]
    assert seen == [one for one in shown if fixed + one[1] > 1_000]
    assert 0 < len(seen) < len(shown) == 18


def test_the_same_call_ten_thousand_times_in_one_message_is_not_made_so_often() -> None:
    calls = [ToolCall(str(at), "look", '{"what": "a"}') for at in range(10_000)]
    with house([ModelReply(assistant(*calls))]) as it:
        outcome = it.start().outcome(20)
        assert isinstance(outcome, Failed)
        assert outcome.error.type.endswith("RepeatedCall")
        assert 5 <= it.traces.count("a") <= MAX_TOGETHER


def test_the_end_of_a_run_that_only_waited_since_it_was_resumed_is_told_to_the_audit(store_path: Path) -> None:
    child = Watched([say("here")])
    agents = (worker(palette=("agent__child",)), Agent(id="child", tier="child"))
    trail = Trail()
    given: dict[str, Any] = {"models": {"child": child}, "store": store_path, "trail": trail}
    script = [call("agent__child", prompt="x"), say("done")]
    with house(script, *agents, **given) as it, child.held_at(0) as held:
        it.start(stop_policy=StopPolicy(grace_s=0.05))
        held.wait()
        it.runtime.drain(5)
    with child.held_at(0) as held, house(script, *agents, **given) as it:
        held.wait()
        it.runtime.get("r").kill("enough", timeout_s=10)
        told = lambda: [one.status for one in trail.of(RunConcluded) if one.info.run_id == "r"]  # noqa: E731
        wait_until(lambda: told() == ["suspended", "killed"], 10)


@pytest.mark.parametrize(
    "told",
    [Steer(3), FollowUp(3), Steer(), Steer(images=("x",)), Steer("x" * 17_000_000)],
    ids=lambda told: repr(told)[:20],  # type: ignore[arg-type]
)
def test_what_is_told_and_no_state_can_hold_is_passed_over(told: Steer | FollowUp) -> None:
    model = Watched([call("launch", what="a"), say("done")])
    with house(model) as it, model.held_at(0) as held:
        handle = it.start()
        held.wait()
        handle.tell(told)
        handle.tell(Steer("a\ud800"))
        held.let_go()
        result = handle.result(10)
        assert [message.text for message in result.transcript if message.origin == "steer"] == ["a\\ud800"]
        assert handle.status().attempt == 1
        assert it.traces.count("a") == 1
