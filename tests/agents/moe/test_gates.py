from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
from moe_conformance import count_hooks
from moe_families import make_model, make_prompts, run
from transformers import DynamicCache

from expertmix.agents.moe.architecture import MoeModel, find_moe
from expertmix.agents.moe.gates import Steering, last_positions, record, steer
from expertmix.retrieval import InputError


@pytest.fixture(scope="module")
def moe() -> MoeModel:
    return find_moe(make_model("olmoe"))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def steering(moe: MoeModel, mask_BT: torch.Tensor, **changes: Any) -> Steering:
    """Random routings for the last token of every row in the last two layers."""
    settings: dict[str, Any] = {
        "layers": (2, 3),
        "rows_R": torch.arange(len(mask_BT)),
        "positions_R": last_positions(mask_BT),
        "routing_RCE": (2 * draw(len(mask_BT), 2, moe.experts)).softmax(-1),
    }
    return Steering(**(settings | changes))


@torch.no_grad()
def last_logits(moe: MoeModel, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    last_B = last_positions(mask_BT)
    return run(moe.model, ids_BT, mask_BT)[torch.arange(len(last_B)), last_B]


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_last_token_is_found_at_either_side() -> None:
    mask_BT = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 0, 0]])
    assert last_positions(mask_BT).tolist() == [3, 2, 3, 1]
    with pytest.raises(InputError, match="a prompt of the batch is empty"):
        last_positions(torch.tensor([[1, 1], [0, 0]]))


@pytest.mark.parametrize("mode", ["set", "add"])
def test_padding_at_either_side_or_none_gives_the_same(moe: MoeModel, mode: str) -> None:
    given: dict[str, torch.Tensor] = {}
    for side in ("left", "right"):
        ids_BT, mask_BT = make_prompts(side=side)
        plain_BV = last_logits(moe, ids_BT, mask_BT)
        with steer(moe, steering(moe, mask_BT, mode=mode)):
            given[side] = last_logits(moe, ids_BT, mask_BT)
        assert (given[side] - plain_BV).abs().amax(-1).min() > 1e-3
    close(given["left"], given["right"])
    routing_RCE = (2 * draw(3, 2, moe.experts)).softmax(-1)
    for row, length in enumerate((12, 5, 9)):
        ids_1T, mask_1T = ids_BT[row : row + 1, :length], mask_BT[row : row + 1, :length]
        alone = steering(moe, mask_1T, mode=mode, routing_RCE=routing_RCE[row : row + 1])
        with steer(moe, alone):
            close(last_logits(moe, ids_1T, mask_1T)[0], given["left"][row])


def test_only_the_rows_that_are_named_are_steered(moe: MoeModel) -> None:
    ids_BT, mask_BT = make_prompts()
    plain_BV = last_logits(moe, ids_BT, mask_BT)
    whole = steering(moe, mask_BT)
    with steer(moe, whole):
        all_BV = last_logits(moe, ids_BT, mask_BT)
    some_R = torch.tensor([2, 0])
    part = steering(
        moe,
        mask_BT,
        rows_R=some_R,
        positions_R=whole.positions_R[some_R],
        routing_RCE=whole.routing_RCE[some_R],
    )
    with steer(moe, part):
        mixed_BV = last_logits(moe, ids_BT, mask_BT)
    close(mixed_BV[some_R], all_BV[some_R])
    close(mixed_BV[1], plain_BV[1])
    assert (all_BV[1] - plain_BV[1]).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe", "deepseek_v3", "granitemoe", "gpt_oss"])
def test_adding_to_logits_is_the_same_as_a_router_that_gives_them(family: str) -> None:
    """The trick of vllm.md §5: pinv(W) b, added to what a router sees, adds b to its logits."""
    moe = find_moe(make_model(family, dtype=torch.float32))
    ids_BT, mask_BT = make_prompts((6, 6))
    last_B = last_positions(mask_BT)
    shift_RCE = 0.5 * draw(2, 1, moe.experts).float()
    with steer(moe, steering(moe, mask_BT, mode="add", layers=(3,), routing_RCE=shift_RCE)):
        ours_BV = last_logits(moe, ids_BT, mask_BT)
    router: Any = moe.at(3).router
    inverse_DE = torch.linalg.pinv(router.weight.detach())
    places_R = torch.arange(2) * 6 + last_B

    def shift(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        moved = inputs[0].reshape(-1, inputs[0].shape[-1]).clone()
        moved[places_R] += shift_RCE[:, 0] @ inverse_DE.T
        return (moved.view_as(inputs[0]), *inputs[1:])

    handle = router.register_forward_pre_hook(shift)
    theirs_BV = last_logits(moe, ids_BT, mask_BT)
    handle.remove()
    torch.testing.assert_close(ours_BV, theirs_BV, rtol=1e-3, atol=1e-4)


def test_a_set_routing_decides_choice_and_weights(moe: MoeModel) -> None:
    ids_BT, mask_BT = make_prompts()
    wanted = steering(moe, mask_BT)
    seen: list[tuple[torch.Tensor, ...]] = []

    def keep(module: Any, inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
        seen.append(output)

    with steer(moe, wanted):
        handle = moe.at(3).router.register_forward_hook(keep)
        last_logits(moe, ids_BT, mask_BT)
        handle.remove()
    _, weights_NK, indices_NK = seen[0]
    places_R = wanted.rows_R * 12 + wanted.positions_R
    best = wanted.routing_RCE[:, 1].topk(4, dim=-1)
    assert torch.equal(indices_NK[places_R], best.indices)
    torch.testing.assert_close(weights_NK[places_R], best.values)
    assert weights_NK.dtype == torch.float64


def test_a_core_keeps_other_experts_off(moe: MoeModel) -> None:
    ids_BT, mask_BT = make_prompts()
    routing_RCE = (2 * draw(3, 2, moe.experts)).softmax(-1)
    core_RCE = routing_RCE <= routing_RCE.sort(-1).values[..., 7:8]  # the eight weakest
    outcomes: list[torch.Tensor] = []
    for selection in ("hard", "straight_through"):
        cored = steering(
            moe, mask_BT, core_RCE=core_RCE, routing_RCE=routing_RCE, selection=selection
        )
        with steer(moe, cored):
            outcomes.append(last_logits(moe, ids_BT, mask_BT))
    with steer(moe, steering(moe, mask_BT, routing_RCE=routing_RCE * core_RCE)):
        outcomes.append(last_logits(moe, ids_BT, mask_BT))
    close(outcomes[0], outcomes[1])
    close(outcomes[0], outcomes[2])


def test_mass_is_kept_on_demand(moe: MoeModel) -> None:
    ids_BT, mask_BT = make_prompts()
    flat_RCE = torch.full((3, 2, moe.experts), 1 / moe.experts).double()
    sums: dict[bool, torch.Tensor] = {}
    places_R = torch.arange(3) * 12 + last_positions(mask_BT)
    seen: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
        seen.append(output[1][places_R].sum(-1))

    for keeps_mass in (False, True):
        handle = moe.at(2).router.register_forward_hook(keep)  # sees the router's own output
        with steer(moe, steering(moe, mask_BT, routing_RCE=flat_RCE, keeps_mass=keeps_mass)):
            after = moe.at(2).router.register_forward_hook(keep)
            last_logits(moe, ids_BT, mask_BT)
            after.remove()
        handle.remove()
        own, sums[keeps_mass] = seen[-2:]
        assert own.min() > 0.3
    torch.testing.assert_close(sums[False], torch.full((3,), 4 / 16).double())
    torch.testing.assert_close(sums[True], own)


def test_a_prompt_that_is_read_in_two_passes_is_steered_at_the_same_token(moe: MoeModel) -> None:
    ids_BT, mask_BT = make_prompts((9, 9))
    with steer(moe, steering(moe, mask_BT, positions_R=torch.tensor([8, 3]))):
        whole_BTV = run(moe.model, ids_BT, mask_BT).detach()
        cache = DynamicCache()
        with torch.no_grad():
            parts = [
                moe.model(input_ids=part, past_key_values=cache).logits
                for part in (ids_BT[:, :5], ids_BT[:, 5:])
            ]
    plain_BTV = run(moe.model, ids_BT, mask_BT).detach()
    close(torch.cat(parts, dim=1), whole_BTV)
    assert (whole_BTV[1, 3] - plain_BTV[1, 3]).abs().max() > 1e-2
    close(whole_BTV[0, :8], plain_BTV[0, :8])


def generate(moe: MoeModel, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    return moe.model.generate(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
    )[:, ids_BT.shape[1] :]


def test_generation_is_steered_at_the_prompt_only_unless_told_otherwise(moe: MoeModel) -> None:
    ids_BT, mask_BT = make_prompts()
    plain_BS = generate(moe, ids_BT, mask_BT)
    made: dict[str, torch.Tensor] = {}
    for scope in ("token", "onwards"):
        with steer(moe, steering(moe, mask_BT, scope=scope)):
            made[scope] = generate(moe, ids_BT, mask_BT)
    assert not torch.equal(made["token"], plain_BS)
    assert torch.equal(made["token"][:, 0], made["onwards"][:, 0])
    assert (made["token"] != made["onwards"]).any(-1).all()
    # By hand, without a cache: steer the prompt's last token in every pass over the longer sequence.
    last_B = last_positions(mask_BT)
    longer_BT, longer_mask_BT = ids_BT, mask_BT
    with steer(moe, steering(moe, mask_BT)), torch.no_grad():
        for _ in range(12):
            next_B = run(moe.model, longer_BT, longer_mask_BT)[:, -1].argmax(-1)
            longer_BT = torch.cat([longer_BT, next_B[:, None]], dim=1)
            longer_mask_BT = torch.nn.functional.pad(longer_mask_BT, (0, 1), value=1)
    assert last_B.tolist() == [11, 11, 11]
    assert torch.equal(longer_BT[:, 12:], made["token"])


def test_onwards_is_what_the_published_code_does_unawares(moe: MoeModel) -> None:
    """Its patched block overrides the last token of *every* pass (c3po.md §3.3, 2)."""
    ids_BT, mask_BT = make_prompts((8,))
    routing_RCE = (2 * draw(1, 2, moe.experts, seed=5)).softmax(-1)
    lengths: list[int] = []

    def override(place: int) -> Any:
        def hook(
            module: Any, inputs: Any, output: tuple[torch.Tensor, ...]
        ) -> tuple[torch.Tensor, ...]:
            logits, weights, indices = output
            weights, indices = weights.clone(), indices.clone()
            best = routing_RCE[0, place].topk(4)
            weights[-1], indices[-1] = best.values, best.indices
            lengths.append(len(logits))
            return logits, weights, indices

        return hook

    handles = [
        moe.at(index).router.register_forward_hook(override(place))
        for place, index in enumerate((2, 3))
    ]
    theirs_BS = generate(moe, ids_BT, mask_BT)
    for handle in handles:
        handle.remove()
    assert (len(lengths), lengths.count(1)) == (24, 22)
    with steer(moe, steering(moe, mask_BT, routing_RCE=routing_RCE, scope="onwards")):
        assert torch.equal(generate(moe, ids_BT, mask_BT), theirs_BS)
    with steer(moe, steering(moe, mask_BT, routing_RCE=routing_RCE)):
        assert not torch.equal(generate(moe, ids_BT, mask_BT), theirs_BS)


def test_blocks_of_different_layers_nest(moe: MoeModel) -> None:
    ids_BT, mask_BT = make_prompts()
    both = steering(moe, mask_BT)
    one = steering(moe, mask_BT, layers=(2,), routing_RCE=both.routing_RCE[:, :1])
    two = steering(moe, mask_BT, layers=(3,), routing_RCE=both.routing_RCE[:, 1:])
    with steer(moe, both):
        wanted_BV = last_logits(moe, ids_BT, mask_BT)
    with steer(moe, one):
        alone_BV = last_logits(moe, ids_BT, mask_BT)
        with steer(moe, two):
            assert torch.equal(last_logits(moe, ids_BT, mask_BT), wanted_BV)
        assert torch.equal(last_logits(moe, ids_BT, mask_BT), alone_BV)
    assert not torch.equal(alone_BV, wanted_BV)


def test_blocks_of_the_same_layer_nest_whatever_their_widths(moe: MoeModel) -> None:
    ids_BT, mask_BT = make_prompts()
    whole = steering(moe, mask_BT)

    def of_row(row: int, selection: str) -> Steering:
        rows_R = torch.tensor([row])
        return steering(
            moe,
            mask_BT,
            rows_R=rows_R,
            positions_R=whole.positions_R[rows_R],
            routing_RCE=whole.routing_RCE[rows_R],
            selection=selection,
        )

    with steer(moe, whole):
        wanted_BV = last_logits(moe, ids_BT, mask_BT)
    with (
        steer(moe, of_row(0, "straight_through")),
        steer(moe, of_row(1, "hard")),
        steer(moe, of_row(2, "straight_through")),
    ):
        close(last_logits(moe, ids_BT, mask_BT), wanted_BV)


def test_recordings_hold_every_token_of_the_last_pass(moe: MoeModel) -> None:
    ids_BT, mask_BT = make_prompts(side="right")
    with record(moe, (1, 3)) as recording, torch.no_grad():
        run(moe.model, ids_BT[:, :2], mask_BT[:, :2])
        run(moe.model, ids_BT, mask_BT)
    assert {index: tuple(s.shape) for index, s in recording.scores.items()} == {
        1: (3, 12, 16),
        3: (3, 12, 16),
    }
    last_B = last_positions(mask_BT)
    pathway_BCE = recording.at(last_B, (3, 1))
    torch.testing.assert_close(pathway_BCE.sum(-1), torch.ones(3, 2).double())
    for row, length in enumerate((12, 5, 9)):
        with record(moe) as alone, torch.no_grad():
            moe.model(input_ids=ids_BT[row : row + 1, :length])
        assert sorted(alone.scores) == [0, 1, 2, 3]
        close(alone.at(torch.tensor([length - 1]), (3, 1))[0], pathway_BCE[row])


def test_what_is_recorded_is_the_routers_own_word_even_under_steering(moe: MoeModel) -> None:
    ids_BT, mask_BT = make_prompts()
    with record(moe, (2,)) as plain, torch.no_grad():
        run(moe.model, ids_BT, mask_BT)
    with steer(moe, steering(moe, mask_BT)), record(moe, (2,)) as steered, torch.no_grad():
        run(moe.model, ids_BT, mask_BT)
    assert torch.equal(plain.scores[2], steered.scores[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"routing_RCE": torch.ones(3, 1, 16)}, "needs? .*3, 2, 16"),
        ({"routing_RCE": torch.ones(3, 2, 8)}, r"16 experts need \(3, 2, 16\)"),
        ({"positions_R": torch.tensor([1])}, "there are 1 positions"),
        ({"rows_R": torch.tensor([], dtype=torch.long)}, r"0 rows \(at least one\)"),
        ({"rows_R": torch.tensor([0, 1, -1])}, "cannot be negative"),
        ({"positions_R": torch.tensor([0, 1, -1])}, "cannot be negative"),
        ({"core_RCE": torch.ones(3, 16, dtype=torch.bool)}, "the core has shape"),
        ({"layers": (2, 7)}, "layer 7 has no routed experts; layers 0, 1, 2, 3 have"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_hook(
    moe: MoeModel, changes: dict[str, Any], message: str
) -> None:
    _, mask_BT = make_prompts()
    with pytest.raises(InputError, match=message), steer(moe, steering(moe, mask_BT, **changes)):
        pass
    assert count_hooks(moe.model) == 0


def test_a_row_that_the_batch_lacks_is_refused_in_the_pass(moe: MoeModel) -> None:
    ids_BT, mask_BT = make_prompts()
    with (
        steer(moe, steering(moe, mask_BT)),
        pytest.raises(InputError, match="row 2 is steered, but the batch has 2 rows"),
    ):
        run(moe.model, ids_BT[:2], mask_BT[:2])
    assert count_hooks(moe.model) == 0
    with pytest.raises(InputError, match="layer 9"), record(moe, (9,)):
        pass


def test_embeddings_may_be_given_instead_of_tokens(moe: MoeModel) -> None:
    ids_BT, mask_BT = make_prompts((7, 7))
    with steer(moe, steering(moe, mask_BT)), torch.no_grad():
        by_ids = moe.model(input_ids=ids_BT).logits
        by_vectors = moe.model(inputs_embeds=moe.base.embed_tokens(ids_BT)).logits
    assert torch.equal(by_ids, by_vectors)
