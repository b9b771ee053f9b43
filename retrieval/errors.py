"""The one exception that a person, not a programmer, is meant to read."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Input that whoever gave it can correct: what we got, what exists, what to do.

    Raised by every floor for bad files, settings and names. The doors (command line, server) print
    the sentence without a traceback; every other exception is a defect of ours and keeps its own.
    """
