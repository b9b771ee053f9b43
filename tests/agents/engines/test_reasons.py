"""Failures are told in one sentence."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from expertmix.agents.engines.reasons import exit_reason, root_reason


class Config(BaseModel):
    size: int

    @field_validator("size")
    @classmethod
    def is_small(cls, size: int) -> int:
        if size > 9:
            raise ValueError(f"size {size} is too large. See the manual for e.g. other sizes.")
        return size


def raised(outer: Exception, inner: Exception) -> Exception:
    try:
        try:
            raise inner
        except Exception as error:
            raise outer from error
    except Exception as error:
        return error


def test_the_innermost_exception_gives_the_reason() -> None:
    error = raised(RuntimeError("Engine core initialization failed."), ValueError("no such dtype"))
    assert root_reason(error) == "no such dtype"


def test_a_validation_error_gives_its_message_without_the_frame() -> None:
    with pytest.raises(ValidationError) as caught:
        Config(size=12)
    assert root_reason(caught.value) == "size 12 is too large"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("Head is off. Supported: dict_keys([...])"), "Head is off"),
        (ValueError("one line\nand a traceback"), "one line"),
        (ValueError("v1.5 of U.S. English is not known"), "v1.5 of U.S. English is not known"),
        (KeyError("lm_head"), "KeyError: 'lm_head'"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_reason_is_one_sentence(error: Exception, sentence: str) -> None:
    assert root_reason(error) == sentence


def test_a_reason_has_an_end() -> None:
    assert len(root_reason(ValueError("x" * 10_000))) == 300


def test_an_exit_names_its_signal_and_the_usual_cause() -> None:
    assert "signal 9" in exit_reason(-9)
    assert "out of memory" in exit_reason(-9)
    assert "exit code 3" in exit_reason(3)
    assert "gone" in exit_reason(None)
