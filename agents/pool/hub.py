"""Fetches one pinned commit from the Hugging Face hub, or says in a sentence why not."""

from __future__ import annotations

from pathlib import Path

from ...retrieval import InputError
from .folders import check_configs

__all__ = ["download"]

CONFIGS = ["*.json"]
FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
# The same weights a second time, in the layout of the original authors.
DUPLICATES = ["original/*", "consolidated*", "onnx/*"]


def download(hub: str, revision: str) -> Path:
    """Return the folder of the commit in Hugging Face's cache, fetching what is not there yet.

    The configs come first and are checked, so that unsafe weights are refused before they are
    fetched. Only safetensors, configs and tokenizer files are taken.

    Raises:
        InputError: unsafe, not found, not allowed, or no network and not in the cache.
    """
    check_configs(_snapshot(hub, revision, CONFIGS))
    return _snapshot(hub, revision, FILES)


def _snapshot(hub: str, revision: str, patterns: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import HFValidationError
    except ImportError as error:
        raise InputError(
            f"Fetching {hub} needs huggingface_hub; run: pip install huggingface_hub"
        ) from error
    try:
        folder = snapshot_download(
            hub, revision=revision, allow_patterns=patterns, ignore_patterns=DUPLICATES
        )
    except (OSError, HFValidationError) as error:
        raise InputError(_reason(hub, revision, error)) from error
    return Path(folder)


def _reason(hub: str, revision: str, error: Exception) -> str:
    from huggingface_hub import errors

    place = f"{hub} at revision {revision[:12]}"
    match error:
        case errors.GatedRepoError():
            return f"{hub} is gated; accept its terms on its page and set HF_TOKEN."
        case errors.RepositoryNotFoundError():
            return (
                f"There is no {hub} on Hugging Face, or it is private; check the name or HF_TOKEN."
            )
        case errors.RevisionNotFoundError():
            return f"{hub} has no revision {revision}; take one from its history."
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            return (
                f"{place} is not in the local cache and the hub cannot be reached; go online "
                "(and unset HF_HUB_OFFLINE) once, or use weights from a folder or a package."
            )
        case _:
            detail = (str(error).splitlines() or [type(error).__name__])[0]
            return f"{place} could not be fetched: {detail}"
