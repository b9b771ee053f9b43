from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
from moe_conformance import count_hooks
from moe_families import CONFIGS, TOKENS_O, make_model, make_prompts, run

from expertmix.agents.moe.architecture import MoeModel, find_moe
from expertmix.agents.moe.gates import last_positions, record
from expertmix.agents.moe.restoring import restore
from expertmix.agents.moe.states import TokenStates, capture, join_states
from expertmix.retrieval import InputError

LENGTHS = (12, 5, 9, 1)


def capture_of(
    moe: MoeModel, lengths: tuple[int, ...] = LENGTHS, *, side: str = "left", **options: Any
) -> TokenStates:
    ids_BT, mask_BT = make_prompts(lengths, side=side)
    first = moe.last(2)[0]
    return capture(moe, ids_BT, mask_BT, first=first, tokens_O=TOKENS_O, **options)


def same(one: TokenStates, other: TokenStates, atol: float = 1e-10) -> None:
    """Also what stands behind the tokens: states of one prompt do not depend on the others."""
    assert one.first == other.first
    assert one.layers == other.layers
    assert one.lengths_N.tolist() == other.lengths_N.tolist()
    for name in ("residual_ND", "input_ND", "pathway_NME", "logits_NO", "hidden_NTD"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=atol)
    torch.testing.assert_close(dict(one.keys), dict(other.keys), rtol=0, atol=atol)
    torch.testing.assert_close(dict(one.values), dict(other.values), rtol=0, atol=atol)


@pytest.mark.parametrize("family", CONFIGS)
def test_one_pass_gives_what_the_model_gives_and_can_be_made_again(family: str) -> None:
    moe = find_moe(make_model(family))
    ids_BT, mask_BT = make_prompts(LENGTHS)
    last_B = last_positions(mask_BT)
    states = capture_of(moe, keeps_hidden=True)
    with record(moe) as recording, torch.no_grad():
        logits_BTV = run(moe.model, ids_BT, mask_BT)
    expected_BO = logits_BTV[torch.arange(4), last_B][:, TOKENS_O]
    torch.testing.assert_close(states.logits_NO, expected_BO)
    assert torch.equal(states.pathway_NME, recording.at(last_B, states.layers))
    norm: Any = moe.at(states.first).layer.post_attention_layernorm
    torch.testing.assert_close(norm(states.residual_ND), states.input_ND)
    assert states.lengths_N.tolist() == [11, 4, 8, 0]
    assert len(states) == 4
    assert sorted(states.keys) == [states.first + 1] == sorted(states.values)
    assert count_hooks(moe.model) == 0
    # Padding at the other side, and one prompt at a time.
    same(capture_of(moe, side="right", keeps_hidden=True), states, 1e-6)
    ids_RT, mask_RT = make_prompts(LENGTHS, side="right")
    alone = [
        capture(
            moe,
            ids_RT[row : row + 1, :length],
            mask_RT[row : row + 1, :length],
            first=states.first,
            tokens_O=TOKENS_O,
            keeps_hidden=True,
        )
        for row, length in enumerate(LENGTHS)
    ]
    for row, one in enumerate(alone):
        same(one, states.take(torch.tensor([row])), 1e-6)
    # Hidden states are enough: keys and values come back, sliding windows included.
    assert states.hidden_NTD is not None
    bare = capture_of(moe, keeps_hidden=True, keeps_cache=False)
    assert not bare.keys
    assert not bare.values
    again = restore(moe, bare, states.hidden_NTD)
    same(again, states, 1e-6)
    assert all(key.abs().sum() > 0 for key in again.keys.values())


def test_nothing_is_left_behind_the_tokens() -> None:
    moe = find_moe(make_model("olmoe"))
    states = capture_of(moe, keeps_hidden=True)
    assert states.hidden_NTD is not None
    for part in (states, restore(moe, states, states.hidden_NTD)):
        for tensor in (*part.keys.values(), *part.values.values()):
            for row, length in enumerate(states.lengths_N.tolist()):
                assert not tensor[row, :, length:].any()
    assert not states.hidden_NTD[3, 1:].any()


def test_a_column_that_all_prompts_lack_changes_nothing() -> None:
    moe = find_moe(make_model("qwen2_moe"))
    ids_BT, mask_BT = make_prompts((6, 4))

    def captured(gap: int) -> TokenStates:
        wide_BT, wide_mask_BT = (
            torch.nn.functional.pad(tensor, (0, gap)) for tensor in (ids_BT, mask_BT)
        )
        return capture(moe, wide_BT, wide_mask_BT, first=2, tokens_O=TOKENS_O, keeps_hidden=True)

    same(captured(3), captured(0), 1e-6)


def test_states_are_taken_and_joined() -> None:
    moe = find_moe(make_model("qwen2_moe"))
    states = capture_of(moe, keeps_hidden=True)
    short = states.take(torch.tensor([3, 1, 1]))
    assert short.lengths_N.tolist() == [0, 4, 4]
    assert {key.shape[2] for key in short.keys.values()} == {4}
    assert short.hidden_NTD is not None
    assert short.hidden_NTD.shape[1] == 5
    assert torch.equal(short.logits_NO[1], states.logits_NO[1])
    joined = join_states([short, states.take(torch.tensor([0]))])
    same(joined, states.take(torch.tensor([3, 1, 1, 0])), 0)
    same(join_states([states]), states, 0)
    assert len(states.take(torch.tensor([], dtype=torch.long))) == 0


def test_the_pathway_of_some_layers_is_found_by_their_place_in_the_decoder() -> None:
    moe = find_moe(make_model("qwen2_moe"))  # its layer 0 is dense
    states = capture_of(moe)
    assert states.layers == (1, 2, 3)
    assert torch.equal(states.pathway_at((3, 1)), states.pathway_NME[:, [2, 0]])
    assert states.hidden_NTD is None


def test_what_cannot_be_captured_is_explained() -> None:
    moe = find_moe(make_model("qwen2_moe"))
    ids_BT, mask_BT = make_prompts((4, 3))
    with pytest.raises(InputError, match="layer 0 has no routed experts"):
        capture(moe, ids_BT, mask_BT, first=0, tokens_O=TOKENS_O)
    mask_BT[1] = 0
    with pytest.raises(InputError, match="a prompt of the batch is empty"):
        capture(moe, ids_BT, mask_BT, first=2, tokens_O=TOKENS_O)
    assert count_hooks(moe.model) == 0
