"""The addresses that a pool's experts share, and what is known about each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...retrieval import InputError
from ..engines.endpoint import Endpoint
from .specs import ExpertSpec, OpenAIExpert

__all__ = ["EndpointSettings", "Endpoints", "find_endpoints", "normalise_address"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """What a pool file says about one address, all its experts together."""

    address: str
    """Without a final slash, its host in lower case: one address has one spelling."""
    aliases: tuple[str, ...]
    """The experts that are asked there, in the pool file's order."""
    concurrency: int
    """Requests at one time: the most that one of its experts may have."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    one_model_at_a_time: bool = False
    """Whether its models are asked in turns."""

    def open(self) -> Endpoint:
        """What the address's engines are to share."""
        return Endpoint(
            concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
        )


class Endpoints:
    """One endpoint per address, made when it is first asked for. For one event loop at a time.

    Args:
        catalog: The pool's experts by alias.
    """

    def __init__(self, catalog: Mapping[str, ExpertSpec]) -> None:
        self._catalog = catalog
        self._settings: Mapping[str, EndpointSettings] | None = None
        self._live: dict[str, Endpoint] = {}

    def at(self, address: str) -> Endpoint:
        """The endpoint of an address, the same for each spelling of it.

        Raises:
            InputError: as `find_endpoints`.
        """
        if self._settings is None:
            self._settings = find_endpoints(self._catalog)
        key = normalise_address(address)
        if key not in self._live:
            self._live[key] = self._settings[key].open()
        return self._live[key]


def find_endpoints(catalog: Mapping[str, ExpertSpec]) -> dict[str, EndpointSettings]:
    """What the pool file says about each address, by its normalised spelling.

    Raises:
        InputError: an address that cannot be one, or experts that say different rates for the same.
    """
    sharing: dict[str, list[OpenAIExpert]] = {}
    for spec in catalog.values():
        if isinstance(spec, OpenAIExpert):
            sharing.setdefault(_address_of(spec), []).append(spec)
    return {
        address: EndpointSettings(
            address=address,
            aliases=tuple(spec.alias for spec in specs),
            concurrency=max(spec.concurrency for spec in specs),
            requests_per_minute=_agree(specs, "requests_per_minute", address),
            tokens_per_minute=_agree(specs, "tokens_per_minute", address),
            one_model_at_a_time=any(spec.one_model_at_a_time for spec in specs),
        )
        for address, specs in sharing.items()
    }


def normalise_address(address: str) -> str:
    """The one spelling of an address.

    Raises:
        InputError: it cannot be one.
    """
    from ..engines.address import check_address  # brings httpx along, which few pools need

    return str(check_address(address))


def _address_of(spec: OpenAIExpert) -> str:
    try:
        return normalise_address(spec.address)
    except InputError as error:
        raise InputError(f'expert "{spec.alias}": {error}') from None


def _agree(specs: Sequence[OpenAIExpert], key: str, address: str) -> float | None:
    """The value of a key that some experts of an address give, and none gives differently."""
    given: dict[str, float] = {
        spec.alias: value for spec in specs if (value := getattr(spec, key)) is not None
    }
    for alias, value in given.items():
        first = next(iter(given))
        if value != given[first]:
            raise InputError(
                f'{key} of {address} is {given[first]:g} for "{first}" and {value:g} for "{alias}"; '
                "it is shared: give it once, or the same for both"
            )
    return next(iter(given.values()), None)
