"""Every store of ours against the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from executus.stores.testing import SUITE, Disk
from executus.stores.testing import conformance as kit
from executus.stores.testing import conformance_flights as flights
from executus.stores.testing import conformance_journals as journals
from executus.stores.testing import conformance_passivated as passivated
from tests.stores.disks import LmdbDisk, MemoryDisk


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


class TestFlights(flights.Flights): ...


class TestPassivating(passivated.Passivating): ...


def test_every_class_of_the_suite_is_held_here() -> None:
    held = {base for name, kind in globals().items() if name.startswith("Test") for base in kind.__bases__}
    assert held == set(SUITE)
    defined = {
        kind
        for module in (kit, journals, flights, passivated)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, kit.Conformance) and kind is not kit.Conformance
    }
    assert defined == set(SUITE)
