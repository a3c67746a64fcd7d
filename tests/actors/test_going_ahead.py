"""Runs with durability "sync" whose `may_go_ahead` lets the next callback begin before a state is stored."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from executus.actors import (
    Done,
    Factory,
    Failed,
    InvalidRunType,
    Phase,
    Reply,
    Run,
    RunCrashed,
    Runtime,
    SavePolicy,
    StopPolicy,
    Wait,
)
from executus.actors.events import RunExited
from executus.actors.testing import Effects, crash_everywhere
from executus.stores import MemoryStore, Operation, Save, Settle, StoreUnavailable, Verdict
from tests.doing import BOTH
from tests.doubles import NEVER, rigged
from tests.waiting import wait_until

SYNC = SavePolicy(durability="sync")
LAST = 8


class At(msgspec.Struct, frozen=True):
    n: int = 0


class Diary:
    """What happened, in order: callbacks that begin, and saves, each before anybody is told of it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def place(self, line: str) -> int:
        return self.lines.index(line)


class Climbs(Run[int, At, int]):
    """Counts up to its input. From an odd state the next step only computes."""

    run_type = "Climbs"

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    def begin(self, upto: int) -> At:
        return At()

    def step(self, state: At) -> Any:
        self.diary.lines.append(f"step {state.n}")
        return Done(state.n) if state.n == LAST else At(state.n + 1)

    def receive(self, state: At, message: str) -> Any:
        self.diary.lines.append(f"receive {state.n}")
        return Reply(message, At(state.n + 1)) if message == "answer" else At(state.n + 1)

    def may_go_ahead(self, state: At) -> bool:
        return state.n % 2 == 1


class AsyncClimbs(Climbs):
    async def step(self, state: At) -> Any:
        return super().step(state)

    async def receive(self, state: At, message: str) -> Any:
        return super().receive(state, message)


def made(run_class: type[Climbs], diary: Diary) -> Factory[Climbs]:
    return Factory(run_class, diary)


class Slow(MemoryStore):
    """Holds every save of a seq from `hold_from` on back until it is let go; fails those from `fail_from` on."""

    def __init__(self, diary: Diary, hold_from: int) -> None:
        super().__init__()
        self.diary = diary
        self.hold_from = hold_from
        self.fail_from = 1_000
        self.gate = threading.Event()

    def commit(self, operations: Sequence[Operation], *args: Any, **kwargs: Any) -> list[Verdict]:
        seqs = [op.snapshot.seq for op in operations if isinstance(op, Save)]
        if any(seq >= self.hold_from for seq in seqs):
            assert self.gate.wait(20)
        if any(seq >= self.fail_from for seq in seqs):
            raise StoreUnavailable("told to fail")
        verdicts = super().commit(operations, *args, **kwargs)
        self.diary.lines += [f"stored {seq}" for seq in seqs]
        return verdicts


def climber(is_async: bool) -> type[Climbs]:
    return AsyncClimbs if is_async else Climbs


@BOTH
def test_the_next_step_begins_before_the_state_is_stored_and_the_one_after_it_waits_for_both(is_async: bool) -> None:
    diary, run_class = Diary(), climber(is_async)
    store = Slow(diary, hold_from=3)  # begin made seq 1 and the step from 0 made 2: At(1), which may be gone ahead from
    with rigged(store, made(run_class, diary), save_policy=SYNC) as rig:
        handle: Any = rig.runtime.start(run_class, 0, run_id="r")
        wait_until(lambda: handle.status().seq == 3)
        assert "stored 3" not in diary.lines
        store.gate.set()
        assert handle.result(20) == LAST
    assert [line for line in diary.lines if line.startswith("step")] == [f"step {n}" for n in range(LAST + 1)]
    for n in range(0, LAST + 1, 2):
        assert diary.place(f"stored {n + 1}") < diary.place(f"step {n}")


def test_what_is_gone_ahead_of_is_offered_all_the_same() -> None:
    """A step that takes long has the state before it stored meanwhile."""
    begun, gate = threading.Event(), threading.Event()

    class Long(Climbs):
        run_type = "Long"

        def may_go_ahead(self, state: At) -> bool:
            return True

        def step(self, state: At) -> Any:
            if state.n == LAST:
                begun.set()
                gate.wait(20)
            return super().step(state)

    with rigged(None, made(Long, Diary()), save_policy=SYNC) as rig:
        handle: Any = rig.runtime.start(Long, 0, run_id="r")
        assert begun.wait(20)
        wait_until(lambda: handle.status().durable_seq == LAST + 1)
        gate.set()
        assert handle.result(20) == LAST


@BOTH
def test_an_answer_is_given_when_its_effect_is_stored_whatever_may_be_gone_ahead_of(is_async: bool) -> None:
    diary = Diary()

    class Waits(climber(is_async)):  # type: ignore[misc]
        run_type = "Waits"

        def begin(self, upto: int) -> Any:
            return Wait(At())

    store = Slow(diary, hold_from=2)
    with rigged(store, made(Waits, diary), save_policy=SYNC) as rig:
        handle: Any = rig.runtime.start(Waits, 0, run_id="r")
        wait_until(lambda: handle.status().waiting)
        thread = threading.Thread(target=lambda: diary.lines.append(f"answered {handle.ask('answer', 20)}"))
        thread.start()
        wait_until(lambda: handle.status().seq == 2)
        store.gate.set()
        thread.join(20)
        assert handle.result(20) == LAST
    assert diary.place("stored 2") < diary.place("answered answer")
    assert diary.place("stored 2") < diary.place("step 1")


@BOTH
def test_a_store_that_fails_fails_the_run_at_the_next_state_that_is_waited_for(is_async: bool) -> None:
    diary, run_class = Diary(), climber(is_async)
    store = Slow(diary, hold_from=1_000)
    store.fail_from = 3
    with rigged(store, made(run_class, diary), save_policy=SYNC) as rig:
        handle: Any = rig.runtime.start(run_class, 0, run_id="r")
        exited = rig.seen.wait_for(RunExited, "r")
        assert (exited.phase, exited.error.type) == (Phase.SAVING, "executus.stores.errors.StoreUnavailable")
        assert "step 2" not in diary.lines
        store.fail_from = 1_000
        assert handle.result(20) == LAST
    assert any(diary.place(line) < diary.place("step 2") for line in diary.lines if line in {"stored 3", "stored 4"})


def test_what_it_raises_is_the_callbacks_error() -> None:
    class Raises(Climbs):
        run_type = "Raises"

        def may_go_ahead(self, state: At) -> bool:
            raise ValueError("told to")

    with rigged(None, made(Raises, Diary()), save_policy=SYNC, restart_policy=NEVER) as rig:
        outcome = rig.runtime.start(Raises, 0).outcome(20)
        assert isinstance(outcome, Failed)
        assert (outcome.error.type, outcome.error.message) == ("ValueError", "told to")


@pytest.mark.parametrize("policy", [SavePolicy(), SavePolicy(every_steps=1), SavePolicy(durability="exit")])
def test_other_durabilities_do_not_ask(policy: SavePolicy) -> None:
    class Raises(Climbs):
        run_type = "Raises"

        def may_go_ahead(self, state: At) -> bool:
            raise ValueError("asked")

    with rigged(None, made(Raises, Diary()), save_policy=policy, restart_policy=NEVER) as rig:
        assert rig.runtime.start(Raises, 0).result(20) == LAST


def test_an_async_one_is_refused_at_once() -> None:
    class Async(Climbs):
        async def may_go_ahead(self, state: At) -> bool:  # type: ignore[override]
            return True

    with pytest.raises(InvalidRunType, match=r"may_go_ahead\(\) is async"):
        Runtime(None, runs=[made(Async, Diary())])


@pytest.mark.parametrize("how", ["in-process", "sigkill"])
def test_killed_at_every_commit_it_ends_the_same_and_no_effect_is_repeated_under_another_key(how: Any) -> None:
    """Steps from odd states only compute: whatever is repeated of them, those from even states find their keys again."""
    effects = Effects()

    class Works(Climbs):
        run_type = "Works"
        save_policy = SYNC

        def step(self, state: At) -> Any:
            if state.n % 2 == 0:
                effects.perform(f"effect {state.n}", key=self.context.idempotency_key)
            return super().step(state)

    report = crash_everywhere(
        lambda runtime: runtime.start(Works, 0, run_id="r"), runs=[made(Works, Diary())], effects=effects, how=how
    )
    assert len(report.points) > LAST


# --- an answer that completes the run


class Approves(Run[int, At, str]):
    run_type = "Approves"

    def begin(self, n: int) -> Any:
        return Wait(At(n))

    def step(self, state: At) -> Any:
        return Wait(state)

    def receive(self, state: At, message: str) -> Any:
        return Reply("thank you", Done("approved"))


class AsyncApproves(Approves):
    async def receive(self, state: At, message: str) -> Any:
        return super().receive(state, message)


class HeldAtTheEnd(MemoryStore):
    """Holds the endings of runs back until it is let go, and then takes them or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.gate = threading.Event(), threading.Event()
        self.fails = False

    def commit(self, operations: Sequence[Operation], *args: Any, **kwargs: Any) -> list[Verdict]:
        if any(isinstance(op, Settle) for op in operations):
            self.reached.set()
            assert self.gate.wait(20)
            if self.fails:
                raise StoreUnavailable("told to fail")
        return super().commit(operations, *args, **kwargs)


def asked_at_the_end(store: HeldAtTheEnd, is_async: bool, **options: Any) -> tuple[list[object], list[object]]:
    """What an ask that completes the run comes to before its result is committed, and afterwards."""
    run_class = AsyncApproves if is_async else Approves
    answers: list[object] = []

    def ask(handle: Any) -> None:
        try:
            answers.append(handle.ask("yes", 20))
        except RunCrashed as error:
            answers.append(error)

    with rigged(store, run_class, save_policy=SYNC, **options) as rig:
        handle: Any = rig.runtime.start(run_class, 0, run_id="r")
        wait_until(lambda: handle.status().waiting)
        asker = threading.Thread(target=ask, args=(handle,))
        asker.start()
        assert store.reached.wait(20)
        before = list(answers)
        store.gate.set()
        asker.join(20)
        store.fails = False
        assert handle.result(20) == "approved"
    return before, answers


@BOTH
def test_with_durability_sync_an_ask_that_completes_the_run_is_answered_when_the_result_is_stored(
    is_async: bool,
) -> None:
    assert asked_at_the_end(HeldAtTheEnd(), is_async) == ([], ["thank you"])


@BOTH
def test_with_durability_sync_an_ask_whose_result_the_store_did_not_take_in_time_fails(is_async: bool) -> None:
    store = HeldAtTheEnd()
    store.fails = True
    before, answers = asked_at_the_end(store, is_async, stop_policy=StopPolicy(result_grace_s=0.1))
    assert before == []
    assert [type(answer) for answer in answers] == [RunCrashed]
    assert "ended before the answer was durable" in str(answers[0])
