"""The panel inside other people's graphs."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Annotated, Any

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import MessagesState
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from expertmix.agents import Pool
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.graph import Resources, create_graph
from expertmix.retrieval import Question


class Mine(TypedDict):
    questions: dict[str, Any]
    verdicts: dict[str, Any]
    log: Annotated[list[str], operator.add]


@dataclass
class MyContext:
    user: str


def asked(number: int) -> Any:
    made = (Question(id=f"q{i}", text=f"Sum {i}?", kind="number") for i in range(number))
    return {"questions": {question.id: question.to_json() for question in made}}


def make_pool() -> Pool:
    return Pool.from_engines({name: ScriptedEngine(name, {"*": "Answer: 7"}) for name in "abc"})


async def test_it_is_a_node_of_a_graph_with_another_context() -> None:
    def report(state: Mine, runtime: Runtime[MyContext]) -> dict[str, Any]:
        return {"log": [f"{runtime.context.user}: {state['verdicts']['q0']['answer']}"]}

    async with make_pool() as pool:
        graph = StateGraph(Mine, MyContext)
        graph.add_node("panel", create_graph(Resources(pool=pool, k=3)))
        graph.add_node("report", report)
        graph.add_edge(START, "panel")
        graph.add_edge("panel", "report")
        graph.add_edge("report", END)
        compiled = graph.compile(checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "1"}}
        told: list[Any] = []
        state: Any = None
        async for _, mode, part in compiled.astream(
            asked(2),
            config,
            context=MyContext("ann"),
            stream_mode=["custom", "values"],
            subgraphs=True,
        ):
            if mode == "custom":
                told.append(part)
            else:
                state = part
    assert state["log"] == ["ann: 7"]
    assert {part["event"] for part in told} >= {"expert_started", "questions_merged"}


async def test_it_takes_its_resources_from_a_context_that_it_shares() -> None:
    async with make_pool() as pool:
        graph = StateGraph(Mine, Resources)
        graph.add_node("panel", create_graph())
        graph.add_edge(START, "panel")
        state = await graph.compile().ainvoke(asked(1), context=Resources(pool=pool, k=2))
    assert state["verdicts"]["q0"]["answer"] == "7"


async def test_an_agent_and_the_panel_are_nodes_of_one_graph() -> None:
    from langchain.agents import create_agent

    class State(MessagesState):
        questions: dict[str, Any]
        verdicts: dict[str, Any]

    def pose(state: State) -> dict[str, Any]:
        asked = Question(id="asked", text=str(state["messages"][-1].content), kind="number")
        return {"questions": {"asked": asked.to_json()}}

    def tell(state: State) -> dict[str, Any]:
        answer = state["verdicts"]["asked"]["answer"]
        return {"messages": [HumanMessage(f"The panel says {answer}. Is that plausible?")]}

    agent = create_agent(GenericFakeChatModel(messages=iter([AIMessage("Yes, it is.")])), tools=[])
    async with make_pool() as pool:
        graph = StateGraph(State)
        graph.add_node("pose", pose)
        graph.add_node("panel", create_graph(Resources(pool=pool, k=3)))
        graph.add_node("tell", tell)
        graph.add_node("agent", agent)
        graph.add_edge(START, "pose")
        graph.add_edge("pose", "panel")
        graph.add_edge("panel", "tell")
        graph.add_edge("tell", "agent")
        state = await graph.compile().ainvoke(
            {"messages": [HumanMessage("What is 3 + 4?")]}  # pyright: ignore[reportArgumentType]
        )
    said = [str(message.content) for message in state["messages"]]
    assert said == ["What is 3 + 4?", "The panel says 7. Is that plausible?", "Yes, it is."]


async def test_its_schemas_are_narrow_and_typed() -> None:
    graph = create_graph()
    assert set(graph.get_input_jsonschema()["properties"]) == {"questions"}
    assert set(graph.get_output_jsonschema()["properties"]) == {
        "skills",
        "recruits",
        "answers",
        "verdicts",
    }
