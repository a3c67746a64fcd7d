"""One attempt from inside: what a callback's context can do, in both kinds of callbacks, and that runs share their threads fairly."""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
import pytest

from executus.actors import Done, Run, SavePolicy, StopPolicy, Wait, WaitExpired
from executus.actors.events import RunProgressed, RunStarted, RunUnstopped
from tests.doubles import AsyncFailableRun, Do, FailableRun, Told, rigged
from tests.waiting import wait_until


class Facts(Run[str, dict[str, Any], dict[str, Any]]):
    def begin(self, _: str) -> dict[str, Any]:
        return {}

    def step(self, state: dict[str, Any]) -> Done[dict[str, Any]]:
        context = self.context
        return Done(
            {
                "run_id": context.run_id,
                "attempt": context.attempt,
                "epoch": context.epoch,
                "parent": context.parent_run_id,
                "root": context.root_run_id,
                "labels": dict(context.labels),
                "cancelled": context.cancelled,
            }
        )


class AsyncFacts(Facts):
    async def step(self, state: dict[str, Any]) -> Done[dict[str, Any]]:  # type: ignore[override]
        return Facts.step(self, state)


@pytest.mark.parametrize("run_class", [Facts, AsyncFacts])
def test_a_context_says_who_is_running(run_class: Any) -> None:
    with rigged(None, run_class) as rig:
        facts = rig.runtime.start(run_class, "", run_id="café", labels={"a": "b"}).result(10)
        (started,) = rig.seen.of(RunStarted)
        assert facts == {
            "run_id": "café",
            "attempt": 1,
            "epoch": started.epoch,
            "parent": None,
            "root": "café",
            "labels": {"a": "b"},
            "cancelled": False,
        }


class Bill(msgspec.Struct):
    """Changes in place."""

    items: list[str]


KEYS: dict[str, list[tuple[str, str]]] = {}


class Pays(Run[str, Bill, int]):
    """Asks for its keys before and after it changes its state in place; crashes once in each callback."""

    def note(self, what: str) -> None:
        KEYS.setdefault(self.context.run_id, []).append((what, self.context.idempotency_key))

    def begin(self, who: str) -> Bill:
        self.note("begin")
        assert (
            self.context.idempotency_key_for("a")
            != self.context.idempotency_key_for("b")
            != self.context.idempotency_key
        )
        if self.context.attempt == 1:
            raise ValueError
        return Bill([who])

    def step(self, state: Bill) -> Any:
        at = len(state.items)
        self.note(f"step {at}")
        state.items.append(f"attempt {self.context.attempt}")
        self.note(f"step {at}")  # the state before the callback counts, whatever became of it since
        if self.context.attempt == 2 and at == 2:
            raise ValueError
        return Wait(state) if at == 2 else state

    def receive(self, state: Bill, message: Do) -> Any:
        self.note(f"{message.action} {len(state.items)}")
        return Done(len(state.items)) if message.action == "done" else Wait(state)


def test_an_idempotency_key_is_equal_exactly_when_the_same_action_is_repeated() -> None:
    KEYS.clear()
    with rigged(None, Pays) as rig:
        handles = [rig.runtime.start(Pays, "same input", run_id=run_id) for run_id in ("r", "s")]
        for handle in handles:
            wait_until(lambda handle=handle: handle.status().waiting)
            handle.tell(Do("a"))
            handle.tell(Do("a"))
            handle.tell(Do("done"))
            handle.result(10)
    noted = KEYS["r"]
    assert [what for what, _ in noted].count("begin") == 2
    assert [what for what, _ in noted].count("step 2") == 4
    by_action: dict[str, set[str]] = {}
    for what, key in noted:
        by_action.setdefault(what, set()).add(key)
    assert len(by_action.pop("a 3")) == 2  # the same message twice is two actions
    assert all(len(keys) == 1 for keys in by_action.values())
    assert len(set().union(*by_action.values())) == len(by_action)
    assert not {key for _, key in noted} & {key for _, key in KEYS["s"]}  # another run, the same input


def test_a_replaced_run_has_keys_of_its_own() -> None:
    KEYS.clear()
    with rigged(None, Pays) as rig:
        for _ in range(2):
            handle = rig.runtime.start(Pays, "x", run_id="r", if_exists="replace")
            wait_until(lambda handle=handle: handle.status().waiting)
    begins = {key for what, key in KEYS["r"] if what == "begin"}
    assert len(begins) == 2


class Progresses(Run[int, int, int]):
    def begin(self, n: int) -> int:
        self.context.progress(0, n, "begun")
        return n

    def step(self, state: int) -> Any:
        self.context.progress(state, state, "done")
        return Wait(state)

    def receive(self, state: int, message: Do) -> Done[int]:
        return Done(state)


def test_progress_shows_in_status_and_events() -> None:
    with rigged(None, Progresses) as rig:
        handle = rig.runtime.start(Progresses, 3)
        wait_until(lambda: handle.status().waiting)
        progress = handle.status().progress
        assert progress is not None
        assert (progress.done, progress.total, progress.note) == (3, 3, "done")
        assert [(event.done, event.note) for event in rig.seen.of(RunProgressed)] == [(0, "begun"), (3, "done")]


class Sleeps(Run[float, float, str]):
    def begin(self, seconds: float) -> float:
        return seconds

    def step(self, state: float) -> Done[str]:
        self.context.sleep(state)
        return Done(f"cancelled {self.context.cancelled}")


class AsyncSleeps(Sleeps):
    async def step(self, state: float) -> Done[str]:  # type: ignore[override]
        await self.context.sleep(state)
        return Done(f"cancelled {self.context.cancelled}")


@pytest.mark.parametrize("run_class", [Sleeps, AsyncSleeps])
@pytest.mark.parametrize("verb", ["cancel", "stop"])
def test_sleep_wakes_when_the_run_is_asked_to_end_and_a_done_still_completes(run_class: Any, verb: str) -> None:
    with rigged(None, run_class) as rig:
        began_s = time.monotonic()
        handle = rig.runtime.start(run_class, 60.0)
        wait_until(lambda: handle.status().phase == "step")
        getattr(handle, verb)(timeout_s=10)
        assert handle.result(10) == "cancelled True"
        assert time.monotonic() - began_s < 20
        assert rig.runtime.start(run_class, 0.001).result(10) == "cancelled False"


def test_the_log_of_a_context_has_the_run_bound() -> None:
    lines: list[dict[str, Any]] = []

    class Logger:
        def __init__(self, **bound: Any) -> None:
            self.bound = bound

        def bind(self, **more: Any) -> Logger:
            return Logger(**self.bound, **more)

        def __getattr__(self, level: str) -> Any:
            return lambda event, **more: lines.append({"event": event, **self.bound, **more})

    class Logs(Run[int, int, int]):
        def begin(self, n: int) -> Done[int]:
            self.context.log.info("hello", n=n)
            return Done(n)

        def step(self, state: int) -> int:
            return state

    with rigged(None, Logs, logger=Logger()) as rig:
        rig.runtime.start(Logs, 7, run_id="r").result(10)
        epoch = rig.seen.of(RunStarted)[0].epoch
    (hello,) = [line for line in lines if line["event"] == "hello"]
    assert hello == {"event": "hello", "run_id": "r", "run_type": "Logs", "attempt": 1, "epoch": epoch, "n": 7}


class Forever(Run[int, int, int]):
    save_policy = SavePolicy(durability="none")

    def begin(self, n: int) -> int:
        return 0

    def step(self, state: int) -> int:
        return state + 1


class AsyncForever(Forever):
    async def begin(self, n: int) -> int:
        return 0

    async def step(self, state: int) -> int:
        return state + 1


@pytest.mark.parametrize("run_class", [Forever, AsyncForever])
def test_runs_that_step_without_end_leave_others_their_turn_and_end_when_asked_to(run_class: Any) -> None:
    with rigged(None, run_class) as rig:
        busy = [rig.runtime.start(run_class, 0) for _ in range(20)]
        for double in (FailableRun, AsyncFailableRun):
            assert rig.runtime.start(double, Told(("ok",) * 20)).result(20) == 20
        wait_until(lambda: all(handle.status().seq > 100 for handle in busy), 20)
        for handle in busy:
            handle.kill(timeout_s=20)


def test_busy_async_runs_and_a_hog_in_the_process_leave_the_supervisor_its_turn() -> None:
    """The loop polls in each round, so that threads which wait for the interpreter never get to ask for it."""
    hogging = threading.Event()
    hogging.set()

    def hog() -> None:
        while hogging.is_set():
            pass

    with rigged(None, AsyncForever) as rig:
        thread = threading.Thread(target=hog)
        thread.start()
        try:
            busy = [rig.runtime.start(AsyncForever, 0) for _ in range(20)]
            wait_until(lambda: all(handle.status().seq > 100 for handle in busy), 60)
            began_s = time.monotonic()
            for handle in busy:
                handle.kill(timeout_s=20)
            took_s = time.monotonic() - began_s
        finally:
            hogging.clear()
            thread.join()
        # 1 s as a rule; with one exit report that waits out the seconds of its grace it was 5 to 12.
        assert took_s < 20 * StopPolicy().grace_s / 4
        assert not rig.seen.of(RunUnstopped)


class Expires(Run[int, tuple[str, ...], tuple[str, ...]]):
    def begin(self, n: int) -> Wait[tuple[str, ...]]:
        return Wait((), timeout_s=0.05)

    def step(self, state: tuple[str, ...]) -> Any:
        return Done(state)

    def receive(self, state: tuple[str, ...], message: Do | WaitExpired) -> Any:
        if isinstance(message, WaitExpired):
            return (*state, "expired")
        return None if message.action == "none" else Wait((*state, message.action), timeout_s=0.05)


def test_a_message_that_keeps_everything_keeps_the_deadline_and_one_that_waits_again_gets_a_new_one() -> None:
    with rigged(None, Expires) as rig:
        handle = rig.runtime.start(Expires, 0)
        handle.tell(Do("none"))
        handle.tell(Do("again"))
        handle.tell(Do("none"))
        assert handle.result(10) == ("again", "expired")
        assert handle.status().seq == 1 + 3 + 1  # the Done leaves no state


def test_an_idle_run_costs_no_thread() -> None:
    with rigged() as rig:
        handles = rig.runtime.start_many(FailableRun, {f"r{n}": Told(("wait",)) for n in range(500)})
        for handle in handles:
            wait_until(lambda handle=handle: handle.status().waiting)
        wait_until(lambda: rig.runtime.health().worker_threads <= 8, 15)
        assert threading.active_count() < 30
        for handle in handles:
            handle.tell(Do("done"))
        assert [handle.result(10) for handle in handles] == [1] * 500
