"""What a supervisor is told of a child, and everything that it decides. Pure; clocks and chance come in."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeAlias, assert_never, cast, get_args

import msgspec

from executus.actors.actor import Actor, ActorRef, ExitReport
from executus.actors.policies import Backoff, RestartKind

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
ChildKind = Literal["worker", "supervisor"]
StopMode = Literal["halt", "drain"]

StartFunction: TypeAlias = Callable[[], ActorRef[Any]]
Start: TypeAlias = (
    StartFunction
    | type[Actor]
    | tuple[type[Actor]]
    | tuple[type[Actor], tuple[Any, ...] | list[Any]]
    | tuple[type[Actor], tuple[Any, ...] | list[Any], dict[str, Any]]
)


class Recipe(NamedTuple):
    """A class to start, and what its constructor takes."""

    actor_class: type[Actor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise ValueError for what is none of a Literal's values."""
    if value not in get_args(choices):
        raise ValueError(f"{name} takes {', '.join(map(repr, get_args(choices)))}, not {value!r}")


class ChildSpec(msgspec.Struct, frozen=True):
    """How a child is started, stopped, and whether it is started again.

    `start` is a function without arguments that returns the ref of an actor it has just started, or an actor class, or
    `(class, args)` or `(class, args, kwargs)`; a class is started on its supervisor's dispatcher. It is called on the
    supervisor's thread, the constructor with it: keep both short, what takes long belongs into `on_start`. `permanent`
    children are restarted however they end, `transient` ones unless they end normally, `temporary` ones never.
    `stop` says what becomes of messages told before it is to stop: `halt` goes ahead of them, `drain` behind them, so
    that they are handled first. `stop_timeout_s` is what these, the message in hand and `on_stop` get before the child
    is given up on; None is for ever, as a supervisor may want it for a child that is one. Raises ValueError and
    TypeError for what it cannot mean.
    """

    id: str
    start: Start
    restart: RestartKind = "permanent"
    stop_timeout_s: float | None = 5.0
    kind: ChildKind = "worker"
    stop: StopMode = "halt"

    def __post_init__(self) -> None:
        if not isinstance(cast("object", self.id), str) or not self.id:
            raise ValueError(f"a child's id is a text that is not empty, not {self.id!r}")
        check_choice(f"child {self.id!r}: restart", self.restart, RestartKind)
        check_choice(f"child {self.id!r}: kind", self.kind, ChildKind)
        check_choice(f"child {self.id!r}: stop", self.stop, StopMode)
        if self.stop_timeout_s is not None and not self.stop_timeout_s > 0:  # NaN is refused, too
            raise ValueError(f"child {self.id!r}: stop_timeout_s is greater than 0, or None, not {self.stop_timeout_s}")
        _recipe(self.id, self.start)

    def recipe(self) -> StartFunction | Recipe:
        """`start` in one of two shapes."""
        return _recipe(self.id, self.start)


def _recipe(child_id: str, start: Any) -> StartFunction | Recipe:
    parts: tuple[Any, ...] = start if type(start) is tuple else (start,)  # pyright: ignore[reportUnknownVariableType]
    if 1 <= len(parts) <= len(Recipe._fields):
        actor_class, args, kwargs = parts + cast("tuple[Any, ...]", ((), {}))[len(parts) - 1 :]
        if isinstance(actor_class, type) and issubclass(actor_class, Actor):
            if type(args) in {tuple, list} and type(kwargs) is dict:
                return Recipe(actor_class, tuple(args), cast("dict[str, Any]", kwargs))
        elif parts is not start and callable(cast("object", actor_class)) and not isinstance(actor_class, type):
            return cast("StartFunction", actor_class)
    raise TypeError(
        f"child {child_id!r}: start is a function without arguments that returns an ActorRef, an Actor class, "
        f"(class, args) or (class, args, kwargs), not {start!r}"
    )


def checked_specs(specs: Iterable[ChildSpec]) -> tuple[ChildSpec, ...]:
    """The specs, if they are such and each id is there once. Raises TypeError, ValueError."""
    checked = tuple(specs)
    seen: set[str] = set()
    for spec in checked:
        if not isinstance(cast("object", spec), ChildSpec):
            raise TypeError(f"children are ChildSpecs, not {spec!r}")
        if spec.id in seen:
            raise ValueError(f"two children have the id {spec.id!r}; each needs one of its own")
        seen.add(spec.id)
    return checked


class How(enum.StrEnum):
    """How a child ended, as its supervisor sees it. All but NORMAL are abnormal."""

    NORMAL = "ended normally"
    CRASHED = "crashed"
    ABANDONED = "was given up on"
    NOT_STARTED = "could not be started"


def how_ended(report: ExitReport, *, started: bool) -> How:
    """Classify an end. `started`: its start was through, for a supervisor that of its children, too.

    Stopped and halted, by whomever, is normal; whatever a hook raised is a crash, SystemExit and `on_stop` included.
    """
    if not started:
        return How.NOT_STARTED
    if report.abandoned:
        return How.ABANDONED
    return How.NORMAL if report.error is None else How.CRASHED


def is_restarted(restart: RestartKind, how: How) -> bool:
    """Whether a child that ended so, and was not told to, runs again."""
    match restart:
        case "permanent":
            return True
        case "transient":
            return how is not How.NORMAL
        case "temporary":
            return False
        case _:
            assert_never(restart)


def restarted_together(strategy: Strategy, order: Iterable[str], child_id: str) -> tuple[str, ...]:
    """Whom the restart of a child concerns, itself included, in the order of starts (`order`); stops go backwards."""
    match strategy:
        case "one_for_one":
            return (child_id,)
        case "one_for_all":
            return tuple(order)
        case "rest_for_one":
            ids = tuple(order)
            return ids[ids.index(child_id) :]
        case _:
            assert_never(strategy)


class Intensity(msgspec.Struct, frozen=True):
    """How many restarts within `within_s` seconds a supervisor makes; the one that would be more makes it end.

    None is any number.
    """

    max_restarts: int | None = 3
    within_s: float = 5.0

    def __post_init__(self) -> None:
        if self.max_restarts is not None and not self.max_restarts >= 0:
            raise ValueError(f"max_restarts must not be negative, not {self.max_restarts}")
        if not self.within_s > 0:
            raise ValueError(f"within_s must be greater than 0, not {self.within_s}")

    def one_more(self, restarts_s: tuple[float, ...], now_s: float) -> tuple[float, ...] | None:
        """The restarts within the window with one more now; None if that is one too many."""
        if self.max_restarts is None:
            return ()
        recent = tuple(at_s for at_s in restarts_s if now_s - at_s < self.within_s)
        return (*recent, now_s) if len(recent) < self.max_restarts else None


class RestartTogether(msgspec.Struct, frozen=True, tag=True):
    """Stop those of the `members` that run, backwards, then start them in order, after the backoff.

    `restarts_s` is the supervisor's history from now on.
    """

    members: tuple[str, ...]
    restarts_s: tuple[float, ...]


class LetRest(msgspec.Struct, frozen=True, tag=True):
    """It stays ended; nobody else is concerned."""


class Escalate(msgspec.Struct, frozen=True, tag=True):
    """More than `max_restarts` within `within_s`: the supervisor stops all children and ends with an error."""

    max_restarts: int
    within_s: float


def decide(
    child: ChildSpec,
    how: How,
    *,
    strategy: Strategy,
    order: Iterable[str],
    intensity: Intensity,
    restarts_s: tuple[float, ...],
    now_s: float,
) -> RestartTogether | LetRest | Escalate:
    """What follows the end of a child that nobody told to end. Nothing else decides it."""
    if not is_restarted(child.restart, how):
        return LetRest()
    history = intensity.one_more(restarts_s, now_s)
    if history is None:
        assert intensity.max_restarts is not None
        return Escalate(intensity.max_restarts, intensity.within_s)
    return RestartTogether(restarted_together(strategy, order, child.id), history)


def failures_in_a_row(earlier: int, ran_s: float, intensity: Intensity) -> int:
    """How many failures of a child count for its backoff: none if it ran for `within_s` since the last one."""
    return 0 if ran_s >= intensity.within_s else earlier


def restart_delay_s(backoff: Backoff | None, earlier: int, roll: float) -> float:
    """Seconds before the restart of a child that failed `earlier` times in a row before; `roll` from 0 to 1."""
    return 0.0 if backoff is None else backoff.delay_s(earlier, roll)
