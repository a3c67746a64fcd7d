"""Moved to `executus.stores.testing.making`."""

from executus.stores.testing.making import *  # noqa: F403
