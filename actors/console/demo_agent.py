"""`executus demo agent`: an agent and those it calls are killed with SIGKILL in mid-sentence, and finish anyway."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import msgspec

from executus.actors.console import demo_agent_daemon, demo_files
from executus.actors.console.demo_agent_check import AgentSummary, check
from executus.actors.console.demo_agent_daemon import ROOT, Job
from executus.actors.console.demo_agent_ledger import MOMENTS, Kill, Ledger, Moment, Report
from executus.actors.console.demo_agent_library import Finding, Library, report_of
from executus.actors.console.demo_agent_store import answer_of, stored_runs
from executus.actors.console.demo_agent_story import tell
from executus.actors.console.demo_process import DaemonProcess
from executus.actors.console.failures import CommandFailed, ExitCode
from executus.actors.console.screen import Screen

REQUESTS = 11
"""So many the work takes, of all agents: for the progress bar."""


def demo_agent(folder: Path | None, text: str, *, keep: bool, screen: Screen) -> AgentSummary:
    """Run it in a temporary folder, which goes unless `keep`. Raises CommandFailed when it cannot even be tried."""
    began_s = time.monotonic()
    files = demo_files.chosen(folder)
    library = Library(files.folder, files.files)
    screen.say(
        f"a lead, a librarian and an editor look for {text!r} in {'the first ' if files.cut else ''}{len(files.files)} "
        f"files ({files.size_bytes / 1e6:.1f} MB) of {files.folder}; each step is saved"
    )
    finding = _found(library, text)
    work = Path(tempfile.mkdtemp(prefix="executus-demo-"))
    try:
        job = Job(str(work / "runs.store"), str(work / "report.txt"), library, text)
        ledger = Ledger(ROOT)
        Demo(job, ledger, work, screen).run()
        screen.say("it has ended; this is what the store holds of it:")
        report = Path(job.report)
        summary = check(
            ledger,
            stored_runs(Path(job.store)),
            answer_of(Path(job.store), ROOT),
            report.read_text(encoding="utf-8") if report.exists() else "",
            report_of(text, len(library.files), finding, right=len(finding.claims)),
        )
    finally:
        screen.close()
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
    return msgspec.structs.replace(
        summary,
        files=len(files.files),
        seconds=round(time.monotonic() - began_s, 3),
        folder=files.folder,
        store=job.store if keep else None,
    )


def print_agents(summary: AgentSummary, screen: Screen) -> None:
    """For people: the conversation, and what has survived."""
    tell(summary.conversation, screen)
    screen.table(
        (),
        [
            ("kills (SIGKILL)", str(summary.kills)),
            ("runs", f"{summary.runs}: the lead's, and one for each agent it called"),
            ("messages kept", f"{summary.messages_kept}, over all kills"),
            ("replies lost", str(summary.replies_lost)),
            ("requests asked again", f"{summary.requests_repeated}, those that a kill cut off"),
            ("calls kept", f"{summary.calls_kept} with their results, {summary.calls_made_again} of them made again"),
            ("calls run again", f"{summary.calls_repeated}, cut off and pure"),
            ("children found again", f"{summary.children_found} of {summary.children_interrupted}"),
            ("unsafe calls", f"{summary.unsafe_calls}; {summary.reports} report written"),
            ("time to recover", f"{summary.recovery_s:.2f} s (the slowest)"),
            ("answers that differ", f"{int(summary.answer_differs)} of 1, from a plain loop's"),
            ("time altogether", f"{summary.seconds:.1f} s"),
        ],
    )


def _found(library: Library, text: str) -> Finding:
    """What a loop without agents, runs and kills comes to."""
    finding = library.finding(text)
    if not finding.claims:
        raise CommandFailed(
            ExitCode.NOT_FOUND,
            f"no file of {library.folder!r} that the demo reads contains {text!r}. Name another text: --text TEXT",
        )
    return finding


class Demo:
    """Lives of the daemon, one after the other, until the work is done."""

    def __init__(self, job: Job, ledger: Ledger, work: Path, screen: Screen) -> None:
        self._job = job
        self._ledger = ledger
        self._work = work
        self._screen = screen

    def run(self) -> None:
        """Start, kill at each of the moments, start again, and let the last life finish."""
        for moment in MOMENTS:
            if not self._live(moment):
                return  # it was through before: the check says so
        self._live(None)

    def _live(self, moment: Moment | None) -> bool:
        """One life of the daemon, killed at this moment. False when it ended before."""
        self._ledger.started(time.monotonic())
        job = msgspec.structs.replace(self._job, hold=moment)
        daemon = DaemonProcess[Report](demo_agent_daemon, job, Report, self._work / "daemon.log")
        try:
            if not self._ledger.kills:
                self._screen.say(f"daemon started: pid {daemon.pid}")
            told = not self._ledger.kills
            for reports in daemon.reports():
                self._take(reports)
                if not told and self._ledger.all_back:
                    told = True
                    self._screen.say(_back(self._ledger.kills[-1], daemon.pid))
                if moment is not None and self._ledger.held is not None and self._ledger.all_back:
                    self._kill(daemon, moment)
                    return True
            daemon.wait()
            return moment is None
        finally:
            daemon.close()

    def _take(self, reports: list[Report]) -> None:
        now_s = time.monotonic()
        for report in reports:
            self._ledger.take(report, now_s)
        self._screen.progress(min(1.0, len(self._ledger.requests) / REQUESTS), "agents at work")

    def _kill(self, daemon: DaemonProcess[Report], moment: Moment) -> None:
        self._take(daemon.kill())
        kill = self._ledger.killed(daemon.pid, moment, stored_runs(Path(self._job.store)))
        self._screen.say(f"killed pid {kill.pid} with SIGKILL, {kill.inside}")


def _back(kill: Kill, pid: int) -> str:
    who = " and ".join(kill.stored[run_id].agent for run_id in kill.interrupted)
    return f"started again as pid {pid}, back after {kill.back_after_s:.2f} s: {who}, with {kill.kept} messages"
