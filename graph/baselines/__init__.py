"""What a panel is compared with: other ways to spend calls, as graphs over the same pool."""

from .conversation import create_talk, read_turns
from .debate import Debate, MixedDebate
from .knn_router import KnnRouter
from .majority import Majority
from .mixture_of_agents import MixtureOfAgents, SelfMoA
from .oracle import Oracle
from .random_panel import RandomPanel, SymbolicMoE
from .reconcile import ReConcile, read_confidence, recalibrate
from .self_consistency import SelfConsistency
from .self_refine import SelfRefine
from .single_best import SingleBest
from .talk import Talk
from .turns import Seat, Turn

__all__ = [
    "Debate",
    "KnnRouter",
    "Majority",
    "MixedDebate",
    "MixtureOfAgents",
    "Oracle",
    "RandomPanel",
    "ReConcile",
    "Seat",
    "SelfConsistency",
    "SelfMoA",
    "SelfRefine",
    "SingleBest",
    "SymbolicMoE",
    "Talk",
    "Turn",
    "create_talk",
    "read_confidence",
    "read_turns",
    "recalibrate",
]
