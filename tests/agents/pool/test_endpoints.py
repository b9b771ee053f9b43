"""Experts of one address share one endpoint, and what they say about it must agree."""

from __future__ import annotations

from typing import Any

import pytest

from expertmix.agents import Catalog
from expertmix.agents.pool.endpoints import Endpoints, EndpointSettings, find_endpoints
from expertmix.retrieval import InputError

VENDOR = "https://api.example.test/v1"


def expert(alias: str, **other: Any) -> dict[str, Any]:
    return {"alias": alias, "engine": "openai", "address": VENDOR, "model": alias, **other}


def pool_of(*experts: dict[str, Any]) -> Catalog:
    return Catalog.from_dict({"experts": list(experts)})


def test_one_expert_says_it_for_all_of_its_address() -> None:
    catalog = pool_of(
        expert("ada", requests_per_minute=60, concurrency=2),
        {"alias": "old", "engine": "replay", "table": "t", "model": "m"},
        expert("bob", concurrency=16),
        expert("cy", address="http://localhost:8080/v1", one_model_at_a_time=True),
        expert("dee", tokens_per_minute=30_000, requests_per_minute=60.0),
        expert("eve", address="http://localhost:8080/v1"),
    )
    assert find_endpoints(catalog) == {
        VENDOR: EndpointSettings(
            address=VENDOR,
            aliases=("ada", "bob", "dee"),
            concurrency=16,
            requests_per_minute=60,
            tokens_per_minute=30_000,
        ),
        "http://localhost:8080/v1": EndpointSettings(
            address="http://localhost:8080/v1",
            aliases=("cy", "eve"),
            concurrency=8,
            one_model_at_a_time=True,
        ),
    }


def test_spellings_of_one_address_are_one_endpoint() -> None:
    spellings = [VENDOR, f"{VENDOR}/", "https://API.example.test:443/v1", f"{VENDOR}// "]
    catalog = pool_of(*(expert(f"e{n}", address=each) for n, each in enumerate(spellings)))
    [settings] = find_endpoints(catalog).values()
    assert settings.aliases == ("e0", "e1", "e2", "e3")
    endpoints = Endpoints(catalog)
    assert len({id(endpoints.at(each)) for each in spellings}) == 1


def test_addresses_that_differ_share_nothing() -> None:
    addresses = [VENDOR, "http://api.example.test/v1", "https://api.example.test/v2"]
    endpoints = Endpoints(
        pool_of(*(expert(f"e{n}", address=each) for n, each in enumerate(addresses)))
    )
    assert len({id(endpoints.at(each)) for each in addresses}) == 3
    assert endpoints.at(VENDOR) is endpoints.at(VENDOR)


@pytest.mark.parametrize("key", ["requests_per_minute", "tokens_per_minute"])
def test_rates_that_differ_are_refused_with_both_aliases_and_the_address(key: str) -> None:
    experts = (
        expert("ada"),
        expert("bob", **{key: 60}),
        expert("cy", address=f"{VENDOR}/", **{key: 600}),
        expert("dee", address="http://other.test/v1", **{key: 5}),
    )
    with pytest.raises(InputError, match=f'{key} of {VENDOR} is 60 for "bob" and 600 for "cy"'):
        pool_of(*experts)


def test_an_address_that_cannot_be_one_names_its_expert() -> None:
    experts = expert("ada"), expert("bob", address="https://me:hunter2@api.example.test/v1")
    with pytest.raises(InputError, match=r'expert "bob": .* holds a user or password') as caught:
        pool_of(*experts)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "many"])
@pytest.mark.parametrize("key", ["requests_per_minute", "tokens_per_minute"])
def test_a_rate_that_allows_nothing_or_everything_is_refused(key: str, value: object) -> None:
    with pytest.raises(InputError, match=f'expert "ada".*{key}'):
        pool_of(expert("ada", **{key: value}))


def test_a_pool_without_addresses_has_no_endpoints() -> None:
    catalog = pool_of({"alias": "old", "engine": "replay", "table": "t", "model": "m"})
    assert find_endpoints(catalog) == {}
