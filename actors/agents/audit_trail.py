"""`AuditTrail`: the newest entries of an audit, in memory, for tests and for whoever shows them."""

from __future__ import annotations

import threading
from collections import deque

from executus.actors.agents.audit import AuditEntry


class AuditTrail:
    """Keeps the newest `limit` entries of all runs together, in the order in which they came.

    Safe on any thread: one lock is held to append an entry or to copy them all, neither calls foreign code or waits
    for anything, and what is handed out are immutable entries in a tuple of its own.
    """

    def __init__(self, limit: int = 1_000) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self._entries: deque[AuditEntry] = deque(maxlen=limit)
        self._recorded = 0
        self._lock = threading.Lock()

    def record(self, entry: AuditEntry, /) -> None:
        """Keep it; the oldest goes, where there are too many."""
        with self._lock:
            self._entries.append(entry)
            self._recorded += 1

    def entries(self, run_id: str | None = None) -> tuple[AuditEntry, ...]:
        """What is kept, oldest first: of all runs, or of one."""
        with self._lock:
            kept = tuple(self._entries)
        return kept if run_id is None else tuple(entry for entry in kept if entry.info.run_id == run_id)

    @property
    def dropped(self) -> int:
        """How many entries have gone."""
        with self._lock:
            return self._recorded - len(self._entries)
