"""A talk as a graph over a batch of questions: cast, let every expert speak once per round, decide.

As in the panel's graph, one `Send` per expert and round carries all that it is asked, so a round loads
each model once; turns are kept by (question, round, agent), so a retry or a resume counts nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

from langgraph.errors import NodeError
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, Send
from typing_extensions import TypedDict

from ...retrieval import Question
from ..state import (
    FORGET,
    Answered,
    Asked,
    Json,
    PanelInput,
    PanelOutput,
    PanelState,
    Recruited,
    Resources,
    Started,
    check_questions,
    read_questions_of,
)
from .speech import read_turn
from .talk import Talk
from .turns import Seat, Turn

__all__ = ["STEPS", "Speech", "create_talk", "read_turns"]

STEPS = 1000
"""Steps of the graph after which a talk counts as endless; LangGraph's `recursion_limit`."""


class Speech(TypedDict):
    """What one `Send` carries: everything that one expert is asked in a round."""

    expert: str
    round: int
    seats: list[Json]
    """`Seat.to_json()` with the question's id under `question`."""
    questions: dict[str, Json]
    casts: dict[str, list[str]]
    turns: dict[str, list[Json]]


def create_talk(
    talk: Talk, **settings: Any
) -> CompiledStateGraph[PanelState, Resources, PanelInput, PanelOutput]:
    """The compiled graph of a talk; takes and gives what the panel's graph takes and gives.

    Its answers are kept under `question#round.agent`. Whoever streams it with `stream_mode="custom"` is
    told when an expert begins a round and when it has finished. `settings` go to `StateGraph.compile`.
    """

    async def begin(state: Asked, runtime: Runtime[Resources]) -> Started:
        """Check the questions, tell their skills where casting needs them, and cast."""
        context = runtime.context
        questions = check_questions(state)
        skills: dict[str, dict[str, float]] = {qid: {} for qid in questions}
        if talk.needs_skills and context.extractor is not None:
            found = await context.extractor.extract(list(questions.values()))
            skills |= {qid: dict(weights) for qid, weights in found.items()}
        cast = await asyncio.to_thread(talk.cast, context, list(questions.values()), skills)
        return {
            "questions": {qid: question.to_json() for qid, question in questions.items()},
            "skills": skills,
            "recruits": {qid: [r.to_json() for r in recruits] for qid, recruits in cast.items()},
            "round": -1,
            "answers": {FORGET: {}},
        }

    def begin_round(state: PanelState) -> Recruited:
        return {"recruits": state["recruits"], "round": state["round"] + 1}

    def seat(state: PanelState, runtime: Runtime[Resources]) -> list[Send] | Literal["decide"]:
        """One `Send` per expert that speaks in this round; with nobody left the talk is over."""
        batches: dict[str, Speech] = {}
        said = read_turns(state)
        for question in read_questions_of(state):
            cast = [recruited["expert"] for recruited in state["recruits"][question.id]]
            turns = said.get(question.id, [])
            for place in talk.seat(question, cast, turns):
                batch = batches.setdefault(place.expert, _no_speech(place.expert, state["round"]))
                batch["seats"].append({"question": question.id, **place.to_json()})
                batch["questions"][question.id] = state["questions"][question.id]
                batch["casts"][question.id] = cast
                batch["turns"][question.id] = [turn.to_json() for turn in turns]
        if not batches:
            return "decide"
        calls = {expert: len(batch["seats"]) for expert, batch in batches.items()}
        return [Send("speak", batches[alias]) for alias in runtime.context.pool.announce(calls)]

    async def speak(state: Speech, runtime: Runtime[Resources]) -> Answered:
        """One expert says everything that it is asked for in this round."""
        context, expert, number = runtime.context, state["expert"], state["round"]
        told = {"expert": expert, "round": number}
        runtime.stream_writer({"event": "expert_started", **told, "questions": len(state["seats"])})
        questions = {qid: Question.restore(row) for qid, row in state["questions"].items()}
        turns = {qid: [Turn.from_json(row) for row in rows] for qid, rows in state["turns"].items()}
        seats = [(row["question"], _read_seat(row)) for row in state["seats"]]
        requests = [
            talk.pose(context, questions[qid], place, state["casts"][qid], turns[qid])
            for qid, place in seats
        ]
        replies = await context.pool.generate(expert, requests, stage=talk.name)
        pairs = zip(seats, replies, strict=True)
        spoken = [read_turn(reply, questions[qid], place, number) for (qid, place), reply in pairs]
        failed = sum(turn.error is not None for turn in spoken)
        runtime.stream_writer(
            {"event": "expert_finished", **told, "answers": len(spoken), "failed": failed}
        )
        return {"answers": {expert: {turn.key: turn.to_json() for turn in spoken}}}

    def keep_failure(state: Speech, error: NodeError) -> Command[str]:
        """Turn an expert's crash into failed turns; the talk goes on without them."""
        sentence = f"{type(error.error).__name__}: {error.error}"
        failed: dict[str, Json] = {}
        for row in state["seats"]:
            place = _read_seat(row)
            turn = Turn(
                question_id=row["question"],
                expert=place.expert,
                agent=place.agent,
                round=state["round"],
                kind=place.kind,
                merges=place.merges,
                error=sentence,
            )
            failed[turn.key] = turn.to_json()
        return Command(update={"answers": {state["expert"]: failed}}, goto="begin_round")

    def decide(state: PanelState) -> dict[str, Any]:
        """A verdict for each question."""
        said = read_turns(state)
        verdicts = {
            question.id: talk.decide(question, said.get(question.id, []))
            for question in read_questions_of(state)
        }
        return {"verdicts": {qid: verdict.to_json() for qid, verdict in verdicts.items()}}

    graph = StateGraph(PanelState, Resources, input_schema=PanelInput, output_schema=PanelOutput)
    graph.add_node("begin", begin)
    # Deferred: a round begins when every expert of the last one has spoken.
    graph.add_node("begin_round", begin_round, defer=True)
    # LangGraph finds the error parameter by its type, which its own annotation does not foresee.
    graph.add_node("speak", speak, input_schema=Speech, error_handler=keep_failure)  # pyright: ignore[reportCallIssue, reportArgumentType]
    graph.add_node("decide", decide)
    graph.add_edge(START, "begin")
    graph.add_edge("begin", "begin_round")
    graph.add_conditional_edges("begin_round", seat, ["speak", "decide"])
    graph.add_edge("speak", "begin_round")
    graph.add_edge("decide", END)
    return graph.compile(name=talk.name, **settings)


def read_turns(state: Mapping[str, Any]) -> dict[str, list[Turn]]:
    """What was said about each question so far, by round and agent."""
    found: dict[str, list[Turn]] = {}
    for rows in state.get("answers", {}).values():
        for row in rows.values():
            found.setdefault(row["question_id"], []).append(Turn.from_json(row))
    for turns in found.values():
        turns.sort(key=lambda turn: (turn.round, turn.agent))
    return found


def _no_speech(expert: str, number: int) -> Speech:
    return Speech(expert=expert, round=number, seats=[], questions={}, casts={}, turns={})


def _read_seat(row: Mapping[str, Any]) -> Seat:
    return Seat(**{name: row[name] for name in ("agent", "expert", "kind", "merges")})
