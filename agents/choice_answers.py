r"""Reading the letter of an option out of a reply.

Evidence is taken in this order, and within one kind the last counts:

1. a readable statement (`\boxed{C}`, `Answer: (C)`, `the answer is c`, an option's exact text);
2. `C is correct`, `I choose C`;
3. the last or the first line, if it opens with a letter (`C) Paris`) or is an option's text;
4. a marked letter in running text: `(C)`, `option C`, `C)`;
5. a lone capital that ends the last line (`I think it is H`).

A label `Answer: …` that cannot be read (`Answer: none`) rules out everything before it. Letters that
the question does not have, articles (`A`), pronouns (`I`), letters inside words, rejected options
(`(A) is wrong`) and repeated lists of the options are never evidence.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property

from .statements import Statement, clause, own_part, plain, statements, tidy

__all__ = ["read_choice"]

TORN = "?"  # a statement that names several options: the reply has not settled
SPELT_OUT_CHARS = 400

_NEXT = (
    "and|as|at|based|because|but|by|due|for|from|given|if|in|instead|is|it|not|on|or|rather|since|so"
    "|this|to|when|where|whereas|which|while|with"
)
_HEDGES = re.compile(
    r"(?:(?:most\s+likely|likely|probably|definitely|clearly|therefore|thus|indeed|actually|simply"
    r"|then|the(?=\s+(?:option|choice|letter)))\b[\s,:]*|[:=,…]\s*|\.{2,}\s*)+",
    re.IGNORECASE,
)
_NOUN = r"(?:(?:option|choice|answer|letter)\s*:?\s*)?"
_BRACKETED = re.compile(rf"{_NOUN}[(\[{{<]\s*([A-Z])\s*[)\]}}>]", re.IGNORECASE)
_ALONE = re.compile(rf"{_NOUN}([A-Z])\W*$", re.IGNORECASE)
_SUFFIXED = re.compile(rf"{_NOUN}([A-Z])(?:\s?\)|[\].:](?=\s|$))", re.IGNORECASE)
_NAMED = re.compile(r"(?:option|choice|letter)\s+([A-Z])\b(?!['’])", re.IGNORECASE)
_CAPITAL = re.compile(rf"([A-Z])(?:\s*[,;!?)—–]|\s+-|\s*$|\s+\(|\s+(?:{_NEXT})\b)")
_OR_ANOTHER = re.compile(
    r"[\s).\]}]*(?:(?:\bor\b|\band\b|/|&)\s*(?:option\s+)?[(\[]?|,\s?[(\[])([A-Z])(?:[)\].]|\b(?!['’]))"
)
_VERDICT = re.compile(
    r"(?:(?<![\w(\[])|[(\[])([A-Z])[)\]]?\s+(?:is|must\s+be|would\s+be|seems)\s+"
    r"(?:(?:therefore|thus|clearly|indeed|most\s+likely|probably)\s+)?(?:the\s+)?(?:only\s+)?"
    r"(?:correct|right|best|true|most\s+(?:appropriate|likely|accurate))\b(?![^.!\n]{0,80}\?)"
)
_PICK = re.compile(
    r"\b(?:choose|chose|pick|select|go(?:ing)?\s+with|opt\s+for)\s+(?:option\s+|choice\s+)?"
    r"[(\[]?([A-Z])(?:[)\]]|(?=\W*(?:$|\n)|[.,;]|\s+(?:because|since|as)\b))"
)
_MARKED = re.compile(
    r"(?<![\w\\])[(\[]\s?([A-Z])\s?[)\]](?!\w)"
    r"|\b(?:[Oo]ption|OPTION|[Cc]hoice)\s+([A-Z])\b(?!['’])"
    r"|(?<![\w(\[|/+\-])([A-Z])\)"
)
_REJECTED_AFTER = re.compile(
    r"[\s).\]]*(?:(?:is|are|was|can|could|does|would)\s*(?:n['’]t|not|never)\b|cannot\b"
    r"|(?:is|are|seems|looks)\s+(?:\w+\s+)?(?:wrong|incorrect|false|invalid|out)\b)",
    re.IGNORECASE,
)
_REJECTED_BEFORE = re.compile(
    r"(?:\bnot|n['’]t|\bneither|\bnor|\brule\s+out|\beliminate|\bthan)\s+(?:be\s+)?(?:option\s+)?$",
    re.IGNORECASE,
)
_LINE_MARK = re.compile(
    r"^[ \t>\-]*[(\[]?([A-Z])(?:[)\]]|[.:](?=\s))[ \t]*(.*)$", re.MULTILINE | re.IGNORECASE
)
_SPELT_OUT = re.compile(r"(?<![\w(])([A-Z])[.:)]\s+(?=\S)")
_BARE_STATEMENT = re.compile(
    r"^\W*(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*:?\s*[(\[]?([A-Z])[)\]]?[ \t.]*$",
    re.IGNORECASE | re.MULTILINE,
)
_LONE_END = re.compile(
    r"(?:\b(?:is|be|say|guess|think|with|choose)\b|[=→:>])\s+([A-Z])\W*$", re.IGNORECASE
)


def read_choice(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that `text` settles on, or None if it settles on none.

    Args:
        text: A reply without its thinking.
        options: The choices, without their letters; at most 26.
    """
    return _read(plain(tidy(text)), _Options(tuple(options)))


class _Options:
    """The options of a question with the forms in which they are compared, made when first needed.

    Most replies name a letter, and a panel reads each question's options several times.
    """

    def __init__(self, options: tuple[str, ...]) -> None:
        self.letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
        self._options = options

    @cached_property
    def stripped(self) -> tuple[str, ...]:
        return tuple(option.strip() for option in self._options)

    @cached_property
    def bare(self) -> tuple[str, ...]:
        return tuple(_bare(option) for option in self._options)

    def named(self, text: str) -> str | None:
        """The letter of the option whose text this is, if there is exactly one."""
        wanted = text.strip()
        if wanted and self.stripped.count(wanted) == 1:
            return self.letters[self.stripped.index(wanted)]
        wanted = _bare(text)
        if wanted and self.bare.count(wanted) == 1:
            return self.letters[self.bare.index(wanted)]
        return None

    def opening(self, text: str) -> str | None:
        """The letter of the longest option in words that opens the text (`Paris, the capital`)."""
        words = _bare(text)
        openings = [
            (len(option), self.letters[place])
            for place, option in enumerate(self.bare)
            if re.search(r"[a-z]{3}", option) and words.startswith(f"{option} ")
        ]
        return max(openings)[1] if openings else None


def _read(text: str, options: _Options) -> str | None:
    for part in dict.fromkeys((_before_drift(own_part(text)), text)):
        stated = _stated(part, options)
        if stated:
            return stated if stated != TORN else None
    text = own_part(text)
    labels = [s for s in statements(text) if s.cue == "line"]
    rest = _without_listing(text[labels[-1].end :] if labels else text, options)
    for read in (_line, _quoted, _marked, _lone):
        letter = read(rest, options)
        if letter and letter != TORN:
            return letter
    return None


def _stated(text: str, options: _Options) -> str | None:
    for statement in reversed(statements(text)):
        letter = _read_statement(statement, options)
        if letter:
            return letter
        if statement.cue == "line":
            return None
    return _last_sound(_VERDICT, text, options) or _last_sound(_PICK, text, options)


def _read_statement(statement: Statement, options: _Options) -> str | None:
    content = statement.text
    hedges = _HEDGES.match(content)
    for piece in (content[hedges.end() :] if hedges else content, content):
        letter = _read_clause(piece, options) or _read_clause(clause(piece), options)
        if letter:
            return letter
    return options.opening(clause(content)) or _only_marked(content, options)


def _read_clause(text: str, options: _Options) -> str | None:
    """The letter or option that a clause is, or begins with."""
    text = text.strip().strip("\"'“”‘’").strip()
    for pattern in (_BRACKETED, _ALONE):
        if match := pattern.match(text):
            return _sound(match, text, options)
    named = options.named(text)
    if named:
        return named
    for pattern in (_SUFFIXED, _NAMED, _CAPITAL):
        if match := pattern.match(text):
            return _sound(match, text, options)
    head, _, tail = text.partition(" ")
    if len(head) == 1 and head.isupper() and options.named(tail) == head:
        return head
    return None


def _line(text: str, options: _Options) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marks = {m.group(1).upper() for m in _LINE_MARK.finditer(text)}
    for line in dict.fromkeys((*lines[-1:], *lines[:1])):
        if len(marks) > 1 and _LINE_MARK.match(line):
            continue  # a discussion of one option after the other, not a decision
        letter = _read_clause(line, options)
        if letter:
            return letter
    return None


def _quoted(text: str, options: _Options) -> str | None:
    """The only letter that is followed by the text of its own option (`so C. Rome fits`)."""
    found: set[str] = set()
    for match in _SPELT_OUT.finditer(text):
        place = options.letters.find(match.group(1))
        following = _bare(text[match.end() : match.end() + SPELT_OUT_CHARS])
        if place >= 0 and options.bare[place] and following.startswith(options.bare[place]):
            found.add(match.group(1))
    return found.pop() if len(found) == 1 else None


def _before_drift(text: str) -> str:
    """The text up to where a model that cannot stop answers questions that nobody asked.

    Three or more lines in a row that only state an answer, and not the same: the first is meant.
    """
    run: list[re.Match[str]] = []
    for match in _BARE_STATEMENT.finditer(text):
        if run and text[run[-1].end() : match.start()].strip():
            run = []
        run.append(match)
        if len(run) >= 3 and len({m.group(1) for m in run}) > 1:
            return text[: run[0].end()]
    return text


def _marked(text: str, options: _Options) -> str | None:
    return _last_sound(_MARKED, text, options)


def _only_marked(text: str, options: _Options) -> str | None:
    letters = {_group(m) for m in _MARKED.finditer(text) if not _rejected(text, m.start(), m.end())}
    letter = letters.pop() if len(letters) == 1 else ""
    return letter if letter in options.letters and letter else None


def _lone(text: str, options: _Options) -> str | None:
    lines = text.rstrip().splitlines()
    match = _LONE_END.search(lines[-1][-200:]) if lines else None
    letter = match.group(1) if match else ""
    return letter if letter.isupper() and letter in options.letters else None


def _last_sound(pattern: re.Pattern[str], text: str, options: _Options) -> str | None:
    found: str | None = None
    for match in pattern.finditer(text):
        letter = _group(match)
        if letter in options.letters and not _rejected(text, match.start(), match.end()):
            found = letter
    return found


def _sound(match: re.Match[str], text: str, options: _Options) -> str | None:
    """The matched letter, unless the question lacks it, another is offered, or it is rejected."""
    letter = _group(match).upper()
    another = _OR_ANOTHER.match(text, match.end(1))
    if (
        another
        and another.group(1) != letter
        and another.group(1) in options.letters
        and not _rejected(text, another.start(), another.end())
    ):
        return TORN
    if letter not in options.letters or _rejected(text, match.start(), match.end()):
        return None
    return letter


def _rejected(text: str, start: int, end: int) -> bool:
    before = text[max(0, start - 30) : start]
    return bool(_REJECTED_AFTER.match(text, end) or _REJECTED_BEFORE.search(before))


def _without_listing(text: str, options: _Options) -> str:
    """The text without the lines in which a model repeats the options it was given."""
    echoes = [
        m for m in _LINE_MARK.finditer(text) if options.named(m.group(2)) == m.group(1).upper()
    ]
    if len({m.group(1).upper() for m in echoes}) < 2:
        return text
    for match in reversed(echoes):
        text = text[: match.start()] + text[match.end() :]
    return text


def _group(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group)


def _bare(text: str) -> str:
    """Lower case, without markup, quotes, final stops and extra spaces; operators stay."""
    text = unicodedata.normalize("NFKC", plain(tidy(text))).casefold()
    text = re.sub(r"[\"'`“”‘’()\[\]{}?!;:]|[.,](?!\d)", " ", text)
    return " ".join(text.split())
