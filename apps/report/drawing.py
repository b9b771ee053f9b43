"""Small drawings as SVG whose colours are the page's: by class, so that dark works; never by attribute."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

from .wording import clean

__all__ = ["add", "draw_difference", "draw_share", "finish", "px", "start", "write"]

BAR_WIDTH, BAR_HEIGHT = 132.0, 14.0


def start(width: float, height: float, look: str, *, label: str = "") -> Element:
    """An empty drawing; without a label it is an ornament that readers of the page's text skip."""
    told = {"role": "img", "aria-label": clean(label)} if label else {"aria-hidden": "true"}
    box = f"0 0 {px(width)} {px(height)}"
    size = {"width": px(width), "height": px(height), "viewBox": box}
    return Element("svg", {"class": look, **size, **told})


def add(parent: Element, tag: str, look: str, **places: float | str) -> Element:
    """Add a shape of a class; `x1=2.5` are its attributes."""
    told = {name: v if isinstance(v, str) else px(v) for name, v in places.items()}
    return SubElement(parent, tag, {"class": look, **told})


def write(parent: Element, x: float, y: float, text: str, look: str) -> Element:
    """Add a text; it is cleaned here, and escaped by `finish`."""
    element = add(parent, "text", look, x=x, y=y)
    element.text = clean(text)
    return element


def finish(svg: Element) -> Markup:
    """The drawing as HTML takes it."""
    return Markup(tostring(svg, encoding="unicode"))


def px(value: float) -> str:
    """A length with as many decimals as anybody sees."""
    return f"{value:.1f}".removesuffix(".0")


def draw_share(share: float, low: float | None, high: float | None) -> Markup:
    """A bar from 0 to a share of 1, with its interval."""
    svg = start(BAR_WIDTH, BAR_HEIGHT, "bar")
    room, middle = BAR_WIDTH - 2, BAR_HEIGHT / 2
    add(svg, "rect", "bar-track", x=1, y=3, width=room, height=8, rx=2)
    add(svg, "rect", "bar-fill", x=1, y=3, width=room * _within(share), height=8, rx=2)
    if low is not None and high is not None:
        left, right = 1 + room * _within(low), 1 + room * _within(high)
        _draw_whisker(svg, left, right, middle)
    return finish(svg)


def draw_difference(mean: float, low: float | None, high: float | None, reach: float) -> Markup:
    """A dot with its interval beside a line at 0; `reach` is the difference at either end."""
    width, middle = 1.3 * BAR_WIDTH, BAR_HEIGHT / 2
    svg = start(width, BAR_HEIGHT, "bar")
    scale = (width / 2 - 6) / max(reach, 1e-9)
    at = [width / 2 + scale * max(-reach, min(reach, v)) for v in (mean, low or 0.0, high or 0.0)]
    add(svg, "line", "bar-zero", x1=width / 2, x2=width / 2, y1=0, y2=BAR_HEIGHT)
    if low is not None and high is not None:
        _draw_whisker(svg, at[1], at[2], middle)
    add(svg, "circle", "bar-dot", cx=at[0], cy=middle, r=3.5)
    return finish(svg)


def _draw_whisker(svg: Element, left: float, right: float, y: float) -> None:
    add(svg, "line", "bar-whisker", x1=left, x2=right, y1=y, y2=y)
    for x in (left, right):
        add(svg, "line", "bar-whisker", x1=x, x2=x, y1=y - 3, y2=y + 3)


def _within(share: float) -> float:
    return max(0.0, min(1.0, share))
