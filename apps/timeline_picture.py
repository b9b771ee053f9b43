"""What a pool did, as a picture: for a browser, a page or a terminal."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from ..agents.pool.timeline import Row, Span, Timeline
from ..retrieval import InputError

__all__ = ["draw_timeline", "text_timeline", "write_picture"]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442")
"""Okabe and Ito's, without the vermilion, which could be taken for `RED`."""
SHADES = ("blue", "yellow", "green", "magenta", "cyan", "white")
"""Likewise in a terminal, which has its own."""
RED = "#d1001f"
TEXTURES = ("", "M2 2h3v3h-3z", "M0 0h3v8h-3z")
"""Plain, dotted, striped: 18 looks with the colours; more weights than that begin anew."""
LOOKS = len(COLOURS) * len(TEXTURES)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
FILLS = {"load": "▒", "generate": "█", "sleep": "·", "failed": "✗", "": " "}

# Pixels. The width of a letter is a guess that holds for most fonts.
MARGIN, HEAD, ROW, GAP, LINE, LETTER, TICK = 20.0, 72.0, 22.0, 5.0, 20.0, 6.8, 64.0

STYLE = """
.em{font:11px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",Arial,sans-serif}
.em-paper{fill:#fff;stroke:#d0d7de} .em-track{fill:#eef1f4} .em-grid{stroke:#d5dbe1}
.em-ink{fill:#1f2328} .em-soft{fill:#59636e} .em-run{stroke:#59636e;stroke-dasharray:3 3}
.em-head{font-size:15px;font-weight:600} .em-end{text-anchor:end} .em-mid{text-anchor:middle}
.em-dark{fill:#10151a} .em-light{fill:#fff} .em-sleep{fill:#818b98}
.em-name{paint-order:stroke;stroke-width:3px;stroke-linejoin:round;text-anchor:middle}
@media (prefers-color-scheme:dark){
.em-paper{fill:#0d1117;stroke:#30363d} .em-track{fill:#1c232c} .em-grid{stroke:#2d353e}
.em-ink{fill:#e6edf3} .em-soft{fill:#9198a1} .em-run{stroke:#9198a1}}
"""
PAGE_STYLE = """
:root{color-scheme:light dark} svg{max-width:100%;height:auto}
body{font:14px system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem}
table{border-collapse:collapse;margin-top:1.5rem} td{font-variant-numeric:tabular-nums}
th,td{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #8884;overflow-wrap:anywhere}
"""
# What XML forbids, what commands a terminal, and what turns the direction of writing.
_UNWANTED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def draw_timeline(timeline: Timeline, *, title: str = "", width: int = 960) -> str:
    """Draw one SVG: a row per lane of each device, time from left to right.

    It needs nothing else: no script, no font, no address. The same timeline gives the same text.

    Args:
        timeline: Of a run or of a plan.
        title: Stands above it.
        width: In pixels, at least 320.
    """
    svg = _draw(_hold(timeline), _clean(title) or "What the pool did", max(320.0, width))
    indent(svg, " ")
    return tostring(svg, encoding="unicode") + "\n"


def write_picture(timeline: Timeline, path: str | os.PathLike[str], title: str = "") -> None:
    """Write a picture as `.svg`, or as `.html` with a table of all spans below it.

    Raises:
        InputError: the path has another ending, or cannot be written.
    """
    path = Path(path)
    draw = {".svg": draw_timeline, ".html": _draw_page}.get(path.suffix.lower())
    if draw is None:
        raise InputError(f'a picture is written as .svg or .html, not as "{path.name}"')
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(draw(timeline, title=title), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"the picture cannot be written to {path}: {error.strerror}") from None


def text_timeline(timeline: Timeline, width: int = 100) -> Text:
    """Draw for a terminal: a line per row, the time axis, and what the letters stand for.

    `.plain` is the same without colours. Each cell shows what filled most of it, and is blank if
    nothing filled an eighth.

    Args:
        timeline: Of a run or of a plan.
        width: In cells.
    """
    timeline = _hold(timeline)
    rows, looks, seconds = timeline.rows(), _look_up(timeline), _extent(timeline)
    margin = max((cell_len(_name(row)) for row in rows), default=0) + 1
    cells = max(10, width - margin)
    lines = [
        Text(set_cell_size(_name(row), margin)) + _paint(row, looks, seconds, cells) for row in rows
    ]
    lines.append(Text(" " * margin + "0" + f"{_tell(seconds)} s".rjust(cells - 1), style="dim"))
    for weights, look in looks.items():
        lines.append(
            Text(f"{_letter(look)} ", style=_shade(look)) + Text(_shorten(weights, width - 2))
        )
    lines.append(Text("▒ loads  █ generates  · sleeps  ✗ fails", style="dim"))
    return Text("\n", no_wrap=True).join(lines)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where the rows are, in pixels."""

    left: float
    right: float
    bottom: float
    seconds: float
    """From the left to the right."""

    def at(self, seconds: float) -> float:
        return self.left + (self.right - self.left) * min(1.0, seconds / self.seconds)


def _draw(timeline: Timeline, title: str, width: float) -> Element:
    rows, looks, summary = timeline.rows(), _look_up(timeline), _summarise(timeline)
    told = [_tell_device(timeline, device) for device in timeline.devices]
    left = 1.5 * MARGIN + LETTER * max([8, *(cell_len(_name(row)) for row in rows)])
    tops = _place_rows(rows)
    frame = _Frame(left, width - 2 * MARGIN - 24, tops[-1], _extent(timeline))
    svg = Element("svg", {"class": "em", "role": "img", "xmlns": "http://www.w3.org/2000/svg"})
    SubElement(svg, "title").text = title
    SubElement(svg, "desc").text = " ".join([f"{summary}.", *told])
    SubElement(svg, "style").text = STYLE
    _define_patterns(svg, looks.values())
    paper = SubElement(svg, "rect", {"class": "em-paper", "x": "0.5", "y": "0.5", "rx": "8"})
    _write(svg, MARGIN, 31, _shorten(title, int(width / 11)), "em-ink em-head")
    _write(svg, MARGIN, 50, _shorten(summary, int(width / LETTER) - 6), "em-soft")
    _draw_tracks(svg, frame, timeline, tops)
    _draw_axis(svg, frame, timeline)
    for row, top in zip(rows, tops, strict=False):
        for span in row.spans:
            _draw_span(svg, frame, span, looks[span.weights], top)
    height = _draw_legend(svg, rows, looks, frame.bottom + 36, width)
    svg.attrib |= {"width": _px(width), "height": _px(height)}
    svg.set("viewBox", f"0 0 {_px(width)} {_px(height)}")
    paper.attrib |= {"width": _px(width - 1), "height": _px(height - 1)}
    return svg


def _place_rows(rows: Sequence[Row]) -> list[float]:
    """The upper edges of the rows, and the lower edge of the last; devices stand a little apart."""
    tops = [HEAD]
    for row, following in zip_longest(rows, rows[1:]):
        apart = following is not None and following.device != row.device
        tops.append(tops[-1] + ROW + GAP * (1 + apart))
    return tops


def _draw_tracks(svg: Element, frame: _Frame, timeline: Timeline, tops: Sequence[float]) -> None:
    """The empty rows: their names before them, how busy their device was behind them."""
    for row, top in zip(timeline.rows(), tops, strict=False):
        _write(svg, frame.left - 8, top + 15, _name(row), "em-ink em-end")
        _box(svg, frame.left, top, frame.right - frame.left, ROW, {"class": "em-track"})
        if row.lane == 0:
            share = f"{timeline.busy(row.device) / frame.seconds:.0%}"
            told = _write(svg, frame.right + 44, top + 15, share, "em-soft em-end")
            SubElement(told, "title").text = _tell_device(timeline, row.device)


def _draw_axis(svg: Element, frame: _Frame, timeline: Timeline) -> None:
    step = _choose_step(frame)
    for at in range(math.floor(frame.seconds / step * (1 + 1e-9)) + 1):
        x = frame.at(at * step)
        _line(svg, x, HEAD - 4, frame.bottom, "em-grid")
        _write(svg, x, frame.bottom + 13, _tell(at * step, step), "em-soft em-mid")
    for start in timeline.runs[1:]:
        _line(svg, frame.at(start), HEAD - 10, frame.bottom, "em-run")
        _write(svg, frame.at(start) + 4, HEAD - 4, "resumed", "em-soft")
    _write(svg, frame.left - 12, frame.bottom + 13, "seconds", "em-soft em-end")
    _write(svg, frame.right + 44, HEAD - 6, "busy", "em-soft em-end")


def _draw_span(svg: Element, frame: _Frame, span: Span, look: int, top: float) -> None:
    left, right = frame.at(span.start), frame.at(span.end)
    group = SubElement(svg, "g")
    SubElement(group, "title").text = _tell_span(span)
    if span.kind == "sleep":
        _box(group, left, top + ROW / 2 - 2, right - left, 4, {"class": "em-sleep"})
    else:  # a seam between neighbours, and something to see of what took no time at all
        _box(group, left, top, max(1.5, right - left - 0.75), ROW, {"fill": _fill(span, look)})
    if span.failed:
        _box(group, max(left, right - 3), top - 2, 3, ROW + 4, {"fill": RED})
    room = int((right - left - 12) / LETTER)
    if span.kind == "generate" and room >= 5:
        ink = "em-light" if look % len(COLOURS) == 0 else "em-dark"
        short = _shorten(span.weights.rpartition("/")[2], room)
        name = _write(group, (left + right) / 2, top + 15, short, f"{ink} em-name")
        name.set("stroke", COLOURS[look % len(COLOURS)])  # keeps textures away from the letters


def _draw_legend(
    svg: Element, rows: Sequence[Row], looks: Mapping[str, int], top: float, width: float
) -> float:
    """Draw what the colours mean, and say where that ends."""
    spans = [span for row in rows for span in row.spans]
    states = [
        ("loading", {"fill": "url(#em-load)"}, any(s.kind == "load" for s in spans)),
        ("not loaded", {"fill": "url(#em-failed)"}, any(map(_is_lost, spans))),
        ("died", {"fill": RED}, any(s.failed and s.kind != "load" for s in spans)),
        ("asleep", {"class": "em-sleep"}, any(s.kind == "sleep" for s in spans)),
        ("idle", {"class": "em-track"}, True),
    ]
    names = [(_shorten(name, 38), {"fill": _solid(look)}) for name, look in looks.items()]
    top = _draw_swatches(svg, names, top, width)
    return _draw_swatches(svg, [(n, look) for n, look, seen in states if seen], top, width) + 8


def _draw_swatches(
    svg: Element, entries: Sequence[tuple[str, Mapping[str, str]]], top: float, width: float
) -> float:
    column = 36 + LETTER * max((cell_len(name) for name, _ in entries), default=0)
    columns = max(1, int((width - 2 * MARGIN) / column))
    for at, (name, look) in enumerate(entries):
        x, y = MARGIN + at % columns * column, top + at // columns * LINE
        _box(svg, x, y, 14, 12, look)
        _write(svg, x + 20, y + 10, name, "em-ink")
    return top + math.ceil(len(entries) / columns) * LINE + 4


def _define_patterns(svg: Element, looks: Iterable[int]) -> None:
    """Stripes for what loads, textures for the seventh colour and on."""
    defs = SubElement(svg, "defs")
    _hatch(defs, "em-load", "#818b98")
    _hatch(defs, "em-failed", RED)
    for look in sorted({look % LOOKS for look in looks}):
        colour, texture = COLOURS[look % len(COLOURS)], TEXTURES[look // len(COLOURS)]
        _hatch(defs, f"em-load-{look}", colour)
        if texture:
            _pattern(
                defs, f"em-work-{look}", colour, "1", texture, {"fill": "#fff", "opacity": ".4"}
            )


def _hatch(defs: Element, name: str, colour: str) -> None:
    pattern = _pattern(defs, name, colour, ".22", "M0 0h2.5v8h-2.5z", {"fill": colour})
    pattern.set("patternTransform", "rotate(45)")


def _pattern(
    defs: Element, name: str, ground: str, opacity: str, path: str, look: Mapping[str, str]
) -> Element:
    size = {"id": name, "width": "8", "height": "8", "patternUnits": "userSpaceOnUse"}
    pattern = SubElement(defs, "pattern", size)
    SubElement(
        pattern, "rect", {"width": "8", "height": "8", "fill": ground, "fill-opacity": opacity}
    )
    SubElement(pattern, "path", {"d": path, **look})
    return pattern


def _draw_page(timeline: Timeline, *, title: str) -> str:
    timeline, title = _hold(timeline), _clean(title) or "What the pool did"
    html = Element("html", {"lang": "en"})
    head, body = SubElement(html, "head"), SubElement(html, "body")
    SubElement(head, "meta", {"charset": "utf-8"})
    policy = {"http-equiv": "Content-Security-Policy"}
    SubElement(head, "meta", {**policy, "content": "default-src 'none'; style-src 'unsafe-inline'"})
    SubElement(head, "title").text = title
    SubElement(head, "style").text = PAGE_STYLE
    body.append(_draw(timeline, title, 960))
    table = SubElement(body, "table")
    _fill_row(table, "th", ("from", "to", "device", "engine", "weights", "what", "tokens"))
    for s in timeline.spans:
        what = ", ".join(filter(None, (s.kind, s.note)))
        times = (f"{s.start:.3f}", f"{s.end:.3f}", _device(s.device), str(s.engine))
        _fill_row(table, "td", (*times, s.weights, what, f"{s.tokens:,}"))
    return "<!DOCTYPE html>\n" + tostring(html, encoding="unicode", method="html") + "\n"


def _fill_row(table: Element, tag: str, cells: Iterable[str]) -> None:
    row = SubElement(table, "tr")
    for cell in cells:
        SubElement(row, tag).text = _clean(cell)


def _paint(row: Row, looks: Mapping[str, int], seconds: float, cells: int) -> Text:
    """A row of blocks; a letter at the beginning of each says whose they are."""
    line = Text()
    for (kind, weights), group in groupby(_fill_cells(row, seconds, cells)):
        length = len(list(group))
        shade = {"failed": "red", "sleep": "dim", "": ""}.get(kind, _shade(looks.get(weights, 0)))
        if kind == "generate":
            line.append(_letter(looks[weights]), style=f"black on {shade}")
            length -= 1
        line.append(FILLS[kind] * length, style=shade)
    return line


def _fill_cells(row: Row, seconds: float, cells: int) -> Iterator[tuple[str, str]]:
    """What happened, and the weights, for most of each cell."""
    filled: list[dict[tuple[str, str], float]] = [{} for _ in range(cells)]
    for span in row.spans:
        what = ("failed" if _is_lost(span) else span.kind, span.weights)
        start, end = (time / seconds * cells for time in (span.start, span.end))
        for at in range(min(cells - 1, int(start)), min(cells, int(end) + 1)):
            part = max(0.0, min(end, at + 1) - max(start, at))
            # A load that failed at once is what somebody looks for.
            filled[at][what] = filled[at].get(what, 0.0) + part + (what[0] == "failed")
    for cell in filled:
        what = max(cell, key=cell.__getitem__, default=("", ""))
        yield what if cell.get(what, 0.0) >= 0.125 else ("", "")


def _hold(timeline: Timeline) -> Timeline:
    """As it is now: events may come in while a picture is drawn."""
    return Timeline(timeline.spans, wanted=timeline.wanted, runs=timeline.runs)


def _look_up(timeline: Timeline) -> dict[str, int]:
    """The number that every model looks by, in the order of names."""
    names = {span.weights for span in timeline.spans}
    return {name: at for at, name in enumerate(sorted(names, key=lambda n: (n.casefold(), n)))}


def _summarise(timeline: Timeline) -> str:
    spans = timeline.spans
    loads = [span for span in spans if span.kind == "load"]
    failed = sum(span.failed for span in loads)
    parts = [
        f"{_count(len(_look_up(timeline)), 'model')} on {_count(len(timeline.devices), 'device')}",
        _count(len(loads), "load") + (f" ({failed} failed)" if failed else ""),
        _count(sum(span.tokens for span in spans), "token"),
        f"{_tell(timeline.makespan)} s",
    ]
    return ", ".join(parts)


def _tell_device(timeline: Timeline, device: str) -> str:
    span = _extent(timeline)
    works, loads = timeline.busy(device) / span, timeline.loading(device) / span
    idle = timeline.idle_share(device)
    rest = "" if idle is None else f"; idle {idle:.0%} of the time in which it could have worked"
    return f"{_device(device)} generated {works:.0%} of the time, loaded {loads:.0%}{rest}."


def _tell_span(span: Span) -> str:
    did = {"load": "loaded", "generate": "generated", "sleep": "slept"}[span.kind]
    note = f" ({span.note})" if span.note else ""
    where = f"on {_device(span.device)}, engine {span.engine}"
    rate = f", {span.tokens / span.seconds:,.0f} tokens/s" if span.tokens and span.seconds else ""
    tokens = f", {_count(span.tokens, 'token')}{rate}" if span.tokens else ""
    return _clean(f"{span.weights} {did}{note} {where}: {span.start:.2f}–{span.end:.2f} s{tokens}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def _extent(timeline: Timeline) -> float:
    return max(1e-6, timeline.makespan) if timeline.makespan else 1.0


def _choose_step(frame: _Frame) -> float:
    """Seconds between two ticks: 1, 2 or 5 times a power of ten."""
    least = frame.seconds * TICK / (frame.right - frame.left)
    ten = 10.0 ** math.floor(math.log10(least))
    return next(factor * ten for factor in (1, 2, 5, 10) if factor * ten >= least)


def _tell(seconds: float, step: float | None = None) -> str:
    """Seconds with as many decimals as a step, or three digits, need."""
    if not seconds:
        return "0"
    digits = math.floor(math.log10(step)) if step else math.floor(math.log10(seconds)) - 2
    return f"{seconds:,.{max(0, -digits)}f}"


def _name(row: Row) -> str:
    return _shorten(row.name, 24)


def _device(name: str) -> str:
    return _clean(name) or "remote"


def _solid(look: int) -> str:
    textured = look % LOOKS >= len(COLOURS)
    return f"url(#em-work-{look % LOOKS})" if textured else COLOURS[look % len(COLOURS)]


def _fill(span: Span, look: int) -> str:
    if _is_lost(span):
        return "url(#em-failed)"
    return f"url(#em-load-{look % LOOKS})" if span.kind == "load" else _solid(look)


def _is_lost(span: Span) -> bool:
    return span.failed and span.kind == "load"


def _shade(look: int) -> str:
    return SHADES[look % len(SHADES)]


def _letter(look: int) -> str:
    return LETTERS[look % len(LETTERS)]


def _clean(text: str) -> str:
    return " ".join(_UNWANTED.sub("", text).split())


def _shorten(text: str, cells: int) -> str:
    """One clean line; long names lose their middle, because their end is what tells them apart."""
    text = _clean(text)
    if cell_len(text) <= cells:
        return text
    tail = cells // 3 if cells >= 24 else 0
    head = set_cell_size(text, max(0, cells - 1 - tail)).rstrip()
    return f"{head}…{set_cell_size(text[::-1], tail)[::-1].lstrip()}"


def _write(svg: Element, x: float, y: float, text: str, look: str) -> Element:
    element = SubElement(svg, "text", {"class": look, "x": _px(x), "y": _px(y)})
    element.text = text
    return element


def _line(svg: Element, x: float, top: float, bottom: float, look: str) -> None:
    # Half a pixel to the side, where a line one pixel wide is sharp.
    at = {"x1": _px(math.floor(x) + 0.5), "x2": _px(math.floor(x) + 0.5)}
    SubElement(svg, "line", {"class": look, **at, "y1": _px(top), "y2": _px(bottom)})


def _box(
    svg: Element, x: float, y: float, width: float, height: float, look: Mapping[str, str]
) -> None:
    place = {"x": _px(x), "y": _px(y), "width": _px(width), "height": _px(height), "rx": "2"}
    SubElement(svg, "rect", {**place, **look})


def _px(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
