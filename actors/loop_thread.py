"""An event loop for async callbacks where the host has none."""

from __future__ import annotations

import asyncio
import threading


class LoopThread:
    """An event loop on a daemon thread of its own, for async callbacks where there is no host loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="executus-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def close(self, timeout_s: float) -> None:
        """Cancel what still runs there, then end the thread."""
        try:
            asyncio.run_coroutine_threadsafe(_cancel_all(), self.loop).result(timeout_s)
            self.loop.call_soon_threadsafe(self.loop.stop)
        except (RuntimeError, TimeoutError):
            return  # a callback blocks the loop; its thread is a daemon and keeps nothing alive
        self._thread.join(timeout_s)


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
