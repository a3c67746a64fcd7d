"""executus.actors.agents: durable runs of language models, alone or in phases, and the ports around them. The door."""

from executus.actors.agents.agent import (
    Agent,
    AgentResult,
    Budget,
    Invocation,
    Limits,
    Note,
    Phase,
    PhaseResult,
    RunInfo,
    Skill,
    Task,
)
from executus.actors.agents.agent_run import AgentRun
from executus.actors.agents.agents import Agents, StartOptions
from executus.actors.agents.audit import Audit, AuditEntry
from executus.actors.agents.audit_trail import AuditTrail
from executus.actors.agents.behaviour import AgentProgress, Attribution, Standing, Transcript
from executus.actors.agents.compactor import Compactor
from executus.actors.agents.critic import Critic, Extend, KillRun, Nudge, RestartRun, Verdict, Watch
from executus.actors.agents.errors import (
    AgentError,
    BudgetExceeded,
    CriticRestart,
    FatalModelError,
    InvalidAgent,
    ModelError,
    RateLimited,
    RepeatedCall,
    ToolError,
    TooManyToolErrors,
)
from executus.actors.agents.ladder import Ladder, LadderCritic
from executus.actors.agents.log_audit import LogAudit
from executus.actors.agents.model import Model, ModelReply, ModelRequest, Tier, ToolSpec
from executus.actors.agents.parts import Image, Message, Text, Thinking, ToolCall, ToolResult, Usage, assistant
from executus.actors.agents.phase_context import PhaseContext
from executus.actors.agents.pipeline_run import PipelineRun
from executus.actors.agents.scripted import Reply, ScriptedModel, call, fail, say, think
from executus.actors.agents.shortening import Shortening
from executus.actors.agents.steering import FollowUp, Steer
from executus.actors.agents.tool import Tool, ToolContext, tool

__all__ = [
    "Agent",
    "AgentError",
    "AgentProgress",
    "AgentResult",
    "AgentRun",
    "Agents",
    "Attribution",
    "Audit",
    "AuditEntry",
    "AuditTrail",
    "Budget",
    "BudgetExceeded",
    "Compactor",
    "Critic",
    "CriticRestart",
    "Extend",
    "FatalModelError",
    "FollowUp",
    "Image",
    "InvalidAgent",
    "Invocation",
    "KillRun",
    "Ladder",
    "LadderCritic",
    "Limits",
    "LogAudit",
    "Message",
    "Model",
    "ModelError",
    "ModelReply",
    "ModelRequest",
    "Note",
    "Nudge",
    "Phase",
    "PhaseContext",
    "PhaseResult",
    "PipelineRun",
    "RateLimited",
    "RepeatedCall",
    "Reply",
    "RestartRun",
    "RunInfo",
    "ScriptedModel",
    "Shortening",
    "Skill",
    "Standing",
    "StartOptions",
    "Steer",
    "Task",
    "Text",
    "Thinking",
    "Tier",
    "TooManyToolErrors",
    "Tool",
    "ToolCall",
    "ToolContext",
    "ToolError",
    "ToolResult",
    "ToolSpec",
    "Transcript",
    "Usage",
    "Verdict",
    "Watch",
    "assistant",
    "call",
    "fail",
    "say",
    "think",
    "tool",
]
