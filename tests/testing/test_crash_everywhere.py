"""`crash_everywhere` passes runs that hold, and finds the bugs that are planted in the others."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from executus.actors import (
    BlockingCallOnLoop,
    ChildEnded,
    Completed,
    Done,
    Factory,
    Reply,
    RestartPolicy,
    Run,
    RunHandle,
    Runtime,
    SavePolicy,
    Wait,
    WaitExpired,
)
from executus.actors.testing import CrashEverywhereFailed, CrashReport, Effects, crash_everywhere
from executus.actors.testing.by_sigkill import ChildFailed, in_child
from executus.actors.testing.machine import TooManyTurns
from tests.doubles import SOON

TEXT = "a bb ccc dddd"


class Todo(msgspec.Struct, frozen=True):
    left: tuple[str, ...]
    sum: int = 0


class Import(Run[str, Todo, int]):
    """Holds: each effect has a key."""

    def __init__(self, effects: Effects) -> None:
        self.effects = effects

    def begin(self, text: str) -> Todo:
        return Todo(tuple(text.split()))

    def step(self, state: Todo) -> Todo | Done[int]:
        if not state.left:
            return Done(state.sum)
        self.act(state.left[0])
        return Todo(state.left[1:], state.sum + len(state.left[0]))

    def act(self, word: str) -> None:
        self.effects.perform(f"mail {word}", key=self.context.idempotency_key)


class AsyncImport(Import):
    async def step(self, state: Todo) -> Todo | Done[int]:  # type: ignore[override]
        async with asyncio.timeout(60):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(lambda: None)
        return Import.step(self, state)


class SleepyImport(Import):
    def step(self, state: Todo) -> Todo | Done[int]:
        self.context.sleep(0.01)
        return super().step(state)


class Careless(Import):
    """An effect before the state that guards it, and no key."""

    def act(self, word: str) -> None:
        self.effects.perform(f"mail {word}")


class Forgetful(Import):
    """Keeps a sum outside its state."""

    kept = 0

    def step(self, state: Todo) -> Todo | Done[int]:
        if not state.left:
            return Done(self.kept)
        self.kept += len(state.left[0])
        return Todo(state.left[1:])


class Hasty(Import):
    """Says in its state that the mail is sent, and sends it in the next step from memory."""

    word = ""

    def step(self, state: Todo) -> Todo | Done[int]:
        if self.word:
            self.effects.perform(f"mail {self.word}", key=self.context.idempotency_key)
            self.word = ""
        if not state.left:
            return Done(state.sum)
        self.word = state.left[0]
        return Todo(state.left[1:], state.sum + 1)


class Tokens(msgspec.Struct, frozen=True):
    token: int = 0


class Fickle(Run[str, Tokens, str]):
    """Draws a number into its state, and an effect has its key from that state."""

    def __init__(self, effects: Effects) -> None:
        self.effects = effects

    def begin(self, _: str) -> Tokens:
        return Tokens()

    def step(self, state: Tokens) -> Tokens | Done[str]:
        if not state.token:
            return Tokens(random.randrange(1, 1 << 60))
        self.effects.perform("charge", key=self.context.idempotency_key)
        return Done("charged")


class Whimsical(Fickle):
    """Does not even end the same way twice."""

    def step(self, state: Tokens) -> Tokens | Done[str]:
        return Done(str(random.random()))


GLOBAL: set[str] = set()


class Global(Import):
    """Keeps its memory in a module."""

    def step(self, state: Todo) -> Todo | Done[int]:
        if not state.left:
            return Done(len(GLOBAL))
        GLOBAL.add(state.left[0])
        return Todo(state.left[1:])


class Question(msgspec.Struct, frozen=True, tag=True):
    text: str


class Answer(msgspec.Struct, frozen=True, tag=True):
    text: str


class Heard(msgspec.Struct, frozen=True):
    answers: tuple[str, ...] = ()
    expired: int = 0


class Interview(Run[int, Heard, tuple[str, ...]]):
    """Waits for answers; each has an hour."""

    wanted = 3

    def begin(self, wanted: int) -> Wait[Heard]:
        return Wait(Heard(), timeout_s=3600)

    def step(self, state: Heard) -> Wait[Heard]:
        return Wait(state, timeout_s=3600)

    def receive(self, state: Heard, message: Answer | WaitExpired) -> Any:
        if isinstance(message, WaitExpired):
            expired = msgspec.structs.replace(state, expired=state.expired + 1)
            return Wait(expired, timeout_s=3600) if expired.expired < 3 else Done((*state.answers, "nobody"))
        heard = msgspec.structs.replace(state, answers=(*state.answers, message.text))
        after = Done(heard.answers) if len(heard.answers) == self.wanted else Wait(heard, timeout_s=3600)
        return Reply("thanks", after)

    def query(self, state: Heard, question: Question) -> int:
        return len(state.answers)


class Sums(msgspec.Struct, frozen=True):
    parts: frozenset[int] = frozenset()


class Team(Run[int, Sums, int]):
    """A parent with children that sleep and poll."""

    def __init__(self, effects: Effects) -> None:
        self.effects = effects

    def begin(self, size: int) -> Wait[Sums]:
        for number in range(size):
            self.context.spawn(Member, number, key=str(number))
        return Wait(Sums())

    def step(self, state: Sums) -> Wait[Sums]:
        return Wait(state)

    def receive(self, state: Sums, message: ChildEnded | WaitExpired) -> Wait[Sums] | Done[int]:
        assert isinstance(message, ChildEnded)
        assert isinstance(message.outcome, Completed)
        parts = state.parts | {int(message.outcome.result)}
        return Wait(Sums(parts)) if len(parts) < 3 else Done(sum(parts))


class Member(Run[int, Todo, int]):
    def __init__(self, effects: Effects) -> None:
        self.effects = effects

    def begin(self, number: int) -> Todo:
        return Todo(("x",) * number, number)

    def step(self, state: Todo) -> Todo | Done[int]:
        if not state.left:
            self.effects.perform(f"child {state.sum}", key=self.context.idempotency_key)
            return Done(state.sum * 10)
        for _ in range(3):
            self.context.sleep(0.01)
        return Todo(state.left[1:], state.sum)


class Mutable(msgspec.Struct):
    seen: list[int]


class Collect(Run[int, Mutable, int]):
    def begin(self, count: int) -> Mutable:
        return Mutable([])

    def step(self, state: Mutable) -> Mutable | Done[int]:
        state.seen.append(len(state.seen))
        return state if len(state.seen) < 4 else Done(sum(state.seen))


class Stumbling(Import):
    """Crashes in its first attempt at every second word; fails for good at a bad one."""

    restart_policy = RestartPolicy(max_restarts=9, backoff=SOON)

    def act(self, word: str) -> None:
        super().act(word)
        if word == "bad":
            raise SystemExit(3)
        if self.context.attempt % 2 and len(word) % 2:
            raise ValueError("stumbled")


class Tidy(Import):
    """Tidies up in `finally`, which a process that is gone does not."""

    save_policy = SavePolicy(every_s=1)

    def step(self, state: Todo) -> Todo | Done[int]:
        try:
            self.context.sleep(3)
        finally:
            self.effects.perform(f"tidy {len(state.left)}", key=self.context.idempotency_key)
        return super().step(state)


class AsyncTidy(Import):
    save_policy = SavePolicy(every_s=1)

    async def step(self, state: Todo) -> Todo | Done[int]:  # type: ignore[override]
        try:
            await asyncio.sleep(3)
        finally:
            self.effects.perform(f"tidy {len(state.left)}")
        return Import.step(self, state)


class Endless(Import):
    def step(self, state: Todo) -> Todo:
        return state


def tried(kind: type[Import], text: str = TEXT, **options: Any) -> CrashReport:
    effects = Effects()
    return crash_everywhere(
        lambda runtime: runtime.start(kind, text, run_id="r"), runs=[Factory(kind, effects)], effects=effects, **options
    )


# --- runs that hold ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Import, AsyncImport, SleepyImport, Stumbling])
def test_a_run_that_holds_ends_the_same_wherever_its_process_dies(kind: type[Import]) -> None:
    report = tried(kind)
    assert report.ended == "Completed(10)"
    assert len(report.points) >= 2 * (2 + len(TEXT.split()) + 1)
    assert report.not_reached == ()
    assert report.boots == 3 + 2 * len(report.points)
    assert len({point.saves for point in report.points}) > 3
    assert report.steps_repeated is not None
    assert report.steps_repeated > len(TEXT.split())
    assert "died at" in str(report)


@pytest.mark.parametrize("kind", [Tidy, AsyncTidy])
def test_what_a_dead_process_still_tries_while_it_unwinds_has_no_effect(kind: type[Import]) -> None:
    report = tried(kind, at_most={f"tidy {n}": 2 for n in range(5)} if kind is AsyncTidy else None)
    in_the_middle = [point for point in report.points if point.saves == "as declared"]
    assert len(in_the_middle) > 8, "saved while it sleeps"


def test_the_commits_are_those_of_the_run_each_before_and_after() -> None:
    points = [point for point in tried(Import, "a").points if point.saves == "after each step"]
    assert [(point.commit, point.side, point.holds) for point in points] == [
        (number, side, holds)
        for number, holds in enumerate(
            ("start 'r'", "save 'r' at seq 1", "save 'r' at seq 2", "'r' is completed"), start=1
        )
        for side in ("before", "after")
    ]


def test_two_times_the_same_run_are_two_times_the_same_points() -> None:
    first, second = (msgspec.structs.replace(tried(AsyncImport), took_s=0) for _ in range(2))
    assert first == second


def test_a_run_that_fails_fails_the_same_wherever_its_process_dies() -> None:
    report = tried(Stumbling, "a bad", restart_policy=None)
    assert report.ended.startswith("Failed(SystemExit: 3")


def test_a_waiting_run_is_driven_whenever_it_waits() -> None:
    def drive(run: RunHandle[Any]) -> None:
        assert run.ask(Answer(f"answer {run.query(Question('how many?'))}"), timeout_s=5) == "thanks"

    report = crash_everywhere(lambda runtime: runtime.start(Interview, 3, run_id="r"), runs=[Interview], drive=drive)
    assert report.ended == "Completed(('answer 0', 'answer 1', 'answer 2'))"


def test_time_passes_for_a_run_that_nobody_drives() -> None:
    report = crash_everywhere(lambda runtime: runtime.start(Interview, 3, run_id="r"), runs=[Interview])
    assert report.ended == "Completed(('nobody',))"
    assert report.took_s < 5, "three hours of waiting are nothing here"


def test_of_a_story_that_is_over_while_the_run_waits_the_state_is_compared() -> None:
    def drive(run: RunHandle[Any]) -> bool:
        if run.query(Question("how many?")):
            return False
        run.tell(Answer("one"))
        return True

    report = crash_everywhere(lambda runtime: runtime.start(Interview, 3, run_id="r"), runs=[Interview], drive=drive)
    assert report.ended == "waiting with Heard(answers=('one',), expired=0)"


def test_a_parent_and_its_children_hold_together() -> None:
    effects = Effects()
    report = crash_everywhere(
        lambda runtime: runtime.start(Team, 3, run_id="r"),
        runs=[Factory(Team, effects), Factory(Member, effects)],
        effects=effects,
    )
    assert report.ended == "Completed(30)"
    assert any("r/2" in point.holds for point in report.points)


def test_a_state_that_can_change_is_no_hindrance() -> None:
    report = crash_everywhere(lambda runtime: runtime.start(Collect, 4, run_id="r"), runs=[Collect])
    assert report.ended == "Completed(6)"


def test_a_run_of_which_nothing_is_stored_begins_again() -> None:
    report = tried(Import, save_policy=SavePolicy(durability="none"))
    assert report.ended == "Completed(10)"
    assert not report.points, "it has no commits"


def test_hundreds_of_points_take_seconds() -> None:
    report = tried(Import, " ".join(["word"] * 70))
    assert len(report.points) > 200
    assert report.took_s < 60, "1 s on two free cores"


def test_a_limit_spreads_the_points_from_the_first_to_the_last() -> None:
    every, some = tried(Import).points, tried(Import, limit=5).points
    assert len(some) == 5
    assert (some[0], some[-1]) == (every[0], every[-1])
    assert len(tried(Import, limit=1).points) == 1
    with pytest.raises(ValueError, match="limit must be at least 1"):
        tried(Import, limit=0)


def test_what_else_is_outside_is_put_back_before_each_life(tmp_path: Path) -> None:
    file = tmp_path / "log"

    class Log(Run[int, Todo, str]):
        def begin(self, count: int) -> Todo:
            return Todo(("x",) * count)

        def step(self, state: Todo) -> Todo | Done[str]:
            if not state.left:
                return Done(file.read_text())
            lines = file.read_text().splitlines() if file.exists() else []
            file.write_text("\n".join([*lines[: 3 - len(state.left)], "x"]))
            return Todo(state.left[1:])

    report = crash_everywhere(
        lambda runtime: runtime.start(Log, 3, run_id="r"), runs=[Log], reset=lambda: file.unlink(missing_ok=True)
    )
    assert report.ended == repr(Completed("x\nx\nx").result).join(("Completed(", ")"))


# --- bugs that are found ----------------------------------------------------------------------------------------------


def test_an_effect_before_the_state_that_guards_it_is_found_with_its_commit() -> None:
    with pytest.raises(CrashEverywhereFailed) as failed:
        tried(Careless)
    text = str(failed.value)
    assert "died before commit 3 [save 'r' at seq 2], saved after each step:" in text
    assert "effect 'mail a' took place 2 times, allowed are 1; without a crash: 1" in text
    assert all(point.side == "before" for point in failed.value.failures if point.saves == "after each step")


def test_what_may_repeat_can_be_declared_for_all_effects_or_for_one() -> None:
    assert tried(Careless, at_most=2).ended == "Completed(10)"
    assert tried(Careless, "a", at_most={"mail a": 2}).ended == "Completed(1)"
    with pytest.raises(CrashEverywhereFailed, match="'mail bb' took place 2 times"):
        tried(Careless, "a bb", at_most={"mail a": 2})


@pytest.mark.parametrize("kind", [Forgetful, Hasty])
def test_memory_outside_the_state_is_found(kind: type[Import]) -> None:
    with pytest.raises(CrashEverywhereFailed) as failed:
        tried(kind)
    expected = "it ended otherwise: Completed(" if kind is Forgetful else "it was lost; without a crash: 1"
    assert expected in str(failed.value)


def test_a_key_that_comes_from_chance_is_found() -> None:
    effects = Effects()
    with pytest.raises(CrashEverywhereFailed, match="effect 'charge' took place 2 times") as failed:
        crash_everywhere(
            lambda runtime: runtime.start(Fickle, "", run_id="r"), runs=[Factory(Fickle, effects)], effects=effects
        )
    found = {point.saves for point in failed.value.failures}
    assert found == {"nothing after commit 1 [start 'r']", "nothing after commit 2 [save 'r' at seq 1]"}, (
        "where each step is saved nothing is drawn twice"
    )


def test_a_run_that_waits_for_its_saves_is_never_ahead_of_them() -> None:
    effects = Effects()

    class Careful(Run[None, int, int]):
        """Performs an effect that must not be forgotten once what leads to it is known."""

        def begin(self, input: None) -> int:
            return 0

        def step(self, state: int) -> int | Done[int]:
            if state == 3:
                return Done(state)
            if state == 1:
                self.context.durable()
                effects.perform("pay", key=self.context.idempotency_key)
            return state + 1

    report = crash_everywhere(lambda runtime: runtime.start(Careful, None, run_id="r"), runs=[Careful], effects=effects)
    assert not any(point.saves.startswith("nothing after") for point in report.points)
    assert {point.saves for point in report.points} == {"after each step", "as declared"}


def test_a_run_that_ends_otherwise_each_time_cannot_be_compared() -> None:
    with pytest.raises(AssertionError, match="undisturbed the run does not do the same each time"):
        crash_everywhere(lambda runtime: runtime.start(Whimsical, "", run_id="r"), runs=[Factory(Whimsical, Effects())])


def test_a_message_told_at_the_start_and_not_by_the_driver_is_missed_after_a_crash() -> None:
    def make(runtime: Runtime) -> RunHandle[Any]:
        run = runtime.start(Interview, 1, run_id="r")
        run.tell(Answer("one"))
        return run

    with pytest.raises(CrashEverywhereFailed, match="it ended otherwise"):
        crash_everywhere(make, runs=[Interview])


def test_an_error_after_a_crash_is_a_finding_with_its_point() -> None:
    boots = itertools.count()

    def make(runtime: Runtime) -> RunHandle[Any]:
        if next(boots) == 10:
            raise RuntimeError("no such luck")
        return runtime.start(Collect, 4, run_id="r")

    with pytest.raises(CrashEverywhereFailed, match="the boot after it failed: RuntimeError: no such luck"):
        crash_everywhere(make, runs=[Collect])


# --- what it does not do ----------------------------------------------------------------------------------------------


def test_a_run_that_never_ends_is_said_to() -> None:
    with pytest.raises(TooManyTurns), pytest.MonkeyPatch.context() as patch:
        patch.setattr("executus.actors.testing.in_process.MAX_TURNS", 30_000)
        tried(Endless)


def test_a_driver_that_never_has_enough_is_told() -> None:
    class Listener(Interview):
        wanted = 1 << 30

    with pytest.raises(TooManyTurns, match="have drive look at"):
        crash_everywhere(
            lambda runtime: runtime.start(Listener, 0, run_id="r"),
            runs=[Listener],
            drive=lambda run: run.tell(Answer("more")),
        )


def test_make_run_returns_a_handle() -> None:
    with pytest.raises(TypeError, match="make_run returns the handle"):
        crash_everywhere(lambda runtime: None, runs=[Interview])  # type: ignore[arg-type,return-value]


async def _on_a_loop() -> None:
    tried(Import)


def test_it_blocks_and_so_it_is_not_for_event_loops() -> None:
    with pytest.raises(BlockingCallOnLoop):
        asyncio.run(_on_a_loop())


def test_a_modules_memory_outlives_a_death_in_process() -> None:
    assert tried(Global, reset=GLOBAL.clear).ended == "Completed(4)", "that is what SIGKILL is for"
    GLOBAL.clear()


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Import, AsyncImport])
def test_a_run_that_holds_survives_sigkill(kind: type[Import]) -> None:
    report = tried(kind, "a bb", how="sigkill", limit=6)
    assert report.ended == "Completed(3)"
    assert report.boots == 3 + 2 * len(report.points) + len(report.not_reached)
    assert report.steps_repeated is None
    assert len(report.points) + len(report.not_reached) == 6


def test_by_sigkill_a_waiting_run_is_driven_too() -> None:
    def drive(run: RunHandle[Any]) -> None:
        run.tell(Answer(f"answer {run.query(Question('how many?'))}"))

    report = crash_everywhere(
        lambda runtime: runtime.start(Interview, 3, run_id="r"), runs=[Interview], drive=drive, how="sigkill", limit=4
    )
    assert report.ended == "Completed(('answer 0', 'answer 1', 'answer 2'))"


def test_sigkill_finds_effects_that_are_not_guarded() -> None:
    with pytest.raises(CrashEverywhereFailed, match="'mail a' took place 2 times"):
        tried(Careless, "a", how="sigkill")


def test_sigkill_finds_the_memory_of_a_module() -> None:
    with pytest.raises(CrashEverywhereFailed, match="it ended otherwise"):
        tried(Global, "a bb", how="sigkill", limit=6)


def test_a_boot_that_hangs_is_killed_and_named() -> None:
    with pytest.raises(ChildFailed, match=r"did not end within 1 s .* boot_timeout_s"):
        tried(Endless, how="sigkill", boot_timeout_s=1)


def test_what_a_boot_raises_comes_with_its_traceback() -> None:
    def make(runtime: Runtime) -> RunHandle[Any]:
        raise RuntimeError("no such luck")

    with pytest.raises(ChildFailed, match=r"(?s)a boot failed: .*no such luck"):
        crash_everywhere(make, runs=[Interview], how="sigkill")


def test_a_child_that_dies_of_something_else_says_of_what() -> None:
    class Aborting(Import):
        def act(self, word: str) -> None:
            os.abort()

    with pytest.raises(ChildFailed, match="SIGABRT"):
        tried(Aborting, how="sigkill")


def children() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux tells whose children there are")
def test_nothing_is_left_of_children_and_pipes() -> None:
    before = children()
    assert in_child(lambda: b"x" * 200_000, 30) == (b"x" * 200_000, 0)
    data, status = in_child(lambda: bytes(threading.Event().wait()), 0.1)
    assert data is None
    assert os.WIFSIGNALED(status)
    assert children() == before
