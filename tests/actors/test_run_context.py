"""What a callback can ask of the runtime: ending its own run, and reporting."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from executus.actors import (
    Completed,
    Done,
    Killed,
    RestartPolicy,
    Run,
    RunEnded,
    RunFenced,
    RunStatus,
    Runtime,
    SavePolicy,
    StopPolicy,
    Wait,
)
from executus.actors.events import RunReported, RunRestarting, RunSettled
from tests.doing import BOTH, STORES, At, doing, finished, moody
from tests.doubles import ERRORS, FailableRun, Recorder, Told, rigged
from tests.waiting import wait_until

DURABILITIES = pytest.mark.parametrize("durability", ["async", "sync", "exit", "none"])


@STORES
@BOTH
@DURABILITIES
@pytest.mark.parametrize("then", ["done", "state", "wait", "raise", "exit"])
def test_nothing_that_a_callback_does_after_killing_its_run_has_effect(
    then: str, durability: Any, is_async: bool, kind: str, store_path: Path
) -> None:
    store, _ = moody(kind, store_path)
    caught: list[type[BaseException]] = []

    async def act(run: Any, state: At) -> Any:
        context = run.context
        assert context.kill("the budget is spent", by="critic") is None
        assert context.cancelled
        verbs: list[Any] = [
            context.heartbeat,
            lambda: context.sleep(0),
            context.durable,
            lambda: context.spawn(FailableRun, Told(), key="k"),
        ]
        for verb in verbs:
            with pytest.raises(RunFenced) as raised:
                verb()
            caught.append(raised.type)
        match then:
            case "done":
                return finished(state)
            case "state":
                return At(state.n + 1_000)
            case "wait":
                return Wait(At(state.n + 1_000))
            case "raise":
                raise ERRORS["ValueError"]()
            case _:
                raise SystemExit

    run_class, registered = doing(act, is_async=is_async)
    policy = SavePolicy(durability=durability)
    with rigged(store, registered, save_policy=policy, restart_policy=RestartPolicy(kind="permanent")) as rig:
        handle = rig.runtime.start(run_class, 2, run_id="r")
        assert handle.outcome(10) == Killed("critic", "the budget is spent")
        assert handle.status().seq == 3
        assert len(caught) == 4
        assert not rig.seen.of(RunRestarting)
        assert [settled.status for settled in rig.seen.of(RunSettled)] == [RunStatus.KILLED]
        with pytest.raises(RunEnded):
            handle.tell("anybody?")
    if durability == "none":
        return
    with Runtime(store, runs=[registered], logger=False) as again:
        assert again.get("r").status().status is RunStatus.KILLED
        assert again.get("r").outcome(10) == Killed("critic", "the budget is spent")


def test_an_async_callback_that_goes_on_is_cancelled() -> None:
    cancelled: list[bool] = []

    async def act(run: Any, state: At) -> Any:
        run.context.kill("enough")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    run_class, registered = doing(act, is_async=True)
    with rigged(None, registered) as rig:
        assert rig.runtime.start(run_class, 0).outcome(10) == Killed("itself", "enough")
    assert cancelled == [True]


def test_a_synchronous_callback_that_goes_on_is_given_up_on() -> None:
    go = threading.Event()

    async def act(run: Any, state: At) -> Any:
        run.context.kill("enough")
        go.wait()

    run_class, registered = doing(act, is_async=False)
    with rigged(None, registered, stop_policy=StopPolicy(grace_s=0.05)) as rig:
        assert rig.runtime.start(run_class, 0).outcome(10) == Killed("itself", "enough")
        assert rig.runtime.health().leaked_threads == 1
        go.set()
        wait_until(lambda: rig.runtime.health().leaked_threads == 0)


@STORES
@BOTH
@pytest.mark.parametrize("then", ["done", "raise"])
def test_a_failing_store_does_not_bring_back_a_run_that_killed_itself(
    then: str, is_async: bool, kind: str, store_path: Path
) -> None:
    store, switch = moody(kind, store_path)

    async def act(run: Any, state: At) -> Any:
        switch.fail()
        run.context.kill("enough")
        if then == "raise":
            raise ValueError("told to")
        return finished(state)

    run_class, registered = doing(act, is_async=is_async)
    with rigged(store, registered, stop_policy=StopPolicy(grace_s=0.2)) as rig:
        handle = rig.runtime.start(run_class, 2, run_id="r")
        assert handle.outcome(10) == Killed("itself", "enough"), "after the grace, in memory"
        assert not rig.seen.of(RunRestarting)
        switch.mend()
    with Runtime(store, runs=[registered], logger=False) as again:
        assert again.get("r").status().status is RunStatus.KILLED


@BOTH
def test_what_asks_it_to_end_meanwhile_comes_too_late(is_async: bool, store_path: Path) -> None:
    store, switch = moody("memory", store_path)

    async def act(run: Any, state: At) -> Any:
        switch.held = True
        run.context.kill("enough")
        return finished(state)

    run_class, registered = doing(act, is_async=is_async)
    with rigged(store, registered) as rig:
        handle = rig.runtime.start(run_class, 2, run_id="r")
        wait_until(lambda: switch.hanging)
        others = [threading.Thread(target=verb) for verb in (handle.stop, handle.cancel, handle.kill)]
        for thread in others:
            thread.start()
        wait_until(lambda: len(handle._inc.causes) == 2)
        switch.held = False
        switch.go_on.set()
        assert handle.outcome(10) == Killed("itself", "enough")
        for thread in others:
            thread.join(10)


def test_other_runs_go_on() -> None:
    async def act(run: Any, state: At) -> Any:
        run.context.kill("enough")

    run_class, registered = doing(act, is_async=True)
    with rigged(None, registered) as rig:
        bystander = rig.runtime.start(FailableRun, Told(("ok", "ok")))
        rig.runtime.start(run_class, 0).outcome(10)
        assert bystander.outcome(10) == Completed(2)


def test_a_report_is_an_event_of_small_scalars_and_a_heartbeat() -> None:
    class Reports(Run[None, int, None]):
        def begin(self, input: None) -> int:
            return 0

        def step(self, state: int) -> Done[None]:
            facts: Any = {"n": 1, "text": "a\nb", "list": [1], "long": "x" * 500, 3: 4}
            self.context.report("Fed\x1b", facts)
            return Done(None)

    seen = Recorder()
    runtime = Runtime(None, runs=[Reports], logger=False)
    runtime.events.subscribe(seen)
    with runtime:
        runtime.start(Reports, None, run_id="r").result(10)
        (event,) = seen.of(RunReported)
        assert (event.run_id, event.what) == ("r", "Fed\\x1b")
        assert event.facts == {"n": 1, "text": "a\\nb", "long": "x" * 200}


def test_facts_that_a_function_makes_are_made_where_somebody_listens() -> None:
    made: list[str] = []

    class Reports(Run[str, str, None]):
        def begin(self, name: str) -> str:
            return name

        def step(self, name: str) -> Done[None]:
            def facts() -> dict[str, str | float | bool]:
                made.append(name)
                return {"n": 1}

            self.context.report("Fed", facts)
            return Done(None)

    seen = Recorder()
    with Runtime(None, runs=[Reports], logger=False) as runtime:
        runtime.start(Reports, "unheard").result(10)
        runtime.events.subscribe(seen, only=RunReported)
        runtime.start(Reports, "heard").result(10)
    assert made == ["heard"]
    assert [event.facts for event in seen.of(RunReported)] == [{"n": 1}]
