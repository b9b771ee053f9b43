"""The suffix gives what a whole forward pass with the same steering gives: values and gradients."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
from moe_families import (
    CONFIGS,
    TOKENS_O,
    draw_routing,
    make_model,
    make_prompts,
    run,
    run_steered,
    strongest,
)

from expertmix.agents.moe.architecture import MoeModel, find_moe
from expertmix.agents.moe.gates import Steering, last_positions, steer
from expertmix.agents.moe.problem import Selection
from expertmix.agents.moe.states import TokenStates, capture, join_states
from expertmix.agents.moe.suffix import SuffixEngine
from expertmix.retrieval import InputError

SELECTIONS: tuple[Selection, ...] = ("hard", "straight_through")


def capture_prompts(
    moe: MoeModel, first: int, ids_BT: torch.Tensor, mask_BT: torch.Tensor
) -> TokenStates:
    return capture(moe, ids_BT, mask_BT, first=first, tokens_O=TOKENS_O)


def tolerance(family: str, dtype: torch.dtype) -> float:
    # transformers computes DeepSeek-V2's rotary embedding in float32, whatever the model's type.
    if family == "deepseek_v2":
        return 1e-6 if dtype == torch.float64 else 1e-5
    return 1e-9 if dtype == torch.float64 else 1e-5


def compute_norms_exactly(model: Any) -> Any:
    """transformers computes norms in float32, which is noise to small differences."""
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            exact = torch.nn.RMSNorm(module.weight.shape[0], 1e-6, dtype=torch.float64)
            exact.weight = module.weight
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, exact)
    return model


def gradient_of(logits_RO: torch.Tensor, routing_RCE: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(logits_RO.logsumexp(-1).sum(), routing_RCE)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_suffix_equals_a_whole_pass(family: str, dtype: torch.dtype) -> None:
    model = make_model(family, dtype=dtype)
    moe = find_moe(model)
    layers, near = moe.last(3), tolerance(family, dtype)
    before = run(model, *make_prompts())
    for side in ("left", "right"):
        ids_BT, mask_BT = make_prompts(side=side)
        states = capture_prompts(moe, layers[0], ids_BT, mask_BT)
        engine = SuffixEngine(moe, layers, TOKENS_O)
        for selection in SELECTIONS:
            routing_RCE = draw_routing(3, 3, moe.experts).to(dtype).requires_grad_()
            core_RCE = strongest(routing_RCE, moe.experts - 2)
            whole_RO = run_steered(
                moe,
                ids_BT,
                mask_BT,
                layers,
                routing_RCE,
                core_BCE=core_RCE,
                selection=selection,
            )
            rows = engine.prepare(states, core_RCE)
            suffix_RO = engine.run(rows, routing_RCE, selection)
            torch.testing.assert_close(suffix_RO, whole_RO.to(suffix_RO.dtype), rtol=0, atol=near)
            torch.testing.assert_close(
                gradient_of(suffix_RO, routing_RCE),
                gradient_of(whole_RO, routing_RCE),
                rtol=0,
                atol=10 * near,
            )
    # Nothing is left of it: neither hooks nor another kind of attention.
    assert torch.equal(run(model, *make_prompts()), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("family", CONFIGS)
def test_default_routing_gives_the_default_answer(family: str, selection: Selection) -> None:
    moe = find_moe(make_model(family))
    layers = moe.last(2)
    states = capture_prompts(moe, layers[0], *make_prompts())
    engine = SuffixEngine(moe, layers, TOKENS_O)
    given_RO = engine.run(engine.prepare(states), states.pathway_at(layers), selection)
    near = max(1e-6, tolerance(family, torch.float64))  # some routers score in float32
    torch.testing.assert_close(given_RO, states.logits_NO, rtol=0, atol=near)


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_a_batch_gives_what_single_rows_give(family: str) -> None:
    moe = find_moe(make_model(family))
    layers = moe.last(2)
    ids_BT, mask_BT = make_prompts((9, 1, 4))
    engine = SuffixEngine(moe, layers, TOKENS_O)
    routing_RCE = draw_routing(3, 2, moe.experts)
    core_RCE = strongest(routing_RCE, 5)
    together = engine.prepare(capture_prompts(moe, layers[0], ids_BT, mask_BT), core_RCE)
    given_RO = engine.run(together, routing_RCE, "straight_through")
    for row, length in enumerate((9, 1, 4)):
        alone = capture_prompts(moe, layers[0], ids_BT[[row], -length:], mask_BT[[row], -length:])
        rows = engine.prepare(alone, core_RCE[[row]])
        alone_1O = engine.run(rows, routing_RCE[[row]], "straight_through")
        torch.testing.assert_close(alone_1O, given_RO[[row]], rtol=0, atol=1e-9)
    order = torch.tensor([2, 1, 2])
    taken_RO = engine.run(together.take(order), routing_RCE[order], "straight_through")
    torch.testing.assert_close(taken_RO, given_RO[order], rtol=0, atol=1e-9)


def test_states_of_several_batches_run_together() -> None:
    moe = find_moe(make_model("qwen2_moe"))
    layers = moe.last(2)
    ids_BT, mask_BT = make_prompts((12, 5, 9))
    whole = capture_prompts(moe, layers[0], ids_BT, mask_BT)
    parts = [capture_prompts(moe, layers[0], ids_BT[[i]], mask_BT[[i]]) for i in range(3)]
    engine = SuffixEngine(moe, layers, TOKENS_O)
    routing_RCE = draw_routing(3, 2, moe.experts)
    given_RO = engine.run(engine.prepare(join_states(parts)), routing_RCE)
    wanted_RO = engine.run(engine.prepare(whole), routing_RCE)
    torch.testing.assert_close(given_RO, wanted_RO, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["olmoe", "mixtral_sliding", "granitemoe"])
@pytest.mark.parametrize("layers", [(1, 3), (0, 2), (3,), (2,)])
def test_critical_layers_need_not_be_neighbours(family: str, layers: tuple[int, ...]) -> None:
    moe = find_moe(make_model(family))
    ids_BT, mask_BT = make_prompts((12, 1, 9))
    routing_RCE = draw_routing(3, len(layers), moe.experts).requires_grad_()
    engine = SuffixEngine(moe, layers, TOKENS_O)
    states = capture_prompts(moe, layers[0], ids_BT, mask_BT)
    suffix_RO = engine.run(engine.prepare(states), routing_RCE)
    whole_RO = run_steered(moe, ids_BT, mask_BT, layers, routing_RCE)
    torch.testing.assert_close(suffix_RO, whole_RO, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        gradient_of(suffix_RO, routing_RCE),
        gradient_of(whole_RO, routing_RCE),
        rtol=0,
        atol=1e-9,
    )


@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_mass_of_the_own_choice_can_be_kept(selection: Selection) -> None:
    moe = find_moe(make_model("olmoe"))
    layers = moe.last(3)
    ids_BT, mask_BT = make_prompts()
    routing_RCE = draw_routing(3, 3, moe.experts).requires_grad_()
    core_RCE = strongest(routing_RCE, 9)
    engine = SuffixEngine(moe, layers, TOKENS_O, keeps_mass=True)
    rows = engine.prepare(capture_prompts(moe, layers[0], ids_BT, mask_BT), core_RCE)
    suffix_RO = engine.run(rows, routing_RCE, selection)
    whole_RO = run_steered(
        moe,
        ids_BT,
        mask_BT,
        layers,
        routing_RCE,
        core_BCE=core_RCE,
        selection=selection,
        keeps_mass=True,
    )
    torch.testing.assert_close(suffix_RO, whole_RO, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        gradient_of(suffix_RO, routing_RCE),
        gradient_of(whole_RO, routing_RCE),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("family", CONFIGS)
def test_earlier_tokens_do_not_notice(family: str) -> None:
    model: Any = make_model(family)
    moe = find_moe(model)
    layers = moe.last(3)
    ids_BT, mask_BT = make_prompts(side="right")
    last_B = last_positions(mask_BT)
    steering = Steering(
        layers=layers,
        rows_R=torch.arange(3),
        positions_R=last_B,
        routing_RCE=draw_routing(3, 3, moe.experts),
    )
    with torch.no_grad():
        before_BTV = run(model, ids_BT, mask_BT)
    with torch.no_grad(), steer(moe, steering):
        after_BTV = run(model, ids_BT, mask_BT)
    changed_BT = (after_BTV - before_BTV).abs().amax(-1)
    earlier_BT = torch.arange(ids_BT.shape[1]) < last_B[:, None]
    assert float(changed_BT[earlier_BT].max()) < 1e-12
    assert float(changed_BT[torch.arange(3), last_B].min()) > 1e-3


@pytest.mark.parametrize("family", ["olmoe", "mixtral"])
def test_gradients_reach_the_experts_that_are_on_or_all_of_the_core(family: str) -> None:
    moe = find_moe(make_model(family))
    layers, top_k = moe.last(3), moe.layers[0].rule.top_k
    core = moe.experts - 2
    states = capture_prompts(moe, layers[0], *make_prompts())
    engine = SuffixEngine(moe, layers, TOKENS_O)
    routing_RCE = draw_routing(3, 3, moe.experts).requires_grad_()
    rows = engine.prepare(states, strongest(routing_RCE, core))
    for selection, wanted in (("hard", top_k), ("straight_through", core)):
        chosen: Selection = "hard" if selection == "hard" else "straight_through"
        gradient_RCE = gradient_of(engine.run(rows, routing_RCE, chosen), routing_RCE)
        assert ((gradient_RCE != 0).sum(-1) == wanted).all()


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe", "deepseek_v3"])
def test_gradients_are_central_differences(family: str) -> None:
    moe = find_moe(compute_norms_exactly(make_model(family)))
    layers = moe.last(3)
    states = capture_prompts(moe, layers[0], *make_prompts())
    engine = SuffixEngine(moe, layers, TOKENS_O)
    routing_RCE = draw_routing(3, 3, moe.experts).requires_grad_()
    rows = engine.prepare(states)
    gradient_RCE = gradient_of(engine.run(rows, routing_RCE), routing_RCE)
    with torch.no_grad():
        for layer in range(3):
            expert = int(routing_RCE[1, layer].argmax())
            step_RCE = torch.zeros_like(routing_RCE)
            step_RCE[1, layer, expert] = 1e-5
            above, below = (
                engine.run(rows, routing_RCE + sign * step_RCE).logsumexp(-1).sum()
                for sign in (1, -1)
            )
            slope = float(above - below) / 2e-5
            assert slope == pytest.approx(float(gradient_RCE[1, layer, expert]), abs=1e-8)


@pytest.mark.parametrize("layers", [(), (2, 1), (1, 1)])
def test_layers_must_ascend(layers: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="ascending"):
        SuffixEngine(find_moe(make_model("olmoe")), layers, TOKENS_O)


def test_a_dense_layer_cannot_be_critical() -> None:
    with pytest.raises(InputError, match="layer 0 has no routed experts"):
        SuffixEngine(find_moe(make_model("qwen2_moe")), (0, 1), TOKENS_O)
