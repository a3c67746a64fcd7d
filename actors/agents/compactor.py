"""The port to compactors: they shorten what a model sees, never what is saved."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from executus.actors.agents.agent import RunInfo
from executus.actors.agents.parts import Message


class Compactor(Protocol):
    """Shortens a transcript for one request. One compactor serves many runs; with one that raises, nothing is left out.

    `def` is called on the event loop's thread and must be short; `async def` may ask a model for a summary.
    """

    @property
    def threshold(self) -> float:
        """The share of the tier's `context_tokens` above which it is asked."""
        ...

    def compact(
        self, messages: tuple[Message, ...], limit_tokens: int, info: RunInfo, /
    ) -> tuple[Message, ...] | Awaitable[tuple[Message, ...]]:
        """A legal transcript in place of this one, of at most about `limit_tokens`, that ends as this one does.

        The limit is for the messages alone: system prompt and tools are taken off it already.
        """
        ...
