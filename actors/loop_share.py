"""How much of each round of an event loop goes to tasks that never wait."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import Final

ROUND_S: Final = 0.002
"""What the tasks together may take of a round; the host's callbacks and timers wait for so long."""


class LoopShare:
    """Lets as many busy tasks go on in a round of the loop as fit into `ROUND_S`, in turn. On the loop's thread.

    With `asyncio.sleep(0)` all of them go on in each round: beside 1,000 of 0.15 ms the host's timers were 150 ms late.
    How many fit is found by trying: a few more while a round is short, half as many when it was too long.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._most = 1
        self._resumed = 0
        self._round_began_s = 0.0
        self._in_rounds = False

    def next_turn(self) -> asyncio.Future[None]:
        """Done when it is this task's turn again. Cancelling it is harmless."""
        turn = self._loop.create_future()
        self._waiting.append(turn)
        if not self._in_rounds:
            self._in_rounds = True
            self._resumed = 0
            self._loop.call_soon(self._round)
        return turn

    def _round(self) -> None:
        """Judge the last round and let the next tasks go on: their callbacks are called before this is again."""
        now_s = monotonic()
        if self._resumed:
            took_s = now_s - self._round_began_s
            if took_s > ROUND_S:
                self._most = max(1, self._most // 2)
            elif took_s < ROUND_S / 2 and self._resumed >= self._most:
                self._most += 1 + self._most // 4
        self._round_began_s = now_s
        self._resumed = 0
        while self._waiting and self._resumed < self._most:
            turn = self._waiting.popleft()
            if not turn.done():  # else its task was cancelled
                turn.set_result(None)
                self._resumed += 1
        if self._resumed:
            self._loop.call_soon(self._round)
        else:
            self._in_rounds = False
