"""An event loop for async callbacks where the host has none."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class LoopThread:
    """An event loop on a daemon thread of its own, for async callbacks where there is no host loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="executus-loop", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # no thread to be had
            self.loop.close()
            raise

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def close(self, timeout_s: float) -> None:
        """Cancel what still runs there, then end the thread; also later, where a callback blocks the loop now."""
        if self.loop.is_closed():
            return
        cancelled = asyncio.run_coroutine_threadsafe(_cancel_all(timeout_s), self.loop)
        cancelled.add_done_callback(lambda _: self.loop.call_soon_threadsafe(self.loop.stop))
        self._thread.join(timeout_s)
        if self._thread.is_alive():  # blocked, or a task that does not let itself be cancelled: the thread is a daemon
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.loop.stop)


async def _cancel_all(timeout_s: float) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        ended, _ = await asyncio.wait(tasks, timeout=timeout_s)
        for task in ended:
            if not task.cancelled():
                task.exception()  # looked at, or asyncio reports it as forgotten
    await asyncio.get_running_loop().shutdown_asyncgens()
