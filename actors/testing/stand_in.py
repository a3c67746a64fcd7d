"""A context for callbacks called as functions: it answers as the runtime's would, and keeps what it was told."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal, ParamSpec, TypeVar

import msgspec

from executus.actors.definition import RunDefinition, checked_labels
from executus.actors.events import default_logger
from executus.actors.incarnation import Progress
from executus.actors.outcomes import KillRequested
from executus.actors.policies import RestartPolicy, SavePolicy, StopPolicy
from executus.actors.run import ChildRef, Facts, Run, current_context
from executus.actors.run_context import SLEPT, child_id, encode_message, idempotency_key_of, returned

P = ParamSpec("P")
T = TypeVar("T")

CALLBACKS: Final = ("begin", "step", "receive", "stopping")


class Spawned(msgspec.Struct, frozen=True):
    """A child that a callback asked for. Nothing was started."""

    run_class: type[Run[Any, Any, Any]]
    input: Any
    key: str
    on_parent_end: Literal["cancel", "kill"]
    labels: Mapping[str, str]
    restart_policy: RestartPolicy | None = None
    save_policy: SavePolicy | None = None
    stop_policy: StopPolicy | None = None


class TestContext:
    """`RunContext` without a runtime. What the callbacks did with it is in the lists; `cancelled` may be set.

    Idempotency keys are computed as the runtime does it, for the callback in hand: the same again for the same action
    after the same number of completed callbacks, others otherwise. They are not those of any real run.
    """

    __test__ = False  # no test class, whatever pytest makes of the name

    def __init__(
        self,
        *,
        run_id: str,
        attempt: int,
        epoch: int,
        seq: int,
        parent_run_id: str | None,
        labels: Mapping[str, str] | None,
    ) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.epoch = epoch
        self.seq = seq
        """Callbacks completed so far."""
        self.parent_run_id = parent_run_id
        self.root_run_id = run_id if parent_run_id is None else parent_run_id
        self.labels: Mapping[str, str] = checked_labels(labels)
        self.cancelled = False
        self.heartbeats: list[object] = []
        """The details of each, those of `progress` not among them."""
        self.progressed: list[Progress] = []
        self.reported: list[tuple[str, dict[str, str | float | bool]]] = []
        self.slept: list[float] = []
        self.spawned: list[Spawned] = []
        self.made_durable: list[int] = []
        """The seq of each state that was waited for."""
        self.killed: list[KillRequested] = []
        self._action = b""

    @property
    def log(self) -> Any:
        """See RunContext."""
        return default_logger().bind(run_id=self.run_id, attempt=self.attempt, epoch=self.epoch)

    @property
    def idempotency_key(self) -> str:
        """See RunContext."""
        return self.idempotency_key_for("")

    def idempotency_key_for(self, name: str) -> str:
        """See RunContext."""
        return idempotency_key_of(self.run_id, "testing", self.seq, self._action, name)

    def heartbeat(self, details: object = None) -> None:
        """See RunContext."""
        self.heartbeats.append(details)

    def report(self, what: str, facts: Facts | Callable[[], Facts]) -> None:
        """See RunContext. Kept in `reported`."""
        self.reported.append((what, dict(facts() if callable(facts) else facts)))

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """See RunContext."""
        self.progressed.append(Progress(done, total, note))

    def sleep(self, seconds: float) -> Awaitable[None]:
        """See RunContext. Returns at once."""
        self.slept.append(seconds)
        return SLEPT

    def durable(self) -> Awaitable[int]:
        """See RunContext. Is there at once."""
        self.made_durable.append(self.seq)
        return returned(self.seq)

    def run_sync(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """See RunContext. Called at once, on this thread."""
        return returned(function(*args, **kwargs))

    def kill(self, reason: str, *, by: str = "itself") -> None:
        """See RunContext. The callback goes on."""
        self.killed.append(KillRequested(by, reason))
        self.cancelled = True

    def spawn(
        self,
        run_class: type[Run[Any, Any, Any]],
        input: object,
        *,
        key: str,
        on_parent_end: Literal["cancel", "kill"] = "cancel",
        labels: Mapping[str, str] | None = None,
        restart_policy: RestartPolicy | None = None,
        save_policy: SavePolicy | None = None,
        stop_policy: StopPolicy | None = None,
    ) -> ChildRef:
        """See RunContext. The input and the key are checked as there."""
        RunDefinition(run_class).encode_input(input)
        ref = ChildRef(key, child_id(self.run_id, key))
        policies = (restart_policy, save_policy, stop_policy)
        self.spawned.append(Spawned(run_class, input, key, on_parent_end, checked_labels(labels), *policies))
        return ref

    def calling(self, arguments: tuple[Any, ...]) -> None:
        """A callback is called with these: the effects in it are those of this action."""
        self._action = b"\0".join(encode_message(argument) for argument in arguments)

    def completed(self) -> None:
        """It has returned."""
        self.seq += 1
        self._action = b""


@contextmanager
def context(
    run: Run[Any, Any, Any],
    *,
    run_id: str = "test",
    attempt: int = 1,
    epoch: int = 1,
    seq: int = 0,
    parent_run_id: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Generator[TestContext, None, None]:
    """Within this block `run.begin(…)`, `run.step(…)`, `run.receive(…)` and `run.stopping(…)` have a context.

    For this thread, and for coroutines that are started in the block. `attempt=2` is a repeat after a crash, `seq` how
    many callbacks were completed before. Nothing else runs: nothing is saved, checked or restarted.
    """
    stand_in = TestContext(
        run_id=run_id, attempt=attempt, epoch=epoch, seq=seq, parent_run_id=parent_run_id, labels=labels
    )
    for name in CALLBACKS:
        setattr(run, name, _told(stand_in, getattr(run, name)))
    token = current_context.set(stand_in)
    try:
        yield stand_in
    finally:
        current_context.reset(token)
        for name in CALLBACKS:
            delattr(run, name)


def _told(stand_in: TestContext, callback: Callable[..., Any]) -> Callable[..., Any]:
    """The callback, which tells the context when it is called and when it has completed."""
    if inspect.iscoroutinefunction(callback):

        @functools.wraps(callback)
        async def awaited(*arguments: Any) -> Any:
            stand_in.calling(arguments)
            returned = await callback(*arguments)
            stand_in.completed()
            return returned

        return awaited

    @functools.wraps(callback)
    def called(*arguments: Any) -> Any:
        stand_in.calling(arguments)
        returned = callback(*arguments)
        stand_in.completed()
        return returned

    return called
