"""What the agents' daemon reports, what its store holds at each kill, and what both come to. Pure: times come in."""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from executus.actors.agents import Message, ToolResult
from executus.actors.console.demo_ledger import Ended, Restored

# --- what the daemon reports ------------------------------------------------------------------------------------------


class Asked(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A request to the model was begun, number `step` of its run."""

    run_id: str
    agent: str
    step: int


class Called(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A call of a tool was begun."""

    run_id: str
    agent: str
    call_id: str
    name: str


class Held(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The moment has come: what this run has begun last stays under way."""

    run_id: str


Report = Asked | Called | Held | Restored | Ended


# --- where the kills fall ---------------------------------------------------------------------------------------------


class Moment(msgspec.Struct, frozen=True):
    """Of this agent's run: `asks N`, inside request N to its model; `begins TOOL` or `has done TOOL`, inside a call."""

    agent: str
    what: str

    def __str__(self) -> str:
        verb, _, of = self.what.rpartition(" ")
        where = {
            "asks": f"inside request {of} to its model",
            "begins": f"inside its call of {of}",
            "has done": f"inside its call of {of}, which had done its work",
        }
        return f"{self.agent}: {where[verb]}"


MOMENTS: Final = (
    Moment("lead", "asks 1"),
    Moment("librarian", "begins grep"),
    Moment("editor", "asks 1"),
    Moment("lead", "has done write_report"),
)


# --- what the parent makes of it --------------------------------------------------------------------------------------


class StoredRun(msgspec.Struct, frozen=True):
    """A run as the store holds it."""

    agent: str
    live: bool
    status: str
    transcript: tuple[Message, ...]

    @property
    def replies(self) -> int:
        """So many requests have their answer."""
        return sum(message.role == "assistant" for message in self.transcript)

    @property
    def answered(self) -> frozenset[str]:
        """The ids of calls that have a result."""
        return frozenset(
            part.call_id for message in self.transcript for part in message.parts if isinstance(part, ToolResult)
        )


class Kill(msgspec.Struct, kw_only=True):
    """One SIGKILL and what came of it. `stored` is what the store held right after it, by run id."""

    pid: int
    inside: Moment
    root: str
    stored: dict[str, StoredRun]
    unstored: int
    """Answers of the model's that had been given before and that the store does not have."""
    restored: set[str] = set()
    back_after_s: float | None = None

    @property
    def interrupted(self) -> list[str]:
        """The runs that were in the middle of their work."""
        return [run_id for run_id, run in self.stored.items() if run.live]

    @property
    def children(self) -> list[str]:
        """Those among them that another one waits for."""
        return [run_id for run_id in self.interrupted if run_id != self.root]

    @property
    def kept(self) -> int:
        """Messages that nobody had to write again."""
        return sum(len(self.stored[run_id].transcript) for run_id in self.interrupted)


class Ledger:
    """Counts over all lives of the daemon."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.kills: list[Kill] = []
        self.ended: Ended | None = None
        self.held: str | None = None
        self.requests: Counter[tuple[str, int]] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.names: Counter[str] = Counter()
        self.made_again: list[str] = []
        """Calls that were begun although their result was stored: there must be none."""
        self._started_at_s = 0.0

    def started(self, now_s: float) -> None:
        """A daemon was started."""
        self._started_at_s = now_s
        self.held = None

    def killed(self, pid: int, inside: Moment, stored: dict[str, StoredRun]) -> Kill:
        """The daemon was killed, and everything it had reported is in the books."""
        begun = Counter(run_id for run_id, _ in self.requests)
        if inside.what.startswith("asks") and self.held is not None:
            begun[self.held] -= 1  # that one has no answer yet
        unstored = sum(
            max(0, count - (stored[run_id].replies if run_id in stored else 0)) for run_id, count in begun.items()
        )
        kill = Kill(pid=pid, inside=inside, root=self.root, stored=stored, unstored=unstored)
        self.kills.append(kill)
        return kill

    def take(self, report: Report, now_s: float) -> None:
        """Book a report."""
        match report:
            case Asked(run_id, _, step):
                self.requests[run_id, step] += 1
            case Called(run_id, _, call_id, name):
                self.calls[run_id, call_id] += 1
                self.names[name] += 1
                if any(call_id in kill.stored[run_id].answered for kill in self.kills if run_id in kill.stored):
                    self.made_again.append(f"{run_id}: {name} ({call_id})")
            case Held(run_id):
                self.held = run_id
            case Restored(run_id):
                self._back(run_id, now_s)
            case Ended():
                self.ended = report

    def _back(self, run_id: str, now_s: float) -> None:
        if not self.kills:
            return
        kill = self.kills[-1]
        kill.restored.add(run_id)
        if kill.back_after_s is None and kill.restored >= set(kill.interrupted):
            kill.back_after_s = now_s - self._started_at_s

    # --- what it comes to ---

    @property
    def all_back(self) -> bool:
        """Whether every run that the last kill interrupted has its state back."""
        return not self.kills or self.kills[-1].back_after_s is not None

    @property
    def messages_kept(self) -> int:
        """Over all kills: messages of interrupted runs that came back from the store."""
        return sum(kill.kept for kill in self.kills)

    @property
    def calls_kept(self) -> int:
        """Over all kills: calls of interrupted runs whose results came back from the store."""
        return sum(len(kill.stored[run_id].answered) for kill in self.kills for run_id in kill.interrupted)

    @property
    def children_found(self) -> int:
        """Over all kills: children that went on as the runs that they were."""
        return sum(run_id in kill.restored for kill in self.kills for run_id in kill.children)

    @property
    def children_interrupted(self) -> int:
        """Over all kills: children that were at work."""
        return sum(len(kill.children) for kill in self.kills)

    @property
    def requests_repeated(self) -> int:
        """Requests to the model that were begun again."""
        return sum(count - 1 for count in self.requests.values())

    @property
    def calls_repeated(self) -> int:
        """Calls of tools that were begun again."""
        return sum(count - 1 for count in self.calls.values())
