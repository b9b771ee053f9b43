from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("safetensors", reason="needs safetensors")

import torch
from moe_families import CONFIGS, make_model
from moe_wording import TEMPLATE, make_letters, make_questions, make_tokenizer

from expertmix.agents.moe import bank_files
from expertmix.agents.moe.architecture import MoeModel, find_moe
from expertmix.agents.moe.bank import StateBank, build_bank, identify
from expertmix.agents.moe.letters import Letters, pad_prompts
from expertmix.agents.moe.packing import StateKind
from expertmix.agents.moe.states import TokenStates, capture
from expertmix.retrieval import InputError, Question

KINDS: tuple[StateKind, ...] = ("full", "bf16", "int8", "hidden")
LETTERS = make_letters()
QUESTIONS = make_questions(11)
FIRST = 2


@pytest.fixture(scope="module")
def moe() -> MoeModel:
    return find_moe(make_model("qwen2_moe"))


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_files, "SHARD", 4)


def build(
    moe: MoeModel,
    questions: Sequence[Question] = QUESTIONS,
    folder: Path | None = None,
    **more: Any,
) -> StateBank:
    return build_bank(moe, LETTERS, questions, first=FIRST, folder=folder, batch=3, **more)


def same(one: TokenStates, other: TokenStates, atol: float = 0) -> None:
    assert (one.first, one.layers) == (other.first, other.layers)
    assert one.lengths_N.tolist() == other.lengths_N.tolist()
    for name in ("residual_ND", "input_ND", "pathway_NME", "logits_NO"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=atol)
    torch.testing.assert_close(dict(one.keys), dict(other.keys), rtol=0, atol=atol)
    torch.testing.assert_close(dict(one.values), dict(other.values), rtol=0, atol=atol)


def capture_anew(moe: MoeModel, bank: StateBank, rows: Sequence[int]) -> TokenStates:
    ids_BT, mask_BT = pad_prompts([LETTERS.encode(bank.questions[row]) for row in rows])
    return capture(moe, ids_BT, mask_BT, first=FIRST, tokens_O=LETTERS.tokens_O)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_in_memory_is_one_in_a_folder(
    moe: MoeModel, kind: StateKind, tmp_path: Path
) -> None:
    memory, written = build(moe, kind=kind), build(moe, kind=kind, folder=tmp_path / "a" / "bank")
    read = StateBank.load(tmp_path / "a" / "bank", moe, LETTERS)
    assert memory.questions == written.questions == read.questions
    assert memory.bytes == written.bytes == read.bytes > 0
    rows = [3, 0, 10, 3]  # in any order, from several pieces, repeated
    expected = memory.states(rows)
    for bank in (written, read):
        assert len(bank) == 11
        assert (bank.kind, bank.first) == (kind, FIRST)
        same(bank.states(rows), expected)
        assert torch.equal(bank.pathway_NME, memory.pathway_NME)
        assert torch.equal(bank.input_ND, memory.input_ND)
    fresh = capture_anew(moe, memory, rows)
    same(expected, fresh, {"full": 1e-6, "hidden": 1e-6, "bf16": 0.05, "int8": 0.05}[kind])


@pytest.mark.parametrize("family", CONFIGS)
def test_hidden_states_give_what_full_ones_give(family: str) -> None:
    moe = find_moe(make_model(family))
    full, hidden = (build(moe, QUESTIONS[:5], kind=kind) for kind in ("full", "hidden"))
    same(hidden.states(range(5)), full.states(range(5)), 1e-6)


def test_order_does_not_matter(moe: MoeModel) -> None:
    shuffled = random.Random(1).sample(QUESTIONS, len(QUESTIONS))
    bank, other = build(moe), build(moe, shuffled)
    assert bank.questions == other.questions
    lengths = [len(LETTERS.encode(question)) for question in bank.questions]
    assert lengths == sorted(lengths)
    assert [length - 1 for length in lengths] == bank.lengths_N.tolist()
    same(bank.states(range(11)), other.states(range(11)))


def test_an_interruption_costs_one_piece_at_most(moe: MoeModel, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    seen: list[tuple[int, int]] = []

    def stop_at(number: int) -> Any:
        def report(done: int, total: int) -> None:
            seen.append((done, total))
            if done == number:
                raise Stop

        return report

    with pytest.raises(Stop):
        build(moe, folder=tmp_path, on_progress=stop_at(7))
    assert seen == [(3, 11), (4, 11), (7, 11)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json", "states-00000.safetensors"]
    with pytest.raises(InputError, match=r"unfinished \(2 of 3 pieces are missing\)"):
        StateBank.load(tmp_path, moe, LETTERS)
    first = (tmp_path / "states-00000.safetensors").stat().st_mtime_ns
    seen.clear()
    bank = build(moe, folder=tmp_path, on_progress=stop_at(-1))
    assert seen == [(7, 11), (8, 11), (11, 11)]  # not the first four again
    assert (tmp_path / "states-00000.safetensors").stat().st_mtime_ns == first
    same(bank.states(range(11)), build(moe).states(range(11)))
    seen.clear()
    build(moe, folder=tmp_path, on_progress=stop_at(-1))
    assert not seen


def test_a_stop_before_the_plan_was_whole_is_no_obstacle(moe: MoeModel, tmp_path: Path) -> None:
    (tmp_path / "plan.draft").write_text("{")
    assert len(build(moe, folder=tmp_path)) == 11


def test_right_ones_are_counted_among_their_own_options(moe: MoeModel) -> None:
    bank = build(moe)
    assert set(bank.options_N.tolist()) >= {2, 3, 5}
    states = capture_anew(moe, bank, range(11))
    for row, question in enumerate(bank.questions):
        own = states.logits_NO[row, : len(question.options)]
        right = question.letters[int(own.argmax())] == question.gold
        assert bool(bank.right_N[row]) == right
        assert bank.logits_NO[row, len(question.options) :].eq(-torch.inf).all()
        torch.testing.assert_close(bank.logits_NO[row, : len(question.options)], own)
    assert 0 < int(bank.right_N.sum()) < 11
    unknown = build(moe, [replace(question, gold=None) for question in QUESTIONS])
    assert unknown.gold_N.tolist() == [-1] * 11
    assert not unknown.right_N.any()


def test_some_are_selected_and_several_joined(moe: MoeModel, tmp_path: Path) -> None:
    others = make_questions(6, seed=9)
    one, two = build(moe, folder=tmp_path), build(moe, others)
    joined = StateBank.join([one, two])
    assert joined.questions == (*one.questions, *two.questions)
    same(joined.states([16, 2, 11]), StateBank.join([two, one]).states([5, 8, 0]))
    same(joined.states([13]), two.states([2]))
    few = joined.select([12, 0, 5])
    assert few.questions == tuple(joined.questions[row] for row in (12, 0, 5))
    same(few.states([2, 0]), joined.states([5, 12]))
    assert torch.equal(few.gold_N, joined.gold_N[[12, 0, 5]])
    assert torch.equal(few.logits_NO, joined.logits_NO[[12, 0, 5]])
    assert torch.equal(few.right_N, joined.right_N[[12, 0, 5]])
    again = StateBank.join([few, one.select([1])])
    same(again.states([3, 0]), joined.states([1, 12]))
    assert len(joined) == 17  # as it was
    assert joined.bytes == one.bytes + two.bytes


def test_what_does_not_belong_together_is_not_joined(moe: MoeModel) -> None:
    bank = build(moe)
    with pytest.raises(InputError, match=f'"{bank.questions[0].id}" is there twice'):
        StateBank.join([bank, bank.select([0])])
    other = make_questions(2, seed=4)
    with pytest.raises(InputError, match="other layers or kinds"):
        StateBank.join([bank, build(moe, other, kind="int8")])
    with pytest.raises(InputError, match="other layers or kinds"):
        StateBank.join([bank, build_bank(moe, LETTERS, other, first=1)])
    with pytest.raises(InputError, match="different models"):
        StateBank.join([bank, build(find_moe(make_model("qwen2_moe", seed=1)), other)])
    reworded = Letters.of(make_tokenizer(template=TEMPLATE + " w0"))
    with pytest.raises(InputError, match="in different words"):
        StateBank.join([bank, build_bank(moe, reworded, other, first=FIRST)])
    with pytest.raises(InputError, match="no references to join"):
        StateBank.join([])


def test_what_cannot_be_built_is_explained(moe: MoeModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no questions to build references from"):
        build(moe, [])
    with pytest.raises(InputError, match=f'"{QUESTIONS[0].id}" is there twice'):
        build(moe, [*QUESTIONS, QUESTIONS[0]])
    with pytest.raises(InputError, match=r"the states of 11 references with .* do not fit"):
        build(moe, budget_bytes=100)
    with pytest.raises(InputError, match="has 0 options"):
        build(moe, [replace(QUESTIONS[0], options=())])
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty and holds no references"):
        build(moe, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_kind_follows_the_budget(moe: MoeModel) -> None:
    full = build(moe)
    assert full.kind == "full"
    small = sum(
        tensor.numel() * tensor.element_size()
        for tensor in (full.pathway_NME, full.input_ND, full.input_ND, full.logits_NO, full.gold_N)
    )
    assert build(moe, budget_bytes=full.bytes - small).kind == "full"
    assert build(moe, budget_bytes=full.bytes - small - 1).kind == "bf16"


def test_a_folder_of_other_references_is_not_touched(moe: MoeModel, tmp_path: Path) -> None:
    build(moe, folder=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = find_moe(make_model("qwen2_moe", seed=1))
    for attempt in (
        lambda: build(moe, QUESTIONS[:5], folder=tmp_path),
        lambda: build(moe, kind="int8", folder=tmp_path),
        lambda: build(other, folder=tmp_path),
        lambda: build_bank(moe, LETTERS, QUESTIONS, first=1, folder=tmp_path),
    ):
        with pytest.raises(InputError, match="holds references of another model, wording, kind or"):
            attempt()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_bank_is_opened_only_by_who_it_was_made_for(moe: MoeModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no bank of references"):
        StateBank.load(tmp_path / "nothing", moe, LETTERS)
    build(moe, folder=tmp_path)
    with pytest.raises(InputError, match="made by another model"):
        StateBank.load(tmp_path, find_moe(make_model("qwen2_moe", seed=1)), LETTERS)
    with pytest.raises(InputError, match="asked in other words or under another chat template"):
        StateBank.load(tmp_path, moe, replace(LETTERS, chat_template=TEMPLATE + " w0"))
    plan = json.loads((tmp_path / "plan.json").read_text())
    for text, message in (
        (json.dumps(plan | {"format": 99}), "have format 99"),
        (
            json.dumps({name: plan[name] for name in ("format", "model", "prompt")}),
            "lacks first, ki",
        ),
        ("[]", "no plan of references"),
        ("{}", "no plan of references"),
        ("{", "cannot be read"),
        ("\udcff", "cannot be read"),
    ):
        (tmp_path / "plan.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(InputError, match=message):
            StateBank.load(tmp_path, moe, LETTERS)


def test_a_broken_piece_is_named(moe: MoeModel, tmp_path: Path) -> None:
    build(moe, folder=tmp_path)
    piece = tmp_path / "states-00001.safetensors"
    piece.write_bytes(piece.read_bytes()[:100])
    with pytest.raises(InputError, match=r"states-00001\.safetensors cannot be read .* delete it"):
        StateBank.load(tmp_path, moe, LETTERS)
    piece.unlink()
    bank = build(moe, folder=tmp_path)
    same(bank.states(range(11)), build(moe).states(range(11)))


def test_files_are_mapped_and_not_read(moe: MoeModel, tmp_path: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    build(moe, folder=tmp_path)
    bank = StateBank.load(tmp_path, moe, LETTERS)
    mapped = maps.read_text()
    assert all(str(path) in mapped for path in tmp_path.glob("*.safetensors"))
    assert len(bank) == 11


def test_a_model_is_known_by_weights_routers_type_and_configuration() -> None:
    def changed(change: Any = None, dtype: torch.dtype = torch.float32) -> str:
        moe = find_moe(make_model("olmoe", dtype=dtype))
        with torch.no_grad():
            if change is not None:
                change(moe)
        return identify(moe)

    def nudge_router(moe: Any) -> None:
        moe.layers[1].router.weight[3, 5] += 1e-3

    def nudge_head(moe: Any) -> None:
        moe.model.lm_head.weight.mul_(1.01)

    def reconfigure(moe: Any) -> None:
        moe.config.rope_parameters["rope_theta"] = 5.0

    same_model = changed()
    assert changed() == same_model
    others = {
        changed(nudge_router),
        changed(nudge_head),
        changed(reconfigure),
        changed(dtype=torch.bfloat16),
    }
    assert len(others | {same_model}) == 5
