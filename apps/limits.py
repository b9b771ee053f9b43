"""What every door checks before it lets anybody in: how many calls a question may cost, and who may ask whom."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from ..agents.pool.specs import ExpertSpec, OpenAIExpert
from ..graph import Resources
from ..retrieval import InputError

__all__ = [
    "PANEL_PREFIX",
    "check_calls",
    "check_host",
    "check_panels",
    "count_calls",
    "is_loopback",
]

PANEL_PREFIX = "expertmix/"
"""With it begins the name of a panel where it is asked as if it were a model."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host, as far as its name tells."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_host(host: str, api_key: str | None) -> None:
    """Refuse to serve others than this machine without a key.

    Raises:
        InputError: others can reach the host and there is no key, or the key is empty.
    """
    if api_key is not None and not api_key.strip():
        raise InputError("the API key is empty; give one, or none at all")
    if api_key is None and not is_loopback(host):
        raise InputError(
            f"{host} can be reached from other machines, so it needs an API key: name the "
            "environment variable that holds it with --api-key-env"
        )


def count_calls(resources: Resources) -> int:
    """The most calls that a panel makes for one question: experts, samples, skills and aggregator.

    Experts that stand in for failed ones are not counted.
    """
    experts = resources.k if resources.adaptive is None else resources.adaptive.most
    merges = resources.aggregator is not None or resources.aggregators is not None
    skills = 0 if resources.extractor is None else resources.extractor.calls_per_question
    return experts * resources.samples + int(merges) + skills


def check_calls(resources: Resources, limit: int, *, option: str = "max_calls") -> int:
    """The calls that a panel may make for one question.

    Args:
        resources: The panel.
        limit: The most that are allowed.
        option: What raises the limit, for the message.

    Raises:
        InputError: they are more than `limit`.
    """
    calls = count_calls(resources)
    if calls > limit:
        raise InputError(
            f"this panel may make {calls} calls for one question, more than the {limit} that are "
            f"allowed; ask fewer experts or samples, or raise {option}"
        )
    return calls


def check_panels(experts: Iterable[ExpertSpec]) -> None:
    """Refuse experts that are panels themselves, and so perhaps ask themselves for ever.

    Raises:
        InputError: there is one.
    """
    for spec in experts:
        if isinstance(spec, OpenAIExpert) and spec.model.startswith(PANEL_PREFIX):
            raise InputError(
                f'expert "{spec.alias}" asks {spec.address} for {spec.model}: a panel cannot be an '
                "expert of a panel; name the address of a model"
            )
