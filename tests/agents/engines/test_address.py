"""Addresses, keys and waiting times are read strictly."""

import email.utils
from datetime import UTC, datetime, timedelta

import pytest

from expertmix.agents.engines.address import (
    check_address,
    check_key,
    is_loopback,
    read_retry_after,
)


def test_an_address_loses_its_final_slash_and_the_space_around_it() -> None:
    assert str(check_address(" https://host:8443/api/v1/ ")) == "https://host:8443/api/v1"
    assert str(check_address("http://[::1]:80/v1")) == "http://[::1]/v1"


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("box.localhost", True),
        ("localhost.evil.test", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
    ],
)
def test_loopback_is_this_machine_only(host: str, here: bool) -> None:
    assert is_loopback(host) is here


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        ("0.5", 0.5),
        ("-7", 0.0),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_a_wait_is_read_as_seconds(value: str | None, seconds: float | None) -> None:
    assert read_retry_after(value) == seconds


def test_a_wait_may_be_a_date() -> None:
    date = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    seconds = read_retry_after(date)
    assert seconds is not None
    assert 50 < seconds <= 60


def test_a_key_loses_the_space_around_it_and_an_empty_one_is_none() -> None:
    assert check_key(" sk-1\n") == "sk-1"
    assert check_key("  ") is None
    assert check_key(None) is None
