"""The neighbour of `python -m benchmarks agents`: LangGraph, a minimal graph with its SQLite saver.

A model node, a tool node, a conditional edge between them, and `MessagesState`, as its documentation builds an agent.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph

from benchmarks.agent_script import PROMPT, STEPS, Gate, found, names, tell, thought, timed, weighed


def _added(messages: list[AnyMessage], writes: list[list[AnyMessage]]) -> list[AnyMessage]:
    return [*messages, *(message for write in writes for message in write)]


class DeltaState(TypedDict):
    """Messages of which a checkpoint holds what is new: LangGraph's DeltaChannel, in beta."""

    messages: Annotated[list[AnyMessage], DeltaChannel(_added)]


async def search(agent: str, number: int) -> str:
    """The tool."""
    return found(agent, number)


def graph(state: Any, saver: Any, gate: Gate | None = None) -> Any:
    """The compiled graph."""

    async def model(state: Any, config: RunnableConfig) -> dict[str, Any]:
        agent, step = config["configurable"]["thread_id"], len(state["messages"]) // 2
        if step < STEPS:
            call = {"name": "search", "args": {"agent": agent, "number": step}, "id": f"call-{step}"}
            return {"messages": [AIMessage(content=thought(agent, step), tool_calls=[call])]}
        if gate is not None:
            await gate.passed()
        return {"messages": [AIMessage(content="Done.")]}

    async def tools(state: Any) -> dict[str, Any]:
        calls = state["messages"][-1].tool_calls
        return {
            "messages": [
                ToolMessage(content=await search(**call["args"]), tool_call_id=call["id"], name=call["name"])
                for call in calls
            ]
        }

    def asks_for_tools(state: Any) -> str:
        return "tools" if state["messages"][-1].tool_calls else END

    built = StateGraph(state)
    built.add_node("model", model)
    built.add_node("tools", tools)
    built.add_edge(START, "model")
    built.add_conditional_edges("model", asks_for_tools, ["tools", END])
    built.add_edge("tools", "model")
    return built.compile(checkpointer=saver)


async def _main(durability: str, agents: int, folder: Path, *, weigh: bool, delta: bool) -> None:
    gate = Gate(agents) if weigh else None
    async with AsyncSqliteSaver.from_conn_string(str(folder / "checkpoints.sqlite")) as saver:
        await saver.setup()
        compiled = graph(DeltaState if delta else MessagesState, saver, gate)

        async def life(agent: str) -> int:
            config = {"configurable": {"thread_id": agent}, "recursion_limit": 3 * STEPS}
            end = await compiled.ainvoke({"messages": [HumanMessage(PROMPT)]}, config, durability=durability)
            return sum(message.type == "tool" for message in end["messages"])

        tell(await (timed(life, names(agents), folder) if gate is None else weighed(life, names(agents), gate)))


def main(durability: str, agents: int, where: str, *, weigh: bool = False, delta: bool = False) -> None:
    """One child's work: print its figures."""
    asyncio.run(_main(durability, agents, Path(where), weigh=weigh, delta=delta))
