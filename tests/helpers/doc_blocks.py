"""The fenced blocks of a Markdown page, and what may stand behind a fence's language.

pymdownx.superfences renders all of it:

| fence | then |
|---|---|
| `python` | runs. The blocks of a page share a process and its names; `await` is allowed, as in a notebook |
| `bash`, `sh` | runs with `bash -euo pipefail` in the page's folder, which holds copies of what the page names |
| `bash {.server}` | is started, and waited for until `/health` answers; stopped at the end of the page |
| any, with `title="NAME.EXT"` | is written to that file of the page's folder, and only that |
| `text title="Output"` | is what the block before it prints; a line `…` stands for any lines |
| `text title="Output, figures vary"` | the same but for numbers and the widths of columns |
| any, with `{.no-run data-reason="WHY"}` | is only checked: syntax, names of ours, options of our commands |
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "read_blocks", "read_page"]

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?P<indent>[> \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+-]*)[ \t]*(?P<rest>.*?)[ \t]*"
)
WORD = re.compile(r'\.(?P<name>[\w-]+)|(?P<key>[\w-]+)="(?P<value>[^"]*)"')


@dataclass(frozen=True)
class Block:
    """A fenced block.

    `names` are the words after a dot, `values` those with a value.
    """

    page: str
    line: int
    language: str
    names: tuple[str, ...]
    values: dict[str, str] = field(hash=False)
    source: str
    junk: str = ""

    @property
    def reason(self) -> str | None:
        """Why it is not run; empty where nobody says."""
        if "no-run" not in self.names:
            return None
        return self.values.get("data-reason", self.values.get("reason", ""))

    @property
    def title(self) -> str:
        return self.values.get("title", "")

    @property
    def file(self) -> str | None:
        """The file of the page's folder that it is."""
        return self.title if re.fullmatch(r"[\w./-]+\.\w+", self.title) else None

    @property
    def runs(self) -> bool:
        return (
            self.language in ("bash", "sh", "python") and self.reason is None and self.file is None
        )

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page in their order."""
    blocks: list[Block] = []
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        opened = FENCE.fullmatch(line)
        if opened is None:
            continue
        inside: list[str] = []
        for _, following in lines:
            if following.strip(" \t>") == opened["fence"]:
                break
            inside.append(following.removeprefix(opened["indent"]))
        else:
            raise AssertionError(f"{page}:{number}: a fence that nobody closes")
        words = list(WORD.finditer(opened["rest"]))
        blocks.append(
            Block(
                page=page,
                line=number,
                language=opened["language"],
                names=tuple(word["name"] for word in words if word["name"]),
                values={word["key"]: word["value"] for word in words if word["key"]},
                source=textwrap.dedent("\n".join(inside)) + "\n",
                junk=WORD.sub("", opened["rest"]).strip("{} \t"),
            )
        )
    return blocks


def read_page(page: str) -> list[Block]:
    return read_blocks(page, (ROOT / page).read_text(encoding="utf-8"))
