"""The account of what re-mixing costs: the published figures, and what torch counts."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
import transformers
from moe_families import CONFIGS, TOKENS_O, draw_routing, make_model, make_prompts, strongest

from expertmix.agents.moe.architecture import find_moe
from expertmix.agents.moe.counting import count_flops
from expertmix.agents.moe.flops import (
    Cost,
    Shape,
    list_schemes,
    plain_pass,
    prepare_pass,
    solution_ratio,
    suffix_pass,
)
from expertmix.agents.moe.problem import Selection, Solution
from expertmix.agents.moe.states import capture
from expertmix.agents.moe.suffix import SuffixEngine
from expertmix.retrieval import InputError

LAYERS = range(11, 16)
LENGTHS = (50, 100, 150, 200, 300, 1000)
TABLE = {  # c3po.md §4.3
    "naive": (41.4, 41.4, 41.4, 41.4, 41.5, 41.7),
    "last token, neighbours online": (4.50, 4.25, 4.17, 4.13, 4.08, 4.03),
    "last token, neighbours cached": (1.497, 1.249, 1.166, 1.125, 1.083, 1.025),
    "first layer cached": (1.421, 1.211, 1.141, 1.106, 1.071, 1.021),
    "first layer cached, straight-through": (1.589, 1.295, 1.197, 1.147, 1.098, 1.030),
    "first layer cached, options only": (1.304, 1.153, 1.102, 1.077, 1.051, 1.016),
    "kernel regression, alpha 0": (1.008, 1.004, 1.003, 1.002, 1.001, 1.000),
    "kernel regression, 11 alphas": (1.277, 1.139, 1.093, 1.070, 1.046, 1.014),
}


@pytest.fixture(scope="module")
def olmoe() -> Shape:
    """OLMoE-1B-7B, without its weights."""
    return Shape.of_config(transformers.OlmoeConfig(intermediate_size=1024))


def test_a_plain_pass_costs_what_is_published(olmoe: Shape) -> None:
    given = [plain_pass(olmoe, tokens).macs / 1e9 for tokens in LENGTHS[:5]]
    assert given == pytest.approx([54.0, 108.0, 162.2, 216.6, 325.8], abs=0.05)
    assert plain_pass(olmoe, 100).flops == 2 * plain_pass(olmoe, 100).macs


def test_one_token_costs_what_is_published(olmoe: Shape) -> None:
    """The published figures leave out the routers, which run although they are not heard."""
    routers = 4 * 64 * 2048
    whole = suffix_pass(olmoe, 100, LAYERS, head_rows=None, cached=False)
    cached = suffix_pass(olmoe, 100, LAYERS, head_rows=None, core=8)
    few = suffix_pass(olmoe, 100, LAYERS, head_rows=4, core=8)
    assert (whole.macs - routers * 5 / 4) / 1e6 == pytest.approx(440.6, abs=0.05)
    assert (cached.macs - routers) / 1e6 == pytest.approx(373.1, abs=0.05)
    assert (few.macs - routers) / 1e6 == pytest.approx(270.1, abs=0.05)


@pytest.mark.parametrize(("place", "tokens"), list(enumerate(LENGTHS)))
def test_the_table_of_schemes_is_the_published_one(olmoe: Shape, place: int, tokens: int) -> None:
    given = list_schemes(olmoe, tokens, LAYERS)
    assert list(given) == list(TABLE)
    for scheme, figures in TABLE.items():
        near = 0.05 if figures[place] > 10 else 0.006 if figures[place] > 4 else 0.0007
        assert given[scheme] == pytest.approx(figures[place], abs=near), scheme


def test_a_solution_costs_at_least_its_own_pass(olmoe: Shape) -> None:
    routing_QCE = torch.ones(2, 5, 64)
    nothing = Solution(routing_QCE=routing_QCE, curve_QS=torch.ones(2, 1), passes=0)
    descent = Solution(routing_QCE=routing_QCE, curve_QS=torch.ones(2, 11), passes=66, gradients=60)

    def ratio(solution: Solution, selection: Selection) -> float:
        return solution_ratio(
            olmoe,
            LAYERS,
            solution,
            tokens=(100, 100),
            neighbour_tokens=(100,) * 6,
            selection=selection,
            core=20,
            head_rows=4,
        )

    assert ratio(nothing, "hard") == pytest.approx(1.004, abs=0.001)
    assert ratio(descent, "hard") == pytest.approx(1.153 + 0.0075 + 0.0048, abs=0.002)
    assert ratio(descent, "hard") < ratio(descent, "straight_through") < 1.30


def test_the_shape_of_a_model_with_weights_is_that_of_its_configuration() -> None:
    for family in CONFIGS:
        model = make_model(family)
        assert Shape.of(find_moe(model)) == Shape.of_config(model.config), family


def test_shapes_know_dense_layers_shared_experts_and_windows() -> None:
    qwen = Shape.of(find_moe(make_model("qwen2_moe"))).layers
    assert qwen[0].router == qwen[0].expert == qwen[0].experts == 0
    assert qwen[0].rest == 3 * 32 * 24
    assert qwen[1].rest == 3 * 32 * 20 + 32  # and the gate of the shared expert
    assert qwen[1].expert == 3 * 32 * 16
    assert qwen[1].projections == 2 * 32 * 32 + 2 * 32 * 16  # two key-value heads of four
    deepseek = Shape.of(find_moe(make_model("deepseek_v3"))).layers
    assert deepseek[0].experts == 0
    assert deepseek[1].rest == 3 * 32 * 16
    assert deepseek[1].per_cached == 16 * 4 * 16  # latents are expanded again in every pass
    sliding = Shape.of(find_moe(make_model("mixtral_sliding"))).layers[0]
    assert sliding.attend_all(9) == sliding.per_pair * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 7 + 7)
    assert sliding.attend(9) == sliding.per_pair * 7


def test_a_dense_model_has_no_such_shape() -> None:
    with pytest.raises(InputError, match="dense model"):
        Shape.of_config(transformers.LlamaConfig(num_hidden_layers=1, vocab_size=96))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "qwen3_moe", "mixtral", "deepseek_v3"])
def test_torch_counts_what_the_account_says(family: str, dtype: torch.dtype) -> None:
    """In float32 the experts are a grouped product, in float64 one product for each expert."""
    model = make_model(family, dtype=dtype)
    moe, shape = find_moe(model), Shape.of(find_moe(model))
    layers, tokens, rows = moe.last(3), 40, 2
    core = moe.experts - 2
    ids_BT, mask_BT = make_prompts((tokens,) * rows)

    def run_plain() -> None:
        with torch.no_grad():
            model(input_ids=ids_BT, logits_to_keep=1)

    def close(counted: int, account: Cost) -> None:
        assert counted / rows == pytest.approx(account.flops, rel=0.02)

    if family != "deepseek_v3":  # its prompts' attention computes what is masked as well
        close(count_flops(run_plain)[1], plain_pass(shape, tokens))
    states = capture(moe, ids_BT, mask_BT, first=layers[0], tokens_O=TOKENS_O)
    engine = SuffixEngine(moe, layers, TOKENS_O)
    routing_RCE = draw_routing(rows, 3, moe.experts).to(dtype).requires_grad_()
    core_RCE = strongest(routing_RCE, core)
    prepared, counted = count_flops(lambda: engine.prepare(states, core_RCE))
    close(counted, prepare_pass(shape, layers, core=core))
    for selection in ("hard", "straight_through"):
        chosen: Selection = "hard" if selection == "hard" else "straight_through"

        def forward(chosen: Selection = chosen) -> torch.Tensor:
            return engine.run(prepared, routing_RCE, chosen)

        logits_RO, counted = count_flops(forward)
        settings = {"selection": chosen, "core": core, "head_rows": len(TOKENS_O)}
        ahead = suffix_pass(shape, tokens, layers, **settings)  # pyright: ignore[reportArgumentType]
        close(counted, ahead)
        value = logits_RO.sum()
        _, counted_back = count_flops(lambda value=value: torch.autograd.grad(value, routing_RCE))
        both = suffix_pass(shape, tokens, layers, gradient=True, **settings)  # pyright: ignore[reportArgumentType]
        close(counted + counted_back, both)
