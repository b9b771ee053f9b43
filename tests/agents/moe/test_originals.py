"""Against the published code's algorithm, written anew from its description (c3po.md §3 and §5).

That code averages the routing rows of the three nearest references with cosine weights, divides by the
sum over all 64 experts, takes the top 8 of the result without renormalising, and puts it on the last
row of each sample in every forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("faiss", reason="needs faiss")

import torch
from moe_families import CONFIGS, make_model, make_prompts, run
from moe_wording import LETTERS as ALPHABET
from moe_wording import make_letters, make_questions

from expertmix.agents.moe.architecture import MoeModel, find_moe
from expertmix.agents.moe.bank import StateBank, build_bank
from expertmix.agents.moe.gates import Steering, last_positions, record, steer
from expertmix.agents.moe.remix import Remixer
from expertmix.agents.moe.routing import RoutingRule
from expertmix.agents.moe.settings import RemixSettings
from expertmix.agents.moe.states import capture
from expertmix.retrieval import Question, ReferenceSet, embedding_text

LETTERS = make_letters()
QUESTIONS = make_questions(4, seed=3)
LAYERS = (2, 3)
AS_PUBLISHED = RemixSettings(
    solver="kernel_regression",
    alpha="zero",
    kernel="cosine",
    neighbours=3,
    held_back=0,
    core_experts=None,
    cut_off=1.0,
    layers=2,
)


class Sketches:
    """Texts → positive vectors that hang on every letter."""

    name, revision = "sketches", "1"

    def encode(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        vectors = np.ones((len(texts), 32), dtype=np.float32)
        for row, text in enumerate(texts):
            for place, letter in enumerate(text):
                vectors[row, (7 * ord(letter) + place) % 32] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def moe() -> MoeModel:
    """64 experts, of which 8 are on, as the published code takes for granted."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"num_experts": 64, "num_experts_per_tok": 8, "num_key_value_heads": 4}
        patch.setitem(CONFIGS, "olmoe64", ("Olmoe", sizes))
        return find_moe(make_model("olmoe64"))


@pytest.fixture(scope="module")
def bank(moe: MoeModel) -> StateBank:
    """References that the model answers right, as in the published files."""
    first = build_bank(moe, LETTERS, make_questions(20, seed=4), first=LAYERS[0])
    chosen = first.logits_NO.argmax(-1).tolist()
    right = [replace(q, gold=ALPHABET[c]) for q, c in zip(first.questions, chosen, strict=True)]
    return build_bank(moe, LETTERS, right, first=LAYERS[0])


def full_routing(moe: MoeModel, prompt: Sequence[int]) -> torch.Tensor:
    """Softmax over all experts at the last token of one prompt without padding, [L, E]."""
    with torch.no_grad():
        output = moe.model(input_ids=torch.tensor([list(prompt)]), output_router_logits=True)
    return torch.stack([logits[-1].softmax(-1) for logits in output.router_logits])


def regress(moe: MoeModel, bank: StateBank, question: Question) -> tuple[list[str], torch.Tensor]:
    """The published update: the neighbours in order, and the new rows of the last layers."""
    texts = [embedding_text(reference) for reference in bank.questions]
    vectors = Sketches().encode([embedding_text(question), *texts]).astype(np.float64)
    cosines = torch.from_numpy(vectors[1:] @ vectors[0])
    top = cosines.topk(3)
    rows_CE = torch.zeros(len(LAYERS), 64, dtype=torch.float64)
    for score, at in zip(top.values, top.indices.tolist(), strict=True):
        routing_LE = full_routing(moe, LETTERS.encode(bank.questions[at]))
        rows_CE += score * routing_LE[-len(LAYERS) :]
    rows_CE /= top.values.sum()
    rows_CE /= rows_CE.sum(-1, keepdim=True)
    return [bank.questions[at].id for at in top.indices.tolist()], rows_CE


@contextlib.contextmanager
def overridden(moe: MoeModel, rows_CE: torch.Tensor) -> Generator[None]:
    """The published override: one row for the last token of every sample, in every pass."""
    lengths: list[int] = []

    def look(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        lengths.append(keywords["input_ids"].shape[1])

    def override(row_E: torch.Tensor) -> Any:
        def hook(module: Any, inputs: Any, output: tuple[torch.Tensor, ...]) -> Any:
            logits_NE = output[0]
            scores_NE = logits_NE.softmax(-1)
            scores_NE[lengths[-1] - 1 :: lengths[-1]] = row_E / row_E.sum()
            top = scores_NE.topk(8, dim=-1)
            return logits_NE, top.values, top.indices

        return hook

    handles = [moe.base.register_forward_pre_hook(look, with_kwargs=True)]
    for index, row_E in zip(LAYERS, rows_CE, strict=True):
        handles.append(moe.at(index).router.register_forward_hook(override(row_E)))
    yield
    for handle in handles:
        handle.remove()


def test_kernel_regression_is_the_published_update(moe: MoeModel, bank: StateBank) -> None:
    references = ReferenceSet.build(bank.questions, Sketches())
    remixer = Remixer(moe, LETTERS, bank, references, AS_PUBLISHED)
    for question, remix in zip(QUESTIONS, remixer.remix(QUESTIONS), strict=True):
        neighbours, rows_CE = regress(moe, bank, question)
        assert [i for i, _ in remix.neighbours] == neighbours
        torch.testing.assert_close(remix.pathway_after_CE.double(), rows_CE, rtol=0, atol=1e-7)
        prompt = torch.tensor([LETTERS.encode(question)])
        with overridden(moe, rows_CE), torch.no_grad():
            logits_V = moe.model(input_ids=prompt).logits[0, -1]
        shares_O = logits_V[LETTERS.tokens_O[: len(question.options)]].softmax(-1)
        assert remix.probabilities_after == pytest.approx(shares_O.tolist(), abs=1e-6)
        assert remix.probabilities_after != pytest.approx(remix.probabilities_before, abs=1e-3)


def test_steering_onwards_generates_what_the_published_override_does(moe: MoeModel) -> None:
    ids_BT, _ = make_prompts((7, 7))
    rows_CE = (1.5 * torch.randn(2, 64, generator=torch.Generator().manual_seed(2))).softmax(-1)
    rows_CE = rows_CE.double()

    def generate() -> torch.Tensor:
        return moe.model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )

    with overridden(moe, rows_CE):
        theirs = generate()
    made: dict[str, torch.Tensor] = {}
    for scope in ("onwards", "token"):
        steering = Steering(
            layers=LAYERS,
            rows_R=torch.arange(2),
            positions_R=torch.tensor([6, 6]),
            routing_RCE=rows_CE.expand(2, -1, -1),
            scope=scope,
        )
        with steer(moe, steering):
            made[scope] = generate()
    assert torch.equal(made["onwards"], theirs)
    assert not torch.equal(made["token"], theirs)


def test_every_row_of_a_batch_has_its_own_routing_at_either_side_of_padding(moe: MoeModel) -> None:
    """The published override knows one routing for all rows, and the last column only."""
    lengths = (9, 4, 6)
    drawn = torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    routing_BCE = (1.5 * drawn).softmax(-1)
    alone: list[torch.Tensor] = []
    ids_RT, _ = make_prompts(lengths, side="right")
    for row, length in enumerate(lengths):
        with overridden(moe, routing_BCE[row]), torch.no_grad():
            alone.append(moe.model(input_ids=ids_RT[row : row + 1, :length]).logits[0, -1])
    for side in ("left", "right"):
        ids_BT, mask_BT = make_prompts(lengths, side=side)
        last_B = last_positions(mask_BT)
        steering = Steering(
            layers=LAYERS, rows_R=torch.arange(3), positions_R=last_B, routing_RCE=routing_BCE
        )
        with steer(moe, steering), torch.no_grad():
            logits_BTV = run(moe.model, ids_BT, mask_BT)
        ours_BV = logits_BTV[torch.arange(3), last_B]
        torch.testing.assert_close(ours_BV, torch.stack(alone), rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [70, 530])
def test_the_pathway_of_a_long_prompt_is_whole(moe: MoeModel, length: int) -> None:
    """The published extraction fails beyond 64 tokens and reads pieces of 512 as prompts of their own."""
    ids_BT, mask_BT = make_prompts((length,))
    states = capture(moe, ids_BT, mask_BT, first=2, tokens_O=LETTERS.tokens_O)
    expected_LE = full_routing(moe, ids_BT[0].tolist())
    torch.testing.assert_close(states.pathway_NME[0], expected_LE, rtol=0, atol=1e-6)
    if length > 512:
        piece_LE = full_routing(moe, ids_BT[0, 512:].tolist())
        assert (piece_LE - expected_LE).abs().max() > 1e-2


def test_averaging_flattens_and_the_mass_can_be_kept() -> None:
    """Top-8 mass of one row, and of the mean of three (c3po.md §4.2: 0.744 and 0.566)."""
    generator = torch.Generator().manual_seed(0)
    rule = RoutingRule(experts=64, top_k=8)
    single_N3E = rule.score(2 * torch.randn(400, 3, 64, generator=generator))
    mean_NE = single_N3E.mean(1)
    own_N1 = rule.mix(single_N3E[:, 0]).weights_NW.sum(-1, keepdim=True)
    mean_N1 = rule.mix(mean_NE).weights_NW.sum(-1, keepdim=True)
    assert float(own_N1.mean()) == pytest.approx(0.744, abs=0.01)
    assert float(mean_N1.mean()) == pytest.approx(0.566, abs=0.01)
    kept = rule.mix(mean_NE, mass_N1=own_N1)
    torch.testing.assert_close(kept.weights_NW.sum(-1, keepdim=True), own_N1)
    assert torch.equal(kept.indices_NW, rule.mix(mean_NE).indices_NW)


def test_scores_are_in_float32_where_the_published_patch_stays_in_half_precision() -> None:
    moe = find_moe(make_model("olmoe", dtype=torch.bfloat16))
    ids_BT, mask_BT = make_prompts((6,))
    seen: list[torch.Tensor] = []
    handle = moe.at(3).router.register_forward_hook(lambda m, i, output: seen.append(output[0]))
    with record(moe, (3,)) as recording, torch.no_grad():
        run(moe.model, ids_BT, mask_BT)
    handle.remove()
    scores_TE = recording.scores[3][0]
    assert seen[0].dtype == torch.bfloat16
    assert scores_TE.dtype == torch.float32
    assert torch.equal(scores_TE, seen[0].float().softmax(-1))
    assert not torch.equal(scores_TE, seen[0].softmax(-1).float())
