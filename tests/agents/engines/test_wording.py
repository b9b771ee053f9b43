"""What others wrote becomes one line that is safe to print."""

import pytest

from expertmix.agents.engines.wording import is_about_context, name_some, one_line


def test_a_line_has_no_control_or_direction_marks_and_no_breaks() -> None:
    text = "a\x1b[31m b\r\n\tc\x00 \u202ed\u2066 \x9b2J é 日本"
    assert one_line(text) == "a [31m b c d 2J é 日本"


def test_a_line_is_shortened_and_a_megabyte_costs_nothing() -> None:
    assert one_line("word " * 1_000_000, limit=12) == "word word w…"
    assert one_line("x" * 12, limit=12) == "x" * 12
    assert len(one_line("x" * 13, limit=12)) == 12


def test_names_are_sorted_and_the_rest_is_counted() -> None:
    assert name_some(["b", "a"]) == "a, b"
    assert name_some([]) == "none"
    assert name_some("edcba", limit=3) == "a, b, c and 2 more"


@pytest.mark.parametrize(
    ("message", "about"),
    [
        ("maximum context length is 512", True),
        ("context_length_exceeded", True),
        ("exceed_context_size_error: the request exceeds the available context size", True),
        ("longer than max_model_len", True),
        ("input is too long for requested model", True),
        ("no such model", False),
        ("in this context, a list is expected", False),
        ("max_tokens must be at least 1", False),
    ],
)
def test_complaints_about_the_context_window_are_recognised(message: str, about: bool) -> None:
    assert is_about_context(message) is about
