"""The panel as a graph over messages: what chat user interfaces, LangGraph Studio and agents expect."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph

from ..graph import Resources, Solution, create_graph, show_locally
from ..graph.solve import make_row
from ..retrieval import Question
from .chat.messages import to_turns
from .conversation import read_conversation
from .panel_answer import PanelAnswer, tell_answer, tell_details

__all__ = ["ChatState", "create_chat_graph"]


class ChatState(MessagesState):
    """A conversation, and what the panel made of its last question."""

    questions: dict[str, dict[str, Any]]
    skills: dict[str, dict[str, float]]
    recruits: dict[str, list[dict[str, Any]]]
    answers: dict[str, Any]
    verdicts: dict[str, dict[str, Any]]


def create_chat_graph(
    resources: Resources, *, approval: bool = False, **settings: Any
) -> CompiledStateGraph[ChatState, None, MessagesState, ChatState]:
    """A graph that answers the last user turn of a conversation: messages in, one message more out.

    The panel is a subgraph, so its steps and `GraphEvent`s can be streamed with `subgraphs=True`. How the
    conversation is read: `apps/conversation.py`. The message's `response_metadata["expertmix"]` says who
    answered what.

    Args:
        resources: Of an open pool.
        approval: Show the plan to a person before anybody is asked; needs a checkpointer.
        settings: Go to `StateGraph.compile`.

    Example:
        >>> graph = create_chat_graph(resources)  # doctest: +SKIP
        >>> await graph.ainvoke({"messages": [("user", "What is 12 + 30?")]})  # doctest: +SKIP
    """

    def read(state: MessagesState) -> dict[str, Any]:
        question = read_conversation(to_turns(state["messages"]))
        return {"questions": {question.id: question.to_json()}}

    def tell(state: ChatState) -> dict[str, Any]:
        [row] = state["questions"].values()
        question = Question.restore(row)
        answer = PanelAnswer(solution=Solution(question=question, row=make_row(question, state)))
        content, finish = tell_answer(answer, resources.pool.catalog, "text")
        message = AIMessage(
            content,
            name="panel",
            response_metadata={
                "model_name": f"expertmix/{resources.policy}",
                "model_provider": "expertmix",
                "finish_reason": finish,
                "expertmix": tell_details(answer),
            },
            usage_metadata={
                "input_tokens": answer.usage.prompt_tokens,
                "output_tokens": answer.usage.completion_tokens,
                "total_tokens": answer.usage.prompt_tokens + answer.usage.completion_tokens,
            },
        )
        return {"messages": [message]}

    graph = StateGraph(ChatState, input_schema=MessagesState)
    graph.add_node("read_question", read)
    graph.add_node("panel", create_graph(resources, approval=approval))
    graph.add_node("tell", tell)
    graph.add_edge(START, "read_question")
    graph.add_edge("read_question", "panel")
    graph.add_edge("panel", "tell")
    graph.add_edge("tell", END)
    settings.setdefault("name", "expertmix")
    return show_locally(graph.compile(**settings))
