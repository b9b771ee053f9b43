"""What the adapters are trained on: questions paired with the reply that we would like to read.

`arithmetic` makes its questions up; `choices` draws on multiple-choice benchmarks that stay outside
the project. Neither repeats a question that the examples ship, so the demo is not its own teacher.
"""

from __future__ import annotations

import hashlib
import operator
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expertmix.retrieval import InputError, Question, read_questions

__all__ = ["Lesson", "arithmetic_lessons", "benchmark_questions", "choice_lessons", "lesson_key"]

HERE = Path(__file__).parent
HELD_OUT = 8
"""One key in this many is never trained on: it is what `arithmetic` is tested with."""
LARGEST = 2000
BENCHMARKS = ("openbookqa", "commonsenseqa", "arc_easy")

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "×": operator.mul,
    "÷": operator.floordiv,
}
WORDS = {"+": ["+", "plus"], "-": ["-", "minus"], "×": ["×", "*", "times"]}
WORDS["÷"] = ["÷", "/", "divided by"]
ASKED = ["What is {}?", "What is {}?", "What is {}?", "Calculate {}.", "How much is {}?"]

# A story, and what to do with its numbers {a}, {b}, {c} from left to right.
STORIES = [
    ("{x} has {a} {things} and gets {b} more. How many {things} does {x} have now?", "+"),
    ("There are {a} red and {b} blue {things} in a basket. How many are there in total?", "+"),
    ("{x} collected {a} {things} and {y} collected {b}. How many did they collect together?", "+"),
    ("{x} had {a} {things} and gave {b} of them to {y}. How many {things} are left?", "-"),
    ("{x} has {a} {things}. {y} has {b} fewer. How many {things} does {y} have?", "-"),
    ("Of {a} {things}, {b} are broken. How many are not broken?", "-"),
    ("There are {b} {things} in every bag. How many {things} are in {a} bags?", "×"),
    ("One ticket costs {b} dollars. How many dollars do {a} tickets cost?", "×"),
    ("{x} finds {b} {things} every day. How many does {x} find in {a} days?", "×"),
    ("A hall has {a} rows of {b} seats. How many seats does it have?", "×"),
    ("A rectangle is {a} metres long and {b} metres wide. What is its area in square metres?", "×"),
    ("{x} shares {a} {things} equally among {b} children. How many does each child get?", "÷"),
    ("{a} {things} are packed into boxes of {b}. How many boxes are filled?", "÷"),
    ("{x} saves {b} dollars a week. How many weeks does it take to save {a} dollars?", "÷"),
    ("{x} had {a} {things}, lost {b} and then found {c}. How many are there now?", "-+"),
    ("A lift holds {a} people. {b} leave and {c} enter. How many people are in it now?", "-+"),
    ("{x} had {a} {things}, bought {b} more and used {c}. How many {things} remain?", "+-"),
    ("{x} buys {a} {things} for {b} dollars each and a bag for {c} dollars. "
     "How many dollars does {x} pay?", "×+"),
    ("{x} packs {a} boxes of {b} {things} and gives away {c} {things}. How many are left?", "×-"),
    ("A coat costs {a} dollars, now {b} dollars less. How many dollars do {c} coats cost?", "-×"),
]  # fmt: skip
NAMES = ["Ada", "Omar", "Kim", "Jonas", "Priya", "Luis", "Mei", "Zoe", "Ivan", "Ruth"]
THINGS = ["cards", "shells", "coins", "oranges", "books", "stamps", "cups", "balls", "nuts"]

# How many of the small unit one large unit has.
UNITS = [
    ("minutes", "hours", 60), ("seconds", "minutes", 60), ("hours", "days", 24),
    ("days", "weeks", 7), ("months", "years", 12), ("centimetres", "metres", 100),
    ("metres", "kilometres", 1000), ("millimetres", "centimetres", 10), ("inches", "feet", 12),
    ("grams", "kilograms", 1000), ("millilitres", "litres", 1000), ("kilograms", "tonnes", 1000),
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A question and the reply to learn, which ends in a line `Answer: …`."""

    question: Question
    reply: str


def arithmetic_lessons(seed: int, *, held_out: bool = False) -> Iterator[Lesson]:
    """Yield made-up sums, stories, conversions and sequences, without end.

    The two values of `held_out` give lessons that have no key in common; neither has one in common
    with the shipped questions.
    """
    rng = random.Random(f"{seed} {held_out}")
    shipped = {lesson_key(q.text) for q in _shipped()}
    makers = [_sum, _story, _conversion, _percentage, _sequence]
    while True:
        (make,) = rng.choices(makers, weights=[45, 28, 15, 6, 6])
        text, working, value = make(rng)
        key = lesson_key(text)
        if key in shipped or _is_held_out(key) != held_out:
            continue
        if rng.random() < 0.25:
            yield _as_choice(text, working, value, rng)
        else:
            question = Question(id=key, text=text, gold=_show(value), kind="number")
            yield Lesson(question=question, reply=f"{working}\nAnswer: {_show(value)}")


def choice_lessons(folder: Path, seed: int) -> Iterator[Lesson]:
    """Yield the benchmarks' train questions, epoch after epoch, with the options shuffled anew.

    There are always four, and the reply names the right one before its letter.

    Raises:
        InputError: a benchmark is missing from the folder.
    """
    rng = random.Random(seed)
    rows = [row for name in BENCHMARKS for row in _train_rows(folder / f"{name}.parquet")]
    while True:
        rng.shuffle(rows)
        for row in rows:
            right = row["options"][row["gold_index"]]
            wrong = [option for option in row["options"] if option != right]
            if len(wrong) >= 3:
                yield _choice(row["question"], right, rng.sample(wrong, 3), rng)


def lesson_key(text: str) -> str:
    """What makes two arithmetic questions the same: their numbers, whatever is told about them.

    A single number is too little, so then the units count as well.
    """
    numbers = sorted(re.findall(r"\d+(?:\.\d+)?", text.replace(",", "")))
    units = {word for small, large, _ in UNITS for word in (small, large) if word in text}
    return " ".join(numbers if len(numbers) > 1 else [*numbers, *sorted(units)])


def _sum(rng: random.Random) -> tuple[str, str, float]:
    sign = rng.choice("++--××÷")
    (a, b), (working, value) = _draw(sign, rng)
    expression = f"{a} {rng.choice(WORDS[sign])} {b}"
    return rng.choice(ASKED).format(expression), working, value


def _story(rng: random.Random) -> tuple[str, str, float]:
    story, signs = rng.choice(STORIES)
    numbers, (working, value) = _draw(signs, rng)
    x, y = rng.sample(NAMES, 2)
    values = dict(zip("abc", numbers, strict=False))
    return story.format(x=x, y=y, things=rng.choice(THINGS), **values), working, value


def _conversion(rng: random.Random) -> tuple[str, str, float]:
    small, large, factor = rng.choice(UNITS)
    count: float = rng.randint(2, 40 if factor in (10, 100, 1000) else 12)
    if factor % 2 == 0 and rng.random() < 0.3:
        count += 0.5
    value = count * factor
    text = rng.choice(["How many {} are there in {} {}?", "How many {} are {} {}?"])
    working = f"{_show(count)} × {factor} = {_show(value)}"
    return text.format(small, _show(count), large), working, value


def _percentage(rng: random.Random) -> tuple[str, str, float]:
    percent, divisor = rng.choice([(10, 10), (20, 5), (25, 4), (50, 2), (1, 100), (5, 20)])
    value = rng.randint(2, 60)
    whole = value * divisor
    text = rng.choice(["What is {}% of {}?", "What is {} percent of {}?"])
    return text.format(percent, whole), f"{whole} ÷ {divisor} = {value}", value


def _sequence(rng: random.Random) -> tuple[str, str, float]:
    if rng.random() < 0.25:
        start, factor = rng.randint(1, 12), rng.choice([2, 3, 10])
        terms = [start * factor**i for i in range(5)]
        working = f"{terms[3]} × {factor} = {terms[4]}"
    else:
        step = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 10, 20, -1, -2, -3, -5, -10])
        start = rng.randint(1, 60) - min(0, 5 * step)
        terms = [start + step * i for i in range(5)]
        working = f"{terms[3]} {'-' if step < 0 else '+'} {abs(step)} = {terms[4]}"
    listing = ", ".join(map(str, terms[:4]))
    return f"Which number comes next: {listing}, ...?", working, terms[4]


def _draw(signs: str, rng: random.Random) -> tuple[list[int], tuple[str, int]]:
    """Numbers for which every intermediate value is whole, positive and small, and the working."""
    while True:
        numbers = [rng.randint(2, rng.choice([12, 60, 99, 300]))]
        numbers += [rng.randint(2, 12 if sign in "×÷" else 99) for sign in signs]
        if signs[0] == "÷":
            numbers[0] = numbers[1] * rng.randint(2, 15)
        if signs[0] == "×" and numbers[0] > 99:
            continue
        lines: list[str] = []
        value = numbers[0]
        for sign, number in zip(signs, numbers[1:], strict=True):
            line, after = _step(value, sign, number)
            lines.append(line)
            if not 0 < after <= LARGEST:
                break
            value = after
        else:
            return numbers, ("\n".join(lines), value)


def _step(a: int, sign: str, b: int) -> tuple[str, int]:
    """One operation, taken apart where a small model would slip: `47 + 38 = 47 + 30 + 8 = …`."""
    value = OPERATORS[sign](a, b)
    tens, ones = b // 10 * 10, b % 10
    carries = (a % 10 + ones >= 10) if sign == "+" else (a % 10 < ones)
    if sign in "+-" and tens and ones and carries:
        half = OPERATORS[sign](a, tens)
        return (
            f"{a} {sign} {b} = {a} {sign} {tens} {sign} {ones} = {half} {sign} {ones} = {value}",
            value,
        )
    if sign == "×" and a > 12 and a % 10 and b < 10:
        tens, ones = a // 10 * 10, a % 10
        return f"{a} × {b} = {tens} × {b} + {ones} × {b} = {tens * b} + {ones * b} = {value}", value
    if sign == "×" and b > 10 and a > 2:
        return f"{a} × {b} = {a} × 10 + {a} × {b - 10} = {a * 10} + {a * (b - 10)} = {value}", value
    return f"{a} {sign} {b} = {value}", value


def _as_choice(text: str, working: str, value: float, rng: random.Random) -> Lesson:
    steps = [1, 2, 5, 10, 20, 100] if value > 100 else [1, 2, 3, 5, 10]
    near = {value + sign * step for step in steps for sign in (1, -1)}
    wrong = rng.sample(sorted(n for n in near if n > 0), 3)
    return _choice(text, _show(value), [_show(n) for n in wrong], rng, working)


def _choice(
    text: str, right: str, wrong: list[str], rng: random.Random, working: str | None = None
) -> Lesson:
    options = [*wrong, right]
    rng.shuffle(options)
    question = Question(id=text, text=text, options=tuple(options), kind="choice")
    letter = question.letters[options.index(right)]
    question = replace(question, gold=letter)
    return Lesson(question=question, reply=f"{working or right}\nAnswer: ({letter})")


def benchmark_questions(path: Path, split: str = "test") -> list[Question]:
    """Read the questions with four options of one split of a benchmark.

    Raises:
        InputError: there is no such file.
    """
    rows = [row for row in _rows(path) if row["split"] == split]
    return [
        Question(
            id=row["id"],
            text=row["question"],
            options=tuple(row["options"]),
            gold=row["gold"],
            kind="choice",
        )
        for row in rows
        if len(row["options"]) == 4
    ]


def _train_rows(path: Path) -> list[dict[str, Any]]:
    rows = _rows(path)
    unseen = {_normal(q.text) for q in _shipped()}
    unseen |= {_normal(row["question"]) for row in rows if row["split"] != "train"}
    return [r for r in rows if r["split"] == "train" and _normal(r["question"]) not in unseen]


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"no benchmark at {path}: give the folder that holds it with --data")
    return pq.read_table(path).to_pylist()


def _shipped() -> Iterable[Question]:
    return read_questions(HERE / "questions.jsonl") + read_questions(HERE / "references.jsonl")


def _is_held_out(key: str) -> bool:
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT == 0


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _show(value: float) -> str:
    return f"{value:g}" if value < 100000 else str(int(value))
