"""What ends an agent's run, or keeps it from starting. Each carries its numbers as `facts`."""

from __future__ import annotations

from executus.actors.errors import ActorError

Fact = str | int | float | bool


class AgentError(ActorError):
    """The family. `facts` are small scalars that come with the outcome; `FATAL` lists what no restart can mend."""

    def __init__(self, message: str, **facts: Fact) -> None:
        super().__init__(message)
        self.facts: dict[str, Fact] = facts


class InvalidAgent(AgentError, ValueError):
    """The agent cannot run with what is registered here: an unknown tier, tool, agent, skill, function or name."""


class BudgetExceeded(AgentError):
    """What is next does not fit into the budget any more. `facts`: which limit, what was spent, what was wanted."""


class TooManyToolErrors(AgentError):
    """So many tool calls in a row ended in errors."""


class RepeatedCall(AgentError):
    """The model asked for the same call, with the same arguments, so many times in a row."""


class ModelError(AgentError):
    """A request to a model failed. Of itself transient: the run restarts, with backoff, from its last snapshot."""


class RateLimited(ModelError):
    """The provider wants to be left alone for `retry_after_s`; the step waits for that, protected from the critic."""

    def __init__(self, message: str, retry_after_s: float | None = None, **facts: Fact) -> None:
        super().__init__(message, **facts)
        self.retry_after_s = retry_after_s


class FatalModelError(ModelError):
    """The provider will not answer this request however often it is asked: bad key, unknown model, bad request."""


class CriticRestart(AgentError):
    """The critic wants the run to start again from its last snapshot. Counted by the restart policy."""


FATAL: tuple[type[AgentError], ...] = (
    InvalidAgent,
    BudgetExceeded,
    TooManyToolErrors,
    RepeatedCall,
    FatalModelError,
)


class ToolError(Exception):
    """Raised by a tool: the model sees the text as the call's result, and may do better. As with any Exception."""
