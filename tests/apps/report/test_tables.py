"""Figures stand below each other as they should, and shades tell who was recruited for what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from expertmix.agents import Profile
from expertmix.apps.report import ReportContent
from expertmix.apps.report.costs import tabulate_ledger
from expertmix.apps.report.curtain import Curtain
from expertmix.apps.report.heat import shade_profile, shade_recruits
from expertmix.apps.report.tables import Table, tabulate_methods, tabulate_pairs
from expertmix.apps.report.wording import (
    choose_digits,
    clean,
    tell_chance,
    tell_figure,
    tell_points,
    tell_share,
)
from expertmix.graph import Solution
from expertmix.retrieval import Question

Solve = Callable[..., Solution]


def column(table: Table, title: str) -> list[str]:
    (at,) = (at for at, column in enumerate(table.columns) if column.title == title)
    return [line.cells[at].text for line in table.lines]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "—"),
        (True, "—"),
        ("x", "—"),
        (float("nan"), "—"),
        (0, "0"),
        (1234567, "1,234,567"),
        (0.256, "0.26"),
        (25.94, "25.9"),
        (-3, "−3"),
        (171.4, "171"),
    ],
)
def test_a_figure_by_itself_has_the_decimals_it_deserves(value: Any, told: str) -> None:
    assert tell_figure(value) == told


def test_shares_points_and_chances() -> None:
    assert [tell_share(0.4843), tell_share(None)] == ["48.4", "—"]
    assert [*map(tell_points, (0.031, -0.0104, 0.0001, None))] == ["+3.1", "−1.0", "±0.0", "—"]
    assert [*map(tell_chance, (0.0001, 0.0312, 0.31, None))] == ["< 0.001", "0.031", "0.31", "—"]


def test_what_no_page_should_hold_is_marked_and_lines_stay() -> None:
    assert (
        clean("a\x00b\x1b[1m\u202ec\ud800\r\nd\te\u00e9")
        == "a\ufffdb\ufffd[1m\ufffdc\ufffd\nd\te\u00e9"
    )


def test_figures_below_each_other_have_the_same_decimals(content: ReportContent) -> None:
    rows = [{"label": name, "tokens_mean": v} for name, v in (("a", 7.7), ("b", 160), ("c", None))]
    assert column(tabulate_methods(rows), "Tokens out") == ["7.7", "160.0", "—"]
    assert [choose_digits(values) for values in ([1, 2], [1.5, 2], [15.5, 200], [], [None])] == [
        0, 2, 1, 0, 0,
    ]  # fmt: skip


def test_columns_in_which_nothing_stands_are_left_out(content: ReportContent) -> None:
    titles = [column.title for column in tabulate_methods(content.rows).columns]
    assert "Joules" not in titles
    assert "Joules" in [
        column.title for column in tabulate_methods([{"label": "a", "energy_mean": 3}]).columns
    ]


def test_a_difference_is_faint_unless_its_interval_leaves_zero_out(content: ReportContent) -> None:
    table = tabulate_methods([*content.rows[:2], {**content.rows[1], "delta": {"mean": 0.1, "low": -0.1, "high": 0.2}}])  # fmt: skip
    at = [column.title for column in table.columns].index("Difference")
    cells = [line.cells[at] for line in table.lines]
    assert [(cell.text, cell.look) for cell in cells] == [("—", ""), ("−10.0", "clear"), ("+10.0", "unclear")]  # fmt: skip
    assert table.columns[at].under == "to panel@2"
    assert cells[1].under == "[−20.0, −1.0]"


def test_a_difference_that_the_corrected_test_does_not_show_is_faint(
    content: ReportContent,
) -> None:
    rows = [content.rows[0], {**content.rows[1], "p_holm": 0.3}]
    table = tabulate_methods(rows)
    at = [column.title for column in table.columns].index("Difference")
    assert table.lines[1].cells[at].look == "unclear"
    pair = {**content.matched[0], "p_holm": 0.3}
    assert [line.look for line in tabulate_pairs([pair]).lines] == ["unclear"]


def test_differences_to_several_methods_name_them(content: ReportContent) -> None:
    table = tabulate_methods([content.rows[1], {**content.rows[1], "against": "single"}])
    at = [column.title for column in table.columns].index("Difference")
    assert [line.cells[at].under.rpartition("to ")[2] for line in table.lines] == ["panel@2", "single"]  # fmt: skip
    assert table.columns[at].under == ""


def test_pairs_share_a_scale_and_say_what_is_shown(content: ReportContent) -> None:
    unclear = {**content.matched[0], "mean": -0.01, "low": -0.05, "high": 0.03, "p_holm": None}
    table = tabulate_pairs([content.matched[0], unclear])
    assert [line.look for line in table.lines] == ["clear", "unclear"]
    assert column(table, "Matched at") == ["2 calls", "2 calls"]
    assert column(table, "p (Holm)") == ["0.020", "0.010"]  # the raw one where there is no other


def test_a_ledger_ends_in_its_sums(content: ReportContent) -> None:
    table = tabulate_ledger(content.ledger)
    assert column(table, "Expert") == ["ann", "All"]
    assert column(table, "Tokens out") == ["4", "4"]
    assert table.lines[-1].look == "total"


def test_recruiting_is_the_share_of_a_skills_questions(content: ReportContent) -> None:
    table = shade_recruits(content.solutions, Curtain())
    assert table is not None
    assert table.experts == ["ann", "bob", "cat"]
    told = {line.name: [cell.text for cell in line.cells] for line in table.lines}
    assert told == {"logic": ["100", "33", "33"], "sums": ["100", "50", ""], "all": ["100", "33", "33"]}  # fmt: skip
    assert [cell.level for cell in table.lines[1].cells] == [9, 4, 0]
    assert table.lines[0].cells[1].told == "bob was recruited for 20 of 60 questions about logic"


def test_skills_of_hidden_questions_are_named_only_if_the_profile_knows_them(
    content: ReportContent,
) -> None:
    curtain = Curtain.of(replace(content, hidden={f"q{at}" for at in range(60)}))
    table = shade_recruits(content.solutions, curtain)
    assert table is not None
    assert [line.name for line in table.lines] == ["logic", "all"]


def test_many_skills_are_cut_and_counted(solve: Solve) -> None:
    skills = {f"skill {at:02d}": 0.01 for at in range(50)}
    solution = solve(Question(id="q", text="?"), {"ann": "x"}, "x", skills=skills)
    table = shade_recruits([solution], Curtain())
    assert table is not None
    assert (len(table.lines), table.rest) == (41, 10)


def test_a_profile_shows_right_of_all(content: ReportContent) -> None:
    assert content.profile is not None
    table = shade_profile(content.profile)
    assert table is not None
    assert [(cell.text, cell.level) for cell in table.lines[0].cells] == [("4/4", 9), ("0/4", 0)]
    assert table.lines[-1].cells[0].told == "ann: 4 of 4 right (100%)"
    assert shade_profile(Profile(references="r", prompts="p", seed=0)) is None
