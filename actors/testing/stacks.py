"""Call stacks that can be parked anywhere: threads of which exactly one runs, the one that holds the baton."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Final, Protocol, Self

STACK_NAME: Final = "executus-testing-stack"


class Baton:
    """Runs while it has been handed over and not waited for again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # taken while its holder runs or waits; released by the one that hands over
        self._lock.acquire()

    def hand_over(self) -> None:
        """Let the one that waits for this go on. The caller waits for its own baton next, or has nothing more to do."""
        self._lock.release()

    def wait(self) -> None:
        """Park the calling thread until somebody hands over to it."""
        self._lock.acquire()


class Driver(Protocol):
    """What runs on stacks."""

    def drive(self, stack: Stack) -> None:
        """Run turns on `stack`, which holds the baton, until another one goes on."""
        ...


class Stack(threading.Thread):
    """One call stack, lent to a driver at a time."""

    def __init__(self) -> None:
        super().__init__(name=STACK_NAME, daemon=True)
        self.baton = Baton()
        self.driver: Driver | None = None
        self.start()

    def run(self) -> None:
        """See Thread."""
        while True:
            self.baton.wait()
            driver, self.driver = self.driver, None
            if driver is None:
                return
            driver.drive(self)
            del driver


class Stacks:
    """The idle stacks, shared by many machines one after the other: a thread costs more than a boot does here."""

    def __init__(self) -> None:
        self._idle: list[Stack] = []

    def take(self, driver: Driver) -> Stack:
        """An idle stack, or a new one. Only the holder of the baton calls this."""
        stack = self._idle.pop() if self._idle else Stack()
        stack.driver = driver
        return stack

    def give_back(self, stack: Stack) -> None:
        """Nothing is on it any more. Call it before handing over."""
        self._idle.append(stack)

    def close(self) -> None:
        """End the threads that are idle. One that is parked in a callback ends with its process."""
        for stack in self._idle:
            stack.baton.hand_over()
        for stack in self._idle:
            stack.join(5.0)
        self._idle.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
