"""The agents' runs as the demo's store holds them, between two lives of its daemon and after the last."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from executus.actors.agents.agent import AgentResult
from executus.actors.agents.agent_run import AgentState
from executus.actors.agents.parts import Message
from executus.actors.console.demo_agent_ledger import StoredRun
from executus.actors.console.ps import reading
from executus.actors.outcomes import Completed, decode_outcome
from executus.actors.state_codec import StateCodec
from executus.stores import ENDED, LmdbReader

_states: Final = StateCodec(AgentState, "AgentRun")


def stored_runs(store: Path) -> dict[str, StoredRun]:
    """All of them, by run id. Raises StoreError, and msgspec's errors for what is no agent's run."""
    with reading(store) as reader:
        return {
            run.claim.run_id: StoredRun(
                agent="" if run.record is None else run.record.labels.get("agent", ""),
                live=run.claim.status not in ENDED,
                status=run.claim.status.value,
                transcript=_transcript(reader, run.claim.run_id),
            )
            for run in reader.scan()
        }


def answer_of(store: Path, run_id: str) -> str | None:
    """What a run has come to. Raises StoreError."""
    with reading(store) as reader:
        result = _result(reader, run_id)
    return None if result is None else result.output


def _transcript(reader: LmdbReader, run_id: str) -> tuple[Message, ...]:
    """Of a run that has ended from its result, of another one from its newest snapshot; empty before the first."""
    if (result := _result(reader, run_id)) is not None:
        return result.transcript
    loaded = reader.load_snapshot(run_id)
    if loaded is None:
        return ()
    state, _ = _states.load(loaded)
    return tuple(state.conversation.transcript)


def _result(reader: LmdbReader, run_id: str) -> AgentResult | None:
    data = reader.load_outcome(run_id)
    outcome = None if data is None else decode_outcome(data, AgentResult)
    if not isinstance(outcome, Completed):
        return None
    result: AgentResult = outcome.result
    return result
