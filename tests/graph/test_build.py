"""The graph: one Send per expert, every question answered or its failure told, nothing lost."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from expertmix.agents import Pool
from expertmix.agents.engines import Request
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.graph import PanelState, Resources, build_graph, create_graph
from expertmix.graph.state import merge_answers
from expertmix.retrieval import InputError, Question

OPTIONS = ["red", "green", "blue"]


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("LANGGRAPH_STRICT_MSGPACK", "true")
    return


def questions(number: int) -> dict[str, dict[str, Any]]:
    made = (
        Question(id=f"q{i}", text=f"Colour {i}?", options=tuple(OPTIONS), kind="choice")
        for i in range(number)
    )
    return {q.id: q.to_json() for q in made}


def says(letter: str, faults: Faults | None = None) -> ScriptedEngine:
    return ScriptedEngine(letter, {"*": f"Answer: ({letter})"}, faults=faults)


async def run(pool: Pool, number: int = 4, **settings: Any) -> dict[str, Any]:
    state = {"questions": questions(number)}
    return await create_graph().ainvoke(state, context=Resources(pool=pool, **settings))  # pyright: ignore[reportArgumentType]


async def test_every_expert_is_called_once_with_all_of_its_questions() -> None:
    engines = {name: says(name[0].upper()) for name in ("a1", "a2", "b1")}
    async with Pool.from_engines(engines) as pool:
        state = await run(pool, 5, k=3)
    assert [engine.calls for engine in engines.values()] == [1, 1, 1]
    assert [len(engine.requests) for engine in engines.values()] == [5, 5, 5]
    assert {v["answer"] for v in state["verdicts"].values()} == {"A"}
    assert state["verdicts"]["q0"]["dissent"] == {"B": ["b1"]}
    assert state["verdicts"]["q0"]["confidence"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("broken", [("a",), ("a", "b"), ("a", "b", "c")])
async def test_failed_experts_are_reported_and_the_rest_decides(broken: tuple[str, ...]) -> None:
    engines = {
        name: says(name.upper(), Faults(load="it broke") if name in broken else None)
        for name in "abc"
    }
    async with Pool.from_engines(engines) as pool:
        state = await run(pool, 2, k=3)
    for verdict in state["verdicts"].values():
        assert verdict["missing"] == dict.fromkeys(broken, "it broke")
        assert (verdict["answer"] is None) == (len(broken) == 3)
        assert verdict["method"] == ("none" if len(broken) == 3 else "vote")


async def test_an_expert_that_crashes_the_node_is_a_failed_expert(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Pool.from_engines({"a": says("A"), "b": says("B")}) as pool:
        generate = pool.generate

        async def crash(alias: str, requests: list[Request], **rest: Any) -> Any:
            if alias == "a":
                raise OSError("disk on fire")
            return await generate(alias, requests, **rest)

        monkeypatch.setattr(pool, "generate", crash)
        state = await run(pool, 2, k=2)
    assert state["verdicts"]["q1"]["answer"] == "B"
    assert state["verdicts"]["q1"]["missing"] == {"a": "OSError: disk on fire"}


async def test_a_question_that_is_too_long_fails_and_the_others_go_on() -> None:
    small = ScriptedEngine("a", {"*": "Answer: (A)"}, context_length=60)
    batch = questions(3)
    batch["q1"]["text"] = "word " * 80
    async with Pool.from_engines({"a": small}) as pool:
        state = await create_graph().ainvoke(
            {"questions": batch}, context=Resources(pool=pool, k=1)
        )
    answers = [state["verdicts"][q]["answer"] for q in ("q0", "q1", "q2")]
    assert answers == ["A", None, "A"]
    assert "60" in state["verdicts"]["q1"]["missing"]["a"]


async def test_nobody_recruited_still_ends_in_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    from expertmix.graph import nodes

    def nobody(_: Any, asked: list[Question], __: Any) -> dict[str, list[Any]]:
        return {question.id: [] for question in asked}

    monkeypatch.setattr(nodes, "recruit_first", nobody)
    async with Pool.from_engines({"a": says("A")}) as pool:
        state = await run(pool, 2, k=1)
    assert {v["method"] for v in state["verdicts"].values()} == {"none"}


async def test_answers_do_not_depend_on_the_order_of_questions_or_on_who_is_fast() -> None:
    rows: list[dict[str, Any]] = []
    for seed, delays in itertools.product((0, 1), ((0.0, 0.05), (0.05, 0.0))):
        order = list(questions(6).items())
        random.Random(seed).shuffle(order)
        engines = {
            name: ScriptedEngine(name, {"*": f"Answer: ({name.upper()})"}, latency=delay)
            for name, delay in zip("ab", delays, strict=True)
        }
        async with Pool.from_engines(engines) as pool:
            state = await create_graph().ainvoke(
                {"questions": dict(order)}, context=Resources(pool=pool, k=2, seed=7)
            )
        rows.append({qid: state["verdicts"][qid] for qid in sorted(state["verdicts"])})
    assert all(row == rows[0] for row in rows)


async def test_a_resumed_graph_asks_no_one_twice() -> None:
    engines = {name: says(name.upper()) for name in "ab"}
    graph = build_graph().compile(checkpointer=InMemorySaver(), interrupt_before=["aggregate"])
    config: Any = {"configurable": {"thread_id": "1"}}
    async with Pool.from_engines(engines) as pool:
        resources = Resources(pool=pool, k=2)
        await graph.ainvoke({"questions": questions(3)}, config, context=resources)
        state = await graph.ainvoke(None, config, context=resources)
    assert [engine.calls for engine in engines.values()] == [1, 1]
    assert len(state["verdicts"]) == 3


async def test_the_state_is_plain_under_strict_msgpack() -> None:
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

    async with Pool.from_engines({"a": says("A")}) as pool:
        state = await run(pool, 2, k=1)
    serde = JsonPlusSerializer(allowed_msgpack_modules=())
    assert serde.loads_typed(serde.dumps_typed(state)) == state


async def test_the_aggregating_model_is_asked_only_where_the_panel_disagrees() -> None:
    def judge(request: Request) -> str:
        quoted = str(request.messages[-1]["content"]).count("Draft ")
        return "Answer: (C)" if quoted else "Answer: (A)"

    engines = {
        "judge": ScriptedEngine("judge", judge),
        "a": ScriptedEngine("a", {"q0": "Answer: (A)", "*": "Answer: (B)"}),
    }
    async with Pool.from_engines(engines) as pool:
        state = await run(pool, 2, k=2, aggregator="judge")
    assert [state["verdicts"][q]["method"] for q in ("q0", "q1")] == ["vote", "model"]
    assert state["verdicts"]["q1"]["answer"] == "C"
    assert state["verdicts"]["q1"]["dissent"] == {"A": ["judge"], "B": ["a"]}
    assert pool.ledger.account("judge", "aggregate").calls == 1


async def test_an_aggregator_that_fails_leaves_the_vote_and_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Pool.from_engines({"a": says("A"), "b": says("B")}) as pool:
        generate = pool.generate

        async def crash(alias: str, requests: list[Request], **rest: Any) -> Any:
            if rest["stage"] == "aggregate":
                raise OSError("gone")
            return await generate(alias, requests, **rest)

        monkeypatch.setattr(pool, "generate", crash)
        state = await run(pool, 1, k=2, aggregator="b")
    verdict = state["verdicts"]["q0"]
    assert (verdict["answer"] in "AB", verdict["method"]) == (True, "vote")
    assert verdict["missing"] == {"b": "OSError: gone"}


async def test_a_thread_forgets_the_answers_to_an_earlier_batch() -> None:
    graph = build_graph().compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    async with Pool.from_engines({"a": says("A"), "b": says("B"), "c": says("B")}) as pool:
        first = Resources(pool=pool, k=3)
        await graph.ainvoke({"questions": questions(1)}, config, context=first)
        second = Resources(pool=pool, k=1, experts=("a",))
        state = await graph.ainvoke({"questions": questions(1)}, config, context=second)
    assert list(state["answers"]) == ["a"]
    assert state["verdicts"]["q0"]["votes"] == {"A": ["a"]}


def test_merging_answers_twice_changes_nothing() -> None:
    one: dict[str, Any] = {"a": {"q#0": {"answer": "A"}}}
    two: dict[str, Any] = {"a": {"r#0": {"answer": "B"}}, "b": {"q#0": {"answer": "C"}}}
    both = merge_answers(one, two)
    assert both == merge_answers(both, two) == merge_answers(merge_answers({}, two), one)
    assert one == {"a": {"q#0": {"answer": "A"}}}


def test_the_drawing_shows_the_four_steps() -> None:
    drawn = create_graph().get_graph().draw_mermaid()
    for node in ("extract_skills", "recruit", "reason", "aggregate"):
        assert node in drawn


def test_state_schemas_are_small_and_typed() -> None:
    schema = create_graph().get_input_jsonschema()
    assert list(schema["properties"]) == ["questions"]
    assert "verdicts" in PanelState.__annotations__


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"questions": ["What?"]}, "the graph takes"),
        ({"questions": {"q": {"id": "x", "text": "What?"}}}, 'stands under the key "q"'),
        ({"questions": {"q": {"text": ""}}}, 'question "q"'),
    ],
)
async def test_input_that_is_none_is_one_sentence(asked: Any, sentence: str) -> None:
    async with Pool.from_engines({"a": says("A")}) as pool:
        with pytest.raises(InputError, match=sentence):
            await create_graph(Resources(pool=pool, k=1)).ainvoke(asked)
    with pytest.raises(InputError, match="no resources"):
        await create_graph().ainvoke({"questions": questions(1)})  # pyright: ignore[reportArgumentType]


async def test_a_question_without_an_id_gets_its_key() -> None:
    asked: Any = {"questions": {"mine": {"text": "What is 3 + 4?", "kind": "number"}}}
    async with Pool.from_engines({"a": ScriptedEngine("a", {"*": "Answer: 7"})}) as pool:
        state = await create_graph(Resources(pool=pool, k=1)).ainvoke(asked)
    assert state["verdicts"]["mine"]["answer"] == "7"
