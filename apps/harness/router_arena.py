r"""A run as a submission to RouterArena, the leaderboard of routers (https://github.com/RouteWorks/RouterArena).

Read at commits 1bc8176 (`router_inference/check_config_prediction_files.py`) and 0d783fa
(`llm_evaluation/run.py`), and in merged submissions (pull request #157): a submission is
`router_inference/config/ROUTER.json`, `router_inference/predictions/ROUTER.json` (8,400 queries, 809 of
`sub_10` for trying it out), `ROUTER-robustness.json` (420), and prices for `model_cost/model_cost.json`.

A router picks one model per query. For a panel of one recruit an entry is exact. For a larger one
`prediction` names its spokesman (the strongest expert that gave the panel's answer), `generated_answer` is
what that one wrote, and `token_usage` and `cost` are those of everybody who was asked, the aggregating model
included; `panel` lists who that was, a field of ours that RouterArena passes over.

What cannot be filled in: `accuracy` (RouterArena's own, from hidden answers); `cost` where a price is missing,
which is null and never a guess; the latency and optimality columns. RouterArena computes `cost` again,
as `token_usage` times the price of `prediction`: exact where all experts of a panel cost the same, otherwise
compare it with ours. Its checks also want every model in its `universal_model_names.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ...graph import Solution
from ...retrieval import InputError, Question, fingerprint, read_questions
from .spokesman import choose_spokesman

__all__ = ["Price", "Submission", "read_prompts", "read_run"]

ABSTAINED = "The panel abstained: it gives no answer."


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars for a million tokens."""

    input: float
    output: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What RouterArena is given.

    Args:
        router: The router's name, and that of its files.
        solutions: Of its queries: ids are global indices, texts are prompts.
        names: Alias to the model's name at RouterArena; an alias without one is its own name.
        prices: Alias to its price.
        aggregator: Alias of the model that merged drafts, if one did: a run does not say which it was, and
            without it the cost of a merged answer stays null.
    """

    router: str
    solutions: Sequence[Solution]
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    prices: Mapping[str, Price] = field(default_factory=dict[str, Price])
    aggregator: str | None = None

    def predictions(self) -> list[dict[str, Any]]:
        """One entry per query, in the order of the solutions.

        Raises:
            InputError: nobody was recruited for a query.
        """
        return [self._predict(solution) for solution in self.solutions]

    def config(self) -> dict[str, Any]:
        """The router's configuration: its models, in the order of their names."""
        models = sorted(self._name(alias) for alias in self._aliases())
        return {
            "pipeline_params": {
                "router_name": self.router,
                "router_cls_name": "external_prediction_file",
                "models": models,
            }
        }

    def costs(self) -> dict[str, Any]:
        """The lines to add to RouterArena's `model_cost/model_cost.json`, of models whose price is known."""
        return {
            self._name(alias): {
                "input_token_price_per_million": self.prices[alias].input,
                "output_token_price_per_million": self.prices[alias].output,
            }
            for alias in sorted(self._aliases())
            if alias in self.prices
        }

    def write(self, folder: Path, *, robustness: bool = False) -> list[Path]:
        """Write the files as they lie in RouterArena's repository, ready to be copied into it.

        Args:
            folder: Made if it is not there; files of the same router are replaced.
            robustness: The queries are those of the robustness split, which has no configuration of its own.

        Raises:
            InputError: the folder cannot be written, or the router's name cannot be a file's.
        """
        if not self.router or Path(self.router).name != self.router or " " in self.router:
            raise InputError(f'"{self.router}" cannot be a router\'s name: its files bear it')
        inference = folder / "router_inference"
        suffix = "-robustness" if robustness else ""
        files: dict[Path, Any] = {
            inference / "predictions" / f"{self.router}{suffix}.json": self.predictions()
        }
        if not robustness:
            files[inference / "config" / f"{self.router}.json"] = self.config()
            files[folder / "model_cost" / f"{self.router}-to-add.json"] = self.costs()
        try:
            for path, content in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror}") from None
        return list(files)

    def _aliases(self) -> set[str]:
        asked = {row["expert"] for solution in self.solutions for row in solution.experts}
        return asked if self.aggregator is None else asked | {self.aggregator}

    def _name(self, alias: str) -> str:
        return self.names.get(alias, alias)

    def _predict(self, solution: Solution) -> dict[str, Any]:
        if not solution.experts:
            raise InputError(f'nobody was recruited for "{solution.question.id}"')
        spokesman = choose_spokesman(solution)
        replied = [row for row in solution.experts if row["error"] is None]
        # Somebody has to be named where no expert speaks: whom a router would have picked.
        strongest = max(replied or solution.experts, key=lambda row: row["weight"])
        named = (spokesman or strongest)["expert"]
        if spokesman is None and replied and self.aggregator is not None:
            named = self.aggregator
        usage = cast("dict[str, int]", solution.row["usage"])
        tokens = {
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
        }
        entry: dict[str, Any] = {
            "global index": solution.question.id,
            "prompt": solution.question.text,
            "prediction": self._name(named),
            "generated_result": {
                "generated_answer": _tell(solution, spokesman) if replied else "",
                "success": bool(replied),
                "token_usage": tokens,
                "provider": "expertmix",
                "error": None if replied else strongest["error"],
            },
            "cost": self._price(solution),
            "accuracy": None,
            "for_optimality": False,
        }
        if len(solution.experts) > 1 or solution.row["aggregation"]:
            told = ("expert", "answer", "prompt_tokens", "completion_tokens", "error")
            entry["panel"] = [{name: row[name] for name in told} for row in solution.experts]
        return entry

    def _price(self, solution: Solution) -> float | None:
        """What everybody cost together; None if a price is missing, or who merged the drafts."""
        told = [
            (row["expert"], row["prompt_tokens"], row["completion_tokens"])
            for row in solution.experts
        ]
        usage = cast("dict[str, int]", solution.row["usage"])
        merging_in = usage["prompt_tokens"] - sum(tokens for _, tokens, _ in told)
        merging_out = usage["completion_tokens"] - sum(tokens for _, _, tokens in told)
        cost = 0.0
        for alias, tokens_in, tokens_out in (*told, (self.aggregator, merging_in, merging_out)):
            if not tokens_in and not tokens_out:
                continue  # nobody was asked, or nothing came of it
            price = None if alias is None else self.prices.get(alias)
            if price is None:
                return None
            cost += tokens_in * price.input + tokens_out * price.output
        return cost / 1e6


def read_prompts(path: Path, *, limit: int | None = None) -> list[Question]:
    """Questions of a run, or RouterArena's prompts (`dataset/router_data.json`) as such.

    Raises:
        InputError: as `read_questions`, or the file is `.json` and no list of prompts.
    """
    if path.suffix != ".json":
        return read_questions(path, limit=limit)
    try:
        rows: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path} holds no list of prompts: give RouterArena's router_data.json")
    questions: list[Question] = []
    for number, row in enumerate(cast("list[object]", rows)[:limit], 1):
        told = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
        text = told.get("prompt_formatted") or told.get("prompt")
        index = told.get("global index") or told.get("global_index")
        if not isinstance(text, str) or not isinstance(index, str):
            raise InputError(f'{path}, entry {number}: no "prompt_formatted" and "global index"')
        questions.append(Question(id=index, text=text))
    return questions


def read_run(run: Path, questions: Sequence[Question]) -> list[Solution]:
    """What a run folder of `expertmix solve` has for each of its questions, in their order.

    Raises:
        InputError: no run, a run of other questions, or one that is not finished.
    """
    try:
        claim = json.loads((run / "run.json").read_text(encoding="utf-8"))
        lines = (run / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        rows = {row["id"]: row for row in (json.loads(line) for line in lines if line)}
    except OSError:
        raise InputError(f"{run} holds no run: give a folder of `expertmix solve`") from None
    except (ValueError, LookupError, TypeError):
        raise InputError(
            f"{run} is damaged, or was interrupted: run `expertmix solve` again"
        ) from None
    if claim.get("questions") != fingerprint(questions):
        raise InputError(f"{run} answers other questions: give its own, with the same --limit")
    lacking = [question.id for question in questions if question.id not in rows]
    if lacking:
        raise InputError(
            f"{run} has no answer to {len(lacking)} of {len(questions)} questions ({lacking[0]}, …): run "
            "`expertmix solve` again to finish it"
        )
    return [Solution(question=question, row=rows[question.id]) for question in questions]


def _tell(solution: Solution, spokesman: Mapping[str, Any] | None) -> str:
    r"""What is graded. Where we know what kind of answer is wanted, it is also put as `\boxed{…}`."""
    answer = solution.answer
    if solution.abstained:
        return ABSTAINED
    text: str = solution.row["aggregation"] if spokesman is None else spokesman["text"]
    if answer is not None and solution.question.kind != "text" and "\\boxed" not in text:
        text = f"{text}\n\n\\boxed{{{answer}}}"
    return text.strip() or answer or "No answer."
