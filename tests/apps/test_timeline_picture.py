"""A picture of a timeline shows everything, needs nothing, and believes no name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from expertmix.agents.pool.timeline import Span, Timeline
from expertmix.apps.timeline_picture import draw_timeline, text_timeline, write_picture
from expertmix.retrieval import InputError

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = 'x\x00\x1b[31m</script><script>alert(1)</script>]]>&"\u202e\ud800\ufffe\r\n\x85end'


def span(kind: str, start: float, end: float, weights: str = "org/model", **more: Any) -> Span:
    given: dict[str, Any] = {"device": "cpu", "kind": kind, "weights": weights, **more}
    return Span(start=start, end=end, **given)


def a_run() -> Timeline:
    return Timeline(
        [
            span("load", 0, 2, note="fresh", engine=1),
            span("generate", 2, 8, tokens=1200, engine=1),
            span("load", 1, 3, "org/other", engine=2, note="fresh, failed"),
            span("generate", 4, 10, "third", engine=3, device="cuda:0", tokens=10),
        ]
    )


def boxes(svg: Element, what: str) -> list[Element]:
    """The bars whose tooltip says `what`."""
    found: list[Element] = []
    for group in svg.iter(f"{SVG}g"):
        if what in (group.findtext(f"{SVG}title") or ""):
            found += group.findall(f"{SVG}rect")
    return found


def texts(svg: Element) -> list[str]:
    return [element.text or "" for element in svg.iter(f"{SVG}text")]


def values(svg: Element) -> Iterator[str]:
    for element in svg.iter():
        yield from element.attrib.values()
        yield element.text or ""


def test_a_picture_says_what_it_shows_to_those_who_cannot_see_it() -> None:
    svg = fromstring(draw_timeline(a_run(), title="A run"))
    assert svg.attrib["role"] == "img"
    assert svg.findtext(f"{SVG}title") == "A run"
    told = svg.findtext(f"{SVG}desc") or ""
    assert told.startswith("3 models on 2 devices, 2 loads (1 failed), 1,210 tokens, 10.0 s. ")
    assert "cpu generated 60% of the time, loaded 30%." in told


def test_every_span_has_a_bar_to_scale_and_a_tooltip() -> None:
    svg = fromstring(draw_timeline(a_run()))
    (load,) = boxes(svg, "org/model loaded (fresh) on cpu, engine 1: 0.00–2.00 s")
    (work,) = boxes(
        svg,
        "org/model generated on cpu, engine 1: 2.00–8.00 s, 1,200 tokens, 200 tokens/s",
    )
    assert float(work.attrib["width"]) == pytest.approx(3 * float(load.attrib["width"]), rel=0.02)
    assert load.attrib["fill"].startswith("url(#em-load-")
    assert work.attrib["fill"].startswith("#")


def test_a_failed_load_is_red_and_lies_in_a_row_of_its_own() -> None:
    svg = fromstring(draw_timeline(a_run()))
    bar, mark = boxes(svg, "(fresh, failed)")
    assert bar.attrib["fill"] == "url(#em-failed)"
    assert mark.attrib["fill"] == "#d1001f"
    assert bar.attrib["y"] != boxes(svg, "org/model loaded")[0].attrib["y"]
    assert {"cpu/0", "cpu/1", "cuda:0/0", "not loaded"} <= set(texts(svg))


def test_colours_follow_the_order_of_names_and_twenty_models_differ_as_far_as_looks_go() -> None:
    names = [f"m{at:02d}" for at in range(20)]
    spans = [span("generate", at, at + 1, name) for at, name in enumerate(names)]
    svg = fromstring(draw_timeline(Timeline(spans)))
    looks = [boxes(svg, f"{name} ")[0].attrib["fill"] for name in names]
    assert len(set(looks)) == 18
    assert looks[18:] == looks[:2]
    defined = {pattern.attrib["id"] for pattern in svg.iter(f"{SVG}pattern")}
    assert set(re.findall(r"url\(#(.+?)\)", " ".join(values(svg)))) <= defined


def test_ticks_are_round_numbers() -> None:
    svg = fromstring(draw_timeline(Timeline([span("generate", 0, 47)])))
    assert [text for text in texts(svg) if text.isdigit()] == [str(at) for at in range(0, 47, 5)]
    svg = fromstring(draw_timeline(Timeline([span("generate", 0, 0.03)])))
    assert [text for text in texts(svg) if text.startswith("0.0")][:2] == ["0.005", "0.010"]


def test_a_resumed_run_shows_where_it_begins() -> None:
    assert "resumed" in texts(fromstring(draw_timeline(a_run().after(a_run()))))
    assert "resumed" not in texts(fromstring(draw_timeline(a_run())))


def test_long_names_are_shortened_and_told_in_full_by_the_tooltip() -> None:
    name = "org/" + "long-" * 30 + "v2"
    svg = fromstring(draw_timeline(Timeline([span("generate", 0, 1, name)])))
    assert all(len(text) < 125 for text in texts(svg))
    assert [text[-2:] for text in texts(svg) if text.startswith("org/long-")] == ["v2"]
    assert boxes(svg, name)


@pytest.mark.parametrize("width", [1, 320, 960, 4000])
def test_an_empty_timeline_has_a_picture_of_any_width(width: int) -> None:
    svg = fromstring(draw_timeline(Timeline(), width=width))
    assert float(svg.attrib["width"]) == max(320, width)
    assert text_timeline(Timeline(), width).plain


def test_a_picture_loads_and_runs_nothing() -> None:
    text = draw_timeline(Timeline([span("generate", 0, 1, HOSTILE)]), title=HOSTILE)
    svg = fromstring(text)
    tags = {element.tag.removeprefix(SVG) for element in svg.iter()}
    assert tags.isdisjoint({"script", "image", "use", "a", "foreignObject"})
    assert "@import" not in text
    assert [value for value in values(svg) if "//" in value] == []
    assert not any(key.startswith("on") for element in svg.iter() for key in element.attrib)


NAMES = st.text(max_size=40) | st.just(HOSTILE)
SPANS = st.lists(
    st.builds(
        Span,
        kind=st.sampled_from(["load", "generate", "sleep"]),
        weights=NAMES,
        device=NAMES,
        start=st.floats(0, 1e3),
        end=st.just(1e3) | st.floats(1e3, 1e5),
        tokens=st.integers(0, 10**6),
        note=st.sampled_from(["", "fresh", "fresh, failed", "died"]),
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(spans=SPANS, title=NAMES)
def test_hostile_names_leave_the_picture_well_formed_and_the_same(
    spans: list[Span], title: str
) -> None:
    text = draw_timeline(Timeline(spans), title=title)
    text.encode()
    fromstring(text)
    assert text == draw_timeline(Timeline.from_json(Timeline(spans).to_json()), title=title)


@settings(max_examples=60, deadline=None)
@given(spans=SPANS, width=st.integers(60, 140))
def test_a_terminal_gets_lines_that_fit_and_cannot_command_it(
    spans: list[Span], width: int
) -> None:
    lines = text_timeline(Timeline(spans), width).plain.split("\n")
    assert max(map(cell_len, lines)) <= width
    assert not any(re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", line) for line in lines)


def test_a_terminal_shows_loads_work_and_waiting() -> None:
    timeline = Timeline(
        [
            span("load", 0, 2, engine=1),
            span("generate", 2, 5, engine=1),
            span("load", 6, 7, "z", engine=2),
            span("generate", 7, 9, "z", engine=2),
            span("load", 9, 10, "z", engine=3, note="fresh, failed"),
        ]
    )
    assert text_timeline(timeline, 26).plain.splitlines() == [
        "cpu/0 ▒▒▒▒A█████  ▒▒B███✗✗",
        "      0             10.0 s",
        "A org/model",
        "B z",
        "▒ loads  █ generates  · sleeps  ✗ fails",
    ]


def test_a_load_that_failed_at_once_is_still_seen() -> None:
    timeline = Timeline([span("generate", 0, 9), span("load", 4, 4, "b", note="fresh, failed")])
    assert "✗" in text_timeline(timeline, 40).plain
    assert boxes(fromstring(draw_timeline(timeline)), "failed")


class Page(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_a_page_has_the_picture_and_a_table_and_believes_no_name(tmp_path: Path) -> None:
    timeline = Timeline([span("generate", 0, 1, HOSTILE), span("load", 1, 2, note="fresh")])
    write_picture(timeline, tmp_path / "run.html", HOSTILE)
    text = (tmp_path / "run.html").read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert "script" not in page.tags
    assert page.tags.count("svg") == 1
    assert page.tags.count("tr") == 3
    assert {"load, fresh", "1.000", "generate"} <= set(page.said)
    assert "default-src 'none'" in text


def test_a_picture_is_written_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "run.SVG"
    path.write_text("old")
    write_picture(a_run(), path, "A run")
    assert path.read_text(encoding="utf-8") == draw_timeline(a_run(), title="A run")
    assert [found.name for found in tmp_path.iterdir()] == ["run.SVG"]


@pytest.mark.parametrize("name", ["run.png", "run", "svg", "run.svg.exe"])
def test_another_ending_is_refused_and_nothing_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"written as \.svg or \.html, not as"):
        write_picture(a_run(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written to .*nowhere.*No such file"):
        write_picture(a_run(), tmp_path / "nowhere" / "run.svg")
