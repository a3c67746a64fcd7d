"""What a running callback can ask of the runtime: the `RunContext` of one attempt."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import hashlib
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar, cast

import msgspec

from executus.actors.definition import checked_labels
from executus.actors.environment import Environment
from executus.actors.errors import NotDurable
from executus.actors.events import RunProgressed, RunReported
from executus.actors.flight import DETAIL_CHARS
from executus.actors.future import Promise
from executus.actors.incarnation import Incarnation, Progress, fenced_error
from executus.actors.messages import EndRun, StartOrder
from executus.actors.outcomes import KillRequested, safe_text, scalars_of
from executus.actors.policies import RestartPolicy, SavePolicy, StopPolicy
from executus.actors.run import ChildRef, Facts, Run
from executus.actors.save_wait import SaveWait
from executus.actors.worker_call import WorkerCall
from executus.stores import ParentLink, RunClaim, check_run_id

if TYPE_CHECKING:
    from executus.actors.run_actor import RunActor

UNSAVED: Final = SavePolicy(durability="none")
P = ParamSpec("P")
T = TypeVar("T")


class _Slept(Awaitable[None]):
    """What a blocking `sleep` returns: there is nothing left to await."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


SLEPT = _Slept()


class AttemptContext:
    """The context of one attempt's callbacks.

    Reads what the attempt wrote before it called; see `RunContext` for the contract.
    """

    __slots__ = ("_attempt", "_claim", "_env", "_incarnation", "_log", "spawned")

    def __init__(self, attempt: RunActor, incarnation: Incarnation, env: Environment) -> None:
        self._attempt = attempt
        self._incarnation = incarnation
        self._claim: RunClaim = incarnation.claim
        self._env = env
        self._log: Any = None
        self.spawned: list[StartOrder] = []

    @property
    def run_id(self) -> str:
        """See RunContext."""
        return self._incarnation.run_id

    @property
    def attempt(self) -> int:
        """See RunContext."""
        return self._claim.attempt

    @property
    def epoch(self) -> int:
        """See RunContext."""
        return self._claim.epoch

    @property
    def parent_run_id(self) -> str | None:
        """See RunContext."""
        parent = self._incarnation.parent
        return None if parent is None else parent.run_id

    @property
    def root_run_id(self) -> str:
        """See RunContext."""
        return self._incarnation.root_run_id

    @property
    def labels(self) -> Mapping[str, str]:
        """See RunContext."""
        return self._incarnation.labels

    @property
    def log(self) -> Any:
        """See RunContext."""
        if self._log is None:
            self._log = self._env.logger.bind(
                run_id=self.run_id, run_type=self._incarnation.definition.name, attempt=self.attempt, epoch=self.epoch
            )
        return self._log

    @property
    def cancelled(self) -> bool:
        """See RunContext."""
        return bool(self._incarnation.causes) or self._attempt.slot.closed

    @property
    def idempotency_key(self) -> str:
        """See RunContext."""
        return self.idempotency_key_for("")

    def idempotency_key_for(self, name: str) -> str:
        """See RunContext."""
        attempt, inc = self._attempt, self._incarnation
        life = f"{inc.incarnation}:{inc.created_at_s!r}"
        return idempotency_key_of(inc.run_id, life, attempt.seq, attempt.digest_of_action(), name)

    def heartbeat(self, details: object = None) -> None:
        """See RunContext."""
        self._check_fence()
        inc = self._incarnation
        inc.heartbeat_s = now_s = self._env.clock.now_s()
        if details is None:
            inc.beat = (now_s, "")
        else:
            inc.beat = (now_s, safe_text(details)[:DETAIL_CHARS])  # here, on the thread whose object it is
            self.log.debug("heartbeat", details=details)

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """See RunContext."""
        self.heartbeat()
        inc = self._incarnation
        inc.progress = Progress(done, total, note)
        if self._env.events.is_heard(RunProgressed):
            self._env.emit(RunProgressed, inc, done=done, total=total, note=note)

    def report(self, what: str, facts: Facts | Callable[[], Facts]) -> None:
        """See RunContext."""
        self.heartbeat()
        if self._env.events.is_heard(RunReported):
            given = facts() if callable(facts) else facts
            self._env.emit(RunReported, self._incarnation, what=safe_text(what), facts=dict(scalars_of(given)))

    def sleep(self, seconds: float) -> Awaitable[None]:
        """See RunContext."""
        self._check_fence()
        if _on_loop():
            return _sleep_on_loop(seconds, self._incarnation.woken())
        self._env.pause(seconds, self._incarnation.woken())
        return SLEPT

    def durable(self) -> Awaitable[int]:
        """See RunContext."""
        self._check_fence()
        if not self._incarnation.durable:
            raise NotDurable(self.run_id, "so that none of its states ever is durable")
        self._env.saves_awaited = True
        wait = SaveWait(self._attempt)
        return wait.on_loop() if _on_loop() else wait.block()

    def run_sync(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """See RunContext."""
        self._check_fence()
        if not _on_loop():
            return returned(function(*args, **kwargs))
        call = WorkerCall(
            self._env,
            functools.partial(contextvars.copy_context().run, function, *args, **kwargs),
            check=self._check_fence,
            abandoned_after_s=self._incarnation.policies.stop.grace_s,
        )
        return cast("Awaitable[T]", call.on_worker())

    def kill(self, reason: str, *, by: str = "itself") -> None:
        """See RunContext."""
        self._check_fence()
        inc, slot = self._incarnation, self._attempt.slot
        self._attempt.supervisor_tell(EndRun(inc.run_id, inc.incarnation, KillRequested(by, reason), Promise()))
        slot.killed = True
        slot.close()

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
        """See RunContext."""
        self._check_fence()
        inc = self._incarnation
        definition = self._env.registry.of(run_class)
        run_id = child_id(inc.run_id, key)
        if not inc.durable:
            save_policy = _of_no_record(run_id, save_policy)
        policies, options = definition.overridden(restart_policy, save_policy, stop_policy)
        order = StartOrder(
            run_id=run_id,
            definition=definition,
            input=definition.encode_input(input),
            if_exists="return",
            labels=checked_labels(labels),
            policies=policies,
            options=options,
            parent=ParentLink(inc.run_id, inc.incarnation, key, on_parent_end, inc.claim.begun),
            root_run_id=inc.root_run_id,
        )
        self.spawned.append(order)
        return ChildRef(key, order.run_id)

    def _check_fence(self) -> None:
        if self._attempt.slot.closed:
            raise fenced_error(self.run_id, self.attempt)


def idempotency_key_of(run_id: str, life: str, seq: int, action: bytes, name: str) -> str:
    """The key of one effect: of a life of a run, after so many callbacks, of this action, under this name."""
    digest = hashlib.blake2b(digest_size=20)
    for part in (run_id.encode(), f"{life}:{seq}".encode(), action, name.encode()):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _of_no_record(run_id: str, save_policy: SavePolicy | None) -> SavePolicy:
    """How a child is saved whose parent is not. Raises NotDurable."""
    if save_policy is not None and save_policy.durability != "none":
        raise NotDurable(
            run_id, "for nothing of its parent is: nobody would know whose child it was. It was not started"
        )
    return UNSAVED


def child_id(parent_run_id: str, key: str) -> str:
    """The id of a child: the parent's with the key behind it, or a digest of the two where that is too long.

    Raises InvalidRunId.
    """
    plain = f"{parent_run_id}/{key}"
    if len(plain.encode("utf-8", "replace")) <= 200:  # noqa: PLR2004 - MAX_RUN_ID_BYTES, checked right below
        return check_run_id(plain)
    check_run_id(key)
    return check_run_id(f"child-{hashlib.blake2b(plain.encode(), digest_size=20).hexdigest()}")


def returned(value: T) -> Awaitable[T]:
    """What a blocking verb returns whose value is there: awaiting it takes no loop."""
    promise: Promise[T] = Promise()
    promise.try_set(value)
    return promise


def _on_loop() -> bool:
    return asyncio._get_running_loop() is not None  # noqa: SLF001 - get_running_loop() raises instead of answering


async def _sleep_on_loop(seconds: float, interrupted: Promise[None]) -> None:
    waiter = asyncio.ensure_future(_awaiting(interrupted))
    try:
        await asyncio.wait({waiter}, timeout=seconds)
    finally:
        waiter.cancel()


async def _awaiting(promise: Promise[None]) -> None:
    await promise


def encode_message(message: object) -> bytes:
    """Bytes of a message for a digest; messages that cannot be encoded are told apart by type alone."""
    try:
        return msgspec.msgpack.encode(message, order="deterministic")
    except (TypeError, ValueError, msgspec.MsgspecError):
        return type(message).__qualname__.encode()
