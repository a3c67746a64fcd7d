"""Call stacks that can be parked anywhere: real threads of which exactly one runs, so that a seed decides every switch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Stack(threading.Thread):
    """One call stack. It runs while it holds the baton, which it gets from whoever parks or goes idle."""

    def __init__(self, stacks: Stacks) -> None:
        super().__init__(name="simulation-stack", daemon=True)
        self._stacks = stacks
        # Taken while it runs or waits; released by the one that hands over to it.
        self._baton = threading.Lock()
        self._baton.acquire()
        self.start()

    def run(self) -> None:
        while True:
            self._baton.acquire()
            if self._stacks.closed:
                return
            self._stacks.drive(self)

    def hand_over(self) -> None:
        """Let this stack run. The caller waits for its own baton next, or has nothing more to do."""
        self._baton.release()

    def wait(self) -> None:
        """Park the calling stack, which is this one, until somebody hands over to it."""
        self._baton.acquire()


class Stacks:
    """The idle stacks, shared by many simulations one after the other: a thread costs more than a simulated turn."""

    def __init__(self) -> None:
        self.closed = False
        self.drive: Callable[[Stack], None] = _nobody
        self._idle: list[Stack] = []
        self._all: list[Stack] = []

    def take(self) -> Stack:
        """An idle stack, or a new one. Only the holder of the baton calls this."""
        if self._idle:
            return self._idle.pop()
        stack = Stack(self)
        self._all.append(stack)
        return stack

    def give_back(self, stack: Stack) -> None:
        """Nothing is on it any more. Call it before handing over."""
        self._idle.append(stack)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True
        for stack in self._idle:
            stack.hand_over()
        for stack in self._idle:
            stack.join(5.0)


def _nobody(_stack: Stack) -> None:
    raise AssertionError("no simulation is running")
