"""A daemon with a run of every kind in its store. Argument: the store's folder. Says `ready` when everything below is durable."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import msgspec

from executus.actors import Done, RestartPolicy, Run, Runtime, SavePolicy, Wait

sys.path.append(str(Path(__file__).resolve().parents[2]))
from tests.waiting import wait_until

READY = "ready"


class At(msgspec.Struct, frozen=True):
    n: int
    note: str = ""


class Steps(Run[int, At, int]):
    """Takes a step, then sits in the next one until it is killed."""

    run_type = "test.Steps"
    save_policy = SavePolicy(durability="sync")

    def begin(self, n: int) -> At:
        return At(n)

    def step(self, state: At) -> At | Done[int]:
        if state.n:
            threading.Event().wait()
        return At(state.n + 1, "one step further")


class Approval(Run[str, At, str]):
    run_type = "test.Approval"
    save_policy = SavePolicy(durability="sync")

    def begin(self, note: str) -> Wait[At]:
        return Wait(At(0, note), timeout_s=3600)

    def step(self, state: At) -> Done[str]:
        return Done(state.note)


class Fails(Run[str, At, None]):
    run_type = "test.Fails"
    restart_policy = RestartPolicy(kind="temporary")

    def begin(self, note: str) -> At:
        return At(0, note)

    def step(self, state: At) -> At:
        error = ValueError(state.note)
        error.facts = {"status": 503, "host": "red\x1b"}  # type: ignore[attr-defined]
        raise error


class Completes(Run[str, At, dict[str, int]]):
    run_type = "test.Completes"

    def begin(self, note: str) -> At:
        return At(42, note)

    def step(self, state: At) -> Done[dict[str, int]]:
        return Done({state.note: state.n})


class Parent(Run[str, At, None]):
    run_type = "test.Parent"
    save_policy = SavePolicy(durability="sync")

    def begin(self, note: str) -> Wait[At]:
        self.context.spawn(Approval, note, key="first")
        return Wait(At(0, note))

    def step(self, state: At) -> Wait[At]:
        return Wait(state)


def main(folder: str) -> None:
    with Runtime(folder, runs=[Steps, Approval, Fails, Completes, Parent], logger=False) as runtime:
        steps = runtime.start(Steps, 0, run_id="steps", labels={"who": "ann", "tier": "1"})
        approval = runtime.start(Approval, "please", run_id="approval")
        parent = runtime.start(Parent, "family", run_id="parent")
        runtime.start(Fails, "line one\nline two \x1b[31mred", run_id="fails").outcome(20)
        runtime.start(Completes, "answer", run_id="completes").outcome(20)
        for handle, seq in ((steps, 2), (approval, 1), (parent, 1)):
            wait_until(lambda handle=handle, seq=seq: handle.status().seq >= seq, 20)
            assert handle.durable(20) >= seq
        print(READY, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
