"""Moved to `executus.stores.testing.conformance_journals`."""

from executus.stores.testing.conformance_journals import *  # noqa: F403
