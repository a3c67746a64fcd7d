"""Promise 1: an acknowledged save survives a loss of power, in each profile as far as that profile says.

A child plays a seeded life of a store under strace, which records every write, flush and rename. From the recording
come states in which a disk may be when the power goes (`crash_states`), and each is opened by a daemon. What that reads
must be what the same life looked like in memory after some commit: none that is older than the last acknowledged one.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from executus.stores import MemoryStore
from tests.harness import traced, workload
from tests.harness.crash_states import CrashState, crash_states, lay_out, marks_until
from tests.harness.report import Report
from tests.harness.state_opener import Found, Opener
from tests.harness.traced import Failed, Recording
from tests.harness.workload import DAMAGED, ENDED_RUNS, LIVE_RUNS, Said, Value, View, view_of

Profile = Literal["power", "power-1", "process"]
PROFILES: Final[tuple[Profile, ...]] = ("power", "power-1", "process")
COMMITS: Final = 90
STORE: Final = "made/for/it/runs.store"
"""None of these folders is there before."""
STATES_A_LIFE: Final = 1000
"""Then another life of a store is recorded, for the next as many states."""
WHOLE_EVERY: Final = 200
"""So many states are checked by a fork, and then one by an interpreter of its own as in every daemon."""
STATES_A_FAILURE: Final = 50
FAILING: Final = ("fdatasync", "pwrite64")
"""Which of a life's calls fail: those of commits between the first opening, of whose failure the model knows nothing,
and the close before the second."""
SOON: Final = 12
"""So many actions after a failure is soon."""
MOST_FAILURES: Final = 20
"""So many are told in full."""


class Model(NamedTuple):
    """What there was after each commit; `views[0]` is the empty store. `ever`: each value that a run ever had."""

    views: list[View]
    ever: dict[str, list[Value]]


class Known(NamedTuple):
    """What had been said when the power went. `done`: the last acknowledged commit, `about`: the last that was tried,
    `closed`: the last that a close followed."""

    boot: int
    done: int
    about: int
    closed: int


Kind = Literal["whole", "last commit lost", "more lost", "mixed", "caught", "refused", "unwritable", "died", "wrong"]
"""What became of a state. `more lost`: it is that of an earlier commit. `mixed`: each record is as it was once, but not
all are of the same commit. `caught`: some runs are damaged and named as such, the others as they once were. `refused`: a typed
error at opening. `died`: the daemon. `wrong`: something was read that never was.
"""


MAY_BE: Final[dict[Profile, frozenset[Kind]]] = {
    "power": frozenset({"whole"}),
    "power-1": frozenset({"whole", "last commit lost"}),
    "process": frozenset({"whole", "last commit lost", "more lost", "mixed", "caught", "refused", "unwritable"}),
}
"""What each profile promises: "process" only that the daemon lives and that what it reads was there once."""


class Losses(NamedTuple):
    """What became of the states, which broke the promise, and how many of them were different ones."""

    kinds: Counter[Kind]
    failures: list[str]
    distinct: int
    took_s: float


class Judged(NamedTuple):
    """What became of a state, and whether that broke what its profile promises."""

    kind: Kind
    broken: str = ""


def run(count: int, seed: int) -> Report:
    """`count` states for each of the three profiles, and a quarter of that on a disk that failed shortly before."""
    started_s = time.perf_counter()
    if why := traced.why_not():
        return Report("power_loss", (1,), 0, (), {}, 0.0, skipped=why)
    figures: dict[str, float | int | str] = {}
    failures: list[str] = []
    for profile in PROFILES:
        losses = lose_power(profile, count, seed)
        failures += losses.failures[:MOST_FAILURES]
        figures |= {f"{profile}: {kind}": losses.kinds[kind] for kind in get_args(Kind)}
        figures |= {f"{profile}: distinct states": losses.distinct, f"{profile}: seconds": round(losses.took_s, 1)}
    losses = lose_power_on_a_failing_disk(count // 4, seed)
    failures += losses.failures[:MOST_FAILURES]
    figures |= {f"power, after a failed write or flush: {kind}": number for kind, number in losses.kinds.items()}
    return Report("power_loss", (1,), 3 * count + count // 4, tuple(failures), figures, time.perf_counter() - started_s)


def lose_power(profile: Profile, count: int, seed: int, held_to: Profile | None = None) -> Losses:
    """Try `count` states. `held_to` is the profile whose promise is held against it, if not its own."""
    started_s = time.perf_counter()
    kinds: Counter[Kind] = Counter()
    failures: list[str] = []
    seen: set[int] = set()
    with Opener() as opener:
        for life in range(seed, seed + -(-count // STATES_A_LIFE)):
            states = min(STATES_A_LIFE, count - kinds.total())
            for state, judged in _lose_power_in(profile, life, states, held_to or profile, opener):
                seen.add(_fingerprint(state))
                kinds[judged.kind] += 1
                if judged.broken:
                    where = f"power lost after action {state.after} of life {life} ({state.grain})"
                    failures.append(f"{profile}: {where}: {judged.broken}")
    return Losses(kinds, failures, len(seen), time.perf_counter() - started_s)


def lose_power_on_a_failing_disk(count: int, seed: int) -> Losses:
    """The power goes soon after a write or a flush was refused: each time another one, in the profile `power`."""
    started_s = time.perf_counter()
    choose = random.Random(seed)
    kinds: Counter[Kind] = Counter()
    failures: list[str] = []
    seen: set[int] = set()
    with Opener() as opener:
        while kinds.total() < count:
            states = min(STATES_A_FAILURE, count - kinds.total())
            life, call = choose.randrange(1 << 16), choose.choice(FAILING)
            fault = f"{call}:error=EIO:when={choose.choice(settled_calls(life, call))}"
            for state, judged in _lose_power_in("power", life, states, "power", opener, fault):
                seen.add(_fingerprint(state))
                kinds[judged.kind] += 1
                if judged.broken:
                    where = f"power lost after action {state.after} of life {life} with {fault} ({state.grain})"
                    failures.append(f"{where}: {judged.broken}")
    return Losses(kinds, failures, len(seen), time.perf_counter() - started_s)


def _lose_power_in(
    profile: Profile, life: int, count: int, held_to: Profile, opener: Opener, fault: str = ""
) -> Iterator[tuple[CrashState, Judged]]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        scratch = Path(name)
        recording = record(scratch / "recorded", profile, life, fault)
        model = remember(life)
        first = next((n for n, action in enumerate(recording.actions) if isinstance(action, Failed)), 0)
        last = min(first + SOON, len(recording.actions)) if first else None
        for number, state in enumerate(crash_states(recording, count, life, first, last)):
            folder = scratch / f"state-{number}"
            folder.mkdir()
            lay_out(state, folder)
            found = opener.find(folder / STORE, profile, whole=number % WHOLE_EVERY == 0)
            shutil.rmtree(folder)
            yield state, judge(held_to, found, known_at(recording, state), model)


def record(folder: Path, profile: Profile, seed: int, fault: str = "") -> Recording:
    """The life of a store on a disk. `fault` is what strace makes fail."""
    folder.mkdir()
    return traced.record(_command(folder, profile, seed), folder, ["-e", f"inject={fault}"] if fault else [])


def settled_calls(life: int, call: str) -> range:
    """The numbers of a life's calls of this name that are made by commits of its first session, the first one excepted."""
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        return traced.calls_between(_command(Path(name), "power", life), call, "about 2", "closed")


def _command(folder: Path, profile: Profile, seed: int) -> list[str]:
    program = [sys.executable, "-P", "-m", "tests.harness.workload"]
    return [*program, str(folder / STORE), profile, str(seed), str(COMMITS)]


def record_life(profile: Profile, seed: int) -> Recording:
    """The same in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        return record(Path(name, "recorded"), profile, seed)


def remember(seed: int) -> Model:
    """The same life in memory."""
    store = MemoryStore()
    views: list[View] = []

    def said(what: Said) -> None:
        if what.what == "done" or not views:
            views.append(view_of(store))

    workload.play(store, seed, COMMITS, said)
    ever: dict[str, list[Value]] = {}
    for view in views:
        for run_id, value in view.items():
            if value not in ever.setdefault(run_id, []):
                ever[run_id].append(value)
    return Model(views, ever)


def known_at(recording: Recording, state: CrashState) -> Known:
    """What had been said by then."""
    last = {"opened": 0, "about": 0, "done": 0, "closed": 0}
    last.update(marks_until(recording.actions[: state.after]))
    return Known(last["opened"], last["done"], last["about"], last["closed"])


def judge(profile: Profile, found: Found, known: Known, model: Model) -> Judged:
    """Was what the daemon found what the profile promises?"""
    kind, about = classify(found, known, model)
    if kind not in MAY_BE[profile]:
        return Judged(kind, f"{kind}: {about}")
    if kind in {"whole", "last commit lost"} and found.boot <= known.boot:
        return Judged(kind, f"boot epoch {found.boot} came again")
    return Judged(kind)


def classify(found: Found, known: Known, model: Model) -> tuple[Kind, str]:
    """What became of the state, and the particulars."""
    if found.died:
        return "died", f"the daemon: {found.died}"
    if found.refused or found.unreadable:
        return "refused", found.refused or found.unreadable
    if found.unwritable:
        return "unwritable", found.unwritable
    view = found.view
    if any(value == DAMAGED for value in view.values()):
        odd = _unknown(view, model)
        return ("wrong", f"records that never were: {odd}") if odd else ("caught", "damaged runs, and named as such")
    fits = [number for number, known_view in enumerate(model.views) if known_view == view]
    if any(known.done <= number <= known.about for number in fits):
        return "whole", ""
    if known.done - 1 in fits and known.closed < known.done:
        return "last commit lost", f"commit {known.done}"
    if fits:
        return "more lost", f"what is there is commit {max(fits)} of {known.done}"
    odd = _unknown(view, model)
    return (
        ("wrong", f"records that never were: {odd}")
        if odd
        else ("mixed", f"records of different commits by {known.done}")
    )


def _unknown(view: View, model: Model) -> list[str]:
    """Records that never were so. That a run's records are of different commits is no lie of any one of them."""
    found: list[str] = []
    for run_id, value in view.items():
        if value == DAMAGED or run_id in {LIVE_RUNS, ENDED_RUNS}:
            continue
        known = [_records(before) for before in model.ever.get(run_id, [])]
        found += [f"{run_id}: {part}" for part in _records(value) if not any(part in records for records in known)]
    return found


def _records(value: Value) -> list[Value]:
    """What of a run's value is a stored row of its own: claim, record, snapshot, outcome, each child's link, each message."""
    claim, record, snapshot, outcome, children, messages = value
    parts = [("claim", claim), ("record", record), ("snapshot", snapshot), ("outcome", outcome)]
    return [*parts, *(("child", child) for child in children), *(("message", message) for message in messages)]


def _fingerprint(state: CrashState) -> int:
    return hash(tuple((path, data if data is None else zlib.crc32(data)) for path, data in state.files.items()))


def fast_folder() -> str | None:
    """In memory where there is such a place: what is tried is what a disk may hold, not how long it takes to."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
