"""From settings to the solver that they name."""

from __future__ import annotations

from .descent import Descent
from .modes import ModeFinding
from .problem import Solver
from .regression import KernelRegression
from .settings import RemixSettings

__all__ = ["make_solver"]


def make_solver(settings: RemixSettings) -> Solver:
    """The solver that settings name."""
    match settings.solver:
        case "ngd":
            return Descent(
                steps=settings.steps,
                rate=settings.rate,
                last_rate=min(1e-5, settings.rate),
                optimizer=settings.optimizer,
                parametrisation=settings.parametrisation,
                selection=settings.selection,
                max_divergence=settings.max_divergence,
            )
        case "kernel_regression":
            alpha = 0.0 if settings.alpha == "zero" else settings.alpha
            return KernelRegression(alpha=alpha)
        case "mode_finding":
            return ModeFinding()
