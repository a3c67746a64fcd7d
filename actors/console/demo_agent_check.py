"""What `executus demo agent` has to prove: the ledger's invariants, and the answer against a plain loop's."""

from __future__ import annotations

import msgspec

from executus.actors.agents.transcript import problems
from executus.actors.console.demo_agent_ledger import MOMENTS, Kill, Ledger, StoredRun
from executus.actors.console.demo_agent_story import Line, story


class AgentSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints.

    Kept is what interrupted runs had back from the store, over all kills: their messages, and calls with their results.
    `replies_lost` were given by the model before a kill, and were not stored; `calls_made_again` had a result stored.
    `unsafe_calls` counts how often the tool that must not run twice was begun, `reports` what it has left behind.
    `problems` is empty exactly when everything holds.
    """

    ok: bool
    kills: int
    killed: list[str]
    runs: int
    messages: int
    messages_kept: int
    replies_lost: int
    requests_repeated: int
    calls_kept: int
    calls_made_again: int
    calls_repeated: int
    children_interrupted: int
    children_found: int
    unsafe_calls: int
    reports: int
    answer_differs: bool
    recovery_s: float
    recovery_each_s: list[float]
    problems: list[str]
    answer: str
    conversation: list[Line]
    files: int = 0
    seconds: float = 0.0
    folder: str = ""
    store: str | None = None


def check(ledger: Ledger, runs: dict[str, StoredRun], answer: str | None, report: str, expected: str) -> AgentSummary:
    """Compare and count. `runs` is what the store holds after the end, `report` the file that the agents wrote."""
    reports = report.count(expected)
    broken = _broken_invariants(ledger, runs)
    if answer != expected:
        broken.append(f"the answer differs from the plain loop's: {answer!r} instead of {expected!r}")
    if ledger.names["write_report"] != 1:
        broken.append(f"the unsafe tool was called {ledger.names['write_report']} times")
    if report != expected + "\n":
        broken.append(f"the report holds what was asked for {reports} times, in {len(report)} characters")
    return AgentSummary(
        ok=not broken,
        kills=len(ledger.kills),
        killed=[str(kill.inside) for kill in ledger.kills],
        runs=len(runs),
        messages=sum(len(run.transcript) for run in runs.values()),
        messages_kept=ledger.messages_kept,
        replies_lost=sum(kill.unstored for kill in ledger.kills),
        requests_repeated=ledger.requests_repeated,
        calls_kept=ledger.calls_kept,
        calls_made_again=len(ledger.made_again),
        calls_repeated=ledger.calls_repeated,
        children_interrupted=ledger.children_interrupted,
        children_found=ledger.children_found,
        unsafe_calls=ledger.names["write_report"],
        reports=reports,
        answer_differs=answer != expected,
        recovery_s=round(max((kill.back_after_s or 0.0 for kill in ledger.kills), default=0.0), 3),
        recovery_each_s=[round(kill.back_after_s or 0.0, 3) for kill in ledger.kills],
        problems=broken,
        answer=answer or "",
        conversation=story(ledger, runs),
    )


def _broken_invariants(ledger: Ledger, runs: dict[str, StoredRun]) -> list[str]:
    broken: list[str] = []
    if len(ledger.kills) < len(MOMENTS):
        broken.append(f"only {len(ledger.kills)} of {len(MOMENTS)} kills fell into the work")
    for number, kill in enumerate(ledger.kills, 1):
        broken += [f"kill {number}: {problem}" for problem in _lost(kill, runs)]
    broken += [f"a call was made again although its result was stored: {one}" for one in ledger.made_again]
    for run_id, run in runs.items():
        broken += [f"run {run_id}: its transcript is illegal: {problem}" for problem in problems(run.transcript)]
        if run.status != "completed":
            broken.append(f"run {run_id} is {run.status}")
    delegated = sum(
        call.name.startswith("agent__") for run in runs.values() for message in run.transcript for call in message.calls
    )
    if len(runs) != delegated + 1:
        broken.append(f"{delegated} calls of agents made {len(runs) - 1} runs")
    return broken


def _lost(kill: Kill, runs: dict[str, StoredRun]) -> list[str]:
    """What was stored at a kill is how each transcript begins at the end, and everybody was back for it."""
    lost = [f"{run_id} did not come back" for run_id in kill.interrupted if run_id not in kill.restored]
    if kill.unstored:
        lost.append(f"{kill.unstored} answers of the model were not in the store")
    if not kill.interrupted:
        lost.append("it interrupted no run")
    for run_id, stored in kill.stored.items():
        final = runs[run_id].transcript if run_id in runs else ()
        if final[: len(stored.transcript)] != stored.transcript:
            lost.append(f"{run_id} did not go on from the {len(stored.transcript)} messages that were stored")
    return lost
