"""How re-mixing is done, as a pool file says it (`remix: {...}`). Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["RemixSettings", "SolverName"]

SolverName = Literal["ngd", "kernel_regression", "mode_finding"]


class RemixSettings(BaseModel):
    """What is optimised, on whom, and when a change is accepted.

    The defaults of the method are the paper's (c3po.md §1.7); those of the gates are ours: a change has to
    help neighbours that it was not fitted to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    solver: SolverName = "ngd"
    layers: int = Field(default=5, ge=1, description="Critical layers: the last so many.")
    core_experts: int | None = Field(
        default=20, ge=1, description="Strongest experts of a layer that may change; null: all."
    )
    neighbours: int = Field(default=3, ge=1, description="Solved references to fit to.")
    held_back: int = Field(
        default=1,
        ge=0,
        description="Further neighbours that a change must help; 0 accepts every change.",
    )
    search: Literal["text", "hidden"] = Field(
        default="text",
        description="Neighbours by an encoder of the questions, or by the model's own hidden state.",
    )
    balanced: bool = Field(default=False, description="Spread the neighbours' gold letters evenly.")
    kernel: Literal["gaussian", "linear", "polynomial", "matern", "cosine"] = "gaussian"
    bandwidth: float | Literal["median"] = "median"
    cut_off: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="More similar references are taken for the question itself.",
    )
    min_similarity: float = Field(
        default=0.0, ge=-1, le=1, description="Farther neighbours do not count at all."
    )
    unsure_below: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Only questions whose two best options differ by at most this probability are re-mixed.",
    )
    margin: float = Field(
        default=0.0, ge=0, description="Nats by which the held-back neighbours' loss must fall."
    )
    steps: int = Field(default=10, ge=1, le=1000)
    rate: float = Field(default=1e-2, gt=0)
    optimizer: Literal["sgd", "adam"] = "sgd"
    parametrisation: Literal["prob", "logit"] = "prob"
    selection: Literal["hard", "straight_through"] = "straight_through"
    max_divergence: float | None = Field(
        default=None, gt=0, description="Trust region: largest KL to the default routing, in nats."
    )
    alpha: Literal["zero", "grid", "bracket"] = Field(
        default="grid", description="Kernel regression: how far towards the neighbours' mean."
    )
    keeps_mass: bool = Field(
        default=False, description="Let the experts' weights keep the sum they have by default."
    )
