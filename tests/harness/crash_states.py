"""What a disk may hold when the power goes: everything that was flushed, and any part of what was not.

Assumed of the disk: a sector of 512 bytes is written whole or not at all, and what a flush said is there is there.
Nothing else is: writes that were not flushed land in any order, in part, or not at all; so do names until their folder
is flushed. LMDB's lock file is written through a memory map, which no trace shows: it may hold anything.
"""

from __future__ import annotations

import os
import random
from bisect import insort
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from executus.stores.owner_lock import FACTS_NAME, read_owner
from executus.stores.store_files import DATA_NAME
from tests.harness.traced import (
    Action,
    Failed,
    Flush,
    FlushFolder,
    Link,
    Mark,
    Recording,
    Truncate,
    Unlink,
    Write,
)

SECTOR: Final = 512
PAGE: Final = 4096
Grain = Literal["operations", "pages", "sectors"]
GRAINS: Final[tuple[Grain, ...]] = ("operations", "pages", "sectors")
UNTRACED: Final = "lock.mdb"
_UNTRACED_SIZES: Final = (0, 8192, 32896)

Names = dict[tuple[int, str], int]


class CrashState(NamedTuple):
    """A disk after the power went: files by their path, None for a folder. `after` actions were over by then."""

    after: int
    grain: Grain
    files: dict[str, bytes | None]


class _Pending:
    """A change that is in the page cache. `safe`: it is on the disk; `lost`: no later flush will bring it there."""

    def __init__(self, action: Action) -> None:
        self.action = action
        self.safe = False
        self.lost = False


class Disk:
    """What of a recording is on the disk for certain, and what may be, action by action."""

    def __init__(self, folders: frozenset[int]) -> None:
        self._folders = folders
        self._data: dict[int, bytearray] = {}
        self._names: Names = {}
        self._writes: dict[int, list[_Pending]] = {}
        self._links: list[_Pending] = []
        self._sizes: dict[int, int] = {}

    def begin(self, action: Action) -> None:
        """From now on the action's effects may be there."""
        match action:
            case Write(file, at, data, _):
                self._writes.setdefault(file, []).append(_Pending(action))
                self._sizes[file] = max(self._sizes.get(file, 0), at + len(data))
            case Truncate(file, size):
                self._writes.setdefault(file, []).append(_Pending(action))
                self._sizes[file] = size
            case Link() | Unlink():
                self._links.append(_Pending(action))
            case _:
                pass

    def end(self, action: Action) -> None:
        """It returned: what it flushed is there for certain."""
        match action:
            case Write(file, at, data, synced) if synced:
                # The disk keeps the order of two writes to one sector: those before it are there as well.
                for pending in self._writes[file]:
                    if not isinstance(pending.action, Write) or _touch(pending.action, at, len(data)):
                        pending.safe = not pending.lost
                self._fold(file)
            case Flush(file):
                for pending in self._writes.get(file, []):
                    pending.safe = not pending.lost
                self._fold(file)
            case Failed(file):
                # The kernel takes the pages for clean after that: https://lwn.net/Articles/752063/
                for pending in self._writes.get(file, []):
                    pending.lost = not pending.safe
            case FlushFolder(folder):
                for pending in self._links:
                    link = pending.action
                    assert isinstance(link, (Link, Unlink))
                    pending.safe |= folder == link.folder
                    pending.safe |= isinstance(link, Link) and link.old is not None and folder == link.old[0]
                self._fold_links()
            case _:
                pass

    def crash(self, choose: random.Random, grain: Grain) -> dict[str, bytes | None]:
        """The power goes now: one of the many states that the disk may be in."""
        taste = _Taste.of(choose)
        names = dict(self._names)
        in_order = choose.random() < 0.5  # As a journal would keep them; POSIX promises nothing of the kind.
        kept = choose.randint(0, len(self._links))
        for place, pending in enumerate(self._links):
            if pending.safe or (place < kept if in_order else taste.takes(choose)):
                _relink(names, pending.action)
        return dict(self._materialised(0, "", names, choose, grain, taste))

    def _materialised(
        self, folder: int, path: str, names: Names, choose: random.Random, grain: Grain, taste: _Taste
    ) -> Iterator[tuple[str, bytes | None]]:
        for (parent, name), file in names.items():
            if parent != folder:
                continue
            if file in self._folders:
                yield f"{path}{name}", None
                yield from self._materialised(file, f"{path}{name}/", names, choose, grain, taste)
            elif name == UNTRACED:
                yield f"{path}{name}", choose.randbytes(choose.choice(_UNTRACED_SIZES))
            else:
                yield f"{path}{name}", self._content(file, choose, grain, taste)

    def _content(self, file: int, choose: random.Random, grain: Grain, taste: _Taste) -> bytes:
        data = bytearray(self._data.get(file, b""))
        pieces = [(pending.safe, piece) for pending in self._writes.get(file, []) for piece in _pieces(pending, grain)]
        odd = taste.odd_ones(choose, len(pieces))
        for place, (safe, piece) in enumerate(pieces):
            if safe or (taste.takes(choose) != (place in odd)):
                _apply(data, piece)
        if choose.random() < 0.25:  # The length may be there before the bytes are.
            data.extend(bytes(max(0, self._sizes.get(file, 0) - len(data))))
        return bytes(data)

    def _fold(self, file: int) -> None:
        writes = self._writes[file]
        data = self._data.setdefault(file, bytearray())
        while writes and writes[0].safe:
            action = writes.pop(0).action
            assert isinstance(action, (Write, Truncate))
            _apply(data, action)

    def _fold_links(self) -> None:
        while self._links and self._links[0].safe:
            _relink(self._names, self._links.pop(0).action)


class _Taste(NamedTuple):
    """How much of what is not certain is there: a share of it, but for a few that are otherwise."""

    share: float
    odd: int

    @classmethod
    def of(cls, choose: random.Random) -> _Taste:
        return cls(choose.choice((0.0, 0.0, 0.1, 0.5, 0.5, 0.9, 1.0, 1.0)), choose.choice((0, 0, 1, 1, 2, 3)))

    def takes(self, choose: random.Random) -> bool:
        return choose.random() < self.share

    def odd_ones(self, choose: random.Random, among: int) -> frozenset[int]:
        return frozenset(choose.randrange(among) for _ in range(self.odd)) if among else frozenset()


def crash_states(
    recording: Recording, count: int, seed: int, first: int = 0, last: int | None = None
) -> Iterator[CrashState]:
    """`count` states in the recording's order, from crashes all along it, or after the `first` to the `last` action."""
    choose = random.Random(seed)
    crashes: list[int] = []
    for _ in range(count):
        insort(crashes, choose.randint(first, len(recording.actions) if last is None else last))
    disk = Disk(recording.folders)
    begun = ended = 0
    for crash in crashes:
        while ended < crash or begun <= min(crash, len(recording.actions) - 1):
            if begun == ended:
                disk.begin(recording.actions[begun])
                begun += 1
            else:
                disk.end(recording.actions[ended])
                ended += 1
        grain = choose.choice(GRAINS)
        yield CrashState(crash, grain, disk.crash(choose, grain))


def lay_out(state: CrashState, folder: Path) -> None:
    """Put the state's files below a folder that is empty."""
    for path, data in state.files.items():
        if data is None:
            (folder / path).mkdir(parents=True)
        else:
            (folder / path).write_bytes(data)
    for facts in folder.rglob(FACTS_NAME):
        _as_the_same_disk(facts.parent)


def _as_the_same_disk(store: Path) -> None:
    """A marker of a clean close names the data file's inode and time: let a marker that is there fit the file there."""
    owner, data = read_owner(store), store / DATA_NAME
    if owner is not None and owner.closed is not None and data.exists():
        os.utime(data, ns=(owner.closed.changed_at_ns,) * 2)
        closed = msgspec.structs.replace(owner.closed, inode=data.stat().st_ino)
        (store / FACTS_NAME).write_bytes(msgspec.json.encode(msgspec.structs.replace(owner, closed=closed)))


def marks_until(actions: Sequence[Action]) -> list[tuple[str, int]]:
    """What the program had said by then."""
    words = [action.text.split() for action in actions if isinstance(action, Mark)]
    return [(what, int(number)) for what, number in words]


def _pieces(pending: _Pending, grain: Grain) -> Iterator[Write | Truncate]:
    action = pending.action
    assert isinstance(action, (Write, Truncate))
    if isinstance(action, Truncate) or grain == "operations" or pending.safe:
        yield action
        return
    size = SECTOR if grain == "sectors" else PAGE
    at, end = action.at, action.at + len(action.data)
    while at < end:
        stop = min(end, (at // size + 1) * size)
        yield Write(action.file, at, action.data[at - action.at : stop - action.at], synced=False)
        at = stop


def _apply(data: bytearray, action: Write | Truncate) -> None:
    if isinstance(action, Truncate):
        data.extend(bytes(max(0, action.size - len(data))))
        del data[action.size :]
        return
    data.extend(bytes(max(0, action.at - len(data))))
    data[action.at : action.at + len(action.data)] = action.data


def _relink(names: Names, action: Action) -> None:
    match action:
        case Link(folder, name, file, old):
            if old is not None and names.get(old) == file:
                del names[old]
            names[folder, name] = file
        case Unlink(folder, name):
            names.pop((folder, name), None)
        case _:
            raise AssertionError(action)


def _touch(write: Write, at: int, size: int) -> bool:
    first, last = at // SECTOR, (at + size - 1) // SECTOR
    return write.at // SECTOR <= last and first <= (write.at + len(write.data) - 1) // SECTOR
