"""What the simulated runs do: they fold numbers, and beside that whatever the seed tells them to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from executus.actors import Journal
from executus.actors.definition import Registry
from executus.actors.outcomes import Completed
from executus.actors.policies import Policies, SavePolicy
from executus.actors.run import ChildEnded, Done, Reply, Run, Wait, WaitExpired

if TYPE_CHECKING:
    from tests.simulation.world import World

MODULUS: Final = 1_000_003
LOST: Final = -1
"""Stands for the result of a child that did not complete."""


class Job(msgspec.Struct, frozen=True):
    """Fold `goal` numbers; spawn children under these keys on the way."""

    goal: int
    salt: int
    children: tuple[str, ...] = ()


class Tally(msgspec.Struct, frozen=True):
    """How far it is."""

    job: Job
    at: int = 0
    acc: int = 0
    heard: tuple[str, ...] = ()
    ended: tuple[tuple[str, int], ...] = ()
    blot: int = 0
    """Too large a number for any store, for one step."""


class Logged(Tally, frozen=True):
    """The same, with every number that it came by, from time to time in short."""

    log: Journal[int] = Journal()


class Ledgered(msgspec.Struct):
    """The same, changed in place."""

    job: Job
    at: int = 0
    acc: int = 0
    heard: list[str] = []
    ended: list[tuple[str, int]] = []
    blot: int = 0
    log: Journal[int] = Journal()


class Sum(msgspec.Struct, frozen=True):
    """What comes out."""

    acc: int
    heard: tuple[str, ...]
    ended: tuple[tuple[str, int], ...]


class Add(msgspec.Struct, frozen=True, tag=True):
    """Remember this name; `quiet` only touches nothing."""

    name: str
    quiet: bool = False


class GoOn(msgspec.Struct, frozen=True, tag=True):
    """Do not wait any longer."""


def fold(job: Job) -> int:
    """What a run must come to, computed plainly."""
    acc = 0
    for at in range(job.goal):
        acc = one_step(acc, at, job.salt)
    return acc


def one_step(acc: int, at: int, salt: int) -> int:
    return (acc * 31 + at + salt) % MODULUS


def plain_log(job: Job, at: int) -> list[int]:
    """What a run's journal must hold after so many steps, computed plainly."""
    log: list[int] = []
    acc = 0
    for n in range(at):
        acc = one_step(acc, n, job.salt)
        log.append(acc)
        if in_short(n):
            log = [-sum(log), *log[-1:]]
    return log


def logged(state: Logged | Ledgered) -> Journal[int]:
    """The journal after the step that is to come."""
    log = state.log.append(one_step(state.acc, state.at, state.job.salt))
    return log.replaced([-sum(log), *log.last(1)]) if in_short(state.at) else log


def in_short(at: int) -> bool:
    return at % 4 == 3


def child_job(salt: int, key: str) -> Job:
    return Job(goal=2 + len(key) % 3, salt=salt + 7)


@dataclass(slots=True)
class Deed:
    """What a callback does beside its work, `times` times."""

    kind: str
    seconds: float = 0.0
    error: type[BaseException] = ValueError
    times: int = 1


@dataclass
class Deeds:
    """By run id and place (a step's number, or a callback's name)."""

    of: dict[tuple[str, int | str], Deed] = field(default_factory=dict)
    over: bool = False

    def take(self, run_id: str, place: int | str) -> Deed | None:
        deed = self.of.get((run_id, place))
        if deed is None or self.over or deed.times == 0:
            return None
        deed.times -= 1
        return deed


class Stage:
    """Where the runs find the simulation they are part of: their classes are registered once, for all seeds."""

    world: World


class _Player(Run[Any, Any, Any]):
    """The part that all kinds share."""

    inbox_limit = 6

    def _called(self, callback: str, state: Any, message: object = None) -> None:
        Stage.world.ledger.called(self.context, callback, state, message)

    def may_go_ahead(self, state: Any) -> bool:
        return bool(state.at % 3 == 2)

    def _begin(self, job: Job) -> Tally:
        return Tally(job)

    def _step(self, state: Tally) -> Tally | Wait[Tally] | Done[Sum]:
        job, context = state.job, self.context
        if state.at >= job.goal:
            if len(state.ended) < len(job.children):
                return Wait(state)
            return Done(Sum(state.acc, tuple(state.heard), tuple(state.ended)))
        if state.at == 1:
            self._spawn(job)
        blot = 1 << 70 if Stage.world.deeds.take(context.run_id, f"blot{state.at}") else 0
        after = msgspec.structs.replace(state, at=state.at + 1, acc=one_step(state.acc, state.at, job.salt), blot=blot)
        deed = Stage.world.deeds.take(context.run_id, f"wait{state.at}")
        return after if deed is None else _waiting(after, deed)

    def _spawn(self, job: Job) -> None:
        for key in job.children:
            kind = Kinds.by_name["SyncRun" if key.startswith("s") else "AsyncRun"]
            self.context.spawn(
                kind, child_job(job.salt, key), key=key, on_parent_end="kill" if key.endswith("k") else "cancel"
            )

    def _receive(self, state: Tally, message: object) -> Any:
        match message:
            case WaitExpired() | GoOn():
                return state
            case ChildEnded(key, _, outcome):
                Stage.world.ledger.child_ended(self.context, state.ended, key)
                value = outcome.result.acc if isinstance(outcome, Completed) else LOST
                others = [pair for pair in state.ended if pair[0] != key]  # a child that was resumed by hand ends again
                after = msgspec.structs.replace(state, ended=(*others, (key, value)))
                waits = after.at >= after.job.goal and len(after.ended) < len(after.job.children)
                return Wait(after) if waits else after
            case Add(name, quiet):
                if quiet:
                    return None
                return Reply(name, msgspec.structs.replace(state, heard=(*state.heard, name)))
            case _:
                raise TypeError(message)

    def _deed(self, place: int | str) -> Deed | None:
        return Stage.world.deeds.take(self.context.run_id, place)

    def _do(self, place: int | str) -> None:
        match self._deed(place):
            case None:
                pass
            case Deed("raise", error=error):
                raise error("simulated")
            case Deed("poison"):
                Stage.world.poisoned()
            case Deed("sleep", seconds):
                self.context.sleep(seconds)
            case Deed("hang" | "work", seconds):  # like a call into C: nothing wakes it
                Stage.world.scheduler.park(Stage.world.scheduler.now_s + seconds, None)
            case deed:
                raise AssertionError(deed)

    async def _await(self, place: int | str) -> None:
        match self._deed(place):
            case None:
                await asyncio.sleep(0)
            case Deed("raise", error=error):
                raise error("simulated")
            case Deed("poison"):
                Stage.world.poisoned()
            case Deed("sleep", seconds):
                await self.context.sleep(seconds)
            case Deed("hang", seconds):
                await _stubborn(seconds)
            case Deed("work", seconds):
                await asyncio.sleep(seconds)
            case deed:
                raise AssertionError(deed)


def _waiting(state: Any, deed: Deed) -> Wait[Any]:
    match deed.kind:
        case "wait":
            return Wait(state, timeout_s=deed.seconds)
        case "until":
            return Wait(state, until=Stage.world.clock.wall_s() + deed.seconds)
        case _:
            return Wait(state)


async def _stubborn(seconds: float) -> None:
    """Sleeps on when it is cancelled, once."""
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        await asyncio.sleep(seconds)


class SyncRun(_Player, Run[Job, Tally, Sum]):
    run_type = "SyncRun"

    def begin(self, job: Job) -> Tally:
        self._called("begin", job)
        self._do("begin")
        return self._begin(job)

    def step(self, state: Tally) -> Tally | Wait[Tally] | Done[Sum]:
        self._called("step", state)
        self._do(state.at)
        return self._step(state)

    def receive(self, state: Tally, message: Add | GoOn | ChildEnded | WaitExpired) -> Any:
        self._called("receive", state, message)
        self._do("receive")
        return self._receive(state, message)

    def query(self, state: Tally, question: str) -> int:
        if question == "raise":
            raise ValueError(question)
        return state.at

    def stopping(self, state: Tally, reason: str) -> None:
        self._called("stopping", state)
        self._do("stopping")


class MutableRun(_Player, Run[Job, Ledgered, Sum]):
    """Changes its state in place, before it returns it."""

    run_type = "MutableRun"

    def begin(self, job: Job) -> Ledgered:
        self._called("begin", job)
        return Ledgered(job)

    def step(self, state: Ledgered) -> Ledgered | Wait[Ledgered] | Done[Sum]:
        self._called("step", state)
        if state.at >= state.job.goal:
            if len(state.ended) < len(state.job.children):
                return Wait(state)
            return Done(Sum(state.acc, tuple(state.heard), tuple(state.ended)))
        _check_log(self.context.run_id, state)
        at = state.at
        if at == 1:
            self._spawn(state.job)
        state.blot = 1 << 70 if Stage.world.deeds.take(self.context.run_id, f"blot{at}") else 0
        state.log = logged(state)
        state.acc = one_step(state.acc, state.at, state.job.salt)
        state.at += 1
        self._do(at)
        deed = self._deed(f"wait{at}")
        return state if deed is None else _waiting(state, deed)

    def receive(self, state: Ledgered, message: Add | GoOn | ChildEnded | WaitExpired) -> Any:
        self._called("receive", state, message)
        if isinstance(message, ChildEnded):
            Stage.world.ledger.child_ended(self.context, state.ended, message.key)
            value = message.outcome.result.acc if isinstance(message.outcome, Completed) else LOST
            state.ended = [pair for pair in state.ended if pair[0] != message.key]
            state.ended.append((message.key, value))
            waits = state.at >= state.job.goal and len(state.ended) < len(state.job.children)
            return Wait(state) if waits else state
        if isinstance(message, Add) and not message.quiet:
            state.heard.append(message.name)
            self._do("receive")
            return Reply(message.name, state)
        return None if isinstance(message, Add) else state

    def query(self, state: Ledgered, question: str) -> int:
        at = state.at
        state.at = -7  # a query must not be able to do harm, whatever it does
        return at


class AsyncRun(_Player, Run[Job, Tally, Sum]):
    run_type = "AsyncRun"

    async def begin(self, job: Job) -> Tally:
        self._called("begin", job)
        await self._await("begin")
        return self._begin(job)

    async def step(self, state: Tally) -> Tally | Wait[Tally] | Done[Sum]:
        self._called("step", state)
        await self._await(state.at)
        return self._step(state)

    async def receive(self, state: Tally, message: Add | GoOn | ChildEnded | WaitExpired) -> Any:
        self._called("receive", state, message)
        await self._await("receive")
        return self._receive(state, message)

    async def query(self, state: Tally, question: str) -> int:
        await asyncio.sleep(0)
        if question == "raise":
            raise ValueError(question)
        return state.at

    async def stopping(self, state: Tally, reason: str) -> None:
        self._called("stopping", state)
        await self._await("stopping")


class MixedRun(_Player, Run[Job, Logged, Sum]):
    """Steps on the loop, all else on workers; with a journal in its state."""

    run_type = "MixedRun"

    begin = SyncRun.begin
    receive = SyncRun.receive
    stopping = SyncRun.stopping

    def _begin(self, job: Job) -> Logged:
        return Logged(job)

    async def step(self, state: Logged) -> Any:
        self._called("step", state)
        _check_log(self.context.run_id, state)
        log = logged(state)  # before whatever happens to the step: what it appended is a branch that nobody follows
        await self._await(state.at)
        following: Any = self._step(state)
        if isinstance(following, Done) or state.at >= state.job.goal:
            return following
        if isinstance(following, Wait):
            return msgspec.structs.replace(following, state=msgspec.structs.replace(following.state, log=log))
        return msgspec.structs.replace(following, log=log)

    def query(self, state: Logged, question: str) -> int:
        _check_log("a query", state)
        state.log.append(-7)
        return state.at


def _check_log(who: str, state: Logged | Ledgered) -> None:
    right = plain_log(state.job, state.at)
    Stage.world.ledger.check(list(state.log) == right, f"{who}: the journal is {list(state.log)}, plainly {right}")


class Kinds:
    """The registered kinds."""

    by_name: Final[dict[str, Any]] = {kind.__name__: kind for kind in (SyncRun, AsyncRun, MutableRun, MixedRun)}


CHILDREN: Final = Policies(save=SavePolicy(passivate_after_s=0.2))
"""Those started by the world get policies of their own."""
REGISTRY: Final = Registry(list(Kinds.by_name.values()), CHILDREN)
OLD_REGISTRY: Final = Registry([SyncRun, MutableRun], CHILDREN)
"""What a deploy of older code knows."""
ERRORS: Final[tuple[type[BaseException], ...]] = (
    ValueError,
    SystemExit,
    KeyboardInterrupt,
    asyncio.CancelledError,
    GeneratorExit,
    MemoryError,
)
