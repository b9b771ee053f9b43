from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
import transformers
from moe_conformance import check_family, count_hooks
from moe_families import COMMON, CONFIGS, make_model

from expertmix.agents.moe.architecture import FAMILIES, find_moe
from expertmix.agents.moe.routing import RoutingRule
from expertmix.retrieval import InputError

V3 = {"scoring": "sigmoid", "renormalises": True, "groups": 4, "kept_groups": 2}
RULES = {
    "olmoe": RoutingRule(experts=16, top_k=4),
    "qwen2_moe": RoutingRule(experts=8, top_k=3),
    "qwen3_moe": RoutingRule(experts=8, top_k=3, renormalises=True),
    "mixtral": RoutingRule(experts=6, top_k=2, renormalises=True),
    "mixtral_sliding": RoutingRule(experts=6, top_k=2, renormalises=True),
    "deepseek_v2": RoutingRule(experts=8, top_k=3, scale=1.3, groups=4, kept_groups=2),
    "deepseek_v3": RoutingRule(experts=8, top_k=3, scale=2.5, group_score="top2", **V3),  # pyright: ignore[reportArgumentType]
    "granitemoe": RoutingRule(experts=8, top_k=3, renormalises=True),
    "gpt_oss": RoutingRule(experts=8, top_k=3, renormalises=True),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_is_found_with_its_layers_and_its_rule(family: str) -> None:
    moe = find_moe(make_model(family))
    first = 1 if family in ("qwen2_moe", "deepseek_v2", "deepseek_v3") else 0
    layers = tuple(range(first, 4))
    assert tuple(layer.index for layer in moe.layers) == layers
    assert {layer.rule for layer in moe.layers} == {RULES[family]}
    assert moe.experts == RULES[family].experts
    assert moe.last(2) == (2, 3)
    assert moe.last(len(layers)) == layers
    for layer in moe.layers:
        assert moe.at(layer.index) is layer
        assert layer.layer is moe.decoder[layer.index]
        assert layer.multiplier == (0.7 if family == "granitemoe" else 1.0)
        assert (layer.bias_E is not None) == (family == "deepseek_v3")


def test_no_family_is_left_untried() -> None:
    tried = {
        type(layer.router).__name__ for f in CONFIGS for layer in find_moe(make_model(f)).layers
    }
    assert tried == {family.router_class for family in FAMILIES}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_conforms(family: str, dtype: torch.dtype) -> None:
    check_family(make_model(family, dtype=dtype))


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_of_a_few_tokens_are_those_of_the_whole_head(family: str) -> None:
    moe = find_moe(make_model(family))
    tokens_O = torch.tensor([5, 90, 7])
    with torch.no_grad():
        hidden_BTD = moe.base(input_ids=torch.tensor([[4, 5, 6]])).last_hidden_state
        whole_V = moe.model(input_ids=torch.tensor([[4, 5, 6]])).logits[0, -1]
        few_NO = moe.read_logits(hidden_BTD[:, -1], tokens_O)
    torch.testing.assert_close(few_NO[0], whole_V[tokens_O])


def test_a_head_with_a_bias_is_read_with_it() -> None:
    model = make_model("olmoe")
    head = torch.nn.Linear(32, 96, bias=True, dtype=torch.float64)
    model.set_output_embeddings(head)
    hidden_ND = torch.randn(2, 32, dtype=torch.float64)
    few_NO = find_moe(model).read_logits(hidden_ND, torch.tensor([3, 9]))
    torch.testing.assert_close(few_NO, head(hidden_ND)[:, [3, 9]])


def test_half_precision_logits_come_in_full() -> None:
    moe = find_moe(make_model("olmoe", dtype=torch.bfloat16))
    hidden_ND = torch.ones(1, 32, dtype=torch.bfloat16)
    assert moe.read_logits(hidden_ND, torch.tensor([3])).dtype == torch.float32
    assert moe.dtype == torch.bfloat16


def test_a_dense_model_is_told_what_was_looked_for() -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON))
    hooks = count_hooks(model)
    with pytest.raises(InputError) as error:
        find_moe(model)
    message = str(error.value)
    assert "LlamaForCausalLM cannot be re-mixed: it is a dense model" in message
    for family in FAMILIES:
        assert f"{family.block}.{family.router} ({family.router_class})" in message
    assert "expertmix moe build" in message
    assert count_hooks(model) == hooks


def test_routers_of_an_unknown_kind_are_named() -> None:
    config = transformers.FlexOlmoConfig(**COMMON, num_experts=4, num_experts_per_tok=2)
    with pytest.raises(InputError, match=r"its routers model\.layers\.0\.mlp\.gate \(FlexOlmoTopK"):
        find_moe(transformers.FlexOlmoForCausalLM(config))


def test_what_is_no_causal_model_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="Linear cannot be re-mixed"):
        find_moe(torch.nn.Linear(2, 2))


def test_layers_that_are_not_there_are_explained() -> None:
    moe = find_moe(make_model("qwen2_moe"))
    with pytest.raises(InputError, match="layer 0 has no routed experts; layers 1, 2, 3 have"):
        moe.at(0)
    for number in (0, 4):
        with pytest.raises(InputError, match=f"{number} critical layers .* the model has 3"):
            moe.last(number)
