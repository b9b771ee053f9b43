from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")

from expertmix.agents.moe.building.prompts import new_tokens, read_prompts
from expertmix.retrieval import InputError, Question, read_questions
from expertmix.retrieval.references import normal_text

ROOT = Path(__file__).resolve().parents[4]


def test_our_own_prompts_are_choices_and_prose_that_no_example_asks() -> None:
    prompts = read_prompts()
    assert len(prompts) == 60
    choices = [prompt for prompt in prompts if isinstance(prompt, Question)]
    assert 25 <= len(choices) <= 35
    assert {len(choice.options) for choice in choices} == {2, 4, 5}
    asked = {
        normal_text(question.text)
        for path in sorted((ROOT / "examples").glob("*.jsonl"))
        for question in read_questions(path)
    }
    assert not {normal_text(choice.text) for choice in choices} & asked


def test_what_was_seen_behind_the_same_beginning_counts_once() -> None:
    assert new_tokens([[1, 2, 3], [1, 2, 4, 3], [2, 3], [1, 2, 3]]) == [
        [True, True, True],
        [False, False, True, True],
        [True, True],
        [False, False, False],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "one"}\n', "holds 1 prompts"),
        ("", "holds 0 prompts"),
        ('{"text": "one"}\nnonsense\n', "line 2 is not JSON"),
        ('{"text": "one"}\n[1]\n', "line 2 is no JSON object"),
        ('{"text": "one"}\n{"word": 1}\n', "line 2 is not a prompt"),
        ('{"question": "one", "options": ["a"]}\n', "line 1 is not a prompt"),
    ],
)
def test_bad_prompts_are_explained(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_prompts(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(path)
