"""What the OpenAPI document says beyond FastAPI's: this server's models, limits and key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .doorway import OPEN_PATHS
from .requests import LARGEST_SEED
from .settings import PANEL_PREFIX, ServerSettings

__all__ = ["complete_document"]


def complete_document(
    document: dict[str, Any], models: Sequence[str], settings: ServerSettings
) -> None:
    """Say in place which models there are, how much may be asked for, and that a key is needed.

    Args:
        document: FastAPI's.
        models: Every name that a request may ask for.
        settings: Limits.
    """
    schemas = document["components"]["schemas"]
    panels = [name for name in models if name.startswith(PANEL_PREFIX)]
    others = [name for name in models if not name.startswith(PANEL_PREFIX)]
    for schema, names in (("PanelRequest", panels), ("ExpertRequest", others)):
        properties = schemas[schema]["properties"]
        properties["model"]["enum"] = names
        for name in ("max_tokens", "max_completion_tokens"):
            _limit(properties[name], settings.max_tokens)
        _limit(properties["n"], settings.max_n)
        _limit(properties["seed"], LARGEST_SEED)  # FastAPI rounds it to a float
    show = document["paths"]["/v1/models/{model}"]["get"]
    show["parameters"][0]["schema"]["enum"] = list(models)
    if settings.api_key is not None:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        for path in OPEN_PATHS:
            for operation in document["paths"][path].values():
                operation["security"] = []


def _limit(schema: dict[str, Any], most: int) -> None:
    for member in schema["anyOf"]:
        if member.get("type") == "integer":
            member["maximum"] = min(most, int(member.get("maximum", most)))
