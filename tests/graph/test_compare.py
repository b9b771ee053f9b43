"""Methods over scripted experts whose every answer is known: figures by hand, and nothing asked twice."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding

from expertmix.agents import AnswerStore, Catalog, Pool
from expertmix.agents.engines import Request
from expertmix.agents.engines.scripted import Faults, ScriptedEngine
from expertmix.graph import ProfileFolder
from expertmix.graph.accounts import count_loads
from expertmix.graph.compare import KeptAnswers, acompare, compare
from expertmix.graph.comparison import Comparison
from expertmix.retrieval import InputError, Question

OPTIONS = ("red", "green", "blue", "black")
PLAN = {  # who is right: a on half of them, b on half, c on most of what the others miss
    "q1": "abc",
    "q2": "ab",
    "q3": "ac",
    "q4": "bc",
    "q5": "c",
}
WRONG = {"a": "B", "b": "B", "c": "D"}
CHOICES = [Question(id=q, text=f"{q}?", options=OPTIONS, gold="A", kind="choice") for q in PLAN]
QUESTIONS = [*CHOICES, Question(id="q6", text="How many?", gold="42", kind="number")]
REFERENCES = [
    Question(id=f"r{at}", text=f"Reference {at}", options=OPTIONS, gold="A", kind="choice")
    for at in range(20)
]
STRENGTH = {"a": 18, "b": 14, "c": 10}
"""Right answers to the references."""

ROW_KEYS = {
    "label", "method", "title", "source", "calls", "calls_mean", "prompt_tokens_mean", "tokens_mean", "seconds_mean",
    "loads", "energy_mean", "accuracy", "low", "high", "n", "seeds", "seed_spread", "ece", "unread", "failed",
    "is_ours", "is_bound", "delta", "against", "p", "p_holm", "verdict",
}  # fmt: skip


class Fake(DeterministicFakeEmbedding):
    """Stands in for MiniLM where neighbours are sought."""

    size: int = 8
    revision: str = "1"


class Nowhere:
    """An encoder that is not installed: questions have no skills."""

    @property
    def revision(self) -> str:
        raise InputError("no encoder")


@pytest.fixture(autouse=True)
def _no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expertmix.graph.extractors.MiniLM", Nowhere)
    monkeypatch.setattr("expertmix.graph.resources.MiniLM", Fake)


def answer_as(alias: str) -> Callable[[Request], str]:
    """What an expert always says: two words."""

    def say(request: Request) -> str:
        qid = request.question_id or ""
        if qid == "q6":
            return "Answer: 41"
        is_right = int(qid[1:]) < STRENGTH[alias] if qid[0] == "r" else alias in PLAN[qid]
        return f"Answer: ({'A' if is_right else WRONG[alias]})"

    return say


Engines = Mapping[str, ScriptedEngine]


def make_engines(**faults: Faults) -> dict[str, ScriptedEngine]:
    return {
        alias: ScriptedEngine(alias, answer_as(alias), faults=faults.get(alias))
        for alias in STRENGTH
    }


def count_requests(engines: Engines) -> Counter[str]:
    """Requests by expert."""
    return Counter({alias: len(engine.requests) for alias, engine in engines.items()})


@pytest.fixture(scope="session")
def profile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("expertmix.graph.extractors.MiniLM", Nowhere)
        folder = tmp_path_factory.mktemp("profile")

        async def build() -> None:
            async with Pool.from_engines(make_engines()) as pool:
                await ProfileFolder(folder).build(pool, REFERENCES)

        asyncio.run(build())
    return folder


async def run(
    profile: Path,
    engines: Engines | None = None,
    *,
    questions: Sequence[Question] = QUESTIONS,
    store: Path | None = None,
    **settings: Any,
) -> Comparison:
    """Compare over an own pool; with a store, replies are kept in a file."""
    kept = None if store is None else AnswerStore(store / "replies.sqlite")
    settings = {"methods": ["all"], "calls": [3], **settings}
    async with Pool.from_engines(engines or make_engines(), store=kept) as pool:
        return await acompare(questions, pool, profile=profile, **settings)


def by_label(comparison: Comparison) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in comparison.rows}


async def test_rows_by_hand(profile_folder: Path) -> None:
    comparison = await run(profile_folder, methods=["majority", "self_consistency", "oracle"])
    rows = by_label(comparison)
    assert list(rows) == ["single_best@1", "majority@3", "self_consistency@3", "oracle@3", "chance"]
    assert all(set(row) == ROW_KEYS for row in rows.values())
    # a has q1, q2 and q3; two of three have q1 to q4; somebody has q1 to q5.
    right = {"single_best@1": 3, "majority@3": 4, "self_consistency@3": 3, "oracle@3": 5}
    for label, number in right.items():
        assert rows[label]["accuracy"] == pytest.approx(number / 6, abs=1e-5)
        assert rows[label]["low"] < rows[label]["accuracy"] < rows[label]["high"]
        assert (rows[label]["n"], rows[label]["seeds"], rows[label]["seed_spread"]) == (6, 1, 0)
    assert {label: row["calls_mean"] for label, row in rows.items()} == {
        "single_best@1": 1,
        "majority@3": 3,
        "self_consistency@3": 3,
        "oracle@3": 3,
        "chance": 0,
    }
    assert [row["tokens_mean"] for row in rows.values()] == [2, 6, 6, 6, 0]
    delta = rows["majority@3"]["delta"]
    assert delta["mean"] == pytest.approx(1 / 6, abs=1e-5)
    assert delta["low"] == 0, "two questions are neither lost nor won in most resamples"
    majority = {name: rows["majority@3"][name] for name in ("p", "p_holm", "verdict", "against")}
    assert majority == {
        "p": 1.0,
        "p_holm": 1.0,
        "verdict": "no significant difference",
        "against": "single_best@1",
    }
    assert rows["single_best@1"]["delta"] is None
    assert rows["oracle@3"]["delta"] is None
    assert [row["is_bound"] for row in rows.values()] == [False, False, False, True, True]
    assert rows["single_best@1"]["ece"] == pytest.approx(0.5), "it is always sure"


async def test_chance_counts_options_and_open_questions_as_hopeless(profile_folder: Path) -> None:
    rows = by_label(await run(profile_folder, methods=["single_best"]))
    chance = rows["chance"]["accuracy"]
    assert chance == pytest.approx(5 / 6 / 4, abs=1e-5)
    assert rows["chance"]["low"] == rows["chance"]["high"] == chance


async def test_all_methods_come_to_a_comparison(profile_folder: Path) -> None:
    engines = make_engines()
    comparison = await run(profile_folder, engines, calls=[2, 6], seeds=2)
    rows = by_label(comparison)
    methods = list(dict.fromkeys(row["method"] for row in rows.values()))
    assert methods == [
        "panel",
        "adaptive",
        "single_best",
        "knn_router",
        "majority",
        "self_consistency",
        "self_refine",
        "debate",
        "debate_mixed",
        "mixture_of_agents",
        "self_moa",
        "reconcile",
        "random_panel",
        "symbolic_moe",
        "oracle",
        "chance",
    ]
    assert comparison.skipped == {}
    for row in rows.values():
        assert row["calls_mean"] <= row["calls"] + 1e-9
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert row["seeds"] == (1 if row["method"] == "chance" else 2)
        assert row["loads"] == 0, "nothing of this takes turns on a device"
        assert row["is_bound"] or row["accuracy"] <= rows["oracle@3"]["accuracy"]
    assert json.loads(json.dumps(comparison.to_json()))["rows"] == comparison.rows
    assert {(pair.by, pair.ours) for pair in comparison.matched} >= {
        ("calls", "panel@2"),
        ("calls", "panel@3"),
        ("tokens", "adaptive@2"),
    }
    assert all(line.endswith(".") and "  " not in line for line in comparison.findings)


async def test_equal_requests_of_different_methods_are_asked_once(
    profile_folder: Path, tmp_path: Path
) -> None:
    engines = make_engines()
    await run(profile_folder, engines, calls=[3, 6], store=tmp_path)
    asked = Counter(
        (alias, request.question_id, str(request.messages), request.sampling)
        for alias, engine in engines.items()
        for request in engine.requests
    )
    assert max(asked.values()) == 1
    [first, *rest] = [
        request.messages for request in engines["b"].requests if request.question_id == "q1"
    ]
    assert first[0]["content"].count("q1?") == 1
    assert rest
    assert first not in rest, "panels, votes, debates and the oracle share the plain question"


async def test_each_method_is_charged_as_if_it_were_alone(
    profile_folder: Path, tmp_path: Path
) -> None:
    together = by_label(await run(profile_folder, calls=[3, 6], store=tmp_path))
    for method in ("majority", "debate_mixed", "reconcile", "self_moa"):
        alone = by_label(await run(profile_folder, methods=[method], calls=[3, 6]))
        for label in set(alone) & set(together):
            for name in ("calls_mean", "tokens_mean", "prompt_tokens_mean", "accuracy"):
                assert alone[label][name] == together[label][name], (label, name)


async def test_a_second_run_asks_nothing(profile_folder: Path, tmp_path: Path) -> None:
    first, second = make_engines(), make_engines()
    settings: dict[str, Any] = {"methods": ["panel", "debate", "oracle"], "calls": [3, 6]}
    before = await run(profile_folder, first, out=tmp_path, **settings)
    after = await run(profile_folder, second, out=tmp_path, **settings)
    assert count_requests(second).total() == 0
    untimed = [{**row, "seconds_mean": None} for row in before.rows]
    assert [{**row, "seconds_mean": None} for row in after.rows] == untimed
    assert after.findings == before.findings


async def test_only_what_failed_is_asked_again(profile_folder: Path, tmp_path: Path) -> None:
    broken = make_engines(b=Faults(fail_ids={"q2"}))
    settings: dict[str, Any] = {"methods": ["panel", "majority", "knn_router"], "store": tmp_path}
    cut = await run(profile_folder, broken, out=tmp_path / "kept", **settings)
    rows = by_label(cut)
    assert rows["majority@3"]["failed"] == pytest.approx(1 / 6, abs=1e-5)
    assert rows["single_best@1"]["failed"] == 0
    assert any(line.startswith("Experts failed: ") for line in cut.findings)
    mended = make_engines()
    whole = await run(profile_folder, mended, out=tmp_path / "kept", **settings)
    assert [(alias, n) for alias, n in count_requests(mended).items() if n] == [("b", 1)]
    assert mended["b"].requests[0].question_id == "q2"
    assert whole.findings == (await run(profile_folder, methods=settings["methods"])).findings


async def test_more_methods_and_calls_ask_only_what_is_missing(
    profile_folder: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"store": tmp_path, "out": tmp_path / "kept"}
    await run(profile_folder, methods=["majority"], calls=[2], **settings)
    more = make_engines()
    await run(profile_folder, more, methods=["majority", "oracle"], calls=[2, 3], **settings)
    assert count_requests(more) == {"a": 0, "b": 0, "c": 6}
    seeds = make_engines()
    await run(profile_folder, seeds, methods=["single_best"], seeds=2, **settings)
    assert count_requests(seeds) == {"a": 6, "b": 0, "c": 0}


async def test_seeds_are_averaged_over_the_same_questions(profile_folder: Path) -> None:
    def by_seed(request: Request) -> str:
        return f"Answer: ({'A' if (request.sampling.seed or 0) % 3 else 'B'})"

    engines = {**make_engines(), "a": ScriptedEngine("a", by_seed)}
    settings: dict[str, Any] = {"questions": CHOICES, "methods": ["single_best"], "seeds": 4}
    comparison = await run(profile_folder, engines, **settings)
    entry = comparison["single_best@1"]
    assert list(entry.by_seed) == [0, 1, 2, 3]
    shares = [sum(bool(s.correct) for s in found) / 5 for found in entry.by_seed.values()]
    assert len(set(shares)) > 1, "another seed draws other answers"
    row = comparison.rows[0]
    assert row["accuracy"] == pytest.approx(sum(shares) / 4, abs=1e-5)
    assert row["seed_spread"] > 0
    assert (row["n"], row["seeds"], row["calls_mean"]) == (5, 4, 1)


async def test_everybody_always_right_is_no_certainty(profile_folder: Path) -> None:
    comparison = await run(profile_folder, questions=CHOICES[:1], methods=["majority"])
    rows = by_label(comparison)
    assert rows["majority@3"]["accuracy"] == rows["majority@3"]["high"] == 1
    assert rows["majority@3"]["low"] < 0.3, "one question says next to nothing"
    assert rows["majority@3"]["p"] == 1
    assert "1 question," in " ".join(comparison.findings)
    assert "1 questions" not in " ".join([*comparison.findings, repr(comparison)])


async def test_what_cannot_be_read_is_told(profile_folder: Path) -> None:
    engines = {**make_engines(), "a": ScriptedEngine("a", {"*": "I would rather not say."})}
    comparison = await run(profile_folder, engines, methods=["majority"], calls=[2])
    rows = by_label(comparison)
    assert (rows["single_best@1"]["unread"], rows["single_best@1"]["accuracy"]) == (1, 0)
    assert (rows["majority@2"]["unread"], rows["majority@2"]["failed"]) == (0, 0)
    assert rows["majority@2"]["accuracy"] == pytest.approx(3 / 6)


async def test_experts_that_choose_instead_of_writing_have_no_tokens_to_compare(
    profile_folder: Path,
) -> None:
    settings: dict[str, Any] = {"questions": CHOICES, "settings": {"style": "score"}}
    engines = {
        alias: ScriptedEngine(alias, {q: "A" if alias in who else "D" for q, who in PLAN.items()})
        for alias in STRENGTH
    }
    comparison = await run(profile_folder, engines, calls=[3], **settings)
    rows = by_label(comparison)
    assert rows["majority@3"]["accuracy"] == pytest.approx(4 / 5)
    assert rows["panel@3"]["tokens_mean"] == 0
    assert {pair.by for pair in comparison.matched} == {"calls"}
    assert not any(" 0 " in line for line in comparison.findings)


async def test_the_loads_of_a_growing_panel_are_those_that_it_made(
    profile_folder: Path, tmp_path: Path
) -> None:
    """On a device with room for one: whoever joins in a later round is loaded in that round."""
    chance = random.Random(2)
    tests = [Question.from_json({**CHOICES[0].to_json(), "id": f"t{at}"}) for at in range(30)]
    experts: list[dict[str, Any]] = []
    for rank, alias in enumerate("abcde"):
        told = {
            q.id: f"Answer: ({'A' if chance.random() < 0.7 - rank / 20 else chance.choice('BCD')})"
            for q in [*REFERENCES, *tests]
        }
        (tmp_path / f"{alias}.json").write_text(json.dumps(told))
        experts.append({"alias": alias, "engine": "scripted", "script": f"{alias}.json"})
        experts[-1]["memory_gib"] = 0.1
    rows = {"experts": experts, "max_resident": 1, "devices": [{"name": "cpu", "memory_gib": 1}]}
    catalog = Catalog.from_dict(rows, base=tmp_path)
    async with Pool(catalog, patience=math.inf) as pool:
        await ProfileFolder(tmp_path / "made").build(pool, REFERENCES)
        before = len(pool.ledger.loads)
        comparison = await acompare(
            tests, pool, profile=tmp_path / "made", methods=["adaptive"], calls=[3]
        )
        made = len(pool.ledger.loads) - before
    entry = comparison["adaptive@3"]
    rounds: dict[int, set[str]] = {}
    for expert in (expert for solution in entry.by_seed[0] for expert in solution.experts):
        found = re.match(r"round (\d+), expected gain", expert["reason"])
        rounds.setdefault(1 if found is None else int(found[1]), set()).add(expert["expert"])
    least = count_loads([rounds[number] for number in sorted(rounds)], catalog)
    assert len(set.union(*rounds.values())) < least == entry.spending.loads <= made


async def test_calls_that_name_skills_are_charged(profile_folder: Path, tmp_path: Path) -> None:
    def name_skills(request: Request) -> str:
        if request.sampling.json_schema is None:
            return answer_as("a")(request)
        return '{"skills": [{"skill": "sums", "importance": 3}]}'

    engines = {**make_engines(), "a": ScriptedEngine("a", name_skills)}
    experts = [{"alias": alias, "engine": "given"} for alias in engines]
    told = {"experts": experts, "skills": {"sums": "Adding up.", "law": "Laws."}, "skills_by": "a"}
    async with Pool(Catalog.from_dict(told), engines=engines) as pool:
        await ProfileFolder(tmp_path).build(pool, REFERENCES)
        comparison = await acompare(
            QUESTIONS, pool, profile=tmp_path, methods=["panel", "majority"], calls=[3]
        )
    rows = by_label(comparison)
    assert (rows["panel@3"]["calls_mean"], rows["majority@3"]["calls_mean"]) == (4, 3)
    assert rows["panel@3"]["tokens_mean"] == rows["majority@3"]["tokens_mean"] + 5
    assert rows["panel@3"]["prompt_tokens_mean"] > rows["majority@3"]["prompt_tokens_mean"]


async def test_kept_answers_of_something_else_are_not_taken(
    profile_folder: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"methods": ["single_best"], "out": tmp_path / "kept"}
    await run(profile_folder, **settings)
    # Others were asked in between; the same ids, another profile, another pool.
    harder = [Question.from_json({**q.to_json(), "text": f"{q.text} Really?"}) for q in QUESTIONS]
    engines = make_engines()
    await run(profile_folder, engines, questions=harder, **settings)
    assert count_requests(engines)["a"] == 6
    other = make_engines()
    async with Pool.from_engines(other) as pool:
        await ProfileFolder(tmp_path / "other").build(pool, REFERENCES[:12])
    engines = make_engines()
    await run(tmp_path / "other", engines, **settings)
    assert count_requests(engines)["a"] == 6
    engines = make_engines()
    await run(profile_folder, engines, **settings)
    assert count_requests(engines).total() == 0


@pytest.mark.parametrize("damage", ["", "{", "[1]\n", '{"id": "q1"}\n', "\x00\xff"])
async def test_damaged_answers_are_given_again(
    profile_folder: Path, tmp_path: Path, damage: str
) -> None:
    settings: dict[str, Any] = {"methods": ["single_best"], "out": tmp_path}
    await run(profile_folder, **settings)
    [file] = tmp_path.rglob("single_best@1-seed0.jsonl")
    whole = file.read_text()
    file.write_text(damage)
    engines = make_engines()
    comparison = await run(profile_folder, engines, **settings)
    assert count_requests(engines) == {"a": 6, "b": 0, "c": 0}
    assert comparison["single_best@1"].spending.calls == 1
    assert file.read_text() == whole


async def test_a_full_disk_is_one_sentence(profile_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file, and no folder")
    with pytest.raises(InputError, match=r"cannot write to .*; what is finished is kept"):
        await run(profile_folder, methods=["single_best"], out=tmp_path / "kept")


def test_answers_are_kept_by_method_size_and_seed(tmp_path: Path) -> None:
    from expertmix.graph.baselines import Majority

    kept = KeptAnswers(tmp_path / "deep" / "er")
    assert kept.read(Majority(k=2), 0, QUESTIONS) is None
    kept.keep(Majority(k=2), 0, [])
    assert kept.read(Majority(k=2), 0, []) == []
    assert kept.read(Majority(k=3), 0, []) is None
    assert kept.read(Majority(k=2), 1, []) is None


async def test_a_comparison_shows_and_saves_itself(profile_folder: Path, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    comparison = await run(
        profile_folder,
        methods=["panel", "majority"],
        remarks=[hostile],
        facts={hostile: hostile},
    )
    table = comparison.to_pandas()
    assert list(table["label"]) == ["panel@3", "single_best@1", "majority@3", "chance"]
    assert {"delta_mean", "delta_low", "delta_high", "p_holm"} <= set(table.columns)
    assert "delta" not in table.columns
    assert table["delta_mean"].notna().tolist() == [True, False, True, False]
    page = comparison._repr_html_()  # pyright: ignore[reportPrivateUsage]
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    for word in ("majority@3", "vote of the strongest experts", "6 questions", "chance"):
        assert word in page
    assert repr(comparison) == "<Comparison of 3 forms of 3 methods on 6 questions>"
    comparison.save(tmp_path / "comparison.json")
    told = json.loads((tmp_path / "comparison.json").read_text())
    assert told == comparison.to_json()
    assert set(told) == {"rows", "matched", "findings", "skipped", "budgets", "facts"}
    assert told["facts"]["energy"]
    with pytest.raises(InputError, match="there are panel@3, single_best@1, majority@3"):
        _ = comparison["debate@6"]


async def test_the_entry_to_look_into_is_ours_and_never_a_bound(profile_folder: Path) -> None:
    async def find(methods: list[str], calls: list[int]) -> str:
        main = (await run(profile_folder, methods=methods, calls=calls)).main
        assert main is not None
        return main.label

    assert await find(["panel", "adaptive", "oracle"], [2, 3]) == "panel@2"
    assert await find(["adaptive", "oracle"], [2]) == "adaptive@2"
    assert await find(["majority", "oracle"], [3]) == "majority@3"
    assert await find(["oracle"], [3]) == "single_best@1"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["debait"]}, 'no method "debait"'),
        ({"methods": ["debate"]}, "the method debate cannot take part: it has no form for 3"),
        ({"calls": [0]}, "calls per question are 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"questions": []}, "there are no questions"),
        ({"questions": [CHOICES[0], CHOICES[0]]}, 'two questions have the id "q1"'),
        ({"questions": [*CHOICES, Question(id="x", text="?")]}, "1 of 6 questions have no gold"),
        ({"settings": {"k": 9}}, "k is 9, but there are 3 experts"),
    ],
)
async def test_what_does_not_fit_is_one_sentence(
    profile_folder: Path, changes: dict[str, Any], words: str
) -> None:
    engines = make_engines()
    with pytest.raises(InputError, match=words):
        await run(profile_folder, engines, **changes)
    assert count_requests(engines).total() == 0


async def test_without_a_profile_nobody_is_the_strongest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no profile at"):
        await run(tmp_path / "nowhere", methods=["single_best"])


async def test_compare_works_in_scripts_and_where_a_loop_runs(profile_folder: Path) -> None:
    with Pool.from_engines(make_engines()) as pool:
        for _ in range(2):
            comparison = compare(
                QUESTIONS, pool, profile=profile_folder, methods=["single_best"], calls=[1]
            )
            assert [row["label"] for row in comparison.rows] == ["single_best@1", "chance"]
