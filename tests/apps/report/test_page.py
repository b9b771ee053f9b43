"""A page shows what there is, leaves out what is not, and holds no more than it may."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from expertmix.agents import ExpertRecord, Outcome, Profile, Reference, Timeline
from expertmix.agents.pool.timeline import Span
from expertmix.apps.report import ReportContent, build_report, write_report
from expertmix.graph import Solution
from expertmix.retrieval import InputError, Question

Solve = Callable[..., Solution]
HOSTILE = (
    '</script><script>window.hurt=1</script></style></title><img src=x onerror="window.hurt=1">'
    "<!--<script>]]>'\"{{ 7*7 }}\u2028\u2029\ud800\x00\x1b[31m\u202edrow\r\n&amp;"
)


class Page(HTMLParser):
    """Reads a page as a browser does: its tags, what is said in them, and its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.texts.append((tag, ""))

    def handle_data(self, data: str) -> None:
        if self._open == "script" and self.texts[-1][0] == "script":
            self.texts[-1] = ("script", self.texts[-1][1] + data)
        else:
            self.texts.append((self._open, data))

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    @property
    def said(self) -> str:
        return "\n".join(text for tag, text in self.texts if tag not in ("script", "style"))

    @property
    def ids(self) -> set[str]:
        return {attributes["id"] or "" for _, attributes in self.tags if "id" in attributes}

    def data(self, name: str) -> Any:
        scripts = [attributes for tag, attributes in self.tags if tag == "script"]
        contents = [text for tag, text in self.texts if tag == "script"]
        found = [text for at, text in zip(scripts, contents, strict=True) if at.get("id") == name]
        return json.loads(found[0])


def read(content: ReportContent) -> Page:
    return Page(build_report(content))


def questions_of(page: Page) -> list[dict[str, Any]]:
    chunks = sorted(
        (name for name in page.ids if re.fullmatch(r"questions-\d+", name)),
        key=lambda name: int(name.rpartition("-")[2]),
    )
    return [question for name in chunks for question in page.data(name)]


def test_everything_has_its_section(content: ReportContent) -> None:
    page = read(content)
    sections = {"methods", "cost-of-right", "matched", "recruits", "work", "pathways", "questions"}
    assert sections <= page.ids
    for told in ("The first finding.", "sixty made-up questions", "Debate", "debate@6"):
        assert told in page.said
    assert "the pool states no prices" in page.said


def test_a_page_without_data_is_a_title() -> None:
    page = read(ReportContent(title="Nothing yet", main="panel"))
    assert "Nothing yet" in page.said
    assert not {"methods", "matched", "recruits", "work", "pathways", "questions"} & page.ids
    assert "questions-index" not in page.ids


@pytest.mark.parametrize(
    ("field", "empty", "section"),
    [
        ("rows", (), "methods"),
        ("rows", (), "cost-of-right"),
        ("matched", (), "matched"),
        ("solutions", (), "questions"),
        ("solutions", (), "pathways"),
        ("skipped", {}, "skipped-title"),
    ],
)
def test_a_section_without_data_is_left_out(
    content: ReportContent, field: str, empty: Any, section: str
) -> None:
    assert section in read(content).ids
    assert section not in read(replace(content, **{field: empty})).ids


def test_nothing_of_the_page_is_elsewhere(content: ReportContent) -> None:
    text = build_report(content)
    page = Page(text)
    addresses = [
        value or ""
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "srcset", "data", "poster")
    ]
    assert addresses
    assert all(re.match(r"#|data:,", address) for address in addresses)
    assert "//" not in re.sub(r'xmlns="http://www.w3.org/2000/svg"', "", page.said)
    assert not re.search(r"@import|url\((?!#)|\bimport\s*\(|\bfetch\(|XMLHttp|WebSocket", text)


def test_the_policy_allows_this_script_and_this_style_and_nothing_else(
    content: ReportContent,
) -> None:
    text = build_report(content)
    page = Page(text)
    metas = [attributes for tag, attributes in page.tags if tag == "meta"]
    (policy,) = (m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not any("style" in attributes for _, attributes in page.tags)  # the policy forbids it


def hurt(content: ReportContent, solve: Solve) -> ReportContent:
    """The hostile text wherever a text can stand."""
    h = HOSTILE
    question = Question(id=h, text=h, options=(h, "green"), gold="A", kind="choice", skills=(h,))
    solution = solve(
        question,
        {h: "B", "bob": h},
        "A",
        skills={h: 1.0},
        missing={h: h},
        unread=[h],
        note=h,
        aggregation=h,
        method=h,
    )
    remix = {"verdict": h, "before": h, "after": h, "neighbours": [[h, 0.5]], "pathway_before": h}
    experts = [
        row | {"text": h, "reason": h, "error": h, "round": h, "details": {"remix": remix}}
        for row in solution.experts
    ]
    solution = replace(solution, row={**solution.row, "experts": experts})
    row = content.rows[0]
    words = {key: h for key in ("label", "method", "title", "source", "note", "against")}
    profile = Profile(
        references="r",
        prompts="p",
        seed=0,
        experts={h.replace("\ud800", ""): ExpertRecord(identity="i")},
        questions={"r": Reference("r", "A", 2, "choice", {h: 1.0})},
        outcomes=(Outcome("r", h.replace("\ud800", ""), 0, "A", True, 1),),
    )
    return ReportContent(
        title=h,
        main=h,
        findings=[h, h],
        facts={h: h},
        rows=[{**row, **words}, {**row, **words, "is_bound": True}],
        matched=[{**content.matched[0], "by": h, "method": h, "against": h, "verdict": h}],
        skipped={h: h},
        solutions=[solution],
        others={h: {h: (h, True)}},
        profile=profile,
        timeline=Timeline([Span(device=h, weights=h, kind="load", start=0, end=1, note=h)]),
        ledger={"experts": [{"expert": h, "stage": h}], "loaded": [{"weights": h, "way": h}]},
    )


def test_no_text_becomes_a_part_of_the_page(content: ReportContent, solve: Solve) -> None:
    text = build_report(hurt(content, solve))
    text.encode()  # a lone surrogate would raise
    assert not set(text) & {"\x00", "\x1b", "\u202e", "\ud800", "\r"}
    page = Page(text)
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert [at.get("id") for at in scripts] == ["questions-index", None, "questions-0"]
    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"img", "iframe", "object", "embed", "base", "foreignobject", "a "})
    assert not any(name.startswith("on") for _, at in page.tags for name in at)
    assert "{{ 7*7 }}" in page.said  # neither escaped twice nor filled in
    for name in ("questions-index", "questions-0"):
        (source,) = re.findall(rf'<script [^>]*id="{name}">(.*?)</script>', text, re.DOTALL)
        assert not re.search(r"[<>&\u2028\u2029]", source)
    (question,) = questions_of(page)
    assert question["text"].startswith("</script><script>window.hurt=1")
    assert "\ufffd" in question["experts"][0]["text"]


def test_hidden_questions_leave_their_ids_and_letters_only(
    content: ReportContent, solve: Solve
) -> None:
    secret = "Xylophone"
    choice = Question(
        id="secret-1", text=secret, options=(secret, f"{secret} 2"), gold="A", kind="choice"
    )
    number = Question(id="secret-2", text=secret, gold="77177", kind="number")
    error = {"expert": "cat", "error": secret, "text": secret, "reason": secret, "answer": None}
    remix = {"verdict": f"kept: it raised {secret}", "before": "A", "after": "A"}
    told: dict[str, Any] = {
        "skills": {secret: 0.5, "logic": 0.5},
        "missing": {"cat": secret},
        "note": secret,
        "aggregation": secret,
    }
    hidden: list[Solution] = []
    for question, answer in ((choice, "A"), (number, "77177")):
        solution = solve(question, {"ann": answer, "bob": secret}, answer, **told)
        experts = [
            row | {"text": secret, "reason": secret, "details": {"remix": remix}}
            for row in solution.experts
        ]
        hidden.append(replace(solution, row={**solution.row, "experts": [*experts, error]}))
    others = {"debate@6": {q: (secret, False) for q in ("secret-1", "secret-2")}}
    ids = {"secret-1", "secret-2"}
    report = replace(content, solutions=hidden, others=others, hidden=ids)
    text = build_report(report)
    assert secret not in text
    assert "77177" not in text
    page = Page(text)
    assert page.data("questions-index")["ids"] == ["secret-1", "secret-2"]
    first, second = questions_of(page)
    assert (first["gold"], first["answer"], first["options"]) == ("A", "A", [])
    assert (second["gold"], second["answer"]) == ("hidden", "hidden")
    assert [name for name, _ in first["skills"]] == ["logic"]  # the profile's
    assert first["experts"][2]["error"] == "hidden"
    assert first["experts"][0]["remix"]["verdict"] == "kept"
    assert secret in build_report(replace(report, hidden=()))  # the test can fail


def test_the_index_tells_what_the_list_filters_by(content: ReportContent) -> None:
    index = read(content).data("questions-index")
    assert index["marks"] == "rwa" * 20
    assert index["disputed"] == "010" * 20
    assert index["labels"] == ["debate@6", "single"]
    assert index["beside"] == ["01" * 30, "1--" * 20]
    assert index["sure"][:3] == [90, 75, 10]
    assert index["answers"][:3] == ["B green", "C blue", None]
    assert [index["skillNames"][at] for at in index["skills"][0]] == ["logic", "sums"]
    assert [index["expertNames"][at] for at in index["experts"][1]] == ["ann", "cat"]


def test_a_question_has_its_votes_verdict_and_the_others_answers(content: ReportContent) -> None:
    question = questions_of(read(content))[1]
    assert question["votes"] == [["C", ["cat"], 0.5, False, True], ["B", ["ann"], 0.5, True, False]]
    assert [(row["expert"], row["right"]) for row in question["experts"]] == [
        ("ann", True),
        ("cat", False),
    ]
    assert question["others"] == [["B", True], None]


def test_pathways_are_a_digit_per_cell(content: ReportContent) -> None:
    remix = questions_of(read(content))[0]["experts"][0]["remix"]
    assert remix["pathway"] == [["6600", "0390"], ["0390", "6600"]]
    assert remix["neighbours"] == [["r1", 0.81]]


@pytest.mark.parametrize("pathway", [None, [], [[]], [[1.0], [1.0, 2.0]], [["x"]], [[math.nan]], 3])
def test_a_pathway_that_is_none_is_left_out(
    content: ReportContent, solve: Solve, pathway: Any
) -> None:
    solution = solve(Question(id="q", text="?"), {"ann": "x"}, "x")
    remix = {"verdict": "changed", "pathway_before": pathway, "pathway_after": pathway}
    experts = [row | {"details": {"remix": remix}} for row in solution.experts]
    solution = replace(solution, row={**solution.row, "experts": experts})
    page = read(replace(content, solutions=[solution], others={}))
    assert "pathway" not in questions_of(page)[0]["experts"][0]["remix"]
    assert "Re-mixing in 1 answer; another letter won in 0." in page.said


def test_long_texts_keep_their_end_and_say_so(content: ReportContent, solve: Solve) -> None:
    solution = solve(Question(id="q", text="?"), {"ann": "x"}, "x")
    text = "start " + "é" * 3000 + " end"
    experts = [row | {"text": text} for row in solution.experts]
    solution = replace(solution, row={**solution.row, "experts": experts})
    page = read(replace(content, solutions=[solution], others={}))
    (row,) = questions_of(page)[0]["experts"]
    assert (len(row["text"]), row["length"]) == (1500, len(text))
    assert row["text"].endswith("é end")
    assert "the last 1,500 characters" in page.said


def test_questions_lie_in_chunks(content: ReportContent, solve: Solve) -> None:
    asked = [Question(id=f"n{at}", text=f"{at}?") for at in range(250)]
    page = read(replace(content, solutions=[solve(q, {}, None) for q in asked], others={}))
    assert [len(page.data(f"questions-{at}")) for at in range(3)] == [100, 100, 50]
    assert questions_of(page)[249]["text"] == "249?"
    assert page.data("questions-index")["marks"] == "n" * 250


def test_rows_that_lack_things_have_dashes(content: ReportContent) -> None:
    rows: list[dict[str, Any]] = [
        {"label": "bare"},
        {"label": "odd", "accuracy": math.nan, "calls_mean": "many", "delta": {"mean": None}},
        {"label": "some", "accuracy": 0.5, "calls_mean": math.inf},
    ]
    page = read(replace(content, rows=rows, matched=[{"method": "a", "mean": None}, {}]))
    assert {"bare", "odd", "some"} <= set(page.said.split())
    assert "nan" not in page.said.lower()
    assert "cost-of-right" not in page.ids  # no method has both figures
    cells = [text for tag, text in page.texts if tag == "td"]
    assert "—" in cells


def test_solutions_of_other_methods_may_lack_keys(content: ReportContent) -> None:
    question = Question(id="q", text="Why?", gold="so")
    bare = Solution(question=question, row={"id": "q", "answer": "so", "confidence": math.nan})
    page = read(replace(content, solutions=[bare], others={}))
    (told,) = questions_of(page)
    assert told["confidence"] is None
    assert told["votes"] == [["so", [], None, True, True]]
    assert page.data("questions-index")["marks"] == "r"


def test_turns_of_methods_that_talk_are_told(content: ReportContent, solve: Solve) -> None:
    solution = solve(Question(id="q", text="?"), {"ann": "x"}, "x")
    experts = [{**solution.experts[0], "round": at, "agent": "second"} for at in range(2)]
    solution = replace(solution, row={**solution.row, "experts": experts})
    page = read(replace(content, solutions=[solution], others={}))
    rows = questions_of(page)[0]["experts"]
    assert [(row["round"], row["agent"]) for row in rows] == [("0", "second"), ("1", "second")]


def test_a_run_alone_has_its_score_on_top(content: ReportContent) -> None:
    page = read(replace(content, rows=(), matched=(), skipped={}))
    assert "33.3 %" in page.said
    assert "20 of 60" in page.said
    assert "one run, question by question" in page.said


def test_the_same_content_gives_the_same_page(content: ReportContent) -> None:
    assert build_report(content) == build_report(content)


def test_a_report_is_written_whole_and_replaces_an_older_one(
    content: ReportContent, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "report.html"
    assert write_report(content, path) == path
    path.write_text("old")
    write_report(content, path)
    assert path.read_text(encoding="utf-8") == build_report(content)
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_named(content: ReportContent, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*file/report\.html"):
        write_report(content, tmp_path / "file" / "report.html")
