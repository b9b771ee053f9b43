from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.agents.answers import is_correct, read_answer, same_answer, strip_thinking
from expertmix.retrieval import Question

CITIES = ("Paris", "London", "Rome", "Berlin", "Oslo", "Bern", "Vienna", "Prague", "Riga", "Bonn")
LETTERS = "ABCDEFGHIJ"


def choice(n: int = 4, gold: str | None = None) -> Question:
    return Question(id="c", text="Where?", options=CITIES[:n], gold=gold, kind="choice")


def number(gold: str | None = None) -> Question:
    return Question(id="n", text="How many?", gold=gold, kind="number")


def text(gold: str | None = None) -> Question:
    return Question(id="t", text="Who?", gold=gold, kind="text")


FAILURE_TABLE = [  # reply, right answer with four options, right answer with ten
    ("The answer is (C)", "C", "C"),
    ("The answer is C", "C", "C"),
    (r"\boxed{C}", "C", "C"),
    ("the answer is (c)", "C", "C"),
    (r"\boxed{C}. Done", "C", "C"),
    ("(A) is wrong, so the answer is (B).", "B", "B"),
    ("It is DNA (not RNA)", None, None),
    ("(B) because of RNA)", "B", "B"),
    ("Answer: none", None, None),
    ("I think it is H", None, "H"),
    ("I am not sure", None, None),
    ("E)", None, "E"),
    ("answer is **(D)**", "D", "D"),
    ("|)", None, None),
    ("J) or I)", None, "I"),
    ("", None, None),
]

CHOICES = [
    ("Answer: (C)", "C"),
    ("**Answer:** C", "C"),
    ("**Answer**: **(C)**", "C"),
    ("### Answer\n\n(C)", "C"),
    ("Answer - C", "C"),
    ("Answer:\n\nC", "C"),
    ("Option C", "C"),
    ("C)", "C"),
    ("C.", "C"),
    ("c", "C"),
    ("C: Paris", "C"),
    ("C. Rome is where it stands.", "C"),
    (r"The answer is \(C\).", "C"),
    (r"$\boxed{\text{(C) Rome}}$", "C"),
    ("The answer is\n\n$$\\boxed{C}$$", "C"),
    ('{"reasoning": "A and B fail", "answer": "C"}', "C"),
    ("<answer>C</answer>", "C"),
    ("The correct option is: (C) Rome", "C"),
    ("So my final answer is most likely option C, Rome.", "C"),
    ("The answer is C because A is far away.", "C"),
    ("The answer is C.<|im_end|>", "C"),
    ("I would go with (C).", "C"),
    ("(C) is correct, whatever (B) says.", "C"),
    ("The answer is not (A). It must be (C).", "C"),
    ("The best fit here is C. Rome, as every road leads there.", "C"),
    ("Answer: Rome", "C"),
    ("The answer is Rome, the capital of Italy.", "C"),
    ("rome", "C"),
    ("The answer is (B). No, wait. The answer is (C).", "C"),
    ("The answer is C, not A", "C"),
    ("A. Paris\nB. London\nC. Rome\nD. Berlin\n\nAnswer: C", "C"),
    ("Answer: Z", None),
    ("(Z)", None),
    ("Answer: E", None),
    ("A. Paris\nB. London\nC. Rome\nD. Berlin", None),
    ("The answer is (A) or (C).", None),
    ("The answer is (A) and (C).", None),
    ("(A) and (B) are close.\nAnswer: none of them", None),
    ("The answer is a combination of things.", None),
    ("A good question needs no vitamin C here.", None),
    ("Answer: vitamin C", None),
]


@pytest.mark.parametrize(("reply", "of_four", "of_ten"), FAILURE_TABLE)
def test_every_row_of_the_published_failure_table_is_read_right(
    reply: str, of_four: str | None, of_ten: str | None
) -> None:
    assert read_answer(reply, choice(4)) == of_four
    assert read_answer(reply, choice(10)) == of_ten


@pytest.mark.parametrize(("reply", "expected"), CHOICES)
def test_a_choice_is_read_however_it_is_stated(reply: str, expected: str | None) -> None:
    assert read_answer(reply, choice(4)) == expected


def test_a_model_that_goes_on_to_another_question_is_read_up_to_there() -> None:
    reply = "Rome it is. The answer is (C).\n\nQuestion: And next?\nThe answer is (A)."
    assert read_answer(reply, choice()) == "C"
    drift = "The answer is (C).\n\nThe answer is (A).\n\nThe answer is (B).\n\nThe answer is (D)."
    assert read_answer(drift, choice()) == "C"


def test_options_that_are_numbers_or_letters_are_matched_by_text_and_letters_come_first() -> None:
    numbers = Question(id="q", text="?", options=("4", "-6", "6", "6.5"), kind="choice")
    assert read_answer("Answer: 6", numbers) == "C"
    assert read_answer(r"\boxed{-6}", numbers) == "B"
    assert read_answer("The answer is 6.5.", numbers) == "D"
    swapped = Question(id="q", text="?", options=("B", "A"), kind="choice")
    assert read_answer("Answer: A", swapped) == "A"


def test_an_option_that_occurs_twice_is_not_taken_for_either() -> None:
    question = Question(id="q", text="?", options=("Rome", "Rome", "Oslo"), kind="choice")
    assert read_answer("Answer: Rome", question) is None
    assert read_answer("Answer: Oslo", question) == "C"


def test_thinking_is_cut_off_and_an_unclosed_thought_leaves_nothing() -> None:
    assert strip_thinking("<think>maybe (A)</think>\nThe answer is (B).") == "The answer is (B)."
    assert strip_thinking("opened by the template</think>B") == "B"
    assert strip_thinking("<think>The answer is (A)") == ""
    assert strip_thinking("<think>x</think>B <think>no, (A)") == ""
    assert read_answer("<think>The answer is (A)", choice()) is None


@settings(deadline=2_000)
@given(
    before=st.text(max_size=200),
    letter=st.sampled_from(LETTERS),
    form=st.sampled_from(
        ["Answer: ({})", "The answer is ({}).", r"\boxed{{{}}}", "**Answer:** {}"]
    ),
)
def test_a_planted_statement_is_always_found(before: str, letter: str, form: str) -> None:
    reply = f"{before}\n\n{form.format(letter)}"
    if "<think>" not in before:
        assert read_answer(reply, choice(10)) == letter


@settings(deadline=20_000)
@given(st.text(), st.sampled_from([choice(4, "A"), choice(10, "J"), number("3"), text("x")]))
def test_no_text_makes_reading_or_comparing_raise(reply: str, question: Question) -> None:
    answer = read_answer(reply, question)
    assert answer is None or answer.strip() == answer != ""
    if question.kind == "choice":
        assert answer is None or answer in question.letters
    assert same_answer(answer, answer, question) is (answer is not None)
    is_correct(answer, question)


MATHS = st.lists(
    st.sampled_from([*"0123456789xie^{}()+-*/=.,!_ ", r"\frac", r"\sqrt", r"\boxed{", "Answer: "])
).map("".join)


@settings(deadline=20_000)  # milliseconds; the first comparison imports sympy
@given(MATHS, MATHS)
def test_no_scrap_of_maths_makes_comparing_raise_or_hang(first: str, second: str) -> None:
    for reply in (first, second):
        answer = read_answer(reply, number())
        assert same_answer(answer, answer, number()) is (answer is not None)
    assert same_answer(first, second, number()) in (True, False)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("The answer is 33.", "33"),
        ("Answer: 033", "33"),
        (r"\boxed{33} and some words with 7", "33"),
        (r"so it is \boxed{\frac{1}{2}}.", "1/2"),
        (r"\boxed{4}, or rather \boxed{5}", "5"),
        ("#### 42", "42"),
        ("text\n#### 1,234\n", "1234"),
        ("#### Step 1: compute 5 * 3 = 15\nSo it is 16", "16"),
        ("The total is 1,234,567.89 dollars", "1234567.89"),
        ("Answer: 50%", "50%"),
        (r"Answer: 204\%", "204%"),
        ("Answer: $2.50", "2.5"),
        ("Answer: 10 cm", "10"),
        ("Answer: 1/2 cup", "1/2"),
        ("Answer: 1 1/2", "3/2"),
        (r"\boxed{1\frac12}", "3/2"),
        (r"\boxed{5\text{ cm}}", "5"),
        (r"$73^\circ$", "73"),
        ("−5", "-5"),
        ("it lies between 5-10", "10"),
        ("Answer: **42**.", "42"),
        ("The answer is 5 * 3 = 15", "15"),
        ("Answer: 1.5 × 10^3", "1500"),
        (r"Answer: \(\frac{3}{4}\)", "3/4"),
        (r"\boxed{2\sqrt{3}}", r"2\sqrt{3}"),
        (r"\boxed{x=5}", "5"),
        ("I counted 3 apples and 4 pears, so 7.", "7"),
        ("Answer: 36 dollars for 3 days", "36"),
        ("Answer: In 4 weeks she has spent 3 hours, so the sum is 12 hours.", "12"),
        ('{"answer": "67\\""}', "67"),
        ("We counted 3 and 4.\nAnswer: cannot be determined", None),
        ("none", None),
        ("", None),
    ],
)
def test_a_number_is_read_however_it_is_stated(reply: str, expected: str | None) -> None:
    assert read_answer(reply, number()) == expected


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("33", "33", True),
        ("033", "33", True),
        ("1/2", r"\frac{1}{2}", True),
        ("2,025", "2025", True),
        ("25.0", "25", True),
        ("25", "$25$", True),
        (r"73^\circ", "73", True),
        ("080 or 081", "081", True),
        ("080 or 081", "080", True),
        ("080 or 081", "80", True),
        ("3 || 4", "4", True),
        ("50%", "0.5", True),
        ("50", "50%", True),
        ("1/3", "0.333", True),
        ("2/3", "0.667", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        ("2sqrt(3)", r"\sqrt{12}", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("x^2+1", "1+x^2", True),
        ("1/3", "0.33", False),
        ("1/3", "-0.333", False),
        ("50%", "5", False),
        ("113", "114", False),
        ("1000000", "1000001", False),
        ("(1,2)", "(2,1)", False),
        ("5x", "5", False),
    ],
)
def test_numbers_are_compared_by_value(gold: str, answer: str, equal: bool) -> None:
    assert is_correct(answer, number(gold)) is equal


@pytest.mark.parametrize(
    "answer",
    ["9^{9^{9}}", "9^9^9", "10^{100000000}", "((9^99)^99)^99", "9999999!", "1e99999999", "(" * 100],
)
def test_an_expression_that_would_take_for_ever_is_unequal_at_once(answer: str) -> None:
    assert not is_correct(answer, number("3"))


def test_expressions_compare_in_a_thread_too() -> None:
    found: list[bool] = []
    thread = threading.Thread(
        target=lambda: found.append(is_correct(r"\sqrt{12}", number(r"2\sqrt{3}")))
    )
    thread.start()
    thread.join()
    assert found == [True]


@settings(deadline=20_000)
@given(st.integers(), st.integers(min_value=1, max_value=10**6))
def test_a_fraction_equals_itself_in_every_notation(top: int, bottom: int) -> None:
    question = number(f"{top}/{bottom}")
    assert is_correct(rf"\frac{{{top}}}{{{bottom}}}", question)
    assert is_correct(f"{2 * top}/{2 * bottom}", question)
    assert read_answer(f"Answer: {top}/{bottom}", question) is not None
    assert is_correct(read_answer(f"Answer: {top}/{bottom}", question), question)
    assert not is_correct(f"{top + bottom}/{bottom}", question)


@pytest.mark.parametrize(
    ("reply", "gold", "right"),
    [
        ("Answer: the Mona Lisa.", "Mona Lisa", True),
        ("MONA  LISA", "the Mona Lisa", True),
        ("The answer is Zürich", "Zurich", True),
        ("Answer: Marie Curie (née Skłodowska)", "Marie Curie", True),
        ("Answer: B cells", "T cells || B cells", True),
        ("Answer: 4.0", "4", True),
        ("Answer: A", "A", True),
        ("Answer: not Marie Curie", "Marie Curie", False),
        ("Answer: Marie Curie or Lise Meitner", "Marie Curie", False),
        ("Answer: Mona", "Mona Lisa", False),
        ("Answer: Lisam", "Lisa", False),
        ("Answer: it was painted by a man who had met Mona Lisa in Florence", "Mona Lisa", False),
    ],
)
def test_short_texts_are_compared_without_case_accents_and_articles(
    reply: str, gold: str, right: bool
) -> None:
    question = text(gold)
    assert is_correct(read_answer(reply, question), question) is right


def test_a_long_text_without_a_statement_has_no_answer() -> None:
    assert read_answer(" ".join(["word"] * 40), text()) is None
    assert read_answer("First some words about it.\n\nPetrichor", text()) == "Petrichor"


@pytest.mark.parametrize(
    "scrap",
    ["answer: ", r"\boxed{", "A) ", "(A) and ", "*", "1,", " ", "so ", r"\text{", "# ", "\n"],
)
@pytest.mark.parametrize("question", [choice(10), number(), text()])
def test_no_reply_takes_long_to_read(scrap: str, question: Question) -> None:
    start = time.thread_time()
    read_answer(scrap * 50_000, question)
    assert time.thread_time() - start < 2


def test_no_answer_is_never_right_and_no_gold_is_an_error() -> None:
    assert not is_correct(None, choice(4, "A"))
    with pytest.raises(ValueError, match='"c" has no gold'):
        is_correct("A", choice())


def test_a_vote_counts_equal_numbers_as_one_and_silence_as_nothing() -> None:
    assert same_answer("0.5", "1/2", number())
    assert same_answer("the moon", "Moon", text())
    assert not same_answer("A", "B", choice())
    assert not same_answer(None, None, choice())
