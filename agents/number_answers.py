r"""Reading a number or an expression out of a reply, and comparing two of them.

A number is taken from the last `\boxed{…}`; else from the last line or phrase that states an answer
(`Answer: …`, `the answer is …`, `#### …`); else it is the last number of the text.

Two answers are compared exactly, as fractions, whenever both are plain numbers; only what is left
(`2\sqrt{3}`, `\{1, 2\}`) is compared as expressions.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from .expressions import EXPRESSION_CHARS, same_expression
from .statements import boxed, clause, own_part, plain, statements, tidy

__all__ = ["matches_number", "read_number", "same_number"]

DIGITS = 120  # a longer number is nobody's answer
EXPONENT = 300  # of the scientific notation that is read exactly

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"(?P<mantissa>[+-]?\s?{_DECIMAL})(?:[eE](?P<exponent>[+-]?\d{{1,4}}))?")
_POWER_OF_TEN = re.compile(
    rf"(?P<mantissa>[+-]?{_DECIMAL})\s*(?:\\times|\\cdot|×|\*|x)\s*10\s*(?:\^|\*\*)\s*"
    r"[{(]?(?P<exponent>[+-]?\d{1,4})[})]?"
)
_SPACED = re.compile(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_RATIO = re.compile(rf"(?P<top>[+-]?\s?{_DECIMAL})\s*/\s*(?P<bottom>{_DECIMAL})")
_FRAC = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<whole>\d*)\s*\\frac\s*(?:\{{\s*(?P<top>[+-]?\s?{_DECIMAL})\s*\}}|(?P<t>\d))"
    rf"\s*(?:\{{\s*(?P<bottom>{_DECIMAL})\s*\}}|(?P<b>\d))"
)
_MIXED = re.compile(r"(?P<sign>[+-]?)(?P<whole>\d+)\s+(?P<top>\d+)\s*/\s*(?P<bottom>\d+)")
_UNIT = re.compile(r"(?P<number>.*?[\d.}])\s*(?:[a-zA-Zµ°Ω][\w²³/·°.^-]*(?:\s+[a-zA-Z][\w²³/-]*)*)")
_IN_TEXT = re.compile(
    rf"(?<![\w.,])(?:(?<![)\]])[+-]\s?)?(?:[$€£¥]\s?)?{_DECIMAL}(?:[eE][+-]?\d+\b)?(?:\s?/\s?\d+)?\s?%?"
)
_FUNCTIONS = r"sqrt|frac|pi|sin|cos|tan|log|ln|exp|left|right|cdot|times|infty|cup|cap|or|and|binom"
_WORD = re.compile(rf"(?<![\\a-zA-Z])(?!(?:{_FUNCTIONS})\b)[a-zA-Z]{{2,}}")
_IS = re.compile(r"\b(?:is|are|be|equals|total\s+of|makes)\s+(?=[$€£¥+-]?\s?\.?\d)")
_SETTING = re.compile(
    r"^\W*(?:so|that)?\s*(?:in|after|for|if|at|with|by|over|during|on|from|when)\b[^,]*,\s",
    re.IGNORECASE,
)
_CLEANING = (
    (re.compile(r"\\[,;:! ]|\\?[\"”″]|~|\u202f|\u2009|\u00a0"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\left|\\right|\\displaystyle"), ""),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|°"), ""),
    (re.compile(r"\\%|％|\bper\s?cent\b|\bpercent\b"), "%"),
    (re.compile(r"\\?[$€£¥]|\b(?:USD|EUR|GBP)\b"), ""),
)
_SIGNS = str.maketrans({"−": "-", "–": "-", "—": "-", "﹣": "-", "－": "-", "⁄": "/", "∕": "/"})


@dataclass(frozen=True, slots=True)
class _Number:
    value: Fraction
    percent: bool = False
    places: int | None = None
    """Digits after the point as written; None for fractions."""


def read_number(text: str) -> str | None:
    r"""The number or expression that `text` gives as its answer, in canonical form.

    Args:
        text: A reply without its thinking.

    Returns:
        `"33"` for `033`, `"2.5"` for `$2.50`, `"1/2"` for `\frac{1}{2}`; an expression that is no
        plain number as it was written; None if there is neither.
    """
    text = tidy(text.translate(_SIGNS))
    for part in dict.fromkeys((own_part(text), text)):
        for box in reversed(boxed(part)):
            if box.text:
                return _canonical(box.text)
        for statement in reversed(statements(part)):
            found = _in_statement(statement.text, exact_only=statement.cue == "hashes")
            if found is None and statement.cue == "line":
                numbers = _numbers_in(plain(_clean(part[statement.end :])))
                found = _canonical(numbers[-1]) if numbers else None
                return found  # `Answer: cannot be known` rules out the numbers before it
            if found is not None:
                return found
    numbers = _numbers_in(plain(_clean(own_part(text))))
    return _canonical(numbers[-1]) if numbers else None


def same_number(first: str, second: str) -> bool:
    """Whether two answers mean the same number or expression.

    A per cent sign on one side only is forgiven (50% is 50 and 0.5), and a decimal with at least
    three places stands for a fraction that it rounds or cuts off (0.333 is 1/3). Nothing else is
    rounded.
    """
    a, b = _exact(first), _exact(second)
    if a is not None and b is not None:
        return _equal(a, b) or _stands_for(a, b) or _stands_for(b, a)
    left, right = _clean(first), _clean(second)
    return left.replace(" ", "") == right.replace(" ", "") or same_expression(left, right)


def matches_number(answer: str, gold: str) -> bool:
    """Whether the answer is one of the gold's alternatives (`a || b`, or `080 or 081`)."""
    alternatives = re.split(r"\s*\|\|\s*|\s+or\s+", gold.strip())
    return any(same_number(alternative, answer) for alternative in alternatives if alternative)


def _in_statement(content: str, *, exact_only: bool) -> str | None:
    content = plain(_clean(clause(content)))
    if not exact_only:
        content = content.rsplit("=", 1)[-1].strip() or content
    number = _exact(content)
    if number is not None:
        return _written(number)
    if exact_only:
        return None
    if not _WORD.search(content) and re.search(r"\d|\\[a-z]", content):
        return _canonical(content)
    return _in_sentence(re.sub(r"\([^()]*\)", " ", content)) or _in_sentence(content)


def _in_sentence(sentence: str) -> str | None:
    """The number that a sentence is about: the last that something `is`, else the first.

    On recorded GSM8K answers the first is right twice as often as the last; `In 4 weeks, …` and the
    like are passed over.
    """
    verbs = list(_IS.finditer(sentence))
    found = _numbers_in(sentence[verbs[-1].end() :]) if verbs else []
    if not found:
        found = _numbers_in(_SETTING.sub("", sentence)) or _numbers_in(sentence)
    return _canonical(found[0]) if found else None


def _numbers_in(text: str) -> list[str]:
    return [match.group().strip() for match in _IN_TEXT.finditer(text)]


def _canonical(text: str) -> str | None:
    number = _exact(text)
    if number is None and "=" in text:
        number = _exact(text.rsplit("=", 1)[-1])
    if number is not None:
        return _written(number)
    expression = _clean(text)
    return expression if 0 < len(expression) <= EXPRESSION_CHARS else None


def _written(number: _Number) -> str:
    value, sign = number.value, "%" if number.percent else ""
    if number.places is None and value.denominator != 1:
        return f"{value.numerator}/{value.denominator}{sign}"
    if value.denominator == 1:
        return f"{value.numerator}{sign}"
    digits = format(Decimal(value.numerator) / Decimal(value.denominator), "f")
    exact = Fraction(digits) == value
    return f"{digits if exact else f'{value.numerator}/{value.denominator}'}{sign}"


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)
    text = tidy(text)
    for pattern, replacement in _CLEANING:
        text = pattern.sub(replacement, text)
    return plain(text).strip().rstrip(".,;:").strip()


def _exact(text: str) -> _Number | None:
    """The text as an exact number, with any unit behind it dropped; None if it is not one."""
    text = _clean(text)
    if len(text) > DIGITS:
        return None
    while text.startswith(("{", "(")) and text.endswith(("}", ")")):
        text = text[1:-1].strip()
    percent = text.endswith("%")
    text = text.removesuffix("%").strip()
    if _SPACED.fullmatch(text):
        text = text.replace(" ", "")
    number = _exact_plain(text)
    if number is None and (match := _UNIT.fullmatch(text)) and not _is_product(text):
        number = _exact_plain(match.group("number").strip())
    if number is None:
        return None
    return _Number(number.value, percent, number.places)


def _is_product(text: str) -> bool:
    """Whether letters right behind the number are a symbol (`5x`, `2i`) rather than a unit."""
    return bool(re.search(r"\d[a-zA-Z](?![a-zA-Z])|\d\s+[a-zA-Z]\^|\d(?:pi|sqrt)", text))


def _exact_plain(text: str) -> _Number | None:
    if match := _PLAIN.fullmatch(text) or _POWER_OF_TEN.fullmatch(text):
        exponent = int(match.group("exponent") or 0)
        if abs(exponent) > EXPONENT:
            return None
        mantissa = _fraction(match.group("mantissa"))
        _, point, places = match.group("mantissa").partition(".")
        return _Number(mantissa * Fraction(10) ** exponent, places=len(places) if point else 0)
    for pattern in (_RATIO, _MIXED, _FRAC):
        if match := pattern.fullmatch(text):
            return _ratio(match.groupdict())
    return None


def _ratio(groups: dict[str, str | None]) -> _Number | None:
    top = _fraction(groups["top"] or groups.get("t") or "0")
    bottom = _fraction(groups["bottom"] or groups.get("b") or "0")
    if bottom == 0:
        return None
    value = Fraction(int(groups.get("whole") or 0)) + top / bottom
    return _Number(-value if groups.get("sign") == "-" else value)


def _fraction(text: str) -> Fraction:
    return Fraction(Decimal(text.replace(",", "").replace(" ", "")))


def _equal(a: _Number, b: _Number) -> bool:
    if a.percent == b.percent:
        return a.value == b.value
    return a.value == b.value or (a.value / 100 if a.percent else a.value) == (
        b.value / 100 if b.percent else b.value
    )


def _stands_for(decimal: _Number, ratio: _Number) -> bool:
    if ratio.places is not None or (decimal.places or 0) < 3 or decimal.percent != ratio.percent:
        return False
    unit = Fraction(1, 10 ** (decimal.places or 0))
    is_cut = abs(decimal.value) <= abs(ratio.value) < abs(decimal.value) + unit
    is_rounded = abs(decimal.value - ratio.value) * 2 <= unit
    return is_rounded or (is_cut and decimal.value * ratio.value >= 0)
