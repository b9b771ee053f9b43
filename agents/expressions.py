r"""Whether two mathematical expressions are equal, by math-verify, on text that nobody vouches for.

math-verify gets LaTeX alone: its reader for plain expressions evaluates Python and is never given a
model's text. Its time limits rest on signals and fail outside the main thread (there `verify` finds
33 unequal to 33), so they are off, and input that could keep it busy is refused here instead.
"""

from __future__ import annotations

import re

__all__ = ["EXPRESSION_CHARS", "same_expression"]

EXPRESSION_CHARS = 120
"""Longer expressions are compared as text only."""
POWER_PRODUCT = 10_000
"""Bound on the product of all whole numbers after the first power sign."""
TOWER_PRODUCT = 10
"""The same where a power stands in an exponent."""
UNKNOWN_PRODUCT = 24
"""The same where an unknown (`x`) occurs: expanding `(x + y + z)^{99}` takes a minute."""

_UNKNOWN = re.compile(r"(?<![\\a-zA-Z])[a-df-zA-Z](?![a-zA-Z])")
_RELATION = re.compile(r"[=<>≤≥]|\\(?:[lg]eq?|[lg]t|neq?|in)\b")
_HARD_TO_SOLVE = re.compile(
    r"[|√]|\\(?!(?:d?frac|cdot|times|[lg]eq?|[lg]t|neq?|in|infty|cup|pi)\b|[{}])|sqrt"
)
_POWER = re.compile(r"\^|\*\*")
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_HARMLESS = frozenset({
    "alpha", "approx", "arccos", "arcsin", "arctan", "beta", "cap", "cdot", "cos", "cot", "cup", "div",
    "dfrac", "exp", "frac", "ge", "geq", "gt", "in", "infty", "lambda", "le", "leq",
    "ln", "log", "lt", "mu", "ne", "neq", "notin", "omega", "pi", "pm", "sin", "sqrt", "tan", "tfrac", "theta", "times",
})  # fmt: skip
_COSTLY = re.compile(r"!!|\d[eE][+-]?\d{4}")


def same_expression(gold: str, answer: str) -> bool:
    """Whether both are the same expression, set or interval; False where that cannot be decided.

    Args:
        gold: LaTeX or plain notation (`2sqrt(3)`), without maths delimiters.
        answer: The same. The two are not quite interchangeable: `x = 5` as gold accepts `5`.
    """
    if not (_is_tame(gold) and _is_tame(answer)):
        return False
    from math_verify import LatexExtractionConfig, grader, parse, parser, verify

    # Each would log once that a time limit is missing; `_is_tame` stands in for it.
    parser.TIMEOUT_WARNING_SHOWN = grader.TIMEOUT_WARNING_SHOWN = True
    read = [
        parse(f"${_latex(text)}$", [LatexExtractionConfig()], parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        for text in (gold, answer)
    ]
    try:
        return bool(verify(read[0], read[1], timeout_seconds=None))
    except (ArithmeticError, RecursionError, TypeError, ValueError):
        return False


def _is_tame(text: str) -> bool:
    """Whether an expression is short, and free of anything that takes long to evaluate."""
    if not text or len(text) > EXPRESSION_CHARS or _COSTLY.search(text) or "$" in text:
        return False
    if not _HARMLESS.issuperset(_COMMAND.findall(text)):
        return False
    whole_numbers = [int(digits) for digits in re.findall(r"\d+", text)]
    if "!" in text and (text.count("!") > 1 or max(whole_numbers, default=0) > 100):
        return False
    if _RELATION.search(text) and _HARD_TO_SOLVE.search(text):
        return False
    powers = list(_POWER.finditer(text))
    if not powers:
        return True
    product = 1
    for digits in re.findall(r"\d+", text[powers[0].end() :]):
        product *= max(1, int(digits))
    is_tower = any(_POWER.search(_exponent(text[power.end() :])) for power in powers)
    bound = POWER_PRODUCT
    if is_tower:
        bound = TOWER_PRODUCT
    elif _UNKNOWN.search(text):
        bound = UNKNOWN_PRODUCT
    return len(powers) <= 6 and product <= bound


def _exponent(text: str) -> str:
    """What stands in the exponent, and the sign after it if that is another power."""
    text = text.lstrip(" +-")
    end = len(match.group()) if (match := re.match(r"\d+|[^{(]", text)) else 0
    depth = 0
    while not match and end < len(text):
        depth += (text[end] in "{(") - (text[end] in "})")
        end += 1
        if depth == 0:
            break
    behind = text[end:].lstrip()[:2]
    return text[:end] + (behind if _POWER.match(behind) else "")


def _latex(text: str) -> str:
    text = re.sub(r"(?<!\\)\bsqrt\s*\(([^()]*)\)|√\s*\(?([\w.]+)\)?", r"\\sqrt{\1\2}", text)
    text = re.sub(r"(?<![\\a-zA-Z])pi\b|π", r"\\pi ", text).replace("**", "^")
    return re.sub(r"\s*(?:\*|×)\s*", r" \\cdot ", text)
