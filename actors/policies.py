"""Policies: how a run is restarted, saved and stopped.

`decide` says what follows an Exit. Pure; clocks and chance come in.
"""

from __future__ import annotations

from typing import Any, Final, Literal, assert_never, get_args

import msgspec

from executus.actors.outcomes import (
    Cancelled,
    Completed,
    Crashed,
    ErrorInfo,
    Exit,
    Failed,
    Killed,
    Outcome,
    Parked,
    Passivated,
    Phase,
    Quarantined,
    Stopped,
    Suspended,
    TimedOut,
    qualified_name,
)
from executus.stores import RunStatus

MAX_STRIKES: Final = 3
"""Boots that may find a run dead in the process's death before it is quarantined."""


def _one_of(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):  # msgspec checks types when it decodes, not when a Struct is made
        msg = f"{name} takes {', '.join(map(repr, get_args(choices)))}, not {value!r}"
        raise ValueError(msg)


def _positive(name: str, value: float | None) -> None:
    if value is not None and not value > 0:
        msg = f"{name} must be greater than 0, not {value!r}"
        raise ValueError(msg)


class Backoff(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Delays before restarts: `initial_s * factor ** n`, at most `max_s`, varied by up to `jitter` of itself."""

    initial_s: float = 0.1
    factor: float = 2.0
    max_s: float = 30.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        _positive("initial_s", self.initial_s)
        if self.factor < 1 or self.max_s < self.initial_s or not 0 <= self.jitter < 1:
            msg = f"{self!r}: factor must be at least 1, max_s at least initial_s, jitter from 0 to below 1"
            raise ValueError(msg)

    def delay_s(self, restarts: int, roll: float = 0.5) -> float:
        """The delay before restart number `restarts` (0 is the first).

        `roll` from 0 to 1 places it within the jitter; 0.5 is the middle.
        """
        exponent = min(restarts, 1_000)  # keeps the power finite; by then max_s holds for any factor worth the name
        try:
            plain = min(self.initial_s * self.factor**exponent, self.max_s)
        except OverflowError:
            plain = self.max_s
        return plain * (1 + self.jitter * (2 * roll - 1))


RestartKind = Literal["transient", "permanent", "temporary"]


class RestartPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which ends are followed by a restart, and how many within `within_s` seconds are too many.

    `transient` restarts after crashes, `permanent` after normal ends as well, `temporary` never. `fatal` names
    exception classes (or their qualified names) that end the run at once.
    """

    kind: RestartKind = "transient"
    max_restarts: int = 3
    within_s: float = 60.0
    backoff: Backoff = Backoff()
    fatal: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        _one_of("RestartPolicy's kind", self.kind, RestartKind)
        if self.max_restarts < 0:
            msg = f"max_restarts must not be negative, not {self.max_restarts}"
            raise ValueError(msg)
        _positive("within_s", self.within_s)
        # Names, not classes: a policy given to start() is stored with the run, and no stored name is ever imported.
        names = tuple(qualified_name(kind) if isinstance(kind, type) else str(kind) for kind in self.fatal)
        msgspec.structs.force_setattr(self, "fatal", names)

    def is_fatal(self, error: ErrorInfo) -> bool:
        """Whether one of the error's classes is named in `fatal`."""
        return any(name in self.fatal for name in error.mro)


DEFAULT_EVERY_S: Final = 1.0
Durability = Literal["sync", "async", "exit", "none"]


class SavePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a run's state goes to the store.

    `async`: every `every_s` seconds (1.0 unless told) or `every_steps` steps, whichever is first. `sync`: after every
    step, waited for; an interval beside it is an error. `exit`: when the run stops. `none`: never, it leaves no trace
    on disk.

    A run that has waited for `passivate_after_s` is saved and leaves memory; what wants something of it brings it back.
    None: never.
    """

    every_s: float | None = None
    every_steps: int | None = None
    durability: Durability = "async"
    passivate_after_s: float | None = None

    def __post_init__(self) -> None:
        _one_of("SavePolicy's durability", self.durability, Durability)
        if self.durability != "async" and (self.every_s is not None or self.every_steps is not None):
            msg = f"durability={self.durability!r} says itself when to save; leave out every_s and every_steps"
            raise ValueError(msg)
        if self.every_s is not None and not self.every_s >= 0:  # NaN is refused, too
            msg = f"every_s must not be negative, not {self.every_s!r}"
            raise ValueError(msg)
        _positive("every_steps", self.every_steps)
        _positive("passivate_after_s", self.passivate_after_s)
        if self.durability == "none" and self.passivate_after_s is not None:
            msg = "durability='none' stores nothing that a run could come back from; leave out passivate_after_s"
            raise ValueError(msg)

    @property
    def interval_s(self) -> float:
        """Seconds between throttled saves."""
        return DEFAULT_EVERY_S if self.every_s is None else self.every_s


class StopPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a run is ended from outside.

    `grace_s` is what a step and `stopping` get before they are given up on. `run_timeout_s` bounds the whole
    incarnation, downtime included. `idle_timeout_s` bounds one callback without a heartbeat; waiting is exempt.
    `result_grace_s` is how long a result waits for its commit before it is reported as not durable.
    """

    grace_s: float = 5.0
    run_timeout_s: float | None = None
    idle_timeout_s: float | None = None
    result_grace_s: float = 5.0

    def __post_init__(self) -> None:
        if not (self.grace_s >= 0 and self.result_grace_s >= 0):  # NaN is refused, too
            msg = f"{self!r}: grace_s and result_grace_s must not be negative"
            raise ValueError(msg)
        _positive("run_timeout_s", self.run_timeout_s)
        _positive("idle_timeout_s", self.idle_timeout_s)


class Policies(msgspec.Struct, frozen=True):
    """The three policies of one run."""

    restart: RestartPolicy = RestartPolicy()
    save: SavePolicy = SavePolicy()
    stop: StopPolicy = StopPolicy()


class RestartHistory(msgspec.Struct, frozen=True):
    """When a run was restarted in this process, newest last; monotonic seconds. Per run: a sibling never notices."""

    at_s: tuple[float, ...] = ()
    total: int = 0

    def within(self, within_s: float, now_s: float) -> tuple[float, ...]:
        """The restarts of the last `within_s` seconds."""
        return tuple(at for at in self.at_s if now_s - at < within_s)

    def restarted(self, policy: RestartPolicy, now_s: float) -> RestartHistory:
        """The history with one more restart, without those that have left the window."""
        return RestartHistory((*self.within(policy.within_s, now_s), now_s), self.total + 1)


NO_RESTARTS: Final = RestartHistory()


class Restart(msgspec.Struct, frozen=True, tag=True):
    """Run it again: from its last completed step, or `afresh` from its input.

    `restarts` in the window so far choose the backoff.
    """

    restarts: int
    afresh: bool = False


class Settle(msgspec.Struct, frozen=True, tag=True):
    """It stays ended. Without an outcome, waiters get RunInterrupted."""

    status: RunStatus
    outcome: Outcome | None


BUDGET_SPENT: Final = "executus.actors.errors.RestartBudgetSpent"


def decide(exit: Exit, policy: RestartPolicy, history: RestartHistory, now_s: float) -> Restart | Settle:  # noqa: A002
    """What follows an exit. Nothing else decides it."""
    match exit:
        case Completed():
            if policy.kind != "permanent":
                return Settle(RunStatus.COMPLETED, exit)
            return _within_budget(policy, history, now_s, afresh=True) or Settle(
                RunStatus.FAILED, Failed(_budget_spent(policy), Phase.STEP, history.total)
            )
        case Crashed(error, phase):
            if policy.kind != "temporary" and not policy.is_fatal(error):
                restart = _within_budget(policy, history, now_s, afresh=False)
                if restart is not None:
                    return restart
            return Settle(RunStatus.FAILED, Failed(error, phase, history.total))
        case Quarantined():
            return Settle(RunStatus.QUARANTINED, exit)
        case Parked():
            return Settle(RunStatus.PARKED, None)
        case Killed():
            return Settle(RunStatus.KILLED, exit)
        case Cancelled():
            return Settle(RunStatus.CANCELLED, exit)
        case TimedOut():
            return Settle(RunStatus.TIMED_OUT, exit)
        case Stopped():
            return Settle(RunStatus.STOPPED, None)
        case Suspended():
            return Settle(RunStatus.SUSPENDED, None)
        case Passivated():
            return Settle(RunStatus.PASSIVATED, None)
        case _:
            assert_never(exit)


def _within_budget(policy: RestartPolicy, history: RestartHistory, now_s: float, *, afresh: bool) -> Restart | None:
    recent = len(history.within(policy.within_s, now_s))
    return Restart(recent, afresh) if recent < policy.max_restarts else None


def _budget_spent(policy: RestartPolicy) -> ErrorInfo:
    return ErrorInfo(
        BUDGET_SPENT,
        f"ended normally more than {policy.max_restarts} times within {policy.within_s:g} s; "
        "a permanent run should wait between rounds, or raise max_restarts",
        mro=(BUDGET_SPENT,),
    )


def strike(strikes: int, *, died_running: bool, waiting: bool) -> int | None:
    """Strikes to commit before a run found at boot is loaded; None when it is to be quarantined instead.

    Only a run whose last process died while it was RUNNING and not idle in a Wait is suspect.
    """
    if not died_running or waiting:
        return strikes
    return None if strikes >= MAX_STRIKES else strikes + 1
