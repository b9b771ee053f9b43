"""The doors: the command line, and the doctor that says what would work here."""

from .doctor import diagnose, repair

__all__ = ["diagnose", "repair"]
