"""The process's own worker pool, for actors that are started without saying where."""

from __future__ import annotations

import threading

from executus.actors.forks import forks
from executus.actors.worker_pool import WorkerPool

_default_lock = threading.Lock()
_default: tuple[int, WorkerPool] | None = None


def default_dispatcher() -> WorkerPool:
    """The process's own dispatcher, made on first use. A forked child gets another.

    It is never closed: its threads are daemons and end with the process.
    """
    global _default  # noqa: PLW0603  # pykka's `start` has no place to hand one in
    # Read without the lock: a tuple that is there is complete. Made under it: once a process.
    found = _default
    if found is not None and found[0] == forks.count:
        return found[1]
    with _default_lock:
        if _default is None or _default[0] != forks.count:
            _default = (forks.count, WorkerPool(name="executus-default"))
        return _default[1]
