"""A daemon that sends durable messages to its own runs and says of each when it was accepted, until it is killed.

Arguments: the store, how many messages each sender has, and from which on each is to go on.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import msgspec

from executus.actors import Backoff, Done, RestartPolicy, Run, Runtime, SavePolicy, Wait

KINDS = ("Listener", "AsyncListener")
SENDERS = 3


class Add(msgspec.Struct, frozen=True, tag=True):
    sender: int
    number: int


class End(msgspec.Struct, frozen=True, tag=True):
    pass


class Heard(msgspec.Struct, frozen=True):
    pairs: tuple[tuple[int, int], ...] = ()


def say(*parts: Any) -> None:
    os.write(1, msgspec.json.encode(parts) + b"\n")


class Listener(Run[str, Heard, tuple[tuple[int, int], ...]]):
    """Now and then it crashes with a message in hand; every other one it only takes notice of first, and steps."""

    restart_policy = RestartPolicy(max_restarts=1000, backoff=Backoff(initial_s=0.001, max_s=0.001))
    save_policy = SavePolicy(every_s=0.02)

    def begin(self, input: str) -> Any:
        return Wait(Heard())

    def step(self, state: Heard) -> Any:
        return Wait(state)

    def hear(self, state: Heard, message: Add | End) -> Any:
        if isinstance(message, End):
            return Done(state.pairs)
        say("heard", self.context.run_id, message.sender, message.number)
        if message.number % 97 == 13 and self.context.attempt % 2:
            raise SystemExit("with the message in hand")
        after = Heard((*state.pairs, (message.sender, message.number)))
        return after if message.number % 2 else Wait(after)

    def receive(self, state: Heard, message: Add | End) -> Any:
        return self.hear(state, message)


class AsyncListener(Listener):
    run_type = "AsyncListener"

    async def receive(self, state: Heard, message: Add | End) -> Any:
        return self.hear(state, message)


def send_all(run: Any, sender: int, start: int, count: int) -> None:
    for number in range(start, count):
        run.send(Add(sender, number), message_id=f"{sender}-{number}")
        say("accepted", run.run_id, sender, number)


def main() -> None:
    store, count, *starts = sys.argv[1:]
    with Runtime(store, runs=[Listener, AsyncListener], logger=False) as runtime:
        say("open")
        runs = [
            runtime.start(kind, "", run_id=kind.__name__, if_exists="return", first=Add(-1, 0), first_id="first")
            for kind in (Listener, AsyncListener)
        ]
        senders = [
            threading.Thread(target=send_all, args=(run, sender, int(starts[SENDERS * at + sender]), int(count)))
            for at, run in enumerate(runs)
            for sender in range(SENDERS)
        ]
        for thread in senders:
            thread.start()
        for thread in senders:
            thread.join()
        for run in runs:
            run.send(End(), message_id="end")
            say("result", run.run_id, run.result(60))


if __name__ == "__main__":
    main()
