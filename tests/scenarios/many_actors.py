"""Many actors in one process: `python -m tests.scenarios.many_actors [--asks 500000] [--actors 1000000]`.

The tests run the same with smaller counts.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from typing import Any, ClassVar, NamedTuple

import pykka

from executus.actors.actor import Actor, ActorFuture, ActorRef
from executus.actors.worker_pool import WorkerPool

WAIT_S = 60.0
ROUND = 400


class Echo(Actor):
    def on_receive(self, message: Any) -> Any:
        return message


class LentEcho(Echo):
    caller_runs: ClassVar[bool] = True


class Answers(NamedTuple):
    """What became of asks: a reply, word that the actor has ended, or nothing."""

    replied: int
    refused: int
    unanswered: int


def asks_racing_with_stops(count: int, seed: int = 1) -> Answers:
    """At least `count` asks from three threads, of actors that are stopped meanwhile in one of three ways."""
    rng = random.Random(seed)
    replied = refused = unanswered = 0
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    pool = WorkerPool()
    try:
        while replied + refused + unanswered < count:
            ref = rng.choice((Echo, LentEcho)).start_on(pool)
            futures: list[list[ActorFuture[Any]]] = [[], []]
            blocking = [0, 0]

            def ask(out: list[ActorFuture[Any]], ref: ActorRef[Any] = ref) -> None:
                for n in range(ROUND):
                    out.append(ref.ask(n, block=False))

            def ask_and_wait(out: list[int] = blocking, ref: ActorRef[Any] = ref) -> None:
                for n in range(ROUND // 4):
                    try:
                        ref.ask(n)
                        out[0] += 1
                    except pykka.ActorDeadError:
                        out[1] += 1

            askers = [threading.Thread(target=ask, args=(out,), daemon=True) for out in futures]
            askers.append(threading.Thread(target=ask_and_wait, daemon=True))
            for asker in askers:
                asker.start()
            until_s = time.monotonic() + rng.random() * 0.002
            while time.monotonic() < until_s:
                ref.tell("beside")
            rng.choice((lambda: ref.stop(block=False), ref.halt, ref.abandon))()
            for asker in askers:
                asker.join(WAIT_S)
            unanswered += ROUND // 4 - sum(blocking)
            replied += blocking[0]
            refused += blocking[1]
            for future in (*futures[0], *futures[1]):
                if not future.wait(WAIT_S):
                    unanswered += 1
                elif future.error() is None:
                    replied += 1
                else:
                    refused += 1
    finally:
        sys.setswitchinterval(before_s)
        pool.close()
    return Answers(replied, refused, unanswered)


def idle_actors_that_answer(count: int) -> int:
    """How many of `count` actors that all live at once answer, each with what it was asked."""
    pool = WorkerPool()
    refs = [Echo.start_on(pool) for _ in range(count)]
    answered = 0
    for first in range(0, count, 10_000):
        asked = [(n, refs[n].ask(n, block=False)) for n in range(first, min(first + 10_000, count))]
        answered += sum(future.get(timeout=WAIT_S) == n for n, future in asked)
    alive = sum(ref.is_alive() for ref in refs)
    pool.close()
    return min(alive, answered)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.many_actors", description=__doc__)
    parser.add_argument("--asks", type=int, default=500_000, help="asks that race with stops (default 500,000)")
    parser.add_argument("--actors", type=int, default=1_000_000, help="idle actors alive at once (default 1,000,000)")
    wanted = parser.parse_args()
    began_s = time.monotonic()
    answers = asks_racing_with_stops(wanted.asks)
    print(f"{answers} in {time.monotonic() - began_s:.1f} s")
    began_s = time.monotonic()
    answered = idle_actors_that_answer(wanted.actors)
    print(f"{answered} of {wanted.actors} idle actors answered, in {time.monotonic() - began_s:.1f} s")
    return 0 if not answers.unanswered and answered == wanted.actors else 1


if __name__ == "__main__":
    sys.exit(main())
