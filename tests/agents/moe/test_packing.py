from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
from moe_families import CONFIGS, TOKENS_O, make_model, make_prompts

from expertmix.agents.moe.architecture import MoeModel, find_moe
from expertmix.agents.moe.packing import StateKind, choose_kind, estimate_bytes, pack, unpack
from expertmix.agents.moe.states import TokenStates, capture

KINDS: tuple[StateKind, ...] = ("full", "bf16", "int8", "hidden")
LENGTHS = (7, 3, 1, 5)


@pytest.fixture(scope="module")
def moe() -> MoeModel:
    return find_moe(make_model("olmoe", dtype=torch.float32))


def capture_of(moe: MoeModel) -> TokenStates:
    ids_BT, mask_BT = make_prompts(LENGTHS)
    return capture(moe, ids_BT, mask_BT, first=moe.last(2)[0], tokens_O=TOKENS_O, keeps_hidden=True)


def rows(states: TokenStates, index: int) -> torch.Tensor:
    """Keys of one layer, prompt after prompt, without padding: [S, H, D]."""
    return torch.cat(
        [
            states.keys[index][row, :, :length].transpose(0, 1)
            for row, length in enumerate(states.lengths_N.tolist())
        ]
    )


def size_of(packed: dict[str, torch.Tensor]) -> int:
    small = ("residual", "input", "pathway", "logits", "lengths")
    return sum(t.numel() * t.element_size() for name, t in packed.items() if name not in small)


def test_full_states_are_exact_and_without_padding(moe: MoeModel) -> None:
    states = capture_of(moe)
    packed = pack(states, "full")
    assert sorted(packed) == [
        "input",
        "key.3",
        "lengths",
        "logits",
        "pathway",
        "residual",
        "value.3",
    ]
    assert tuple(packed["key.3"].shape) == (12, 4, 8)
    assert torch.equal(unpack(packed, "key.3", torch.float32), rows(states, 3))
    assert packed["lengths"].tolist() == [6, 2, 0, 4]


def test_hidden_states_are_of_every_token(moe: MoeModel) -> None:
    states = capture_of(moe)
    packed = pack(states, "hidden")
    assert states.hidden_NTD is not None
    assert tuple(packed["hidden"].shape) == (16, 32)
    assert torch.equal(packed["hidden"][7:10], states.hidden_NTD[1, :3])
    assert not any(name.startswith("key") for name in packed)


def test_bfloat16_states_are_near(moe: MoeModel) -> None:
    states = capture_of(moe)
    packed = pack(states, "bf16")
    assert packed["key.3"].dtype == torch.bfloat16
    exact = rows(states, 3)
    assert ((unpack(packed, "key.3", torch.float32) - exact).abs() <= exact.abs() * 2**-8).all()


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-3, 1.0, 1e3])
def test_int8_states_are_within_their_step(moe: MoeModel, size: float) -> None:
    states = capture_of(moe)
    scaled = {index: key * size for index, key in states.keys.items()}
    scaled[3][0, 0, 0] = 0  # a head that says nothing
    states = TokenStates(
        **{name: getattr(states, name) for name in states.__slots__} | {"keys": scaled}  # pyright: ignore[reportArgumentType]
    )
    packed = pack(states, "int8")
    assert packed["key.3"].dtype == torch.int8
    assert packed["key.3.scale"].dtype == torch.float16
    exact, ours = rows(states, 3), unpack(packed, "key.3", torch.float32)
    assert ours.isfinite().all()
    largest = exact.abs().amax(-1, keepdim=True)
    # Half a step, what the step's own rounding cuts off at the end, and float16's smallest numbers.
    bound = largest * (1 / 254 + 2**-10) + 127 * 2.0**-25
    assert ((ours - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_estimate_is_the_size(family: str, dtype: torch.dtype) -> None:
    moe = find_moe(make_model(family, dtype=dtype))
    states = capture_of(moe)
    for kind in KINDS:
        estimate = sum(estimate_bytes(moe, states.first, length, kind) for length in LENGTHS)
        assert size_of(pack(states, kind)) == estimate
        together = estimate_bytes(moe, states.first, sum(LENGTHS), kind, prompts=len(LENGTHS))
        assert together == estimate


def test_the_most_exact_kind_that_fits_is_chosen(moe: MoeModel) -> None:
    first, tokens, prompts = 1, 1000, 30
    size = {kind: estimate_bytes(moe, first, tokens, kind, prompts=prompts) for kind in KINDS}
    assert size["full"] > size["bf16"] > size["int8"] > size["hidden"]

    def chosen(budget: int) -> StateKind | None:
        return choose_kind(moe, first, tokens, prompts, budget)

    for kind, next_kind in zip(KINDS, (*KINDS[1:], None), strict=True):
        assert chosen(size[kind]) == kind
        assert chosen(size[kind] - 1) == next_kind
    assert chosen(10**15) == "full"
    assert chosen(0) is None
