"""A daemon whose runs wait, rest in the store and come back, by the clock or by a message, until it is killed.

Arguments: the store, how many messages each listener gets, and from which on each is to go on.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from executus.actors import ChildEnded, Done, Run, Runtime, SavePolicy, Wait, WaitExpired
from executus.actors.events import RunActivated, RunPassivated

LISTENERS = 6
SLEEPERS = 12
NAPS = 8
SLEEPY = SavePolicy(every_s=0.02, passivate_after_s=0.01)


class Add(msgspec.Struct, frozen=True, tag=True):
    number: int


class End(msgspec.Struct, frozen=True, tag=True):
    pass


class Heard(msgspec.Struct, frozen=True):
    numbers: tuple[int, ...] = ()


def say(*parts: Any) -> None:
    os.write(1, msgspec.json.encode(parts) + b"\n")


class Listener(Run[str, Heard, tuple[int, ...]]):
    """Remembers what it hears."""

    save_policy = SLEEPY

    def begin(self, input: str) -> Any:
        return Wait(Heard())

    def step(self, state: Heard) -> Any:
        return Wait(state)

    def receive(self, state: Heard, message: Add | End) -> Any:
        if isinstance(message, End):
            return Done(state.numbers)
        return Wait(Heard((*state.numbers, message.number)))


class Nap(msgspec.Struct, frozen=True):
    left: int
    child_ended: bool


class Sleeper(Run[int, Nap, int]):
    """Takes so many naps, and waits for its child, which takes as many."""

    save_policy = SLEEPY

    def begin(self, naps: int) -> Any:
        is_child = self.context.parent_run_id is not None
        if not is_child:
            self.context.spawn(Sleeper, naps, key="child")
        return self.after(Nap(naps, is_child))

    def step(self, state: Nap) -> Any:
        return self.after(state)

    def receive(self, state: Nap, message: ChildEnded | WaitExpired) -> Any:
        if isinstance(message, ChildEnded):
            return self.after(Nap(state.left, child_ended=True))
        return self.after(Nap(state.left - 1, state.child_ended))

    def after(self, state: Nap) -> Any:
        if state.left:
            return Wait(state, timeout_s=0.05)
        return Done(0) if state.child_ended else Wait(state)


def main() -> None:
    store, count, *starts = sys.argv[1:]
    runtime = Runtime(store, runs=[Listener, Sleeper], logger=False)
    runtime.events.subscribe(
        lambda event: say(type(event).__name__) if isinstance(event, RunPassivated | RunActivated) else None
    )
    with runtime:
        say("open")
        sleepers = [
            runtime.start(Sleeper, NAPS, run_id=f"sleeper-{n}", if_exists="return").run_id for n in range(SLEEPERS)
        ]
        for n in range(LISTENERS):
            runtime.start(Listener, "", run_id=f"listener-{n}", if_exists="return")
        for number in range(min(map(int, starts)), int(count)):
            for n in range(LISTENERS):
                if number >= int(starts[n]):
                    runtime.get(Listener, f"listener-{n}").send(Add(number), message_id=str(number))
                    say("accepted", n, number)
        for n in range(LISTENERS):
            run = runtime.get(Listener, f"listener-{n}")
            if run.status().status != "completed":
                run.send(End(), message_id="end")
            say("result", n, run.result(60))
        for run_id in sleepers:
            say("slept", run_id, runtime.get(Sleeper, run_id).result(60))


if __name__ == "__main__":
    main()
