"""The daemon of the demo: started, killed and started again. Its job comes on stdin, its reports go to stdout.

It does what any daemon does that embeds a runtime: open the store, start its runs with `if_exists="return"`, wait.
"""

from __future__ import annotations

import functools
import sys

import msgspec

from executus.actors.console.demo_ledger import Ended, Restored, Saved
from executus.actors.console.demo_pipe import end_with_parent, report
from executus.actors.console.demo_run import ReadFiles, Share
from executus.actors.events import Event, RunRestored, SnapshotSaved
from executus.actors.incarnation import Ending
from executus.actors.outcomes import Completed
from executus.actors.run import Factory
from executus.actors.runtime import Runtime


class Job(msgspec.Struct, frozen=True):
    """Where the store is, and what is to be read, by run id."""

    store: str
    shares: dict[str, Share]


def main() -> int:
    """Read the job, do it, end."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    end_with_parent()
    runtime = Runtime(job.store, runs=[Factory(ReadFiles, report)], logger=False)
    runtime.events.subscribe(report_event)
    with runtime:
        for handle in runtime.start_many(ReadFiles, job.shares, if_exists="return"):
            handle.monitor(functools.partial(report_end, handle.run_id))
        runtime.join()
    return 0


def report_event(event: Event) -> None:
    """Pass on what the parent keeps count of."""
    match event:
        case SnapshotSaved(run_id=run_id, seq=seq):
            report(Saved(run_id, seq))
        case RunRestored(run_id=run_id, resumed_from_seq=seq):
            report(Restored(run_id, seq))
        case _:
            pass


def report_end(run_id: str, ending: Ending) -> None:
    """A run has ended now, or had before this daemon was started."""
    durable = isinstance(ending.outcome, Completed) and ending.outcome.durable
    report(Ended(run_id, ending.status.value, durable))


if __name__ == "__main__":
    sys.exit(main())
