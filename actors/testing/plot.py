"""What is played over and over: the user's run, how it is made and driven, and what is watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from executus.actors.core import Core
from executus.actors.definition import Registry
from executus.actors.policies import Policies, RestartPolicy, SavePolicy, StopPolicy
from executus.actors.runtime import Registrable
from executus.actors.testing.dying_store import DeathAt
from executus.actors.testing.effects import Effects
from executus.actors.testing.story import Drive, Ended, MakeRun

EACH_STEP = "after each step"
AS_DECLARED = "as declared"


class Told(msgspec.Struct, frozen=True):
    """A boot that came to its end: how, what it committed on the way, and whether callbacks waited for saves."""

    ended: Ended
    commits: list[str]
    saves_awaited: bool


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `crash_everywhere` that say what is played."""

    make_run: MakeRun
    make_runs: Iterable[Registrable] | Callable[[], Iterable[Registrable]]
    drive: Drive | None
    effects: Effects | None
    options: Mapping[str, Any]

    def runs(self) -> list[Registrable]:
        """What a boot registers: made anew where the user gave a function."""
        return list(self.make_runs() if callable(self.make_runs) else self.make_runs)

    def throttled(self) -> frozenset[str]:
        """The run types that may be ahead of their saves, by their declarations."""
        return frozenset(
            definition.name
            for definition in Registry(self.runs(), policies_of(self.options))
            if definition.policies.save.durability in {"async", "exit"}
        )

    def say_how_to_save(self, core: Core, saves: str) -> None:
        """Have each step of each run committed before the next one, unless its runs are saved as declared.

        A run that declares that nothing of it is stored keeps its word.
        """
        if saves == AS_DECLARED:
            return
        for definition in core.registry:
            if definition.policies.save.durability != "none":
                save = SavePolicy(durability="sync")
                definition.policies = msgspec.structs.replace(definition.policies, save=save)
                definition.goes_ahead = False


def policies_of(options: Mapping[str, Any]) -> Policies:
    """The defaults that options of Runtime give."""
    return Policies(
        options.get("restart_policy") or RestartPolicy(),
        options.get("save_policy") or SavePolicy(),
        options.get("stop_policy") or StopPolicy(),
    )


class Place(Protocol):
    """Where processes are booted and die."""

    how: str
    boots: int
    steps_repeated: int | None

    def renew(self, plot: Plot) -> None:
        """A new disk, and an empty ledger."""
        ...

    def boot(self, plot: Plot, saves: str, death: DeathAt | None) -> Told | None:
        """One boot on the disk as the one before left it. None if it died where it was told to."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...
