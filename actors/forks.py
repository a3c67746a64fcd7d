"""Tells a forked child that it is one, without asking the system."""

from __future__ import annotations

import os
from typing import Final


class Forks:
    """How many forks lie between this process and the one that first imported this.

    What belongs to a process keeps the number that it was made under, and refuses where there is another. Asking the
    system for the pid instead cost 0.2 us, twice for each message that woke an idle actor: a quarter of its turn.
    """

    def __init__(self) -> None:
        self.count = 0

    def happened(self) -> None:
        """In the child, before anything else runs there."""
        self.count += 1


forks: Final = Forks()

if hasattr(os, "register_at_fork"):  # where there is no fork there is nothing to tell
    os.register_at_fork(after_in_child=forks.happened)
