"""What a family of models must do before it may be re-mixed. A new one has to pass `check_family`."""

from __future__ import annotations

from typing import Any

import torch
from moe_families import make_prompts, run

from expertmix.agents.moe.architecture import MoeLayer, MoeModel, find_moe
from expertmix.agents.moe.gates import Steering, last_positions, record, steer


class _Stop(Exception):
    """Whatever may go wrong in a `with` block."""


def check_family(model: Any) -> None:
    """Check a tiny random model; it is left as it was.

    The rule computes what the router does; steering with a model's own routing changes nothing; other
    tokens are not touched; afterwards, and after an error, all is as before; gradients arrive.
    """
    moe = find_moe(model)
    ids_BT, mask_BT = make_prompts()
    hooks = count_hooks(model)
    last_B = last_positions(mask_BT)
    layers = tuple(layer.index for layer in moe.layers)
    with torch.no_grad():
        _check_rule(moe, ids_BT, mask_BT)
        with record(moe) as recording:
            before_BTV = run(model, ids_BT, mask_BT)
        own_BME = recording.at(last_B, layers)
        own = Steering(
            layers=layers, rows_R=torch.arange(3), positions_R=last_B, routing_RCE=own_BME
        )
        with steer(moe, own):
            same_BTV = run(model, ids_BT, mask_BT)
        # Families compute scores in float32, whatever the model's own type.
        torch.testing.assert_close(same_BTV, before_BTV, rtol=0, atol=1e-5)
    _check_others(moe, own, ids_BT, mask_BT, before_BTV)
    assert count_hooks(model) == hooks
    with torch.no_grad():
        assert torch.equal(run(model, ids_BT, mask_BT), before_BTV), "the model is not as it was"
    _check_error(moe, own)
    assert count_hooks(model) == hooks


def count_hooks(model: Any) -> int:
    """Hooks of all modules together."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def _check_rule(moe: MoeModel, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> None:
    """The rule's choice and weights are the router's own, on its own logits."""
    seen: dict[int, tuple[torch.Tensor, ...]] = {}

    def keep(layer: MoeLayer) -> Any:
        def hook(module: Any, inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
            seen[layer.index] = tuple(output[place] for place in layer.output)

        return layer.router.register_forward_hook(hook)

    handles = [keep(layer) for layer in moe.layers]
    run(moe.model, ids_BT, mask_BT)
    for handle in handles:
        handle.remove()
    for layer in moe.layers:
        logits_NE, weights_NK, indices_NK = seen[layer.index]
        assert logits_NE.shape[-1] == layer.rule.experts == moe.experts
        assert indices_NK.shape[-1] == layer.rule.top_k
        scores_NE = layer.rule.score(logits_NE)
        chosen_NK = layer.rule.choose(scores_NE, bias_E=layer.bias_E)
        assert torch.equal(chosen_NK.sort(-1).values, indices_NK.sort(-1).values.long())
        given_NE = _spread(weights_NK.float(), indices_NK, moe.experts)
        weighed_NK = layer.rule.weigh(scores_NE, chosen_NK)
        ours_NE = _spread(weighed_NK.float(), chosen_NK, moe.experts)
        torch.testing.assert_close(ours_NE, given_NE, rtol=1e-6, atol=1e-6)


def _spread(weights_NK: torch.Tensor, indices_NK: torch.Tensor, experts: int) -> torch.Tensor:
    zeros_NE = weights_NK.new_zeros(len(weights_NK), experts)
    return zeros_NE.scatter(-1, indices_NK.long(), weights_NK)


def _check_others(
    moe: MoeModel,
    own: Steering,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    before_BTV: torch.Tensor,
) -> None:
    """Another routing of the last token changes that token only, and gradients reach all of it."""
    flipped_RCE = own.routing_RCE.flip(-1).clone().requires_grad_()
    for selection in ("hard", "straight_through"):
        other = Steering(
            layers=own.layers,
            rows_R=own.rows_R,
            positions_R=own.positions_R,
            routing_RCE=flipped_RCE,
            selection=selection,
        )
        with steer(moe, other):
            after_BTV = run(moe.model, ids_BT, mask_BT)
        earlier_BT = mask_BT.bool().clone()
        earlier_BT[own.rows_R, own.positions_R] = False
        torch.testing.assert_close(
            after_BTV[earlier_BT].detach(), before_BTV[earlier_BT], rtol=0, atol=1e-5
        )
        last_RV = after_BTV[own.rows_R, own.positions_R]
        assert (last_RV.detach() - before_BTV[own.rows_R, own.positions_R]).abs().max() > 1e-3
        (gradient_RCE,) = torch.autograd.grad(last_RV.square().sum(), flipped_RCE)
        assert gradient_RCE.isfinite().all()
        number = (gradient_RCE != 0).sum(-1)
        if selection == "hard":
            assert (number == moe.layers[0].rule.top_k).all(), "exactly the chosen experts"
        else:
            assert (number == moe.experts).all(), "all experts"


def _check_error(moe: MoeModel, own: Steering) -> None:
    try:
        with steer(moe, own), record(moe):
            raise _Stop
    except _Stop:
        return
    raise AssertionError("the error was swallowed")
