"""What the demo has to prove: the ledger's invariants, and every result against a plain loop over the same files."""

from __future__ import annotations

from pathlib import Path

import msgspec

from executus.actors.console.demo_ledger import Ledger
from executus.actors.console.demo_run import FileFacts, Share, read_facts
from executus.actors.console.screen import Screen
from executus.actors.outcomes import Completed, decode_outcome
from executus.stores import LmdbReader, StoreError

Facts = tuple[FileFacts, ...]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints.

    `recovery_s` is the slowest of `recovery_each_s`: from the start of the next daemon until the last interrupted run
    has its state back. Steps count when they are begun. `problems` is empty exactly when everything holds.
    """

    ok: bool
    runs: int
    kills: int
    interrupted: list[int]
    steps: int
    steps_kept: int
    steps_repeated: int
    snapshots_lost: int
    results_wrong: int
    recovery_s: float
    recovery_each_s: list[float]
    problems: list[str]
    files: int = 0
    seconds: float = 0.0
    folder: str = ""
    store: str | None = None


def check(shares: dict[str, Share], ledger: Ledger, store: Path, *, kills: int, screen: Screen) -> Summary:
    """Compare and count."""
    screen.say(
        f"all {len(ledger.ended)} runs have ended; now a plain loop over the same files, to compare every result"
    )
    wrong = _wrong_results(shares, store, screen)
    problems = [*wrong, *_broken_invariants(shares, ledger, kills)]
    return Summary(
        ok=not problems,
        runs=len(shares),
        kills=len(ledger.kills),
        interrupted=[len(kill.newest) for kill in ledger.kills],
        steps=sum(ledger.steps.values()),
        steps_kept=ledger.steps_kept,
        steps_repeated=ledger.steps_repeated,
        snapshots_lost=ledger.snapshots_lost,
        results_wrong=len(wrong),
        recovery_s=round(ledger.recovery_s, 3),
        recovery_each_s=[round(kill.back_after_s or 0.0, 3) for kill in ledger.kills],
        problems=problems,
    )


def _wrong_results(shares: dict[str, Share], path: Path, screen: Screen) -> list[str]:
    """What is in the store, after the daemon's end, against what a loop without runs and kills finds out."""
    wrong: list[str] = []
    plainly: dict[str, FileFacts] = {}
    store = LmdbReader(path)
    store.open()
    try:
        for number, (run_id, share) in enumerate(shares.items()):
            expected = tuple(_read_once(plainly, share.folder, file) for file in share.files)
            screen.progress(number / len(shares), "comparing")
            found = _result(store, run_id)
            if found != expected:
                what = (
                    found
                    if isinstance(found, str)
                    else f"{sum(a != b for a, b in zip(found, expected, strict=False))} of its files differ"
                )
                wrong.append(f"run {run_id}: {what}")
    finally:
        store.close()
    return wrong


def _read_once(plainly: dict[str, FileFacts], folder: str, file: str) -> FileFacts:
    facts = plainly.get(file)
    if facts is None:
        facts = plainly[file] = read_facts(folder, file)
    return facts


def _result(store: LmdbReader, run_id: str) -> Facts | str:
    try:
        data = store.load_outcome(run_id)
        outcome = None if data is None else decode_outcome(data, Facts)
    except (StoreError, msgspec.MsgspecError) as error:
        return str(error)
    if not isinstance(outcome, Completed):
        return f"ended with {outcome}"
    result: Facts = outcome.result
    return result


def _broken_invariants(shares: dict[str, Share], ledger: Ledger, kills: int) -> list[str]:
    problems = [
        f"kill {number}: {run_id} came back from {kill.resumed_from.get(run_id, 'nothing')}, "
        f"acknowledged was {kill.newest[run_id]}"
        for number, kill in enumerate(ledger.kills, 1)
        for run_id in kill.lost
    ]
    problems += [f"run {run_id} went on after its end had been acknowledged" for run_id in sorted(ledger.revived)]
    if len(ledger.kills) < kills:
        problems.append(f"only {len(ledger.kills)} of {kills} kills fell into the work")
    problems += [f"kill {number} interrupted no run" for number, kill in enumerate(ledger.kills, 1) if not kill.newest]
    unfinished = [
        run_id for run_id in shares if run_id not in ledger.ended or ledger.ended[run_id].status != "completed"
    ]
    if unfinished:
        problems.append(f"{len(unfinished)} runs did not complete, {unfinished[0]} among them")
    return problems
