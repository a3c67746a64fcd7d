"""What a function phase of a pipeline is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from executus.actors.agents.agent import RunInfo, Scalar
from executus.actors.agents.parts import Message
from executus.actors.agents.tool_context import CallContext


class PhaseContext:
    """One call of a function phase: its prompt, the outputs before it, and the run's context.

    It runs at least once: `idempotency_key` is the same when it is repeated after a crash.
    """

    def __init__(
        self,
        *,
        info: RunInfo,
        phase: str,
        prompt: str,
        outputs: Mapping[str, str],
        context: CallContext,
        idempotency_key: str,
        steers: Callable[[], tuple[Message, ...]],
    ) -> None:
        self.info = info
        self.phase = phase
        self.prompt = prompt
        self.outputs = dict(outputs)
        """Outputs of earlier phases by name; of two of one name the later one's."""
        self.inputs: dict[str, Scalar] = dict(info.inputs)
        self.idempotency_key = idempotency_key
        self._context = context
        self._steers = steers

    @property
    def log(self) -> Any:
        """The run's logger."""
        return self._context.log

    @property
    def cancelled(self) -> bool:
        """Whether the run has been asked to end."""
        return self._context.cancelled

    def take_steers(self) -> tuple[Message, ...]:
        """What was said to the run and nobody has heard yet. What is not taken reaches the next phase."""
        return self._steers()

    def heartbeat(self, details: object = None) -> None:
        """Say that the function is alive, to the critic and to `idle_timeout_s`."""
        self._context.heartbeat(details)

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Report progress; a heartbeat too."""
        self._context.progress(done, total, note)
