"""Who owns a store after kill -9, and who is refused?

Each round some processes open one store at the same moment. One gets it; the others are refused with its pid. It forks
a child that outlives it, is killed with SIGKILL, and at once the next process opens the store.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NoReturn

from executus.stores import ACCEPTED, EPOCHS_PER_BOOT, LmdbStore, StoreError, StoreLocked
from tests.harness.report import Report
from tests.stores.making import started

RACERS: Final = (2, 3, 4)
AT_ONCE_S: Final = 2.0
"""In which a killed owner's store opens again: the look at the file is in it, and others use the machine."""


class Contender:
    """A process that opens the store when it is told, says how that went, and stays until it is killed."""

    def __init__(self, store: Path) -> None:
        self._told, self._tell = os.pipe()
        self._hear, self._said = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._contend(store)
        os.close(self._told)
        os.close(self._said)

    def go(self) -> None:
        """Open the store now."""
        os.write(self._tell, b"go")

    def said(self) -> list[Any]:
        """["owner", pid of its child], or ["refused", the pid it names, the text]."""
        data = os.read(self._hear, 65536)
        return list(json.loads(data)) if data else ["died"]

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._tell)
        os.close(self._hear)

    def _contend(self, store: Path) -> NoReturn:
        os.close(self._tell)
        os.close(self._hear)
        os.read(self._told, 2)
        try:
            os.write(self._said, json.dumps(_opened(store)).encode())
            signal.pause()
        finally:
            os._exit(1)


def _opened(store: Path) -> list[Any]:
    found = LmdbStore(store, profile="process")
    try:
        found.open()
    except StoreLocked as locked:
        return ["refused", locked.owner_pid, str(locked)]
    except StoreError as error:
        return ["failed", str(error)]
    epoch = found.boot_epoch * EPOCHS_PER_BOOT
    if found.commit([started(f"of boot {found.boot_epoch}", epoch)]) != [ACCEPTED]:
        return ["failed", "its first commit was refused"]
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    return ["owner", child, found.boot_epoch]


class Rounds:
    """What came of them."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self.longest_s = 0.0
        self.boot_epoch = 0
        self._orphans: list[int] = []

    def race(self, store: Path, racers: int) -> None:
        """Several at once; then the one that won is killed, and another one opens."""
        contenders = [Contender(store) for _ in range(racers + 1)]
        *racing, late = contenders
        try:
            for contender in racing:
                contender.go()
            answers = [contender.said() for contender in racing]
            owners = [n for n, answer in enumerate(answers) if answer[0] == "owner"]
            if len(owners) != 1:
                self.wrong.append(f"{len(owners)} owners: {answers}")
                self._orphans += [answers[n][1] for n in owners]
                return
            owner = racing[owners[0]]
            self._judge_owner(answers[owners[0]])
            for answer in answers:
                if answer[0] != "owner":
                    self._judge_refusal(answer, owner.pid)
            owner.kill()
            contenders.remove(owner)
            began_s = time.monotonic()
            late.go()
            answer = late.said()
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)
            if answer[0] != "owner":
                self.wrong.append(f"after the owner's death, with a child of it alive: {answer}")
            else:
                self._judge_owner(answer)
        finally:
            for contender in contenders:
                contender.kill()
            for pid in self._orphans:
                os.kill(pid, signal.SIGKILL)
            self._orphans.clear()

    def _judge_owner(self, answer: list[Any]) -> None:
        self._orphans.append(answer[1])
        if answer[2] <= self.boot_epoch:
            self.wrong.append(f"boot epoch {answer[2]} after {self.boot_epoch}")
        self.boot_epoch = answer[2]
        self.counts["opened"] += 1

    def _judge_refusal(self, answer: list[Any], owner_pid: int) -> None:
        if answer[0] != "refused":
            self.wrong.append(f"instead of a refusal: {answer}")
        elif answer[1] != owner_pid or f"pid {owner_pid}" not in answer[2]:
            self.wrong.append(f"refused without the owner's pid {owner_pid}: {answer[1:]}")
        else:
            self.counts["refused, naming the owner"] += 1


def run(count: int, seed: int) -> Report:
    """`count` rounds on one store."""
    began_s = time.monotonic()
    rng, rounds = random.Random(seed), Rounds()
    with TemporaryDirectory(prefix="executus-ownership-") as folder:
        for number in range(count):
            store = Path(folder) / "runs.store"
            rounds.race(store, rng.choice(RACERS))
            rounds.wrong = [text if text.startswith("round ") else f"round {number}: {text}" for text in rounds.wrong]
    if rounds.longest_s > AT_ONCE_S:
        rounds.wrong.append(f"a killed owner's store opened after {rounds.longest_s:.2f} s only")
    return Report(
        name="ownership",
        promise=(15,),
        count=count,
        failures=tuple(rounds.wrong),
        figures={**rounds.counts, "longest until it opened again, s": rounds.longest_s},
        took_s=time.monotonic() - began_s,
    )
