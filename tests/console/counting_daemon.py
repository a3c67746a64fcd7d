"""A daemon whose runs count and save each step, for whoever copies its store meanwhile: `counting_daemon.py STORE RUNS`."""

from __future__ import annotations

import sys

import msgspec

from executus.actors import Done, Run, Runtime, SavePolicy

READY = "ready"
GOAL = 1_000_000


class Count(msgspec.Struct, frozen=True):
    goal: int
    at: int = 0
    ballast: str = ""


class Counting(Run[int, Count, int]):
    save_policy = SavePolicy(every_s=0.0)

    def begin(self, goal: int) -> Count:
        return Count(goal, ballast="x" * 2000)

    def step(self, state: Count) -> Count | Done[int]:
        self.context.sleep(0.001)
        return Done(state.at) if state.at >= state.goal else msgspec.structs.replace(state, at=state.at + 1)


def main(store: str, runs: int) -> None:
    with Runtime(store, runs=[Counting], logger=False) as runtime:
        handles = runtime.start_many(Counting, {f"r{number:02}": GOAL for number in range(runs)})
        runtime.start(Counting, 3, run_id="ended").result()
        for handle in handles:
            handle.durable()
        print(READY, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
