"""How long a report on thousands of questions takes to build and to open, and how large it is.

    python benchmarks/report.py [--json] [--quick]

Made-up choices with four options, three recruits each whose texts are cut to the kept 1,500 characters, and fifteen
other methods' answers. Opening is timed in the system's Chromium without a window, the best of three: from the
address to the first page of the list. Keys: `questions`, `build_seconds`, `megabytes`, `open_seconds`,
`search_seconds` (from the first letter typed to the list that holds what was found, which reads every text), and
`turn_seconds` (a filter). The last three are null where there is no Chromium. `--quick` takes 1,000 questions
instead of 5,000.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertmix.apps.report import ReportContent, write_report
from expertmix.graph import Solution
from expertmix.retrieval import Question

if TYPE_CHECKING:
    from playwright.sync_api import Page

RECRUITS, METHODS, EXPERTS, SKILLS, LETTERS = 3, 15, 16, 24, "ABCD"
SENTENCE = (
    "the a of energy cell pressure therefore because option answer must increase force number charge "
    "which holds when equal ratio current market surface acid given however since total"
)
WORDS = SENTENCE.split()


def make_content(number: int) -> ReportContent:
    """A comparison on so many questions, the same every time."""
    rng = random.Random(0)
    solutions = [make_solution(at, rng) for at in range(number)]
    labels = [f"method-{at}@{at % 5 + 1}" for at in range(METHODS)]
    rows: list[dict[str, Any]] = []
    others: dict[str, dict[str, tuple[str | None, bool | None]]] = {}
    for at, label in enumerate(labels):
        share = 0.4 + 0.02 * at
        others[label] = {
            solution.question.id: (letter, letter == solution.question.gold)
            for solution in solutions
            if (letter := rng.choice(LETTERS))
        }
        rows.append(
            {
                "label": label,
                "method": f"method-{at}",
                "title": f"Method number {at}",
                "accuracy": share,
                "low": share - 0.014,
                "high": share + 0.014,
                "calls_mean": at % 5 + 1,
                "tokens_mean": 180 * (at % 5 + 1) + 7 * at,
                "n": number,
                "is_ours": at == METHODS - 1,
            }
        )
    return ReportContent(
        title=f"{number:,} made-up questions",
        main=labels[-1],
        rows=rows,
        solutions=solutions,
        others=others,
    )


def make_solution(at: int, rng: random.Random) -> Solution:
    """One question with its answers."""
    question = Question(
        id=f"made-up-{at:05d}",
        text=" ".join(rng.choices(WORDS, k=60)) + "?",
        options=tuple(" ".join(rng.choices(WORDS, k=8)) for _ in LETTERS),
        gold=rng.choice(LETTERS),
        kind="choice",
    )
    names = rng.sample([f"expert-{place:02d}" for place in range(EXPERTS)], RECRUITS)
    votes: dict[str, list[str]] = {}
    experts: list[dict[str, Any]] = []
    for name in names:
        letter = rng.choice(LETTERS)
        votes.setdefault(letter, []).append(name)
        text = " ".join(rng.choices(WORDS, k=320)) + f"\n\nAnswer: ({letter})"
        experts.append(
            {
                "expert": name,
                "weight": round(rng.random(), 3),
                "reason": "skill 0.61 [0.50, 0.72], overall 0.55 (400 answers)",
                "answer": letter,
                "text": text,
                "error": None,
                "sample": 0,
                "prompt_tokens": 150,
                "completion_tokens": 400,
            }
        )
    answer = max(votes, key=lambda letter: len(votes[letter]))
    row: dict[str, Any] = {
        "id": question.id,
        "answer": answer,
        "confidence": round(rng.random(), 4),
        "method": "posterior",
        "abstained": False,
        "skills": {f"skill {rng.randrange(SKILLS):02d}": 0.7, "reasoning": 0.3},
        "experts": experts,
        "votes": votes,
        "dissent": {letter: who for letter, who in votes.items() if letter != answer},
        "chances": {letter: 0.3 for letter in votes},
        "unread": [],
        "missing": {},
        "note": "",
        "aggregation": "",
        "usage": {"prompt_tokens": 450, "completion_tokens": 1200},
    }
    return Solution(question=question, row=row)


def measure_opening(page_file: Path, number: int) -> dict[str, float | None]:
    """Seconds in Chromium; None where there is none."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return dict.fromkeys(("open_seconds", "search_seconds", "turn_seconds"))
    from playwright.sync_api import sync_playwright

    passes: list[tuple[float, float, float]] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(3):
            passes.append(use_page(browser.new_page(), page_file.as_uri(), number))
        browser.close()
    opened, searched, turned = (round(min(times), 2) for times in zip(*passes, strict=True))
    return {"open_seconds": opened, "search_seconds": searched, "turn_seconds": turned}


def use_page(page: Page, address: str, number: int) -> tuple[float, float, float]:
    """Seconds to open the page, to search in it, and to filter."""
    started = time.perf_counter()
    page.goto(address, wait_until="domcontentloaded")
    page.locator("#list details").first.wait_for()
    opened = time.perf_counter()
    page.fill("#find", f"made-up-{number - 1:05d}")
    page.locator("#found", has_text=f"1 of {number:,}").wait_for()
    searched = time.perf_counter()
    page.fill("#find", "")
    page.locator("#found", has_text=f"{number:,} questions").wait_for()
    cleared = time.perf_counter()
    page.select_option("#by-result", "r")
    page.locator("#found", has_text=f"of {number:,} questions").wait_for()
    turned = time.perf_counter()
    page.close()
    return opened - started, searched - opened, turned - cleared


def measure(number: int) -> dict[str, float | None]:
    """All figures at a number of questions."""
    content = make_content(number)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        path = write_report(content, Path(folder) / "report.html")
        built = time.perf_counter() - started
        return {
            "questions": number,
            "build_seconds": round(built, 2),
            "megabytes": round(path.stat().st_size / 1e6, 1),
            **measure_opening(path, number),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--quick", action="store_true", help="1,000 questions")
    arguments = parser.parse_args()
    figures = measure(1000 if arguments.quick else 5000)
    if arguments.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:<20} {'—' if value is None else f'{value:,}':>10}")


if __name__ == "__main__":
    main()
