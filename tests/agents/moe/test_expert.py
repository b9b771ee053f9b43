"""A mixture of experts as an engine: letters by re-mixing, writing under a routing, and what is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("faiss", reason="needs faiss")

import torch
from moe_families import make_model
from moe_wording import make_questions, make_tokenizer

from expertmix.agents.engines import EngineError, Request, Sampling
from expertmix.agents.engines.transformers import TransformersEngine
from expertmix.agents.moe.expert import RemixEngine
from expertmix.agents.moe.settings import RemixSettings
from expertmix.agents.reason import build_requests, read_reply
from expertmix.retrieval import Question

QUESTIONS = make_questions(5, seed=7)
REFERENCES = make_questions(40, seed=1)
FREE = RemixSettings(layers=2, core_experts=None, held_back=0, optimizer="adam")


class Words:
    """Texts → vectors by the words that they hold; an encoder that needs no weights."""

    name, revision = "words", "1"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), 64), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                vectors[row, sum(word.encode()) % 64] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random mixture with its tokenizer, as transformers writes it."""
    place = tmp_path_factory.mktemp("model")
    make_model("qwen2_moe", dtype=torch.float32).save_pretrained(place)
    make_tokenizer().save_pretrained(place)
    return place


def make_engine(model: Path, remix: RemixSettings = FREE, **changes: Any) -> RemixEngine:
    settings: dict[str, Any] = {"references": REFERENCES, "encoder": Words(), "remix": remix}
    return RemixEngine("mixer", model, **(settings | changes))


async def ask(engine: Any, style: Any, questions: Sequence[Question] = QUESTIONS) -> list[Any]:
    requests = build_requests(questions, sampling=Sampling(max_tokens=4), style=style)
    return await engine.generate(requests)


async def test_letters_are_decided_and_everything_is_told(folder: Path) -> None:
    engine = make_engine(folder)
    load = await engine.start()
    assert load.memory_bytes > 0
    replies = await ask(engine, "letter")
    await engine.close()
    for question, reply in zip(QUESTIONS, replies, strict=True):
        told = reply.details["remix"]
        json.dumps(told)  # plain values
        assert len(reply.scores) == len(question.options)
        assert read_reply(reply, question, "mixer").answer == told["after"]
        assert told["verdict"] == "changed"
        assert len(told["neighbours"]) == 3
        assert not {name for name, _ in told["neighbours"]} & {question.id}
        assert min(told["curve"]) < told["curve"][0]
        assert told["pathway_before"] != told["pathway_after"]
        assert sum(told["probabilities_after"]) == pytest.approx(1, abs=1e-4)
        assert "re-mixing: changed" in read_reply(reply, question, "mixer").text


async def test_with_the_gate_shut_it_is_the_plain_model(folder: Path) -> None:
    shut = make_engine(folder, FREE.model_copy(update={"unsure_below": 0.0}))
    plain = TransformersEngine("plain", folder)
    await shut.start()
    await plain.start()
    for style in ("letter", "reason", "score"):
        ours, theirs = await ask(shut, style), await ask(plain, style)
        for a, b in zip(ours, theirs, strict=True):
            assert a.text == b.text
            gap = [x.logprob - y.logprob for x, y in zip(a.scores, b.scores, strict=True)]
            # Letters compete among themselves in ours, with all words in the plain engine's.
            assert gap == pytest.approx([gap[0]] * len(gap) if gap else [], abs=1e-4)
    told = (await ask(shut, "letter"))[0].details["remix"]
    assert (told["verdict"], told["curve"]) == ("kept: confident", [])
    await shut.close()
    await plain.close()


async def test_only_the_last_prompt_token_of_what_is_written_is_re_routed(folder: Path) -> None:
    engine, plain = make_engine(folder), TransformersEngine("plain", folder)
    await engine.start()
    await plain.start()
    sampling = Sampling(max_tokens=4, logprobs=1)
    requests = build_requests(QUESTIONS, sampling=sampling, style="reason")
    ours, theirs = await engine.generate(requests), await plain.generate(requests)
    assert all(reply.details["remix"]["verdict"] == "changed" for reply in ours)
    gaps = [
        [abs(x.logprob - y.logprob) for x, y in zip(a.logprobs, b.logprobs, strict=False)]
        for a, b in zip(ours, theirs, strict=True)
        if a.text == b.text
    ]
    assert gaps
    for first, *later in gaps:
        assert first > 1e-3
        assert max(later, default=0.0) < first / 2  # they only attend to what was changed
    # Afterwards nothing is left behind: a request about no question is the plain model's.
    bare = [
        Request(id=request.id, messages=request.messages, sampling=sampling) for request in requests
    ]
    again = await engine.generate(bare)
    assert [reply.logprobs for reply in again] == [reply.logprobs for reply in theirs]
    assert not any(reply.details for reply in again)
    await engine.close()
    await plain.close()


async def test_a_question_does_not_depend_on_its_batch(folder: Path) -> None:
    engine = make_engine(folder)
    await engine.start()
    together = await ask(engine, "letter")
    alone = [(await ask(engine, "letter", [question]))[0] for question in QUESTIONS]
    await engine.close()
    for a, b in zip(together, alone, strict=True):
        for x, y in zip(a.scores, b.scores, strict=True):
            assert x.logprob == pytest.approx(y.logprob, abs=1e-4)


async def test_neighbours_may_be_found_by_the_models_own_hidden_state(folder: Path) -> None:
    engine = make_engine(folder, FREE.model_copy(update={"search": "hidden"}), encoder=None)
    await engine.start()  # and no encoder is asked
    replies = await ask(engine, "letter")
    await engine.close()
    assert all(len(reply.details["remix"]["neighbours"]) == 3 for reply in replies)


async def test_a_bad_question_fails_alone(folder: Path) -> None:
    engine = make_engine(folder, context_length=64)
    await engine.start()
    long = Question(id="long", text="w1 " * 100, options=("w1", "w2"), gold="A", kind="choice")
    replies = await ask(engine, "letter", [QUESTIONS[0], long, QUESTIONS[1]])
    await engine.close()
    assert [reply.request_id for reply in replies] == ["q7-0#0", "long#0", "q7-1#0"]
    assert [reply.failure is None for reply in replies] == [True, False, True]
    assert "window of 64" in replies[1].failure.message


async def test_states_are_kept_and_read_again(folder: Path, tmp_path: Path) -> None:
    first = make_engine(folder, folder=tmp_path / "states")
    await first.start()
    before = await ask(first, "letter")
    await first.close()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "states").iterdir()}
    second = make_engine(folder, folder=tmp_path / "states")
    await second.start()
    after = await ask(second, "letter")
    await second.close()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "states").iterdir()} == written
    assert [reply.scores for reply in before] == [reply.scores for reply in after]


async def test_its_own_references_are_not_run_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import expertmix.agents.moe.remix as remix

    engine = make_engine(folder)
    await engine.start()
    fresh = [
        Question(
            id=f"other {question.id}",
            text=question.text,
            options=question.options,
            gold=question.gold,
            kind="choice",
        )
        for question in REFERENCES[:6]
    ]
    expected = await ask(engine, "letter", fresh)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was run again")

    monkeypatch.setattr(remix, "capture", never)
    known = await ask(engine, "letter", REFERENCES[:6])
    await engine.close()
    for a, b in zip(known, expected, strict=True):
        before = [reply.details["remix"]["probabilities_before"] for reply in (a, b)]
        assert before[0] == pytest.approx(before[1], abs=1e-5)
        named = {name for name, _ in a.details["remix"]["neighbours"]}
        assert a.request_id.partition("#")[0] not in named  # nor is it its own neighbour


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"references": []}, "no multiple-choice questions among its references"),
        ({"remix": FREE.model_copy(update={"layers": 9})}, "9 critical layers"),
        ({"budget_bytes": 10}, "do not fit into"),
    ],
)
async def test_what_cannot_be_re_mixed_is_said_at_the_start(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    engine = make_engine(folder, **changes)
    with pytest.raises(EngineError, match=said):
        await engine.start()
    await engine.close()


async def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    engine = make_engine(tmp_path)
    with pytest.raises(EngineError, match=r"cannot be re-mixed: it is a dense model.*moe build"):
        await engine.start()
    await engine.close()


async def test_a_reference_that_cannot_be_asked_is_left_out(folder: Path) -> None:
    odd = Question(
        id="odd", text="w1", options=tuple(f"w{n}" for n in range(12)), gold="A", kind="choice"
    )
    engine = make_engine(folder, references=[odd, *REFERENCES])
    await engine.start()
    assert len(engine.remixer.bank) == len(REFERENCES)
    await engine.close()


async def test_where_no_routing_can_be_found_it_is_written_by_the_models_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, plain = make_engine(folder), TransformersEngine("plain", folder)
    await engine.start()
    await plain.start()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(engine.remixer, "solve", fail)
    ours, theirs = await ask(engine, "reason"), await ask(plain, "reason")
    assert [reply.text for reply in ours] == [reply.text for reply in theirs]
    assert "no room" in ours[0].details["remix"]["verdict"]
    decided = await ask(engine, "letter")  # there is nothing else to decide by
    assert all(reply.failure is not None for reply in decided)
    await engine.close()
    await plain.close()


async def test_a_core_smaller_than_the_top_k_is_refused(folder: Path) -> None:
    engine = make_engine(folder, FREE.model_copy(update={"core_experts": 2}))
    with pytest.raises(EngineError, match="a core of 2 experts is smaller than the 3"):
        await engine.start()
    await engine.close()


async def test_two_engines_that_start_together_build_one_bank(folder: Path, tmp_path: Path) -> None:
    import asyncio

    engines = [make_engine(folder, folder=tmp_path / "states") for _ in range(2)]
    await asyncio.gather(*(engine.start() for engine in engines))
    replies = [await ask(engine, "letter") for engine in engines]
    for engine in engines:
        await engine.close()
    assert [r.scores for r in replies[0]] == [r.scores for r in replies[1]]
    assert not list((tmp_path / "states").rglob("*.draft"))
