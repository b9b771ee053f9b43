from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.tools import calculate, calculator


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 2", "4"),
        ("0.1 + 0.2", "0.3"),
        ("1/3", "1/3 ≈ 0.333333333333333"),
        ("(1/3 + 0.5) * 6", "5"),
        ("2^10", "1024"),
        ("2**-2", "0.25"),
        ("3 × 4 ÷ 8", "1.5"),
        ("−7 % 3", "2"),
        ("-7 // 2", "-4"),
        ("--5", "5"),
        ("1e-5", "0.00001"),
        ("sqrt(9/4)", "1.5"),
        ("sqrt(2)", "≈ 1.4142135623731"),
        ("2 ** 0.5 * 2 ** 0.5", "≈ 2"),
        ("round(2.5)", "2"),
        ("round(1/3, 2)", "0.33"),
        ("abs(-2) * max(1, 5/2) - min(1, 0)", "5"),
        ("gcd(12, 18)", "6"),
        ("factorial(20)", "2432902008176640000"),
        ("(-1) ** 99999999999", "-1"),
    ],
)
def test_arithmetic_is_exact(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("1/0", "division by zero"),
        ("10 % 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("1,000 + 1", "write 1000, not 1,000"),
        ("x + 1", "no names"),
        ("2x", "no place in arithmetic"),
        ("__import__(1)", "no function"),
        ("().__class__", "not arithmetic"),
        ("'a'", "no place in arithmetic"),
        ("0x10", "no place in arithmetic"),
        ("1 if 1 else 2", "not arithmetic"),
        ("(1).real", "not arithmetic"),
        ("sqrt(-1)", "negative"),
        ("factorial(301)", "factorial takes"),
        ("gcd(0.5)", "whole number"),
        ("min()", "0 arguments"),
        ("8 ** (1/3)", "exponents"),
        ("", "not an arithmetic expression"),
        ("1 +", "not an arithmetic expression"),
        ("(" * 300 + ")" * 300, "longer than"),
        ("(" * 240 + ")" * 240, ""),
        ("1\x00", ""),
    ],
)
def test_what_is_wrong_is_said_in_the_result(expression: str, reason: str) -> None:
    result = calculate(expression)
    assert result.startswith("error: ")
    assert reason in result


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9**9",
        "10**100000000",
        "factorial(300)**300",
        "(10**999)**999",
        "-" * 499 + "1",
        "1e999**999",
        "abs(" * 99 + "1" + ")" * 99,
    ],
)
def test_no_expression_takes_long(expression: str) -> None:
    start = time.thread_time()
    calculate(expression)
    assert time.thread_time() - start < 1


NUMBERS = st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6)


@settings(deadline=2_000)
@given(NUMBERS, NUMBERS, st.sampled_from("+-*/"))
def test_results_agree_with_fractions(a: Fraction, b: Fraction, operator: str) -> None:
    result = calculate(f"({a}) {operator} ({b})")
    if operator == "/" and b == 0:
        assert result == "error: division by zero"
        return
    expected = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else a}[operator]
    assert Fraction(result.partition(" ≈ ")[0]) == expected


@settings(deadline=2_000)
@given(st.one_of(st.text(max_size=60), st.text("0123456789.+-*/%() esqrt,", max_size=60)))
def test_nothing_is_ever_raised(expression: str) -> None:
    assert calculate(expression)


async def test_it_is_a_langchain_tool() -> None:
    tool = calculator()
    assert tool.name == "calculator"
    assert set(tool.args) == {"expression"}
    assert tool.invoke({"expression": "6 * 7"}) == "42"
    assert await tool.ainvoke({"expression": "1/0"}) == "error: division by zero"
