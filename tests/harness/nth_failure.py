"""Promise 9: whichever write, flush or rename fails, the process lives, and nothing that was acknowledged is lost.

Two programs (`enduring`) run under strace, which makes the Nth call of a kind fail, come out short, or be the last of
the process. Each call of each kind has its turn. Of a failed call: saves fail loudly, what was there before can be
read, and saving comes back. After a SIGKILL: everything acknowledged is there at the next opening.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, NamedTuple

from tests.harness import traced
from tests.harness.enduring import digest_of
from tests.harness.power_loss import fast_folder
from tests.harness.report import Report
from tests.harness.state_opener import Found, Opener
from tests.harness.traced import ROOT, environment
from tests.harness.workload import empty_view

Way = Literal["store", "daemon"]
WAYS: Final[tuple[Way, ...]] = ("store", "daemon")
TIMEOUT_S: Final = 120.0
"""A bound against hangs."""
BURST: Final = 5
AT_ONCE: Final = 2
MOST_FAILURES: Final = 20
SHORT_BYTES: Final = 7
"""Less than any write has. strace writes none of them: what it makes fail does not happen."""

KILLED: Final = "SIGKILL"
_WRITE: Final = {
    "EIO": "error=EIO:when={n}",
    "ENOSPC": "error=ENOSPC:when={n}",
    "short": f"retval={SHORT_BYTES}:when={{n}}",
    f"EIO {BURST} times": "error=EIO:when={n}..{last}",
    KILLED: "signal=KILL:when={n}",
}
_FLUSH: Final = {name: _WRITE[name] for name in ("EIO", f"EIO {BURST} times", KILLED)}
_NAME: Final = {name: _WRITE[name] for name in ("EIO", "ENOSPC", KILLED)}
FAULTS: Final = {
    "pwrite64": _WRITE,
    "writev": _WRITE,
    "fdatasync": _FLUSH,
    "fsync": _FLUSH,
    "rename": _NAME,
    "ftruncate": _NAME,
}
"""What can be made of each call."""


class Trial(NamedTuple):
    """The Nth call of a kind, in one of the programs, and what becomes of it."""

    way: Way
    call: str
    fault: str
    n: int

    def __str__(self) -> str:
        return f"{self.way}: {self.fault} at {self.call} {self.n}"


class Mark(NamedTuple):
    """A line that the program said."""

    what: str
    number: int
    digest: int


class Seen(NamedTuple):
    """What became of a program: the lines that it said, with None wherever a call was made to fail between them."""

    code: int
    said: tuple[Mark | None, ...]
    errors: str

    @property
    def marks(self) -> list[Mark]:
        return [mark for mark in self.said if mark is not None]


class Attempt(NamedTuple):
    """What was seen of a trial, and what of it breaks the promise."""

    trial: Trial
    seen: Seen
    broken: list[str]


def run(count: int, seed: int) -> Report:
    """`count` trials chosen at random, or, for 0, every one."""
    started_s = time.perf_counter()
    if why := traced.why_not():
        return Report("nth_failure", (9,), 0, (), {}, 0.0, skipped=why)
    failures: list[str] = []
    tried: Counter[str] = Counter()
    for trial, seen, broken in attempts(chosen(every_trial(seed), count, seed), seed):
        failures += [f"{trial}: {what}" for what in broken]
        tried["trials"] += 1
        tried[f"{trial.way}: {trial.fault}"] += 1
        tried["calls made to fail"] += seen.said.count(None)
        tried["commits that failed"] += sum(mark.what in {"failed", "degraded"} for mark in seen.marks)
        tried["openings that failed"] += sum(mark.what == "refused" for mark in seen.marks)
        tried["broken"] += bool(broken)
    took_s = time.perf_counter() - started_s
    return Report("nth_failure", (9,), tried["trials"], tuple(failures[:MOST_FAILURES]), dict(tried), took_s)


def every_trial(seed: int) -> list[Trial]:
    """As many of each call as a program makes on one of its threads when nothing fails."""
    return [
        Trial(way, call, fault, n)
        for way in WAYS
        for call, made in calls_of(way, seed).items()
        for fault in FAULTS[call]
        for n in range(1, made + 1)
    ]


def chosen(trials: list[Trial], count: int, seed: int) -> list[Trial]:
    """Some of them in their order, the rarer kinds no more seldom than the others; all for 0."""
    if not count or count >= len(trials):
        return trials
    choose = random.Random(seed)
    kinds: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in choose.sample(trials, len(trials)):
        kinds.setdefault(trial[:3], []).append(trial)
    found: list[Trial] = []
    while len(found) < count:
        for key in choose.sample(sorted(kinds), min(len(kinds), count - len(found))):
            found.append(kinds[key].pop())
            if not kinds[key]:
                del kinds[key]
    return sorted(found)


def calls_of(way: Way, seed: int) -> dict[str, int]:
    """How often each call is made by the thread that makes it most often."""
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        lines = _strace(way, Path(name), seed, []).lines
    made = Counter(found.groups() for line in lines if (found := re.match(r"(\d+) +(\w+)\(", line)))
    return {call: max((count for (_, name), count in made.items() if name == call), default=0) for call in FAULTS}


def attempts(trials: list[Trial], seed: int) -> Iterator[Attempt]:
    """Each of them, two side by side."""

    def some(first: int) -> list[Attempt]:
        with Opener() as opener:
            return [_attempt(trial, seed, opener) for trial in trials[first::AT_ONCE]]

    with ThreadPoolExecutor(AT_ONCE) as several:
        for tried in several.map(some, range(AT_ONCE)):
            yield from tried


def _attempt(trial: Trial, seed: int, opener: Opener) -> Attempt:
    rule = FAULTS[trial.call][trial.fault].format(n=trial.n, last=trial.n + BURST - 1)
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        traced_run = _strace(trial.way, Path(name), seed, ["-e", f"inject={trial.call}:{rule}"])
        seen = Seen(traced_run.code, tuple(_said(traced_run.lines)), traced_run.errors)
        found = opener.find(Path(name, "runs.store"), "power")
    return Attempt(trial, seen, broken_by(trial, seen, found))


def broken_by(trial: Trial, seen: Seen, found: Found) -> list[str]:
    """How what was seen, and what was found in the store afterwards, breaks the promise."""
    return [*_ending(trial, seen), *_loudness(trial, seen), *_loss(trial, seen, found)]


def _ending(trial: Trial, seen: Seen) -> Iterator[str]:
    if trial.fault == KILLED:
        if seen.code not in {0, -signal.SIGKILL}:
            yield f"it exited with {seen.code}: {seen.errors}"
    elif seen.code:
        yield f"the process did not live: it exited with {seen.code}: {seen.errors}"


def _loudness(trial: Trial, seen: Seen) -> Iterator[str]:
    """A failed call within a commit is told, by an error or by an event, and so is that saving came back."""
    if trial.fault == KILLED or seen.code:
        return
    last, told, silent, degraded = "", True, False, False
    for mark in seen.said:
        if mark is None:
            told = told and (degraded or last not in WITHIN[trial.way])
        elif mark.what in {"failed", "degraded", "recovered"}:
            told = True
            degraded = mark.what != "recovered" and (degraded or mark.what == "degraded")
            last = mark.what if trial.way == "store" else last
        elif mark.what != "refused":
            # A daemon's commits go on while it says other things.
            silent |= not told and (trial.way == "store" or mark.what == "closing")
            last = mark.what.partition(":")[0]
    if silent:
        yield f"a failed call was not told: {_shown(seen)}"
    if degraded:
        yield f"saving did not come back: {_shown(seen)}"


WITHIN: Final = {"store": frozenset({"about"}), "daemon": frozenset({"opened", "durable", "ended"})}
"""After which words a commit is going on, or may be."""


def _shown(seen: Seen) -> str:
    return " ".join("FAULT" if mark is None else f"{mark.what}={mark.number}" for mark in seen.said)


def _loss(trial: Trial, seen: Seen, found: Found) -> Iterator[str]:
    if found.died or found.refused or found.unreadable or found.unwritable:
        yield f"afterwards the store could not be used: {found}"
        return
    if trial.way == "store":
        done = [mark for mark in seen.marks if mark.what == "done"]
        about = [mark for mark in seen.marks if mark.what == "about"]
        digest = digest_of(found.view)
        acknowledged = done[-1].digest if done else digest_of(empty_view())
        if digest != acknowledged and (not about or digest != about[-1].digest):
            yield f"what is there is neither the last acknowledged commit nor the one in hand: {found.view}"
        if seen.code == 0 and digest != acknowledged:
            yield "a commit came after the last acknowledged one"
        return
    for mark in seen.marks:
        what, _, run_id = mark.what.partition(":")
        if what not in {"durable", "ended"}:
            continue
        value = found.view.get(run_id)
        if value is None:
            yield f"{run_id} is gone"
        elif what == "ended" and value[0][2] != "completed":
            yield f"{run_id} had ended with a durable result and is {value[0][2]}"
        elif what == "durable" and value[0][2] != "completed" and (value[2] is None or value[2][1] < mark.number):
            yield f"{run_id} was durable up to {mark.number}, there is {value[2]}"


class _Traced(NamedTuple):
    code: int
    lines: list[str]
    errors: str


def _strace(way: Way, folder: Path, seed: int, options: list[str]) -> _Traced:
    trace = folder / "trace"
    program = [sys.executable, "-P", "-m", "tests.harness.enduring", way, str(folder / "runs.store"), str(seed)]
    calls = f"trace={','.join(FAULTS)},write"
    with subprocess.Popen(
        ["strace", "-f", "--seccomp-bpf", "-s", "200", "-e", calls, *options, "-o", str(trace), *program],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # strace lets a program that it started go on when it is killed itself: end both.
            for pid in _children_of(process.pid):
                _kill(pid)
            process.kill()
            _, errors = process.communicate()
            errors = f"it hung; {errors}"
    return _Traced(process.returncode, trace.read_text(errors="replace").splitlines(), errors.strip()[-700:])


def _said(lines: list[str]) -> Iterator[Mark | None]:
    for line in lines:
        if "(INJECTED)" in line:
            yield None
        elif found := _MARK.search(line):
            what, number, digest = found.groups()
            yield Mark(what, int(number), int(digest))


_MARK: Final = re.compile(r'write\(1, "([\w:-]+) (-?\d+) (\d+)\\n"')


def _children_of(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(child) for child in text.split()]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
