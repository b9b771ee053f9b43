"""Teaching a mixture to answer with the right letter: its routers first, then low-rank updates too.

The mixture computes in bfloat16, which processors with the instructions for it do four times as fast
as float32, while what is learnt is kept in float32: steps of this size would be rounded away.

Shapes: B questions of a batch, T tokens, D width, O option letters, R rank.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ....retrieval import Question
from ...reason import derive_seed
from ..letters import Letters
from .lessons import lesson_batches
from .mixture import LowRank, Mixture
from .part import Part, Update

__all__ = ["Course", "assemble", "letter_logits", "letter_loss", "train"]

MATRICES = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
WARM_UP = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How long and how fast something is learnt."""

    steps: int = 600
    router_steps: int = 40
    """The first of them, in which only routers learn."""
    pointing_steps: int = 0
    """In so many steps most lessons are about letters alone; see `lesson_batches`."""
    questions: int = 16
    """In a batch."""
    rank: int = 16
    """Of the updates."""
    layers: int | None = None
    """Layers with updates, from the top; by default those with experts."""
    rate: float = 1e-3
    """Highest learning rate of the updates."""
    router_rate: float = 3e-4
    kept_every: int = 20
    """Steps between two checkpoints."""


def train(
    model: Any,
    letters: Letters,
    part: Part,
    questions: Sequence[Question],
    *,
    course: Course,
    seed: int,
    checkpoint: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> Part:
    """Train routers and updates of the layers that `part` splits; go on from a checkpoint if there is one.

    Args:
        model: The dense parent in the type to compute in; it is changed.
        letters: How its tokenizer writes choices.
        part: What training begins with.
        questions: Labelled choices.
        course: How long and how fast.
        seed: Decides the order of questions and options, and how updates begin.
        checkpoint: A safetensors file, written every few steps and left where it is.
        progress: Told the mean loss now and then.
    """
    routers, updates = assemble(
        model, part, rank=course.rank, seed=seed, layers=course.layers or len(part.partitions)
    )
    learnt = {**{f"{n}.router": p for n, p in routers.items()}, **updates}
    masters = {name: p.detach().float().clone() for name, p in learnt.items()}
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [masters[n] for n in learnt if n not in updates],
                "peak": course.router_rate,
            },
            {"params": [masters[n] for n in updates], "peak": course.rate},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    done = _restore(checkpoint, masters, optimizer)
    _copy_back(masters, learnt)
    batches = lesson_batches(
        questions, course.questions, seed, pointing_steps=course.pointing_steps
    )
    losses: list[float] = []
    for step, batch in enumerate(itertools.islice(batches, done, course.steps), done):
        for parameter in updates.values():
            parameter.requires_grad_(step >= course.router_steps)
        loss = letter_loss(model, letters, batch)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _schedule(step, course)
        for name, parameter in learnt.items():
            masters[name].grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        nn.utils.clip_grad_norm_(list(masters.values()), 1.0)
        optimizer.step()
        _copy_back(masters, learnt)
        losses.append(loss.item())
        if (step + 1) % course.kept_every == 0 or step + 1 == course.steps:
            _keep(checkpoint, step + 1, masters, optimizer)
            recent = losses[-course.kept_every :]
            progress(f"step {step + 1} of {course.steps}: loss {sum(recent) / len(recent):.3f}")
    facts = {**part.facts, "course": asdict(course)}
    return _finished(part, routers, updates, facts)


def letter_loss(model: Any, letters: Letters, batch: Sequence[Question]) -> torch.Tensor:
    """Cross-entropy of the gold letters among each question's own."""
    logits_BO = letter_logits(model, letters, batch)
    gold_B = torch.tensor([q.letters.index(q.gold or "") for q in batch])
    return nn.functional.cross_entropy(logits_BO, gold_B)


def letter_logits(model: Any, letters: Letters, batch: Sequence[Question]) -> torch.Tensor:
    """Logits of the option letters at the last prompt token, `-inf` where a question has no such option.

    The prompts are padded on the right: attention is causal, so no token that counts sees it.
    """
    prompts = [letters.encode(question) for question in batch]
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in prompts])
    hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    hidden_BD = hidden_BTD[torch.arange(len(prompts)), torch.tensor([len(x) - 1 for x in prompts])]
    most = max(len(question.options) for question in batch)
    head_OD = model.get_output_embeddings().weight[letters.tokens_O[:most]]
    logits_BO = (hidden_BD @ head_OD.T).float()
    options_B1 = torch.tensor([[len(question.options)] for question in batch])
    return logits_BO.masked_fill(torch.arange(most) >= options_B1, -torch.inf)


def assemble(
    model: Any, part: Part, *, rank: int = 0, seed: int = 0, layers: int = 0
) -> tuple[dict[int, nn.Parameter], dict[str, nn.Parameter]]:
    """Turn a dense model into the mixture of `part`, ready to train where `layers` is positive.

    Updates that the part already has are added to the parent's matrices.

    Args:
        model: The dense parent; it is changed.
        part: What makes the mixture.
        rank: Of the updates to train.
        seed: Decides how these begin.
        layers: How many layers from the top have them.

    Returns:
        The routers by layer, and the thin matrices by `NAME.down` and `NAME.up`.
    """
    model.requires_grad_(False)
    stored = dict(model.named_parameters())
    with torch.no_grad():
        for name, update in part.updates.items():
            stored[name].copy_(update.added_to(stored[name]))
    generator = torch.Generator().manual_seed(derive_seed(seed, "updates"))
    routers: dict[int, nn.Parameter] = {}
    updates: dict[str, nn.Parameter] = {}
    for number in sorted(part.partitions):
        layer = model.model.layers[number]
        layer.mlp = Mixture(layer.mlp, part.partitions[number], part.routers_ED[number], part.top_k)
        layer.mlp.router_ED.requires_grad_(layers > 0)
        routers[number] = layer.mlp.router_ED
    total = len(model.model.layers)
    for number in range(max(0, total - layers), total):
        for block, kinds in MATRICES.items():
            parent = getattr(model.model.layers[number], block)
            for kind in kinds:
                thin = _low_rank(getattr(parent, kind), rank, generator)
                setattr(parent, kind, thin)
                name = f"model.layers.{number}.{block}.{kind}.weight"
                updates |= {f"{name}.down": thin.down_RD, f"{name}.up": thin.up_OR}
    return routers, updates


def _low_rank(base: nn.Linear, rank: int, generator: torch.Generator) -> LowRank:
    outputs, width = base.weight.shape
    down_RD = torch.randn(rank, width, generator=generator) / math.sqrt(width)
    dtype = base.weight.dtype
    return LowRank(base, down_RD.to(dtype), torch.zeros(outputs, rank, dtype=dtype))


def _finished(
    part: Part,
    routers: Mapping[int, nn.Parameter],
    updates: Mapping[str, nn.Parameter],
    facts: dict[str, Any],
) -> Part:
    """The part with what was learnt, as it was computed with: in the model's own type."""
    learnt: dict[str, Update] = {}
    for key in updates:
        if key.endswith(".up"):
            name = key.removesuffix(".up")
            down_RD, up_OR = updates[f"{name}.down"].detach(), updates[key].detach()
            before = part.updates.get(name)
            if before is not None:
                down_RD = torch.cat([before.down_RD.to(down_RD.dtype), down_RD])
                up_OR = torch.cat([before.up_OR.to(up_OR.dtype), up_OR], dim=1)
            learnt[name] = Update(down_RD=down_RD, up_OR=up_OR)
    return replace(
        part,
        routers_ED={number: router.detach().float() for number, router in routers.items()},
        updates={**part.updates, **learnt},
        facts=facts,
    )


def _schedule(step: int, course: Course) -> float:
    """A short rise and a cosine, for the routers alone and then for all."""
    start = course.router_steps if step >= course.router_steps else 0
    end = course.steps if start else min(course.router_steps, course.steps)
    rise = max(1, round(WARM_UP * (end - start)))
    if step - start < rise:
        return (step - start + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - start - rise) / max(1, end - start - rise)))


@torch.no_grad()
def _copy_back(masters: Mapping[str, torch.Tensor], learnt: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in learnt.items():
        parameter.copy_(masters[name])


def _keep(
    path: Path, step: int, masters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Write the state of training; a half-written file never has the name."""
    tensors = {f"master.{name}": master for name, master in masters.items()}
    for name, master in masters.items():
        for key, value in optimizer.state.get(master, {}).items():
            tensors[f"{key}.{name}"] = value
    draft = path.with_suffix(".draft")
    save_file(tensors, draft, metadata={"step": str(step)})
    draft.replace(path)


def _restore(
    path: Path, masters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> int:
    """Read the state of training into `masters` and `optimizer`; return the steps that are done."""
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as stored:
        names = set(stored.keys())
        for name, master in masters.items():
            master.copy_(stored.get_tensor(f"master.{name}"))
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in names]
            if keys:
                optimizer.state[master] = {k: stored.get_tensor(f"{k}.{name}") for k in keys}
        return int(stored.metadata()["step"])
