"""A phase's prompt: `${name}` is filled in, everything else stays as it is."""

from __future__ import annotations

import pytest

from executus.actors.agents.agent import Agent, Invocation, Phase, Task
from executus.actors.agents.errors import InvalidAgent
from executus.actors.agents.template import names_in, rendered


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("costs $5, $name, $$", "costs $5, $name, $$"),
        ("${a}", "1"),
        ("$${a}", "$1"),
        ("${a}${a}-${b}", "11-${a}"),
        ("{a} ${a", "{a} ${a"),
    ],
)
def test_only_a_name_in_braces_behind_a_dollar_is_replaced_and_only_once(template: str, text: str) -> None:
    assert rendered(template, {"a": 1, "b": "${a}"}) == text


def test_names_come_in_their_order() -> None:
    assert names_in("${b} $c ${a} ${b}") == ["b", "a", "b"]


def agent(*phases: Phase) -> Agent:
    return Agent(id="writer", phases=phases)


def test_a_prompt_may_name_what_was_given_and_earlier_phases() -> None:
    phases = Phase(name="research", prompt="${prompt} about ${topic}"), Phase(name="write", prompt="from ${research}")
    task = Task(agent(*phases), Invocation(prompt="write", inputs={"topic": "rain"}))  # type: ignore[arg-type]
    assert task.invocation.inputs == (("topic", "rain"),)


@pytest.mark.parametrize("prompt", ["${resarch}", "${write}", "${later}", "${}"])
def test_an_unknown_name_is_an_error_before_anything_runs(prompt: str) -> None:
    phases = Phase(name="research"), Phase(name="write", prompt=prompt), Phase(name="later")
    with pytest.raises(
        InvalidAgent, match=r"phase 'write': its prompt names .*It can see \$\{prompt\}, \$\{research\}"
    ) as raised:
        Task(agent(*phases), Invocation(prompt="x"))
    assert raised.value.facts == {"agent": "writer", "phase": "write"}


def test_a_phase_with_the_name_of_an_input_is_refused() -> None:
    with pytest.raises(InvalidAgent, match="has the name of an input"):
        Task(agent(Phase(name="topic")), Invocation(inputs=(("topic", "rain"),)))
