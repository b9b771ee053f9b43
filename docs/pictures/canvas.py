"""Small SVG pictures that bring their own background, so that they can be read on light and on dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

__all__ = ["IMAGES", "Canvas"]

IMAGES = Path(__file__).resolve().parents[1] / "images"
STYLE = """
svg { font-family: system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif; font-size: 14px }
.card { fill: #fbfbfe; stroke: #d9dbe8 } .ink { fill: #20222e } .soft { fill: #5a5e70 }
.a { fill: #3f51b5 } .b { fill: #00796b } .c { fill: #b4501e } .pale { fill: #e6e8f5 } .mid { fill: #c2c8e6 }
.line { stroke: #5a5e70; stroke-width: 1.4; fill: none } .head { fill: #5a5e70 }
.box { fill: #eef0fa; stroke: #8b93c9 } .hot { fill: #ffe9dc; stroke: #b4501e } .cool { fill: #dcf1ee; stroke: #00796b }
.grid { stroke: #e3e5ef } .dash { stroke-dasharray: 5 4 } .strong { font-weight: 600 } .small { font-size: 12.5px }
@media (prefers-color-scheme: dark) {
.card { fill: #1c1f2b; stroke: #3a3f55 } .ink { fill: #e9eaf2 } .soft { fill: #a9aec4 }
.a { fill: #8c9eff } .b { fill: #4db6ac } .c { fill: #ff9e6d } .pale { fill: #2b3045 } .mid { fill: #454d75 }
.line { stroke: #a9aec4 } .head { fill: #a9aec4 }
.box { fill: #272c40; stroke: #7f8bd6 } .hot { fill: #40291d; stroke: #ff9e6d } .cool { fill: #17332f; stroke: #4db6ac }
.grid { stroke: #30354a } }
"""


class Canvas:
    """A picture of so many pixels. Classes are those of the style, `ink` for instance."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self._size = width, height
        self._words = title, description
        self._parts: list[str] = []
        self.box(0.5, 0.5, width - 1, height - 1, "card", radius=10)

    def box(
        self, x: float, y: float, width: float, height: float, kind: str, *, radius: float = 6
    ) -> None:
        """A rectangle by its upper left corner."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" class="{kind}"/>'
        )

    def dot(self, x: float, y: float, radius: float, kind: str) -> None:
        """A disc."""
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" class="{kind}"/>')

    def text(
        self, x: float, y: float, words: str, kind: str = "ink", anchor: str = "start"
    ) -> None:
        """One line of text by its baseline; `anchor` is start, middle or end."""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def node(
        self, x: float, y: float, width: float, words: Sequence[str], kind: str = "box"
    ) -> None:
        """A box with centred lines; the first is the strong one."""
        height = 20 * len(words) + 14
        self.box(x, y - height / 2, width, height, kind)
        for at, line in enumerate(words):
            style = "ink strong" if at == 0 else "soft small"
            self.text(x + width / 2, y - height / 2 + 22 + 20 * at, line, style, "middle")

    def line(self, *points: tuple[float, float], kind: str = "line") -> None:
        """Straight from point to point."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(f'<polyline points="{path}" class="{kind}" fill="none"/>')

    def arrow(self, path: str, tip: tuple[float, float], towards: str, kind: str = "line") -> None:
        """An SVG path with a head at its end that points right, left, up or down."""
        self._parts.append(f'<path d="{path}" class="{kind}"/>')
        x, y = tip
        dx, dy = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}[towards]
        back = (x - 9 * dx, y - 9 * dy)
        corners = [
            (x, y),
            (back[0] - 4.5 * dy, back[1] - 4.5 * dx),
            (back[0] + 4.5 * dy, back[1] + 4.5 * dx),
        ]
        path = " ".join(f"{a:g},{b:g}" for a, b in corners)
        self._parts.append(f'<polygon points="{path}" class="head"/>')

    def save(self, path: Path) -> None:
        """Write it."""
        (width, height), (title, description) = self._size, self._words
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img"><title>{escape(title)}</title><desc>{escape(description)}</desc>'
            f"<style>{STYLE}</style>"
        )
        path.write_text("\n".join((head, *self._parts, "</svg>\n")), encoding="utf-8")
