"""What a critic orders is done, through a real runtime: nudge, extend, restart, kill; between steps and in the middle of a call."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from executus.actors import AsyncRuntime, StopPolicy
from executus.actors.agents.agent import Budget, Limits, Phase
from executus.actors.agents.agents import Agents
from executus.actors.agents.audit import Extended, KillOrdered, Nudged, PhaseEnded, RestartOrdered
from executus.actors.agents.critic import Extend, KillRun, Nudge, RestartRun, Verdict, Watch
from executus.actors.agents.ladder import Ladder, LadderCritic
from executus.actors.agents.phase_context import PhaseContext
from executus.actors.agents.scripted import ScriptedModel, call, say
from executus.actors.agents.tool import ToolContext, tool
from executus.actors.agents.transcript import problems
from executus.actors.outcomes import Failed, Killed, TimedOut
from tests.agents.house import Trail, Watched, house, worker
from tests.waiting import ticks, wait_until

ONE_BY_ONE = [call("look", what="a"), call("look", what="b"), call("look", what="c"), say("done")]


class Told:
    """A critic that does what it is told, and keeps what it was shown."""

    every_s = 0.01
    hard_deadline_s: float | None = None

    def __init__(self, judge: Callable[[Watch], Verdict | None], hard_deadline_s: float | None = None) -> None:
        self._judge = judge
        self.hard_deadline_s = hard_deadline_s
        self.watched: list[Watch] = []

    def judge(self, watch: Watch, /) -> Verdict | None:
        self.watched.append(watch)
        return self._judge(watch)


def once(verdict: Verdict, when: Callable[[Watch], bool]) -> Callable[[Watch], Verdict | None]:
    given: list[Watch] = []

    def judge(watch: Watch) -> Verdict | None:
        if given or not when(watch):
            return None
        given.append(watch)
        return verdict

    return judge


def test_a_nudge_between_steps_is_in_the_conversation_before_the_next_one() -> None:
    critic = Told(once(Nudge("Try b.", "spinning"), lambda watch: watch.step == 1))
    model = Watched(ONE_BY_ONE)
    with house(model, critic=critic) as it:
        result = it.start().result(10)
        nudges = [message for message in result.transcript if message.origin == "nudge"]
        assert [message.text for message in nudges] == ["Try b."]
        assert nudges[0] in model.seen(1)
        assert problems(result.transcript) == []
        assert [(one.text, one.stall) for one in it.trail.of(Nudged)] == [("Try b.", "spinning")]


def test_an_extension_raises_the_ceiling_of_a_run_in_flight_up_to_its_limit() -> None:
    script = [call("look", what=str(n)) for n in range(9)] + [say("done")]
    critic = Told(lambda watch: Extend(steps=4, reason="healthy") if watch.step == watch.step_ceiling else None)
    with house(script, worker(step_ceiling=3, limits=Limits(max_ceiling=9)), critic=critic) as it:
        result = it.start().result(10)
        assert (result.status, result.steps) == ("out_of_steps", 9)
        assert [one.steps for one in it.trail.of(Extended)][:2] == [4, 4]
    with house(script, worker(step_ceiling=3), critic=critic) as it:
        assert it.start().result(10).output == "done"


def test_an_extension_moves_the_deadline_of_the_budget() -> None:
    critic = Told(once(Extend(seconds=60.0), lambda watch: watch.step == 1))
    model = Watched([call("look", what="a"), say("done")])
    with house(model, worker(budget=Budget(wall_s=0.2)), critic=critic) as it, model.held_at(1) as held:
        handle = it.start()
        held.wait()
        beyond = lambda: [watch for watch in critic.watched if watch.active_s > 0.3]  # noqa: E731
        wait_until(beyond, 10)
        assert beyond()[0].deadline_s == pytest.approx(60.2)
        held.let_go()
        assert handle.result(10).output == "done"


def test_a_kill_is_terminal_in_the_middle_of_a_hanging_call() -> None:
    critic = Told(lambda watch: KillRun("hangs") if watch.zone == "model" and watch.zone_s > 0.03 else None)
    model = Watched(ONE_BY_ONE)
    with house(model, critic=critic) as it, model.held_at(1):
        outcome = it.start(stop_policy=StopPolicy(grace_s=1)).outcome(10)
        assert outcome == Killed("critic", "hangs")


def test_a_kill_between_steps_is_terminal() -> None:
    critic = Told(lambda watch: KillRun("enough") if watch.step == 2 else None)
    with house(ONE_BY_ONE, critic=critic) as it:
        assert it.start().outcome(10) == Killed("critic", "enough")
        assert it.trail.of(KillOrdered)


def test_a_restart_in_the_middle_of_a_hanging_call_goes_on_from_the_last_snapshot() -> None:
    critic = Told(
        lambda watch: RestartRun("hangs") if watch.attempt == 1 and watch.step == 1 and watch.zone_s > 0.02 else None
    )
    model = Watched(ONE_BY_ONE)
    hung: list[int] = []

    async def hang_once(request: Any) -> None:
        if request.step == 1 and not hung:
            hung.append(1)
            await asyncio.Event().wait()

    model.before = hang_once
    with house(model, critic=critic) as it:
        handle = it.start()
        assert handle.result(10).output == "done"
        assert handle.status().attempt == 2
        assert it.traces.count("a") == 1
        assert [one.reason for one in it.trail.of(RestartOrdered)] == ["hangs"]


def test_a_restart_between_steps_happens_once_and_the_ladder_goes_on() -> None:
    critic = Told(lambda watch: RestartRun("spins") if watch.step == 1 and watch.memo.restarts == 0 else None)
    with house(ONE_BY_ONE, critic=critic) as it:
        handle = it.start()
        assert handle.result(10).output == "done"
        assert handle.status().attempt == 2
        assert [one.reason for one in it.trail.of(RestartOrdered)] == ["spins"]
        assert max(watch.memo.restarts for watch in critic.watched) == 1


def test_a_critic_that_raises_harms_nothing() -> None:
    def judge(watch: Watch) -> Verdict | None:
        raise ZeroDivisionError

    with house(ONE_BY_ONE, critic=Told(judge)) as it:
        handle = it.start()
        assert handle.result(10).output == "done"
        assert handle.status().restarts == 0


def test_the_hard_deadline_binds_the_run() -> None:
    model = Watched(ONE_BY_ONE)
    with house(model, critic=Told(lambda watch: None, hard_deadline_s=0.1)) as it, model.held_at(0):
        assert it.start().outcome(10) == TimedOut()


def test_heartbeats_of_a_tool_are_signs_of_life() -> None:
    @tool(effect="pure")
    async def slow(context: ToolContext) -> str:
        for _ in range(20):
            context.heartbeat()
            await ticks(0.005)
        return "ok"

    critic = Told(lambda watch: None)
    with house([call("slow"), say("done")], worker(tools=("slow",)), critic=critic, tools=[slow]) as it:
        it.start().result(10)
    seen = [watch for watch in critic.watched if watch.zone == "tool"]
    assert max(watch.zone_s for watch in seen) > 0.05
    assert seen[-1].idle_s < seen[-1].zone_s


def test_the_default_ends_a_spinning_run_by_its_ladder_nudge_restart_kill() -> None:
    ladder = Ladder(min_gap_s=0.0, max_nudges=1, max_restarts=1)
    with house(
        lambda request: call("look", what="same"),
        worker(step_ceiling=60, limits=Limits(same_call_in_a_row=50)),
        critic=LadderCritic(ladder=ladder),
    ) as it:
        outcome = it.start().outcome(10)
        assert isinstance(outcome, Killed)
        assert outcome.by == "critic"
        assert "spinning" in outcome.reason
        orders = [kind for kind in it.trail.kinds() if kind in {"Nudged", "RestartOrdered", "KillOrdered"}]
        assert orders == ["Nudged", "RestartOrdered", "KillOrdered"]


def test_the_default_ends_a_run_that_hangs_at_the_same_call_over_and_over() -> None:
    ladder = Ladder(hung_after_s=0.05, min_gap_s=0.0, max_restarts=2)
    model = Watched(ONE_BY_ONE)
    with house(model, critic=LadderCritic(ladder=ladder, every_s=0.01)) as it, model.held_at(1):
        handle = it.start(stop_policy=StopPolicy(grace_s=1))
        outcome = handle.outcome(20)
        assert isinstance(outcome, Killed | Failed)
        assert isinstance(outcome, Killed), outcome
        assert handle.status().attempt == 3
        assert it.traces.count("a") == 1


def test_the_default_leaves_a_healthy_run_alone() -> None:
    with house(ONE_BY_ONE, critic=LadderCritic()) as it:
        assert it.start().result(10).output == "done"
        assert not {"Nudged", "RestartOrdered", "KillOrdered", "Extended"} & set(it.trail.kinds())


# --- what critics do wrong


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_what_a_critic_raises_that_is_no_exception_crashes_its_run_and_not_the_loop(error: BaseException) -> None:
    raised: list[Watch] = []

    def judge(watch: Watch) -> None:
        if watch.zone == "model" and not raised:
            raised.append(watch)
            raise error

    model = Watched([say("done")])
    with house(model, critic=Told(judge)) as it, model.held_at(0) as held:
        handle = it.start()
        wait_until(lambda: raised, 10)
        held.let_go()
        assert handle.result(10).output == "done"
        assert it.start(run_id="another").result(10).output == "done", "the loop is alive"


@pytest.mark.parametrize("verdict", ["kill", 3, Nudge(3), Nudge("\ud800")])  # type: ignore[arg-type]
def test_a_verdict_that_is_none_is_not_heard(verdict: Any) -> None:
    with house(ONE_BY_ONE, critic=Told(lambda watch: verdict)) as it:
        assert it.start().result(10).output == "done"
        assert it.trail.of(Nudged) == []


def test_an_extension_takes_nothing_away() -> None:
    for steps, seconds in ((-1, 0.0), (0, -1.0), (0, math.nan)):
        with pytest.raises(ValueError, match="takes nothing away"):
            Extend(steps, seconds)


def test_a_run_that_lives_on_after_a_kill_is_watched_no_more_and_troubles_no_loop() -> None:
    troubles: list[Any] = []
    looked: list[Watch] = []
    ended = asyncio.Event()

    @tool(effect="pure")
    async def stubborn() -> str:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: troubles.append(context))
        while not ended.is_set():
            try:
                await asyncio.wait_for(ended.wait(), 10)
            except asyncio.CancelledError:
                continue
        return "at last"

    def judge(watch: Watch) -> Verdict | None:
        looked.append(watch)
        return KillRun("hangs") if watch.zone == "tool" else None

    async def main() -> None:
        agents = Agents(
            [worker(tools=("stubborn",))],
            models={"default": ScriptedModel([call("stubborn")])},
            tools=[stubborn],
            critic=Told(judge),
            audit=Trail(),
        )
        async with AsyncRuntime(None, runs=agents.runs, logger=False) as runtime:
            handle = await agents.start(runtime, "worker", "Go.", stop_policy=StopPolicy(grace_s=0.1))
            assert await handle.outcome(10) == Killed("critic", "hangs")
            ended.set()
            assert looked

    asyncio.run(main())
    assert troubles == []


def test_what_is_ordered_while_a_function_runs_is_taken_in_with_its_end() -> None:
    going = threading.Event()
    critic = Told(
        lambda watch: (
            None
            if watch.phase != "f" or watch.memo.nudges
            else Nudge("Be brief.")
            if watch.memo.extensions
            else Extend(steps=7)
        )
    )

    async def function(context: PhaseContext) -> str:
        while not going.is_set():
            await ticks(0.001)
        return "made"

    model = Watched([say("done")])
    agent = worker(step_ceiling=3, phases=(Phase(name="f", function="f"), Phase(name="b", prompt="${f}")))
    with house(model, agent, functions={"f": function}, critic=critic) as it:
        handle = it.start()
        wait_until(lambda: critic.watched and critic.watched[-1].memo.nudges, 10)
        going.set()
        result = handle.result(10)
        assert [message.text for message in result.transcript] == ["made", "Be brief.", "done"]
        assert [type(one).__name__ for one in it.trail.entries if isinstance(one, Nudged | Extended | PhaseEnded)] == [
            "Extended", "Nudged", "PhaseEnded", "PhaseEnded",
        ]  # fmt: skip


def test_a_compactor_that_hangs_is_watched_as_a_model_is() -> None:
    class Hangs:
        threshold = 0.000_001

        async def compact(self, *given: object) -> Any:
            await asyncio.Event().wait()

    restarts = Told(lambda watch: RestartRun("hangs") if watch.zone == "model" and not watch.memo.restarts else None)
    model = ScriptedModel([say("done")])
    with house(model, critic=restarts, compactor=Hangs()) as it:
        handle = it.start(stop_policy=StopPolicy(grace_s=0.1))
        wait_until(lambda: [watch for watch in restarts.watched if watch.attempt == 2], 10)
        assert len(it.trail.of(RestartOrdered)) == 1
        assert model.requests == ()
        handle.kill("enough", timeout_s=10)


def test_the_hard_deadline_binds_a_run_with_a_stop_policy_of_its_own() -> None:
    model = Watched([say("never")])
    with house(model, critic=Told(lambda watch: None, hard_deadline_s=0.1)) as it, model.held_at(0):
        for run_id, policy in (("a", StopPolicy(grace_s=0.1)), ("b", StopPolicy(grace_s=0.1, run_timeout_s=600))):
            assert it.start(run_id=run_id, stop_policy=policy).outcome(10) == TimedOut()
    with house(model, critic=Told(lambda watch: None, hard_deadline_s=600)) as it, model.held_at(0):
        policy = StopPolicy(grace_s=0.1, run_timeout_s=0.1)
        assert it.start(stop_policy=policy).outcome(10) == TimedOut()
