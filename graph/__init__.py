"""How the work flows: one state graph on a batch of questions, and its plain-Python face."""

from .build import build_graph, create_graph
from .profiling import ProfileFolder, choose_extractor
from .result import Result, Score, Solution, wilson_interval
from .run import RunFolder
from .solve import as_questions, asolve, make_resources, run_batch, solve, solve_many
from .state import PanelInput, PanelOutput, PanelState, Resources

__all__ = [
    "PanelInput",
    "PanelOutput",
    "PanelState",
    "ProfileFolder",
    "Resources",
    "Result",
    "RunFolder",
    "Score",
    "Solution",
    "as_questions",
    "asolve",
    "build_graph",
    "choose_extractor",
    "create_graph",
    "make_resources",
    "run_batch",
    "solve",
    "solve_many",
    "wilson_interval",
]
