"""The training script's shortcuts change nothing: same log-probabilities, and a loss that falls."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="training needs torch")
peft: Any = pytest.importorskip("peft", reason="training needs peft")
transformers: Any = pytest.importorskip("transformers", reason="training needs transformers")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("train_adapter")


@pytest.fixture
def model() -> Any:
    """A random Llama with an adapter that is not the identity."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(transformers.LlamaForCausalLM(config), lora)


def _batch(script: Any) -> Any:
    """Two questions with two options each, of different lengths, that begin alike."""
    rows = [
        [([1, 2, 3, 4, 5, 6], 4), ([1, 2, 3, 4, 7], 4)],
        [([1, 2, 3, 9, 8, 10, 11], 5), ([1, 2, 3, 9, 8, 12], 5)],
    ]
    return script.pad(rows, 0)


def test_sharing_the_common_prefix_changes_no_log_probability(script: Any, model: Any) -> None:
    batch = _batch(script)
    logprobs_N, rows_N = script.target_logprobs(model, batch)
    plain_BTV = model(input_ids=batch.ids_BT).logits.log_softmax(-1)
    expected = [
        (row, plain_BTV[row, place - 1, token].item())
        for row, labels in enumerate(batch.labels_BT.tolist())
        for place, token in enumerate(labels)
        if token != script.IGNORE
    ]
    assert rows_N.tolist() == [row for row, _ in expected]
    assert logprobs_N.tolist() == pytest.approx([value for _, value in expected], abs=1e-5)


def test_the_option_loss_is_that_of_choosing_the_first_option(script: Any) -> None:
    batch = _batch(script)
    logprobs_N, rows_N = torch.tensor([-1.0, -1.0, -2.0, -1.0, -2.0, -1.0]), [0, 0, 1, 2, 2, 3]
    loss = script.option_loss(logprobs_N, torch.tensor(rows_N), batch)
    # The sums are -2 against -2, and -3 against -1.
    expected = -(torch.tensor(0.5).log() + torch.sigmoid(torch.tensor(-2.0)).log()) / 2
    assert loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("skill", ["arithmetic", "choices"])
def test_training_lowers_the_loss_and_touches_the_adapter_alone(
    script: Any, model: Any, skill: str
) -> None:
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    losses = script.train(model, script.COURSES[skill], itertools.repeat(_batch(script)), 40)
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
