"""Every store of ours against the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stores import conformance_journals as journals
from tests.stores import conformance_kit as kit
from tests.stores.disks import Disk, LmdbDisk, MemoryDisk


@pytest.fixture(params=["memory", "lmdb"])
def disk(request: pytest.FixtureRequest, store_path: Path) -> Disk:
    return MemoryDisk() if request.param == "memory" else LmdbDisk(store_path)


class TestOpeningAndClosing(kit.OpeningAndClosing): ...


class TestCommitting(kit.Committing): ...


class TestClaiming(kit.Claiming): ...


class TestSaving(kit.Saving): ...


class TestSettling(kit.Settling): ...


class TestSettingAside(kit.SettingAside): ...


class TestAppending(kit.Appending): ...


class TestDeleting(kit.Deleting): ...


class TestReading(kit.Reading): ...


class TestResting(kit.Resting): ...


class TestDamage(kit.Damage): ...


class TestJournals(journals.Journals): ...
