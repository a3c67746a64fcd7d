"""The demo's run: reads its files as text, one a step. `read_facts` is what the check's plain loop calls too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from executus.actors.console.demo_ledger import Begun, Report, StepBegun
from executus.actors.policies import SavePolicy
from executus.actors.run import Done, Run

EVERY_S = 0.2


class Share(msgspec.Struct, frozen=True):
    """What one run reads, and how long a step waits after it, on average, as if it had asked a service."""

    folder: str
    files: tuple[str, ...]
    pause_s: float


class FileFacts(msgspec.Struct, frozen=True, array_like=True):
    """What is to be found out about a file."""

    lines: int
    words: int
    digest: str


class Reading(msgspec.Struct, frozen=True):
    """How far a run is."""

    share: Share
    facts: tuple[FileFacts, ...] = ()


def read_facts(folder: str, file: str) -> FileFacts:
    """Read one file as text and count. Raises OSError."""
    text = Path(folder, file).read_text(encoding="utf-8", errors="replace")
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return FileFacts(text.count("\n"), len(text.split()), digest)


class ReadFiles(Run[Share, Reading, tuple[FileFacts, ...]]):
    """Lines, words and a digest of every file of a share. Reports each callback, so that nothing is repeated unseen."""

    run_type = "demo.ReadFiles"
    save_policy = SavePolicy(every_s=EVERY_S)

    def __init__(self, report: Callable[[Report], None]) -> None:
        self._report = report

    def begin(self, share: Share) -> Reading:
        """Nothing read yet."""
        self._report(Begun(self.context.run_id))
        return Reading(share)

    def step(self, state: Reading) -> Reading | Done[tuple[FileFacts, ...]]:
        """Read one more file."""
        share, at = state.share, len(state.facts)
        if at == len(share.files):
            return Done(state.facts)
        self._report(StepBegun(self.context.run_id, at))
        facts = read_facts(share.folder, share.files[at])
        if share.pause_s:
            # From half of it to one and a half: services do not answer in step.
            self.context.sleep(share.pause_s * (0.5 + int(facts.digest[:2], 16) / 255))
        return Reading(share, (*state.facts, facts))
