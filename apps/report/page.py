"""The page itself: one HTML file that needs nothing else, and that no text of a model can change."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from ...retrieval import InputError
from ..timeline_picture import draw_timeline
from .charts import draw_chart
from .content import ReportContent
from .costs import tabulate_ledger, tabulate_loads, tabulate_outlooks
from .curtain import Curtain
from .heat import shade_profile, shade_recruits
from .pathways import sum_up_pathways
from .questions import LAST, Embedded, embed_questions
from .summary import tell_headlines
from .tables import tabulate_methods, tabulate_pairs
from .wording import clean

__all__ = ["build_report", "write_report"]

SCRIPTS = ("script.js", "question.js", "questions.js")
TIMELINE_WIDTH = 1072


def build_report(content: ReportContent) -> str:
    """The report as HTML: it opens from disk, loads nothing, and escapes every text it shows.

    Styles and scripts are named by their hashes in the page's security policy, so that nothing else runs.
    """
    curtain = Curtain.of(content)
    questions = embed_questions(content, curtain)
    style, script = _read("style.css"), "".join(map(_read, SCRIPTS))
    parts = _collect(content, curtain, questions)
    return _open_environment().get_template("page.html").render(
        parts,
        policy=_write_policy(style, script),
        style=Markup(style),
        script=Markup(script),
    )  # fmt: skip


def write_report(content: ReportContent, path: str | os.PathLike[str]) -> Path:
    """Write the report in one step; an older one is replaced.

    Returns:
        Where it is.

    Raises:
        InputError: it cannot be written there.
    """
    path = Path(path)
    text = build_report(content)
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"the report cannot be written to {path}: {error.strerror}") from None
    return path


def _collect(
    content: ReportContent, curtain: Curtain, questions: Embedded | None
) -> dict[str, Any]:
    """What the template fills in; sections without data are empty here and absent there."""
    charts = (
        draw_chart(content.rows, "calls_mean", title="Right answers against calls", unit="calls per question, mean"),
        draw_chart(content.rows, "tokens_mean", title="Right answers against generated tokens", unit="generated tokens per question, mean"),
    )  # fmt: skip
    ledger = content.ledger if content.ledger.get("experts") else {}
    return {
        "title": clean(content.title),
        "main": clean(content.main),
        "findings": [clean(finding) for finding in content.findings],
        "facts": _clean_pairs(content.facts),
        "headlines": tell_headlines(content, questions.marks if questions else ""),
        "methods": tabulate_methods(content.rows) if content.rows else None,
        "skipped": _clean_pairs(content.skipped),
        "charts": [chart for chart in charts if chart is not None],
        "pairs": tabulate_pairs(content.matched) if content.matched else None,
        "recruits": shade_recruits(content.solutions, curtain),
        "profile": shade_profile(content.profile) if content.profile else None,
        "timeline": _embed_timeline(content),
        "ledger": tabulate_ledger(ledger) if ledger else None,
        "loads": tabulate_loads(ledger) if ledger.get("loaded") else None,
        "outlooks": tabulate_outlooks(ledger) if ledger.get("forecast") else None,
        "pathways": sum_up_pathways(content.solutions, curtain),
        "questions": questions,
        "last": LAST,
    }


def _embed_timeline(content: ReportContent) -> Markup:
    """The picture without its own styles: the page's follow the reader's choice of light or dark."""
    if content.timeline is None or not content.timeline.spans:
        return Markup("")
    picture = draw_timeline(content.timeline, width=TIMELINE_WIDTH)
    # Names are escaped, so the only `<style>` is the picture's.
    return Markup(re.sub(r"<style>.*?</style>", "", picture, count=1, flags=re.DOTALL))


def _clean_pairs(pairs: Mapping[str, str]) -> Sequence[tuple[str, str]]:
    return [(clean(name), clean(value)) for name, value in pairs.items()]


def _write_policy(style: str, script: str) -> str:
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",  # whatever would parse a text as HTML fails
            "trusted-types 'none'",
        )
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _open_environment() -> Environment:
    loader = DictLoader({"page.html": _read("page.html")})
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _read(name: str) -> str:
    source = resources.files(__package__ or "expertmix.apps.report") / name
    return source.read_text(encoding="utf-8")
