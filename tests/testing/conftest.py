"""The fixtures that are published for users, here under test."""

from executus.actors.testing.plugin import crash_everywhere, runtime, virtual_clock

__all__ = ["crash_everywhere", "runtime", "virtual_clock"]
