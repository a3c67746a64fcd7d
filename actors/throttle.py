"""Which save to write and which to coalesce. Pure: times come in as monotonic seconds."""

from __future__ import annotations

import math
from typing import Final

from executus.actors.policies import SavePolicy

GRID_S: Final = 0.05
"""Due times are rounded down to this grid, or throttled saves smear into hundreds of small commits."""

NEVER: Final = math.inf


def due_at(policy: SavePolicy, *, saved_at_s: float | None, steps_since: int, now_s: float) -> float:
    """When a state offered now must be written.

    `saved_at_s` is when this attempt's last save was handed to the store, None before its first, which is due at once;
    `steps_since` counts callbacks since that one. The result is never later than `saved_at_s + interval_s`, which is
    the trailing guarantee: what is stored is never older than the interval plus one commit. NEVER for `exit` and
    `none`.
    """
    match policy.durability:
        case "sync":
            return now_s
        case "exit" | "none":
            return NEVER
        case "async":
            if saved_at_s is None or (policy.every_steps is not None and steps_since >= policy.every_steps):
                return now_s
            return max(now_s, math.floor((saved_at_s + policy.interval_s) / GRID_S) * GRID_S)
