"""Boots of the user's run that die in the machine: as fast as Python goes, and the same way each time."""

from __future__ import annotations

import time
from typing import Any, Final

from executus.actors.testing.dying_store import DeathAt, DyingStore
from executus.actors.testing.machine import BEGIN_S, Machine, ProcessDied
from executus.actors.testing.plot import Plot, Told
from executus.actors.testing.stacks import Stacks
from executus.actors.testing.story import told_on_machine
from executus.actors.testing.virtual_runtime import VirtualRuntime
from executus.stores import LIVE, MemoryStore

LOOK_S: Final = 0.0011
"""What passes with each look at the clock: more than a turn may take, so that each callback has a turn of its own."""
DOWN_S: Final = 1.0
"""How long a process stays dead."""
MAX_TURNS: Final = 500_000


class InProcess:
    """`Place` in the process of the test, over a MemoryStore that is kept over the boots."""

    how = "in-process"

    def __init__(self) -> None:
        self.boots = 0
        self.steps_repeated: int | None = 0
        self._stacks = Stacks()
        self._disk = MemoryStore()
        self._wall_s = time.time()
        self._now = BEGIN_S

    def renew(self, plot: Plot) -> None:
        """A new disk, a new world."""
        self._disk = MemoryStore()
        self._now = BEGIN_S
        if plot.effects is not None:
            plot.effects.empty()

    def boot(self, plot: Plot, saves: str, death: DeathAt | None) -> Told | None:
        """See Place."""
        self.boots += 1
        machine = Machine(self._stacks, wall_s=self._wall_s, look_s=LOOK_S, max_turns=MAX_TURNS)
        machine.now = self._now
        runtime: VirtualRuntime

        def die() -> None:
            assert self.steps_repeated is not None
            self.steps_repeated += self._lost(runtime)
            if plot.effects is not None:
                plot.effects.seal()
            machine.die()
            raise ProcessDied

        store: Any = DyingStore(self._disk, death, die)
        runtime = VirtualRuntime(machine, store, runs=plot.runs(), **plot.options)
        plot.say_how_to_save(runtime.core, saves)
        if plot.effects is not None:
            plot.effects.seal(sealed=False)
        try:
            with machine.taken():
                runtime.open()
                ended = told_on_machine(machine, runtime.core, runtime, plot.make_run, plot.drive)
                return Told(ended, store.commits, runtime.core.env.saves_awaited)
        except ProcessDied:
            return None
        finally:
            if plot.effects is not None:
                plot.effects.seal()
            machine.die()
            machine.unwind()
            if plot.effects is not None:
                plot.effects.seal(sealed=False)
            self._disk.close()
            self._now = machine.now + DOWN_S

    def close(self) -> None:
        """End the threads."""
        self._stacks.close()

    def _lost(self, runtime: VirtualRuntime) -> int:
        """How many callbacks were completed that the disk knows nothing of."""
        lost = 0
        for inc in list(runtime.core.table.values()):
            published = None if inc.slot is None else inc.slot.published
            stored = self._disk.load(inc.run_id)
            if published is None or stored is None or stored.claim.status not in LIVE:
                continue
            snapshot = self._disk.load_snapshot(inc.run_id)
            lost += max(0, published.seq - (0 if snapshot is None else snapshot.snapshot.seq))
        return lost
