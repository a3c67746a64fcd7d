"""Entries are data: each comes back from its bytes as what it was, and says whose run it is."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from executus.actors.agents.audit import AuditEntry, Entry
from tests.agents.entries import ENTRIES


def test_the_union_is_the_whole_catalogue_and_the_examples_hold_each_once() -> None:
    assert set(get_args(AuditEntry)) == set(Entry.__subclasses__())
    assert sorted(type(entry).__name__ for entry in ENTRIES) == sorted(kind.__name__ for kind in get_args(AuditEntry))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
def test_every_entry_comes_back_from_its_bytes_and_is_frozen(entry: AuditEntry) -> None:
    assert msgspec.json.decode(msgspec.json.encode(entry), type=AuditEntry) == entry  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        entry.attempt = 9  # type: ignore[misc]
