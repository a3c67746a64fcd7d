"""What `executus doctor` finds in a store's folder without opening it: owner, lock, permissions, what was left over."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec

from executus.actors.console.doctor_problems import Findings, Kind
from executus.stores import StoreUnavailable
from executus.stores.lmdb_env import LOCK_NAME as ENGINE_LOCK_NAME
from executus.stores.owner_lock import FACTS_NAME, holder_of_lock, is_running, read_owner, refuse_in_owner
from executus.stores.store_files import NEW_PREFIX, check_file_system


class OwnerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Who has the store open: `pid` now (0 where it is in another pid namespace, None for nobody), `last_pid` before.

    `holds_lock` is None where the system does not tell. `closed_in_peace` is None while it is open, and where nothing
    says who was the last.
    """

    pid: int | None
    last_pid: int | None
    holds_lock: bool | None
    closed_in_peace: bool | None


def owner_facts(folder: Path) -> OwnerFacts:
    """Raises StoreLocked where this very process owns it."""
    # Before the lock file is touched: closing it in the owner's process would drop the lock.
    refuse_in_owner(folder)
    last, holder, is_known = read_owner(folder), None, True
    try:
        holder = holder_of_lock(folder)
    except OSError:
        is_known = False
    named = last.pid if last is not None and last.closed is None and is_running(last) else None
    pid = named if named is not None else holder
    return OwnerFacts(
        pid=pid,
        last_pid=None if last is None else last.pid,
        holds_lock=None if pid is None or not is_known else holder is not None,
        closed_in_peace=None if pid is not None or last is None else last.closed is not None,
    )


def look_at_files(folder: Path, owner: OwnerFacts, findings: Findings) -> None:
    """Add what is wrong with the files as such."""
    if owner.holds_lock is False:
        findings.add(Kind.LOCK_NOT_HELD, f"pid {owner.pid}", "the lock file was removed, or replaced, under it")
    if owner.pid is not None and not (folder / ENGINE_LOCK_NAME).exists():
        findings.add(Kind.LOCK_FILE_GONE, ENGINE_LOCK_NAME, f"pid {owner.pid} has the store open")
    if owner.closed_in_peace is False:
        findings.add(Kind.NOT_CLOSED, f"pid {owner.last_pid}", "it ended without closing the store")
    if owner.pid is None:
        for name in _left_over(folder):
            findings.add(Kind.LEFT_OVER, name, "")
    _look_at_permissions(folder, findings)
    try:
        check_file_system(folder)
    except StoreUnavailable as error:
        findings.add(Kind.NETWORK_DISK, folder.name, str(error))


def _left_over(folder: Path) -> list[str]:
    created = [path.name for path in folder.glob(f"{NEW_PREFIX}*")]
    return sorted(created + [path.name for path in [folder / f"{FACTS_NAME}.new"] if path.exists()])


def _look_at_permissions(folder: Path, findings: Findings) -> None:
    folder_facts = folder.stat()
    users = {folder_facts.st_uid: folder.name}
    may_change, may_enter = stat.S_IWGRP | stat.S_IWOTH, stat.S_IXGRP | stat.S_IXOTH
    if folder_facts.st_mode & may_change:
        findings.add(Kind.OPEN_TO_OTHERS, folder.name, f"mode {stat.S_IMODE(folder_facts.st_mode):04o}")
    for path in sorted(folder.iterdir()):
        try:
            facts = path.lstat()
        except OSError:
            continue  # gone meanwhile, as a daemon's temporary file goes
        users.setdefault(facts.st_uid, path.name)
        # What lies in a folder that nobody else may enter, nobody else gets at.
        if folder_facts.st_mode & may_enter and facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            findings.add(Kind.OPEN_TO_OTHERS, path.name, f"mode {stat.S_IMODE(facts.st_mode):04o}")
    if len(users) > 1:
        for uid, name in users.items():
            findings.add(Kind.SEVERAL_OWNERS, name, f"user {uid}")
