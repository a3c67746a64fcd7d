"""What can be wrong with a store: for each, how bad it is, what it means, and what to do about it."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

import msgspec


class Severity(enum.StrEnum):
    """How bad a problem is."""

    ERROR = "error"
    """Something cannot be read, or is about to be lost."""
    WARNING = "warning"
    """Nothing is lost, and a person has to do something."""
    NOTE = "note"
    """Worth knowing; nothing has to be done."""


class Kind(enum.StrEnum):
    """What is wrong. Stable: scripts depend on these words."""

    STORE_CORRUPT = "store-corrupt"
    STORE_TOO_NEW = "store-too-new"
    STORE_UNAVAILABLE = "store-unavailable"
    CLAIM_UNREADABLE = "claim-unreadable"
    RECORD_UNREADABLE = "record-unreadable"
    SNAPSHOT_LOST = "snapshot-lost"
    SNAPSHOT_FELL_BACK = "snapshot-fell-back"
    SNAPSHOT_OLDER = "snapshot-older-unreadable"
    OUTCOME_UNREADABLE = "outcome-unreadable"
    INDEX_WRONG = "index-wrong"
    DUE_MISSING = "due-missing"
    DUE_STALE = "due-stale"
    LINK_UNREADABLE = "link-unreadable"
    MESSAGE_UNREADABLE = "message-unreadable"
    FLIGHT_UNREADABLE = "flight-unreadable"
    NUMBER_UNREADABLE = "number-unreadable"
    QUARANTINED = "quarantined"
    PARKED = "parked"
    STRIKES = "strikes"
    MAP_FULL = "map-full"
    MAP_FILLING = "map-filling"
    DISK_FULL = "disk-full"
    DISK_LOW = "disk-low"
    NETWORK_DISK = "network-disk"
    LOCK_NOT_HELD = "lock-not-held"
    LOCK_FILE_GONE = "lock-file-gone"
    OPEN_TO_OTHERS = "open-to-others"
    SEVERAL_OWNERS = "several-file-owners"
    LEFT_OVER = "left-over"
    NOT_CLOSED = "not-closed"


class Meaning(NamedTuple):
    """What a kind of problem means. `advice` is one sentence that says what to do."""

    severity: Severity
    what: str
    advice: str


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

MEANINGS: Final = {
    Kind.STORE_CORRUPT: Meaning(
        _E,
        "the file as a whole is damaged, or is no store",
        "Restore the folder from a backup, or move it away so that a runtime makes a new one, and look at the disk.",
    ),
    Kind.STORE_TOO_NEW: Meaning(
        _E, "it is written in a format that this code does not know", "Deploy the newer code that wrote it."
    ),
    Kind.STORE_UNAVAILABLE: Meaning(
        _E,
        "it cannot be read now",
        "Check that this is the folder given to the runtime, that this user may read it and that its disk works; then "
        "call this again.",
    ),
    Kind.CLAIM_UNREADABLE: Meaning(
        _E,
        "runs whose claims cannot be read: no boot resumes them, and their ids stay taken",
        "Restore the folder from a backup, or start them anew under other ids.",
    ),
    Kind.RECORD_UNREADABLE: Meaning(
        _E,
        "runs whose start records cannot be read: the next boot quarantines those that live",
        "Restore the folder from a backup, or start them anew under other ids with the inputs that you have.",
    ),
    Kind.SNAPSHOT_LOST: Meaning(
        _E,
        "runs of whose state no generation can be read: the next boot quarantines those that live",
        "Beside a daemon wait for their next save, which mends them; else restore the folder from a backup, or begin "
        "anew with runtime.resume(run_id, from_input=True).",
    ),
    Kind.SNAPSHOT_FELL_BACK: Meaning(
        _E,
        "runs whose newest snapshot cannot be read: they would go on from the one before",
        "Restore the folder from a backup if the steps between may not be repeated, else let them go on; and look at "
        "the machine's disk and memory, for bits were flipped.",
    ),
    Kind.SNAPSHOT_OLDER: Meaning(
        _W,
        "runs whose older snapshot cannot be read: nothing is lost, the newest can be read",
        "Look at the machine's disk and memory, for bits were flipped; the runs' next saves mend the rest.",
    ),
    Kind.OUTCOME_UNREADABLE: Meaning(
        _E,
        "runs that have ended and whose outcomes cannot be read",
        "Restore the folder from a backup, or start them anew with if_exists='replace'.",
    ),
    Kind.INDEX_WRONG: Meaning(
        _E,
        "runs on which their claims and the index of live runs disagree: a boot may pass over them",
        "Restore the folder from a backup, or start them anew with if_exists='replace'.",
    ),
    Kind.DUE_MISSING: Meaning(
        _W,
        "passivated runs that are not in the index of due runs: their time does not wake them",
        "Wake each once, with a query or any message: it is laid down again with its due times.",
    ),
    Kind.DUE_STALE: Meaning(
        _N,
        "rows in the index of due runs that are of no passivated run's due time",
        "Nothing; a daemon goes by the claim, and passes over them.",
    ),
    Kind.LINK_UNREADABLE: Meaning(
        _W,
        "children whose links to their parents cannot be read: their parents will not hear of their ends",
        "Restore the folder from a backup, or end the parents by hand once the children have ended.",
    ),
    Kind.MESSAGE_UNREADABLE: Meaning(
        _W,
        "runs with durable messages that cannot be read: they are quarantined when they come to them",
        "Restore the folder from a backup, or begin the runs anew with if_exists='replace', without their messages.",
    ),
    Kind.FLIGHT_UNREADABLE: Meaning(
        _N,
        "runs whose flight records cannot be read: nothing of the runs is lost, executus why knows less of them",
        "Look at the machine's disk and memory, for bits were flipped; the runs' next endings write new ones.",
    ),
    Kind.NUMBER_UNREADABLE: Meaning(
        _W,
        "copies of the store's own numbers that cannot be read: there are two of each, and one is enough",
        "Look at the machine's disk and memory, for bits were flipped, and take a backup while it can be read.",
    ),
    Kind.QUARANTINED: Meaning(
        _W,
        "runs that were set aside, whole, and stay so",
        "Mend what the reason names, then call runtime.resume(run_id), or where no state can be read "
        "runtime.resume(run_id, from_input=True).",
    ),
    Kind.PARKED: Meaning(
        _W,
        "runs that the last daemon's code could not take up",
        "Deploy code that has the type and schema that the reason names; every boot tries again.",
    ),
    Kind.STRIKES: Meaning(
        _N,
        "runs during which the process died: after three deaths without progress they are quarantined",
        "Nothing, unless they come to three: then look for what takes the process down.",
    ),
    Kind.MAP_FULL: Meaning(
        _E,
        "the store has nearly reached its map size: new runs are refused",
        "Open it with a larger map: Runtime(LmdbStore(path, map_size_bytes=...)).",
    ),
    Kind.MAP_FILLING: Meaning(
        _W,
        "the store comes near its map size, from 90 % of which new runs are refused",
        "Open it with a larger map at the next boot: Runtime(LmdbStore(path, map_size_bytes=...)).",
    ),
    Kind.DISK_FULL: Meaning(_E, "its disk is full: saves fail", "Make room on the disk; saving comes back by itself."),
    Kind.DISK_LOW: Meaning(_W, "its disk is nearly full", "Make room on the disk before saves fail."),
    Kind.NETWORK_DISK: Meaning(
        _W,
        "it lies on a network file system, where locks and memory maps do not hold",
        "Move the folder to a local disk while no daemon runs.",
    ),
    Kind.LOCK_NOT_HELD: Meaning(
        _E,
        "a daemon has it open and does not hold its lock: a second one could open it beside the first",
        "Stop that process and start it again, and remove nothing from the folder while it runs.",
    ),
    Kind.LOCK_FILE_GONE: Meaning(
        _E,
        "a daemon has it open, and LMDB's lock file is gone: its next commit makes a new one",
        "Let no other program read the folder until then, and remove nothing from it while a daemon runs.",
    ),
    Kind.OPEN_TO_OTHERS: Meaning(
        _W,
        "other users of this machine may get at states, inputs and results",
        "Close it with: chmod -R go= FOLDER.",
    ),
    Kind.SEVERAL_OWNERS: Meaning(
        _W,
        "its files belong to different users, as after a start as root: a daemon may be unable to open it",
        "Give all of it to the daemon's user with: chown -R USER FOLDER.",
    ),
    Kind.LEFT_OVER: Meaning(
        _N, "files left over from a process that was killed", "Nothing; the next boot removes or overwrites them."
    ),
    Kind.NOT_CLOSED: Meaning(
        _N,
        "its last daemon did not close it: it was killed, or the machine went down",
        "Start the daemon when you want its live runs to go on.",
    ),
}


class Finding(msgspec.Struct, frozen=True):
    """One run, file or folder with a problem, and why."""

    subject: str
    why: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that has one kind of problem: how many, the first of them, and what to do."""

    kind: Kind
    severity: Severity
    what: str
    advice: str
    count: int
    first: list[Finding]


class Findings:
    """Collects findings by kind, and keeps the first `limit` of each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[Kind, int] = {}
        self._first: dict[Kind, list[Finding]] = {}

    def add(self, kind: Kind, subject: str, why: str) -> None:
        """One more."""
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count <= self._limit:
            self._first.setdefault(kind, []).append(Finding(subject, why))

    def problems(self) -> list[Problem]:
        """What was found, the worst first."""
        order = list(Severity)
        found = [
            Problem(kind=kind, **MEANINGS[kind]._asdict(), count=self._counts[kind], first=self._first.get(kind, []))
            for kind in Kind
            if kind in self._counts
        ]
        return sorted(found, key=lambda problem: order.index(problem.severity))
