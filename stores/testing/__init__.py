"""The contract of stores as tests, for whoever writes a store of their own. Needs pytest.

Inherit from the classes of `conformance` in a test module and give them a fixture `disk` that yields a `Disk`:

    from executus.stores.testing import Disk, conformance

    @pytest.fixture
    def disk(tmp_path: Path) -> Disk:
        return MyDisk(tmp_path)

    class TestClaiming(conformance.Claiming): ...
    class TestSaving(conformance.Saving): ...

`SUITE` names them all. `making` has the values that they are made of.
"""

import pytest

pytest.register_assert_rewrite(
    "executus.stores.testing.conformance",
    "executus.stores.testing.conformance_flights",
    "executus.stores.testing.conformance_journals",
    "executus.stores.testing.conformance_passivated",
)  # before they are imported: a failed assert shows its values

from executus.stores.testing import (  # noqa: E402
    conformance,
    conformance_flights,
    conformance_journals,
    conformance_passivated,
    making,
)
from executus.stores.testing.disk import Disk, damage, flip_last_bit, rebooted  # noqa: E402

SUITE = (
    conformance.OpeningAndClosing,
    conformance.Committing,
    conformance.Claiming,
    conformance.Saving,
    conformance.Settling,
    conformance.SettingAside,
    conformance.Appending,
    conformance.Deleting,
    conformance.Reading,
    conformance.Resting,
    conformance.Damage,
    conformance_journals.Journals,
    conformance_flights.Flights,
    conformance_passivated.Passivating,
)
"""Every class of tests. A store that passes them all keeps the contract."""

__all__ = [
    "SUITE",
    "Disk",
    "conformance",
    "conformance_flights",
    "conformance_journals",
    "conformance_passivated",
    "damage",
    "flip_last_bit",
    "making",
    "rebooted",
]
