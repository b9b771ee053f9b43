"""How a command ends: failing is told apart from having nothing to say."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from expertmix.apps.console import tell_failures
from expertmix.graph import Result, Solution
from expertmix.retrieval import Question


def make_result(**row: Any) -> Result:
    told = {"answer": None, "abstained": False, "missing": {}, **row}
    return Result([Solution(question=Question(id="q", text="?"), row=told)], {})


def test_a_panel_without_any_answer_has_failed() -> None:
    with pytest.raises(typer.Exit):
        tell_failures(make_result(missing={"a": "it broke"}))
    tell_failures(make_result(answer="A"))


def test_a_panel_that_abstains_has_not_failed() -> None:
    tell_failures(make_result(abstained=True))
