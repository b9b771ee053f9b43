"""inspect-ai asks a pool: what its experts are asked, and what becomes of their replies."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import logging
import threading
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from expertmix.agents import Pool
from expertmix.agents.engines import Reply, Request
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.retrieval import InputError

pytest.importorskip("inspect_ai", reason="needs the extra harness (inspect-ai)")

from inspect_ai import Task, eval
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    Model,
    ResponseSchema,
    get_model,
)
from inspect_ai.scorer import match
from inspect_ai.tool import ToolInfo
from inspect_ai.util import json_schema

from expertmix.apps.harness.inspect_provider import ExpertmixAPI, Unanswered
from expertmix.apps.harness.subject import Subject

pytestmark = [
    # inspect-ai gives tenacity an argument that tenacity has renamed, and leaves streams to the collector.
    pytest.mark.filterwarnings("ignore:The 'initial' parameter:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]
REPOSITORY = Path(__file__).parents[3]
CAPITALS = {"France": "Paris", "Italy": "Rome", "Norway": "Oslo"}


def know_capitals(request: Request) -> str:
    text = request.messages[-1]["content"]
    return next(capital for land, capital in CAPITALS.items() if land in text)


def pool_of(**scripts: Callable[[Request], str] | str | ScriptedEngine) -> Pool:
    engines: dict[str, Any] = {}
    for alias, script in scripts.items():
        made = {"*": script} if isinstance(script, str) else script
        is_engine = isinstance(made, ScriptedEngine)
        engines[alias] = made if is_engine else ScriptedEngine(alias, made)
    return Pool.from_engines(engines)


def model_of(pool: Pool, name: str, **more: Any) -> Model:
    return get_model(f"expertmix/{name}", pool=pool, memoize=False, **more)


def capitals() -> Task:
    samples = [Sample(input=f"What is the capital of {c}?", target=t) for c, t in CAPITALS.items()]
    return Task(dataset=MemoryDataset(samples), scorer=match())


def examine(task: Task, model: Any, tmp_path: Path, **more: Any) -> EvalLog:
    [log] = eval(
        task, model=model, log_dir=str(tmp_path), display="none", log_level="error", **more
    )
    gc.collect()  # here its streams may complain, later they would in somebody else's test
    return log


def accuracy(log: EvalLog) -> float:
    assert log.status == "success", log.error
    assert log.results is not None
    return log.results.scores[0].metrics["accuracy"].value


def test_an_expert_answers_a_task(tmp_path: Path) -> None:
    engine = ScriptedEngine("a", know_capitals)
    with pool_of(a=engine, b="x") as pool:
        log = examine(capitals(), model_of(pool, "expert/a"), tmp_path)
        ledger = pool.ledger
    assert accuracy(log) == 1
    assert len(engine.requests) == 3
    usage = log.stats.model_usage["expertmix/expert/a"]
    assert usage.total_tokens == ledger.usage.prompt_tokens + ledger.usage.completion_tokens
    assert usage.output_tokens == 3


def test_a_panel_answers_a_task(tmp_path: Path) -> None:
    engines: dict[str, Any] = {n: f"I see.\nAnswer: {'Paris'}" for n in "abc"}
    with pool_of(**engines) as pool:
        log = examine(capitals(), model_of(pool, "panel", k=3), tmp_path)
    assert accuracy(log) == pytest.approx(1 / 3)
    assert log.samples is not None
    output = log.samples[0].output
    assert output.completion == "I see.\nAnswer: Paris"
    assert output.metadata is not None
    assert len(output.metadata["votes"]["Paris"]) == 3
    [event] = [event for event in log.samples[0].events if event.event == "model"]
    assert event.call is not None
    assert event.call.response is not None
    assert len(event.call.response["experts"]) == 3  # pyright: ignore[reportArgumentType]


def test_with_a_pool_file_by_name_as_the_command_line_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Subject] = []

    def make(*arguments: Any, **more: Any) -> Subject:
        made.append(Subject(*arguments, **more))
        return made[-1]

    monkeypatch.setattr("expertmix.apps.harness.inspect_provider.Subject", make)
    (tmp_path / "a.json").write_text(json.dumps({"*": "Rome"}))
    pool = tmp_path / "pool.yaml"
    pool.write_text("experts: [{alias: a, engine: scripted, script: a.json}]\n")
    arguments = {"pool": str(pool), "say": "answer", "k": 1}
    log = examine(capitals(), "expertmix/panel", tmp_path, model_args=arguments)
    assert accuracy(log) == pytest.approx(1 / 3)
    assert log.eval.model == "expertmix/panel"
    made[0].pool.close()  # inspect-ai closes nothing that it made itself


class Busy(ScriptedEngine):
    """Knows how many requests it had at the same time."""

    now = most = 0

    async def generate(self, requests: Sequence[Request], on_reply: Any = None) -> list[Reply]:
        self.now += len(requests)
        self.most = max(self.most, self.now)
        try:
            return await super().generate(requests, on_reply)
        finally:
            self.now -= len(requests)


async def test_samples_that_wait_share_the_expert() -> None:
    engine = Busy("a", know_capitals, latency=0.2)
    with pool_of(a=engine) as pool:
        model = model_of(pool, "expert/a")
        outputs = await asyncio.gather(*(model.generate(land) for land in list(CAPITALS) * 4))
    assert [output.completion for output in outputs] == list(CAPITALS.values()) * 4
    assert engine.most > 6


async def test_a_chat_goes_as_its_turns() -> None:
    engine = ScriptedEngine("a", {"*": "fine"})
    with pool_of(a=engine) as pool:
        await model_of(pool, "expert/a").generate(
            [
                ChatMessageSystem(content="Be brief."),
                ChatMessageUser(content=[ContentText(text="Hello"), ContentText(text="there")]),
                ChatMessageAssistant(content="Hi."),
                ChatMessageUser(content="How are you?"),
            ]
        )
    assert [(turn["role"], turn["content"]) for turn in engine.requests[0].messages] == [
        ("system", "Be brief."),
        ("user", "Hello\nthere"),
        ("assistant", "Hi."),
        ("user", "How are you?"),
    ]


async def test_a_panel_takes_a_chat_as_one_question() -> None:
    engine = ScriptedEngine("a", {"*": "Answer: fine"})
    with pool_of(a=engine) as pool:
        output = await model_of(pool, "panel", say="answer").generate(
            [
                ChatMessageUser(content="Hello"),
                ChatMessageAssistant(content="Hi."),
                ChatMessageUser(content="How are you?"),
            ]
        )
    [turn] = engine.requests[0].messages
    assert "User: Hello\n\nAssistant: Hi.\n\nUser: How are you?" in turn["content"]
    assert output.completion == "fine"


async def test_settings_reach_the_engine() -> None:
    engine = ScriptedEngine("a", {"*": "one two three STOP four"})
    schema = json_schema(int)
    config = GenerateConfig(
        max_tokens=2,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop_seqs=["STOP"],
        logprobs=True,
        top_logprobs=3,
        response_schema=ResponseSchema(name="n", json_schema=schema),
    )
    with pool_of(a=engine) as pool:
        output = await model_of(pool, "expert/a").generate("x", config=config)
    sampling = engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (2, 0.5, 0.9)
    assert (sampling.seed, sampling.stop, sampling.logprobs) == (7, ("STOP",), 3)
    assert sampling.json_schema == {"type": "integer"}
    assert output.completion == "one two"
    assert output.stop_reason == "max_tokens"
    logprobs = output.choices[0].logprobs
    assert logprobs is not None
    assert [item.token for item in logprobs.content] == ["one", "two"]


async def test_what_the_harness_does_not_say_is_the_experts_own(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"*": "one two three"}))
    file = tmp_path / "pool.yaml"
    own = "sampling: {max_tokens: 2}, persona: You are Ann."
    file.write_text(f"experts: [{{alias: a, engine: scripted, script: a.json, {own}}}]\n")
    async with get_model("expertmix/expert/a", pool=str(file), memoize=False) as model:
        output = await model.generate("x")
    assert output.completion == "one two"
    assert output.usage is not None
    assert output.usage.input_tokens == 4  # the persona is three words


async def test_our_own_pool_is_closed_with_the_model_and_opens_again(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"*": "yes"}))
    file = tmp_path / "pool.yaml"
    file.write_text("experts: [{alias: a, engine: scripted, script: a.json}]\n")

    def count_open() -> int:
        return sum(thread.name == "expertmix-pool" for thread in threading.enumerate())

    before = count_open()

    model = get_model("expertmix/expert/a", pool=str(file), memoize=False)
    for _ in range(2):
        assert (await model.generate("x")).completion == "yes"
        assert count_open() == before + 1
        await model.api.aclose()
        assert count_open() == before


async def test_a_pool_that_was_given_stays_open() -> None:
    with pool_of(a="yes") as pool:
        async with model_of(pool, "expert/a") as model:
            await model.generate("x")
        assert (await model_of(pool, "expert/a").generate("x")).completion == "yes"


async def test_a_prompt_that_is_too_long_is_told_as_other_providers_do() -> None:
    with pool_of(a=ScriptedEngine("a", {"*": "x"}, context_length=2)) as pool:
        output = await model_of(pool, "expert/a").generate("one two three")
    assert output.stop_reason == "model_length"
    assert output.error is not None
    assert "context window 2" in output.error


async def test_a_failure_is_raised_with_its_reason() -> None:
    broken = ScriptedEngine("a", {}, faults=Faults(fail_ids={"*"}))
    with pool_of(a=broken) as pool:
        with pytest.raises(Unanswered, match="told to fail") as raised:
            await model_of(pool, "expert/a").generate("x")
        with pytest.raises(Unanswered, match="every expert failed"):
            await model_of(pool, "panel").generate("x")
    api = model_of(pool, "expert/a").api
    assert api.should_retry(raised.value) is False
    assert api.should_retry(ValueError("x")) is False


def test_only_what_may_go_better_is_tried_again() -> None:
    from expertmix.agents.engines import Failure

    api = model_of(pool_of(a="x"), "expert/a").api
    for retryable in (True, False):
        failure = Failure(kind="timeout", message="late", retryable=retryable)
        assert api.should_retry(Unanswered(failure)) is retryable


async def test_epochs_ask_a_panel_for_new_draws() -> None:
    engine = ScriptedEngine("a", {"*": "Answer: x"})
    with pool_of(a=engine) as pool:
        for _ in range(2):
            model = model_of(pool, "panel")
            for _ in range(2):
                await model.generate("the same")
    seeds = [request.sampling.seed for request in engine.requests]
    assert seeds[0] != seeds[1]
    assert seeds[:2] == seeds[2:]  # a second run draws as the first


async def test_stop_strings_end_what_a_panel_says(caplog: pytest.LogCaptureFixture) -> None:
    name = "expertmix.apps.harness.inspect_provider"
    with pool_of(a="one STOP two\nAnswer: x") as pool, caplog.at_level(logging.WARNING, name):
        model = model_of(pool, "panel")
        config = GenerateConfig(stop_seqs=["STOP"], temperature=0.3)
        for _ in range(2):
            assert (await model.generate("q", config=config)).completion == "one "
    warnings = [r.getMessage() for r in caplog.records if "own sampling" in r.getMessage()]
    assert warnings == [
        "a panel's experts have their own sampling in the pool file: temperature not heeded"
    ]


TOOL = ToolInfo(name="t", description="d")
IMAGE = ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AAAA")])


@pytest.mark.parametrize(
    ("messages", "more", "words"),
    [
        ("q", {"tools": [TOOL]}, "experts get no tools"),
        ([IMAGE], {}, "no pictures"),
        ([ChatMessageTool(content="42")], {}, "role must be one of system, user, assistant"),
        ("q", {"config": GenerateConfig(top_k=3)}, "setting top_k"),
        ("q", {"config": GenerateConfig(frequency_penalty=1.0)}, "frequency_penalty"),
        ("q", {"config": GenerateConfig(num_choices=2)}, "epochs"),
    ],
)
async def test_what_no_expert_can_do_is_refused(messages: Any, more: Any, words: str) -> None:
    with pool_of(a="x") as pool, pytest.raises(InputError, match=words):
        await model_of(pool, "expert/a").generate(messages, **more)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("a", {}, 'no model "expertmix/a": it is expertmix/panel or expertmix/expert/ALIAS'),
        ("expert/", {}, "expertmix/expert/ALIAS"),
        ("expert/z", {}, 'no expert named "z"'),
        ("expert/a", {"k": 2}, "for a panel only"),
        ("panel", {"k": 5}, "k is 5"),
        ("panel", {"tempo": 5}, 'no setting "tempo"'),
        ("panel", {"say": "all"}, "say must be one of"),
        ("panel", {"base_url": "http://x"}, "addresses are in the pool file"),
    ],
)
def test_arguments_that_do_not_fit_get_one_sentence(name: str, more: Any, words: str) -> None:
    with pytest.raises(PrerequisiteError) as raised:
        model_of(pool_of(a="x"), name, **more)
    assert words in str(raised.value.message)


def test_a_pool_is_needed() -> None:
    with pytest.raises(PrerequisiteError) as raised:
        get_model("expertmix/panel", memoize=False)
    assert "-M pool=FILE.yaml" in str(raised.value.message)


def test_the_entry_point_of_the_package_leads_here() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    module = importlib.import_module(project["entry-points"]["inspect_ai"]["expertmix"])
    assert module.ExpertmixAPI is ExpertmixAPI
    assert isinstance(model_of(pool_of(a="x"), "panel").api, ExpertmixAPI)
