"""Counts the floating-point operations of some work as torch dispatches it.

Shapes as lists, in the order in which torch's operators take them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

__all__ = ["count_flops"]

Given = TypeVar("Given")


def count_flops(work: Callable[[], Given]) -> tuple[Given, int]:
    """Do some work and count the FLOPs of its matrix products and attention, as torch dispatches them.

    torch's own counter knows neither the CPU's attention kernels nor grouped products; here it does, and
    counts causal attention as such.

    Returns:
        What the work returned, and the count.
    """
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: _count_attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _count_attention_backward,
        aten._grouped_mm: _count_grouped,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        result = work()
    return result, counter.get_total_flops()


def _count_attention(
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    dropout: float = 0.0,
    is_causal: bool = False,
    *_: Any,
    **__: Any,
) -> int:
    del dropout
    rows, heads, new, size = query
    pairs = new * (new + 1) // 2 if is_causal else new * key[2]
    return 2 * rows * heads * pairs * (size + value[3])


def _count_attention_backward(
    grad: Sequence[int],
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    out: Sequence[int],
    logsumexp: Sequence[int],
    dropout: float,
    is_causal: bool,
    *_: Any,
    **__: Any,
) -> int:
    return 2 * _count_attention(query, key, value, dropout, is_causal)


def _count_grouped(left: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
    """Rows of the left operand are divided among the matrices of the right one."""
    return 2 * left[0] * left[1] * right[-1]
