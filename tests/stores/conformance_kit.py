"""Moved to `executus.stores.testing.conformance`."""

from executus.stores.testing.conformance import *  # noqa: F403
