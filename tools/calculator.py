"""Exact arithmetic for experts that may call it: whole numbers and fractions, never floats.

An expression is parsed, not evaluated as Python: only numbers, operators and the functions below are
known. Sizes are bounded before anything is computed, so no expression takes long. What is wrong with
an expression is said in the answer, for the model to read.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

__all__ = ["calculate", "calculator"]

EXPRESSION_CHARS = 500
BITS = 4096  # of numerator and denominator: about 1,200 digits
FACTORIAL = 300
EXPONENT_DIGITS = 4
ROOT_DIGITS = 15  # significant digits of a root that is not rational

DESCRIPTION = (
    "Exact arithmetic. Give one expression with numbers, parentheses, + - * / // % ** and the "
    "functions sqrt, abs, min, max, round, gcd, factorial; for example (12.5 + 3/4) * 8. "
    "The result is exact, or begins with ≈ where a root is not rational."
)
# Letters behind a digit (`2x`), strings and the like never reach Python's parser.
_STRAY = re.compile(r"[^\w.,+\-*/%() \t]|[^\x00-\x7f]|\d(?![eE][+-]?\d)[A-Za-z]+")
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**"})


class _Refused(Exception):
    """Why an expression has no result; the message is for the model."""


def calculate(expression: str) -> str:
    """The value of an arithmetic expression as text.

    Args:
        expression: Such as `(1/3 + 0.5) * 6`; `^`, `×` and `÷` are understood.

    Returns:
        A whole number (`5`), a decimal where it ends (`2.5`), else a fraction with its value
        (`1/3 ≈ 0.333333333333333`); `≈ …` where a root is not rational; `error: …` for anything that
        cannot be computed. Nothing is raised.
    """
    try:
        if len(expression) > EXPRESSION_CHARS:
            raise _Refused(f"the expression is longer than {EXPRESSION_CHARS} characters")
        evaluation = _Evaluation(expression.translate(_SPELLINGS).strip())
        return evaluation.shown()
    except _Refused as refusal:
        return f"error: {refusal}"
    except RecursionError:
        return "error: the expression is nested too deeply"


def calculator() -> BaseTool:
    """`calculate` as a LangChain tool named `calculator`."""
    from langchain_core.tools import StructuredTool

    return StructuredTool.from_function(calculate, name="calculator", description=DESCRIPTION)


class _Evaluation:
    """The value of one expression, and whether a root in it had to be rounded."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._is_exact = True
        if stray := _STRAY.search(source):
            raise _Refused(f"{stray.group()!r} has no place in arithmetic")
        try:
            tree = ast.parse(source, mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            raise _Refused(f"{source[:80]!r} is not an arithmetic expression") from None
        self._value = self._visit(tree.body)

    def shown(self) -> str:
        value = self._value
        if not self._is_exact:
            return f"≈ {_significant(value)}"
        if value.denominator == 1:
            return str(value.numerator)
        decimal = _ending_decimal(value)
        return decimal or f"{value.numerator}/{value.denominator} ≈ {_significant(value)}"

    def _visit(self, node: ast.expr) -> Fraction:
        match node:
            case ast.Constant():
                return self._number(node)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._visit(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._visit(operand)
            case ast.BinOp(left=left, op=operator, right=right):
                return self._binary(operator, self._visit(left), self._visit(right))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name, [self._visit(argument) for argument in arguments])
            case ast.Tuple():
                raise _Refused("commas only separate arguments; write 1000, not 1,000")
            case _:
                part = ast.get_source_segment(self._source, node) or type(node).__name__
                raise _Refused(f"{part[:40]!r} is not arithmetic; there are no names or variables")

    def _number(self, node: ast.Constant) -> Fraction:
        text = (ast.get_source_segment(self._source, node) or "").replace("_", "")
        if not re.fullmatch(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", text):
            raise _Refused(f"{text[:40]!r} is not a number that the calculator reads")
        return _bounded(Fraction(text))

    def _binary(self, operator: ast.operator, left: Fraction, right: Fraction) -> Fraction:
        if isinstance(operator, ast.Pow):
            return self._power(left, right)
        operations: Mapping[type[ast.operator], Callable[[], Fraction]] = {
            ast.Add: lambda: left + right,
            ast.Sub: lambda: left - right,
            ast.Mult: lambda: left * right,
            ast.Div: lambda: left / right,
            ast.FloorDiv: lambda: Fraction(left // right),
            ast.Mod: lambda: left % right,
        }
        operation = operations.get(type(operator))
        if operation is None:
            raise _Refused("only + - * / // % ** are known")
        try:
            return _bounded(operation())
        except ZeroDivisionError:
            raise _Refused("division by zero") from None

    def _power(self, base: Fraction, exponent: Fraction) -> Fraction:
        if exponent == Fraction(1, 2):
            return self._root(base)
        if exponent.denominator != 1:
            raise _Refused("exponents must be whole numbers, or 1/2")
        if base == 0 and exponent < 0:
            raise _Refused("division by zero")
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(base) not in (0, 1) and bits * abs(exponent) > 2 * BITS:
            raise _Refused("the power is too large")
        if abs(exponent) > 10**EXPONENT_DIGITS:
            exponent = exponent % 2  # base is 0, 1 or −1
            exponent = exponent if base < 0 else Fraction(1)
        return _bounded(base ** int(exponent))

    def _root(self, value: Fraction) -> Fraction:
        if value < 0:
            raise _Refused("there is no real root of a negative number")
        top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if Fraction(top * top, bottom * bottom) == value:
            return Fraction(top, bottom)
        self._is_exact = False
        scale = 1 << 128
        return Fraction(
            math.isqrt(value.numerator * value.denominator * scale * scale),
            value.denominator * scale,
        )

    def _call(self, name: str, arguments: list[Fraction]) -> Fraction:
        functions: Mapping[str, tuple[range, Callable[[list[Fraction]], Fraction]]] = {
            "sqrt": (range(1, 2), lambda a: self._root(a[0])),
            "abs": (range(1, 2), lambda a: abs(a[0])),
            "min": (range(1, 100), min),
            "max": (range(1, 100), max),
            "round": (range(1, 3), _round),
            "gcd": (range(1, 100), lambda a: Fraction(math.gcd(*map(_whole, a)))),
            "factorial": (range(1, 2), _factorial),
        }
        if name not in functions:
            raise _Refused(f"there is no function {name[:20]!r}; known: {', '.join(functions)}")
        counts, function = functions[name]
        if len(arguments) not in counts:
            raise _Refused(f"{name} does not take {len(arguments)} arguments")
        return _bounded(function(arguments))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS:
        raise _Refused("the number is too large")
    return value


def _whole(value: Fraction) -> int:
    if value.denominator != 1:
        raise _Refused("a whole number is needed")
    return value.numerator


def _round(arguments: list[Fraction]) -> Fraction:
    """Half to even, as Python and most of statistics round."""
    digits = _whole(arguments[1]) if len(arguments) == 2 else 0
    if abs(digits) > 100:
        raise _Refused("round takes at most 100 digits")
    return Fraction(round(arguments[0], digits))


def _factorial(arguments: list[Fraction]) -> Fraction:
    n = _whole(arguments[0])
    if not 0 <= n <= FACTORIAL:
        raise _Refused(f"factorial takes 0 to {FACTORIAL}")
    return Fraction(math.factorial(n))


def _ending_decimal(value: Fraction) -> str | None:
    """The value as a decimal of at most 30 places, if it is one exactly."""
    scaled = value * 10**30
    if scaled.denominator != 1:
        return None
    digits = str(abs(scaled.numerator)).rjust(31, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-30]}.{digits[-30:].rstrip('0')}"


def _significant(value: Fraction) -> str:
    from decimal import Context, Decimal

    context = Context(prec=ROOT_DIGITS)
    quotient = context.divide(Decimal(value.numerator), Decimal(value.denominator))
    text = format(quotient, "f" if -6 <= quotient.adjusted() <= 20 else "e")
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
