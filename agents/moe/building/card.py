"""The model card: how a mixture was made, how large it is, and what it was measured to be worth."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .measuring import Accuracy
from .parent import PACKAGE, Parent
from .part import Part

__all__ = ["Measured", "count_active", "find_licence", "write_card"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Letters of the mixture next to its parent's."""

    file: str
    dense: Accuracy
    mixture: Accuracy


def count_active(total: int, parent: Parent, part: Part) -> int:
    """How many of `total` numbers take part in a token: all but those of the experts that are off."""
    off = part.experts - part.top_k
    per_expert = 3 * part.sizes.expert * int(parent.config.hidden_size)
    return total - len(part.partitions) * off * per_expert


def find_licence(parent: Parent) -> str | None:
    """What the package, or the folder's own card, says; None if nothing does."""
    if parent.name.startswith(PACKAGE):
        facts: Any = importlib.metadata.metadata(parent.name.removeprefix(PACKAGE))
        return facts.get("License-Expression") or facts.get("License")
    card = parent.folder / "README.md"
    if card.is_file():
        found = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8"), re.MULTILINE)
        return found[1] if found else None
    return None


def write_card(
    parent: Parent,
    part: Part,
    *,
    name: str,
    command: str,
    total: int,
    measured: Measured | None,
) -> str:
    """The text of the card.

    Args:
        parent: The dense model.
        part: What was made of it.
        name: Of the folder.
        command: That made it.
        total: Numbers in all tensors.
        measured: None if nothing was.
    """
    licence = find_licence(parent)
    sizes = part.sizes
    layers = sorted(part.partitions)
    active = count_active(total, parent, part)
    head = f"---\nlibrary_name: transformers\n{_front(licence)}---\n\n"
    return head + "\n".join(
        [
            f"# {name}",
            "",
            f"A mixture of experts (Qwen2-MoE) made out of the dense model `{parent.name}` by splitting its "
            "feed-forward networks. It loads in transformers and vLLM as it is.",
            "",
            "```sh",
            command,
            "```",
            "",
            "| | |",
            "|---|---|",
            f"| parent | `{parent.name}`, {parent.config.architectures[0]}, {parent.digest} |",
            f"| parent's licence | {licence or 'not stated'} |",
            f"| parameters | {total:,}, of which {active:,} take part in a token |",
            f"| layers with experts | {layers[0]}–{layers[-1]} of {parent.layers}; those below are dense |",
            f"| experts | {part.experts} of {sizes.expert} neurons, {part.top_k} of them on, and a shared one "
            f"of {sizes.shared} |",
            f"| low-rank updates | {_updates(part)} |",
            *_facts(part.facts),
            "",
            "Neurons that do most on the calibration prompts form the shared expert; the others are "
            "clustered by when they are active, in equal numbers. Routers are fitted to the order "
            "in which experts should be left out. With all experts on and router weights of zero it is its parent exactly, "
            "but for the updates.",
            "",
            "## Letters",
            "",
            _letters(measured),
            "",
        ]
    )


def _front(licence: str | None) -> str:
    return f"license: {licence.lower()}\n" if licence and re.fullmatch(r"[\w.-]+", licence) else ""


def _updates(part: Part) -> str:
    if not part.updates:
        return "none"
    ranks = {len(update.down_RD) for update in part.updates.values()}
    return f"{len(part.updates)} matrices, rank {' and '.join(map(str, sorted(ranks)))}"


def _facts(facts: Mapping[str, Any]) -> list[str]:
    """Rows of the table from what the part says of itself."""
    rows: list[str] = []
    if "calibration" in facts:
        told = facts["calibration"]
        rows.append(f"| calibrated on | {told['prompts']} prompts, {told['tokens']} tokens |")
    if "lost" in facts:
        shares = ", ".join(f"{share:.1%}" for share in facts["lost"].values())
        rows.append(
            f"| lost by splitting, of each layer's squared output, before training | {shares} |"
        )
    if "training" in facts:
        told = facts["training"]
        rows.append(
            f"| trained on | {told['questions']} choices of {', '.join(told['files'])}, "
            f"{told['steps']} steps, seed {told['seed']}; {told['dropped']} dropped as held out |"
        )
    return rows


def _letters(measured: Measured | None) -> str:
    if measured is None:
        return "Accuracy: not measured."
    lines = [
        f"Choices of `{measured.file}`; the likeliest letter is the answer; 95 % Wilson intervals.",
        "",
        "| model | right | of | share | interval |",
        "|---|---|---|---|---|",
    ]
    for who, found in (("dense parent", measured.dense), ("this mixture", measured.mixture)):
        low, high = found.interval
        lines.append(
            f"| {who} | {found.right} | {found.total} | {found.share:.3f} | {low:.3f}–{high:.3f} |"
        )
    return "\n".join(lines)
