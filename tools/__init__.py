"""What an expert may call while it reasons."""

from .calculator import calculate, calculator

__all__ = ["calculate", "calculator"]
