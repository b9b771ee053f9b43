"""A mixture of experts made out of a dense model, as ordinary safetensors.

Modules here import torch and transformers; the package itself does not.
"""

__all__: list[str] = []
