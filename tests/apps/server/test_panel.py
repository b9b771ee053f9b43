"""The panel: an answer to read, how it came about, and one call per expert for all who ask together."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from openai import AsyncOpenAI, OpenAI

from expertmix.agents import Pool
from expertmix.agents.engines import Request
from expertmix.agents.engines.scripted import Faults
from expertmix.apps.session import PanelSettings
from expertmix.graph import ProfileFolder
from expertmix.retrieval import InputError, Question

ASKED = "What is the capital of France?"
WHICH = {"options": ["Lyon", "Paris"]}


def content(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def events(text: str) -> list[dict[str, Any]]:
    """The chunks of a stream; it has to end as it should."""
    rows = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]
    assert rows.pop() == "[DONE]"
    return [json.loads(row) for row in rows]


def test_the_answer_is_the_words_of_who_agrees_then_the_answer_then_who_said_what(
    start: Any,
) -> None:
    running = start(dict.fromkeys("ab", "Surely.\nAnswer: Paris") | {"c": "Answer: Lyon"})
    prose, answer, told = content(running.post("expertmix/auto", ASKED)).split("\n\n")
    assert (prose, answer) == ("Surely.", "Answer: Paris")
    assert told in ("(agreed: a, b; dissent: c: Lyon)", "(agreed: b, a; dissent: c: Lyon)")
    for stop, cut in (("\n\n", "Surely."), (["x", "aris"], "Surely.\n\nAnswer: P")):
        reply = running.post("expertmix/auto", ASKED, stop=stop)
        assert content(reply) == cut
        assert reply.json()["expertmix"]["answer"] == "Paris"


def test_openais_client_finds_an_answer_and_how_it_came_about(server: Any) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        reply = client.chat.completions.create(
            model="expertmix/auto", messages=[{"role": "user", "content": ASKED}], seed=5
        )
    assert reply.model_extra is not None
    told = reply.model_extra["expertmix"]
    assert told["answer"] == "Paris"
    assert told["confidence"] == pytest.approx(2 / 3)
    assert sorted(told["votes"]["Paris"]) == ["a", "b"]
    assert told["dissent"] == {"Lyon": ["c"]}
    assert told["missing"] == {}
    assert {row["expert"]: row["answer"] for row in told["experts"]} == {
        "a": "Paris",
        "b": "Paris",
        "c": "Lyon",
    }
    assert all("seed 5" in row["reason"] for row in told["experts"])
    asked = [engine.requests[-1] for engine in server.engines.values()]
    prompt = sum(len(turn["content"].split()) for request in asked for turn in request.messages)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == prompt
    assert reply.usage.total_tokens == prompt + 2 + 3 + 2


def test_the_answer_alone_for_programs(start: Any) -> None:
    running = start({"a": "Answer: (B)", "b": "I say (B).", "c": "Answer: (A)"})
    alone = running.post("expertmix/auto", ASKED, expertmix={**WHICH, "format": "answer"})
    assert content(alone) == "(B) Paris"
    read = content(running.post("expertmix/auto", ASKED, expertmix=WHICH))
    assert "\n\nAnswer: (B) Paris\n\n(agreed: " in f"\n\n{read}"
    assert "dissent: c: A)" in read


def test_experts_that_scored_the_options_have_no_words(start: Any) -> None:
    keys = {alias: {"style": "score"} for alias in "ab"}
    running = start({"a": "Paris", "b": "Paris"}, file={"experts": keys})
    text = content(running.post("expertmix/auto", ASKED, expertmix=WHICH))
    assert text.startswith("Answer: (B) Paris\n\n(agreed: ")


def test_a_model_that_merges_has_the_word(start: Any, expert: Any) -> None:
    def judge(request: Request) -> str:
        asked = request.messages[-1]["content"]
        if "Draft 1" not in asked:
            return "Answer: Nice"
        if request.sampling.max_tokens == 2:
            return "Answer: Lyon for many reasons"
        return "Weighing both.\nAnswer: Lyon"

    running = start(
        {"a": "Answer: Paris", "b": "Answer: Lyon", "c": expert("c", judge)},
        file={"aggregator": "c"},
    )
    reply = running.post("expertmix/auto", ASKED)
    assert content(reply).startswith("Weighing both.\n\nAnswer: Lyon\n\n(agreed: b; dissent: ")
    assert reply.json()["expertmix"]["method"] == "model"
    stages = [
        chunk["expertmix"]["stage"]
        for chunk in events(running.post("expertmix/auto", ASKED, stream=True).text)
        if "event" in chunk.get("expertmix", {})
    ]
    assert stages == ["reason"] * 6 + ["aggregate"] * 2
    short = running.post("expertmix/auto", ASKED, max_tokens=2).json()
    assert short["choices"][0]["finish_reason"] == "length"


def test_thoughts_are_not_shown(start: Any) -> None:
    running = start({"a": "<think>Lyon? No.</think>It is known.\n**Answer: Paris**"})
    text = content(running.post("expertmix/auto", ASKED))
    assert text == "It is known.\n\nAnswer: Paris\n\n(agreed: a)"


def test_what_nobody_can_read_is_shown_as_it_is(start: Any) -> None:
    running = start(
        {"a": "I have no idea, and I shall go on about that for far more than twelve words."}
    )
    reply = running.post("expertmix/auto", ASKED)
    assert content(reply).startswith("I have no idea")
    assert content(reply).endswith("No answer: none could be read.\n\n(unreadable: a)")
    assert reply.json()["expertmix"]["answer"] is None


def test_an_answer_that_is_too_uncertain_is_withheld(start: Any) -> None:
    panel = PanelSettings(abstain_below=0.9)
    reply = start(panel=panel).post("expertmix/auto", ASKED)
    assert content(reply).startswith("No answer: the panel is not sure enough.\n\n(dissent: ")
    assert reply.json()["expertmix"]["abstained"] is True


def test_a_failed_expert_is_missing_and_its_words_stay_here(start: Any, expert: Any) -> None:
    broken = expert("c", lambda request: request.secret)  # pyright: ignore[reportUnknownLambdaType]
    running = start({"a": "Answer: Paris", "c": broken})
    reply = running.post("expertmix/auto", ASKED)
    assert content(reply).endswith("(agreed: a; failed: c)")
    assert reply.json()["expertmix"]["missing"] == {
        "c": 'expert "c" failed while it worked on this'
    }
    assert "secret" not in reply.text


@pytest.mark.parametrize(
    ("faults", "status"), [(Faults(load="no /path"), 503), (Faults(fail_ids={"*"}), 502)]
)
def test_without_any_answer_there_is_an_error(
    start: Any, expert: Any, faults: Faults, status: int
) -> None:
    running = start({a: expert(a, {"*": "x"}, faults=faults) for a in "ab"})
    reply = running.post("expertmix/auto", ASKED)
    assert reply.status_code == status
    assert 'expert "a"' in reply.json()["error"]["message"]
    assert "/path" not in reply.text
    [_, *rest] = events(running.post("expertmix/auto", ASKED, stream=True).text)
    assert 'expert "b"' in rest[-1]["error"]["message"]


def test_sampling_reaches_every_expert_and_never_raises_its_bound(start: Any) -> None:
    running = start(file={"experts": {"a": {"sampling": {"max_tokens": 5}}}})
    running.post("expertmix/auto", ASKED, temperature=0.7, top_p=0.5, max_tokens=9)
    for alias, most in (("a", 5), ("b", 9)):
        sampling = running.engines[alias].requests[-1].sampling
        assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.7, 0.5, most)


def test_cut_off_words_are_called_that(start: Any) -> None:
    running = start({"a": "Answer: Paris, I think"})
    reply = running.post("expertmix/auto", ASKED, max_tokens=2)
    assert content(reply).startswith("Answer: Paris")
    assert reply.json()["choices"][0]["finish_reason"] == "length"


def test_a_stream_tells_who_works_then_the_answer(server: Any) -> None:
    options = {"include_usage": True}
    reply = server.post("expertmix/auto", ASKED, stream=True, stream_options=options)
    assert reply.headers["content-type"].startswith("text/event-stream")
    first, *middle, text, last, usage = events(reply.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    told = [(row["expertmix"]["event"], row["expertmix"]["expert"]) for row in middle]
    assert sorted(told) == [
        (event, expert) for event in ("expert_finished", "expert_started") for expert in "abc"
    ]
    assert all(row["choices"][0]["delta"] == {} for row in middle)
    assert "Answer: Paris" in text["choices"][0]["delta"]["content"]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["expertmix"]["answer"] == "Paris"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 7
    assert first["usage"] is None


async def test_who_asks_together_is_answered_together(start: Any) -> None:
    running = start(window=0.3)
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        replies = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model="expertmix/auto", messages=[{"role": "user", "content": f"Question {n}?"}]
                )
                for n in range(8)
            )
        )
    assert all("Answer: Paris" in str(r.choices[0].message.content) for r in replies)
    for engine in running.engines.values():
        assert engine.calls <= 2
        assert len(engine.requests) == 8


def test_the_same_question_gets_the_same_panel_and_another_seed_another(start: Any) -> None:
    running = start({alias: f"Answer: {alias}" for alias in "abcdefgh"}, panel=PanelSettings(k=2))

    def ask(**more: Any) -> list[str]:
        told = running.post("expertmix/random", ASKED, **more).json()["expertmix"]
        return [row["expert"] for row in told["experts"]]

    assert ask() == ask()
    assert len({tuple(ask(seed=seed)) for seed in range(6)}) > 1


class Fake(DeterministicFakeEmbedding):
    """Stands in for MiniLM."""

    size: int = 8
    revision: str = "1"


async def test_a_profile_opens_every_policy_and_makes_confidence_a_chance(
    start: Any, expert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("extractors", "resources"):
        monkeypatch.setattr(f"expertmix.graph.{module}.MiniLM", Fake)
    said = {"a": "Answer: (B)", "b": "Answer: (A)", "c": "Answer: (B)"}
    references = [
        Question(id=f"r{at}", text=f"{at}?", options=("x", "y"), gold="B", kind="choice")
        for at in range(6)
    ]
    folder = ProfileFolder(tmp_path / "made")
    engines = {alias: expert(alias, {"*": line}) for alias, line in said.items()}
    async with Pool.from_engines(engines, store=folder.store) as pool:
        await folder.build(pool, references)
    running = start(said, panel=PanelSettings(profile=folder.path, k=2, policy="top_k"))
    models = [card["id"] for card in running.web.get("/v1/models").json()["data"]]
    policies = ["auto", "skill", "top_k", "random", "paper", "reference"]
    assert models[: len(policies)] == [f"expertmix/{policy}" for policy in policies]
    for policy in ("auto", "top_k"):
        reply = running.post(f"expertmix/{policy}", ASKED, expertmix=WHICH)
        told = reply.json()["expertmix"]
        assert [row["expert"] for row in told["experts"]] == ["a", "c"]
        assert told["method"] == "posterior"
        sure = f"({told['confidence']:.0%} sure; agreed: a, c)"
        assert content(reply) == f"Answer: (B) Paris\n\n{sure}"


def test_a_panel_of_too_many_calls_is_refused(start: Any) -> None:
    with pytest.raises(InputError, match="may make 6 calls for one question, more than the 5"):
        start(panel=PanelSettings(samples=2), max_calls=5)


def test_a_conversation_without_a_question_is_refused_before_a_stream_begins(server: Any) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="no user turn"):
                client.chat.completions.create(
                    model="expertmix/auto",
                    messages=[{"role": "system", "content": "Be brief."}],
                    stream=stream,
                )
