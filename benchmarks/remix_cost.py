"""What re-mixing costs: ten steps of descent on three cached neighbours against one plain pass.

    python benchmarks/remix_cost.py [--json] [--quick] [--model DIR]

Prompts are 100 random tokens, since costs do not depend on what is said; the solver makes all its steps.

* FLOPs: counted, not computed, on a model of the shape of OLMoE-1B-7B in bfloat16. Its sixteen layers
  share the random weights of one (1.3 GB instead of 14), which changes no operation's size. The neighbours'
  states, which are cached, are copies of the question's. Critical are the last five layers, the core has 20
  experts.
* Wall time: a batch of questions on the local mixture (`expertmix moe build`, built into a folder for
  temporary files unless `--model` names one), float32, the best of some rounds in which the ways take turns.
* The naive way, on a question of the same batch: every step runs the model over the neighbours' whole
  prompts with the last token steered, three prompts at a time, and differentiates through the critical
  layers; then the question is run once more.

Keys: `flops_ratio`, `wall_ratio`, `kernel_regression_ratio` (alpha 0, wall time): the whole call, that is the
question's own pass, the descent and the last run, ÷ a plain pass. `flops_ratio` and `wall_ratio` are of the
default, straight-through; `_hard` of gradients for the experts that are on only. `flops_ratio_model`: what
`solution_ratio` says; `flops_model_error`: how far the count is from it. `flops_ratio_published`: hard, whole
head, from the table of c3po.md §4.3, by our account. `speedup_vs_naive`: whole answers, naive ÷ ours;
`speedup_of_the_solver`: only the descent. `max_abs_diff`: largest difference between the routings that the
two found on a tiny OLMoE in float64, `max_abs_diff_float32` on the local mixture. `cpu_ratio` and its like: the
same in CPU time of all threads, which other processes disturb less. `plain_seconds` per question. `--quick` takes 8 questions instead of 32, and one round less.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from expertmix.agents.moe.architecture import MoeModel, find_moe
from expertmix.agents.moe.building.build import Build, build_moe
from expertmix.agents.moe.counting import count_flops
from expertmix.agents.moe.descent import Descent
from expertmix.agents.moe.flops import Shape, list_schemes, solution_ratio
from expertmix.agents.moe.gates import Steering, steer
from expertmix.agents.moe.problem import Problem, Selection, Solution, Solver
from expertmix.agents.moe.regression import KernelRegression
from expertmix.agents.moe.states import TokenStates, capture
from expertmix.agents.moe.suffix import SuffixEngine
from expertmix.agents.moe.surrogate import NeighbourLosses

TOKENS, NEIGHBOURS, STEPS, CRITICAL, CORE, OPTIONS = 100, 3, 10, 5, 20, 4
LOCAL = Path(tempfile.gettempdir()) / "expertmix-remix-cost" / "moe"


@dataclass(frozen=True, kw_only=True)
class Naive:
    """An objective without a cache: each call runs the model over whole prompts."""

    moe: MoeModel
    layers: tuple[int, ...]
    ids_RT: torch.Tensor
    gold_QN: torch.Tensor
    tokens_O: torch.Tensor

    def __call__(
        self,
        routing_QCE: torch.Tensor,
        *,
        core_QCE: torch.Tensor | None = None,
        selection: Selection = "hard",
    ) -> torch.Tensor:
        """See `Objective`."""
        number = self.gold_QN.shape[1]
        logits_RO = run_steered(
            self.moe,
            self.layers,
            self.ids_RT,
            routing_QCE.repeat_interleave(number, 0),
            None if core_QCE is None else core_QCE.repeat_interleave(number, 0),
            selection,
        )[:, self.tokens_O]
        losses_R = torch.nn.functional.cross_entropy(
            logits_RO, self.gold_QN.flatten(), reduction="none"
        )
        return losses_R.view(self.gold_QN.shape)

    def take(self, rows_R: torch.Tensor) -> Naive:
        """All of them."""
        assert len(rows_R) == len(self.gold_QN), "all questions make all steps here"
        return self


def run_steered(
    moe: MoeModel,
    layers: tuple[int, ...],
    ids_RT: torch.Tensor,
    routing_RCE: torch.Tensor,
    core_RCE: torch.Tensor | None,
    selection: Selection = "hard",
) -> torch.Tensor:
    """Logits of the next token by a pass of the whole model."""
    rows_R = torch.arange(len(ids_RT))
    steering = Steering(
        layers=layers,
        rows_R=rows_R,
        positions_R=torch.full_like(rows_R, ids_RT.shape[1] - 1),
        routing_RCE=routing_RCE,
        core_RCE=core_RCE,
        selection=selection,
    )
    with steer(moe, steering):
        return moe.model(input_ids=ids_RT, logits_to_keep=1).logits[:, -1]


class Setting:
    """A model, questions, their neighbours' states, and the ways to answer."""

    def __init__(self, model: Any, questions: int, *, tokens: int = TOKENS, copies: bool) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.moe = find_moe(model)
        self.layers = self.moe.last(min(CRITICAL, len(self.moe.layers) - 1))
        self.core = min(CORE, self.moe.experts)
        self.tokens_O = torch.arange(3, 3 + OPTIONS)
        vocabulary = model.config.vocab_size
        generator = torch.Generator().manual_seed(0)
        shape = (questions * NEIGHBOURS, tokens)
        self.ids_QT = torch.randint(3, vocabulary, (questions, tokens), generator=generator)
        self.near_RT = torch.randint(3, vocabulary, shape, generator=generator)
        self.gold_QN = torch.randint(0, OPTIONS, (questions, NEIGHBOURS), generator=generator)
        self.engine = SuffixEngine(self.moe, self.layers, self.tokens_O)
        if copies:
            rows_R = torch.arange(questions).repeat_interleave(NEIGHBOURS)
            self.states = self.capture(self.ids_QT).take(rows_R)
        else:
            self.states = self.capture(self.near_RT)

    def capture(self, ids_BT: torch.Tensor) -> TokenStates:
        """Prompts run once by default routing."""
        mask_BT = torch.ones_like(ids_BT)
        return capture(self.moe, ids_BT, mask_BT, first=self.layers[0], tokens_O=self.tokens_O)

    @torch.no_grad()
    def run_plain(self) -> None:
        """The questions' next tokens, and nothing else."""
        self.moe.model(input_ids=self.ids_QT, logits_to_keep=1)

    def pose(self, own: TokenStates) -> Problem:
        """What the solver is given."""
        options_QN = torch.full_like(self.gold_QN, OPTIONS)
        return Problem(
            start_QCE=own.pathway_at(self.layers),
            objective=NeighbourLosses(self.engine, self.states, self.gold_QN, options_QN),
            kernel_QN=own.residual_ND.new_full(self.gold_QN.shape, 1 / NEIGHBOURS),
            neighbour_routing_QNCE=self.states.pathway_at(self.layers).unflatten(
                0, (-1, NEIGHBOURS)
            ),
            core_experts=self.core,
        )

    def answer(self, solver: Solver) -> tuple[Solution, float]:
        """The whole call: the own pass, the solver, the last run. Also how long the solver took."""
        own = self.capture(self.ids_QT)
        started = time.perf_counter()
        problem = self.pose(own)
        solution = solver.solve(problem)
        solved = time.perf_counter() - started
        with torch.no_grad():
            rows = self.engine.prepare(own, problem.core_QCE())
            self.engine.run(rows, solution.routing_QCE)
        return solution, solved

    def answer_naively(self, solver: Solver, questions: int) -> tuple[Solution, float]:
        """The same for the first questions without any cache."""
        own = self.capture(self.ids_QT[:questions])
        naive = Naive(
            moe=self.moe,
            layers=self.layers,
            ids_RT=self.near_RT[: questions * NEIGHBOURS],
            gold_QN=self.gold_QN[:questions],
            tokens_O=self.tokens_O,
        )
        started = time.perf_counter()
        problem = Problem(
            start_QCE=own.pathway_at(self.layers),
            objective=naive,
            kernel_QN=own.residual_ND.new_full(naive.gold_QN.shape, 1 / NEIGHBOURS),
            core_experts=self.core,
        )
        solution = solver.solve(problem)
        solved = time.perf_counter() - started
        with torch.no_grad():
            run_steered(
                self.moe,
                self.layers,
                self.ids_QT[:questions],
                solution.routing_QCE,
                problem.core_QCE(),
            )
        return solution, solved


def descend(selection: Selection) -> Descent:
    """The default descent, but never stopped early."""
    return Descent(steps=STEPS, selection=selection, tolerance=None)


def make_olmoe() -> Any:
    """OLMoE-1B-7B's shape in bfloat16, all layers with the same random weights."""
    config = transformers.OlmoeConfig(intermediate_size=1024)
    with torch.device("meta"):
        model: Any = transformers.OlmoeForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    layers = model.model.layers
    for name, parameter in list(model.named_parameters()):
        path, _, key = name.rpartition(".")
        if path.startswith("model.layers.") and not path.startswith("model.layers.0."):
            continue
        made = torch.empty(parameter.shape, dtype=torch.bfloat16)
        made.fill_(1) if "norm" in name else made.normal_(std=0.02, generator=generator)
        model.get_submodule(path).register_parameter(key, torch.nn.Parameter(made))
    for layer in layers[1:]:
        for name, parameter in layers[0].named_parameters():
            path, _, key = name.rpartition(".")
            layer.get_submodule(path).register_parameter(key, parameter)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def make_tiny() -> Any:
    """A small OLMoE in float64 whose routers have opinions."""
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=16,
        num_experts_per_tok=4,
        initializer_range=0.3,
    )
    model: Any = transformers.OlmoeForCausalLM(config)
    model.set_experts_implementation("eager")  # grouped products have no float64
    return model.double().eval()


def load_local(folder: Path | None) -> Any:
    """The local mixture, made first if it is not there."""
    if folder is None:
        folder = LOCAL
        if not (folder / "config.json").is_file():
            folder.parent.mkdir(parents=True, exist_ok=True)
            build_moe(Build(), folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def count() -> dict[str, float]:
    """FLOPs on the shape of OLMoE-1B-7B."""
    setting = Setting(make_olmoe(), 1, copies=True)
    shape = Shape.of(setting.moe)
    plain = count_flops(setting.run_plain)[1]
    figures: dict[str, float] = {}
    for selection, suffix in (("straight_through", ""), ("hard", "_hard")):
        chosen: Selection = "hard" if selection == "hard" else "straight_through"
        given, whole = count_flops(lambda chosen=chosen: setting.answer(descend(chosen)))
        account = solution_ratio(
            shape,
            setting.layers,
            given[0],
            tokens=[TOKENS],
            neighbour_tokens=[TOKENS] * NEIGHBOURS,
            selection=chosen,
            core=setting.core,
            head_rows=OPTIONS,
        )
        figures[f"flops_ratio{suffix}"] = round(whole / plain, 4)
        figures[f"flops_ratio_model{suffix}"] = round(account, 4)
        figures[f"flops_model_error{suffix}"] = round(abs(whole / plain / account - 1), 5)
    published = list_schemes(shape, TOKENS, setting.layers)["first layer cached"]
    return figures | {"flops_ratio_published": round(published, 4)}


def clock(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall time, and of CPU time of all threads."""
    started, began = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - began


def measure(model: Any, *, questions: int, rounds: int) -> dict[str, float]:
    """Wall time and precision on the local mixture."""
    setting = Setting(model, questions, copies=False)
    straight, hard = descend("straight_through"), descend("hard")
    ways: dict[str, Callable[[], object]] = {
        "plain": setting.run_plain,
        "straight": lambda: setting.answer(straight),
        "hard": lambda: setting.answer(hard),
        "regression": lambda: setting.answer(KernelRegression(alpha=0.0)),
    }
    best: dict[str, float] = {}
    least: dict[str, float] = {}
    for _ in range(rounds):
        for way, work in ways.items():
            wall, cpu = clock(work)
            best[way], least[way] = min(best.get(way, wall), wall), min(least.get(way, cpu), cpu)
    started, began = time.perf_counter(), time.process_time()
    naive, naive_solved = setting.answer_naively(hard, 1)
    naive_wall, naive_cpu = time.perf_counter() - started, time.process_time() - began
    ours, solved = setting.answer(hard)
    difference = (naive.routing_QCE - ours.routing_QCE[:1]).abs().max()
    return {
        "wall_ratio": round(best["straight"] / best["plain"], 3),
        "wall_ratio_hard": round(best["hard"] / best["plain"], 3),
        "kernel_regression_ratio": round(best["regression"] / best["plain"], 3),
        "cpu_ratio": round(least["straight"] / least["plain"], 3),
        "cpu_ratio_hard": round(least["hard"] / least["plain"], 3),
        "cpu_ratio_kernel_regression": round(least["regression"] / least["plain"], 3),
        "speedup_vs_naive": round(naive_wall * questions / best["hard"], 1),
        "cpu_speedup_vs_naive": round(naive_cpu * questions / least["hard"], 1),
        "speedup_of_the_solver": round(naive_solved * questions / solved, 1),
        "max_abs_diff_float32": float(difference),
        "plain_seconds": round(best["plain"] / questions, 4),
    }


def compare() -> float:
    """The largest difference between naive and cached routings in float64."""
    setting = Setting(make_tiny(), 2, tokens=20, copies=False)
    largest = 0.0
    for selection in ("hard", "straight_through"):
        solver = descend("hard" if selection == "hard" else "straight_through")
        ours, naive = setting.answer(solver)[0], setting.answer_naively(solver, 2)[0]
        moved = float(
            (ours.routing_QCE - setting.pose(setting.capture(setting.ids_QT)).start_QCE).abs().max()
        )
        assert moved > 1e-6, "the descent went nowhere, so that there is nothing to compare"
        largest = max(largest, float((ours.routing_QCE - naive.routing_QCE).abs().max()))
    return largest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--quick", action="store_true", help="8 questions, two rounds")
    parser.add_argument("--model", type=Path, help="folder of a mixture; built if not given")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    figures = {"max_abs_diff": compare()}
    quick = arguments.quick
    figures |= measure(
        load_local(arguments.model), questions=8 if quick else 32, rounds=2 if quick else 3
    )
    figures = count() | figures
    if arguments.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:<40} {value:>16,.6g}")


if __name__ == "__main__":
    main()
