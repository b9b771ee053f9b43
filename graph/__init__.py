"""How the work flows: one state graph on a batch of questions, and its plain-Python face."""

from .aggregating import rank_aggregators
from .approval import PlanDecision
from .asking import ExpertFailed, RetryableExpertError
from .build import build_graph, create_graph
from .draining import drain_on_signal
from .events import GraphEvent, describe_events
from .extractors import choose_extractor, tell_reference_skills
from .panels import recruit_first
from .picture import show_locally
from .profiling import ProfileFolder
from .resources import make_resources
from .result import Result, Score, Solution, wilson_interval
from .run import RunFolder
from .solve import as_questions, asolve, run_batch, solve, solve_many
from .state import PanelInput, PanelOutput, PanelState, Resources

__all__ = [
    "ExpertFailed",
    "GraphEvent",
    "PanelInput",
    "PanelOutput",
    "PanelState",
    "PlanDecision",
    "ProfileFolder",
    "Resources",
    "Result",
    "RetryableExpertError",
    "RunFolder",
    "Score",
    "Solution",
    "as_questions",
    "asolve",
    "build_graph",
    "choose_extractor",
    "create_graph",
    "describe_events",
    "drain_on_signal",
    "make_resources",
    "rank_aggregators",
    "recruit_first",
    "run_batch",
    "show_locally",
    "solve",
    "solve_many",
    "tell_reference_skills",
    "wilson_interval",
]
