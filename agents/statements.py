r"""Where a reply states its answer: boxes, tags, and lines that say so.

Every kind of answer is looked for in the same places: `\boxed{…}`, `<answer>…</answer>`,
`Answer: …`, `the answer is …`, `"answer": "…"`, `#### …`. What is found there is read by the module
of the kind (letters, numbers, text).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "Statement",
    "boxed",
    "clause",
    "own_part",
    "plain",
    "statements",
    "strip_thinking",
    "tidy",
]

READ_CHARS = 20_000  # a reply is read from its end; nobody states an answer further from it
LAST = 50  # how many of the last boxes and statements are read; a reply has one or two
STATEMENT_CHARS = 400

_CUE = re.compile(
    r"""(?<![\w'’])(?P<noun>answers?|options?|choices?)\b["']?
        (?:\s+(?:choice|option|letter|key))?
        (?:\s+(?:to|for|of)\s[^.:?!\n]{1,80}?)?
        \s*(?P<link>\bis\b|\bwould\s+be\b|\bshould\s+be\b|\bmust\s+be\b|\bwas\b|:|=|->|→|⇒|[-–—](?=\s))
        \s*:?\s*""",
    re.IGNORECASE | re.VERBOSE,
)
_LINE_OPENING = re.compile(
    r"(?:[#>\-\s{\"']|\b(?:so|thus|hence|therefore|the|my|our|final|correct|best|right)\b,?)*",
    re.IGNORECASE,
)
_TAG = re.compile(r"<answer>\s*(.{1,400}?)\s*</answer>", re.IGNORECASE | re.DOTALL)
_HEADING = re.compile(
    r"^#{1,6}[ \t]*(?:final[ \t]+)?answer[ \t]*$\s*", re.IGNORECASE | re.MULTILINE
)
_HASHES = re.compile(r"^####[ \t]*(?=\S)", re.MULTILINE)
_NEXT_TURN = re.compile(
    r"\n\s*(?:#+\s*)?(?:question|problem|user|human|q)\s*\d*\s*[:.]", re.IGNORECASE
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_EMPHASIS = re.compile(  # but never the sign of a product (`2 * 3`) or a power (`2**3`)
    r"(?<![\w*])(?<![\d)]\s)\*{1,3}+(?=\S)|(?<![\s*])\*{1,3}+(?!\w)|^[ \t]*[*•][ \t]+|`+"
    r"|(?<!\w)__(?=\S)|(?<=\S)__(?!\w)",
    re.MULTILINE,
)
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|tt)?|math(?:rm|bf|it|sf|tt)|mbox|operatorname)\s*\{([^{}]*)\}"
)
_CONTROL = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:eos|bos|pad|EOS_TOKEN|end_of_turn)>")
_MATHS_MARKS = re.compile(r"\\[()\[\]]|\$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A place where the reply says what its answer is."""

    start: int
    """Where the statement's content begins, in characters."""
    end: int
    text: str
    """The content: what the box or tag holds, or the rest of the line."""
    cue: str
    """What made it one: `box`, `tag`, `line` (a line `Answer: …`), `phrase`, or `hashes`."""


def strip_thinking(text: str) -> str:
    """The text after the last `</think>`; empty if a `<think>` was never closed.

    A chain of thought that was cut off is not an answer, so nothing of it is returned. A model whose
    template opens the thought itself, and that is cut before `</think>`, cannot be told from one
    that answers directly: look at the reply's `finish` for that.
    """
    opened, closed = text.rfind("<think>"), text.rfind("</think>")
    if opened > closed:
        return ""
    return text[closed + len("</think>") :].strip() if closed >= 0 else text.strip()


def tidy(text: str) -> str:
    """The text without emphasis marks and control tokens, and with LaTeX's text wrappers opened."""
    text = _EMPHASIS.sub("", _CONTROL.sub(" ", text[-READ_CHARS:]))
    return _WRAPPER.sub(r"\1", text)


def plain(text: str) -> str:
    r"""The text without maths delimiters (`$`, `\(`, `\)`, `\[`, `\]`)."""
    return _MATHS_MARKS.sub(" ", text)


def boxed(text: str) -> list[Statement]:
    r"""Everything in `\boxed{…}` or `\fbox{…}`, by counting braces; boxes never closed are left out."""
    found: list[Statement] = []
    for match in list(_BOX.finditer(text))[-LAST:]:
        end = _closing_brace(text, match.end())
        if end is not None:
            content = text[match.end() : end].strip()
            found.append(Statement(start=match.end(), end=end, text=content, cue="box"))
    return found


def statements(text: str) -> list[Statement]:
    """The last statements of an answer in `text`, in the order in which they stand."""
    found = boxed(text)
    found += [
        Statement(start=m.start(1), end=m.end(1), text=m.group(1), cue="tag")
        for m in _TAG.finditer(text)
    ]
    found += [_line_after(text, m.end(), "line") for m in _HEADING.finditer(text)]
    found += [_line_after(text, m.end(), "hashes") for m in _HASHES.finditer(text)]
    for match in list(_CUE.finditer(text))[-LAST:]:
        found.append(_line_after(text, match.end(), _cue_kind(text, match)))
    return sorted((s for s in found if s.text), key=lambda s: s.start)[-LAST:]


def own_part(text: str) -> str:
    """The text up to where the model goes on to ask itself the next question, as base models do."""
    stripped = text.lstrip()
    match = _NEXT_TURN.search(stripped)
    return stripped[: match.start()] if match else text


def clause(content: str) -> str:
    """The first sentence of a statement's content, or the string in quotes that it begins with."""
    content = content.strip()
    if content[:1] in ('"', "'"):
        closing = re.search(rf"(?<!\\){content[0]}", content[1:])
        if closing:
            return content[1 : closing.start() + 1].strip()
    content = re.split(r"(?<=[\w)\]}$%!°])[.;!?](?:\s|$)", content, maxsplit=1)[0]
    return content.strip(" \t\"'“”‘’,")


def _cue_kind(text: str, match: re.Match[str]) -> str:
    line_start = text.rfind("\n", 0, match.start()) + 1
    opening = text[line_start : match.start()]
    is_label = match.group("link") == ":" and match.group("noun").lower() == "answer"
    return "line" if is_label and _LINE_OPENING.fullmatch(opening[-80:]) else "phrase"


def _line_after(text: str, start: int, cue: str) -> Statement:
    end = text.find("\n", start)
    end = min(len(text) if end < 0 else end, start + STATEMENT_CHARS)
    return Statement(start=start, end=end, text=text[start:end].strip(), cue=cue)


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for place in range(start, min(len(text), start + 10 * STATEMENT_CHARS)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return None
