"""`executus demo`: a daemon full of runs is killed with SIGKILL, again and again, and finishes anyway."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec

from executus.actors.console import demo_daemon, demo_files
from executus.actors.console.demo_check import Summary, check
from executus.actors.console.demo_daemon import Job
from executus.actors.console.demo_ledger import Kill, Ledger, Report
from executus.actors.console.demo_process import DaemonProcess
from executus.actors.console.demo_run import EVERY_S, Share
from executus.actors.console.screen import Screen

WORK_S: Final = 4.0
"""What the work should take without a kill, so that it has a middle; pauses make up for what reading takes less."""
READING_BYTES_PER_S: Final = 20_000_000
"""About what one core reads, splits and digests; only the length of the pauses depends on it."""


class Plan(msgspec.Struct, frozen=True):
    """What is to be done."""

    selection: demo_files.Selection
    shares: dict[str, Share]
    kills: int

    @property
    def steps(self) -> int:
        """All steps of all runs."""
        return sum(len(share.files) for share in self.shares.values())


def demo(folder: Path | None, *, runs: int, kills: int, keep: bool, screen: Screen) -> Summary:
    """Run it in a temporary folder, which goes unless `keep`. Raises CommandFailed when it cannot even be tried."""
    began_s = time.monotonic()
    plan = _plan(folder, runs, kills)
    files = plan.selection
    screen.say(
        f"{runs} runs read {'the first ' if files.cut else ''}{len(files.files)} files "
        f"({files.size_bytes / 1e6:.1f} MB) of {files.folder}, a file a step, and save every {EVERY_S:g} s"
    )
    work = Path(tempfile.mkdtemp(prefix="executus-demo-"))
    try:
        ledger = Ledger({run_id: len(share.files) for run_id, share in plan.shares.items()})
        Demo(plan, ledger, work, screen).run()
        summary = check(plan.shares, ledger, work / "runs.store", kills=kills, screen=screen)
    finally:
        screen.close()
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
    return msgspec.structs.replace(
        summary,
        files=len(files.files),
        seconds=round(time.monotonic() - began_s, 3),
        folder=files.folder,
        store=str(work / "runs.store") if keep else None,
    )


def _plan(folder: Path | None, runs: int, kills: int) -> Plan:
    selection = demo_files.chosen(folder)
    dealt = demo_files.deal(selection.files, runs)
    spare_s = max(0.0, WORK_S - selection.size_bytes / READING_BYTES_PER_S)
    width = len(str(runs))
    shares = {
        f"read-{number:0{width}}": Share(selection.folder, files, round(spare_s / len(files), 4))
        for number, files in enumerate(dealt, 1)
    }
    return Plan(selection, shares, kills)


class Demo:
    """Lives of the daemon, one after the other, until the work is done. Kills are decided on facts, not on time."""

    def __init__(self, plan: Plan, ledger: Ledger, work: Path, screen: Screen) -> None:
        self._plan = plan
        self._ledger = ledger
        self._work = work
        self._screen = screen
        self._job = Job(str(work / "runs.store"), plan.shares)

    def run(self) -> None:
        """Start, kill, start again, and let the last life finish."""
        for number in range(1, self._plan.kills + 1):
            if not self._live(number / (self._plan.kills + 1)):
                return  # it was through before: the check says so
        self._live(None)

    def _live(self, kill_at: float | None) -> bool:
        """One life of the daemon, killed once `kill_at` of the work is acknowledged. False when it ended before."""
        self._ledger.started(time.monotonic())
        daemon = DaemonProcess[Report](demo_daemon, self._job, Report, self._work / "daemon.log")
        try:
            if not self._ledger.kills:
                self._screen.say(f"daemon started: pid {daemon.pid}")
            countdown: int | None = None
            told = not self._ledger.kills
            for reports in daemon.reports():
                begun_before = self._ledger.steps_begun
                self._take(reports)
                if not told and self._ledger.all_back:
                    told = True
                    self._screen.say(_back(self._ledger.kills[-1], daemon.pid))
                if kill_at is None or self._ledger.saved_share < kill_at or not self._ledger.all_back:
                    continue
                if countdown is None:
                    # Not at the acknowledgement itself: some steps later, anywhere between two commits.
                    countdown = random.randrange(len(self._plan.shares))
                countdown -= self._ledger.steps_begun - begun_before
                if countdown < 0:
                    self._kill(daemon)
                    return True
            daemon.wait()
            return kill_at is None
        finally:
            daemon.close()

    def _take(self, reports: list[Report]) -> None:
        now_s = time.monotonic()
        for report in reports:
            self._ledger.take(report, now_s)
        left = len(self._plan.shares) - len(self._ledger.ended)
        self._screen.progress(self._ledger.saved_share, f"{left} runs at work")

    def _kill(self, daemon: DaemonProcess[Report]) -> None:
        at_s = time.monotonic()
        self._take(daemon.kill())
        kill = self._ledger.killed(daemon.pid, at_s)
        self._screen.say(
            f"killed pid {kill.pid} with SIGKILL at {kill.share:.0%}: {len(kill.newest)} runs were in the middle of "
            f"their work, the oldest of their snapshots was {kill.oldest_snapshot_s:.2f} s old"
        )


def _back(kill: Kill, pid: int) -> str:
    return (
        f"started again as pid {pid}, back after {kill.back_after_s:.2f} s: "
        f"{sum(seq > 0 for seq in kill.resumed_from.values())} runs resumed from their snapshots, "
        f"{kill.kept} steps kept"
    )
