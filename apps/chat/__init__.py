"""Experts, and whole panels of them, as LangChain chat models."""

from .expert import ChatExpert
from .panel import ChatExpertmix

__all__ = ["ChatExpert", "ChatExpertmix"]
