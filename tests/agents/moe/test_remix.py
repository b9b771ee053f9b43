from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("faiss", reason="needs faiss")

import torch
from moe_families import CONFIGS, make_model, run
from moe_wording import LETTERS as ALPHABET
from moe_wording import make_letters, make_questions

from expertmix.agents.moe.acceptance import Verdict
from expertmix.agents.moe.architecture import MoeModel, find_moe
from expertmix.agents.moe.bank import StateBank, build_bank
from expertmix.agents.moe.letters import pad_prompts
from expertmix.agents.moe.remix import Remixer
from expertmix.agents.moe.remixed import Remix
from expertmix.agents.moe.settings import RemixSettings
from expertmix.retrieval import InputError, Question, ReferenceSet

LETTERS = make_letters()
QUESTIONS = make_questions(7, seed=2)
REFERENCES = make_questions(36, seed=1)
TINY = RemixSettings(layers=2, core_experts=None, min_similarity=-1, steps=5)
FREE = TINY.model_copy(update={"held_back": 0, "rate": 0.5})
FAMILIES = ("olmoe", "qwen2_moe")


class Words:
    """Texts → vectors by the words that they hold; an encoder that needs no weights."""

    name, revision = "words", "1"

    def encode(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        vectors = np.zeros((len(texts), 64), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                vectors[row, sum(word.encode()) % 64] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module", params=FAMILIES)
def moe(request: pytest.FixtureRequest) -> MoeModel:
    return find_moe(make_model(request.param))


@pytest.fixture(scope="module")
def bank(moe: MoeModel) -> StateBank:
    return build_bank(moe, LETTERS, REFERENCES, first=2)


def make_remixer(
    moe: MoeModel, bank: StateBank, settings: RemixSettings = FREE, *, by_model: bool = False
) -> Remixer:
    references = None if by_model else ReferenceSet.build(bank.questions, Words())
    return Remixer(moe, LETTERS, bank, references, settings)


def right_ids(bank: StateBank) -> set[str]:
    return {q.id for q, right in zip(bank.questions, bank.right_N.tolist(), strict=True) if right}


@torch.no_grad()
def plain_logits(moe: MoeModel, question: Question) -> torch.Tensor:
    ids_BT, mask_BT = pad_prompts([LETTERS.encode(question)])
    return run(moe.model, ids_BT, mask_BT)[0, -1, LETTERS.tokens_O[: len(question.options)]]


def same(one: Remix, other: Remix) -> None:
    assert (one.question_id, one.verdict, one.before, one.after) == (
        other.question_id,
        other.verdict,
        other.before,
        other.after,
    )
    assert [i for i, _ in one.neighbours] == [i for i, _ in other.neighbours]
    assert one.probabilities_after == pytest.approx(other.probabilities_after, abs=1e-6)
    assert one.curve == pytest.approx(other.curve, abs=1e-6)
    torch.testing.assert_close(one.pathway_after_CE, other.pathway_after_CE, rtol=0, atol=1e-6)


def test_the_defaults_work_on_a_model_that_is_deep_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = ("Olmoe", CONFIGS["olmoe"][1] | {"num_hidden_layers": 6, "num_experts": 32})
    monkeypatch.setitem(CONFIGS, "deep", deep)
    moe = find_moe(make_model("deep"))
    bank = build_bank(moe, LETTERS, REFERENCES, first=moe.last(5)[0])
    remixer = Remixer(moe, LETTERS, bank, ReferenceSet.build(bank.questions, Words()))
    assert remixer.settings == RemixSettings()
    remixes = remixer.remix(QUESTIONS)
    assert [remix.question_id for remix in remixes] == [question.id for question in QUESTIONS]
    assert {len(remix.neighbours) for remix in remixes} == {4}
    assert {remix.verdict for remix in remixes} <= {
        Verdict.CHANGED,
        Verdict.NOT_HELPED,
        Verdict.NOTHING_GAINED,
    }
    for remix, question in zip(remixes, QUESTIONS, strict=True):
        assert remix.pathway_before_CE.shape == (5, 32)
        assert sum(remix.probabilities_after) == pytest.approx(1)
        assert len(remix.probabilities_after) == len(question.options)
        assert remix.changed == (remix.verdict is Verdict.CHANGED)
        if not remix.changed:
            assert remix.probabilities_after == remix.probabilities_before


@pytest.mark.parametrize("by_model", [False, True])
def test_with_nothing_held_back_the_neighbours_loss_falls(
    moe: MoeModel, bank: StateBank, by_model: bool
) -> None:
    remixer = make_remixer(moe, bank, by_model=by_model)
    for remix in remixer.remix(QUESTIONS):
        assert len(remix.neighbours) == 3
        assert {i for i, _ in remix.neighbours} <= right_ids(bank)
        similarities = [similarity for _, similarity in remix.neighbours]
        assert similarities == sorted(similarities, reverse=True)
        assert remix.verdict is Verdict.CHANGED
        assert min(remix.curve) < remix.curve[0]
        torch.testing.assert_close(
            remix.pathway_after_CE.sum(-1), torch.ones(2).double(), rtol=0, atol=1e-6
        )


def test_a_neighbour_that_is_the_question_in_disguise_shows_what_the_solver_can(
    moe: MoeModel,
) -> None:
    """Other words, the same tokens: the surrogate is then the question's own loss, an oracle."""
    for question in make_questions(3, seed=5):
        asked = replace(question, text="unknown words", options=("here", "there"))
        chosen = ALPHABET[int(plain_logits(moe, asked).argmax())]
        twin = Question(
            id="twin", text="strange things", options=("east", "west"), gold=chosen, kind="choice"
        )
        bank = build_bank(moe, LETTERS, [twin], first=2)
        assert LETTERS.encode(twin) == LETTERS.encode(asked)
        settings = FREE.model_copy(update={"neighbours": 1})
        (remix,) = make_remixer(moe, bank, settings).remix([asked])
        at = ALPHABET.index(chosen)
        assert remix.verdict is Verdict.CHANGED
        assert remix.probabilities_after[at] > remix.probabilities_before[at]
        assert -np.log(remix.probabilities_before[at]) == pytest.approx(remix.curve[0], abs=1e-6)
        assert -np.log(remix.probabilities_after[at]) == pytest.approx(min(remix.curve), abs=1e-6)


def test_a_shut_gate_leaves_the_plain_model(moe: MoeModel, bank: StateBank) -> None:
    remixer = make_remixer(moe, bank, FREE.model_copy(update={"unsure_below": 0.0}))
    states = remixer.ask(QUESTIONS)
    batch = remixer.solve(QUESTIONS, states, remixer.find(QUESTIONS, states))
    assert torch.equal(batch.logits_after_QO, batch.logits_before_QO)
    assert torch.equal(batch.routing_after_QCE, batch.routing_before_QCE)
    assert set(batch.verdicts) == {Verdict.CONFIDENT}
    assert (batch.passes, batch.gradients) == (0, 0)
    for row, question in enumerate(QUESTIONS):
        (alone,) = remixer.ask([question]).logits_NO
        number = len(question.options)
        torch.testing.assert_close(batch.logits_after_QO[row, :number], alone[:number])
        torch.testing.assert_close(alone[:number], plain_logits(moe, question))
        assert batch.logits_after_QO[row, number:].eq(-torch.inf).all()


def test_verdicts_say_which_gate_was_shut(moe: MoeModel, bank: StateBank) -> None:
    def verdicts(**changes: Any) -> set[Verdict]:
        settings = TINY.model_copy(update=changes)
        return {remix.verdict for remix in make_remixer(moe, bank, settings).remix(QUESTIONS)}

    assert verdicts(unsure_below=0.0, min_similarity=1.0) == {Verdict.CONFIDENT}
    assert verdicts(min_similarity=1.0) == {Verdict.FAR}
    assert verdicts(margin=1e6) <= {Verdict.NOT_HELPED, Verdict.NOTHING_GAINED}
    assert Verdict.NOT_HELPED in verdicts(margin=1e6)
    assert Verdict.CHANGED in verdicts(rate=0.5)
    assert verdicts(held_back=0, rate=0.5) == {Verdict.CHANGED}


def test_what_is_not_accepted_keeps_its_answer_and_its_pathway(
    moe: MoeModel, bank: StateBank
) -> None:
    remixes = [
        remix
        for margin in (0.0, 0.05, 0.5)
        for remix in make_remixer(
            moe, bank, TINY.model_copy(update={"rate": 0.5, "margin": margin})
        ).remix(QUESTIONS)
    ]
    for remix in remixes:
        kept = torch.equal(remix.pathway_before_CE, remix.pathway_after_CE)
        assert kept == (not remix.changed)
        if kept:
            assert remix.after == remix.before
            assert remix.probabilities_after == remix.probabilities_before
    assert len({remix.changed for remix in remixes}) == 2  # both happen


@pytest.mark.parametrize("by_model", [False, True])
def test_a_question_among_the_references_is_never_its_own_neighbour(
    moe: MoeModel, bank: StateBank, by_model: bool
) -> None:
    remixer = make_remixer(moe, bank, by_model=by_model)
    own = [question for question in bank.questions if question.id in right_ids(bank)]
    renamed = [replace(question, id=f"other {question.id}") for question in own]
    for asked in (own, renamed):
        neighbourhood = remixer.find(asked, remixer.ask(asked))
        for row, origin in enumerate(own):
            found = neighbourhood.rows_QN[row][neighbourhood.present_QN[row]].tolist()
            assert origin.id not in {bank.questions[at].id for at in found}
    assert neighbourhood.dropped["same text"] == len(own)
    (remix,) = remixer.remix(own[:1])
    assert own[0].id not in {i for i, _ in remix.neighbours}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"solver": "kernel_regression"},
        {"solver": "mode_finding"},
        {"optimizer": "adam", "core_experts": 5, "held_back": 1},
        {"parametrisation": "logit", "selection": "hard", "keeps_mass": True},
    ],
)
def test_a_question_does_not_depend_on_its_batch(
    moe: MoeModel, bank: StateBank, changes: dict[str, Any]
) -> None:
    remixer = make_remixer(moe, bank, FREE.model_copy(update=changes))
    together = remixer.remix(QUESTIONS)
    for one, other in zip(remixer.remix(QUESTIONS[::-1])[::-1], together, strict=True):
        same(one, other)
    for question, other in zip(QUESTIONS[:3], together, strict=False):
        (alone,) = remixer.remix([question])
        same(alone, other)


def test_more_questions_than_are_solved_at_once_give_the_same(
    moe: MoeModel, bank: StateBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expertmix.agents.moe import remix as module

    remixer = make_remixer(moe, bank, TINY.model_copy(update={"rate": 0.5}))
    together = remixer.remix(QUESTIONS)
    monkeypatch.setattr(module, "CHUNK", 2)
    for one, other in zip(remixer.remix(QUESTIONS), together, strict=True):
        same(one, other)


def test_other_labels_are_a_control(moe: MoeModel, bank: StateBank) -> None:
    remixer = make_remixer(moe, bank)
    states = remixer.ask(QUESTIONS)
    neighbourhood = remixer.find(QUESTIONS, states)
    gold_QN = bank.gold_N[neighbourhood.rows_QN]
    true = remixer.solve(QUESTIONS, states, neighbourhood)
    given = remixer.solve(QUESTIONS, states, neighbourhood, gold_QN=gold_QN)
    assert torch.equal(given.routing_after_QCE, true.routing_after_QCE)
    false = remixer.solve(
        QUESTIONS,
        states,
        neighbourhood,
        gold_QN=(gold_QN + 1) % bank.options_N[neighbourhood.rows_QN],
    )
    assert (false.routing_after_QCE != true.routing_after_QCE).flatten(1).any(-1).all()


def test_where_there_are_fewer_references_fewer_are_used(moe: MoeModel, bank: StateBank) -> None:
    right = bank.right_N.nonzero().squeeze(-1).tolist()[:2]
    few = bank.select([*right, *(~bank.right_N).nonzero().squeeze(-1).tolist()[:2]])
    for remix in make_remixer(moe, few, FREE.model_copy(update={"neighbours": 50})).remix(
        QUESTIONS
    ):
        assert {i for i, _ in remix.neighbours} == {few.questions[0].id, few.questions[1].id}
        assert remix.verdict is Verdict.CHANGED


def test_with_few_right_references_some_are_still_held_back(moe: MoeModel, bank: StateBank) -> None:
    right = bank.right_N.nonzero().squeeze(-1).tolist()
    held = FREE.model_copy(update={"neighbours": 3, "held_back": 1})
    three = make_remixer(moe, bank.select(right[:3]), held).remix(QUESTIONS)
    assert {len(remix.neighbours) for remix in three} == {3}  # two to fit to, one to test on
    with pytest.raises(InputError, match="leaves none to test a change on"):
        make_remixer(moe, bank.select(right[:1]), held).remix(QUESTIONS)


def test_a_bank_of_nothing_but_mistakes_is_refused(moe: MoeModel, bank: StateBank) -> None:
    wrong = bank.select((~bank.right_N).nonzero().squeeze(-1).tolist())
    with pytest.raises(InputError, match=f"answers none of the {len(wrong)} references right"):
        make_remixer(moe, wrong).remix(QUESTIONS)


def poison(moe: MoeModel, rows: Sequence[int], folder: Path) -> StateBank:
    """The references with states of some that are no numbers."""
    from safetensors.torch import load_file, save_file

    build_bank(moe, LETTERS, REFERENCES, first=2, folder=folder)
    (piece,) = folder.glob("*.safetensors")
    tensors = load_file(piece)
    tensors["residual"][list(rows)] = torch.nan
    save_file(tensors, piece)
    return StateBank.load(folder, moe, LETTERS)


def test_states_of_no_neighbour_are_of_no_consequence(
    moe: MoeModel, bank: StateBank, tmp_path: Path
) -> None:
    right = bank.right_N.nonzero().squeeze(-1).tolist()[:2]
    wrong = int((~bank.right_N).nonzero()[0])
    rows = [wrong, *right]  # fewer right ones than are wanted
    spoilt = make_remixer(moe, poison(moe, [wrong], tmp_path).select(rows)).remix(QUESTIONS)
    for one, other in zip(
        spoilt, make_remixer(moe, bank.select(rows)).remix(QUESTIONS), strict=True
    ):
        assert one.verdict is Verdict.CHANGED
        same(one, other)


def test_poisoned_states_leave_the_default_answer(
    moe: MoeModel, bank: StateBank, tmp_path: Path
) -> None:
    poisoned = poison(moe, range(len(bank)), tmp_path)
    assert torch.equal(poisoned.right_N, bank.right_N)
    for changes in ({}, {"held_back": 1}, {"solver": "kernel_regression"}, {"optimizer": "adam"}):
        remixer = make_remixer(moe, poisoned, FREE.model_copy(update=changes))
        for remix in remixer.remix(QUESTIONS):
            assert not remix.changed
            assert remix.probabilities_after == remix.probabilities_before
            assert torch.equal(remix.pathway_after_CE, remix.pathway_before_CE)


def test_parts_that_do_not_belong_together_are_refused(moe: MoeModel, bank: StateBank) -> None:
    with pytest.raises(
        InputError, match="begin at layer 2; 1 critical layers need them from layer 3"
    ):
        make_remixer(moe, bank, FREE.model_copy(update={"layers": 1}))
    with pytest.raises(InputError, match="5 critical layers were asked for"):
        make_remixer(moe, bank, RemixSettings())
    others = ReferenceSet.build(bank.questions[::-1], Words())
    with pytest.raises(InputError, match="hold different questions"):
        Remixer(moe, LETTERS, bank, others, FREE)


def test_what_cannot_be_asked_is_explained(moe: MoeModel, bank: StateBank) -> None:
    remixer = make_remixer(moe, bank)
    with pytest.raises(InputError, match="the list of questions is empty"):
        remixer.remix([])
    with pytest.raises(InputError, match='"open" has 0 options'):
        remixer.remix([Question(id="open", text="w1?", gold="w2")])


@pytest.mark.parametrize("kind", ["bf16", "int8", "hidden"])
def test_however_states_are_kept_the_answers_are_alike(
    moe: MoeModel, bank: StateBank, kind: Any
) -> None:
    exact = make_remixer(moe, bank).remix(QUESTIONS)
    kept = build_bank(moe, LETTERS, REFERENCES, first=2, kind=kind)
    for one, other in zip(make_remixer(moe, kept).remix(QUESTIONS), exact, strict=True):
        assert one.neighbours == other.neighbours
        tolerance = 1e-6 if kind == "hidden" else 0.05
        assert one.probabilities_after == pytest.approx(other.probabilities_after, abs=tolerance)
