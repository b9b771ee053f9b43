"""Answers to benchmark questions are read by the benchmarks' own rules."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertmix.agents import is_correct, read_answer, read_task_answer
from expertmix.retrieval import TASKS, Question, read_task

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CITIES = ("Paris", "London", "Rome", "Berlin", "Oslo", "Bern", "Vienna", "Prague", "Riga", "Bonn")


def ask(task: str, options: int = 4) -> Question:
    if TASKS[task].kind == "number":
        return Question(id="q", text="How many?", gold="7", kind="number", task=task)
    return Question(
        id="q", text="Where?", options=CITIES[:options], gold="A", kind="choice", task=task
    )


READ = [  # task, options, reply, answer
    ("mmlu_pro", 10, "The answer is (C). No: the answer is (D).", "C"),
    ("mmlu_pro", 10, "so the answer is J.", "J"),
    ("mmlu_pro", 10, "the answer is (c)", None),
    ("mmlu_pro", 10, "Answer: B or\nanswer: D", "B"),
    ("mmlu_pro", 10, "Answer: B, answer:\n D", "D"),
    ("mmlu_pro", 10, "answer: Answer: B", "B"),
    ("mmlu_pro", 10, "Both A and G. G fits better.\nH is out, as G shows.", "G"),
    ("mmlu_pro", 10, "The Answer is unclear, said DNA.", None),
    ("mmlu_pro", 10, "", None),
    ("mmlu_pro", 4, "The answer is (G). Well, B.", None),
    ("mmlu_pro", 4, "I cannot tell which, I fear", None),
    ("mmlu_pro", 10, "I cannot tell which, I fear", "I"),
    ("mmlu_pro", 10, "I take B.\nQuestion: next?\nthe answer is (A)", "B"),
    ("mmlu_pro", 10, "<think>the answer is (A)</think>the answer is (B)", "B"),
    ("mmlu_pro", 10, "<think>the answer is (A)", None),
    ("gpqa", 4, "Step one.\nAnswer: C", "C"),
    ("gpqa", 4, "**Answer: $D$**", "D"),
    ("gpqa", 4, "ANSWER : B. Or Answer: A", "B"),
    ("gpqa", 4, "Answer: b", None),
    ("gpqa", 4, "Answer: E", None),
    ("gpqa", 4, "The answer is (B)", None),
    ("gpqa", 5, "Answer: E", "E"),
    ("aime", 0, r"First \boxed{12}, so \boxed{033}.", "33"),
    ("aime", 0, r"$\boxed{113^\circ}$ of the 360", "113"),
    ("aime", 0, r"\boxed{m+n = 7}", "7"),
    ("aime", 0, r"\boxed{\boxed{204}}", "204"),
    ("aime", 0, r"\boxed{000}", "0"),
    ("aime", 0, r"\boxed{\frac{1}{2}} and 5", None),
    ("aime", 0, r"\boxed{1000}", None),
    ("aime", 0, r"\boxed{-5}", None),
    ("aime", 0, r"\boxed{7", "7"),
    ("aime", 0, "It is 12 or 0073, I think", "73"),
    ("aime", 0, "It is 12345", None),
    ("aime", 0, "no number", None),
    ("gsm8k", 0, "5 + 7 = 12\n#### 1,012.\n#### 9", "1012"),
    ("gsm8k", 0, "#### -3.50", "-3.5"),
    ("gsm8k", 0, "####12 is it, of 13", "13"),
    ("gsm8k", 0, "#### $12", "12"),
    ("gsm8k", 0, "She pays $1,200.00.", "1200"),
    ("gsm8k", 0, "He has 007 of 9 left over 5.", "5"),
    ("gsm8k", 0, "It is 8.\nQuestion: and 9?\nAnswer: 10", "8"),
    ("gsm8k", 0, "It is 8 ...", None),
    ("gsm8k", 0, "#### 1.2.3", None),
    ("gsm8k", 0, "#### -0", "0"),
    ("gsm8k", 0, "#### " + "9" * 5000, None),
    ("gsm8k", 0, "none", None),
    *(
        (task, 4, reply, answer)
        for task in ("mmlu", "medmcqa", "arc", "openbookqa")
        for reply, answer in (
            ("B", "B"),
            (" (b).\n\nThe next question is easy.\nAnswer: C", "B"),
            ("**D**\nbecause A is wrong", "D"),
            ("C. Rome, of course", "C"),
            ("I think that the answer is (C).", "C"),
            ("E", None),
            ("Z\nThe answer is (A).", "A"),
            ("nothing", None),
            ("", None),
        )
    ),
]


@pytest.mark.parametrize(("task", "options", "reply", "answer"), READ)
def test_a_reply_is_read_by_the_rule_of_its_task(
    task: str, options: int, reply: str, answer: str | None
) -> None:
    assert read_task_answer(reply, ask(task, options)) == answer
    assert read_answer(reply, ask(task, options)) == answer


def test_without_a_task_nothing_changes() -> None:
    plain = Question(id="q", text="Where?", options=CITIES, kind="choice")
    reply = "The answer is (C). No, wait. The answer is (D)."
    assert read_answer(reply, plain) == "D"
    assert read_answer(reply, ask("mmlu_pro", 10)) == "C"


def test_what_is_read_can_be_right() -> None:
    for task, reply in (
        ("aime", r"\boxed{007}"),
        ("gsm8k", "#### 7.0"),
        ("arc", "A"),
        ("gpqa", "Answer: A"),
    ):
        assert is_correct(read_answer(reply, ask(task)), ask(task))


def official_mmlu_pro(text: str) -> str | None:
    """The three patterns as TIGER-AI-Lab/MMLU-Pro writes them."""
    if match := re.search(r"answer is \(?([A-J])\)?", text):
        return match.group(1)
    if match := re.search(r".*[aA]nswer:\s*([A-J])", text):
        return match.group(1)
    match = re.search(r"\b[A-J]\b(?!.*\b[A-J]\b)", text, re.DOTALL)
    return match.group(0) if match else None


def official_gsm8k(text: str) -> str:
    """The two filters of the harness, one after the other, and what it then takes away."""
    found = re.findall(r"#### (\-?[0-9\.\,]+)", text)[:1] or [
        next(group for group in groups if group)
        for groups in re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)[-1:]
    ]
    answer = found[0].strip() if found else "[invalid]"
    for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
        answer = re.sub(ignored, "", answer)
    return answer


PIECES = (
    *(
        "the answer is ",
        "Answer:",
        "answer: ",
        "(",
        ")",
        "A",
        "B",
        "J",
        "K",
        "I",
        " ",
        "\n",
        "x",
        "_",
    ),
    *("#### ", "####", "$", "1", "20", ",", ".", "-", "3.5", "0", "007", r"\boxed{", "}"),
)
pieces = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@given(pieces)
def test_the_patterns_agree_with_the_official_code(text: str) -> None:
    text = text.strip()
    assert read_task_answer(text, ask("mmlu_pro", 10)) == official_mmlu_pro(text)
    ours, theirs = read_task_answer(text, ask("gsm8k")), official_gsm8k(text)
    if re.fullmatch(r"-?(?:[1-9][0-9]*|0)(?:\.[0-9]*[1-9])?", theirs) and theirs != "-0":
        assert ours == theirs
    elif not re.fullmatch(r"-?[0-9]*\.?[0-9]*", theirs):
        assert ours is None


@given(st.text() | pieces, st.sampled_from(list(TASKS)), st.integers(2, 10))
def test_no_text_makes_it_raise(text: str, task: str, options: int) -> None:
    question = ask(task, options)
    answer = read_answer(text, question)
    if answer is not None and question.options:
        assert answer in question.letters
    elif answer is not None:
        assert re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", answer)


LONG = (
    *("answer:" * 20_000, "A" * 200_000, "A " * 100_000, r"\boxed{" * 30_000, "-" * 200_000),
    *("9," * 100_000, "answer:" + " " * 100_000, "\n" * 200_000, "#### " * 40_000),
    "Answer " + "\t" * 100_000,
)


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_long_replies_are_read_quickly(text: str) -> None:
    start = time.perf_counter()
    for task in TASKS:
        read_task_answer(text, ask(task))
    assert time.perf_counter() - start < 5, "a pattern goes back and forth"


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data beside the repository")
def test_recorded_replies_are_read_as_the_authors_of_mmlu_pro_read_them() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    questions = {
        question.id: question
        for question in read_task(SHARED / "mmlu_pro" / "questions.parquet", "mmlu_pro")
    }
    rows = parquet.read_table(SHARED / "mmlu_pro" / "outputs_profile.parquet").to_pylist()
    # The texts are cut at 1,500 characters; a record without an answer was left to chance.
    whole = [row for row in rows if row["output_chars"] <= 1500 and row["predicted"]]
    told = [(read_task_answer(r["output_text"], questions[r["question_id"]]), r) for r in whole]
    same = sum(answer == row["predicted"] for answer, row in told)
    assert len(whole) > 10_000
    assert len(whole) - same <= 20, (
        "records of older scripts differ in 4, letters beyond the options in 7"
    )
